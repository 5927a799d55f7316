//! The daemon: both loops, the schedule and the summary, until a signal; then drain.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{error, info, warn};

use crate::config::Config;
use crate::dispatch::{Dispatcher, SharedTotals, Signals, Totals, Until};
use crate::handover::Handover;
use crate::metrics::Metrics;
use crate::progress::Mark;
use crate::reread::Reread;
use crate::shutdown::Shutdown;
use crate::store::{Cutoffs, Heartbeat};
use crate::telemetry::LogHandle;

use super::acts::tell_acts;
use super::build::{AppError, Parts, listener};
use super::census::Census;
use super::counted::Counted;
use super::drift::watch_drift;
use super::health::{Health, Loop, Pulse};
use super::http;
use super::lead::{Leadership, Leading};
use super::listen::{Hearing, hear};
use super::observe::{Lately, Observer};
use super::reload::{Followed, spread};
use super::schedule::{Bells, Jobs};
use super::summary::summarize;
use super::watch::{Wake, Watcher};

/// How many rows one prune transaction deletes.
const PRUNE_ROWS: u32 = 1000;
/// How much longer than a request may take draining may take.
const GRACE: Duration = Duration::from_secs(5);

/// How a running daemon is steered and watched from outside.
#[derive(Debug)]
pub struct Controls {
    /// When it stops.
    pub shutdown: Shutdown,
    /// The settings in force; what changes in them is taken over.
    pub settings: watch::Receiver<Arc<Config>>,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// The log, for what it counts.
    pub log: Option<LogHandle>,
    /// What its health is measured by.
    pub pulse: Pulse,
}

impl Controls {
    /// Nobody reloads the settings or looks at the log.
    #[must_use]
    pub fn fixed(shutdown: Shutdown, config: &Arc<Config>) -> Self {
        Self {
            shutdown,
            settings: watch::channel(Arc::clone(config)).1,
            metrics: Arc::default(),
            log: None,
            pulse: Pulse::system(),
        }
    }
}

/// Runs until asked to stop.
///
/// # Errors
/// The daemon cannot start, the source query cannot be used, or a loop ended unexpectedly.
pub async fn run(mut parts: Parts, controls: Controls) -> Result<(), AppError> {
    let Controls {
        shutdown,
        settings,
        metrics,
        log,
        pulse,
    } = controls;
    let counted = Counted::new(Arc::clone(&parts.worlds.marketplace), Arc::clone(&metrics));
    parts.worlds.marketplace = Arc::new(counted);
    let config = Arc::clone(&parts.config);
    let endpoint = match config.http.listen {
        Some(address) => Some(http::bind(address).await?),
        None => None,
    };
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
    let bells = Bells {
        poll: Arc::clone(&wake.poll),
        sweep: Arc::clone(&wake.sweep),
        drift: Arc::default(),
        prune: Arc::default(),
    };
    let jobs = Jobs::start(&config.schedule, bells.clone())
        .await
        .map_err(|error| AppError::Schedule(error.to_string()))?;
    let stop = shutdown.draining().clone();
    let health = Arc::new(Health::new(config.source.statement_timeout, pulse));
    let signals = Signals {
        work: Arc::clone(&wake.work),
        recheck: Arc::clone(&wake.recheck),
        stop: stop.clone(),
        probes_elsewhere: Arc::default(),
        reread: Reread::default(),
        handover: Handover::default(),
        progressed: mark(&health, Loop::Dispatch),
        metrics: Arc::clone(&metrics),
    };
    let leadership = Leadership::start(&parts, Arc::clone(&signals.probes_elsewhere));
    let leading = leadership.leading();
    let followed = Followed::new(&parts);
    let watcher = watcher(
        &parts,
        &wake,
        &signals,
        now,
        &followed,
        &health,
        leading.clone(),
    );
    let mut dispatcher = Dispatcher::new(
        parts.worlds.clone(),
        parts.key.clone(),
        parts.tokens(),
        parts.dispatch_settings(),
        signals,
    );
    dispatcher.follow(followed.dispatch.subscribe());
    let totals = dispatcher.totals();
    let mut sending = tokio::spawn(async move { dispatcher.run(Until::Stopped).await });
    let mut watching = tokio::spawn(async move {
        let ended = watcher.run().await;
        // At once: what is in flight here needs no watch.
        leadership.end().await;
        ended
    });
    let spreading = tokio::spawn(spread(
        parts.clone(),
        settings.clone(),
        followed,
        jobs,
        Arc::clone(&wake.work),
        stop.clone(),
    ));
    let (store, clock) = (&parts.worlds.store, &parts.worlds.clock);
    let status = |sentence: String| notify(&[NotifyState::Status(&sentence)]);
    let mut upkeep = JoinSet::new();
    upkeep.spawn(watch_drift(
        parts.clone(),
        settings.clone(),
        bells.drift,
        Arc::clone(&wake.recheck),
        stop.clone(),
        leading.clone(),
    ));
    upkeep.spawn(tell_acts(
        Arc::clone(&parts.console),
        Arc::clone(clock),
        leading.clone(),
    ));
    upkeep.spawn(prune(parts.clone(), settings.clone(), bells.prune, leading));
    let census = Arc::new(Census::of(Arc::clone(store)));
    upkeep.spawn(summarize(
        Arc::clone(store),
        Arc::clone(&census),
        Arc::clone(clock),
        Arc::clone(&totals),
        settings,
        status,
    ));
    if let Some(listener) = listener {
        let hearing = Hearing {
            channel: config.source.listen.clone().unwrap_or_default(),
            poll: Arc::clone(&wake.poll),
            clock: Arc::clone(clock),
            random: Arc::clone(&parts.worlds.random),
        };
        upkeep.spawn(hear(listener, hearing));
    }
    let mut answering = JoinSet::new();
    if let Some(endpoint) = endpoint {
        let observer = Observer {
            store: Arc::clone(store),
            census,
            clock: Arc::clone(clock),
            metrics,
            health,
            log,
            started_at: now,
            stop: stop.clone(),
            standing: Lately::default(),
            readable: Lately::default(),
        };
        tell_listening(&endpoint);
        answering.spawn(http::serve(endpoint, Arc::new(observer)));
    }
    notify(&[NotifyState::Ready, NotifyState::Status("Started")]);
    let ended = tokio::select! {
        // A loop that ended because it was told to is no failure.
        biased;
        () = stop.cancelled() => Ok(()),
        ended = &mut watching => watching_ended(ended),
        _ = &mut sending => Err(AppError::Ended { part: "dispatcher" }),
    };
    notify(&[NotifyState::Stopping]);
    stop.cancel();
    upkeep.abort_all();
    drain(
        sending,
        watching,
        &totals,
        &shutdown,
        config.vercel.request_timeout + GRACE,
    )
    .await;
    // It ends by itself, the schedule with it. Until then there were answers: ready no longer, but alive.
    let _ = spreading.await;
    answering.abort_all();
    ended
}

fn tell_listening(endpoint: &TcpListener) {
    if let Ok(address) = endpoint.local_addr() {
        info!(event = "http.listening", address = %address, "Listening on {address} for /healthz, /readyz and /metrics");
    }
}

/// A mark that the daemon's health hears of.
fn mark(health: &Arc<Health>, which: Loop) -> Mark {
    let health = Arc::clone(health);
    Mark::new(move || health.mark(which))
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
    wake: &Wake,
    signals: &Signals,
    started_at: crate::model::Timestamp,
    followed: &Followed,
    health: &Arc<Health>,
    leading: Leading,
) -> Watcher {
    let progressed = mark(health, Loop::Watch);
    let mut reconciler = parts.reconciler();
    reconciler.mark_progress(progressed.clone());
    reconciler.hand_over(signals.reread.clone(), signals.handover.clone());
    reconciler.note_commits(Arc::clone(&signals.metrics.commits));
    Watcher {
        reconciler,
        store: Arc::clone(&parts.worlds.store),
        clock: Arc::clone(&parts.worlds.clock),
        random: Arc::clone(&parts.worlds.random),
        wake: wake.clone(),
        stop: signals.stop.clone(),
        progressed,
        metrics: Arc::clone(&signals.metrics),
        leading,
        settings: followed.watch.borrow().clone(),
        followed: followed.watch.subscribe(),
        heartbeat: Heartbeat {
            owner: parts.owner.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at,
            at: started_at,
            last_poll: None,
            source_problem: None,
            state_problem: None,
            outage_since: None,
        },
        owes_sweep: false,
        sweep_first_until: crate::model::Timestamp::EPOCH,
    }
}

/// Deletes what retention no longer keeps, whenever signalled.
async fn prune(
    parts: Parts,
    settings: watch::Receiver<Arc<Config>>,
    signal: Arc<Notify>,
    leading: Leading,
) {
    loop {
        signal.notified().await;
        if !leading.leads() {
            continue;
        }
        let now = parts.worlds.clock.now();
        let retention = settings.borrow().retention.clone();
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
