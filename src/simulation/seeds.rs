//! Seeds: many of them, twice, one of them in words.

use std::fmt::Write as _;
use std::time::Instant;

use super::backend::Backend;
use super::chance::Chance;
use super::climate::Climate;
use super::trial::{Options, Trial, Verdict};

/// How many seeds a test tries when nobody says.
const SEEDS_DEFAULT: u64 = 2000;

fn options(seed: u64, tell: bool) -> Options {
    Options {
        seed,
        climate: Climate::of(&mut Chance::new(seed)),
        tell,
        kill_at: None,
        scenes: Vec::new(),
    }
}

/// Tries one seed over a state in memory.
fn try_seed(seed: u64, tell: bool) -> Verdict {
    Trial::new(options(seed, tell), Backend::memory()).run()
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What a failing seed says: its timeline in words, and how to see it again.
pub(super) fn told(seed: u64, verdict: &Verdict) -> String {
    let mut text = String::new();
    for line in &verdict.lines {
        let _ = writeln!(text, "{line}");
    }
    if let Some(violation) = &verdict.violation {
        let _ = writeln!(
            text,
            "seed {seed} broke {}: {}\nreplay: RECONCILED_SEED={seed} cargo test --lib simulation::seeds::replay -- --nocapture",
            violation.law, violation.what
        );
    }
    text
}

/// Tries seeds on all cores; the first that fails, if any.
fn first_failing(
    seeds: std::ops::Range<u64>,
    try_one: impl Fn(u64) -> Option<String> + Sync,
) -> Option<(u64, String)> {
    use std::sync::atomic::{AtomicU64, Ordering};
    let next = AtomicU64::new(seeds.start);
    let found = std::sync::Mutex::new(None::<(u64, String)>);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    if let Some(what) = try_one(seed) {
                        let mut found = found.lock().expect("nobody panics with it");
                        if found.as_ref().is_none_or(|(first, _)| seed < *first) {
                            *found = Some((seed, what));
                        }
                        next.store(seeds.end, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    found.into_inner().expect("nobody panics with it")
}

#[test]
fn the_laws_hold_for_every_seed() {
    let first = env("RECONCILED_SEED_FIRST").unwrap_or(0);
    let count = env("RECONCILED_SEEDS").unwrap_or(SEEDS_DEFAULT);
    let started = Instant::now();
    let failing = first_failing(first..first + count, |seed| {
        let verdict = try_seed(seed, false);
        verdict.violation.as_ref()?;
        Some(told(seed, &try_seed(seed, true)))
    });
    let took = started.elapsed();
    assert!(
        failing.is_none(),
        "{}",
        failing.map(|(_, text)| text).unwrap_or_default()
    );
    note(&format!("{count} seeds in {took:?}"));
}

#[test]
fn the_same_seed_gives_the_same_event_log() {
    let differing = first_failing(0..1000, |seed| {
        let (once, twice) = (try_seed(seed, false), try_seed(seed, false));
        let same = once.hash == twice.hash && once.events == twice.events;
        (!same).then(|| format!("seed {seed} ran in two ways"))
    });
    assert_eq!(differing, None);
}

/// `RECONCILED_SEED=123 cargo test --lib simulation::seeds::replay -- --nocapture`
#[test]
fn replay() {
    let seed = env("RECONCILED_SEED").unwrap_or(0);
    let verdict = try_seed(seed, true);
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
fn note(text: &str) {
    println!("{text}");
}
