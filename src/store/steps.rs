//! What each operation of a store does, written once over the rows of one transaction.
//!
//! A store brings a transaction and the primitive reads and writes of [`Rows`]; the steps here decide through [`crate::plan`]
//! and write only what changed. They never commit: whoever called them does, or drops everything.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use crate::model::{Entry, EntryId, InstallationId, Origin, Record, ResourceKey, Timestamp};
use crate::plan::claim::abandon;
use crate::plan::{self, Decision, decide};

use guard::{GuardRows, Watch};
use watch::WatchRows;

pub(super) use settle::advance;

use super::rules::{is_outdated_probe, merge_pause, pause_holds};
use super::{
    AttemptRecord, Batch, Drifted, Observation, Pause, PauseKind, PollProgress, Quarantined,
    Reconciled, SweepProgress,
};

pub(super) mod claim;
pub(super) mod guard;
pub(super) mod order;
mod settle;
pub(super) mod watch;

/// How many leases are ended per round.
const LEASES_PER_ROUND: u32 = 500;

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

    /// Ends a round of many records: what was read and written is not kept, and read again if it is asked for again.
    fn forget_read(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        async { Ok(()) }
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

    /// Of these installations those for which no other claim is under way, each with its entries in flight for other owners than
    /// `owner`. Nobody else claims for them before the transaction has ended.
    fn reserve(
        &mut self,
        installations: &[InstallationId],
        owner: &str,
    ) -> impl Future<Output = Result<BTreeMap<InstallationId, u32>, Self::Error>> + Send;

    /// Of these installations, which nobody else claims for meanwhile, when the allowance of requests is whole again that all who
    /// share the state have used together. A state that one process has to itself keeps none: that process does.
    fn paces(
        &mut self,
        _installations: &[InstallationId],
    ) -> impl Future<Output = Result<BTreeMap<InstallationId, Timestamp>, Self::Error>> + Send {
        async { Ok(BTreeMap::new()) }
    }

    /// Keeps when these allowances are whole again.
    fn set_paces(
        &mut self,
        _full_at: &[(InstallationId, Timestamp)],
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        async { Ok(()) }
    }

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

    /// Keeps unusable rows; returns which of them are new or changed, by index.
    fn quarantine(
        &mut self,
        unusable: &[Quarantined],
        sweep: Option<u64>,
    ) -> impl Future<Output = Result<Vec<usize>, Self::Error>> + Send;

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

/// [`super::Store::reconcile`]; `None` when the batch's watch is no longer held.
pub(super) async fn reconcile<R: GuardRows + WatchRows>(
    rows: &mut R,
    batch: &Batch,
) -> Result<Option<Reconciled>, R::Error> {
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
        watch: held,
        claim,
    } = batch;
    if let Some(token) = held
        && !rows.holds_watch(*token).await?
    {
        return Ok(None);
    }
    let mut reconciled = Reconciled::default();
    let mut watch = Watch::new(rows, batch).await?;
    find_missing(rows, batch, &mut watch, &mut reconciled).await?;
    rows.end_quarantine(missing).await?;
    let observed: Vec<ResourceKey> = observations.iter().map(|o| o.key.clone()).collect();
    reconciled.decisions = observe(rows, batch, &observed, &mut watch).await?;
    reconciled.recovered = rows.end_quarantine(&observed).await?;
    let number = sweep.as_ref().map(|sweep| sweep.number);
    reconciled.newly_quarantined = rows.quarantine(quarantined, number).await?;
    let unusable: Vec<ResourceKey> = quarantined
        .iter()
        .filter_map(|row| row.key.clone())
        .collect();
    found_again(rows, batch, &unusable, &mut watch).await?;
    watch.end(rows, &mut reconciled).await?;
    let answered: Vec<ResourceKey> = [&observed[..], missing, &unusable].concat();
    rows.end_rechecks(&answered).await?;
    if let Some(claim) = claim {
        reconciled.claimed = claim::claim(rows, claim).await?;
    }
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
    Ok(Some(reconciled))
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
        let decided = if let Some(desired) = uninstall {
            let (origin, policy) = (Origin::Missing, batch.policy);
            let decided = plan::decide(&mut after, &desired, row_hash, origin, policy, now);
            let is_new = matches!(decided.decision, Decision::Enqueued | Decision::Folded);
            reconciled.uninstalled += u64::from(is_new);
            Some(decided)
        } else {
            decide::bereave(&mut after, now)
        };
        let mut closed = None;
        if let Some(decided) = decided {
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

/// [`super::Store::recover`].
pub(super) async fn recover<R: WatchRows>(
    rows: &mut R,
    now: Timestamp,
    late_apply: Duration,
    owner_gone: bool,
) -> Result<u64, R::Error> {
    if owner_gone {
        rows.drop_watch(None).await?;
    }
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
    if is_outdated_probe(old.as_ref(), pause) {
        return Ok(());
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Field, FieldSet, FingerprintKey, Json, RowHash, Snapshot};
    use crate::plan::decide::FirstSight;
    use crate::plan::{Policy, guard as limits};
    use crate::store::{MemoryStore, Store as _};

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn key(id: &str) -> ResourceKey {
        ResourceKey::new("icfg_1", id).expect("ids")
    }

    /// One row that desires a name, taken as acknowledged if it was never seen.
    fn batch(id: &str, name: &str, hash: u8, origin: Origin) -> Batch {
        let value = Json::from_value(&serde_json::json!(name));
        let observation = Observation {
            key: key(id),
            desired: Snapshot {
                values: [(Field::Name, value)].into(),
                secrets: None,
            },
            row_hash: RowHash::from_bytes([hash; 16]),
        };
        Batch {
            now: NOW,
            origin,
            policy: Policy {
                first_sight: FirstSight::Adopt,
            },
            observations: vec![observation],
            quarantined: Vec::new(),
            missing: Vec::new(),
            poll: None,
            sweep: None,
            guard: limits::Limits::default(),
            ends_pass: true,
            uninstall_missing_since: None,
            baseline: None,
            watch: None,
            claim: None,
        }
    }

    #[tokio::test]
    async fn what_a_look_at_vercel_found_otherwise_is_sent_for_drift_and_nothing_else_is() {
        let cases = [
            // Read again after it was found otherwise, and read by a poll after that.
            (true, Origin::Reread, "a", Some(Origin::Drift)),
            (true, Origin::Poll, "a", Some(Origin::Poll)),
            // Read again for another reason.
            (false, Origin::Reread, "b", Some(Origin::Reread)),
            (false, Origin::Reread, "a", None),
        ];
        for (is_marked, origin, name, expected) in cases {
            let store = MemoryStore::new(FingerprintKey::new([7; 32]));
            let first = batch("res_1", "a", 1, Origin::Poll);
            let decided = store.reconcile(first).await.expect("in memory");
            assert_eq!(decided.decisions, [Decision::Adopted]);
            if is_marked {
                let drifted = Drifted {
                    key: key("res_1"),
                    fields: FieldSet::from_iter([Field::Name]),
                    acknowledged_at: store.records(&[key("res_1")]).await.expect("in memory")[0]
                        .acknowledged_at,
                };
                let marked = store.mark_drifted(&[drifted], None, NOW).await;
                assert_eq!(marked.expect("in memory"), 1);
            }
            let again = batch("res_1", name, 2, origin);
            store.reconcile(again).await.expect("in memory");
            let record = store.records(&[key("res_1")]).await.expect("in memory");
            let made_by = record[0].entry.as_ref().map(|entry| entry.origin);
            assert_eq!(made_by, expected, "{is_marked} {origin:?} {name}");
        }
    }
}
