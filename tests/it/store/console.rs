//! What people ask of a state and do to it.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use reconciled::model::{
    EntryId, EntryState, Field, InstallationId, Reason, ResourceKey, Snapshot,
};
use reconciled::plan::Outcome;
use reconciled::plan::decide::FirstSight;
use reconciled::plan::guard::Limits;
use reconciled::plan::manual::Refusal;
use reconciled::store::Access;
use reconciled::store::console::{Act, Answer, Console, EntryFilter, Installations, Order};
use reconciled::store::{Batch, Cutoffs, Drifted, GuardEvent, PauseKind, Person, SqliteStore};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use tempfile::TempDir;

use super::fixture::*;
use crate::support::postgres::Postgres;

/// Runs every law here over one kind of store.
macro_rules! console_laws {
    ($($store:ident: $open:path),+ => $laws:tt) => {
        $(console_laws!(@store $store $open, $laws);)+
    };
    (@store $store:ident $open:path, [$($law:ident),+ $(,)?]) => {
        mod $store {
            $(
                #[tokio::test]
                async fn $law() {
                    let fixture = $open().await;
                    super::$law(fixture.store()).await;
                }
            )+
        }
    };
}

console_laws! {
    sqlite_file: crate::store::fixture::sqlite, postgres: crate::store::fixture::postgres => [
        discarded_value_stays_discarded_until_changed,
        every_act_leaves_its_row,
        what_is_done_to_a_whole_fleet_is_told_of_each_resource,
        acts_are_to_be_told_in_their_order_until_they_are_told,
        a_fix_that_a_person_ordered_is_told_of_each_resource_that_it_marked,
        the_history_of_a_delivery_outlives_its_entry,
        orders_meet_each_entry_as_it_is,
        retry_makes_a_dead_letter_due_at_once,
        entries_are_listed_by_filter_and_what_was_cut_is_counted,
        story_tells_attempts_oldest_first_and_the_newest_of_them,
        installations_are_summed_up,
        what_a_hold_keeps_back_is_listed_by_key_piece_by_piece,
        a_rate_limit_is_worth_a_note_also_without_an_open_entry,
        quarantined_rows_are_listed_as_they_were_reported,
    ]
}

fn person(name: &str, reason: Option<&str>) -> Person {
    Person {
        name: name.to_owned(),
        reason: reason.map(str::to_owned),
    }
}

fn leaver(name: &str) -> Person {
    person(name, Some("the customer left"))
}

async fn open_entry(store: &dyn Console, key: &reconciled::model::ResourceKey) -> EntryId {
    record(store, key).await.entry.expect("open").id
}

async fn discarded_value_stays_discarded_until_changed(store: &dyn Console) {
    let key = key("icfg_1", "res_1");
    read(store, START, vec![row(&key, &status("ready"))]).await;
    let id = open_entry(store, &key).await;
    let answers = store
        .act(&[id], Order::Discard, &leaver("ana"), seconds(1))
        .await
        .expect("answered");
    let done = Answer::Done {
        key: key.clone(),
        state: EntryState::Discarded,
    };
    assert_eq!(answers, [done]);
    read(store, seconds(2), vec![row(&key, &status("ready"))]).await;
    assert!(claim(store, seconds(2)).await.is_empty());
    read(store, seconds(3), vec![row(&key, &status("suspended"))]).await;
    let claimed = claim_one(store, seconds(3)).await;
    acknowledge(store, &claimed, seconds(3)).await;
    // Back to what was discarded once: that is a change of the source.
    read(store, seconds(4), vec![row(&key, &status("ready"))]).await;
    assert_eq!(claim_one(store, seconds(4)).await.desired, status("ready"));
}

async fn every_act_leaves_its_row(store: &dyn Console) {
    let (one, two) = (key("icfg_1", "res_1"), key("icfg_1", "res_2"));
    read(
        store,
        START,
        vec![row(&one, &status("ready")), row(&two, &status("ready"))],
    )
    .await;
    let id = open_entry(store, &one).await;
    store
        .act(&[id], Order::Retry, &person("ana", None), seconds(1))
        .await
        .expect("answered");
    // Refused: it is not held. Nothing was done, so nothing is told.
    let refused = store
        .act(&[id], Order::Release, &person("ana", None), seconds(2))
        .await
        .expect("answered");
    let (key, refusal) = (one.clone(), Refusal::NotHeld);
    assert_eq!(refused, [Answer::Refused { key, refusal }]);
    store
        .act(&[id], Order::Discard, &leaver("bo"), seconds(3))
        .await
        .expect("answered");
    store
        .pause(&pause("icfg_1", PauseKind::Manual, seconds(4)))
        .await
        .expect("paused");
    store
        .pause(&pause("icfg_1", PauseKind::Token, seconds(5)))
        .await
        .expect("paused");
    let resumed = store
        .resume_manually(&installation("icfg_1"), &person("cy", None), seconds(6))
        .await;
    assert!(resumed.expect("resumed"));
    assert!(
        !store
            .resume_manually(&installation("icfg_1"), &person("cy", None), seconds(7))
            .await
            .expect("answered")
    );
    let story = store.story(&one, 10).await.expect("readable");
    let acts: Vec<_> = story
        .acts
        .iter()
        .map(|act| {
            (
                act.actor.as_str(),
                act.act.as_str(),
                act.at,
                act.entry_id,
                act.reason.as_deref(),
            )
        })
        .collect();
    let expected = [
        ("ana", "retry", seconds(1), Some(id), None),
        (
            "bo",
            "discard",
            seconds(3),
            Some(id),
            Some("the customer left"),
        ),
        ("ana", "pause", seconds(4), None, Some("customer migration")),
        ("cy", "resume", seconds(6), None, None),
    ];
    assert_eq!(acts, expected);
    assert_eq!(story.pauses.len(), 1, "the automatic one is still there");
    assert_eq!(
        story.acts[2].installation_id,
        Some(installation("icfg_1")),
        "a pause is of its installation"
    );
    assert_eq!(story.closed.len(), 1);
    let other = store.story(&two, 10).await.expect("readable");
    assert_eq!(
        other.acts.len(),
        2,
        "the installation's own acts concern it too"
    );
}

async fn what_is_done_to_a_whole_fleet_is_told_of_each_resource(store: &dyn Console) {
    let (one, two) = (key("icfg_1", "res_1"), key("icfg_2", "res_2"));
    let whole = Act::new("adopt", person("ana", Some("moving in")), START);
    let other = Act::new("compare", person("bo", None), seconds(1));
    let other = other.of_installation(installation("icfg_2"));
    for act in [&whole, &other] {
        store.note(act).await.expect("kept");
    }
    let acts = async |key| store.story(key, 10).await.expect("readable").acts;
    assert_eq!(acts(&one).await, std::slice::from_ref(&whole));
    assert_eq!(acts(&two).await, [whole, other]);
    // What can only be done to an entry is refused without one.
    let nothing = Act::new("retry", person("ana", None), START);
    store.note(&nothing).await.expect_err("to which entry?");
}

async fn acts_are_to_be_told_in_their_order_until_they_are_told(store: &dyn Console) {
    // Not in the order of their keys.
    let keys = [key("b", "1"), key("a", "2"), key("a", "1")];
    let mut ids = Vec::new();
    for key in &keys {
        read(store, START, vec![row(key, &status("ready"))]).await;
        ids.push(open_entry(store, key).await);
    }
    let untold = async |limit| {
        let acts = store.untold_acts(limit).await.expect("readable");
        acts.into_iter().unzip::<_, _, Vec<_>, Vec<_>>()
    };
    assert_eq!(untold(10).await.1, []);
    let whole = Act::new("adopt", person("bo", None), START);
    store.note(&whole).await.expect("kept");
    let (order, by) = (Order::Discard, leaver("ana"));
    let answers = store.act(&ids, order, &by, seconds(1)).await;
    let done = |answer: &Answer| matches!(answer, Answer::Done { .. });
    assert!(answers.expect("answered").iter().all(done));
    let mut expected = vec![whole];
    for (key, id) in keys.iter().zip(&ids) {
        let act = Act::new("discard", leaver("ana"), seconds(1)).of_resource(key.clone());
        expected.push(Act {
            entry_id: Some(*id),
            ..act
        });
    }
    assert_eq!(untold(10).await.1, expected);
    let (first, acts) = untold(2).await;
    assert_eq!(acts, &expected[..2]);
    store.acts_told(&first, seconds(2)).await.expect("kept");
    assert_eq!(untold(10).await.1, &expected[2..]);
}

async fn a_fix_that_a_person_ordered_is_told_of_each_resource_that_it_marked(store: &dyn Console) {
    let keys = [key("icfg_1", "res_1"), key("icfg_1", "res_2")];
    for key in &keys {
        deliver(store, START, key, &status("ready")).await;
    }
    read(store, seconds(1), vec![row(&keys[1], &status("suspended"))]).await;
    let drifted: Vec<Drifted> = keys
        .iter()
        .map(|key| Drifted {
            key: key.clone(),
            fields: reconciled::model::FieldSet::EMPTY.with(Field::Status),
            acknowledged_at: Some(START),
        })
        .collect();
    let ana = person("ana", Some("the console was used"));
    let marked = store.mark_drifted(&drifted, Some(&ana), seconds(2)).await;
    assert_eq!(marked.expect("marked"), 1, "the other one is under way");
    let expected = Act::new("fix", ana, seconds(2)).of_resource(keys[0].clone());
    let acts = async |key| store.story(key, 10).await.expect("readable").acts;
    assert_eq!(acts(&keys[0]).await, [expected]);
    assert_eq!(acts(&keys[1]).await, []);
}

async fn the_history_of_a_delivery_outlives_its_entry(store: &dyn Console) {
    let key = key("icfg_1", "res_1");
    deliver(
        store,
        START,
        &key,
        &with_secrets(status("ready"), &["URL=1"]),
    )
    .await;
    let delivered = Cutoffs {
        entries: seconds(1),
        attempts: START,
    };
    assert_eq!(store.prune(delivered, 10).await.expect("pruned"), 1);
    let story = store.story(&key, 10).await.expect("readable");
    assert_eq!(story.closed, []);
    let [attempt] = &story.attempts[..] else {
        panic!("{story:?}");
    };
    assert_eq!(attempt.outcome, "acknowledged");
    assert_eq!(attempt.secret_names, ["URL"]);
    assert_eq!(attempt.vercel_id.as_deref(), Some("fra1::test"));
    let attempts = Cutoffs {
        entries: START,
        attempts: seconds(100),
    };
    assert_eq!(store.prune(attempts, 10).await.expect("pruned"), 1);
    let story = store.story(&key, 10).await.expect("readable");
    assert_eq!(story.attempts, []);
}

async fn orders_meet_each_entry_as_it_is(store: &dyn Console) {
    let keys = [key("a", "1"), key("a", "2"), key("a", "3")];
    read(
        store,
        START,
        keys.iter().map(|key| row(key, &status("ready"))).collect(),
    )
    .await;
    let mut ids = Vec::new();
    for key in &keys {
        ids.push(open_entry(store, key).await);
    }
    ids.push(EntryId(999));
    let claimed = claim_by(store, &request(START, 2)).await;
    acknowledge(store, &claimed[0], START).await;
    let answers = store
        .act(&ids, Order::Discard, &leaver("ana"), seconds(1))
        .await
        .expect("answered");
    let expected = [
        Answer::Refused {
            key: keys[0].clone(),
            refusal: Refusal::Closed,
        },
        Answer::Refused {
            key: keys[1].clone(),
            refusal: Refusal::InFlight,
        },
        Answer::Done {
            key: keys[2].clone(),
            state: EntryState::Discarded,
        },
        Answer::Unknown,
    ];
    assert_eq!(answers, expected);
    ids.reverse();
    let [first, second, third] = &keys;
    let found = store.keys_of(&ids).await.expect("readable");
    let expected = [None, Some(third), Some(second), Some(first)];
    assert_eq!(
        found.iter().map(Option::as_ref).collect::<Vec<_>>(),
        expected
    );
}

async fn retry_makes_a_dead_letter_due_at_once(store: &dyn Console) {
    let key = key("icfg_1", "res_1");
    read(store, START, vec![row(&key, &status("ready"))]).await;
    let claimed = claim_one(store, START).await;
    settle(store, &claimed, Outcome::NotFound, START).await;
    assert!(claim(store, seconds(1)).await.is_empty());
    let answers = store
        .act(
            &[claimed.entry_id],
            Order::Retry,
            &person("ana", None),
            seconds(1),
        )
        .await;
    assert!(matches!(
        answers.expect("answered")[..],
        [Answer::Done {
            state: EntryState::Waiting,
            ..
        }]
    ));
    assert_eq!(
        claim_one(store, seconds(1)).await.entry_id,
        claimed.entry_id
    );
}

/// What a law needs to reach behind a store.
type Behind<'a> = &'a dyn Fn(&'static str) -> BoxFuture<'static, ()>;

#[tokio::test]
async fn held_entry_is_released_by_a_person_only_in_sqlite() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("state.db");
    let store = SqliteStore::open(&path, Access::Daemon)
        .await
        .expect("a state");
    let behind = |sql: &'static str| -> BoxFuture<'static, ()> {
        let path = path.clone();
        Box::pin(async move {
            let options = SqliteConnectOptions::new().filename(&path);
            let mut connection = options.connect().await.expect("connected");
            sqlx::raw_sql(sql)
                .execute(&mut connection)
                .await
                .expect(sql);
        })
    };
    held_entry_is_released_by_a_person_only(&store, &behind).await;
}

#[tokio::test]
async fn held_entry_is_released_by_a_person_only_in_postgres() {
    let database = Arc::new(Postgres::shared().database().await);
    let store = open_postgres(&database.url).await;
    let behind = |sql: &'static str| -> BoxFuture<'static, ()> {
        let database = Arc::clone(&database);
        Box::pin(async move {
            database
                .execute(&format!("SET search_path = reconciled; {sql}"))
                .await
        })
    };
    held_entry_is_released_by_a_person_only(&store, &behind).await;
}

async fn held_entry_is_released_by_a_person_only(store: &dyn Console, behind: Behind<'_>) {
    let key = key("icfg_1", "res_1");
    read(store, START, vec![row(&key, &status("suspended"))]).await;
    let id = open_entry(store, &key).await;
    behind(
        "INSERT INTO hold (id, state, origin, opened_at) VALUES (1, 'open', 'sweep', 0);
         UPDATE entry SET state = 'held', reason = 'guard', hold_id = 1",
    )
    .await;
    let held = record(store, &key).await.entry.expect("open");
    assert_eq!(
        (held.state, held.reason, held.hold),
        (EntryState::Held, Reason::Guard, Some(1))
    );
    assert!(claim(store, seconds(9)).await.is_empty());
    assert_eq!(store.next_due().await.expect("readable"), None);
    let refused = store
        .act(&[id], Order::Retry, &person("ana", None), seconds(9))
        .await
        .expect("answered");
    let refusal = Refusal::Held;
    let expected = Answer::Refused {
        key: key.clone(),
        refusal,
    };
    assert_eq!(refused, [expected]);
    store
        .act(&[id], Order::Release, &person("ana", None), seconds(9))
        .await
        .expect("answered");
    assert_eq!(claim_one(store, seconds(9)).await.entry_id, id);
}

async fn entries_are_listed_by_filter_and_what_was_cut_is_counted(store: &dyn Console) {
    deliver(
        store,
        START,
        &key("a", "1"),
        &with_name(status("ready"), "db"),
    )
    .await;
    let rows = vec![
        row(&key("a", "1"), &with_name(status("suspended"), "db")),
        row(&key("a", "2"), &with_secrets(status("ready"), &["URL=1"])),
        row(&key("b", "1"), &status("ready")),
    ];
    read(store, seconds(10), rows).await;
    let claimed = claim(store, seconds(10)).await;
    let b = claimed
        .iter()
        .find(|claimed| claimed.key == key("b", "1"))
        .expect("due");
    settle(store, b, rejected(), seconds(10)).await;
    let list = async |filter: EntryFilter| {
        let page = store.entries(&filter).await.expect("readable");
        let ids = store.entry_ids(&filter).await.expect("readable");
        let listed: Vec<EntryId> = page.entries.iter().map(|listed| listed.entry.id).collect();
        assert_eq!(
            (&ids[..listed.len()], ids.len() as u64),
            (&listed[..], page.total),
            "the numbers are those of the same entries, and no limit cuts them"
        );
        let keys: Vec<String> = page
            .entries
            .iter()
            .map(|listed| listed.key.to_string())
            .collect();
        (keys.join(" "), page.cut())
    };
    let all = EntryFilter {
        limit: 10,
        ..EntryFilter::default()
    };
    assert_eq!(
        list(all.clone()).await,
        ("a/1 a/2 b/1".to_owned(), 0),
        "the open ones"
    );
    let two = EntryFilter {
        limit: 2,
        ..all.clone()
    };
    assert_eq!(list(two).await, ("a/1 a/2".to_owned(), 1));
    let dead = EntryFilter {
        states: vec![EntryState::Dead],
        ..all.clone()
    };
    assert_eq!(list(dead).await, ("b/1".to_owned(), 0));
    let of_b = EntryFilter {
        installation_id: Some(installation("b")),
        ..all.clone()
    };
    assert_eq!(list(of_b).await, ("b/1".to_owned(), 0));
    let secrets = EntryFilter {
        field: Some(Field::Secrets),
        ..all.clone()
    };
    assert_eq!(list(secrets).await, ("a/2".to_owned(), 0));
    let statuses = EntryFilter {
        field: Some(Field::Status),
        limit: 1,
        ..all.clone()
    };
    assert_eq!(
        list(statuses).await,
        ("a/1".to_owned(), 2),
        "a rejected field counts"
    );
    let names = EntryFilter {
        field: Some(Field::Name),
        states: EntryState::ALL.to_vec(),
        ..all.clone()
    };
    assert_eq!(
        list(names).await,
        ("a/1".to_owned(), 0),
        "sent with the delivered one"
    );
    let delivered = EntryFilter {
        states: vec![EntryState::Delivered],
        ..all.clone()
    };
    let page = store.entries(&delivered).await.expect("readable");
    assert_eq!(page.entries[0].closed_at, Some(START));
    assert_eq!(page.entries[0].fields.to_string(), "status, name");
    let since = EntryFilter {
        since: Some(seconds(10)),
        states: EntryState::ALL.to_vec(),
        ..all.clone()
    };
    assert_eq!(list(since).await.0, "a/1 a/2 b/1");
}

async fn story_tells_attempts_oldest_first_and_the_newest_of_them(store: &dyn Console) {
    let key = key("icfg_1", "res_1");
    read(
        store,
        START,
        vec![row(&key, &with_secrets(status("ready"), &["URL=1"]))],
    )
    .await;
    let mut now = START;
    for outcome in [Outcome::Failed, Outcome::Lost, Outcome::Unreachable] {
        let claimed = claim_one(store, now).await;
        now = settle(store, &claimed, outcome, now).await.due_at;
    }
    let story = store.story(&key, 2).await.expect("readable");
    let outcomes: Vec<&str> = story
        .attempts
        .iter()
        .map(|attempt| attempt.outcome.as_str())
        .collect();
    assert_eq!(outcomes, ["lost", "unreachable"]);
    assert_eq!(story.attempts[1].number, 3);
    assert_eq!(story.attempts[1].fields, [Field::Secrets, Field::Status]);
    assert_eq!(story.attempts[1].secret_names, ["URL"]);
    assert_eq!(story.attempts[1].vercel_id.as_deref(), Some("fra1::test"));
    assert_eq!(store.retries_since(START).await.expect("counted"), 3);
    assert_eq!(store.retries_since(now).await.expect("counted"), 0);
    let id = story.record.entry.expect("open").id;
    let detail = store.entry(id, 10).await.expect("readable").expect("there");
    assert_eq!(detail.attempts.len(), 3);
    assert_eq!(detail.listed.fields.to_string(), "secrets, status");
    assert_eq!(store.entry(EntryId(999), 10).await.expect("readable"), None);
    let never = store
        .story(&super::fixture::key("icfg_1", "never"), 2)
        .await
        .expect("readable");
    assert!(never.record.is_first_sight());
}

async fn installations_are_summed_up(store: &dyn Console) {
    deliver(store, START, &key("a", "1"), &status("ready")).await;
    read(
        store,
        seconds(5),
        vec![
            row(&key("a", "2"), &status("ready")),
            row(&key("b", "1"), &status("ready")),
        ],
    )
    .await;
    store
        .pause(&pause("b", PauseKind::Manual, START))
        .await
        .expect("paused");
    store
        .pause(&pause("c", PauseKind::Gone, START))
        .await
        .expect("paused");
    // In the order of bytes, also where the database orders text otherwise.
    for id in ["B", "d"] {
        deliver(store, START, &key(id, "1"), &status("ready")).await;
    }
    let told = async |which| {
        let summaries = store.installations(which).await.expect("readable");
        let told = summaries.into_iter().map(|s| {
            let id = s.installation_id.to_string();
            (id, s.resources, s.waiting, s.oldest, s.pauses.len())
        });
        told.collect::<Vec<_>>()
    };
    let [upper, a, b, c, d] = [
        ("B", 1, 0, None, 0),
        ("a", 2, 1, Some(seconds(5)), 0),
        ("b", 1, 1, Some(seconds(5)), 1),
        ("c", 0, 0, None, 1),
        ("d", 1, 0, None, 0),
    ]
    .map(|(id, resources, waiting, oldest, pauses)| {
        (id.to_owned(), resources, waiting, oldest, pauses)
    });
    let all = [&upper, &a, &b, &c, &d].map(Clone::clone);
    assert_eq!(told(Installations::All).await, all);
    assert_eq!(store.installation_count().await.expect("readable"), 5);
    // Of the first and the last there is nothing to say.
    let expected = [a.clone(), b, c.clone()];
    assert_eq!(told(Installations::Noteworthy).await, expected);
    let these = ["d", "never", "c", "B", "a", "d"];
    let these = these.map(|id| InstallationId::new(id).expect("an id"));
    let these = Installations::These(these.to_vec());
    assert_eq!(told(these).await, [upper, a, c, d]);
    let none = told(Installations::These(Vec::new())).await;
    assert_eq!(none, []);
    assert_eq!(store.pauses().await.expect("readable").len(), 2);
}

async fn a_rate_limit_is_worth_a_note_also_without_an_open_entry(store: &dyn Console) {
    let until = seconds(60);
    let resource = key("a", "1");
    read(store, START, vec![row(&resource, &status("ready"))]).await;
    let claimed = claim_one(store, START).await;
    let mut limited = settlement(&claimed, Outcome::RateLimited { until }, START);
    limited.limit_installation_until = Some(until);
    store.advance(limited).await.expect("committed");
    let claimed = claim_one(store, until).await;
    let sent_at = until;
    settle(store, &claimed, Outcome::Acknowledged { sent_at }, until).await;
    let noteworthy = store.installations(Installations::Noteworthy).await;
    let noteworthy = noteworthy.expect("readable");
    let told: Vec<_> = noteworthy
        .iter()
        .map(|s| (s.installation_id.as_str(), s.waiting, s.limited_until))
        .collect();
    assert_eq!(told, [("a", 0, Some(until))]);
}

async fn what_a_hold_keeps_back_is_listed_by_key_piece_by_piece(store: &dyn Console) {
    // Each found before the ones whose keys come first.
    let keys: Vec<ResourceKey> = (0..12)
        .map(|number| key(&format!("icfg_{}", number / 5), &format!("res_{number:02}")))
        .collect();
    let rows = |desired: &Snapshot| {
        let backwards = keys.iter().rev();
        backwards.map(|key| row(key, desired)).collect()
    };
    let pass = |now, observations| Batch {
        guard: Limits {
            destructive_max: Some(10),
            changes_max: None,
        },
        ends_pass: true,
        ..batch(now, observations)
    };
    let mut known = pass(START, rows(&status("ready")));
    known.policy.first_sight = FirstSight::Adopt;
    store.reconcile(known).await.expect("committed");
    let decided = store.reconcile(pass(seconds(5), rows(&status("suspended"))));
    let decided = decided.await.expect("committed");
    let [GuardEvent::Held { hold, .. }] = decided.guard[..] else {
        panic!("{decided:?}");
    };
    let mut found = Vec::new();
    loop {
        let piece = store.kept_back(hold, found.last(), 5).await;
        let piece = piece.expect("readable");
        if piece.is_empty() {
            break;
        }
        assert!(piece.len() <= 5);
        found.extend(piece);
    }
    assert_eq!(found, keys);
    let id = open_entry(store, &keys[3]).await;
    let ana = person("ana", None);
    let released = store.act(&[id], Order::Release, &ana, seconds(6)).await;
    released.expect("committed");
    let left = store.kept_back(hold, None, 99).await.expect("readable");
    assert_eq!(left.len(), 11);
    let other = store.kept_back(hold + 1, None, 99).await;
    assert_eq!(other.expect("readable"), []);
}

async fn quarantined_rows_are_listed_as_they_were_reported(store: &dyn Console) {
    let rows = vec![
        unusable(&key("a", "1"), "x", seconds(1)),
        without_ids("y", START),
        without_ids("z", seconds(2)),
    ];
    let mut bad = batch(START, Vec::new());
    bad.quarantined = rows.clone();
    store.reconcile(bad).await.expect("committed");
    let (listed, total) = store.quarantined(2).await.expect("readable");
    assert_eq!((listed, total), (vec![rows[1].clone(), rows[0].clone()], 3));
}
