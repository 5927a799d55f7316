//! The rows of one SQLite transaction.

use std::collections::BTreeMap;

use rusqlite::params;

use crate::model::{InstallationId, Record, ResourceKey, Timestamp};
use crate::plan::claim::DUE_HORIZON;
use crate::store::codec::{self, Cells as _, json, key_pairs};
use crate::store::fault::Fault;
use crate::store::steps::{AttemptRow, Change, DueRequest, Rows};
use crate::store::{Pause, PauseKind, PollProgress, Quarantined, SweepProgress};

use super::due::{DUE_INSTALLATIONS, DUE_RESOURCES};
use super::save;
use super::session::SqliteRows;

type Kept<T> = Result<T, Fault>;

impl Rows for SqliteRows {
    type Error = Fault;

    async fn records(&mut self, keys: &[ResourceKey]) -> Kept<Vec<Record>> {
        self.find(keys)
    }

    async fn save(&mut self, change: Change<'_>) -> Kept<()> {
        self.write(&mut [change])
    }

    async fn save_all(&mut self, changes: &mut [Change<'_>]) -> Kept<()> {
        self.write(changes)
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
        self.db().rows(
            DUE_INSTALLATIONS,
            params![
                // Every id is longer than nothing.
                after.map_or("", InstallationId::as_str),
                up_to.map(InstallationId::as_str),
                now.as_millis(),
                now.plus(DUE_HORIZON).as_millis(),
                json(&excluded),
                count(limit)
            ],
            |row| codec::installation_id(row),
        )
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
            let params = params![&names, from, to, count(each)];
            self.db().each(DUE_RESOURCES, params, |row| {
                due.push((row.integer("turn")?, codec::key(row)?));
                Ok(())
            })?;
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
        let mut reserved: BTreeMap<InstallationId, u32> = installations
            .iter()
            .map(|installation_id| (installation_id.clone(), 0))
            .collect();
        // Claims follow one another, since one connection writes.
        self.db().each(
            "SELECT installation_id, count(*) AS in_flight
             FROM entry INDEXED BY entry_lease
             WHERE lease_token IS NOT NULL
               AND lease_owner <> ?1
             GROUP BY installation_id",
            params![owner],
            |row| {
                if let Some(count) = reserved.get_mut(&codec::installation_id(row)?) {
                    *count = codec::number(row.integer("in_flight")?, "in_flight")?;
                }
                Ok(())
            },
        )?;
        Ok(reserved)
    }

    async fn leased(&mut self, now: Option<Timestamp>, limit: u32) -> Kept<Vec<ResourceKey>> {
        self.db().rows(
            "SELECT installation_id, resource_id
             FROM entry INDEXED BY entry_lease
             WHERE lease_token IS NOT NULL
               AND lease_expires_at <= ?1
             ORDER BY lease_expires_at, id
             LIMIT 0 + ?2",
            params![now.map_or(i64::MAX, Timestamp::as_millis), i64::from(limit)],
            |row| codec::key(row),
        )
    }

    async fn add_attempt(&mut self, attempt: AttemptRow<'_>) -> Kept<()> {
        save::add_attempts(self.db(), &[attempt])
    }

    async fn add_attempts(&mut self, attempts: &[AttemptRow<'_>]) -> Kept<()> {
        save::add_attempts(self.db(), attempts)
    }

    async fn limited_until(&mut self, installation_id: &InstallationId) -> Kept<Option<Timestamp>> {
        let until: Option<i64> = self.db().find_value(
            "SELECT limited_until
             FROM installation
             WHERE installation_id = ?1",
            params![installation_id.as_str()],
        )?;
        Ok(until.map(Timestamp::from_millis))
    }

    async fn set_limited_until(
        &mut self,
        installation_id: &InstallationId,
        until: Timestamp,
    ) -> Kept<()> {
        self.db().run(
            "INSERT INTO installation (installation_id, limited_until)
             VALUES (?1, ?2)
             ON CONFLICT (installation_id) DO UPDATE
             SET limited_until = excluded.limited_until",
            params![installation_id.as_str(), until.as_millis()],
        )?;
        Ok(())
    }

    async fn find_pause(
        &mut self,
        installation_id: &InstallationId,
        kind: PauseKind,
    ) -> Kept<Option<Pause>> {
        self.db().find_row(
            concat!(
                "SELECT ",
                codec::pause_columns!(),
                " FROM pause
             WHERE installation_id = ?1
               AND kind = ?2"
            ),
            params![installation_id.as_str(), kind.name()],
            |row| codec::pause(row),
        )
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
        self.db().run(
            "INSERT OR REPLACE INTO pause
                 (installation_id, kind, paused_by, reason, since, ends_at, probe_at, probes_failed)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                installation_id.as_str(),
                kind.name(),
                by,
                reason,
                since.as_millis(),
                until.map(Timestamp::as_millis),
                probe_at.map(Timestamp::as_millis),
                i64::from(*probes_failed)
            ],
        )?;
        Ok(())
    }

    async fn delete_pause(
        &mut self,
        installation_id: &InstallationId,
        kind: PauseKind,
    ) -> Kept<()> {
        self.db().run(
            "DELETE FROM pause
             WHERE installation_id = ?1
               AND kind = ?2",
            params![installation_id.as_str(), kind.name()],
        )?;
        Ok(())
    }

    async fn quarantine(
        &mut self,
        unusable: &[Quarantined],
        sweep: Option<u64>,
    ) -> Kept<Vec<usize>> {
        let mut new = Vec::new();
        for (index, row) in unusable.iter().enumerate() {
            if self.keep_unusable(row, sweep)? {
                new.push(index);
            }
        }
        Ok(new)
    }

    async fn end_quarantine(&mut self, keys: &[ResourceKey]) -> Kept<u64> {
        if keys.is_empty() || !self.has_rows(IS_ANY_QUARANTINED)? {
            return Ok(0);
        }
        let ended = self.db().run(
            "DELETE FROM quarantine
             WHERE slot = x''
               AND (installation_id, resource_id) IN
                   (SELECT value ->> 0, value ->> 1
                    FROM json_each(?1))",
            params![key_pairs(keys)],
        )?;
        Ok(ended)
    }

    async fn forget_quarantined(&mut self, sweep: &SweepProgress) -> Kept<()> {
        self.db().run(
            "DELETE FROM quarantine
             WHERE slot <> x''
               AND sweep IS NOT ?1
               AND since < ?2",
            params![
                i64::try_from(sweep.number).unwrap_or(i64::MAX),
                sweep.started_at.as_millis()
            ],
        )?;
        Ok(())
    }

    async fn add_recheck(&mut self, key: &ResourceKey) -> Kept<()> {
        self.db().run(
            "INSERT OR IGNORE INTO recheck (installation_id, resource_id)
             VALUES (?1, ?2)",
            params![key.installation_id.as_str(), key.resource_id.as_str()],
        )?;
        Ok(())
    }

    async fn end_rechecks(&mut self, keys: &[ResourceKey]) -> Kept<()> {
        if keys.is_empty() || !self.has_rows(IS_ANY_RECHECKED)? {
            return Ok(());
        }
        self.db().run(
            "DELETE FROM recheck
             WHERE (installation_id, resource_id) IN
                   (SELECT value ->> 0, value ->> 1
                    FROM json_each(?1))",
            params![key_pairs(keys)],
        )?;
        Ok(())
    }

    async fn put_poll(&mut self, poll: &PollProgress) -> Kept<()> {
        self.put_progress("poll", &json(poll))
    }

    async fn put_sweep(&mut self, sweep: &SweepProgress) -> Kept<()> {
        self.put_progress("sweep", &json(sweep))
    }
}

/// Both tables are empty most of the time, while the keys of a page take long to look up in them.
const IS_ANY_QUARANTINED: &str = "SELECT EXISTS (SELECT 1 FROM quarantine)";
const IS_ANY_RECHECKED: &str = "SELECT EXISTS (SELECT 1 FROM recheck)";

impl SqliteRows {
    fn has_rows(&mut self, question: &str) -> Kept<bool> {
        self.db().value(question, params![])
    }

    fn put_progress(&mut self, name: &str, value: &str) -> Kept<()> {
        self.db().run(
            "INSERT INTO progress (name, value)
             VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE
             SET value = excluded.value",
            params![name, value],
        )?;
        Ok(())
    }
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
