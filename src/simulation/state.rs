//! The daemon's state with await points before and after each commit, failures before it, and the laws checked after it.

use std::time::Duration;

use async_trait::async_trait;

use crate::model::{
    FingerprintKey, InstallationId, Lease, LeaseToken, Record, ResourceKey, Timestamp,
};
use crate::plan::classify::{RATE_LIMIT_WAIT_MAX, RATE_LIMIT_WAIT_MIN};
use crate::plan::{Claimed, Outcome};
use crate::store::{
    Advanced, Batch, ClaimRequest, Counts, Cutoffs, Drifted, Glance, Glances, Heartbeat, Hold,
    HoldReport, Pause, PauseKind, Person, Progress, Reconciled, Settlement, Store, StoreError,
};

use super::backend::Committed;
use super::laws::Law;
use super::provider::Item;
use super::remote::{Truth, writes};
use super::world::{Points, Shared, World};

/// The state, as one process sees it.
pub(super) struct SimStore {
    pub(super) world: Shared,
    pub(super) points: Points,
    pub(super) committed: Committed,
}

impl SimStore {
    /// Before an operation: the process may end here, or the state may fail.
    async fn before(&self, operation: &'static str) -> Result<(), StoreError> {
        self.points.pass().await;
        let mut world = self.world.lock();
        let rate = world.climate.rates.store_error;
        if world.now() < world.store_down_until || world.strikes(rate) {
            world.say(format_args!("the state cannot {operation}"));
            let problem = "database is locked".to_owned();
            return Err(StoreError::Failed {
                operation,
                problem,
                transient: true,
            });
        }
        Ok(())
    }

    /// After a commit: what is committed is compared with what is true; then the process may end here.
    async fn after(&self) {
        let changed = self.committed.changed().await;
        let keys: Vec<ResourceKey> = {
            let unsettled = &self.world.lock().remote.unsettled;
            match changed {
                // What has not changed was looked at when it had, or when the request left.
                Some(mut changed) => {
                    changed.sort_unstable();
                    changed.dedup();
                    changed.retain(|key| unsettled.contains_key(key));
                    changed
                }
                None => unsettled.keys().cloned().collect(),
            }
        };
        if !keys.is_empty()
            && let Ok(records) = self.committed.records(&keys).await
        {
            let mut world = self.world.lock();
            records.iter().for_each(|record| world.check_doubt(record));
        }
        self.points.pass().await;
    }
}

#[async_trait]
impl Store for SimStore {
    async fn fingerprint_key(&self) -> Result<FingerprintKey, StoreError> {
        self.committed.fingerprint_key().await
    }

    async fn glance(&self, keys: &[ResourceKey]) -> Result<Vec<Glance>, StoreError> {
        self.before("read rows").await?;
        self.committed.glance(keys).await
    }

    async fn glance_between(
        &self,
        first: (&str, &str),
        last: (&str, &str),
        limit: u32,
    ) -> Result<Option<Glances>, StoreError> {
        self.before("read rows").await?;
        self.committed.glance_between(first, last, limit).await
    }

    async fn records(&self, keys: &[ResourceKey]) -> Result<Vec<Record>, StoreError> {
        self.before("read records").await?;
        self.committed.records(keys).await
    }

    async fn reconcile(&self, batch: Batch) -> Result<Reconciled, StoreError> {
        self.before("record rows").await?;
        let missing = batch.missing.clone();
        let cursor = batch.poll.as_ref().and_then(|poll| poll.cursor.clone());
        let now = batch.now;
        let reconciled = self.committed.reconcile(batch).await?;
        {
            let mut world = self.world.lock();
            let decisions = &reconciled.decisions;
            world.log.say(
                self.points.now(),
                format_args!("committed: {decisions:?}, cursor {cursor:?}, missing {missing:?}"),
            );
            missing.iter().for_each(|key| world.check_missing(key));
            reconciled
                .claimed
                .iter()
                .for_each(|claim| world.claimed(claim, now));
        }
        self.after().await;
        Ok(reconciled)
    }

    async fn progress(&self) -> Result<Progress, StoreError> {
        self.before("read progress").await?;
        self.committed.progress().await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Claimed>, StoreError> {
        self.before("claim entries").await?;
        let claimed = self.committed.claim(request).await?;
        {
            let mut world = self.world.lock();
            claimed
                .iter()
                .for_each(|claim| world.claimed(claim, request.now));
        }
        self.after().await;
        Ok(claimed)
    }

    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        self.before("look for what is due").await?;
        self.committed.next_due().await
    }

    async fn advance(&self, settlement: Settlement) -> Result<Option<Advanced>, StoreError> {
        self.before("record an outcome").await?;
        let (key, token, outcome) = (
            settlement.key.clone(),
            settlement.token,
            settlement.outcome.clone(),
        );
        let limit = settlement.limit_installation_until;
        let advanced = self.committed.advance(settlement).await?;
        if let Some(until) = limit {
            self.world.lock().limited(&key.installation_id, until);
        }
        let mut record = None;
        if let Outcome::Conflict { observed: Some(_) } = &outcome {
            let records = self.committed.records(std::slice::from_ref(&key)).await?;
            record = records.into_iter().next();
        }
        self.world
            .lock()
            .advanced(&key, token, &outcome, advanced, record.as_ref());
        self.after().await;
        Ok(advanced)
    }

    async fn recover(
        &self,
        now: Timestamp,
        late_apply: Duration,
        owner_gone: bool,
    ) -> Result<u64, StoreError> {
        self.before("end leases").await?;
        let ended = self.committed.recover(now, late_apply, owner_gone).await?;
        self.world
            .lock()
            .say(format_args!("recovered: {ended} leases ended"));
        self.after().await;
        Ok(ended)
    }

    async fn pause(&self, pause: &Pause) -> Result<(), StoreError> {
        self.before("pause an installation").await?;
        self.committed.pause(pause).await?;
        let (id, kind) = (&pause.installation_id, pause.kind);
        self.world
            .lock()
            .say(format_args!("paused {id} ({kind:?})"));
        self.after().await;
        Ok(())
    }

    async fn resume(
        &self,
        installation_id: &InstallationId,
        kind: PauseKind,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.before("resume an installation").await?;
        let resumed = self.committed.resume(installation_id, kind, now).await?;
        self.world
            .lock()
            .say(format_args!("resumed {installation_id} ({kind:?})"));
        self.after().await;
        Ok(resumed)
    }

    async fn probes_due(&self, now: Timestamp, limit: u32) -> Result<Vec<Pause>, StoreError> {
        self.before("look for probes").await?;
        self.committed.probes_due(now, limit).await
    }

    async fn keys_after(
        &self,
        after: Option<&ResourceKey>,
        limit: u32,
    ) -> Result<Vec<ResourceKey>, StoreError> {
        self.before("list resources").await?;
        self.committed.keys_after(after, limit).await
    }

    async fn resources(&self) -> Result<u64, StoreError> {
        self.before("count").await?;
        self.committed.resources().await
    }

    async fn unusable_alone(&self) -> Result<u64, StoreError> {
        self.before("count").await?;
        self.committed.unusable_alone().await
    }

    async fn counts(&self, now: Timestamp) -> Result<Counts, StoreError> {
        self.before("count").await?;
        self.committed.counts(now).await
    }

    async fn rechecks(&self, limit: u32) -> Result<Vec<ResourceKey>, StoreError> {
        self.before("look for rows to read again").await?;
        self.committed.rechecks(limit).await
    }

    async fn is_blocked(
        &self,
        installation_id: &InstallationId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.before("look at an installation").await?;
        self.committed.is_blocked(installation_id, now).await
    }

    async fn mark_drifted(
        &self,
        drifted: &[Drifted],
        by: Option<&Person>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        self.before("put fields in doubt").await?;
        let marked = self.committed.mark_drifted(drifted, by, now).await?;
        self.after().await;
        Ok(marked)
    }

    async fn hold(&self, id: i64) -> Result<Option<HoldReport>, StoreError> {
        self.before("read a hold").await?;
        self.committed.hold(id).await
    }

    async fn open_holds(&self) -> Result<Vec<Hold>, StoreError> {
        self.before("read holds").await?;
        self.committed.open_holds().await
    }

    async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError> {
        self.committed.heartbeat(heartbeat).await
    }

    async fn acquire_watch(&self, lease: &Lease, now: Timestamp) -> Result<bool, StoreError> {
        self.before("take the watch").await?;
        self.committed.acquire_watch(lease, now).await
    }

    async fn renew_watch(
        &self,
        token: LeaseToken,
        expires_at: Timestamp,
    ) -> Result<bool, StoreError> {
        self.before("prolong the watch").await?;
        self.committed.renew_watch(token, expires_at).await
    }

    async fn release_watch(&self, token: LeaseToken) -> Result<bool, StoreError> {
        self.before("give the watch back").await?;
        self.committed.release_watch(token).await
    }

    async fn watch(&self) -> Result<Option<Lease>, StoreError> {
        self.before("see who has the watch").await?;
        self.committed.watch().await
    }

    async fn prune(&self, cutoffs: Cutoffs, limit: u32) -> Result<u64, StoreError> {
        self.before("prune").await?;
        self.committed.prune(cutoffs, limit).await
    }
}

/// How long ago a row may have been away for a reader that never stood still to have missed it.
const READING_MAX: Duration = Duration::from_secs(60);

impl World {
    /// Law 2: what an unanswered request touched is in doubt until something sent after its last possible effect is
    /// acknowledged.
    pub(super) fn check_doubt(&mut self, record: &Record) {
        let missing = self
            .remote
            .doubtful(&record.key)
            .find(|(_, item)| match item {
                Item::Field(field) => !record.doubt.fields.contains_key(field),
                Item::Secret(name) => !record.doubt.secrets.keys().any(|n| n.as_str() == name),
            });
        if let Some((number, item)) = missing {
            let what = format!(
                "{item:?} of {} is not in doubt although request {number} may have changed it",
                record.key
            );
            self.broken(Law::DoubtIsRemembered, what);
        }
    }

    /// Law 9: a row counts as missing only if it was away.
    fn check_missing(&mut self, key: &ResourceKey) {
        let now = self.now();
        // A process may stand still between its reading and its commit.
        let reading_max = READING_MAX + self.laws.stood_still_max;
        let row = self.provider.rows.iter().find(|row| row.key == *key);
        let away = row.is_none_or(|row| {
            let lately = row.absent_at.is_some_and(|at| now.since(at) < reading_max);
            !row.present || lately
        });
        if !away {
            let what = format!("{key} counts as missing although its row is there");
            self.broken(Law::DeletionNeverInferred, what);
        }
    }

    /// A claim was committed.
    fn claimed(&mut self, claim: &Claimed, now: Timestamp) {
        let key = &claim.key;
        let fields = claim.patch.fields();
        self.say(format_args!(
            "claimed {key}: {:?} {fields}, attempt {}",
            claim.mode, claim.attempt
        ));
        if !self.laws.tokens.insert(claim.token.0) {
            let what = format!("the claim of {key} has a token that was used before");
            self.broken(Law::OneAtATime, what);
        }
        self.laws.holders.insert(key.clone(), claim.token);
        if let Some(until) = self.remote.waits.get(&key.installation_id)
            && now < *until
        {
            let what = format!("{key} was claimed although Vercel asked to wait until {until}");
            self.broken(Law::RetryWhatMaySucceed, what);
        }
    }

    /// An outcome was recorded, or refused.
    fn advanced(
        &mut self,
        key: &ResourceKey,
        token: LeaseToken,
        outcome: &Outcome,
        advanced: Option<Advanced>,
        record: Option<&Record>,
    ) {
        let Some(advanced) = advanced else {
            self.say(format_args!(
                "{key}: the claim had been taken over, its outcome is dropped"
            ));
            return;
        };
        let (name, state, reason) = (outcome.name(), advanced.state, advanced.reason);
        self.say(format_args!(
            "{key}: {name}; {state} ({reason:?}) until {}",
            advanced.due_at
        ));
        if self.laws.holders.remove(key) != Some(token) {
            let what =
                format!("{key}: an outcome was recorded by a claim that had been taken over");
            self.broken(Law::OneAtATime, what);
        }
        match outcome {
            Outcome::Acknowledged { .. } => self.acknowledged(key, token),
            Outcome::RateLimited { .. } => self.must_wait(key),
            Outcome::Conflict {
                observed: Some(observed),
                ..
            } => {
                let asked_at = self.remote.asked_at.get(key).copied().unwrap_or_default();
                let values = record.map(|record| record.acknowledged.values.clone());
                let shown = |item: &Item| match item {
                    Item::Field(field) => values
                        .as_ref()
                        .and_then(|values| values.get(field))
                        .is_some_and(|value| observed.shows(*field, value)),
                    Item::Secret(_) => false,
                };
                self.remote.settle(key, None, asked_at, shown);
            }
            _ => {}
        }
    }

    fn acknowledged(&mut self, key: &ResourceKey, token: LeaseToken) {
        let sent = |request: &super::remote::Request| request.claim == token && request.key == *key;
        let Some(number) = self.remote.requests.iter().rposition(sent) else {
            let what = format!("{key}: an acknowledgement of nothing that was sent");
            self.broken(Law::DoubtIsRemembered, what);
            return;
        };
        let request = &self.remote.requests[number];
        let (patch, sent_at, truth) = (request.patch.clone(), request.sent_at, request.truth);
        if truth != Truth::Acknowledged {
            let what =
                format!("{key}: request {number} counts as acknowledged, but it was {truth:?}");
            self.broken(Law::DoubtIsRemembered, what);
        }
        self.laws.acknowledged(key, &patch, &self.provider.history);
        self.remote
            .settle(key, Some(number), sent_at, |item| writes(&patch, item));
    }

    /// A 429 was recorded, perhaps by a process that had stood still before it read of it: it holds back for as long as it may from then on.
    fn limited(&mut self, id: &InstallationId, until: Timestamp) {
        let longest = self.now().plus(RATE_LIMIT_WAIT_MAX);
        if let Some(limit) = self.remote.limited_until.get_mut(id) {
            *limit = until.min(longest).max(*limit);
        }
    }

    /// A 429 was recorded: nothing may be claimed before what it asked for, within reason.
    fn must_wait(&mut self, key: &ResourceKey) {
        let Some((came_at, asked)) = self.remote.asked_to_wait.remove(key) else {
            return;
        };
        let shortest = came_at.plus(RATE_LIMIT_WAIT_MIN);
        let longest = came_at.plus(RATE_LIMIT_WAIT_MAX);
        let until = asked.unwrap_or(shortest).clamp(shortest, longest);
        let waits = &mut self.remote.waits;
        let wait = waits.entry(key.installation_id.clone()).or_insert(until);
        *wait = until.max(*wait);
    }
}
