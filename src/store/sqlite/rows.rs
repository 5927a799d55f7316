//! The rows of one SQLite transaction.

use sqlx::{Row as _, SqliteConnection};

use crate::model::{InstallationId, Record, ResourceKey, Timestamp};
use crate::plan::claim::DUE_HORIZON;
use crate::store::rules::quarantine_slot;
use crate::store::steps::{AttemptRow, Change, DueRequest, Rows};
use crate::store::{Cutoffs, Pause, PauseKind, PollProgress, Quarantined, SweepProgress};

use super::codec::{self, json, key_pairs};
use super::fault::Fault;
use super::{read, save};

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
        save::save_all(&mut self.0, &mut [change]).await
    }

    async fn save_all(&mut self, changes: &mut [Change<'_>]) -> Kept<()> {
        save::save_all(&mut self.0, changes).await
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
        save::add_attempts(&mut self.0, &[attempt]).await
    }

    async fn add_attempts(&mut self, attempts: &[AttemptRow<'_>]) -> Kept<()> {
        save::add_attempts(&mut self.0, attempts).await
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

    async fn quarantine(&mut self, row: &Quarantined, sweep: Option<u64>) -> Kept<bool> {
        let Quarantined {
            key: _,
            installation_id,
            resource_id,
            column,
            problem,
            accepted,
            row_hash,
            since,
        } = row;
        let sweep = sweep.map(|number| i64::try_from(number).unwrap_or(i64::MAX));
        let slot = quarantine_slot(row);
        let known = sqlx::query(
            "UPDATE quarantine
             SET sweep = coalesce(?5, sweep)
             WHERE installation_id = ?1
               AND resource_id = ?2
               AND slot = ?3
               AND row_hash = ?4",
        )
        .bind(installation_id)
        .bind(resource_id)
        .bind(&slot)
        .bind(row_hash.as_bytes().to_vec())
        .bind(sweep)
        .execute(&mut self.0)
        .await?;
        if known.rows_affected() > 0 {
            return Ok(false);
        }
        sqlx::query(
            "INSERT OR REPLACE INTO quarantine
                 (installation_id, resource_id, slot, column_name, problem, accepted, row_hash, since, sweep)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )
        .bind(installation_id)
        .bind(resource_id)
        .bind(&slot)
        .bind(column)
        .bind(problem)
        .bind(accepted)
        .bind(row_hash.as_bytes().to_vec())
        .bind(since.as_millis())
        .bind(sweep)
        .execute(&mut self.0)
        .await?;
        Ok(true)
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
    /// Deletes closed entries and attempts past their retention.
    pub(super) async fn prune(&mut self, cutoffs: Cutoffs, limit: u32) -> Kept<u64> {
        let Cutoffs { entries, attempts } = cutoffs;
        let entries = sqlx::query(
            "DELETE FROM entry
             WHERE id IN (SELECT id
                          FROM entry INDEXED BY entry_closed
                          WHERE closed_at < ?1
                          ORDER BY closed_at, id
                          LIMIT ?2)",
        )
        .bind(entries.as_millis())
        .bind(i64::from(limit))
        .execute(&mut self.0)
        .await?
        .rows_affected();
        let attempts = sqlx::query(
            "DELETE FROM attempt
             WHERE id IN (SELECT id
                          FROM attempt INDEXED BY attempt_ended
                          WHERE ended_at < ?1
                          ORDER BY ended_at, id
                          LIMIT ?2)",
        )
        .bind(attempts.as_millis())
        .bind(i64::from(limit))
        .execute(&mut self.0)
        .await?
        .rows_affected();
        Ok(entries + attempts)
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
        .execute(&mut self.0)
        .await?;
        Ok(())
    }
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Installations with something to claim, from ?1 (excluded) to ?2 (included).
///
/// Steps from one installation to the next by index, whatever their backlogs, and stops at the limit: an ORDER BY would make it
/// visit all of them first. The steps are taken first in, first out, so they come in byte order.
const DUE_INSTALLATIONS: &str = "
    WITH RECURSIVE turn (installation_id) AS (
        SELECT (SELECT installation_id
                FROM entry INDEXED BY entry_due_by_installation
                WHERE state = 'waiting'
                  AND lease_token IS NULL
                  AND installation_id > ?1
                ORDER BY installation_id
                LIMIT 1)
        -- Nothing is due anywhere: no step at all.
        WHERE EXISTS (SELECT 1
                      FROM entry INDEXED BY entry_due
                      WHERE state = 'waiting'
                        AND lease_token IS NULL
                        AND due_at <= ?3)
           OR EXISTS (SELECT 1
                      FROM entry INDEXED BY entry_due
                      WHERE state = 'waiting'
                        AND lease_token IS NULL
                        AND due_at > ?4)
        UNION ALL
        SELECT (SELECT entry.installation_id
                FROM entry INDEXED BY entry_due_by_installation
                WHERE entry.state = 'waiting'
                  AND entry.lease_token IS NULL
                  AND entry.installation_id > turn.installation_id
                ORDER BY entry.installation_id
                LIMIT 1)
        FROM turn
        WHERE turn.installation_id IS NOT NULL
          AND (?2 IS NULL OR turn.installation_id < ?2)
    )
    SELECT turn.installation_id
    FROM turn
    WHERE turn.installation_id IS NOT NULL
      AND (?2 IS NULL OR turn.installation_id <= ?2)
      AND (EXISTS (SELECT 1
                   FROM entry INDEXED BY entry_due_by_installation
                   WHERE entry.state = 'waiting'
                     AND entry.lease_token IS NULL
                     AND entry.installation_id = turn.installation_id
                     AND entry.due_at <= ?3)
           -- Too far ahead: the clock was set back.
           OR EXISTS (SELECT 1
                      FROM entry INDEXED BY entry_due_by_installation
                      WHERE entry.state = 'waiting'
                        AND entry.lease_token IS NULL
                        AND entry.installation_id = turn.installation_id
                        AND entry.due_at > ?4))
      -- A manual pause may have ended by itself.
      AND NOT EXISTS (SELECT 1
                      FROM pause
                      WHERE pause.installation_id = turn.installation_id
                        AND (pause.ends_at IS NULL OR pause.ends_at > ?3))
      -- A limit too far ahead is not believed.
      AND NOT EXISTS (SELECT 1
                      FROM installation
                      WHERE installation.installation_id = turn.installation_id
                        AND installation.limited_until > ?3
                        AND installation.limited_until <= ?4)
      AND turn.installation_id NOT IN (SELECT value FROM json_each(?5))
    LIMIT ?6";

/// The first entries of each installation in ?1 that are due from ?2 to ?3.
const DUE_RESOURCES: &str = "
    SELECT turn.key AS turn,
           entry.installation_id,
           entry.resource_id
    FROM json_each(?1) AS turn
    CROSS JOIN entry
    WHERE entry.id IN (SELECT due.id
                       FROM entry AS due INDEXED BY entry_due_by_installation
                       WHERE due.state = 'waiting'
                         AND due.lease_token IS NULL
                         AND due.installation_id = turn.value
                         AND due.due_at BETWEEN ?2 AND ?3
                       ORDER BY due.due_at, due.id
                       LIMIT ?4)
    ORDER BY turn.key, entry.due_at, entry.id";
