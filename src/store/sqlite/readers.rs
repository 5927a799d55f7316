//! The connections that read: a few at once, each in a thread where it may wait for the disk.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::store::fault::Fault;

use super::check::Damage;
use super::db::Db;

/// How many reads run at once.
const READERS_MAX: usize = 4;

/// How many connections are kept for further reads. One that was needed for a moment would hold its memory for as long as the process
/// lives.
const IDLE_MAX: usize = 2;

/// What each keeps of the file: what lies above the rows. The rows themselves are rarely read twice.
const CACHE_KIB: u32 = 1024;

/// The way to the reading connections.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    pub(super) damage: Damage,
    idle: Arc<Mutex<Vec<Db>>>,
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
        self.damage.none()?;
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_| closed())?;
        let (path, idle) = (self.path.clone(), Arc::clone(&self.idle));
        let reading = spawn_blocking(move || {
            let known = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let db = match known {
                Some(db) => db,
                None => {
                    let db = Db::open(&path)?;
                    db.only_read()?;
                    db.keep_in_memory(CACHE_KIB)?;
                    db
                }
            };
            let outcome = read(&db);
            let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
            let spare = match idle.len() < IDLE_MAX {
                true => {
                    idle.push(db);
                    None
                }
                false => Some(db),
            };
            drop(idle);
            if let Some(db) = spare {
                db.close();
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
        idle.drain(..).for_each(Db::close);
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
        new.execute_batch("CREATE TABLE kept (id)").expect("made");
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
}
