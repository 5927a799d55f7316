//! The loop that watches the source: polls, sweeps and re-reads, one after another, for as long as the daemon runs.
//!
//! A source that cannot be read is tried again with backoff and said once, as is its return.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::clock::{Clock, Random};
use crate::config::Cron;
use crate::model::Timestamp;
use crate::plan::backoff::Backoff;
use crate::reconcile::{
    PassError, PollReport, QuarantineNotice, Reconciler, Sweep, SweepReport, SweepStep,
};
use crate::store::{Heartbeat, Store, StoreError, SweepAccount};

use super::guard::tell_guard;
use super::lead::Leading;
use super::schedule::Expected;

/// The most rows that are read again at once.
const RECHECKS_MAX: u32 = 200;
/// How often a sign of life is left while nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Waits while the source cannot be read.
const SOURCE_BACKOFF: Backoff = Backoff {
    initial: Duration::from_millis(500),
    multiplier: 2.0,
    max: Duration::from_secs(15),
};

/// What wakes the loop.
#[derive(Debug, Clone, Default)]
pub(super) struct Wake {
    pub(super) poll: Arc<Notify>,
    pub(super) sweep: Arc<Notify>,
    pub(super) recheck: Arc<Notify>,
    /// Wakes dispatch when a pass found work.
    pub(super) work: Arc<Notify>,
}

/// Watches the source.
pub(super) struct Watcher {
    pub(super) reconciler: Reconciler,
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: Arc<dyn Random>,
    pub(super) wake: Wake,
    pub(super) stop: CancellationToken,
    /// Called after each step, for the service manager's watchdog.
    pub(super) progressed: Arc<dyn Fn() + Send + Sync>,
    pub(super) poll: Option<Cron>,
    pub(super) leading: Leading,
    pub(super) heartbeat: Heartbeat,
    /// Whether every row has to be read from the first one on: a sweep under way, or one that was interrupted, will not do.
    pub(super) owes_sweep: bool,
}

enum Step {
    Poll,
    Sweep,
    SweepPage,
    Recheck,
    Idle,
    Stop,
}

/// The troubles of passes so far.
#[derive(Default)]
struct Trouble {
    failures: u32,
    since: Option<Timestamp>,
    /// Whether it was said of the state instead of the source.
    is_of_state: bool,
}

impl Watcher {
    /// Watches until told to stop. The first poll and sweep start at once.
    ///
    /// # Errors
    /// The source query itself cannot be used, found before anything could be read: the configuration has to change.
    pub(super) async fn run(mut self) -> Result<(), PassError> {
        let mut sweep: Option<Sweep> = None;
        let mut trouble = Trouble::default();
        let mut ever_read = false;
        self.wake.poll.notify_one();
        self.wake.sweep.notify_one();
        loop {
            if !self.leading.leads() {
                sweep = None;
                if !self.await_turn().await {
                    return Ok(());
                }
            }
            if let Some(token) = self.leading.begun() {
                self.reconciler.hold_watch(token);
                self.wake.poll.notify_one();
                self.wake.sweep.notify_one();
            }
            let step = self.next(sweep.as_ref(), &trouble).await;
            let result = match step {
                Step::Stop => return Ok(()),
                Step::Idle => Ok(()),
                Step::Poll => self.poll(&mut sweep).await,
                Step::Recheck => self.recheck().await,
                Step::Sweep => self.begin(&mut sweep).await,
                Step::SweepPage => self.page(&mut sweep).await,
            };
            (self.progressed)();
            tell_guard(&self.reconciler, &*self.store).await;
            match result {
                Ok(()) if matches!(step, Step::Idle) => {}
                Ok(()) => {
                    ever_read = true;
                    self.recovered(&mut trouble);
                }
                Err(PassError::Source(error)) if error.is_configuration() && !ever_read => {
                    return Err(PassError::Source(error));
                }
                // Another process goes on from what is committed.
                Err(PassError::Store(StoreError::WatchLost)) => self.leading.lose(),
                Err(error) => {
                    self.failed(&mut trouble, &error);
                    self.again(&step);
                }
            }
            self.beat().await;
        }
    }

    /// Waits until this process is to read the source; false when it is to stop.
    async fn await_turn(&mut self) -> bool {
        while !self.leading.leads() {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                () = self.leading.changed() => {}
                () = self.clock.sleep(HEARTBEAT) => {}
            }
            (self.progressed)();
            self.beat().await;
        }
        true
    }

    /// Waits for the next thing to do. Polls go before re-reads, those before pages of a sweep.
    async fn next(&mut self, sweep: Option<&Sweep>, trouble: &Trouble) -> Step {
        if trouble.failures > 0 {
            let wait = SOURCE_BACKOFF.interval(trouble.failures, self.random.fraction());
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Step::Stop,
                () = self.clock.sleep(wait) => {}
            }
        }
        let patience = Expected::of(self.poll.as_ref()).patience(self.clock.now());
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Step::Stop,
            () = self.leading.changed() => Step::Idle,
            () = self.wake.poll.notified() => Step::Poll,
            () = self.wake.recheck.notified() => Step::Recheck,
            () = self.wake.sweep.notified(), if sweep.is_none() => Step::Sweep,
            () = rest(&*self.clock, sweep), if sweep.is_some() => Step::SweepPage,
            () = self.clock.sleep(patience.min(HEARTBEAT)) => if patience <= HEARTBEAT { Step::Poll } else { Step::Idle },
        }
    }

    /// Makes sure that a step that failed is tried again.
    fn again(&self, step: &Step) {
        match step {
            Step::Recheck => self.wake.recheck.notify_one(),
            Step::Sweep => self.wake.sweep.notify_one(),
            // The page is tried again since the sweep is still under way.
            Step::SweepPage | Step::Idle | Step::Stop => {}
            Step::Poll => self.wake.poll.notify_one(),
        }
    }

    async fn poll(&mut self, sweep: &mut Option<Sweep>) -> Result<(), PassError> {
        // Wishes that were left by an earlier run have no signal.
        self.recheck().await?;
        let Some(report) = self.reconciler.poll().await? else {
            if sweep.is_none() {
                self.begin(sweep).await?;
            }
            return Ok(());
        };
        self.heartbeat.last_poll = Some((self.clock.now(), report.counts.rows));
        self.tell_poll(&report);
        if let Some(why) = report.needs_sweep {
            warn!(
                event = "poll.needs_sweep",
                reason = why,
                "Reading every row: {why}"
            );
            self.owes_sweep = true;
            self.wake.sweep.notify_one();
        }
        Ok(())
    }

    async fn recheck(&self) -> Result<(), PassError> {
        while self.reconciler.recheck(RECHECKS_MAX).await? == RECHECKS_MAX as usize {}
        self.wake.work.notify_one();
        Ok(())
    }

    async fn begin(&mut self, sweep: &mut Option<Sweep>) -> Result<(), PassError> {
        if sweep.is_none() {
            let begun = self.reconciler.begin_sweep().await?;
            self.owes_sweep &= begun.is_resumed();
            *sweep = Some(begun);
            debug!(event = "sweep.started", "Started to read every row");
        }
        Ok(())
    }

    async fn page(&mut self, sweep: &mut Option<Sweep>) -> Result<(), PassError> {
        let Some(under_way) = sweep else {
            return Ok(());
        };
        match self.reconciler.step(under_way).await? {
            SweepStep::Page { notices } => tell_quarantined(&notices),
            SweepStep::Complete { notices, report } => {
                tell_quarantined(&notices);
                tell_sweep(&report);
                *sweep = None;
                if self.owes_sweep {
                    self.wake.sweep.notify_one();
                }
            }
        }
        self.wake.work.notify_one();
        Ok(())
    }

    fn tell_poll(&self, report: &PollReport) {
        tell_quarantined(&report.notices);
        let counts = report.counts;
        if counts.enqueued + counts.folded + counts.withdrawn + counts.adopted > 0 {
            self.wake.work.notify_one();
            info!(
                event = "poll.completed",
                rows = counts.rows,
                changed = counts.changed,
                enqueued = counts.enqueued,
                folded = counts.folded,
                withdrawn = counts.withdrawn,
                adopted = counts.adopted,
                quarantined = counts.quarantined,
                duration_ms = millis(report.duration),
                "Polled {} rows: {} to send anew, {} with a newer value, {} withdrawn",
                counts.rows,
                counts.enqueued,
                counts.folded,
                counts.withdrawn
            );
        } else {
            let duration_ms = millis(report.duration);
            debug!(
                event = "poll.completed",
                rows = counts.rows,
                changed = 0,
                duration_ms,
                "Polled, nothing changed"
            );
        }
    }

    fn failed(&mut self, trouble: &mut Trouble, problem: &PassError) {
        trouble.failures = trouble.failures.saturating_add(1);
        if trouble.since.is_some() {
            return;
        }
        trouble.since = Some(self.clock.now());
        trouble.is_of_state = matches!(problem, PassError::Store(_));
        match problem {
            PassError::Source(problem) => {
                self.heartbeat.source_problem = Some(problem.to_string());
                error!(
                    event = "source.outage_began", error_code = problem.code(), error = %problem,
                    "Cannot read the source: nothing new is found until it works again; what waits is still sent"
                );
            }
            PassError::Store(problem) => error!(
                event = "state.outage_began", error = %problem, "Cannot use the state: nothing is read or sent until it works again"
            ),
        }
    }

    fn recovered(&mut self, trouble: &mut Trouble) {
        let Some(since) = trouble.since.take() else {
            return;
        };
        trouble.failures = 0;
        self.heartbeat.source_problem = None;
        let duration_ms = millis(self.clock.now().since(since));
        if trouble.is_of_state {
            warn!(
                event = "state.outage_ended",
                duration_ms, "What passes find can be recorded again"
            );
            return;
        }
        warn!(
            event = "source.outage_ended",
            duration_ms, "The source can be read again"
        );
    }

    async fn beat(&mut self) {
        let now = self.clock.now();
        if now.since(self.heartbeat.at) >= HEARTBEAT / 5 || now < self.heartbeat.at {
            self.heartbeat.at = now;
            // Only `status` misses it.
            let _ = self.store.heartbeat(&self.heartbeat).await;
        }
    }
}

/// Waits until a sweep may go on: not at all, unless it is throttled.
pub(super) async fn rest(clock: &dyn Clock, sweep: Option<&Sweep>) {
    let rest = sweep
        .map(|sweep| sweep.rest(clock.now()))
        .unwrap_or_default();
    if !rest.is_zero() {
        clock.sleep(rest).await;
    }
}

/// One line per row that is new in quarantine or changed there.
pub(super) fn tell_quarantined(notices: &[QuarantineNotice]) {
    for QuarantineNotice { row } in notices {
        let installation_id = row.installation_id.as_str();
        let resource_id = row.resource_id.as_str();
        warn!(
            event = "row.quarantined",
            installation_id,
            resource_id,
            column = row.column,
            problem = row.problem,
            accepted = row.accepted,
            "Cannot use the row of {installation_id}/{resource_id}: column `{}` {}; accepted: {}",
            row.column,
            row.problem,
            row.accepted
        );
    }
}

/// The account of a sweep: rows = equal + waiting + held + dead + quarantined.
pub(super) fn tell_sweep(report: &SweepReport) {
    let SweepAccount {
        rows,
        equal,
        waiting,
        held,
        dead,
        quarantined,
        missing,
    } = report.account;
    let converged = report.converged();
    let words = if converged {
        "both sides agree"
    } else {
        "not everything agrees yet"
    };
    info!(
        event = "sweep.completed",
        rows,
        equal,
        waiting,
        held,
        dead,
        quarantined,
        missing,
        unaccounted = report.unaccounted,
        converged,
        duration_ms = millis(report.duration),
        "Swept {rows} rows: {equal} equal, {waiting} waiting, {held} held, {dead} dead, {quarantined} quarantined, {missing} missing; {words}"
    );
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
