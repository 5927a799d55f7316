//! People's orders and what they did, in the SQLite state: left by the transaction that does it, logged by the daemon later.

use rusqlite::params;

use crate::model::{EntryId, InstallationId, ResourceId, ResourceKey, Timestamp};
use crate::store::Pause;
use crate::store::codec::{self, Cells as _, json, time};
use crate::store::console::{Act, ActId, Person};
use crate::store::fault::Fault;
use crate::store::steps::order::OrderRows;

use super::db::Db;
use super::session::SqliteRows;

/// Leaves the row that tells of a person's pause; automatic ones are no acts.
pub(super) fn note_pause(rows: &mut SqliteRows, pause: &Pause) -> Result<(), Fault> {
    match Act::paused(pause) {
        Some(act) => note(rows, &act),
        None => Ok(()),
    }
}

/// Leaves the rows that tell of resources whose drift a person ordered to be fixed.
pub(super) fn note_fixes(
    rows: &mut SqliteRows,
    keys: &[ResourceKey],
    by: &Person,
    now: Timestamp,
) -> Result<(), Fault> {
    for key in keys {
        let act = Act::new("fix", by.clone(), now).of_resource(key.clone());
        note(rows, &act)?;
    }
    Ok(())
}

/// Leaves the row of an act.
pub(super) fn note(rows: &mut SqliteRows, act: &Act) -> Result<(), Fault> {
    let Act {
        at,
        actor,
        act,
        installation_id,
        resource_id,
        entry_id,
        reason,
    } = act;
    rows.db().run(
        "INSERT INTO act (at, actor, act, installation_id, resource_id, entry_id, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            at.as_millis(),
            actor,
            act,
            installation_id.as_ref().map(InstallationId::as_str),
            resource_id.as_ref().map(ResourceId::as_str),
            entry_id.map(|id| id.0),
            reason
        ],
    )?;
    Ok(())
}

impl OrderRows for SqliteRows {
    async fn find_entries(
        &mut self,
        ids: &[EntryId],
    ) -> Result<Vec<Option<(ResourceKey, bool)>>, Fault> {
        ids.iter().map(|id| find(self.db(), *id)).collect()
    }

    async fn note_acts(&mut self, acts: &[Act]) -> Result<(), Fault> {
        acts.iter().try_for_each(|act| note(self, act))
    }
}

/// An entry, if it is there: its resource, and whether it is open.
pub(super) fn find(db: &Db, id: EntryId) -> Result<Option<(ResourceKey, bool)>, Fault> {
    db.find_row(
        "SELECT installation_id, resource_id, closed_at
         FROM entry
         WHERE id = ?1",
        params![id.0],
        |row| Ok((codec::key(row)?, time(row, "closed_at")?.is_none())),
    )
}

/// [`crate::store::console::Console::untold_acts`].
pub(super) fn untold(db: &Db, limit: u32) -> Result<Vec<(ActId, Act)>, Fault> {
    db.rows(
        "SELECT id, at, actor, act, installation_id, resource_id, entry_id, reason
         FROM act
         WHERE told_at IS NULL
         ORDER BY id
         LIMIT 0 + ?1",
        params![i64::from(limit)],
        |row| Ok((ActId(row.integer("id")?), codec::act(row)?)),
    )
}

/// [`crate::store::console::Console::acts_told`].
pub(super) fn told(rows: &mut SqliteRows, ids: &[ActId], now: Timestamp) -> Result<(), Fault> {
    let ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
    rows.db().run(
        "UPDATE act
         SET told_at = ?1
         WHERE id IN (SELECT value FROM json_each(?2))",
        params![now.as_millis(), json(&ids)],
    )?;
    Ok(())
}
