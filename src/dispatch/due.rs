//! What may start now: claims of what is due, places laid out for what a pass may find, probes of paused installations.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::model::{LeaseToken, Timestamp};
use crate::plan::Claimed;
use crate::plan::look::{self, LOOK_AGAIN, is_time_for_probes};
use crate::plan::room::{Answers, Load};
use crate::planted::{Bug, is_planted};
use crate::store::{ClaimRequest, Pause, StoreError};

use super::{Dispatcher, Ended, Running};

/// How long dispatch waits after the state could not be read or written.
const STATE_RETRY: Duration = Duration::from_secs(1);
/// The most probes of paused installations that run at once.
const PROBES_MAX: usize = 4;

/// Claims are made one after another, beside the requests.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// How many entries the claim under way asked for, and when.
    pub(super) asked: Option<(usize, Timestamp)>,
    /// A claim of that time found less than it asked for, or failed: what it found is waited upon before the next.
    pub(super) found: Option<(Timestamp, Result<usize, StoreError>)>,
    /// How many requests are answered meanwhile.
    pub(super) answers: Answers,
}

/// What a pass claimed; waits for ever when nothing is laid out.
pub(super) async fn handed_over(
    offered: &mut Option<oneshot::Receiver<Vec<Claimed>>>,
) -> Option<Result<Vec<Claimed>, oneshot::error::RecvError>> {
    match offered {
        Some(claimed) => Some(claimed.await),
        None => std::future::pending().await,
    }
}

impl Dispatcher {
    /// Starts what may start now; returns how long to wait for the next.
    pub(super) async fn fill(&mut self, running: &mut Running<'_>) -> Duration {
        match self.start_due(running).await {
            Ok(wait) => wait,
            Err(error) => {
                // If the state cannot be written nothing is sent.
                self.signals.metrics.state_failures.add(1);
                if !std::mem::replace(&mut self.state_failed, true) {
                    self.report.state_failed(&error);
                }
                STATE_RETRY
            }
        }
    }

    async fn start_due(&mut self, running: &mut Running<'_>) -> Result<Duration, StoreError> {
        let now = self.worlds.clock.now();
        if self.outage.since().is_none() && is_time_for_probes(self.probes_looked_for, now) {
            self.start_probes(running, PROBES_MAX).await?;
        }
        if self.end_leases(now) {
            // Their ends wake this loop.
            return Ok(LOOK_AGAIN);
        }
        if self.claims.asked.is_some() || self.offered.is_some() {
            // Its end wakes this loop.
            return Ok(LOOK_AGAIN);
        }
        match self.claims.found.take() {
            Some((_, Err(error))) => return Err(error),
            Some((asked_at, Ok(count))) => {
                if count == 0 && self.outage.since().is_some() {
                    // All that waits may belong to paused installations: then one of their probes finds out whether the API
                    // answers again, or nothing ever would.
                    self.start_probes(running, 1).await?;
                }
                let wait = self.until_next(asked_at).await?;
                self.lay_out();
                return Ok(wait);
            }
            None => {}
        }
        if self.claim(running, now) {
            return Ok(LOOK_AGAIN);
        }
        match self.outage.since() {
            Some(_) => self.until_next(now).await,
            // A place that becomes free wakes this loop.
            None => Ok(LOOK_AGAIN),
        }
    }

    /// Claims for the places that are free; false when there are none.
    fn claim(&mut self, running: &Running<'_>, now: Timestamp) -> bool {
        let asked = self.room(now);
        if asked == 0 {
            return false;
        }
        self.claims.asked = Some((asked, now));
        self.claims.answers.claim_begins();
        let limit = u32::try_from(asked).unwrap_or(u32::MAX);
        let (store, request) = (Arc::clone(&self.worlds.store), self.request(now, limit));
        running.ask(async move { Ended::Claim(store.claim(&request).await) });
        true
    }

    /// Claims on after a claim that found all that it asked for, before what it found is sent.
    pub(super) fn claim_on(&mut self, running: &Running<'_>) {
        let now = self.worlds.clock.now();
        let found_all = self.claims.found.is_none();
        if found_all && !self.is_stopping() && !self.end_leases(now) {
            self.claim(running, now);
        }
    }

    /// Lays out the free places: what a pass finds from here on it claims with the page.
    fn lay_out(&mut self) {
        let now = self.worlds.clock.now();
        let room = self.room(now);
        if room == 0 || self.outage.since().is_some() {
            return;
        }
        let mut request = self.request(now, u32::try_from(room).unwrap_or(u32::MAX));
        if request.rate.is_some() {
            // What these have used of their allowances may be more by the time that a pass claims.
            request.excluded.extend(self.in_flight.keys().cloned());
        }
        let handover = &self.signals.handover;
        self.offered = Some(handover.offer(request, self.settings.lease));
    }

    /// Takes back what was laid out; false when a pass is claiming for it.
    pub(super) fn withdraw(&mut self) -> bool {
        if self.offered.is_some() && self.signals.handover.withdraw() {
            self.offered = None;
        }
        self.offered.is_none()
    }

    /// Ends deliveries whose lease is over, before their entries can be claimed again: a request takes less time than a lease
    /// lasts, so the clock was set forward, or the process stood still. Returns whether there are any.
    fn end_leases(&self, now: Timestamp) -> bool {
        let mut any = false;
        for lease in self.leases.values() {
            if lease.expires_at <= now {
                lease.over.cancel();
                any = true;
            }
        }
        any
    }

    /// How many entries are to be claimed now.
    fn room(&self, now: Timestamp) -> usize {
        let load = Load {
            places: self.settings.max_in_flight as usize,
            claimed: self.unanswered(),
            answered: self.claims.answers.during_a_claim(),
            unrecorded: self.unrecorded.len(),
            probing: self.probing.len(),
        };
        load.room(&self.outage, now)
    }

    fn request(&self, now: Timestamp, limit: u32) -> ClaimRequest {
        let tokens = (0..limit)
            .map(|_| match is_planted(Bug::LeaseTokenReused) {
                true => LeaseToken(1),
                false => LeaseToken(self.worlds.random.unique()),
            })
            .collect();
        let (rate, used) = (self.pace.rate(), self.pace.used(now));
        ClaimRequest {
            now,
            owner: self.settings.owner.clone(),
            lease_expires_at: now.plus(self.settings.lease),
            tokens,
            limit,
            per_installation: self
                .pace
                .at_once(self.settings.max_in_flight_per_installation),
            in_flight: match is_planted(Bug::InFlightForgotten) {
                true => BTreeMap::new(),
                false => self.in_flight.clone(),
            },
            after: self.last_served.clone(),
            excluded: used
                .iter()
                .filter(|(_, full_at)| rate.is_some_and(|rate| rate.is_used_up(**full_at, now)))
                .map(|(installation_id, _)| installation_id.clone())
                .collect(),
            rate,
            used,
            late_apply: self.settings.retry.late_apply,
            secrets: self.settings.secrets,
        }
    }

    /// How long nothing will be due that was not due at `asked_at`.
    async fn until_next(&self, asked_at: Timestamp) -> Result<Duration, StoreError> {
        let due = self.worlds.store.next_due().await?;
        let (now, probe_at) = (self.worlds.clock.now(), self.outage.next_probe_at());
        Ok(look::wait(due, asked_at, probe_at, now))
    }

    /// Starts probes of paused installations, so that at most `limit` are under way.
    async fn start_probes(
        &mut self,
        running: &mut Running<'_>,
        limit: usize,
    ) -> Result<(), StoreError> {
        let free = limit.saturating_sub(self.probing.len());
        let elsewhere = self.signals.probes_elsewhere.load(Ordering::Relaxed);
        if free == 0 || elsewhere || is_planted(Bug::PauseNeverProbed) {
            return Ok(());
        }
        let now = self.worlds.clock.now();
        self.probes_looked_for = Some(now);
        let due = self
            .worlds
            .store
            .probes_due(now, u32::try_from(PROBES_MAX).unwrap_or(u32::MAX))
            .await?;
        let idle = |pause: &Pause| !self.probing.contains_key(&pause.installation_id);
        let due: Vec<Pause> = due.into_iter().filter(idle).take(free).collect();
        for pause in due {
            self.probing.insert(pause.installation_id.clone(), ());
            let worker = Arc::clone(&self.worker);
            running.push(async move { Ended::Probe(Box::new(worker.probe(pause).await)) });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
