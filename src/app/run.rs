//! The daemon: both loops, the schedule and the summary, until a signal; then drain.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::dispatch::{Dispatcher, SharedTotals, Signals, Totals, Until};
use crate::shutdown::Shutdown;
use crate::store::{Cutoffs, Heartbeat};

use super::build::{AppError, Parts, listener};
use super::drift::watch_drift;
use super::lead::{Leadership, Leading};
use super::listen::{Hearing, hear};
use super::schedule::Schedule;
use super::summary::summarize;
use super::watch::{Wake, Watcher};

/// How many rows one prune transaction deletes.
const PRUNE_ROWS: u32 = 1000;
/// How much longer than a request may take draining may take.
const GRACE: Duration = Duration::from_secs(5);

/// Runs until asked to stop.
///
/// # Errors
/// The daemon cannot start, the source query cannot be used, or a loop ended unexpectedly.
pub async fn run(parts: Parts, shutdown: Shutdown) -> Result<(), AppError> {
    let config = Arc::clone(&parts.config);
    let now = parts.worlds.clock.now();
    let abandoned = parts.recover(now).await?;
    info!(
        event = "daemon.started",
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        source = %config.source.url,
        state = %config.state.url,
        vercel = %config.vercel.base_url,
        abandoned,
        "Started reconciled {}", env!("CARGO_PKG_VERSION")
    );
    let wake = Wake::default();
    let listener = listener(&config, &*parts.worlds.random)?;
    let prune_signal = Arc::new(Notify::new());
    let drift_signal = Arc::new(Notify::new());
    let rereads = Arc::clone(&wake.recheck);
    let schedule = Schedule::start(&[
        (&config.schedule.poll, Arc::clone(&wake.poll)),
        (&config.schedule.sweep, Arc::clone(&wake.sweep)),
        (&config.schedule.prune, Arc::clone(&prune_signal)),
        (&config.schedule.drift, Arc::clone(&drift_signal)),
    ])
    .await
    .map_err(|error| AppError::Schedule(error.to_string()))?;
    let stop = shutdown.draining().clone();
    let signals = Signals {
        work: Arc::clone(&wake.work),
        recheck: Arc::clone(&wake.recheck),
        stop: stop.clone(),
        probes_elsewhere: Arc::default(),
    };
    let leadership = Leadership::start(&parts, Arc::clone(&signals.probes_elsewhere));
    let leading = leadership.leading();
    let mut dispatcher = Dispatcher::new(
        parts.worlds.clone(),
        parts.key.clone(),
        parts.tokens(),
        parts.dispatch_settings(),
        signals,
    );
    let totals = dispatcher.totals();
    let mut sending = tokio::spawn(async move { dispatcher.run(Until::Stopped).await });
    let hearing = listener.map(|listener| {
        let hearing = Hearing {
            channel: config.source.listen.clone().unwrap_or_default(),
            poll: Arc::clone(&wake.poll),
            clock: Arc::clone(&parts.worlds.clock),
            random: Arc::clone(&parts.worlds.random),
        };
        tokio::spawn(hear(listener, hearing))
    });
    let watcher = watcher(&parts, wake, stop.clone(), now, leading.clone());
    let mut watching = tokio::spawn(async move {
        let ended = watcher.run().await;
        // At once: what is in flight here needs no watch.
        leadership.end().await;
        ended
    });
    let checking = tokio::spawn(watch_drift(
        parts.clone(),
        drift_signal,
        rereads,
        stop.clone(),
        leading.clone(),
    ));
    let pruning = tokio::spawn(prune(parts.clone(), prune_signal, leading));
    let summary = config.summary(&parts, Arc::clone(&totals));
    notify(&[NotifyState::Ready]);
    let ended = tokio::select! {
        // A loop that ended because it was told to is no failure.
        biased;
        () = stop.cancelled() => Ok(()),
        ended = &mut watching => watching_ended(ended),
        _ = &mut sending => Err(AppError::Ended { part: "dispatcher" }),
    };
    notify(&[NotifyState::Stopping]);
    stop.cancel();
    schedule.stop().await;
    pruning.abort();
    checking.abort();
    if let Some(hearing) = hearing {
        hearing.abort();
    }
    if let Some(summary) = summary {
        summary.abort();
    }
    drain(
        sending,
        watching,
        &totals,
        &shutdown,
        config.vercel.request_timeout + GRACE,
    )
    .await;
    ended
}

fn watching_ended(
    ended: Result<Result<(), crate::reconcile::PassError>, tokio::task::JoinError>,
) -> Result<(), AppError> {
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(problem)) => Err(problem.into()),
        Err(_) => Err(AppError::Ended { part: "watcher" }),
    }
}

fn watcher(
    parts: &Parts,
    wake: Wake,
    stop: CancellationToken,
    started_at: crate::model::Timestamp,
    leading: Leading,
) -> Watcher {
    Watcher {
        reconciler: parts.reconciler(),
        store: Arc::clone(&parts.worlds.store),
        clock: Arc::clone(&parts.worlds.clock),
        random: Arc::clone(&parts.worlds.random),
        wake,
        stop,
        progressed: Arc::new(|| notify(&[NotifyState::Watchdog])),
        poll: parts.config.schedule.poll.clone(),
        leading,
        heartbeat: Heartbeat {
            owner: parts.owner.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at,
            at: started_at,
            last_poll: None,
            source_problem: None,
            outage_since: None,
        },
        owes_sweep: false,
    }
}

impl crate::config::Config {
    fn summary(&self, parts: &Parts, totals: SharedTotals) -> Option<JoinHandle<()>> {
        let interval = self.log.summary_interval?;
        let (store, clock) = (
            Arc::clone(&parts.worlds.store),
            Arc::clone(&parts.worlds.clock),
        );
        let status = |sentence: String| notify(&[NotifyState::Status(&sentence)]);
        Some(tokio::spawn(summarize(
            store, clock, totals, interval, status,
        )))
    }
}

/// Deletes what retention no longer keeps, whenever signalled.
async fn prune(parts: Parts, signal: Arc<Notify>, leading: Leading) {
    loop {
        signal.notified().await;
        if !leading.leads() {
            continue;
        }
        let now = parts.worlds.clock.now();
        let retention = &parts.config.retention;
        let cutoffs = Cutoffs {
            entries: now.minus(retention.delivered),
            attempts: now.minus(retention.attempts),
        };
        let mut deleted = 0;
        loop {
            match parts.worlds.store.prune(cutoffs, PRUNE_ROWS).await {
                Ok(0) => break,
                Ok(count) => deleted += count,
                Err(problem) => {
                    warn!(event = "prune.failed", error = %problem, "Could not delete what retention no longer keeps");
                    break;
                }
            }
        }
        info!(
            event = "prune.completed",
            deleted, "Deleted {deleted} entries and attempts past their retention"
        );
    }
}

/// Lets requests in flight end and be recorded, within the grace period and unless told to end at once.
async fn drain(
    sending: JoinHandle<Totals>,
    watching: JoinHandle<Result<(), crate::reconcile::PassError>>,
    totals: &SharedTotals,
    shutdown: &Shutdown,
    grace: Duration,
) {
    // A loop that has ended already may have been looked at to its end, which a handle allows once.
    let both = async {
        if !watching.is_finished() {
            let _ = watching.await;
        }
        if !sending.is_finished() {
            let _ = sending.await;
        }
    };
    tokio::select! {
        () = both => {
            let acknowledged = totals.lock().unwrap_or_else(PoisonError::into_inner).acknowledged;
            info!(event = "daemon.stopped", acknowledged, "Stopped: nothing is in flight");
        }
        () = shutdown.abort().cancelled() => {
            warn!(event = "daemon.aborted", "Ended at once: requests in flight count as lost");
        }
        () = tokio::time::sleep(grace) => {
            error!(event = "daemon.grace_exceeded", grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX), "Ended after the grace period: requests in flight count as lost");
        }
    }
}

/// Tells the service manager, if there is one; it may not listen.
fn notify(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}
