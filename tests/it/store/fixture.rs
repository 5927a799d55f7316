//! What the laws are written with: stores, rows, claims and outcomes in one word each.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use reconciled::model::{
    Field, Fingerprint, FingerprintKey, InstallationId, Json, LeaseToken, Origin, Record,
    ResourceKey, RowHash, SecretName, SharedMap, Snapshot, Timestamp,
};
use reconciled::plan::backoff::Backoff;
use reconciled::plan::guard::Limits;
use reconciled::plan::{Claimed, Outcome, Policy, RetryPolicy, SecretsWay};
use reconciled::store::Access;
use reconciled::store::postgres::Settings;
use reconciled::store::{
    Advanced, AttemptRecord, Batch, ClaimRequest, MemoryStore, Observation, Pause, PauseKind,
    PostgresStore, Quarantined, Reconciled, Settlement, SqliteStore, Store,
};
use tempfile::TempDir;

use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::Postgres;

/// When every test begins.
pub(super) const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);
/// How long a request whose answer was lost may still take effect.
pub(super) const LATE: Duration = Duration::from_secs(60);
/// How long a claim lasts.
pub(super) const LEASE: Duration = Duration::from_secs(60);
/// The settings of retries, with intervals of 1, 2, 4 … seconds.
pub(super) const RETRY: RetryPolicy = RetryPolicy {
    backoff: Backoff {
        initial: Duration::from_secs(1),
        multiplier: 2.0,
        max: Duration::from_secs(600),
    },
    max_elapsed: Duration::ZERO,
    max_conflicts: 3,
    late_apply: LATE,
};

/// A store and whatever has to live as long as it.
pub(super) struct Fixture<S> {
    store: S,
    _keeps: Keeps,
}

/// What a store needs for as long as it is used.
pub(super) enum Keeps {
    Nothing,
    Directory { _directory: TempDir },
    Pooler { _pooler: Box<PgBouncer> },
}

impl<S: Store> Fixture<S> {
    /// The store.
    pub(super) fn store(&self) -> &S {
        &self.store
    }
}

pub(super) async fn memory() -> Fixture<MemoryStore> {
    Fixture {
        store: MemoryStore::new(FingerprintKey::new([7; 32])),
        _keeps: Keeps::Nothing,
    }
}

pub(super) async fn sqlite() -> Fixture<SqliteStore> {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("state.db");
    let store = SqliteStore::open(&path, Access::Daemon).await;
    Fixture {
        store: store.expect("a new state"),
        _keeps: Keeps::Directory {
            _directory: directory,
        },
    }
}

pub(super) async fn postgres() -> Fixture<PostgresStore> {
    let database = Postgres::shared().ordered_database().await;
    Fixture {
        store: open_postgres(&database.url).await,
        _keeps: Keeps::Nothing,
    }
}

/// The same through a pooler in transaction mode.
pub(super) async fn pooled_postgres() -> Fixture<PostgresStore> {
    let database = Postgres::shared().database().await;
    let pooler = PgBouncer::in_front_of(Postgres::shared(), &["postgres"]);
    Fixture {
        store: open_postgres(&pooler.url("postgres", &database.name)).await,
        _keeps: Keeps::Pooler {
            _pooler: Box::new(pooler),
        },
    }
}

pub(super) async fn open_postgres(url: &str) -> PostgresStore {
    PostgresStore::open(&settings(url), Access::Daemon)
        .await
        .expect("a state")
}

pub(super) fn settings(url: &str) -> Settings {
    Settings {
        url: url.into(),
        target: "the test's database".to_owned(),
        max_connections: 4,
    }
}

pub(super) fn seconds(seconds: u64) -> Timestamp {
    START.plus(Duration::from_secs(seconds))
}

pub(super) fn key(installation_id: &str, resource_id: &str) -> ResourceKey {
    ResourceKey::new(installation_id, resource_id).expect("usable ids")
}

pub(super) fn installation(id: &str) -> InstallationId {
    InstallationId::new(id).expect("a usable id")
}

pub(super) fn fingerprint(text: &str) -> Fingerprint {
    let mut hasher = FingerprintKey::new([1; 32]).hasher("test");
    hasher.update(text.as_bytes());
    Fingerprint::from_hasher(&hasher)
}

/// A desired side with a status.
pub(super) fn status(text: &str) -> Snapshot {
    let values = SharedMap::from([(Field::Status, Json::from_text(text))]);
    Snapshot {
        values,
        secrets: None,
    }
}

/// The same with secrets, each `NAME=value`.
pub(super) fn with_secrets(mut snapshot: Snapshot, secrets: &[&str]) -> Snapshot {
    let secret = |pair: &&str| {
        let (name, value) = pair.split_once('=').expect("NAME=value");
        let name = SecretName::new(name).expect("a usable name");
        (name, fingerprint(value))
    };
    snapshot.secrets = Some(secrets.iter().map(secret).collect());
    snapshot
}

pub(super) fn with_name(mut snapshot: Snapshot, name: &str) -> Snapshot {
    snapshot.values.insert(Field::Name, Json::from_text(name));
    snapshot
}

/// The hash of a row that desires this.
pub(super) fn hash_of(desired: &Snapshot) -> RowHash {
    fingerprint(&serde_json::to_string(desired).expect("JSON"))
}

pub(super) fn row(key: &ResourceKey, desired: &Snapshot) -> Observation {
    Observation {
        key: key.clone(),
        desired: desired.clone(),
        row_hash: hash_of(desired),
    }
}

pub(super) fn batch(now: Timestamp, observations: Vec<Observation>) -> Batch {
    Batch {
        now,
        origin: Origin::Poll,
        policy: Policy::default(),
        observations,
        quarantined: Vec::new(),
        missing: Vec::new(),
        poll: None,
        sweep: None,
        guard: Limits::default(),
        ends_pass: true,
        uninstall_missing_since: None,
        baseline: None,
        watch: None,
        claim: None,
    }
}

pub(super) fn unusable(key: &ResourceKey, content: &str, since: Timestamp) -> Quarantined {
    Quarantined {
        key: Some(key.clone()),
        installation_id: key.installation_id.to_string(),
        resource_id: key.resource_id.to_string(),
        column: "status".to_owned(),
        problem: "is not a known value".to_owned(),
        accepted: "ready, suspended".to_owned(),
        row_hash: fingerprint(content),
        since,
    }
}

/// A row whose ids are NULL.
pub(super) fn without_ids(content: &str, since: Timestamp) -> Quarantined {
    Quarantined {
        key: None,
        installation_id: String::new(),
        resource_id: String::new(),
        column: "installation_id".to_owned(),
        problem: "is NULL".to_owned(),
        accepted: "text".to_owned(),
        row_hash: fingerprint(content),
        since,
    }
}

pub(super) async fn read(store: &dyn Store, now: Timestamp, rows: Vec<Observation>) -> Reconciled {
    store.reconcile(batch(now, rows)).await.expect("committed")
}

pub(super) async fn record(store: &dyn Store, key: &ResourceKey) -> Record {
    let records = store.records(std::slice::from_ref(key)).await;
    records.expect("readable").pop().expect("one per key")
}

/// Tokens that no other call gives.
pub(super) fn tokens(count: u32) -> Vec<LeaseToken> {
    static NEXT: AtomicI64 = AtomicI64::new(1);
    (0..count)
        .map(|_| LeaseToken(NEXT.fetch_add(1, Ordering::Relaxed)))
        .collect()
}

pub(super) fn request(now: Timestamp, limit: u32) -> ClaimRequest {
    ClaimRequest {
        now,
        owner: "test".to_owned(),
        lease_expires_at: now.plus(LEASE),
        tokens: tokens(limit),
        limit,
        per_installation: 4,
        in_flight: BTreeMap::new(),
        after: None,
        excluded: Vec::new(),
        rate: None,
        used: BTreeMap::new(),
        late_apply: LATE,
        secrets: SecretsWay::Together,
    }
}

pub(super) async fn claim(store: &dyn Store, now: Timestamp) -> Vec<Claimed> {
    claim_by(store, &request(now, 64)).await
}

pub(super) async fn claim_by(store: &dyn Store, request: &ClaimRequest) -> Vec<Claimed> {
    store.claim(request).await.expect("claimed")
}

/// The only entry that can be claimed.
pub(super) async fn claim_one(store: &dyn Store, now: Timestamp) -> Claimed {
    let mut claimed = claim(store, now).await;
    assert_eq!(claimed.len(), 1, "{claimed:?}");
    claimed.remove(0)
}

pub(super) fn settlement(claimed: &Claimed, outcome: Outcome, now: Timestamp) -> Settlement {
    Settlement {
        entry_id: claimed.entry_id,
        key: claimed.key.clone(),
        token: claimed.token,
        outcome,
        now,
        jitter: 1.0,
        retry: RETRY,
        attempt: Some(AttemptRecord {
            started_at: now,
            ended_at: now,
            method: "PATCH",
            fields: claimed.patch.fields().iter().collect(),
            secret_names: claimed
                .patch
                .secret_names()
                .map(ToString::to_string)
                .collect(),
            status: Some(200),
            error_code: None,
            message: None,
            vercel_id: Some("fra1::test".to_owned()),
        }),
        limit_installation_until: None,
        recheck: false,
    }
}

pub(super) async fn settle(
    store: &dyn Store,
    claimed: &Claimed,
    outcome: Outcome,
    now: Timestamp,
) -> Advanced {
    let advanced = store.advance(settlement(claimed, outcome, now)).await;
    advanced.expect("recorded").expect("the token matches")
}

pub(super) async fn acknowledge(store: &dyn Store, claimed: &Claimed, now: Timestamp) -> Advanced {
    settle(store, claimed, Outcome::Acknowledged { sent_at: now }, now).await
}

/// Reads a row and has Vercel acknowledge it.
pub(super) async fn deliver(
    store: &dyn Store,
    now: Timestamp,
    key: &ResourceKey,
    desired: &Snapshot,
) {
    read(store, now, vec![row(key, desired)]).await;
    let claimed = claim(store, now).await;
    let claimed = claimed.iter().find(|claimed| claimed.key == *key);
    acknowledge(store, claimed.expect("it differs"), now).await;
}

pub(super) fn rejected() -> Outcome {
    Outcome::Rejected {
        status: 422,
        code: Some("bad".to_owned()),
    }
}

pub(super) fn pause(installation_id: &str, kind: PauseKind, since: Timestamp) -> Pause {
    Pause {
        installation_id: installation(installation_id),
        kind,
        by: "ana".to_owned(),
        reason: "customer migration".to_owned(),
        since,
        until: None,
        probe_at: (kind != PauseKind::Manual).then_some(since),
        probes_failed: 0,
    }
}

/// Whether an installation gets no requests.
pub(super) async fn blocked(store: &dyn Store, installation_id: &str, now: Timestamp) -> bool {
    let asked = store.is_blocked(&installation(installation_id), now).await;
    asked.expect("answered")
}

pub(super) fn installations(claimed: &[Claimed]) -> Vec<&str> {
    claimed
        .iter()
        .map(|claimed| claimed.key.installation_id.as_str())
        .collect()
}

pub(super) fn resources(claimed: &[Claimed]) -> Vec<&str> {
    claimed
        .iter()
        .map(|claimed| claimed.key.resource_id.as_str())
        .collect()
}
