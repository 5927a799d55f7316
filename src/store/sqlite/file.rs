//! The files of a state: who may read them, who may work on them, and the daemon's sign of life.
//!
//! Beside the database `state.db` (with its `-wal` and `-shm`) there are `state.db.lock`, held by a running daemon, and
//! `state.db.daemon`, its last sign of life. All of them are readable by their owner alone.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::store::{Heartbeat, StoreError};

/// Owner only: fingerprints and resource metadata are nobody else's business.
const MODE: u32 = 0o600;
/// How often a taken lock is tried again: whoever only looks whether a daemon runs holds it for an instant.
const LOCK_TRIES: u32 = 5;
/// The wait between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// A sign of life longer than this is none.
const HEARTBEAT_BYTES_MAX: u64 = 64 * 1024;

/// The exclusive right to work on a state as its daemon; given back when dropped, also by a crash.
#[derive(Debug)]
pub(super) struct DaemonLock {
    _file: File,
}

impl DaemonLock {
    /// Takes the right.
    pub(super) async fn take(database: &Path) -> Result<Self, StoreError> {
        let path = beside(database, ".lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(MODE)
            .open(&path)
            .map_err(|error| {
                cannot_open(
                    database,
                    &format!("cannot open {}: {error}", path.display()),
                )
            })?;
        give_to_directory_owner(&file, &path).map_err(|error| {
            let problem = format!("cannot give away {}: {error}", path.display());
            cannot_open(database, &problem)
        })?;
        for attempt in 0..LOCK_TRIES {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Self::sign(file, database),
                Err(rustix::io::Errno::WOULDBLOCK) if attempt + 1 < LOCK_TRIES => {
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                Err(rustix::io::Errno::WOULDBLOCK) => break,
                Err(error) => {
                    let problem = format!("cannot lock {}: {error}", path.display());
                    return Err(cannot_open(database, &problem));
                }
            }
        }
        Err(StoreError::InUse {
            target: database.display().to_string(),
            holder: holder(&path),
        })
    }

    fn sign(mut file: File, database: &Path) -> Result<Self, StoreError> {
        file.set_len(0)
            .and_then(|()| write!(file, "{}", std::process::id()))
            .map_err(|error| cannot_open(database, &format!("cannot write its lock: {error}")))?;
        Ok(Self { _file: file })
    }
}

/// The process that holds the lock, by what it wrote there.
fn holder(lock: &Path) -> Option<String> {
    let text = std::fs::read_to_string(lock).ok()?;
    let pid: u32 = text.trim().parse().ok()?;
    Some(pid.to_string())
}

/// Whether a daemon works on the state now.
pub(super) fn daemon_runs(database: &Path) -> io::Result<bool> {
    let file = match File::open(beside(database, ".lock")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Makes sure that the database's file is there and its owner's alone. SQLite gives its other files the same mode.
pub(super) fn prepare(database: &Path, create: bool) -> Result<(), StoreError> {
    let parent = database
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent
        && !parent.is_dir()
    {
        let problem = format!("the directory {} does not exist", parent.display());
        return Err(cannot_open(database, &problem));
    }
    if !create && !database.exists() {
        return Err(cannot_open(
            database,
            "there is none yet; `reconciled run` creates it",
        ));
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(MODE)
        .open(database)
        .map_err(|error| cannot_open(database, &error.to_string()))?;
    let mode = file
        .metadata()
        .map_err(|error| cannot_open(database, &error.to_string()))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(MODE))
            .map_err(|error| {
                let problem = format!("others may read it (mode {:04o}): {error}", mode & 0o7777);
                cannot_open(database, &problem)
            })?;
    }
    give_to_directory_owner(&file, database)
        .map_err(|error| cannot_open(database, &format!("cannot give it away: {error}")))
}

/// What root makes in somebody else's directory belongs to that one: a command that root runs while the daemon is stopped must not
/// leave behind what the daemon cannot open.
fn give_to_directory_owner(file: &File, path: &Path) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let owner = std::fs::metadata(directory)?;
    let is_roots = file.metadata()?.uid() == 0;
    if is_roots && owner.uid() != 0 && rustix::process::geteuid().is_root() {
        fchown(file, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// Leaves a sign of life: whole, since it is renamed into place; where the disk has no room for it, in the place of the last one, since that
/// is the moment at which it has most to tell.
pub(super) fn write_heartbeat(database: &Path, heartbeat: &Heartbeat) -> io::Result<()> {
    let sign = serde_json::to_vec(heartbeat)?;
    match rename_into_place(database, &sign) {
        Err(error) if is_full(&error) => {
            let mut last = OpenOptions::new()
                .write(true)
                .open(beside(database, ".daemon"))?;
            last.write_all(&sign)?;
            last.set_len(sign.len() as u64)
        }
        ended => ended,
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn rename_into_place(database: &Path, sign: &[u8]) -> io::Result<()> {
    let new = beside(database, ".daemon.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .open(&new)?;
    give_to_directory_owner(&file, &new)?;
    file.write_all(sign)?;
    std::fs::rename(new, beside(database, ".daemon"))
}

/// The last sign of life; `None` when there is none that can be read.
pub(super) fn read_heartbeat(database: &Path) -> Option<Heartbeat> {
    let path = beside(database, ".daemon");
    if std::fs::metadata(&path).ok()?.len() > HEARTBEAT_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// The state at `database` cannot be opened.
pub(super) fn cannot_open(database: &Path, problem: &str) -> StoreError {
    StoreError::Open {
        target: database.display().to_string(),
        problem: problem.to_owned(),
    }
}

fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(database);
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command looks for a moment whether a daemon works on the state.
    #[tokio::test]
    async fn a_look_at_the_lock_does_not_keep_a_daemon_from_starting() {
        let directory = tempfile::tempdir().expect("a directory");
        let database = directory.path().join("state.db");
        drop(DaemonLock::take(&database).await.expect("free"));
        let look = File::open(beside(&database, ".lock")).expect("it is there");
        flock(&look, FlockOperation::NonBlockingLockShared).expect("free");
        let mut taking = Box::pin(DaemonLock::take(&database));
        assert!(
            futures_util::poll!(&mut taking).is_pending(),
            "it tries again"
        );
        drop(look);
        let lock = taking.await.expect("nobody looks any more");
        assert!(daemon_runs(&database).expect("readable"));
        drop(lock);
        assert!(!daemon_runs(&database).expect("readable"));
    }

    #[test]
    fn a_file_that_others_may_read_becomes_its_owners_alone_and_another_keeps_its_mode() {
        let directory = tempfile::tempdir().expect("a directory");
        let database = directory.path().join("state.db");
        let mode = || {
            let permissions = std::fs::metadata(&database).map(|found| found.permissions());
            permissions.expect("it is there").mode() & 0o7777
        };
        prepare(&database, true).expect("it is made");
        assert_eq!(mode(), 0o600);
        for (found, left) in [
            (0o600, 0o600),
            (0o700, 0o700),
            (0o640, 0o600),
            (0o604, 0o600),
            (0o666, 0o600),
        ] {
            std::fs::set_permissions(&database, Permissions::from_mode(found)).expect("ours");
            prepare(&database, false).expect("it is there");
            assert_eq!(mode(), left, "{found:04o}");
        }
    }
}
