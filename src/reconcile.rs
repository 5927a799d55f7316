//! From rows to entries: polls, sweeps and single re-reads of the source.
//!
//! A pass reads pages, drops what is unchanged by hash, decodes the rest and has the store decide and advance the cursor in
//! one transaction per page. It never sends. All passes of one [`Reconciler`] run one after another in its owner's task, so
//! that an older reading is never committed after a newer one.

mod baseline;
mod feed;
mod known;
mod page;
mod poll;
mod skim;
mod sweep;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

use known::Known;

pub use baseline::BaselineReport;
pub use page::{PageCounts, QuarantineNotice};
pub use poll::PollReport;
pub use sweep::{Sweep, SweepReport, SweepStep};

/// The most rows that are decided on in one transaction, and the rows in a page of a poll.
pub const PAGE_ROWS: u32 = 500;

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
    /// The cursor that the last poll left in the state, once one has ended.
    left_at: Mutex<Option<String>>,
    known: Arc<Mutex<Known>>,
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
            left_at: Mutex::default(),
            known: Arc::default(),
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

    /// Reads under this watch from now on: what it reads is committed only while the state has the watch's token.
    pub fn hold_watch(&mut self, token: LeaseToken) {
        self.watch = Some(token);
        self.overtakes.fetch_add(1, Ordering::Relaxed);
        self.known().forget_all();
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
