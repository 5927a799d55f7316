//! The summary line: where the outbox stands, and what was done since the last one.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tracing::info;

use crate::clock::Clock;
use crate::config::Config;
use crate::dispatch::{SharedTotals, Totals};
use crate::store::Store;

/// Writes a line every `[log] summary_interval`, for ever, and hands its sentence to `status`.
pub(super) async fn summarize(
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    totals: SharedTotals,
    mut settings: watch::Receiver<Arc<Config>>,
    mut status: impl FnMut(String) + Send,
) {
    let mut before = Totals::default();
    loop {
        let interval = settings.borrow_and_update().log.summary_interval;
        tokio::select! {
            () = elapsed(&*clock, interval) => {}
            // Another interval may be in force: it begins now. Without a sender none will ever be.
            Ok(()) = settings.changed() => continue,
        }
        // While the state cannot be read its outage is on record; a summary of nothing would say less.
        let Ok(counts) = store.counts(clock.now()).await else {
            continue;
        };
        let after = *totals.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = counts
            .oldest_waiting
            .map_or(Duration::ZERO, |oldest| clock.now().since(oldest));
        let acknowledged = after.acknowledged - before.acknowledged;
        let failed = after.failed - before.failed;
        let lag_mean = (after.lag_sum - before.lag_sum)
            .checked_div(u32::try_from(acknowledged).unwrap_or(u32::MAX));
        let sentence = format!(
            "{} waiting, {} held, {} dead, {} quarantined, {} paused; {acknowledged} delivered, {failed} failed",
            counts.waiting, counts.held, counts.dead, counts.quarantined, counts.paused
        );
        info!(
            event = "summary",
            resources = counts.resources,
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
            died = after.died - before.died,
            lag_mean_ms = millis(lag_mean.unwrap_or_default()),
            interval_ms = millis(interval.unwrap_or_default()),
            "{sentence}"
        );
        status(sentence);
        before = after;
    }
}

/// Returns after the interval; never without one.
async fn elapsed(clock: &dyn Clock, interval: Option<Duration>) {
    match interval {
        Some(interval) => clock.sleep(interval).await,
        None => std::future::pending().await,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
