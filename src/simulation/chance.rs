//! The worlds' own chance: a small seeded stream, apart from the daemon's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Random;

/// By how much the state of a stream grows with each number.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A SplitMix64 stream: quick, and the same everywhere.
#[derive(Debug, Clone)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(STEP) ^ 0x6a09_e667_f3bc_c909)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mixed(self.0)
    }

    /// A number below `n`; `n` is at least 1.
    pub(super) const fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A number from `low` to `high`, both included.
    pub(super) const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in so many of a thousand cases.
    pub(super) const fn per_mille(&mut self, rate: u64) -> bool {
        rate > 0 && self.below(1000) < rate
    }

    /// True in one of `n` cases.
    pub(super) const fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.index(items.len())]
    }

    /// An index into something of this length; `len` is at least 1.
    pub(super) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("an index is smaller than a length")
    }

    pub(super) fn duration(&mut self, low: Duration, high: Duration) -> Duration {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.between(millis(low), millis(high).max(millis(low))))
    }
}

const fn mixed(state: u64) -> u64 {
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The daemon's own chance: as quick, and apart from the worlds'.
#[derive(Debug)]
pub(super) struct DaemonChance(AtomicU64);

impl DaemonChance {
    /// The stream of one run of a process: no two runs of a trial draw equal numbers.
    pub(super) const fn new(seed: u64, run: u64) -> Self {
        Self(AtomicU64::new(
            Chance::new(seed ^ (run << 48) ^ 0xdae_u64).0,
        ))
    }

    fn next(&self) -> u64 {
        mixed(self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP))
    }
}

impl Random for DaemonChance {
    fn fraction(&self) -> f64 {
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
