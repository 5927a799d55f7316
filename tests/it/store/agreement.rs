//! Whatever is asked of them, in whatever order, the stores give the same answers and keep the same records.

use std::time::Duration;

use proptest::prelude::*;
use reconciled::model::{Origin, ResourceKey, Snapshot, Timestamp};
use reconciled::plan::guard::Limits;
use reconciled::plan::{Claimed, Outcome};
use reconciled::store::Access;
use reconciled::store::{
    Batch, Cutoffs, MemoryStore, Observation, Pause, PauseKind, PostgresStore, SqliteStore, Store,
    SweepAccount, SweepProgress,
};
use tempfile::TempDir;

use super::fixture::*;
use crate::support::database::TestDatabase;
use crate::support::postgres::Postgres;

const INSTALLATIONS: usize = 3;
const RESOURCES: usize = 9;

/// One thing that happens to a state.
#[derive(Debug, Clone)]
enum Step {
    Wait(u32),
    Rows(Vec<(usize, usize)>),
    /// A pass of a kind of its own ends.
    End(Origin),
    /// A sweep finds these beside the polls.
    Swept(Vec<(usize, usize)>),
    Unusable(usize, u8),
    WithoutIds(u8),
    Missing(usize),
    Sweep(bool),
    Claim {
        limit: u32,
        each: u32,
        after: Option<usize>,
    },
    Settle {
        which: usize,
        how: usize,
        recheck: bool,
    },
    Pause(usize, usize, Option<u32>),
    Resume(usize, usize),
    Recover(bool),
    Prune(u32),
    SetClockBack,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let resource = 0..RESOURCES;
    let installation = 0..INSTALLATIONS;
    prop_oneof![
        3 => (0..90_u32).prop_map(Step::Wait),
        6 => prop::collection::vec((resource.clone(), 0..desires().len()), 1..5).prop_map(Step::Rows),
        3 => prop::sample::select(vec![Origin::Poll, Origin::Sweep]).prop_map(Step::End),
        2 => prop::collection::vec((resource.clone(), 0..desires().len()), 1..5).prop_map(Step::Swept),
        1 => (0..900_u32).prop_map(Step::Wait),
        1 => (resource.clone(), any::<u8>()).prop_map(|(resource, content)| Step::Unusable(resource, content % 3)),
        1 => any::<u8>().prop_map(|content| Step::WithoutIds(content % 3)),
        1 => resource.prop_map(Step::Missing),
        1 => any::<bool>().prop_map(Step::Sweep),
        6 => (0..6_u32, 0..4_u32, prop::option::of(installation.clone()))
            .prop_map(|(limit, each, after)| Step::Claim { limit, each, after }),
        8 => (any::<usize>(), 0..OUTCOMES, prop::bool::weighted(0.1))
            .prop_map(|(which, how, recheck)| Step::Settle { which, how, recheck }),
        1 => (installation.clone(), 0..3_usize, prop::option::of(0..60_u32))
            .prop_map(|(installation, kind, until)| Step::Pause(installation, kind, until)),
        1 => (installation, 0..3_usize).prop_map(|(installation, kind)| Step::Resume(installation, kind)),
        1 => any::<bool>().prop_map(Step::Recover),
        1 => (0..4_u32).prop_map(Step::Prune),
        1 => Just(Step::SetClockBack),
        1 => Just(Step::Reopen),
    ]
}

fn desires() -> Vec<Snapshot> {
    vec![
        status("ready"),
        status("suspended"),
        with_name(status("ready"), "db"),
        with_secrets(status("ready"), &["A=1", "B=1"]),
        with_secrets(status("ready"), &["A=2", "B=1"]),
        with_secrets(with_name(status("error"), "db"), &["B=1"]),
        Snapshot::default(),
    ]
}

const OUTCOMES: usize = 12;

fn outcome(how: usize, now: Timestamp) -> Outcome {
    match how {
        0..=2 => Outcome::Acknowledged { sent_at: now },
        3 => Outcome::Lost,
        4 => Outcome::Failed,
        5 => Outcome::RateLimited {
            until: now.plus(Duration::from_secs(30)),
        },
        6 => Outcome::Conflict { observed: None },
        7 | 8 => rejected(),
        9 => Outcome::NotFound,
        10 => Outcome::Unreachable,
        _ => Outcome::SourceMoved,
    }
}

const KINDS: [PauseKind; 3] = [PauseKind::Manual, PauseKind::Token, PauseKind::Gone];

fn resource(index: usize) -> ResourceKey {
    key(
        &format!("icfg_{}", index % INSTALLATIONS),
        &format!("res_{index}"),
    )
}

fn observations(rows: &[(usize, usize)]) -> Vec<Observation> {
    let desires = desires();
    let rows = rows
        .iter()
        .map(|(index, desire)| row(&resource(*index), &desires[*desire]));
    rows.collect()
}

/// Limits that some of so few resources exceed, and none.
fn limits() -> impl Strategy<Value = Limits> {
    let max = || prop::option::of(0..4_u32);
    (max(), max()).prop_map(|(destructive_max, changes_max)| Limits {
        destructive_max,
        changes_max,
    })
}

/// The stores and what was given out to work on.
struct Stores {
    memory: MemoryStore,
    sqlite: SqliteStore,
    directory: TempDir,
    postgres: PostgresStore,
    database: TestDatabase,
    claimed: Vec<Claimed>,
    now: Timestamp,
    sweeps: u64,
    limits: Limits,
}

/// Asks all of them the same and compares the answers.
macro_rules! all {
    ($stores:expr, $store:ident => $ask:expr) => {{
        let $store: &dyn Store = &$stores.memory;
        let memory = $ask.await.expect("memory answers");
        let $store: &dyn Store = &$stores.sqlite;
        let sqlite = $ask.await.expect("SQLite answers");
        prop_assert_eq!(&memory, &sqlite);
        let $store: &dyn Store = &$stores.postgres;
        let postgres = $ask.await.expect("PostgreSQL answers");
        prop_assert_eq!(&memory, &postgres);
        memory
    }};
}

impl Stores {
    async fn new(limits: Limits) -> Self {
        let directory = TempDir::new().expect("a directory");
        let sqlite = SqliteStore::open(&directory.path().join("state.db"), Access::Daemon).await;
        let sqlite = sqlite.expect("a new state");
        let database = Postgres::shared().database().await;
        Self {
            memory: MemoryStore::new(sqlite.fingerprint_key().await.expect("a key")),
            sqlite,
            directory,
            postgres: open_postgres(&database.url).await,
            database,
            claimed: Vec::new(),
            now: START,
            sweeps: 0,
            limits,
        }
    }

    async fn run(&mut self, step: &Step) -> Result<(), TestCaseError> {
        // Time passes: what is found again after it was sent is found later.
        self.now = self.now.plus(Duration::from_millis(1));
        let now = self.now;
        let mut batch = Batch {
            guard: self.limits,
            ends_pass: self.limits == Limits::default(),
            ..batch(now, Vec::new())
        };
        match step {
            Step::Wait(seconds) => self.now = now.plus(Duration::from_secs(u64::from(*seconds))),
            Step::SetClockBack => self.now = now.minus(Duration::from_secs(3_600)),
            Step::Rows(rows) => batch.observations = observations(rows),
            Step::Swept(rows) => {
                batch.origin = Origin::Sweep;
                batch.observations = observations(rows);
            }
            Step::End(origin) => {
                batch.origin = *origin;
                batch.ends_pass = true;
            }
            Step::Unusable(index, content) => {
                batch.quarantined = vec![unusable(&resource(*index), &content.to_string(), now)];
            }
            Step::WithoutIds(content) => {
                batch.quarantined = vec![without_ids(&content.to_string(), now)];
            }
            Step::Missing(index) => batch.missing = vec![resource(*index)],
            Step::Sweep(complete) => {
                batch.sweep = Some(SweepProgress {
                    number: self.sweeps,
                    started_at: now,
                    after: None,
                    account: SweepAccount {
                        rows: 1,
                        ..SweepAccount::default()
                    },
                    complete: *complete,
                    owed: false,
                    last: None,
                });
                self.sweeps += u64::from(*complete);
            }
            Step::Claim { limit, each, after } => {
                let mut request = request(now, *limit);
                request.per_installation = *each;
                request.after = after.map(|index| resource(index).installation_id);
                let claimed = all!(self, store => store.claim(&request));
                self.claimed.extend(claimed);
            }
            Step::Settle {
                which,
                how,
                recheck,
            } => self.settle(*which, *how, *recheck).await?,
            Step::Pause(index, kind, until) => {
                let kind = KINDS[*kind];
                let id = resource(*index).installation_id;
                let mut pause = pause(id.as_str(), kind, now);
                if kind == PauseKind::Manual {
                    pause.until = until.map(|s| now.plus(Duration::from_secs(u64::from(s))));
                } else {
                    pause = Pause {
                        probe_at: until.map(|s| now.plus(Duration::from_secs(u64::from(s)))),
                        ..pause
                    };
                }
                all!(self, store => store.pause(&pause));
            }
            Step::Resume(index, kind) => {
                let id = resource(*index).installation_id;
                all!(self, store => store.resume(&id, KINDS[*kind], now));
            }
            Step::Recover(owner_gone) => {
                all!(self, store => store.recover(now, LATE, *owner_gone));
            }
            Step::Prune(limit) => {
                let cutoffs = Cutoffs {
                    entries: now.minus(Duration::from_secs(30)),
                    attempts: now.minus(Duration::from_secs(60)),
                };
                all!(self, store => store.prune(cutoffs, *limit));
            }
            Step::Reopen => {
                self.sqlite.close().await;
                let path = self.directory.path().join("state.db");
                self.sqlite = SqliteStore::open(&path, Access::Daemon)
                    .await
                    .expect("the same state");
                self.postgres.close();
                self.postgres = open_postgres(&self.database.url).await;
            }
        }
        all!(self, store => store.reconcile(batch.clone()));
        self.compare().await
    }

    async fn settle(
        &mut self,
        which: usize,
        how: usize,
        recheck: bool,
    ) -> Result<(), TestCaseError> {
        let Some(claimed) = self.claimed.get(which % self.claimed.len().max(1)).cloned() else {
            return Ok(());
        };
        let outcome = outcome(how, self.now);
        let limit = match outcome {
            Outcome::RateLimited { until } => Some(until),
            _ => None,
        };
        let mut settlement = settlement(&claimed, outcome, self.now);
        settlement.limit_installation_until = limit;
        settlement.recheck = recheck;
        // Most are forgotten once they are settled; those that are not are stale the next time.
        if how.is_multiple_of(2) {
            self.claimed.retain(|other| other.token != claimed.token);
        }
        all!(self, store => store.advance(settlement.clone()));
        Ok(())
    }

    async fn compare(&self) -> Result<(), TestCaseError> {
        let keys: Vec<ResourceKey> = (0..RESOURCES).map(resource).collect();
        all!(self, store => store.records(&keys));
        all!(self, store => store.glance(&keys));
        let ids =
            |key: &ResourceKey| (key.installation_id.to_string(), key.resource_id.to_string());
        for (first, last, limit) in [
            (&keys[0], &keys[keys.len() - 1], 100),
            (&keys[1], &keys[3], 2),
        ] {
            let (first, last) = (ids(first), ids(last));
            let (first, last) = ((&*first.0, &*first.1), (&*last.0, &*last.1));
            all!(self, store => store.glance_between(first, last, limit));
        }
        all!(self, store => store.resources());
        all!(self, store => store.counts(self.now));
        all!(self, store => store.next_due());
        let open = all!(self, store => store.open_holds());
        for hold in open {
            all!(self, store => store.hold(hold.id));
        }
        all!(self, store => store.progress());
        all!(self, store => store.rechecks(5));
        all!(self, store => store.probes_due(self.now, 5));
        all!(self, store => store.keys_after(Some(&keys[3]), 4));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_stores_agree(limits in limits(), steps in prop::collection::vec(step(), 1..50)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut stores = Stores::new(limits).await;
            for step in &steps {
                stores.run(step).await?;
            }
            Ok::<(), TestCaseError>(())
        })?;
    }
}
