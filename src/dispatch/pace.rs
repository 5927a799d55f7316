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
}

impl Pace {
    /// A pace of so many requests a minute; `None`: no limit.
    #[must_use]
    pub fn new(requests_per_minute: Option<u32>) -> Self {
        Self {
            interval: interval(requests_per_minute),
            full_at: BTreeMap::new(),
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
    pub fn exhausted(&self, now: Timestamp) -> Vec<InstallationId> {
        let Some(interval) = self.interval else {
            return Vec::new();
        };
        let burst = BURST.max(interval);
        let used_up = |full_at: Timestamp| {
            full_at.plus(interval) > now.plus(burst) && full_at <= now.plus(burst * 4)
        };
        self.full_at
            .iter()
            .filter(|(_, full_at)| used_up(**full_at))
            .map(|(id, _)| id.clone())
            .collect()
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
