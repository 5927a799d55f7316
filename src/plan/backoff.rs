//! How long to wait before the next attempt.
//!
//! The only place that knows the `backoff` crate, which has no maintainer (RUSTSEC-2025-0012): only the interval arithmetic of
//! its `ExponentialBackoff` is used, without its clock and without its randomness.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

/// The most doublings that are computed: past them every sane setting has reached its maximum.
const STEPS_MAX: u32 = 64;

/// Exponential intervals from `initial` to `max`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// The first interval.
    pub initial: Duration,
    /// What each further one is multiplied by; at least 1.
    pub multiplier: f64,
    /// The longest interval.
    pub max: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row (at least 1), with `jitter` from 0 (half the interval) to 1 (all of it).
    #[must_use]
    pub fn interval(&self, failures: u32, jitter: f64) -> Duration {
        let mut intervals = ExponentialBackoff {
            current_interval: self.initial,
            randomization_factor: 0.0,
            multiplier: self.multiplier,
            max_interval: self.max,
            ..ExponentialBackoff::default()
        };
        // It would give up after 15 minutes by a clock of its own.
        intervals.max_elapsed_time = None;
        let mut interval = self.initial;
        for _ in 0..failures.clamp(1, STEPS_MAX) {
            interval = intervals.next_backoff().unwrap_or(self.max);
        }
        interval
            .min(self.max)
            .mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BACKOFF: Backoff = Backoff {
        initial: Duration::from_secs(1),
        multiplier: 2.0,
        max: Duration::from_secs(600),
    };

    #[test]
    fn intervals_double_up_to_the_maximum() {
        let seconds: Vec<u64> = (1..=12)
            .map(|failures| BACKOFF.interval(failures, 1.0).as_secs())
            .collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
        assert_eq!(BACKOFF.interval(0, 1.0).as_secs(), 1);
        assert_eq!(BACKOFF.interval(u32::MAX, 0.0).as_secs(), 300);
    }

    proptest! {
        #[test]
        fn an_interval_stays_between_half_the_initial_and_the_maximum(
            failures in any::<u32>(), jitter in 0.0..=1.0, initial in 1_u64..10_000, max in 10_000_u64..1_000_000,
            multiplier in 1.0..10.0,
        ) {
            let backoff = Backoff {
                initial: Duration::from_millis(initial), multiplier, max: Duration::from_millis(max),
            };
            let interval = backoff.interval(failures, jitter);
            prop_assert!(interval >= backoff.initial.mul_f64(0.5));
            prop_assert!(interval <= backoff.max);
        }
    }
}
