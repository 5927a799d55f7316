//! From entries to requests: claims what is due, sends it, records what came of it.
//!
//! One task drives all requests; each is a future of its own in it, so that dropping the task drops everything at once, as a
//! crash would. Dispatch never decides what is desired: it sends what the claim says, or asks for the row to be read again.

mod deliver;
pub mod drift;
mod pace;
mod report;
mod token;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{Notify, watch};

use crate::clock::{Clock, Random};
use crate::metrics::Metrics;
use crate::model::{FieldSet, FingerprintKey, InstallationId, LeaseToken, Timestamp};
use crate::plan::outage::Outage;
use crate::plan::{RetryPolicy, SecretsWay};
use crate::planted::{Bug, is_planted};
use crate::progress::Mark;
use crate::source::Source;
use crate::store::{ClaimRequest, Pause, Store, StoreError};
use crate::vercel::Marketplace;

pub use deliver::{Delivery, Effect};
pub use pace::Pace;
use report::Report;
pub use report::{SharedTotals, Totals};
pub use token::{InstallationsQuery, TokenError, TokenSource, Tokens};

use deliver::Worker;

/// How often a person's acts beside the daemon (a retry, a release) are looked for when nothing else is due.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long dispatch waits after the state could not be read or written.
const STATE_RETRY: Duration = Duration::from_secs(1);
/// The most probes of paused installations that run at once.
const PROBES_MAX: usize = 4;

/// What dispatch depends on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who claims: unique to this process.
    pub owner: String,
    /// Requests at once.
    pub max_in_flight: u32,
    /// Requests at once for one installation.
    pub max_in_flight_per_installation: u32,
    /// Requests per minute for one installation; `None`: as many as Vercel takes.
    pub requests_per_minute_per_installation: Option<u32>,
    /// How long a claim lasts.
    pub lease: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// Intervals and limits of retries.
    pub retry: RetryPolicy,
    /// The fields left to Vercel.
    pub ignored: FieldSet,
    /// How secrets are sent: alone when they have an operation of their own.
    pub secrets: SecretsWay,
}

/// The outside worlds that dispatch works with.
#[derive(Clone)]
pub struct Worlds {
    /// Where secret values and tokens are read.
    pub source: Arc<dyn Source>,
    /// The outbox.
    pub store: Arc<dyn Store>,
    /// Where requests go.
    pub marketplace: Arc<dyn Marketplace>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub random: Arc<dyn Random>,
}

/// When a run of the dispatcher ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When it is told to stop.
    Stopped,
    /// When nothing waits that could be sent before this instant.
    Idle {
        /// The instant.
        deadline: Timestamp,
    },
}

/// Signals between dispatch and the rest of the process; both sides work without them, only later.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// There may be something to send.
    pub work: Arc<Notify>,
    /// A row is to be read again.
    pub recheck: Arc<Notify>,
    /// Stop claiming; let requests in flight end.
    pub stop: tokio_util::sync::CancellationToken,
    /// Left each time dispatch has looked for something to send.
    pub progressed: Mark,
    /// Where deliveries are counted.
    pub metrics: Arc<Metrics>,
}

/// Sends what is due.
pub struct Dispatcher {
    worlds: Worlds,
    settings: Settings,
    signals: Signals,
    worker: Arc<Worker>,
    outage: Outage,
    pace: Pace,
    report: Report,
    in_flight: BTreeMap<InstallationId, u32>,
    probing: BTreeMap<InstallationId, ()>,
    last_served: Option<InstallationId>,
    state_failed: bool,
    /// Settings to take over, if they may change.
    followed: Option<watch::Receiver<Settings>>,
}

type Running<'a> = FuturesUnordered<BoxFuture<'a, Delivery>>;

impl Dispatcher {
    /// A dispatcher between a state and Vercel.
    #[must_use]
    pub fn new(
        worlds: Worlds,
        key: FingerprintKey,
        tokens: Tokens,
        settings: Settings,
        signals: Signals,
    ) -> Self {
        let worker = Worker::new(worlds.clone(), key, tokens, settings.clone());
        Self {
            outage: Outage::new(settings.retry.backoff.initial),
            pace: Pace::new(settings.requests_per_minute_per_installation),
            report: Report::new(Arc::clone(&signals.metrics)),
            in_flight: BTreeMap::new(),
            probing: BTreeMap::new(),
            last_served: None,
            state_failed: false,
            followed: None,
            worker: Arc::new(worker),
            worlds,
            settings,
            signals,
        }
    }

    /// What has been done since the start, as it grows.
    #[must_use]
    pub fn totals(&self) -> SharedTotals {
        self.report.shared()
    }

    /// Takes over these settings whenever they change, from the next claim on; what is in flight ends under the old ones.
    /// `owner`, `lease`, `request_timeout` and `secrets` belong to the process and must stay as they were.
    pub fn follow(&mut self, settings: watch::Receiver<Settings>) {
        self.followed = Some(settings);
    }

    fn configure(&mut self) {
        let followed = self.followed.as_mut();
        let Some(changed) = followed.filter(|f| f.has_changed().unwrap_or(false)) else {
            return;
        };
        let settings = changed.borrow_and_update().clone();
        self.worker = Arc::new(self.worker.configured(settings.clone()));
        self.pace
            .configure(settings.requests_per_minute_per_installation);
        self.outage.configure(settings.retry.backoff.initial);
        self.settings = settings;
    }

    /// Sends until told to stop, or until idle; requests in flight always end first.
    ///
    /// Returns what was done.
    pub async fn run(&mut self, until: Until) -> Totals {
        let mut running: Running<'_> = FuturesUnordered::new();
        loop {
            self.configure();
            let stopping = self.signals.stop.is_cancelled();
            let wait = if stopping {
                LOOK_AGAIN
            } else {
                self.fill(&mut running).await
            };
            self.signals.progressed.leave();
            if running.is_empty() && (stopping || self.is_idle(until).await) {
                return *self.totals().lock().unwrap_or_else(PoisonError::into_inner);
            }
            tokio::select! {
                biased;
                Some(delivery) = running.next(), if !running.is_empty() => self.finish(delivery),
                () = self.signals.stop.cancelled(), if !stopping => {}
                () = self.signals.work.notified() => {}
                () = self.worlds.clock.sleep(wait) => {}
            }
        }
    }

    /// Whether nothing waits that could be sent before the deadline.
    async fn is_idle(&self, until: Until) -> bool {
        let Until::Idle { deadline } = until else {
            return false;
        };
        if self.worlds.clock.now() >= deadline {
            return true;
        }
        match self.worlds.store.next_due().await {
            Ok(next) => next.is_none_or(|due_at| due_at > deadline),
            Err(_) => false,
        }
    }

    /// Starts what may start now; returns how long to wait for the next.
    async fn fill(&mut self, running: &mut Running<'_>) -> Duration {
        match self.start_due(running).await {
            Ok(wait) => {
                if std::mem::take(&mut self.state_failed) {
                    self.report.state_recovered();
                }
                wait
            }
            Err(error) => {
                // If the state cannot be written nothing is sent.
                self.signals.metrics.state_failures.add(1);
                if !std::mem::replace(&mut self.state_failed, true) {
                    self.report.state_failed(&error);
                }
                STATE_RETRY
            }
        }
    }

    async fn start_due(&mut self, running: &mut Running<'_>) -> Result<Duration, StoreError> {
        if self.outage.since().is_none() {
            self.start_probes(running, PROBES_MAX).await?;
        }
        let now = self.worlds.clock.now();
        let busy: u32 = self.in_flight.values().sum();
        let free = self.settings.max_in_flight.saturating_sub(busy);
        let under_way = busy as usize + self.probing.len();
        let allowed = self.outage.allowance(now, under_way, free as usize);
        if allowed > 0 {
            let claimed = self
                .claim(now, u32::try_from(allowed).unwrap_or(u32::MAX))
                .await?;
            let count = claimed.len();
            for claim in claimed {
                let installation_id = claim.key.installation_id.clone();
                self.pace.spent(&installation_id, now);
                *self.in_flight.entry(installation_id.clone()).or_default() += 1;
                self.last_served = Some(installation_id);
                let worker = Arc::clone(&self.worker);
                running.push(Box::pin(async move { worker.deliver(claim).await }));
            }
            if count == 0 && self.outage.since().is_some() {
                // All that waits may belong to paused installations: then one of their probes finds out whether the API
                // answers again, or nothing ever would.
                self.start_probes(running, 1).await?;
            }
            if count == allowed && count < free as usize {
                return Ok(LOOK_AGAIN);
            }
        }
        self.until_next(now).await
    }

    async fn claim(
        &self,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<crate::plan::Claimed>, StoreError> {
        let tokens = (0..limit)
            .map(|_| match is_planted(Bug::LeaseTokenReused) {
                true => LeaseToken(1),
                false => LeaseToken(self.worlds.random.unique()),
            })
            .collect();
        let request = ClaimRequest {
            now,
            owner: self.settings.owner.clone(),
            lease_expires_at: now.plus(self.settings.lease),
            tokens,
            limit,
            per_installation: self.settings.max_in_flight_per_installation,
            in_flight: self.in_flight.clone(),
            after: self.last_served.clone(),
            excluded: self.pace.exhausted(now),
            late_apply: self.settings.retry.late_apply,
            secrets: self.settings.secrets,
        };
        self.worlds.store.claim(&request).await
    }

    /// How long nothing will be due.
    async fn until_next(&self, now: Timestamp) -> Result<Duration, StoreError> {
        let due = self.worlds.store.next_due().await?;
        let mut wait = due
            .map_or(LOOK_AGAIN, |due_at| due_at.since(now))
            .min(LOOK_AGAIN);
        if let Some(probe_at) = self.outage.next_probe_at() {
            wait = wait.max(probe_at.since(now).min(LOOK_AGAIN));
        }
        // What is due already but was not claimed waits for a place, which wakes this loop by itself.
        Ok(if wait.is_zero() { LOOK_AGAIN } else { wait })
    }

    /// Starts probes of paused installations, so that at most `limit` are under way.
    async fn start_probes(
        &mut self,
        running: &mut Running<'_>,
        limit: usize,
    ) -> Result<(), StoreError> {
        let free = limit.saturating_sub(self.probing.len());
        if free == 0 || is_planted(Bug::PauseNeverProbed) {
            return Ok(());
        }
        let now = self.worlds.clock.now();
        let due = self
            .worlds
            .store
            .probes_due(now, u32::try_from(PROBES_MAX).unwrap_or(u32::MAX))
            .await?;
        let idle = |pause: &Pause| !self.probing.contains_key(&pause.installation_id);
        let due: Vec<Pause> = due.into_iter().filter(idle).take(free).collect();
        for pause in due {
            self.probing.insert(pause.installation_id.clone(), ());
            let worker = Arc::clone(&self.worker);
            running.push(Box::pin(async move { worker.probe(pause).await }));
        }
        Ok(())
    }

    /// Takes note of a delivery or probe that ended.
    fn finish(&mut self, delivery: Delivery) {
        let now = self.worlds.clock.now();
        let installation_id = &delivery.key.installation_id;
        if delivery.is_probe() {
            self.probing.remove(installation_id);
        } else if let Some(count) = self.in_flight.get_mut(installation_id) {
            *count -= 1;
            if *count == 0 {
                self.in_flight.remove(installation_id);
            }
        }
        let transition = match delivery.reached {
            deliver::Reached::Answered => self.outage.answered(now),
            deliver::Reached::Failed => {
                self.outage
                    .failed(&delivery.key, now, self.worlds.random.fraction())
            }
            deliver::Reached::NotTried => None,
        };
        if delivery.wants_recheck() {
            self.signals.recheck.notify_one();
        }
        self.report.transition(transition, self.outage.since());
        self.report
            .delivery(&delivery, self.outage.since().is_some(), now);
    }
}
