//! Who a PostgreSQL database is: the server's identifier and timeline, where the role may ask for them, and the database's number.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU8, Ordering};

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

const RIGHTS: &str = "SELECT
    has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')
    AND has_function_privilege('pg_catalog.pg_control_checkpoint()', 'EXECUTE')";
const DATABASE: &str =
    "SELECT d.oid::int8 FROM pg_catalog.pg_database AS d WHERE d.datname = current_database()";
const SERVER_AND_DATABASE: &str = "SELECT d.oid::int8, s.system_identifier, c.timeline_id::int8
    FROM pg_catalog.pg_database AS d, pg_catalog.pg_control_system() AS s, pg_catalog.pg_control_checkpoint() AS c
    WHERE d.datname = current_database()";

const UNKNOWN: u8 = 0;
const LIMITED: u8 = 1;
const FULL: u8 = 2;

/// What is asked, by what the role may ask: that is found out once, and again after a failure.
#[derive(Debug, Default)]
pub(super) struct Identity {
    rights: AtomicU8,
}

impl Identity {
    /// Whether [`Identity::question`] needs no exchange of its own.
    pub(super) fn is_known(&self) -> bool {
        self.rights.load(Ordering::Relaxed) != UNKNOWN
    }

    /// One statement without parameters; [`read`] reads the row that it answers.
    pub(super) async fn question(
        &self,
        connection: &mut PgConnection,
    ) -> Result<&'static str, sqlx::Error> {
        let mut rights = self.rights.load(Ordering::Relaxed);
        if rights == UNKNOWN {
            let row = sqlx::raw_sql(RIGHTS).fetch_one(connection).await?;
            let may: bool = row.try_get(0)?;
            rights = if may { FULL } else { LIMITED };
            self.rights.store(rights, Ordering::Relaxed);
        }
        Ok(match rights {
            FULL => SERVER_AND_DATABASE,
            _ => DATABASE,
        })
    }

    /// Takes note of whether statements with the question among them were answered: the rights may have been taken away.
    pub(super) fn judge<T>(&self, asked: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        if asked.is_err() {
            self.rights.store(UNKNOWN, Ordering::Relaxed);
        }
        asked
    }
}

/// The identity from an answer to [`Identity::question`].
pub(super) fn read(answer: &PgRow) -> Result<String, sqlx::Error> {
    let number: i64 = answer.try_get(0)?;
    let mut id = format!("postgres database={number}");
    if answer.len() > 1 {
        let (system, timeline): (i64, i64) = (answer.try_get(1)?, answer.try_get(2)?);
        write!(id, " system={system} timeline={timeline}").expect("a String takes all text");
    }
    Ok(id)
}
