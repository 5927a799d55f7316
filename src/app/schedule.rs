//! Cron jobs that only signal, and the watchdog for a signal that never came.
//!
//! tokio-cron-scheduler runs the jobs, in UTC. Each only notifies a loop that is single-flight, so that a pass never overlaps
//! itself. After the machine slept a job may be late or lost; [`Expected`] tells the loop when to go without it.

use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use croner::parser::{CronParser, Seconds};
use tokio::sync::Notify;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use crate::config::{Cron, ScheduleConfig};
use crate::model::Timestamp;

/// How late a signal may be before a loop goes without it.
const GRACE: Duration = Duration::from_secs(3);
/// How long a loop waits when no signal is expected.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// What the jobs notify.
#[derive(Debug, Clone)]
pub(super) struct Bells {
    pub(super) poll: Arc<Notify>,
    pub(super) sweep: Arc<Notify>,
    pub(super) drift: Arc<Notify>,
    pub(super) prune: Arc<Notify>,
}

/// The jobs of a schedule that may be replaced.
pub(super) struct Jobs {
    bells: Bells,
    schedule: Schedule,
}

impl Jobs {
    pub(super) async fn start(
        config: &ScheduleConfig,
        bells: Bells,
    ) -> Result<Self, JobSchedulerError> {
        let schedule = Schedule::start(config, &bells).await?;
        Ok(Self { bells, schedule })
    }

    /// Starts the new jobs, then stops the old ones: a bell that rings twice is one pass.
    pub(super) async fn replace(
        &mut self,
        config: &ScheduleConfig,
    ) -> Result<(), JobSchedulerError> {
        let schedule = Schedule::start(config, &self.bells).await?;
        std::mem::replace(&mut self.schedule, schedule).stop().await;
        Ok(())
    }

    pub(super) async fn stop(self) {
        self.schedule.stop().await;
    }
}

/// Jobs that run until dropped or stopped.
struct Schedule(JobScheduler);

impl Schedule {
    /// Starts one job per expression; each notifies its loop.
    async fn start(config: &ScheduleConfig, bells: &Bells) -> Result<Self, JobSchedulerError> {
        let ScheduleConfig {
            poll,
            sweep,
            drift,
            prune,
        } = config;
        let jobs = [
            (poll, &bells.poll),
            (sweep, &bells.sweep),
            (drift, &bells.drift),
            (prune, &bells.prune),
        ];
        let scheduler = JobScheduler::new().await?;
        for (cron, signal) in jobs {
            let Some(cron) = cron else { continue };
            let signal = Arc::clone(signal);
            let job = Job::new(cron.as_str(), move |_, _| signal.notify_one())?;
            scheduler.add(job).await?;
        }
        scheduler.start().await?;
        Ok(Self(scheduler))
    }

    /// Stops the jobs.
    async fn stop(mut self) {
        // A scheduler that does not stop ends with the process a moment later.
        let _ = self.0.shutdown().await;
    }
}

/// When the next signal of a job is expected.
pub(super) struct Expected(Option<croner::Cron>);

impl Expected {
    pub(super) fn of(cron: Option<&Cron>) -> Self {
        let parser = CronParser::builder().seconds(Seconds::Required).build();
        Self(cron.and_then(|cron| parser.parse(cron.as_str()).ok()))
    }

    /// How long to wait from `now` before going without the signal.
    pub(super) fn patience(&self, now: Timestamp) -> Duration {
        let next = self
            .0
            .as_ref()
            .zip(DateTime::from_timestamp_millis(now.as_millis()));
        let next = next.and_then(|(cron, now)| cron.find_next_occurrence(&now, false).ok());
        next.map_or(NEVER, |next| {
            Timestamp::from_millis(next.timestamp_millis()).since(now) + GRACE
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_waits_for_the_next_signal_and_a_little_longer() {
        let cron: Cron = "*/5 * * * * *".parse().expect("an expression");
        let expected = Expected::of(Some(&cron));
        let now = Timestamp::from_millis(1_800_000_001_000);
        assert_eq!(expected.patience(now), Duration::from_secs(4) + GRACE);
        assert_eq!(Expected::of(None).patience(now), NEVER);
    }
}
