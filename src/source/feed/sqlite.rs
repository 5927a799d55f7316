//! The change feed on SQLite: exact, since writers exclude each other and a number is given out under the writer's lock.

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

use super::{FIRST_TIME, Found, LOST, Wanted};

/// The last entry that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    top: i64,
    /// When that entry was written: while it is there, the feed was not trimmed past us. `None`: the feed was empty.
    written_at: Option<String>,
}

/// The entries after a place.
pub(in super::super) async fn page(
    connection: &mut SqliteConnection,
    wanted: Wanted<'_>,
) -> Result<Found, sqlx::Error> {
    let Some(place) = super::read::<Place>(wanted.from) else {
        return beginning(connection, wanted, FIRST_TIME).await;
    };
    let table = wanted.feed.quoted('"');
    if place.written_at.is_some() {
        let sql = format!("SELECT CAST(changed_at AS TEXT) FROM {table} WHERE sequence = ?");
        let there: Option<(Option<String>,)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(place.top)
            .persistent(false)
            .fetch_optional(&mut *connection)
            .await?;
        if there.and_then(|(at,)| at) != place.written_at {
            return beginning(connection, wanted, LOST).await;
        }
    }
    let sql = format!(
        "SELECT sequence, CAST(changed_at AS TEXT), CAST(installation_id AS TEXT), CAST(resource_id AS TEXT)
         FROM {table}
         WHERE sequence > ?
         ORDER BY sequence
         LIMIT {}",
        wanted.limit
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(place.top)
        .persistent(false)
        .fetch_all(&mut *connection)
        .await?;
    let mut found = Found::default();
    let mut next = place;
    for row in &rows {
        next = Place {
            top: row.try_get(0)?,
            written_at: Some(row.try_get::<Option<String>, _>(1)?.unwrap_or_default()),
        };
        // An id that is no UTF-8 is no id.
        found
            .ids
            .push((row.try_get(2).ok().flatten(), row.try_get(3).ok().flatten()));
    }
    found.more = u32::try_from(rows.len()).is_ok_and(|count| count >= wanted.limit);
    found.position = super::write(&next);
    Ok(found)
}

async fn beginning(
    connection: &mut SqliteConnection,
    wanted: Wanted<'_>,
    lost: &'static str,
) -> Result<Found, sqlx::Error> {
    let sql = format!(
        "SELECT sequence, COALESCE(CAST(changed_at AS TEXT), '')
         FROM {}
         ORDER BY sequence DESC
         LIMIT 1",
        wanted.feed.quoted('"')
    );
    let newest: Option<(i64, String)> = sqlx::query_as(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_optional(&mut *connection)
        .await?;
    let (top, written_at) = newest.unzip();
    let place = Place {
        top: top.unwrap_or(0),
        written_at,
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
