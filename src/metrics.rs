//! What the daemon counts and measures, as `/metrics` shows it.
//!
//! Instruments are atomics that a loop touches in passing: none of them waits, allocates without bound or can fail. What they
//! are called, and which labels they have, is in one table ([`family::ALL`]), which the endpoint, `docs/metrics.md`, the alert
//! rules and the dashboard are checked against. No label ever holds an id.

mod commits;
pub mod family;
mod instrument;
pub mod process;
mod text;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use commits::Commits;
pub use family::{Family, Kind};
pub use instrument::{Counter, CounterBy, Histogram, HistogramReading, Instant};
pub use text::Exposition;

use crate::model::Timestamp;

/// Everything that is counted since the process started; shared by the loops and whoever shows it.
#[derive(Debug)]
pub struct Metrics {
    /// What came of claimed entries, by [`family::DELIVERIES`].
    pub deliveries: CounterBy,
    /// Requests that were sent for entries, by [`family::ATTEMPTS`].
    pub attempts: CounterBy,
    /// Every request, by [`family::REQUESTS`].
    pub requests: CounterBy,
    /// Probes of paused installations, by [`family::PROBES`].
    pub probes: CounterBy,
    /// From sending a request to the end of its answer.
    pub request_seconds: Histogram,
    /// From finding a change to its acknowledgement.
    pub lag_seconds: Histogram,
    /// From the commit of a change, as its row's cursor tells, to its acknowledgement.
    pub commit_lag_seconds: Histogram,
    /// The commits that are not acknowledged yet.
    pub commits: Arc<Commits>,
    /// Polls, by [`family::POLLS`].
    pub polls: CounterBy,
    /// How long complete polls took.
    pub poll_seconds: Histogram,
    /// Rows that complete polls read.
    pub poll_rows: Counter,
    /// When the last poll ended that was complete.
    pub last_poll: Instant,
    /// Complete sweeps.
    pub sweeps: Counter,
    /// How long complete sweeps took.
    pub sweep_seconds: Histogram,
    /// Failures to read or write the state.
    pub state_failures: Counter,
    /// Reloads of the configuration, by [`family::RELOADS`].
    pub reloads: CounterBy,
    contact: Mutex<Contact>,
    /// Why the state cannot be used, by whom it was found.
    state_problems: Mutex<[Option<String>; StateUser::ALL.len()]>,
    outage_since: Instant,
}

/// What reads and writes the state by itself, and finds out whether that can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateUser {
    /// The loop that reads the source.
    Watch,
    /// The loop that sends.
    Dispatch,
}

impl StateUser {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Watch, Self::Dispatch];
}

/// What is known of the source since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Contact {
    /// It has not been tried yet.
    #[default]
    Untried,
    /// It was read, last time.
    Made,
    /// It is for another daemon on the same state to read it.
    Elsewhere,
    /// It could not be read, last time; with the stable code of why.
    Failed(&'static str),
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            deliveries: CounterBy::of(&family::DELIVERIES),
            attempts: CounterBy::of(&family::ATTEMPTS),
            requests: CounterBy::of(&family::REQUESTS),
            probes: CounterBy::of(&family::PROBES),
            request_seconds: Histogram::of(&family::REQUEST_SECONDS),
            lag_seconds: Histogram::of(&family::LAG_SECONDS),
            commit_lag_seconds: Histogram::of(&family::COMMIT_LAG_SECONDS),
            commits: Arc::default(),
            polls: CounterBy::of(&family::POLLS),
            poll_seconds: Histogram::of(&family::POLL_SECONDS),
            poll_rows: Counter::default(),
            last_poll: Instant::default(),
            sweeps: Counter::default(),
            sweep_seconds: Histogram::of(&family::SWEEP_SECONDS),
            state_failures: Counter::default(),
            reloads: CounterBy::of(&family::RELOADS),
            contact: Mutex::default(),
            state_problems: Mutex::default(),
            outage_since: Instant::default(),
        }
    }
}

impl Metrics {
    /// Takes note of a complete poll.
    pub fn polled(&self, now: Timestamp, rows: u64, duration: Duration) {
        self.polls.add("completed");
        self.poll_rows.add(rows);
        self.poll_seconds.observe(duration);
        self.last_poll.set(Some(now));
    }

    /// Takes note of a complete sweep.
    pub fn swept(&self, duration: Duration) {
        self.sweeps.add(1);
        self.sweep_seconds.observe(duration);
    }

    /// Takes note of how the last attempt to read the source ended.
    pub fn contacted(&self, contact: Contact) {
        *self.contact.lock().unwrap_or_else(PoisonError::into_inner) = contact;
    }

    /// How the last attempt to read the source ended.
    #[must_use]
    pub fn contact(&self) -> Contact {
        *self.contact.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of whether the state could be used, last time: why not, or `None`.
    pub fn state(&self, user: StateUser, problem: Option<String>) {
        let mut problems = self
            .state_problems
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        problems[user as usize] = problem;
    }

    /// Why the state cannot be used, as far as anybody found out: it may be readable all the same, on a full disk for instance.
    #[must_use]
    pub fn state_problem(&self) -> Option<String> {
        let problems = self
            .state_problems
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        problems.iter().flatten().next().cloned()
    }

    /// Takes note of whether Vercel's API fails as a whole, and since when.
    pub fn outage(&self, since: Option<Timestamp>) {
        self.outage_since.set(since);
    }

    /// Since when Vercel's API fails as a whole, if it does.
    #[must_use]
    pub fn outage_since(&self) -> Option<Timestamp> {
        self.outage_since.get()
    }
}
