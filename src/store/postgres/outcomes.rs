//! Outcomes of attempts, recorded together: whatever has arrived while one batch was being committed is the next batch.
//!
//! One outcome alone costs as many round trips and as many flushes of the server's disk as a hundred.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::model::ResourceKey;
use crate::store::fault::Fault;
use crate::store::steps;
use crate::store::{Advanced, Settlement, StoreError};

use super::pool::Pool;
use super::transact;

/// The most outcomes in one transaction.
const BATCH_MAX: usize = 256;
/// The most outcomes that wait; further ones make their senders wait.
const QUEUE_MAX: usize = 1024;
/// What failed, when it did.
const OPERATION: &str = "record an outcome";

type Answer = Result<Option<Advanced>, StoreError>;

struct Job {
    settlement: Settlement,
    reply: oneshot::Sender<Answer>,
}

/// The way to the task that records outcomes.
pub(super) struct Outcomes {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Outcomes {
    /// Starts the task.
    pub(super) fn start(pool: Arc<Pool>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        Self {
            jobs: Mutex::new(Some(sender)),
            task: Mutex::new(Some(tokio::spawn(run(pool, receiver)))),
        }
    }

    /// Records an outcome; returns after its commit. It is recorded even when the caller stops waiting.
    pub(super) async fn record(&self, settlement: Settlement) -> Answer {
        let closed = || StoreError::Failed {
            operation: OPERATION,
            problem: "the state is closed".to_owned(),
            transient: false,
        };
        let jobs = locked(&self.jobs).clone().ok_or_else(closed)?;
        let (reply, answer) = oneshot::channel();
        let job = Job { settlement, reply };
        jobs.send(job).await.map_err(|_| closed())?;
        drop(jobs);
        answer.await.map_err(|_| closed())?
    }

    /// Waits until everything that was given is recorded, and ends the task.
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

async fn run(pool: Arc<Pool>, mut jobs: mpsc::Receiver<Job>) {
    let mut arrived = Vec::with_capacity(BATCH_MAX);
    while jobs.recv_many(&mut arrived, BATCH_MAX).await > 0 {
        let (settlements, replies): (Vec<Settlement>, Vec<_>) = arrived
            .drain(..)
            .map(|Job { settlement, reply }| (settlement, reply))
            .unzip();
        let settlements = Arc::new(settlements);
        let answers = match record(&pool, &settlements).await {
            Ok(advanced) => advanced.into_iter().map(Ok).collect(),
            // What one of them breaks must not keep the others back.
            Err(fault) if !fault.is_transient() && settlements.len() > 1 => {
                one_by_one(&pool, &settlements).await
            }
            Err(fault) => {
                let transient = fault.is_transient();
                let problem = fault.problem();
                let failed = || StoreError::Failed {
                    operation: OPERATION,
                    problem: problem.clone(),
                    transient,
                };
                settlements.iter().map(|_| Err(failed())).collect()
            }
        };
        for (reply, answer) in replies.into_iter().zip::<Vec<Answer>>(answers) {
            // A caller that stopped waiting does not want the answer.
            let _ = reply.send(answer);
        }
    }
}

async fn one_by_one(pool: &Arc<Pool>, settlements: &[Settlement]) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(settlements.len());
    for settlement in settlements {
        let alone = Arc::new(vec![settlement.clone()]);
        let answer = match record(pool, &alone).await {
            Ok(mut advanced) => Ok(advanced.pop().flatten()),
            Err(fault) => Err(fault.during(OPERATION)),
        };
        answers.push(answer);
    }
    answers
}

async fn record(
    pool: &Arc<Pool>,
    settlements: &Arc<Vec<Settlement>>,
) -> Result<Vec<Option<Advanced>>, Fault> {
    let settlements = Arc::clone(settlements);
    transact(pool, &move |rows| {
        let settlements = Arc::clone(&settlements);
        Box::pin(async move {
            let keys: Vec<ResourceKey> = settlements.iter().map(|s| s.key.clone()).collect();
            rows.hold(&keys).await?;
            let mut advanced = Vec::with_capacity(settlements.len());
            for settlement in settlements.iter() {
                advanced.push(steps::advance(rows, settlement).await?);
            }
            Ok(advanced)
        })
    })
    .await
}
