//! From entries to requests: claims what is due, sends it, records what came of it.
//!
//! One task drives all requests; each is a future of its own in it, so that dropping the task drops everything at once, as a
//! crash would. Dispatch never decides what is desired: it sends what the claim says, or asks for the row to be read again.

mod deliver;
pub mod drift;
mod due;
#[cfg(test)]
mod fixture;
mod pace;
mod places;
mod report;
mod running;
mod token;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Random};
use crate::handover::Handover;
use crate::metrics::Metrics;
use crate::model::{FieldSet, FingerprintKey, InstallationId, LeaseToken, ResourceKey, Timestamp};
use crate::plan::look::LOOK_AGAIN;
use crate::plan::outage::Outage;
use crate::plan::{Claimed, RetryPolicy, SecretsWay};
use crate::progress::Mark;
use crate::reread::Reread;
use crate::source::Source;
use crate::store::{Store, StoreError};
use crate::vercel::Marketplace;

pub use deliver::{Delivery, Effect};
use report::Report;
pub use report::{SharedTotals, Totals};
pub use token::{InstallationsQuery, TokenError, TokenSource, Tokens};

use deliver::{Answered, Supply, Worker};
use due::{Claims, handed_over};
use pace::{Allowance, Pace};

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
    /// Recorded, and not told yet: the next ones are given to the state first.
    untold: Vec<Delivery>,
    /// Whether the run's deadline has passed.
    is_over: bool,
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
    /// Taken when the delivery starts.
    allowance: Option<Allowance>,
}

type Running<'a> = running::Running<'a, Ended>;

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
        let pace = Pace::new(settings.requests_per_minute_per_installation);
        let worker = Worker::new(
            worlds.clone(),
            key,
            tokens,
            pace.clone(),
            settings.clone(),
            &signals,
        );
        Self {
            outage: Outage::new(settings.retry.backoff.initial),
            pace,
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
            untold: Vec::new(),
            is_over: false,
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
        let mut running = Running::new();
        loop {
            self.configure();
            let handing_over = !self.withdraw();
            self.is_over = self.is_past(until);
            let stopping = self.is_stopping();
            // What was claimed just now leaves before the state is asked what else is due.
            self.take_ended(&mut running);
            self.record(&running);
            self.tell();
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
                    self.take_ended(&mut running);
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

    /// Gives everything that is under way its turn, and takes note of what has ended.
    fn take_ended(&mut self, running: &mut Running<'_>) {
        while let Some(Some(ended)) = running.next().now_or_never() {
            self.take(running, ended);
        }
    }

    /// Takes note of what ended, and starts what follows from it.
    fn take(&mut self, running: &Running<'_>, ended: Ended) {
        match ended {
            Ended::Claim(claimed) => {
                self.moved.0 = true;
                self.claimed(running, claimed);
                self.claim_on(running);
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
                self.record(running);
                self.untold.extend(deliveries);
                for answered in failed {
                    let worker = Arc::clone(&self.worker);
                    running.push(async move {
                        Ended::Single(Box::new(worker.record_one(answered).await))
                    });
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
        let asked = self.claims.asked.take();
        if asked.is_some() {
            self.claims.answers.claim_ends();
        }
        // What a pass claimed was not asked for.
        let (asked, asked_at) = asked.unwrap_or((0, now));
        let claimed = match claimed {
            Ok(claimed) => claimed,
            Err(error) => {
                self.claims.found = Some((asked_at, Err(error)));
                return;
            }
        };
        // A claim that only began may fail as the one before it.
        if std::mem::take(&mut self.state_failed) {
            self.report.state_recovered();
        }
        if claimed.len() < asked {
            self.claims.found = Some((asked_at, Ok(claimed.len())));
        }
        let mut needy = Vec::new();
        for claim in claimed {
            let installation_id = claim.key.installation_id.clone();
            let allowance = self.pace.hold(&installation_id);
            *self.in_flight.entry(installation_id.clone()).or_default() += 1;
            self.last_served = Some(installation_id);
            let lease = Lease {
                expires_at: claim.lease_expires_at,
                over: CancellationToken::new(),
                allowance: Some(allowance),
            };
            self.leases.insert(claim.token, lease);
            if self.worker.needs_source(&claim) {
                needy.push(claim);
            } else {
                self.deliver(running, claim, Supply::None);
            }
        }
        if needy.len() > 1 {
            let worker = Arc::clone(&self.worker);
            running.push(async move { Ended::Supplied(worker.supply(needy).await) });
        } else {
            for claim in needy {
                self.deliver(running, claim, Supply::None);
            }
        }
    }

    fn deliver(&mut self, running: &Running<'_>, claimed: Claimed, supply: Supply) {
        let worker = Arc::clone(&self.worker);
        let lease = self.leases.get_mut(&claimed.token);
        let (over, allowance) = match lease {
            Some(lease) => (lease.over.clone(), lease.allowance.take()),
            None => (CancellationToken::new(), None),
        };
        let allowance = allowance.unwrap_or_else(|| self.pace.hold(&claimed.key.installation_id));
        running.push(async move {
            Ended::Answer(Box::new(
                worker.deliver(claimed, supply, allowance, over).await,
            ))
        });
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
        running.ask(async move {
            let (deliveries, failed) = worker.record_all(batch).await;
            Ended::Record(deliveries, failed)
        });
    }

    /// Whether nothing more is claimed.
    fn is_stopping(&self) -> bool {
        self.is_over || self.signals.stop.is_cancelled()
    }

    /// Whether the deadline has passed: what is still due waits for the next run, however much it is.
    fn is_past(&self, until: Until) -> bool {
        match until {
            Until::Idle { deadline } => self.worlds.clock.now() > deadline,
            Until::Stopped => false,
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

    /// Takes note of an answer: its place is free, whatever it takes to record it.
    fn answered(&mut self, answered: &Answered) {
        self.claims.answers.add();
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
            deliver::Reached::Failed => {
                let (others, jitter) = (self.under_way(), self.worlds.random.fraction());
                self.outage.failed(key, others, now, jitter)
            }
            deliver::Reached::NotTried => return,
        };
        self.report.transition(transition, self.outage.since());
    }

    /// How many requests are out, or about to be: deliveries and probes of paused installations.
    fn under_way(&self) -> usize {
        self.unanswered() + self.probing.len()
    }

    /// How many entries are claimed and not answered.
    fn unanswered(&self) -> usize {
        self.in_flight.values().map(|count| *count as usize).sum()
    }

    /// Takes note of the deliveries that were recorded.
    fn tell(&mut self) {
        for delivery in std::mem::take(&mut self.untold) {
            self.finish(&delivery);
        }
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

#[cfg(test)]
mod tests;
