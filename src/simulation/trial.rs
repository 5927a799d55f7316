//! One trial: a storm that a seed decides, the calm after it, and the verdict.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;

use crate::model::{
    Entry, EntryState, Field, FingerprintKey, InstallationId, Json, Reason, Record, ResourceKey,
    Timestamp,
};
use crate::plan::classify::RATE_LIMIT_WAIT_MAX;
use crate::plan::decide::is_uninstallation;
use crate::reconcile::OnMissing;
use crate::store::StoreError;

use super::backend::Backend;
use super::chance::Chance;
use super::climate::Climate;
use super::executor::{BEGINNING, Executor, Step, TaskId};
use super::laws::{Law, Laws, Violation};
use super::log::Log;
use super::process::{Boot, run};
use super::prompt::Prompt;
use super::provider::{Columns, Provider};
use super::remote::Remote;
use super::world::{Points, Shared, World};

/// Something that happens at its time, outside the daemon.
#[derive(Debug, Clone)]
pub(super) enum Happening {
    /// The provider does something.
    Turn,
    /// A request takes effect.
    Apply(usize),
    /// A request is answered, or given up, whether or not its client looks.
    Answer(usize),
    /// An open transaction commits.
    Commit(u64),
    /// A row is set back to what it was.
    Revert(usize, Columns),
    /// A row that vanished is there again.
    Return(usize),
    /// The provider's table has the token that Vercel takes.
    LearnToken(InstallationId),
    /// An installation is there again.
    Reinstall(InstallationId),
    /// A process starts.
    Start(usize),
    /// A process is asked to stop.
    Stop(usize),
    /// A process stands still for a while.
    Suspend(usize, Duration),
    Resume(TaskId),
    /// A step of a scenario.
    Scene(usize),
    /// Faults and changes end.
    Clear,
    /// Has everything converged?
    Look,
}

/// How often the calm is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long nothing may be sent after everything converged.
const QUIET: Duration = Duration::from_secs(10);
/// More steps than any trial takes: a daemon that never rests is a bug.
const STEPS_MAX: u64 = 3_000_000;

/// What is tried, and how.
pub(super) struct Options {
    pub(super) seed: u64,
    pub(super) climate: Climate,
    /// Keep the timeline in words.
    pub(super) tell: bool,
    pub(super) kills: Kills,
    /// What happens instead of chance.
    pub(super) scenes: Vec<Scene>,
}

/// At which await points a process is killed, besides by chance.
#[derive(Debug, Clone, Default)]
pub(super) struct Kills {
    /// Which process.
    pub(super) process: usize,
    /// The point of its first run, of its second, and so on.
    pub(super) points: VecDeque<u64>,
}

/// A step of a scenario: when it happens, and what.
pub(super) type Scene = (Duration, fn(&mut World));

/// How a trial ended.
pub(super) struct Verdict {
    pub(super) hash: blake3::Hash,
    pub(super) events: u64,
    pub(super) violation: Option<Violation>,
    pub(super) lines: Vec<String>,
    /// The await points that the first run of the process to be killed passed until everything had converged.
    pub(super) points: u64,
    pub(super) requests: usize,
    pub(super) ended_at: Timestamp,
}

/// A trial under way.
pub(super) struct Trial {
    seed: u64,
    executor: Executor,
    world: Shared,
    backend: Backend,
    climate: Climate,
    scenes: Vec<Scene>,
    processes: Vec<Process>,
    kills: Kills,
    /// Draws when processes are killed; apart from the worlds' chance.
    chance: Chance,
    stage: Stage,
    prompt: Prompt,
    first_points: u64,
    runs: u64,
}

struct Process {
    task: Option<TaskId>,
    /// Whether it stands still.
    suspended: bool,
    /// Whether its last run was killed.
    killed: bool,
    points: Points,
    stop: CancellationToken,
    runs: u64,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Storm,
    /// Since when, and when at the latest everything must have converged.
    Calm {
        deadline: Timestamp,
    },
    /// Everything converged: no request may follow.
    Quiet {
        until: Timestamp,
        requests: usize,
    },
    Over,
}

impl Trial {
    pub(super) fn new(options: Options, backend: Backend) -> Self {
        let Options {
            seed,
            climate,
            tell,
            kills,
            scenes,
        } = options;
        let executor = Executor::new();
        let key: FingerprintKey = backend.key();
        let scripted = !scenes.is_empty();
        let mut world = World {
            handle: executor.handle(),
            chance: Chance::new(seed ^ 0x77),
            log: Log::new(tell),
            climate: climate.clone(),
            stormy: !scripted,
            provider: Provider::new(&climate, key.clone()),
            remote: Remote::default(),
            laws: Laws::default(),
            key,
            store_down_until: Timestamp::EPOCH,
            script: std::collections::VecDeque::new(),
            fetches_take: std::collections::VecDeque::new(),
            restless: None,
            left_to_sweeps: BTreeMap::new(),
        };
        world.say(format_args!("seed {seed}: {climate:?}"));
        world.populate();
        let handle = executor.handle();
        let world = Shared::new(world);
        for number in 0..climate.processes {
            handle.after(Duration::ZERO, Happening::Start(number));
        }
        for (index, (at, _)) in scenes.iter().enumerate() {
            handle.after(*at, Happening::Scene(index));
        }
        if scripted {
            // Nothing but what is written down goes wrong, so that all of it can be judged.
            handle.after(LOOK_EVERY, Happening::Look);
        } else {
            handle.after(climate.turn_every, Happening::Turn);
        }
        handle.after(climate.storm, Happening::Clear);
        let processes = (0..climate.processes)
            .map(|_| Process {
                task: None,
                suspended: false,
                killed: false,
                points: Points::new(&world, &handle, 0),
                stop: CancellationToken::new(),
                runs: 0,
            })
            .collect();
        Self {
            seed,
            executor,
            world,
            backend,
            climate,
            scenes,
            processes,
            kills,
            chance: Chance::new(seed ^ 0x99),
            stage: Stage::Storm,
            prompt: Prompt::default(),
            first_points: 0,
            runs: 0,
        }
    }

    /// Runs the trial to its end.
    pub(super) fn run(mut self) -> Verdict {
        for steps in 0.. {
            match self.executor.step() {
                Step::Polled(task, done) => self.polled(task, done),
                Step::Happened(happening) => self.happen(happening),
                Step::Idle => break,
            }
            if steps == STEPS_MAX {
                let what = "the daemon never rests".to_owned();
                self.world.lock().broken(Law::Convergence, what);
            }
            if matches!(self.stage, Stage::Over) || self.world.lock().laws.violation.is_some() {
                break;
            }
        }
        let tasks: Vec<TaskId> = self.processes.iter().filter_map(|p| p.task).collect();
        tasks.into_iter().for_each(|task| self.executor.kill(task));
        let mut world = self.world.lock();
        Verdict {
            hash: world.log.hash(),
            events: world.log.events(),
            violation: world.laws.violation.clone(),
            lines: world.log.lines(),
            points: self.first_points,
            requests: world.remote.requests.len(),
            ended_at: world.now(),
        }
    }

    fn polled(&mut self, task: TaskId, done: bool) {
        let Some(number) = self.processes.iter().position(|p| p.task == Some(task)) else {
            return;
        };
        let process = &mut self.processes[number];
        let is_settling = matches!(self.stage, Stage::Storm | Stage::Calm { .. });
        if process.runs == 1 && number == self.kills.process && is_settling {
            self.first_points = process.points.passed();
        }
        let killed = process.points.is_stopped();
        if !done && !killed {
            return;
        }
        process.task = None;
        (process.suspended, process.killed) = (false, killed);
        self.executor.kill(task);
        let how = if killed { "is killed" } else { "has stopped" };
        let points = process.points.passed();
        self.world.lock().say(format_args!(
            "process {number} {how} after {points} await points"
        ));
        let scripted = !self.scenes.is_empty();
        let wait = match scripted {
            true => Duration::from_millis(700),
            false => self
                .chance
                .duration(Duration::ZERO, Duration::from_secs(20)),
        };
        let handle = self.executor.handle();
        handle.after(wait, Happening::Start(number));
    }

    fn start(&mut self, number: usize) {
        if self.processes[number].task.is_some() {
            return;
        }
        self.runs += 1;
        self.prompt.disturbed();
        let handle = self.executor.handle();
        let to_be_killed = number == self.kills.process;
        let kill_at = to_be_killed.then(|| self.kills.points.pop_front());
        let stop_at = match kill_at.flatten() {
            Some(at) => at,
            None if matches!(self.stage, Stage::Storm) && self.climate.crash_after > 0 => {
                self.chance.between(1, self.climate.crash_after * 2)
            }
            None => 0,
        };
        if self.climate.processes == 1 {
            self.backend.reopen(self.processes[number].killed);
        }
        let points = Points::new(&self.world, &handle, stop_at);
        let stop = CancellationToken::new();
        self.world
            .lock()
            .say(format_args!("process {number} starts"));
        let boot = Boot {
            world: self.world.clone(),
            handle,
            points: points.clone(),
            committed: self.backend.committed(),
            climate: self.climate.clone(),
            seed: self.seed,
            number,
            run: self.runs,
            stop: stop.clone(),
        };
        let task = self.executor.spawn(run(boot));
        let process = &mut self.processes[number];
        process.task = Some(task);
        process.points = points;
        process.stop = stop;
        process.runs += 1;
    }

    fn happen(&mut self, happening: Happening) {
        let handle = self.executor.handle();
        let storm = matches!(self.stage, Stage::Storm);
        match happening {
            Happening::Start(number) => self.start(number),
            Happening::Stop(number) if storm => {
                self.world
                    .lock()
                    .say(format_args!("process {number} is asked to stop"));
                self.processes[number].stop.cancel();
            }
            Happening::Suspend(number, wait) if storm => {
                if let Some(task) = self.processes[number].task {
                    let mut world = self.world.lock();
                    world.say(format_args!("process {number} stands still for {wait:?}"));
                    world.laws.stood_still_max = world.laws.stood_still_max.max(wait);
                    drop(world);
                    self.executor.suspend(task, true);
                    self.processes[number].suspended = true;
                    handle.after(wait, Happening::Resume(task));
                }
            }
            Happening::Resume(task) => {
                let stands = self.processes.iter_mut().find(|p| p.task == Some(task));
                if let Some(process) = stands {
                    process.suspended = false;
                }
                self.prompt.disturbed();
                self.executor.suspend(task, false);
            }
            Happening::Clear => self.clear(),
            Happening::Look => self.look(),
            Happening::Scene(index) => {
                let scene = self.scenes[index].1;
                scene(&mut self.world.lock());
            }
            Happening::Turn if storm => {
                let mut world = self.world.lock();
                world.turn();
                let mean = self.climate.turn_every;
                let wait = world.chance.duration(mean / 8, mean * 2);
                handle.after(wait, Happening::Turn);
            }
            Happening::Apply(number) => self.world.lock().apply(number),
            Happening::Answer(number) => self.world.lock().answered(number),
            Happening::Commit(number) => self.world.lock().close(number),
            Happening::Revert(row, columns) if storm => self.world.lock().revert(row, columns),
            Happening::Return(row) if storm => self.world.lock().return_row(row),
            Happening::LearnToken(id) => self.world.lock().learn_token(&id),
            Happening::Reinstall(id) => self.world.lock().set_gone(&id, false),
            // The source no longer changes, and nobody disturbs the daemon.
            Happening::Stop(_)
            | Happening::Suspend(..)
            | Happening::Turn
            | Happening::Revert(..)
            | Happening::Return(_) => {}
        }
    }

    /// The storm is over: from here on everything has to come right within a bounded time.
    fn clear(&mut self) {
        let handle = self.executor.handle();
        self.world.lock().clear();
        let retry = self.climate.dispatch.retry;
        let bound = retry.late_apply * 2
            + self.climate.sweep_every * 5
            + self.climate.poll_every * 4
            + retry.backoff.max * 4
            + self.climate.dispatch.lease * 4
            // A 429 may hold an installation back, and the last probe of a pause may just have failed.
            + RATE_LIMIT_WAIT_MAX * 2
            + Duration::from_secs(120);
        let deadline = handle.now().plus(bound);
        self.stage = Stage::Calm { deadline };
        if self.scenes.is_empty() {
            handle.after(LOOK_EVERY, Happening::Look);
        }
    }

    fn look(&mut self) {
        let handle = self.executor.handle();
        let now = handle.now();
        handle.after(LOOK_EVERY, Happening::Look);
        self.look_how_soon();
        match self.stage {
            Stage::Storm | Stage::Over => {}
            Stage::Calm { deadline } => match self.unconverged() {
                None => {
                    let mut world = self.world.lock();
                    world.say(format_args!("everything has converged"));
                    let requests = world.remote.requests.len();
                    let until = now.plus(QUIET + self.climate.sweep_every);
                    self.stage = Stage::Quiet { until, requests };
                }
                Some(what) if now > deadline => {
                    self.world.lock().broken(Law::Convergence, what);
                }
                Some(_) => {}
            },
            Stage::Quiet { until, requests } => {
                let mut world = self.world.lock();
                let further = &world.remote.requests[requests..];
                if further
                    .iter()
                    .any(|request| world.provider.has_usable(&request.key))
                {
                    let what = "a request was sent although everything had converged".to_owned();
                    world.broken(Law::Minimal, what);
                } else if now > until {
                    drop(world);
                    if let Some(what) = self.unconverged() {
                        self.world.lock().broken(Law::Convergence, what);
                    }
                    self.stage = Stage::Over;
                }
            }
        }
    }

    /// Whether what differs is put right as soon as it can be.
    fn look_how_soon(&mut self) {
        if self
            .processes
            .iter()
            .any(|p| p.task.is_none() || p.suspended)
        {
            return self.prompt.disturbed();
        }
        let mut world = self.world.lock();
        let store = self.backend.committed();
        let keys: Vec<ResourceKey> = world.provider.rows.iter().map(|r| r.key.clone()).collect();
        let ever = world.now().plus(Duration::from_secs(365 * 24 * 3600));
        let read = async {
            let records = store.records(&keys).await?;
            Ok::<_, StoreError>((records, store.probes_due(ever, u32::MAX).await?))
        };
        let read = read.now_or_never().and_then(Result::ok);
        let (records, pauses) = read.expect("the committed state can be read beside the daemon");
        let records = keys.into_iter().zip(records).collect();
        let paused: Vec<InstallationId> = pauses.into_iter().map(|p| p.installation_id).collect();
        if let Some((law, what)) = self.prompt.look(&world, &records, &paused) {
            world.broken(law, what);
        }
    }

    /// What is not as it should be in the end; `None` when everything is.
    fn unconverged(&self) -> Option<String> {
        let world = self.world.lock();
        let store = self.backend.committed();
        let keys: Vec<ResourceKey> = world.provider.rows.iter().map(|r| r.key.clone()).collect();
        let records = store.records(&keys).now_or_never()?.ok()?;
        let records: BTreeMap<&ResourceKey, Record> = keys.iter().zip(records).collect();
        for (row, stored) in world.provider.rows.iter().enumerate() {
            if stored.present && stored.unread {
                // What is parked for its old value opens when a sweep finds the new one.
                return Some(format!("the row of {} is still to be read", stored.key));
            }
            let record = &records[&stored.key];
            if !stored.present && world.must_be_missed(record) {
                // A dead letter opens when a sweep finds the row gone, and what it then delivers is to be taken back.
                return Some(format!("the row of {} is still to be missed", stored.key));
            }
            if let Some(problem) = world.differs(row, record) {
                return Some(format!("{}: {problem}", stored.key));
            }
        }
        let rechecks = store.rechecks(100).now_or_never()?.ok()?;
        if let Some(key) = rechecks.iter().find(|key| world.provider.has_usable(key)) {
            return Some(format!("{key} is still to be read again"));
        }
        let now = world.now();
        let counts = store.counts(now).now_or_never()?.ok()?;
        if counts.paused > 0 {
            return Some("an installation is still paused".to_owned());
        }
        let waits = world
            .remote
            .in_flight
            .values()
            .any(|(_, until)| *until > now);
        waits.then(|| "a request is still in flight".to_owned())
    }
}

impl World {
    /// What of a row is not as it should be at Vercel or in the state.
    fn differs(&self, row: usize, record: &Record) -> Option<String> {
        let stored = &self.provider.rows[row];
        let usable = self.provider.usable(row);
        if let Some(entry) = &record.entry
            && !self.may_stay(entry, record, stored.present && usable.is_none())
        {
            return Some(format!("its entry is {} ({:?})", entry.state, entry.reason));
        }
        if !stored.present && self.must_be_uninstalled(record) {
            return Some("it should be uninstalled".to_owned());
        }
        self.unequal(row, record).map(|(_, problem)| problem)
    }

    /// What of a usable row is not so at Vercel, but for what is parked.
    pub(super) fn unequal(&self, row: usize, record: &Record) -> Option<(Field, String)> {
        let stored = &self.provider.rows[row];
        let row = self.provider.usable(row)?;
        let parked = record.entry.is_some();
        let whole = record.entry.as_ref().is_some_and(|entry| {
            entry.state == EntryState::Dead && entry.reason != Reason::Rejected
        });
        if whole {
            // Parked for an answer to the resource as a whole.
            return None;
        }
        let none = super::remote::Held::default();
        let held = self.remote.resources.get(&stored.key).unwrap_or(&none);
        let rejected = |field: Field| {
            let entry = record.entry.as_ref();
            parked && entry.is_some_and(|entry| entry.rejected.contains_key(&field))
        };
        let mut empty = row.values.iter().filter(|(field, value)| {
            let is_none = |value: &Json| value.is_null();
            let there = held.values.get(field);
            let same = there == Some(value) || (there.is_none() && is_none(value));
            !same && !rejected(**field)
        });
        if let Some((field, value)) = empty.next() {
            let there = held.values.get(field);
            let problem = format!("{field} should be {value} and is {there:?}");
            return Some((*field, problem));
        }
        if let Some(secrets) = &row.secrets
            && !rejected(Field::Secrets)
        {
            let wanted: BTreeMap<String, String> = secrets
                .0
                .iter()
                .map(|(name, secret)| {
                    let value = secret.exposed().next().unwrap_or_default().to_owned();
                    (name.as_str().to_owned(), value)
                })
                .collect();
            if wanted != held.secrets {
                let problem = format!("secrets should be {wanted:?} and are {:?}", held.secrets);
                return Some((Field::Secrets, problem));
            }
        }
        None
    }

    /// Whether a row that is gone counts as there, though sweeps that miss it have consequences.
    fn must_be_missed(&self, record: &Record) -> bool {
        let is_known = record.entry.is_some() || !record.acknowledged.values.is_empty();
        is_known
            && record.missing.is_none()
            && self.climate.reconcile.on_missing == OnMissing::Uninstall
            && self.provider.rows.iter().any(|row| row.present)
    }

    /// Whether a resource without a row still shows a status that it should have lost.
    fn must_be_uninstalled(&self, record: &Record) -> bool {
        let status = |values: &BTreeMap<Field, Json>| values.get(&Field::Status).cloned();
        let held = self.remote.resources.get(&record.key);
        // Law 9: while the source shows no rows at all nothing is inferred from that.
        let shows_rows = self.provider.rows.iter().any(|row| row.present);
        // An uninstallation that Vercel itself refused is for a person.
        let is_parked = record.entry.as_ref().is_some_and(|entry| {
            entry.state == EntryState::Dead && is_uninstallation(&entry.desired)
        });
        !is_parked
            && self.climate.reconcile.on_missing == OnMissing::Uninstall
            && shows_rows
            && status(&record.acknowledged.values).is_some()
            && held.and_then(|held| status(&held.values)) != Some(Json::from_text("uninstalled"))
    }

    /// Whether an entry may be there for good once everything is calm: parked for an answer that was given.
    fn may_stay(&self, entry: &Entry, record: &Record, quarantined: bool) -> bool {
        let key = &record.key;
        // An unusable row is shown as such; its entry waits for it. And of a source that shows no rows at all nothing is
        // concluded, so that its entries wait, too.
        if quarantined || !self.provider.rows.iter().any(|row| row.present) {
            return true;
        }
        if entry.state != EntryState::Dead {
            return false;
        }
        let last = self.remote.last_status.get(key);
        match entry.reason {
            Reason::Rejected => entry
                .rejected
                .keys()
                .all(|field| self.remote.rejected.contains_key(&(key.clone(), *field))),
            Reason::NotFound => {
                matches!(last, Some(404 | 410)) || self.remote.not_shown.contains(key)
            }
            Reason::ConflictLimit => last == Some(&409),
            Reason::Refused => matches!(last, Some(301 | 402 | 418)),
            Reason::RowGone => {
                let row = self.provider.rows.iter().find(|row| row.key == *key);
                let in_doubt = &record.doubt;
                row.is_none_or(|row| !row.present)
                    && (in_doubt.fields.contains_key(&Field::Secrets)
                        || !in_doubt.secrets.is_empty())
            }
            _ => false,
        }
    }
}

/// How long a trial lasted on the virtual clock.
impl Verdict {
    pub(super) fn lasted(&self) -> Duration {
        self.ended_at.since(BEGINNING)
    }
}
