//! The daemon's own database: records, outbox, cursors, installations, quarantine.
//!
//! A store runs the pure steps of [`crate::plan`] inside its transactions and writes what they leave behind. Every method that
//! changes something is one transaction, durable when it returns. Times are arguments. A store that fails says so and has
//! changed nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;

use crate::model::{
    EntryId, EntryState, Field, FieldSet, FingerprintKey, InstallationId, Lease, LeaseToken,
    Origin, Reason, Record, ResourceKey, RowHash, Snapshot, Timestamp,
};
use crate::plan::baseline::Baseline;
use crate::plan::pace::Rate;
use crate::plan::{Claimed, Decision, Outcome, Policy, RetryPolicy, SecretsWay, guard};

mod codec;
pub mod console;
mod fault;
mod glance;
pub mod hold;
pub mod memory;
mod migrate;
pub mod postgres;
mod rules;
pub mod sqlite;
mod steps;
mod summaries;

pub use console::{Console, Person};
pub use glance::{Glance, Glances};
pub use hold::{GuardEvent, Hold, HoldReport, HoldState};
pub use memory::MemoryStore;
pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;

/// What a process is to the state that it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Works on it as a daemon: creates it and brings it up to date. A state that cannot be shared is its own as long as it runs.
    Daemon,
    /// A command that runs beside a daemon, or without one; the state is there already.
    Beside,
}

/// What the daemon's two loops need of the state.
#[async_trait]
pub trait Store: Send + Sync {
    /// The key of all fingerprints in this state; made once, when the state is created.
    async fn fingerprint_key(&self) -> Result<FingerprintKey, StoreError>;

    /// The little that a pass needs to see that a row is unchanged: one answer per key, in order.
    async fn glance(&self, keys: &[ResourceKey]) -> Result<Vec<Glance>, StoreError>;

    /// The same of every resource between two keys, both included, in byte order; `None` when there are more than `limit`. A resource
    /// of which only an unusable row was ever seen is not among them.
    async fn glance_between(
        &self,
        first: (&str, &str),
        last: (&str, &str),
        limit: u32,
    ) -> Result<Option<Glances>, StoreError>;

    /// The whole records of these resources, in order; a resource never seen before gives [`Record::new`].
    async fn records(&self, keys: &[ResourceKey]) -> Result<Vec<Record>, StoreError>;

    /// Decides on rows that were read, and advances the cursor, in one transaction. Fails with [`StoreError::WatchLost`] when the
    /// batch names a watch that is no longer held.
    async fn reconcile(&self, batch: Batch) -> Result<Reconciled, StoreError>;

    /// Where polls and sweeps stand.
    async fn progress(&self) -> Result<Progress, StoreError>;

    /// Claims due entries, fairly between installations; records their doubt in the same transaction.
    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Claimed>, StoreError>;

    /// When the earliest waiting entry could be claimed: when it is due, its installation's rate limit has passed and a manual
    /// pause that ends by itself has ended, or when a lease expires. `None` when nothing waits but what only an act or a probe
    /// can set free.
    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Records how an attempt ended. `None`: the lease's token no longer matched, and nothing was changed.
    async fn advance(&self, settlement: Settlement) -> Result<Option<Advanced>, StoreError>;

    /// Records how several attempts ended, one answer each, in order. A failure may have kept some of them.
    async fn advance_all(
        &self,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Option<Advanced>>, StoreError> {
        let mut answers = Vec::with_capacity(settlements.len());
        for settlement in settlements {
            answers.push(self.advance(settlement).await?);
        }
        Ok(answers)
    }

    /// Ends the leases that have expired; with `owner_gone`, also every other lease and the watch (the caller holds the state
    /// alone).
    /// Returns how many there were.
    async fn recover(
        &self,
        now: Timestamp,
        late_apply: Duration,
        owner_gone: bool,
    ) -> Result<u64, StoreError>;

    /// Pauses an installation, or replaces what is said of its pause of that kind; a pause in effect keeps its `since`. One with failed
    /// probes only prolongs the pause that was probed: if that has ended nothing is changed.
    async fn pause(&self, pause: &Pause) -> Result<(), StoreError>;

    /// Ends a pause of that kind; true if one was in effect at `now`.
    async fn resume(
        &self,
        installation_id: &InstallationId,
        kind: PauseKind,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// The automatic pauses whose next probe is due at `now`, the longest waiting first, at most `limit`.
    async fn probes_due(&self, now: Timestamp, limit: u32) -> Result<Vec<Pause>, StoreError>;

    /// The resources of the state and those of unusable rows, a page at a time in byte order of the key.
    async fn keys_after(
        &self,
        after: Option<&ResourceKey>,
        limit: u32,
    ) -> Result<Vec<ResourceKey>, StoreError>;

    /// How many resources the state has. Looks at every one of them: at some ten million that takes a second.
    async fn resources(&self) -> Result<u64, StoreError>;

    /// How many resources it has nothing of but an unusable row: those that [`Store::keys_after`] gives besides.
    async fn unusable_alone(&self) -> Result<u64, StoreError>;

    /// Counts for the summary line and `status`: what they look at grows with what waits, not with the resources.
    async fn counts(&self, now: Timestamp) -> Result<Counts, StoreError>;

    /// Whether an installation gets no requests at `now`: it is paused, or limited by Vercel.
    async fn is_blocked(
        &self,
        installation_id: &InstallationId,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Puts fields in doubt that Vercel shows otherwise than it acknowledged, and wishes their rows to be read again. Leaves
    /// alone what has an open entry or was acknowledged anew since. Each resource that was marked by a person's order gets the
    /// row of the act. Returns how many were marked.
    async fn mark_drifted(
        &self,
        drifted: &[Drifted],
        by: Option<&Person>,
        now: Timestamp,
    ) -> Result<u64, StoreError>;

    /// Resources whose row is to be read again (see [`Settlement::recheck`]), at most `limit`; an observation, an unusable
    /// row or a missing row of the resource ends the wish.
    async fn rechecks(&self, limit: u32) -> Result<Vec<ResourceKey>, StoreError>;

    /// A hold of the guard with what its entries would do; `None` when there never was one of this number.
    async fn hold(&self, id: i64) -> Result<Option<HoldReport>, StoreError>;

    /// The holds that wait for a person, by number.
    async fn open_holds(&self) -> Result<Vec<Hold>, StoreError>;

    /// Leaves a sign of life for `status`: cheap, without a transaction in the state database, lost without harm.
    async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError>;

    /// Takes the watch, the right to read the source and to commit what was found, when nobody has it or its holder's lease has
    /// ended at `now`; true if it was taken.
    async fn acquire_watch(&self, lease: &Lease, now: Timestamp) -> Result<bool, StoreError>;

    /// Prolongs the watch with this token; false when another has taken it or it was given back.
    async fn renew_watch(
        &self,
        token: LeaseToken,
        expires_at: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Gives the watch with this token back, so that another can take it at once; false when it was lost already.
    async fn release_watch(&self, token: LeaseToken) -> Result<bool, StoreError>;

    /// Who has the watch, or had it last and did not give it back.
    async fn watch(&self) -> Result<Option<Lease>, StoreError>;

    /// Whether several daemons may work on this state at once.
    fn is_shared(&self) -> bool {
        false
    }

    /// Deletes closed entries and attempts past their retention, at most `limit` of each, the oldest first; returns how many were
    /// deleted. Either may outlive the other.
    async fn prune(&self, cutoffs: Cutoffs, limit: u32) -> Result<u64, StoreError>;
}

/// Rows of one page and where the pass stands after it.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The time of the decisions.
    pub now: Timestamp,
    /// What read the rows.
    pub origin: Origin,
    /// The settings of the decisions.
    pub policy: Policy,
    /// Usable rows; each also ends its resource's quarantine.
    pub observations: Vec<Observation>,
    /// Unusable rows. Those without a key must all be given, known or not: a complete sweep forgets the ones it did not meet.
    pub quarantined: Vec<Quarantined>,
    /// Resources whose rows are gone from the source (sweeps only).
    pub missing: Vec<ResourceKey>,
    /// The poll's new position.
    pub poll: Option<PollProgress>,
    /// The sweep's new position.
    pub sweep: Option<SweepProgress>,
    /// `[guard]`: how much the pass may change before a person must agree.
    pub guard: guard::Limits,
    /// The last batch of its pass: the guard decides on what the pass has counted.
    pub ends_pass: bool,
    /// `[reconcile] on_missing = "uninstall"`: the end of the last complete sweep that read rows. What was found missing by
    /// then and is missing now is uninstalled. `None`: nothing is.
    pub uninstall_missing_since: Option<Timestamp>,
    /// The rows are brought to a baseline instead of being decided on.
    pub baseline: Option<Baseline>,
    /// The watch under which the rows were read. `None`: nobody else reads the source for this state.
    pub watch: Option<LeaseToken>,
    /// What to claim of all that is due once the batch is decided, in the same transaction.
    pub claim: Option<ClaimRequest>,
}

/// A resource of which Vercel shows another value than it acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drifted {
    /// The resource.
    pub key: ResourceKey,
    /// The fields.
    pub fields: FieldSet,
    /// When Vercel had last accepted something, when it was asked.
    pub acknowledged_at: Option<Timestamp>,
}

/// A usable row.
#[derive(Debug, Clone)]
pub struct Observation {
    /// The resource.
    pub key: ResourceKey,
    /// What the row desires.
    pub desired: Snapshot,
    /// The row's hash.
    pub row_hash: RowHash,
}

/// An unusable row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// The resource, if both ids are usable. Shown ids cannot tell: an unusable one may look usable once it is shown.
    pub key: Option<ResourceKey>,
    /// The column `installation_id` as far as it can be shown (cut short, control characters replaced); empty for NULL.
    pub installation_id: String,
    /// The column `resource_id`, likewise.
    pub resource_id: String,
    /// The column that cannot be used.
    pub column: String,
    /// What is wrong with it, without the value.
    pub problem: String,
    /// What is accepted.
    pub accepted: String,
    /// The row's hash: an equal row is reported once.
    pub row_hash: RowHash,
    /// When it was first seen.
    pub since: Timestamp,
}

/// What a batch did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// One decision per observation, in order.
    pub decisions: Vec<Decision>,
    /// Which of the batch's unusable rows are new or changed, by index: those are to be reported.
    pub newly_quarantined: Vec<usize>,
    /// How many quarantined rows became usable.
    pub recovered: u64,
    /// How many resources were found missing for the first time.
    pub newly_missing: u64,
    /// How many missing resources are to be uninstalled since this batch.
    pub uninstalled: u64,
    /// What the guard did, to be told.
    pub guard: Vec<GuardEvent>,
    /// The pass has found changes on which the guard decides at its end.
    pub undecided: bool,
    /// What was claimed with it.
    pub claimed: Vec<Claimed>,
}

/// Where the poll stands.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PollProgress {
    /// The cursor from which the next pass starts, in the source's own text form; `None`: from the beginning.
    pub cursor: Option<String>,
    /// The identity of the database that the cursor belongs to.
    pub identity: String,
    /// When the last complete pass ended; `None`: none has.
    pub completed_at: Option<Timestamp>,
    /// How many rows that pass read.
    pub rows: u64,
}

/// Where the sweep stands.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SweepProgress {
    /// The number of this sweep.
    pub number: u64,
    /// When it started.
    pub started_at: Timestamp,
    /// The last row it read; `None` at its start and when it is complete.
    pub after: Option<crate::source::RawKey>,
    /// The account so far.
    pub account: SweepAccount,
    /// Whether it is complete.
    pub complete: bool,
    /// Whether a poll has called for every row to be read since it began: the next one reads them all, wherever this one stands.
    #[serde(default)]
    pub owed: bool,
    /// When the last complete sweep ended, and its account.
    pub last: Option<(Timestamp, SweepAccount)>,
}

/// A sweep's account: `rows` is the sum of the others but `missing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct SweepAccount {
    /// Rows read.
    pub rows: u64,
    /// Equal on both sides.
    pub equal: u64,
    /// With an entry that waits.
    pub waiting: u64,
    /// With an entry that is held.
    pub held: u64,
    /// With a dead letter.
    pub dead: u64,
    /// Unusable.
    pub quarantined: u64,
    /// Resources of the state that the source no longer has.
    pub missing: u64,
}

/// Where polls and sweeps stand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// The poll, if there ever was one.
    pub poll: Option<PollProgress>,
    /// The sweep, if there ever was one.
    pub sweep: Option<SweepProgress>,
}

/// What to claim.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// The time of the claim.
    pub now: Timestamp,
    /// Who claims.
    pub owner: String,
    /// When the leases end.
    pub lease_expires_at: Timestamp,
    /// The tokens to give out, at least `limit` of them, never used before.
    pub tokens: Vec<LeaseToken>,
    /// At most this many entries.
    pub limit: u32,
    /// At most this many entries of one installation, those in flight included, whoever claimed them.
    pub per_installation: u32,
    /// How many requests of this owner are in flight by installation; missing: none. Those of other owners are counted by their
    /// leases.
    pub in_flight: BTreeMap<InstallationId, u32>,
    /// Start the round with the installation after this one, so that each has its turn.
    pub after: Option<InstallationId>,
    /// Installations that are to wait for reasons that only the caller knows.
    pub excluded: Vec<InstallationId>,
    /// How many requests a minute one installation may get from all who share the state; of a state that one process has to itself,
    /// from that process.
    pub rate: Option<Rate>,
    /// When the allowances are whole again that the caller has used a part of; missing: unused.
    pub used: BTreeMap<InstallationId, Timestamp>,
    /// `[retry] late_apply`.
    pub late_apply: Duration,
    /// How secrets are sent.
    pub secrets: SecretsWay,
}

/// The outcome of an attempt and what goes into its history.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The entry.
    pub entry_id: EntryId,
    /// The resource.
    pub key: ResourceKey,
    /// The proof of the claim.
    pub token: LeaseToken,
    /// How the attempt ended.
    pub outcome: Outcome,
    /// When it ended.
    pub now: Timestamp,
    /// From 0 to 1, for the backoff.
    pub jitter: f64,
    /// The settings of retries.
    pub retry: RetryPolicy,
    /// The request that was sent, if any; with it the attempt is kept in the history.
    pub attempt: Option<AttemptRecord>,
    /// The installation waits until this instant (429).
    pub limit_installation_until: Option<Timestamp>,
    /// The source's row is no longer what the entry was made from: it is to be read again.
    pub recheck: bool,
}

/// A running daemon's sign of life.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Heartbeat {
    /// Unique to the process, among all that work on the state.
    #[serde(default)]
    pub owner: String,
    /// The process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// When this sign was given.
    pub at: Timestamp,
    /// When the last poll ended without an error, and how many rows it read.
    pub last_poll: Option<(Timestamp, u64)>,
    /// Why the source cannot be read now, if it cannot.
    pub source_problem: Option<String>,
    /// Why the state cannot be used now, if it cannot; it may be readable all the same, on a full disk for instance.
    #[serde(default)]
    pub state_problem: Option<String>,
    /// Since when the API as a whole fails, if it does.
    pub outage_since: Option<Timestamp>,
}

/// One HTTP request in the history that `explain` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRecord {
    /// When the request was sent.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// The method and kind, for instance `PATCH`.
    pub method: &'static str,
    /// The fields that it carried.
    pub fields: Vec<Field>,
    /// The names of the secrets that it carried.
    pub secret_names: Vec<String>,
    /// The status of the answer.
    pub status: Option<u16>,
    /// A stable code of what went wrong.
    pub error_code: Option<String>,
    /// What Vercel said, in safe words.
    pub message: Option<String>,
    /// `X-Vercel-Id` of the answer.
    pub vercel_id: Option<String>,
}

/// What recording an outcome led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advanced {
    /// The state of the entry now.
    pub state: EntryState,
    /// Why it waits or died.
    pub reason: Reason,
    /// When it is due, while it waits.
    pub due_at: Timestamp,
}

/// Why an installation gets no requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PauseKind {
    /// A person paused it.
    Manual,
    /// Its token was refused; probed with backoff.
    Token,
    /// Vercel no longer knows it; probed with backoff.
    Gone,
}

impl PauseKind {
    /// The kind's name in the state database and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Token => "token",
            Self::Gone => "gone",
        }
    }

    /// The kind of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Manual, Self::Token, Self::Gone]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// A paused installation. One installation may have a manual pause and an automatic one at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// The installation.
    pub installation_id: InstallationId,
    /// Why.
    pub kind: PauseKind,
    /// Who paused it: a user name, or `reconciled`.
    pub by: String,
    /// The reason in words.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
    /// When a manual pause ends by itself.
    pub until: Option<Timestamp>,
    /// When an automatic pause is probed next.
    pub probe_at: Option<Timestamp>,
    /// How many probes have failed.
    pub probes_failed: u32,
}

/// Counts for the summary line and `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Entries that wait, those in flight included.
    pub waiting: u64,
    /// Entries in flight.
    pub in_flight: u64,
    /// Entries held by the guard.
    pub held: u64,
    /// Dead letters.
    pub dead: u64,
    /// Unusable rows.
    pub quarantined: u64,
    /// Paused installations.
    pub paused: u64,
    /// Resources that the source no longer has.
    pub missing: u64,
    /// When the change of the oldest waiting entry was found.
    pub oldest_waiting: Option<Timestamp>,
    /// When Vercel last acknowledged something.
    pub last_acknowledged: Option<Timestamp>,
}

/// What is old enough to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cutoffs {
    /// Entries closed before this instant.
    pub entries: Timestamp,
    /// Attempts that ended before this instant.
    pub attempts: Timestamp,
}

/// Why the state could not be read or written. Never holds a value of a row.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state could not be opened.
    #[error("cannot open the state at {target}: {problem}")]
    Open {
        /// The database without its password.
        target: String,
        /// What is wrong.
        problem: String,
    },
    /// Another daemon has this state.
    #[error("another reconciled works on the state at {target}{}", holder.as_ref().map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    InUse {
        /// The database.
        target: String,
        /// Its process, if known.
        holder: Option<String>,
    },
    /// The state was made by a newer version.
    #[error("the state has schema {found}, this version knows schemas up to {known}")]
    Newer {
        /// The schema found.
        found: i64,
        /// The newest schema that this version knows.
        known: i64,
    },
    /// Another process reads the source for this state now; nothing was kept.
    #[error("another reconciled reads the source for this state")]
    WatchLost,
    /// An operation failed; nothing of it was kept.
    #[error("cannot {operation} in the state: {problem}")]
    Failed {
        /// What was to be done, as a verb phrase.
        operation: &'static str,
        /// What the database said, in safe words.
        problem: String,
        /// Whether the same may succeed later (busy, connection lost) rather than not (disk full, corrupt).
        transient: bool,
    },
    /// What the state holds is not what this version wrote.
    #[error("the state is damaged: {problem}")]
    Corrupt {
        /// What was found.
        problem: String,
    },
}
