//! Taking over another configuration while the daemon runs.
//!
//! [`Reload`] decides and tells; [`spread`] hands the settings to the loops, which take them over between two passes or claims.
//! A configuration that is not valid changes nothing.

use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::{Change, Config, Loaded, Problem, ReconcileConfig, Severity};
use crate::dispatch;
use crate::metrics::Metrics;
use crate::telemetry::{JsonList, LogHandle};

use super::build::{Parts, reconcile_settings};
use super::schedule::Jobs;
use super::watch::WatchSettings;

/// Where reloaded settings enter the daemon.
#[derive(Debug)]
pub struct Reload {
    settings: watch::Sender<Arc<Config>>,
    log: LogHandle,
    metrics: Arc<Metrics>,
}

impl Reload {
    /// Settings that start as `config`; the other half goes to [`run`](super::run()).
    #[must_use]
    pub fn new(
        config: Arc<Config>,
        log: LogHandle,
        metrics: Arc<Metrics>,
    ) -> (Self, watch::Receiver<Arc<Config>>) {
        let (settings, receiver) = watch::channel(config);
        let reload = Self {
            settings,
            log,
            metrics,
        };
        (reload, receiver)
    }

    /// Takes over what can change at run time, and says what it was and what needs a restart.
    pub fn take(&self, loaded: &Loaded) {
        let Change {
            config,
            taken,
            pending,
            ..
        } = Change::between(&self.settings.borrow(), &loaded.config);
        if let Err(problem) = self.log.set_filter(&config.log.filter) {
            self.count("refused");
            error!(event = "config.reload_failed", error = %problem, "Kept the old settings: {problem}");
            return;
        }
        let keys = match taken.len() {
            0 => "nothing that can change without a restart".to_owned(),
            _ => taken.join(", "),
        };
        self.settings.send_replace(Arc::new(config));
        self.count("applied");
        info!(event = "config.reloaded", changed = %JsonList::new(&taken), "Read the configuration again; changed: {keys}");
        if !pending.is_empty() {
            let keys = pending.join(", ");
            warn!(event = "config.restart_needed", keys = %JsonList::new(&pending), "Changed too, but needs a restart: {keys}");
        }
    }

    /// Says why a configuration was not taken over: one line for each problem.
    pub fn refuse(&self, problems: &[Problem]) {
        self.count("refused");
        let errors = problems
            .iter()
            .filter(|problem| problem.severity == Severity::Error);
        for Problem {
            code,
            key,
            message,
            origin,
            help,
            ..
        } in errors
        {
            error!(
                event = "config.reload_failed", error_code = code, key = key.as_deref().unwrap_or_default(), origin = %origin, help,
                "Kept the old settings: {message}"
            );
        }
    }

    /// Says that the configuration could not even be looked at.
    pub fn fail(&self, problem: &str) {
        self.count("refused");
        error!(
            event = "config.reload_failed",
            error = problem,
            "Kept the old settings: {problem}"
        );
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.reloads.add(outcome);
    }
}

/// The settings of both loops, as they follow the configuration.
pub(super) struct Followed {
    pub(super) dispatch: watch::Sender<dispatch::Settings>,
    pub(super) watch: watch::Sender<WatchSettings>,
}

impl Followed {
    pub(super) fn new(parts: &Parts) -> Self {
        Self {
            dispatch: watch::channel(parts.dispatch_settings()).0,
            watch: watch::channel(watch_settings(&parts.config)).0,
        }
    }
}

/// Hands each new configuration to the loops and the schedule, until told to stop.
pub(super) async fn spread(
    parts: Parts,
    mut settings: watch::Receiver<Arc<Config>>,
    followed: Followed,
    mut jobs: Jobs,
    work: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut before = Arc::clone(&parts.config);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            changed = settings.changed() => if changed.is_err() {
                // Nobody is left who could reload.
                stop.cancelled().await;
                break;
            },
        }
        let config = Arc::clone(&settings.borrow_and_update());
        let parts = parts.with_config(Arc::clone(&config));
        followed.dispatch.send_replace(parts.dispatch_settings());
        followed.watch.send_replace(watch_settings(&config));
        work.notify_one();
        if config.schedule != before.schedule
            && let Err(problem) = jobs.replace(&config.schedule).await
        {
            error!(
                event = "config.reload_failed", error = %problem,
                "Kept the old schedule; the new one begins with the next restart: {problem}"
            );
        }
        before = config;
    }
    jobs.stop().await;
}

fn watch_settings(config: &Config) -> WatchSettings {
    WatchSettings {
        reconcile: reconcile_settings(config),
        rules: ReconcileConfig {
            // How fast rows are read changes nothing of what they mean.
            sweep_rows_per_second: None,
            ..config.reconcile.clone()
        },
        poll: config.schedule.poll.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(reconcile: &str) -> Config {
        let text = format!(
            "[source]\nurl = \"sqlite:///source.db\"\nquery = \"SELECT 1\"\n\
             installations_query = \"SELECT 1\"\n[state]\nurl = \"sqlite:///state.db\"\n\
             [reconcile]\n{reconcile}\n"
        );
        Config::from_toml(&text).expect("usable")
    }

    #[test]
    fn how_fast_a_sweep_reads_is_no_rule_of_what_rows_mean() {
        let before = watch_settings(&config(""));
        let slower = watch_settings(&config("sweep_rows_per_second = 500"));
        assert_eq!(before.rules, slower.rules);
        assert_ne!(
            before.reconcile.sweep_rows_per_second,
            slower.reconcile.sweep_rows_per_second
        );
        let ignoring = watch_settings(&config("ignore = [\"name\"]"));
        assert_ne!(before.rules, ignoring.rules);
    }
}
