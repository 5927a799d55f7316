//! One poll or sweep, and deliveries until the outbox is idle: for cron and jobs.

use std::pin::pin;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::dispatch::{Dispatcher, Signals, Totals, Until};
use crate::reconcile::{PassError, Reconciler, SweepReport, SweepStep};
use crate::store::Counts;

use super::build::Parts;
use super::guard::tell_guard;
use super::watch::{rest, tell_quarantined, tell_sweep};

/// The most rows that are read again at once.
const RECHECKS_MAX: u32 = 200;

/// What one run is to do.
#[derive(Debug, Clone, Copy)]
pub struct OnceOptions {
    /// Read every row, not only what changed.
    pub sweep: bool,
    /// Deliver for at most this long, counted from when the source was read.
    pub timeout: Duration,
}

/// What one run did.
#[derive(Debug, Clone)]
pub struct OnceReport {
    /// Rows that were read by the poll or the sweep.
    pub rows: u64,
    /// Requests and dead letters of this run.
    pub totals: Totals,
    /// The state afterwards.
    pub counts: Counts,
    /// Resources in the state.
    pub resources: u64,
    /// The sweep's account, if there was one.
    pub sweep: Option<SweepReport>,
}

impl OnceReport {
    /// Whether everything that was to be delivered was.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.counts.waiting == 0 && self.totals.died == 0
    }
}

/// Reads once and delivers until idle, or until `stop`.
///
/// # Errors
/// The source or the state failed.
pub async fn once(
    parts: &Parts,
    options: OnceOptions,
    stop: &CancellationToken,
) -> Result<OnceReport, PassError> {
    let now = parts.worlds.clock.now();
    parts.recover(now).await?;
    let (mut reconciler, leadership) = parts.watching_reconciler().await?;
    let signals = Signals {
        stop: stop.clone(),
        ..Signals::default()
    };
    reconciler.hand_over(signals.reread.clone(), signals.handover.clone());
    let report = read_and_deliver(parts, options, signals, &reconciler).await;
    leadership.end().await;
    report
}

async fn read_and_deliver(
    parts: &Parts,
    options: OnceOptions,
    signals: Signals,
    reconciler: &Reconciler,
) -> Result<OnceReport, PassError> {
    let (rows, sweep) = read(reconciler, options.sweep, &*parts.worlds.clock).await?;
    tell_guard(reconciler, &*parts.worlds.store).await;
    let recheck = signals.recheck.clone();
    let work = signals.work.clone();
    let mut dispatcher = Dispatcher::new(
        parts.worlds.clone(),
        parts.key.clone(),
        parts.tokens(),
        parts.dispatch_settings(),
        signals,
    );
    // From here on: a sweep that takes longer than the timeout would otherwise deliver nothing of what it finds, every time.
    let deadline = parts.worlds.clock.now().plus(options.timeout);
    let totals = {
        let mut run = pin!(dispatcher.run(Until::Idle { deadline }));
        loop {
            tokio::select! {
                totals = &mut run => break totals,
                () = recheck.notified() => {
                    reconciler.recheck(RECHECKS_MAX).await?;
                    tell_guard(reconciler, &*parts.worlds.store).await;
                    work.notify_one();
                }
            }
        }
    };
    let counts = parts.worlds.store.counts(parts.worlds.clock.now()).await?;
    Ok(OnceReport {
        rows,
        totals,
        counts,
        resources: parts.worlds.store.resources().await?,
        sweep,
    })
}

async fn read(
    reconciler: &Reconciler,
    sweep: bool,
    clock: &dyn Clock,
) -> Result<(u64, Option<SweepReport>), PassError> {
    reconciler.recheck(RECHECKS_MAX).await?;
    let mut owes_sweep = false;
    if !sweep && let Some(report) = reconciler.poll().await? {
        tell_quarantined(&report.notices);
        if report.needs_sweep.is_none() && !reconciler.owes_sweep().await? {
            return Ok((report.counts.rows, None));
        }
        owes_sweep = true;
    }
    let mut sweep = reconciler.begin_sweep().await?;
    loop {
        rest(clock, Some(&sweep)).await;
        match reconciler.step(&mut sweep).await? {
            SweepStep::Page { notices } => tell_quarantined(&notices),
            SweepStep::Complete { notices, report } => {
                tell_quarantined(&notices);
                tell_sweep(&report);
                if std::mem::take(&mut owes_sweep) && sweep.is_resumed() {
                    // It went on from an interrupted one; every row has to be read.
                    sweep = reconciler.begin_sweep().await?;
                    continue;
                }
                return Ok((report.account.rows, Some(*report)));
            }
        }
    }
}
