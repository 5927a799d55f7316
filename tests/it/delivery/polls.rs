//! Where a poll of several pages leaves the cursor.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use reconciled::clock::Clock;
use reconciled::model::{FieldSet, FingerprintKey, Timestamp};
use reconciled::plan::{Policy, guard};
use reconciled::reconcile::{OnMissing, PageCounts, Reconciler, Settings};
use reconciled::store::{MemoryStore, Store as _};

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
