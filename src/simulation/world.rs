//! The worlds outside the daemon, together, and the points at which it can be stopped.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::{FingerprintKey, Timestamp};

use super::chance::Chance;
use super::climate::{Climate, Latency};
use super::executor::{Handle, yield_now};
use super::laws::{Law, Laws};
use super::log::Log;
use super::provider::Provider;
use super::remote::Remote;

/// Everything outside the daemon.
pub(super) struct World {
    pub(super) handle: Handle,
    pub(super) chance: Chance,
    pub(super) log: Log,
    pub(super) climate: Climate,
    /// Whether faults happen.
    pub(super) stormy: bool,
    pub(super) provider: Provider,
    pub(super) remote: Remote,
    pub(super) laws: Laws,
    pub(super) key: FingerprintKey,
    pub(super) store_down_until: Timestamp,
    /// Fates that a scenario has laid down, taken before chance decides.
    pub(super) script: std::collections::VecDeque<super::fate::Fate>,
    /// How long the next readings of rows by their keys take, as a scenario has laid down.
    pub(super) fetches_take: std::collections::VecDeque<Duration>,
    /// How often the secret of the first row has changed since a scenario said that it changes after every reading.
    pub(super) restless: Option<u64>,
    /// The cursors whose rows polls have left to sweeps, and when they last did.
    pub(super) left_to_sweeps: std::collections::BTreeMap<String, Timestamp>,
}

/// The worlds as the simulated sides share them; never locked across an await.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub(super) fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    pub(super) fn now(&self) -> Timestamp {
        self.handle.now()
    }

    pub(super) fn say(&mut self, event: fmt::Arguments<'_>) {
        let now = self.handle.now();
        self.log.say(now, event);
    }

    pub(super) fn broken(&mut self, law: Law, what: String) {
        let now = self.handle.now();
        self.log.say(now, format_args!("BROKEN {law}: {what}"));
        self.laws.broken(law, now, what);
    }

    /// Whether something of this rate happens now.
    pub(super) fn strikes(&mut self, rate: u64) -> bool {
        self.stormy && self.chance.per_mille(rate)
    }

    fn latency(&mut self) -> Option<Duration> {
        match self.climate.latency {
            Latency::None => None,
            Latency::Yields => Some(Duration::ZERO),
            Latency::Slow if self.chance.one_in(4) => {
                let most = if self.chance.one_in(20) { 3000 } else { 60 };
                Some(Duration::from_millis(self.chance.between(1, most)))
            }
            Latency::Slow => Some(Duration::ZERO),
        }
    }
}

/// The await points of one run of a process.
#[derive(Clone)]
pub(super) struct Points(Arc<Counter>);

struct Counter {
    passed: AtomicU64,
    stop_at: u64,
    stopped: AtomicBool,
    world: Shared,
    handle: Handle,
}

impl Points {
    /// Points of which the one of this number is never left; 0: none.
    pub(super) fn new(world: &Shared, handle: &Handle, stop_at: u64) -> Self {
        Self(Arc::new(Counter {
            passed: AtomicU64::new(0),
            stop_at,
            stopped: AtomicBool::new(false),
            world: world.clone(),
            handle: handle.clone(),
        }))
    }

    /// Whether the process came to the point at which it is killed.
    pub(super) fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Relaxed)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.handle.now()
    }

    pub(super) fn passed(&self) -> u64 {
        self.0.passed.load(Ordering::Relaxed)
    }

    /// A point at which the process may end, without any time passing.
    pub(super) async fn pass_at_once(&self) {
        let number = self.0.passed.fetch_add(1, Ordering::Relaxed) + 1;
        if self.is_stopped() || number == self.0.stop_at {
            self.0.stopped.store(true, Ordering::Relaxed);
            std::future::pending::<()>().await;
        }
    }

    /// Lets so much time pass.
    pub(super) async fn take(&self, time: Duration) {
        self.pass_at_once().await;
        self.0.handle.sleep(time).await;
    }

    /// One await point: others may run, time may pass, or the process ends here.
    pub(super) async fn pass(&self) {
        self.pass_at_once().await;
        let latency = self.0.world.lock().latency();
        match latency {
            None => {}
            Some(Duration::ZERO) => yield_now().await,
            Some(latency) => self.0.handle.sleep(latency).await,
        }
    }
}
