//! When dispatch looks again for something to send.
//!
//! What ends wakes it by itself; these are the waits for what only time brings.

use std::time::Duration;

use crate::model::Timestamp;

/// How often a person's acts beside the daemon (a retry, a release) are looked for when nothing else is due.
pub const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long to wait at `now` after a look at `looked_at` found nothing to claim: until the earliest entry is due, and during an
/// outage until its probe may start.
#[must_use]
pub fn wait(
    due_at: Option<Timestamp>,
    looked_at: Timestamp,
    probe_at: Option<Timestamp>,
    now: Timestamp,
) -> Duration {
    let wait = due_at
        // What was due already but was not claimed waits for a place, which wakes dispatch by itself.
        .filter(|due_at| *due_at > looked_at)
        .map_or(LOOK_AGAIN, |due_at| due_at.since(now));
    let probe = probe_at.map_or(Duration::ZERO, |probe_at| probe_at.since(now));
    wait.max(probe).min(LOOK_AGAIN)
}

/// Whether it is time to look for probes, which are seconds apart where requests are not; a clock that was set back makes it so.
#[must_use]
pub fn is_time_for_probes(last: Option<Timestamp>, now: Timestamp) -> bool {
    last.is_none_or(|last| now < last || now.since(last) >= LOOK_AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + millis)
    }

    fn waits(due_at: Option<i64>, probe_at: Option<i64>) -> u128 {
        // Looked at 0, and a state that took 100 ms to answer.
        wait(due_at.map(at), at(0), probe_at.map(at), at(100)).as_millis()
    }

    #[test]
    fn the_next_look_is_when_something_becomes_due_and_a_second_later_at_the_latest() {
        let cases = [None, Some(99), Some(100), Some(101), Some(900), Some(1101)];
        assert_eq!(
            cases.map(|due_at| waits(due_at, None)),
            [1000, 0, 0, 1, 800, 1000]
        );
    }

    #[test]
    fn what_was_due_when_it_was_not_claimed_is_not_looked_for_at_once() {
        assert_eq!(
            [-5000, -1, 0, 1].map(|due_at| waits(Some(due_at), None)),
            [1000, 1000, 1000, 0]
        );
    }

    #[test]
    fn during_an_outage_nothing_is_looked_for_before_its_probe_may_start() {
        let cases = [50, 101, 700, 1100, 15_000];
        assert_eq!(
            cases.map(|probe_at| waits(Some(400), Some(probe_at))),
            [300, 300, 600, 1000, 1000]
        );
        assert_eq!(waits(None, Some(200)), 1000);
    }

    #[test]
    fn probes_are_looked_for_every_second_and_after_a_clock_was_set_back() {
        assert!(is_time_for_probes(None, at(0)));
        let cases = [-1, 0, 1, 999, 1000, 1001];
        assert_eq!(
            cases.map(|now| is_time_for_probes(Some(at(0)), at(now))),
            [true, false, false, false, true, true]
        );
    }
}
