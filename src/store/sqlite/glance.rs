//! A range of resources at a glance.

use rusqlite::params;

use crate::store::Glances;
use crate::store::codec;
use crate::store::fault::Fault;

use super::db::Db;

/// See [`crate::store::Store::glance_between`].
pub(super) fn between(
    db: &Db,
    first: (&str, &str),
    last: (&str, &str),
    limit: u32,
) -> Result<Option<Glances>, Fault> {
    let mut glances = Glances::default();
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    db.each(
        "SELECT installation_id, resource_id, row_hash, missing_since
         FROM resource
         WHERE (installation_id, resource_id) >= (?1, ?2)
           AND (installation_id, resource_id) <= (?3, ?4)
         ORDER BY installation_id, resource_id
         LIMIT 0 + ?5",
        params![first.0, first.1, last.0, last.1, i64::from(limit) + 1],
        |row| codec::note_resource(&mut glances, row),
    )?;
    if glances.len() > most {
        return Ok(None);
    }
    db.each(
        "SELECT installation_id, resource_id, state
         FROM entry
         WHERE closed_at IS NULL
           AND (installation_id, resource_id) >= (?1, ?2)
           AND (installation_id, resource_id) <= (?3, ?4)",
        params![first.0, first.1, last.0, last.1],
        |row| codec::note_entry(&mut glances, row),
    )?;
    db.each(
        "SELECT installation_id, resource_id, row_hash
         FROM quarantine
         WHERE slot = x''
           AND (installation_id, resource_id) >= (?1, ?2)
           AND (installation_id, resource_id) <= (?3, ?4)",
        params![first.0, first.1, last.0, last.1],
        |row| codec::note_quarantined(&mut glances, row),
    )?;
    Ok(Some(glances))
}
