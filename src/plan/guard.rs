//! The blast radius: how much of what a pass found may be sent without a person's word.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{
    Entry, EntryState, Field, Json, Patch, Reason, Record, ResourceKey, SecretsPatch, Timestamp,
};

use super::diff::{Pending, pending};

/// Changes found within this time of each other count as one, however many passes found them.
pub const WINDOW: Duration = Duration::from_secs(10 * 60);

/// How many resources a summary names.
pub const EXAMPLES_MAX: usize = 10;
/// How many different values a summary tells apart.
const VALUES_MAX: usize = 50;

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
        self.exceeded(found).any()
    }

    /// Which of the limits so many changes are beyond.
    #[must_use]
    pub fn exceeded(&self, found: Found) -> Exceeded {
        let beyond = |max: Option<u32>, count| max.is_some_and(|max| count > max);
        Exceeded {
            destructive: beyond(self.destructive_max, found.destructive),
            changes: beyond(self.changes_max, found.changes),
        }
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

/// The limits that a pass is beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exceeded {
    /// `destructive_max`.
    pub destructive: bool,
    /// `changes_max`.
    pub changes: bool,
}

impl Exceeded {
    /// Whether any limit is exceeded.
    #[must_use]
    pub const fn any(self) -> bool {
        self.destructive || self.changes
    }

    /// Whether a change with this impact is kept back: what a limit counts is held whole, what it does not count goes on.
    #[must_use]
    pub const fn keeps(self, impact: Impact) -> bool {
        match impact {
            Impact::None => false,
            Impact::Change => self.changes,
            Impact::Destructive => self.destructive || self.changes,
        }
    }
}

/// What an entry would do to its resource at Vercel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Impact {
    /// Nothing that counts: a first push, nothing to send, or no open entry.
    None,
    /// It changes something.
    Change,
    /// It suspends, uninstalls, sets to error or strips of all secrets.
    Destructive,
}

/// What sending the record's open entry would do.
#[must_use]
pub fn impact(record: &Record) -> Impact {
    let Some(entry) = &record.entry else {
        return Impact::None;
    };
    if record.acknowledged.is_empty() {
        return Impact::None;
    }
    let (patch, pending) = pending(record, &entry.desired);
    if pending != Pending::Now {
        Impact::None
    } else if takes_status(record, &patch) || strips_secrets(record, &patch) {
        Impact::Destructive
    } else {
        Impact::Change
    }
}

fn takes_status(record: &Record, patch: &Patch) -> bool {
    let Some(status) = patch.values.get(&Field::Status) else {
        return false;
    };
    let held = record.acknowledged.values.get(&Field::Status);
    let changes =
        held.is_some_and(|held| held != status) || record.doubt.fields.contains_key(&Field::Status);
    changes
        && DESTRUCTIVE_STATUSES
            .iter()
            .any(|destructive| *status == Json::from_text(destructive))
}

fn strips_secrets(record: &Record, patch: &Patch) -> bool {
    let held = record.acknowledged.secrets.as_ref();
    let sends_none = patch
        .secrets
        .as_ref()
        .is_some_and(|secrets| secrets.named().is_empty());
    sends_none && held.is_some_and(|held| !held.is_empty())
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
    keep_back(entry);
}

/// Keeps an entry under a hold back, unless a request for it is in flight.
pub(super) fn keep_back(entry: &mut Entry) {
    if entry.hold.is_some() && entry.state == EntryState::Waiting && entry.lease.is_none() {
        entry.state = EntryState::Held;
        entry.reason = Reason::Guard;
    }
}

/// Takes the open entry out of its hold: it is due when it would have been due without.
pub fn let_go(record: &mut Record, now: Timestamp) {
    let Some(entry) = &mut record.entry else {
        return;
    };
    entry.hold = None;
    if entry.state == EntryState::Held {
        entry.state = EntryState::Waiting;
        entry.reason = if entry.failures > 0 && entry.due_at > now {
            Reason::Backoff
        } else {
            Reason::Due
        };
    }
}

/// What entries under a hold would do, gathered one by one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// How many entries were looked at.
    pub entries: u64,
    /// How many of them change which field towards which value, by field and value.
    pub towards: BTreeMap<(Field, Option<String>), u64>,
    /// The first resources.
    pub examples: Vec<ResourceKey>,
}

impl Summary {
    /// Adds a record's open entry.
    pub fn add(&mut self, record: &Record) {
        let Some(entry) = &record.entry else { return };
        self.entries += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(record.key.clone());
        }
        let (patch, _) = pending(record, &entry.desired);
        for field in patch.fields().iter() {
            let towards = (field, shown_value(&patch, field));
            let is_known = self.towards.contains_key(&towards);
            let towards = if is_known || self.towards.len() < VALUES_MAX {
                towards
            } else {
                (field, None)
            };
            *self.towards.entry(towards).or_default() += 1;
        }
    }
}

/// The value of a field as far as many resources may share it; of secrets only that there are none.
fn shown_value(patch: &Patch, field: Field) -> Option<String> {
    match field {
        Field::Secrets => patch
            .secrets
            .as_ref()
            .filter(|secrets| {
                matches!(secrets, SecretsPatch::Complete(_)) && secrets.named().is_empty()
            })
            .map(|_| "none".to_owned()),
        Field::Status | Field::Ownership => {
            let value = patch.values.get(&field)?.to_value();
            value.as_str().map(str::to_owned)
        }
        Field::BillingPlan => {
            let value = patch.values.get(&field)?.to_value();
            value.get("id")?.as_str().map(str::to_owned)
        }
        Field::Name | Field::Notification | Field::Metadata | Field::Extras => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{Fingerprint, Lease, LeaseToken, Mark, Mode, Origin, SecretName, Snapshot};

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

    fn record_with(acknowledged: Snapshot) -> Record {
        let mut record = Record::new(ResourceKey::new("icfg_1", "res_1").expect("ids"));
        record.acknowledged = acknowledged;
        record
    }

    fn entry(desired: Snapshot) -> Entry {
        Entry::new(desired, Origin::Poll, Mode::Whole, Timestamp::EPOCH)
    }

    fn impact_of(acknowledged: Snapshot, desired: Snapshot) -> Impact {
        let mut record = record_with(acknowledged);
        record.entry = Some(entry(desired));
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
                Impact::None,
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
                Impact::None,
            ),
            (
                (Some("ready"), Some(2)),
                (Some("ready"), None),
                Impact::None,
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

    #[test]
    fn changes_are_counted_over_ten_minutes() {
        assert_eq!(WINDOW.as_secs(), 600);
    }

    #[test]
    fn a_limit_concerns_the_changes_that_it_counts() {
        let concerned = |destructive: bool, changes: bool| {
            let limits = Limits {
                destructive_max: destructive.then_some(1),
                changes_max: changes.then_some(1),
            };
            [Impact::None, Impact::Change, Impact::Destructive].map(|impact| limits.concern(impact))
        };
        assert_eq!(concerned(false, false), [false, false, false]);
        assert_eq!(concerned(true, false), [false, false, true]);
        assert_eq!(concerned(false, true), [false, true, true]);
        assert_eq!(concerned(true, true), [false, true, true]);
    }

    #[test]
    fn either_limit_is_enough() {
        let limits = Limits {
            destructive_max: Some(1),
            changes_max: Some(2),
        };
        let exceeded = |destructive, changes| {
            let found = Found {
                destructive,
                changes,
            };
            assert_eq!(limits.are_exceeded(found), limits.exceeded(found).any());
            let Exceeded {
                destructive,
                changes,
            } = limits.exceeded(found);
            (destructive, changes)
        };
        assert_eq!(exceeded(1, 2), (false, false));
        assert_eq!(exceeded(2, 2), (true, false));
        assert_eq!(exceeded(1, 3), (false, true));
        assert_eq!(exceeded(2, 3), (true, true));
    }

    #[test]
    fn a_status_in_doubt_that_is_sent_again_takes_the_resource_away() {
        let mut record = record_with(snapshot(Some("suspended"), None));
        record.entry = Some(entry(snapshot(Some("suspended"), None)));
        assert_eq!(impact(&record), Impact::None);
        record.doubt.fields.insert(Field::Status, Mark::default());
        assert_eq!(impact(&record), Impact::Destructive);
        // What was never acknowledged is provisioned so.
        record.doubt.fields.clear();
        record.acknowledged = snapshot(None, Some(1));
        assert_eq!(impact(&record), Impact::Change);
        // Without an entry nothing is sent.
        record.entry = None;
        assert_eq!(impact(&record), Impact::None);
    }

    #[test]
    fn a_hold_keeps_back_what_waits_and_is_not_in_flight() {
        let lease = Lease {
            owner: "w".to_owned(),
            token: LeaseToken(1),
            expires_at: Timestamp::EPOCH,
        };
        let cases = [
            (EntryState::Waiting, None, EntryState::Held, Some(7)),
            (
                EntryState::Waiting,
                Some(lease),
                EntryState::Waiting,
                Some(7),
            ),
            (EntryState::Dead, None, EntryState::Dead, None),
        ];
        for (state, lease, expected, under) in cases {
            let mut record = record_with(snapshot(Some("ready"), None));
            let mut open = entry(snapshot(Some("suspended"), None));
            (open.state, open.lease) = (state, lease);
            // Without a hold nothing is kept back.
            keep_back(&mut open);
            assert_eq!(open.state, state);
            record.entry = Some(open);
            hold(&mut record, 7);
            let open = record.entry.expect("open");
            assert_eq!((open.state, open.hold), (expected, under));
        }
    }

    #[test]
    fn what_is_let_go_is_due_when_it_would_have_been() {
        let now = Timestamp::from_millis(10);
        let reason_after = |state, failures, due_at| {
            let mut record = record_with(snapshot(Some("ready"), None));
            let mut held = entry(snapshot(Some("suspended"), None));
            (held.state, held.reason, held.hold) = (state, Reason::Guard, Some(7));
            (held.failures, held.due_at) = (failures, Timestamp::from_millis(due_at));
            record.entry = Some(held);
            let_go(&mut record, now);
            let entry = record.entry.expect("open");
            assert_eq!(entry.hold, None);
            assert_eq!(entry.due_at, Timestamp::from_millis(due_at));
            (entry.state, entry.reason)
        };
        let waits = |reason| (EntryState::Waiting, reason);
        assert_eq!(reason_after(EntryState::Held, 0, 11), waits(Reason::Due));
        assert_eq!(
            reason_after(EntryState::Held, 1, 11),
            waits(Reason::Backoff)
        );
        assert_eq!(reason_after(EntryState::Held, 1, 10), waits(Reason::Due));
        assert_eq!(reason_after(EntryState::Held, 1, 9), waits(Reason::Due));
        let dead = (EntryState::Dead, Reason::Guard);
        assert_eq!(reason_after(EntryState::Dead, 1, 11), dead);
    }

    #[test]
    fn a_summary_shows_what_many_may_share_and_no_secret_or_text() {
        let json = |value| Json::from_value(&value);
        let values = [
            (Field::Status, json(serde_json::json!("ready"))),
            (Field::Ownership, json(serde_json::json!("owned"))),
            (Field::BillingPlan, json(serde_json::json!({"id": "pro"}))),
            (Field::Name, json(serde_json::json!("db"))),
            (Field::Metadata, json(serde_json::json!({"a": 1}))),
        ];
        let secrets = |count| snapshot(None, Some(count)).secrets.expect("a set");
        let patch = |secrets| Patch {
            values: values.clone().into(),
            secrets: Some(secrets),
        };
        let some = patch(SecretsPatch::Complete(secrets(1)));
        let shown = |field| shown_value(&some, field);
        assert_eq!(shown(Field::Status).as_deref(), Some("ready"));
        assert_eq!(shown(Field::Ownership).as_deref(), Some("owned"));
        assert_eq!(shown(Field::BillingPlan).as_deref(), Some("pro"));
        for field in [Field::Name, Field::Metadata, Field::Extras, Field::Secrets] {
            assert_eq!(shown(field), None, "{field}");
        }
        let none = patch(SecretsPatch::Complete(secrets(0)));
        let partial = patch(SecretsPatch::Partial(secrets(0)));
        assert_eq!(shown_value(&none, Field::Secrets).as_deref(), Some("none"));
        assert_eq!(shown_value(&partial, Field::Secrets), None);
    }

    #[test]
    fn a_summary_tells_so_many_values_apart_and_counts_the_rest_together() {
        let mut summary = Summary::default();
        let mut add = |plan: usize| {
            let mut record = record_with(snapshot(Some("ready"), None));
            let value = serde_json::json!({"id": format!("plan-{plan:03}")});
            let mut desired = Snapshot::default();
            let value = Json::from_value(&value);
            desired.values.insert(Field::BillingPlan, value);
            record.entry = Some(entry(desired));
            summary.add(&record);
        };
        (0..VALUES_MAX + 2).for_each(&mut add);
        // One that is told apart already stays so.
        add(0);
        let of = |plan: Option<usize>| {
            let value = plan.map(|plan| format!("plan-{plan:03}"));
            summary.towards.get(&(Field::BillingPlan, value)).copied()
        };
        assert_eq!(of(Some(0)), Some(2));
        assert_eq!(of(Some(VALUES_MAX - 1)), Some(1));
        assert_eq!((of(Some(VALUES_MAX)), of(None)), (None, Some(2)));
    }

    #[test]
    fn what_a_person_dismissed_is_not_sent_and_not_counted() {
        let mut record = Record::new(ResourceKey::new("icfg_1", "res_1").expect("ids"));
        record.acknowledged = snapshot(Some("ready"), None);
        let desired = snapshot(Some("suspended"), None);
        let digest = desired.digest(Field::Status).expect("it has a status");
        record.dismissed.insert(Field::Status, digest);
        let mut entry = Entry::new(desired, Origin::Poll, Mode::Whole, Timestamp::EPOCH);
        record.entry = Some(entry.clone());
        assert_eq!(impact(&record), Impact::None);
        entry
            .desired
            .values
            .insert(Field::Name, Json::from_text("new"));
        record.entry = Some(entry);
        assert_eq!(impact(&record), Impact::Change);
    }

    #[test]
    fn each_limit_keeps_back_what_it_counts() {
        let only_destructive = Exceeded {
            destructive: true,
            changes: false,
        };
        assert!(
            only_destructive.keeps(Impact::Destructive) && !only_destructive.keeps(Impact::Change)
        );
        let both_kinds = Exceeded {
            destructive: false,
            changes: true,
        };
        assert!(both_kinds.keeps(Impact::Destructive) && both_kinds.keeps(Impact::Change));
        assert!(!both_kinds.keeps(Impact::None));
    }

    #[test]
    fn a_summary_counts_values_and_names_the_first_resources() {
        let mut summary = Summary::default();
        for number in 0..12 {
            let mut record =
                Record::new(ResourceKey::new("icfg_1", &format!("res_{number:02}")).expect("ids"));
            record.acknowledged = snapshot(Some("ready"), Some(1));
            let desired = snapshot(Some("suspended"), Some(usize::from(number % 2 == 0)));
            record.entry = Some(Entry::new(
                desired,
                Origin::Poll,
                Mode::Whole,
                Timestamp::EPOCH,
            ));
            summary.add(&record);
        }
        assert_eq!(summary.entries, 12);
        assert_eq!(summary.examples.len(), EXAMPLES_MAX);
        let towards: Vec<_> = summary.towards.into_iter().collect();
        assert_eq!(
            towards,
            [
                ((Field::Secrets, Some("none".to_owned())), 6),
                ((Field::Status, Some("suspended".to_owned())), 12),
            ]
        );
    }
}
