//! From entries to requests: claims what is due, sends it, records what came of it.
//!
//! One task drives all requests; each is a future of its own in it, so that dropping the task drops everything at once, as a
//! crash would. Dispatch never decides what is desired: it sends what the claim says, or asks for the row to be read again.

mod deliver;
pub mod drift;
mod pace;
mod places;
mod report;
mod token;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Random};
use crate::handover::Handover;
use crate::metrics::Metrics;
use crate::model::{FieldSet, FingerprintKey, InstallationId, LeaseToken, ResourceKey, Timestamp};
use crate::plan::outage::Outage;
use crate::plan::{Claimed, RetryPolicy, SecretsWay};
use crate::planted::{Bug, is_planted};
use crate::progress::Mark;
use crate::reread::Reread;
use crate::source::Source;
use crate::store::{ClaimRequest, Pause, Store, StoreError};
use crate::vercel::Marketplace;

pub use deliver::{Delivery, Effect};
pub use pace::Pace;
use report::Report;
pub use report::{SharedTotals, Totals};
pub use token::{InstallationsQuery, TokenError, TokenSource, Tokens};

use deliver::{Answered, Supply, Worker};

/// How often a person's acts beside the daemon (a retry, a release) are looked for when nothing else is due.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long dispatch waits after the state could not be read or written.
const STATE_RETRY: Duration = Duration::from_secs(1);
/// How many answers per place may wait to be recorded before nothing more is claimed.
const UNRECORDED_PER_PLACE_MAX: usize = 8;
/// How many entries per place may be claimed beyond the places, so that a commit that takes long does not leave them empty.
const AHEAD_PER_PLACE_MAX: usize = 7;
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
    pub stop: CancellationToken,
    /// Whether another process probes paused installations: one for all that share a state is enough.
    pub probes_elsewhere: Arc<AtomicBool>,
    /// Secrets of rows that were read again, by who read them.
    pub reread: Reread,
    /// Where free places are laid out for passes, while nothing is due.
    pub handover: Handover,
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
    /// Claimed and not answered yet, by installation.
    in_flight: BTreeMap<InstallationId, u32>,
    /// Those of claims whose outcome is not recorded yet.
    leases: BTreeMap<LeaseToken, Lease>,
    probing: BTreeMap<InstallationId, ()>,
    last_served: Option<InstallationId>,
    state_failed: bool,
    claims: Claims,
    /// What a pass may be claiming for this dispatcher.
    offered: Option<oneshot::Receiver<Vec<Claimed>>>,
    /// Answered, and waiting for the batch before to be recorded.
    unrecorded: Vec<Answered>,
    is_recording: bool,
    /// Whether claiming and recording have got on since the last mark.
    moved: (bool, bool),
    probes_looked_for: Option<Timestamp>,
    /// Settings to take over, if they may change.
    followed: Option<watch::Receiver<Settings>>,
}

/// The lease of a delivery under way.
struct Lease {
    expires_at: Timestamp,
    /// Told to the delivery when it must end.
    over: CancellationToken,
}

/// Claims are made one after another, beside the requests.
#[derive(Debug, Default)]
struct Claims {
    /// How many entries the claim under way asked for, and when.
    asked: Option<(usize, Timestamp)>,
    /// A claim of that time found less than it asked for, or failed: what it found is waited upon before the next.
    found: Option<(Timestamp, Result<usize, StoreError>)>,
    /// Requests answered since the last claim began.
    answered: usize,
    /// Entries that are claimed beyond the places, so that a place is taken again while a claim is being committed: as many as
    /// were answered during the last one.
    ahead: usize,
}

type Running<'a> = FuturesUnordered<BoxFuture<'a, Ended>>;

/// Something that ended in the dispatcher's task.
enum Ended {
    /// A claim.
    Claim(Result<Vec<Claimed>, StoreError>),
    /// What several deliveries need from the source was read together.
    Supplied(Vec<(Claimed, Supply)>),
    /// A request was answered, or came to nothing.
    Answer(Box<Answered>),
    /// Outcomes were recorded; those that could not be, together, are tried one by one.
    Record(Vec<Delivery>, Vec<Answered>),
    /// The outcome of one that was tried by itself.
    Single(Box<Delivery>),
    /// A probe of a paused installation.
    Probe(Box<Delivery>),
}

/// What a pass claimed; waits for ever when nothing is laid out.
async fn handed_over(
    offered: &mut Option<oneshot::Receiver<Vec<Claimed>>>,
) -> Option<Result<Vec<Claimed>, oneshot::error::RecvError>> {
    match offered {
        Some(claimed) => Some(claimed.await),
        None => std::future::pending().await,
    }
}

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
        let worker = Worker::new(worlds.clone(), key, tokens, settings.clone(), &signals);
        Self {
            outage: Outage::new(settings.retry.backoff.initial),
            pace: Pace::new(settings.requests_per_minute_per_installation),
            report: Report::new(Arc::clone(&signals.metrics)),
            leases: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            probing: BTreeMap::new(),
            last_served: None,
            state_failed: false,
            claims: Claims::default(),
            offered: None,
            unrecorded: Vec::new(),
            is_recording: false,
            moved: (false, false),
            probes_looked_for: None,
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
            let handing_over = !self.withdraw();
            let stopping = self.signals.stop.is_cancelled();
            self.record(&running);
            let wait = if stopping {
                LOOK_AGAIN
            } else {
                self.fill(&mut running).await
            };
            self.mark(handing_over);
            if running.is_empty() && (stopping || self.is_idle(until).await) && self.withdraw() {
                return *self.totals().lock().unwrap_or_else(PoisonError::into_inner);
            }
            tokio::select! {
                biased;
                Some(ended) = running.next(), if !running.is_empty() => {
                    self.take(&running, ended);
                    // What has ended by now is recorded together, and its places are filled by one claim.
                    while let Some(Some(ended)) = running.next().now_or_never() {
                        self.take(&running, ended);
                    }
                }
                Some(claimed) = handed_over(&mut self.offered) => {
                    self.offered = None;
                    if let Ok(claimed) = claimed {
                        self.claimed(&running, Ok(claimed));
                    }
                }
                () = self.signals.stop.cancelled(), if !stopping => {}
                () = self.signals.work.notified() => {}
                () = self.worlds.clock.sleep(wait) => {}
            }
        }
    }

    /// Leaves a mark once both claiming and recording have got on since the last one, or had nothing to do: either may hang
    /// while the loop turns.
    fn mark(&mut self, handing_over: bool) {
        self.moved.0 |= self.claims.asked.is_none() && !handing_over;
        self.moved.1 |= !self.is_recording;
        if self.moved == (true, true) {
            self.moved = (false, false);
            self.signals.progressed.leave();
        }
    }

    /// Takes note of what ended, and starts what follows from it.
    fn take(&mut self, running: &Running<'_>, ended: Ended) {
        match ended {
            Ended::Claim(claimed) => {
                self.moved.0 = true;
                self.claimed(running, claimed);
            }
            Ended::Supplied(supplied) => {
                for (claimed, supply) in supplied {
                    self.deliver(running, claimed, supply);
                }
            }
            Ended::Answer(answered) => {
                self.answered(&answered);
                self.unrecorded.push(*answered);
            }
            Ended::Record(deliveries, failed) => {
                self.is_recording = false;
                self.moved.1 = true;
                deliveries.iter().for_each(|delivery| self.finish(delivery));
                for answered in failed {
                    let worker = Arc::clone(&self.worker);
                    running.push(Box::pin(async move {
                        Ended::Single(Box::new(worker.record_one(answered).await))
                    }));
                }
            }
            Ended::Single(delivery) => self.finish(&delivery),
            Ended::Probe(delivery) => {
                self.probing.remove(&delivery.key.installation_id);
                self.reached(&delivery.key, delivery.reached);
                self.finish(&delivery);
            }
        }
    }

    fn claimed(&mut self, running: &Running<'_>, claimed: Result<Vec<Claimed>, StoreError>) {
        let now = self.worlds.clock.now();
        let (asked, asked_at) = self.claims.asked.take().unwrap_or((0, now));
        self.claims.ahead = self.claims.answered;
        let claimed = match claimed {
            Ok(claimed) => claimed,
            Err(error) => {
                self.claims.found = Some((asked_at, Err(error)));
                return;
            }
        };
        if claimed.len() < asked {
            self.claims.found = Some((asked_at, Ok(claimed.len())));
        }
        let mut needy = Vec::new();
        for claim in claimed {
            let installation_id = claim.key.installation_id.clone();
            self.pace.spent(&installation_id, now);
            *self.in_flight.entry(installation_id.clone()).or_default() += 1;
            self.last_served = Some(installation_id);
            let lease = Lease {
                expires_at: claim.lease_expires_at,
                over: CancellationToken::new(),
            };
            self.leases.insert(claim.token, lease);
            if claim.patch.secrets.is_some() {
                needy.push(claim);
            } else {
                self.deliver(running, claim, Supply::None);
            }
        }
        if needy.len() > 1 {
            let worker = Arc::clone(&self.worker);
            running.push(Box::pin(async move {
                Ended::Supplied(worker.supply(needy).await)
            }));
        } else {
            for claim in needy {
                self.deliver(running, claim, Supply::None);
            }
        }
    }

    fn deliver(&self, running: &Running<'_>, claimed: Claimed, supply: Supply) {
        let worker = Arc::clone(&self.worker);
        let lease = self.leases.get(&claimed.token);
        let over = lease.map_or_else(CancellationToken::new, |lease| lease.over.clone());
        running.push(Box::pin(async move {
            Ended::Answer(Box::new(worker.deliver(claimed, supply, over).await))
        }));
    }

    /// Has what was answered recorded, all of it in one transaction.
    fn record(&mut self, running: &Running<'_>) {
        if self.is_recording || self.unrecorded.is_empty() {
            return;
        }
        self.is_recording = true;
        let (worker, batch) = (
            Arc::clone(&self.worker),
            std::mem::take(&mut self.unrecorded),
        );
        running.push(Box::pin(async move {
            let (deliveries, failed) = worker.record_all(batch).await;
            Ended::Record(deliveries, failed)
        }));
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
        let now = self.worlds.clock.now();
        if self.outage.since().is_none() && self.may_look_for_probes(now) {
            self.start_probes(running, PROBES_MAX).await?;
        }
        if self.end_leases(now) {
            // Their ends wake this loop.
            return Ok(LOOK_AGAIN);
        }
        if self.claims.asked.is_some() || self.offered.is_some() {
            // Its end wakes this loop.
            return Ok(LOOK_AGAIN);
        }
        match self.claims.found.take() {
            Some((_, Err(error))) => return Err(error),
            Some((asked_at, Ok(count))) => {
                if count == 0 && self.outage.since().is_some() {
                    // All that waits may belong to paused installations: then one of their probes finds out whether the API
                    // answers again, or nothing ever would.
                    self.start_probes(running, 1).await?;
                }
                let wait = self.until_next(asked_at).await?;
                self.lay_out();
                return Ok(wait);
            }
            None => {}
        }
        let asked = self.room(now);
        if asked > 0 {
            self.claims.asked = Some((asked, now));
            self.claims.answered = 0;
            let limit = u32::try_from(asked).unwrap_or(u32::MAX);
            let (store, request) = (Arc::clone(&self.worlds.store), self.request(now, limit));
            running.push(Box::pin(async move {
                Ended::Claim(store.claim(&request).await)
            }));
            return Ok(LOOK_AGAIN);
        }
        match self.outage.since() {
            Some(_) => self.until_next(now).await,
            // A place that becomes free wakes this loop.
            None => Ok(LOOK_AGAIN),
        }
    }

    /// Lays out the free places: what a pass finds from here on it claims with the page.
    fn lay_out(&mut self) {
        let now = self.worlds.clock.now();
        let room = self.room(now);
        if room == 0 || self.outage.since().is_some() {
            return;
        }
        let request = self.request(now, u32::try_from(room).unwrap_or(u32::MAX));
        let handover = &self.signals.handover;
        self.offered = Some(handover.offer(request, self.settings.lease));
    }

    /// Takes back what was laid out; false when a pass is claiming for it.
    fn withdraw(&mut self) -> bool {
        if self.offered.is_some() && self.signals.handover.withdraw() {
            self.offered = None;
        }
        self.offered.is_none()
    }

    /// Ends deliveries whose lease is over, before their entries can be claimed again: a request takes less time than a lease
    /// lasts, so the clock was set forward, or the process stood still. Returns whether there are any.
    fn end_leases(&self, now: Timestamp) -> bool {
        let mut any = false;
        for lease in self.leases.values() {
            if lease.expires_at <= now {
                lease.over.cancel();
                any = true;
            }
        }
        any
    }

    /// How many entries are to be claimed now.
    fn room(&self, now: Timestamp) -> usize {
        let busy: u32 = self.in_flight.values().sum();
        let places = self.settings.max_in_flight as usize;
        let ahead = self.claims.ahead.min(places * AHEAD_PER_PLACE_MAX);
        let free = (places + ahead).saturating_sub(busy as usize);
        let recordable = (places * UNRECORDED_PER_PLACE_MAX).saturating_sub(self.unrecorded.len());
        // A claim for each single place would be a transaction for each delivery.
        let free = if free > ahead / 2 {
            free.min(recordable)
        } else {
            0
        };
        let under_way = busy as usize + self.probing.len();
        self.outage.allowance(now, under_way, free)
    }

    fn request(&self, now: Timestamp, limit: u32) -> ClaimRequest {
        let tokens = (0..limit)
            .map(|_| match is_planted(Bug::LeaseTokenReused) {
                true => LeaseToken(1),
                false => LeaseToken(self.worlds.random.unique()),
            })
            .collect();
        ClaimRequest {
            now,
            owner: self.settings.owner.clone(),
            lease_expires_at: now.plus(self.settings.lease),
            tokens,
            limit,
            per_installation: self
                .pace
                .at_once(self.settings.max_in_flight_per_installation),
            in_flight: self.in_flight.clone(),
            after: self.last_served.clone(),
            excluded: self.pace.exhausted(now),
            rate: self.pace.rate(),
            late_apply: self.settings.retry.late_apply,
            secrets: self.settings.secrets,
        }
    }

    /// How long nothing will be due that was not due at `asked_at`.
    async fn until_next(&self, asked_at: Timestamp) -> Result<Duration, StoreError> {
        let due = self.worlds.store.next_due().await?;
        let now = self.worlds.clock.now();
        let mut wait = due
            // What was due already but was not claimed waits for a place, which wakes this loop by itself.
            .filter(|due_at| *due_at > asked_at)
            .map_or(LOOK_AGAIN, |due_at| due_at.since(now))
            .min(LOOK_AGAIN);
        if let Some(probe_at) = self.outage.next_probe_at() {
            wait = wait.max(probe_at.since(now).min(LOOK_AGAIN));
        }
        Ok(wait)
    }

    /// Whether it is time to look for probes: they are seconds apart, requests are not.
    fn may_look_for_probes(&self, now: Timestamp) -> bool {
        self.probes_looked_for
            .is_none_or(|last| now < last || now.since(last) >= LOOK_AGAIN)
    }

    /// Starts probes of paused installations, so that at most `limit` are under way.
    async fn start_probes(
        &mut self,
        running: &mut Running<'_>,
        limit: usize,
    ) -> Result<(), StoreError> {
        let free = limit.saturating_sub(self.probing.len());
        let elsewhere = self.signals.probes_elsewhere.load(Ordering::Relaxed);
        if free == 0 || elsewhere || is_planted(Bug::PauseNeverProbed) {
            return Ok(());
        }
        let now = self.worlds.clock.now();
        self.probes_looked_for = Some(now);
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
            running.push(Box::pin(async move {
                Ended::Probe(Box::new(worker.probe(pause).await))
            }));
        }
        Ok(())
    }

    /// Takes note of an answer: its place is free, whatever it takes to record it.
    fn answered(&mut self, answered: &Answered) {
        self.claims.answered += 1;
        let key = answered.key();
        if let Some(count) = self.in_flight.get_mut(&key.installation_id) {
            *count -= 1;
            if *count == 0 {
                self.in_flight.remove(&key.installation_id);
            }
        }
        self.reached(key, answered.reached());
    }

    /// Takes note of whether Vercel answered.
    fn reached(&mut self, key: &ResourceKey, reached: deliver::Reached) {
        let now = self.worlds.clock.now();
        let transition = match reached {
            deliver::Reached::Answered => self.outage.answered(now),
            deliver::Reached::Failed => self.outage.failed(key, now, self.worlds.random.fraction()),
            deliver::Reached::NotTried => return,
        };
        self.report.transition(transition, self.outage.since());
    }

    /// Takes note of a delivery that was recorded, or a probe that ended.
    fn finish(&mut self, delivery: &Delivery) {
        let now = self.worlds.clock.now();
        if let Some(claimed) = &delivery.claimed {
            self.leases.remove(&claimed.token);
        }
        if delivery.wants_recheck() {
            self.signals.recheck.notify_one();
        }
        self.report
            .delivery(delivery, self.outage.since().is_some(), now);
    }
}
