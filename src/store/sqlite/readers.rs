//! The connections that read: a few at once, each in a thread where it may wait for the disk.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::store::fault::Fault;

use super::check::Damage;
use super::db::Db;
use super::read;

/// How many reads run at once.
const READERS_MAX: usize = 4;

/// How many connections are kept for further reads. One that was needed for a moment would hold its memory for as long as the process
/// lives.
const IDLE_MAX: usize = 2;

/// What each keeps of the file: what lies above the rows. The rows themselves are rarely read twice.
const CACHE_KIB: u32 = 256;

/// A connection that reads.
#[derive(Debug)]
struct Reader {
    db: Db,
    /// How many resources there were, and in which version of the database.
    resources: Cell<Option<(i64, u64)>>,
}

impl Reader {
    fn open(path: &Path) -> Result<Self, Fault> {
        let db = Db::open(path)?;
        db.only_read()?;
        db.keep_in_memory(CACHE_KIB)?;
        Ok(Self {
            db,
            resources: Cell::new(None),
        })
    }

    /// Counts the resources, unless nothing was written since they were counted last.
    fn resources(&self) -> Result<u64, Fault> {
        // Asked first: what is written in between makes the next count a new one.
        let version = self.db.value("PRAGMA data_version", [])?;
        if let Some((counted, resources)) = self.resources.get()
            && counted == version
        {
            return Ok(resources);
        }
        let resources = read::resources(&self.db)?;
        self.resources.set(Some((version, resources)));
        Ok(resources)
    }
}

/// The way to the reading connections.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    pub(super) damage: Damage,
    idle: Arc<Mutex<Vec<Reader>>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(path: PathBuf, damage: Damage) -> Self {
        Self {
            path,
            damage,
            idle: Arc::default(),
            permits: Arc::new(Semaphore::new(READERS_MAX)),
        }
    }

    /// Has something read; it is read to its end even when the caller stops waiting.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Db) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        self.with(|reader| read(&reader.db)).await
    }

    /// How many resources there are; where nobody writes they are counted once.
    pub(super) async fn resources(&self) -> Result<u64, Fault> {
        self.with(Reader::resources).await
    }

    async fn with<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        self.damage.none()?;
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_| closed())?;
        let (path, idle) = (self.path.clone(), Arc::clone(&self.idle));
        let reading = spawn_blocking(move || {
            let known = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let reader = match known {
                Some(reader) => reader,
                None => Reader::open(&path)?,
            };
            let outcome = read(&reader);
            let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
            let spare = match idle.len() < IDLE_MAX {
                true => {
                    idle.push(reader);
                    None
                }
                false => Some(reader),
            };
            drop(idle);
            if let Some(spare) = spare {
                spare.db.close();
            }
            drop(permit);
            outcome
        });
        match reading.await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(closed()),
        }
    }

    /// Waits for what is being read, and closes the connections. Whatever is asked for afterwards fails.
    pub(super) async fn close(&self) {
        let all = u32::try_from(READERS_MAX).unwrap_or(u32::MAX);
        // They are acquired once only: afterwards there are none.
        let waited = self.permits.acquire_many(all).await;
        self.permits.close();
        drop(waited);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.drain(..).for_each(|reader| reader.db.close());
    }
}

fn closed() -> Fault {
    Fault::Database {
        problem: "the state is closed".to_owned(),
        transient: false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn as_many_read_at_once_as_may_and_few_connections_are_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state.db");
        let new = rusqlite::Connection::open(&path).expect("opened");
        // As whoever writes has it by then: of those who set it at once one may find the file locked.
        let make = "PRAGMA journal_mode = WAL; CREATE TABLE kept (id)";
        new.execute_batch(make).expect("made");
        let readers = Readers::new(path, Damage::default());
        for _ in 0..2 {
            // Each waits for all others: they do run at once.
            let all = Arc::new(Barrier::new(READERS_MAX));
            let read = || {
                let all = Arc::clone(&all);
                readers.read(move |_| Ok(all.wait()))
            };
            let (a, b, c, d) = tokio::join!(read(), read(), read(), read());
            assert!([a, b, c, d].iter().all(Result::is_ok));
            assert_eq!(readers.idle.lock().expect("no panic").len(), IDLE_MAX);
        }
        readers.close().await;
        assert!(readers.read(|_| Ok(())).await.is_err());
    }

    #[tokio::test]
    async fn resources_are_counted_again_only_after_something_was_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state.db");
        let elsewhere = rusqlite::Connection::open(&path).expect("opened");
        let run = |sql: &str| elsewhere.execute_batch(sql).expect("it runs");
        run("CREATE TABLE resource (id); INSERT INTO resource VALUES (1), (2)");
        let readers = Readers::new(path, Damage::default());
        assert_eq!(readers.resources().await.expect("counted"), 2);
        let known = |change: fn(u64) -> u64| {
            let idle = readers.idle.lock().expect("no panic");
            let counted = &idle[0].resources;
            counted.set(counted.get().map(|(version, n)| (version, change(n))));
        };
        known(|resources| resources + 10);
        assert_eq!(readers.resources().await.expect("known"), 12);
        run("INSERT INTO resource VALUES (3)");
        assert_eq!(readers.resources().await.expect("counted"), 3);
        run("DELETE FROM resource");
        assert_eq!(readers.resources().await.expect("counted"), 0);
    }
}
