//! The one task that writes: it takes whatever has arrived and commits it in one transaction before answering anybody.
//!
//! Every job is isolated by a savepoint: one that fails leaves nothing and spoils no other. When the transaction itself fails, for
//! instance on a full disk, all of its jobs fail and nothing of them is kept.

use std::sync::{Mutex, PoisonError};

use futures_util::future::BoxFuture;
use sqlx::SqliteConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::store::StoreError;

use super::check::Damage;
use super::file::DaemonLock;
use super::session::SqliteRows;
use crate::store::fault::Fault;

/// The most jobs in one transaction.
const JOBS_MAX: usize = 256;
/// The most jobs that wait; further ones make their callers wait.
const QUEUE_MAX: usize = 1024;

/// The way to the writing task.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Mutex<Option<mpsc::Sender<Box<dyn Job>>>>,
    task: Mutex<Option<JoinHandle<()>>>,
    damage: Damage,
}

impl Writer {
    /// Starts the task on its connection; the lock, if any, is given back after its last transaction.
    pub(super) fn start(
        connection: SqliteConnection,
        damage: Damage,
        lock: Option<DaemonLock>,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let task = tokio::spawn(run(SqliteRows::new(connection), receiver, lock));
        Self {
            jobs: Mutex::new(Some(sender)),
            task: Mutex::new(Some(task)),
            damage,
        }
    }

    /// Has `work` done in a transaction; returns after its commit.
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

    /// Waits until everything that was asked for is committed, and ends the task.
    pub(super) async fn close(&self) {
        drop(locked(&self.jobs).take());
        let task = locked(&self.task).take();
        if let Some(task) = task {
            // A panic of the task was reported where it happened.
            let _ = task.await;
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
    fn run<'a>(&'a mut self, rows: &'a mut SqliteRows) -> BoxFuture<'a, bool>;

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
    fn run<'a>(&'a mut self, rows: &'a mut SqliteRows) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let Some(work) = self.work.take() else {
                return false;
            };
            let result = work(rows).await;
            let done = result.is_ok();
            self.result = Some(result);
            done
        })
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

async fn run(
    mut rows: SqliteRows,
    mut jobs: mpsc::Receiver<Box<dyn Job>>,
    lock: Option<DaemonLock>,
) {
    let mut arrived = Vec::with_capacity(JOBS_MAX);
    while jobs.recv_many(&mut arrived, JOBS_MAX).await > 0 {
        let committed = commit_together(&mut rows, &mut arrived).await;
        for job in arrived.drain(..) {
            job.answer(committed.as_ref().copied());
        }
    }
    rows.close().await;
    drop(lock);
}

async fn commit_together(rows: &mut SqliteRows, jobs: &mut [Box<dyn Job>]) -> Result<(), Failure> {
    let result = try_commit(rows, jobs).await;
    if result.is_err() {
        rows.roll_back().await;
    }
    result.map_err(|error| {
        let fault = Fault::from(error);
        Failure {
            transient: fault.is_transient(),
            problem: fault.problem(),
        }
    })
}

async fn try_commit(rows: &mut SqliteRows, jobs: &mut [Box<dyn Job>]) -> Result<(), sqlx::Error> {
    rows.begin().await?;
    if let [job] = jobs {
        // Alone it spoils no other.
        if job.run(rows).await {
            rows.commit().await?;
        } else {
            rows.roll_back().await;
        }
        return Ok(());
    }
    for job in jobs {
        rows.begin_part().await?;
        let done = job.run(rows).await;
        // Fails when SQLite undid the whole transaction, and so do all of its jobs then.
        rows.end_part(done).await?;
    }
    rows.commit().await
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use sqlx::ConnectOptions as _;
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;

    fn boxed<T, F>(work: F) -> Work<T>
    where
        F: for<'a> FnOnce(&'a mut SqliteRows) -> BoxFuture<'a, Result<T, Fault>> + Send + 'static,
    {
        Box::new(work)
    }

    async fn writer() -> Writer {
        let mut connection = SqliteConnectOptions::new()
            .in_memory(true)
            .connect()
            .await
            .expect("a database");
        sqlx::query("CREATE TABLE kept (value INTEGER NOT NULL UNIQUE, filling BLOB)")
            .execute(&mut connection)
            .await
            .expect("a table");
        Writer::start(connection, Damage::default(), None)
    }

    /// Writes a value, and fails afterwards if told so.
    async fn put(writer: &Writer, value: i64, bytes: i64, fails: bool) -> Result<(), StoreError> {
        let work = boxed(move |rows| {
            Box::pin(async move {
                sqlx::query("INSERT INTO kept (value, filling) VALUES (?1, zeroblob(?2))")
                    .bind(value)
                    .bind(bytes)
                    .execute(rows.connection())
                    .await?;
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
                let query = sqlx::query_scalar("SELECT value FROM kept ORDER BY value");
                Ok(query.fetch_all(rows.connection()).await?)
            })
        });
        writer.write("read", work).await.expect("readable")
    }

    /// Makes the task wait in a transaction of its own until the sender is used, so that what arrives meanwhile is committed
    /// together.
    async fn busy(writer: &Writer) -> (oneshot::Sender<()>, impl Future<Output = ()>) {
        let (started, has_started) = oneshot::channel::<()>();
        let (go_on, may_go_on) = oneshot::channel::<()>();
        let work = boxed(move |_| {
            Box::pin(async move {
                let _ = started.send(());
                let _ = may_go_on.await;
                Ok(())
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
        has_started.await.expect("it starts");
        let done = async move { answer.await.expect("answered").expect("done") };
        (go_on, done)
    }

    #[tokio::test]
    async fn job_that_fails_leaves_nothing_and_spoils_no_other() {
        let writer = writer().await;
        let (go_on, waited) = busy(&writer).await;
        let jobs = (0..6).map(|value| put(&writer, value % 5, 0, value == 1));
        let (answers, (), ()) = tokio::join!(join_all(jobs), waited, async {
            // The jobs are polled first, so all of them are in the queue.
            go_on.send(()).expect("it waits");
        });
        let done: Vec<bool> = answers.iter().map(Result::is_ok).collect();
        // The second was told to fail; the last repeats a value, which the table refuses.
        assert_eq!(done, [true, false, true, true, true, false]);
        assert_eq!(kept(&writer).await, [0, 2, 3, 4]);
    }

    #[tokio::test]
    async fn full_disk_loses_nothing_and_keeps_nothing_of_what_failed() {
        let writer = writer().await;
        put(&writer, 1, 0, false).await.expect("room");
        let limit = boxed(|rows| {
            Box::pin(async move {
                sqlx::query("PRAGMA max_page_count = 8")
                    .execute(rows.connection())
                    .await?;
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
        let writer = writer().await;
        let (go_on, waited) = busy(&writer).await;
        {
            let abandoned = put(&writer, 7, 0, false);
            tokio::pin!(abandoned);
            assert!(futures_util::poll!(&mut abandoned).is_pending());
        }
        go_on.send(()).expect("it waits");
        waited.await;
        assert_eq!(kept(&writer).await, [7]);
    }

    #[tokio::test]
    async fn closing_finishes_what_was_asked_for() {
        let writer = writer().await;
        let (go_on, waited) = busy(&writer).await;
        let (answer, (), (), ()) = tokio::join!(
            put(&writer, 7, 0, false),
            waited,
            async {
                go_on.send(()).expect("it waits");
            },
            writer.close()
        );
        answer.expect("committed");
        assert!(put(&writer, 8, 0, false).await.is_err());
    }
}
