//! The summary line: where the outbox stands, and what was done since the last one.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tracing::info;

use crate::clock::Clock;
use crate::config::Config;
use crate::dispatch::{SharedTotals, Totals};
use crate::model::Timestamp;
use crate::store::Store;

use super::census::Census;

/// How long a line waits for the number of resources; it comes without one, or with the last one, when that takes longer.
const CENSUS_PATIENCE: Duration = Duration::from_secs(30);

/// Writes a line every `[log] summary_interval`, for ever, and hands its sentence to `status`.
pub(super) async fn summarize(
    store: Arc<dyn Store>,
    census: Arc<Census>,
    clock: Arc<dyn Clock>,
    totals: SharedTotals,
    mut settings: watch::Receiver<Arc<Config>>,
    mut status: impl FnMut(String) + Send,
) {
    let mut before = Totals::default();
    // When the last line was due, and since when what was done is on no line yet: a line that could not be made lies between.
    let mut last = clock.now();
    let mut untold_since = last;
    loop {
        let interval = settings.borrow_and_update().log.summary_interval;
        tokio::select! {
            () = elapsed(&*clock, last, interval) => {}
            // Another interval may be in force, and counts from the last line: however often settings are read again, lines go
            // on coming. Without a sender none will ever be.
            Ok(()) = settings.changed() => continue,
        }
        last = clock.now();
        // While the state cannot be read its outage is on record; a summary of nothing would say less.
        let Ok(counts) = store.counts(clock.now()).await else {
            continue;
        };
        let resources = census.resources(CENSUS_PATIENCE).await;
        let after = *totals.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = counts
            .oldest_waiting
            .map_or(Duration::ZERO, |oldest| clock.now().since(oldest));
        let Done {
            acknowledged,
            failed,
            died,
            lag_mean,
        } = Done::between(&before, &after);
        let sentence = format!(
            "{} waiting, {} held, {} dead, {} quarantined, {} paused; {acknowledged} delivered, {failed} failed",
            counts.waiting, counts.held, counts.dead, counts.quarantined, counts.paused
        );
        info!(
            event = "summary",
            resources,
            waiting = counts.waiting,
            in_flight = counts.in_flight,
            held = counts.held,
            dead = counts.dead,
            quarantined = counts.quarantined,
            paused = counts.paused,
            missing = counts.missing,
            oldest_age_ms = millis(oldest),
            acknowledged,
            failed,
            died,
            lag_mean_ms = millis(lag_mean),
            interval_ms = millis(last.since(untold_since)),
            "{sentence}"
        );
        status(sentence);
        before = after;
        untold_since = last;
    }
}

/// What was done between two lines.
#[derive(Debug, PartialEq, Eq)]
struct Done {
    acknowledged: u64,
    failed: u64,
    died: u64,
    /// From finding a change to its acknowledgement; zero when nothing was acknowledged.
    lag_mean: Duration,
}

impl Done {
    fn between(before: &Totals, after: &Totals) -> Self {
        let acknowledged = after.acknowledged - before.acknowledged;
        let lag_sum = after.lag_sum - before.lag_sum;
        let count = u32::try_from(acknowledged).unwrap_or(u32::MAX);
        Self {
            acknowledged,
            failed: after.failed - before.failed,
            died: after.died - before.died,
            lag_mean: lag_sum.checked_div(count).unwrap_or_default(),
        }
    }
}

/// Returns when the interval has passed since the last line; never without one.
async fn elapsed(clock: &dyn Clock, last: Timestamp, interval: Option<Duration>) {
    match interval {
        // A clock that was set back waits no longer than the whole interval.
        Some(interval) => {
            let passed = clock.now().since(last);
            clock.sleep(interval.saturating_sub(passed)).await;
        }
        None => std::future::pending().await,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_was_done_since_the_one_before() {
        let before = Totals {
            acknowledged: 10,
            failed: 20,
            died: 30,
            lag_sum: Duration::from_secs(40),
            ..Totals::default()
        };
        let after = Totals {
            acknowledged: 14,
            failed: 22,
            died: 31,
            lag_sum: Duration::from_secs(46),
            ..before
        };
        let done = Done::between(&before, &after);
        let expected = Done {
            acknowledged: 4,
            failed: 2,
            died: 1,
            lag_mean: Duration::from_millis(1_500),
        };
        assert_eq!(done, expected);
        let nothing = Done {
            acknowledged: 0,
            failed: 0,
            died: 0,
            lag_mean: Duration::ZERO,
        };
        assert_eq!(Done::between(&after, &after), nothing);
    }
}
