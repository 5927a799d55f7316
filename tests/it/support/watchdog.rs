//! Names a test that hangs and ends the run, which would otherwise stand still without a word until somebody stops it.
//!
//! Most waits of the tests end by themselves after [`HUNG`](super::HUNG). This is for the rest: a loop that asks until
//! something is true, a task that is joined, a server that is waited for.

use std::{
    collections::BTreeMap,
    io::Write as _,
    sync::{Mutex, MutexGuard, Once, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::HUNG;

/// A test that takes longer than this hangs: the slowest takes a tenth of it on a busy machine.
const LIMIT: Duration = HUNG.saturating_mul(15);

/// Who sets one of these wants tests that take hours.
const LONG_RUNS: [&str; 3] = [
    "RECONCILED_INTERLEAVED",
    "RECONCILED_KILLS",
    "RECONCILED_SOAK_MINUTES",
];

static RUNNING: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// The runner gives every test a thread of its own, named after it: the test ends with its thread.
    static WATCHED: Watched = Watched::begin();
}

/// From now on the test that this thread runs is watched, until it ends.
pub(crate) fn watch() {
    WATCHED.with(|_| ());
}

/// The test that a thread runs; none for a thread that runs no test.
struct Watched(Option<String>);

impl Watched {
    fn begin() -> Self {
        static WATCHDOG: Once = Once::new();
        WATCHDOG.call_once(|| {
            if LONG_RUNS
                .iter()
                .all(|name| std::env::var_os(name).is_none())
            {
                thread::spawn(guard);
            }
        });
        let name = name();
        if let Some(name) = &name {
            running().insert(name.clone(), Instant::now());
        }
        Self(name)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(name) = &self.0 {
            running().remove(name);
        }
    }
}

/// The test's name. Threads of a runtime have names too, and end when it pleases them.
fn name() -> Option<String> {
    let thread = thread::current();
    let name = thread.name()?;
    name.contains("::").then(|| name.to_owned())
}

fn running() -> MutexGuard<'static, BTreeMap<String, Instant>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn guard() {
    loop {
        thread::sleep(LIMIT / 100);
        let running = running();
        let hung = overdue(&running, Instant::now());
        if !hung.is_empty() {
            // Not by a macro: the runner would keep that for the end of a test that has none.
            let _ = writeln!(
                std::io::stderr(),
                "\nnot ended after {} s, taken for hung: {}",
                LIMIT.as_secs(),
                hung.join(", ")
            );
            std::process::exit(101);
        }
    }
}

fn overdue(running: &BTreeMap<String, Instant>, now: Instant) -> Vec<&str> {
    running
        .iter()
        .filter(|(_, begun)| now.saturating_duration_since(**begun) > LIMIT)
        .map(|(name, _)| name.as_str())
        .collect()
}

#[test]
fn a_test_is_watched_until_its_thread_ends_and_named_once_it_is_overdue() {
    const NAME: &str = "some::test";
    let (began, begun) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let test = thread::Builder::new().name(NAME.to_owned()).spawn(move || {
        watch();
        began.send(()).expect("it is waited for");
        let _ = ended.recv();
    });
    begun.recv().expect("it runs");
    let begun = *running().get(NAME).expect("it is watched");
    let late = |now| overdue(&running(), now).contains(&NAME);
    assert!(!late(begun + LIMIT));
    assert!(late(begun + LIMIT + Duration::from_secs(1)));
    drop(end);
    test.expect("a thread").join().expect("it does not panic");
    assert!(!running().contains_key(NAME));
}
