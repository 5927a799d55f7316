//! The laws that decide, claim and advance keep together, one by one, and against every course of events.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use crate::model::record::Missing;
use crate::model::{
    EntryState, Field, Fingerprint, Json, Mode, Observed, Origin, Patch, Reason, SecretName,
    SecretsPatch, SharedMap, Snapshot, Timestamp,
};

use super::advance::{Outcome, RetryPolicy, advance};
use super::claim::{Claim, abandon, expire};
use super::decide::{Decision, FirstSight, Policy, decide, missing};
use super::fixture::*;
use super::manual::{self, Refusal};

// Law 2: doubt is remembered before it is created.

#[test]
fn everything_in_a_patch_is_in_doubt_before_it_leaves() {
    let mut resource = Resource::new();
    resource.desires("status=ready name=db $A=1 $B=1", START);
    assert!(resource.record.doubt.is_empty());
    let claimed = resource.claims(START);
    let doubt = &resource.record.doubt;
    for field in [Field::Status, Field::Name, Field::Secrets] {
        assert!(doubt.fields.contains_key(&field), "{field}");
    }
    assert_eq!(doubt.secrets.len(), 2);
    assert_eq!(
        claimed.patch,
        resource
            .entry()
            .in_flight
            .as_ref()
            .expect("in flight")
            .patch
    );
}

#[test]
fn acknowledgement_settles_doubt() {
    let mut resource = Resource::new();
    resource.desires("status=ready $A=1", START);
    resource.acknowledges(START);
    assert!(resource.record.doubt.is_empty());
    assert_eq!(resource.record.acknowledged, snapshot("status=ready $A=1"));
    assert_eq!(resource.record.acknowledged_at, Some(START));
    assert_eq!(resource.record.entry, None);
}

#[test]
fn timeout_leaves_status_in_doubt_until_late_apply_has_passed() {
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    resource.attempts(&Outcome::Lost, seconds(5));
    let mark = resource.record.doubt.fields[&Field::Status];
    assert_eq!(mark.uncertain_until, Some(seconds(5).plus(LATE)));
    assert_eq!(resource.entry().reason, Reason::Backoff);
}

#[test]
fn value_that_went_back_after_a_timeout_is_sent() {
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    resource.attempts(&Outcome::Lost, START);
    assert_eq!(
        resource.desires("status=ready", seconds(1)),
        Decision::Folded
    );
    let patch = resource.acknowledges(resource.due());
    assert_eq!(sent(&patch), snapshot("status=ready"));
}

#[test]
fn server_error_leaves_doubt_without_a_late_application() {
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    resource.attempts(&Outcome::Failed, START);
    assert_eq!(
        resource.record.doubt.fields[&Field::Status].uncertain_until,
        None
    );
    resource.desires("status=ready", seconds(1));
    let patch = resource.acknowledges(resource.due());
    assert_eq!(sent(&patch), snapshot("status=ready"));
    assert!(resource.record.doubt.is_empty());
    assert_eq!(resource.record.entry, None);
}

#[test]
fn answer_that_changed_nothing_restores_the_doubt_of_before() {
    let outcomes = [
        rejected(),
        Outcome::RateLimited { until: seconds(9) },
        Outcome::Conflict { observed: None },
        Outcome::TokenRefused,
        Outcome::InstallationGone,
        Outcome::NotFound,
        Outcome::Refused { status: 405 },
        Outcome::Unreachable,
        Outcome::SourceUnavailable,
        Outcome::SourceMoved,
        Outcome::Released,
    ];
    for outcome in outcomes {
        let mut fresh = Resource::acknowledged("status=ready $A=1");
        fresh.desires("status=suspended $B=1", START);
        fresh.attempts(&outcome, START);
        assert!(fresh.record.doubt.is_empty(), "{outcome:?}");
        let mut doubtful = Resource::acknowledged("status=ready $A=1");
        doubtful.desires("status=suspended", START);
        doubtful.attempts(&Outcome::Lost, START);
        doubtful.desires("status=error $B=1", seconds(1));
        let before = doubtful.record.doubt.clone();
        assert!(!before.is_empty());
        let due = doubtful.due();
        doubtful.attempts(&outcome, due);
        assert_eq!(doubtful.record.doubt, before, "{outcome:?}");
    }
}

#[test]
fn a_redirect_leaves_doubt() {
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    resource.attempts(&Outcome::Refused { status: 303 }, START);
    assert_eq!(resource.state(), EntryState::Dead);
    // Back to what was acknowledged: Vercel may hold the other value all the same.
    resource.desires("status=ready", seconds(1));
    let patch = resource.acknowledges(resource.due());
    assert_eq!(sent(&patch), snapshot("status=ready"));
    assert!(resource.record.doubt.is_empty());
}

#[test]
fn acknowledgement_of_a_request_sent_too_early_leads_to_one_more_request() {
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    resource.attempts(&Outcome::Lost, START);
    let until = START.plus(LATE);
    resource.acknowledges(resource.due());
    let mark = resource.record.doubt.fields[&Field::Status];
    assert!(mark.confirmed);
    assert_eq!(mark.uncertain_until, Some(until));
    assert_eq!(
        (resource.state(), resource.entry().reason),
        (EntryState::Waiting, Reason::LateApply)
    );
    assert!(resource.due() > until);
    assert!(matches!(resource.try_claim(until), Claim::NotNow));
    let patch = resource.acknowledges(resource.due());
    assert_eq!(sent(&patch), snapshot("status=suspended"));
    assert!(resource.record.doubt.is_empty());
    assert_eq!(resource.record.entry, None);
}

#[test]
fn it_counts_when_a_request_was_sent_not_when_it_was_answered() {
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    resource.attempts(&Outcome::Lost, START);
    let until = START.plus(LATE);
    resource.claims(resource.due());
    // Sent at the last uncertain instant, answered well after it.
    let outcome = Outcome::Acknowledged { sent_at: until };
    resource.ends(&outcome, until.plus(Duration::from_secs(20)));
    assert!(!resource.record.doubt.is_empty());
    let later = resource.due().max(until.plus(Duration::from_secs(20)));
    resource.acknowledges(later);
    assert!(resource.record.doubt.is_empty());
}

#[test]
fn another_lost_answer_makes_the_wait_longer_never_shorter() {
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    resource.attempts(&Outcome::Lost, seconds(10));
    resource.attempts(&Outcome::Lost, seconds(20));
    let until = |resource: &Resource| resource.record.doubt.fields[&Field::Status].uncertain_until;
    assert_eq!(until(&resource), Some(seconds(20).plus(LATE)));
    resource.attempts(&Outcome::Failed, seconds(30));
    assert_eq!(until(&resource), Some(seconds(20).plus(LATE)));
}

#[test]
fn expired_lease_is_a_lost_answer() {
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    resource.claims(START);
    assert!(!expire(&mut resource.record, seconds(59), LATE));
    assert!(expire(&mut resource.record, seconds(60), LATE));
    let mark = resource.record.doubt.fields[&Field::Status];
    assert_eq!(mark.uncertain_until, Some(seconds(60).plus(LATE)));
    assert_eq!(resource.entry().attempts, 1);
    assert!(!abandon(&mut resource.record, seconds(60), LATE));
    // A claim takes over by itself, too.
    resource.claims(seconds(61));
    assert_eq!(resource.claims(seconds(200)).attempt, 3);
}

#[test]
fn secret_removed_while_in_doubt_forces_the_complete_array() {
    let mut resource = Resource::acknowledged("$A=1");
    resource.desires("$A=1 $B=1", START);
    let patch = resource.attempts(&Outcome::Lost, START);
    assert!(matches!(patch.secrets, Some(SecretsPatch::Partial(_))));
    resource.desires("$A=1", seconds(1));
    let patch = resource.claims(resource.due()).patch;
    let expected = snapshot("$A=1").secrets.expect("a set");
    assert_eq!(patch.secrets, Some(SecretsPatch::Complete(expected)));
}

#[test]
fn late_complete_array_cannot_wipe_a_secret_added_meanwhile() {
    for before in ["$A=1", ""] {
        let mut resource = Resource::acknowledged(before);
        resource.desires("$", START);
        let patch = resource.attempts(&Outcome::Lost, START);
        assert_eq!(
            patch.secrets,
            Some(SecretsPatch::Complete(SharedMap::new()))
        );
        resource.desires("$A=1 $C=1", seconds(1));
        resource.acknowledges(resource.due());
        // The lost array may have been applied after that: everything is sent again.
        assert_eq!(resource.entry().reason, Reason::LateApply);
        let patch = resource.acknowledges(resource.due());
        assert_eq!(sent(&patch), snapshot("$A=1 $C=1"));
        assert!(resource.record.doubt.is_empty());
        assert_eq!(resource.record.entry, None);
    }
}

// Law 3: minimal.

#[test]
fn only_what_differs_is_sent() {
    let mut resource = Resource::acknowledged("status=ready name=db $A=1 $B=1");
    resource.desires("status=ready name=other $A=1 $B=2", START);
    let patch = resource.claims(START).patch;
    assert_eq!(sent(&patch), snapshot("name=other $B=2"));
    assert!(matches!(patch.secrets, Some(SecretsPatch::Partial(_))));
}

#[test]
fn field_that_is_no_longer_managed_is_not_sent() {
    let mut resource = Resource::acknowledged("status=ready name=db $A=1");
    assert_eq!(resource.desires("status=ready", START), Decision::InSync);
    assert_eq!(resource.record.entry, None);
}

#[test]
fn nothing_left_at_the_claim_closes_the_entry() {
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    resource.record.acknowledged = snapshot("status=suspended");
    let Claim::Closed(closed) = resource.try_claim(START) else {
        panic!("nothing is left");
    };
    assert_eq!(closed.state, EntryState::Withdrawn);
    assert_eq!(resource.record.entry, None);
}

// Law 4: one at a time, newest wins.

#[test]
fn changes_while_waiting_fold_and_going_back_withdraws() {
    let mut resource = Resource::acknowledged("status=ready");
    assert_eq!(
        resource.desires("status=suspended", START),
        Decision::Enqueued
    );
    assert_eq!(
        resource.desires("status=suspended", START),
        Decision::Unchanged
    );
    assert_eq!(resource.desires("status=error", START), Decision::Folded);
    assert_eq!(resource.entry().generation, 1);
    assert_eq!(resource.desires("status=ready", START), Decision::Withdrawn);
    assert_eq!(resource.record.entry, None);
}

#[test]
fn change_in_flight_becomes_the_next_entry() {
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    resource.claims(START);
    resource.desires("status=error", seconds(1));
    assert!(
        matches!(resource.try_claim(seconds(1)), Claim::NotNow),
        "one request at a time"
    );
    let done = resource.ends(&Outcome::Acknowledged { sent_at: START }, seconds(2));
    assert_eq!(done.state, EntryState::Delivered);
    assert_eq!(done.closed.expect("closed").state, EntryState::Delivered);
    assert_eq!(resource.entry().origin, Origin::Followup);
    assert_eq!(resource.record.acknowledged, snapshot("status=suspended"));
    assert_eq!(
        sent(&resource.acknowledges(seconds(2))),
        snapshot("status=error")
    );
}

#[test]
fn source_that_goes_back_while_in_flight_is_sent_after_the_answer() {
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    resource.claims(START);
    assert_eq!(
        resource.desires("status=ready", seconds(1)),
        Decision::Folded
    );
    resource.ends(&Outcome::Acknowledged { sent_at: START }, seconds(2));
    assert_eq!(
        sent(&resource.acknowledges(seconds(2))),
        snapshot("status=ready")
    );
    // And after an answer that changed nothing there is nothing to send.
    resource.desires("status=suspended", seconds(3));
    resource.claims(seconds(3));
    resource.desires("status=ready", seconds(4));
    let done = resource.ends(&rejected(), seconds(5));
    assert_eq!(done.state, EntryState::Withdrawn);
    assert_eq!(resource.record.entry, None);
}

// Law 7: a failure stays where it happened.

#[test]
fn rejected_patch_is_split_and_only_the_bad_field_dies() {
    let mut resource = Resource::new();
    resource.desires("status=ready name=bad $A=1", START);
    resource.attempts(&rejected(), START);
    assert_eq!(resource.entry().mode, Mode::Split);
    let mut order = Vec::new();
    for _ in 0..3 {
        let patch = resource.claims(START).patch;
        let is_bad = patch.values.contains_key(&Field::Name);
        order.push(patch.fields().to_string());
        let outcome = if is_bad {
            rejected()
        } else {
            Outcome::Acknowledged { sent_at: START }
        };
        resource.ends(&outcome, START);
    }
    assert_eq!(order, ["secrets", "status", "name"]);
    assert_eq!(
        (resource.state(), resource.entry().reason),
        (EntryState::Dead, Reason::Rejected)
    );
    assert_eq!(resource.record.acknowledged, snapshot("status=ready $A=1"));
    // Another field goes on meanwhile, whole; the bad one stays where it is.
    resource.desires("status=suspended name=bad $A=1", seconds(1));
    assert_eq!(
        sent(&resource.acknowledges(seconds(1))),
        snapshot("status=suspended")
    );
    assert_eq!(resource.state(), EntryState::Dead);
    // Its own change opens it again.
    resource.desires("status=suspended name=good $A=1", seconds(2));
    assert_eq!(
        sent(&resource.acknowledges(seconds(2))),
        snapshot("name=good")
    );
    assert_eq!(resource.record.entry, None);
}

#[test]
fn rejection_of_a_value_that_moved_on_kills_nothing() {
    let mut resource = Resource::acknowledged("name=db");
    resource.desires("name=bad", START);
    resource.claims(START);
    resource.desires("name=good", seconds(1));
    resource.ends(&rejected(), seconds(2));
    assert_eq!(resource.state(), EntryState::Waiting);
    assert_eq!(
        sent(&resource.acknowledges(seconds(2))),
        snapshot("name=good")
    );
}

#[test]
fn source_that_takes_the_rejected_value_back_closes_the_dead_letter() {
    let mut resource = Resource::acknowledged("name=db");
    resource.desires("name=bad", START);
    resource.attempts(&rejected(), START);
    assert_eq!(resource.state(), EntryState::Dead);
    assert_eq!(resource.desires("name=db", seconds(1)), Decision::Withdrawn);
}

// Law 8: retry what may succeed, park what cannot.

#[test]
fn each_outcome_leads_where_the_design_says() {
    let waits = |reason, second| (EntryState::Waiting, reason, Some(seconds(second)));
    let dead = |reason| (EntryState::Dead, reason, None);
    let cases = [
        (Outcome::Lost, waits(Reason::Backoff, 2), 1),
        (Outcome::Failed, waits(Reason::Backoff, 2), 1),
        (Outcome::Unreachable, waits(Reason::Unreachable, 2), 0),
        (
            Outcome::RateLimited { until: seconds(30) },
            waits(Reason::RateLimited, 30),
            0,
        ),
        (
            Outcome::Conflict { observed: None },
            waits(Reason::Conflict, 2),
            1,
        ),
        (Outcome::TokenRefused, waits(Reason::TokenRefused, 1), 0),
        (
            Outcome::InstallationGone,
            waits(Reason::InstallationGone, 1),
            0,
        ),
        (
            Outcome::SourceUnavailable,
            waits(Reason::SourceUnavailable, 2),
            0,
        ),
        (Outcome::SourceMoved, waits(Reason::SourceMoved, 2), 0),
        (Outcome::Released, waits(Reason::Due, 1), 0),
        (rejected(), dead(Reason::Rejected), 1),
        (Outcome::NotFound, dead(Reason::NotFound), 1),
        (Outcome::Refused { status: 308 }, dead(Reason::Refused), 1),
    ];
    for (outcome, (state, reason, due), attempts) in cases {
        let mut resource = Resource::acknowledged("status=ready");
        resource.desires("status=suspended", START);
        resource.claims(START);
        let advance = resource.ends(&outcome, seconds(1));
        assert_eq!(
            (advance.state, advance.reason),
            (state, reason),
            "{outcome:?}"
        );
        if let Some(due) = due {
            assert_eq!(advance.due_at, due, "{outcome:?}");
        }
        let entry = resource.entry();
        assert_eq!(entry.attempts, attempts, "{outcome:?}");
        assert_eq!(
            (&entry.lease, &entry.in_flight),
            (&None, &None),
            "{outcome:?}"
        );
    }
}

#[test]
fn waits_double_and_an_acknowledgement_starts_them_over() {
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    let mut waits = Vec::new();
    for _ in 0..4 {
        let now = resource.due();
        resource.attempts(&Outcome::Failed, now);
        waits.push(resource.due().since(now).as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8]);
    // A newer value does not shorten the wait: it would meet the same answer.
    let due = resource.due();
    resource.desires("status=error", seconds(2));
    assert_eq!(resource.due(), due);
}

#[test]
fn conflicts_in_a_row_become_a_dead_letter_and_agreement_an_acknowledgement() {
    let conflict = |text: &str| Outcome::Conflict {
        observed: Some(Observed {
            values: snapshot(text).values,
            billing_plan_id: None,
        }),
    };
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    for _ in 0..2 {
        resource.attempts(&conflict("status=error"), resource.due());
        assert_eq!(resource.entry().reason, Reason::Conflict);
    }
    resource.attempts(&conflict("status=error"), resource.due());
    assert_eq!(
        (resource.state(), resource.entry().reason),
        (EntryState::Dead, Reason::ConflictLimit)
    );
    resource.desires("status=error", seconds(60));
    resource.claims(seconds(60));
    let done = resource.ends(&conflict("status=error"), seconds(61));
    assert_eq!(done.state, EntryState::Delivered);
    assert_eq!(resource.record.acknowledged, snapshot("status=error"));
    // What cannot be seen is never taken for granted.
    resource.desires("status=ready $A=1", seconds(62));
    resource.attempts(&conflict("status=ready"), seconds(62));
    assert_eq!(resource.entry().reason, Reason::Conflict);
}

#[test]
fn entry_that_outlives_max_elapsed_dies_unless_nobody_answered() {
    let policy = RetryPolicy {
        max_elapsed: Duration::from_secs(10),
        ..RETRY
    };
    for (outcome, state) in [
        (Outcome::Failed, EntryState::Dead),
        (Outcome::Unreachable, EntryState::Waiting),
        (Outcome::SourceUnavailable, EntryState::Waiting),
    ] {
        let mut resource = Resource::acknowledged("status=ready");
        resource.desires("status=suspended", START);
        resource.claims(START);
        advance(&mut resource.record, &outcome, &policy, seconds(10), 1.0).expect("in flight");
        assert_eq!(resource.state(), state, "{outcome:?}");
    }
}

#[test]
fn due_time_far_ahead_is_the_trace_of_a_clock_that_was_set_back() {
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", seconds(86_400));
    assert!(
        matches!(resource.try_claim(seconds(86_000)), Claim::NotNow),
        "a few minutes are believed"
    );
    resource.claims(START);
}

// First sight.

#[test]
fn first_sight_pushes_compares_or_adopts() {
    let first = |first_sight| {
        let mut resource = Resource::new();
        let policy = Policy { first_sight };
        let desired = snapshot("status=ready $A=1");
        let hash = fingerprint("row");
        let decided = decide(
            &mut resource.record,
            &desired,
            hash,
            Origin::Sweep,
            policy,
            START,
        );
        (resource, decided.decision)
    };
    let (pushed, decision) = first(FirstSight::Push);
    assert_eq!(
        (decision, pushed.entry().mode),
        (Decision::Enqueued, Mode::Whole)
    );
    let (adopted, decision) = first(FirstSight::Adopt);
    assert_eq!(decision, Decision::Adopted);
    assert_eq!(adopted.record.acknowledged, snapshot("status=ready $A=1"));
    let (mut compared, _) = first(FirstSight::Compare);
    let claimed = compared.claims(START);
    assert_eq!(
        (claimed.mode, claimed.patch.is_empty()),
        (Mode::Compare, true)
    );
    let observed = Observed {
        values: snapshot("status=ready").values,
        billing_plan_id: None,
    };
    compared.ends(&Outcome::Compared { observed }, START);
    // Secrets cannot be seen, so they are pushed.
    assert_eq!(sent(&compared.acknowledges(START)), snapshot("$A=1"));
    assert_eq!(compared.record.entry, None);
}

#[test]
fn row_that_was_read_again_makes_a_moved_entry_due() {
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    resource.attempts(&Outcome::SourceMoved, START);
    assert!(resource.due() > START);
    assert_eq!(
        resource.desires("status=suspended", START),
        Decision::Unchanged
    );
    assert_eq!(resource.due(), START);
}

#[test]
fn resource_stays_missing_until_its_row_is_back() {
    let mut resource = Resource::acknowledged("status=ready");
    assert!(missing(&mut resource.record, 1, seconds(1)));
    assert!(!missing(&mut resource.record, 1, seconds(2)));
    let expected = Some(Missing {
        since: seconds(1),
        sweeps: 2,
    });
    assert_eq!(resource.record.missing, expected);
    // What is done since the row is missing does not bring it back.
    let desired = snapshot("status=uninstalled");
    let hash = fingerprint("none");
    let policy = Policy::default();
    decide(
        &mut resource.record,
        &desired,
        hash,
        Origin::Missing,
        policy,
        seconds(3),
    );
    assert_eq!(resource.record.missing, expected);
    resource.desires("status=ready", seconds(4));
    assert_eq!(resource.record.missing, None);
}

// What people do.

#[test]
fn discarded_value_is_not_sent_until_the_source_changes_it() {
    let mut resource = Resource::acknowledged("status=ready name=db");
    resource.desires("status=suspended name=new", START);
    let closed = manual::discard(&mut resource.record).expect("idle");
    assert_eq!(closed.state, EntryState::Discarded);
    assert_eq!(
        resource.desires("status=suspended name=new", seconds(1)),
        Decision::InSync
    );
    // Only the field that changes is sent.
    resource.desires("status=suspended name=newer", seconds(2));
    assert_eq!(
        sent(&resource.acknowledges(seconds(2))),
        snapshot("name=newer")
    );
    resource.desires("status=error name=newer", seconds(3));
    assert_eq!(
        sent(&resource.acknowledges(seconds(3))),
        snapshot("status=error")
    );
    assert!(resource.record.dismissed.is_empty());
}

#[test]
fn discarding_a_dead_letter_dismisses_what_was_rejected() {
    let mut resource = Resource::acknowledged("name=db");
    resource.desires("name=bad", START);
    resource.attempts(&rejected(), START);
    manual::discard(&mut resource.record).expect("idle");
    assert_eq!(resource.desires("name=bad", seconds(1)), Decision::InSync);
    assert_eq!(
        resource.desires("name=good", seconds(2)),
        Decision::Enqueued
    );
}

#[test]
fn retry_forgets_what_was_rejected_and_sends_everything_whole() {
    let mut resource = Resource::acknowledged("status=ready name=db");
    resource.desires("status=ready name=bad", START);
    resource.attempts(&rejected(), START);
    manual::retry(&mut resource.record, seconds(1)).expect("idle");
    assert_eq!(resource.entry().reason, Reason::Retried);
    assert_eq!(
        sent(&resource.acknowledges(seconds(1))),
        snapshot("name=bad")
    );
}

#[test]
fn acts_are_refused_where_they_make_no_sense() {
    let mut resource = Resource::acknowledged("status=ready");
    assert_eq!(
        manual::retry(&mut resource.record, START),
        Err(Refusal::Closed)
    );
    resource.desires("status=suspended", START);
    assert_eq!(
        manual::release(&mut resource.record, START),
        Err(Refusal::NotHeld)
    );
    resource.claims(START);
    assert_eq!(
        manual::retry(&mut resource.record, START),
        Err(Refusal::InFlight)
    );
    assert_eq!(
        manual::discard(&mut resource.record),
        Err(Refusal::InFlight)
    );
    resource.ends(&Outcome::Released, START);
    let entry = resource.record.entry.as_mut().expect("open");
    (entry.state, entry.hold) = (EntryState::Held, Some(1));
    assert_eq!(
        manual::retry(&mut resource.record, START),
        Err(Refusal::Held)
    );
    assert!(matches!(resource.try_claim(START), Claim::NotNow));
    assert_eq!(resource.desires("status=error", START), Decision::Folded);
    assert_eq!(
        resource.state(),
        EntryState::Held,
        "a newer value stays held"
    );
    manual::release(&mut resource.record, START).expect("held");
    assert_eq!(
        (resource.state(), resource.entry().hold),
        (EntryState::Waiting, None)
    );
}

// Law 1, against every course of events.

/// Vercel as it really is: what it holds, and which lost requests it may still apply.
#[derive(Debug, Clone, Default)]
struct Truth {
    values: BTreeMap<Field, Json>,
    secrets: BTreeMap<SecretName, Fingerprint>,
    late: Vec<(Patch, Timestamp)>,
}

impl Truth {
    fn apply(&mut self, patch: &Patch) {
        self.values.extend(patch.values.clone());
        match &patch.secrets {
            Some(SecretsPatch::Complete(named)) => self.secrets.clone_from(named),
            Some(SecretsPatch::Partial(named)) => self.secrets.extend(named.clone()),
            None => {}
        }
    }

    fn apply_late(&mut self, which: usize) {
        if !self.late.is_empty() {
            let (patch, _) = self.late.remove(which % self.late.len());
            self.apply(&patch);
        }
    }

    /// Late requests come through at the last instant that is possible, or never.
    fn expire(&mut self, now: Timestamp, applied: bool) {
        let (gone, left) = self.late.drain(..).partition(|(_, until)| *until < now);
        self.late = left;
        for (patch, _) in Vec::into_iter(gone) {
            if applied {
                self.apply(&patch);
            }
        }
    }

    fn holds(&self, desired: &Snapshot) -> bool {
        let values = desired
            .values
            .iter()
            .all(|(field, value)| self.values.get(field) == Some(value));
        values
            && desired
                .secrets
                .as_ref()
                .is_none_or(|secrets| **secrets == self.secrets)
    }
}

#[derive(Debug, Clone)]
enum Event {
    Desire(Snapshot),
    Wait(u16),
    /// A request and its end: how, whether Vercel applied it, whether the source changes meanwhile.
    Request {
        how: u8,
        applied: bool,
        meanwhile: Option<Snapshot>,
    },
    /// A lost request is applied after all.
    ApplyLate(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => any_snapshot().prop_map(Event::Desire),
        2 => (0..65_000_u16).prop_map(Event::Wait),
        5 => (0..8_u8, any::<bool>(), prop::option::weighted(0.2, any_snapshot()))
            .prop_map(|(how, applied, meanwhile)| Event::Request { how, applied, meanwhile }),
        2 => any::<usize>().prop_map(Event::ApplyLate),
    ]
}

struct World {
    resource: Resource,
    truth: Truth,
    desired: Snapshot,
    now: Timestamp,
}

impl World {
    fn desire(&mut self, desired: Snapshot) {
        self.desired = desired;
        let hash = fingerprint(&format!("{:?}", self.desired));
        let policy = Policy::default();
        decide(
            &mut self.resource.record,
            &self.desired,
            hash,
            Origin::Poll,
            policy,
            self.now,
        );
    }

    fn request(&mut self, how: u8, applied: bool, meanwhile: Option<Snapshot>) {
        let Claim::Claimed(claimed) = self.resource.try_claim(self.now) else {
            return;
        };
        assert!(!claimed.patch.is_empty(), "an empty patch is never sent");
        let sent_at = self.now;
        if let Some(desired) = meanwhile {
            self.desire(desired);
        }
        let outcome = match how {
            0..=2 => {
                self.truth.apply(&claimed.patch);
                Outcome::Acknowledged { sent_at }
            }
            3 | 4 => {
                let until = self.now.plus(LATE);
                if applied {
                    self.truth.apply(&claimed.patch);
                } else {
                    self.truth.late.push((claimed.patch.clone(), until));
                }
                Outcome::Lost
            }
            5 => {
                if applied {
                    self.truth.apply(&claimed.patch);
                }
                Outcome::Failed
            }
            6 => Outcome::Conflict { observed: None },
            _ => Outcome::RateLimited { until: self.now },
        };
        self.resource.ends(&outcome, self.now);
        // A person looks after dead letters.
        let _ = manual::retry(&mut self.resource.record, self.now);
    }

    fn wait(&mut self, millis: u64, late_is_applied: bool) {
        self.now = self.now.plus(Duration::from_millis(millis));
        self.truth.expire(self.now, late_is_applied);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_sides_agree_once_faults_stop(events in prop::collection::vec(event(), 1..40), late_is_applied: bool) {
        let mut world = World {
            resource: Resource::new(),
            truth: Truth::default(),
            desired: Snapshot::default(),
            now: START,
        };
        for event in events {
            match event {
                Event::Desire(desired) => world.desire(desired),
                Event::Wait(millis) => world.wait(u64::from(millis), late_is_applied),
                Event::Request { how, applied, meanwhile } => world.request(how, applied, meanwhile),
                Event::ApplyLate(which) => world.truth.apply_late(which),
            }
        }
        // Faults stop, but what was lost may still arrive while the rest is delivered.
        let mut requests = 0;
        while let Some(entry) = &world.resource.record.entry {
            let wait = entry.due_at.since(world.now);
            world.wait(u64::try_from(wait.as_millis()).expect("short"), late_is_applied);
            world.request(0, true, None);
            requests += 1;
            prop_assert!(requests < 5, "it does not come to rest: {:?}", world.resource.record);
        }
        world.wait(120_000, late_is_applied);
        prop_assert!(world.truth.holds(&world.desired), "{:?}\n{:?}", world.truth, world.desired);
    }
}
