//! People's orders and what they did, in the PostgreSQL state: left by the transaction that does it, logged by a daemon later.

use std::collections::BTreeMap;

use sqlx::postgres::PgRow;

use crate::model::{EntryId, InstallationId, ResourceId, ResourceKey, Timestamp};
use crate::store::Pause;
use crate::store::codec::{self, Cells as _, time};
use crate::store::console::{Act, ActId, Person};
use crate::store::fault::Fault;
use crate::store::steps::order::OrderRows;

use super::columns;
use super::pool::Transaction;
use super::rows::PgRows;

/// Leaves the row that tells of a person's pause; automatic ones are no acts.
pub(super) async fn note_pause(rows: &mut PgRows, pause: &Pause) -> Result<(), Fault> {
    match Act::paused(pause) {
        Some(act) => note(rows, &act).await,
        None => Ok(()),
    }
}

/// Leaves the rows that tell of resources whose drift a person ordered to be fixed.
pub(super) async fn note_fixes(
    rows: &mut PgRows,
    keys: &[ResourceKey],
    by: &Person,
    now: Timestamp,
) -> Result<(), Fault> {
    let fix = |key: &ResourceKey| Act::new("fix", by.clone(), now).of_resource(key.clone());
    let fixes: Vec<Act> = keys.iter().map(fix).collect();
    rows.note_acts(&fixes).await
}

/// Leaves the row of an act.
pub(super) async fn note(rows: &mut PgRows, act: &Act) -> Result<(), Fault> {
    rows.note_acts(std::slice::from_ref(act)).await
}

impl OrderRows for PgRows {
    async fn find_entries(
        &mut self,
        ids: &[EntryId],
    ) -> Result<Vec<Option<(ResourceKey, bool)>>, Fault> {
        let found = find(&mut self.transaction, ids).await?;
        let keys: Vec<ResourceKey> = found.values().map(|(key, _)| key.clone()).collect();
        // Locked before they are looked at again: a daemon may be closing one.
        self.hold(&keys).await?;
        let found = find(&mut self.transaction, ids).await?;
        Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
    }

    async fn note_acts(&mut self, acts: &[Act]) -> Result<(), Fault> {
        if acts.is_empty() {
            return Ok(());
        }
        let safe = |text: &String| columns::text(text).into_owned();
        let all = |of: fn(&Act) -> Option<&str>| acts.iter().map(of).collect::<Vec<_>>();
        let entries = acts.iter().map(|act| act.entry_id.map(|id| id.0));
        self.transaction
            .query(
                "INSERT INTO act (at, actor, act, installation_id, resource_id, entry_id, reason)
                 SELECT at, actor, act, installation_id, resource_id, entry_id, reason
                 FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[])
                      WITH ORDINALITY
                      AS new (at, actor, act, installation_id, resource_id, entry_id, reason, position)
                 ORDER BY position",
            )
            .bind(acts.iter().map(|act| act.at.as_millis()).collect::<Vec<_>>())
            .bind(acts.iter().map(|act| safe(&act.actor)).collect::<Vec<_>>())
            .bind(all(|act| Some(&act.act)))
            .bind(all(|act| act.installation_id.as_ref().map(InstallationId::as_str)))
            .bind(all(|act| act.resource_id.as_ref().map(ResourceId::as_str)))
            .bind(entries.collect::<Vec<_>>())
            .bind(acts.iter().map(|act| act.reason.as_ref().map(safe)).collect::<Vec<_>>())
            .execute(self.transaction.connection())
            .await?;
        Ok(())
    }
}

/// These entries, as far as they are there: the resource of each, and whether it is open.
pub(super) async fn find(
    transaction: &mut Transaction,
    ids: &[EntryId],
) -> Result<BTreeMap<EntryId, (ResourceKey, bool)>, Fault> {
    let found = transaction
        .query(
            "SELECT entry.id, entry.installation_id, entry.resource_id, entry.closed_at
             FROM unnest($1::bigint[]) AS wanted (id)
             JOIN entry ON entry.id = wanted.id",
        )
        .bind(ids.iter().map(|id| id.0).collect::<Vec<i64>>())
        .fetch_all(transaction.connection())
        .await?;
    let entry = |row: &PgRow| {
        let is_open = time(row, "closed_at")?.is_none();
        Ok((EntryId(row.integer("id")?), (codec::key(row)?, is_open)))
    };
    found.iter().map(entry).collect()
}

/// [`crate::store::console::Console::untold_acts`].
pub(super) async fn untold(
    transaction: &mut Transaction,
    limit: u32,
) -> Result<Vec<(ActId, Act)>, Fault> {
    let rows = transaction
        .query(
            "SELECT id, at, actor, act, installation_id, resource_id, entry_id, reason
             FROM act
             WHERE told_at IS NULL
             ORDER BY id
             LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(transaction.connection())
        .await?;
    rows.iter()
        .map(|row| Ok((ActId(row.integer("id")?), codec::act(row)?)))
        .collect()
}

/// [`crate::store::console::Console::acts_told`].
pub(super) async fn told(rows: &mut PgRows, ids: &[ActId], now: Timestamp) -> Result<(), Fault> {
    let ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
    rows.transaction
        .query(
            "UPDATE act
             SET told_at = $1
             WHERE id = ANY($2)",
        )
        .bind(now.as_millis())
        .bind(ids)
        .execute(rows.transaction.connection())
        .await?;
    Ok(())
}
