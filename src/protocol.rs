//! The protocol of claim, doubt, send and record, checked in every reachable state with stateright.
//!
//! The steps on the record are those of [`crate::plan`] themselves; what surrounds them (source, workers, network, Vercel,
//! time) is modelled. `docs/testing.md` says what the model covers and what it leaves out.

mod book;
mod laws;
mod model;
mod tale;

use std::collections::BTreeMap;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model as _};

use crate::model::{Field, Fingerprint, Json, SecretName, Snapshot};
use crate::planted::Bug;

use book::Terms;
use model::{Budget, Protocol, Setting};

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
    let named: BTreeMap<_, _> = named
        .iter()
        .map(|(name, value)| {
            (
                SecretName::new(name).expect("a name"),
                Fingerprint::from_bytes([*value; 16]),
            )
        })
        .collect();
    Snapshot {
        values: BTreeMap::new(),
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

/// Checks every reachable state; fails with the path in words, or if there were fewer states than expected.
fn check(name: &str, setting: Setting, states_min: usize) {
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
    assert!(missing.is_empty(), "{name}: never occurred: {missing:?}");
    assert!(
        states >= states_min,
        "{name}: only {states} states, at least {states_min} were expected"
    );
}

#[test]
fn every_state_of_one_field_obeys_the_laws() {
    check("one field", one_field(), 1);
}
