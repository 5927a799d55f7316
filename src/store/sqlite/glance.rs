//! A range of resources at a glance, in one text: the driver's cost is by the row.

use sqlx::{Row as _, SqliteConnection};

use crate::store::Glances;
use crate::store::codec;
use crate::store::fault::Fault;

/// See [`crate::store::Store::glance_between`].
pub(super) async fn between(
    connection: &mut SqliteConnection,
    first: (&str, &str),
    last: (&str, &str),
    limit: u32,
) -> Result<Option<Glances>, Fault> {
    // Ids hold no control characters. The rows come in the order of the inner SELECT, which its limit keeps as it is.
    let row = sqlx::query(
        "SELECT count(*) AS found,
                group_concat(concat(installation_id, char(9), resource_id, char(9), hex(row_hash),
                                    iif(missing_since IS NULL, '', '!'), char(10)), '') AS lines
         FROM (SELECT installation_id, resource_id, row_hash, missing_since
               FROM resource
               WHERE (installation_id, resource_id) >= (?1, ?2)
                 AND (installation_id, resource_id) <= (?3, ?4)
               ORDER BY installation_id, resource_id
               LIMIT ?5)",
    )
    .bind(first.0)
    .bind(first.1)
    .bind(last.0)
    .bind(last.1)
    .bind(i64::from(limit) + 1)
    .fetch_one(&mut *connection)
    .await?;
    let found: i64 = row.try_get("found")?;
    if found > i64::from(limit) {
        return Ok(None);
    }
    let lines: Option<&str> = row.try_get("lines")?;
    let mut glances = codec::glances(lines.unwrap_or_default())?;
    let entries = sqlx::query(
        "SELECT installation_id, resource_id, state
         FROM entry
         WHERE closed_at IS NULL
           AND (installation_id, resource_id) >= (?1, ?2)
           AND (installation_id, resource_id) <= (?3, ?4)",
    )
    .bind(first.0)
    .bind(first.1)
    .bind(last.0)
    .bind(last.1)
    .fetch_all(&mut *connection)
    .await?;
    codec::note_entries(&mut glances, &entries)?;
    let quarantined = sqlx::query(
        "SELECT installation_id, resource_id, row_hash
         FROM quarantine
         WHERE slot = x''
           AND (installation_id, resource_id) >= (?1, ?2)
           AND (installation_id, resource_id) <= (?3, ?4)",
    )
    .bind(first.0)
    .bind(first.1)
    .bind(last.0)
    .bind(last.1)
    .fetch_all(connection)
    .await?;
    codec::note_quarantined(&mut glances, &quarantined)?;
    Ok(Some(glances))
}
