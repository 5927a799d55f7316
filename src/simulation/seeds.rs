//! Seeds: many of them, twice, one of them in words.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::backend::Place;
use super::climate::Climate;
use super::laws::Violation;
use super::trial::{Kills, Options, Trial, Verdict};

/// How many seeds are tried when nobody says.
const SEEDS_DEFAULT: u64 = 2000;
/// How many of them are run twice.
const TWICE: u64 = 1000;
/// How many are tried over a state in a file, too, which is slower.
const SQLITE_SEEDS_DEFAULT: u64 = 200;

fn options(seed: u64, tell: bool) -> Options {
    Options {
        seed,
        climate: Climate::of(seed),
        tell,
        kills: Kills::default(),
        scenes: Vec::new(),
    }
}

pub(super) fn try_seed(seed: u64, place: Place, tell: bool) -> Verdict {
    Trial::new(options(seed, tell), place.open()).run()
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What a seed did, in words.
fn told(seed: u64, verdict: &Verdict) -> String {
    let mut text = String::new();
    for line in &verdict.lines {
        let _ = writeln!(text, "{line}");
    }
    if let Some(violation) = &verdict.violation {
        let Violation { law, what, at } = violation;
        let _ = writeln!(text, "seed {seed} broke {law} at {at}: {what}");
    }
    text
}

/// How to see a seed again.
fn replay_command(seed: u64, place: Place) -> String {
    let place = match place {
        Place::Memory => "",
        Place::File => "RECONCILED_SQLITE=1 ",
    };
    format!(
        "{place}RECONCILED_SEED={seed} cargo test --lib simulation::seeds::replay -- --nocapture"
    )
}

/// Where two runs of a seed first differ, in words.
fn first_difference(seed: u64, places: [Place; 2]) -> String {
    let [one, other] = places.map(|place| try_seed(seed, place, true).lines);
    let mut lines = one.iter().zip(&other);
    match lines.find(|(one, other)| one != other) {
        Some((one, other)) => {
            format!("\n{:?} {one}\n{:?} {other}", places[0], places[1])
        }
        None => String::new(),
    }
}

/// Tries seeds on all cores until some have failed; those, in order.
pub(super) fn failing<T: Ord + Send>(
    seeds: Range<u64>,
    enough: usize,
    try_one: impl Fn(u64) -> Option<T> + Sync,
) -> Vec<(u64, T)> {
    let next = AtomicU64::new(seeds.start);
    let found = Mutex::new(Vec::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            if let Some(what) = try_one(seed) {
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                found.push((seed, what));
                if found.len() >= enough {
                    next.store(seeds.end, Ordering::Relaxed);
                }
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort();
    found
}

/// Tries so many seeds with `judge`, which says what is wrong with one; panics with the timeline of the first that it complains of, and with
/// the command that shows it again.
fn try_all(count: u64, place: Place, judge: impl Fn(u64) -> Result<Verdict, String> + Sync) {
    let first = env("RECONCILED_SEED_FIRST").unwrap_or(0);
    let enough = env("RECONCILED_FAILURES").and_then(|n| usize::try_from(n).ok());
    let started = Instant::now();
    let logs = Mutex::new([0; 32]);
    let failing = failing(first..first + count, enough.unwrap_or(1), |seed| {
        let what = match judge(seed) {
            Ok(verdict) => {
                add(
                    &mut logs.lock().unwrap_or_else(PoisonError::into_inner),
                    &verdict,
                );
                return None;
            }
            Err(what) => format!("{what}\nreplay: {}", replay_command(seed, place)),
        };
        // At once: a long run is watched.
        note(&what);
        Some(what)
    });
    let logs = logs.into_inner().unwrap_or_else(PoisonError::into_inner);
    let logs = blake3::Hash::from_bytes(logs).to_hex();
    note(&format!(
        "{count} seeds from {first} in {:?}; their event logs: {}",
        started.elapsed(),
        &logs[..16]
    ));
    let Some((seed, what)) = failing.first() else {
        return;
    };
    note(&told(*seed, &try_seed(*seed, place, true)));
    panic!("{what}");
}

/// One number for the event logs of many seeds, in whatever order they end: what changes no behaviour does not change it.
fn add(logs: &mut [u8; 32], verdict: &Verdict) {
    let bytes = logs.iter_mut().zip(verdict.hash.as_bytes());
    bytes.for_each(|(sum, byte)| *sum ^= byte);
}

fn unbroken(seed: u64, verdict: Verdict) -> Result<Verdict, String> {
    match &verdict.violation {
        None => Ok(verdict),
        Some(Violation { law, what, .. }) => Err(format!("seed {seed} broke {law}: {what}")),
    }
}

/// The laws hold for every seed, and the same seed gives the same event log: the first thousand are run twice.
#[test]
fn the_laws_hold_for_every_seed() {
    let count = env("RECONCILED_SEEDS").unwrap_or(SEEDS_DEFAULT);
    try_all(count, Place::Memory, |seed| {
        let once = unbroken(seed, try_seed(seed, Place::Memory, false))?;
        if seed >= TWICE {
            return Ok(once);
        }
        let twice = try_seed(seed, Place::Memory, false);
        if once.hash == twice.hash && once.events == twice.events {
            return Ok(once);
        }
        let shown = first_difference(seed, [Place::Memory; 2]);
        Err(format!("seed {seed} ran in two ways{shown}"))
    });
}

/// The laws hold over a real file, and there the same happens as in memory.
#[test]
fn the_laws_hold_for_every_seed_over_sqlite() {
    let count = env("RECONCILED_SQLITE_SEEDS").unwrap_or(SQLITE_SEEDS_DEFAULT);
    try_all(count, Place::File, |seed| {
        let file = unbroken(seed, try_seed(seed, Place::File, false))?;
        if file.hash == try_seed(seed, Place::Memory, false).hash {
            return Ok(file);
        }
        let shown = first_difference(seed, [Place::Memory, Place::File]);
        Err(format!("the two states differ on seed {seed}{shown}"))
    });
}

/// Whatever is wrong with a seed, what is said ends with the command that shows it, over the state that it was found with.
#[test]
fn every_complaint_of_a_seed_ends_with_the_command_that_replays_it() {
    let command = "RECONCILED_SEED=7 cargo test --lib simulation::seeds::replay -- --nocapture";
    assert_eq!(replay_command(7, Place::Memory), command);
    for place in [Place::Memory, Place::File] {
        let seed = env("RECONCILED_SEED_FIRST").unwrap_or(0);
        let panicked = std::panic::catch_unwind(|| {
            try_all(1, place, |_| Err("the two states differ".to_owned()));
        });
        let panic = panicked.expect_err("the judge complains of every seed");
        let said = panic.downcast_ref::<String>().expect("a text");
        let command = replay_command(seed, place);
        assert_eq!(*said, format!("the two states differ\nreplay: {command}"));
        assert_eq!(
            command.contains("RECONCILED_SQLITE=1 "),
            place == Place::File
        );
    }
}

fn obeys(seed: u64) {
    let verdict = try_seed(seed, Place::Memory, false);
    assert!(verdict.violation.is_none(), "{:?}", verdict.violation);
}

/// It found that a fleet counted as converged while a row that had changed was unread, since a dead letter stood for the resource.
#[test]
fn seed_5305_has_not_converged_while_a_changed_row_is_unread() {
    obeys(5305);
}

/// It found that a poll passed rows which it had read, since the source showed none when it looked for duplicates. The scenario "a source
/// that shows no rows between a page and the look for duplicates" lays it down.
#[test]
fn seed_143987_loses_no_row_that_was_read_just_before_the_source_showed_none() {
    obeys(143_987);
}

/// It found that the judge took a 429 that a killed process never read for the one that a later probe was answered.
#[test]
fn seed_219428_waits_as_long_as_the_429_that_was_read_asked_for() {
    obeys(219_428);
}

/// They found that the judge wanted an uninstallation done that Vercel had refused, which is a dead letter for a person.
#[test]
fn seeds_117777_and_121387_rest_with_an_uninstallation_that_was_refused() {
    for seed in [117_777, 121_387] {
        obeys(seed);
    }
}

/// They found that the judge forgot a 409 as soon as the GET after it answered 404, and so did not believe in the limit of conflicts.
#[test]
fn seeds_8043_8063_and_33644_rest_at_the_limit_of_conflicts_though_get_found_nothing() {
    for seed in [8043, 8063, 33_644] {
        obeys(seed);
    }
}

/// It found a process that stood still during a probe and, once it went on, paused an installation which another had resumed.
#[test]
fn seed_24530_keeps_resumed_what_a_process_that_had_stood_still_would_pause_anew() {
    obeys(24_530);
}

/// It found a value that was never tried: it came after the last 409 of an older one and before that was recorded, and the limit of conflicts
/// parked both.
#[test]
fn seed_73847_tries_a_value_that_came_between_the_last_conflict_and_its_record() {
    obeys(73_847);
}

/// They found that polls which looked only at the end of the one before missed a row that was committed behind it.
#[test]
fn seeds_40698_53331_and_77706_find_a_late_row_by_the_next_poll() {
    for seed in [40_698, 53_331, 77_706] {
        obeys(seed);
    }
}

/// It found a claim that was asked for two seconds before it was made: an answer was lost and recorded in between, and the claim cut
/// short the time in which that request may still be applied.
#[test]
fn seed_49757_keeps_a_doubt_that_was_recorded_after_the_claim_was_asked_for() {
    obeys(49_757);
}

/// It found that the judge gave a row a minute to have been away, though the process that had looked for it stood still for longer
/// before it committed what it had seen.
#[test]
fn seed_1024650_commits_what_was_away_before_the_process_stood_still() {
    obeys(1_024_650);
}

/// It found that a fleet counted as converged before a sweep had missed a row whose dead letter opens then: what that delivered the judge
/// wanted uninstalled by the same sweep.
#[test]
fn seed_1174010_uninstalls_what_a_dead_letter_delivered_after_its_row_was_missed() {
    obeys(1_174_010);
}

/// It found that the judge let a resource without a usable row be given back the status that it had, and then took it for gone back
/// when that took effect after the uninstallation had.
#[test]
fn seed_5025729_gives_back_the_status_of_what_is_there_again_though_unusable() {
    obeys(5_025_729);
}

/// They found that the GET after a 409 was not counted, and that a request which had waited since its claim left together with newer
/// ones. That a claim took a whole burst of which a part was used is in the scenario of "more changes than the limit allows at once".
#[test]
fn seeds_151_195_and_331_keep_the_limit_of_requests_a_minute() {
    for seed in [151, 195, 331] {
        obeys(seed);
    }
}

/// The seed as its complaint says: `RECONCILED_SQLITE=1` keeps the state in a file.
///
/// `RECONCILED_SEED=123 cargo test --lib simulation::seeds::replay -- --nocapture`
#[test]
fn replay() {
    let seed = env("RECONCILED_SEED").unwrap_or(0);
    let place = match std::env::var_os("RECONCILED_SQLITE") {
        Some(_) => Place::File,
        None => Place::Memory,
    };
    let verdict = try_seed(seed, place, true);
    let lasted = verdict.lasted();
    note(&told(seed, &verdict));
    note(&format!(
        "seed {seed}: {} events, {} requests, {lasted:?} of virtual time",
        verdict.events, verdict.requests
    ));
    assert!(verdict.violation.is_none(), "seed {seed} breaks a law");
}

/// Writes to the test's output, where `--nocapture` shows it.
#[expect(clippy::print_stdout, reason = "a replay is read by a person")]
pub(super) fn note(text: &str) {
    println!("{text}");
}
