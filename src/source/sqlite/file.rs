//! One connection to a file, in a thread of its own that may wait for the disk.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::oneshot;

use super::super::error::needs_recovery;

/// After how many of SQLite's own instructions the deadline is looked at.
const INSTRUCTIONS_BETWEEN_CHECKS: i32 = 1_000;

/// How much of the file a connection keeps in memory, in the words of `PRAGMA cache_size`: 256 KiB. What lies above the rows that are read
/// next finds room in it; the rows themselves are read once in a pass.
const CACHE_SIZE: i64 = -256;

/// After how long a reader that has to wait for a writer looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What is written otherwise in the path of a URI.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/');

/// How many statements a connection keeps prepared: a pass repeats one or two for each of its pages.
const STATEMENTS_KEPT: usize = 4;

/// What can go wrong with a file.
pub(in super::super) enum FileError {
    /// SQLite says so.
    Sqlite(rusqlite::Error),
    /// The operating system says so.
    Io(std::io::Error),
    /// A value is not of the type that was to be read.
    Value,
    /// What ran on the connection was not waited for, its transaction did not end, or its thread is gone.
    Ended,
}

impl From<rusqlite::Error> for FileError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error;
        match error {
            Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::InvalidColumnType(..)
            | Error::Utf8Error(..) => Self::Value,
            error => Self::Sqlite(error),
        }
    }
}

impl From<std::io::Error> for FileError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl FileError {
    /// SQLite's extended result code and its words.
    pub(super) fn sqlite(&self) -> Option<(i32, &str)> {
        match self {
            Self::Sqlite(rusqlite::Error::SqliteFailure(error, words)) => {
                Some((error.extended_code, words.as_deref().unwrap_or_default()))
            }
            _ => None,
        }
    }
}

/// Where a file is and how it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) path: PathBuf,
    /// Nobody writes it, so that nobody is locked out.
    is_immutable: bool,
    /// How SQLite reaches files, where it is not as usual.
    vfs: Option<String>,
    /// How long whoever writes the file is waited for.
    patience: Duration,
}

impl Location {
    /// `sqlite:` or `sqlite://`, the path, percent-encoded, and perhaps parameters; `None` when it is no file or asks for something else.
    ///
    /// The file is only read, whatever `mode` says, and each connection has a cache of its own.
    pub(super) fn of(url: &str, patience: Duration) -> Option<Self> {
        let rest = url.strip_prefix("sqlite:")?;
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let (path, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let path = percent_decode_str(path).decode_utf8().ok()?;
        if path.is_empty() || path == ":memory:" {
            return None;
        }
        let mut location = Self {
            path: PathBuf::from(&*path),
            is_immutable: false,
            vfs: None,
            patience,
        };
        for parameter in parameters.split('&').filter(|set| !set.is_empty()) {
            let (name, value) = parameter.split_once('=')?;
            let value = percent_decode_str(value).decode_utf8().ok()?;
            match (name, &*value) {
                ("mode", "ro" | "rw" | "rwc") | ("cache", "private" | "shared") => {}
                ("immutable", "true" | "1") => location.is_immutable = true,
                ("immutable", "false" | "0") => location.is_immutable = false,
                ("vfs", vfs) => location.vfs = Some(vfs.to_owned()),
                _ => return None,
            }
        }
        Some(location)
    }

    fn open(&self) -> Result<Connection, rusqlite::Error> {
        // What one connection does is done by one thread at a time, which the compiler sees to.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let path = match self.is_immutable {
            true => self.immutable().into(),
            false => self.path.clone(),
        };
        let flags = match self.is_immutable {
            true => flags | OpenFlags::SQLITE_OPEN_URI,
            false => flags,
        };
        match &self.vfs {
            Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs.as_str()),
            None => Connection::open_with_flags(path, flags),
        }
    }

    /// The only way to say so (<https://www.sqlite.org/uri.html>).
    fn immutable(&self) -> String {
        let path = self.path.to_string_lossy();
        let authority = if self.path.is_absolute() { "//" } else { "" };
        let path = utf8_percent_encode(&path, PATH);
        format!("file:{authority}{path}?immutable=1")
    }
}

/// A connection that reads, and the thread that it lives in.
pub(in super::super) struct File {
    jobs: mpsc::Sender<Job>,
    deadline: Arc<Deadline>,
    patience: Duration,
    /// Whether the next job begins a transaction.
    begins: bool,
    /// Whether a job is under way; for good after one that nobody waited for.
    is_busy: bool,
    /// Where the file was found, and which it is.
    path: PathBuf,
    inode: Option<(u64, u64)>,
}

type Job = Box<dyn FnOnce(&Connection) + Send>;

/// When the statement that runs is interrupted; `None` once nobody waits for it: at once.
struct Deadline(Mutex<Option<Instant>>);

impl Deadline {
    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives what is waited for so much time from now on.
    fn give(&self, time: Duration) {
        if let Some(at) = &mut *self.lock() {
            *at = Instant::now() + time;
        }
    }

    fn is_over(&self) -> bool {
        self.lock().is_none_or(|at| Instant::now() >= at)
    }
}

/// The device and the number of the file that a path leads to now; `None` where there is none.
fn inode_of(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl File {
    /// Opens the file, which must be there.
    pub(super) async fn open(location: Location) -> Result<Self, FileError> {
        let (opened, opening) = oneshot::channel();
        let (jobs, queue) = mpsc::channel::<Job>();
        let patience = location.patience;
        let path = location.path.clone();
        // Which file it is must not be asked later than it is opened.
        let inode = inode_of(&path);
        let deadline = Arc::new(Deadline(Mutex::new(Some(Instant::now()))));
        let looked_at = Arc::clone(&deadline);
        thread::Builder::new()
            .name("source".to_owned())
            .spawn(move || {
                let connection = match connect(&location, looked_at) {
                    Ok(connection) => connection,
                    // Nobody to tell is as good as told.
                    Err(error) => return drop(opened.send(Err(error))),
                };
                if opened.send(Ok(())).is_ok() {
                    queue.iter().for_each(|job| job(&connection));
                }
            })?;
        opening.await.map_err(|_| FileError::Ended)??;
        Ok(Self {
            path,
            inode,
            jobs,
            deadline,
            patience,
            begins: false,
            is_busy: false,
        })
    }

    /// Begins a transaction, in the thread that then runs its first statement. Fails when another file has taken the place of the one
    /// that was opened, which this connection would go on to read.
    pub(super) fn begin(&mut self) -> Result<(), FileError> {
        if inode_of(&self.path) != self.inode {
            return Err(FileError::Ended);
        }
        self.begins = true;
        Ok(())
    }

    /// Ends the transaction, beside whatever comes next.
    pub(super) fn end(&mut self, time: Duration) -> Result<(), FileError> {
        if self.is_busy {
            return Err(FileError::Ended);
        }
        if std::mem::take(&mut self.begins) {
            return Ok(());
        }
        let deadline = Arc::clone(&self.deadline);
        self.send(move |connection| {
            deadline.give(time);
            // One that goes on is found by the next that begins.
            let _ended = connection.execute_batch("ROLLBACK");
        })
    }

    fn send(&self, job: impl FnOnce(&Connection) + Send + 'static) -> Result<(), FileError> {
        self.jobs.send(Box::new(job)).map_err(|_| FileError::Ended)
    }

    /// Has something done on the connection, within so much time. Who does not wait for the end interrupts it.
    pub(super) async fn run<T: Send + 'static>(
        &mut self,
        time: Duration,
        work: impl FnOnce(&Connection) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        if self.is_busy {
            return Err(FileError::Ended);
        }
        let (done, doing) = oneshot::channel();
        let begins = std::mem::take(&mut self.begins);
        let (patience, deadline) = (self.patience, Arc::clone(&self.deadline));
        let job = move |connection: &Connection| {
            deadline.give(time);
            let begun = match begins {
                true => begin(connection, patience),
                false => Ok(()),
            };
            deadline.give(time);
            // Who does not wait any more needs no answer.
            drop(done.send(begun.and_then(|()| work(connection))));
        };
        self.send(job)?;
        self.is_busy = true;
        let mut unattended = Unattended(Some(&self.deadline));
        let outcome = doing.await;
        unattended.0 = None;
        let outcome = outcome.map_err(|_| FileError::Ended)?;
        self.is_busy = false;
        outcome
    }
}

fn connect(location: &Location, deadline: Arc<Deadline>) -> Result<Connection, rusqlite::Error> {
    let connection = location.open()?;
    connection.busy_timeout(location.patience)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cache_size", CACHE_SIZE)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    let is_over = move || deadline.is_over();
    connection.progress_handler(INSTRUCTIONS_BETWEEN_CHECKS, Some(is_over))?;
    Ok(connection)
}

/// Has what runs interrupted when it is dropped.
struct Unattended<'a>(Option<&'a Deadline>);

impl Drop for Unattended<'_> {
    fn drop(&mut self) {
        if let Some(deadline) = self.0 {
            *deadline.lock() = None;
        }
    }
}

/// Begins a transaction and takes its place in the file: what its later statements read is there, and nobody has to be waited for.
///
/// A reader may have to wait for a writer longer than for its lock. Beside several writers this happens without any of them having been cut
/// off: a reader that sees the journal of one and then not its lock takes the journal of the next for one that was left behind
/// (`hasHotJournal` in SQLite's pager.c), which it must not roll back.
fn begin(connection: &Connection, patience: Duration) -> Result<(), FileError> {
    if !connection.is_autocommit() {
        return Err(FileError::Ended);
    }
    let begun = Instant::now();
    loop {
        let Err(error) = connection.execute_batch("BEGIN; SELECT 1 FROM sqlite_schema LIMIT 1")
        else {
            return Ok(());
        };
        if !connection.is_autocommit() {
            connection.execute_batch("ROLLBACK")?;
        }
        let error = FileError::from(error);
        let awaits_writer = error.sqlite().is_some_and(|(code, _)| needs_recovery(code));
        if !awaits_writer || begun.elapsed() >= patience {
            return Err(error);
        }
        thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDLESS: &str = "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number) SELECT count(*) FROM number";

    fn at(path: &std::path::Path) -> Location {
        let url = format!("sqlite://{}", path.display());
        Location::of(&url, Duration::ZERO).expect("a path")
    }

    async fn file() -> (tempfile::TempDir, File) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("source.db");
        Connection::open(&path)
            .and_then(|new| new.execute_batch("CREATE TABLE kept (id INTEGER)"))
            .expect("made");
        let file = File::open(at(&path)).await.ok().expect("it is there");
        (directory, file)
    }

    fn endless(connection: &Connection) -> Result<i64, FileError> {
        Ok(connection.query_row(ENDLESS, [], |row| row.get(0))?)
    }

    #[tokio::test]
    async fn a_statement_is_interrupted_at_its_deadline_and_the_connection_goes_on() {
        let (_directory, mut file) = file().await;
        let cut = file.run(Duration::ZERO, endless).await;
        let error = cut.expect_err("it would not end");
        assert_eq!(error.sqlite().map(|(code, _)| code), Some(9));
        let time = Duration::from_secs(3_600);
        assert_eq!(file.run(time, count).await.ok(), Some(0));
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_interrupted_and_takes_its_connection_with_it() {
        let (_directory, mut file) = file().await;
        let (started, has_started) = tokio::sync::oneshot::channel();
        let (ended, has_ended) = tokio::sync::oneshot::channel();
        let time = Duration::from_secs(3_600);
        {
            let working = file.run(time, move |connection| {
                started.send(()).expect("it is waited for");
                let done = endless(connection);
                ended.send(done.is_err()).expect("it is waited for");
                done
            });
            tokio::select! {
                _ = working => unreachable!("it does not end"),
                started = has_started => started.expect("it runs"),
            }
        }
        assert!(has_ended.await.expect("it ends"), "it was interrupted");
        let after = file.run(time, |_| Ok(())).await;
        assert!(matches!(after, Err(FileError::Ended)));
    }

    #[tokio::test]
    async fn nothing_is_written_and_no_file_is_made() {
        let (directory, mut file) = file().await;
        let time = Duration::from_secs(3_600);
        let written = file.run(time, |connection| {
            Ok(connection.execute("INSERT INTO kept VALUES (1)", [])?)
        });
        let error = written.await.expect_err("it is read only");
        assert_eq!(error.sqlite().map(|(code, _)| code), Some(8));
        let path = directory.path().join("other.db");
        assert!(File::open(at(&path)).await.is_err());
        assert!(!path.exists());
    }

    fn count(connection: &Connection) -> Result<i64, FileError> {
        Ok(connection.query_row("SELECT count(*) FROM kept", [], |row| row.get(0))?)
    }

    #[tokio::test]
    async fn a_transaction_reads_one_state_of_the_file_until_it_ends() {
        let (directory, mut file) = file().await;
        let writer = Connection::open(directory.path().join("source.db")).expect("it is there");
        let add = || {
            writer
                .execute_batch("PRAGMA journal_mode = WAL; INSERT INTO kept VALUES (1)")
                .expect("nobody is in the way");
        };
        let time = Duration::from_secs(3_600);
        add();
        assert!(file.begin().is_ok());
        assert_eq!(file.run(time, count).await.ok(), Some(1));
        add();
        assert_eq!(file.run(time, count).await.ok(), Some(1));
        assert!(file.end(time).is_ok());
        assert!(file.begin().is_ok());
        assert_eq!(file.run(time, count).await.ok(), Some(2));
        assert!(file.end(time).is_ok());
        // One that nothing was read in is none.
        assert!(file.begin().is_ok());
        assert!(file.end(time).is_ok());
        assert!(
            file.run(time, |file| Ok(file.is_autocommit()))
                .await
                .is_ok_and(|ended| ended)
        );
    }

    #[tokio::test]
    async fn a_file_whose_place_another_has_taken_is_not_read_on() {
        let (directory, mut file) = file().await;
        let (path, other) = (
            directory.path().join("source.db"),
            directory.path().join("other.db"),
        );
        std::fs::copy(&path, &other).expect("there is room");
        assert!(file.begin().is_ok());
        std::fs::rename(&other, &path).expect("it is the directory's own");
        assert!(matches!(file.begin(), Err(FileError::Ended)));
        let mut anew = File::open(at(&path)).await.ok().expect("it is there");
        assert!(anew.begin().is_ok());
        std::fs::remove_file(&path).expect("it is there");
        assert!(matches!(anew.begin(), Err(FileError::Ended)));
    }

    #[tokio::test]
    async fn a_transaction_that_did_not_end_is_found_by_the_next_that_begins() {
        let (_directory, mut file) = file().await;
        let time = Duration::from_secs(3_600);
        assert!(file.begin().is_ok());
        assert!(file.run(time, count).await.is_ok());
        assert!(file.begin().is_ok());
        let next = file.run(time, count).await;
        assert!(matches!(next, Err(FileError::Ended)));
    }

    #[tokio::test]
    async fn a_value_of_another_type_is_told_from_what_sqlite_says() {
        let (_directory, mut file) = file().await;
        let time = Duration::from_secs(3_600);
        let read = file.run(time, |file| {
            Ok(file.query_row("SELECT 'hunter2'", [], |row| row.get::<_, i64>(0))?)
        });
        assert!(matches!(read.await, Err(FileError::Value)));
        let read = file.run(time, |file| Ok(file.execute_batch("SELECT nothing")?));
        let error = read.await.expect_err("there is no such column");
        assert_eq!(error.sqlite().map(|(code, _)| code), Some(1));
    }

    #[test]
    fn a_url_names_a_file_and_how_it_is_reached() {
        let of = |url| Location::of(url, Duration::ZERO);
        let plain = of("sqlite:///var/lib/a%20b.db?mode=ro&cache=private").expect("a file");
        assert_eq!(plain.path, PathBuf::from("/var/lib/a b.db"));
        assert_eq!((plain.is_immutable, plain.vfs), (false, None));
        assert_eq!(
            of("sqlite:x.db").expect("a file").path,
            PathBuf::from("x.db")
        );
        let set = of("sqlite:///x?immutable=1&vfs=unix-none").expect("a file");
        assert_eq!(
            (set.is_immutable, set.vfs.as_deref()),
            (true, Some("unix-none"))
        );
        for refused in [
            "postgres://x",
            "sqlite:",
            "sqlite::memory:",
            "sqlite:///x?mode=memory",
            "sqlite:///x?mode=hunter2",
            "sqlite:///x?immutable=perhaps",
            "sqlite:///x?key=hunter2",
            "sqlite:///%ff",
        ] {
            assert_eq!(of(refused), None, "{refused}");
        }
    }

    #[tokio::test]
    async fn an_immutable_file_is_read_beside_whoever_has_locked_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a?b#c %.db");
        let writer = Connection::open(&path).expect("made");
        let locked = "CREATE TABLE kept (id INTEGER); BEGIN EXCLUSIVE";
        writer.execute_batch(locked).expect("made");
        let url = |parameters: &str| {
            let path = utf8_percent_encode(path.to_str().expect("a text"), PATH).to_string();
            format!("sqlite://{path}{parameters}")
        };
        for (parameters, is_read) in [
            ("", false),
            ("?immutable=1", true),
            ("?vfs=unix-none", true),
        ] {
            let location = Location::of(&url(parameters), Duration::ZERO).expect("a file");
            let read = async {
                let mut file = File::open(location).await?;
                file.run(Duration::from_secs(3_600), count).await
            };
            assert_eq!(read.await.is_ok(), is_read, "{parameters}");
        }
    }
}
