//! The protocol of claim, doubt, send and record, checked in every reachable state with stateright.
//!
//! The steps on the record are those of [`crate::plan`] themselves; what surrounds them (source, workers, network, Vercel,
//! time) is modelled. `docs/testing.md` says what the model covers and what it leaves out.

mod book;
mod laws;
mod model;
mod tale;
mod world;

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model as _};

use crate::model::{Field, Fingerprint, Json, SecretName, SharedMap, Snapshot};
use crate::planted::Bug;

use book::Terms;
use model::Protocol;
use world::{Budget, Setting};

const TERMS: Terms = Terms {
    lease: 2,
    timeout: 1,
    late_apply: 1,
};

/// Four values of one field; two processes.
fn one_field() -> Setting {
    Setting {
        values: ["ready", "suspended", "resumed", "error"]
            .map(|status| fields(&[(Field::Status, status)]))
            .to_vec(),
        interchangeable: true,
        first_sight: false,
        alone: false,
        explicit: false,
        budget: Budget {
            changes: 3,
            crashes: 2,
            lost: 2,
            refusals: 1,
        },
        terms: TERMS,
        bug: None,
    }
}

fn fields(values: &[(Field, &str)]) -> Snapshot {
    Snapshot {
        values: values
            .iter()
            .map(|(field, text)| (*field, Json::from_text(text)))
            .collect(),
        secrets: None,
    }
}

fn secrets(named: &[(&str, u8)]) -> Snapshot {
    let named: SharedMap<_, _> = named
        .iter()
        .map(|(name, value)| {
            (
                SecretName::new(name).expect("a name"),
                Fingerprint::from_bytes([*value; 16]),
            )
        })
        .collect();
    Snapshot {
        values: SharedMap::new(),
        secrets: Some(named),
    }
}

#[expect(
    clippy::print_stdout,
    reason = "what a check covered is for whoever runs it"
)]
fn say(text: &str) {
    println!("{text}");
}

/// Which of the signs that a model is not trivial have to occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signs {
    All,
    /// The setting leaves no room for some.
    Some,
}

/// Checks every reachable state; fails with the path in words, or if there were fewer states than expected.
fn check(name: &str, setting: Setting, states_min: usize, signs: Signs) {
    let started = Instant::now();
    let checker = Protocol::new(setting)
        .checker()
        .threads(2)
        .spawn_bfs()
        .join();
    let states = checker.unique_state_count();
    say(&format!(
        "{name}: {states} states, {} steps, {} different records, depth {}, {:.1} s",
        checker.state_count(),
        checker.model().book.different_records(),
        checker.max_depth(),
        started.elapsed().as_secs_f64(),
    ));
    let mut missing = Vec::new();
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        match found {
            Some(path) if property.expectation.discovery_is_failure() => {
                panic!(
                    "{name}: not so: {}\n{}",
                    property.name,
                    tale::tell(checker.model(), path.into_vec())
                )
            }
            None if !property.expectation.discovery_is_failure() => missing.push(property.name),
            _ => {}
        }
    }
    assert!(checker.is_done(), "{name}: the check is incomplete");
    assert!(
        signs == Signs::Some || missing.is_empty(),
        "{name}: never occurred: {missing:?}"
    );
    assert!(
        states >= states_min,
        "{name}: only {states} states, at least {states_min} were expected"
    );
}

/// Fields of which one may be rejected while the other is not.
fn two_fields() -> Setting {
    let values = [("ready", "a"), ("suspended", "b"), ("ready", "b")];
    Setting {
        values: values
            .map(|(status, name)| fields(&[(Field::Status, status), (Field::Name, name)]))
            .to_vec(),
        interchangeable: false,
        ..one_field()
    }
}

/// A set of secrets that gains a name, loses one, and has a value replaced.
fn secret_set() -> Setting {
    Setting {
        values: vec![
            secrets(&[("A", 1)]),
            secrets(&[("A", 1), ("B", 1)]),
            secrets(&[("A", 2)]),
        ],
        interchangeable: false,
        ..one_field()
    }
}

fn with_budget(setting: Setting, changes: u8, crashes: u8, lost: u8, refusals: u8) -> Setting {
    Setting {
        budget: Budget {
            changes,
            crashes,
            lost,
            refusals,
        },
        ..setting
    }
}

#[test]
fn every_state_with_four_values_two_crashes_and_two_lost_answers_obeys_the_laws() {
    check(
        "four values",
        with_budget(one_field(), 3, 2, 2, 0),
        450_000,
        Signs::All,
    );
}

#[test]
fn every_state_with_refusals_obeys_the_laws() {
    check(
        "refusals",
        with_budget(one_field(), 2, 1, 1, 1),
        90_000,
        Signs::All,
    );
}

#[test]
fn every_state_of_two_fields_obeys_the_laws() {
    check(
        "two fields",
        with_budget(two_fields(), 1, 0, 1, 2),
        40_000,
        Signs::Some,
    );
}

#[test]
fn every_state_of_a_secret_set_obeys_the_laws() {
    check(
        "secrets",
        with_budget(secret_set(), 2, 1, 1, 0),
        80_000,
        Signs::All,
    );
}

#[test]
fn every_state_of_one_process_that_starts_again_obeys_the_laws() {
    let setting = Setting {
        alone: true,
        ..one_field()
    };
    check(
        "one process",
        with_budget(setting, 2, 2, 1, 0),
        45_000,
        Signs::Some,
    );
}

#[test]
fn every_state_from_the_first_sight_obeys_the_laws() {
    let setting = Setting {
        first_sight: true,
        ..one_field()
    };
    check(
        "first sight",
        with_budget(setting, 1, 1, 1, 1),
        45_000,
        Signs::Some,
    );
}

#[test]
fn every_state_of_workers_that_wake_late_obeys_the_laws() {
    let setting = Setting {
        explicit: true,
        ..one_field()
    };
    check(
        "late workers",
        with_budget(setting, 1, 1, 1, 0),
        50_000,
        Signs::Some,
    );
}

/// The bugs of the protocol that the model has to find, each in the smallest setting that shows it.
fn planted() -> Vec<(Bug, Setting)> {
    let explicit = |setting| Setting {
        explicit: true,
        ..setting
    };
    vec![
        (Bug::NoDoubtMark, with_budget(one_field(), 1, 0, 0, 0)),
        (
            Bug::DoubtMarkedAfterSending,
            with_budget(one_field(), 1, 0, 0, 0),
        ),
        (Bug::DoubtClearedBy4xx, with_budget(one_field(), 2, 0, 1, 1)),
        (
            Bug::UncertaintyJudgedAtAnswer,
            with_budget(one_field(), 2, 0, 1, 0),
        ),
        (Bug::LostNotLate, with_budget(one_field(), 2, 0, 1, 0)),
        (
            Bug::ExpiredLeaseNotLate,
            with_budget(one_field(), 2, 1, 0, 0),
        ),
        (
            Bug::ConfirmationOutlivesLoss,
            with_budget(one_field(), 2, 0, 2, 0),
        ),
        (
            Bug::ServerErrorProvesNothing,
            with_budget(one_field(), 1, 0, 0, 1),
        ),
        (Bug::DoubtNotSent, with_budget(one_field(), 2, 0, 1, 0)),
        (Bug::WithdrawnInDoubt, with_budget(one_field(), 2, 0, 1, 0)),
        (
            Bug::LeaseTokenNotChecked,
            explicit(with_budget(one_field(), 1, 0, 0, 0)),
        ),
        (
            Bug::LeaseTokenReused,
            explicit(with_budget(one_field(), 1, 0, 0, 0)),
        ),
        (
            Bug::LeaseMayRunOut,
            explicit(with_budget(one_field(), 2, 0, 0, 0)),
        ),
        (
            Bug::TwoInFlight,
            explicit(with_budget(one_field(), 1, 0, 0, 0)),
        ),
        (Bug::FollowupForgotten, with_budget(one_field(), 2, 0, 0, 0)),
        (
            Bug::NewerTargetAcknowledged,
            with_budget(one_field(), 2, 0, 0, 0),
        ),
        (
            Bug::PartialAfterRemoval,
            with_budget(secret_set(), 2, 0, 0, 0),
        ),
        (
            Bug::DoubtfulSecretForgotten,
            with_budget(secret_set(), 2, 0, 1, 0),
        ),
        (
            Bug::CompleteArrayAdds,
            with_budget(secret_set(), 2, 0, 0, 0),
        ),
        (
            Bug::ConflictAcknowledgesUnseen,
            with_budget(secret_set(), 1, 0, 0, 1),
        ),
        (
            Bug::RejectedFieldBlocksOthers,
            with_budget(two_fields(), 1, 0, 0, 1),
        ),
        (
            Bug::RejectionOutlivesValue,
            with_budget(one_field(), 2, 0, 0, 1),
        ),
    ]
}

/// The law that a bug breaks first.
///
/// Where that is convergence, the state is one from which calm weather no longer leads to equality: it comes before that in which what went
/// wrong is done.
fn law_of(bug: Bug) -> &'static str {
    match bug {
        Bug::NoDoubtMark
        | Bug::DoubtMarkedAfterSending
        | Bug::DoubtClearedBy4xx
        | Bug::LostNotLate
        | Bug::ExpiredLeaseNotLate
        | Bug::ConfirmationOutlivesLoss => laws::DOUBT_FIRST,
        Bug::ServerErrorProvesNothing => laws::ACKNOWLEDGED_IS_HELD,
        Bug::LeaseTokenNotChecked => laws::STALE_TOKEN,
        Bug::LeaseTokenReused | Bug::TwoInFlight => laws::ONE_AT_A_TIME,
        _ => laws::CONVERGENCE,
    }
}

#[test]
fn every_planted_bug_of_the_protocol_is_found() {
    let mut missed = Vec::new();
    let mut otherwise = Vec::new();
    for (bug, setting) in planted() {
        let checker = Protocol::new(Setting {
            bug: Some(bug),
            ..setting
        })
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
        let broken = checker
            .model()
            .properties()
            .into_iter()
            .filter(|property| property.expectation.discovery_is_failure())
            .find_map(|property| Some((property.name, checker.discovery(property.name)?)));
        let Some((law, path)) = broken else {
            missed.push(bug);
            continue;
        };
        if law != law_of(bug) {
            otherwise.push(format!("{bug:?}: {law}"));
        }
        let mut steps = path.into_vec();
        let length = steps.len() - 1;
        if law == laws::CONVERGENCE {
            checker.model().go_on_calmly(&mut steps);
        }
        let tale = tale::tell(checker.model(), steps);
        say(&format!(
            "{bug:?} is found in {length} steps. Not so: {law}\n{tale}"
        ));
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
    assert!(otherwise.is_empty(), "found by another law: {otherwise:?}");
}
