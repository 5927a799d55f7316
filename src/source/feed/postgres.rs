//! The change feed on PostgreSQL: exact, whatever order transactions commit in and however long they stay open.
//!
//! Each entry carries the id of the transaction that wrote it, and a place is a snapshot: the set of transactions whose entries have
//! been read. New are the entries of transactions that the last snapshot did not see and the present one sees. Each is read once;
//! an open transaction, an idle or a prepared one holds nothing up.

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::{FIRST_TIME, Found, LOST, Wanted};

/// Which entries have been read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// The snapshot of which all entries have been read.
    seen: String,
    /// The pass that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pass: Option<Pass>,
    /// The entry with the highest number that was read or passed over: while it is there, the feed was not trimmed past us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    newest: Option<Entry>,
}

/// A pass of several pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Pass {
    /// The snapshot up to which it reads.
    upto: String,
    /// The last entry read.
    after: Entry,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    transaction: String,
    sequence: i64,
}

/// The entries after a place.
pub(in super::super) async fn page(
    connection: &mut PgConnection,
    wanted: Wanted<'_>,
) -> Result<Found, sqlx::Error> {
    let Some(place) = super::read::<Place>(wanted.from) else {
        return beginning(connection, wanted, FIRST_TIME).await;
    };
    let table = wanted.feed.quoted('"');
    let newest = place.newest.as_ref();
    let sql = format!(
        "SELECT
            pg_catalog.pg_current_snapshot()::text,
            $1::int8 IS NULL OR EXISTS (
                SELECT
                FROM {table} AS f
                WHERE f.sequence = $1 AND f.transaction_id::text = $2
            )"
    );
    let (now, is_there): (String, bool) = sqlx::query_as(AssertSqlSafe(sql))
        .bind(newest.map(|entry| entry.sequence))
        .bind(newest.map(|entry| entry.transaction.as_str()))
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
    if !is_there {
        return beginning(connection, wanted, LOST).await;
    }
    let (upto, after) = match &place.pass {
        Some(Pass { upto, after }) => (upto.clone(), Some(after)),
        None => (now, None),
    };
    let sql = format!(
        "SELECT f.sequence::int8, f.transaction_id::text, f.installation_id::text, f.resource_id::text
         FROM {table} AS f
         WHERE
            -- The two bounds are for the index; the snapshots decide.
            f.transaction_id >= pg_catalog.pg_snapshot_xmin($1::text::pg_snapshot)
            AND f.transaction_id < pg_catalog.pg_snapshot_xmax($2::text::pg_snapshot)
            AND NOT pg_catalog.pg_visible_in_snapshot(f.transaction_id, $1::text::pg_snapshot)
            AND pg_catalog.pg_visible_in_snapshot(f.transaction_id, $2::text::pg_snapshot)
            AND ($3::text IS NULL OR (f.transaction_id, f.sequence) > ($3::text::xid8, $4::int8))
         ORDER BY f.transaction_id, f.sequence
         LIMIT {}",
        wanted.limit
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(&place.seen)
        .bind(&upto)
        .bind(after.map(|entry| entry.transaction.as_str()))
        .bind(after.map(|entry| entry.sequence))
        .persistent(false)
        .fetch_all(&mut *connection)
        .await?;
    let mut found = Found::default();
    let mut newest = place.newest.clone();
    let mut last = None;
    for row in &rows {
        let entry = Entry {
            sequence: row.try_get(0)?,
            transaction: row.try_get(1)?,
        };
        if newest
            .as_ref()
            .is_none_or(|newest| newest.sequence < entry.sequence)
        {
            newest = Some(entry.clone());
        }
        last = Some(entry);
        found.ids.push((row.try_get(2)?, row.try_get(3)?));
    }
    found.more = u32::try_from(rows.len()).is_ok_and(|count| count >= wanted.limit);
    let next = match last.filter(|_| found.more) {
        Some(after) => Place {
            seen: place.seen.clone(),
            pass: Some(Pass { upto, after }),
            newest,
        },
        // Nothing was added: the old snapshot tells as much as the new one, and need not be written down again.
        None if rows.is_empty() && place.pass.is_none() => place,
        None => Place {
            seen: upto,
            pass: None,
            newest,
        },
    };
    found.position = super::write(&next);
    Ok(found)
}

/// The present, before any row is read: what is open now is not seen by the snapshot and so will be new.
async fn beginning(
    connection: &mut PgConnection,
    wanted: Wanted<'_>,
    lost: &'static str,
) -> Result<Found, sqlx::Error> {
    let (seen,): (String,) = sqlx::query_as("SELECT pg_catalog.pg_current_snapshot()::text")
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
    let sql = format!(
        "SELECT f.sequence::int8, f.transaction_id::text
         FROM {} AS f
         ORDER BY f.sequence DESC
         LIMIT 1",
        wanted.feed.quoted('"')
    );
    let newest: Option<(i64, String)> = sqlx::query_as(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_optional(&mut *connection)
        .await?;
    let place = Place {
        seen,
        pass: None,
        newest: newest.map(|(sequence, transaction)| Entry {
            transaction,
            sequence,
        }),
    };
    Ok(Found {
        position: super::write(&place),
        lost: Some(lost),
        ..Found::default()
    })
}

/// Reads a place out of any text, for [`crate::source::fuzz`].
#[cfg(any(test, fuzzing))]
pub(in crate::source) fn read_place(text: &str) {
    if let Some(place) = super::read::<Place>(Some(text)) {
        assert!(super::read::<Place>(Some(&super::write(&place))).is_some());
    }
}
