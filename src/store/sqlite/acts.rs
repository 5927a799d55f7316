//! What people did, in the SQLite state: left by the transaction that does it, logged by the daemon later.

use sqlx::SqliteConnection;

use crate::model::{InstallationId, ResourceId, ResourceKey, Timestamp};
use crate::store::Pause;
use crate::store::codec::{self, Cells as _, json};
use crate::store::console::{Act, ActId, Person};
use crate::store::fault::Fault;

use super::session::SqliteRows;

/// Leaves the row that tells of a person's pause; automatic ones are no acts.
pub(super) async fn note_pause(rows: &mut SqliteRows, pause: &Pause) -> Result<(), Fault> {
    match Act::paused(pause) {
        Some(act) => note(rows, &act).await,
        None => Ok(()),
    }
}

/// Leaves the rows that tell of resources whose drift a person ordered to be fixed.
pub(super) async fn note_fixes(
    rows: &mut SqliteRows,
    keys: &[ResourceKey],
    by: &Person,
    now: Timestamp,
) -> Result<(), Fault> {
    for key in keys {
        let act = Act::new("fix", by.clone(), now).of_resource(key.clone());
        note(rows, &act).await?;
    }
    Ok(())
}

/// Leaves the row of an act.
pub(super) async fn note(rows: &mut SqliteRows, act: &Act) -> Result<(), Fault> {
    let Act {
        at,
        actor,
        act,
        installation_id,
        resource_id,
        entry_id,
        reason,
    } = act;
    sqlx::query(
        "INSERT INTO act (at, actor, act, installation_id, resource_id, entry_id, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )
    .bind(at.as_millis())
    .bind(actor)
    .bind(act)
    .bind(installation_id.as_ref().map(InstallationId::as_str))
    .bind(resource_id.as_ref().map(ResourceId::as_str))
    .bind(entry_id.map(|id| id.0))
    .bind(reason)
    .execute(rows.connection())
    .await?;
    Ok(())
}

/// [`crate::store::console::Console::untold_acts`].
pub(super) async fn untold(
    connection: &mut SqliteConnection,
    limit: u32,
) -> Result<Vec<(ActId, Act)>, Fault> {
    let rows = sqlx::query(
        "SELECT id, at, actor, act, installation_id, resource_id, entry_id, reason
         FROM act
         WHERE told_at IS NULL
         ORDER BY id
         LIMIT ?1",
    )
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok((ActId(row.integer("id")?), codec::act(row)?)))
        .collect()
}

/// [`crate::store::console::Console::acts_told`].
pub(super) async fn told(
    rows: &mut SqliteRows,
    ids: &[ActId],
    now: Timestamp,
) -> Result<(), Fault> {
    let ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
    sqlx::query(
        "UPDATE act
         SET told_at = ?1
         WHERE id IN (SELECT value FROM json_each(?2))",
    )
    .bind(now.as_millis())
    .bind(json(&ids))
    .execute(rows.connection())
    .await?;
    Ok(())
}
