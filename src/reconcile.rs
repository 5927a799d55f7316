//! From rows to entries: polls, sweeps and single re-reads of the source.
//!
//! A pass reads pages, drops what is unchanged by hash, decodes the rest and has the store decide and advance the cursor in
//! one transaction per page. It never sends. All passes of one [`Reconciler`] run one after another in its owner's task, so
//! that an older reading is never committed after a newer one.

mod baseline;
mod calm;
mod crowd;
mod feed;
#[cfg(test)]
pub(crate) mod fixture;
mod known;
mod page;
mod poll;
mod skim;
mod sweep;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::handover::Handover;
use crate::metrics::Commits;
use crate::model::{Field, FieldSet, FingerprintKey, LeaseToken, Origin, RowHash};
use crate::plan::{Policy, guard};
use crate::planted::{Bug, is_planted};
use crate::progress::Mark;
use crate::reread::Reread;
use crate::source::{Source, SourceError};
use crate::store::{Batch, GuardEvent, Reconciled, Store, StoreError};

use calm::Calm;
use crowd::Crowds;
use known::Known;

pub use baseline::BaselineReport;
pub use page::{PageCounts, QuarantineNotice};
pub use poll::PollReport;
pub use sweep::{Sweep, SweepReport, SweepStep};

/// The most rows that are decided on in one transaction, and the rows in a page of a poll.
pub const PAGE_ROWS: u32 = 500;

/// The most rows of one cursor that polls read; more are left to sweeps.
pub const CROWD_ROWS: u32 = 100_000;

/// How long polls leave their overlap unread for each row that lies there, once nothing more is expected in it: each takes the source and
/// this process some 3 µs.
pub const REST_PER_ROW: Duration = Duration::from_millis(2);

/// What passes depend on.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// What a row means for its resource.
    pub policy: Policy,
    /// The fields left to Vercel.
    pub ignored: FieldSet,
    /// How much a pass may change before a person must agree.
    pub guard: guard::Limits,
    /// What becomes of a resource whose row disappeared.
    pub on_missing: OnMissing,
    /// Rows per page, from 1 to [`PAGE_ROWS`] or more.
    pub page_rows: u32,
    /// The most rows that a sweep is to read in a second; `None`: as many as it can. [`Sweep::rest`] says how long to wait.
    pub sweep_rows_per_second: Option<std::num::NonZeroU32>,
    /// The most rows of one cursor that polls read, [`CROWD_ROWS`] but in tests.
    pub crowd_rows: u32,
    /// How long polls leave their overlap unread for each row in it when nothing more is expected there, [`REST_PER_ROW`] but in tests.
    pub rest_per_row: Duration,
}

/// What becomes of a resource whose row disappeared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnMissing {
    /// Nothing: sweeps count it.
    #[default]
    Ignore,
    /// Two complete sweeps in a row without the row send the status `uninstalled`, within the guard.
    Uninstall,
}

impl Default for Settings {
    /// What a daemon without settings does, but for the guard: it lets everything go on.
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            ignored: FieldSet::EMPTY,
            guard: guard::Limits::default(),
            on_missing: OnMissing::default(),
            page_rows: PAGE_ROWS,
            sweep_rows_per_second: None,
            crowd_rows: CROWD_ROWS,
            rest_per_row: REST_PER_ROW,
        }
    }
}

impl Settings {
    /// Stands for everything here that changes what an unchanged row means.
    pub(crate) fn epoch(&self) -> u64 {
        Field::ALL
            .into_iter()
            .filter(|field| self.ignored.contains(*field))
            .fold(1, |epoch, f| epoch | (2 << f as u64))
    }
}

/// Why a pass ended early. What it had committed stays; the next pass goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The source could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Runs passes over the source.
pub struct Reconciler {
    source: Arc<dyn Source>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    key: FingerprintKey,
    settings: Settings,
    /// What the guard did, until somebody takes it to tell.
    guard_events: Mutex<Vec<GuardEvent>>,
    /// The watch under which this reads; `None`: nobody else reads the source for this state.
    watch: Option<LeaseToken>,
    /// Whether an unfinished poll may have left changes on which the guard has not decided: true until one has ended.
    poll_undecided: AtomicBool,
    /// Grows with what is committed of rows that were not read by a sweep: a sweep's page that was read before is not to follow.
    overtakes: AtomicU64,
    /// Why every row is to be read, from when a poll finds that out until one has reported it: a poll that fails may have committed the
    /// place from which the next finds it no more.
    called_for_sweep: Mutex<Option<&'static str>>,
    /// The cursor that the last poll left in the state, once one has ended.
    left_at: Mutex<Option<String>>,
    calm: Mutex<Calm>,
    crowds: Mutex<Crowds>,
    known: Arc<Mutex<Known>>,
    /// So many known rows could not be read by one statement within its time.
    too_many: AtomicU32,
    /// The hashes of what was not known of the last page that had few such rows.
    last_news: Arc<Mutex<Vec<RowHash>>>,
    mark: Mark,
    reread: Reread,
    handover: Handover,
    /// Where it is noted when changes were committed.
    commits: Option<Arc<Commits>>,
}

impl Reconciler {
    /// A reconciler between a source and a state.
    #[must_use]
    pub fn new(
        source: Arc<dyn Source>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        key: FingerprintKey,
        settings: Settings,
    ) -> Self {
        Self {
            source,
            store,
            clock,
            key,
            settings,
            guard_events: Mutex::default(),
            watch: None,
            poll_undecided: AtomicBool::new(true),
            overtakes: AtomicU64::new(0),
            called_for_sweep: Mutex::default(),
            left_at: Mutex::default(),
            calm: Mutex::default(),
            crowds: Mutex::default(),
            known: Arc::default(),
            too_many: AtomicU32::new(u32::MAX),
            last_news: Arc::default(),
            mark: Mark::default(),
            reread: Reread::default(),
            handover: Handover::default(),
            commits: None,
        }
    }

    /// What the guard has done since this was last asked.
    #[must_use]
    pub fn take_guard_events(&self) -> Vec<GuardEvent> {
        std::mem::take(
            &mut *self
                .guard_events
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Has a batch decided and committed, and keeps what the guard did.
    async fn commit(&self, mut batch: Batch) -> Result<Reconciled, StoreError> {
        let (is_poll, ends_pass) = (batch.origin == Origin::Poll, batch.ends_pass);
        if batch.origin != Origin::Sweep {
            self.overtakes.fetch_add(1, Ordering::Relaxed);
        }
        self.forget(&batch);
        let claiming = match batch.observations.is_empty() {
            true => None,
            false => self.handover.take_up(batch.now),
        };
        batch.claim = claiming.as_ref().map(|claiming| claiming.request.clone());
        let mut reconciled = self.store.reconcile(batch).await?;
        if let Some(claiming) = claiming {
            claiming.answer(std::mem::take(&mut reconciled.claimed));
        }
        self.mark.leave();
        if is_poll && (ends_pass || reconciled.undecided) {
            self.poll_undecided
                .store(reconciled.undecided, Ordering::Relaxed);
        }
        let mut events = self
            .guard_events
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        events.extend(&reconciled.guard);
        drop(events);
        Ok(reconciled)
    }

    /// What the state says of these resources is known no more, whether the batch is committed or not.
    fn forget(&self, batch: &Batch) {
        if is_planted(Bug::KnownForGood) {
            return;
        }
        let observed = batch.observations.iter().map(|observed| &observed.key);
        let unusable = batch.quarantined.iter().filter_map(|row| row.key.as_ref());
        let mut known = self.known();
        for key in observed.chain(unusable).chain(&batch.missing) {
            known.forget(key);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calm(&self) -> MutexGuard<'_, Calm> {
        self.calm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn crowds(&self) -> MutexGuard<'_, Crowds> {
        self.crowds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads under this watch from now on: what it reads is committed only while the state has the watch's token.
    pub fn hold_watch(&mut self, token: LeaseToken) {
        self.watch = Some(token);
        self.overtakes.fetch_add(1, Ordering::Relaxed);
        self.known().forget_all();
        self.calm().forget();
        self.crowds().forget();
        // Another process may have left a poll half done.
        self.poll_undecided.store(true, Ordering::Relaxed);
    }

    /// Leaves a mark for each page: a pass may take long.
    pub fn mark_progress(&mut self, mark: Mark) {
        self.mark = mark;
    }

    /// Hands the secrets of rows that are read again to dispatch, which has the same `reread`, and claims for it what is due after a page
    /// when it has laid out free places in `handover`.
    pub fn hand_over(&mut self, reread: Reread, handover: Handover) {
        self.reread = reread;
        self.handover = handover;
    }

    /// Notes when the changes that polls find were committed, as far as their cursors tell.
    pub fn note_commits(&mut self, commits: Arc<Commits>) {
        self.commits = Some(commits);
    }

    /// Changes what rows mean from the next pass on.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use fixture::{Bench, START, key, row, stepped, swept};

    #[test]
    fn each_set_of_fields_left_to_vercel_gives_an_unchanged_row_another_meaning() {
        let bench = Bench::new([]);
        let epoch = |fields: &[Field]| {
            let reconciler = bench.reconciler(|settings| {
                settings.ignored = fields.iter().copied().collect();
            });
            reconciler.settings.epoch()
        };
        let mut epochs = vec![epoch(&[])];
        for (index, one) in Field::ALL.into_iter().enumerate() {
            epochs.push(epoch(&[one]));
            for other in Field::ALL.into_iter().skip(index + 1) {
                epochs.push(epoch(&[one, other]));
            }
        }
        let count = epochs.len();
        epochs.sort_unstable();
        epochs.dedup();
        assert_eq!((epochs.len(), epochs[0]), (count, 1));
    }

    #[tokio::test]
    async fn what_the_guard_did_is_told_once() {
        let bench = Bench::new((0..5).map(|id| row(&format!("res_{id}"), "a", id)));
        let reconciler = bench.reconciler(|settings| settings.guard.changes_max = Some(2));
        swept(&reconciler).await;
        for id in 0..5 {
            bench.table.puts(row(&format!("res_{id}"), "b", id));
        }
        let mut sweep = reconciler.begin_sweep().await.expect("in memory");
        while stepped(&reconciler, &mut sweep).await.is_none() {}
        let events = reconciler.take_guard_events();
        assert!(
            matches!(events[..], [GuardEvent::Held { .. }]),
            "{events:?}"
        );
        assert_eq!(reconciler.take_guard_events(), []);
        // What is held is accounted for, as is what is dead.
        let dead = |record: &mut crate::model::Record| {
            let entry = record.entry.as_mut().expect("it is held");
            (entry.state, entry.hold) = (crate::model::EntryState::Dead, None);
            ((), None)
        };
        bench.store.edit(&key("res_0"), START, dead).await;
        let report = swept(&reconciler).await;
        assert_eq!((report.account.held, report.account.dead), (4, 1));
        assert_eq!((report.account.rows, report.unaccounted), (5, 0));
    }

    #[tokio::test]
    async fn a_poll_leaves_nothing_undecided_once_it_has_ended() {
        let bench = Bench::new((0..5).map(|id| row(&format!("res_{id}"), "a", id)));
        let reconciler = bench.reconciler(|settings| settings.guard.changes_max = Some(1));
        let undecided = || reconciler.poll_undecided.load(Ordering::Relaxed);
        swept(&reconciler).await;
        assert!(undecided(), "a sweep says nothing of the polls before");
        reconciler.poll().await.expect("it can be read");
        assert!(!undecided());
        for id in 0..5 {
            bench.table.puts(row(&format!("res_{id}"), "b", 10 + id));
        }
        // A page that changes more than the guard lets pass, and is not the last of its pass.
        let page = (0..2).map(|id| row(&format!("res_{id}"), "b", 10 + id));
        let found = (0..2).map(|id| (key(&format!("res_{id}")), 1)).collect();
        let found = page::Duplicates::Anywhere(found);
        let position = page::Position::default();
        let done = reconciler.commit_page(page.collect(), Origin::Poll, found, position);
        done.await.expect("it can be read");
        assert!(undecided());
        reconciler.poll().await.expect("it can be read");
        assert!(!undecided());
        reconciler.poll_undecided.store(true, Ordering::Relaxed);
        swept(&reconciler).await;
        assert!(undecided());
    }

    #[tokio::test]
    async fn what_was_read_under_another_watch_is_not_gone_on_with() {
        let bench = Bench::new([row("a", "1", 1)]);
        let mut reconciler = bench.reconciler(|_| {});
        reconciler.poll().await.expect("it can be read");
        let overtakes = reconciler.overtakes.load(Ordering::Relaxed);
        assert!(!reconciler.poll_undecided.load(Ordering::Relaxed));
        reconciler.hold_watch(LeaseToken(7));
        assert!(reconciler.poll_undecided.load(Ordering::Relaxed));
        assert!(reconciler.overtakes.load(Ordering::Relaxed) > overtakes);
        // Nobody has that watch.
        let polled = reconciler.poll().await;
        assert!(matches!(
            polled,
            Err(PassError::Store(StoreError::WatchLost))
        ));
    }

    #[tokio::test]
    async fn a_pass_leaves_marks_and_follows_other_settings() {
        let bench = Bench::new((0..4).map(|id| row(&format!("res_{id}"), "a", id)));
        let mut reconciler = bench.reconciler(|_| {});
        let marks = Arc::new(AtomicU64::new(0));
        let left = Arc::clone(&marks);
        reconciler.mark_progress(Mark::new(move || {
            left.fetch_add(1, Ordering::Relaxed);
        }));
        swept(&reconciler).await;
        assert!(marks.load(Ordering::Relaxed) >= 2, "one for each page");
        let mut settings = reconciler.settings;
        settings.page_rows = 100;
        reconciler.configure(settings);
        bench.table.asked();
        swept(&reconciler).await;
        assert_eq!(bench.table.asked(), ["sweep 100"]);
    }

    #[tokio::test]
    async fn secrets_of_rows_that_are_read_again_are_handed_to_dispatch() {
        let mut secret = row("a", "1", 1);
        secret.columns.push((
            Field::Secrets,
            crate::model::RawText::text(r#"{"URL":"v"}"#),
        ));
        let bench = Bench::new([secret]);
        let mut reconciler = bench.reconciler(|_| {});
        let (reread, handover) = (Reread::default(), Handover::default());
        reconciler.hand_over(reread.clone(), handover);
        swept(&reconciler).await;
        bench.wish(&["a"]).await;
        assert!(reread.take(&key("a")).is_none());
        reconciler.recheck(1).await.expect("it can be read");
        assert!(reread.take(&key("a")).is_some());
    }

    #[tokio::test]
    async fn a_poll_notes_when_a_known_resources_change_was_committed_and_a_sweep_does_not() {
        for (polls, expected) in [(true, Some(Duration::from_secs(4))), (false, None)] {
            let bench = Bench::new([row("a", "1", 1)]);
            let mut reconciler = bench.reconciler(|_| {});
            let commits = Arc::new(Commits::default());
            reconciler.note_commits(Arc::clone(&commits));
            swept(&reconciler).await;
            let committed_at = START.minus(Duration::from_secs(4));
            let page = crate::model::RawRow {
                cursor: Some(committed_at.to_string()),
                ..row("a", "2", 2)
            };
            bench.table.puts(row("a", "2", 2));
            let found = page::Duplicates::Anywhere([(key("a"), 1)].into());
            let origin = if polls { Origin::Poll } else { Origin::Sweep };
            let position = page::Position::default();
            let done = reconciler.commit_page(vec![page], origin, found, position);
            done.await.expect("it can be read");
            assert_eq!(commits.acknowledged(&key("a"), START, START), expected);
        }
    }
}
