//! The rows of one SQLite transaction.

use std::collections::BTreeMap;

use sqlx::{Row as _, SqliteConnection};

use crate::model::{
    Entry, EntryId, InFlight, InstallationId, Lease, Record, ResourceKey, Timestamp,
};
use crate::plan::claim::DUE_HORIZON;
use crate::store::steps::{AttemptRow, Change, DueRequest, Rows};
use crate::store::{AttemptRecord, Pause, PauseKind, PollProgress, Quarantined, SweepProgress};

use super::due::{DUE_INSTALLATIONS, DUE_RESOURCES};
use super::read;
use crate::store::codec::{self, json, key_pairs, name_of};
use crate::store::fault::Fault;

/// The connection that writes, inside a transaction.
#[derive(Debug)]
pub(super) struct SqliteRows(pub(super) SqliteConnection);

type Kept<T> = Result<T, Fault>;

impl Rows for SqliteRows {
    type Error = Fault;

    async fn records(&mut self, keys: &[ResourceKey]) -> Kept<Vec<Record>> {
        read::records(&mut self.0, keys).await
    }

    async fn save(&mut self, change: Change<'_>) -> Kept<()> {
        if let Some(entry) = change.closed {
            self.update_entry(entry, Some(change.now)).await?;
        }
        if change.changes_resource() {
            self.put_resource(change.after).await?;
        }
        let Record { key, entry, .. } = change.after;
        match entry {
            Some(entry) if entry.id == EntryId(0) => {
                entry.id = self.insert_entry(key, entry).await?;
            }
            Some(entry) if change.before.entry.as_ref() != Some(&*entry) => {
                self.update_entry(entry, None).await?;
            }
            Some(_) | None => {}
        }
        Ok(())
    }

    async fn due_installations(&mut self, request: DueRequest<'_>) -> Kept<Vec<InstallationId>> {
        let DueRequest {
            now,
            after,
            up_to,
            excluded,
            limit,
        } = request;
        let excluded: Vec<&str> = excluded.iter().map(InstallationId::as_str).collect();
        let rows = sqlx::query(DUE_INSTALLATIONS)
            // Every id is longer than nothing.
            .bind(after.map_or("", InstallationId::as_str))
            .bind(up_to.map(InstallationId::as_str))
            .bind(now.as_millis())
            .bind(now.plus(DUE_HORIZON).as_millis())
            .bind(json(&excluded))
            .bind(count(limit))
            .fetch_all(&mut self.0)
            .await?;
        rows.iter().map(codec::installation_id).collect()
    }

    async fn due_resources(
        &mut self,
        installations: &[InstallationId],
        each: usize,
        now: Timestamp,
    ) -> Kept<Vec<ResourceKey>> {
        let names: Vec<&str> = installations.iter().map(InstallationId::as_str).collect();
        let names = json(&names);
        let horizon = now.plus(DUE_HORIZON).as_millis();
        let mut due = Vec::new();
        // Two ranges of the index instead of one that also holds everything between them.
        for (from, to) in [
            (i64::MIN, now.as_millis()),
            (horizon.saturating_add(1), i64::MAX),
        ] {
            let rows = sqlx::query(DUE_RESOURCES)
                .bind(&names)
                .bind(from)
                .bind(to)
                .bind(count(each))
                .fetch_all(&mut self.0)
                .await?;
            for row in &rows {
                let turn: i64 = row.try_get("turn")?;
                due.push((turn, codec::key(row)?));
            }
        }
        // Stable: what is due comes before what a clock set back has left behind.
        due.sort_by_key(|(turn, _)| *turn);
        let mut keys = Vec::with_capacity(due.len());
        for of_installation in due.chunk_by(|(one, _), (other, _)| one == other) {
            keys.extend(
                of_installation
                    .iter()
                    .take(each)
                    .map(|(_, key)| key.clone()),
            );
        }
        Ok(keys)
    }

    async fn reserve(
        &mut self,
        installations: &[InstallationId],
        owner: &str,
    ) -> Kept<BTreeMap<InstallationId, u32>> {
        // Claims follow one another, since one connection writes.
        let rows = sqlx::query(
            "SELECT installation_id, count(*) AS in_flight
             FROM entry INDEXED BY entry_lease
             WHERE lease_token IS NOT NULL
               AND lease_owner <> ?1
             GROUP BY installation_id",
        )
        .bind(owner)
        .fetch_all(&mut self.0)
        .await?;
        let mut reserved: BTreeMap<InstallationId, u32> = installations
            .iter()
            .map(|installation_id| (installation_id.clone(), 0))
            .collect();
        for row in &rows {
            if let Some(count) = reserved.get_mut(&codec::installation_id(row)?) {
                *count = codec::number(row.try_get("in_flight")?, "in_flight")?;
            }
        }
        Ok(reserved)
    }

    async fn leased(&mut self, now: Option<Timestamp>, limit: u32) -> Kept<Vec<ResourceKey>> {
        let rows = sqlx::query(
            "SELECT installation_id, resource_id
             FROM entry INDEXED BY entry_lease
             WHERE lease_token IS NOT NULL
               AND lease_expires_at <= ?1
             ORDER BY lease_expires_at, id
             LIMIT ?2",
        )
        .bind(now.map_or(i64::MAX, Timestamp::as_millis))
        .bind(i64::from(limit))
        .fetch_all(&mut self.0)
        .await?;
        rows.iter().map(codec::key).collect()
    }

    async fn add_attempt(&mut self, attempt: AttemptRow<'_>) -> Kept<()> {
        let AttemptRow {
            entry_id,
            number,
            key,
            outcome,
            record,
        } = attempt;
        let AttemptRecord {
            started_at,
            ended_at,
            method,
            fields,
            secret_names,
            status,
            error_code,
            message,
            vercel_id,
        } = record;
        sqlx::query(
            "INSERT INTO attempt
                 (entry_id, number, installation_id, resource_id, started_at, ended_at, method, fields, secret_names,
                  outcome, status, error_code, message, vercel_id)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        )
        .bind(entry_id.0)
        .bind(i64::from(number))
        .bind(key.installation_id.as_str())
        .bind(key.resource_id.as_str())
        .bind(started_at.as_millis())
        .bind(ended_at.as_millis())
        .bind(*method)
        .bind(json(fields))
        .bind(json(secret_names))
        .bind(outcome)
        .bind(status.map(i64::from))
        .bind(error_code)
        .bind(message)
        .bind(vercel_id)
        .execute(&mut self.0)
        .await?;
        Ok(())
    }

    async fn limited_until(&mut self, installation_id: &InstallationId) -> Kept<Option<Timestamp>> {
        let until: Option<i64> = sqlx::query_scalar(
            "SELECT limited_until
             FROM installation
             WHERE installation_id = ?1",
        )
        .bind(installation_id.as_str())
        .fetch_optional(&mut self.0)
        .await?;
        Ok(until.map(Timestamp::from_millis))
    }

    async fn set_limited_until(
        &mut self,
        installation_id: &InstallationId,
        until: Timestamp,
    ) -> Kept<()> {
        sqlx::query(
            "INSERT INTO installation (installation_id, limited_until)
             VALUES (?1, ?2)
             ON CONFLICT (installation_id) DO UPDATE
             SET limited_until = excluded.limited_until",
        )
        .bind(installation_id.as_str())
        .bind(until.as_millis())
        .execute(&mut self.0)
        .await?;
        Ok(())
    }

    async fn find_pause(
        &mut self,
        installation_id: &InstallationId,
        kind: PauseKind,
    ) -> Kept<Option<Pause>> {
        let row = sqlx::query(concat!(
            "SELECT ",
            codec::pause_columns!(),
            " FROM pause
             WHERE installation_id = ?1
               AND kind = ?2"
        ))
        .bind(installation_id.as_str())
        .bind(kind.name())
        .fetch_optional(&mut self.0)
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
        sqlx::query(
            "INSERT OR REPLACE INTO pause
                 (installation_id, kind, paused_by, reason, since, ends_at, probe_at, probes_failed)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )
        .bind(installation_id.as_str())
        .bind(kind.name())
        .bind(by)
        .bind(reason)
        .bind(since.as_millis())
        .bind(until.map(Timestamp::as_millis))
        .bind(probe_at.map(Timestamp::as_millis))
        .bind(i64::from(*probes_failed))
        .execute(&mut self.0)
        .await?;
        Ok(())
    }

    async fn delete_pause(
        &mut self,
        installation_id: &InstallationId,
        kind: PauseKind,
    ) -> Kept<()> {
        sqlx::query(
            "DELETE FROM pause
             WHERE installation_id = ?1
               AND kind = ?2",
        )
        .bind(installation_id.as_str())
        .bind(kind.name())
        .execute(&mut self.0)
        .await?;
        Ok(())
    }

    async fn quarantine(
        &mut self,
        unusable: &[Quarantined],
        sweep: Option<u64>,
    ) -> Kept<Vec<usize>> {
        let mut new = Vec::new();
        for (index, row) in unusable.iter().enumerate() {
            if self.keep_unusable(row, sweep).await? {
                new.push(index);
            }
        }
        Ok(new)
    }

    async fn end_quarantine(&mut self, keys: &[ResourceKey]) -> Kept<u64> {
        if keys.is_empty() {
            return Ok(0);
        }
        let ended = sqlx::query(
            "DELETE FROM quarantine
             WHERE slot = x''
               AND (installation_id, resource_id) IN
                   (SELECT value ->> 0, value ->> 1
                    FROM json_each(?1))",
        )
        .bind(key_pairs(keys))
        .execute(&mut self.0)
        .await?;
        Ok(ended.rows_affected())
    }

    async fn forget_quarantined(&mut self, sweep: &SweepProgress) -> Kept<()> {
        sqlx::query(
            "DELETE FROM quarantine
             WHERE slot <> x''
               AND sweep IS NOT ?1
               AND since < ?2",
        )
        .bind(i64::try_from(sweep.number).unwrap_or(i64::MAX))
        .bind(sweep.started_at.as_millis())
        .execute(&mut self.0)
        .await?;
        Ok(())
    }

    async fn add_recheck(&mut self, key: &ResourceKey) -> Kept<()> {
        sqlx::query(
            "INSERT OR IGNORE INTO recheck (installation_id, resource_id)
             VALUES (?1, ?2)",
        )
        .bind(key.installation_id.as_str())
        .bind(key.resource_id.as_str())
        .execute(&mut self.0)
        .await?;
        Ok(())
    }

    async fn end_rechecks(&mut self, keys: &[ResourceKey]) -> Kept<()> {
        if keys.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "DELETE FROM recheck
             WHERE (installation_id, resource_id) IN
                   (SELECT value ->> 0, value ->> 1
                    FROM json_each(?1))",
        )
        .bind(key_pairs(keys))
        .execute(&mut self.0)
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

impl SqliteRows {
    async fn put_progress(&mut self, name: &'static str, value: String) -> Kept<()> {
        sqlx::query(
            "INSERT INTO progress (name, value)
             VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE
             SET value = excluded.value",
        )
        .bind(name)
        .bind(value)
        .execute(&mut self.0)
        .await?;
        Ok(())
    }

    async fn put_resource(&mut self, record: &Record) -> Kept<()> {
        let Record {
            key,
            acknowledged,
            doubt,
            dismissed,
            row_hash,
            missing,
            acknowledged_at,
            entry: _,
        } = record;
        sqlx::query(
            "INSERT INTO resource
                 (installation_id, resource_id, acknowledged, doubt, dismissed, row_hash, missing_since, missing_sweeps,
                  acknowledged_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT (installation_id, resource_id) DO UPDATE
             SET acknowledged = excluded.acknowledged,
                 doubt = excluded.doubt,
                 dismissed = excluded.dismissed,
                 row_hash = excluded.row_hash,
                 missing_since = excluded.missing_since,
                 missing_sweeps = excluded.missing_sweeps,
                 acknowledged_at = excluded.acknowledged_at",
        )
        .bind(key.installation_id.as_str())
        .bind(key.resource_id.as_str())
        .bind(json(acknowledged))
        .bind(json(doubt))
        .bind(json(dismissed))
        .bind(row_hash.map(|hash| hash.as_bytes().to_vec()))
        .bind(missing.map(|missing| missing.since.as_millis()))
        .bind(missing.map(|missing| i64::from(missing.sweeps)))
        .bind(acknowledged_at.map(Timestamp::as_millis))
        .execute(&mut self.0)
        .await?;
        Ok(())
    }

    async fn insert_entry(&mut self, key: &ResourceKey, entry: &Entry) -> Kept<EntryId> {
        let inserted = sqlx::query(
            "INSERT INTO entry
                 (installation_id, resource_id, state, desired, generation, origin, mode, reason, created_at, due_at,
                  attempts, failures, conflicts, rejected, hold_id)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )
        .bind(key.installation_id.as_str())
        .bind(key.resource_id.as_str())
        .bind(entry.state.name())
        .bind(json(&entry.desired))
        .bind(i64::from(entry.generation))
        .bind(entry.origin.name())
        .bind(name_of(&entry.mode))
        .bind(entry.reason.code())
        .bind(entry.created_at.as_millis())
        .bind(entry.due_at.as_millis())
        .bind(i64::from(entry.attempts))
        .bind(i64::from(entry.failures))
        .bind(i64::from(entry.conflicts))
        .bind(json(&entry.rejected))
        .bind(entry.hold)
        .execute(&mut self.0)
        .await?;
        Ok(EntryId(inserted.last_insert_rowid()))
    }

    async fn update_entry(&mut self, entry: &Entry, closed_at: Option<Timestamp>) -> Kept<()> {
        let Entry {
            id,
            state,
            desired,
            generation,
            origin: _,
            mode,
            reason,
            created_at: _,
            due_at,
            attempts,
            failures,
            conflicts,
            rejected,
            hold,
            lease,
            in_flight,
        } = entry;
        let lease = lease.as_ref();
        let updated = sqlx::query(
            "UPDATE entry
             SET state = ?2,
                 desired = ?3,
                 generation = ?4,
                 mode = ?5,
                 reason = ?6,
                 due_at = ?7,
                 attempts = ?8,
                 failures = ?9,
                 conflicts = ?10,
                 rejected = ?11,
                 hold_id = ?12,
                 lease_owner = ?13,
                 lease_token = ?14,
                 lease_expires_at = ?15,
                 in_flight = ?16,
                 closed_at = ?17
             WHERE id = ?1
               AND closed_at IS NULL",
        )
        .bind(id.0)
        .bind(state.name())
        .bind(json(desired))
        .bind(i64::from(*generation))
        .bind(name_of(mode))
        .bind(reason.code())
        .bind(due_at.as_millis())
        .bind(i64::from(*attempts))
        .bind(i64::from(*failures))
        .bind(i64::from(*conflicts))
        .bind(json(rejected))
        .bind(*hold)
        .bind(lease.map(|lease| lease.owner.as_str()))
        .bind(lease.map(|lease: &Lease| lease.token.0))
        .bind(lease.map(|lease| lease.expires_at.as_millis()))
        .bind(in_flight.as_ref().map(json::<InFlight>))
        .bind(closed_at.map(Timestamp::as_millis))
        .execute(&mut self.0)
        .await?;
        match updated.rows_affected() {
            1 => Ok(()),
            rows => Err(Fault::affected("an entry", rows)),
        }
    }
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
