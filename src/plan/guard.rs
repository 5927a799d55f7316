//! The blast radius: how much of what a pass found may be sent without a person's word.

use std::time::Duration;

use crate::model::{Entry, EntryState, Field, Json, Reason, Record};

/// Changes found within this time of each other count as one, however many passes found them.
pub const WINDOW: Duration = Duration::from_secs(10 * 60);

/// States of a resource that take it away from its customer.
const DESTRUCTIVE_STATUSES: [&str; 3] = ["suspended", "uninstalled", "error"];

/// The settings of `[guard]`; `None` switches a limit off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Resources that may be suspended, uninstalled, set to error or stripped of all secrets.
    pub destructive_max: Option<u32>,
    /// Resources that may be changed in any way, first pushes aside.
    pub changes_max: Option<u32>,
}

/// How many resources were found changed within the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Found {
    /// Those changed destructively.
    pub destructive: u32,
    /// Those changed in any way.
    pub changes: u32,
}

impl Limits {
    /// Whether so many changes need a person's word.
    #[must_use]
    pub fn are_exceeded(&self, found: Found) -> bool {
        self.destructive_max
            .is_some_and(|max| found.destructive > max)
            || self.changes_max.is_some_and(|max| found.changes > max)
    }

    /// Whether a change with this impact waits until its pass is known to be within the limits.
    #[must_use]
    pub const fn concern(&self, impact: Impact) -> bool {
        match impact {
            Impact::None => false,
            Impact::Change => self.changes_max.is_some(),
            Impact::Destructive => self.destructive_max.is_some() || self.changes_max.is_some(),
        }
    }
}

/// What an entry would do to its resource at Vercel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Impact {
    /// Nothing that counts: a first push, or no open entry.
    None,
    /// It changes something.
    Change,
    /// It suspends, uninstalls, sets to error or strips of all secrets.
    Destructive,
}

/// What the record's open entry would do.
#[must_use]
pub fn impact(record: &Record) -> Impact {
    let Some(entry) = &record.entry else {
        return Impact::None;
    };
    if record.acknowledged.is_empty() {
        return Impact::None;
    }
    if takes_status(record, entry) || strips_secrets(record, entry) {
        Impact::Destructive
    } else {
        Impact::Change
    }
}

fn takes_status(record: &Record, entry: &Entry) -> bool {
    let (held, desired) = (
        record.acknowledged.values.get(&Field::Status),
        entry.desired.values.get(&Field::Status),
    );
    match (held, desired) {
        (Some(held), Some(desired)) if held != desired => DESTRUCTIVE_STATUSES
            .iter()
            .any(|status| *desired == Json::from_text(status)),
        _ => false,
    }
}

fn strips_secrets(record: &Record, entry: &Entry) -> bool {
    let has = |secrets: &Option<std::collections::BTreeMap<_, _>>| {
        secrets.as_ref().map(|secrets| !secrets.is_empty())
    };
    has(&record.acknowledged.secrets) == Some(true) && has(&entry.desired.secrets) == Some(false)
}

/// Keeps the open entry back under a hold; one that is in flight is kept back when its request has ended.
pub fn hold(record: &mut Record, hold: i64) {
    let Some(entry) = &mut record.entry else {
        return;
    };
    if entry.state == EntryState::Dead {
        return;
    }
    entry.hold = Some(hold);
    if entry.lease.is_none() {
        entry.state = EntryState::Held;
        entry.reason = Reason::Guard;
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{Fingerprint, Mode, Origin, ResourceKey, SecretName, Snapshot, Timestamp};

    use super::*;

    fn snapshot(status: Option<&str>, secrets: Option<usize>) -> Snapshot {
        let values = status
            .map(|status| (Field::Status, Json::from_text(status)))
            .into_iter()
            .collect();
        let secret = |n: usize| {
            (
                SecretName::new(&format!("S{n}")).expect("a name"),
                Fingerprint::from_bytes([1; 16]),
            )
        };
        Snapshot {
            values,
            secrets: secrets.map(|count| (0..count).map(secret).collect()),
        }
    }

    fn impact_of(acknowledged: Snapshot, desired: Snapshot) -> Impact {
        let mut record = Record::new(ResourceKey::new("icfg_1", "res_1").expect("ids"));
        record.acknowledged = acknowledged;
        record.entry = Some(Entry::new(
            desired,
            Origin::Poll,
            Mode::Whole,
            Timestamp::EPOCH,
        ));
        impact(&record)
    }

    #[test]
    fn what_takes_a_resource_away_is_destructive_and_a_first_push_is_nothing() {
        let cases = [
            ((None, None), (Some("suspended"), None), Impact::None),
            (
                (Some("ready"), None),
                (Some("suspended"), None),
                Impact::Destructive,
            ),
            (
                (Some("ready"), None),
                (Some("uninstalled"), None),
                Impact::Destructive,
            ),
            (
                (Some("ready"), None),
                (Some("error"), None),
                Impact::Destructive,
            ),
            (
                (Some("suspended"), None),
                (Some("suspended"), None),
                Impact::Change,
            ),
            (
                (Some("suspended"), None),
                (Some("ready"), None),
                Impact::Change,
            ),
            (
                (Some("ready"), Some(2)),
                (Some("ready"), Some(0)),
                Impact::Destructive,
            ),
            (
                (Some("ready"), Some(2)),
                (Some("ready"), Some(1)),
                Impact::Change,
            ),
            (
                (Some("ready"), Some(0)),
                (Some("ready"), Some(0)),
                Impact::Change,
            ),
            (
                (Some("ready"), Some(2)),
                (Some("ready"), None),
                Impact::Change,
            ),
        ];
        for ((status, secrets), (to_status, to_secrets), expected) in cases {
            let impact = impact_of(snapshot(status, secrets), snapshot(to_status, to_secrets));
            assert_eq!(
                impact, expected,
                "{status:?} {secrets:?} → {to_status:?} {to_secrets:?}"
            );
        }
    }

    #[test]
    fn a_limit_is_exceeded_by_one_more_than_it_allows() {
        let limits = Limits {
            destructive_max: Some(100),
            changes_max: None,
        };
        assert!(!limits.are_exceeded(Found {
            destructive: 100,
            changes: 5000
        }));
        assert!(limits.are_exceeded(Found {
            destructive: 101,
            changes: 101
        }));
        assert!(!Limits::default().are_exceeded(Found {
            destructive: u32::MAX,
            changes: u32::MAX
        }));
    }
}
