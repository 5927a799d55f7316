//! The guard's rows of the SQLite state.

use rusqlite::params;

use crate::model::{Origin, ResourceKey, Timestamp};
use crate::plan::guard::{Found, Impact, Summary};
use crate::store::hold::{Hold, HoldReport, SUMMARY_ENTRIES_MAX};
use crate::store::rules::{as_weighed, noted};
use crate::store::steps::guard::{GuardRows, Move, Under, Window};

use super::db::Db;
use super::read;
use super::session::SqliteRows;
use crate::store::codec::{self, Cells as _, json, key_pairs, number};
use crate::store::fault::Fault;

/// How many records of a report are read at a time.
const RECORDS_PER_ROUND: u32 = 500;

/// The first ?4 entries under the hold ?1 after (?2, ?3).
const UNDER: &str = concat!(
    "SELECT entry.installation_id,
            entry.resource_id,
            ",
    as_weighed!(),
    "
             AND change.at IS NOT NULL AS as_weighed,
            destructive.at IS NOT NULL AS is_destructive
     FROM entry INDEXED BY entry_hold
     ",
    noted!(),
    "
     WHERE entry.hold_id = ?1
       AND (entry.installation_id, entry.resource_id) > (?2, ?3)
       AND entry.state IN ('waiting', 'held')
     ORDER BY entry.installation_id, entry.resource_id
     LIMIT 0 + ?4"
);

/// Moves what is as it was weighed from the hold ?1 to ?7, or lets it go: of the keys after (?2, ?3) up to (?4, ?5) those changed
/// destructively, or the others.
const MOVE_WEIGHED: &str = concat!(
    "UPDATE entry
     SET hold_id = ?7,
         state = CASE WHEN ?7 IS NULL THEN 'waiting' ELSE state END,
         -- It was never tried, so that it waits for nothing.
         reason = CASE WHEN ?7 IS NULL THEN 'due' ELSE reason END
     WHERE id IN (SELECT entry.id
                  FROM entry INDEXED BY entry_hold
                  ",
    noted!(),
    "
                  WHERE entry.hold_id = ?1
                    AND (entry.installation_id, entry.resource_id) > (?2, ?3)
                    AND (entry.installation_id, entry.resource_id) <= (?4, ?5)
                    AND ",
    as_weighed!(),
    "
                    AND change.at IS NOT NULL
                    AND (destructive.at IS NOT NULL) = ?6)
     RETURNING installation_id, resource_id"
);

/// How many resources were found changed after ?1 and up to ?2, and how many besides are as they were weighed under one of the holds
/// ?3. The window is one range of an index; besides it there is only what a pass longer than the window found.
const COUNT_GUARDED: &str = concat!(
    "WITH besides AS MATERIALIZED (
         SELECT destructive.at IS NOT NULL AS is_destructive
         FROM guarded AS change INDEXED BY guarded_at
         LEFT JOIN guarded AS destructive
           ON destructive.installation_id = change.installation_id
          AND destructive.resource_id = change.resource_id
          AND destructive.kind = 'destructive'
          AND destructive.at = change.at
         CROSS JOIN entry INDEXED BY entry_open
         WHERE change.kind = 'change'
           AND (change.at <= ?1 OR change.at > ?2)
           AND entry.installation_id = change.installation_id
           AND entry.resource_id = change.resource_id
           AND entry.closed_at IS NULL
           AND entry.hold_id IN (SELECT value FROM json_each(?3))
           AND ",
    as_weighed!(),
    "
     )
     SELECT (SELECT count(*)
             FROM guarded
             WHERE kind = 'destructive'
               AND at > ?1
               AND at <= ?2)
          + (SELECT count(*)
             FROM besides
             WHERE is_destructive) AS destructive,
            (SELECT count(*)
             FROM guarded
             WHERE kind = 'change'
               AND at > ?1
               AND at <= ?2)
          + (SELECT count(*)
             FROM besides) AS changes"
);

impl GuardRows for SqliteRows {
    async fn holds(&mut self) -> Result<Vec<Hold>, Fault> {
        self.db().rows(
            "SELECT id, state, origin, opened_at, closed_at, destructive, changes
             FROM hold
             WHERE state = 'open'
                OR state = 'provisional'
             ORDER BY id",
            params![],
            |row| codec::hold(row),
        )
    }

    async fn add_hold(&mut self, origin: Origin, now: Timestamp) -> Result<i64, Fault> {
        self.db().run(
            "INSERT INTO hold (state, origin, opened_at)
             VALUES ('provisional', ?1, ?2)",
            params![origin.name(), now.as_millis()],
        )?;
        Ok(self.db().last_number())
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
        let updated = self.db().run(
            "UPDATE hold
             SET state = ?2,
                 origin = ?3,
                 opened_at = ?4,
                 closed_at = ?5,
                 destructive = ?6,
                 changes = ?7
             WHERE id = ?1",
            params![
                *id,
                state.name(),
                origin.name(),
                opened_at.as_millis(),
                closed_at.map(Timestamp::as_millis),
                i64::from(found.destructive),
                i64::from(found.changes)
            ],
        )?;
        match updated {
            1 => Ok(()),
            rows => Err(Fault::affected("a hold", rows)),
        }
    }

    async fn delete_hold(&mut self, id: i64) -> Result<(), Fault> {
        let deleted = self.db().run(
            "DELETE FROM hold
             WHERE id = ?1",
            params![id],
        )?;
        match deleted {
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
        keys_under(self.db(), hold, after, limit)
    }

    async fn note_guarded(
        &mut self,
        key: &ResourceKey,
        impact: Impact,
        at: Timestamp,
    ) -> Result<(), Fault> {
        self.db().run(
            "INSERT INTO guarded (installation_id, resource_id, at, kind)
             SELECT ?1, ?2, ?3, kind.value
             FROM json_each(?4) AS kind
             WHERE true
             ON CONFLICT (installation_id, resource_id, kind) DO UPDATE
             SET at = excluded.at",
            params![
                key.installation_id.as_str(),
                key.resource_id.as_str(),
                at.as_millis(),
                json(kinds(impact))
            ],
        )?;
        Ok(())
    }

    async fn forget_guarded(&mut self, key: &ResourceKey, impact: Impact) -> Result<(), Fault> {
        self.db().run(
            "DELETE FROM guarded
             WHERE installation_id = ?1
               AND resource_id = ?2
               AND kind IN (SELECT value FROM json_each(?3))",
            params![
                key.installation_id.as_str(),
                key.resource_id.as_str(),
                json(kinds(impact))
            ],
        )?;
        Ok(())
    }

    async fn look_under(
        &mut self,
        hold: i64,
        after: Option<&ResourceKey>,
        limit: usize,
    ) -> Result<Under, Fault> {
        let mut under = Under::default();
        let params = params![
            hold,
            after.map_or("", |key| key.installation_id.as_str()),
            after.map_or("", |key| key.resource_id.as_str()),
            i64::try_from(limit).unwrap_or(i64::MAX)
        ];
        self.db().each(UNDER, params, |row| {
            let key = codec::key(row)?;
            if !row.flag("as_weighed")? {
                under.others.push(key.clone());
            } else if row.flag("is_destructive")? {
                under.destructive += 1;
            } else {
                under.changes += 1;
            }
            under.last = Some(key);
            Ok(())
        })?;
        Ok(under)
    }

    async fn move_weighed(&mut self, moved: Move<'_>) -> Result<(), Fault> {
        self.forget_all();
        let Move {
            from,
            after,
            up_to,
            impact,
            to,
            now,
        } = moved;
        let is_destructive = impact == Impact::Destructive;
        let params = params![
            from,
            after.map_or("", |key| key.installation_id.as_str()),
            after.map_or("", |key| key.resource_id.as_str()),
            up_to.installation_id.as_str(),
            up_to.resource_id.as_str(),
            is_destructive,
            to
        ];
        let keys = self
            .db()
            .rows(MOVE_WEIGHED, params, |row| codec::key(row))?;
        self.db().run(
            "UPDATE guarded
             SET at = ?1
             WHERE (installation_id, resource_id) IN
                   (SELECT value ->> 0, value ->> 1
                    FROM json_each(?2))
               AND (kind = 'change' OR ?3)
               AND at <> ?1",
            params![now.as_millis(), key_pairs(&keys), is_destructive],
        )?;
        Ok(())
    }

    async fn count_guarded(&mut self, window: Window, also: &[i64]) -> Result<Found, Fault> {
        self.db().row(
            COUNT_GUARDED,
            params![
                window.after.as_millis(),
                window.until.as_millis(),
                json(also)
            ],
            |row| codec::found(row),
        )
    }

    async fn keys_guarded(
        &mut self,
        window: Window,
        after: Option<&ResourceKey>,
        limit: usize,
    ) -> Result<Vec<ResourceKey>, Fault> {
        self.db().rows(
            "SELECT guarded.installation_id, guarded.resource_id
             FROM guarded
             JOIN entry
               ON entry.installation_id = guarded.installation_id
              AND entry.resource_id = guarded.resource_id
              AND entry.closed_at IS NULL
             -- Every change that counts is of this kind, whatever else it is.
             WHERE guarded.kind = 'change'
               AND guarded.at > ?4
               AND guarded.at <= ?5
               AND (guarded.installation_id, guarded.resource_id) > (?1, ?2)
               AND entry.state = 'waiting'
               AND entry.hold_id IS NULL
             ORDER BY guarded.installation_id, guarded.resource_id
             LIMIT 0 + ?3",
            params![
                after.map_or("", |key| key.installation_id.as_str()),
                after.map_or("", |key| key.resource_id.as_str()),
                i64::try_from(limit).unwrap_or(i64::MAX),
                window.after.as_millis(),
                window.until.as_millis()
            ],
            |row| codec::key(row),
        )
    }

    async fn prune_guarded(&mut self, window: Window) -> Result<(), Fault> {
        for kind in kinds(Impact::Destructive) {
            self.db().run(
                "DELETE FROM guarded
                 WHERE kind = ?1
                   AND (at <= ?2 OR at > ?3)",
                params![*kind, window.after.as_millis(), window.until.as_millis()],
            )?;
        }
        Ok(())
    }
}

/// The kinds that a change counts as.
const fn kinds(impact: Impact) -> &'static [&'static str] {
    match impact {
        Impact::None => &[],
        Impact::Change => &["change"],
        Impact::Destructive => &["change", "destructive"],
    }
}

/// A hold with what its entries would do.
pub(super) fn report(db: &Db, id: i64) -> Result<Option<HoldReport>, Fault> {
    let found = db.find_row(
        "SELECT id, state, origin, opened_at, closed_at, destructive, changes,
                (SELECT count(*)
                 FROM entry
                 WHERE entry.hold_id = hold.id
                   AND entry.state IN ('waiting', 'held')) AS entries
         FROM hold
         WHERE id = ?1",
        params![id],
        |row| {
            let entries = number(row.integer("entries")?, "entries")?;
            Ok((codec::hold(row)?, entries))
        },
    )?;
    let Some((hold, entries)) = found else {
        return Ok(None);
    };
    let mut summary = Summary::default();
    let mut after: Option<ResourceKey> = None;
    while summary.entries < u64::from(SUMMARY_ENTRIES_MAX) {
        let limit = usize::try_from(RECORDS_PER_ROUND).unwrap_or(usize::MAX);
        let keys = keys_under(db, id, after.as_ref(), limit)?;
        let Some(last) = keys.last().cloned() else {
            break;
        };
        for record in read::records(db, &keys)? {
            summary.add(&record);
        }
        after = Some(last);
    }
    Ok(Some(HoldReport {
        hold,
        entries,
        summary,
    }))
}

/// The holds that wait for a person.
pub(super) fn open_holds(db: &Db) -> Result<Vec<Hold>, Fault> {
    db.rows(
        "SELECT id, state, origin, opened_at, closed_at, destructive, changes
         FROM hold
         WHERE state = 'open'
         ORDER BY id",
        params![],
        |row| codec::hold(row),
    )
}

/// The resources whose entries a hold keeps back, by key, after this one.
pub(super) fn keys_under(
    db: &Db,
    hold: i64,
    after: Option<&ResourceKey>,
    limit: usize,
) -> Result<Vec<ResourceKey>, Fault> {
    db.rows(
        "SELECT installation_id, resource_id
         FROM entry INDEXED BY entry_hold
         WHERE hold_id = ?1
           AND (installation_id, resource_id) > (?2, ?3)
           AND state IN ('waiting', 'held')
         ORDER BY installation_id, resource_id
         LIMIT 0 + ?4",
        params![
            hold,
            after.map_or("", |key| key.installation_id.as_str()),
            after.map_or("", |key| key.resource_id.as_str()),
            i64::try_from(limit).unwrap_or(i64::MAX)
        ],
        |row| codec::key(row),
    )
}
