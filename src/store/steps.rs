//! What each operation of a store does, written once over the rows of one transaction.
//!
//! A store brings a transaction and the primitive reads and writes of [`Rows`]; the steps here decide through [`crate::plan`]
//! and write only what changed. They never commit: whoever called them does, or drops everything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::time::Duration;

use crate::model::{
    Entry, EntryId, InstallationId, Lease, LeaseToken, Origin, Record, ResourceKey, Timestamp,
};
use crate::plan::claim::{Claim, abandon};
use crate::plan::{self, Claimed, Decision, decide};

use guard::{GuardRows, Watch};

pub(super) use settle::advance;

use super::rules::{merge_pause, pause_holds};
use super::{
    AttemptRecord, Batch, ClaimRequest, Drifted, Observation, Pause, PauseKind, PollProgress,
    Quarantined, Reconciled, SweepProgress,
};

pub(super) mod guard;
mod settle;

/// How many leases are ended per round.
const LEASES_PER_ROUND: u32 = 500;
/// How many expired leases one claim takes over at most.
const LEASES_PER_CLAIM: u32 = 100;
/// How often one claim looks for further candidates when some turned out to have nothing to send.
const CLAIM_ROUNDS: usize = 16;

/// A record before and after a step, and the entry that the step closed.
pub(super) struct Change<'a> {
    /// As it was read.
    pub(super) before: &'a Record,
    /// As it is to be; an open entry with the number 0 is given its number.
    pub(super) after: &'a mut Record,
    /// The entry that is no longer open.
    pub(super) closed: Option<&'a Entry>,
    /// When it was closed.
    pub(super) now: Timestamp,
}

impl Change<'_> {
    /// Whether anything of the record but its entry is different.
    pub(super) fn changes_resource(&self) -> bool {
        let Record {
            key: _,
            acknowledged,
            doubt,
            dismissed,
            row_hash,
            missing,
            acknowledged_at,
            entry: _,
        } = &*self.after;
        let before = self.before;
        (
            acknowledged,
            doubt,
            dismissed,
            row_hash,
            missing,
            acknowledged_at,
        ) != (
            &before.acknowledged,
            &before.doubt,
            &before.dismissed,
            &before.row_hash,
            &before.missing,
            &before.acknowledged_at,
        )
    }
}

/// A record before and after a step that is not written yet.
struct Step {
    before: Record,
    after: Record,
    closed: Option<Entry>,
    now: Timestamp,
}

/// Writes the steps, no two of one resource, and forgets them.
async fn save_steps<R: Rows>(rows: &mut R, steps: &mut Vec<Step>) -> Result<(), R::Error> {
    if steps.is_empty() {
        return Ok(());
    }
    let mut changes: Vec<Change<'_>> = steps
        .iter_mut()
        .map(|step| Change {
            before: &step.before,
            after: &mut step.after,
            closed: step.closed.as_ref(),
            now: step.now,
        })
        .collect();
    rows.save_all(&mut changes).await?;
    drop(changes);
    steps.clear();
    Ok(())
}

/// One request in the history, with what the store adds to it.
#[derive(Clone, Copy)]
pub(super) struct AttemptRow<'a> {
    pub(super) entry_id: EntryId,
    /// The number of the attempt within its entry, from 1.
    pub(super) number: u32,
    pub(super) key: &'a ResourceKey,
    /// The stable name of how it ended.
    pub(super) outcome: &'static str,
    pub(super) record: &'a AttemptRecord,
}

/// Which installations a claim looks at, and what is due there.
pub(super) struct DueRequest<'a> {
    pub(super) now: Timestamp,
    /// Only installations after this one.
    pub(super) after: Option<&'a InstallationId>,
    /// Only installations up to this one, it included.
    pub(super) up_to: Option<&'a InstallationId>,
    pub(super) excluded: &'a BTreeSet<InstallationId>,
    pub(super) limit: usize,
}

/// The rows of one transaction.
pub(super) trait Rows: Send {
    /// Why a row could not be read or written.
    type Error: Send;

    /// The records of these resources, in order; [`Record::new`] for those without.
    fn records(
        &mut self,
        keys: &[ResourceKey],
    ) -> impl Future<Output = Result<Vec<Record>, Self::Error>> + Send;

    /// Writes what changed of a record, its entry and the entry that was closed.
    fn save(&mut self, change: Change<'_>) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Writes several changes, no two of one resource, as [`Rows::save`] writes one.
    fn save_all(
        &mut self,
        changes: &mut [Change<'_>],
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        async move {
            for change in changes {
                let Change {
                    before,
                    after,
                    closed,
                    now,
                } = change;
                self.save(Change {
                    before,
                    after,
                    closed: *closed,
                    now: *now,
                })
                .await?;
            }
            Ok(())
        }
    }

    /// Installations with entries that are due and unleased, in byte order, without those that are paused or limited.
    fn due_installations(
        &mut self,
        request: DueRequest<'_>,
    ) -> impl Future<Output = Result<Vec<InstallationId>, Self::Error>> + Send;

    /// The resources whose entries are due, at most `each` per installation, in the order of the installations given and in
    /// each by due time and number.
    fn due_resources(
        &mut self,
        installations: &[InstallationId],
        each: usize,
        now: Timestamp,
    ) -> impl Future<Output = Result<Vec<ResourceKey>, Self::Error>> + Send;

    /// Resources whose entry has a lease that has expired at `now`, or any lease when `now` is none.
    fn leased(
        &mut self,
        now: Option<Timestamp>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<ResourceKey>, Self::Error>> + Send;

    /// Keeps an attempt in the history.
    fn add_attempt(
        &mut self,
        attempt: AttemptRow<'_>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Keeps several attempts in the history.
    fn add_attempts(
        &mut self,
        attempts: &[AttemptRow<'_>],
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        async move {
            for attempt in attempts {
                self.add_attempt(*attempt).await?;
            }
            Ok(())
        }
    }

    /// Until when an installation is limited, as far as is known.
    fn limited_until(
        &mut self,
        installation_id: &InstallationId,
    ) -> impl Future<Output = Result<Option<Timestamp>, Self::Error>> + Send;

    /// Limits an installation.
    fn set_limited_until(
        &mut self,
        installation_id: &InstallationId,
        until: Timestamp,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// A pause.
    fn find_pause(
        &mut self,
        installation_id: &InstallationId,
        kind: PauseKind,
    ) -> impl Future<Output = Result<Option<Pause>, Self::Error>> + Send;

    /// Writes a pause over one of its kind.
    fn put_pause(&mut self, pause: &Pause) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Removes a pause.
    fn delete_pause(
        &mut self,
        installation_id: &InstallationId,
        kind: PauseKind,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Keeps an unusable row; true when it is new or changed.
    fn quarantine(
        &mut self,
        row: &Quarantined,
        sweep: Option<u64>,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Forgets the unusable rows of these resources; returns how many there were.
    fn end_quarantine(
        &mut self,
        keys: &[ResourceKey],
    ) -> impl Future<Output = Result<u64, Self::Error>> + Send;

    /// Forgets the unusable rows without a key that are older than this sweep and were not met by it.
    fn forget_quarantined(
        &mut self,
        sweep: &SweepProgress,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Wishes a resource's row to be read again.
    fn add_recheck(
        &mut self,
        key: &ResourceKey,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Ends such wishes.
    fn end_rechecks(
        &mut self,
        keys: &[ResourceKey],
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Writes where the poll stands.
    fn put_poll(
        &mut self,
        poll: &PollProgress,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Writes where the sweep stands.
    fn put_sweep(
        &mut self,
        sweep: &SweepProgress,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// [`super::Store::reconcile`].
pub(super) async fn reconcile<R: GuardRows>(
    rows: &mut R,
    batch: &Batch,
) -> Result<Reconciled, R::Error> {
    let Batch {
        now: _,
        observations,
        quarantined,
        missing,
        poll,
        sweep,
        origin: _,
        policy: _,
        guard: _,
        ends_pass: _,
        uninstall_missing_since: _,
        baseline: _,
    } = batch;
    let mut reconciled = Reconciled::default();
    let mut watch = Watch::new(rows, batch).await?;
    find_missing(rows, batch, &mut watch, &mut reconciled).await?;
    rows.end_quarantine(missing).await?;
    let observed: Vec<ResourceKey> = observations.iter().map(|o| o.key.clone()).collect();
    reconciled.decisions = observe(rows, batch, &observed, &mut watch).await?;
    reconciled.recovered = rows.end_quarantine(&observed).await?;
    let number = sweep.as_ref().map(|sweep| sweep.number);
    for (index, row) in quarantined.iter().enumerate() {
        if rows.quarantine(row, number).await? {
            reconciled.newly_quarantined.push(index);
        }
    }
    let unusable: Vec<ResourceKey> = quarantined
        .iter()
        .filter_map(|row| row.key.clone())
        .collect();
    found_again(rows, batch, &unusable, &mut watch).await?;
    watch.end(rows, &mut reconciled).await?;
    let answered: Vec<ResourceKey> = [&observed[..], missing, &unusable].concat();
    rows.end_rechecks(&answered).await?;
    if let Some(poll) = poll {
        rows.put_poll(poll).await?;
    }
    if let Some(sweep) = sweep {
        rows.put_sweep(sweep).await?;
        // Law 9: a sweep that met nothing proves nothing.
        if sweep.complete && sweep.account.rows > 0 {
            rows.forget_quarantined(sweep).await?;
        }
    }
    Ok(reconciled)
}

async fn observe<R: GuardRows>(
    rows: &mut R,
    batch: &Batch,
    keys: &[ResourceKey],
    watch: &mut Watch,
) -> Result<Vec<plan::Decision>, R::Error> {
    let mut records: BTreeMap<ResourceKey, Record> = rows
        .records(keys)
        .await?
        .into_iter()
        .map(|record| (record.key.clone(), record))
        .collect();
    let mut decisions = Vec::with_capacity(keys.len());
    let mut steps = Vec::with_capacity(keys.len());
    for observation in &batch.observations {
        let Observation {
            key,
            desired,
            row_hash,
        } = observation;
        let before = match records.remove(key) {
            Some(before) => before,
            None => {
                // The same resource once more: what was decided on it first comes before.
                save_steps(rows, &mut steps).await?;
                let again = rows.records(std::slice::from_ref(key)).await?.pop();
                again.unwrap_or_else(|| Record::new(key.clone()))
            }
        };
        let mut after = before.clone();
        let record = &mut after;
        // Doubt without an entry was left by a drift check.
        let is_drift =
            batch.origin == Origin::Reread && before.entry.is_none() && !before.doubt.is_empty();
        let origin = if is_drift {
            Origin::Drift
        } else {
            batch.origin
        };
        let decided = match batch.baseline {
            Some(baseline) => {
                plan::baseline::baseline(record, desired, *row_hash, baseline, batch.now)
            }
            None => plan::decide(record, desired, *row_hash, origin, batch.policy, batch.now),
        };
        decisions.push(decided.decision);
        watch.weigh(rows, &before, record, &decided).await?;
        steps.push(Step {
            before,
            after,
            closed: decided.closed,
            now: batch.now,
        });
    }
    save_steps(rows, &mut steps).await?;
    Ok(decisions)
}

async fn find_missing<R: GuardRows>(
    rows: &mut R,
    batch: &Batch,
    watch: &mut Watch,
    reconciled: &mut Reconciled,
) -> Result<(), R::Error> {
    let now = batch.now;
    // A row that was read by itself is no sweep.
    let sweeps = u32::from(batch.origin != Origin::Reread);
    for before in rows.records(&batch.missing).await? {
        // A resource that was only ever unusable has no record to be missing.
        let Some(row_hash) = before.row_hash else {
            continue;
        };
        let mut after = before.clone();
        reconciled.newly_missing += u64::from(decide::missing(&mut after, sweeps, now));
        let uninstall = batch
            .uninstall_missing_since
            .and_then(|until| decide::uninstalled(&after, until));
        let mut closed = None;
        if let Some(desired) = uninstall {
            let (origin, policy) = (Origin::Missing, batch.policy);
            let decided = plan::decide(&mut after, &desired, row_hash, origin, policy, now);
            let is_new = matches!(decided.decision, Decision::Enqueued | Decision::Folded);
            reconciled.uninstalled += u64::from(is_new);
            watch.weigh(rows, &before, &mut after, &decided).await?;
            closed = decided.closed;
        }
        rows.save(Change {
            before: &before,
            after: &mut after,
            closed: closed.as_ref(),
            now,
        })
        .await?;
    }
    Ok(())
}

/// A row that cannot be used is there all the same: its resource is not missing, and not to be uninstalled.
async fn found_again<R: GuardRows>(
    rows: &mut R,
    batch: &Batch,
    keys: &[ResourceKey],
    watch: &mut Watch,
) -> Result<(), R::Error> {
    let now = batch.now;
    for before in rows.records(keys).await? {
        if before.missing.is_none() {
            continue;
        }
        let mut after = before.clone();
        after.missing = None;
        let mut closed = None;
        if let (Some(desired), Some(row_hash)) = (decide::reinstalled(&before), before.row_hash) {
            let (origin, policy) = (batch.origin, batch.policy);
            let decided = plan::decide(&mut after, &desired, row_hash, origin, policy, now);
            watch.weigh(rows, &before, &mut after, &decided).await?;
            closed = decided.closed;
        }
        rows.save(Change {
            before: &before,
            after: &mut after,
            closed: closed.as_ref(),
            now,
        })
        .await?;
    }
    Ok(())
}

/// [`super::Store::mark_drifted`]; returns the resources that were marked.
pub(super) async fn mark_drifted<R: Rows>(
    rows: &mut R,
    drifted: &[Drifted],
    now: Timestamp,
) -> Result<Vec<ResourceKey>, R::Error> {
    let mut marked = Vec::new();
    let keys: Vec<ResourceKey> = drifted.iter().map(|drifted| drifted.key.clone()).collect();
    for (before, drifted) in rows.records(&keys).await?.into_iter().zip(drifted) {
        if before.entry.is_some() || before.acknowledged_at != drifted.acknowledged_at {
            continue;
        }
        let mut after = before.clone();
        for field in drifted.fields.iter() {
            let mark = after.doubt.fields.entry(field).or_default();
            mark.confirmed = false;
        }
        rows.save(Change {
            before: &before,
            after: &mut after,
            closed: None,
            now,
        })
        .await?;
        rows.add_recheck(&drifted.key).await?;
        marked.push(drifted.key.clone());
    }
    Ok(marked)
}

/// [`super::Store::claim`].
pub(super) async fn claim<R: Rows>(
    rows: &mut R,
    request: &ClaimRequest,
) -> Result<Vec<Claimed>, R::Error> {
    let expired = rows.leased(Some(request.now), LEASES_PER_CLAIM).await?;
    end_leases(rows, &expired, request.now, request.late_apply).await?;
    let mut round = Round {
        request,
        tokens: request.tokens.iter().copied(),
        in_flight: request.in_flight.clone(),
        last: request.after.clone(),
        claimed: Vec::new(),
    };
    for _ in 0..CLAIM_ROUNDS {
        if !round.go(rows).await? {
            break;
        }
    }
    Ok(round.claimed)
}

/// A claim under way.
struct Round<'a> {
    request: &'a ClaimRequest,
    tokens: std::iter::Copied<std::slice::Iter<'a, LeaseToken>>,
    /// By installation, what was claimed just now included.
    in_flight: BTreeMap<InstallationId, u32>,
    /// The installation that had the last turn.
    last: Option<InstallationId>,
    claimed: Vec<Claimed>,
}

impl Round<'_> {
    /// How many entries may still be claimed.
    fn room(&self) -> usize {
        let limit = usize::try_from(self.request.limit).unwrap_or(usize::MAX);
        limit
            .saturating_sub(self.claimed.len())
            .min(self.tokens.len())
    }

    fn capacity(&self, installation_id: &InstallationId) -> usize {
        let busy = self.in_flight.get(installation_id).copied().unwrap_or(0);
        usize::try_from(self.request.per_installation.saturating_sub(busy)).unwrap_or(usize::MAX)
    }

    /// Gives each installation with something due its turns; false when there is no point in another round.
    async fn go<R: Rows>(&mut self, rows: &mut R) -> Result<bool, R::Error> {
        let room = self.room();
        if room == 0 || self.request.per_installation == 0 {
            return Ok(false);
        }
        let installations = self.next_installations(rows, room).await?;
        if installations.is_empty() {
            return Ok(false);
        }
        // With a full page each has one turn; otherwise the turns go round until the places are taken.
        let each = room.div_ceil(installations.len());
        let keys = rows
            .due_resources(&installations, each, self.request.now)
            .await?;
        let mut turns = turns(&installations, rows.records(&keys).await?);
        let mut steps = Vec::with_capacity(room.min(keys.len()));
        while let Some((installation_id, mut records)) = turns.pop_front() {
            if self.room() == 0 {
                break;
            }
            let Some(record) = records.pop_front() else {
                continue;
            };
            if self.capacity(&installation_id) == 0 {
                continue;
            }
            self.last = Some(installation_id.clone());
            steps.extend(self.take(record));
            turns.push_back((installation_id, records));
        }
        save_steps(rows, &mut steps).await?;
        Ok(self.room() > 0)
    }

    /// The next installations in turn, from after the last one around to it.
    async fn next_installations<R: Rows>(
        &self,
        rows: &mut R,
        limit: usize,
    ) -> Result<Vec<InstallationId>, R::Error> {
        let full = self
            .in_flight
            .keys()
            .filter(|installation_id| self.capacity(installation_id) == 0);
        let excluded: BTreeSet<InstallationId> =
            self.request.excluded.iter().chain(full).cloned().collect();
        let mut found = rows
            .due_installations(DueRequest {
                now: self.request.now,
                after: self.last.as_ref(),
                up_to: None,
                excluded: &excluded,
                limit,
            })
            .await?;
        if found.len() < limit
            && let Some(last) = &self.last
        {
            let before = DueRequest {
                now: self.request.now,
                after: None,
                up_to: Some(last),
                excluded: &excluded,
                limit: limit - found.len(),
            };
            found.extend(rows.due_installations(before).await?);
        }
        Ok(found)
    }

    /// Claims one record; `None` when there is no place left for it.
    fn take(&mut self, before: Record) -> Option<Step> {
        let ClaimRequest {
            now,
            owner,
            lease_expires_at,
            late_apply,
            secrets,
            ..
        } = self.request;
        let token = self.tokens.clone().next()?;
        let lease = Lease {
            owner: owner.clone(),
            token,
            expires_at: *lease_expires_at,
        };
        let mut after = before.clone();
        let claim = plan::claim_with(&mut after, *now, &lease, *late_apply, *secrets);
        let mut closed = None;
        match claim {
            Claim::Claimed(claimed) => {
                self.tokens.next();
                let installation_id = claimed.key.installation_id.clone();
                *self.in_flight.entry(installation_id).or_default() += 1;
                self.claimed.push(*claimed);
            }
            Claim::Closed(entry) => closed = Some(*entry),
            Claim::NotNow => {}
        }
        Some(Step {
            before,
            after,
            closed,
            now: *now,
        })
    }
}

fn turns(
    installations: &[InstallationId],
    records: Vec<Record>,
) -> VecDeque<(InstallationId, VecDeque<Record>)> {
    let mut by_installation: BTreeMap<InstallationId, VecDeque<Record>> = BTreeMap::new();
    for record in records {
        by_installation
            .entry(record.key.installation_id.clone())
            .or_default()
            .push_back(record);
    }
    installations
        .iter()
        .filter_map(|installation_id| by_installation.remove_entry(installation_id))
        .collect()
}

/// [`super::Store::recover`].
pub(super) async fn recover<R: Rows>(
    rows: &mut R,
    now: Timestamp,
    late_apply: Duration,
    owner_gone: bool,
) -> Result<u64, R::Error> {
    let mut ended = 0;
    loop {
        let keys = rows
            .leased((!owner_gone).then_some(now), LEASES_PER_ROUND)
            .await?;
        if keys.is_empty() {
            return Ok(ended);
        }
        ended += end_leases(rows, &keys, now, late_apply).await?;
    }
}

async fn end_leases<R: Rows>(
    rows: &mut R,
    keys: &[ResourceKey],
    now: Timestamp,
    late_apply: Duration,
) -> Result<u64, R::Error> {
    let mut ended = 0;
    let mut steps = Vec::with_capacity(keys.len());
    for before in rows.records(keys).await? {
        let mut after = before.clone();
        ended += u64::from(abandon(&mut after, now, late_apply));
        steps.push(Step {
            before,
            after,
            closed: None,
            now,
        });
    }
    save_steps(rows, &mut steps).await?;
    Ok(ended)
}

/// [`super::Store::pause`].
pub(super) async fn pause<R: Rows>(rows: &mut R, pause: &Pause) -> Result<(), R::Error> {
    let old = rows.find_pause(&pause.installation_id, pause.kind).await?;
    rows.put_pause(&merge_pause(old.as_ref(), pause)).await
}

/// [`super::Store::resume`].
pub(super) async fn resume<R: Rows>(
    rows: &mut R,
    installation_id: &InstallationId,
    kind: PauseKind,
    now: Timestamp,
) -> Result<bool, R::Error> {
    let Some(pause) = rows.find_pause(installation_id, kind).await? else {
        return Ok(false);
    };
    rows.delete_pause(installation_id, kind).await?;
    Ok(pause_holds(&pause, now))
}
