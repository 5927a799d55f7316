//! The client's own rate limit per installation: requests a minute, spread evenly with a small burst.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{InstallationId, Timestamp};

/// How many requests may come at once after a pause, as a part of a minute's worth.
const BURST: Duration = Duration::from_secs(5);

/// When each installation may be sent to again (generic cell rate algorithm).
#[derive(Debug, Clone)]
pub struct Pace {
    interval: Option<Duration>,
    /// The instant at which the installation's allowance is whole again.
    full_at: BTreeMap<InstallationId, Timestamp>,
    /// The latest time that it was told.
    told: Timestamp,
}

impl Pace {
    /// A pace of so many requests a minute; `None`: no limit.
    #[must_use]
    pub fn new(requests_per_minute: Option<u32>) -> Self {
        Self {
            interval: interval(requests_per_minute),
            full_at: BTreeMap::new(),
            told: Timestamp::EPOCH,
        }
    }

    /// Changes the pace; what was spent stays spent.
    pub fn configure(&mut self, requests_per_minute: Option<u32>) {
        self.interval = interval(requests_per_minute);
    }

    /// Counts a request that is about to be sent.
    pub fn spent(&mut self, installation_id: &InstallationId, now: Timestamp) {
        let Some(interval) = self.interval else {
            return;
        };
        self.follow(now);
        self.full_at.retain(|_, full_at| *full_at > now);
        let full_at = self
            .full_at
            .get(installation_id)
            .copied()
            .unwrap_or(now)
            .max(now);
        self.full_at
            .insert(installation_id.clone(), full_at.plus(interval));
    }

    /// The installations that have used up their allowance at `now`.
    #[must_use]
    pub fn exhausted(&mut self, now: Timestamp) -> Vec<InstallationId> {
        let Some(interval) = self.interval else {
            return Vec::new();
        };
        self.follow(now);
        let burst = BURST.max(interval);
        let used_up = |full_at: Timestamp| full_at.plus(interval) > now.plus(burst);
        self.full_at
            .iter()
            .filter(|(_, full_at)| used_up(**full_at))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// How many of at most `most` requests may be sent at once to an installation that has not used up its allowance.
    #[must_use]
    pub fn at_once(&self, most: u32) -> u32 {
        let Some(interval) = self.interval else {
            return most;
        };
        let burst = BURST.max(interval).as_millis() / interval.as_millis().max(1);
        most.min(u32::try_from(burst).unwrap_or(u32::MAX))
    }

    /// Goes back with a clock that was set back: what was spent then is spent still, and no more than that.
    fn follow(&mut self, now: Timestamp) {
        let back = self.told.since(now);
        if !back.is_zero() {
            for full_at in self.full_at.values_mut() {
                *full_at = full_at.minus(back);
            }
        }
        self.told = now;
    }
}

fn interval(requests_per_minute: Option<u32>) -> Option<Duration> {
    requests_per_minute
        .filter(|n| *n > 0)
        .map(|n| Duration::from_secs(60) / n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_never_sees_more_than_its_requests_and_the_burst() {
        let id = InstallationId::new("icfg_1").expect("an id");
        let mut pace = Pace::new(Some(60));
        let mut sent = 0;
        for tenth in 0..600 {
            let now = Timestamp::from_millis(1_000_000 + tenth * 100);
            if pace.exhausted(now).is_empty() {
                pace.spent(&id, now);
                sent += 1;
            }
        }
        assert!((60..=65).contains(&sent), "{sent}");
    }

    #[test]
    fn a_clock_that_is_set_back_neither_lifts_the_limit_nor_makes_it_last() {
        const HOUR: Duration = Duration::from_secs(3600);
        let id = InstallationId::new("icfg_1").expect("an id");
        let mut pace = Pace::new(Some(60));
        let now = Timestamp::from_millis(10_000_000);
        (0..5).for_each(|_| pace.spent(&id, now));
        assert_eq!(pace.exhausted(now), std::slice::from_ref(&id));
        let back = now.minus(HOUR);
        assert_eq!(
            pace.exhausted(back),
            std::slice::from_ref(&id),
            "it is used up still"
        );
        let later = back.plus(Duration::from_secs(1));
        assert!(pace.exhausted(later).is_empty(), "it comes back as before");
        pace.spent(&id, later);
        assert_eq!(pace.exhausted(later), std::slice::from_ref(&id));
    }

    #[test]
    fn no_more_are_sent_at_once_than_a_burst() {
        assert_eq!(Pace::new(Some(6)).at_once(64), 1);
        assert_eq!(Pace::new(Some(60)).at_once(64), 5);
        assert_eq!(Pace::new(Some(60)).at_once(4), 4);
        assert_eq!(Pace::new(Some(u32::MAX)).at_once(64), 64);
        assert_eq!(Pace::new(None).at_once(64), 64);
    }

    #[test]
    fn many_that_were_sent_at_once_are_waited_for_however_long_that_takes() {
        let id = InstallationId::new("icfg_1").expect("an id");
        let mut pace = Pace::new(Some(6));
        let now = Timestamp::from_millis(1_000_000);
        (0..64).for_each(|_| pace.spent(&id, now));
        let later = now.plus(Duration::from_secs(600));
        assert_eq!(pace.exhausted(later), std::slice::from_ref(&id));
        let later = now.plus(Duration::from_secs(640));
        assert!(pace.exhausted(later).is_empty());
    }

    #[test]
    fn a_slower_pace_counts_what_was_sent_at_the_faster_one() {
        let id = InstallationId::new("icfg_1").expect("an id");
        let now = Timestamp::from_millis(1_000_000);
        let mut pace = Pace::new(Some(600));
        (0..50).for_each(|_| pace.spent(&id, now));
        pace.configure(Some(6));
        assert_eq!(pace.exhausted(now), std::slice::from_ref(&id));
        assert!(
            pace.exhausted(now.plus(Duration::from_secs(60))).is_empty(),
            "its allowance comes back"
        );
        pace.configure(None);
        assert!(pace.exhausted(now).is_empty());
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let id = InstallationId::new("icfg_1").expect("an id");
        let mut pace = Pace::new(None);
        let now = Timestamp::from_millis(1);
        (0..1000).for_each(|_| pace.spent(&id, now));
        assert!(pace.exhausted(now).is_empty());
    }
}
