//! The connection that writes: its transactions, and the records that it left in the state and need not read again.
//!
//! An entry is enqueued, claimed and closed in three transactions, and each begins with the record that the one before wrote.
//! What is kept here is believed only while nobody else has written the database: SQLite counts that in `PRAGMA data_version`.

use std::collections::HashMap;

use rusqlite::params;

use crate::model::{Record, ResourceKey};
use crate::store::fault::Fault;
use crate::store::steps::Change;

use super::db::Db;
use super::{read, save};

/// The most records that are kept: what is in flight and about to be, not a backlog.
const RECORDS_MAX: usize = 512;

/// The rows of one SQLite transaction, and what is remembered of those before it.
#[derive(Debug)]
pub(super) struct SqliteRows {
    db: Db,
    /// As they are in the database; every one has an open entry.
    records: HashMap<ResourceKey, Record>,
    /// The database's `data_version` when they were believed last.
    version: Option<i64>,
}

impl SqliteRows {
    pub(super) fn new(db: Db) -> Self {
        Self {
            db,
            records: HashMap::new(),
            version: None,
        }
    }

    /// The connection, for whatever writes neither resources nor open entries.
    pub(super) const fn db(&self) -> &Db {
        &self.db
    }

    /// Begins the transaction; what another connection may have changed since the last one is read again.
    pub(super) fn begin(&mut self) -> Result<(), Fault> {
        self.db.run("BEGIN IMMEDIATE", params![])?;
        let version = self.db.value("PRAGMA data_version", params![])?;
        if self.version != Some(version) {
            self.records.clear();
            self.version = Some(version);
        }
        Ok(())
    }

    pub(super) fn commit(&self) -> Result<(), Fault> {
        self.db.run("COMMIT", params![]).map(drop)
    }

    /// Undoes the transaction; SQLite may have done so already.
    pub(super) fn roll_back(&mut self) {
        self.records.clear();
        let _ = self.db.run("ROLLBACK", params![]);
    }

    /// Begins a part of the transaction that can be undone by itself.
    pub(super) fn begin_part(&self) -> Result<(), Fault> {
        self.db.run("SAVEPOINT job", params![]).map(drop)
    }

    /// Ends the part, undoing it unless it is `done`. Fails when SQLite undid the whole transaction.
    pub(super) fn end_part(&mut self, done: bool) -> Result<(), Fault> {
        if !done {
            self.records.clear();
            self.db.run("ROLLBACK TO job", params![])?;
        }
        self.db.run("RELEASE job", params![]).map(drop)
    }

    pub(super) fn close(self) {
        self.db.close();
    }

    /// The records of these resources, in order.
    pub(super) fn find(&self, keys: &[ResourceKey]) -> Result<Vec<Record>, Fault> {
        let unknown: Vec<ResourceKey> = keys
            .iter()
            .filter(|key| !self.records.contains_key(*key))
            .cloned()
            .collect();
        if cfg!(debug_assertions) && unknown.len() < keys.len() {
            self.assert_true(keys)?;
        }
        let mut read = read::records(&self.db, &unknown)?.into_iter();
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let known = self.records.get(key).cloned();
            // Each key that is unknown was read, in the same order.
            found.extend(known.or_else(|| read.next()));
        }
        Ok(found)
    }

    /// Where tests run: what is remembered must be what the database says.
    fn assert_true(&self, keys: &[ResourceKey]) -> Result<(), Fault> {
        let stored = read::records(&self.db, keys)?;
        for (key, stored) in keys.iter().zip(&stored) {
            let remembered = self.records.get(key);
            debug_assert!(
                remembered.is_none_or(|record| record == stored),
                "the state was changed past its session: {remembered:?} is {stored:?}"
            );
        }
        Ok(())
    }

    /// Writes what changed of the records, and remembers those that are about to be read again.
    pub(super) fn write(&mut self, changes: &mut [Change<'_>]) -> Result<(), Fault> {
        // What is written in part is not what is remembered.
        for change in &*changes {
            self.records.remove(&change.before.key);
        }
        save::save_all(&self.db, changes)?;
        for change in &*changes {
            self.remember(change.after);
        }
        Ok(())
    }

    /// Remembers nothing: a statement is about to change records that it does not name.
    pub(super) fn forget_all(&mut self) {
        self.records.clear();
    }

    fn remember(&mut self, record: &Record) {
        let Some(entry) = &record.entry else { return };
        if self.records.len() >= RECORDS_MAX {
            // One that waits may wait for long; one in flight is about to end.
            let some = self.records.keys().next().cloned();
            let Some(some) = some.filter(|_| entry.lease.is_some()) else {
                return;
            };
            self.records.remove(&some);
        }
        self.records.insert(record.key.clone(), record.clone());
    }
}
