//! After a change of many rows polls look at their end alone for a while, and miss nothing for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use reconciled::clock::Clock;
use reconciled::model::{FieldSet, FingerprintKey, Origin, Timestamp};
use reconciled::plan::{Policy, guard};
use reconciled::reconcile::{OnMissing, PageCounts, Reconciler, Settings};
use reconciled::store::{Batch, MemoryStore, Store as _};

use super::fleet::Fleet;

/// A clock that goes on by ten milliseconds each time that it is read.
#[derive(Default)]
struct Hand(AtomicI64);

impl Hand {
    fn go_on(&self, duration: Duration) {
        let millis = i64::try_from(duration.as_millis()).expect("short");
        self.0.fetch_add(millis, Ordering::Relaxed);
    }
}

#[async_trait]
impl Clock for Hand {
    fn now(&self) -> Timestamp {
        self.go_on(Duration::from_millis(10));
        Timestamp::from_millis(self.0.load(Ordering::Relaxed))
    }

    async fn sleep(&self, _: Duration) {
        std::future::pending().await
    }
}

struct Polls {
    fleet: Fleet,
    store: Arc<MemoryStore>,
    clock: Arc<Hand>,
    reconciler: Reconciler,
}

impl Polls {
    /// Ten rows with one cursor, read in pages of two.
    async fn new() -> Self {
        let fleet = Fleet::new().await;
        for n in 1..=10 {
            fleet
                .set("icfg_1", &format!("res_{n:02}"), "status = 'ready'")
                .await;
        }
        let execute = |sql| fleet.provider.execute(sql);
        execute("UPDATE resource SET version = 7").await;
        let key = FingerprintKey::new([7; 32]);
        let store = Arc::new(MemoryStore::new(key.clone()));
        let clock = Arc::new(Hand::default());
        let reconciler = Reconciler::new(
            fleet.parts().await.worlds.source,
            Arc::clone(&store) as _,
            Arc::clone(&clock) as _,
            key,
            Settings {
                policy: Policy::default(),
                ignored: FieldSet::default(),
                guard: guard::Limits::default(),
                on_missing: OnMissing::Ignore,
                page_rows: 2,
                sweep_rows_per_second: None,
            },
        );
        Self {
            fleet,
            store,
            clock,
            reconciler,
        }
    }

    async fn poll(&self) -> PageCounts {
        let report = self.reconciler.poll().await.expect("source and state work");
        report.expect("there is a cursor").counts
    }

    async fn cursor(&self) -> Option<String> {
        let progress = self.store.progress().await.expect("readable");
        progress.poll.and_then(|poll| poll.cursor)
    }
}

#[tokio::test]
async fn rows_that_were_just_read_are_not_read_again_and_a_new_one_is_found_at_once() {
    let polls = Polls::new().await;
    assert_eq!(polls.poll().await.enqueued, 10);
    assert_eq!(polls.poll().await.rows, 0);
    // More than a page of them.
    for n in 11..=13 {
        polls
            .fleet
            .set("icfg_1", &format!("res_{n}"), "status = 'ready'")
            .await;
    }
    let found = polls.poll().await;
    assert_eq!((found.rows, found.enqueued), (3, 3));
    assert_eq!(
        polls.cursor().await.as_deref(),
        Some("7"),
        "the next whole pass begins where this one did"
    );
    assert!(polls.poll().await.rows < 3, "nor are those");
}

#[tokio::test]
async fn a_row_that_commits_behind_the_end_is_found_by_the_next_whole_pass() {
    let polls = Polls::new().await;
    assert_eq!(polls.poll().await.enqueued, 10);
    polls
        .fleet
        .set("icfg_1", "res_00", "status = 'ready'")
        .await;
    polls
        .fleet
        .provider
        .execute("UPDATE resource SET version = 7")
        .await;
    assert_eq!(polls.poll().await.enqueued, 0);
    // As long as a pass may be left alone at most.
    polls.clock.go_on(Duration::from_secs(30));
    let found = polls.poll().await;
    assert_eq!((found.rows, found.enqueued), (11, 1));
}

#[tokio::test]
async fn another_process_that_moved_the_cursor_is_followed() {
    let polls = Polls::new().await;
    assert_eq!(polls.poll().await.enqueued, 10);
    let mut progress = polls
        .store
        .progress()
        .await
        .expect("readable")
        .poll
        .expect("polled");
    progress.cursor = Some("6".to_owned());
    let elsewhere = Batch {
        now: polls.clock.now(),
        origin: Origin::Poll,
        policy: Policy::default(),
        observations: Vec::new(),
        quarantined: Vec::new(),
        missing: Vec::new(),
        poll: Some(progress),
        sweep: None,
        guard: guard::Limits::default(),
        ends_pass: true,
        uninstall_missing_since: None,
        baseline: None,
        watch: None,
        claim: None,
    };
    polls.store.reconcile(elsewhere).await.expect("committed");
    assert_eq!(polls.poll().await.rows, 10);
}

#[tokio::test]
async fn the_end_of_a_pass_is_noted_also_when_nothing_was_new() {
    let polls = Polls::new().await;
    assert_eq!(polls.poll().await.enqueued, 10);
    // The same rows, all with later cursors, in full pages: the last page is empty.
    polls
        .fleet
        .provider
        .execute("UPDATE resource SET version = 9")
        .await;
    polls.clock.go_on(Duration::from_secs(30));
    let found = polls.poll().await;
    assert_eq!((found.rows, found.changed), (10, 0));
    assert_eq!(polls.cursor().await.as_deref(), Some("9"));
}
