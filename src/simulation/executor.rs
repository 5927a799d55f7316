//! One thread, one queue, one virtual clock: equal programs run in equal order.
//!
//! What is ready runs first in, first out. When nothing is, time jumps to the next timer. Nothing here looks at a real clock.

use std::cmp::Ordering as Order;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::Clock;
use crate::model::Timestamp;

use super::trial::Happening;

/// When every simulation starts.
pub(super) const BEGINNING: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// A task of the executor.
pub(super) type TaskId = usize;

/// What one step did.
#[derive(Debug)]
pub(super) enum Step {
    /// A task ran; true: to its end.
    Polled(TaskId, bool),
    /// A timer came due that is not a task's.
    Happened(Happening),
    /// Nothing will ever happen again.
    Idle,
}

/// Runs tasks.
pub(super) struct Executor {
    handle: Handle,
    tasks: BTreeMap<TaskId, Task>,
    spawned: TaskId,
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Arc<TaskWaker>,
    suspended: bool,
}

impl Executor {
    pub(super) fn new() -> Self {
        Self {
            handle: Handle(Arc::default()),
            tasks: BTreeMap::new(),
            spawned: 0,
        }
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    pub(super) fn spawn(&mut self, future: impl Future<Output = ()> + 'static) -> TaskId {
        let id = self.spawned;
        self.spawned += 1;
        let waker = Arc::new(TaskWaker {
            id,
            queued: AtomicBool::new(false),
            handle: self.handle.clone(),
        });
        waker.wake_by_ref();
        let future = Box::pin(future);
        let task = Task {
            future,
            waker,
            suspended: false,
        };
        self.tasks.insert(id, task);
        id
    }

    /// Drops a task where it stands.
    pub(super) fn kill(&mut self, id: TaskId) {
        self.tasks.remove(&id);
    }

    /// Lets a task stand still, or go on.
    pub(super) fn suspend(&mut self, id: TaskId, suspended: bool) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.suspended = suspended;
            if !suspended {
                task.waker.wake_by_ref();
            }
        }
    }

    /// Runs one task once, or lets the next timer come due.
    pub(super) fn step(&mut self) -> Step {
        loop {
            let next = self.handle.lock().ready.pop_front();
            let Some(id) = next else { break };
            let Some(task) = self.tasks.get_mut(&id) else {
                continue;
            };
            task.waker.queued.store(false, Ordering::Relaxed);
            if task.suspended {
                continue;
            }
            let waker = Waker::from(Arc::clone(&task.waker));
            let done = task
                .future
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_ready();
            if done {
                self.tasks.remove(&id);
            }
            return Step::Polled(id, done);
        }
        let timer = self.handle.lock().next_timer();
        let Some(Timer { at_ms, kind, .. }) = timer else {
            return Step::Idle;
        };
        self.handle.0.elapsed_ms.fetch_max(at_ms, Ordering::Relaxed);
        match kind {
            Kind::Wake(waker, _) => {
                waker.wake();
                self.step()
            }
            Kind::Happen(happening) => Step::Happened(happening),
        }
    }
}

/// The executor's clock and timers, for whoever runs in it.
#[derive(Clone)]
pub(super) struct Handle(Arc<Time>);

#[derive(Default)]
struct Time {
    /// Apart from the queue: it is looked at far more often than anything is queued.
    elapsed_ms: AtomicU64,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    sequence: u64,
    ready: VecDeque<TaskId>,
    timers: BinaryHeap<Timer>,
}

impl Queue {
    fn add(&mut self, at_ms: u64, kind: Kind) {
        self.sequence += 1;
        let timer = Timer {
            at_ms,
            sequence: self.sequence,
            kind,
        };
        self.timers.push(timer);
    }

    fn next_timer(&mut self) -> Option<Timer> {
        loop {
            let timer = self.timers.pop()?;
            match &timer.kind {
                Kind::Wake(_, cancelled) if cancelled.load(Ordering::Relaxed) => {}
                _ => return Some(timer),
            }
        }
    }
}

struct Timer {
    at_ms: u64,
    sequence: u64,
    kind: Kind,
}

enum Kind {
    Wake(Waker, Arc<AtomicBool>),
    Happen(Happening),
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> Order {
        // The heap gives the greatest first: the earliest timer, and of equal ones the first that was set.
        (other.at_ms, other.sequence).cmp(&(self.at_ms, self.sequence))
    }
}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}

impl Eq for Timer {}

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        let queue = &self.0.queue;
        queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed_ms(&self) -> u64 {
        self.0.elapsed_ms.load(Ordering::Relaxed)
    }

    pub(super) fn now(&self) -> Timestamp {
        BEGINNING.plus(Duration::from_millis(self.elapsed_ms()))
    }

    /// Lets something happen after a while.
    pub(super) fn after(&self, wait: Duration, happening: Happening) {
        let at_ms = self.elapsed_ms() + millis(wait);
        self.lock().add(at_ms, Kind::Happen(happening));
    }

    pub(super) fn sleep(&self, duration: Duration) -> Sleep {
        let until_ms = self.elapsed_ms() + millis(duration);
        Sleep {
            handle: self.clone(),
            until_ms,
            timer: None,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4)
}

/// Waits for the virtual clock.
pub(super) struct Sleep {
    handle: Handle,
    until_ms: u64,
    timer: Option<(Waker, Arc<AtomicBool>)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.handle.elapsed_ms() >= self.until_ms {
            return Poll::Ready(());
        }
        if let Some((waker, cancelled)) = &self.timer {
            if waker.will_wake(context.waker()) {
                return Poll::Pending;
            }
            cancelled.store(true, Ordering::Relaxed);
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        let waker = context.waker().clone();
        let kind = Kind::Wake(waker.clone(), Arc::clone(&cancelled));
        self.handle.lock().add(self.until_ms, kind);
        self.timer = Some((waker, cancelled));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((_, cancelled)) = &self.timer {
            cancelled.store(true, Ordering::Relaxed);
        }
    }
}

#[async_trait]
impl Clock for Handle {
    fn now(&self) -> Timestamp {
        Self::now(self)
    }

    async fn sleep(&self, duration: Duration) {
        Self::sleep(self, duration).await;
    }
}

struct TaskWaker {
    id: TaskId,
    queued: AtomicBool,
    handle: Handle,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.handle.lock().ready.push_back(self.id);
        }
    }
}

/// Lets everything else that is ready run first.
pub(super) async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
