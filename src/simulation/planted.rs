//! Planted bugs: each must be caught, within so many seeds, by a law.

use crate::planted::{Bug, with_planted};

use super::backend::Backend;
use super::laws::Law;
use super::seeds::{failing, note, try_seed};

/// How many seeds a bug may survive. The code as it is passes all of them, which `seeds` proves.
const SEEDS_MAX: u64 = 2000;

/// What catches a bug: the first seed that does, and the law that is broken there.
fn caught(bug: Bug) -> Option<(u64, Law)> {
    let found = failing(0..SEEDS_MAX, 1, |seed| {
        let violation = with_planted(Some(bug), || {
            try_seed(seed, Backend::memory, false).violation
        })?;
        Some(violation.law)
    });
    found.into_iter().next()
}

/// The bugs that the ordinary run tries; `RECONCILED_PLANTED=all` tries every one, which takes long unoptimised.
const ORDINARY: [Bug; 3] = [
    Bug::NoDoubtMark,
    Bug::EmptySourceDeletes,
    Bug::CursorCommittedFirst,
];

#[test]
fn planted_bugs_are_caught() {
    let mut survivors = Vec::new();
    let all = std::env::var_os("RECONCILED_PLANTED").is_some_and(|value| value == "all");
    let bugs = if all {
        Bug::ALL.to_vec()
    } else {
        ORDINARY.to_vec()
    };
    for bug in bugs {
        match caught(bug) {
            Some((seed, law)) => note(&format!("{bug:?}: caught by {law}, seed {seed}")),
            None => {
                note(&format!("{bug:?}: SURVIVES {SEEDS_MAX} seeds"));
                survivors.push(bug);
            }
        }
    }
    assert_eq!(survivors, [], "planted bugs that no law catches");
}
