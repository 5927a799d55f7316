//! The first look at an existing fleet: rows taken as acknowledged, or compared with what Vercel shows before anything is sent.
//!
//! What is in flight is left alone: its own outcome says more than a baseline can.

use crate::model::{
    Entry, EntryState, Mark, Mode, Origin, Reason, Record, RowHash, Snapshot, Timestamp,
};

use super::decide::{Decided, Decision, just_after, wait};
use super::diff::{Pending, pending};

/// What a baseline does with each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Baseline {
    /// What is done.
    pub way: Way,
    /// Also to resources of which Vercel has acknowledged something.
    pub all: bool,
}

/// The two kinds of baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The row counts as acknowledged; nothing is sent.
    Adopt,
    /// Vercel is asked first: what it shows as desired counts as acknowledged, the rest is sent.
    Compare,
}

impl Way {
    /// The stable name in the history, in logs and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adopt => "adopt",
            Self::Compare => "compare",
        }
    }

    /// What has been done to a row, in words.
    #[must_use]
    pub const fn participle(self) -> &'static str {
        match self {
            Self::Adopt => "adopted",
            Self::Compare => "to compare",
        }
    }
}

/// Brings a record to the baseline of its row; [`Decision::Unchanged`] when it is left as it was.
pub fn baseline(
    record: &mut Record,
    desired: &Snapshot,
    row_hash: RowHash,
    baseline: Baseline,
    now: Timestamp,
) -> Decided {
    let in_flight = record
        .entry
        .as_ref()
        .is_some_and(|entry| entry.in_flight.is_some());
    if in_flight || (!baseline.all && !record.acknowledged.is_empty()) {
        return Decided {
            decision: Decision::Unchanged,
            closed: None,
        };
    }
    record.row_hash = Some(row_hash);
    record.missing = None;
    match baseline.way {
        Way::Adopt => Decided {
            decision: Decision::Adopted,
            closed: adopt(record, desired, now),
        },
        Way::Compare => Decided {
            decision: compare(record, desired, now),
            closed: None,
        },
    }
}

/// Takes the row as acknowledged; returns the entry that has nothing to send any more.
fn adopt(record: &mut Record, desired: &Snapshot, now: Timestamp) -> Option<Entry> {
    let Snapshot { values, secrets } = desired.clone();
    let fields = desired.fields();
    record.acknowledged.values.extend(values);
    if secrets.is_some() {
        record.acknowledged.secrets = secrets;
    }
    record.dismissed.retain(|field, _| !fields.contains(*field));
    // A lost request that may still be applied is stronger than anybody's word.
    let remains = |mark: &mut Mark| {
        mark.confirmed = true;
        mark.uncertain_until.is_some_and(|until| until >= now)
    };
    let doubt = &mut record.doubt;
    doubt
        .fields
        .retain(|field, mark| !desired.values.contains_key(field) || remains(mark));
    if desired.secrets.is_some() {
        doubt.secrets.retain(|_, mark| remains(mark));
    }
    let entry = record.entry.as_mut()?;
    entry.desired = desired.clone();
    entry.generation += 1;
    entry.rejected.clear();
    entry.hold = None;
    entry.state = EntryState::Waiting;
    let (_, pending) = pending(record, desired);
    let entry = record.entry.as_mut()?;
    match pending {
        Pending::Nothing => {
            entry.state = EntryState::Withdrawn;
            record.entry.take()
        }
        Pending::Now => {
            wait(entry, now, Reason::Due);
            None
        }
        Pending::After(until) => {
            wait(entry, just_after(until), Reason::LateApply);
            None
        }
    }
}

/// Makes the resource's entry one that asks Vercel first.
fn compare(record: &mut Record, desired: &Snapshot, now: Timestamp) -> Decision {
    let Some(entry) = &mut record.entry else {
        let entry = Entry::new(desired.clone(), Origin::Baseline, Mode::Compare, now);
        record.entry = Some(entry);
        return Decision::Enqueued;
    };
    entry.generation += u32::from(entry.desired != *desired);
    entry.desired = desired.clone();
    entry.mode = Mode::Compare;
    if entry.state == EntryState::Dead {
        entry.state = EntryState::Waiting;
        entry.rejected.clear();
        entry.failures = 0;
        entry.conflicts = 0;
    }
    if entry.state == EntryState::Waiting {
        wait(entry, now, Reason::Due);
    }
    Decision::Folded
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::model::{Field, Fingerprint, Json, Lease, LeaseToken, Observed, ResourceKey};
    use crate::plan::backoff::Backoff;
    use crate::plan::{Claim, Outcome, RetryPolicy, advance, claim};

    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_000_000);
    const LATE: Duration = Duration::from_secs(60);
    const HASH: RowHash = Fingerprint::from_bytes([3; 16]);

    fn side(status: &str, name: &str) -> Snapshot {
        Snapshot {
            values: [
                (Field::Status, Json::from_text(status)),
                (Field::Name, Json::from_text(name)),
            ]
            .into(),
            secrets: None,
        }
    }

    fn waiting(desired: Snapshot) -> Record {
        let mut record = Record::new(ResourceKey::new("icfg_1", "res_1").expect("two ids"));
        record.entry = Some(Entry::new(desired, Origin::Poll, Mode::Whole, START));
        record
    }

    fn apply(record: &mut Record, desired: &Snapshot, way: Way, all: bool) -> Decided {
        baseline(record, desired, HASH, Baseline { way, all }, START)
    }

    fn take(record: &mut Record) -> Claim {
        let lease = Lease {
            owner: "w".to_owned(),
            token: LeaseToken(1),
            expires_at: START.plus(LATE),
        };
        claim(record, START, &lease, LATE)
    }

    #[test]
    fn adopting_closes_what_waited_and_sends_nothing() {
        let desired = side("ready", "db");
        let mut record = waiting(desired.clone());
        let decided = apply(&mut record, &desired, Way::Adopt, false);
        assert_eq!(decided.decision, Decision::Adopted);
        assert_eq!(
            decided.closed.map(|entry| entry.state),
            Some(EntryState::Withdrawn)
        );
        assert_eq!((&record.acknowledged, record.entry), (&desired, None));
        assert_eq!(record.row_hash, Some(HASH));
    }

    #[test]
    fn the_ways_keep_the_names_that_logs_and_json_show() {
        let names = [Way::Adopt, Way::Compare].map(|way| (way.name(), way.participle()));
        assert_eq!(names, [("adopt", "adopted"), ("compare", "to compare")]);
    }

    #[test]
    fn adopting_forgets_what_was_dismissed_of_the_fields_it_adopts() {
        let mut record = waiting(side("ready", "db"));
        for field in [Field::Name, Field::Extras] {
            record.dismissed.insert(field, HASH);
        }
        apply(&mut record, &side("ready", "db"), Way::Adopt, false);
        let left: Vec<Field> = record.dismissed.into_keys().collect();
        assert_eq!(left, [Field::Extras]);
    }

    #[test]
    fn a_baseline_makes_a_new_generation_where_the_target_may_be_another() {
        let generation = |way, desired: &Snapshot| {
            let mut record = waiting(side("ready", "db"));
            let mark = Mark {
                uncertain_until: Some(START.plus(LATE)),
                confirmed: false,
            };
            record.doubt.fields.insert(Field::Status, mark);
            record.entry.as_mut().expect("open").generation = 3;
            apply(&mut record, desired, way, false);
            record.entry.expect("still open").generation
        };
        let (same, other) = (side("ready", "db"), side("error", "db"));
        assert_eq!(generation(Way::Adopt, &other), 4);
        assert_eq!(generation(Way::Compare, &other), 4);
        assert_eq!(generation(Way::Compare, &same), 3);
    }

    #[test]
    fn comparing_opens_a_dead_letter_and_lets_a_held_entry_be() {
        let later = START.plus(LATE);
        let after = |state| {
            let mut record = waiting(side("ready", "db"));
            let entry = record.entry.as_mut().expect("open");
            (entry.state, entry.reason) = (state, Reason::Guard);
            (entry.failures, entry.conflicts, entry.due_at) = (2, 2, later);
            apply(&mut record, &side("ready", "db"), Way::Compare, false);
            let entry = record.entry.expect("open");
            let tries = (entry.failures, entry.conflicts);
            (entry.state, entry.reason, tries, entry.due_at)
        };
        let (waiting, due) = (EntryState::Waiting, Reason::Due);
        assert_eq!(after(EntryState::Dead), (waiting, due, (0, 0), START));
        assert_eq!(after(EntryState::Waiting), (waiting, due, (2, 2), START));
        let held = (EntryState::Held, Reason::Guard, (2, 2), later);
        assert_eq!(after(EntryState::Held), held);
    }

    #[test]
    fn what_was_acknowledged_is_left_alone_unless_all_are_meant() {
        let mut record = waiting(side("suspended", "db"));
        record.acknowledged = side("ready", "db");
        let before = record.clone();
        for way in [Way::Adopt, Way::Compare] {
            let decided = apply(&mut record, &side("suspended", "db"), way, false);
            assert_eq!(decided.decision, Decision::Unchanged);
            assert_eq!(record, before);
        }
        let decided = apply(&mut record, &side("suspended", "db"), Way::Adopt, true);
        assert_eq!(decided.decision, Decision::Adopted);
        assert_eq!(record.acknowledged, side("suspended", "db"));
    }

    #[test]
    fn what_is_in_flight_is_left_alone() {
        let mut record = waiting(side("ready", "db"));
        assert!(matches!(take(&mut record), Claim::Claimed(_)));
        let before = record.clone();
        for way in [Way::Adopt, Way::Compare] {
            apply(&mut record, &side("ready", "db"), way, true);
            assert_eq!(record, before);
        }
    }

    #[test]
    fn a_lost_request_that_may_still_be_applied_outlives_adoption() {
        let mut record = waiting(side("ready", "db"));
        record.doubt.fields.insert(
            Field::Status,
            Mark {
                uncertain_until: Some(START.plus(LATE)),
                confirmed: false,
            },
        );
        record.doubt.fields.insert(Field::Name, Mark::default());
        let decided = apply(&mut record, &side("ready", "db"), Way::Adopt, true);
        assert_eq!(decided.closed, None);
        assert!(!record.doubt.fields.contains_key(&Field::Name));
        let entry = record.entry.expect("it is sent once more");
        assert_eq!(entry.reason, Reason::LateApply);
        assert!(entry.due_at > START.plus(LATE));
    }

    #[test]
    fn comparing_sends_what_vercel_shows_otherwise_and_nothing_else() {
        let mut record = waiting(side("ready", "db"));
        record.acknowledged = side("ready", "db");
        record.entry = None;
        let decided = apply(&mut record, &side("ready", "db"), Way::Compare, true);
        assert_eq!(decided.decision, Decision::Enqueued);
        let Claim::Claimed(claimed) = take(&mut record) else {
            panic!("it is due");
        };
        assert_eq!(
            (claimed.mode, claimed.patch.is_empty()),
            (Mode::Compare, true)
        );
        let observed = Observed {
            values: side("ready", "renamed at Vercel").values,
            billing_plan_id: None,
        };
        let policy = RetryPolicy {
            backoff: Backoff {
                initial: LATE,
                multiplier: 1.0,
                max: LATE,
            },
            max_elapsed: Duration::ZERO,
            max_conflicts: 8,
            late_apply: LATE,
        };
        let outcome = Outcome::Compared { observed };
        advance(&mut record, &outcome, &policy, START, 1.0).expect("in flight");
        let Claim::Claimed(claimed) = take(&mut record) else {
            panic!("the name differs");
        };
        let fields: Vec<Field> = claimed.patch.fields().iter().collect();
        assert_eq!(fields, [Field::Name]);
    }
}
