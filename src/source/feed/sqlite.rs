//! The change feed on SQLite: exact, since writers exclude each other and a number is given out under the writer's lock.

use rusqlite::{Connection, OptionalExtension as _};
use serde::{Deserialize, Serialize};

use super::{FIRST_TIME, Found, LOST, Wanted};

/// The last entry that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    top: i64,
    /// When that entry was written: while it is there, the feed was not trimmed past us. `None`: the feed was empty.
    written_at: Option<String>,
}

/// What is to be read, for the thread that reads.
pub(in super::super) struct Reading {
    /// The table's name, quoted.
    table: String,
    from: Option<String>,
    limit: u32,
}

impl Reading {
    pub(in super::super) fn of(wanted: Wanted<'_>) -> Self {
        Self {
            table: wanted.feed.quoted('"'),
            from: wanted.from.map(str::to_owned),
            limit: wanted.limit,
        }
    }

    /// The entries after a place.
    pub(in super::super) fn page(&self, file: &Connection) -> Result<Found, rusqlite::Error> {
        let Some(place) = super::read::<Place>(self.from.as_deref()) else {
            return self.beginning(file, FIRST_TIME);
        };
        let Self { table, limit, .. } = self;
        if place.written_at.is_some() {
            let sql = format!("SELECT CAST(changed_at AS TEXT) FROM {table} WHERE sequence = ?");
            let there = file.query_row(&sql, [place.top], |row| row.get(0));
            if there.optional()?.flatten() != place.written_at {
                return self.beginning(file, LOST);
            }
        }
        let sql = format!(
            "SELECT sequence, CAST(changed_at AS TEXT), CAST(installation_id AS TEXT), CAST(resource_id AS TEXT)
             FROM {table}
             WHERE sequence > ?
             ORDER BY sequence
             LIMIT {limit}"
        );
        let mut statement = file.prepare(&sql)?;
        let mut rows = statement.query([place.top])?;
        let mut found = Found::default();
        let mut next = place;
        while let Some(row) = rows.next()? {
            next = Place {
                top: row.get(0)?,
                written_at: Some(row.get::<_, Option<String>>(1)?.unwrap_or_default()),
            };
            // An id that is no UTF-8 is no id.
            found.ids.push((
                row.get(2).unwrap_or_default(),
                row.get(3).unwrap_or_default(),
            ));
        }
        found.more = u32::try_from(found.ids.len()).is_ok_and(|count| count >= *limit);
        found.position = super::write(&next);
        Ok(found)
    }

    fn beginning(&self, file: &Connection, lost: &'static str) -> Result<Found, rusqlite::Error> {
        let sql = format!(
            "SELECT sequence, COALESCE(CAST(changed_at AS TEXT), '')
             FROM {}
             ORDER BY sequence DESC
             LIMIT 1",
            self.table
        );
        let newest = file.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?)));
        let (top, written_at) = newest.optional()?.unzip();
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
}

/// Reads a place out of any text, for [`crate::source::fuzz`].
#[cfg(any(test, fuzzing))]
pub(in crate::source) fn read_place(text: &str) {
    if let Some(place) = super::read::<Place>(Some(text)) {
        assert!(super::read::<Place>(Some(&super::write(&place))).is_some());
    }
}
