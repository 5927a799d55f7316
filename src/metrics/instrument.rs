//! Counters and histograms that can be touched from anywhere at no cost worth measuring.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::model::Timestamp;

use super::family::{Family, Kind};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds so many.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// How many there were.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Numbers that only grow, one for each value of a label.
///
/// Every value of the family's table is there from the start, at 0: an alert on an increase would miss the first one of a
/// series that appears with it.
#[derive(Debug)]
pub struct CounterBy(Mutex<BTreeMap<&'static str, u64>>);

impl CounterBy {
    /// The counters of a family with a label.
    #[must_use]
    pub fn of(family: &Family) -> Self {
        let values = family.label.iter().flat_map(|label| label.values);
        Self(Mutex::new(values.map(|value| (*value, 0)).collect()))
    }

    /// Adds one to a value's number.
    pub fn add(&self, value: &'static str) {
        *self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(value)
            .or_default() += 1;
    }

    /// How many there were, by value.
    #[must_use]
    pub fn get(&self) -> BTreeMap<&'static str, u64> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// An instant that may not have come yet.
#[derive(Debug)]
pub struct Instant(AtomicI64);

impl Instant {
    const NEVER: i64 = i64::MIN;

    /// Replaces the instant.
    pub fn set(&self, at: Option<Timestamp>) {
        self.0.store(
            at.map_or(Self::NEVER, Timestamp::as_millis),
            Ordering::Relaxed,
        );
    }

    /// The instant, if it has come.
    #[must_use]
    pub fn get(&self) -> Option<Timestamp> {
        let millis = self.0.load(Ordering::Relaxed);
        (millis != Self::NEVER).then(|| Timestamp::from_millis(millis))
    }
}

impl Default for Instant {
    fn default() -> Self {
        Self(AtomicI64::new(Self::NEVER))
    }
}

/// Durations, counted by the fixed bounds of their family.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One per bound and one beyond the last, none of them cumulative.
    buckets: Box<[AtomicU64]>,
    sum_nanos: AtomicU64,
}

/// What a histogram held at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct HistogramReading {
    /// The upper bounds, each with how many were at most that long.
    pub cumulative: Vec<(f64, u64)>,
    /// How many there were.
    pub count: u64,
    /// Their sum, in seconds.
    pub sum: f64,
}

impl Histogram {
    /// The histogram of a family; a family that is none has no bounds.
    #[must_use]
    pub fn of(family: &Family) -> Self {
        let bounds = match family.kind {
            Kind::Histogram(bounds) => bounds,
            Kind::Counter | Kind::Gauge => &[],
        };
        Self {
            bounds,
            buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum_nanos: AtomicU64::new(0),
        }
    }

    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let index = self.bounds.partition_point(|bound| *bound < seconds);
        self.buckets[index].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What it holds now. The count is that of the buckets, so that the two always agree.
    #[must_use]
    pub fn read(&self) -> HistogramReading {
        let mut count = 0;
        let mut cumulative = Vec::with_capacity(self.bounds.len());
        for (index, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            if let Some(bound) = self.bounds.get(index) {
                cumulative.push((*bound, count));
            }
        }
        HistogramReading {
            cumulative,
            count,
            sum: Duration::from_nanos(self.sum_nanos.load(Ordering::Relaxed)).as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::family;
    use super::*;

    #[test]
    fn a_duration_equal_to_a_bound_is_within_it_and_one_beyond_all_is_still_counted() {
        let histogram = Histogram::of(&family::REQUEST_SECONDS);
        for millis in [50, 51, 3_600_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let reading = histogram.read();
        let at = |bound: f64| {
            let found = reading.cumulative.iter().find(|(known, _)| *known == bound);
            found.expect("the bound exists").1
        };
        assert_eq!((at(0.025), at(0.05), at(0.1), at(60.0)), (0, 1, 2, 2));
        assert_eq!(reading.count, 3);
        assert!((reading.sum - 3600.101).abs() < 1e-9, "{}", reading.sum);
    }

    #[test]
    fn every_value_of_a_label_is_there_before_it_was_counted() {
        let counter = CounterBy::of(&family::PROBES);
        assert_eq!(
            counter.get().into_iter().collect::<Vec<_>>(),
            [("resumed", 0), ("still_paused", 0), ("unrecorded", 0)]
        );
        counter.add("resumed");
        assert_eq!(counter.get()["resumed"], 1);
    }

    #[test]
    fn an_instant_before_the_epoch_is_still_an_instant() {
        let instant = Instant::default();
        assert_eq!(instant.get(), None);
        instant.set(Some(Timestamp::from_millis(-1)));
        assert_eq!(instant.get(), Some(Timestamp::from_millis(-1)));
        instant.set(None);
        assert_eq!(instant.get(), None);
    }
}
