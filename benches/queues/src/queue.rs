//! A job per change on a job queue: putting the jobs into it, and working them off, each in a process of its own.

use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::job::{Change, Sender};
use crate::process::Usage;
use crate::{apalis, graphile};

/// Requests in flight on every side.
pub(crate) const IN_FLIGHT: u32 = 64;

/// A queue that the daemon is compared with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queue {
    library: Library,
    tuning: Tuning,
    pub(crate) name: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Library {
    Graphile,
    Apalis,
}

/// How a queue is set. In both cases as many jobs run at a time as the daemon has requests in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tuning {
    /// Without what its documentation offers for throughput: jobs are taken, marked and recorded singly or in tens.
    Plain,
    /// For the most jobs in a second, by what its documentation offers for that.
    Throughput,
}

impl Queue {
    pub(crate) const GRAPHILE: Self = Self {
        library: Library::Graphile,
        tuning: Tuning::Throughput,
        name: "graphile_worker",
    };
    pub(crate) const GRAPHILE_PLAIN: Self = Self {
        tuning: Tuning::Plain,
        name: "graphile_worker, plain",
        ..Self::GRAPHILE
    };
    pub(crate) const APALIS: Self = Self {
        library: Library::Apalis,
        tuning: Tuning::Throughput,
        name: "apalis-postgres",
    };
    pub(crate) const APALIS_PLAIN: Self = Self {
        tuning: Tuning::Plain,
        name: "apalis-postgres, plain",
        ..Self::APALIS
    };

    /// The queue of this name.
    pub(crate) fn named(name: &str) -> Self {
        [
            Self::GRAPHILE,
            Self::GRAPHILE_PLAIN,
            Self::APALIS,
            Self::APALIS_PLAIN,
        ]
        .into_iter()
        .find(|queue| queue.name == name)
        .expect("a queue's name")
    }

    /// The statement that counts the jobs that are not done.
    pub(crate) fn left(self) -> &'static str {
        match self.library {
            Library::Graphile => graphile::LEFT,
            Library::Apalis => apalis::LEFT,
        }
    }
}

/// What it took to put the jobs into the queue.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Enqueued {
    pub(crate) seconds: f64,
}

/// What the process of the workers used from their start to their orderly end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Worked {
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_bytes: u64,
}

/// Makes the queue's tables and puts a job for each change into it, in one call of its interface for many jobs.
pub(crate) async fn enqueue(queue: Queue, database: &str, count: u64) -> Enqueued {
    let pool = pool(database).await;
    let changes: Vec<Change> = (0..count).map(Change::of).collect();
    let elapsed = match queue.library {
        Library::Graphile => graphile::enqueue(pool, changes).await,
        Library::Apalis => apalis::enqueue(pool, changes).await,
    };
    Enqueued {
        seconds: elapsed.as_secs_f64(),
    }
}

/// Works off `count` jobs until each was answered and recorded as done.
pub(crate) async fn work(queue: Queue, database: &str, mock: &str, count: u64) -> Worked {
    let pool = pool(database).await;
    let sender = Sender::new(mock, IN_FLIGHT.into(), count);
    let in_flight = usize::try_from(IN_FLIGHT).expect("a small number");
    let before = Usage::of(std::process::id());
    match queue.library {
        Library::Graphile => graphile::work(pool, queue.tuning, sender, in_flight).await,
        Library::Apalis => apalis::work(pool, queue.tuning, sender, in_flight).await,
    }
    let after = Usage::of(std::process::id());
    Worked {
        cpu_seconds: (after.cpu - before.cpu).as_secs_f64(),
        peak_bytes: after.peak_bytes,
    }
}

/// Connections for every job that runs, so that none waits for one.
async fn pool(database: &str) -> PgPool {
    PgPoolOptions::new()
        .max_connections(IN_FLIGHT)
        .connect(database)
        .await
        .expect("the private PostgreSQL answers")
}
