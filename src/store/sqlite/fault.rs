//! What can go wrong inside SQLite, with nothing in it that a row holds.

use crate::store::StoreError;

/// An operation that failed, before it is known which one it was.
#[derive(Debug)]
pub(super) enum Fault {
    /// SQLite, or the way to it, failed.
    Database {
        /// In safe words.
        problem: String,
        /// Whether the same may succeed later.
        transient: bool,
    },
    /// What was read is not what this version writes.
    Corrupt(String),
}

impl Fault {
    /// The fault as the outcome of `operation`, a verb phrase.
    pub(super) fn during(self, operation: &'static str) -> StoreError {
        match self {
            Self::Database { problem, transient } => StoreError::Failed {
                operation,
                problem,
                transient,
            },
            Self::Corrupt(problem) => StoreError::Corrupt { problem },
        }
    }

    /// The problem alone.
    pub(super) fn problem(self) -> String {
        match self {
            Self::Database { problem, .. } | Self::Corrupt(problem) => problem,
        }
    }

    /// A statement changed another number of rows than it must.
    pub(super) fn affected(what: &str, rows: u64) -> Self {
        Self::Corrupt(format!("writing {what} changed {rows} rows instead of one"))
    }
}

/// Primary result codes of SQLite after which the same may succeed: BUSY and LOCKED.
const TRANSIENT_CODES: [u32; 2] = [5, 6];

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        let database = |problem: String, transient| Self::Database { problem, transient };
        match error {
            sqlx::Error::Database(error) => {
                // SQLite's messages name tables, columns and constraints, never values.
                let code = error.code().and_then(|code| code.parse::<u32>().ok());
                let transient = code.is_some_and(|code| TRANSIENT_CODES.contains(&(code & 0xff)));
                let code = code.map_or_else(String::new, |code| format!(" (SQLite code {code})"));
                database(format!("{}{code}", error.message()), transient)
            }
            sqlx::Error::PoolTimedOut => {
                database("no connection became free in time".to_owned(), true)
            }
            sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
                database("the state is closed".to_owned(), false)
            }
            sqlx::Error::Io(error) => database(error.kind().to_string(), false),
            sqlx::Error::ColumnDecode { index, .. } => {
                Self::Corrupt(format!("the column {index} cannot be read"))
            }
            sqlx::Error::ColumnNotFound(column) => {
                Self::Corrupt(format!("the column {column} is not there"))
            }
            _ => database("the database driver failed".to_owned(), false),
        }
    }
}
