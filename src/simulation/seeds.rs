//! Seeds: many of them, twice, one of them in words.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::backend::Backend;
use super::chance::Chance;
use super::climate::Climate;
use super::trial::{Options, Trial, Verdict};

/// How many seeds a test tries when nobody says.
const SEEDS_DEFAULT: u64 = 60;
/// The same over a state in a file, which is slower.
const SQLITE_SEEDS_DEFAULT: u64 = 3;

fn options(seed: u64, tell: bool) -> Options {
    Options {
        seed,
        climate: Climate::of(&mut Chance::new(seed)),
        tell,
        kill_at: None,
        scenes: Vec::new(),
    }
}

pub(super) fn try_seed(seed: u64, backend: fn() -> Backend, tell: bool) -> Verdict {
    Trial::new(options(seed, tell), backend()).run()
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What a failing seed says: its timeline in words, and how to see it again.
fn told(seed: u64, verdict: &Verdict) -> String {
    let mut text = String::new();
    for line in &verdict.lines {
        let _ = writeln!(text, "{line}");
    }
    if let Some(violation) = &verdict.violation {
        let _ = writeln!(
            text,
            "seed {seed} broke {} at {}: {}\nreplay: RECONCILED_SEED={seed} cargo test --lib simulation::seeds::replay -- --nocapture",
            violation.law, violation.at, violation.what
        );
    }
    text
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

/// Tries so many seeds; panics with the timeline of the first that breaks a law.
fn try_all(count: u64, backend: fn() -> Backend) {
    let first = env("RECONCILED_SEED_FIRST").unwrap_or(0);
    let enough = env("RECONCILED_FAILURES").and_then(|n| usize::try_from(n).ok());
    let started = Instant::now();
    let failing = failing(first..first + count, enough.unwrap_or(1), |seed| {
        let violation = try_seed(seed, backend, false).violation?;
        let (law, what) = (violation.law, violation.what);
        Some(format!("seed {seed} broke {law}: {what}"))
    });
    note(&format!("{count} seeds in {:?}", started.elapsed()));
    let Some((seed, _)) = failing.first() else {
        return;
    };
    note(&told(*seed, &try_seed(*seed, backend, true)));
    failing.iter().for_each(|(_, what)| note(what));
    panic!("seed {seed} breaks a law");
}

#[test]
fn the_laws_hold_for_every_seed() {
    let count = env("RECONCILED_SEEDS").unwrap_or(SEEDS_DEFAULT);
    try_all(count, Backend::memory);
}

#[test]
fn the_laws_hold_for_every_seed_over_sqlite() {
    let count = env("RECONCILED_SQLITE_SEEDS").unwrap_or(SQLITE_SEEDS_DEFAULT);
    try_all(count, Backend::sqlite);
}

/// How many histories are killed at each of their first await points.
const KILLED_HISTORIES: u64 = 3;
/// How many await points of each of them.
const KILLED_POINTS_MAX: u64 = 15;

#[test]
fn a_history_killed_at_each_of_its_first_await_points_obeys_the_laws() {
    for seed in 0..KILLED_HISTORIES {
        let points = try_seed(seed, Backend::memory, false).points;
        assert!(points > 0, "seed {seed} passes no await point");
        let broken = failing(0..points.min(KILLED_POINTS_MAX), 1, |point| {
            let options = Options {
                kill_at: Some(point),
                ..options(seed, false)
            };
            let violation = Trial::new(options, Backend::memory()).run().violation?;
            let (law, what) = (violation.law, violation.what);
            Some(format!("seed {seed} killed at {point} broke {law}: {what}"))
        });
        assert_eq!(broken, []);
    }
}

#[test]
fn the_same_seed_gives_the_same_event_log() {
    let differing = failing(0..env("RECONCILED_SEEDS").unwrap_or(10), 1, |seed| {
        let run = || try_seed(seed, Backend::memory, false);
        let (once, twice) = (run(), run());
        let same = once.hash == twice.hash && once.events == twice.events;
        (!same).then(|| format!("seed {seed} ran in two ways"))
    });
    assert_eq!(differing, []);
}

#[test]
fn both_states_give_the_same_event_log() {
    let differing = failing(0..SQLITE_SEEDS_DEFAULT, 1, |seed| {
        let memory = try_seed(seed, Backend::memory, true);
        let file = try_seed(seed, Backend::sqlite, true);
        if memory.hash == file.hash {
            return None;
        }
        let mut lines = memory.lines.iter().zip(&file.lines);
        let differing = lines.find(|(memory, file)| memory != file);
        let shown = differing.map(|(memory, file)| format!("\nmemory {memory}\nfile   {file}"));
        Some(format!("seed {seed}{}", shown.unwrap_or_default()))
    });
    if let Some((_, what)) = differing.first() {
        panic!("the two states differ: {what}");
    }
}

/// `RECONCILED_SEED=123 cargo test --lib simulation::seeds::replay -- --nocapture`
#[test]
fn replay() {
    let seed = env("RECONCILED_SEED").unwrap_or(0);
    let backend = match std::env::var_os("RECONCILED_SQLITE") {
        Some(_) => Backend::sqlite,
        None => Backend::memory,
    };
    let verdict = try_seed(seed, backend, true);
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
