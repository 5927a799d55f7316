//! The loop that watches the source: polls, sweeps and re-reads, one after another, for as long as the daemon runs.
//!
//! A source that cannot be read is tried again with backoff and said once, as is its return.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::clock::{Clock, Random};
use crate::config::{Cron, ReconcileConfig};
use crate::metrics::{Contact, Metrics, StateUser};
use crate::model::Timestamp;
use crate::plan::backoff::Backoff;
use crate::progress::Mark;
use crate::reconcile::{
    self, PassError, PollReport, QuarantineNotice, Reconciler, Sweep, SweepReport, SweepStep,
};
use crate::store::{Heartbeat, Store, StoreError, SweepAccount};

use super::guard::tell_guard;
use super::lead::Leading;
use super::schedule::Expected;

/// The most rows that are read again at once.
const RECHECKS_MAX: u32 = 200;
/// How often a sign of life is left while nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// After a poll a sweep goes first for as long as the poll took, and no longer than this: polls that take longer than their interval
/// would leave it no time, and a change is not to wait for it.
const SWEEP_FIRST_MAX: Duration = Duration::from_secs(1);
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
    /// Left after each step.
    pub(super) progressed: Mark,
    pub(super) metrics: Arc<Metrics>,
    /// The settings in force.
    pub(super) settings: WatchSettings,
    /// Other settings, taken over between two steps.
    pub(super) followed: watch::Receiver<WatchSettings>,
    pub(super) leading: Leading,
    pub(super) heartbeat: Heartbeat,
    /// Whether every row has to be read from the first one on: a sweep under way, or one that was interrupted, will not do.
    pub(super) owes_sweep: bool,
    /// Until when a sweep goes before polls.
    pub(super) sweep_first_until: Timestamp,
}

/// What the loop depends on and may change while it runs.
#[derive(Debug, Clone)]
pub(super) struct WatchSettings {
    pub(super) reconcile: reconcile::Settings,
    /// What `reconcile` was made from, besides the guard: another one means that rows mean something else.
    pub(super) rules: ReconcileConfig,
    pub(super) poll: Option<Cron>,
}

enum Step {
    Configure,
    Poll,
    Sweep,
    SweepPage,
    Recheck,
    Idle,
    Stop,
}

/// The troubles so far.
#[derive(Default)]
struct Trouble {
    failures: u32,
    /// Since when the source cannot be read.
    source: Option<Timestamp>,
    /// Since when the state cannot be used.
    state: Option<Timestamp>,
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
                sweep = None;
                self.wake.poll.notify_one();
                self.wake.sweep.notify_one();
            }
            let step = self.next(sweep.as_ref(), &trouble).await;
            let result = match step {
                Step::Stop => return Ok(()),
                Step::Idle => Ok(false),
                Step::Configure => self.configure(),
                Step::Poll => self.poll(&mut sweep).await,
                Step::Recheck => self.recheck().await,
                Step::Sweep => self.begin(&mut sweep).await,
                Step::SweepPage => self.page(&mut sweep).await,
            };
            self.progressed.leave();
            tell_guard(&self.reconciler, &*self.store).await;
            match result {
                Ok(_) if matches!(step, Step::Idle | Step::Configure) => {}
                Ok(read) => {
                    ever_read |= read;
                    self.recovered(&mut trouble, read);
                }
                Err(PassError::Source(error)) if error.is_configuration() && !ever_read => {
                    return Err(PassError::Source(error));
                }
                // Another process goes on from what is committed.
                Err(PassError::Store(StoreError::WatchLost)) => self.leading.lose(),
                Err(error) => {
                    self.measure_failure(&step, &error);
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
            if !self.leading.leads() {
                self.metrics.contacted(Contact::Elsewhere);
                // It does not use the state until it leads again; whoever sends still does.
                self.metrics.state(StateUser::Watch, None);
            }
            self.progressed.leave();
            self.beat().await;
        }
        true
    }

    /// Waits for the next thing to do. Polls go before re-reads, those before pages of a sweep; but a sweep has its turn after each poll.
    async fn next(&mut self, sweep: Option<&Sweep>, trouble: &Trouble) -> Step {
        if trouble.failures > 0 {
            let wait = SOURCE_BACKOFF.interval(trouble.failures, self.random.fraction());
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Step::Stop,
                () = self.clock.sleep(wait) => {}
            }
        }
        let now = self.clock.now();
        let is_turn =
            now < self.sweep_first_until && now.plus(SWEEP_FIRST_MAX) >= self.sweep_first_until;
        let patience = Expected::of(self.settings.poll.as_ref()).patience(now);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Step::Stop,
            () = self.leading.changed() => Step::Idle,
            Ok(()) = self.followed.changed() => Step::Configure,
            () = self.wake.sweep.notified(), if is_turn && sweep.is_none() => Step::Sweep,
            () = rest(&*self.clock, sweep), if is_turn && sweep.is_some() => Step::SweepPage,
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
            Step::SweepPage | Step::Configure | Step::Idle | Step::Stop => {}
            Step::Poll => self.wake.poll.notify_one(),
        }
    }

    /// Takes over other settings. If rows mean something else, every row is looked at again.
    fn configure(&mut self) -> Result<bool, PassError> {
        let settings = self.followed.borrow_and_update().clone();
        self.reconciler.configure(settings.reconcile);
        if settings.rules != self.settings.rules {
            self.owes_sweep = true;
            self.wake.sweep.notify_one();
        }
        self.settings = settings;
        Ok(false)
    }

    /// This and the other steps return whether rows of the source were read: only that ends an outage of it.
    async fn poll(&mut self, sweep: &mut Option<Sweep>) -> Result<bool, PassError> {
        let report = self.reconciler.poll().await?;
        match &report {
            Some(report) => {
                self.polled(report);
                if report.needs_sweep.is_some()
                    && let Some(under_way) = sweep
                {
                    under_way.owe();
                }
            }
            None => {
                self.begin(sweep).await?;
            }
        }
        // Wishes that were left by an earlier run, or by another daemon, have no signal. They come after what has just changed.
        let reread = self.recheck().await?;
        Ok(report.is_some() || reread)
    }

    fn polled(&mut self, report: &PollReport) {
        let now = self.clock.now();
        self.sweep_first_until = now.plus(report.duration.min(SWEEP_FIRST_MAX));
        self.heartbeat.last_poll = Some((now, report.counts.rows));
        self.metrics
            .polled(now, report.counts.rows, report.duration);
        self.tell_poll(report);
        if let Some(why) = report.needs_sweep {
            warn!(
                event = "poll.needs_sweep",
                reason = why,
                "Reading every row: {why}"
            );
            self.owes_sweep = true;
            self.wake.sweep.notify_one();
        }
    }

    async fn recheck(&self) -> Result<bool, PassError> {
        let mut read = false;
        loop {
            let count = self.reconciler.recheck(RECHECKS_MAX).await?;
            read |= count > 0;
            if count < RECHECKS_MAX as usize {
                break;
            }
        }
        self.wake.work.notify_one();
        Ok(read)
    }

    async fn begin(&mut self, sweep: &mut Option<Sweep>) -> Result<bool, PassError> {
        if sweep.is_none() {
            let begun = self.reconciler.begin_sweep().await?;
            self.owes_sweep &= begun.is_resumed();
            *sweep = Some(begun);
            debug!(event = "sweep.started", "Started to read every row");
        }
        Ok(false)
    }

    async fn page(&mut self, sweep: &mut Option<Sweep>) -> Result<bool, PassError> {
        let Some(under_way) = sweep else {
            return Ok(false);
        };
        match self.reconciler.step(under_way).await? {
            SweepStep::Page { notices } => tell_quarantined(&notices),
            SweepStep::Complete { notices, report } => {
                tell_quarantined(&notices);
                tell_sweep(&report);
                self.metrics.swept(report.duration);
                *sweep = None;
                if self.owes_sweep {
                    self.wake.sweep.notify_one();
                }
            }
        }
        self.wake.work.notify_one();
        Ok(true)
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

    fn measure_failure(&self, step: &Step, problem: &PassError) {
        match problem {
            PassError::Source(problem) => self.metrics.contacted(Contact::Failed(problem.code())),
            PassError::Store(_) => self.metrics.state_failures.add(1),
        }
        if matches!(step, Step::Poll) {
            self.metrics.polls.add("failed");
        }
    }

    fn failed(&mut self, trouble: &mut Trouble, problem: &PassError) {
        trouble.failures = trouble.failures.saturating_add(1);
        let now = self.clock.now();
        match problem {
            PassError::Source(problem) => {
                if trouble
                    .source
                    .replace(trouble.source.unwrap_or(now))
                    .is_none()
                {
                    self.heartbeat.source_problem = Some(problem.to_string());
                    error!(
                        event = "source.outage_began", error_code = problem.code(), error = %problem,
                        "Cannot read the source: nothing new is found until it works again; what waits is still sent"
                    );
                }
            }
            PassError::Store(problem) => {
                self.metrics
                    .state(StateUser::Watch, Some(problem.to_string()));
                if trouble
                    .state
                    .replace(trouble.state.unwrap_or(now))
                    .is_none()
                {
                    error!(
                        event = "state.outage_began", error = %problem,
                        "Cannot use the state: nothing is read or sent until it works again"
                    );
                }
            }
        }
    }

    /// A step went well: the state works, and so does the source if it was read.
    fn recovered(&mut self, trouble: &mut Trouble, read: bool) {
        self.metrics.state(StateUser::Watch, None);
        if let Some(since) = trouble.state.take() {
            let duration_ms = millis(self.clock.now().since(since));
            warn!(
                event = "state.outage_ended",
                duration_ms, "What passes find can be recorded again"
            );
        }
        if read {
            self.metrics.contacted(Contact::Made);
            self.heartbeat.source_problem = None;
            if let Some(since) = trouble.source.take() {
                let duration_ms = millis(self.clock.now().since(since));
                warn!(
                    event = "source.outage_ended",
                    duration_ms, "The source can be read again"
                );
            }
        }
        if trouble.source.is_none() {
            trouble.failures = 0;
        }
    }

    async fn beat(&mut self) {
        let now = self.clock.now();
        let state_problem = self.metrics.state_problem();
        let is_news = state_problem != self.heartbeat.state_problem;
        if is_news || now.since(self.heartbeat.at) >= HEARTBEAT / 5 || now < self.heartbeat.at {
            self.heartbeat.at = now;
            self.heartbeat.state_problem = state_problem;
            self.heartbeat.outage_since = self.metrics.outage_since();
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

#[cfg(test)]
mod tests;
