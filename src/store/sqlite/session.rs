//! The connection that writes: its transactions, and the records that it left in the state and need not read again.
//!
//! An entry is enqueued, claimed and closed in three transactions, and each begins with the record that the one before wrote.
//! What is kept here is believed only while nobody else has written the database: SQLite counts that in `PRAGMA data_version`.

use std::collections::HashMap;

use sqlx::{Connection as _, SqliteConnection};

use crate::model::{Record, ResourceKey};
use crate::store::fault::Fault;
use crate::store::steps::Change;

use super::{read, save};

/// The most records that are kept: what is in flight and about to be, not a backlog.
const RECORDS_MAX: usize = 512;

/// The rows of one SQLite transaction, and what is remembered of those before it.
#[derive(Debug)]
pub(super) struct SqliteRows {
    connection: SqliteConnection,
    /// As they are in the database; every one has an open entry.
    records: HashMap<ResourceKey, Record>,
    /// The database's `data_version` when they were believed last.
    version: Option<i64>,
}

impl SqliteRows {
    pub(super) fn new(connection: SqliteConnection) -> Self {
        Self {
            connection,
            records: HashMap::new(),
            version: None,
        }
    }

    /// The connection, for whatever writes neither resources nor open entries.
    pub(super) const fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }

    /// Begins the transaction; what another connection may have changed since the last one is read again.
    pub(super) async fn begin(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query("BEGIN IMMEDIATE")
            .execute(&mut self.connection)
            .await?;
        let version: i64 = sqlx::query_scalar("PRAGMA data_version")
            .fetch_one(&mut self.connection)
            .await?;
        if self.version != Some(version) {
            self.records.clear();
            self.version = Some(version);
        }
        Ok(())
    }

    pub(super) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        Ok(())
    }

    /// Undoes the transaction; SQLite may have done so already.
    pub(super) async fn roll_back(&mut self) {
        self.records.clear();
        let _ = sqlx::query("ROLLBACK").execute(&mut self.connection).await;
    }

    /// Begins a part of the transaction that can be undone by itself.
    pub(super) async fn begin_part(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query("SAVEPOINT job")
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Ends the part, undoing it unless it is `done`. Fails when SQLite undid the whole transaction.
    pub(super) async fn end_part(&mut self, done: bool) -> Result<(), sqlx::Error> {
        if !done {
            self.records.clear();
            sqlx::query("ROLLBACK TO job")
                .execute(&mut self.connection)
                .await?;
        }
        sqlx::query("RELEASE job")
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    pub(super) async fn close(self) {
        // Whatever the journal still holds is found again by the next one who opens the state.
        let _ = self.connection.close().await;
    }

    /// The records of these resources, in order.
    pub(super) async fn find(&mut self, keys: &[ResourceKey]) -> Result<Vec<Record>, Fault> {
        let unknown: Vec<ResourceKey> = keys
            .iter()
            .filter(|key| !self.records.contains_key(*key))
            .cloned()
            .collect();
        if cfg!(debug_assertions) && unknown.len() < keys.len() {
            self.assert_true(keys).await?;
        }
        let mut read = read::records(&mut self.connection, &unknown)
            .await?
            .into_iter();
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let known = self.records.get(key).cloned();
            // Each key that is unknown was read, in the same order.
            found.extend(known.or_else(|| read.next()));
        }
        Ok(found)
    }

    /// Where tests run: what is remembered must be what the database says.
    async fn assert_true(&mut self, keys: &[ResourceKey]) -> Result<(), Fault> {
        let stored = read::records(&mut self.connection, keys).await?;
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
    pub(super) async fn write(&mut self, changes: &mut [Change<'_>]) -> Result<(), Fault> {
        // What is written in part is not what is remembered.
        for change in &*changes {
            self.records.remove(&change.before.key);
        }
        save::save_all(&mut self.connection, changes).await?;
        for change in &*changes {
            self.remember(change.after);
        }
        Ok(())
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
