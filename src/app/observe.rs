//! What the listener answers: alive, ready, and the page of metrics.
//!
//! Alive: both loops got on lately. Ready: the state can be read, and written as far as either loop found out, the source was tried,
//! and the daemon is not stopping. An outage of the source or of Vercel makes it neither dead nor unready: nothing that restarts it or
//! waits for it would help.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::metrics::process::Process;
use crate::metrics::{Contact, Exposition, Metrics, family};
use crate::model::Timestamp;
use crate::store::{Counts, Store, SweepAccount};
use crate::telemetry::LogHandle;

use super::census::Census;
use super::health::{Health, Loop};

/// How long an answer waits for the state.
const STATE_PATIENCE: Duration = Duration::from_secs(3);
/// How long what was read of the state serves further answers: scrapes cannot press it.
const STATE_FRESH: Duration = Duration::from_secs(1);

/// Everything that can be asked of a running daemon.
pub(super) struct Observer {
    pub(super) store: Arc<dyn Store>,
    pub(super) census: Arc<Census>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) log: Option<LogHandle>,
    pub(super) started_at: Timestamp,
    /// Set when the daemon stops.
    pub(super) stop: CancellationToken,
    pub(super) standing: Lately<Standing>,
    /// That the state can be read.
    pub(super) readable: Lately<()>,
}

/// What was last read of the state: it serves whoever asks within a moment, so that scrapes and probes cannot press the state.
pub(super) struct Lately<T> {
    fresh: Duration,
    /// With the instant at which it was read; held while it is read.
    last: Arc<Mutex<Option<(Instant, T)>>>,
}

impl<T> Default for Lately<T> {
    fn default() -> Self {
        Self {
            fresh: STATE_FRESH,
            last: Arc::default(),
        }
    }
}

impl<T: Copy + Send + 'static> Lately<T> {
    /// What was read a moment ago, or what `read` gives; `None` when that is nothing, or takes too long.
    async fn get(&self, read: impl Future<Output = Option<T>> + Send + 'static) -> Option<T> {
        let last = Arc::clone(&self.last).lock_owned();
        let mut last = tokio::time::timeout(STATE_PATIENCE, last).await.ok()?;
        if let Some((read_at, value)) = *last
            && read_at.elapsed() < self.fresh
        {
            return Some(value);
        }
        // A task of its own goes on when nobody waits any more: calls of a database must not be dropped half-way.
        let reading = tokio::spawn(async move {
            let value = read.await?;
            *last = Some((Instant::now(), value));
            Some(value)
        });
        tokio::time::timeout(STATE_PATIENCE, reading)
            .await
            .ok()?
            .ok()?
    }
}

/// What the state says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Standing {
    counts: Counts,
    sweep: Option<(Timestamp, SweepAccount)>,
}

impl Observer {
    /// Whether both loops get on: what, or else which loop does not and for how long.
    pub(super) fn alive(&self) -> Result<String, String> {
        let stuck = self.health.stuck();
        if stuck.is_empty() {
            return Ok("alive: both loops get on".to_owned());
        }
        let stuck: Vec<String> = stuck.iter().map(ToString::to_string).collect();
        Err(format!("stuck: {}", stuck.join("; ")))
    }

    /// Whether it does its work: what is missing otherwise.
    pub(super) async fn ready(&self) -> Result<String, String> {
        if self.stop.is_cancelled() {
            return Err("not ready: stopping".to_owned());
        }
        let contact = match self.metrics.contact() {
            Contact::Untried => return Err("not ready: the source was not tried yet".to_owned()),
            Contact::Made => "the source can be read".to_owned(),
            Contact::Elsewhere => "another daemon reads the source".to_owned(),
            Contact::Failed(code) => {
                format!("the source cannot be read ({code}) and is tried again")
            }
        };
        if !self.state_answers().await {
            return Err("not ready: the state cannot be read".to_owned());
        }
        // On a full disk what is there can be read.
        if let Some(problem) = self.metrics.state_problem() {
            return Err(format!("not ready: {problem}"));
        }
        Ok(format!("ready: the state is open, {contact}"))
    }

    /// Whether the state can be read now, or could a moment ago: one row of it, since others want to be answered however much it holds.
    async fn state_answers(&self) -> bool {
        let store = Arc::clone(&self.store);
        let reading = async move { store.progress().await.ok().map(drop) };
        self.readable.get(reading).await.is_some()
    }

    /// What the state says now, or a moment ago; `None` when it cannot be read in time.
    async fn standing(&self) -> Option<Standing> {
        let (store, now) = (Arc::clone(&self.store), self.clock.now());
        let reading = async move {
            Some(Standing {
                counts: store.counts(now).await.ok()?,
                sweep: store
                    .progress()
                    .await
                    .ok()?
                    .sweep
                    .and_then(|sweep| sweep.last),
            })
        };
        self.standing.get(reading).await
    }

    /// The page of metrics.
    pub(super) async fn metrics(&self) -> String {
        let standing = self.standing().await;
        // A state that does not answer is not waited for twice.
        let resources = match standing {
            Some(_) => self.census.resources(STATE_PATIENCE).await,
            None => None,
        };
        let now = self.clock.now();
        let mut page = Exposition::default();
        self.deliveries(&mut page);
        if let Some(standing) = &standing {
            outbox(&mut page, &standing.counts, now);
        }
        if let Some(resources) = resources {
            page.count(&family::RESOURCES, resources);
        }
        self.passes(&mut page);
        if let Some((ended_at, account)) = standing.and_then(|standing| standing.sweep) {
            page.by(&family::SWEEP_ROWS, account_by_standing(account));
            page.instant(&family::LAST_SWEEP, Some(ended_at));
        }
        let state_up = standing.is_some() && self.metrics.state_problem().is_none();
        self.worlds(&mut page, state_up);
        self.process(&mut page);
        page.finish()
    }

    fn deliveries(&self, page: &mut Exposition) {
        let metrics = &*self.metrics;
        page.counters(&family::DELIVERIES, &metrics.deliveries);
        page.counters(&family::ATTEMPTS, &metrics.attempts);
        page.counters(&family::REQUESTS, &metrics.requests);
        page.counters(&family::PROBES, &metrics.probes);
        page.histogram(&family::REQUEST_SECONDS, &metrics.request_seconds);
        page.histogram(&family::LAG_SECONDS, &metrics.lag_seconds);
        page.histogram(&family::COMMIT_LAG_SECONDS, &metrics.commit_lag_seconds);
    }

    fn passes(&self, page: &mut Exposition) {
        let metrics = &*self.metrics;
        page.counters(&family::POLLS, &metrics.polls);
        page.histogram(&family::POLL_SECONDS, &metrics.poll_seconds);
        page.count(&family::POLL_ROWS, metrics.poll_rows.get());
        page.instant(&family::LAST_POLL, metrics.last_poll.get());
        page.count(&family::SWEEPS, metrics.sweeps.get());
        page.histogram(&family::SWEEP_SECONDS, &metrics.sweep_seconds);
    }

    fn worlds(&self, page: &mut Exposition, state_up: bool) {
        let metrics = &*self.metrics;
        match metrics.contact() {
            Contact::Untried | Contact::Elsewhere => {}
            Contact::Made => page.count(&family::SOURCE_UP, 1),
            Contact::Failed(_) => page.count(&family::SOURCE_UP, 0),
        }
        page.count(&family::OUTAGE, u64::from(metrics.outage_since().is_some()));
        page.count(&family::STATE_UP, u64::from(state_up));
        page.count(&family::STATE_FAILURES, metrics.state_failures.get());
        let age = |which: Loop| (which.name(), self.health.age(which).as_secs_f64());
        page.by(&family::PROGRESS_AGE, Loop::ALL.map(age));
    }

    fn process(&self, page: &mut Exposition) {
        if let Some(log) = &self.log {
            page.by(&family::EVENTS, log.events());
            page.count(&family::LINES_LOST, log.lost_lines());
        }
        page.counters(&family::RELOADS, &self.metrics.reloads);
        page.by(&family::BUILD, [(env!("CARGO_PKG_VERSION"), 1)]);
        page.instant(&family::START, Some(self.started_at));
        let Process {
            resident,
            cpu,
            open_fds,
            max_fds,
        } = Process::read();
        for (family, value) in [
            (&family::RESIDENT, resident),
            (&family::OPEN_FDS, open_fds),
            (&family::MAX_FDS, max_fds),
        ] {
            if let Some(value) = value {
                page.count(family, value);
            }
        }
        if let Some(cpu) = cpu {
            page.number(&family::CPU, cpu);
        }
    }
}

fn outbox(page: &mut Exposition, counts: &Counts, now: Timestamp) {
    let Counts {
        waiting,
        in_flight,
        held,
        dead,
        quarantined,
        paused,
        missing,
        oldest_waiting,
        last_acknowledged,
    } = *counts;
    let by_state = [
        ("dead", dead),
        ("held", held),
        ("in_flight", in_flight),
        ("waiting", waiting.saturating_sub(in_flight)),
    ];
    page.by(&family::OUTBOX, by_state);
    let oldest = oldest_waiting.map_or(Duration::ZERO, |found_at| now.since(found_at));
    page.number(&family::OLDEST_AGE, oldest.as_secs_f64());
    page.count(&family::QUARANTINED, quarantined);
    page.count(&family::PAUSED, paused);
    page.count(&family::MISSING, missing);
    page.instant(&family::LAST_ACKNOWLEDGED, last_acknowledged);
}

fn account_by_standing(account: SweepAccount) -> [(&'static str, i128); 7] {
    let SweepAccount {
        rows,
        equal,
        waiting,
        held,
        dead,
        quarantined,
        missing,
    } = account;
    let explained = equal + waiting + held + dead + quarantined;
    [
        ("dead", dead.into()),
        ("equal", equal.into()),
        ("held", held.into()),
        ("missing", missing.into()),
        ("quarantined", quarantined.into()),
        ("unaccounted", i128::from(rows) - i128::from(explained)),
        ("waiting", waiting.into()),
    ]
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// How often is read when so many ask, one after another, and what the last one is given.
    async fn asked(
        fresh: Duration,
        times: u32,
        answers: fn(u32) -> Option<u32>,
    ) -> (u32, Option<u32>) {
        let lately = Lately {
            fresh,
            ..Lately::default()
        };
        let reads = Arc::new(AtomicU32::new(0));
        let mut given = None;
        for _ in 0..times {
            let reads = Arc::clone(&reads);
            let read = async move { answers(reads.fetch_add(1, Ordering::Relaxed)) };
            given = lately.get(read).await;
        }
        (reads.load(Ordering::Relaxed), given)
    }

    #[tokio::test]
    async fn what_was_read_a_moment_ago_serves_whoever_asks_and_a_failure_nobody() {
        let hour = Duration::from_secs(3600);
        assert_eq!(asked(hour, 5, Some).await, (1, Some(0)));
        assert_eq!(asked(Duration::ZERO, 5, Some).await, (5, Some(4)));
        let second = |number| (number > 0).then_some(number);
        assert_eq!(asked(hour, 5, second).await, (2, Some(1)));
    }
}
