//! The state in one SQLite file: WAL, fully synchronous, one writing thread, a few reading connections.
//!
//! Everything that changes the state goes through the writing thread, which commits what has arrived together. The file and its
//! companions are readable by their owner alone, and one daemon at a time works on them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::params;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use crate::model::{
    FingerprintKey, InstallationId, Lease, LeaseToken, Record, ResourceKey, Timestamp,
};
use crate::plan::Claimed;

use super::migrate::{self, SQLITE};
use super::steps;
use super::steps::watch::WatchRows as _;
use super::{
    Access, Advanced, Batch, ClaimRequest, Counts, Cutoffs, Drifted, Glance, Glances, Heartbeat,
    Hold, HoldReport, Pause, PauseKind, Person, Progress, Reconciled, Settlement, Store,
    StoreError,
};

use super::fault::Fault;
use check::Damage;
use db::Db;
use file::{DaemonLock, cannot_open};
use readers::Readers;
use writer::Writer;

mod acts;
mod check;
mod console;
mod db;
mod due;
mod file;
mod glance;
mod guard;
mod read;
mod readers;
mod rows;
mod save;
mod session;
mod upkeep;
mod watch;
mod writer;

/// Earlier versions can corrupt a database in WAL mode (sqlite.org/wal.html, "The WAL-reset bug").
const SQLITE_VERSION_MIN: (u32, u32, u32) = (3, 51, 3);
/// `PRAGMA application_id` of a state, set by its first migration.
const APPLICATION_ID: i64 = 0x7263_6e64;
/// How long a connection waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of the file the writing connection keeps in memory.
const CACHE_KIB: u32 = 6 * 1024;
/// How many pages the journal may hold before they are written back: claims and outcomes write the same pages again and again, and each
/// is written back once. 16 MiB beside the state, less where the disk is full before (see [`writer`]).
const CHECKPOINT_PAGES: u32 = 4096;

/// A state in a SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    key: FingerprintKey,
    writer: Writer,
    readers: Readers,
}

impl SqliteStore {
    /// Opens the state at `path`; as [`Access::Daemon`] creates it if it is not there.
    ///
    /// # Errors
    /// The file cannot be opened, is damaged, belongs to another program, was made by a newer version, or another daemon works
    /// on it.
    pub async fn open(path: &Path, access: Access) -> Result<Self, StoreError> {
        let is_daemon = access == Access::Daemon;
        file::prepare(path, is_daemon)?;
        let lock = if is_daemon {
            Some(DaemonLock::take(path).await?)
        } else {
            None
        };
        let refused = |fault: Fault| cannot_open(path, &fault.problem());
        let db = Db::look_at(path).map_err(refused)?;
        refuse_old_sqlite(path, &db)?;
        refuse_foreign(path, &db)?;
        db.settle().map_err(refused)?;
        db.keep_in_memory(CACHE_KIB).map_err(refused)?;
        let found = schema(path, &db)?;
        let damage = Damage::default();
        if is_daemon {
            // Nothing is rewritten in a file that may be damaged.
            let patience = (found == migrate::newest(SQLITE)).then_some(check::PATIENCE);
            let check = check::check(path.to_owned());
            check::wait_for(check, patience, damage.clone()).await?;
        }
        migrate(path, found, access).await?;
        let key = fingerprint_key(&db).map_err(refused)?;
        let writer = Writer::start(db, damage.clone(), lock)
            .map_err(|error| cannot_open(path, &error.kind().to_string()))?;
        Ok(Self {
            path: path.to_owned(),
            key,
            writer,
            readers: Readers::new(path.to_owned(), damage),
        })
    }

    /// Waits until everything that was asked for is committed, and gives the state back.
    ///
    /// Whatever is asked for afterwards fails.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        read: impl FnOnce(&Db) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let outcome = self.readers.read(read).await;
        outcome.map_err(|fault| fault.during(operation))
    }
}

fn refuse_old_sqlite(path: &Path, db: &Db) -> Result<(), StoreError> {
    let version: String = db
        .value("SELECT sqlite_version()", params![])
        .map_err(|fault| cannot_open(path, &fault.problem()))?;
    if is_sound(&version) {
        return Ok(());
    }
    let (major, minor, patch) = SQLITE_VERSION_MIN;
    let problem =
        format!("SQLite {version} can corrupt it; {major}.{minor}.{patch} or newer is needed");
    Err(cannot_open(path, &problem))
}

fn is_sound(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    (part(), part(), part()) >= SQLITE_VERSION_MIN
}

/// Refuses a database that another program made, for instance the provider's own.
fn refuse_foreign(path: &Path, db: &Db) -> Result<(), StoreError> {
    let refused = |fault: Fault| cannot_open(path, &fault.problem());
    let application_id: i64 = db
        .value("PRAGMA application_id", params![])
        .map_err(refused)?;
    if application_id == APPLICATION_ID {
        return Ok(());
    }
    // A crash before the first migration was committed leaves nothing but the migrations' own table.
    let tables: i64 = db
        .value(
            "SELECT count(*)
             FROM sqlite_schema
             WHERE type = 'table'
               AND name <> '_sqlx_migrations'
               AND name NOT LIKE 'sqlite!_%' ESCAPE '!'",
            params![],
        )
        .map_err(refused)?;
    if tables == 0 && application_id == 0 {
        Ok(())
    } else {
        Err(cannot_open(path, "the file is another program's database"))
    }
}

/// The schema that the file has; 0: none yet. Fails when it is newer than what is known.
fn schema(path: &Path, db: &Db) -> Result<i64, StoreError> {
    let refused = |fault: Fault| cannot_open(path, &fault.problem());
    let known = migrate::newest(SQLITE);
    let has_schema: bool = db
        .value(
            "SELECT EXISTS (SELECT 1
                            FROM sqlite_schema
                            WHERE type = 'table'
                              AND name = '_sqlx_migrations')",
            params![],
        )
        .map_err(refused)?;
    let mut found = 0;
    if has_schema {
        let newest = "SELECT coalesce(max(version), 0) FROM _sqlx_migrations";
        found = db.value(newest, params![]).map_err(refused)?;
    }
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    Ok(found)
}

/// Brings the schema up to date. A command beside a daemon does so only if there is none.
async fn migrate(path: &Path, found: i64, access: Access) -> Result<(), StoreError> {
    let refused = |error: sqlx::Error| cannot_open(path, &Fault::from(error).problem());
    let _lock = if found < migrate::newest(SQLITE) && access == Access::Beside {
        Some(DaemonLock::take(path).await?)
    } else {
        None
    };
    let mut connection = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT)
        .disable_statement_logging()
        .connect()
        .await
        .map_err(refused)?;
    let migrated = migrate::migrator(SQLITE)
        .run_direct(None, &mut connection, false)
        .await;
    // Waited for: one that is dropped goes on for a moment in a thread of its own, and may be the last that has the file open.
    let closed = connection.close().await;
    migrated.map_err(|error| match error {
        sqlx::migrate::MigrateError::Execute(error)
        | sqlx::migrate::MigrateError::ExecuteMigration(error, _) => refused(error),
        other => cannot_open(path, &other.to_string()),
    })?;
    closed.map_err(refused)
}

/// The key of this state's fingerprints; drawn when there is none yet.
fn fingerprint_key(db: &Db) -> Result<FingerprintKey, Fault> {
    let mut drawn = [0; 32];
    getrandom::fill(&mut drawn).map_err(|_| Fault::Database {
        problem: "the operating system gives no randomness".to_owned(),
        transient: false,
    })?;
    db.run(
        "INSERT OR IGNORE INTO meta (name, value)
         VALUES ('fingerprint_key', ?1)",
        params![&drawn[..]],
    )?;
    let kept: Vec<u8> = db.value(
        "SELECT value
         FROM meta
         WHERE name = 'fingerprint_key'",
        params![],
    )?;
    let bytes = <[u8; 32]>::try_from(kept)
        .map_err(|_| Fault::Corrupt("the fingerprint key is not 32 bytes long".to_owned()))?;
    Ok(FingerprintKey::new(bytes))
}

#[async_trait]
impl Store for SqliteStore {
    async fn fingerprint_key(&self) -> Result<FingerprintKey, StoreError> {
        Ok(self.key.clone())
    }

    async fn glance(&self, keys: &[ResourceKey]) -> Result<Vec<Glance>, StoreError> {
        let keys = keys.to_vec();
        self.read("look at resources", move |db| read::glance(db, &keys))
            .await
    }

    async fn glance_between(
        &self,
        first: (&str, &str),
        last: (&str, &str),
        limit: u32,
    ) -> Result<Option<Glances>, StoreError> {
        let owned = |(one, other): (&str, &str)| (one.to_owned(), other.to_owned());
        let (first, last) = (owned(first), owned(last));
        self.read("look at resources", move |db| {
            glance::between(db, (&first.0, &first.1), (&last.0, &last.1), limit)
        })
        .await
    }

    async fn records(&self, keys: &[ResourceKey]) -> Result<Vec<Record>, StoreError> {
        let keys = keys.to_vec();
        self.read("read resources", move |db| read::records(db, &keys))
            .await
    }

    async fn reconcile(&self, batch: Batch) -> Result<Reconciled, StoreError> {
        self.writer
            .write("record what a pass found", move |rows| {
                Box::pin(async move { steps::reconcile(rows, &batch).await })
            })
            .await?
            .ok_or(StoreError::WatchLost)
    }

    async fn progress(&self) -> Result<Progress, StoreError> {
        self.read("read where passes stand", read::progress).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Claimed>, StoreError> {
        let request = request.clone();
        self.writer
            .write("claim entries", move |rows| {
                Box::pin(async move { steps::claim::claim(rows, &request).await })
            })
            .await
    }

    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        self.read("find the next due entry", read::next_due).await
    }

    async fn advance(&self, settlement: Settlement) -> Result<Option<Advanced>, StoreError> {
        let mut answers = self.advance_all(vec![settlement]).await?;
        Ok(answers.pop().flatten())
    }

    async fn advance_all(
        &self,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Option<Advanced>>, StoreError> {
        self.writer
            .write("record an outcome", move |rows| {
                Box::pin(async move { steps::advance(rows, &settlements).await })
            })
            .await
    }

    async fn recover(
        &self,
        now: Timestamp,
        late_apply: Duration,
        owner_gone: bool,
    ) -> Result<u64, StoreError> {
        self.writer
            .write("end leases", move |rows| {
                Box::pin(async move { steps::recover(rows, now, late_apply, owner_gone).await })
            })
            .await
    }

    async fn pause(&self, pause: &Pause) -> Result<(), StoreError> {
        let pause = pause.clone();
        self.writer
            .write("pause an installation", move |rows| {
                Box::pin(async move {
                    steps::pause(rows, &pause).await?;
                    acts::note_pause(rows, &pause)
                })
            })
            .await
    }

    async fn resume(
        &self,
        installation_id: &InstallationId,
        kind: PauseKind,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let installation_id = installation_id.clone();
        self.writer
            .write("resume an installation", move |rows| {
                Box::pin(async move { steps::resume(rows, &installation_id, kind, now).await })
            })
            .await
    }

    async fn probes_due(&self, now: Timestamp, limit: u32) -> Result<Vec<Pause>, StoreError> {
        self.read("find installations to probe", move |db| {
            read::probes_due(db, now, limit)
        })
        .await
    }

    async fn keys_after(
        &self,
        after: Option<&ResourceKey>,
        limit: u32,
    ) -> Result<Vec<ResourceKey>, StoreError> {
        let after = after.cloned();
        self.read("list resources", move |db| {
            read::keys_after(db, after.as_ref(), limit)
        })
        .await
    }

    async fn resources(&self) -> Result<u64, StoreError> {
        let counted = self.readers.resources().await;
        counted.map_err(|fault| fault.during("count resources"))
    }

    async fn unusable_alone(&self) -> Result<u64, StoreError> {
        self.read("count unusable rows", read::unusable_alone).await
    }

    async fn counts(&self, now: Timestamp) -> Result<Counts, StoreError> {
        self.read("count", move |db| read::counts(db, now)).await
    }

    async fn is_blocked(
        &self,
        installation_id: &InstallationId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let installation_id = installation_id.clone();
        self.read("look at an installation", move |db| {
            read::is_blocked(db, &installation_id, now)
        })
        .await
    }

    async fn mark_drifted(
        &self,
        drifted: &[Drifted],
        by: Option<&Person>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let (drifted, by) = (drifted.to_vec(), by.cloned());
        self.writer
            .write("put fields in doubt", move |rows| {
                Box::pin(async move {
                    let marked = steps::mark_drifted(rows, &drifted, now).await?;
                    if let Some(by) = by {
                        acts::note_fixes(rows, &marked, &by, now)?;
                    }
                    Ok(marked.len() as u64)
                })
            })
            .await
    }

    async fn rechecks(&self, limit: u32) -> Result<Vec<ResourceKey>, StoreError> {
        self.read("find rows to read again", move |db| {
            read::rechecks(db, limit)
        })
        .await
    }

    async fn hold(&self, id: i64) -> Result<Option<HoldReport>, StoreError> {
        self.read("read a hold", move |db| guard::report(db, id))
            .await
    }

    async fn open_holds(&self) -> Result<Vec<Hold>, StoreError> {
        self.read("list holds", guard::open_holds).await
    }

    async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError> {
        file::write_heartbeat(&self.path, heartbeat).map_err(|error| StoreError::Failed {
            operation: "leave a sign of life",
            problem: error.kind().to_string(),
            transient: false,
        })
    }

    async fn acquire_watch(&self, lease: &Lease, now: Timestamp) -> Result<bool, StoreError> {
        let lease = lease.clone();
        self.writer
            .write("take the watch", move |rows| {
                Box::pin(async move { steps::watch::acquire(rows, &lease, now).await })
            })
            .await
    }

    async fn renew_watch(
        &self,
        token: LeaseToken,
        expires_at: Timestamp,
    ) -> Result<bool, StoreError> {
        self.writer
            .write("prolong the watch", move |rows| {
                Box::pin(async move { rows.renew_watch(token, expires_at).await })
            })
            .await
    }

    async fn release_watch(&self, token: LeaseToken) -> Result<bool, StoreError> {
        self.writer
            .write("give the watch back", move |rows| {
                Box::pin(async move { rows.drop_watch(Some(token)).await })
            })
            .await
    }

    async fn watch(&self) -> Result<Option<Lease>, StoreError> {
        self.writer
            .write("see who has the watch", |rows| Box::pin(rows.watch()))
            .await
    }

    async fn prune(&self, cutoffs: Cutoffs, limit: u32) -> Result<u64, StoreError> {
        self.writer
            .write("delete what is past its retention", move |rows| {
                Box::pin(async move { rows.prune(cutoffs, limit) })
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_state_that_was_found_damaged_is_neither_read_nor_written() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let opened = SqliteStore::open(&directory.path().join("state.db"), Access::Daemon).await;
        let store = opened.expect("a new state");
        assert!(store.progress().await.is_ok());
        store
            .readers
            .damage
            .found("page 7 is not what it was".to_owned());
        let read = store.progress().await.map(|_| ());
        let written = store.release_watch(LeaseToken(1)).await.map(|_| ());
        for refused in [read, written] {
            let problem = refused.expect_err("it is damaged").to_string();
            assert!(problem.contains("page 7"), "{problem}");
        }
    }

    #[tokio::test]
    async fn a_state_that_was_dropped_is_at_rest() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let opened = SqliteStore::open(&directory.path().join("state.db"), Access::Daemon).await;
        let store = opened.expect("a new state");
        let written = store.release_watch(LeaseToken(1)).await;
        assert!(written.is_ok() && store.progress().await.is_ok());
        drop(store);
        // The journal has been written back, and nobody holds the lock.
        let files = std::fs::read_dir(directory.path()).expect("readable");
        let mut names: Vec<_> = files
            .map(|file| file.expect("an entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["state.db", "state.db.lock"]);
        assert!(!file::daemon_runs(&directory.path().join("state.db")).expect("readable"));
    }

    /// How a connection flushes, and how it keeps its journal.
    fn settings(db: &Db) -> Result<(i64, String), Fault> {
        let synchronous = db.value("PRAGMA synchronous", params![])?;
        let journal_mode = db.value("PRAGMA journal_mode", params![])?;
        Ok((synchronous, journal_mode))
    }

    #[tokio::test]
    async fn what_is_committed_is_on_the_disk_before_anybody_hears_of_it() {
        /// `PRAGMA synchronous` in numbers: the journal is flushed at each commit (1, NORMAL, does that only now and then).
        const FULL: i64 = 2;
        let directory = tempfile::TempDir::new().expect("a directory");
        let path = directory.path().join("state.db");
        // The first time the file is made, the second it is found.
        for _ in 0..2 {
            let opened = SqliteStore::open(&path, Access::Daemon).await;
            let store = opened.expect("a state");
            let asked = store
                .writer
                .write("ask", |rows| Box::pin(async move { settings(rows.db()) }))
                .await;
            let writes: (i64, String) = asked.expect("it answers");
            assert_eq!(writes, (FULL, "wal".to_owned()));
            store.close().await;
        }
    }

    #[test]
    fn connections_share_no_memory_and_no_lock_on_it() {
        // Set in .cargo/config.toml, which a build outside the repository does not see.
        let db = Db::in_memory().expect("a database");
        let is_used = |option: &str| -> bool {
            let question = "SELECT sqlite_compileoption_used(?1)";
            db.value(question, params![option]).expect("an answer")
        };
        assert!(is_used("DEFAULT_MEMSTATUS=0"));
        assert!(!is_used("ENABLE_MEMORY_MANAGEMENT"));
    }

    #[test]
    fn an_sqlite_that_can_corrupt_a_wal_database_is_refused() {
        for sound in ["3.51.3", "3.52.0", "4.0.0"] {
            assert!(is_sound(sound), "{sound}");
        }
        for unsound in ["3.51.2", "3.50.9", "2.99.99", "nonsense", ""] {
            assert!(!is_sound(unsound), "{unsound}");
        }
    }
}
