//! The client's own rate limit per installation, as far as this process has used it.
//!
//! An allowance is held from the claim of an entry until its request leaves or turns out not to, and is spent when it leaves: the limit
//! is one of requests, however long a claim waits to become one. What an answer makes dispatch ask (a GET after a 409, a list after a
//! 404) and the probe of a paused installation are not put off, but count: the next delivery waits for them, too. So of each stretch
//! of time that ends with the request of a delivery all requests in it are within the limit. A process that starts knows of none.
//!
//! A state that several processes share keeps what all of them have claimed, and its claims go by that as well.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::{InstallationId, Timestamp};
use crate::plan::pace::Rate;
use crate::planted::{Bug, is_planted};

/// How long what counts no more may be kept.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// When each installation may be sent to again; its clones are one.
#[derive(Debug, Clone)]
pub(super) struct Pace(Arc<Mutex<Used>>);

#[derive(Debug)]
struct Used {
    rate: Option<Rate>,
    /// The latest instant at which this was looked at.
    seen: Timestamp,
    /// When what counts no more was last forgotten.
    tidied: Timestamp,
    installations: BTreeMap<InstallationId, Usage>,
}

/// What an installation has used of its allowance.
#[derive(Debug)]
struct Usage {
    /// When the allowance is whole again after the requests that left.
    full_at: Timestamp,
    /// Requests that are claimed and have not left.
    held: u32,
}

/// A claimed entry's part of its installation's allowance. Dropped without having left, its request leaves it to others.
#[derive(Debug)]
pub(super) struct Allowance {
    pace: Pace,
    installation_id: InstallationId,
}

impl Pace {
    /// A pace of so many requests a minute; `None`: no limit.
    pub(super) fn new(requests_per_minute: Option<u32>) -> Self {
        Self(Arc::new(Mutex::new(Used {
            rate: rate(requests_per_minute),
            seen: Timestamp::EPOCH,
            tidied: Timestamp::EPOCH,
            installations: BTreeMap::new(),
        })))
    }

    /// Changes the pace; what was used stays used.
    pub(super) fn configure(&self, requests_per_minute: Option<u32>) {
        self.lock().rate = rate(requests_per_minute);
    }

    /// What a claim is to go by.
    pub(super) fn rate(&self) -> Option<Rate> {
        self.lock().rate
    }

    /// Holds the allowance of a request for an entry that was claimed.
    pub(super) fn hold(&self, installation_id: &InstallationId) -> Allowance {
        self.lock().usage(installation_id).held += 1;
        Allowance {
            pace: self.clone(),
            installation_id: installation_id.clone(),
        }
    }

    /// Counts a request that leaves now and is no delivery.
    pub(super) fn asks(&self, installation_id: &InstallationId, now: Timestamp) {
        self.lock().spend(installation_id, now);
    }

    /// How many of at most `most` requests may be claimed at once for an installation that has used nothing of its allowance.
    pub(super) fn at_once(&self, most: u32) -> u32 {
        self.rate().map_or(most, |rate| rate.at_once(most))
    }

    /// When the allowances are whole again of which any is spent or held at `now`.
    pub(super) fn used(&self, now: Timestamp) -> BTreeMap<InstallationId, Timestamp> {
        let mut used = self.lock();
        let Some(rate) = used.rate else {
            return BTreeMap::new();
        };
        used.see(now);
        let full_at = |usage: &Usage| rate.hold(usage.full_at, usage.held, now);
        let counted = used
            .installations
            .iter()
            .filter(|(_, usage)| usage.counts(now));
        counted
            .map(|(id, usage)| (id.clone(), full_at(usage)))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Allowance {
    /// The request leaves at `now`; false when what was sent since the claim has used the allowance up: then it must not leave.
    pub(super) fn leave(self, now: Timestamp) -> bool {
        let mut used = self.pace.lock();
        let Some(rate) = used.rate else {
            return true;
        };
        used.see(now);
        let full_at = used.usage(&self.installation_id).full_at;
        if rate.is_used_up(full_at, now) && !is_planted(Bug::AllowanceTakenForGranted) {
            return false;
        }
        used.spend(&self.installation_id, now);
        true
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        let mut used = self.pace.lock();
        let seen = used.seen;
        let usage = used.usage(&self.installation_id);
        usage.held = usage.held.saturating_sub(1);
        if !usage.counts(seen) {
            used.installations.remove(&self.installation_id);
        }
    }
}

impl Usage {
    /// Whether it is anything at `now`.
    fn counts(&self, now: Timestamp) -> bool {
        self.held > 0 || self.full_at > now
    }
}

impl Used {
    /// Takes note of the time: a clock that was set back takes what is spent with it.
    fn see(&mut self, now: Timestamp) {
        let back = self.seen.since(now);
        if !back.is_zero() {
            for usage in self.installations.values_mut() {
                usage.full_at = usage.full_at.minus(back);
            }
            self.tidied = self.tidied.minus(back);
        }
        self.seen = now;
        // Every request looks, and there may be thousands of installations.
        if now.since(self.tidied) >= TIDY_EVERY {
            self.tidied = now;
            self.installations.retain(|_, usage| usage.counts(now));
        }
    }

    fn usage(&mut self, installation_id: &InstallationId) -> &mut Usage {
        self.installations
            .entry(installation_id.clone())
            .or_insert(Usage {
                full_at: Timestamp::EPOCH,
                held: 0,
            })
    }

    fn spend(&mut self, installation_id: &InstallationId, now: Timestamp) {
        if let Some(rate) = self.rate
            && !is_planted(Bug::RequestsNotCounted)
        {
            self.see(now);
            let usage = self.usage(installation_id);
            usage.full_at = rate.spend(usage.full_at, now);
        }
    }
}

fn rate(requests_per_minute: Option<u32>) -> Option<Rate> {
    requests_per_minute
        .and_then(NonZeroU32::new)
        .map(Rate::per_minute)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn id() -> InstallationId {
        InstallationId::new("icfg_1").expect("an id")
    }

    /// How many of `wanted` requests may leave at once.
    fn sent(pace: &Pace, wanted: u32, now: Timestamp) -> u32 {
        (0..wanted)
            .map(|_| u32::from(pace.hold(&id()).leave(now)))
            .sum()
    }

    /// Whether a claim would pass the installation over.
    fn is_used_up(pace: &Pace, now: Timestamp) -> bool {
        let full_at = pace.used(now).get(&id()).copied();
        let used_up = |(rate, full_at): (Rate, Timestamp)| rate.is_used_up(full_at, now);
        pace.rate().zip(full_at).is_some_and(used_up)
    }

    #[test]
    fn five_seconds_worth_leave_at_once_and_then_one_by_one() {
        let pace = Pace::new(Some(60));
        assert_eq!(sent(&pace, 9, NOW), 5);
        assert_eq!(sent(&pace, 9, NOW.plus(SECOND / 2)), 0);
        assert_eq!(sent(&pace, 9, NOW.plus(SECOND)), 1);
        assert_eq!(sent(&pace, 9, NOW.plus(SECOND * 3)), 2);
        assert_eq!(sent(&pace, 9, NOW.plus(SECOND * 3600)), 5);
    }

    #[test]
    fn claims_that_wait_to_be_sent_keep_their_allowance_for_as_long_as_they_wait() {
        let pace = Pace::new(Some(60));
        let mut claimed: Vec<Allowance> = (0..5).map(|_| pace.hold(&id())).collect();
        let later = NOW.plus(SECOND * 3600);
        assert!(is_used_up(&pace, later), "five may still leave at once");
        drop(claimed.pop());
        assert!(!is_used_up(&pace, later), "one of them will not");
        assert_eq!(sent(&pace, 1, later), 1);
        assert!(claimed.into_iter().all(|allowance| allowance.leave(later)));
        assert!(is_used_up(&pace, later));
        assert_eq!(pace.used(later), [(id(), later.plus(SECOND * 5))].into());
    }

    #[test]
    fn questions_leave_at_once_and_put_off_what_was_claimed_already() {
        let pace = Pace::new(Some(60));
        let claimed = [pace.hold(&id()), pace.hold(&id())];
        (0..4).for_each(|_| pace.asks(&id(), NOW));
        assert_eq!(claimed.map(|allowance| allowance.leave(NOW)), [true, false]);
        (0..10).for_each(|_| pace.asks(&id(), NOW));
        assert_eq!(sent(&pace, 1, NOW.plus(SECOND * 10)), 0);
        assert_eq!(sent(&pace, 1, NOW.plus(SECOND * 11)), 1);
    }

    #[test]
    fn a_clock_that_went_back_takes_what_was_sent_with_it() {
        let pace = Pace::new(Some(60));
        assert_eq!(sent(&pace, 3, NOW), 3);
        let earlier = NOW.minus(SECOND * 36_000);
        assert_eq!(sent(&pace, 9, earlier), 2);
        assert_eq!(sent(&pace, 9, earlier.plus(SECOND)), 1);
    }

    #[test]
    fn a_slower_pace_counts_what_was_sent_at_the_faster_one() {
        let pace = Pace::new(Some(600));
        assert_eq!(sent(&pace, 50, NOW), 50);
        let later = NOW.plus(SECOND);
        assert!(!is_used_up(&pace, later), "ten have come back");
        pace.configure(Some(6));
        assert!(is_used_up(&pace, later), "one comes back in ten seconds");
        assert!(!is_used_up(&pace, NOW.plus(SECOND * 5)));
        pace.configure(None);
        assert_eq!(sent(&pace, 100, NOW.plus(SECOND * 5)), 100);
    }

    #[test]
    fn without_a_limit_nobody_waits_and_nothing_is_kept() {
        let pace = Pace::new(None);
        assert_eq!(sent(&pace, 1000, NOW), 1000);
        pace.asks(&id(), NOW);
        assert!(pace.lock().installations.is_empty());
        assert_eq!(pace.at_once(64), 64);
    }

    #[test]
    fn what_counts_no_more_is_not_told_and_forgotten_within_a_second() {
        let pace = Pace::new(Some(600));
        assert!(pace.used(NOW).is_empty());
        pace.asks(&id(), NOW);
        let whole = NOW.plus(SECOND / 10);
        let moment = Duration::from_millis(1);
        assert_eq!(pace.used(whole.minus(moment)), [(id(), whole)].into());
        assert!(pace.used(whole).is_empty());
        assert!(pace.used(NOW.plus(SECOND - moment)).is_empty());
        assert_eq!(pace.lock().installations.len(), 1, "it is kept that long");
        assert!(pace.used(NOW.plus(SECOND)).is_empty());
        assert!(pace.lock().installations.is_empty());
    }

    #[test]
    fn a_claim_that_is_given_back_leaves_nothing_but_what_was_sent() {
        let pace = Pace::new(Some(60));
        drop(pace.hold(&id()));
        assert!(pace.lock().installations.is_empty());
        let held = pace.hold(&id());
        assert!(pace.hold(&id()).leave(NOW));
        drop(held);
        assert_eq!(pace.used(NOW), [(id(), NOW.plus(SECOND))].into());
    }

    #[test]
    fn so_many_may_be_claimed_at_once_as_may_leave_at_once() {
        let at_once = |requests_per_minute| Pace::new(requests_per_minute).at_once(64);
        assert_eq!(
            [Some(60), Some(6), Some(0), None].map(at_once),
            [5, 1, 64, 64]
        );
    }
}
