//! The rows of one PostgreSQL transaction.
//!
//! A resource's row is locked before it is read for a decision, and stays so until the transaction ends: whatever several daemons do
//! to one resource happens one after another. Rows are locked in the order of their keys, so that two transactions wait for each
//! other at most by way of other locks, which the server notices and one of them repeats. What is written is kept back
//! ([`super::unit`]) and sent in one statement per table, so that a page costs as many round trips as a row.

use std::collections::BTreeMap;

use crate::model::{InstallationId, Record, ResourceKey, Timestamp};
use crate::plan::claim::DUE_HORIZON;
use crate::store::codec::{self, Cells as _, json};
use crate::store::fault::Fault;
use crate::store::steps::{AttemptRow, Change, DueRequest, Rows};
use crate::store::{Pause, PauseKind, PollProgress, Quarantined, SweepProgress};

use super::due::{DUE_INSTALLATIONS, DUE_RESOURCES, LEASED};
use super::locks;
use super::pool::Transaction;
use super::unit::Unit;
use super::{columns, read};

/// A transaction that writes.
pub(super) struct PgRows {
    pub(super) transaction: Transaction,
    pub(super) unit: Unit,
    /// Whether this transaction alone decides on holds.
    pub(super) has_guard: bool,
}

type Kept<T> = Result<T, Fault>;

impl PgRows {
    pub(super) fn new(transaction: Transaction) -> Self {
        Self {
            transaction,
            unit: Unit::default(),
            has_guard: false,
        }
    }

    /// Sends what was kept back.
    pub(super) async fn flush(&mut self) -> Kept<()> {
        self.unit.flush(&mut self.transaction).await
    }

    /// Locks and reads the resources that this transaction does not hold yet.
    pub(super) async fn hold(&mut self, keys: &[ResourceKey]) -> Kept<()> {
        let new = self.unit.unknown(keys);
        if new.is_empty() {
            return Ok(());
        }
        let records = read::locked(&mut self.transaction, &new).await?;
        self.unit.learn(new, records);
        Ok(())
    }
}

impl Rows for PgRows {
    type Error = Fault;

    async fn records(&mut self, keys: &[ResourceKey]) -> Kept<Vec<Record>> {
        self.hold(keys).await?;
        Ok(keys.iter().map(|key| self.unit.record(key)).collect())
    }

    async fn save(&mut self, change: Change<'_>) -> Kept<()> {
        self.unit.save(change);
        Ok(())
    }

    async fn forget_read(&mut self) -> Kept<()> {
        self.flush().await?;
        self.unit.forget();
        Ok(())
    }

    async fn due_installations(&mut self, request: DueRequest<'_>) -> Kept<Vec<InstallationId>> {
        self.flush().await?;
        let DueRequest {
            now,
            after,
            up_to,
            excluded,
            limit,
        } = request;
        let excluded: Vec<&str> = excluded.iter().map(InstallationId::as_str).collect();
        let rows = self
            .transaction
            .query(DUE_INSTALLATIONS)
            // Every id is longer than nothing.
            .bind(after.map_or("", InstallationId::as_str))
            .bind(up_to.map(InstallationId::as_str))
            .bind(now.as_millis())
            .bind(now.plus(DUE_HORIZON).as_millis())
            .bind(excluded)
            .bind(columns::count(limit))
            .fetch_all(self.transaction.connection())
            .await?;
        rows.iter().map(codec::installation_id).collect()
    }

    async fn due_resources(
        &mut self,
        installations: &[InstallationId],
        each: usize,
        now: Timestamp,
    ) -> Kept<Vec<ResourceKey>> {
        self.flush().await?;
        let names: Vec<&str> = installations.iter().map(InstallationId::as_str).collect();
        let rows = self
            .transaction
            .query(DUE_RESOURCES)
            .bind(names)
            .bind(now.as_millis())
            .bind(now.plus(DUE_HORIZON).as_millis())
            .bind(columns::count(each))
            .fetch_all(self.transaction.connection())
            .await?;
        let mut due = Vec::with_capacity(rows.len());
        for row in &rows {
            due.push((row.integer("turn")?, codec::key(row)?));
        }
        // Stable: what is due comes before what a clock set back has left behind.
        let of_installation = due.chunk_by(|(one, _), (other, _)| one == other);
        let keys = of_installation.flat_map(|due| due.iter().take(each).map(|(_, key)| key));
        Ok(keys.cloned().collect())
    }

    async fn reserve(
        &mut self,
        installations: &[InstallationId],
        owner: &str,
    ) -> Kept<BTreeMap<InstallationId, u32>> {
        self.flush().await?;
        let taken = locks::try_installations(&mut self.transaction, installations).await?;
        let mut reserved: BTreeMap<InstallationId, u32> = installations
            .iter()
            .filter(|installation_id| taken.contains(installation_id.as_str()))
            .map(|installation_id| (installation_id.clone(), 0))
            .collect();
        // Counted after the locks were taken: what another claim has committed before is seen here.
        let rows = self
            .transaction
            .query(
                "SELECT installation_id, count(*) AS in_flight
                 FROM entry
                 WHERE lease_token IS NOT NULL
                   AND lease_owner <> $1
                 GROUP BY installation_id",
            )
            .bind(owner)
            .fetch_all(self.transaction.connection())
            .await?;
        for row in &rows {
            if let Some(count) = reserved.get_mut(&codec::installation_id(row)?) {
                *count = codec::number(row.integer("in_flight")?, "in_flight")?;
            }
        }
        Ok(reserved)
    }

    async fn paces(
        &mut self,
        installations: &[InstallationId],
    ) -> Kept<BTreeMap<InstallationId, Timestamp>> {
        let names: Vec<&str> = installations.iter().map(InstallationId::as_str).collect();
        let rows = self
            .transaction
            .query(
                "SELECT installation_id, full_at
                 FROM pace
                 WHERE installation_id = ANY($1)",
            )
            .bind(names)
            .fetch_all(self.transaction.connection())
            .await?;
        let mut paces = BTreeMap::new();
        for row in &rows {
            let full_at = Timestamp::from_millis(row.integer("full_at")?);
            paces.insert(codec::installation_id(row)?, full_at);
        }
        Ok(paces)
    }

    async fn set_paces(&mut self, full_at: &[(InstallationId, Timestamp)]) -> Kept<()> {
        let (names, until): (Vec<&str>, Vec<i64>) = full_at
            .iter()
            .map(|(id, full_at)| (id.as_str(), full_at.as_millis()))
            .unzip();
        self.transaction
            .query(
                "INSERT INTO pace (installation_id, full_at)
                 SELECT new.*
                 FROM unnest($1::text[], $2::bigint[]) AS new
                 ON CONFLICT (installation_id) DO UPDATE
                 SET full_at = excluded.full_at",
            )
            .bind(names)
            .bind(until)
            .execute(self.transaction.connection())
            .await?;
        Ok(())
    }

    async fn leased(&mut self, now: Option<Timestamp>, limit: u32) -> Kept<Vec<ResourceKey>> {
        self.flush().await?;
        let rows = self
            .transaction
            .query(LEASED)
            .bind(now.map_or(i64::MAX, Timestamp::as_millis))
            .bind(i64::from(limit))
            .fetch_all(self.transaction.connection())
            .await?;
        rows.iter().map(codec::key).collect()
    }

    async fn add_attempt(&mut self, attempt: AttemptRow<'_>) -> Kept<()> {
        self.unit.add_attempt(attempt);
        Ok(())
    }

    async fn limited_until(&mut self, installation_id: &InstallationId) -> Kept<Option<Timestamp>> {
        let row = self
            .transaction
            .query(
                "SELECT limited_until
                 FROM installation
                 WHERE installation_id = $1
                 FOR NO KEY UPDATE",
            )
            .bind(installation_id.as_str())
            .fetch_optional(self.transaction.connection())
            .await?;
        let until = row.map(|row| row.integer("limited_until")).transpose()?;
        Ok(until.map(Timestamp::from_millis))
    }

    async fn set_limited_until(
        &mut self,
        installation_id: &InstallationId,
        until: Timestamp,
    ) -> Kept<()> {
        self.transaction
            .query(
                "INSERT INTO installation (installation_id, limited_until)
                 VALUES ($1, $2)
                 ON CONFLICT (installation_id) DO UPDATE
                 SET limited_until = excluded.limited_until",
            )
            .bind(installation_id.as_str())
            .bind(until.as_millis())
            .execute(self.transaction.connection())
            .await?;
        Ok(())
    }

    async fn find_pause(
        &mut self,
        installation_id: &InstallationId,
        kind: PauseKind,
    ) -> Kept<Option<Pause>> {
        let row = self
            .transaction
            .query(concat!(
                "SELECT ",
                codec::pause_columns!(),
                " FROM pause
                 WHERE installation_id = $1
                   AND kind = $2
                 FOR UPDATE"
            ))
            .bind(installation_id.as_str())
            .bind(kind.name())
            .fetch_optional(self.transaction.connection())
            .await?;
        row.as_ref().map(codec::pause).transpose()
    }

    async fn put_pause(&mut self, pause: &Pause) -> Kept<()> {
        let Pause {
            installation_id,
            kind,
            by,
            reason,
            since,
            until,
            probe_at,
            probes_failed,
        } = pause;
        self.transaction
            .query(
                "INSERT INTO pause
                     (installation_id, kind, paused_by, reason, since, ends_at, probe_at, probes_failed)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
                 ON CONFLICT (installation_id, kind) DO UPDATE
                 SET paused_by = excluded.paused_by,
                     reason = excluded.reason,
                     since = excluded.since,
                     ends_at = excluded.ends_at,
                     probe_at = excluded.probe_at,
                     probes_failed = excluded.probes_failed",
            )
            .bind(installation_id.as_str())
            .bind(kind.name())
            .bind(columns::text(by))
            .bind(columns::text(reason))
            .bind(since.as_millis())
            .bind(until.map(Timestamp::as_millis))
            .bind(probe_at.map(Timestamp::as_millis))
            .bind(i64::from(*probes_failed))
            .execute(self.transaction.connection())
            .await?;
        Ok(())
    }

    async fn delete_pause(
        &mut self,
        installation_id: &InstallationId,
        kind: PauseKind,
    ) -> Kept<()> {
        self.transaction
            .query(
                "DELETE FROM pause
                 WHERE installation_id = $1
                   AND kind = $2",
            )
            .bind(installation_id.as_str())
            .bind(kind.name())
            .execute(self.transaction.connection())
            .await?;
        Ok(())
    }

    async fn quarantine(
        &mut self,
        unusable: &[Quarantined],
        sweep: Option<u64>,
    ) -> Kept<Vec<usize>> {
        super::quarantine::keep(&mut self.transaction, unusable, sweep).await
    }

    async fn end_quarantine(&mut self, keys: &[ResourceKey]) -> Kept<u64> {
        if keys.is_empty() {
            return Ok(0);
        }
        let (installations, resources) = columns::keys(keys);
        let ended = self
            .transaction
            .query(
                "DELETE FROM quarantine
                 USING unnest($1::text[], $2::text[]) AS gone (installation_id, resource_id)
                 WHERE quarantine.slot = ''::bytea
                   AND quarantine.installation_id = gone.installation_id
                   AND quarantine.resource_id = gone.resource_id",
            )
            .bind(installations)
            .bind(resources)
            .execute(self.transaction.connection())
            .await?;
        Ok(ended.rows_affected())
    }

    async fn forget_quarantined(&mut self, sweep: &SweepProgress) -> Kept<()> {
        self.transaction
            .query(
                "DELETE FROM quarantine
                 WHERE slot <> ''::bytea
                   AND sweep IS DISTINCT FROM $1
                   AND since < $2",
            )
            .bind(i64::try_from(sweep.number).unwrap_or(i64::MAX))
            .bind(sweep.started_at.as_millis())
            .execute(self.transaction.connection())
            .await?;
        Ok(())
    }

    async fn add_recheck(&mut self, key: &ResourceKey) -> Kept<()> {
        self.unit.add_recheck(key);
        Ok(())
    }

    async fn end_rechecks(&mut self, keys: &[ResourceKey]) -> Kept<()> {
        if keys.is_empty() {
            return Ok(());
        }
        self.flush().await?;
        let (installations, resources) = columns::keys(keys);
        self.transaction
            .query(
                "DELETE FROM recheck
                 USING unnest($1::text[], $2::text[]) AS answered (installation_id, resource_id)
                 WHERE recheck.installation_id = answered.installation_id
                   AND recheck.resource_id = answered.resource_id",
            )
            .bind(installations)
            .bind(resources)
            .execute(self.transaction.connection())
            .await?;
        Ok(())
    }

    async fn put_poll(&mut self, poll: &PollProgress) -> Kept<()> {
        self.put_progress("poll", json(poll)).await
    }

    async fn put_sweep(&mut self, sweep: &SweepProgress) -> Kept<()> {
        self.put_progress("sweep", json(sweep)).await
    }
}

impl PgRows {
    async fn put_progress(&mut self, name: &'static str, value: String) -> Kept<()> {
        self.transaction
            .query(
                "INSERT INTO progress (name, value)
                 VALUES ($1, $2)
                 ON CONFLICT (name) DO UPDATE
                 SET value = excluded.value",
            )
            .bind(name)
            .bind(value)
            .execute(self.transaction.connection())
            .await?;
        Ok(())
    }
}
