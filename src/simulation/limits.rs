//! The limits that the client sets itself, judged for one run of a process: requests a minute, requests at once.
//!
//! Both are promised for each run by itself: neither of the states that are tried here keeps what was sent, so that a process that
//! starts, or another one on the same state, begins anew. What all processes on a PostgreSQL state claim together is tried with real
//! ones (`tests/it/replicas/limits.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::dispatch::Settings;
use crate::model::{InstallationId, ResourceKey, Timestamp};

const MINUTE_MS: u128 = 60_000;
/// How much of a minute's allowance may be used at once; one request may in any case.
const BURST_MS: u128 = 5_000;

/// What one run of a process has sent, and may.
#[derive(Clone)]
pub(super) struct Limits(Arc<Mutex<Sent>>);

struct Sent {
    per_minute: Option<u32>,
    at_once: usize,
    at_once_per_installation: usize,
    /// When requests left.
    instants: BTreeMap<InstallationId, Vec<Timestamp>>,
    /// Those of deliveries that are not over.
    under_way: BTreeMap<InstallationId, usize>,
    /// The resources of which the last PATCH was answered 409.
    conflicts: BTreeSet<ResourceKey>,
}

/// A request of a delivery, until it is dropped.
pub(super) struct UnderWay {
    limits: Limits,
    installation_id: InstallationId,
}

impl Limits {
    pub(super) fn new(settings: &Settings) -> Self {
        let size = |limit| usize::try_from(limit).unwrap_or(usize::MAX);
        Self(Arc::new(Mutex::new(Sent {
            per_minute: settings.requests_per_minute_per_installation,
            at_once: size(settings.max_in_flight),
            at_once_per_installation: size(settings.max_in_flight_per_installation),
            instants: BTreeMap::new(),
            under_way: BTreeMap::new(),
            conflicts: BTreeSet::new(),
        })))
    }

    /// A PATCH leaves; or what is wrong with that.
    pub(super) fn patches(
        &self,
        key: &ResourceKey,
        now: Timestamp,
    ) -> (UnderWay, Result<(), String>) {
        let mut sent = self.lock();
        sent.conflicts.remove(key);
        let judged = sent.delivers(&key.installation_id, now);
        drop(sent);
        (self.under_way(key), judged)
    }

    /// A GET of a resource leaves: a claimed comparison, or what a 409 leads to.
    pub(super) fn asks(&self, key: &ResourceKey, now: Timestamp) -> (UnderWay, Result<(), String>) {
        let mut sent = self.lock();
        let judged = match sent.conflicts.remove(key) {
            true => sent.begins(&key.installation_id, now),
            false => sent.delivers(&key.installation_id, now),
        };
        drop(sent);
        (self.under_way(key), judged)
    }

    /// A probe leaves. It has no place, and waits for no allowance.
    pub(super) fn probes(&self, installation_id: &InstallationId, now: Timestamp) {
        self.lock().counts(installation_id, now);
    }

    /// A PATCH was answered 409.
    pub(super) fn conflicts(&self, key: &ResourceKey) {
        self.lock().conflicts.insert(key.clone());
    }

    fn under_way(&self, key: &ResourceKey) -> UnderWay {
        UnderWay {
            limits: self.clone(),
            installation_id: key.installation_id.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(count) = self.limits.lock().under_way.get_mut(&self.installation_id) {
            *count -= 1;
        }
    }
}

impl Sent {
    /// A delivery: in any stretch of time that ends with it, no more requests of whatever kind left for its installation than the
    /// limit allows in that time, and what five seconds of it allow, one at least, besides.
    fn delivers(&mut self, installation_id: &InstallationId, now: Timestamp) -> Result<(), String> {
        self.begins(installation_id, now)?;
        let Some(per_minute) = self.per_minute else {
            return Ok(());
        };
        let rate = u128::from(per_minute);
        let burst = (rate * BURST_MS).max(MINUTE_MS);
        let allowed = |stretch: Duration| (burst + rate * stretch.as_millis()) / MINUTE_MS;
        let instants = self.instants.get(installation_id).into_iter().flatten();
        for (first, count) in instants.rev().zip(1..) {
            let stretch = now.since(*first);
            let allowed = allowed(stretch);
            if count > allowed {
                return Err(format!(
                    "{count} requests for {installation_id} within {stretch:?}, and {per_minute} a minute allow {allowed}"
                ));
            }
        }
        Ok(())
    }

    /// A request with a place: no more are under way than there are places, in all and for its installation.
    fn begins(&mut self, installation_id: &InstallationId, now: Timestamp) -> Result<(), String> {
        self.counts(installation_id, now);
        let count = self.under_way.entry(installation_id.clone()).or_default();
        *count += 1;
        let (of_installation, all) = (*count, self.under_way.values().sum::<usize>());
        if of_installation > self.at_once_per_installation || all > self.at_once {
            return Err(format!(
                "{of_installation} requests for {installation_id} at once, {all} in all"
            ));
        }
        Ok(())
    }

    fn counts(&mut self, installation_id: &InstallationId, now: Timestamp) {
        if self.per_minute.is_some() {
            let instants = self.instants.entry(installation_id.clone());
            instants.or_default().push(now);
        }
    }
}
