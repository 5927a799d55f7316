//! The laws of a state store, one function each.

use std::collections::BTreeMap;
use std::time::Duration;

use reconciled::model::{EntryState, Field, Mode, Origin, Reason, SecretsPatch};
use reconciled::plan::{Decision, Outcome};
use reconciled::store::{
    Counts, Cutoffs, Glance, Pause, PauseKind, PollProgress, Progress, Store, SweepAccount,
    SweepProgress,
};

use super::fixture::*;
pub(super) use super::watch::{
    pass_under_a_lost_watch_commits_nothing,
    requests_of_other_owners_count_against_their_installation, watch_belongs_to_one_at_a_time,
};

pub(super) async fn claim_records_doubt_before_returning(store: &dyn Store) {
    let key = key("icfg_1", "res_1");
    read(
        store,
        START,
        vec![row(&key, &with_secrets(status("ready"), &["URL=1"]))],
    )
    .await;
    assert!(record(store, &key).await.doubt.is_empty());
    let claimed = claim_one(store, START).await;
    let record = record(store, &key).await;
    assert!(record.doubt.fields.contains_key(&Field::Status));
    assert_eq!(record.doubt.secrets.len(), 1);
    let entry = record.entry.expect("open");
    assert_eq!(entry.id, claimed.entry_id);
    assert_eq!(entry.lease.expect("leased").token, claimed.token);
    assert_eq!(entry.in_flight.expect("in flight").patch, claimed.patch);
    assert_eq!(claimed.lease_expires_at, START.plus(LEASE));
    assert_eq!(claimed.attempt, 1);
}

pub(super) async fn what_a_batch_finds_is_claimed_with_it(store: &dyn Store) {
    let (old, new) = (key("icfg_1", "res_1"), key("icfg_2", "res_1"));
    read(store, START, vec![row(&old, &status("ready"))]).await;
    let mut found = batch(seconds(1), vec![row(&new, &status("ready"))]);
    found.claim = Some(request(seconds(1), 64));
    let reconciled = store.reconcile(found).await.expect("committed");
    assert_eq!(reconciled.decisions, [Decision::Enqueued]);
    assert_eq!(installations(&reconciled.claimed), ["icfg_1", "icfg_2"]);
    for claimed in &reconciled.claimed {
        let record = record(store, &claimed.key).await;
        assert!(record.doubt.fields.contains_key(&Field::Status));
        let lease = record.entry.and_then(|entry| entry.lease);
        assert_eq!(lease.expect("leased").token, claimed.token);
    }
    assert!(claim(store, seconds(2)).await.is_empty());
    // An outcome under such a claim counts like any other.
    let outcome = Outcome::Acknowledged {
        sent_at: seconds(2),
    };
    let settled = settle(store, &reconciled.claimed[1], outcome, seconds(2)).await;
    assert_eq!(settled.state, EntryState::Delivered);
}

pub(super) async fn nothing_is_claimed_twice(store: &dyn Store) {
    read(
        store,
        START,
        vec![row(&key("icfg_1", "res_1"), &status("ready"))],
    )
    .await;
    assert_eq!(claim(store, START).await.len(), 1);
    assert!(claim(store, START).await.is_empty());
}

pub(super) async fn outcome_with_stale_token_changes_nothing(store: &dyn Store) {
    let key = key("icfg_1", "res_1");
    read(store, START, vec![row(&key, &status("ready"))]).await;
    let first = claim_one(store, START).await;
    // The lease expires and the entry is claimed again.
    let second = claim_one(store, seconds(61)).await;
    let before = record(store, &key).await;
    let mut late = settlement(
        &first,
        Outcome::Acknowledged { sent_at: START },
        seconds(62),
    );
    late.limit_installation_until = Some(seconds(600));
    late.recheck = true;
    assert_eq!(store.advance(late).await.expect("answered"), None);
    assert_eq!(record(store, &key).await, before);
    assert!(store.rechecks(10).await.expect("readable").is_empty());
    read(
        store,
        seconds(62),
        vec![row(
            &super::fixture::key("icfg_1", "res_2"),
            &status("ready"),
        )],
    )
    .await;
    assert_eq!(
        claim(store, seconds(62)).await.len(),
        1,
        "the installation is not limited"
    );
    acknowledge(store, &second, seconds(63)).await;
    let mut again = settlement(&second, Outcome::Refused { status: 405 }, seconds(64));
    again.attempt = None;
    assert_eq!(store.advance(again).await.expect("answered"), None);
}

pub(super) async fn cursor_and_entries_commit_together(store: &dyn Store) {
    let poll = PollProgress {
        cursor: Some("2026-05-04 14:00:00.123456+00".to_owned()),
        identity: "7400000000000000001/1".to_owned(),
        completed_at: Some(START),
        rows: 1,
    };
    let sweep = SweepProgress {
        number: 3,
        started_at: START,
        after: Some(reconciled::source::RawKey {
            installation_id: "icfg \u{1f5c4}".to_owned(),
            resource_id: String::new(),
        }),
        account: SweepAccount {
            rows: 2,
            equal: 1,
            waiting: 1,
            ..SweepAccount::default()
        },
        complete: false,
        owed: false,
        last: Some((START, SweepAccount::default())),
    };
    assert_eq!(
        store.progress().await.expect("readable"),
        Progress::default()
    );
    let mut both = batch(START, vec![row(&key("icfg_1", "res_1"), &status("ready"))]);
    both.poll = Some(poll.clone());
    both.sweep = Some(sweep.clone());
    store.reconcile(both).await.expect("committed");
    let expected = Progress {
        poll: Some(poll),
        sweep: Some(sweep),
    };
    assert_eq!(store.progress().await.expect("readable"), expected);
    assert_eq!(claim(store, START).await.len(), 1);
    // A batch that says nothing of a position leaves it.
    read(store, START, Vec::new()).await;
    assert_eq!(store.progress().await.expect("readable"), expected);
}

pub(super) async fn one_open_entry_per_resource(store: &dyn Store) {
    let key = key("icfg_1", "res_1");
    read(store, START, vec![row(&key, &status("ready"))]).await;
    let first = record(store, &key).await.entry.expect("open");
    let folded = read(store, seconds(1), vec![row(&key, &status("suspended"))]).await;
    assert_eq!(folded.decisions, [Decision::Folded]);
    let entry = record(store, &key).await.entry.expect("open");
    assert_eq!((entry.id, entry.generation), (first.id, 1));
    assert_eq!(entry.desired, status("suspended"));
    // Also within one batch.
    let twice = vec![row(&key, &status("error")), row(&key, &status("pending"))];
    let folded = read(store, seconds(2), twice).await;
    assert_eq!(folded.decisions, [Decision::Folded, Decision::Folded]);
    assert_eq!(store.counts(START).await.expect("counted").waiting, 1);
    assert_eq!(
        claim_one(store, seconds(2)).await.desired,
        status("pending")
    );
}

pub(super) async fn equal_rows_change_nothing(store: &dyn Store) {
    let key = key("icfg_1", "res_1");
    deliver(store, START, &key, &status("ready")).await;
    let before = record(store, &key).await;
    let same = read(store, seconds(9), vec![row(&key, &status("ready"))]).await;
    assert_eq!(same.decisions, [Decision::InSync]);
    assert_eq!(record(store, &key).await, before);
    assert!(claim(store, seconds(9)).await.is_empty());
}

pub(super) async fn source_that_went_back_leaves_nothing_to_send(store: &dyn Store) {
    let key = key("icfg_1", "res_1");
    deliver(store, START, &key, &status("ready")).await;
    read(store, seconds(1), vec![row(&key, &status("suspended"))]).await;
    let back = read(store, seconds(2), vec![row(&key, &status("ready"))]).await;
    assert_eq!(back.decisions, [Decision::Withdrawn]);
    assert_eq!(record(store, &key).await.entry, None);
    assert!(claim(store, seconds(2)).await.is_empty());
    assert_eq!(store.next_due().await.expect("readable"), None);
}

pub(super) async fn entry_numbers_are_never_used_twice(store: &dyn Store) {
    let key = key("icfg_1", "res_1");
    let mut last = 0;
    for (second, text) in ["ready", "suspended", "error"].into_iter().enumerate() {
        let now = seconds(second as u64);
        deliver(store, now, &key, &status(text)).await;
        let cutoffs = Cutoffs {
            entries: seconds(100),
            attempts: seconds(100),
        };
        assert!(store.prune(cutoffs, 10).await.expect("pruned") > 0);
        read(store, now, vec![row(&key, &status("onboarding"))]).await;
        let id = record(store, &key).await.entry.expect("open").id.0;
        assert!(id > last, "{id} after {last}");
        last = id;
        read(store, now, vec![row(&key, &status(text))]).await;
    }
}

/// Installations `a` with many due entries, `b` and `c` with a few.
async fn crowd(store: &dyn Store) {
    let of = |installation_id: &str, count: u32| {
        let observation = |n: u32| {
            row(
                &key(installation_id, &format!("res_{n:03}")),
                &status("ready"),
            )
        };
        (0..count).map(observation).collect::<Vec<_>>()
    };
    read(store, START, of("a", 200)).await;
    read(store, seconds(1), of("b", 2)).await;
    read(store, seconds(2), of("c", 3)).await;
}

pub(super) async fn claims_are_fair_between_installations(store: &dyn Store) {
    crowd(store).await;
    let claimed = claim_by(store, &request(seconds(2), 8)).await;
    assert_eq!(
        installations(&claimed),
        ["a", "b", "c", "a", "b", "c", "a", "c"]
    );
    // The oldest of an installation come first.
    assert_eq!(resources(&claimed)[..2], ["res_000", "res_000"]);
    assert_eq!(claimed[3].key.resource_id.as_str(), "res_001");
}

pub(super) async fn claims_go_on_after_the_last_installation_and_wrap_around(store: &dyn Store) {
    crowd(store).await;
    let mut one = request(seconds(2), 2);
    one.after = Some(installation("a"));
    assert_eq!(installations(&claim_by(store, &one).await), ["b", "c"]);
    let mut two = request(seconds(2), 3);
    two.after = Some(installation("c"));
    assert_eq!(installations(&claim_by(store, &two).await), ["a", "b", "c"]);
    // An installation that is not there any more marks a place all the same.
    let mut three = request(seconds(2), 2);
    three.after = Some(installation("bb"));
    assert_eq!(installations(&claim_by(store, &three).await), ["c", "a"]);
}

pub(super) async fn backlog_of_one_installation_does_not_hide_another(store: &dyn Store) {
    crowd(store).await;
    store
        .pause(&pause("a", PauseKind::Token, START))
        .await
        .expect("paused");
    let claimed = claim_by(store, &request(seconds(2), 3)).await;
    assert_eq!(installations(&claimed), ["b", "c", "b"]);
}

pub(super) async fn requests_in_flight_count_against_their_installation(store: &dyn Store) {
    crowd(store).await;
    let mut busy = request(seconds(2), 64);
    busy.per_installation = 3;
    busy.in_flight = BTreeMap::from([(installation("a"), 2), (installation("b"), 9)]);
    let claimed = claim_by(store, &busy).await;
    assert_eq!(installations(&claimed), ["a", "c", "c", "c"]);
}

pub(super) async fn excluded_installation_is_not_claimed(store: &dyn Store) {
    crowd(store).await;
    let mut without = request(seconds(2), 64);
    without.excluded = vec![installation("a"), installation("nobody")];
    let claimed = claim_by(store, &without).await;
    assert_eq!(installations(&claimed), ["b", "c", "b", "c", "c"]);
}

pub(super) async fn claim_gives_no_more_than_its_tokens(store: &dyn Store) {
    crowd(store).await;
    let mut few = request(seconds(2), 64);
    few.tokens.truncate(2);
    let claimed = claim_by(store, &few).await;
    assert_eq!(claimed.len(), 2);
    assert_ne!(claimed[0].token, claimed[1].token);
    assert!(claim_by(store, &request(seconds(2), 0)).await.is_empty());
}

pub(super) async fn paused_installation_is_not_claimed(store: &dyn Store) {
    for kind in [PauseKind::Manual, PauseKind::Token, PauseKind::Gone] {
        let id = format!("icfg_{}", kind.name());
        read(
            store,
            START,
            vec![row(&key(&id, "res_1"), &status("ready"))],
        )
        .await;
        store.pause(&pause(&id, kind, START)).await.expect("paused");
        assert!(blocked(store, &id, seconds(9)).await);
    }
    read(
        store,
        START,
        vec![row(&key("icfg_free", "res_1"), &status("ready"))],
    )
    .await;
    assert!(!blocked(store, "icfg_free", seconds(9)).await);
    assert_eq!(
        installations(&claim(store, seconds(9)).await),
        ["icfg_free"]
    );
    let resumed = store
        .resume(&installation("icfg_gone"), PauseKind::Gone, seconds(9))
        .await;
    assert!(resumed.expect("resumed"));
    assert_eq!(
        installations(&claim(store, seconds(9)).await),
        ["icfg_gone"]
    );
    assert!(!blocked(store, "icfg_gone", seconds(9)).await);
    let again = store
        .resume(&installation("icfg_gone"), PauseKind::Gone, seconds(9))
        .await;
    assert!(!again.expect("answered"));
}

pub(super) async fn manual_pause_ends_by_itself(store: &dyn Store) {
    read(
        store,
        START,
        vec![row(&key("icfg_1", "res_1"), &status("ready"))],
    )
    .await;
    let ends = Pause {
        until: Some(seconds(30)),
        ..pause("icfg_1", PauseKind::Manual, START)
    };
    store.pause(&ends).await.expect("paused");
    assert!(claim(store, seconds(29)).await.is_empty());
    assert!(blocked(store, "icfg_1", seconds(29)).await);
    assert!(!blocked(store, "icfg_1", seconds(30)).await);
    assert_eq!(store.counts(seconds(29)).await.expect("counted").paused, 1);
    assert_eq!(store.next_due().await.expect("readable"), Some(seconds(30)));
    assert_eq!(store.counts(seconds(30)).await.expect("counted").paused, 0);
    assert_eq!(claim(store, seconds(30)).await.len(), 1);
    let resumed = store
        .resume(&installation("icfg_1"), PauseKind::Manual, seconds(31))
        .await;
    assert!(!resumed.expect("answered"), "it had ended");
}

pub(super) async fn pauses_of_two_kinds_end_separately(store: &dyn Store) {
    read(
        store,
        START,
        vec![row(&key("icfg_1", "res_1"), &status("ready"))],
    )
    .await;
    for kind in [PauseKind::Manual, PauseKind::Token] {
        store
            .pause(&pause("icfg_1", kind, START))
            .await
            .expect("paused");
    }
    assert_eq!(store.counts(START).await.expect("counted").paused, 1);
    store
        .resume(&installation("icfg_1"), PauseKind::Token, START)
        .await
        .expect("resumed");
    assert!(claim(store, START).await.is_empty());
    store
        .resume(&installation("icfg_1"), PauseKind::Manual, START)
        .await
        .expect("resumed");
    assert_eq!(claim(store, START).await.len(), 1);
}

pub(super) async fn pause_keeps_its_beginning(store: &dyn Store) {
    store
        .pause(&pause("icfg_1", PauseKind::Token, START))
        .await
        .expect("paused");
    let again = Pause {
        probe_at: Some(seconds(10)),
        probes_failed: 1,
        ..pause("icfg_1", PauseKind::Token, seconds(5))
    };
    store.pause(&again).await.expect("paused");
    let due = store.probes_due(seconds(10), 10).await.expect("readable");
    assert_eq!(
        due,
        [Pause {
            since: START,
            ..again
        }]
    );
}

pub(super) async fn failed_probe_pauses_nothing_that_was_resumed_meanwhile(store: &dyn Store) {
    let paused = |at| pause("icfg_1", PauseKind::Token, at);
    let probed = Pause {
        probe_at: Some(seconds(60)),
        probes_failed: 1,
        ..paused(START)
    };
    store.pause(&paused(START)).await.expect("paused");
    store
        .resume(&installation("icfg_1"), PauseKind::Token, seconds(1))
        .await
        .expect("resumed");
    store.pause(&probed).await.expect("nothing to do");
    assert_eq!(store.counts(seconds(2)).await.expect("counted").paused, 0);
    // Nor does it put off the probe of a pause that began since.
    store.pause(&paused(seconds(3))).await.expect("paused");
    store.pause(&probed).await.expect("nothing to do");
    let due = store.probes_due(seconds(3), 10).await.expect("readable");
    assert_eq!(due, [paused(seconds(3))]);
}

pub(super) async fn probes_come_longest_waiting_first(store: &dyn Store) {
    for (id, at) in [("a", 30), ("b", 10), ("c", 20), ("d", 90)] {
        let probed = Pause {
            probe_at: Some(seconds(at)),
            ..pause(id, PauseKind::Gone, START)
        };
        store.pause(&probed).await.expect("paused");
    }
    store
        .pause(&pause("e", PauseKind::Manual, START))
        .await
        .expect("paused");
    let due = store.probes_due(seconds(60), 2).await.expect("readable");
    let ids: Vec<&str> = due
        .iter()
        .map(|pause| pause.installation_id.as_str())
        .collect();
    assert_eq!(ids, ["b", "c"]);
    // A clock set back by a day does not silence them.
    let back = START.minus(Duration::from_secs(86_400));
    assert_eq!(store.probes_due(back, 10).await.expect("readable").len(), 4);
}

pub(super) async fn rate_limit_delays_only_its_installation(store: &dyn Store) {
    crowd(store).await;
    let claimed = claim_by(store, &request(seconds(2), 1)).await;
    let mut limited = settlement(
        &claimed[0],
        Outcome::RateLimited { until: seconds(60) },
        seconds(3),
    );
    limited.limit_installation_until = Some(seconds(60));
    store
        .advance(limited)
        .await
        .expect("recorded")
        .expect("the token matches");
    assert_eq!(
        installations(&claim(store, seconds(59)).await),
        ["b", "c", "b", "c", "c"]
    );
    assert!(blocked(store, "a", seconds(59)).await);
    assert!(!blocked(store, "a", seconds(60)).await);
    assert!(!blocked(store, "b", seconds(59)).await);
    assert_eq!(
        installations(&claim_by(store, &request(seconds(60), 2)).await),
        ["a", "a"]
    );
    let entry = record(store, &claimed[0].key).await;
    assert!(entry.doubt.is_empty(), "a 429 changed nothing");
    assert_eq!(entry.entry.expect("open").attempts, 0);
}

pub(super) async fn shorter_rate_limit_does_not_end_a_longer_one(store: &dyn Store) {
    crowd(store).await;
    let claimed = claim_by(store, &request(seconds(2), 64)).await;
    let of_a: Vec<_> = claimed
        .iter()
        .filter(|c| c.key.installation_id.as_str() == "a")
        .collect();
    for (claimed, until) in of_a.iter().zip([60, 30]) {
        let outcome = Outcome::RateLimited {
            until: seconds(until),
        };
        let mut limited = settlement(claimed, outcome, seconds(3));
        limited.limit_installation_until = Some(seconds(until));
        store
            .advance(limited)
            .await
            .expect("recorded")
            .expect("the token matches");
    }
    assert!(claim(store, seconds(59)).await.is_empty());
    assert!(!claim(store, seconds(60)).await.is_empty());
}

pub(super) async fn clock_set_back_strands_nothing(store: &dyn Store) {
    let (one, two) = (key("icfg_1", "res_1"), key("icfg_2", "res_1"));
    let ahead = START.plus(Duration::from_secs(7 * 86_400));
    read(
        store,
        ahead,
        vec![row(&one, &status("ready")), row(&two, &status("ready"))],
    )
    .await;
    let claimed = claim(store, ahead).await;
    let mut limited = settlement(&claimed[0], Outcome::RateLimited { until: ahead }, ahead);
    limited.limit_installation_until = Some(ahead.plus(Duration::from_secs(60)));
    store
        .advance(limited)
        .await
        .expect("recorded")
        .expect("the token matches");
    settle(store, &claimed[1], Outcome::Lost, ahead).await;
    // The clock is right again: a week earlier.
    let claimed = claim(store, START).await;
    assert_eq!(installations(&claimed), ["icfg_1", "icfg_2"]);
    let doubt = record(store, &two).await.doubt;
    let until = doubt.fields[&Field::Status].uncertain_until.expect("late");
    assert!(
        until <= START.plus(LATE),
        "doubt lasts no longer than a late application can"
    );
}

pub(super) async fn next_due_does_not_return_what_cannot_be_claimed(store: &dyn Store) {
    assert_eq!(store.next_due().await.expect("readable"), None);
    read(
        store,
        START,
        vec![row(&key("a", "res_1"), &status("ready"))],
    )
    .await;
    read(
        store,
        seconds(5),
        vec![row(&key("b", "res_1"), &status("ready"))],
    )
    .await;
    assert_eq!(store.next_due().await.expect("readable"), Some(START));
    store
        .pause(&pause("a", PauseKind::Gone, START))
        .await
        .expect("paused");
    assert_eq!(store.next_due().await.expect("readable"), Some(seconds(5)));
    let claimed = claim_one(store, seconds(6)).await;
    assert_eq!(
        store.next_due().await.expect("readable"),
        Some(seconds(66)),
        "the lease's end"
    );
    let mut limited = settlement(
        &claimed,
        Outcome::RateLimited { until: seconds(20) },
        seconds(7),
    );
    limited.limit_installation_until = Some(seconds(40));
    store
        .advance(limited)
        .await
        .expect("recorded")
        .expect("the token matches");
    assert_eq!(
        store.next_due().await.expect("readable"),
        Some(seconds(40)),
        "the limit's end"
    );
    store
        .pause(&pause("b", PauseKind::Manual, START))
        .await
        .expect("paused");
    assert_eq!(store.next_due().await.expect("readable"), None);
    store
        .resume(&installation("a"), PauseKind::Gone, seconds(8))
        .await
        .expect("resumed");
    assert_eq!(store.next_due().await.expect("readable"), Some(START));
}

pub(super) async fn expired_lease_keeps_doubt_and_is_late(store: &dyn Store) {
    let key = key("icfg_1", "res_1");
    read(store, START, vec![row(&key, &status("ready"))]).await;
    claim_one(store, START).await;
    assert_eq!(
        store
            .recover(seconds(59), LATE, false)
            .await
            .expect("answered"),
        0
    );
    assert_eq!(
        store
            .recover(seconds(60), LATE, false)
            .await
            .expect("ended"),
        1
    );
    let record = record(store, &key).await;
    let mark = record.doubt.fields[&Field::Status];
    assert_eq!(mark.uncertain_until, Some(seconds(60).plus(LATE)));
    let entry = record.entry.expect("open");
    assert_eq!(
        (entry.lease, entry.in_flight, entry.attempts),
        (None, None, 1)
    );
    assert_eq!(claim_one(store, seconds(60)).await.attempt, 2);
}

pub(super) async fn lease_of_a_process_that_is_gone_ends_at_once(store: &dyn Store) {
    let keys: Vec<_> = (0..700)
        .map(|n| key(&format!("icfg_{n}"), "res_1"))
        .collect();
    let rows = keys.iter().map(|key| row(key, &status("ready"))).collect();
    read(store, START, rows).await;
    assert_eq!(claim_by(store, &request(START, 700)).await.len(), 700);
    assert_eq!(
        store.recover(seconds(1), LATE, true).await.expect("ended"),
        700
    );
    assert_eq!(store.counts(START).await.expect("counted").in_flight, 0);
    for record in store.records(&keys).await.expect("readable") {
        let mark = record.doubt.fields[&Field::Status];
        assert_eq!(mark.uncertain_until, Some(seconds(1).plus(LATE)));
    }
}

pub(super) async fn change_in_flight_makes_the_next_entry(store: &dyn Store) {
    let key = key("icfg_1", "res_1");
    read(store, START, vec![row(&key, &status("ready"))]).await;
    let first = claim_one(store, START).await;
    let folded = read(store, seconds(1), vec![row(&key, &status("suspended"))]).await;
    assert_eq!(folded.decisions, [Decision::Folded]);
    assert!(
        claim(store, seconds(1)).await.is_empty(),
        "one request at a time"
    );
    let advanced = acknowledge(store, &first, seconds(2)).await;
    assert_eq!(advanced.state, EntryState::Delivered);
    let after = record(store, &key).await;
    assert_eq!(after.acknowledged, status("ready"));
    let next = after.entry.expect("the next one");
    assert_ne!(next.id, first.entry_id);
    assert_eq!(next.origin, Origin::Followup);
    let second = claim_one(store, seconds(2)).await;
    assert_eq!(second.patch.values, status("suspended").values);
    acknowledge(store, &second, seconds(3)).await;
    assert_eq!(record(store, &key).await.acknowledged, status("suspended"));
}

pub(super) async fn split_after_rejection_sends_secrets_first(store: &dyn Store) {
    let key = key("icfg_1", "res_1");
    let desired = with_name(with_secrets(status("ready"), &["URL=1"]), "db");
    read(store, START, vec![row(&key, &desired)]).await;
    let whole = claim_one(store, START).await;
    assert_eq!(whole.patch.fields().len(), 3);
    settle(store, &whole, rejected(), seconds(1)).await;
    let mut sent = Vec::new();
    for second in 1..4 {
        let one = claim_one(store, seconds(second)).await;
        assert_eq!(one.mode, Mode::Split);
        sent.push(one.patch.fields().to_string());
        // The name is what Vercel does not like.
        let last = if sent.len() == 3 {
            settle(store, &one, rejected(), seconds(second)).await
        } else {
            acknowledge(store, &one, seconds(second)).await
        };
        let expected = if sent.len() == 3 {
            (EntryState::Dead, Reason::Rejected)
        } else {
            (EntryState::Waiting, Reason::Due)
        };
        assert_eq!((last.state, last.reason), expected);
    }
    assert_eq!(sent, ["secrets", "status", "name"]);
    let record = record(store, &key).await;
    assert!(record.acknowledged.secrets.is_some());
    assert!(record.doubt.is_empty(), "{:?}", record.doubt);
    assert!(claim(store, seconds(100)).await.is_empty());
}

pub(super) async fn dead_letter_reopens_when_its_value_changes(store: &dyn Store) {
    let key = key("icfg_1", "res_1");
    read(store, START, vec![row(&key, &status("ready"))]).await;
    let claimed = claim_one(store, START).await;
    let dead = settle(store, &claimed, rejected(), seconds(1)).await;
    assert_eq!(
        (dead.state, dead.reason),
        (EntryState::Dead, Reason::Rejected)
    );
    assert_eq!(store.next_due().await.expect("readable"), None);
    let same = read(store, seconds(2), vec![row(&key, &status("ready"))]).await;
    assert_eq!(same.decisions, [Decision::Unchanged]);
    assert!(claim(store, seconds(2)).await.is_empty());
    read(store, seconds(3), vec![row(&key, &status("suspended"))]).await;
    let again = claim_one(store, seconds(3)).await;
    assert_eq!(again.entry_id, claimed.entry_id);
    let closed = acknowledge(store, &again, seconds(4)).await;
    assert_eq!(closed.state, EntryState::Delivered);
}

pub(super) async fn lost_answer_is_sent_once_more_after_late_apply(store: &dyn Store) {
    let key = key("icfg_1", "res_1");
    deliver(store, START, &key, &status("ready")).await;
    read(store, seconds(10), vec![row(&key, &status("suspended"))]).await;
    let lost = claim_one(store, seconds(10)).await;
    settle(store, &lost, Outcome::Lost, seconds(11)).await;
    // Law 2: the source goes back, and `ready` must be sent although it was acknowledged.
    read(store, seconds(12), vec![row(&key, &status("ready"))]).await;
    let due = store.next_due().await.expect("readable").expect("it waits");
    let back = claim_one(store, due).await;
    assert_eq!(back.patch.values, status("ready").values);
    let confirmed = acknowledge(store, &back, due).await;
    let late = seconds(11).plus(LATE).plus(Duration::from_millis(1));
    assert_eq!(
        (confirmed.state, confirmed.reason, confirmed.due_at),
        (EntryState::Waiting, Reason::LateApply, late)
    );
    assert!(claim(store, seconds(11).plus(LATE)).await.is_empty());
    let last = claim_one(store, late).await;
    assert_eq!(last.patch.values, status("ready").values);
    let closed = acknowledge(store, &last, late).await;
    assert_eq!(closed.state, EntryState::Delivered);
    assert!(record(store, &key).await.doubt.is_empty());
}

pub(super) async fn old_attempts_are_pruned_by_themselves(store: &dyn Store) {
    let one = key("icfg_1", "res_1");
    deliver(store, START, &one, &status("ready")).await;
    let attempts = Cutoffs {
        entries: START,
        attempts: seconds(1),
    };
    assert_eq!(store.prune(attempts, 10).await.expect("pruned"), 1);
    assert_eq!(store.prune(attempts, 10).await.expect("pruned"), 0);
}

pub(super) async fn unusable_row_is_reported_once_per_change(store: &dyn Store) {
    let key = key("icfg_1", "res_1");
    let quarantine = |content: &str, since| {
        let mut bad = batch(since, Vec::new());
        bad.quarantined = vec![unusable(&key, content, since)];
        bad
    };
    let first = store
        .reconcile(quarantine("x", START))
        .await
        .expect("committed");
    assert_eq!(first.newly_quarantined, [0]);
    let same = store
        .reconcile(quarantine("x", seconds(1)))
        .await
        .expect("committed");
    assert!(same.newly_quarantined.is_empty());
    let other = store
        .reconcile(quarantine("y", seconds(2)))
        .await
        .expect("committed");
    assert_eq!(other.newly_quarantined, [0]);
    assert_eq!(store.counts(START).await.expect("counted").quarantined, 1);
}

pub(super) async fn usable_row_ends_the_quarantine(store: &dyn Store) {
    let (one, two) = (key("icfg_1", "res_1"), key("icfg_1", "res_2"));
    let mut bad = batch(START, Vec::new());
    bad.quarantined = vec![unusable(&one, "x", START), unusable(&two, "x", START)];
    store.reconcile(bad).await.expect("committed");
    let good = read(store, seconds(1), vec![row(&one, &status("ready"))]).await;
    assert_eq!(good.recovered, 1);
    assert_eq!(store.counts(START).await.expect("counted").quarantined, 1);
    let mut gone = batch(seconds(2), Vec::new());
    gone.missing = vec![two.clone()];
    let gone = store.reconcile(gone).await.expect("committed");
    assert_eq!(
        (gone.recovered, gone.newly_missing),
        (0, 0),
        "it was never usable"
    );
    assert_eq!(store.counts(START).await.expect("counted").quarantined, 0);
}

pub(super) async fn rows_without_ids_are_told_apart_and_forgotten_by_a_sweep(store: &dyn Store) {
    let sweep = |number, complete| SweepProgress {
        number,
        started_at: seconds(number),
        after: None,
        account: SweepAccount {
            rows: 2,
            ..SweepAccount::default()
        },
        complete,
        owed: false,
        last: None,
    };
    let mut first = batch(START, Vec::new());
    first.quarantined = vec![
        without_ids("x", START),
        without_ids("y", START),
        without_ids("x", START),
    ];
    first.sweep = Some(sweep(1, true));
    let first = store.reconcile(first).await.expect("committed");
    assert_eq!(first.newly_quarantined, [0, 1]);
    // The next sweep meets only one of them; nothing is forgotten before it is complete.
    let mut second = batch(seconds(2), Vec::new());
    second.quarantined = vec![without_ids("y", seconds(2))];
    second.sweep = Some(sweep(2, false));
    let second = store.reconcile(second).await.expect("committed");
    assert!(second.newly_quarantined.is_empty());
    assert_eq!(store.counts(START).await.expect("counted").quarantined, 2);
    let mut end = batch(seconds(3), Vec::new());
    end.sweep = Some(sweep(2, true));
    store.reconcile(end.clone()).await.expect("committed");
    assert_eq!(store.counts(START).await.expect("counted").quarantined, 1);
    // Law 9: a sweep that met nothing proves nothing.
    let mut empty = sweep(3, true);
    empty.account = SweepAccount::default();
    end.sweep = Some(empty);
    store.reconcile(end).await.expect("committed");
    assert_eq!(store.counts(START).await.expect("counted").quarantined, 1);
}

pub(super) async fn missing_resource_is_counted_once(store: &dyn Store) {
    let (one, never) = (key("icfg_1", "res_1"), key("icfg_1", "never"));
    deliver(store, START, &one, &status("ready")).await;
    let mut gone = batch(seconds(1), Vec::new());
    gone.missing = vec![one.clone(), never.clone()];
    assert_eq!(
        store
            .reconcile(gone.clone())
            .await
            .expect("committed")
            .newly_missing,
        1
    );
    gone.now = seconds(2);
    assert_eq!(
        store
            .reconcile(gone)
            .await
            .expect("committed")
            .newly_missing,
        0
    );
    let missing = record(store, &one).await.missing.expect("missing");
    assert_eq!((missing.since, missing.sweeps), (seconds(1), 2));
    assert_eq!(record(store, &never).await.missing, None);
    let counts = store.counts(START).await.expect("counted");
    assert_eq!(counts.missing, 1);
    assert_eq!(store.resources().await.expect("counted"), 1);
    read(store, seconds(3), vec![row(&one, &status("ready"))]).await;
    assert_eq!(record(store, &one).await.missing, None);
}

pub(super) async fn unusable_row_is_not_missing(store: &dyn Store) {
    let key = key("icfg_1", "res_1");
    deliver(store, START, &key, &status("ready")).await;
    let mut gone = batch(seconds(1), Vec::new());
    gone.missing = vec![key.clone()];
    store.reconcile(gone).await.expect("committed");
    let mut bad = batch(seconds(2), Vec::new());
    bad.quarantined = vec![unusable(&key, "x", seconds(2))];
    store.reconcile(bad).await.expect("committed");
    assert_eq!(record(store, &key).await.missing, None);
}

pub(super) async fn keys_come_in_byte_order(store: &dyn Store) {
    // Neither case nor any language's alphabet has a say.
    let mut keys: Vec<_> = ["b", "B", "ä", "a", "a\u{1f5c4}", "a/b", "a b", "z"]
        .into_iter()
        .flat_map(|installation_id| {
            ["2", "10", "é"].map(|resource_id| key(installation_id, resource_id))
        })
        .collect();
    let rows = keys.iter().map(|key| row(key, &status("ready"))).collect();
    read(store, START, rows).await;
    let unknown = key("a", "5");
    let mut bad = batch(START, Vec::new());
    bad.quarantined = vec![
        unusable(&unknown, "x", START),
        unusable(&keys[0], "x", START),
        without_ids("x", START),
    ];
    store.reconcile(bad).await.expect("committed");
    keys.push(unknown);
    keys.sort();
    let mut paged = Vec::new();
    loop {
        let page = store.keys_after(paged.last(), 5).await.expect("readable");
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 5);
        paged.extend(page);
    }
    assert_eq!(paged, keys);
    let resources = store.resources().await.expect("readable");
    let alone = store.unusable_alone().await.expect("readable");
    assert_eq!((resources, alone), (keys.len() as u64 - 1, 1));
}

pub(super) async fn moved_row_is_read_again_until_it_was(store: &dyn Store) {
    let keys = [
        key("icfg_1", "res_1"),
        key("icfg_1", "res_2"),
        key("icfg_1", "res_3"),
    ];
    read(
        store,
        START,
        keys.iter().map(|key| row(key, &status("ready"))).collect(),
    )
    .await;
    for claimed in claim(store, START).await {
        let mut moved = settlement(&claimed, Outcome::SourceMoved, seconds(1));
        moved.recheck = true;
        moved.attempt = None;
        store
            .advance(moved)
            .await
            .expect("recorded")
            .expect("the token matches");
    }
    assert_eq!(store.rechecks(2).await.expect("readable"), keys[..2]);
    let mut answers = batch(seconds(2), vec![row(&keys[0], &status("ready"))]);
    answers.missing = vec![keys[1].clone()];
    answers.quarantined = vec![unusable(&keys[2], "x", seconds(2))];
    store.reconcile(answers).await.expect("committed");
    assert!(store.rechecks(10).await.expect("readable").is_empty());
    // The row that was read makes its entry due at once.
    let due: Vec<_> = claim(store, seconds(2)).await;
    assert!(due.iter().any(|claimed| claimed.key == keys[0]));
}

pub(super) async fn prune_deletes_only_what_is_closed_and_old(store: &dyn Store) {
    let keys: Vec<_> = (0..5).map(|n| key("icfg_1", &format!("res_{n}"))).collect();
    for (second, key) in (0..).zip(&keys) {
        deliver(store, seconds(second), key, &status("ready")).await;
    }
    read(store, seconds(9), vec![row(&keys[0], &status("suspended"))]).await;
    let cutoffs = Cutoffs {
        entries: seconds(3),
        attempts: START,
    };
    assert_eq!(store.prune(cutoffs, 2).await.expect("pruned"), 2);
    assert_eq!(store.prune(cutoffs, 2).await.expect("pruned"), 1);
    assert_eq!(store.prune(cutoffs, 2).await.expect("pruned"), 0);
    // Their attempts have a retention of their own.
    let attempts = Cutoffs {
        entries: START,
        attempts: seconds(100),
    };
    assert_eq!(store.prune(attempts, 10).await.expect("pruned"), 5);
    assert_eq!(store.resources().await.expect("counted"), 5);
    assert_eq!(
        claim(store, seconds(9)).await.len(),
        1,
        "the open entry is still there"
    );
}

pub(super) async fn counts_tell_what_is_there(store: &dyn Store) {
    assert_eq!(
        store.counts(START).await.expect("counted"),
        Counts::default()
    );
    deliver(store, seconds(1), &key("a", "1"), &status("ready")).await;
    deliver(store, seconds(5), &key("a", "2"), &status("ready")).await;
    read(
        store,
        seconds(6),
        vec![row(&key("b", "1"), &status("ready"))],
    )
    .await;
    let claimed = claim_one(store, seconds(6)).await;
    settle(store, &claimed, rejected(), seconds(6)).await;
    read(
        store,
        seconds(7),
        vec![row(&key("a", "1"), &status("error"))],
    )
    .await;
    claim_one(store, seconds(7)).await;
    read(
        store,
        seconds(8),
        vec![row(&key("a", "3"), &status("ready"))],
    )
    .await;
    store
        .pause(&pause("b", PauseKind::Gone, START))
        .await
        .expect("paused");
    let mut more = batch(seconds(9), Vec::new());
    more.quarantined = vec![without_ids("x", START)];
    more.missing = vec![key("a", "2")];
    store.reconcile(more).await.expect("committed");
    assert_eq!(store.resources().await.expect("counted"), 4);
    let expected = Counts {
        waiting: 2,
        in_flight: 1,
        held: 0,
        dead: 1,
        quarantined: 1,
        paused: 1,
        missing: 1,
        oldest_waiting: Some(seconds(7)),
        last_acknowledged: Some(seconds(5)),
    };
    assert_eq!(store.counts(seconds(9)).await.expect("counted"), expected);
}

pub(super) async fn glance_tells_what_a_pass_needs(store: &dyn Store) {
    let keys = [key("a", "1"), key("a", "2"), key("a", "3"), key("a", "4")];
    deliver(store, START, &keys[0], &status("ready")).await;
    read(store, START, vec![row(&keys[1], &status("ready"))]).await;
    let mut more = batch(START, Vec::new());
    more.quarantined = vec![unusable(&keys[2], "x", START)];
    more.missing = vec![keys[0].clone()];
    store.reconcile(more).await.expect("committed");
    let asked = [&keys[3], &keys[2], &keys[1], &keys[0], &keys[1]].map(Clone::clone);
    let glances = store.glance(&asked).await.expect("readable");
    let waiting = Glance {
        row_hash: Some(hash_of(&status("ready"))),
        entry: Some(EntryState::Waiting),
        ..Glance::default()
    };
    let expected = [
        Glance::default(),
        Glance {
            quarantined: Some(fingerprint("x")),
            ..Glance::default()
        },
        waiting,
        Glance {
            row_hash: Some(hash_of(&status("ready"))),
            missing: true,
            ..Glance::default()
        },
        waiting,
    ];
    assert_eq!(glances, expected);
    assert!(store.glance(&[]).await.expect("readable").is_empty());
    let between = async |first, last, limit| {
        let found = store.glance_between(first, last, limit).await;
        let found = found.expect("readable")?;
        let owned = found
            .iter()
            .map(|((_, id), glance)| (id.to_owned(), *glance));
        Some(owned.collect::<Vec<_>>())
    };
    // The third was never usable.
    let known = vec![("1".to_owned(), glances[3]), ("2".to_owned(), waiting)];
    assert_eq!(
        between(("a", "1"), ("a", "4"), 2).await,
        Some(known.clone())
    );
    assert_eq!(between(("a", "1"), ("a", "4"), 1).await, None);
    assert_eq!(
        between(("a", "2"), ("a", "2"), 1).await,
        Some(known[1..].to_vec())
    );
    assert_eq!(between(("a", "12"), ("a", "13"), 1).await, Some(Vec::new()));
    assert_eq!(between(("", ""), ("b", ""), 9).await, Some(known));
    let mut more = batch(START, Vec::new());
    more.quarantined = vec![unusable(&keys[1], "y", START)];
    store.reconcile(more).await.expect("committed");
    let found = between(("a", "2"), ("a", "3"), 9).await.expect("they fit");
    assert_eq!(found[0].1.quarantined, Some(fingerprint("y")));
    // A complete set of secrets survives the way through the store.
    let desired = with_secrets(status("ready"), &["A=1", "B=2"]);
    read(store, START, vec![row(&keys[3], &desired)]).await;
    let entry = record(store, &keys[3]).await.entry.expect("open");
    assert_eq!(entry.desired, desired);
    let claimed = claim(store, START).await;
    let claimed = claimed
        .iter()
        .find(|claimed| claimed.key == keys[3])
        .expect("due");
    assert!(matches!(
        claimed.patch.secrets,
        Some(SecretsPatch::Complete(_))
    ));
}
