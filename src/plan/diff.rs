//! What is left to send, and when.

use crate::model::{
    Doubt, Field, FieldSet, Patch, Record, SecretsPatch, SharedMap, Snapshot, Timestamp,
};
use crate::planted::{Bug, is_planted};

/// The smallest patch that turns `acknowledged` into `desired`: the managed fields that differ, and those in doubt.
///
/// Secrets are sent partially when none was removed, and as the complete array when one was, or when Vercel's set is not
/// known or a complete array is in doubt. A secret in doubt that is no longer desired may still be held by Vercel, so it counts
/// as removed.
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
    let removed = removed || doubt.fields.contains_key(&Field::Secrets);
    if removed && !is_planted(Bug::PartialAfterRemoval) {
        return Some(SecretsPatch::Complete(desired.clone()));
    }
    let changed: SharedMap<_, _> = desired
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
    let fields = patch.fields();
    let fields = fields.iter().filter_map(|field| doubt.fields.get(&field));
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixture::*;
    use super::*;

    /// `acknowledged` with `desired` in every field that is managed.
    fn expected(acknowledged: &Snapshot, desired: &Snapshot) -> Snapshot {
        let mut expected = acknowledged.clone();
        expected.values.extend(desired.values.clone());
        if desired.secrets.is_some() {
            expected.secrets.clone_from(&desired.secrets);
        }
        expected
    }

    /// Doubt over the items of a patch that was sent to a resource.
    fn doubt_over(sent: &Snapshot, acknowledged: &Snapshot) -> Doubt {
        let mut doubt = Doubt::default();
        let patch = diff(sent, acknowledged, &doubt);
        doubt.mark(&patch, acknowledged);
        doubt
    }

    #[test]
    fn secrets_are_partial_unless_one_was_removed_or_the_set_is_unknown() {
        let cases = [
            ("$A=1", "$A=1", None),
            ("$A=1 $B=1", "$A=2 $B=1", Some(("partial", "$A=2"))),
            ("$A=1", "$A=1 $B=1", Some(("partial", "$B=1"))),
            ("$A=1 $B=1", "$A=1", Some(("complete", "$A=1"))),
            ("$A=1 $B=1", "$A=2", Some(("complete", "$A=2"))),
            ("$A=1", "$", Some(("complete", "$"))),
            ("", "$A=1", Some(("complete", "$A=1"))),
            ("", "$", Some(("complete", "$"))),
            ("$A=1", "", None),
        ];
        for (acknowledged, desired, expected) in cases {
            let patch = diff(
                &snapshot(desired),
                &snapshot(acknowledged),
                &Doubt::default(),
            );
            let kind = patch.secrets.as_ref().map(|secrets| match secrets {
                SecretsPatch::Complete(named) => ("complete", named.clone()),
                SecretsPatch::Partial(named) => ("partial", named.clone()),
            });
            let expected = expected.map(|(kind, text)| {
                let named = snapshot(text).secrets.expect("a set");
                (kind, named)
            });
            assert_eq!(kind, expected, "{acknowledged} → {desired}");
        }
    }

    #[test]
    fn dismissed_and_rejected_values_are_left_out_until_they_change() {
        let mut resource = Resource::acknowledged("status=ready name=db");
        let desired = snapshot("status=suspended name=new");
        let digest = desired.digest(Field::Name).expect("managed");
        resource.record.dismissed.insert(Field::Name, digest);
        let (patch, _) = pending(&resource.record, &desired);
        assert_eq!(sent(&patch), snapshot("status=suspended"));
        let (patch, _) = pending(&resource.record, &snapshot("status=suspended name=newer"));
        assert_eq!(sent(&patch), snapshot("status=suspended name=newer"));
    }

    proptest! {
        #[test]
        fn applying_the_patch_gives_the_desired_side(
            desired in any_snapshot(), acknowledged in any_snapshot(), other in any_snapshot(),
        ) {
            let doubt = doubt_over(&other, &acknowledged);
            let patch = diff(&desired, &acknowledged, &doubt);
            let mut applied = acknowledged.clone();
            patch.apply_to(&mut applied);
            prop_assert_eq!(applied, expected(&acknowledged, &desired));
        }

        #[test]
        fn whatever_the_doubtful_attempt_did_the_patch_ends_at_the_desired_side(
            desired in any_snapshot(), acknowledged in any_snapshot(), other in any_snapshot(),
        ) {
            let lost = diff(&other, &acknowledged, &Doubt::default());
            let doubt = doubt_over(&other, &acknowledged);
            let patch = diff(&desired, &acknowledged, &doubt);
            let mut applied = acknowledged.clone();
            lost.apply_to(&mut applied);
            let before = applied.clone();
            patch.apply_to(&mut applied);
            prop_assert_eq!(applied, expected(&before, &desired));
        }

        #[test]
        fn equal_sides_need_no_patch(side in any_snapshot()) {
            prop_assert!(diff(&side, &side, &Doubt::default()).is_empty());
        }

        #[test]
        fn no_part_of_the_patch_can_be_spared(desired in any_snapshot(), acknowledged in any_snapshot()) {
            let patch = diff(&desired, &acknowledged, &Doubt::default());
            let expected = expected(&acknowledged, &desired);
            for field in patch.fields().iter() {
                let mut applied = acknowledged.clone();
                patch.clone().without([field].into_iter().collect()).apply_to(&mut applied);
                prop_assert_ne!(&applied, &expected, "without {}", field);
            }
            if let Some(SecretsPatch::Partial(named)) = &patch.secrets {
                for name in named.keys() {
                    let mut fewer = named.clone();
                    fewer.remove(name);
                    let spared = Patch { secrets: Some(SecretsPatch::Partial(fewer)), ..patch.clone() };
                    let mut applied = acknowledged.clone();
                    spared.apply_to(&mut applied);
                    prop_assert_ne!(&applied, &expected, "without {}", name);
                }
            }
        }
    }
}
