//! What has to be written of each change before and after its request, by SQLite's own interface: nothing is read, decided or sent.
//!
//! A process of its own, so that its processor time can be told.

pub(crate) mod postgres;

use std::time::Instant;

use rusqlite::{Connection, params};

use crate::bare::{self, Report};
use crate::process::Usage;
use crate::provider;

/// How many changes go into one transaction: as many as are in flight.
const TOGETHER: usize = 64;
/// What a resource holds, about as long as that of the other rows.
const HELD: &str = r#"{"values":{"billingPlan":{"cost":"$20","description":"Pro plan","id":"pro","name":"Pro","type":"subscription"},"metadata":{"region":"fra1","version":"16"},"name":"database of somebody","status":"ready"},"secrets":{"DATABASE_URL":"00112233445566778899aabbccddeeff"}}"#;
/// What is announced of a request.
const ANNOUNCED: &str = r#"{"patch":{"values":{"metadata":{"region":"fra1","version":"17"},"name":"database of somebody else"}},"digests":{"metadata":"00112233445566778899aabbccddeeff","name":"00112233445566778899aabbccddeeff"},"generation":0,"doubt_before":{},"claimed_at":1800000000000}"#;
const DOUBT: &str = r#"{"fields":{"metadata":{},"name":{}}}"#;
const HASH: [u8; 16] = [7; 16];
const AT: i64 = 1_800_000_000_000;

/// The number of an entry, and the resource that changed.
type Change = (i64, String, String);

/// The tables that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tables {
    /// A list of what is under way, and what was acknowledged: no history, no index but the keys, no constraint.
    Least,
    /// The state's own.
    State,
}

impl Tables {
    pub(crate) fn of(name: &str) -> Self {
        match name {
            "least" => Self::Least,
            "state" => Self::State,
            other => unreachable!("{other} names no tables"),
        }
    }

    const fn schema(self) -> &'static str {
        match self {
            Self::Least => {
                "CREATE TABLE resource (
                     installation_id TEXT NOT NULL, resource_id TEXT NOT NULL, acknowledged TEXT NOT NULL,
                     PRIMARY KEY (installation_id, resource_id)
                 ) STRICT, WITHOUT ROWID;
                 CREATE TABLE entry (
                     id INTEGER PRIMARY KEY, installation_id TEXT NOT NULL, resource_id TEXT NOT NULL, desired TEXT NOT NULL,
                     in_flight TEXT NOT NULL
                 ) STRICT;"
            }
            Self::State => include_str!("../migrations/sqlite/0001_state.sql"),
        }
    }

    const fn put_resource(self) -> &'static str {
        match self {
            Self::Least => "INSERT INTO resource VALUES (?1, ?2, ?3)",
            Self::State => {
                "INSERT INTO resource (installation_id, resource_id, acknowledged, doubt, dismissed, row_hash, acknowledged_at)
                 VALUES (?1, ?2, ?3, '{}', '{}', zeroblob(16), 0)"
            }
        }
    }

    /// Writes that a change is about to be sent: found, enqueued, claimed and in doubt.
    fn announce(
        self,
        db: &Connection,
        (id, installation, resource): &Change,
    ) -> rusqlite::Result<()> {
        match self {
            Self::Least => {
                db.prepare_cached("INSERT INTO entry VALUES (?1, ?2, ?3, ?4, ?5)")?
                    .execute(params![id, installation, resource, HELD, ANNOUNCED])?;
            }
            Self::State => {
                db.prepare_cached(
                        "UPDATE resource SET row_hash = ?3, doubt = ?4 WHERE installation_id = ?1 AND resource_id = ?2",
                    )?
                    .execute(params![installation, resource, HASH, DOUBT])?;
                db.prepare_cached(
                        "INSERT INTO entry (id, installation_id, resource_id, state, desired, generation, origin, mode, reason,
                                            created_at, due_at, attempts, failures, conflicts, rejected,
                                            lease_owner, lease_token, lease_expires_at, in_flight)
                         VALUES (?1, ?2, ?3, 'waiting', ?4, 0, 'poll', 'whole', 'due', ?6, ?6, 0, 0, 0, '{}', 'owner', ?1, ?6, ?5)",
                    )?
                    .execute(params![id, installation, resource, HELD, ANNOUNCED, AT])?;
            }
        }
        Ok(())
    }

    /// Writes that a change was acknowledged.
    fn settle(
        self,
        db: &Connection,
        (id, installation, resource): &Change,
    ) -> rusqlite::Result<()> {
        match self {
            Self::Least => {
                db.prepare_cached("DELETE FROM entry WHERE id = ?1")?
                    .execute(params![id])?;
                db.prepare_cached(
                        "UPDATE resource SET acknowledged = ?3 WHERE installation_id = ?1 AND resource_id = ?2",
                    )?
                    .execute(params![installation, resource, HELD])?;
            }
            Self::State => {
                db.prepare_cached(
                        "UPDATE entry
                         SET state = 'delivered', attempts = 1, lease_owner = NULL, lease_token = NULL, lease_expires_at = NULL,
                             in_flight = NULL, closed_at = ?2
                         WHERE id = ?1",
                    )?
                    .execute(params![id, AT])?;
                db.prepare_cached(
                    "UPDATE resource SET acknowledged = ?3, doubt = '{}', acknowledged_at = ?4
                         WHERE installation_id = ?1 AND resource_id = ?2",
                )?
                .execute(params![installation, resource, HELD, AT])?;
                db.prepare_cached(
                        r#"INSERT INTO attempt (entry_id, number, installation_id, resource_id, started_at, ended_at, method, fields,
                                                secret_names, outcome, status)
                           VALUES (?1, 1, ?2, ?3, ?4, ?4, 'PATCH', '["metadata","name"]', '[]', 'acknowledged', 200)"#,
                    )?
                    .execute(params![id, installation, resource, AT])?;
            }
        }
        Ok(())
    }
}

/// The change with this number in the order of keys: those of one installation lie side by side, which costs least.
fn change(n: u64, changes: u64) -> Change {
    let each = changes.div_ceil(provider::INSTALLATIONS);
    let number = (n % each) * provider::INSTALLATIONS + n / each;
    let (installation, resource) = provider::ids(number, provider::INSTALLATIONS);
    (
        i64::try_from(n + 1).expect("few changes"),
        installation,
        resource,
    )
}

/// Writes `changes` changes from beginning to end, each in two transactions that are flushed.
pub(crate) fn write(path: &str, tables: Tables, changes: u64) -> Report {
    let mut db = Connection::open(path).expect("a file");
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 4096;
         PRAGMA cache_size = -6144;",
    )
    .expect("settings of SQLite");
    db.execute_batch(tables.schema()).expect("tables");
    let changes: Vec<_> = (0..changes).map(|n| change(n, changes)).collect();
    let filling = db.transaction().expect("a transaction");
    for (_, installation, resource) in &changes {
        filling
            .prepare_cached(tables.put_resource())
            .and_then(|mut put| put.execute(params![installation, resource, HELD]))
            .expect("a row");
    }
    filling.commit().expect("room on the disk");
    let before = Usage::of(std::process::id()).cpu;
    let started = Instant::now();
    for together in changes.chunks(TOGETHER) {
        for step in [Tables::announce, Tables::settle] {
            let transaction = db.transaction().expect("a transaction");
            for change in together {
                step(tables, &transaction, change).expect("a row");
            }
            transaction.commit().expect("room on the disk");
        }
    }
    bare::report_since(before, changes.len() as u64, started.elapsed())
}
