//! What the tests of the decisions are written with: one resource, its rows, its attempts, in one word each.

use std::time::Duration;

use proptest::prelude::*;

use crate::model::{
    Entry, EntryState, Field, Fingerprint, FingerprintKey, Json, Lease, LeaseToken, Origin, Patch,
    Record, ResourceKey, SecretName, Snapshot, Timestamp,
};

use super::advance::{Advance, Outcome, RetryPolicy, advance};
use super::backoff::Backoff;
use super::claim::{Claim, Claimed, claim};
use super::decide::{Decision, Policy, decide};

/// When every test begins.
pub(super) const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);
/// How long a lost request may still take effect.
pub(super) const LATE: Duration = Duration::from_secs(60);
/// The settings of retries, with intervals of 1, 2, 4 … seconds.
pub(super) const RETRY: RetryPolicy = RetryPolicy {
    backoff: Backoff {
        initial: Duration::from_secs(1),
        multiplier: 2.0,
        max: Duration::from_secs(600),
    },
    max_elapsed: Duration::ZERO,
    max_conflicts: 3,
    late_apply: LATE,
};

pub(super) fn seconds(seconds: u64) -> Timestamp {
    START.plus(Duration::from_secs(seconds))
}

pub(super) fn fingerprint(text: &str) -> Fingerprint {
    let mut hasher = FingerprintKey::new([1; 32]).hasher("test");
    hasher.update(text.as_bytes());
    Fingerprint::from_hasher(&hasher)
}

pub(super) fn secret_name(name: &str) -> SecretName {
    SecretName::new(name).expect("a usable name")
}

/// A snapshot from `field=value` and, for secrets, `$NAME=value`; `$` alone stands for the empty set.
pub(super) fn snapshot(text: &str) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for part in text.split_whitespace() {
        if part == "$" {
            snapshot.secrets.get_or_insert_default();
            continue;
        }
        let (name, value) = part.split_once('=').expect("name=value");
        if let Some(name) = name.strip_prefix('$') {
            let secrets = snapshot.secrets.get_or_insert_default();
            secrets.insert(secret_name(name), fingerprint(value));
        } else {
            let field = Field::from_wire_name(name).expect("a field");
            snapshot.values.insert(field, Json::from_text(value));
        }
    }
    snapshot
}

/// One resource under test.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    pub(super) record: Record,
    token: i64,
}

impl Resource {
    pub(super) fn new() -> Self {
        let key = ResourceKey::new("icfg_1", "res_1").expect("usable ids");
        Self {
            record: Record::new(key),
            token: 0,
        }
    }

    /// A resource of which Vercel acknowledged this.
    pub(super) fn acknowledged(text: &str) -> Self {
        let mut resource = Self::new();
        resource.desires(text, START);
        if resource.record.entry.is_some() {
            resource.acknowledges(START);
        }
        assert_eq!(resource.record.acknowledged, snapshot(text));
        assert_eq!(resource.record.entry, None);
        resource
    }

    /// A pass reads a row.
    pub(super) fn desires(&mut self, text: &str, now: Timestamp) -> Decision {
        let desired = snapshot(text);
        let policy = Policy::default();
        let hash = fingerprint(text);
        decide(&mut self.record, &desired, hash, Origin::Poll, policy, now).decision
    }

    pub(super) fn try_claim(&mut self, now: Timestamp) -> Claim {
        self.token += 1;
        let lease = Lease {
            owner: "test".to_owned(),
            token: LeaseToken(self.token),
            expires_at: now.plus(Duration::from_secs(60)),
        };
        claim(&mut self.record, now, &lease, LATE)
    }

    /// The entry is claimed; fails when it cannot be.
    pub(super) fn claims(&mut self, now: Timestamp) -> Claimed {
        match self.try_claim(now) {
            Claim::Claimed(claimed) => *claimed,
            other => panic!("{other:?}"),
        }
    }

    /// What is in flight ends.
    pub(super) fn ends(&mut self, outcome: &Outcome, now: Timestamp) -> Advance {
        advance(&mut self.record, outcome, &RETRY, now, 1.0).expect("in flight")
    }

    /// The entry is claimed and ends at once; returns what was sent.
    pub(super) fn attempts(&mut self, outcome: &Outcome, now: Timestamp) -> Patch {
        let patch = self.claims(now).patch;
        self.ends(outcome, now);
        patch
    }

    /// The entry is claimed and acknowledged at once; returns what was sent.
    pub(super) fn acknowledges(&mut self, now: Timestamp) -> Patch {
        self.attempts(&Outcome::Acknowledged { sent_at: now }, now)
    }

    pub(super) fn entry(&self) -> &Entry {
        self.record.entry.as_ref().expect("an open entry")
    }

    pub(super) fn state(&self) -> EntryState {
        self.entry().state
    }

    /// When the open entry is due.
    pub(super) fn due(&self) -> Timestamp {
        self.entry().due_at
    }
}

/// A patch by the same text as a snapshot, with partial secrets.
pub(super) fn sent(patch: &Patch) -> Snapshot {
    Snapshot {
        values: patch.values.clone(),
        secrets: patch
            .secrets
            .as_ref()
            .map(|secrets| secrets.named().clone()),
    }
}

pub(super) fn rejected() -> Outcome {
    Outcome::Rejected {
        status: 422,
        code: Some("bad".to_owned()),
    }
}

/// A desired side with few fields and few values, so that two of them often share some.
pub(super) fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let value = prop::option::of(0..3_u8);
    let secrets = prop::option::of(prop::collection::btree_map(0..4_u8, 0..3_u8, 0..4));
    (prop::collection::vec(value, 3), secrets).prop_map(|(values, secrets)| {
        let fields = [Field::Status, Field::Name, Field::Metadata];
        let named = |(name, value): (u8, u8)| {
            (
                secret_name(&format!("S{name}")),
                fingerprint(&value.to_string()),
            )
        };
        Snapshot {
            values: fields
                .into_iter()
                .zip(values)
                .filter_map(|(field, value)| Some((field, Json::from_text(&value?.to_string()))))
                .collect(),
            secrets: secrets.map(|secrets| secrets.into_iter().map(named).collect()),
        }
    })
}
