//! What can go wrong inside a database, with nothing in it that a row holds.

use sqlx::postgres::PgDatabaseError;

use super::StoreError;

/// An operation that failed, before it is known which one it was.
#[derive(Debug)]
pub(super) enum Fault {
    /// The database, or the way to it, failed.
    Database {
        /// In safe words.
        problem: String,
        /// Whether the same may succeed later.
        transient: bool,
    },
    /// Another transaction was in the way: the same from the start may succeed at once.
    Collision {
        /// In safe words.
        problem: String,
    },
    /// The transaction concerns a hold of the guard after all: it has to take the guard's lock first.
    NeedsGuard,
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
            Self::Collision { problem } => StoreError::Failed {
                operation,
                problem,
                transient: true,
            },
            Self::NeedsGuard => StoreError::Failed {
                operation,
                problem: self.problem(),
                transient: true,
            },
            Self::Corrupt(problem) => StoreError::Corrupt { problem },
        }
    }

    /// Whether the same may succeed later.
    pub(super) const fn is_transient(&self) -> bool {
        match self {
            Self::Database { transient, .. } => *transient,
            Self::Collision { .. } | Self::NeedsGuard => true,
            Self::Corrupt(_) => false,
        }
    }

    /// The problem alone.
    pub(super) fn problem(self) -> String {
        match self {
            Self::Database { problem, .. }
            | Self::Collision { problem }
            | Self::Corrupt(problem) => problem,
            Self::NeedsGuard => "it has to be done again under the guard's lock".to_owned(),
        }
    }

    /// A statement changed another number of rows than it must.
    pub(super) fn affected(what: &str, rows: u64) -> Self {
        Self::Corrupt(format!("writing {what} changed {rows} rows instead of one"))
    }
}

/// Primary result codes of SQLite after which the same may succeed: BUSY and LOCKED.
const TRANSIENT_CODES: [i32; 2] = [5, 6];

/// SQLSTATEs of PostgreSQL after which the same may succeed at once: a serialization failure, a deadlock, and a unique key that
/// another transaction was first to write.
const COLLISIONS: [&str; 3] = ["40001", "40P01", "23505"];
/// SQLSTATEs, or their classes, after which the same may succeed later: connections, resources, limits of time, a server that
/// starts, stops or recovers.
const TRANSIENT_STATES: [&str; 7] = ["08", "53", "57014", "55P03", "57P", "25P", "25006"];
/// Classes of SQLSTATEs whose messages name columns, constraints, roles and databases, never values.
const NAMES_ONLY: [&str; 12] = [
    "08", "0A", "23", "25", "28", "3D", "3F", "40", "42", "53", "55", "57",
];

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        let database = |problem: String, transient| Self::Database { problem, transient };
        match error {
            sqlx::Error::Database(error) => match error.try_downcast_ref::<PgDatabaseError>() {
                Some(error) => postgres(error),
                None => {
                    let code = error.code().and_then(|code| code.parse().ok());
                    sqlite(code.unwrap_or_default(), error.message())
                }
            },
            sqlx::Error::PoolTimedOut => {
                database("no connection became free in time".to_owned(), true)
            }
            sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
                database("the state is closed".to_owned(), false)
            }
            // Of a file the disk, of a server the way to it.
            sqlx::Error::Io(error) => {
                let transient = is_broken_connection(error.kind());
                database(error.kind().to_string(), transient)
            }
            sqlx::Error::Tls(_) => database("no TLS connection could be made".to_owned(), true),
            sqlx::Error::Protocol(_) => database(
                "the answer was not in the database's protocol".to_owned(),
                true,
            ),
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

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error;
        match error {
            Error::SqliteFailure(failure, message) => {
                let message = message.unwrap_or_else(|| failure.to_string());
                sqlite(failure.extended_code, &message)
            }
            Error::InvalidColumnType(_, column, _) => {
                Self::Corrupt(format!("the column {column} cannot be read"))
            }
            Error::FromSqlConversionFailure(index, ..)
            | Error::IntegralValueOutOfRange(index, _)
            | Error::InvalidColumnIndex(index) => {
                Self::Corrupt(format!("the column {index} cannot be read"))
            }
            _ => Self::Database {
                problem: "the database driver failed".to_owned(),
                transient: false,
            },
        }
    }
}

fn is_broken_connection(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind;
    matches!(
        kind,
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::NotConnected
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof
            | ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
    )
}

/// A failure of SQLite by its extended result code.
fn sqlite(code: i32, message: &str) -> Fault {
    // SQLite's messages name tables, columns and constraints, never values.
    Fault::Database {
        problem: format!("{message} (SQLite code {code})"),
        transient: TRANSIENT_CODES.contains(&(code & 0xff)),
    }
}

fn postgres(error: &PgDatabaseError) -> Fault {
    let code = error.code();
    let names_only = NAMES_ONLY.iter().any(|class| code.starts_with(class));
    // The primary message only: detail, hint and context may hold a row's values.
    let problem = if names_only {
        let message: String = error.message().chars().take(200).collect();
        format!("{message} (PostgreSQL code {code})")
    } else {
        format!("PostgreSQL refused it with code {code}")
    };
    if COLLISIONS.contains(&code) {
        return Fault::Collision { problem };
    }
    let transient = TRANSIENT_STATES.iter().any(|state| code.starts_with(state));
    Fault::Database { problem, transient }
}

#[cfg(test)]
mod tests {
    use sqlx::Connection as _;

    use super::*;

    #[test]
    fn only_a_file_that_is_busy_or_locked_is_worth_another_try() {
        let cases = [
            (5, true),
            (6, true),
            // SQLITE_BUSY_RECOVERY, SQLITE_BUSY_SNAPSHOT, SQLITE_LOCKED_SHAREDCACHE.
            (261, true),
            (517, true),
            (262, true),
            (1, false),
            (11, false),
            (13, false),
            // SQLITE_CONSTRAINT_UNIQUE, SQLITE_READONLY_DBMOVED.
            (2067, false),
            (1032, false),
            (250, false),
        ];
        for (code, transient) in cases {
            let fault = sqlite(code, "said");
            assert_eq!(fault.is_transient(), transient, "{code}");
            assert_eq!(fault.problem(), format!("said (SQLite code {code})"));
        }
    }

    #[tokio::test]
    async fn what_a_file_says_through_either_driver_is_told_with_its_code() {
        let sql = "SELECT 1 FROM nowhere";
        let expected = "no such table: nowhere (SQLite code 1)";
        let mut file = sqlx::SqliteConnection::connect("sqlite::memory:")
            .await
            .expect("memory");
        let error = sqlx::raw_sql(sql).execute(&mut file).await;
        let fault = Fault::from(error.expect_err("there is no table"));
        assert!(!fault.is_transient());
        assert_eq!(fault.problem(), expected);
        let file = rusqlite::Connection::open_in_memory().expect("memory");
        let fault = Fault::from(file.execute_batch(sql).expect_err("there is no table"));
        assert!(!fault.is_transient());
        assert!(fault.problem().contains("(SQLite code 1)"));
    }
}
