//! What is left to send, and when.

use crate::model::{Doubt, Field, FieldSet, Patch, Record, SecretsPatch, Snapshot, Timestamp};
use crate::planted::{Bug, is_planted};

/// The smallest patch that turns `acknowledged` into `desired`: the managed fields that differ, and those in doubt.
///
/// Secrets are sent partially when none was removed, and as the complete array when one was, or when Vercel's set is not
/// known. A secret in doubt that is no longer desired may still be held by Vercel, so it counts as removed.
#[must_use]
pub fn diff(desired: &Snapshot, acknowledged: &Snapshot, doubt: &Doubt) -> Patch {
    let values = desired
        .values
        .iter()
        .filter(|(field, value)| {
            acknowledged.values.get(field) != Some(value)
                || (doubt.fields.contains_key(field) && !is_planted(Bug::DoubtNotSent))
                || is_planted(Bug::WholeRowSent)
        })
        .map(|(field, value)| (*field, value.clone()))
        .collect();
    Patch {
        values,
        secrets: diff_secrets(desired, acknowledged, doubt),
    }
}

fn diff_secrets(
    desired: &Snapshot,
    acknowledged: &Snapshot,
    doubt: &Doubt,
) -> Option<SecretsPatch> {
    let desired = desired.secrets.as_ref()?;
    let Some(held) = &acknowledged.secrets else {
        return Some(SecretsPatch::Complete(desired.clone()));
    };
    let removed = held
        .keys()
        .chain(
            doubt
                .secrets
                .keys()
                .filter(|_| !is_planted(Bug::DoubtfulSecretForgotten)),
        )
        .any(|name| !desired.contains_key(name));
    if removed && !is_planted(Bug::PartialAfterRemoval) {
        return Some(SecretsPatch::Complete(desired.clone()));
    }
    let changed: std::collections::BTreeMap<_, _> = desired
        .iter()
        .filter(|(name, fingerprint)| {
            held.get(name) != Some(fingerprint) || doubt.secrets.contains_key(name)
        })
        .map(|(name, fingerprint)| (name.clone(), *fingerprint))
        .collect();
    (!changed.is_empty()).then_some(SecretsPatch::Partial(changed))
}

/// When an entry's remaining difference is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pending {
    /// Nothing differs and nothing is in doubt.
    Nothing,
    /// As soon as possible.
    Now,
    /// Everything left is confirmed already and only waits until a lost request can no longer take effect.
    After(Timestamp),
}

/// What is still to be sent for `desired`, leaving out what a person dismissed and what Vercel rejected.
#[must_use]
pub fn pending(record: &Record, desired: &Snapshot) -> (Patch, Pending) {
    let patch =
        diff(desired, &record.acknowledged, &record.doubt).without(left_out(record, desired));
    let pending = when(&patch, record);
    (patch, pending)
}

/// The fields whose desired value was dismissed by a person or rejected by Vercel and has not changed since.
#[must_use]
pub fn left_out(record: &Record, desired: &Snapshot) -> FieldSet {
    let dismissed = record
        .dismissed
        .iter()
        .map(|(field, digest)| (*field, *digest));
    let rejected = record
        .entry
        .iter()
        .flat_map(|entry| entry.rejected.iter().map(|(field, r)| (*field, r.digest)));
    dismissed
        .chain(rejected)
        .filter(|(field, digest)| {
            desired.digest(*field) == Some(*digest) || is_planted(Bug::RejectionOutlivesValue)
        })
        .map(|(f, _)| f)
        .collect()
}

/// When a part of what is left is to be sent.
pub(super) fn when(patch: &Patch, record: &Record) -> Pending {
    if patch.is_empty() {
        return Pending::Nothing;
    }
    let Record {
        acknowledged,
        doubt,
        ..
    } = record;
    let differs = patch
        .values
        .iter()
        .any(|(field, value)| acknowledged.values.get(field) != Some(value))
        || patch
            .secrets
            .as_ref()
            .is_some_and(|secrets| secrets_differ(secrets, acknowledged));
    let fields = patch
        .values
        .keys()
        .filter_map(|field| doubt.fields.get(field));
    // A complete array settles every name in doubt, also those that it no longer has.
    let secrets = doubt
        .secrets
        .values()
        .filter(|_| patch.fields().contains(Field::Secrets));
    let mut after = Timestamp::EPOCH;
    for mark in fields.chain(secrets) {
        match mark.uncertain_until {
            Some(until) if mark.confirmed => after = after.max(until),
            _ => return Pending::Now,
        }
    }
    if differs {
        Pending::Now
    } else {
        Pending::After(after)
    }
}

fn secrets_differ(secrets: &SecretsPatch, acknowledged: &Snapshot) -> bool {
    let Some(held) = &acknowledged.secrets else {
        return true;
    };
    match secrets {
        SecretsPatch::Complete(named) => named != held,
        SecretsPatch::Partial(named) => named
            .iter()
            .any(|(name, fingerprint)| held.get(name) != Some(fingerprint)),
    }
}
