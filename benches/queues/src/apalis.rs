//! A job per change on apalis with its PostgreSQL storage.
//!
//! For throughput it takes many jobs at a time, as the documentation of the setting advises, and does not mark each once more when it
//! begins; that a worker has taken it is recorded when it is fetched. 5,000 were the fastest of 10 to 5,000, and several workers were
//! no faster than one that takes as many. What was answered is recorded when all that was fetched has begun, so that a worker that
//! is killed leaves up to that many to be sent again. Without persisted results a job would never be done, so they stay.

use std::io;
use std::time::{Duration, Instant};

use apalis::prelude::{
    BoxDynError, Data, ParallelizeExt as _, TaskSink as _, WorkerBuilder, WorkerBuilderExt as _,
};
use apalis_postgres::PostgresStorage;
use sqlx::PgPool;

use crate::job::{Change, Sender};
use crate::queue::Tuning;

/// Counts the jobs that are not done.
pub(crate) const LEFT: &str = "SELECT count(*) FROM apalis.jobs WHERE status <> 'Done'";

/// Jobs that are fetched at once.
const FETCHED: usize = 5_000;

/// Puts a job for each change into an empty database's queue, in one call; returns what that call took.
pub(crate) async fn enqueue(pool: PgPool, changes: Vec<Change>) -> Duration {
    let prepared = PostgresStorage::setup(&pool).await;
    prepared.expect("the database is empty");
    let mut storage = PostgresStorage::new(&pool);
    let started = Instant::now();
    let pushed = storage.push_bulk(changes).await;
    pushed.expect("the queue is there");
    started.elapsed()
}

/// Works until every change was answered and every job is recorded as done.
pub(crate) async fn work(pool: PgPool, tuning: Tuning, sender: Sender, in_flight: usize) {
    let storage: PostgresStorage<Change> = PostgresStorage::new(&pool);
    let config = storage.config().clone();
    let config = match tuning {
        Tuning::Plain => config,
        Tuning::Throughput => config.batch_size(FETCHED).lock_tasks(false),
    };
    let finished = sender.clone();
    WorkerBuilder::new("worker")
        .backend(storage.with_config(config))
        .concurrency(in_flight)
        .parallelize(tokio::spawn)
        .data(sender)
        .build(send)
        .run_until(async move {
            finished.finished().await;
            Ok::<(), io::Error>(())
        })
        .await
        .expect("the worker ends in order");
}

async fn send(change: Change, sender: Data<Sender>) -> Result<(), BoxDynError> {
    sender.send(change).await;
    Ok(())
}
