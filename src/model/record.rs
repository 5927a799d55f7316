//! Everything that the state keeps of one resource: the unit on which every protocol step works.

use std::collections::BTreeMap;

use super::{Doubt, Entry, Field, Fingerprint, ResourceKey, Snapshot, Timestamp};

/// Keyed hash of a row as it was last decided on: an equal row needs no second look.
pub type RowHash = Fingerprint;

/// One resource in the state database.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Record {
    /// The resource.
    pub key: ResourceKey,
    /// What Vercel last accepted, field by field.
    pub acknowledged: Snapshot,
    /// What it may hold besides.
    pub doubt: Doubt,
    /// Values that a person discarded, by digest: not sent until the source changes them.
    pub dismissed: BTreeMap<Field, Fingerprint>,
    /// The row that was last decided on.
    pub row_hash: Option<RowHash>,
    /// Since when the source has no such row, and in how many sweeps in a row.
    pub missing: Option<Missing>,
    /// When Vercel last accepted something.
    pub acknowledged_at: Option<Timestamp>,
    /// The open entry.
    pub entry: Option<Entry>,
}

/// A row that disappeared from the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Missing {
    /// When a sweep first found it missing.
    pub since: Timestamp,
    /// How many sweeps in a row found it missing.
    pub sweeps: u32,
}

impl Record {
    /// A resource never seen before.
    #[must_use]
    pub fn new(key: ResourceKey) -> Self {
        Self {
            key,
            acknowledged: Snapshot::default(),
            doubt: Doubt::default(),
            dismissed: BTreeMap::new(),
            row_hash: None,
            missing: None,
            acknowledged_at: None,
            entry: None,
        }
    }

    /// Whether nothing was ever acknowledged for it and nothing is under way.
    #[must_use]
    pub fn is_first_sight(&self) -> bool {
        self.acknowledged.is_empty()
            && self.doubt.is_empty()
            && self.entry.is_none()
            && self.dismissed.is_empty()
    }
}
