//! The drift check as the daemon runs it on schedule, and as a command runs it once.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{Config, OnDrift};
use crate::dispatch::drift::{
    DriftCheck, DriftEvent, DriftListener, DriftOrder, DriftReport, DriftSettings, Finding,
};
use crate::model::FieldSet;

use super::build::{AppError, Parts};
use super::lead::Leading;

/// The most requests of a check at once: it leaves the rest of the places to deliveries.
const CONCURRENCY_MAX: usize = 4;

/// Compares what is ordered with what Vercel shows, once.
///
/// # Errors
/// The source's columns or the state could not be read.
pub async fn drift(
    parts: &Parts,
    order: DriftOrder,
    stop: &CancellationToken,
    tell: &mut DriftListener<'_>,
) -> Result<DriftReport, AppError> {
    let config = &parts.config;
    let ignored = config.reconcile.ignore;
    let managed = parts.worlds.source.shape().await?.managed;
    let minute = Duration::from_secs(60);
    let interval = |limit: NonZeroU32| minute / limit.get();
    let settings = DriftSettings {
        managed: managed
            .iter()
            .filter(|f| !ignored.contains(*f))
            .collect::<FieldSet>(),
        concurrency: config
            .vercel
            .max_in_flight_per_installation
            .get()
            .min(CONCURRENCY_MAX),
        interval: config
            .vercel
            .requests_per_minute_per_installation
            .map(interval),
        order,
    };
    let check = DriftCheck::new(
        Arc::clone(&parts.worlds.store),
        Arc::clone(&parts.worlds.marketplace),
        Arc::clone(&parts.worlds.clock),
        parts.tokens(),
        settings,
    );
    Ok(check.run(stop, tell).await?)
}

/// Checks whenever signalled, and wakes whoever reads rows again when there is something to fix.
pub(super) async fn watch_drift(
    parts: Parts,
    settings: watch::Receiver<Arc<Config>>,
    signal: Arc<Notify>,
    recheck: Arc<Notify>,
    stop: CancellationToken,
    leading: Leading,
) {
    // What was told stays told until it is gone: a difference is one line, not one per check.
    // Each stands as a hash: there may be as many as resources.
    let hashes = RandomState::new();
    let mut told: HashSet<u64> = HashSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = signal.notified() => {}
        }
        if !leading.leads() {
            continue;
        }
        let started_at = parts.worlds.clock.now();
        let parts = parts.with_config(Arc::clone(&settings.borrow()));
        let order = DriftOrder {
            fix: parts.config.reconcile.on_drift == OnDrift::Fix,
            ..DriftOrder::default()
        };
        let mut met = HashSet::new();
        let mut tell = |event: DriftEvent<'_>| {
            if let DriftEvent::Found(finding) = event {
                let print = hashes.hash_one(format!("{finding:?}"));
                if !told.contains(&print) {
                    tell_finding(finding);
                }
                met.insert(print);
            }
        };
        let checked = drift(&parts, order, &stop, &mut tell).await;
        match checked {
            Ok(report) => {
                let duration = parts.worlds.clock.now().since(started_at);
                tell_report(&report, duration);
                if report.fixed > 0 {
                    recheck.notify_one();
                }
                if report.complete {
                    told = met;
                } else {
                    told.extend(met);
                }
            }
            Err(problem) => {
                told.extend(met);
                warn!(
                    event = "drift.failed",
                    error = %problem,
                    "Could not compare with what Vercel shows; tried again at the next time"
                );
            }
        }
    }
}

/// One line per difference.
pub fn tell_finding(finding: &Finding) {
    let key = finding.key();
    let (installation_id, resource_id) = (key.installation_id.as_str(), key.resource_id.as_str());
    match finding {
        Finding::Differs {
            field,
            acknowledged,
            shown,
            ..
        } => {
            let shown = shown.as_deref().unwrap_or("nothing");
            warn!(
                event = "drift.found",
                installation_id,
                resource_id,
                field = field.wire_name(),
                acknowledged,
                shown,
                "Vercel shows {field} of {key} as {shown}; it acknowledged {acknowledged}"
            );
        }
        Finding::Missing { .. } => warn!(
            event = "drift.missing",
            installation_id, resource_id, "Vercel does not know {key}"
        ),
    }
}

fn tell_report(report: &DriftReport, duration: Duration) {
    let skipped: u64 = report.skipped.values().sum();
    info!(
        event = "drift.completed",
        resources = report.resources,
        compared = report.compared,
        drifted = report.drifted,
        missing = report.missing,
        fixed = report.fixed,
        skipped,
        complete = report.complete,
        duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        "Compared {} of {} resources with what Vercel shows: {} differ, {} are unknown to it",
        report.compared,
        report.resources,
        report.drifted,
        report.missing
    );
}
