//! The client's own rate limit: requests a minute, spread evenly with a small burst (generic cell rate algorithm).
//!
//! All that is kept for an installation is one instant, `full_at`, at which its allowance is whole again.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::model::Timestamp;

/// How much of an allowance may be used at once.
const BURST: Duration = Duration::from_secs(5);

/// A minute in milliseconds.
const MINUTE_MS: u64 = 60_000;

/// A number of requests a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    interval: Duration,
}

impl Rate {
    /// So many requests a minute.
    #[must_use]
    pub fn per_minute(requests: NonZeroU32) -> Self {
        Self {
            // Whole milliseconds, as instants are; rounded up, since it is a limit.
            interval: Duration::from_millis(MINUTE_MS.div_ceil(requests.get().into())),
        }
    }

    /// Whether nothing may be sent at `now`.
    #[must_use]
    pub fn is_used_up(self, full_at: Timestamp, now: Timestamp) -> bool {
        full_at.max(now).plus(self.interval) > now.plus(self.burst())
    }

    /// How many of at most `most` requests may be sent at once where the allowance is not used up.
    #[must_use]
    pub fn at_once(self, most: u32) -> u32 {
        let burst = self.burst().as_millis() / self.interval.as_millis().max(1);
        most.min(u32::try_from(burst).unwrap_or(u32::MAX))
    }

    /// Where the allowance stands after a request at `now`.
    #[must_use]
    pub fn spend(self, full_at: Timestamp, now: Timestamp) -> Timestamp {
        self.hold(full_at, 1, now)
    }

    /// Where the allowance would stand if so many requests left at `now`.
    #[must_use]
    pub fn hold(self, full_at: Timestamp, requests: u32, now: Timestamp) -> Timestamp {
        full_at.max(now).plus(self.interval * requests)
    }

    /// What is believed of an instant that another process may have written: one that lies further ahead than any allowance reaches
    /// comes from a clock that went back, and counts as now.
    #[must_use]
    pub fn believe(self, full_at: Timestamp, now: Timestamp) -> Timestamp {
        if full_at > now.plus(self.burst() * 4) {
            return now;
        }
        full_at
    }

    fn burst(self) -> Duration {
        BURST.max(self.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_go_at_once_than_a_burst() {
        let of = |n| Rate::per_minute(NonZeroU32::new(n).expect("not zero"));
        assert_eq!(of(6).at_once(64), 1);
        assert_eq!(of(60).at_once(64), 5);
        assert_eq!(of(60).at_once(4), 4);
        assert_eq!(of(u32::MAX).at_once(64), 64);
    }

    #[test]
    fn an_allowance_is_used_up_by_a_burst_and_comes_back_one_by_one() {
        let rate = Rate::per_minute(NonZeroU32::new(60).expect("not zero"));
        let now = Timestamp::from_millis(1_000_000);
        let (second, moment) = (Duration::from_secs(1), Duration::from_millis(1));
        // A second each, five at once.
        let mut full_at = Timestamp::EPOCH;
        for spent in 1..=5 {
            full_at = rate.spend(full_at, now);
            assert_eq!(full_at, now.plus(second * spent));
        }
        assert_eq!(rate.hold(Timestamp::EPOCH, 5, now), full_at);
        assert!(rate.is_used_up(full_at, now));
        assert!(rate.is_used_up(full_at, now.plus(second).minus(moment)));
        assert!(!rate.is_used_up(full_at, now.plus(second)));
        // What is whole again is no more than whole.
        let later = now.plus(second * 60);
        assert_eq!(rate.spend(full_at, later), later.plus(second));
        // Four bursts ahead is believed, a moment more is a clock that went back.
        let far = now.plus(BURST * 4);
        assert_eq!(rate.believe(far, now), far);
        assert_eq!(rate.believe(far.plus(moment), now), now);
    }

    #[test]
    fn what_is_no_whole_millisecond_is_rounded_so_that_the_limit_holds() {
        let interval = |n| Rate::per_minute(NonZeroU32::new(n).expect("not zero")).interval;
        assert_eq!(interval(7), Duration::from_millis(8572));
        assert_eq!(interval(40_000), Duration::from_millis(2));
        assert_eq!(interval(1_000_000), Duration::from_millis(1));
    }

    #[test]
    fn a_clock_that_went_back_neither_stops_requests_nor_lifts_the_limit() {
        let rate = Rate::per_minute(NonZeroU32::new(60).expect("not zero"));
        let now = Timestamp::from_millis(1_000_000);
        let mut full_at = rate.believe(now.plus(Duration::from_secs(36_000)), now);
        let mut sent = 0;
        while !rate.is_used_up(full_at, now) {
            full_at = rate.spend(full_at, now);
            sent += 1;
            assert!(sent < 100, "without a limit");
        }
        assert_eq!(sent, 5);
    }
}
