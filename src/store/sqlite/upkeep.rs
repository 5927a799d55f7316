//! Unusable rows and what retention no longer keeps, in the SQLite state.

use rusqlite::params;

use crate::store::fault::Fault;
use crate::store::rules::quarantine_slot;
use crate::store::{Cutoffs, Quarantined};

use super::session::SqliteRows;

impl SqliteRows {
    /// Keeps an unusable row; true when it is new or changed.
    pub(super) fn keep_unusable(
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
        let known = self.db().run(
            "UPDATE quarantine
             SET sweep = coalesce(?5, sweep)
             WHERE installation_id = ?1
               AND resource_id = ?2
               AND slot = ?3
               AND row_hash = ?4",
            params![
                installation_id,
                resource_id,
                &slot,
                row_hash.as_bytes().to_vec(),
                sweep
            ],
        )?;
        if known > 0 {
            return Ok(false);
        }
        self.db().run(
            "INSERT OR REPLACE INTO quarantine
                 (installation_id, resource_id, slot, column_name, problem, accepted, row_hash, since, sweep)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![installation_id, resource_id, &slot, column, problem, accepted, row_hash.as_bytes().to_vec(), since.as_millis(), sweep],
        )?;
        Ok(true)
    }

    /// Deletes closed entries and attempts past their retention.
    pub(super) fn prune(&mut self, cutoffs: Cutoffs, limit: u32) -> Result<u64, Fault> {
        let Cutoffs { entries, attempts } = cutoffs;
        let entries = self.db().run(
            "DELETE FROM entry
             WHERE id IN (SELECT id
                          FROM entry INDEXED BY entry_closed
                          WHERE closed_at < ?1
                          ORDER BY closed_at, id
                          LIMIT 0 + ?2)",
            params![entries.as_millis(), i64::from(limit)],
        )?;
        let attempts = self.db().run(
            "DELETE FROM attempt
             WHERE id IN (SELECT id
                          FROM attempt INDEXED BY attempt_ended
                          WHERE ended_at < ?1
                          ORDER BY ended_at, id
                          LIMIT 0 + ?2)",
            params![attempts.as_millis(), i64::from(limit)],
        )?;
        Ok(entries + attempts)
    }
}
