//! Where a poll of several pages leaves the cursor.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use reconciled::clock::Clock;
use reconciled::model::{FingerprintKey, Origin, Timestamp};
use reconciled::plan::{Policy, guard};
use reconciled::reconcile::{PageCounts, Reconciler, Settings, SweepStep};
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
    reconciler: Reconciler,
}

impl Polls {
    /// Ten rows with one cursor, read in pages of two.
    async fn new() -> Self {
        Self::reading(Settings {
            page_rows: 2,
            ..Settings::default()
        })
        .await
    }

    async fn reading(settings: Settings) -> Self {
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
            settings,
        );
        Self {
            fleet,
            store,
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

/// Law 5: what a poll passes over is read by the sweep that it calls for, and what is newer by the next poll.
#[tokio::test]
async fn more_rows_of_one_cursor_than_polls_read_are_left_to_a_sweep() {
    let polls = Polls::reading(Settings {
        page_rows: 2,
        crowd_rows: 9,
        ..Settings::default()
    })
    .await;
    let report = polls.reconciler.poll().await.expect("it works");
    let report = report.expect("there is a cursor");
    assert_eq!(
        (report.counts.rows, &*report.left_to_sweeps),
        (0, &["7".to_owned()][..])
    );
    assert!(report.needs_sweep.is_some());
    assert!(polls.reconciler.owes_sweep().await.expect("readable"));
    polls
        .fleet
        .set("icfg_1", "res_03", "status = 'suspended'")
        .await;
    assert_eq!(polls.poll().await.enqueued, 1);
    let mut sweep = polls.reconciler.begin_sweep().await.expect("it works");
    let account = loop {
        if let SweepStep::Complete { report, .. } =
            polls.reconciler.step(&mut sweep).await.expect("it works")
        {
            break report.account;
        }
    };
    assert_eq!((account.rows, account.waiting), (10, 10));
    assert!(!polls.reconciler.owes_sweep().await.expect("readable"));
}

/// Law 5: what this process remembers of the last pass is no more than a guess at where the next one starts.
#[tokio::test]
async fn a_poll_starts_where_the_state_stands_whatever_is_remembered() {
    let polls = Polls::new().await;
    let execute = |sql| polls.fleet.provider.execute(sql);
    execute("UPDATE resource SET version = 1000000").await;
    polls.poll().await;
    assert_eq!(polls.poll().await.changed, 0);
    assert_eq!(polls.cursor().await.as_deref(), Some("1000000"));
    // Somebody else takes the cursor back, behind a change that this process would start after.
    let progress = polls.store.progress().await.expect("readable");
    let mut poll = progress.poll.expect("it was noted");
    poll.cursor = Some("400000".to_owned());
    polls
        .store
        .reconcile(Batch {
            now: Timestamp::from_millis(0),
            origin: Origin::Poll,
            policy: Policy::default(),
            observations: Vec::new(),
            quarantined: Vec::new(),
            missing: Vec::new(),
            poll: Some(poll),
            sweep: None,
            guard: guard::Limits::default(),
            ends_pass: true,
            uninstall_missing_since: None,
            baseline: None,
            watch: None,
            claim: None,
        })
        .await
        .expect("written");
    polls
        .fleet
        .set("icfg_1", "res_11", "status = 'ready'")
        .await;
    execute("UPDATE resource SET version = 500000 WHERE id = 'res_11'").await;
    assert_eq!(polls.poll().await.enqueued, 1);
}

#[tokio::test]
async fn rows_that_become_usable_again_are_counted_over_all_pages() {
    let polls = Polls::new().await;
    polls.poll().await;
    for (status, version) in [("unknown", 8), ("ready", 9)] {
        for n in [1, 4, 5] {
            let columns = format!("status = '{status}'");
            let resource = format!("res_{n:02}");
            polls.fleet.set("icfg_1", &resource, &columns).await;
        }
        let moved = format!("UPDATE resource SET version = {version}");
        polls.fleet.provider.execute(&moved).await;
        let found = polls.poll().await;
        let expected = if version == 8 { (3, 0) } else { (0, 3) };
        assert_eq!((found.quarantined, found.recovered), expected);
    }
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
    let found = polls.poll().await;
    assert_eq!((found.rows, found.changed), (10, 0));
    assert_eq!(polls.cursor().await.as_deref(), Some("9"));
}
