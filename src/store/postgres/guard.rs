//! The guard's rows of the PostgreSQL state.
//!
//! Whoever decides on holds has the guard's lock until the transaction ends, taken before any resource's: a pass and a person's
//! order, or an outcome that empties a hold, never decide on the same hold at once. An outcome seldom concerns a hold, and finds
//! out only when it has its resources: it is undone and done again with the lock first.

use crate::model::{Origin, ResourceKey, Timestamp};
use crate::plan::guard::{Found, Impact, Summary};
use crate::store::codec::{self, Cells as _};
use crate::store::fault::Fault;
use crate::store::hold::{Hold, HoldReport, SUMMARY_ENTRIES_MAX};
use crate::store::steps::guard::GuardRows;

use super::pool::Transaction;
use super::rows::PgRows;
use super::{columns, locks, read};

/// How many records of a report are read at a time.
const RECORDS_PER_ROUND: usize = 500;

impl PgRows {
    /// Takes the guard's lock, or asks for the transaction to be done again with the lock first.
    pub(super) async fn take_guard(&mut self) -> Result<(), Fault> {
        if self.has_guard {
            return Ok(());
        }
        if self.unit.holds_any() {
            return Err(Fault::NeedsGuard);
        }
        locks::wait_for(&mut self.transaction, locks::Lock::Guard).await?;
        self.has_guard = true;
        Ok(())
    }
}

impl GuardRows for PgRows {
    async fn holds(&mut self) -> Result<Vec<Hold>, Fault> {
        self.take_guard().await?;
        let rows = self
            .transaction
            .query(
                "SELECT id, state, origin, opened_at, closed_at, destructive, changes
                 FROM hold
                 WHERE state = 'open'
                    OR state = 'provisional'
                 ORDER BY id",
            )
            .fetch_all(self.transaction.connection())
            .await?;
        rows.iter().map(codec::hold).collect()
    }

    async fn add_hold(&mut self, origin: Origin, now: Timestamp) -> Result<i64, Fault> {
        let row = self
            .transaction
            .query(
                "INSERT INTO hold (state, origin, opened_at)
                 VALUES ('provisional', $1, $2)
                 RETURNING id",
            )
            .bind(origin.name())
            .bind(now.as_millis())
            .fetch_one(self.transaction.connection())
            .await?;
        row.integer("id")
    }

    async fn put_hold(&mut self, hold: &Hold) -> Result<(), Fault> {
        let Hold {
            id,
            state,
            origin,
            opened_at,
            closed_at,
            found,
        } = hold;
        let updated = self
            .transaction
            .query(
                "UPDATE hold
                 SET state = $2,
                     origin = $3,
                     opened_at = $4,
                     closed_at = $5,
                     destructive = $6,
                     changes = $7
                 WHERE id = $1",
            )
            .bind(*id)
            .bind(state.name())
            .bind(origin.name())
            .bind(opened_at.as_millis())
            .bind(closed_at.map(Timestamp::as_millis))
            .bind(i64::from(found.destructive))
            .bind(i64::from(found.changes))
            .execute(self.transaction.connection())
            .await?;
        match updated.rows_affected() {
            1 => Ok(()),
            rows => Err(Fault::affected("a hold", rows)),
        }
    }

    async fn delete_hold(&mut self, id: i64) -> Result<(), Fault> {
        self.flush().await?;
        let deleted = self
            .transaction
            .query(
                "DELETE FROM hold
                 WHERE id = $1",
            )
            .bind(id)
            .execute(self.transaction.connection())
            .await?;
        match deleted.rows_affected() {
            1 => Ok(()),
            rows => Err(Fault::affected("a hold", rows)),
        }
    }

    async fn keys_under(
        &mut self,
        hold: i64,
        after: Option<&ResourceKey>,
        limit: usize,
    ) -> Result<Vec<ResourceKey>, Fault> {
        self.flush().await?;
        keys_under(&mut self.transaction, hold, after, limit).await
    }

    async fn note_guarded(
        &mut self,
        key: &ResourceKey,
        impact: Impact,
        at: Timestamp,
    ) -> Result<(), Fault> {
        self.unit.guard(key, impact, Some(at));
        Ok(())
    }

    async fn forget_guarded(&mut self, key: &ResourceKey, impact: Impact) -> Result<(), Fault> {
        self.unit.guard(key, impact, None);
        Ok(())
    }

    async fn count_guarded(&mut self, after: Timestamp, until: Timestamp) -> Result<Found, Fault> {
        self.flush().await?;
        let row = self
            .transaction
            .query(
                "SELECT (SELECT count(*)
                         FROM guarded
                         WHERE kind = 'destructive'
                           AND at > $1
                           AND at <= $2) AS destructive,
                        (SELECT count(*)
                         FROM guarded
                         WHERE kind = 'change'
                           AND at > $1
                           AND at <= $2) AS changes",
            )
            .bind(after.as_millis())
            .bind(until.as_millis())
            .fetch_one(self.transaction.connection())
            .await?;
        codec::found(&row)
    }

    async fn keys_guarded(
        &mut self,
        after: Option<&ResourceKey>,
        limit: usize,
    ) -> Result<Vec<ResourceKey>, Fault> {
        self.flush().await?;
        let rows = self
            .transaction
            .query(
                "SELECT guarded.installation_id, guarded.resource_id
                 FROM guarded
                 JOIN entry
                   ON entry.installation_id = guarded.installation_id
                  AND entry.resource_id = guarded.resource_id
                  AND entry.closed_at IS NULL
                 -- Every change that counts is of this kind, whatever else it is.
                 WHERE guarded.kind = 'change'
                   AND (guarded.installation_id, guarded.resource_id) > ($1, $2)
                   AND entry.state = 'waiting'
                   AND entry.hold_id IS NULL
                 ORDER BY guarded.installation_id, guarded.resource_id
                 LIMIT $3",
            )
            .bind(after.map_or("", |key| key.installation_id.as_str()))
            .bind(after.map_or("", |key| key.resource_id.as_str()))
            .bind(columns::count(limit))
            .fetch_all(self.transaction.connection())
            .await?;
        rows.iter().map(codec::key).collect()
    }

    async fn prune_guarded(&mut self, before: Timestamp, after: Timestamp) -> Result<(), Fault> {
        self.flush().await?;
        self.transaction
            .query(
                "DELETE FROM guarded
                 WHERE kind IN ('change', 'destructive')
                   AND (at <= $1 OR at > $2)",
            )
            .bind(before.as_millis())
            .bind(after.as_millis())
            .execute(self.transaction.connection())
            .await?;
        Ok(())
    }
}

/// A hold with what its entries would do.
pub(super) async fn report(
    transaction: &mut Transaction,
    id: i64,
) -> Result<Option<HoldReport>, Fault> {
    let row = transaction
        .query(
            "SELECT id, state, origin, opened_at, closed_at, destructive, changes,
                    (SELECT count(*)
                     FROM entry
                     WHERE entry.hold_id = hold.id
                       AND entry.state IN ('waiting', 'held')) AS entries
             FROM hold
             WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(transaction.connection())
        .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let mut summary = Summary::default();
    let mut after: Option<ResourceKey> = None;
    while summary.entries < u64::from(SUMMARY_ENTRIES_MAX) {
        let keys = keys_under(transaction, id, after.as_ref(), RECORDS_PER_ROUND).await?;
        let Some(last) = keys.last().cloned() else {
            break;
        };
        for record in read::records(transaction, &keys).await? {
            summary.add(&record);
        }
        after = Some(last);
    }
    Ok(Some(HoldReport {
        hold: codec::hold(&row)?,
        entries: codec::number(row.integer("entries")?, "entries")?,
        summary,
    }))
}

/// The holds that wait for a person.
pub(super) async fn open_holds(transaction: &mut Transaction) -> Result<Vec<Hold>, Fault> {
    let rows = transaction
        .query(
            "SELECT id, state, origin, opened_at, closed_at, destructive, changes
             FROM hold
             WHERE state = 'open'
             ORDER BY id",
        )
        .fetch_all(transaction.connection())
        .await?;
    rows.iter().map(codec::hold).collect()
}

async fn keys_under(
    transaction: &mut Transaction,
    hold: i64,
    after: Option<&ResourceKey>,
    limit: usize,
) -> Result<Vec<ResourceKey>, Fault> {
    let rows = transaction
        .query(
            "SELECT installation_id, resource_id
             FROM entry
             WHERE hold_id = $1
               AND (installation_id, resource_id) > ($2, $3)
               AND state IN ('waiting', 'held')
             ORDER BY installation_id, resource_id
             LIMIT $4",
        )
        .bind(hold)
        .bind(after.map_or("", |key| key.installation_id.as_str()))
        .bind(after.map_or("", |key| key.resource_id.as_str()))
        .bind(columns::count(limit))
        .fetch_all(transaction.connection())
        .await?;
    rows.iter().map(codec::key).collect()
}
