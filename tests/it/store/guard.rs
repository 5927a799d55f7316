//! The blast radius: a pass beyond it is held whole, on every store.

use std::time::Duration;

use reconciled::model::{EntryState, Field, Origin, Reason, ResourceKey, Snapshot, Timestamp};
use reconciled::plan::decide::FirstSight;
use reconciled::plan::guard::{Found, Limits};
use reconciled::plan::{Decision, Outcome};
use reconciled::store::console::{Answer, Order, Person};
use reconciled::store::{
    Batch, Console, GuardEvent, HoldState, MemoryStore, Observation, PostgresStore, Reconciled,
    SqliteStore, Store,
};

use super::fixture::{
    acknowledge, batch, claim, claim_by, key, record, request, row, seconds, settle, status,
    with_name, with_secrets,
};

/// Runs every law of the guard against one kind of store.
macro_rules! guard_laws {
    ($($store:ident: $open:path),+ => [$($law:ident),+ $(,)?]) => {
        guard_laws!(@each [$($store: $open),+] [$($law),+]);
    };
    (@each [$($store:ident: $open:path),+] $laws:tt) => {
        $(guard_laws!(@store $store $open, $laws);)+
    };
    (@store $store:ident $open:path, [$($law:ident),+]) => {
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

guard_laws! {
    memory: crate::store::fixture::memory, sqlite_file: crate::store::fixture::sqlite, postgres: crate::store::fixture::postgres => [
        one_page_beyond_the_limit_is_held_whole,
        a_pass_within_the_limit_goes_through,
        a_pass_of_many_pages_is_one_pass,
        a_change_of_many_rounds_is_held_whole,
        a_change_of_many_rounds_joins_the_open_hold_whole,
        a_change_of_many_rounds_within_the_limit_is_let_go_whole,
        a_pass_longer_than_the_window_is_one_pass,
        what_a_long_pass_found_counts_from_its_end,
        a_poll_meanwhile_takes_nothing_from_a_long_sweep,
        what_was_sent_destructively_does_not_hold_a_rename,
        what_follows_a_request_is_weighed_anew_once_that_was_answered,
        a_newer_target_within_a_pass_is_what_counts,
        passes_within_ten_minutes_count_as_one,
        passes_far_apart_do_not_add_up,
        what_came_back_before_it_was_sent_does_not_count,
        other_changes_go_on,
        changes_of_any_kind_have_a_limit_of_their_own,
        first_pushes_do_not_count,
        release_lets_go_once,
        discard_drops_what_was_held,
        a_source_that_goes_back_dissolves_the_hold,
        a_crash_between_pages_leaks_nothing,
        a_sweep_under_way_is_not_decided_by_a_poll,
        what_is_in_flight_is_kept_back_when_its_request_has_ended,
        what_is_held_is_not_claimed_with_its_batch,
        an_expired_lease_does_not_slip_out_of_a_hold,
        a_further_pass_joins_the_open_hold,
        a_report_tells_what_the_entries_would_do,
        missing_resources_are_uninstalled_after_two_sweeps,
        a_row_that_comes_back_reverts_its_uninstallation,
        an_unusable_row_reverts_its_uninstallation,
        mass_uninstallation_is_held,
        what_was_never_acknowledged_is_not_uninstalled,
    ]
}

/// A store that takes a person's orders.
trait Orders: Store {
    async fn order(&self, keys: &[ResourceKey], order: Order, now: Timestamp);
}

impl Orders for MemoryStore {
    async fn order(&self, keys: &[ResourceKey], order: Order, now: Timestamp) {
        for key in keys {
            let done = MemoryStore::order(self, key, order, now).await;
            done.expect("the entry is held");
        }
    }
}

impl Orders for SqliteStore {
    async fn order(&self, keys: &[ResourceKey], order: Order, now: Timestamp) {
        act(self, keys, order, now).await;
    }
}

impl Orders for PostgresStore {
    async fn order(&self, keys: &[ResourceKey], order: Order, now: Timestamp) {
        act(self, keys, order, now).await;
    }
}

async fn act(store: &dyn Console, keys: &[ResourceKey], order: Order, now: Timestamp) {
    let mut ids = Vec::new();
    for key in keys {
        let records = store.records(std::slice::from_ref(key)).await;
        let record = records.expect("readable").pop().expect("one per key");
        ids.push(record.entry.expect("an open entry").id);
    }
    let ana = Person {
        name: "ana".to_owned(),
        reason: Some("a bad migration".to_owned()),
    };
    let answers = store.act(&ids, order, &ana, now).await;
    let answers = answers.expect("carried out");
    let done = |answer: &Answer| matches!(answer, Answer::Done { .. });
    assert!(answers.iter().all(done), "{answers:?}");
}

const LIMITS: Limits = Limits {
    destructive_max: Some(100),
    changes_max: None,
};

fn resource(number: u32) -> ResourceKey {
    key(&format!("icfg_{}", number % 7), &format!("res_{number:04}"))
}

/// Rows of these resources, all the same.
fn rows(numbers: std::ops::Range<u32>, desired: &Snapshot) -> Vec<Observation> {
    numbers
        .map(|number| row(&resource(number), desired))
        .collect()
}

fn keys(numbers: std::ops::Range<u32>) -> Vec<ResourceKey> {
    numbers.map(resource).collect()
}

/// A page of a poll under the guard.
fn page(now: Timestamp, observations: Vec<Observation>, ends_pass: bool) -> Batch {
    Batch {
        guard: LIMITS,
        ends_pass,
        ..batch(now, observations)
    }
}

async fn commit(store: &dyn Store, batch: Batch) -> Reconciled {
    store.reconcile(batch).await.expect("committed")
}

/// A whole poll of one page.
async fn poll(store: &dyn Store, now: Timestamp, observations: Vec<Observation>) -> Reconciled {
    commit(store, page(now, observations, true)).await
}

/// Sends everything that can be claimed; returns how much that was.
async fn send(store: &dyn Store, now: Timestamp) -> usize {
    let mut sent = 0;
    loop {
        let mut wanted = request(now, 500);
        wanted.per_installation = 500;
        let claimed = claim_by(store, &wanted).await;
        if claimed.is_empty() {
            return sent;
        }
        sent += claimed.len();
        for claimed in &claimed {
            acknowledge(store, claimed, now).await;
        }
    }
}

/// Resources that Vercel has acknowledged as ready, long ago.
async fn ready(store: &dyn Store, count: u32) {
    let then = seconds(0);
    let found = poll(store, then, rows(0..count, &status("ready"))).await;
    assert_eq!(found.guard, [], "first pushes");
    assert_eq!(send(store, then).await, count as usize);
}

async fn states(store: &dyn Store, numbers: std::ops::Range<u32>) -> Vec<Option<EntryState>> {
    let mut states = Vec::new();
    for key in keys(numbers) {
        states.push(record(store, &key).await.entry.map(|entry| entry.state));
    }
    states
}

async fn held(store: &dyn Store) -> u64 {
    store.counts(seconds(0)).await.expect("counted").held
}

fn found(destructive: u32, changes: u32) -> Found {
    Found {
        destructive,
        changes,
    }
}

fn hold_of(reconciled: &Reconciled) -> i64 {
    match reconciled.guard[..] {
        [GuardEvent::Held { hold, .. }] => hold,
        _ => panic!("no hold was opened: {:?}", reconciled.guard),
    }
}

async fn one_page_beyond_the_limit_is_held_whole(store: &impl Orders) {
    ready(store, 101).await;
    let now = seconds(3600);
    let reconciled = poll(store, now, rows(0..101, &status("suspended"))).await;
    let hold = hold_of(&reconciled);
    assert_eq!(
        reconciled.guard,
        [GuardEvent::Held {
            hold,
            found: found(101, 101)
        }]
    );
    assert_eq!(held(store).await, 101);
    assert!(claim(store, now).await.is_empty());
    assert!(
        claim(store, seconds(1_000_000)).await.is_empty(),
        "time alone lets nothing go"
    );
    let entry = record(store, &resource(0)).await.entry.expect("held");
    assert_eq!(
        (entry.state, entry.reason, entry.hold),
        (EntryState::Held, Reason::Guard, Some(hold))
    );
    let open = store.open_holds().await.expect("readable");
    assert_eq!(open.len(), 1);
    assert_eq!(
        (open[0].id, open[0].state, open[0].opened_at),
        (hold, HoldState::Open, now)
    );
}

async fn a_pass_within_the_limit_goes_through(store: &impl Orders) {
    ready(store, 101).await;
    let now = seconds(3600);
    let reconciled = poll(store, now, rows(0..100, &status("suspended"))).await;
    assert_eq!(reconciled.guard, []);
    assert_eq!(send(store, now).await, 100);
    assert_eq!(store.open_holds().await.expect("readable"), []);
}

async fn a_pass_of_many_pages_is_one_pass(store: &impl Orders) {
    ready(store, 120).await;
    let now = seconds(3600);
    for first in (0..120).step_by(20) {
        assert!(
            claim(store, now).await.is_empty(),
            "nothing goes before the pass has ended"
        );
        let rows = rows(first..first + 20, &status("suspended"));
        let reconciled = commit(store, page(now, rows, false)).await;
        assert_eq!((reconciled.guard, reconciled.undecided), (vec![], true));
    }
    let end = poll(store, now, vec![]).await;
    hold_of(&end);
    assert_eq!(held(store).await, 120);
    assert!(claim(store, now).await.is_empty());
}

/// How many resources a large change is of: more than the guard looks at together.
///
/// `RECONCILED_GUARDED=200000 cargo test --test it many_rounds -- --nocapture --test-threads 1` measures.
fn many() -> u32 {
    let asked = std::env::var("RECONCILED_GUARDED").ok();
    asked.map_or(1_203, |asked| asked.parse().expect("a number"))
}

/// What a page of a large change holds.
const MANY_PER_PAGE: usize = 2_000;

/// Many resources are suspended by one pass, which ends a second after it began; returns its end.
#[expect(clippy::print_stderr, reason = "what a person measures is read there")]
async fn suspend_many(store: &dyn Store, start: u64, limits: Limits) -> Reconciled {
    let all: Vec<u32> = (0..many()).collect();
    let rows_of = |numbers: &[u32], desired: &Snapshot| {
        let rows = numbers
            .iter()
            .map(|number| row(&resource(*number), desired));
        rows.collect::<Vec<_>>()
    };
    for numbers in all.chunks(MANY_PER_PAGE) {
        let mut known = page(seconds(0), rows_of(numbers, &status("ready")), true);
        known.policy.first_sight = FirstSight::Adopt;
        commit(store, known).await;
    }
    for numbers in all.chunks(MANY_PER_PAGE) {
        let changed = rows_of(numbers, &status("suspended"));
        let changed = Batch {
            guard: limits,
            ..page(seconds(start), changed, false)
        };
        assert!(commit(store, changed).await.undecided);
    }
    let end = Batch {
        guard: limits,
        ..page(seconds(start + 1), vec![], true)
    };
    let memory = Memory::now();
    let began = std::time::Instant::now();
    let decided = commit(store, end).await;
    let (took, grew) = (began.elapsed(), memory.grew());
    eprintln!(
        "{} changes were decided on in {took:.2?}, with {grew} MiB more memory at most",
        many()
    );
    decided
}

/// What this process needs.
struct Memory {
    kib: u64,
}

impl Memory {
    /// Forgets what was needed before, where the system can.
    fn now() -> Self {
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        Self { kib: Self::most() }
    }

    fn grew(&self) -> u64 {
        Self::most().saturating_sub(self.kib) / 1024
    }

    fn most() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = most.and_then(|most| most.split_whitespace().next()?.parse().ok());
        kib.unwrap_or(0)
    }
}

async fn a_change_of_many_rounds_is_held_whole(store: &impl Orders) {
    let decided = suspend_many(store, 3600, LIMITS).await;
    let hold = hold_of(&decided);
    let found = found(many(), many());
    assert_eq!(decided.guard, [GuardEvent::Held { hold, found }]);
    assert_eq!(held(store).await, u64::from(many()));
    assert!(claim(store, seconds(9000)).await.is_empty());
    let report = store.hold(hold).await.expect("readable");
    let report = report.expect("it is open");
    assert_eq!(report.entries, u64::from(many()));
    // Told once, and the next pass has nothing to decide on.
    let next = poll(store, seconds(3602), vec![]).await;
    assert_eq!((next.guard, next.undecided), (vec![], false));
}

async fn a_change_of_many_rounds_joins_the_open_hold_whole(store: &impl Orders) {
    let apart: Vec<ResourceKey> = (0..101)
        .map(|number| key("icfg_apart", &format!("res_{number:04}")))
        .collect();
    let rows = |desired: &Snapshot| apart.iter().map(|key| row(key, desired)).collect();
    let mut known = page(seconds(0), rows(&status("ready")), true);
    known.policy.first_sight = FirstSight::Adopt;
    commit(store, known).await;
    let hold = hold_of(&poll(store, seconds(3599), rows(&status("suspended"))).await);
    let decided = suspend_many(store, 3600, LIMITS).await;
    let found = found(many() + 101, many() + 101);
    assert_eq!(decided.guard, [GuardEvent::Joined { hold, found }]);
    assert_eq!(held(store).await, u64::from(many()) + 101);
    assert!(claim(store, seconds(9000)).await.is_empty());
    let report = store.hold(hold).await.expect("readable");
    assert_eq!(report.expect("it is open").entries, u64::from(many()) + 101);
}

async fn a_change_of_many_rounds_within_the_limit_is_let_go_whole(store: &impl Orders) {
    let limits = Limits {
        destructive_max: Some(many()),
        changes_max: None,
    };
    let decided = suspend_many(store, 3600, limits).await;
    assert_eq!((decided.guard, decided.undecided), (vec![], false));
    let counts = store.counts(seconds(3601)).await.expect("counted");
    assert_eq!((counts.held, counts.waiting), (0, u64::from(many())));
    let entry = record(store, &resource(1)).await.entry.expect("it waits");
    assert_eq!(
        (entry.state, entry.reason, entry.hold, entry.due_at),
        (EntryState::Waiting, Reason::Due, None, seconds(3600))
    );
    assert_eq!(claim(store, seconds(3601)).await.len(), 7 * 4);
}

async fn a_pass_longer_than_the_window_is_one_pass(store: &impl Orders) {
    ready(store, 110).await;
    let page_of = |first: u32| Batch {
        origin: Origin::Sweep,
        ..page(
            seconds(3600 + u64::from(first) * 60),
            rows(first..first + 10, &status("error")),
            false,
        )
    };
    for first in (0..110).step_by(10) {
        commit(store, page_of(first)).await;
    }
    let end = Batch {
        origin: Origin::Sweep,
        ..page(seconds(12_000), vec![], true)
    };
    hold_of(&commit(store, end).await);
    assert_eq!(held(store).await, 110);
}

/// A sweep of eleven pages, ten minutes after each other, that has not ended.
async fn sweep_slowly(store: &dyn Store) {
    for first in (0..110).step_by(10) {
        let page = Batch {
            origin: Origin::Sweep,
            ..page(
                seconds(3600 + u64::from(first) * 60),
                rows(first..first + 10, &status("error")),
                false,
            )
        };
        commit(store, page).await;
    }
}

fn end_of_sweep(now: Timestamp) -> Batch {
    Batch {
        origin: Origin::Sweep,
        ..page(now, vec![], true)
    }
}

async fn what_a_long_pass_found_counts_from_its_end(store: &impl Orders) {
    ready(store, 150).await;
    sweep_slowly(store).await;
    let hold = hold_of(&commit(store, end_of_sweep(seconds(12_000))).await);
    // Within ten minutes of its end, and more than ten after most of it was found.
    let joins = poll(store, seconds(12_599), rows(110..111, &status("error"))).await;
    let found = found(111, 111);
    assert_eq!(joins.guard, [GuardEvent::Joined { hold, found }]);
    let further = poll(store, seconds(12_601), rows(111..112, &status("error"))).await;
    assert_eq!(further.guard, [], "it is over");
    assert_eq!(held(store).await, 111);
    assert_eq!(send(store, seconds(12_601)).await, 1);
    // All of it is told apart from later changes also when it is gone from what was counted.
    let later = seconds(90_000);
    let reconciled = poll(store, later, rows(112..113, &status("error"))).await;
    assert_eq!(reconciled.guard, []);
    store.order(&keys(0..111), Order::Release, later).await;
    assert_eq!(send(store, later).await, 112);
}

async fn a_poll_meanwhile_takes_nothing_from_a_long_sweep(store: &impl Orders) {
    ready(store, 150).await;
    sweep_slowly(store).await;
    let now = seconds(12_000);
    let reconciled = poll(store, now, rows(110..130, &status("error"))).await;
    assert_eq!(reconciled.guard, []);
    assert_eq!(send(store, now).await, 20);
    let decided = commit(store, end_of_sweep(seconds(12_001))).await;
    let hold = hold_of(&decided);
    let found = found(130, 130);
    assert_eq!(decided.guard, [GuardEvent::Held { hold, found }]);
    assert_eq!(held(store).await, 110);
}

const BOTH: Limits = Limits {
    destructive_max: Some(10),
    changes_max: Some(1_000),
};

async fn what_was_sent_destructively_does_not_hold_a_rename(store: &impl Orders) {
    ready(store, 40).await;
    let guarded = |now, rows| Batch {
        guard: BOTH,
        ..page(now, rows, true)
    };
    let now = seconds(3600);
    commit(store, guarded(now, rows(0..10, &status("suspended")))).await;
    assert_eq!(send(store, now).await, 10);
    let now = seconds(3660);
    let mut changes = rows(0..10, &with_name(status("suspended"), "renamed"));
    changes.extend(rows(10..11, &status("suspended")));
    let decided = commit(store, guarded(now, changes)).await;
    let hold = hold_of(&decided);
    let found = found(11, 11);
    assert_eq!(decided.guard, [GuardEvent::Held { hold, found }]);
    assert_eq!(held(store).await, 1);
    assert_eq!(send(store, now).await, 10, "nobody is suspended by a name");
}

async fn what_follows_a_request_is_weighed_anew_once_that_was_answered(store: &impl Orders) {
    ready(store, 40).await;
    let guarded = |second, rows, ends_pass| Batch {
        guard: BOTH,
        ..page(seconds(second), rows, ends_pass)
    };
    let suspended = rows(0..10, &status("suspended"));
    commit(store, guarded(3600, suspended, true)).await;
    let out = claim(store, seconds(3600)).await;
    assert_eq!(out.len(), 10);
    // Renamed while they are being suspended: as long as nobody knows whether they are, the next request may do both.
    let mut changes = rows(0..10, &with_name(status("suspended"), "renamed"));
    changes.extend(rows(10..11, &status("suspended")));
    commit(store, guarded(3601, changes, false)).await;
    for claimed in &out {
        acknowledge(store, claimed, seconds(3602)).await;
    }
    let decided = commit(store, guarded(3603, vec![], true)).await;
    let hold = hold_of(&decided);
    let found = found(11, 11);
    assert_eq!(decided.guard, [GuardEvent::Held { hold, found }]);
    assert_eq!(held(store).await, 1);
    assert_eq!(
        send(store, seconds(3603)).await,
        10,
        "they are renamed alone"
    );
}

async fn a_newer_target_within_a_pass_is_what_counts(store: &impl Orders) {
    ready(store, 60).await;
    let guarded = |second, rows, ends_pass| Batch {
        guard: BOTH,
        ..page(seconds(second), rows, ends_pass)
    };
    let suspended = rows(0..40, &status("suspended"));
    commit(store, guarded(3600, suspended, false)).await;
    // Half of them are only renamed in the end, some are as they were, and others are suspended in their place.
    let mut newer = rows(0..20, &with_name(status("ready"), "renamed"));
    newer.extend(rows(20..25, &status("ready")));
    newer.extend(rows(25..30, &with_name(status("suspended"), "renamed")));
    commit(store, guarded(3601, newer, false)).await;
    let decided = commit(store, guarded(3602, vec![], true)).await;
    let hold = hold_of(&decided);
    let found = found(15, 35);
    assert_eq!(decided.guard, [GuardEvent::Held { hold, found }]);
    assert_eq!(held(store).await, 15);
    assert_eq!(send(store, seconds(3602)).await, 20);
    let waits = states(store, 25..40).await;
    assert_eq!(waits, [Some(EntryState::Held); 15]);
}

async fn passes_within_ten_minutes_count_as_one(store: &impl Orders) {
    ready(store, 160).await;
    let start = 3600;
    let first = poll(store, seconds(start), rows(0..40, &status("suspended"))).await;
    let second = poll(
        store,
        seconds(start + 200),
        rows(40..80, &status("suspended")),
    )
    .await;
    assert_eq!((first.guard, second.guard), (vec![], vec![]));
    // Twenty of them were sent before anybody could know.
    let mut twenty = request(seconds(start + 200), 20);
    twenty.per_installation = 20;
    for claimed in claim_by(store, &twenty).await {
        acknowledge(store, &claimed, seconds(start + 200)).await;
    }
    let third = poll(
        store,
        seconds(start + 400),
        rows(80..120, &status("suspended")),
    )
    .await;
    let hold = hold_of(&third);
    assert_eq!(
        third.guard,
        [GuardEvent::Held {
            hold,
            found: found(120, 120)
        }]
    );
    assert_eq!(held(store).await, 100, "all that was not sent yet");
    assert!(claim(store, seconds(start + 400)).await.is_empty());
}

async fn passes_far_apart_do_not_add_up(store: &impl Orders) {
    ready(store, 160).await;
    for (turn, first) in [0, 80].into_iter().enumerate() {
        let now = seconds(3600 + 601 * turn as u64);
        let reconciled = poll(store, now, rows(first..first + 80, &status("suspended"))).await;
        assert_eq!(reconciled.guard, []);
        assert_eq!(send(store, now).await, 80);
    }
}

async fn what_came_back_before_it_was_sent_does_not_count(store: &impl Orders) {
    ready(store, 160).await;
    poll(store, seconds(3600), rows(0..80, &status("suspended"))).await;
    poll(store, seconds(3605), rows(0..80, &status("ready"))).await;
    let now = seconds(3610);
    let reconciled = poll(store, now, rows(80..160, &status("suspended"))).await;
    assert_eq!(reconciled.guard, []);
    assert_eq!(send(store, now).await, 80);
}

async fn other_changes_go_on(store: &impl Orders) {
    ready(store, 200).await;
    let now = seconds(3600);
    let mut both = rows(0..101, &status("suspended"));
    both.extend(rows(101..200, &with_name(status("ready"), "renamed")));
    hold_of(&poll(store, now, both).await);
    assert_eq!(send(store, now).await, 99);
    let later = seconds(3700);
    poll(
        store,
        later,
        vec![row(&key("icfg_new", "res_new"), &status("ready"))],
    )
    .await;
    assert_eq!(send(store, later).await, 1);
    assert_eq!(held(store).await, 101);
}

async fn changes_of_any_kind_have_a_limit_of_their_own(store: &impl Orders) {
    ready(store, 60).await;
    let limits = Limits {
        destructive_max: Some(5),
        changes_max: Some(50),
    };
    let guarded = |now, rows| Batch {
        guard: limits,
        ..page(now, rows, true)
    };
    let now = seconds(3600);
    let mut mixed = rows(0..6, &status("suspended"));
    mixed.extend(rows(6..30, &with_name(status("ready"), "renamed")));
    let reconciled = commit(store, guarded(now, mixed)).await;
    let hold = hold_of(&reconciled);
    assert_eq!(
        reconciled.guard,
        [GuardEvent::Held {
            hold,
            found: found(6, 30)
        }]
    );
    assert_eq!(held(store).await, 6, "only what the exceeded limit counts");
    let further = rows(30..60, &with_name(status("ready"), "renamed"));
    let reconciled = commit(store, guarded(seconds(3660), further)).await;
    assert_eq!(
        reconciled.guard,
        [GuardEvent::Joined {
            hold,
            found: found(6, 60)
        }]
    );
    assert_eq!(
        send(store, seconds(3660)).await,
        0,
        "what waited came under the hold too"
    );
    assert_eq!(held(store).await, 60);
}

async fn first_pushes_do_not_count(store: &impl Orders) {
    let now = seconds(0);
    let limits = Limits {
        destructive_max: Some(1),
        changes_max: Some(1),
    };
    let push = Batch {
        guard: limits,
        ..page(now, rows(0..300, &status("suspended")), true)
    };
    assert_eq!(commit(store, push).await.guard, []);
    assert_eq!(send(store, now).await, 300);
}

async fn release_lets_go_once(store: &impl Orders) {
    ready(store, 150).await;
    let now = seconds(3600);
    let hold = hold_of(&poll(store, now, rows(0..101, &status("suspended"))).await);
    store.order(&keys(0..101), Order::Release, now).await;
    let report = store
        .hold(hold)
        .await
        .expect("readable")
        .expect("it is kept");
    assert_eq!(
        (report.hold.state, report.entries),
        (HoldState::Released, 0)
    );
    assert_eq!(send(store, now).await, 101);
    let further = poll(store, seconds(3601), rows(101..150, &status("suspended"))).await;
    assert_eq!(
        further.guard,
        [],
        "what a person let go does not count again"
    );
    assert_eq!(send(store, seconds(3601)).await, 49);
}

async fn discard_drops_what_was_held(store: &impl Orders) {
    ready(store, 101).await;
    let now = seconds(3600);
    let hold = hold_of(&poll(store, now, rows(0..101, &status("suspended"))).await);
    store.order(&keys(0..101), Order::Discard, now).await;
    let report = store
        .hold(hold)
        .await
        .expect("readable")
        .expect("it is kept");
    assert_eq!(report.hold.state, HoldState::Discarded);
    assert_eq!(send(store, now).await, 0);
    let again = poll(store, seconds(7200), rows(0..101, &status("suspended"))).await;
    assert!(
        again
            .decisions
            .iter()
            .all(|decision| *decision == Decision::InSync)
    );
    let renamed = rows(0..101, &with_name(status("suspended"), "renamed"));
    assert_eq!(
        poll(store, seconds(7201), renamed).await.guard,
        [],
        "nobody is suspended by it"
    );
    assert_eq!(send(store, seconds(7201)).await, 101);
    let acknowledged = record(store, &resource(0)).await.acknowledged;
    assert_eq!(acknowledged, with_name(status("ready"), "renamed"));
}

async fn a_source_that_goes_back_dissolves_the_hold(store: &impl Orders) {
    ready(store, 101).await;
    let hold = hold_of(&poll(store, seconds(3600), rows(0..101, &status("suspended"))).await);
    let half = poll(store, seconds(3605), rows(0..50, &status("ready"))).await;
    assert_eq!(half.guard, []);
    let rest = poll(store, seconds(3610), rows(50..101, &status("ready"))).await;
    assert_eq!(rest.guard, [GuardEvent::Dissolved { hold }]);
    assert_eq!(held(store).await, 0);
    assert_eq!(send(store, seconds(3610)).await, 0);
    let report = store
        .hold(hold)
        .await
        .expect("readable")
        .expect("it is kept");
    assert_eq!(report.hold.state, HoldState::Dissolved);
}

async fn a_crash_between_pages_leaks_nothing(store: &impl Orders) {
    ready(store, 101).await;
    let now = seconds(3600);
    commit(store, page(now, rows(0..60, &status("suspended")), false)).await;
    // The process dies here; its successor polls again from where it stopped.
    store
        .recover(now, Duration::from_secs(60), true)
        .await
        .expect("recovered");
    assert!(claim(store, seconds(3601)).await.is_empty());
    hold_of(&poll(store, seconds(3602), rows(60..101, &status("suspended"))).await);
    assert_eq!(held(store).await, 101);
}

async fn a_sweep_under_way_is_not_decided_by_a_poll(store: &impl Orders) {
    ready(store, 120).await;
    let now = seconds(3600);
    let sweep = |rows, ends_pass| Batch {
        origin: Origin::Sweep,
        ..page(now, rows, ends_pass)
    };
    commit(store, sweep(rows(0..60, &status("suspended")), false)).await;
    let decided = poll(store, now, rows(60..70, &status("suspended"))).await;
    assert_eq!(decided.guard, []);
    assert_eq!(send(store, now).await, 10, "the poll's own");
    assert_eq!(held(store).await, 60);
    hold_of(&commit(store, sweep(rows(70..120, &status("suspended")), true)).await);
    assert_eq!(held(store).await, 110);
}

async fn what_is_in_flight_is_kept_back_when_its_request_has_ended(store: &impl Orders) {
    ready(store, 160).await;
    let now = seconds(3600);
    poll(store, now, rows(0..80, &status("suspended"))).await;
    let mut one = request(now, 2);
    one.per_installation = 2;
    let claimed = claim_by(store, &one).await;
    hold_of(&poll(store, seconds(3601), rows(80..160, &status("suspended"))).await);
    let failed = settle(store, &claimed[0], Outcome::Failed, seconds(3602)).await;
    assert_eq!(
        (failed.state, failed.reason),
        (EntryState::Held, Reason::Guard)
    );
    let sent = acknowledge(store, &claimed[1], seconds(3602)).await;
    assert_eq!(sent.state, EntryState::Delivered);
    assert!(claim(store, seconds(9000)).await.is_empty());
    assert_eq!(held(store).await, 159);
}

async fn what_is_held_is_not_claimed_with_its_batch(store: &impl Orders) {
    ready(store, 120).await;
    let now = seconds(3600);
    let claiming = |numbers, ends_pass| Batch {
        claim: Some(request(now, 64)),
        ..page(now, rows(numbers, &status("suspended")), ends_pass)
    };
    // Kept back until the pass ends, and then by the hold.
    let first = commit(store, claiming(0..60, false)).await;
    assert_eq!(first.claimed, []);
    let last = commit(store, claiming(60..120, true)).await;
    hold_of(&last);
    assert_eq!(last.claimed, []);
    assert_eq!(held(store).await, 120);
}

async fn an_expired_lease_does_not_slip_out_of_a_hold(store: &impl Orders) {
    ready(store, 101).await;
    let now = seconds(3600);
    poll(
        store,
        now,
        rows(0..1, &with_name(status("ready"), "renamed")),
    )
    .await;
    let claimed = claim(store, now).await;
    assert_eq!(claimed.len(), 1);
    hold_of(&poll(store, now, rows(0..101, &status("suspended"))).await);
    store
        .recover(seconds(3601), Duration::from_secs(60), true)
        .await
        .expect("recovered");
    assert!(claim(store, seconds(9000)).await.is_empty());
    assert_eq!(held(store).await, 101);
}

async fn a_further_pass_joins_the_open_hold(store: &impl Orders) {
    ready(store, 130).await;
    let hold = hold_of(&poll(store, seconds(3600), rows(0..110, &status("suspended"))).await);
    let further = poll(store, seconds(3660), rows(110..130, &status("suspended"))).await;
    assert_eq!(
        further.guard,
        [GuardEvent::Joined {
            hold,
            found: found(130, 130)
        }]
    );
    let report = store
        .hold(hold)
        .await
        .expect("readable")
        .expect("it is open");
    assert_eq!(
        (report.entries, report.hold.opened_at),
        (130, seconds(3600))
    );
}

async fn a_report_tells_what_the_entries_would_do(store: &impl Orders) {
    let then = seconds(0);
    poll(
        store,
        then,
        rows(0..104, &with_secrets(status("ready"), &["URL=a"])),
    )
    .await;
    send(store, then).await;
    let mut bad = rows(0..100, &with_secrets(status("suspended"), &["URL=a"]));
    bad.extend(rows(100..104, &with_secrets(status("ready"), &[])));
    let hold = hold_of(&poll(store, seconds(3600), bad).await);
    let report = store
        .hold(hold)
        .await
        .expect("readable")
        .expect("it is open");
    assert_eq!(report.entries, 104);
    assert_eq!(report.summary.examples.len(), 10);
    let towards: Vec<_> = report.summary.towards.into_iter().collect();
    let value = |text: &str| Some(text.to_owned());
    assert_eq!(
        towards,
        [
            ((Field::Secrets, value("none")), 4),
            ((Field::Status, value("suspended")), 100)
        ]
    );
    assert_eq!(store.hold(hold + 1).await.expect("readable"), None);
}

/// A batch of a sweep that found these resources missing, after one that ended at `last`.
fn gone(now: Timestamp, last: Option<Timestamp>, numbers: std::ops::Range<u32>) -> Batch {
    Batch {
        origin: Origin::Sweep,
        missing: keys(numbers),
        uninstall_missing_since: last,
        ..page(now, vec![], true)
    }
}

async fn missing_resources_are_uninstalled_after_two_sweeps(store: &impl Orders) {
    ready(store, 3).await;
    let first = commit(store, gone(seconds(3600), Some(seconds(10)), 0..1)).await;
    assert_eq!((first.newly_missing, first.uninstalled), (1, 0));
    assert!(claim(store, seconds(3600)).await.is_empty());
    // The sweep is repeated after a crash: it is still the same one.
    let repeated = commit(store, gone(seconds(3605), Some(seconds(10)), 0..1)).await;
    assert_eq!(repeated.uninstalled, 0);
    let second = commit(store, gone(seconds(7200), Some(seconds(3610)), 0..2)).await;
    assert_eq!((second.newly_missing, second.uninstalled), (1, 1));
    let claimed = claim(store, seconds(7200)).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].key, resource(0));
    assert_eq!(claimed[0].desired, status("uninstalled"));
    acknowledge(store, &claimed[0], seconds(7200)).await;
    let third = commit(store, gone(seconds(10_800), Some(seconds(7210)), 0..1)).await;
    assert_eq!(third.uninstalled, 0, "it is done");
    assert_eq!(states(store, 0..3).await, [None, None, None]);
}

async fn a_row_that_comes_back_reverts_its_uninstallation(store: &impl Orders) {
    ready(store, 2).await;
    commit(store, gone(seconds(3600), None, 0..2)).await;
    commit(store, gone(seconds(7200), Some(seconds(3600)), 0..2)).await;
    assert_eq!(states(store, 0..2).await, [Some(EntryState::Waiting); 2]);
    let back = poll(store, seconds(7201), rows(0..1, &status("ready"))).await;
    assert_eq!(back.decisions, [Decision::Withdrawn]);
    assert_eq!(record(store, &resource(0)).await.missing, None);
    assert_eq!(send(store, seconds(7201)).await, 1);
    // The other one was uninstalled, and comes back all the same.
    poll(store, seconds(7202), rows(1..2, &status("ready"))).await;
    assert_eq!(send(store, seconds(7202)).await, 1);
    assert_eq!(
        record(store, &resource(1)).await.acknowledged,
        status("ready")
    );
}

async fn an_unusable_row_reverts_its_uninstallation(store: &impl Orders) {
    ready(store, 1).await;
    commit(store, gone(seconds(3600), None, 0..1)).await;
    commit(store, gone(seconds(7200), Some(seconds(3600)), 0..1)).await;
    let mut unusable = page(seconds(7201), vec![], true);
    let row = super::fixture::unusable(&resource(0), "bad", seconds(7201));
    unusable.quarantined.push(row);
    commit(store, unusable).await;
    assert!(claim(store, seconds(7201)).await.is_empty());
    assert_eq!(record(store, &resource(0)).await.missing, None);
}

async fn mass_uninstallation_is_held(store: &impl Orders) {
    ready(store, 101).await;
    commit(store, gone(seconds(3600), None, 0..101)).await;
    let second = commit(store, gone(seconds(7200), Some(seconds(3600)), 0..101)).await;
    assert_eq!(second.uninstalled, 101);
    hold_of(&second);
    assert!(claim(store, seconds(7200)).await.is_empty());
}

async fn what_was_never_acknowledged_is_not_uninstalled(store: &impl Orders) {
    poll(store, seconds(0), rows(0..1, &status("ready"))).await;
    commit(store, gone(seconds(3600), None, 0..1)).await;
    let second = commit(store, gone(seconds(7200), Some(seconds(3600)), 0..1)).await;
    assert_eq!(second.uninstalled, 0);
    let entry = record(store, &resource(0))
        .await
        .entry
        .expect("the first push");
    assert_eq!(entry.desired, status("ready"));
}
