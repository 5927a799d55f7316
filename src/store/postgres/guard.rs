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
use crate::store::rules::{as_weighed, noted};
use crate::store::steps::Rows as _;
use crate::store::steps::guard::{GuardRows, Move, Under, Window};

use super::pool::Transaction;
use super::rows::PgRows;
use super::{columns, locks, read};

/// How many records of a report are read at a time.
const RECORDS_PER_ROUND: usize = 500;

/// The first $4 entries under the hold $1 after ($2, $3).
const UNDER: &str = concat!(
    "SELECT entry.installation_id,
            entry.resource_id,
            ",
    as_weighed!(),
    "
             AND change.at IS NOT NULL AS as_weighed,
            destructive.at IS NOT NULL AS is_destructive
     FROM (SELECT installation_id, resource_id, state, generation, origin
           FROM entry
           WHERE hold_id = $1
             AND (installation_id, resource_id) > ($2, $3)
             AND state IN ('waiting', 'held')
           ORDER BY installation_id, resource_id
           LIMIT $4) AS entry
     ",
    noted!(),
    "
     ORDER BY entry.installation_id, entry.resource_id"
);

/// Moves what is as it was weighed from the hold $1 to $7, or lets it go: of the keys after ($2, $3) up to ($4, $5) those changed
/// destructively, or the others.
const MOVE_WEIGHED: &str = concat!(
    "WITH moved AS MATERIALIZED (
         SELECT entry.id, entry.installation_id, entry.resource_id
         FROM entry
         ",
    noted!(),
    "
         WHERE entry.hold_id = $1
           AND (entry.installation_id, entry.resource_id) > ($2, $3)
           AND (entry.installation_id, entry.resource_id) <= ($4, $5)
           AND ",
    as_weighed!(),
    "
           AND change.at IS NOT NULL
           AND (destructive.at IS NOT NULL) = $6
     ),
     counted AS (
         UPDATE guarded
         SET at = $8
         FROM moved
         WHERE guarded.installation_id = moved.installation_id
           AND guarded.resource_id = moved.resource_id
           AND (guarded.kind = 'change' OR $6)
           AND guarded.at <> $8
     )
     UPDATE entry
     SET hold_id = $7,
         state = CASE WHEN $7::bigint IS NULL THEN 'waiting' ELSE entry.state END,
         -- It was never tried, so that it waits for nothing.
         reason = CASE WHEN $7::bigint IS NULL THEN 'due' ELSE entry.reason END
     FROM moved
     WHERE entry.id = moved.id"
);

/// How many resources were found changed after $1 and up to $2, and how many besides are as they were weighed under one of the holds
/// $3. The window is one range of an index; besides it there is only what a pass longer than the window found.
const COUNT_GUARDED: &str = concat!(
    "WITH besides AS MATERIALIZED (
         SELECT destructive.at IS NOT NULL AS is_destructive
         FROM (SELECT installation_id, resource_id, at
               FROM guarded
               WHERE kind = 'change'
                 AND at <= $1
               UNION ALL
               SELECT installation_id, resource_id, at
               FROM guarded
               WHERE kind = 'change'
                 AND at > $2) AS change
         LEFT JOIN guarded AS destructive
           ON destructive.installation_id = change.installation_id
          AND destructive.resource_id = change.resource_id
          AND destructive.kind = 'destructive'
          AND destructive.at = change.at
         CROSS JOIN LATERAL (SELECT *
                             FROM entry
                             WHERE entry.installation_id = change.installation_id
                               AND entry.resource_id = change.resource_id
                               AND entry.closed_at IS NULL
                             OFFSET 0) AS entry
         WHERE entry.hold_id = ANY ($3)
           AND ",
    as_weighed!(),
    "
     )
     SELECT (SELECT count(*)
             FROM guarded
             WHERE kind = 'destructive'
               AND at > $1
               AND at <= $2)
          + (SELECT count(*)
             FROM besides
             WHERE is_destructive) AS destructive,
            (SELECT count(*)
             FROM guarded
             WHERE kind = 'change'
               AND at > $1
               AND at <= $2)
          + (SELECT count(*)
             FROM besides) AS changes"
);

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

    async fn look_under(
        &mut self,
        hold: i64,
        after: Option<&ResourceKey>,
        limit: usize,
    ) -> Result<Under, Fault> {
        self.flush().await?;
        let rows = self
            .transaction
            .query(UNDER)
            .bind(hold)
            .bind(after.map_or("", |key| key.installation_id.as_str()))
            .bind(after.map_or("", |key| key.resource_id.as_str()))
            .bind(columns::count(limit))
            .fetch_all(self.transaction.connection())
            .await?;
        let mut under = Under::default();
        for row in &rows {
            if !row.flag("as_weighed")? {
                under.others.push(codec::key(row)?);
            } else if row.flag("is_destructive")? {
                under.destructive += 1;
            } else {
                under.changes += 1;
            }
        }
        under.last = rows.last().map(codec::key).transpose()?;
        Ok(under)
    }

    async fn move_weighed(&mut self, moved: Move<'_>) -> Result<(), Fault> {
        // The rows of the entries change in the tables alone.
        self.forget_read().await?;
        let Move {
            from,
            after,
            up_to,
            impact,
            to,
            now,
        } = moved;
        let done = self
            .transaction
            .query(MOVE_WEIGHED)
            .bind(from)
            .bind(after.map_or("", |key| key.installation_id.as_str()))
            .bind(after.map_or("", |key| key.resource_id.as_str()))
            .bind(up_to.installation_id.as_str())
            .bind(up_to.resource_id.as_str())
            .bind(impact == Impact::Destructive)
            .bind(to)
            .bind(now.as_millis())
            .execute(self.transaction.connection())
            .await?;
        let moved = usize::try_from(done.rows_affected()).unwrap_or(usize::MAX);
        self.transaction.wrote_rows(moved);
        Ok(())
    }

    async fn count_guarded(&mut self, window: Window, also: &[i64]) -> Result<Found, Fault> {
        self.flush().await?;
        let row = self
            .transaction
            .query(COUNT_GUARDED)
            .bind(window.after.as_millis())
            .bind(window.until.as_millis())
            .bind(also.to_vec())
            .fetch_one(self.transaction.connection())
            .await?;
        codec::found(&row)
    }

    async fn keys_guarded(
        &mut self,
        window: Window,
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
                   AND guarded.at > $4
                   AND guarded.at <= $5
                   AND (guarded.installation_id, guarded.resource_id) > ($1, $2)
                   AND entry.state = 'waiting'
                   AND entry.hold_id IS NULL
                 ORDER BY guarded.installation_id, guarded.resource_id
                 LIMIT $3",
            )
            .bind(after.map_or("", |key| key.installation_id.as_str()))
            .bind(after.map_or("", |key| key.resource_id.as_str()))
            .bind(columns::count(limit))
            .bind(window.after.as_millis())
            .bind(window.until.as_millis())
            .fetch_all(self.transaction.connection())
            .await?;
        rows.iter().map(codec::key).collect()
    }

    async fn prune_guarded(&mut self, window: Window) -> Result<(), Fault> {
        self.flush().await?;
        self.transaction
            .query(
                "DELETE FROM guarded
                 WHERE kind IN ('change', 'destructive')
                   AND (at <= $1 OR at > $2)",
            )
            .bind(window.after.as_millis())
            .bind(window.until.as_millis())
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

/// The resources whose entries a hold keeps back, by key, after this one.
pub(super) async fn keys_under(
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
