//! Whether the API as a whole fails, and how it is probed then.
//!
//! While it does, single requests probe it instead of burning every entry's attempts; the transition is reported once.

use std::time::Duration;

use crate::model::{ResourceKey, Timestamp};

use super::backoff::Backoff;

/// Failures in a row, of at least two resources, that make an outage.
pub const FAILURES_TO_BEGIN: u32 = 5;
/// The longest wait between two probes: how late the end of an outage may be noticed.
pub const PROBE_INTERVAL_MAX: Duration = Duration::from_secs(15);

/// A change of the API's state, to be reported once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// The API as a whole fails.
    Began,
    /// It answers again.
    Ended {
        /// How long it failed.
        lasted: Duration,
    },
}

/// Watches answers of all resources together.
#[derive(Debug, Clone)]
pub struct Outage {
    probes: Backoff,
    failures: u32,
    last_failed: Option<ResourceKey>,
    several: bool,
    since: Option<Timestamp>,
    /// How many tries in a row failed during the outage: what was under way when it began is one, each probe after it another.
    tries_failed: u32,
    next_probe_at: Timestamp,
}

impl Outage {
    /// No outage; probes start at the interval `initial` when one begins.
    #[must_use]
    pub fn new(initial: Duration) -> Self {
        Self {
            probes: probes(initial),
            failures: 0,
            last_failed: None,
            several: false,
            since: None,
            tries_failed: 0,
            next_probe_at: Timestamp::EPOCH,
        }
    }

    /// Changes the interval at which probes start; an outage under way goes on.
    pub fn configure(&mut self, initial: Duration) {
        self.probes = probes(initial);
    }

    /// Since when the API as a whole fails.
    #[must_use]
    pub const fn since(&self) -> Option<Timestamp> {
        self.since
    }

    /// How many requests may start now, with `in_flight` under way and `free` places.
    #[must_use]
    pub fn allowance(&self, now: Timestamp, in_flight: usize, free: usize) -> usize {
        match self.since {
            None => free,
            Some(_) if in_flight == 0 && self.is_probe_due(now) => free.min(1),
            Some(_) => 0,
        }
    }

    /// When the next probe may start, during an outage.
    #[must_use]
    pub fn next_probe_at(&self) -> Option<Timestamp> {
        self.since.map(|_| self.next_probe_at)
    }

    fn is_probe_due(&self, now: Timestamp) -> bool {
        // Beyond the longest wait the clock was set back.
        now >= self.next_probe_at || self.next_probe_at > now.plus(PROBE_INTERVAL_MAX)
    }

    /// Vercel gave an answer that is its own, of whatever kind but 5xx.
    pub fn answered(&mut self, now: Timestamp) -> Option<Transition> {
        self.failures = 0;
        self.several = false;
        self.last_failed = None;
        self.tries_failed = 0;
        self.since.take().map(|since| Transition::Ended {
            lasted: now.since(since),
        })
    }

    /// A request for `key` failed in a way that may concern all: unreachable, lost or 5xx. `others` are under way beside it; `jitter` is
    /// from 0 to 1.
    ///
    /// What was under way when the outage began fails with it, all of it together one try: a moment's outage does not make the first
    /// probe wait as if so many probes had failed.
    pub fn failed(
        &mut self,
        key: &ResourceKey,
        others: usize,
        now: Timestamp,
        jitter: f64,
    ) -> Option<Transition> {
        self.failures = self.failures.saturating_add(1);
        self.several |= self.last_failed.as_ref().is_some_and(|last| last != key);
        self.last_failed = Some(key.clone());
        let is_on = self.since.is_some();
        if !is_on && (self.failures < FAILURES_TO_BEGIN || !self.several) {
            return None;
        }
        if others == 0 {
            self.tries_failed = self.tries_failed.saturating_add(1);
        }
        self.next_probe_at = now.plus(self.probes.interval(self.tries_failed, jitter));
        if is_on {
            return None;
        }
        self.since = Some(now);
        Some(Transition::Began)
    }
}

fn probes(initial: Duration) -> Backoff {
    Backoff {
        initial: initial.min(PROBE_INTERVAL_MAX),
        multiplier: 2.0,
        max: PROBE_INTERVAL_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_000_000);

    fn key(resource: &str) -> ResourceKey {
        ResourceKey::new("icfg_1", resource).expect("an id")
    }

    #[test]
    fn an_outage_begins_once_probes_singly_and_ends_once() {
        let mut outage = Outage::new(Duration::from_secs(1));
        let transitions: Vec<_> = (0..8)
            .filter_map(|n| outage.failed(&key(&format!("res_{n}")), 0, START, 1.0))
            .collect();
        assert_eq!(transitions, [Transition::Began]);
        assert_eq!(
            outage.allowance(START, 0, 64),
            0,
            "the next probe is not due yet"
        );
        let probe_at = outage.next_probe_at().expect("an outage is on");
        assert_eq!(outage.allowance(probe_at, 0, 64), 1);
        assert_eq!(outage.allowance(probe_at, 1, 64), 0, "one probe at a time");
        let ended = outage.answered(START.plus(Duration::from_secs(90)));
        assert_eq!(
            ended,
            Some(Transition::Ended {
                lasted: Duration::from_secs(90)
            })
        );
        assert_eq!(outage.answered(START), None);
        assert_eq!(outage.allowance(START, 3, 61), 61);
    }

    #[test]
    fn the_failure_that_fills_the_measure_begins_an_outage() {
        let mut outage = Outage::new(Duration::from_secs(1));
        for n in 1..FAILURES_TO_BEGIN {
            assert_eq!(
                outage.failed(&key(&format!("res_{n}")), 0, START, 1.0),
                None
            );
            assert_eq!(outage.since(), None);
        }
        // That several failed is remembered, whichever fails last.
        let last = key(&format!("res_{}", FAILURES_TO_BEGIN - 1));
        let at = START.plus(Duration::from_secs(3));
        assert_eq!(outage.failed(&last, 0, at, 1.0), Some(Transition::Began));
        assert_eq!(outage.since(), Some(at));
        outage.answered(at);
        assert_eq!((outage.since(), outage.next_probe_at()), (None, None));
    }

    #[test]
    fn a_probe_is_due_from_its_time_on_and_while_its_time_is_too_far_ahead() {
        let mut outage = Outage::new(PROBE_INTERVAL_MAX);
        for n in 0..FAILURES_TO_BEGIN {
            outage.failed(&key(&format!("res_{n}")), 0, START, 1.0);
        }
        let moment = Duration::from_millis(1);
        let probe_at = START.plus(PROBE_INTERVAL_MAX);
        assert_eq!(outage.next_probe_at(), Some(probe_at));
        let allowed = |now| outage.allowance(now, 0, 64);
        assert_eq!(allowed(probe_at.minus(moment)), 0);
        assert_eq!((allowed(probe_at), allowed(probe_at.plus(moment))), (1, 1));
        assert_eq!(allowed(START), 0, "as far ahead as a probe may be");
        assert_eq!(allowed(START.minus(moment)), 1);
        assert_eq!(outage.allowance(probe_at, 0, 0), 0, "no place is free");
    }

    #[test]
    fn another_interval_counts_from_the_next_failure_on() {
        let mut outage = Outage::new(Duration::from_secs(1));
        for n in 0..FAILURES_TO_BEGIN {
            outage.failed(&key(&format!("res_{n}")), 0, START, 1.0);
        }
        outage.configure(Duration::from_secs(4));
        assert_eq!(outage.since(), Some(START));
        outage.failed(&key("res_1"), 0, START, 1.0);
        // The second failed probe waits twice the first interval.
        let probe_at = START.plus(Duration::from_secs(8));
        assert_eq!(outage.next_probe_at(), Some(probe_at));
    }

    #[test]
    fn what_was_under_way_when_it_began_is_one_failed_try() {
        let mut outage = Outage::new(Duration::from_secs(1));
        let mut failed = |n: usize, others, at| {
            outage.failed(&key(&format!("res_{n}")), others, at, 1.0);
            outage
                .next_probe_at()
                .map(|probe_at| probe_at.since(at).as_secs())
        };
        let waits: Vec<_> = (0..64).map(|n| failed(n, 63 - n, START)).collect();
        assert_eq!(waits[..4], [None; 4]);
        assert_eq!(waits[4..], [Some(1); 60]);
        // Each that fails later than the others counts from then on; the probes after them wait longer and longer.
        let later = START.plus(Duration::from_secs(30));
        let probes = [0, 0, 0].map(|others| failed(1, others, later));
        assert_eq!(probes, [Some(2), Some(4), Some(8)]);
    }

    #[test]
    fn one_resource_that_always_fails_is_no_outage() {
        let mut outage = Outage::new(Duration::from_secs(1));
        assert!((0..100).all(|_| outage.failed(&key("res_1"), 0, START, 0.5).is_none()));
        assert_eq!(outage.allowance(START, 0, 64), 64);
    }

    #[test]
    fn the_end_of_an_outage_is_noticed_within_the_longest_probe_interval() {
        let mut outage = Outage::new(Duration::from_secs(600));
        for n in 0..50 {
            outage.failed(&key(&format!("res_{n}")), 0, START, 1.0);
        }
        assert!(outage.next_probe_at().expect("on") <= START.plus(PROBE_INTERVAL_MAX));
    }

    #[test]
    fn a_clock_set_back_does_not_silence_the_probe() {
        let mut outage = Outage::new(Duration::from_secs(1));
        for n in 0..5 {
            outage.failed(&key(&format!("res_{n}")), 0, START, 1.0);
        }
        assert_eq!(
            outage.allowance(START.minus(Duration::from_secs(86_400)), 0, 64),
            1
        );
    }
}
