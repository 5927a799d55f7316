//! The one thread that writes: it takes whatever has arrived and commits it in one transaction before answering anybody. What arrives
//! while it works on that joins the transaction, once: nobody waits for more than what had arrived when his own work was done.
//!
//! Every job is isolated by a savepoint: one that fails leaves nothing and spoils no other. When the transaction itself fails, for
//! instance on a full disk, all of its jobs fail and nothing of them is kept.

use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use crate::store::StoreError;

use super::check::Damage;
use super::db::Db;
use super::file::DaemonLock;
use super::session::SqliteRows;
use crate::store::fault::Fault;

/// The most jobs that a transaction begins with, and the most that join it.
const JOBS_MAX: usize = 256;
/// The most jobs that wait; further ones make their callers wait.
const QUEUE_MAX: usize = 1024;

/// The way to the writing thread.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Mutex<Option<mpsc::Sender<Box<dyn Job>>>>,
    /// Answered when the thread is about to end.
    ended: Mutex<Option<oneshot::Receiver<()>>>,
    thread: Option<JoinHandle<()>>,
    damage: Damage,
}

/// Once it is dropped the file is at rest and the lock is given back.
impl Drop for Writer {
    fn drop(&mut self) {
        drop(locked(&self.jobs).take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Writer {
    /// Starts the thread on its connection; the lock, if any, is given back after its last transaction.
    pub(super) fn start(db: Db, damage: Damage, lock: Option<DaemonLock>) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let (end, ended) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || {
                run(SqliteRows::new(db), receiver);
                drop(lock);
                // Nobody may be waiting.
                let _ = end.send(());
            })?;
        Ok(Self {
            jobs: Mutex::new(Some(sender)),
            ended: Mutex::new(Some(ended)),
            thread: Some(thread),
            damage,
        })
    }

    /// Has `work` done in a transaction; returns after its commit. The future of `work` waits for nothing but its rows, which are there
    /// at once.
    ///
    /// The work is done even when the caller stops waiting.
    pub(super) async fn write<T, F>(
        &self,
        operation: &'static str,
        work: F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(&'a mut SqliteRows) -> BoxFuture<'a, Result<T, Fault>> + Send + 'static,
    {
        let closed = || StoreError::Failed {
            operation,
            problem: "the state is closed".to_owned(),
            transient: false,
        };
        self.damage
            .none()
            .map_err(|fault| fault.during(operation))?;
        let jobs = locked(&self.jobs).clone().ok_or_else(closed)?;
        let (reply, answer) = oneshot::channel();
        let job = Task {
            operation,
            work: Some(Box::new(work)),
            result: None,
            reply,
        };
        jobs.send(Box::new(job)).await.map_err(|_| closed())?;
        drop(jobs);
        answer.await.map_err(|_| closed())?
    }

    /// Waits until everything that was asked for is committed, and ends the thread.
    pub(super) async fn close(&self) {
        drop(locked(&self.jobs).take());
        let ended = locked(&self.ended).take();
        if let Some(ended) = ended {
            // A panic of the thread was reported where it happened.
            let _ = ended.await;
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Work<T> =
    Box<dyn for<'a> FnOnce(&'a mut SqliteRows) -> BoxFuture<'a, Result<T, Fault>> + Send>;

/// Something to do in a transaction.
trait Job: Send {
    /// Does it; false when it failed and what it wrote is to be undone.
    fn run(&mut self, rows: &mut SqliteRows) -> bool;

    /// Tells the caller, after the transaction's end.
    fn answer(self: Box<Self>, committed: Result<(), &Failure>);
}

/// Why a whole transaction failed.
struct Failure {
    problem: String,
    transient: bool,
}

struct Task<T> {
    operation: &'static str,
    work: Option<Work<T>>,
    result: Option<Result<T, Fault>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send + 'static> Job for Task<T> {
    fn run(&mut self, rows: &mut SqliteRows) -> bool {
        let Some(work) = self.work.take() else {
            return false;
        };
        let result = work(rows)
            .now_or_never()
            .expect("no row of the state has to be waited for");
        let done = result.is_ok();
        self.result = Some(result);
        done
    }

    fn answer(self: Box<Self>, committed: Result<(), &Failure>) {
        let Self {
            operation,
            result,
            reply,
            work: _,
        } = *self;
        let answer = match (result, committed) {
            (Some(Err(fault)), _) => Err(fault.during(operation)),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (Some(Ok(_)) | None, Err(Failure { problem, transient })) => Err(StoreError::Failed {
                operation,
                problem: problem.clone(),
                transient: *transient,
            }),
            (None, Ok(())) => unreachable!("a committed transaction ran all of its jobs"),
        };
        // A caller that stopped waiting does not want the answer.
        let _ = reply.send(answer);
    }
}

fn run(mut rows: SqliteRows, mut jobs: mpsc::Receiver<Box<dyn Job>>) {
    let mut arrived = Vec::with_capacity(JOBS_MAX);
    while jobs.blocking_recv_many(&mut arrived, JOBS_MAX) > 0 {
        let committed = commit_together(&mut rows, &mut arrived, &mut jobs);
        for job in arrived.drain(..) {
            job.answer(committed.as_ref().copied());
        }
    }
    rows.close();
}

/// Does what has arrived and what arrives meanwhile, which is added to it.
fn commit_together(
    rows: &mut SqliteRows,
    arrived: &mut Vec<Box<dyn Job>>,
    jobs: &mut mpsc::Receiver<Box<dyn Job>>,
) -> Result<(), Failure> {
    let result = try_commit(rows, arrived, jobs);
    if result.is_err() {
        rows.roll_back();
    }
    result.map_err(|fault| Failure {
        transient: fault.is_transient(),
        problem: fault.problem(),
    })
}

fn try_commit(
    rows: &mut SqliteRows,
    arrived: &mut Vec<Box<dyn Job>>,
    jobs: &mut mpsc::Receiver<Box<dyn Job>>,
) -> Result<(), Fault> {
    rows.begin()?;
    if let [job] = &mut arrived[..] {
        // Alone it spoils no other.
        if !job.run(rows) {
            rows.roll_back();
            return Ok(());
        }
    } else {
        run_parts(rows, arrived)?;
    }
    let first = arrived.len();
    while arrived.len() < first + JOBS_MAX
        && let Ok(job) = jobs.try_recv()
    {
        arrived.push(job);
    }
    run_parts(rows, &mut arrived[first..])?;
    rows.commit()
}

/// Does each job as a part of the transaction that can be undone by itself.
fn run_parts(rows: &mut SqliteRows, jobs: &mut [Box<dyn Job>]) -> Result<(), Fault> {
    for job in jobs {
        rows.begin_part()?;
        let done = job.run(rows);
        // Fails when SQLite undid the whole transaction, and so do all of its jobs then.
        rows.end_part(done)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use rusqlite::params;

    use super::*;
    use crate::store::codec::Cells as _;

    fn boxed<T, F>(work: F) -> Work<T>
    where
        F: for<'a> FnOnce(&'a mut SqliteRows) -> BoxFuture<'a, Result<T, Fault>> + Send + 'static,
    {
        Box::new(work)
    }

    fn writer() -> Writer {
        let db = Db::in_memory().expect("a database");
        let table = "CREATE TABLE kept (value INTEGER NOT NULL UNIQUE, filling BLOB)";
        db.run(table, params![]).expect("a table");
        Writer::start(db, Damage::default(), None).expect("a thread")
    }

    /// Writes a value, and fails afterwards if told so.
    async fn put(writer: &Writer, value: i64, bytes: i64, fails: bool) -> Result<(), StoreError> {
        let work = boxed(move |rows| {
            Box::pin(async move {
                rows.db().run(
                    "INSERT INTO kept (value, filling) VALUES (?1, zeroblob(?2))",
                    params![value, bytes],
                )?;
                if fails {
                    return Err(Fault::Corrupt("as told".to_owned()));
                }
                Ok(())
            })
        });
        writer.write("put a value", work).await
    }

    async fn kept(writer: &Writer) -> Vec<i64> {
        let work = boxed(|rows| {
            Box::pin(async move {
                let query = "SELECT value FROM kept ORDER BY value";
                rows.db().rows(query, params![], |row| row.integer("value"))
            })
        });
        writer.write("read", work).await.expect("readable")
    }

    /// Work that writes a value and waits until it is told whether that is done or fails.
    struct Held {
        /// Told once the value is written.
        started: oneshot::Receiver<()>,
        go_on: std::sync::mpsc::Sender<bool>,
        answer: oneshot::Receiver<Result<(), StoreError>>,
    }

    async fn hold(writer: &Writer, value: i64) -> Held {
        let (start, started) = oneshot::channel::<()>();
        let (go_on, is_done) = std::sync::mpsc::channel::<bool>();
        let work = boxed(move |rows| {
            Box::pin(async move {
                rows.db()
                    .run("INSERT INTO kept (value) VALUES (?1)", params![value])?;
                let _ = start.send(());
                match is_done.recv() {
                    Ok(true) => Ok(()),
                    _ => Err(Fault::Corrupt("as told".to_owned())),
                }
            })
        });
        let jobs = locked(&writer.jobs).clone().expect("open");
        let (reply, answer) = oneshot::channel();
        let job = Task {
            operation: "wait",
            work: Some(work),
            result: None,
            reply,
        };
        assert!(jobs.send(Box::new(job)).await.is_ok());
        Held {
            started,
            go_on,
            answer,
        }
    }

    /// Makes the thread do such work. What arrives meanwhile joins its transaction, or is committed together in the next.
    async fn busy(
        writer: &Writer,
        value: i64,
    ) -> (
        std::sync::mpsc::Sender<bool>,
        impl Future<Output = Result<(), StoreError>>,
    ) {
        let Held {
            started,
            go_on,
            answer,
        } = hold(writer, value).await;
        started.await.expect("it starts");
        (go_on, async move { answer.await.expect("answered") })
    }

    /// Repeats a value in a way that has SQLite undo the whole transaction, whatever belongs to it.
    async fn undo_all(writer: &Writer, value: i64) -> Result<u64, StoreError> {
        let work = boxed(move |rows| {
            Box::pin(async move {
                let repeat = "INSERT OR ROLLBACK INTO kept (value) VALUES (?1)";
                rows.db().run(repeat, params![value])
            })
        });
        writer.write("put a value", work).await
    }

    #[tokio::test]
    async fn job_that_fails_leaves_nothing_and_spoils_no_other() {
        // Together with what was being done when they came, and together by themselves.
        for is_joined in [true, false] {
            let writer = writer();
            let (go_on, first) = busy(&writer, 9).await;
            let jobs = (0..6).map(|value| put(&writer, value % 5, 0, value == 1));
            let (answers, first, ()) = tokio::join!(join_all(jobs), first, async {
                // The jobs are polled first, so all of them are in the queue.
                go_on.send(is_joined).expect("it waits");
            });
            assert_eq!(first.is_ok(), is_joined);
            let done: Vec<bool> = answers.iter().map(Result::is_ok).collect();
            // The second was told to fail; the last repeats a value, which the table refuses.
            assert_eq!(done, [true, false, true, true, true, false]);
            let kept = kept(&writer).await;
            let first: &[i64] = if is_joined { &[9] } else { &[] };
            assert_eq!(kept, [&[0, 2, 3, 4], first].concat());
        }
    }

    #[tokio::test]
    async fn what_arrives_while_another_is_done_is_committed_with_it() {
        let writer = writer();
        let (go_on, first) = busy(&writer, 1).await;
        let (second, first, ()) = tokio::join!(undo_all(&writer, 1), first, async {
            go_on.send(true).expect("it waits");
        });
        assert!(first.is_err() && second.is_err(), "{first:?} {second:?}");
        assert_eq!(kept(&writer).await, [0; 0]);
        put(&writer, 1, 0, false)
            .await
            .expect("as if nothing had been");
    }

    #[tokio::test]
    async fn nobody_waits_for_what_arrives_after_his_transaction_was_joined() {
        let writer = writer();
        let (go_on, first) = busy(&writer, 1).await;
        let joined = hold(&writer, 2).await;
        go_on.send(true).expect("it waits");
        joined.started.await.expect("it starts");
        let (third, first, joined, ()) =
            tokio::join!(undo_all(&writer, 1), first, joined.answer, async {
                joined.go_on.send(true).expect("it waits");
            });
        first.expect("committed before the third began");
        joined.expect("answered").expect("committed with the first");
        assert!(third.is_err());
        assert_eq!(kept(&writer).await, [1, 2]);
    }

    #[tokio::test]
    async fn full_disk_loses_nothing_and_keeps_nothing_of_what_failed() {
        let writer = writer();
        put(&writer, 1, 0, false).await.expect("room");
        let limit = boxed(|rows| {
            Box::pin(async move {
                let limit = "PRAGMA max_page_count = 8";
                let _: i64 = rows.db().value(limit, params![])?;
                Ok(())
            })
        });
        writer
            .write("limit the file", limit)
            .await
            .expect("limited");
        match put(&writer, 2, 1_000_000, false).await {
            Err(StoreError::Failed {
                problem, transient, ..
            }) => {
                assert!(!transient, "{problem}");
                assert!(problem.contains("full"), "{problem}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(kept(&writer).await, [1]);
        put(&writer, 3, 0, false)
            .await
            .expect("there is room for little");
        assert_eq!(kept(&writer).await, [1, 3]);
    }

    #[tokio::test]
    async fn work_is_done_even_when_the_caller_stops_waiting() {
        let writer = writer();
        let (go_on, first) = busy(&writer, 6).await;
        {
            let abandoned = put(&writer, 7, 0, false);
            tokio::pin!(abandoned);
            assert!(futures_util::poll!(&mut abandoned).is_pending());
        }
        go_on.send(true).expect("it waits");
        first.await.expect("done");
        assert_eq!(kept(&writer).await, [6, 7]);
    }

    #[tokio::test]
    async fn closing_finishes_what_was_asked_for() {
        let writer = writer();
        let (go_on, first) = busy(&writer, 6).await;
        let (answer, first, (), ()) = tokio::join!(
            put(&writer, 7, 0, false),
            first,
            async {
                go_on.send(true).expect("it waits");
            },
            writer.close()
        );
        answer.and(first).expect("committed");
        assert!(put(&writer, 8, 0, false).await.is_err());
    }
}
