//! Unusable rows and what retention no longer keeps, in the SQLite state.

use crate::store::fault::Fault;
use crate::store::rules::quarantine_slot;
use crate::store::{Cutoffs, Quarantined};

use super::session::SqliteRows;

impl SqliteRows {
    /// Keeps an unusable row; true when it is new or changed.
    pub(super) async fn keep_unusable(
        &mut self,
        row: &Quarantined,
        sweep: Option<u64>,
    ) -> Result<bool, Fault> {
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
        .execute(self.connection())
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
        .execute(self.connection())
        .await?;
        Ok(true)
    }

    /// Deletes closed entries and attempts past their retention.
    pub(super) async fn prune(&mut self, cutoffs: Cutoffs, limit: u32) -> Result<u64, Fault> {
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
        .execute(self.connection())
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
        .execute(self.connection())
        .await?
        .rows_affected();
        Ok(entries + attempts)
    }
}
