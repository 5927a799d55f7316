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
                    db
                }
            };
            let outcome = read(&db);
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(db);
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
