//! Faults by chance, the same for the same seed and request number.
//!
//! Pure: every request's draw comes from its own stream of a seeded generator, so that neither the order nor the number
//! of other draws changes it.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::fault::{Fault, RetryAfter, span};

/// How likely each fault is; the probabilities add up to at most 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weather {
    /// The seed.
    pub seed: u64,
    /// 500, nothing applied.
    pub p_500: f64,
    /// 502, nothing applied.
    pub p_502: f64,
    /// 503, nothing applied.
    pub p_503: f64,
    /// 429 with `Retry-After` of one second.
    pub p_429: f64,
    /// 409 (requests that write).
    pub p_409: f64,
    /// Closed without an answer, nothing applied.
    pub p_drop_before: f64,
    /// Applied, then closed without an answer.
    pub p_drop_after: f64,
    /// Closed at once, applied after at most `late_max` (requests that write).
    pub p_apply_late: f64,
    /// Answered after at most `delay_max`.
    pub p_delay: f64,
    /// Never answered.
    pub p_hang: f64,
    /// Answered with bytes that are no HTTP.
    pub p_not_http: f64,
    /// The longest delay.
    #[serde(with = "span")]
    pub delay_max: Duration,
    /// The longest time until a late application.
    #[serde(with = "span")]
    pub late_max: Duration,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            seed: 0,
            p_500: 0.0,
            p_502: 0.0,
            p_503: 0.0,
            p_429: 0.0,
            p_409: 0.0,
            p_drop_before: 0.0,
            p_drop_after: 0.0,
            p_apply_late: 0.0,
            p_delay: 0.0,
            p_hang: 0.0,
            p_not_http: 0.0,
            delay_max: Duration::from_secs(1),
            late_max: Duration::from_secs(5),
        }
    }
}

/// Probabilities that cannot be.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the probabilities of the weather must each be at least 0 and add up to at most 1")]
pub struct WeatherError;

impl Weather {
    /// Refuses probabilities that cannot be.
    ///
    /// # Errors
    /// One is negative or no number, or they add up to more than 1.
    pub fn check(&self) -> Result<(), WeatherError> {
        let chances = self.chances();
        let each = chances.iter().all(|(chance, _)| *chance >= 0.0);
        let sum: f64 = chances.iter().map(|(chance, _)| chance).sum();
        if each && sum <= 1.0 + f64::EPSILON {
            Ok(())
        } else {
            Err(WeatherError)
        }
    }

    /// The fault for the request of this number.
    pub(super) fn fault(&self, request: u64, writes: bool) -> Option<Fault> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(request);
        let mut draw = unit(&mut random);
        let part = unit(&mut random);
        for (chance, kind) in self.chances() {
            if draw < chance {
                return self.made(kind, part, writes);
            }
            draw -= chance;
        }
        None
    }

    fn chances(&self) -> [(f64, Kind); 11] {
        [
            (self.p_500, Kind::Status(500)),
            (self.p_502, Kind::Status(502)),
            (self.p_503, Kind::Status(503)),
            (self.p_429, Kind::RateLimited),
            (self.p_409, Kind::Conflict),
            (self.p_drop_before, Kind::DropBefore),
            (self.p_drop_after, Kind::DropAfter),
            (self.p_apply_late, Kind::ApplyLate),
            (self.p_delay, Kind::Delay),
            (self.p_hang, Kind::Hang),
            (self.p_not_http, Kind::NotHttp),
        ]
    }

    fn made(&self, kind: Kind, part: f64, writes: bool) -> Option<Fault> {
        Some(match kind {
            Kind::Status(code) => Fault::status(code),
            Kind::RateLimited => Fault::RateLimited {
                retry_after: RetryAfter::Seconds(1),
            },
            Kind::Conflict if writes => Fault::Conflict,
            Kind::ApplyLate if writes => Fault::ApplyLate(self.late_max.mul_f64(part)),
            Kind::Conflict | Kind::ApplyLate => return None,
            Kind::DropBefore => Fault::DropBefore,
            Kind::DropAfter => Fault::DropAfter,
            Kind::Delay => Fault::Delay(self.delay_max.mul_f64(part)),
            Kind::Hang => Fault::Hang,
            Kind::NotHttp => Fault::NotHttp,
        })
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Status(u16),
    RateLimited,
    Conflict,
    DropBefore,
    DropAfter,
    ApplyLate,
    Delay,
    Hang,
    NotHttp,
}

/// A number from 0 up to but without 1.
#[expect(
    clippy::cast_precision_loss,
    reason = "53 bits are what a double holds exactly"
)]
fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stormy(seed: u64) -> Weather {
        Weather {
            seed,
            p_503: 0.2,
            p_409: 0.2,
            p_drop_after: 0.1,
            p_delay: 0.1,
            ..Weather::default()
        }
    }

    #[test]
    fn the_same_seed_and_number_give_the_same_fault_in_any_order() {
        let (weather, other) = (stormy(1), stormy(2));
        let forwards: Vec<_> = (0..200).map(|n| weather.fault(n, true)).collect();
        let mut backwards: Vec<_> = (0..200).rev().map(|n| weather.fault(n, true)).collect();
        backwards.reverse();
        assert_eq!(forwards, backwards);
        let elsewhere: Vec<_> = (0..200).map(|n| other.fault(n, true)).collect();
        assert_ne!(forwards, elsewhere);
    }

    #[test]
    fn faults_come_about_as_often_as_asked() {
        let weather = stormy(3);
        let faults: Vec<_> = (0..2000).filter_map(|n| weather.fault(n, true)).collect();
        assert!((1050..1350).contains(&faults.len()), "{}", faults.len());
        let conflicts = faults.iter().filter(|f| **f == Fault::Conflict).count();
        assert!((320..480).contains(&conflicts), "{conflicts}");
        let read_conflicts = (0..2000)
            .filter_map(|n| weather.fault(n, false))
            .filter(|f| *f == Fault::Conflict)
            .count();
        assert_eq!(read_conflicts, 0);
    }

    #[test]
    fn impossible_probabilities_are_refused() {
        assert_eq!(stormy(0).check(), Ok(()));
        for (p_503, p_429) in [(-0.1, 0.0), (0.7, 0.6), (f64::NAN, 0.0)] {
            let weather = Weather {
                p_503,
                p_429,
                ..Weather::default()
            };
            assert_eq!(weather.check(), Err(WeatherError));
        }
    }
}
