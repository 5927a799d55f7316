//! `run`: the daemon, until a signal.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use sd_notify::NotifyState;
use tokio::sync::watch;
use tracing::{error, warn};

use super::context::Session;
use super::exit::Exit;
use super::fault::{Failure, Fault, code};
use crate::app::{self, AppError, Controls, Parts, Pulse, Reload};
use crate::config::{Config, ConfigError, Loaded, Problem};
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::store::{Access, StoreError};
use crate::telemetry::{self, LogHandle, Output};

/// The daemon: watches the source and keeps Vercel equal to it, until SIGTERM or Ctrl-C.
///
/// Checks the whole configuration first, without the network, and exits with 78 if anything is wrong. Then it runs through
/// whatever happens: an outage of the database or of Vercel never ends it. It logs to stdout, one line per event.
///
/// It never writes to the source. One daemon works on a state in SQLite, and a second one is refused; any number share one in
/// PostgreSQL. SIGTERM lets requests in flight end; a second signal ends at once. SIGHUP reads the configuration again and takes
/// over what can change at run time: limits, schedule, guard, retries, retention and the log filter; it says what needs a restart.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled --config /etc/reconciled/reconciled.toml run\n\n\
    Next: reconciled status"
)]
pub(crate) struct Arguments {}

pub(crate) async fn execute(_: Arguments, session: &mut Session) -> Result<Exit, Fault> {
    let Loaded {
        config, warnings, ..
    } = session.load()?;
    let log = telemetry::init(&config.log, Output::Stdout)
        .map_err(|error| Failure::of(code::START, &error))?;
    tell_warnings(&warnings);
    let ended = daemon(config, session, log).await;
    if let Err(Fault::Failure(failure)) = &ended {
        error!(
            event = "daemon.failed",
            error_code = failure.code,
            error = failure.message,
            "Ended: {}",
            failure.message
        );
    }
    ended.map(|()| Exit::Done)
}

async fn daemon(config: Config, session: &Session, log: LogHandle) -> Result<(), Fault> {
    let shutdown = Shutdown::new();
    let hang_ups = shutdown.listen().map_err(AppError::from)?;
    let config = Arc::new(config);
    let metrics = Arc::<Metrics>::default();
    let Some(parts) = open(Arc::clone(&config), &shutdown).await? else {
        return Ok(());
    };
    let (reload, settings) = Reload::new(config, log.clone(), Arc::clone(&metrics));
    let controls = Controls {
        shutdown,
        settings,
        metrics,
        log: Some(log),
        pulse: Pulse::system(),
    };
    tokio::select! {
        ended = app::run(parts, controls) => Ok(ended?),
        () = reload_on_hang_up(hang_ups, &reload, || session.load()) => unreachable!("the reload loop outlives the daemon"),
    }
}

/// How long the daemon waits before it tries again to open a state that cannot be reached.
const OPEN_RETRY: Duration = Duration::from_secs(2);

/// Opens the state, as soon as its server can be reached; `None` when the daemon is to stop before.
async fn open(config: Arc<Config>, shutdown: &Shutdown) -> Result<Option<Parts>, Fault> {
    let mut told = false;
    loop {
        match Parts::open(Arc::clone(&config), Access::Daemon).await {
            Ok(parts) => return Ok(Some(parts)),
            Err(AppError::Store(
                problem @ StoreError::Failed {
                    transient: true, ..
                },
            )) => {
                if !std::mem::replace(&mut told, true) {
                    error!(
                        event = "state.outage_began", error = %problem,
                        "Cannot use the state: nothing is read or sent until it works"
                    );
                }
                tokio::select! {
                    () = shutdown.draining().cancelled() => return Ok(None),
                    () = tokio::time::sleep(OPEN_RETRY) => {}
                }
            }
            Err(problem) => return Err(problem.into()),
        }
    }
}

/// Reads the configuration again at each SIGHUP: file, environment and command line, as at the start.
async fn reload_on_hang_up(
    mut hang_ups: watch::Receiver<u64>,
    reload: &Reload,
    load: impl Fn() -> Result<Loaded, Fault>,
) {
    while hang_ups.changed().await.is_ok() {
        // Without a service manager nobody listens.
        let reloading: Vec<_> = [
            Ok(NotifyState::Reloading),
            NotifyState::monotonic_usec_now(),
        ]
        .into_iter()
        .flatten()
        .collect();
        let _ = sd_notify::notify(&reloading);
        match load() {
            Ok(loaded) => {
                tell_warnings(&loaded.warnings);
                reload.take(&loaded);
            }
            Err(Fault::Configuration(ConfigError { problems })) => reload.refuse(&problems),
            Err(Fault::Failure(failure)) => reload.fail(&failure.message),
        }
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }
    // The relay of signals ends after the second request to stop; the daemon then ends by itself.
    std::future::pending().await
}

fn tell_warnings(warnings: &[Problem]) {
    for Problem {
        code,
        key,
        message,
        origin,
        help,
        ..
    } in warnings
    {
        warn!(
            event = "config.warning", error_code = code, key = key.as_deref().unwrap_or_default(), origin = %origin, help,
            "{message}"
        );
    }
}
