//! The handle on a running (or resting) simulated Vercel: look, judge, change, wait.
//!
//! Clones share one state, which outlives the server that shows it. No lock is held across an await, and waiting is
//! on a signal, never on the clock.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::sync::{broadcast, watch};

use super::fault::{Fault, Matcher, Rule, Script, Subject};
use super::fingerprint::Fingerprints;
use super::flight::Airspace;
use super::history::{Applied, Regression};
use super::journal::{Entry, Outcome, Violation, ViolationKind};
use super::route::Route;
use super::schema::{self, Field, Refusal, Rules};
use super::weather::{Weather, WeatherError};
use super::world::{Absence, RemoteResource, ResourceKey, World};
use super::{OauthClient, Options};

/// How long `wait_until` waits before it gives up.
pub const WAIT_LIMIT: Duration = Duration::from_secs(60);

/// Journal entries that a slow observer may lag behind before it misses some.
const OBSERVER_BACKLOG: usize = 4096;

/// A shared handle on the simulated Vercel.
#[derive(Clone, Debug)]
pub struct Remote {
    shared: Arc<Shared>,
}

/// The state waited for did not come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the simulator did not reach the expected state within {WAIT_LIMIT:?}")]
pub struct NotReached;

impl Remote {
    /// An empty world with these options; nothing listens yet.
    ///
    /// # Errors
    /// The weather's probabilities cannot be.
    pub fn new(options: &Options) -> Result<Self, WeatherError> {
        if let Some(weather) = &options.weather {
            weather.check()?;
        }
        let fingerprints = Fingerprints::new(random_bytes());
        let world = World::new(options.behaviour.clone(), fingerprints.clone());
        Ok(Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    world,
                    script: Script::default(),
                    weather: options.weather.clone(),
                    journal: VecDeque::new(),
                    violations: Vec::new(),
                    requests: 0,
                    ended: 0,
                    held: 0,
                }),
                run: hex(&random_bytes::<3>()),
                settings: Settings {
                    rules: options.rules,
                    oauth: options.oauth.clone(),
                    reveal_secrets: options.reveal_secrets,
                    journal_limit: options.journal_limit.max(1),
                    overlap_grace: options.overlap_grace,
                    user_agent: options.user_agent.clone(),
                },
                fingerprints,
                airspace: Airspace::default(),
                changed: watch::Sender::new(0),
                released: watch::Sender::new(0),
                observers: broadcast::Sender::new(OBSERVER_BACKLOG),
            }),
        })
    }

    /// One resource as Vercel holds it.
    pub fn resource(&self, installation: &str, resource: &str) -> Option<RemoteResource> {
        let key = ResourceKey::new(installation, resource);
        self.lock().world.resource(&key).cloned()
    }

    /// Every resource, by key.
    pub fn resources(&self) -> Vec<(ResourceKey, RemoteResource)> {
        self.lock()
            .world
            .resources()
            .map(|(key, resource)| (key.clone(), resource.clone()))
            .collect()
    }

    /// Every change of a resource that took effect, oldest first.
    pub fn history(&self, installation: &str, resource: &str) -> Vec<Applied> {
        self.lock()
            .world
            .history(&ResourceKey::new(installation, resource))
    }

    /// The times a field of a resource went back to a value it had left before.
    pub fn regressions(&self, installation: &str, resource: &str) -> Vec<Regression> {
        self.lock()
            .world
            .regressions(&ResourceKey::new(installation, resource))
    }

    /// The requests so far that have ended, oldest first, up to the journal's limit.
    pub fn requests(&self) -> Vec<Entry> {
        self.lock().journal.iter().cloned().collect()
    }

    /// How many requests have ended, whether or not the journal still holds them.
    pub fn ended(&self) -> u64 {
        self.lock().ended
    }

    /// The requests of one resource that have ended, oldest first.
    pub fn requests_of(&self, installation: &str, resource: &str) -> Vec<Entry> {
        let key = ResourceKey::new(installation, resource);
        self.lock()
            .journal
            .iter()
            .filter(|entry| entry.key().as_ref() == Some(&key))
            .cloned()
            .collect()
    }

    /// What the client did that it must never do, oldest first.
    pub fn violations(&self) -> Vec<Violation> {
        self.lock().violations.clone()
    }

    /// The fingerprint under which this simulator shows a secret value.
    pub fn fingerprint(&self, value: &str) -> String {
        self.shared.fingerprints.of(value)
    }

    /// How many requests are held back by `Hang`, `Delay`, `SlowBody` or `ApplyLate` now.
    pub fn held(&self) -> usize {
        self.lock().held
    }

    /// Ends every hold: hung requests are closed, delayed ones go on, late ones take effect.
    pub fn release(&self) {
        self.shared
            .released
            .send_modify(|generation| *generation += 1);
    }

    /// Strikes the next request that matches.
    pub fn fault(&self, fault: Fault, matcher: Matcher) {
        self.rule(fault, matcher, 1);
    }

    /// Strikes the next `times` requests that match.
    pub fn fault_times(&self, times: u32, fault: Fault, matcher: Matcher) {
        if times > 0 {
            self.rule(fault, matcher, times);
        }
    }

    /// Strikes every request that matches, until the faults are cleared.
    pub fn fault_always(&self, fault: Fault, matcher: Matcher) {
        self.rule(fault, matcher, 0);
    }

    /// Adds a rule behind those there are.
    pub fn add_rule(&self, rule: Rule) {
        self.lock().script.push(rule);
    }

    /// The rules in force.
    pub fn rules(&self) -> Vec<Rule> {
        self.lock().script.rules().to_vec()
    }

    /// Removes every rule; the weather stays.
    pub fn clear_faults(&self) {
        self.lock().script.clear();
    }

    /// Sets the weather, or clear skies.
    ///
    /// # Errors
    /// Its probabilities cannot be.
    pub fn set_weather(&self, weather: Option<Weather>) -> Result<(), WeatherError> {
        if let Some(weather) = &weather {
            weather.check()?;
        }
        self.lock().weather = weather;
        Ok(())
    }

    /// Creates an installation that this token opens (or brings it back, or gives it one more token).
    pub fn install(&self, installation: &str, token: &SecretString) {
        let mut state = self.lock();
        state.world.install(installation);
        state.world.tokens_mut().grant(installation, token, None);
        drop(state);
        self.announce();
    }

    /// Revokes every token of an installation and lets this one open it.
    pub fn rotate_token(&self, installation: &str, token: &SecretString) {
        let mut state = self.lock();
        state.world.tokens_mut().revoke(installation);
        state.world.tokens_mut().grant(installation, token, None);
        drop(state);
        self.announce();
    }

    /// Revokes every token of an installation.
    pub fn revoke_tokens(&self, installation: &str) {
        self.lock().world.tokens_mut().revoke(installation);
        self.announce();
    }

    /// Makes every later request for the installation answer that it is gone.
    pub fn uninstall(&self, installation: &str, absence: Absence) {
        self.lock().world.uninstall(installation, absence);
        self.announce();
    }

    /// Removes a resource; later requests for it answer that it is gone.
    ///
    /// # Errors
    /// It does not exist.
    pub fn remove_resource(
        &self,
        installation: &str,
        resource: &str,
        absence: Absence,
    ) -> Result<(), Absence> {
        let key = ResourceKey::new(installation, resource);
        self.lock().world.remove(&key, absence)?;
        self.announce();
        Ok(())
    }

    /// Creates or changes a resource without a request; the body is that of a PATCH.
    ///
    /// # Errors
    /// The body is outside the schema.
    pub fn seed(&self, installation: &str, resource: &str, body: &Value) -> Result<(), Refusal> {
        let mut update = schema::update(body, self.shared.settings.rules)?;
        let key = ResourceKey::new(installation, resource);
        let now = wall_clock();
        let mut state = self.lock();
        if state.world.resource(&key).is_some() {
            let seeded = state.world.update(&key, &update, None, now);
            debug_assert!(seeded.is_ok(), "an existing resource takes an update");
        } else {
            let name = Value::String(resource.to_owned());
            update.fields.entry(Field::Name).or_insert(name);
            let import = schema::Import {
                product_id: "prod_simulated".to_owned(),
                update,
            };
            state.world.import(&key, &import, None, now);
        }
        drop(state);
        self.announce();
        Ok(())
    }

    /// A stream of the requests from now on, one entry as each ends, and one more when it takes effect late.
    pub fn observe(&self) -> broadcast::Receiver<Entry> {
        self.shared.observers.subscribe()
    }

    /// Waits until the predicate holds; it is asked again whenever a request was applied, held or ended.
    ///
    /// # Errors
    /// It did not hold within [`WAIT_LIMIT`].
    pub async fn wait_until(
        &self,
        mut predicate: impl FnMut(&Self) -> bool,
    ) -> Result<(), NotReached> {
        let mut changed = self.shared.changed.subscribe();
        let reached = async {
            loop {
                changed.borrow_and_update();
                if predicate(self) {
                    return;
                }
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(WAIT_LIMIT, reached)
            .await
            .map_err(|_| NotReached)
    }

    fn rule(&self, fault: Fault, matcher: Matcher, times: u32) {
        self.add_rule(Rule {
            fault,
            matcher,
            times,
        });
    }
}

/// What the server's side of the simulator needs of it.
impl Remote {
    pub(super) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    pub(super) fn fingerprints(&self) -> &Fingerprints {
        &self.shared.fingerprints
    }

    pub(super) fn airspace(&self) -> &Airspace {
        &self.shared.airspace
    }

    /// Runs one step on the world; waiters look again afterwards.
    pub(super) fn with_world<T>(&self, step: impl FnOnce(&mut World) -> T) -> T {
        let result = step(&mut self.lock().world);
        self.announce();
        result
    }

    /// Opens the record of a request; it is kept as abandoned unless it is finished.
    pub(super) fn begin(&self, method: &str, path: &str, route: &Route) -> Record {
        let mut state = self.lock();
        state.requests += 1;
        let number = state.requests;
        drop(state);
        let entry = Entry {
            number,
            at: wall_clock(),
            vercel_id: format!("sim1::{}-{number}", self.shared.run),
            method: method.to_owned(),
            path: path.to_owned(),
            operation: route.operation(),
            installation_id: route.installation().map(str::to_owned),
            resource_id: route.key().map(|key| key.resource_id.clone()),
            fields: Vec::new(),
            secret_names: Vec::new(),
            body: None,
            fault: None,
            outcome: Outcome::Abandoned,
            applied: false,
            late: false,
            duration: Duration::ZERO,
            violations: Vec::new(),
        };
        Record {
            remote: self.clone(),
            entry,
            violations: Vec::new(),
            started: Instant::now(),
        }
    }

    /// The fault for a request: a rule's, else the weather's.
    pub(super) fn choose_fault(&self, entry: &Entry, writes: bool) -> Option<Fault> {
        let mut state = self.lock();
        let subject = Subject {
            method: &entry.method,
            operation: entry.operation,
            installation: entry.installation_id.as_deref(),
            resource: entry.resource_id.as_deref(),
            fields: &entry.fields,
        };
        match state.script.choose(&subject) {
            Some(fault) => Some(fault),
            None => state.weather.as_ref()?.fault(entry.number, writes),
        }
    }

    /// Begins to hold a request back; counted in `held` from the call on.
    pub(super) fn hold(&self) -> Hold {
        self.lock().held += 1;
        self.announce();
        let released = self.shared.released.subscribe();
        let since = *released.borrow();
        Hold {
            remote: self.clone(),
            released,
            since,
        }
    }

    /// Notes that a request took effect after its connection was closed.
    pub(super) fn applied_late(&self, number: u64) {
        let mut state = self.lock();
        let entry = state
            .journal
            .iter_mut()
            .rev()
            .find(|entry| entry.number == number);
        if let Some(entry) = entry {
            entry.applied = true;
            entry.late = true;
            // Nobody may be observing.
            let _ = self.shared.observers.send(entry.clone());
        }
        drop(state);
        self.announce();
    }

    fn keep(&self, entry: Entry, violations: Vec<Violation>) {
        let mut state = self.lock();
        while state.journal.len() >= self.shared.settings.journal_limit {
            state.journal.pop_front();
        }
        state.journal.push_back(entry.clone());
        state.ended += 1;
        let room = self.shared.settings.journal_limit - state.violations.len();
        state.violations.extend(violations.into_iter().take(room));
        // Nobody may be observing.
        let _ = self.shared.observers.send(entry);
        drop(state);
        self.announce();
    }

    fn announce(&self) {
        self.shared.changed.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The record of a request under way; dropped unfinished, it is kept as abandoned by its client.
#[derive(Debug)]
pub(super) struct Record {
    remote: Remote,
    entry: Entry,
    violations: Vec<Violation>,
    started: Instant,
}

impl Record {
    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }

    pub(super) fn entry_mut(&mut self) -> &mut Entry {
        &mut self.entry
    }

    pub(super) fn violation(&mut self, kind: ViolationKind, detail: impl Into<String>) {
        if !self.entry.violations.contains(&kind) {
            self.entry.violations.push(kind);
        }
        self.violations.push(Violation {
            request: self.entry.number,
            kind,
            detail: detail.into(),
        });
    }

    pub(super) fn finish(mut self, outcome: Outcome) {
        self.entry.outcome = outcome;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let mut entry = self.entry.clone();
        entry.duration = self.started.elapsed();
        self.remote
            .keep(entry, std::mem::take(&mut self.violations));
    }
}

/// The options that do not belong to the world.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) rules: Rules,
    pub(super) oauth: Option<OauthClient>,
    pub(super) reveal_secrets: bool,
    pub(super) journal_limit: usize,
    pub(super) overlap_grace: Duration,
    pub(super) user_agent: String,
}

impl Settings {
    /// Whether the token endpoint accepts this client; without a configured one it accepts all.
    pub(super) fn accepts_client(&self, id: &str, secret: &SecretString) -> bool {
        self.oauth.as_ref().is_none_or(|client| {
            client.client_id == id && client.client_secret.expose_secret() == secret.expose_secret()
        })
    }
}

struct Shared {
    state: Mutex<State>,
    run: String,
    settings: Settings,
    fingerprints: Fingerprints,
    airspace: Airspace,
    changed: watch::Sender<u64>,
    released: watch::Sender<u64>,
    observers: broadcast::Sender<Entry>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Shared")
            .field("run", &self.run)
            .finish_non_exhaustive()
    }
}

struct State {
    world: World,
    script: Script,
    weather: Option<Weather>,
    journal: VecDeque<Entry>,
    violations: Vec<Violation>,
    /// The number of the last request.
    requests: u64,
    /// How many of them are kept, or were.
    ended: u64,
    held: usize,
}

/// A request held back, for as long as this exists.
#[derive(Debug)]
pub(super) struct Hold {
    remote: Remote,
    released: watch::Receiver<u64>,
    since: u64,
}

impl Hold {
    /// Waits until everything is released, or for this long.
    pub(super) async fn wait(&mut self, span: Option<Duration>) {
        let since = self.since;
        let released = self.released.wait_for(|generation| *generation > since);
        match span {
            Some(span) => {
                // Both ends of the wait mean the same.
                let _ = tokio::time::timeout(span, released).await;
            }
            None => {
                let _ = released.await;
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.remote.lock().held -= 1;
        self.remote.announce();
    }
}

/// What this simulated machine's clock says.
#[expect(
    clippy::disallowed_methods,
    reason = "the simulator stands for another machine, whose clock nobody passes in"
)]
pub(super) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// A token nobody can guess.
pub(super) fn random_token() -> SecretString {
    SecretString::from(format!("sim_{}", hex(&random_bytes::<20>())))
}

fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
