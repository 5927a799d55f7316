//! A range of resources at a glance, in one text instead of a row for each of them.

use rusqlite::params;

use crate::store::Glances;
use crate::store::codec::{self, Cells as _};
use crate::store::fault::Fault;

use super::db::Db;

/// See [`crate::store::Store::glance_between`].
pub(super) fn between(
    db: &Db,
    first: (&str, &str),
    last: (&str, &str),
    limit: u32,
) -> Result<Option<Glances>, Fault> {
    // Ids hold no control characters. The rows come in the order of the inner SELECT, which its limit keeps as it is.
    let glances = db.row(
        "SELECT count(*) AS found,
                group_concat(concat(installation_id, char(9), resource_id, char(9), hex(row_hash),
                                    iif(missing_since IS NULL, '', '!'), char(10)), '') AS lines
         FROM (SELECT installation_id, resource_id, row_hash, missing_since
               FROM resource
               WHERE (installation_id, resource_id) >= (?1, ?2)
                 AND (installation_id, resource_id) <= (?3, ?4)
               ORDER BY installation_id, resource_id
               LIMIT 0 + ?5)",
        params![first.0, first.1, last.0, last.1, i64::from(limit) + 1],
        |row| {
            if row.integer("found")? > i64::from(limit) {
                return Ok(None);
            }
            let lines = row.text_or_null("lines")?;
            codec::glances(lines.unwrap_or_default()).map(Some)
        },
    )?;
    let Some(mut glances) = glances else {
        return Ok(None);
    };
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
