//! A state that lives in memory, for simulations and tests: the same steps as the others, nothing durable.
//!
//! It never waits for anything but its own lock, and equal calls give equal results.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;

use crate::model::{
    Entry, EntryId, EntryState, FingerprintKey, InstallationId, Lease, LeaseToken, Record,
    ResourceKey, RowHash, Timestamp,
};
use crate::plan::Claimed;
use crate::plan::manual::Refusal;
use crate::planted::{Bug, is_planted};

mod guard;
mod rows;

use guard::Guarded;

use super::console::Order;
use super::hold::{Hold, HoldReport};
use super::rules::{is_due, limit_holds, pause_holds, quarantine_slot};
use super::steps::watch::WatchRows;
use super::steps::{self, Change};
use super::{
    Advanced, AttemptRecord, Batch, ClaimRequest, Counts, Cutoffs, Drifted, Glance, Glances,
    Heartbeat, Pause, PauseKind, Person, Progress, Quarantined, Reconciled, Settlement, Store,
    StoreError,
};

/// A state in memory.
#[derive(Debug)]
pub struct MemoryStore {
    key: FingerprintKey,
    state: Mutex<State>,
}

/// An attempt as it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptAttempt {
    /// Its entry.
    pub entry_id: EntryId,
    /// Its number within the entry, from 1.
    pub number: u32,
    /// The resource.
    pub key: ResourceKey,
    /// The stable name of how it ended.
    pub outcome: &'static str,
    /// The request.
    pub record: AttemptRecord,
}

/// An entry that was closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedEntry {
    /// The resource.
    pub key: ResourceKey,
    /// The entry.
    pub entry: Entry,
    /// When it was closed.
    pub closed_at: Timestamp,
}

type QuarantineId = (String, String, Vec<u8>);

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<ResourceKey, Record>,
    closed: BTreeMap<EntryId, ClosedEntry>,
    last_entry: i64,
    attempts: Vec<KeptAttempt>,
    pauses: BTreeMap<(InstallationId, &'static str), Pause>,
    limits: BTreeMap<InstallationId, Timestamp>,
    quarantine: BTreeMap<QuarantineId, (Quarantined, Option<u64>)>,
    rechecks: BTreeSet<ResourceKey>,
    guarded: Guarded,
    progress: Progress,
    watch: Option<Lease>,
    heartbeat: Option<Heartbeat>,
    /// The resources whose records were changed since somebody last asked.
    #[cfg(test)]
    changed: Vec<ResourceKey>,
}

impl MemoryStore {
    /// An empty state.
    #[must_use]
    pub fn new(key: FingerprintKey) -> Self {
        Self {
            key,
            state: Mutex::default(),
        }
    }

    /// The history of requests, oldest first.
    pub async fn attempts(&self) -> Vec<KeptAttempt> {
        self.state.lock().await.attempts.clone()
    }

    /// The closed entries, by number.
    pub async fn closed(&self) -> Vec<ClosedEntry> {
        self.state.lock().await.closed.values().cloned().collect()
    }

    /// The last sign of life.
    pub async fn last_heartbeat(&self) -> Option<Heartbeat> {
        self.state.lock().await.heartbeat.clone()
    }

    /// The resources whose records were changed since this was last asked, so that a simulation looks at no others.
    #[cfg(test)]
    pub(crate) async fn take_changed(&self) -> Vec<ResourceKey> {
        std::mem::take(&mut self.state.lock().await.changed)
    }

    /// Carries out a person's order for a resource's open entry; returns the entry's state then.
    ///
    /// # Errors
    /// The entry's state does not allow it.
    pub async fn order(
        &self,
        key: &ResourceKey,
        order: Order,
        now: Timestamp,
    ) -> Result<EntryState, Refusal> {
        let mut state = self.state.lock().await;
        let keys = std::slice::from_ref(key);
        let outcomes = sure(steps::order::give(&mut *state, keys, order, now).await);
        outcomes.into_iter().next().unwrap_or(Err(Refusal::Closed))
    }

    /// Changes a record as a person would, through [`crate::plan::manual`]; keeps the entry that `change` returns as closed.
    pub async fn edit<T>(
        &self,
        key: &ResourceKey,
        now: Timestamp,
        change: impl FnOnce(&mut Record) -> (T, Option<Entry>) + Send,
    ) -> T {
        let mut state = self.state.lock().await;
        let before = state.record(key);
        let mut after = before.clone();
        let (result, closed) = change(&mut after);
        state.keep(Change {
            before: &before,
            after: &mut after,
            closed: closed.as_ref(),
            now,
        });
        result
    }
}

impl State {
    fn record(&self, key: &ResourceKey) -> Record {
        self.records
            .get(key)
            .cloned()
            .unwrap_or_else(|| Record::new(key.clone()))
    }

    fn keep(&mut self, change: Change<'_>) {
        let Change {
            before,
            after,
            closed,
            now,
        } = change;
        if let Some(entry) = closed {
            let closed = ClosedEntry {
                key: after.key.clone(),
                entry: entry.clone(),
                closed_at: now,
            };
            self.closed.insert(entry.id, closed);
        }
        if let Some(entry) = &mut after.entry
            && entry.id == EntryId(0)
        {
            self.last_entry += 1;
            entry.id = EntryId(self.last_entry);
        }
        if before == after {
            return;
        }
        #[cfg(test)]
        self.changed.push(after.key.clone());
        self.records.insert(after.key.clone(), after.clone());
    }

    /// The open entries by resource.
    fn entries(&self) -> impl Iterator<Item = (&ResourceKey, &Entry)> {
        self.records
            .iter()
            .filter_map(|(key, record)| Some((key, record.entry.as_ref()?)))
    }

    /// The waiting entries that nobody sends for.
    fn claimable(&self) -> impl Iterator<Item = (&ResourceKey, &Entry)> {
        self.entries()
            .filter(|(_, entry)| entry.state == EntryState::Waiting)
            .filter(|(_, entry)| entry.lease.is_none() || is_planted(Bug::TwoInFlight))
    }

    fn is_blocked(&self, installation_id: &InstallationId, now: Timestamp) -> bool {
        if is_planted(Bug::LimitStopsAll) && self.limits.values().any(|u| limit_holds(*u, now))
            || is_planted(Bug::PauseStopsAll) && !self.pauses.is_empty()
        {
            return true;
        }
        let limited = self.limits.get(installation_id);
        limited.is_some_and(|until| limit_holds(*until, now))
            || self
                .pauses_of(installation_id)
                .any(|pause| pause_holds(pause, now))
    }

    fn pauses_of(&self, installation_id: &InstallationId) -> impl Iterator<Item = &Pause> {
        self.pauses
            .values()
            .filter(move |pause| pause.installation_id == *installation_id)
    }

    /// When an entry that is due at `due_at` can be claimed at the earliest; `None`: not before an act or a probe.
    fn claimable_at(
        &self,
        installation_id: &InstallationId,
        due_at: Timestamp,
    ) -> Option<Timestamp> {
        let limited = self.limits.get(installation_id).copied();
        self.pauses_of(installation_id)
            .try_fold(due_at.max(limited.unwrap_or(due_at)), |at, pause| {
                pause.until.map(|until| at.max(until))
            })
    }

    fn next_due(&self) -> Option<Timestamp> {
        let claimable = self
            .claimable()
            .filter_map(|(key, entry)| self.claimable_at(&key.installation_id, entry.due_at));
        let leases = self
            .entries()
            .filter_map(|(_, entry)| Some(entry.lease.as_ref()?.expires_at));
        claimable.chain(leases).min()
    }

    fn glance(&self, key: &ResourceKey) -> Glance {
        let record = self.records.get(key);
        Glance {
            row_hash: record.and_then(|record| record.row_hash),
            entry: record.and_then(|record| Some(record.entry.as_ref()?.state)),
            quarantined: self.quarantined(key),
            missing: record.is_some_and(|record| record.missing.is_some()),
        }
    }

    fn quarantined(&self, key: &ResourceKey) -> Option<RowHash> {
        if self.quarantine.is_empty() {
            return None;
        }
        let id = quarantine_id(key);
        self.quarantine.get(&id).map(|(row, _)| row.row_hash)
    }

    /// Keeps an unusable row; true when it is new or changed.
    fn keep_unusable(&mut self, row: &Quarantined, sweep: Option<u64>) -> bool {
        let id = (
            row.installation_id.clone(),
            row.resource_id.clone(),
            quarantine_slot(row),
        );
        let old = self.quarantine.get_mut(&id);
        if let Some((old, met)) = old
            && old.row_hash == row.row_hash
        {
            *met = sweep.or(*met);
            return false;
        }
        self.quarantine.insert(id, (row.clone(), sweep));
        true
    }

    fn counts(&self, now: Timestamp) -> Counts {
        let of = |state| {
            let entries = self.entries().filter(|(_, entry)| entry.state == state);
            entries.count() as u64
        };
        let paused: BTreeSet<&InstallationId> = self
            .pauses
            .values()
            .filter(|pause| pause_holds(pause, now))
            .map(|pause| &pause.installation_id)
            .collect();
        let records = self.records.values();
        Counts {
            waiting: of(EntryState::Waiting),
            in_flight: self.entries().filter(|(_, e)| e.lease.is_some()).count() as u64,
            held: of(EntryState::Held),
            dead: of(EntryState::Dead),
            quarantined: self.quarantine.len() as u64,
            paused: paused.len() as u64,
            missing: records.clone().filter(|r| r.missing.is_some()).count() as u64,
            oldest_waiting: self
                .entries()
                .filter(|(_, entry)| entry.state == EntryState::Waiting)
                .map(|(_, entry)| entry.created_at)
                .min(),
            last_acknowledged: records.filter_map(|r| r.acknowledged_at).max(),
        }
    }

    fn prune(&mut self, cutoffs: Cutoffs, limit: usize) -> u64 {
        let mut old: Vec<(Timestamp, EntryId)> = self
            .closed
            .iter()
            .filter(|(_, closed)| closed.closed_at < cutoffs.entries)
            .map(|(id, closed)| (closed.closed_at, *id))
            .collect();
        old.sort_unstable();
        old.truncate(limit);
        let gone: BTreeSet<EntryId> = old.into_iter().map(|(_, id)| id).collect();
        self.closed.retain(|id, _| !gone.contains(id));
        let mut ended: Vec<(Timestamp, usize)> = self
            .attempts
            .iter()
            .enumerate()
            .filter(|(_, attempt)| attempt.record.ended_at < cutoffs.attempts)
            .map(|(index, attempt)| (attempt.record.ended_at, index))
            .collect();
        ended.sort_unstable();
        ended.truncate(limit);
        let ended: BTreeSet<usize> = ended.into_iter().map(|(_, index)| index).collect();
        let mut index = 0..;
        self.attempts
            .retain(|_| index.next().is_some_and(|index| !ended.contains(&index)));
        (gone.len() + ended.len()) as u64
    }
}

fn quarantine_id(key: &ResourceKey) -> QuarantineId {
    let installation_id = key.installation_id.as_str().to_owned();
    let resource_id = key.resource_id.as_str().to_owned();
    (installation_id, resource_id, Vec::new())
}

fn at_most(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Takes the result of steps that cannot fail.
fn sure<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn fingerprint_key(&self) -> Result<FingerprintKey, StoreError> {
        Ok(self.key.clone())
    }

    async fn glance(&self, keys: &[ResourceKey]) -> Result<Vec<Glance>, StoreError> {
        let state = self.state.lock().await;
        Ok(keys.iter().map(|key| state.glance(key)).collect())
    }

    async fn glance_between(
        &self,
        first: (&str, &str),
        last: (&str, &str),
        limit: u32,
    ) -> Result<Option<Glances>, StoreError> {
        let state = self.state.lock().await;
        let mut glances = Glances::default();
        for key in state.records.keys() {
            let ids = (key.installation_id.as_str(), key.resource_id.as_str());
            if ids < first || ids > last {
                continue;
            }
            glances.push(ids, state.glance(key));
        }
        let fits = glances.len() <= usize::try_from(limit).unwrap_or(usize::MAX);
        Ok(fits.then_some(glances))
    }

    async fn records(&self, keys: &[ResourceKey]) -> Result<Vec<Record>, StoreError> {
        let state = self.state.lock().await;
        Ok(keys.iter().map(|key| state.record(key)).collect())
    }

    async fn reconcile(&self, batch: Batch) -> Result<Reconciled, StoreError> {
        let mut state = self.state.lock().await;
        sure(steps::reconcile(&mut *state, &batch).await).ok_or(StoreError::WatchLost)
    }

    async fn progress(&self) -> Result<Progress, StoreError> {
        Ok(self.state.lock().await.progress.clone())
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Claimed>, StoreError> {
        let mut state = self.state.lock().await;
        Ok(sure(steps::claim::claim(&mut *state, request).await))
    }

    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.state.lock().await.next_due())
    }

    async fn advance(&self, settlement: Settlement) -> Result<Option<Advanced>, StoreError> {
        let mut state = self.state.lock().await;
        let mut answers = sure(steps::advance(&mut *state, &[settlement]).await);
        Ok(answers.pop().flatten())
    }

    async fn recover(
        &self,
        now: Timestamp,
        late_apply: Duration,
        owner_gone: bool,
    ) -> Result<u64, StoreError> {
        let mut state = self.state.lock().await;
        Ok(sure(
            steps::recover(&mut *state, now, late_apply, owner_gone).await,
        ))
    }

    async fn pause(&self, pause: &Pause) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        sure(steps::pause(&mut *state, pause).await);
        Ok(())
    }

    async fn resume(
        &self,
        installation_id: &InstallationId,
        kind: PauseKind,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut state = self.state.lock().await;
        Ok(sure(
            steps::resume(&mut *state, installation_id, kind, now).await,
        ))
    }

    async fn probes_due(&self, now: Timestamp, limit: u32) -> Result<Vec<Pause>, StoreError> {
        let state = self.state.lock().await;
        let mut due: Vec<&Pause> = state
            .pauses
            .values()
            .filter(|pause| pause.probe_at.is_some_and(|at| is_due(at, now)))
            .collect();
        due.sort_by_key(|pause| (pause.probe_at, &pause.installation_id, pause.kind.name()));
        Ok(due.into_iter().take(at_most(limit)).cloned().collect())
    }

    async fn keys_after(
        &self,
        after: Option<&ResourceKey>,
        limit: u32,
    ) -> Result<Vec<ResourceKey>, StoreError> {
        let state = self.state.lock().await;
        let unusable = state
            .quarantine
            .values()
            .filter_map(|(row, _)| row.key.as_ref());
        let keys: BTreeSet<&ResourceKey> = state.records.keys().chain(unusable).collect();
        let further = keys
            .into_iter()
            .filter(|key| after.is_none_or(|after| *key > after));
        Ok(further.take(at_most(limit)).cloned().collect())
    }

    async fn resources(&self) -> Result<u64, StoreError> {
        Ok(self.state.lock().await.records.len() as u64)
    }

    async fn unusable_alone(&self) -> Result<u64, StoreError> {
        let state = self.state.lock().await;
        let keys = state.quarantine.values();
        let keys = keys.filter_map(|(row, _)| row.key.as_ref());
        Ok(keys.filter(|key| !state.records.contains_key(key)).count() as u64)
    }

    async fn counts(&self, now: Timestamp) -> Result<Counts, StoreError> {
        Ok(self.state.lock().await.counts(now))
    }

    async fn is_blocked(
        &self,
        installation_id: &InstallationId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        Ok(self.state.lock().await.is_blocked(installation_id, now))
    }

    async fn mark_drifted(
        &self,
        drifted: &[Drifted],
        _by: Option<&Person>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut state = self.state.lock().await;
        let marked = sure(steps::mark_drifted(&mut *state, drifted, now).await);
        Ok(marked.len() as u64)
    }

    async fn rechecks(&self, limit: u32) -> Result<Vec<ResourceKey>, StoreError> {
        let state = self.state.lock().await;
        let wished = state.rechecks.iter().take(at_most(limit));
        Ok(wished.cloned().collect())
    }

    async fn hold(&self, id: i64) -> Result<Option<HoldReport>, StoreError> {
        Ok(self.state.lock().await.hold_report(id))
    }

    async fn open_holds(&self) -> Result<Vec<Hold>, StoreError> {
        Ok(self.state.lock().await.open_holds())
    }

    async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError> {
        self.state.lock().await.heartbeat = Some(heartbeat.clone());
        Ok(())
    }

    async fn acquire_watch(&self, lease: &Lease, now: Timestamp) -> Result<bool, StoreError> {
        let mut state = self.state.lock().await;
        Ok(sure(steps::watch::acquire(&mut *state, lease, now).await))
    }

    async fn renew_watch(
        &self,
        token: LeaseToken,
        expires_at: Timestamp,
    ) -> Result<bool, StoreError> {
        Ok(sure(
            self.state.lock().await.renew_watch(token, expires_at).await,
        ))
    }

    async fn release_watch(&self, token: LeaseToken) -> Result<bool, StoreError> {
        Ok(sure(self.state.lock().await.drop_watch(Some(token)).await))
    }

    async fn watch(&self) -> Result<Option<Lease>, StoreError> {
        Ok(self.state.lock().await.watch.clone())
    }

    async fn prune(&self, cutoffs: Cutoffs, limit: u32) -> Result<u64, StoreError> {
        Ok(self.state.lock().await.prune(cutoffs, at_most(limit)))
    }
}
