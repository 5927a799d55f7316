//! Planted bugs: each must be caught, within so many seeds, by a law.

use crate::planted::{Bug, with_planted};

use super::backend::Backend;
use super::laws::Law;
use super::seeds::{failing, note, try_seed};

/// How many seeds a bug may survive. The code as it is passes all of them, which `seeds` proves.
const SEEDS_MAX: u64 = 2000;

/// Where a bug that few seeds catch was seen. That seed is tried first; when it no longer catches it, all are.
const SEEN_AT: [(Bug, u64); 3] = [
    (Bug::LeaseTokenNotChecked, 690),
    (Bug::CursorCommittedFirst, 806),
    (Bug::ConflictAcknowledgesUnseen, 562),
];

/// Needs a process that stands still for almost a lease between a claim and its request, and a second defence hides it: a
/// delivery ends with its lease. Chance does not meet that in 2,000 seeds. `protocol` finds it, in every reachable state.
const LEFT_TO_THE_MODEL: Bug = Bug::LeaseMayRunOut;

/// What catches a bug: a seed that does, and the law that is broken there.
fn caught(bug: Bug) -> Option<(u64, Law)> {
    let broken = |seed| {
        let violation = with_planted(Some(bug), || {
            try_seed(seed, Backend::memory, false).violation
        })?;
        Some(violation.law)
    };
    let seen = SEEN_AT.iter().find(|(seen, _)| *seen == bug);
    seen.and_then(|(_, seed)| Some((*seed, broken(*seed)?)))
        .or_else(|| failing(0..SEEDS_MAX, 1, broken).into_iter().next())
}

#[test]
fn planted_bugs_are_caught() {
    let mut survivors = Vec::new();
    // `RECONCILED_BUG=TwoInFlight` looks at one alone.
    let only = std::env::var("RECONCILED_BUG").ok();
    let wanted = |bug: &Bug| match &only {
        Some(only) => *only == format!("{bug:?}"),
        None => *bug != LEFT_TO_THE_MODEL,
    };
    for bug in Bug::ALL.into_iter().filter(wanted) {
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
