//! What a row that was read means for its resource: nothing, a new entry, a newer target for the open one, or its withdrawal.

use crate::model::record::Missing;
use crate::model::{
    Doubt, Entry, EntryState, Field, Json, Mode, Origin, Reason, Record, RowHash, Snapshot,
    Timestamp,
};
use crate::planted::{Bug, is_planted};

use super::diff::{Pending, pending};

/// What to do with a resource that was never seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FirstSight {
    /// Push everything that is managed.
    #[default]
    Push,
    /// Ask Vercel first and push only what differs or cannot be seen.
    Compare,
    /// Take the source's side as acknowledged without sending.
    Adopt,
}

/// The settings that decide what a row means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// `[reconcile] first_sight`.
    pub first_sight: FirstSight,
}

/// What a decision did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Nothing differs and nothing was open.
    InSync,
    /// The open entry already has this target.
    Unchanged,
    /// A new entry was made.
    Enqueued,
    /// The open entry has a newer target.
    Folded,
    /// The open entry was closed: the source went back to what Vercel has.
    Withdrawn,
    /// The row was taken as acknowledged.
    Adopted,
}

/// A decision and the entry that it closed, if any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// What was done.
    pub decision: Decision,
    /// The entry that is no longer open.
    pub closed: Option<Entry>,
}

/// Brings a record up to date with a row that desires `desired`.
pub fn decide(
    record: &mut Record,
    desired: &Snapshot,
    row_hash: RowHash,
    origin: Origin,
    policy: Policy,
    now: Timestamp,
) -> Decided {
    let first_sight = record.is_first_sight();
    record.row_hash = Some(row_hash);
    if origin == Origin::Missing {
        // It desires one field, and says nothing of the others.
        record
            .dismissed
            .retain(|field, digest| desired.digest(*field).is_none_or(|now| now == *digest));
    } else {
        record.missing = None;
        record
            .dismissed
            .retain(|field, digest| desired.digest(*field) == Some(*digest));
    }
    let open = |decision| Decided {
        decision,
        closed: None,
    };
    if first_sight && policy.first_sight == FirstSight::Adopt {
        record.acknowledged = desired.clone();
        return open(Decision::Adopted);
    }
    let Some(entry) = &mut record.entry else {
        let (_, pending) = pending(record, desired);
        let due_at = match pending {
            Pending::Nothing => return open(Decision::InSync),
            Pending::Now => now,
            Pending::After(until) => just_after(until),
        };
        let compare = first_sight && policy.first_sight == FirstSight::Compare;
        let mode = if compare { Mode::Compare } else { Mode::Whole };
        record.entry = Some(Entry {
            due_at,
            ..Entry::new(desired.clone(), origin, mode, now)
        });
        return open(Decision::Enqueued);
    };
    if entry.desired == *desired && entry.reason != Reason::RowGone {
        if entry.reason == Reason::SourceMoved && entry.in_flight.is_none() {
            wait(entry, now, Reason::Due);
        }
        return open(Decision::Unchanged);
    }
    entry.desired = desired.clone();
    entry.generation += 1;
    entry.rejected.retain(|field, rejection| {
        desired.digest(*field) == Some(rejection.digest) || is_planted(Bug::RejectionOutlivesValue)
    });
    if entry.in_flight.is_some() {
        // The outcome of what is in flight decides what is left.
        return open(Decision::Folded);
    }
    retargeted(record, now)
}

/// Records that the source has no row for the resource, as `sweeps` further sweeps found (0: it was read by itself); true
/// when it had one until now.
pub fn missing(record: &mut Record, sweeps: u32, now: Timestamp) -> bool {
    let newly = record.missing.is_none();
    let (since, before) = record.missing.map_or((now, 0), |m| (m.since, m.sweeps));
    record.missing = Some(Missing {
        since,
        sweeps: before.saturating_add(sweeps),
    });
    newly
}

/// Takes the secrets out of an open entry whose row is known to be gone: their values can no longer be read, and a row that is
/// not there desires none. What else the entry was to send is sent. `None` when nothing changes.
///
/// Secrets that Vercel may hold otherwise stay in doubt: an entry that has nothing else left to send becomes a dead letter
/// ([`Reason::RowGone`]), which opens by itself when the row returns.
pub fn bereave(record: &mut Record, now: Timestamp) -> Option<Decided> {
    let entry = record.entry.as_mut()?;
    if entry.in_flight.is_some() {
        // Its next claim finds no row, and it is looked at again.
        return None;
    }
    entry.desired.secrets.take()?;
    entry.rejected.remove(&Field::Secrets);
    entry.generation += 1;
    Some(retargeted(record, now))
}

/// Whether a resource without a row has secrets in doubt that only its row could settle.
fn mourns(record: &Record, desired: &Snapshot) -> bool {
    let Doubt { fields, secrets } = &record.doubt;
    let in_doubt = !secrets.is_empty() || fields.contains_key(&Field::Secrets);
    record.missing.is_some() && in_doubt && desired.secrets.is_none() && !is_uninstallation(desired)
}

/// Why an entry with nothing left to send is a dead letter; `None` when it can be closed.
pub(super) fn rests(record: &Record) -> Option<Reason> {
    let entry = record.entry.as_ref()?;
    if !entry.rejected.is_empty() {
        Some(Reason::Rejected)
    } else if mourns(record, &entry.desired) {
        Some(Reason::RowGone)
    } else {
        None
    }
}

/// What a missing resource desires when missing ones are uninstalled: its status `uninstalled`, and nothing else.
///
/// `None` unless one sweep found it missing by `until`, the end of the last complete one, and another since; and unless its
/// status is known to be managed.
#[must_use]
pub fn uninstalled(record: &Record, until: Timestamp) -> Option<Snapshot> {
    let missing = record.missing?;
    if missing.sweeps < 2 || missing.since > until {
        return None;
    }
    // What Vercel never heard of needs no uninstallation.
    record.acknowledged.values.get(&Field::Status)?;
    Some(uninstallation())
}

/// What a resource desires whose uninstallation is open, once its row is there again but cannot be used: the status that Vercel
/// acknowledged.
#[must_use]
pub fn reinstalled(record: &Record) -> Option<Snapshot> {
    record
        .entry
        .as_ref()
        .filter(|entry| is_uninstallation(&entry.desired))?;
    let status = record.acknowledged.values.get(&Field::Status)?;
    Some(Snapshot {
        values: [(Field::Status, status.clone())].into(),
        secrets: None,
    })
}

/// Whether this is what a missing resource desires.
#[must_use]
pub fn is_uninstallation(desired: &Snapshot) -> bool {
    *desired == uninstallation()
}

fn uninstallation() -> Snapshot {
    Snapshot {
        values: [(Field::Status, Json::from_text("uninstalled"))].into(),
        secrets: None,
    }
}

fn retargeted(record: &mut Record, now: Timestamp) -> Decided {
    let closed = retarget(record, now);
    let decision = match closed {
        Some(_) => Decision::Withdrawn,
        None => Decision::Folded,
    };
    Decided { decision, closed }
}

/// Decides what an open entry that is not in flight does after its target changed; returns it when it is to be closed.
fn retarget(record: &mut Record, now: Timestamp) -> Option<Entry> {
    let entry = record.entry.as_ref()?;
    let (_, pending) = pending(record, &entry.desired);
    let back = is_planted(Bug::WithdrawnInDoubt) && record.acknowledged == entry.desired;
    let pending = if back { Pending::Nothing } else { pending };
    let rests = rests(record);
    let entry = record.entry.as_mut()?;
    let due_at = match pending {
        Pending::Nothing if is_planted(Bug::EmptyPatchSent) => now,
        Pending::Nothing => match rests {
            None => {
                entry.state = EntryState::Withdrawn;
                return record.entry.take();
            }
            Some(reason) => {
                die(entry, reason);
                return None;
            }
        },
        Pending::Now => now,
        Pending::After(until) => just_after(until),
    };
    match entry.state {
        EntryState::Held => {}
        EntryState::Dead => {
            entry.state = EntryState::Waiting;
            entry.failures = 0;
            entry.conflicts = 0;
            wait(entry, due_at, Reason::Due);
        }
        _ if is_waiting_for_others(entry.reason) => {}
        _ => wait(entry, due_at, Reason::Due),
    }
    if entry.mode == Mode::Split && entry.rejected.is_empty() {
        entry.mode = Mode::Whole;
    }
    None
}

/// Reasons whose wait a newer value does not shorten: it would meet the same answer.
const fn is_waiting_for_others(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Backoff
            | Reason::RateLimited
            | Reason::Conflict
            | Reason::TokenRefused
            | Reason::InstallationGone
            | Reason::SourceUnavailable
            | Reason::Unreachable
    )
}

/// The first instant at which a request counts as sent after `until`.
#[must_use]
pub fn just_after(until: Timestamp) -> Timestamp {
    Timestamp::from_millis(until.as_millis().saturating_add(1))
}

pub(super) fn wait(entry: &mut Entry, due_at: Timestamp, reason: Reason) {
    entry.due_at = due_at;
    entry.reason = reason;
}

pub(super) fn die(entry: &mut Entry, reason: Reason) {
    entry.state = EntryState::Dead;
    entry.reason = reason;
}

#[cfg(test)]
mod tests {
    use crate::model::SecretsPatch;
    use crate::plan::Outcome;
    use crate::plan::claim::Claim;
    use crate::plan::fixture::{LATE, Resource, START, seconds, secret_name, sent, snapshot};

    use super::*;

    /// The row is found to be gone.
    fn vanishes(resource: &mut Resource, now: Timestamp) -> Option<Decided> {
        missing(&mut resource.record, 1, now);
        bereave(&mut resource.record, now)
    }

    #[test]
    fn a_row_that_is_gone_takes_back_the_secrets_that_were_not_sent() {
        let mut resource = Resource::acknowledged("status=ready $URL=1");
        resource.desires("status=ready $URL=2", START);
        let decided = vanishes(&mut resource, seconds(1)).expect("the target changes");
        assert_eq!(decided.decision, Decision::Withdrawn);
        assert_eq!(resource.record.entry, None);
        assert_eq!(vanishes(&mut resource, seconds(2)), None);
        // The same row is there again.
        resource.desires("status=ready $URL=2", seconds(3));
        let patch = resource.acknowledges(seconds(3));
        assert_eq!(sent(&patch), snapshot("$URL=2"));
    }

    #[test]
    fn what_else_was_to_be_sent_for_a_row_that_is_gone_is_sent() {
        let mut resource = Resource::acknowledged("status=ready $URL=1");
        resource.desires("status=suspended $URL=2", START);
        resource.attempts(&Outcome::SourceMoved, START);
        let decided = vanishes(&mut resource, seconds(1)).expect("the target changes");
        assert_eq!(decided.decision, Decision::Folded);
        let patch = resource.acknowledges(seconds(1));
        assert_eq!(sent(&patch), snapshot("status=suspended"));
        assert_eq!(resource.record.entry, None);
    }

    #[test]
    fn secrets_in_doubt_of_a_row_that_is_gone_are_a_dead_letter_until_it_returns() {
        let mut resource = Resource::acknowledged("status=ready $URL=1");
        resource.desires("status=suspended $URL=2", START);
        resource.attempts(&Outcome::Lost, START);
        vanishes(&mut resource, seconds(1)).expect("the target changes");
        // The status can still be settled, once before and once after the lost request is out of reach.
        let patch = resource.acknowledges(resource.due());
        assert_eq!(sent(&patch), snapshot("status=suspended"));
        assert_eq!(resource.state(), EntryState::Waiting);
        let late = START.plus(LATE * 2);
        let patch = resource.acknowledges(late);
        assert_eq!(sent(&patch), snapshot("status=suspended"));
        assert_eq!(
            (resource.state(), resource.entry().reason),
            (EntryState::Dead, Reason::RowGone)
        );
        assert_eq!(resource.try_claim(late), Claim::NotNow);
        // Vercel may have taken the secret: the old value, too, has to be sent.
        resource.desires("status=suspended $URL=1", late);
        let claimed = resource.claims(late);
        let Some(SecretsPatch::Partial(named)) = claimed.patch.secrets else {
            panic!("one secret is in doubt: {:?}", claimed.patch);
        };
        assert!(named.contains_key(&secret_name("URL")));
    }

    #[test]
    fn a_row_that_returns_without_secrets_closes_its_dead_letter() {
        let mut resource = Resource::acknowledged("status=ready $URL=1");
        resource.desires("status=ready $URL=2", START);
        resource.attempts(&Outcome::Lost, START);
        vanishes(&mut resource, seconds(1)).expect("the target changes");
        assert_eq!(resource.entry().reason, Reason::RowGone);
        assert_eq!(
            resource.desires("status=ready", seconds(2)),
            Decision::Withdrawn
        );
        assert_eq!(resource.record.entry, None);
    }

    #[test]
    fn what_is_in_flight_when_its_row_is_gone_ends_first() {
        let mut resource = Resource::acknowledged("status=ready $URL=1");
        resource.desires("status=ready $URL=2", START);
        resource.claims(START);
        assert_eq!(vanishes(&mut resource, seconds(1)), None);
        resource.ends(&Outcome::Acknowledged { sent_at: START }, seconds(2));
        assert_eq!(resource.record.entry, None);
    }

    #[test]
    fn an_uninstallation_does_not_wait_for_secrets_in_doubt() {
        let mut resource = Resource::acknowledged("status=ready $URL=1");
        resource.desires("status=ready $URL=2", START);
        resource.attempts(&Outcome::Lost, START);
        vanishes(&mut resource, seconds(1)).expect("the target changes");
        let hash = resource.record.row_hash.expect("it had a row");
        let desired = uninstallation();
        let policy = Policy::default();
        let now = seconds(2);
        decide(
            &mut resource.record,
            &desired,
            hash,
            Origin::Missing,
            policy,
            now,
        );
        resource.acknowledges(now);
        assert_eq!(resource.record.entry, None);
    }
}
