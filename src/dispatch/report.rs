//! What dispatch tells: one log line per delivery or failure, two per outage, and totals for the summary.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::{debug, error, info, warn};

use crate::metrics::{Metrics, StateUser};
use crate::model::{EntryState, FieldSet, Timestamp};
use crate::plan::Outcome;
use crate::plan::outage::Transition;
use crate::store::{Advanced, PauseKind, StoreError};
use crate::telemetry::JsonList;

use super::{Delivery, Effect};

/// Counts since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Requests that Vercel acknowledged.
    pub acknowledged: u64,
    /// Requests that did not lead to an acknowledgement.
    pub failed: u64,
    /// Entries that became dead letters.
    pub died: u64,
    /// The sum of the times from finding a change to its acknowledgement.
    pub lag_sum: Duration,
    /// The longest of them.
    pub lag_max: Duration,
    /// Since when the API as a whole fails, if it does.
    pub outage_since: Option<Timestamp>,
}

/// The totals as they grow, shared with whoever tells of them.
pub type SharedTotals = Arc<Mutex<Totals>>;

/// Keeps the totals and writes the lines.
#[derive(Debug)]
pub(super) struct Report {
    shared: SharedTotals,
    metrics: Arc<Metrics>,
    /// Secrets could not be read from the source, last time: what waits for them says so once.
    source_away: AtomicBool,
}

impl Report {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            shared: SharedTotals::default(),
            metrics,
            source_away: AtomicBool::new(false),
        }
    }

    pub(super) fn shared(&self) -> SharedTotals {
        Arc::clone(&self.shared)
    }

    fn count(&self, change: impl FnOnce(&mut Totals)) {
        change(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn state_failed(&self, problem: &StoreError) {
        self.metrics
            .state(StateUser::Dispatch, Some(problem.to_string()));
        error!(event = "state.outage_began", error = %problem, "Cannot use the state: nothing is sent until it works again");
    }

    pub(super) fn state_recovered(&self) {
        self.metrics.state(StateUser::Dispatch, None);
        warn!(event = "state.outage_ended", "The state works again");
    }

    pub(super) fn transition(&self, transition: Option<Transition>, since: Option<Timestamp>) {
        self.count(|totals| totals.outage_since = since);
        self.metrics.outage(since);
        match transition {
            Some(Transition::Began) => error!(
                event = "vercel.outage_began",
                "Vercel's API fails as a whole: single requests probe it until it answers"
            ),
            Some(Transition::Ended { lasted }) => {
                warn!(
                    event = "vercel.outage_ended",
                    duration_ms = millis(lasted),
                    "Vercel's API answers again"
                );
            }
            None => {}
        }
    }

    /// Writes the line of a delivery that ended at `now`; failures during an outage are its part and only counted.
    pub(super) fn delivery(&self, delivery: &Delivery, outage: bool, now: Timestamp) {
        self.measure(delivery);
        match &delivery.effect {
            Effect::Settled { outcome, advanced } => {
                self.settled(delivery, outcome, *advanced, outage, now)
            }
            Effect::Paused { kind, reason, .. } => {
                self.count(|totals| totals.failed += 1);
                paused(delivery, *kind, reason);
            }
            Effect::Resumed { kind } => {
                let installation_id = delivery.key.installation_id.as_str();
                let kind = kind.name();
                warn!(
                    event = "installation.resumed",
                    installation_id,
                    kind,
                    "Resumed {installation_id}: Vercel accepts its token again"
                );
            }
            Effect::StillPaused => {
                let installation_id = delivery.key.installation_id.as_str();
                debug!(
                    event = "installation.probe_failed",
                    installation_id, "Probed {installation_id}: it stays paused"
                );
            }
            Effect::Unrecorded => {
                self.count(|totals| totals.failed += 1);
                let (installation_id, resource_id) = ids(delivery);
                error!(
                    event = "delivery.unrecorded",
                    installation_id,
                    resource_id,
                    "The outcome of a request for {} could not be recorded; it counts as lost",
                    delivery.key
                );
            }
        }
    }

    fn measure(&self, delivery: &Delivery) {
        let metrics = &*self.metrics;
        let counter = if delivery.is_probe() {
            &metrics.probes
        } else {
            &metrics.deliveries
        };
        counter.add(delivery.outcome());
        if matches!(delivery.effect, Effect::Unrecorded) {
            metrics.state_failures.add(1);
        }
        if let Some(attempt) = &delivery.attempt {
            metrics
                .request_seconds
                .observe(attempt.ended_at.since(attempt.started_at));
            metrics.attempts.add(delivery.verdict());
        }
    }

    fn settled(
        &self,
        delivery: &Delivery,
        outcome: &Outcome,
        advanced: Option<Advanced>,
        outage: bool,
        now: Timestamp,
    ) {
        let was_away = self.was_away(delivery, outcome);
        if let Outcome::Acknowledged { .. } = outcome {
            self.acknowledged(delivery, advanced, now);
            // What was accepted was the last of a split patch: what Vercel rejected before is all that is left.
            if let Some(advanced) = advanced.filter(|advanced| advanced.state == EntryState::Dead) {
                self.count(|totals| totals.died += 1);
                line_dead(delivery, advanced);
            }
            return;
        }
        let Some(advanced) = advanced else {
            let (installation_id, resource_id) = ids(delivery);
            warn!(
                event = "delivery.lease_lost",
                installation_id,
                resource_id,
                outcome = outcome.name(),
                "The claim of {} had been taken over; its outcome was not recorded",
                delivery.key
            );
            return;
        };
        match outcome {
            Outcome::Compared { .. } => {
                line_debug(delivery, "delivery.compared", advanced, "Compared")
            }
            Outcome::Released | Outcome::SourceMoved => {
                line_debug(delivery, "delivery.released", advanced, "Sent nothing for");
            }
            _ => {
                self.count(|totals| totals.failed += 1);
                match advanced.state {
                    EntryState::Dead => {
                        self.count(|totals| totals.died += 1);
                        line_dead(delivery, advanced);
                    }
                    _ if (outage && is_part_of_outage(outcome)) || was_away => {
                        line_debug(delivery, "delivery.retrying", advanced, "Will retry");
                    }
                    _ => line_retrying(delivery, outcome, advanced, now),
                }
            }
        }
    }

    /// Whether the source was away before, and is for this delivery.
    fn was_away(&self, delivery: &Delivery, outcome: &Outcome) -> bool {
        if *outcome == Outcome::SourceUnavailable {
            return self.source_away.swap(true, Ordering::Relaxed);
        }
        let claimed = delivery.claimed.as_ref();
        let has_secrets = claimed.is_some_and(|claimed| claimed.patch.secrets.is_some());
        if has_secrets && delivery.attempt.is_some() {
            self.source_away.store(false, Ordering::Relaxed);
        }
        false
    }

    fn acknowledged(&self, delivery: &Delivery, advanced: Option<Advanced>, now: Timestamp) {
        let Some(claimed) = &delivery.claimed else {
            return;
        };
        let lag = now.since(claimed.created_at);
        self.count(|totals| {
            totals.acknowledged += 1;
            totals.lag_sum += lag;
            totals.lag_max = totals.lag_max.max(lag);
        });
        self.metrics.lag_seconds.observe(lag);
        let sent_at = delivery.attempt.as_ref().map(|attempt| attempt.started_at);
        let newest = sent_at.and_then(|sent_at| {
            self.metrics
                .commits
                .acknowledged(&delivery.key, sent_at, now)
        });
        if let Some(commit_lag) = newest {
            self.metrics.commit_lag_seconds.observe(commit_lag);
        }
        let Shown {
            installation_id,
            resource_id,
            entry,
            fields,
            secret_names,
            attempt,
            status,
            vercel_id,
            duration_ms,
            ..
        } = Shown::of(delivery);
        let state = advanced.map_or("lost", |advanced| advanced.state.name());
        let what: FieldSet = claimed.patch.fields();
        info!(
            event = "delivery.acknowledged",
            installation_id,
            resource_id,
            entry,
            %fields,
            %secret_names,
            attempt,
            status,
            vercel_id,
            duration_ms,
            lag_ms = millis(lag),
            state,
            "Delivered {what} for {}",
            delivery.key
        );
    }
}

/// A failure that the outage's own two lines speak of.
const fn is_part_of_outage(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Unreachable | Outcome::Lost | Outcome::Failed
    )
}

struct Shown<'a> {
    installation_id: &'a str,
    resource_id: &'a str,
    entry: i64,
    fields: JsonList,
    secret_names: JsonList,
    attempt: u32,
    status: Option<u16>,
    error_code: &'a str,
    error: &'a str,
    vercel_id: &'a str,
    duration_ms: u64,
}

impl<'a> Shown<'a> {
    fn of(delivery: &'a Delivery) -> Self {
        let (installation_id, resource_id) = ids(delivery);
        let claimed = delivery.claimed.as_deref();
        let attempt = delivery.attempt.as_ref();
        let names: Vec<&str> = claimed
            .into_iter()
            .flat_map(|claimed| claimed.patch.secret_names())
            .map(|name| name.as_str())
            .collect();
        let fields: Vec<&str> = claimed
            .into_iter()
            .flat_map(|claimed| claimed.patch.fields().iter().collect::<Vec<_>>())
            .map(|field| field.wire_name())
            .collect();
        Self {
            installation_id,
            resource_id,
            entry: claimed.map_or(0, |claimed| claimed.entry_id.0),
            fields: JsonList::new(fields),
            secret_names: JsonList::new(names),
            attempt: claimed.map_or(0, |claimed| claimed.attempt),
            status: attempt.and_then(|attempt| attempt.status),
            error_code: attempt
                .and_then(|attempt| attempt.error_code.as_deref())
                .unwrap_or("none"),
            error: delivery
                .problem
                .as_deref()
                .or_else(|| attempt.and_then(|attempt| attempt.message.as_deref()))
                .unwrap_or_default(),
            vercel_id: attempt
                .and_then(|attempt| attempt.vercel_id.as_deref())
                .unwrap_or_default(),
            duration_ms: attempt.map_or(0, |attempt| {
                millis(attempt.ended_at.since(attempt.started_at))
            }),
        }
    }
}

fn line_retrying(delivery: &Delivery, outcome: &Outcome, advanced: Advanced, now: Timestamp) {
    let Shown {
        installation_id,
        resource_id,
        entry,
        fields,
        secret_names,
        attempt,
        status,
        error_code,
        error,
        vercel_id,
        duration_ms,
    } = Shown::of(delivery);
    let retry_in_ms = millis(advanced.due_at.since(now));
    warn!(
        event = "delivery.retrying",
        installation_id,
        resource_id,
        entry,
        %fields,
        %secret_names,
        attempt,
        status,
        error_code,
        error,
        vercel_id,
        duration_ms,
        outcome = outcome.name(),
        reason = advanced.reason.code(),
        retry_in_ms,
        "Will try {} again: {}",
        delivery.key,
        advanced.reason.sentence()
    );
}

fn line_dead(delivery: &Delivery, advanced: Advanced) {
    let Shown {
        installation_id,
        resource_id,
        entry,
        fields,
        secret_names,
        attempt,
        status,
        error_code,
        error,
        vercel_id,
        duration_ms,
    } = Shown::of(delivery);
    error!(
        event = "delivery.dead",
        installation_id,
        resource_id,
        entry,
        %fields,
        %secret_names,
        attempt,
        status,
        error_code,
        error,
        vercel_id,
        duration_ms,
        reason = advanced.reason.code(),
        "Parked {}: {}",
        delivery.key,
        advanced.reason.sentence()
    );
}

fn line_debug(delivery: &Delivery, event: &'static str, advanced: Advanced, what: &'static str) {
    let (installation_id, resource_id) = ids(delivery);
    debug!(
        event,
        installation_id,
        resource_id,
        reason = advanced.reason.code(),
        "{what} {}",
        delivery.key
    );
}

fn paused(delivery: &Delivery, kind: PauseKind, reason: &str) {
    let Shown {
        installation_id,
        status,
        error_code,
        vercel_id,
        ..
    } = Shown::of(delivery);
    let kind = kind.name();
    error!(
        event = "installation.paused",
        installation_id,
        kind,
        reason,
        status,
        error_code,
        vercel_id,
        "Paused {installation_id}: {reason}; nothing is sent for it until a probe succeeds"
    );
}

fn ids(delivery: &Delivery) -> (&str, &str) {
    (
        delivery.key.installation_id.as_str(),
        delivery.key.resource_id.as_str(),
    )
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
