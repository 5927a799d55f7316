//! The rows of one SQLite transaction.

use std::collections::BTreeMap;

use sqlx::Row as _;

use crate::model::{InstallationId, Record, ResourceKey, Timestamp};
use crate::plan::claim::DUE_HORIZON;
use crate::store::codec::{self, Cells as _, json, key_pairs};
use crate::store::fault::Fault;
use crate::store::steps::{AttemptRow, Change, DueRequest, Rows};
use crate::store::{Pause, PauseKind, PollProgress, Quarantined, SweepProgress};

use super::due::{DUE_COLUMNS, DUE_INSTALLATIONS, DUE_RESOURCES};
use super::packed::PackedRows;
use super::save;
use super::session::SqliteRows;

type Kept<T> = Result<T, Fault>;

impl Rows for SqliteRows {
    type Error = Fault;

    async fn records(&mut self, keys: &[ResourceKey]) -> Kept<Vec<Record>> {
        self.find(keys).await
    }

    async fn save(&mut self, change: Change<'_>) -> Kept<()> {
        self.write(&mut [change]).await
    }

    async fn save_all(&mut self, changes: &mut [Change<'_>]) -> Kept<()> {
        self.write(changes).await
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
            .fetch_all(self.connection())
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
            let rows: Option<String> = sqlx::query_scalar(DUE_RESOURCES)
                .bind(&names)
                .bind(from)
                .bind(to)
                .bind(count(each))
                .fetch_one(self.connection())
                .await?;
            for row in PackedRows::new(DUE_COLUMNS, rows).rows()? {
                due.push((row.integer("turn")?, codec::key(&row)?));
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
        .fetch_all(self.connection())
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
        .fetch_all(self.connection())
        .await?;
        rows.iter().map(codec::key).collect()
    }

    async fn add_attempt(&mut self, attempt: AttemptRow<'_>) -> Kept<()> {
        save::add_attempts(self.connection(), &[attempt]).await
    }

    async fn add_attempts(&mut self, attempts: &[AttemptRow<'_>]) -> Kept<()> {
        save::add_attempts(self.connection(), attempts).await
    }

    async fn limited_until(&mut self, installation_id: &InstallationId) -> Kept<Option<Timestamp>> {
        let until: Option<i64> = sqlx::query_scalar(
            "SELECT limited_until
             FROM installation
             WHERE installation_id = ?1",
        )
        .bind(installation_id.as_str())
        .fetch_optional(self.connection())
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
        .execute(self.connection())
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
        .fetch_optional(self.connection())
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
        .execute(self.connection())
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
        .execute(self.connection())
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
        if keys.is_empty() || !self.has_rows(IS_ANY_QUARANTINED).await? {
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
        .execute(self.connection())
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
        .execute(self.connection())
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
        .execute(self.connection())
        .await?;
        Ok(())
    }

    async fn end_rechecks(&mut self, keys: &[ResourceKey]) -> Kept<()> {
        if keys.is_empty() || !self.has_rows(IS_ANY_RECHECKED).await? {
            return Ok(());
        }
        sqlx::query(
            "DELETE FROM recheck
             WHERE (installation_id, resource_id) IN
                   (SELECT value ->> 0, value ->> 1
                    FROM json_each(?1))",
        )
        .bind(key_pairs(keys))
        .execute(self.connection())
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

/// Both tables are empty most of the time, while the keys of a page take long to look up in them.
const IS_ANY_QUARANTINED: &str = "SELECT EXISTS (SELECT 1 FROM quarantine)";
const IS_ANY_RECHECKED: &str = "SELECT EXISTS (SELECT 1 FROM recheck)";

impl SqliteRows {
    async fn has_rows(&mut self, question: &'static str) -> Kept<bool> {
        Ok(sqlx::query_scalar(question)
            .fetch_one(self.connection())
            .await?)
    }

    async fn put_progress(&mut self, name: &'static str, value: String) -> Kept<()> {
        sqlx::query(
            "INSERT INTO progress (name, value)
             VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE
             SET value = excluded.value",
        )
        .bind(name)
        .bind(value)
        .execute(self.connection())
        .await?;
        Ok(())
    }
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
