//! The state in one SQLite file: WAL, fully synchronous, one writing task, a few reading connections.
//!
//! Everything that changes the state goes through the writing task, which commits what has arrived together. The file and its
//! companions are readable by their owner alone, and one daemon at a time works on them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Sqlite, SqliteConnection};

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
use file::{DaemonLock, cannot_open};
use writer::Writer;

mod acts;
mod check;
mod console;
mod due;
mod file;
mod glance;
mod guard;
mod many;
mod packed;
mod read;
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
/// How many reads run at once.
const READERS_MAX: u32 = 4;

/// A state in a SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    key: FingerprintKey,
    writer: Writer,
    readers: SqlitePool,
    damage: Damage,
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
        let options = options(path);
        let mut connection = options
            .clone()
            .pragma("cache_size", format!("-{CACHE_KIB}"))
            .connect()
            .await
            .map_err(|error| refused(error.into()))?;
        refuse_old_sqlite(path, &mut connection).await?;
        refuse_foreign(path, &mut connection).await?;
        let found = schema(path, &mut connection).await?;
        let damage = Damage::default();
        if is_daemon {
            // Nothing is rewritten in a file that may be damaged.
            let patience = (found == migrate::newest(SQLITE)).then_some(check::PATIENCE);
            let check = check::check(path.to_owned(), options.clone());
            check::wait_for(check, patience, damage.clone()).await?;
        }
        migrate(path, &mut connection, found, access).await?;
        let key = fingerprint_key(&mut connection).await.map_err(refused)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .min_connections(0)
            // A file does not hang up.
            .test_before_acquire(false)
            .connect_lazy_with(options.pragma("query_only", "ON"));
        Ok(Self {
            path: path.to_owned(),
            key,
            writer: Writer::start(connection, damage.clone(), lock),
            damage,
            readers,
        })
    }

    /// Waits until everything that was asked for is committed, and gives the state back.
    ///
    /// Whatever is asked for afterwards fails.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn reader(&self) -> Result<PoolConnection<Sqlite>, Fault> {
        self.damage.none()?;
        Ok(self.readers.acquire().await?)
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        // Created beforehand, with the mode that it is to have.
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        // What a statement may have to undo is kept in memory, as are sorted rows: no file but the state's own holds anything of it.
        .pragma("temp_store", "MEMORY")
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES.to_string())
        .disable_statement_logging()
}

async fn refuse_old_sqlite(
    path: &Path,
    connection: &mut SqliteConnection,
) -> Result<(), StoreError> {
    let version: String = sqlx::query_scalar("SELECT sqlite_version()")
        .fetch_one(connection)
        .await
        .map_err(|error| cannot_open(path, &Fault::from(error).problem()))?;
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
async fn refuse_foreign(path: &Path, connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let refused = |error: sqlx::Error| cannot_open(path, &Fault::from(error).problem());
    let application_id: i64 = sqlx::query_scalar("PRAGMA application_id")
        .fetch_one(&mut *connection)
        .await
        .map_err(refused)?;
    if application_id == APPLICATION_ID {
        return Ok(());
    }
    // A crash before the first migration was committed leaves nothing but the migrations' own table.
    let tables: i64 = sqlx::query_scalar(
        "SELECT count(*)
         FROM sqlite_schema
         WHERE type = 'table'
           AND name <> '_sqlx_migrations'
           AND name NOT LIKE 'sqlite!_%' ESCAPE '!'",
    )
    .fetch_one(connection)
    .await
    .map_err(refused)?;
    if tables == 0 && application_id == 0 {
        Ok(())
    } else {
        Err(cannot_open(path, "the file is another program's database"))
    }
}

/// The schema that the file has; 0: none yet. Fails when it is newer than what is known.
async fn schema(path: &Path, connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    let refused = |error: sqlx::Error| cannot_open(path, &Fault::from(error).problem());
    let known = migrate::newest(SQLITE);
    let has_schema: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1
                        FROM sqlite_schema
                        WHERE type = 'table'
                          AND name = '_sqlx_migrations')",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(refused)?;
    let mut found = 0;
    if has_schema {
        found = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations")
            .fetch_one(connection)
            .await
            .map_err(refused)?;
    }
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    Ok(found)
}

/// Brings the schema up to date. A command beside a daemon does so only if there is none.
async fn migrate(
    path: &Path,
    connection: &mut SqliteConnection,
    found: i64,
    access: Access,
) -> Result<(), StoreError> {
    let refused = |error: sqlx::Error| cannot_open(path, &Fault::from(error).problem());
    let _lock = if found < migrate::newest(SQLITE) && access == Access::Beside {
        Some(DaemonLock::take(path).await?)
    } else {
        None
    };
    migrate::migrator(SQLITE)
        .run_direct(None, connection, false)
        .await
        .map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(error)
            | sqlx::migrate::MigrateError::ExecuteMigration(error, _) => refused(error),
            other => cannot_open(path, &other.to_string()),
        })
}

/// The key of this state's fingerprints; drawn when there is none yet.
async fn fingerprint_key(connection: &mut SqliteConnection) -> Result<FingerprintKey, Fault> {
    let mut drawn = [0; 32];
    getrandom::fill(&mut drawn).map_err(|_| Fault::Database {
        problem: "the operating system gives no randomness".to_owned(),
        transient: false,
    })?;
    sqlx::query(
        "INSERT OR IGNORE INTO meta (name, value)
         VALUES ('fingerprint_key', ?1)",
    )
    .bind(&drawn[..])
    .execute(&mut *connection)
    .await?;
    let kept: Vec<u8> = sqlx::query_scalar(
        "SELECT value
         FROM meta
         WHERE name = 'fingerprint_key'",
    )
    .fetch_one(connection)
    .await?;
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
        let read = async { read::glance(&mut *self.reader().await?, keys).await };
        read.await
            .map_err(|fault| fault.during("look at resources"))
    }

    async fn glance_between(
        &self,
        first: (&str, &str),
        last: (&str, &str),
        limit: u32,
    ) -> Result<Option<Glances>, StoreError> {
        let read = async { glance::between(&mut *self.reader().await?, first, last, limit).await };
        read.await
            .map_err(|fault| fault.during("look at resources"))
    }

    async fn records(&self, keys: &[ResourceKey]) -> Result<Vec<Record>, StoreError> {
        let read = async { read::records(&mut *self.reader().await?, keys).await };
        read.await.map_err(|fault| fault.during("read resources"))
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
        let read = async { read::progress(&mut *self.reader().await?).await };
        read.await
            .map_err(|fault| fault.during("read where passes stand"))
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
        let read = async { read::next_due(&mut *self.reader().await?).await };
        read.await
            .map_err(|fault| fault.during("find the next due entry"))
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
                    acts::note_pause(rows, &pause).await
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
        let read = async { read::probes_due(&mut *self.reader().await?, now, limit).await };
        read.await
            .map_err(|fault| fault.during("find installations to probe"))
    }

    async fn keys_after(
        &self,
        after: Option<&ResourceKey>,
        limit: u32,
    ) -> Result<Vec<ResourceKey>, StoreError> {
        let read = async { read::keys_after(&mut *self.reader().await?, after, limit).await };
        read.await.map_err(|fault| fault.during("list resources"))
    }

    async fn counts(&self, now: Timestamp) -> Result<Counts, StoreError> {
        let read = async { read::counts(&mut *self.reader().await?, now).await };
        read.await.map_err(|fault| fault.during("count"))
    }

    async fn is_blocked(
        &self,
        installation_id: &InstallationId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let read =
            async { read::is_blocked(&mut *self.reader().await?, installation_id, now).await };
        read.await
            .map_err(|fault| fault.during("look at an installation"))
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
                        acts::note_fixes(rows, &marked, &by, now).await?;
                    }
                    Ok(marked.len() as u64)
                })
            })
            .await
    }

    async fn rechecks(&self, limit: u32) -> Result<Vec<ResourceKey>, StoreError> {
        let read = async { read::rechecks(&mut *self.reader().await?, limit).await };
        read.await
            .map_err(|fault| fault.during("find rows to read again"))
    }

    async fn hold(&self, id: i64) -> Result<Option<HoldReport>, StoreError> {
        let read = async { guard::report(&mut *self.reader().await?, id).await };
        read.await.map_err(|fault| fault.during("read a hold"))
    }

    async fn open_holds(&self) -> Result<Vec<Hold>, StoreError> {
        let read = async { guard::open_holds(&mut *self.reader().await?).await };
        read.await.map_err(|fault| fault.during("list holds"))
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
                Box::pin(async move { rows.prune(cutoffs, limit).await })
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
        store.damage.found("page 7 is not what it was".to_owned());
        let read = store.progress().await.map(|_| ());
        let written = store.release_watch(LeaseToken(1)).await.map(|_| ());
        for refused in [read, written] {
            let problem = refused.expect_err("it is damaged").to_string();
            assert!(problem.contains("page 7"), "{problem}");
        }
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
