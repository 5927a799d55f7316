//! Time and chance, passed in so that the same code runs in the daemon and in a simulation.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::model::Timestamp;

/// Where the time comes from, and how to wait for it.
#[async_trait]
pub trait Clock: Send + Sync {
    /// The wall clock.
    fn now(&self) -> Timestamp;

    /// Returns after `duration`, whatever happens to the wall clock meanwhile.
    async fn sleep(&self, duration: Duration);
}

/// The machine's clocks: wall time for what is stored, monotonic time for waiting.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    fn now(&self) -> Timestamp {
        std::time::SystemTime::now().into()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// Where chance comes from.
pub trait Random: Send + Sync {
    /// A number from 0 up to 1.
    fn fraction(&self) -> f64;

    /// A number that has not been drawn before, for all that is likely; never negative.
    fn unique(&self) -> i64;
}

/// A seeded stream of random numbers.
#[derive(Debug)]
pub struct SeededRandom(Mutex<ChaCha8Rng>);

impl SeededRandom {
    /// The stream of this seed: equal seeds give equal streams.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(ChaCha8Rng::seed_from_u64(seed)))
    }

    /// A stream that no one can predict.
    ///
    /// # Panics
    /// The operating system gives no randomness.
    #[must_use]
    pub fn from_system() -> Self {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("the operating system gives randomness");
        Self(Mutex::new(ChaCha8Rng::from_seed(seed)))
    }

    fn next(&self) -> u64 {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .next_u64()
    }
}

impl Random for SeededRandom {
    fn fraction(&self) -> f64 {
        // 53 bits: every value is exact.
        #[expect(
            clippy::cast_precision_loss,
            reason = "53 bits fit a double's mantissa"
        )]
        let fraction = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        fraction
    }

    fn unique(&self) -> i64 {
        i64::try_from(self.next() >> 1).unwrap_or(i64::MAX)
    }
}
