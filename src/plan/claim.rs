//! Taking an entry for sending: doubt is recorded here, before a request can leave.

use std::time::Duration;

use crate::model::{
    Entry, EntryId, EntryState, Field, FieldSet, InFlight, Lease, LeaseToken, Mode, Patch, Reason,
    Record, ResourceKey, Snapshot, Timestamp,
};
use crate::planted::{Bug, is_planted};

use super::decide::{die, just_after, rests, wait};
use super::diff::{Pending, pending, when};
use super::guard::keep_back;

/// How far in the future a due time may lie before it is taken for the trace of a clock that was set back.
pub const DUE_HORIZON: Duration = Duration::from_secs(20 * 60);

/// A claimed entry: what its holder is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The entry.
    pub entry_id: EntryId,
    /// The resource.
    pub key: ResourceKey,
    /// The patch to send; empty when Vercel is to be asked first ([`Mode::Compare`]).
    pub patch: Patch,
    /// How the request is made.
    pub mode: Mode,
    /// The whole target, to recognise a row that has moved on.
    pub desired: Snapshot,
    /// The proof that goes with the outcome.
    pub token: LeaseToken,
    /// When the claim ends.
    pub lease_expires_at: Timestamp,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// When the change was found.
    pub created_at: Timestamp,
}

/// What claiming did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The entry is leased and its patch in doubt: send it.
    Claimed(Box<Claimed>),
    /// Nothing to do now: it is not waiting, not due, leased to another, or waits for a late application.
    NotNow,
    /// Nothing is left to send: the entry was closed.
    Closed(Box<Entry>),
}

/// Claims a record's entry if it is due at `now`.
///
/// A lease that has expired is taken over: its attempt counts as one whose answer was lost.
pub fn claim(record: &mut Record, now: Timestamp, lease: &Lease, late_apply: Duration) -> Claim {
    claim_with(record, now, lease, late_apply, SecretsWay::Together)
}

/// How secrets are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SecretsWay {
    /// In one request with the other fields.
    #[default]
    Together,
    /// In a request of their own, before the others: each has its own doubt and its own verdict.
    Alone,
}

/// The same, with the way in which secrets are sent.
pub fn claim_with(
    record: &mut Record,
    now: Timestamp,
    lease: &Lease,
    late_apply: Duration,
    secrets: SecretsWay,
) -> Claim {
    expire(record, now, late_apply);
    // An entry waits until just after a mark: beyond this its due time would not be believed, and it would be claimed in vain for ever.
    let believed = now.plus(DUE_HORIZON).minus(Duration::from_millis(1));
    record.doubt.clamp(believed, now.plus(late_apply));
    let Some(entry) = &record.entry else {
        return Claim::NotNow;
    };
    let is_due = entry.due_at <= now || entry.due_at > now.plus(DUE_HORIZON);
    if entry.state != EntryState::Waiting
        || (entry.lease.is_some() && !is_planted(Bug::TwoInFlight))
        || !is_due
    {
        return Claim::NotNow;
    }
    if entry.mode == Mode::Compare {
        return take(record, Patch::default(), now, lease);
    }
    let (patch, pending) = pending(record, &entry.desired);
    match pending {
        Pending::Nothing if is_planted(Bug::EmptyPatchSent) => take(record, patch, now, lease),
        Pending::Nothing => close_or_die(record),
        Pending::After(until) if until >= now => {
            let entry = record
                .entry
                .as_mut()
                .expect("the entry was looked at above");
            wait(entry, just_after(until), Reason::LateApply);
            Claim::NotNow
        }
        Pending::Now | Pending::After(_) => {
            let patch = match entry.mode {
                Mode::Split => next_alone(record, &patch),
                Mode::Whole if secrets == SecretsWay::Alone => secrets_apart(record, patch),
                Mode::Whole | Mode::Compare => patch,
            };
            take(record, patch, now, lease)
        }
    }
}

/// The field that a split entry sends next: one that is to be sent now before one that only waits for its confirmation,
/// which would be sent again and again meanwhile.
fn next_alone(record: &Record, patch: &Patch) -> Patch {
    let alone = |field| patch.only(field);
    let fields = patch.fields();
    fields
        .iter()
        .map(alone)
        .find(|alone| when(alone, record) == Pending::Now)
        .or_else(|| fields.iter().next().map(alone))
        .unwrap_or_default()
}

/// The secrets of the patch alone, or what else is in it when the secrets only wait for their confirmation.
fn secrets_apart(record: &Record, patch: Patch) -> Patch {
    let secrets = patch.only(Field::Secrets);
    let others = patch.clone().without(FieldSet::EMPTY.with(Field::Secrets));
    if secrets.is_empty() || others.is_empty() {
        return patch;
    }
    let is_due = |patch: &Patch| when(patch, record) == Pending::Now;
    if is_due(&secrets) || !is_due(&others) {
        secrets
    } else {
        others
    }
}

fn take(record: &mut Record, patch: Patch, now: Timestamp, lease: &Lease) -> Claim {
    let doubt_before = record.doubt.clone();
    if !is_planted(Bug::NoDoubtMark) && !is_planted(Bug::DoubtMarkedAfterSending) {
        record.doubt.mark(&patch, &record.acknowledged);
    }
    let key = record.key.clone();
    let entry = record.entry.as_mut().expect("only an open entry is taken");
    let digest = |field: Field| entry.desired.digest(field).map(|digest| (field, digest));
    let claimed = Claimed {
        entry_id: entry.id,
        key,
        patch: patch.clone(),
        mode: entry.mode,
        desired: entry.desired.clone(),
        token: lease.token,
        lease_expires_at: lease.expires_at,
        attempt: entry.attempts + 1,
        created_at: entry.created_at,
    };
    entry.in_flight = Some(InFlight {
        digests: patch.fields().iter().filter_map(digest).collect(),
        patch,
        generation: entry.generation,
        doubt_before,
        claimed_at: now,
    });
    entry.lease = Some(lease.clone());
    Claim::Claimed(Box::new(claimed))
}

fn close_or_die(record: &mut Record) -> Claim {
    let rests = rests(record);
    let Some(entry) = &mut record.entry else {
        return Claim::NotNow;
    };
    if let Some(reason) = rests {
        die(entry, reason);
        return Claim::NotNow;
    }
    entry.state = EntryState::Withdrawn;
    record
        .entry
        .take()
        .map_or(Claim::NotNow, |entry| Claim::Closed(Box::new(entry)))
}

/// Ends a lease that has expired at `now`: its request may have left and may still be applied. True if one was ended.
pub fn expire(record: &mut Record, now: Timestamp, late_apply: Duration) -> bool {
    let expired = record
        .entry
        .as_ref()
        .and_then(|entry| entry.lease.as_ref())
        .is_some_and(|l| l.expires_at <= now);
    expired && abandon(record, now, late_apply)
}

/// Ends a lease whose holder is known to be gone: its request may have left and may still be applied.
pub fn abandon(record: &mut Record, now: Timestamp, late_apply: Duration) -> bool {
    let Some(entry) = &mut record.entry else {
        return false;
    };
    if entry.lease.take().is_none() {
        return false;
    }
    if let Some(in_flight) = entry.in_flight.take()
        && !in_flight.patch.is_empty()
        && !is_planted(Bug::ExpiredLeaseNotLate)
    {
        record.doubt.extend(&in_flight.patch, now.plus(late_apply));
        entry.attempts += 1;
    }
    wait(entry, now, Reason::Backoff);
    keep_back(entry);
    true
}

#[cfg(test)]
mod tests {
    use crate::model::{Fingerprint, Json, Mark, Origin, SecretName, SharedMap};
    use crate::plan::backoff::Backoff;
    use crate::plan::{Advance, Outcome, RetryPolicy, advance};

    use super::*;

    #[test]
    fn a_split_entry_sends_what_is_due_before_what_only_waits_for_a_late_application() {
        let start = Timestamp::from_millis(1_000_000);
        let late_apply = Duration::from_secs(60);
        let value = |text| Json::from_text(text);
        let mut record = Record::new(ResourceKey::new("icfg_1", "res_1").expect("two ids"));
        record.acknowledged.values = SharedMap::from([
            (Field::Status, value("suspended")),
            (Field::Name, value("old")),
        ]);
        let confirmed = Mark {
            uncertain_until: Some(start.plus(late_apply)),
            confirmed: true,
        };
        record.doubt.fields.insert(Field::Status, confirmed);
        let desired = Snapshot {
            values: SharedMap::from([
                (Field::Status, value("suspended")),
                (Field::Name, value("new")),
            ]),
            secrets: None,
        };
        record.entry = Some(Entry::new(desired, Origin::Poll, Mode::Split, start));
        let lease = Lease {
            owner: "w".to_owned(),
            token: LeaseToken(1),
            expires_at: start.plus(late_apply),
        };
        let Claim::Claimed(claimed) = claim(&mut record, start, &lease, late_apply) else {
            panic!("the name is due");
        };
        let fields: Vec<Field> = claimed.patch.fields().iter().collect();
        assert_eq!(fields, [Field::Name]);
    }
    const START: Timestamp = Timestamp::from_millis(1_000_000);
    const LATE: Duration = Duration::from_secs(60);

    /// A status and a secret to be sent, each in a request of its own.
    fn status_and_secret() -> Record {
        let mut record = Record::new(ResourceKey::new("icfg_1", "res_1").expect("two ids"));
        let secret = |byte| {
            let name = SecretName::new("URL").expect("a name");
            SharedMap::from([(name, Fingerprint::from_bytes([byte; 16]))])
        };
        let side = |status, byte| Snapshot {
            values: SharedMap::from([(Field::Status, Json::from_text(status))]),
            secrets: Some(secret(byte)),
        };
        record.acknowledged = side("pending", 1);
        let desired = side("ready", 2);
        record.entry = Some(Entry::new(desired, Origin::Poll, Mode::Whole, START));
        record
    }

    fn claims_alone(record: &mut Record, now: Timestamp) -> Option<Vec<Field>> {
        let lease = Lease {
            owner: "w".to_owned(),
            token: LeaseToken(now.as_millis()),
            expires_at: now.plus(LATE),
        };
        match claim_with(record, now, &lease, LATE, SecretsWay::Alone) {
            Claim::Claimed(claimed) => Some(claimed.patch.fields().iter().collect()),
            Claim::NotNow | Claim::Closed(_) => None,
        }
    }

    fn ends(record: &mut Record, outcome: &Outcome, now: Timestamp) -> Advance {
        let policy = RetryPolicy {
            backoff: Backoff {
                initial: Duration::from_secs(1),
                multiplier: 2.0,
                max: Duration::from_secs(1),
            },
            max_elapsed: Duration::ZERO,
            max_conflicts: 8,
            late_apply: LATE,
        };
        advance(record, outcome, &policy, now, 1.0).expect("in flight")
    }

    #[test]
    fn secrets_with_an_operation_of_their_own_go_first_and_alone() {
        let mut record = status_and_secret();
        assert_eq!(claims_alone(&mut record, START), Some(vec![Field::Secrets]));
        assert!(record.doubt.fields.is_empty(), "the status was not sent");
        let acknowledged = Outcome::Acknowledged { sent_at: START };
        assert_eq!(ends(&mut record, &acknowledged, START).closed, None);
        assert_eq!(claims_alone(&mut record, START), Some(vec![Field::Status]));
        assert!(
            record.doubt.secrets.is_empty(),
            "the secrets were acknowledged"
        );
        let closed = ends(&mut record, &acknowledged, START).closed;
        assert_eq!(closed.map(|entry| entry.state), Some(EntryState::Delivered));
    }

    #[test]
    fn rejected_secrets_leave_the_others_their_own_verdict() {
        let mut record = status_and_secret();
        claims_alone(&mut record, START);
        let rejected = Outcome::Rejected {
            status: 400,
            code: None,
        };
        ends(&mut record, &rejected, START);
        assert_eq!(claims_alone(&mut record, START), Some(vec![Field::Status]));
        let end = ends(
            &mut record,
            &Outcome::Acknowledged { sent_at: START },
            START,
        );
        assert_eq!(
            (end.state, end.reason),
            (EntryState::Dead, Reason::Rejected)
        );
    }

    #[test]
    fn secrets_that_wait_for_a_late_application_do_not_hold_up_the_others() {
        let mut record = status_and_secret();
        claims_alone(&mut record, START);
        let retry_at = ends(&mut record, &Outcome::Lost, START).due_at;
        assert_eq!(
            claims_alone(&mut record, retry_at),
            Some(vec![Field::Secrets])
        );
        let acknowledged = Outcome::Acknowledged { sent_at: retry_at };
        ends(&mut record, &acknowledged, retry_at);
        assert_eq!(
            claims_alone(&mut record, retry_at),
            Some(vec![Field::Status])
        );
        ends(&mut record, &acknowledged, retry_at);
        assert_eq!(claims_alone(&mut record, retry_at), None);
        let later = START.plus(LATE * 2);
        assert_eq!(claims_alone(&mut record, later), Some(vec![Field::Secrets]));
    }
}
