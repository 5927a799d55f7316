//! The client's own rate limit per installation, as far as this process has spent it.
//!
//! A state that several processes share keeps what all of them have spent, and its claims go by that.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use crate::model::{InstallationId, Timestamp};
use crate::plan::pace::Rate;

/// When each installation may be sent to again.
#[derive(Debug, Clone)]
pub struct Pace {
    rate: Option<Rate>,
    /// The instant at which the installation's allowance is whole again.
    full_at: BTreeMap<InstallationId, Timestamp>,
}

impl Pace {
    /// What a claim is to go by in a state that several processes share.
    #[must_use]
    pub const fn rate(&self) -> Option<Rate> {
        self.rate
    }

    /// A pace of so many requests a minute; `None`: no limit.
    #[must_use]
    pub fn new(requests_per_minute: Option<u32>) -> Self {
        Self {
            rate: rate(requests_per_minute),
            full_at: BTreeMap::new(),
        }
    }

    /// Changes the pace; what was spent stays spent.
    pub fn configure(&mut self, requests_per_minute: Option<u32>) {
        self.rate = rate(requests_per_minute);
    }

    /// Counts a request that is about to be sent.
    pub fn spent(&mut self, installation_id: &InstallationId, now: Timestamp) {
        let Some(rate) = self.rate else {
            return;
        };
        self.full_at.retain(|_, full_at| *full_at > now);
        let full_at = rate.spend(self.full_at.get(installation_id).copied(), now);
        self.full_at.insert(installation_id.clone(), full_at);
    }

    /// How many of at most `most` requests may be claimed at once for an installation that has not used up its allowance.
    #[must_use]
    pub fn at_once(&self, most: u32) -> u32 {
        self.rate.map_or(most, |rate| rate.at_once(most))
    }

    /// The installations that have used up their allowance at `now`.
    #[must_use]
    pub fn exhausted(&self, now: Timestamp) -> Vec<InstallationId> {
        let Some(rate) = self.rate else {
            return Vec::new();
        };
        self.full_at
            .iter()
            .filter(|(_, full_at)| rate.is_used_up(**full_at, now))
            .map(|(id, _)| id.clone())
            .collect()
    }
}

fn rate(requests_per_minute: Option<u32>) -> Option<Rate> {
    requests_per_minute
        .and_then(NonZeroU32::new)
        .map(Rate::per_minute)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
    fn many_places_do_not_lift_the_limit() {
        let id = InstallationId::new("icfg_1").expect("an id");
        let mut pace = Pace::new(Some(30));
        let mut sent = 0;
        for tenth in 0..600 {
            let now = Timestamp::from_millis(1_000_000 + tenth * 100);
            if pace.exhausted(now).is_empty() {
                let claimed = pace.at_once(16);
                (0..claimed).for_each(|_| pace.spent(&id, now));
                sent += claimed;
            }
        }
        assert!((30..=36).contains(&sent), "{sent}");
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
