//! A job per change on graphile_worker.
//!
//! For throughput it is set as its own throughput benchmark is: a local queue, and completions recorded in batches after 5 ms. With
//! 64 jobs at a time a local queue of 1,000 was the fastest of 100 to 5,000, and two queues were no faster than one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use graphile_worker::worker_utils::WorkerUtils;
use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, TaskHandler, WorkerContext, WorkerOptions,
};
use sqlx::PgPool;

use crate::job::{Change, Sender};
use crate::queue::Tuning;

/// Counts the jobs that are not done: one that is done is deleted.
pub(crate) const LEFT: &str = "SELECT count(*) FROM graphile_worker._private_jobs";

const SCHEMA: &str = "graphile_worker";
/// Jobs that the local queue fetches at once.
const FETCHED: usize = 1_000;
/// How often a worker looks for jobs. Where there is no local queue, each look lets every free place take one job and no more, so that
/// the second that it is by default would allow 64 jobs a second of those that wait already.
const POLL: Duration = Duration::from_millis(5);
/// How long completions are gathered.
const DELAY: Duration = Duration::from_millis(5);

/// Puts a job for each change into an empty database's queue, in one call; returns what that call took.
pub(crate) async fn enqueue(pool: PgPool, changes: Vec<Change>) -> Duration {
    let utils = WorkerUtils::new(pool, SCHEMA);
    utils.migrate().await.expect("the database is empty");
    let spec = JobSpec::default();
    let jobs: Vec<_> = changes.into_iter().map(|change| (change, &spec)).collect();
    let started = Instant::now();
    utils.add_jobs(&jobs).await.expect("the queue is there");
    started.elapsed()
}

/// Works until every change was answered and every job is recorded as done.
pub(crate) async fn work(pool: PgPool, tuning: Tuning, sender: Sender, in_flight: usize) {
    let options = WorkerOptions::default()
        .pg_pool(pool)
        .schema(SCHEMA)
        .concurrency(in_flight)
        .poll_interval(POLL)
        .listen_os_shutdown_signals(false)
        .add_extension(sender.clone())
        .define_job::<Change>();
    let options = match tuning {
        Tuning::Plain => options,
        Tuning::Throughput => options
            .complete_job_batch_delay(DELAY)
            .local_queue(LocalQueueConfig::default().with_size(FETCHED)),
    };
    let worker = Arc::new(options.init().await.expect("the queue is there"));
    let running = tokio::spawn({
        let worker = Arc::clone(&worker);
        async move { worker.run().await }
    });
    sender.finished().await;
    worker.request_shutdown();
    let ended = running.await.expect("the worker does not panic");
    ended.expect("the worker ends in order");
}

impl TaskHandler for Change {
    const IDENTIFIER: &'static str = "change";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        let sender: &Sender = context.get_ext().expect("the worker was given one");
        sender.send(self).await;
        Ok::<(), String>(())
    }
}
