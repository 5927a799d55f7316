//! The rows of a state in memory: every operation holds its lock, so each is a transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use crate::model::{
    Entry, EntryId, InstallationId, Lease, LeaseToken, Record, ResourceKey, Timestamp,
};
use crate::store::rules::is_due;
use crate::store::steps::watch::WatchRows;
use crate::store::steps::{AttemptRow, Change, DueRequest, Rows};
use crate::store::{Pause, PauseKind, PollProgress, Quarantined, SweepProgress};

use super::{KeptAttempt, State, at_most, quarantine_id};

impl Rows for State {
    type Error = Infallible;

    async fn records(&mut self, keys: &[ResourceKey]) -> Result<Vec<Record>, Infallible> {
        Ok(keys.iter().map(|key| self.record(key)).collect())
    }

    async fn save(&mut self, change: Change<'_>) -> Result<(), Infallible> {
        self.keep(change);
        Ok(())
    }

    async fn due_installations(
        &mut self,
        request: DueRequest<'_>,
    ) -> Result<Vec<InstallationId>, Infallible> {
        let DueRequest {
            now,
            after,
            up_to,
            excluded,
            limit,
        } = request;
        let due: BTreeSet<&InstallationId> = self
            .claimable()
            .filter(|(_, entry)| is_due(entry.due_at, now))
            .map(|(key, _)| &key.installation_id)
            .filter(|id| after.is_none_or(|after| *id > after))
            .filter(|id| up_to.is_none_or(|up_to| *id <= up_to))
            .filter(|id| !excluded.contains(*id))
            .collect();
        let free = due.into_iter().filter(|id| !self.is_blocked(id, now));
        Ok(free.take(limit).cloned().collect())
    }

    async fn due_resources(
        &mut self,
        installations: &[InstallationId],
        each: usize,
        now: Timestamp,
    ) -> Result<Vec<ResourceKey>, Infallible> {
        let mut due: BTreeMap<&InstallationId, Vec<(Timestamp, EntryId, &ResourceKey)>> =
            BTreeMap::new();
        for (key, entry) in self.claimable() {
            if is_due(entry.due_at, now) {
                let of_installation = due.entry(&key.installation_id).or_default();
                of_installation.push((entry.due_at, entry.id, key));
            }
        }
        let mut keys = Vec::new();
        for installation_id in installations {
            let mut of_installation = due.remove(installation_id).unwrap_or_default();
            of_installation.sort_unstable();
            let taken = of_installation.into_iter().take(each);
            keys.extend(taken.map(|(_, _, key)| key.clone()));
        }
        Ok(keys)
    }

    async fn reserve(
        &mut self,
        installations: &[InstallationId],
        owner: &str,
    ) -> Result<BTreeMap<InstallationId, u32>, Infallible> {
        let elsewhere = |(key, entry): (&ResourceKey, &Entry), id: &InstallationId| {
            key.installation_id == *id && entry.lease.as_ref().is_some_and(|l| l.owner != owner)
        };
        let count = |id: &InstallationId| self.entries().filter(|one| elsewhere(*one, id)).count();
        let reserved = installations
            .iter()
            .map(|id| (id.clone(), u32::try_from(count(id)).unwrap_or(u32::MAX)));
        Ok(reserved.collect())
    }

    async fn leased(
        &mut self,
        now: Option<Timestamp>,
        limit: u32,
    ) -> Result<Vec<ResourceKey>, Infallible> {
        let mut leased: Vec<(Timestamp, EntryId, &ResourceKey)> = self
            .entries()
            .filter_map(|(key, entry)| Some((entry.lease.as_ref()?.expires_at, entry.id, key)))
            .filter(|(expires_at, ..)| now.is_none_or(|now| *expires_at <= now))
            .collect();
        leased.sort_unstable();
        let taken = leased.into_iter().take(at_most(limit));
        Ok(taken.map(|(_, _, key)| key.clone()).collect())
    }

    async fn add_attempt(&mut self, attempt: AttemptRow<'_>) -> Result<(), Infallible> {
        let AttemptRow {
            entry_id,
            number,
            key,
            outcome,
            record,
        } = attempt;
        self.attempts.push(KeptAttempt {
            entry_id,
            number,
            key: key.clone(),
            outcome,
            record: record.clone(),
        });
        Ok(())
    }

    async fn limited_until(
        &mut self,
        installation_id: &InstallationId,
    ) -> Result<Option<Timestamp>, Infallible> {
        Ok(self.limits.get(installation_id).copied())
    }

    async fn set_limited_until(
        &mut self,
        installation_id: &InstallationId,
        until: Timestamp,
    ) -> Result<(), Infallible> {
        self.limits.insert(installation_id.clone(), until);
        Ok(())
    }

    async fn find_pause(
        &mut self,
        installation_id: &InstallationId,
        kind: PauseKind,
    ) -> Result<Option<Pause>, Infallible> {
        let id = (installation_id.clone(), kind.name());
        Ok(self.pauses.get(&id).cloned())
    }

    async fn put_pause(&mut self, pause: &Pause) -> Result<(), Infallible> {
        let id = (pause.installation_id.clone(), pause.kind.name());
        self.pauses.insert(id, pause.clone());
        Ok(())
    }

    async fn delete_pause(
        &mut self,
        installation_id: &InstallationId,
        kind: PauseKind,
    ) -> Result<(), Infallible> {
        self.pauses.remove(&(installation_id.clone(), kind.name()));
        Ok(())
    }

    async fn quarantine(
        &mut self,
        unusable: &[Quarantined],
        sweep: Option<u64>,
    ) -> Result<Vec<usize>, Infallible> {
        let mut new = Vec::new();
        for (index, row) in unusable.iter().enumerate() {
            if self.keep_unusable(row, sweep) {
                new.push(index);
            }
        }
        Ok(new)
    }

    async fn end_quarantine(&mut self, keys: &[ResourceKey]) -> Result<u64, Infallible> {
        if self.quarantine.is_empty() {
            return Ok(0);
        }
        let ended = keys
            .iter()
            .filter(|key| self.quarantine.remove(&quarantine_id(key)).is_some());
        Ok(ended.count() as u64)
    }

    async fn forget_quarantined(&mut self, sweep: &SweepProgress) -> Result<(), Infallible> {
        self.quarantine.retain(|_, (row, met)| {
            row.key.is_some() || *met == Some(sweep.number) || row.since >= sweep.started_at
        });
        Ok(())
    }

    async fn add_recheck(&mut self, key: &ResourceKey) -> Result<(), Infallible> {
        self.rechecks.insert(key.clone());
        Ok(())
    }

    async fn end_rechecks(&mut self, keys: &[ResourceKey]) -> Result<(), Infallible> {
        keys.iter().for_each(|key| {
            self.rechecks.remove(key);
        });
        Ok(())
    }

    async fn put_poll(&mut self, poll: &PollProgress) -> Result<(), Infallible> {
        self.progress.poll = Some(poll.clone());
        Ok(())
    }

    async fn put_sweep(&mut self, sweep: &SweepProgress) -> Result<(), Infallible> {
        self.progress.sweep = Some(sweep.clone());
        Ok(())
    }
}

impl WatchRows for State {
    async fn watch(&mut self) -> Result<Option<Lease>, Infallible> {
        Ok(self.watch.clone())
    }

    async fn take_watch(&mut self, lease: &Lease, now: Timestamp) -> Result<bool, Infallible> {
        let held = self.watch.as_ref();
        let is_free = held.is_none_or(|held| is_due(held.expires_at, now));
        if is_free {
            self.watch = Some(lease.clone());
        }
        Ok(is_free)
    }

    async fn renew_watch(
        &mut self,
        token: LeaseToken,
        expires_at: Timestamp,
    ) -> Result<bool, Infallible> {
        let held = self.watch.as_mut().filter(|held| held.token == token);
        Ok(held.map(|held| held.expires_at = expires_at).is_some())
    }

    async fn drop_watch(&mut self, token: Option<LeaseToken>) -> Result<bool, Infallible> {
        let dropped = self
            .watch
            .take_if(|held| token.is_none_or(|token| held.token == token));
        Ok(dropped.is_some())
    }

    async fn holds_watch(&mut self, token: LeaseToken) -> Result<bool, Infallible> {
        Ok(self.watch.as_ref().is_some_and(|held| held.token == token))
    }
}
