//! What the tests of dispatch are written with: a virtual clock, a state in memory, a Vercel and a source that do as they are told.
//!
//! Nothing here waits for real time. A future is polled until nothing in it gets on; then the clock jumps to the next timer.

mod clock;
mod lines;
mod state;
mod vercel;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::Random;
use crate::model::{
    AccessToken, Field, FieldSet, FingerprintKey, InstallationId, Origin, RawRow, RawText, Record,
    ResourceKey,
};
use crate::plan::backoff::Backoff;
use crate::plan::{Policy, RetryPolicy, SecretsWay, guard};
use crate::source::{
    Identity, PollFrom, PollPage, RawKey, Shape, Source, SourceError, Suspects, SweepPage,
};
use crate::store::{Batch, Observation, Store as _};

use super::deliver::Worker;
use super::pace::Pace;
use super::{Dispatcher, InstallationsQuery, Settings, Signals, Tokens, Worlds};

pub(super) use clock::{START, TestClock};
pub(super) use lines::lines_of;
pub(super) use state::TestState;
pub(super) use vercel::{Reply, TestVercel, answer, lost, unreachable_answer};

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// How long a claim lasts, and how long a request may take.
pub(super) const LEASE: Duration = Duration::from_secs(60);
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn key(installation_id: &str, resource_id: &str) -> ResourceKey {
    ResourceKey::new(installation_id, resource_id).expect("two ids")
}

pub(super) fn installation(id: &str) -> InstallationId {
    InstallationId::new(id).expect("an id")
}

/// A row of the source.
pub(super) fn row(key: &ResourceKey, columns: &[(Field, &str)]) -> RawRow {
    let column = |(field, text): &(Field, &str)| (*field, RawText::text(*text));
    RawRow {
        installation_id: RawText::text(key.installation_id.as_str()),
        resource_id: RawText::text(key.resource_id.as_str()),
        cursor: None,
        columns: columns.iter().map(column).collect(),
    }
}

/// The daemon's outside worlds, for one test.
pub(super) struct Stand {
    pub(super) clock: Arc<TestClock>,
    pub(super) state: Arc<TestState>,
    pub(super) vercel: Arc<TestVercel>,
    pub(super) source: Arc<TestSource>,
    pub(super) signals: Signals,
    pub(super) fingerprints: FingerprintKey,
}

impl Stand {
    pub(super) fn new() -> Self {
        let clock = Arc::new(TestClock::default());
        let fingerprints = FingerprintKey::new([7; 32]);
        Self {
            state: Arc::new(TestState::new(fingerprints.clone(), Arc::clone(&clock))),
            vercel: Arc::new(TestVercel::new(Arc::clone(&clock))),
            source: Arc::default(),
            signals: Signals::default(),
            fingerprints,
            clock,
        }
    }

    pub(super) fn worlds(&self) -> Worlds {
        Worlds {
            source: Arc::clone(&self.source) as Arc<dyn Source>,
            store: Arc::clone(&self.state) as _,
            marketplace: Arc::clone(&self.vercel) as _,
            clock: Arc::clone(&self.clock) as _,
            random: Arc::new(TestRandom::default()),
        }
    }

    pub(super) fn tokens(&self) -> Tokens {
        let source = Arc::clone(&self.source) as Arc<dyn Source>;
        Tokens::new(Arc::new(InstallationsQuery(source)))
    }

    pub(super) fn dispatcher(&self, change: impl FnOnce(&mut Settings)) -> Dispatcher {
        let mut settings = settings();
        change(&mut settings);
        Dispatcher::new(
            self.worlds(),
            self.fingerprints.clone(),
            self.tokens(),
            settings,
            self.signals.clone(),
        )
    }

    pub(super) fn worker(&self, change: impl FnOnce(&mut Settings)) -> Arc<Worker> {
        let mut settings = settings();
        change(&mut settings);
        Arc::new(Worker::new(
            self.worlds(),
            self.fingerprints.clone(),
            self.tokens(),
            Pace::new(settings.requests_per_minute_per_installation),
            settings,
            &self.signals,
        ))
    }

    /// The source holds this row, and a pass has read it.
    pub(super) fn desires(&self, key: &ResourceKey, columns: &[(Field, &str)]) {
        self.source.puts(key, columns);
        let raw = row(key, columns);
        let desired = raw.decode().expect("a usable row");
        let observation = Observation {
            key: key.clone(),
            desired: desired.desired(&self.fingerprints, FieldSet::EMPTY),
            row_hash: raw.hash(&self.fingerprints, 0),
        };
        let batch = Batch {
            now: self.clock.time(),
            origin: Origin::Poll,
            policy: Policy::default(),
            observations: vec![observation],
            quarantined: Vec::new(),
            missing: Vec::new(),
            poll: None,
            sweep: None,
            guard: guard::Limits::default(),
            ends_pass: true,
            uninstall_missing_since: None,
            baseline: None,
            watch: None,
            claim: None,
        };
        let decided = self.clock.run(self.state.memory.reconcile(batch));
        decided.expect("a state in memory does not fail");
    }

    /// So many resources of an installation desire a status.
    pub(super) fn desire(&self, installation_id: &str, count: usize, status: &str) {
        for n in 0..count {
            let key = key(installation_id, &format!("res_{n}"));
            self.desires(&key, &[(Field::Status, status)]);
        }
    }

    pub(super) fn record(&self, key: &ResourceKey) -> Record {
        let records = self.state.memory.records(std::slice::from_ref(key));
        let mut records = self.clock.run(records).expect("does not fail");
        records.pop().expect("one for each key")
    }

    /// Whether nothing is left to do for a resource.
    pub(super) fn is_settled(&self, key: &ResourceKey) -> bool {
        self.record(key).entry.is_none()
    }
}

/// Four requests at once, without a limit of the rate.
pub(super) fn settings() -> Settings {
    Settings {
        owner: "test".to_owned(),
        max_in_flight: 4,
        max_in_flight_per_installation: 4,
        requests_per_minute_per_installation: None,
        lease: LEASE,
        request_timeout: REQUEST_TIMEOUT,
        retry: RetryPolicy {
            backoff: Backoff {
                initial: SECOND,
                multiplier: 2.0,
                max: SECOND * 600,
            },
            max_elapsed: Duration::ZERO,
            max_conflicts: 3,
            late_apply: SECOND * 60,
        },
        ignored: FieldSet::EMPTY,
        secrets: SecretsWay::Together,
    }
}

/// No chance: the whole of each wait, and one number after another.
#[derive(Default)]
struct TestRandom(AtomicI64);

impl Random for TestRandom {
    fn fraction(&self) -> f64 {
        1.0
    }

    fn unique(&self) -> i64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// A source of rows and tokens.
#[derive(Default)]
pub(super) struct TestSource(Mutex<Held>);

#[derive(Default)]
struct Held {
    rows: BTreeMap<ResourceKey, Vec<RawRow>>,
    /// Instead of the one that every installation has.
    tokens: BTreeMap<InstallationId, Option<String>>,
    fails: bool,
    fetched: Vec<usize>,
    /// By themselves.
    tokens_read: usize,
    read_together: Vec<usize>,
    /// Whoever reads this one's token fails.
    poisoned: Option<InstallationId>,
}

impl Held {
    fn token(&self, installation_id: &InstallationId) -> Option<AccessToken> {
        let token = match self.tokens.get(installation_id) {
            Some(token) => token.as_deref(),
            None => Some("token"),
        };
        token.map(AccessToken::new)
    }
}

impl TestSource {
    pub(super) fn puts(&self, key: &ResourceKey, columns: &[(Field, &str)]) {
        let rows = vec![row(key, columns)];
        self.lock().rows.insert(key.clone(), rows);
    }

    /// A second row with the same ids.
    pub(super) fn doubles(&self, key: &ResourceKey) {
        let mut held = self.lock();
        let rows = held.rows.entry(key.clone()).or_default();
        let copies = rows.clone();
        rows.extend(copies);
    }

    pub(super) fn takes_away(&self, key: &ResourceKey) {
        self.lock().rows.remove(key);
    }

    pub(super) fn gives_token(&self, installation_id: &str, token: Option<&str>) {
        let token = token.map(str::to_owned);
        self.lock()
            .tokens
            .insert(installation(installation_id), token);
    }

    /// Reading this installation's token is an error from now on, whoever's else are read with it.
    pub(super) fn poisons_token(&self, installation_id: &str) {
        self.lock().poisoned = Some(installation(installation_id));
    }

    pub(super) fn fails(&self, fails: bool) {
        self.lock().fails = fails;
    }

    /// For how many resources at once rows were fetched.
    pub(super) fn fetched(&self) -> Vec<usize> {
        self.lock().fetched.clone()
    }

    /// How many tokens were read by themselves.
    pub(super) fn tokens_read(&self) -> usize {
        self.lock().tokens_read
    }

    /// For how many installations at once tokens were read.
    pub(super) fn tokens_read_together(&self) -> Vec<usize> {
        self.lock().read_together.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unreachable_source() -> SourceError {
    SourceError::Unreachable {
        target: "the test's source".to_owned(),
        problem: "it is away".to_owned(),
    }
}

#[async_trait]
impl Source for TestSource {
    async fn shape(&self) -> Result<Shape, SourceError> {
        unreachable!("dispatch sends what was claimed, whatever the columns")
    }

    async fn poll_page(
        &self,
        _: &PollFrom,
        _: u32,
        _: Option<Suspects>,
    ) -> Result<PollPage, SourceError> {
        unreachable!("dispatch never polls")
    }

    async fn count_at(&self, _: &str, _: u32) -> Result<u32, SourceError> {
        unreachable!("dispatch never polls")
    }

    async fn sweep_page(&self, _: Option<&RawKey>, _: u32) -> Result<SweepPage, SourceError> {
        unreachable!("dispatch never sweeps")
    }

    async fn fetch(&self, keys: &[ResourceKey]) -> Result<Vec<RawRow>, SourceError> {
        let mut held = self.lock();
        held.fetched.push(keys.len());
        if held.fails {
            return Err(unreachable_source());
        }
        let rows = keys.iter().filter_map(|key| held.rows.get(key));
        Ok(rows.flatten().cloned().collect())
    }

    async fn token(
        &self,
        installation_id: &InstallationId,
    ) -> Result<Option<AccessToken>, SourceError> {
        let mut held = self.lock();
        held.tokens_read += 1;
        if held.fails || held.poisoned.as_ref() == Some(installation_id) {
            return Err(unreachable_source());
        }
        Ok(held.token(installation_id))
    }

    async fn tokens(
        &self,
        installation_ids: &[InstallationId],
    ) -> Result<Vec<(InstallationId, AccessToken)>, SourceError> {
        let mut held = self.lock();
        held.read_together.push(installation_ids.len());
        let poisoned = held.poisoned.as_ref();
        if held.fails || poisoned.is_some_and(|id| installation_ids.contains(id)) {
            return Err(unreachable_source());
        }
        let token = |id: &InstallationId| Some((id.clone(), held.token(id)?));
        Ok(installation_ids.iter().filter_map(token).collect())
    }

    async fn identity(&self) -> Result<Identity, SourceError> {
        unreachable!("dispatch keeps no cursor")
    }
}
