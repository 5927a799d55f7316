//! One run of the daemon: recovery, then dispatch and the loop that watches the source, as `app` composes them.
//!
//! Dropped at any await point it is a process that was killed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, join3, select};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Random};
use crate::dispatch::{Dispatcher, InstallationsQuery, Signals, Tokens, Until, Worlds};
use crate::model::Timestamp;
use crate::plan::backoff::Backoff;
use crate::reconcile::{PassError, Reconciler, Sweep, SweepStep};
use crate::source::Source;
use crate::store::Store;
use crate::vercel::Marketplace;

use super::backend::Committed;
use super::chance::DaemonChance;
use super::climate::Climate;
use super::executor::Handle;
use super::limits::Limits;
use super::marketplace::SimMarketplace;
use super::source::SimSource;
use super::state::SimStore;
use super::world::{Points, Shared};

/// The most rows that are read again at once.
const RECHECKS_MAX: u32 = 200;
/// Waits while the source cannot be read.
pub(super) const SOURCE_BACKOFF: Backoff = Backoff {
    initial: Duration::from_millis(500),
    multiplier: 2.0,
    max: Duration::from_secs(15),
};

/// What one run of a process is made from.
pub(super) struct Boot {
    pub(super) world: Shared,
    pub(super) handle: Handle,
    pub(super) points: Points,
    pub(super) committed: Committed,
    pub(super) climate: Climate,
    pub(super) seed: u64,
    /// Which process this is; the first watches the source.
    pub(super) number: usize,
    /// How often a process was started before: no two draw equal numbers.
    pub(super) run: u64,
    pub(super) stop: CancellationToken,
}

/// Runs the daemon until it is asked to stop.
pub(super) async fn run(boot: Boot) {
    let Boot {
        world,
        handle,
        points,
        committed,
        climate,
        seed,
        number,
        run,
        stop,
    } = boot;
    let source: Arc<dyn Source> = Arc::new(SimSource {
        world: world.clone(),
        points: points.clone(),
    });
    let store: Arc<dyn Store> = Arc::new(SimStore {
        world: world.clone(),
        points: points.clone(),
        committed: committed.clone(),
    });
    let marketplace: Arc<dyn Marketplace> = Arc::new(SimMarketplace {
        world: world.clone(),
        handle: handle.clone(),
        points,
        limits: Limits::new(&climate.dispatch),
        committed: committed.clone(),
    });
    let clock: Arc<dyn Clock> = Arc::new(handle.clone());
    let random: Arc<dyn Random> = Arc::new(DaemonChance::new(seed, run));
    let late_apply = climate.dispatch.retry.late_apply;
    let alone = climate.processes == 1;
    while store.recover(clock.now(), late_apply, alone).await.is_err() {
        // The service manager starts it again.
        clock.sleep(Duration::from_secs(1)).await;
    }
    let Ok(key) = store.fingerprint_key().await else {
        unreachable!("the key is read without faults")
    };
    let wake = Wake::default();
    let signals = Signals {
        work: Arc::clone(&wake.work),
        recheck: Arc::clone(&wake.recheck),
        stop: stop.clone(),
        ..Signals::default()
    };
    let worlds = Worlds {
        source: Arc::clone(&source),
        store: Arc::clone(&store),
        marketplace,
        clock: Arc::clone(&clock),
        random: Arc::clone(&random),
    };
    let (reread, handover) = (signals.reread.clone(), signals.handover.clone());
    let tokens = Tokens::new(Arc::new(InstallationsQuery(Arc::clone(&source))));
    let mut settings = climate.dispatch.clone();
    settings.owner = format!("process-{number}-{run}");
    let mut dispatcher = Dispatcher::new(worlds, key.clone(), tokens, settings, signals);
    let mut reconciler = Reconciler::new(source, store, Arc::clone(&clock), key, climate.reconcile);
    reconciler.hand_over(reread, handover);
    let watcher = Watcher {
        reconciler,
        clock: Arc::clone(&clock),
        random,
        wake: wake.clone(),
        stop: stop.clone(),
        world,
        committed,
    };
    let cron = pin_cron(clock, wake, stop, climate.poll_every, climate.sweep_every);
    let watching = async {
        if number == 0 {
            watcher.run().await;
        }
    };
    // Each is woken for itself: whoever waits is not asked again whenever another gets on.
    let parts: [BoxFuture<'_, ()>; 3] = [
        Box::pin(async {
            dispatcher.run(Until::Stopped).await;
        }),
        Box::pin(watching),
        Box::pin(cron),
    ];
    let mut running: FuturesUnordered<_> = parts.into_iter().collect();
    while running.next().await.is_some() {}
}

/// Signals polls and sweeps until told to stop.
async fn pin_cron(
    clock: Arc<dyn Clock>,
    wake: Wake,
    stop: CancellationToken,
    poll_every: Duration,
    sweep_every: Duration,
) {
    let every = |interval: Duration, signal: Arc<Notify>| {
        let clock = Arc::clone(&clock);
        async move {
            loop {
                clock.sleep(interval).await;
                signal.notify_one();
            }
        }
    };
    let both = Box::pin(join3(
        every(poll_every, wake.poll),
        every(sweep_every, wake.sweep),
        std::future::pending::<()>(),
    ));
    match select(both, Box::pin(stop.cancelled())).await {
        Either::Left(_) | Either::Right(_) => {}
    }
}

#[derive(Clone, Default)]
struct Wake {
    poll: Arc<Notify>,
    sweep: Arc<Notify>,
    recheck: Arc<Notify>,
    work: Arc<Notify>,
}

/// The loop of `app::watch`, without its log lines, and with the laws checked after each pass.
struct Watcher {
    reconciler: Reconciler,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    wake: Wake,
    stop: CancellationToken,
    world: Shared,
    committed: Committed,
}

#[derive(Clone, Copy)]
enum Task {
    Poll,
    Sweep,
    SweepPage,
    Recheck,
    Stop,
}

impl Watcher {
    async fn run(self) {
        let mut sweep: Option<Sweep> = None;
        let mut failures = 0_u32;
        self.wake.poll.notify_one();
        self.wake.sweep.notify_one();
        loop {
            let task = self.next(sweep.is_some(), failures).await;
            let result = match task {
                Task::Stop => return,
                Task::Poll => self.poll(&mut sweep).await,
                Task::Recheck => self.recheck().await,
                Task::Sweep => self.begin(&mut sweep).await,
                Task::SweepPage => self.page(&mut sweep).await,
            };
            if result.is_ok() {
                failures = 0;
                continue;
            }
            failures = failures.saturating_add(1);
            match task {
                Task::Recheck => self.wake.recheck.notify_one(),
                Task::Sweep => self.wake.sweep.notify_one(),
                Task::SweepPage | Task::Stop => {}
                Task::Poll => self.wake.poll.notify_one(),
            }
        }
    }

    async fn next(&self, sweeping: bool, failures: u32) -> Task {
        if failures > 0 {
            let wait = SOURCE_BACKOFF.interval(failures, self.random.fraction());
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Task::Stop,
                () = self.clock.sleep(wait) => {}
            }
        }
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Task::Stop,
            () = self.wake.poll.notified() => Task::Poll,
            () = self.wake.recheck.notified() => Task::Recheck,
            () = std::future::ready(()), if sweeping => Task::SweepPage,
            () = self.wake.sweep.notified() => Task::Sweep,
        }
    }

    async fn poll(&self, sweep: &mut Option<Sweep>) -> Result<(), PassError> {
        let started_at = self.clock.now();
        match self.reconciler.poll().await? {
            Some(report) => {
                self.passed(started_at, false).await;
                let counts = report.counts;
                if counts.enqueued + counts.folded + counts.withdrawn + counts.adopted > 0 {
                    self.wake.work.notify_one();
                }
                if report.needs_sweep.is_some() {
                    if let Some(under_way) = sweep {
                        under_way.owe();
                    }
                    self.wake.sweep.notify_one();
                }
            }
            None => self.begin(sweep).await?,
        }
        self.recheck().await
    }

    async fn recheck(&self) -> Result<(), PassError> {
        while self.reconciler.recheck(RECHECKS_MAX).await? == RECHECKS_MAX as usize {}
        self.wake.work.notify_one();
        Ok(())
    }

    async fn begin(&self, sweep: &mut Option<Sweep>) -> Result<(), PassError> {
        if sweep.is_none() {
            *sweep = Some(self.reconciler.begin_sweep().await?);
        }
        Ok(())
    }

    async fn page(&self, sweep: &mut Option<Sweep>) -> Result<(), PassError> {
        let Some(under_way) = sweep else {
            return Ok(());
        };
        if let SweepStep::Complete { report, .. } = self.reconciler.step(under_way).await? {
            *sweep = None;
            let progress = self.committed.progress().await?;
            if let Some(progress) = progress.sweep {
                self.passed(progress.started_at, true).await;
                self.world.lock().swept(&report, progress.started_at);
            }
        }
        self.wake.work.notify_one();
        Ok(())
    }

    /// Law 5: a pass that came to its end has decided on every row that was there when it began.
    async fn passed(&self, started_at: Timestamp, swept: bool) {
        let unread = self.world.lock().unread(started_at, swept);
        let keys: Vec<_> = unread.iter().map(|(_, key)| key.clone()).collect();
        if let Ok(glances) = self.committed.glance(&keys).await {
            let kind = if swept { "sweep" } else { "poll" };
            self.world.lock().decided(&unread, &glances, kind);
        }
    }
}
