//! What an outcome does to the record: acknowledge, put doubt back or keep it, wait, split, die.

use std::time::Duration;

use crate::model::{
    Doubt, Entry, EntryState, Field, InFlight, Json, Mode, Observed, Origin, Patch, Reason, Record,
    Rejection, Timestamp,
};
use crate::planted::{Bug, is_planted};

use super::backoff::Backoff;
use super::decide::{die, just_after, rests, wait};
use super::diff::{Pending, pending};
use super::guard::keep_back;

/// The settings of `[retry]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// The intervals.
    pub backoff: Backoff,
    /// Give up this long after the change was found; zero: never.
    pub max_elapsed: Duration,
    /// Consecutive 409s before a dead letter.
    pub max_conflicts: u32,
    /// How long a request whose answer was lost may still take effect.
    pub late_apply: Duration,
}

/// How an attempt ended, as dispatch found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A 2xx to a request sent at `sent_at`.
    Acknowledged {
        /// When the request was sent, never when it was answered.
        sent_at: Timestamp,
    },
    /// The connection to Vercel was never opened.
    Unreachable,
    /// The answer was lost or came from a gateway: it may be applied late.
    Lost,
    /// Vercel failed by itself: in doubt, but not late.
    Failed,
    /// 429.
    RateLimited {
        /// When the installation may be tried again.
        until: Timestamp,
    },
    /// 409, and what GET showed then, if it showed anything.
    Conflict {
        /// The resource at Vercel.
        observed: Option<Observed>,
    },
    /// 401 or 403; the token is to be read again or the installation was paused.
    TokenRefused,
    /// The installation is gone at Vercel and was paused.
    InstallationGone,
    /// The resource alone is gone.
    NotFound,
    /// 400 or 422.
    Rejected {
        /// The status of the answer.
        status: u16,
        /// The answer's error code.
        code: Option<String>,
    },
    /// Another answer that no retry can change.
    Refused {
        /// The status of the answer: a 3xx leaves open whether the request had an effect before it was sent elsewhere.
        status: u16,
    },
    /// What Vercel shows, asked before the first push.
    Compared {
        /// The resource at Vercel.
        observed: Observed,
    },
    /// Nothing was sent since the source could not be read.
    SourceUnavailable,
    /// Nothing was sent, or only a 409 came back, and the source's row is no longer what the entry was made from.
    SourceMoved,
    /// Nothing was sent: the lease ran short, or the process stops.
    Released,
}

impl Outcome {
    /// Whether the answer, or its absence, proves that this attempt changed nothing.
    fn changed_nothing(&self) -> bool {
        if is_planted(Bug::ServerErrorProvesNothing) && matches!(self, Self::Failed) {
            return true;
        }
        match self {
            Self::Acknowledged { .. } | Self::Lost | Self::Failed => false,
            Self::Refused { status } => *status >= 400,
            _ => true,
        }
    }

    /// Whether the attempt counts against the entry.
    const fn counts(&self) -> bool {
        matches!(
            self,
            Self::Acknowledged { .. }
                | Self::Lost
                | Self::Failed
                | Self::Conflict { .. }
                | Self::NotFound
                | Self::Rejected { .. }
                | Self::Refused { .. }
        )
    }

    /// The stable name in the attempt's history.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Acknowledged { .. } => "acknowledged",
            Self::Unreachable => "unreachable",
            Self::Lost => "lost",
            Self::Failed => "failed",
            Self::RateLimited { .. } => "rate_limited",
            Self::Conflict { .. } => "conflict",
            Self::TokenRefused => "token_refused",
            Self::InstallationGone => "installation_gone",
            Self::NotFound => "not_found",
            Self::Rejected { .. } => "rejected",
            Self::Refused { .. } => "refused",
            Self::Compared { .. } => "compared",
            Self::SourceUnavailable => "source_unavailable",
            Self::SourceMoved => "source_moved",
            Self::Released => "released",
        }
    }
}

/// What an outcome led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// The state of the entry now.
    pub state: EntryState,
    /// Why it waits or died.
    pub reason: Reason,
    /// When it is due, while it waits.
    pub due_at: Timestamp,
    /// The entry that is no longer open; the record may have a new one that follows it.
    pub closed: Option<Entry>,
}

/// Applies the outcome of the attempt in flight, which ended at `now`; `None` when nothing is in flight.
///
/// The caller has made sure that the lease's token still matches. `jitter` is from 0 to 1.
pub fn advance(
    record: &mut Record,
    outcome: &Outcome,
    policy: &RetryPolicy,
    now: Timestamp,
    jitter: f64,
) -> Option<Advance> {
    let entry = record.entry.as_mut()?;
    let in_flight = entry.in_flight.take()?;
    entry.lease = None;
    entry.attempts += u32::from(outcome.counts());
    if outcome.changed_nothing() {
        record.doubt = in_flight.doubt_before.clone();
        if is_planted(Bug::DoubtClearedBy4xx) && outcome.counts() {
            record.doubt = Doubt::default();
        }
    } else if is_planted(Bug::DoubtMarkedAfterSending) {
        record.doubt.mark(&in_flight.patch, &record.acknowledged);
    }
    let retry = Retry {
        policy,
        now,
        jitter,
    };
    match outcome {
        Outcome::Acknowledged { .. } if is_planted(Bug::NewerTargetAcknowledged) => {
            let desired = entry.desired.clone();
            let (patch, _) = pending(record, &desired);
            acknowledge(record, &patch, now, now);
        }
        Outcome::Acknowledged { .. } if is_planted(Bug::UncertaintyJudgedAtAnswer) => {
            acknowledge(record, &in_flight.patch, now, now);
        }
        Outcome::Acknowledged { sent_at } => acknowledge(record, &in_flight.patch, *sent_at, now),
        Outcome::Lost => {
            if !is_planted(Bug::LostNotLate) {
                record
                    .doubt
                    .extend(&in_flight.patch, now.plus(policy.late_apply));
            }
            retry.back_off(entry, Reason::Backoff);
        }
        Outcome::Failed => retry.back_off(entry, Reason::Backoff),
        Outcome::Unreachable => retry.back_off(entry, Reason::Unreachable),
        Outcome::SourceUnavailable => retry.back_off(entry, Reason::SourceUnavailable),
        // The row that is read again makes it due at once; the wait is for the case that none comes.
        Outcome::SourceMoved => retry.back_off(entry, Reason::SourceMoved),
        Outcome::RateLimited { until } => wait(entry, *until, Reason::RateLimited),
        Outcome::TokenRefused => wait(entry, now, Reason::TokenRefused),
        Outcome::InstallationGone => wait(entry, now, Reason::InstallationGone),
        Outcome::Released => wait(entry, now, Reason::Due),
        Outcome::NotFound => die(entry, Reason::NotFound),
        Outcome::Refused { .. } => die(entry, Reason::Refused),
        Outcome::Rejected { status, code } => {
            reject(record, &in_flight, *status, code.as_deref(), now)
        }
        Outcome::Compared { observed } => compared(record, observed, now),
        Outcome::Conflict { observed } => {
            conflict(record, observed.as_ref(), in_flight.claimed_at, retry);
        }
    }
    Some(conclude(record, outcome, in_flight.generation, now))
}

struct Retry<'a> {
    policy: &'a RetryPolicy,
    now: Timestamp,
    jitter: f64,
}

impl Retry<'_> {
    fn back_off(&self, entry: &mut Entry, reason: Reason) {
        entry.failures = entry.failures.saturating_add(1);
        let gave_up = !self.policy.max_elapsed.is_zero()
            && self.now.since(entry.created_at) >= self.policy.max_elapsed
            && matches!(reason, Reason::Backoff | Reason::Conflict);
        if gave_up {
            die(entry, Reason::Expired);
        } else {
            wait(
                entry,
                self.now
                    .plus(self.policy.backoff.interval(entry.failures, self.jitter)),
                reason,
            );
        }
    }
}

fn acknowledge(record: &mut Record, patch: &Patch, sent_at: Timestamp, now: Timestamp) {
    patch.apply_to(&mut record.acknowledged);
    record.doubt.settle(patch, sent_at);
    record.acknowledged_at = Some(now);
    if let Some(entry) = &mut record.entry {
        entry.failures = 0;
        entry.conflicts = 0;
        wait(entry, now, Reason::Due);
    }
}

fn reject(
    record: &mut Record,
    in_flight: &InFlight,
    status: u16,
    code: Option<&str>,
    now: Timestamp,
) {
    let Some(entry) = &mut record.entry else {
        return;
    };
    entry.failures = 0;
    entry.conflicts = 0;
    wait(entry, now, Reason::Due);
    let fields: Vec<Field> = in_flight.patch.fields().iter().collect();
    if let [field] = fields[..] {
        if let Some(digest) = in_flight.digests.get(&field) {
            // If the source has moved on meanwhile the digest matches nothing and the newer value is sent.
            let rejection = Rejection {
                digest: *digest,
                status,
                code: code.map(str::to_owned),
            };
            entry.rejected.insert(field, rejection);
        }
        let desired = &entry.desired;
        entry
            .rejected
            .retain(|field, rejection| desired.digest(*field) == Some(rejection.digest));
    } else if is_planted(Bug::RejectedFieldBlocksOthers) {
        die(entry, Reason::Rejected);
    } else {
        entry.mode = Mode::Split;
    }
}

fn compared(record: &mut Record, observed: &Observed, now: Timestamp) {
    let Some(entry) = &mut record.entry else {
        return;
    };
    entry.mode = Mode::Whole;
    wait(entry, now, Reason::Due);
    for (field, value) in &entry.desired.values {
        if observed.shows(*field, value) {
            record.acknowledged.values.insert(*field, value.clone());
        } else if record.acknowledged.values.contains_key(field)
            && is_otherwise(observed, *field, value)
        {
            // Vercel acknowledged it once and shows something else now.
            record.doubt.fields.entry(*field).or_default();
        }
    }
}

/// Whether Vercel visibly holds something else; of a plan only its id can be seen.
fn is_otherwise(observed: &Observed, field: Field, desired: &Json) -> bool {
    if field == Field::BillingPlan {
        let shown = observed.billing_plan_id.as_deref();
        shown.is_some() && shown != desired.to_value().get("id").and_then(|id| id.as_str())
    } else {
        field.is_observable()
    }
}

/// `asked_after` is an instant before the GET: a lost request may have been applied since Vercel was looked at.
fn conflict(
    record: &mut Record,
    observed: Option<&Observed>,
    asked_after: Timestamp,
    retry: Retry<'_>,
) {
    let Some(entry) = &record.entry else { return };
    let (patch, _) = pending(record, &entry.desired);
    let agrees = observed.is_some_and(|observed| {
        (patch.secrets.is_none() || is_planted(Bug::ConflictAcknowledgesUnseen))
            && patch
                .values
                .iter()
                .all(|(field, value)| observed.shows(*field, value))
    });
    if agrees && !patch.is_empty() {
        return acknowledge(record, &patch, asked_after, retry.now);
    }
    let Some(entry) = &mut record.entry else {
        return;
    };
    entry.conflicts = entry.conflicts.saturating_add(1);
    if entry.conflicts >= retry.policy.max_conflicts {
        die(entry, Reason::ConflictLimit);
    } else {
        retry.back_off(entry, Reason::Conflict);
    }
}

/// Closes the entry when nothing is left, makes the next one when the target changed while the request was in flight.
fn conclude(record: &mut Record, outcome: &Outcome, generation: u32, now: Timestamp) -> Advance {
    let Some(entry) = &record.entry else {
        unreachable!("an attempt in flight belongs to an open entry")
    };
    let mut closed = None;
    let moved_on = entry.generation != generation;
    let acknowledged = matches!(outcome, Outcome::Acknowledged { .. });
    let (_, pending) = pending(record, &entry.desired);
    let rests = rests(record);
    let entry = record.entry.as_mut().expect("it was there a line above");
    if moved_on && entry.state == EntryState::Dead {
        // The answer was to a value that is no longer desired: the newer one has its own chance, as if it had come after.
        entry.state = EntryState::Waiting;
        entry.conflicts = 0;
        wait(entry, now, Reason::Due);
    }
    match pending {
        Pending::Nothing => match rests {
            Some(reason) => die(entry, reason),
            None => {
                let settled = matches!(
                    outcome,
                    Outcome::Acknowledged { .. }
                        | Outcome::Compared { .. }
                        | Outcome::Conflict { .. }
                );
                entry.state = if settled {
                    EntryState::Delivered
                } else {
                    EntryState::Withdrawn
                };
            }
        },
        Pending::After(until)
            if entry.state == EntryState::Waiting && entry.reason == Reason::Due =>
        {
            wait(entry, just_after(until), Reason::LateApply);
        }
        Pending::Now if acknowledged && moved_on && is_planted(Bug::FollowupForgotten) => {
            entry.state = EntryState::Delivered;
        }
        Pending::Now if acknowledged && moved_on => {
            let rejected = std::mem::take(&mut entry.rejected);
            let next = Entry {
                rejected,
                hold: entry.hold.take(),
                ..Entry::new(entry.desired.clone(), Origin::Followup, Mode::Whole, now)
            };
            entry.state = EntryState::Delivered;
            closed = record.entry.replace(next);
        }
        Pending::Now | Pending::After(_) => {}
    }
    if let Some(entry) = &mut record.entry {
        keep_back(entry);
    }
    if record
        .entry
        .as_ref()
        .is_some_and(|entry| !entry.state.is_open())
    {
        closed = record.entry.take();
    }
    let shown = closed
        .as_ref()
        .or(record.entry.as_ref())
        .expect("an entry is open or was closed just now");
    Advance {
        state: shown.state,
        reason: shown.reason,
        due_at: shown.due_at,
        closed: closed.clone(),
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{
        Entry, Lease, LeaseToken, Mark, Mode, Origin, ResourceKey, SharedMap, Snapshot,
    };
    use crate::plan::claim;

    use super::*;

    #[test]
    fn outcomes_keep_the_names_that_histories_and_metrics_show() {
        let until = Timestamp::from_millis(0);
        let rejected = Outcome::Rejected {
            status: 400,
            code: None,
        };
        let names: Vec<&str> = [
            Outcome::Acknowledged { sent_at: until },
            Outcome::Unreachable,
            Outcome::Lost,
            Outcome::Failed,
            Outcome::RateLimited { until },
            Outcome::Conflict { observed: None },
            Outcome::TokenRefused,
            Outcome::InstallationGone,
            Outcome::NotFound,
            rejected,
            Outcome::Refused { status: 405 },
            Outcome::SourceUnavailable,
            Outcome::SourceMoved,
            Outcome::Released,
        ]
        .iter()
        .map(Outcome::name)
        .collect();
        let expected = "acknowledged unreachable lost failed rate_limited conflict token_refused installation_gone \
                        not_found rejected refused source_unavailable source_moved released";
        assert_eq!(names.join(" "), expected);
    }

    const SECOND: Duration = Duration::from_secs(1);
    const START: Timestamp = Timestamp::from_millis(1_000_000);
    const POLICY: RetryPolicy = RetryPolicy {
        backoff: Backoff {
            initial: SECOND,
            multiplier: 2.0,
            max: SECOND,
        },
        max_elapsed: Duration::ZERO,
        max_conflicts: 8,
        late_apply: Duration::from_secs(60),
    };

    /// `ready` was acknowledged and is desired; a lost request may change the status until two seconds after the start.
    fn in_doubt() -> Record {
        let status = |text| SharedMap::from([(Field::Status, Json::from_text(text))]);
        let mut record = Record::new(ResourceKey::new("icfg_1", "res_1").expect("two ids"));
        record.acknowledged.values = status("ready");
        let mark = Mark {
            uncertain_until: Some(START.plus(2 * SECOND)),
            confirmed: false,
        };
        record.doubt.fields.insert(Field::Status, mark);
        let desired = Snapshot {
            values: status("ready"),
            secrets: None,
        };
        record.entry = Some(Entry::new(desired, Origin::Poll, Mode::Whole, START));
        record
    }

    #[test]
    fn what_get_showed_while_a_lost_request_could_be_applied_settles_nothing() {
        let mut record = in_doubt();
        let lease = Lease {
            owner: "w".to_owned(),
            token: LeaseToken(1),
            expires_at: START.plus(60 * SECOND),
        };
        claim(&mut record, START, &lease, POLICY.late_apply);
        let outcome = Outcome::Conflict {
            observed: Some(Observed {
                values: record.acknowledged.values.clone(),
                billing_plan_id: None,
            }),
        };
        // The lost request may be applied between the GET, within the first second, and this.
        let recorded_at = START.plus(5 * SECOND);
        let advance =
            advance(&mut record, &outcome, &POLICY, recorded_at, 1.0).expect("it was in flight");
        assert_eq!(advance.closed, None);
        assert!(record.doubt.fields.contains_key(&Field::Status));
        assert_eq!(advance.reason, Reason::LateApply);
    }
}
