//! Single cases in which a decision could go wrong without any law noticing at once: each is one that a changed decision passed.

use std::time::Duration;

use crate::model::record::Missing;
use crate::model::{
    Doubt, Entry, EntryState, Field, Json, Lease, LeaseToken, Mark, Mode, Observed, Origin, Reason,
    Record, Snapshot, Timestamp,
};
use crate::planted::{Bug, with_planted};

use super::advance::Outcome;
use super::claim::{Claim, DUE_HORIZON, SecretsWay, claim_with};
use super::decide::{
    Decision, FirstSight, Policy, bereave, decide, just_after, reinstalled, rests, uninstalled,
};
use super::fixture::*;
use super::{guard, manual};

/// The smallest step of time.
const MOMENT: Duration = Duration::from_millis(1);

/// An acknowledged resource with an open entry of this mode.
fn with_entry(acknowledged: &str, desired: &str, mode: Mode) -> Resource {
    let mut resource = Resource::acknowledged(acknowledged);
    let entry = Entry::new(snapshot(desired), Origin::Poll, mode, START);
    resource.record.entry = Some(entry);
    resource
}

fn decides(resource: &mut Resource, desired: &str, origin: Origin, policy: Policy) -> Decision {
    let record = &mut resource.record;
    let hash = fingerprint(desired);
    decide(record, &snapshot(desired), hash, origin, policy, START).decision
}

/// Confirmed since, but a lost request may still be applied.
fn confirmed() -> Mark {
    Mark {
        uncertain_until: Some(START.plus(LATE)),
        confirmed: true,
    }
}

/// Not confirmed, and a lost request may be applied for so long.
fn uncertain_for(ahead: Duration) -> Mark {
    Mark {
        uncertain_until: Some(START.plus(ahead)),
        confirmed: false,
    }
}

fn acknowledgement() -> Outcome {
    Outcome::Acknowledged { sent_at: START }
}

// What a comparison shows.

/// The fields in doubt after Vercel was asked for a resource of which `acknowledged` was accepted and is desired.
fn doubtful_after(acknowledged: &Snapshot, desired: &Snapshot, observed: Observed) -> Vec<Field> {
    let mut resource = Resource::new();
    resource.record.acknowledged = acknowledged.clone();
    let entry = Entry::new(desired.clone(), Origin::Drift, Mode::Compare, START);
    resource.record.entry = Some(entry);
    resource.attempts(&Outcome::Compared { observed }, START);
    resource.record.doubt.fields.keys().copied().collect()
}

#[test]
fn a_comparison_doubts_what_was_acknowledged_and_is_shown_otherwise() {
    let nothing = Snapshot::default();
    let cases = [
        (
            "status=ready",
            "status=ready",
            "status=error",
            vec![Field::Status],
        ),
        ("status=ready", "status=ready", "status=ready", vec![]),
        // Nobody said that it was there: it is sent without any doubt.
        ("", "status=ready", "status=error", vec![]),
        // What GET never shows is not missing there.
        (
            "extras=x ownership=owned",
            "extras=x ownership=owned",
            "",
            vec![],
        ),
    ];
    for (acknowledged, desired, shown, doubtful) in cases {
        let observed = Observed {
            values: snapshot(shown).values,
            billing_plan_id: None,
        };
        let found = doubtful_after(&snapshot(acknowledged), &snapshot(desired), observed);
        assert_eq!(found, doubtful, "{acknowledged} → {desired}, shown {shown}");
    }
    assert!(doubtful_after(&nothing, &nothing, Observed::default()).is_empty());
}

#[test]
fn of_a_plan_a_comparison_judges_the_id_alone_and_only_if_one_is_shown() {
    let plan = Json::from_value(&serde_json::json!({"id": "pro", "name": "Pro"}));
    let side = Snapshot {
        values: [(Field::BillingPlan, plan)].into(),
        secrets: None,
    };
    for (shown, doubtful) in [(Some("free"), true), (Some("pro"), false), (None, false)] {
        let observed = Observed {
            billing_plan_id: shown.map(str::to_owned),
            ..Observed::default()
        };
        let found = doubtful_after(&side, &side, observed);
        assert_eq!(found.contains(&Field::BillingPlan), doubtful, "{shown:?}");
    }
}

#[test]
fn a_comparison_that_failed_waits_for_its_own_reason_not_for_a_late_application() {
    let mut resource = with_entry("status=ready", "status=ready", Mode::Compare);
    resource
        .record
        .doubt
        .fields
        .insert(Field::Status, confirmed());
    resource.claims(START);
    let end = resource.ends(&Outcome::Unreachable, START);
    assert_eq!((end.reason, end.due_at), (Reason::Unreachable, seconds(1)));
}

// An answer to a value that is no longer desired.

#[test]
fn what_an_answer_says_of_an_older_value_parks_nothing() {
    let cases = [
        (Outcome::NotFound, EntryState::Waiting, Reason::Due),
        (
            Outcome::Refused { status: 405 },
            EntryState::Waiting,
            Reason::Due,
        ),
        (Outcome::Lost, EntryState::Waiting, Reason::Backoff),
    ];
    for (outcome, state, reason) in cases {
        let mut resource = Resource::acknowledged("status=ready");
        resource.desires("status=suspended", START);
        resource.claims(START);
        resource.desires("status=error", START);
        let end = resource.ends(&outcome, START);
        assert_eq!((end.state, end.reason), (state, reason), "{outcome:?}");
    }
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    let conflict = Outcome::Conflict { observed: None };
    for _ in 1..RETRY.max_conflicts {
        resource.attempts(&conflict, resource.due());
    }
    resource.claims(resource.due());
    resource.desires("status=error", seconds(60));
    let end = resource.ends(&conflict, seconds(60));
    assert_eq!((end.state, end.reason), (EntryState::Waiting, Reason::Due));
    // Its conflicts are counted from the first.
    resource.claims(seconds(60));
    let end = resource.ends(&conflict, seconds(60));
    assert_eq!(
        (end.state, end.reason),
        (EntryState::Waiting, Reason::Conflict)
    );
}

#[test]
fn the_entry_that_follows_keeps_what_was_rejected() {
    let mut resource = Resource::acknowledged("status=ready name=db");
    resource.desires("status=suspended name=bad", START);
    resource.attempts(&rejected(), START);
    resource.acknowledges(START);
    resource.attempts(&rejected(), START);
    assert_eq!(resource.state(), EntryState::Dead);
    resource.desires("status=error name=bad", START);
    resource.claims(START);
    resource.desires("status=ready name=bad", START);
    resource.ends(&acknowledgement(), START);
    assert_eq!(resource.entry().origin, Origin::Followup);
    assert_eq!(
        sent(&resource.acknowledges(START)),
        snapshot("status=ready")
    );
    assert_eq!(
        (resource.state(), resource.entry().reason),
        (EntryState::Dead, Reason::Rejected)
    );
}

#[test]
fn the_entry_that_follows_stays_under_the_hold() {
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    resource.claims(START);
    guard::hold(&mut resource.record, 7);
    assert_eq!(resource.state(), EntryState::Waiting, "it is in flight");
    resource.desires("status=error", START);
    resource.ends(&acknowledgement(), START);
    assert_eq!(
        (resource.state(), resource.entry().hold),
        (EntryState::Held, Some(7))
    );
}

// What a row that was read means.

#[test]
fn an_unchanged_row_makes_only_an_entry_due_that_waited_for_it() {
    // What waits for Vercel goes on waiting.
    let mut resource = Resource::acknowledged("status=ready");
    resource.desires("status=suspended", START);
    resource.attempts(&Outcome::Failed, START);
    let before = resource.entry().clone();
    resource.desires("status=suspended", START);
    assert_eq!(*resource.entry(), before);
    // What is in flight is not touched either.
    resource.attempts(&Outcome::SourceMoved, seconds(10));
    resource.claims(seconds(60));
    let before = resource.entry().clone();
    resource.desires("status=suspended", seconds(61));
    assert_eq!(*resource.entry(), before);
}

#[test]
fn only_a_resource_never_seen_before_is_compared_first() {
    let policy = Policy {
        first_sight: FirstSight::Compare,
    };
    let mut known = Resource::acknowledged("status=ready");
    decides(&mut known, "status=error", Origin::Poll, policy);
    assert_eq!(known.entry().mode, Mode::Whole);
    let adopt = Policy {
        first_sight: FirstSight::Adopt,
    };
    let mut known = Resource::acknowledged("status=ready");
    let decision = decides(&mut known, "status=error", Origin::Poll, adopt);
    assert_eq!(decision, Decision::Enqueued);
}

#[test]
fn what_only_waits_for_a_late_application_is_due_after_it() {
    let mut resource = Resource::acknowledged("status=ready");
    resource
        .record
        .doubt
        .fields
        .insert(Field::Status, confirmed());
    assert_eq!(resource.desires("status=ready", START), Decision::Enqueued);
    assert_eq!(resource.due(), just_after(START.plus(LATE)));
}

#[test]
fn what_a_person_dismissed_is_forgotten_only_by_a_row_that_says_otherwise() {
    let dismissed = |origin, desired: &str| {
        let mut resource = Resource::acknowledged("status=ready name=db");
        for (field, value) in [(Field::Status, "error"), (Field::Name, "new")] {
            let side = snapshot(&format!("{field}={value}"));
            let digest = side.digest(field).expect("it has the field");
            resource.record.dismissed.insert(field, digest);
        }
        decides(&mut resource, desired, origin, Policy::default());
        let fields = resource.record.dismissed.keys().copied();
        fields.collect::<Vec<_>>()
    };
    let (status, name) = (Field::Status, Field::Name);
    assert_eq!(
        dismissed(Origin::Poll, "status=error name=new"),
        [status, name]
    );
    assert_eq!(dismissed(Origin::Poll, "status=error name=newer"), [status]);
    assert_eq!(dismissed(Origin::Poll, "status=error"), [status]);
    // A missing row desires a status and says nothing of the name.
    assert_eq!(dismissed(Origin::Missing, "status=error"), [status, name]);
    assert_eq!(dismissed(Origin::Missing, "status=uninstalled"), [name]);
}

#[test]
fn a_newer_value_waits_as_long_as_the_older_one_unless_it_alone_was_waited_for() {
    let reasons = [
        (Reason::Backoff, true),
        (Reason::RateLimited, true),
        (Reason::Conflict, true),
        (Reason::TokenRefused, true),
        (Reason::InstallationGone, true),
        (Reason::SourceUnavailable, true),
        (Reason::Unreachable, true),
        (Reason::LateApply, false),
        (Reason::SourceMoved, false),
        (Reason::Retried, false),
    ];
    for (reason, waits) in reasons {
        let mut resource = with_entry("status=ready", "status=error", Mode::Whole);
        let entry = resource.record.entry.as_mut().expect("open");
        (entry.reason, entry.due_at) = (reason, seconds(30));
        resource.desires("status=suspended", seconds(1));
        let due = if waits { seconds(30) } else { seconds(1) };
        assert_eq!(resource.due(), due, "{reason:?}");
    }
}

#[test]
fn a_newer_value_that_is_held_keeps_the_reason_and_the_time() {
    let mut resource = with_entry("status=ready", "status=error", Mode::Whole);
    guard::hold(&mut resource.record, 7);
    resource.desires("status=suspended", seconds(1));
    let entry = resource.entry();
    assert_eq!(
        (entry.state, entry.reason),
        (EntryState::Held, Reason::Guard)
    );
    assert_eq!(entry.due_at, START);
}

#[test]
fn a_newer_value_ends_a_split_and_nothing_else() {
    let after = |mode, rejects: bool| {
        let mut resource = with_entry("status=ready name=db", "status=error name=bad", mode);
        if rejects {
            resource.attempts(&rejected(), START);
            resource.acknowledges(START);
            resource.attempts(&rejected(), START);
        }
        resource.desires("status=suspended name=bad", START);
        resource.entry().mode
    };
    assert_eq!(after(Mode::Split, false), Mode::Whole);
    assert_eq!(after(Mode::Whole, true), Mode::Split, "a field is rejected");
    assert_eq!(after(Mode::Compare, false), Mode::Compare);
}

// Rows that are gone.

/// A resource whose row was found missing by `sweeps` sweeps since `since`.
fn missing_since(since: Timestamp, sweeps: u32) -> Record {
    let mut record = Resource::acknowledged("status=ready").record;
    record.missing = Some(Missing { since, sweeps });
    record
}

#[test]
fn a_resource_is_uninstalled_once_two_sweeps_missed_it_and_one_ended_in_between() {
    let cases = [
        (1, 5, false),
        (2, 5, true),
        (3, 5, true),
        (2, 10, true),
        (2, 11, false),
    ];
    for (sweeps, since, expected) in cases {
        let record = missing_since(seconds(since), sweeps);
        let found = uninstalled(&record, seconds(10));
        let desired = expected.then(|| snapshot("status=uninstalled"));
        assert_eq!(found, desired, "{sweeps} sweeps since {since} s");
    }
    let mut unmanaged = missing_since(START, 2);
    unmanaged.acknowledged.values.clear();
    assert_eq!(uninstalled(&unmanaged, seconds(10)), None);
    let present = Resource::acknowledged("status=ready").record;
    assert_eq!(uninstalled(&present, seconds(10)), None);
}

#[test]
fn an_unusable_row_takes_back_an_uninstallation_and_nothing_else() {
    let desired = |text: &str| reinstalled(&with_entry("status=ready", text, Mode::Whole).record);
    assert_eq!(
        desired("status=uninstalled"),
        Some(snapshot("status=ready"))
    );
    assert_eq!(desired("status=suspended"), None);
    assert_eq!(desired("status=uninstalled name=db"), None);
    let mut unmanaged = with_entry("name=db", "status=uninstalled", Mode::Whole);
    assert_eq!(reinstalled(&unmanaged.record), None);
    unmanaged.record.entry = None;
    assert_eq!(reinstalled(&unmanaged.record), None);
}

#[test]
fn secrets_in_doubt_outlive_an_entry_only_while_their_row_is_gone() {
    let array = Doubt {
        fields: [(Field::Secrets, Mark::default())].into(),
        ..Doubt::default()
    };
    let single = Doubt {
        secrets: [(secret_name("A"), Mark::default())].into(),
        ..Doubt::default()
    };
    let status = Doubt {
        fields: [(Field::Status, Mark::default())].into(),
        ..Doubt::default()
    };
    let gone = Some(Missing {
        since: START,
        sweeps: 1,
    });
    let row_gone = Some(Reason::RowGone);
    let cases = [
        (gone, &array, "status=ready", row_gone),
        (gone, &single, "status=ready", row_gone),
        (gone, &status, "status=ready", None),
        (gone, &Doubt::default(), "status=ready", None),
        (gone, &single, "status=ready $A=1", None),
        (gone, &single, "status=uninstalled", None),
        (None, &single, "status=ready", None),
    ];
    for (missing, doubt, desired, reason) in cases {
        let mut record = with_entry("status=ready", desired, Mode::Whole).record;
        (record.missing, record.doubt) = (missing, doubt.clone());
        assert_eq!(rests(&record), reason, "{missing:?} {doubt:?} {desired}");
    }
}

#[test]
fn what_a_vanished_row_takes_back_makes_a_new_generation() {
    let mut resource = with_entry("status=ready", "status=error $A=1", Mode::Whole);
    let before = resource.entry().generation;
    bereave(&mut resource.record, START).expect("it had secrets");
    assert_eq!(resource.entry().generation, before + 1);
}

// When an entry is due, and what a person does to it.

#[test]
fn a_late_claim_leaves_a_mark_whole_and_one_that_only_a_wrong_clock_can_mean_is_brought_back() {
    let left_of = |ahead| {
        let mut resource = with_entry("status=ready", "status=error", Mode::Whole);
        let doubt = &mut resource.record.doubt;
        doubt.fields.insert(Field::Status, uncertain_for(ahead));
        assert!(matches!(resource.try_claim(START), Claim::Claimed(_)));
        resource.record.doubt.fields[&Field::Status].uncertain_until
    };
    let believed = DUE_HORIZON - MOMENT;
    assert_eq!(left_of(believed), Some(START.plus(believed)));
    assert_eq!(left_of(DUE_HORIZON), Some(START.plus(LATE)));
}

#[test]
fn what_waits_for_the_latest_mark_that_is_believed_is_not_claimed_in_vain() {
    let mut resource = with_entry("status=ready", "status=ready", Mode::Whole);
    let mark = Mark {
        confirmed: true,
        ..uncertain_for(DUE_HORIZON - MOMENT)
    };
    resource.record.doubt.fields.insert(Field::Status, mark);
    assert_eq!(resource.try_claim(START), Claim::NotNow);
    let due_at = resource.entry().due_at;
    assert!(due_at > START, "it waits");
    assert!(due_at <= START.plus(DUE_HORIZON), "and is believed");
}

#[test]
fn a_due_time_is_believed_up_to_the_horizon() {
    let claim_when_due_in = |wait| {
        let mut resource = with_entry("status=ready", "status=error", Mode::Whole);
        resource.record.entry.as_mut().expect("open").due_at = START.plus(wait);
        resource.try_claim(START)
    };
    assert_eq!(claim_when_due_in(DUE_HORIZON), Claim::NotNow);
    assert!(matches!(
        claim_when_due_in(DUE_HORIZON + MOMENT),
        Claim::Claimed(_)
    ));
}

#[test]
fn where_secrets_go_alone_a_patch_without_any_is_whole() {
    // Nothing but the confirmation of a status is left, and its time has come.
    let mut resource = with_entry("status=ready", "status=ready", Mode::Whole);
    let doubt = &mut resource.record.doubt;
    doubt.fields.insert(Field::Status, confirmed());
    let now = START.plus(LATE * 2);
    let lease = Lease {
        owner: "test".to_owned(),
        token: LeaseToken(1),
        expires_at: now.plus(LATE),
    };
    let record = &mut resource.record;
    let Claim::Claimed(claimed) = claim_with(record, now, &lease, LATE, SecretsWay::Alone) else {
        panic!("it is due");
    };
    assert_eq!(sent(&claimed.patch), snapshot("status=ready"));
}

#[test]
fn a_retry_ends_a_split_and_leaves_a_comparison_one() {
    for (mode, expected) in [
        (Mode::Split, Mode::Whole),
        (Mode::Compare, Mode::Compare),
        (Mode::Whole, Mode::Whole),
    ] {
        let mut resource = with_entry("status=ready", "status=error", mode);
        manual::retry(&mut resource.record, START).expect("idle");
        assert_eq!(resource.entry().mode, expected);
    }
}

// A planted bug breaks what its name says and nothing else: what it is caught by says otherwise little.

/// What is decided when the source goes on to `next` after a request whose answer was lost.
fn decided_in_doubt(planted: Option<Bug>, next: &str) -> Decision {
    with_planted(planted, || {
        let mut resource = Resource::acknowledged("status=ready");
        resource.desires("status=error", START);
        resource.attempts(&Outcome::Lost, START);
        resource.desires(next, START)
    })
}

#[test]
fn planted_a_withdrawal_in_doubt_concerns_what_went_back() {
    let (ready, suspended) = ("status=ready", "status=suspended");
    let planted = Some(Bug::WithdrawnInDoubt);
    assert_eq!(decided_in_doubt(None, ready), Decision::Folded);
    assert_eq!(decided_in_doubt(planted, ready), Decision::Withdrawn);
    assert_eq!(decided_in_doubt(planted, suspended), Decision::Folded);
}

#[test]
fn planted_a_missing_mark_leaves_no_doubt_at_the_claim() {
    let in_doubt = |planted| {
        with_planted(planted, || {
            let mut resource = Resource::acknowledged("status=ready");
            resource.desires("status=error", START);
            resource.claims(START);
            !resource.record.doubt.is_empty()
        })
    };
    assert!(in_doubt(None));
    assert!(!in_doubt(Some(Bug::NoDoubtMark)));
    assert!(!in_doubt(Some(Bug::DoubtMarkedAfterSending)));
}
