//! The state in a schema of a PostgreSQL database, for any number of daemons at once.
//!
//! Every method is one transaction. Daemons meet only in the rows that they lock: a resource's row serialises what happens to it, a
//! claim passes over what another works on, and the watch's row is what a pass is committed under. A transaction that collides with
//! another is done again a few times. Nothing depends on a session, so that a pooler in transaction mode may stand in between.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use secrecy::SecretString;

use crate::model::{
    FingerprintKey, InstallationId, Lease, LeaseToken, Record, ResourceKey, Timestamp,
};
use crate::plan::Claimed;

use super::codec::json;
use super::fault::Fault;
use super::steps;
use super::steps::watch::WatchRows as _;
use super::{
    Access, Advanced, Batch, ClaimRequest, Counts, Cutoffs, Drifted, Glance, Glances, Heartbeat,
    Hold, HoldReport, Pause, PauseKind, Person, Progress, Reconciled, Settlement, Store,
    StoreError,
};

use migrate::{Found, Rights};
use pool::{Pool, Pulse, Purpose, Transaction};
use rows::PgRows;

mod acts;
mod columns;
mod console;
mod due;
mod glance;
mod guard;
mod locks;
mod migrate;
mod pool;
mod quarantine;
mod read;
mod rows;
mod unit;
mod watch;

/// How often a transaction that collided with others is tried in all.
const TRIES_MAX: u32 = 8;
/// How long a transaction waits after its first collision; as much longer after each further one.
const COLLISION_PAUSE: Duration = Duration::from_millis(7);

/// Where a state is. `Debug` does not show the URL.
#[derive(Clone)]
pub struct Settings {
    /// `postgres://…`.
    pub url: SecretString,
    /// The URL without its password, for messages.
    pub target: String,
    /// How many connections one process opens at most; at least one.
    pub max_connections: u32,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("target", &self.target)
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

/// A state in PostgreSQL.
pub struct PostgresStore {
    pool: Arc<Pool>,
    target: String,
    key: FingerprintKey,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// What a look at a server found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Whether there is a schema.
    pub exists: bool,
    /// Whether a pooler stands between: a setting of the connection's own was dropped or refused.
    pub is_pooled: bool,
}

impl PostgresStore {
    /// Opens the state; as [`Access::Daemon`] makes its schema if there is none.
    ///
    /// # Errors
    /// The server cannot be reached or refuses the login ([`StoreError::Failed`], transient when it may pass), the schema is not
    /// there, cannot be made, or was made by a newer version.
    pub async fn open(settings: &Settings, access: Access) -> Result<Self, StoreError> {
        let Settings {
            url,
            target,
            max_connections,
        } = settings;
        let cannot_open = |fault: Fault| match fault {
            fault if fault.is_transient() => fault.during("open it"),
            fault => StoreError::Open {
                target: target.clone(),
                problem: fault.problem(),
            },
        };
        let pool = Arc::new(Pool::new(url, *max_connections).map_err(cannot_open)?);
        let rights = match access {
            Access::Daemon => Rights::Migrate,
            Access::Beside => Rights::Use,
        };
        let opening = Arc::clone(&pool);
        let found = in_task(async move {
            let purpose = match rights {
                Rights::Migrate => Purpose::Migrate,
                Rights::Use => Purpose::Read,
            };
            let work = async |pulse| {
                let mut transaction = opening.begin(purpose, pulse).await?;
                let found = migrate::prepare(&mut transaction, rights).await?;
                transaction.commit().await?;
                Ok(found)
            };
            purpose.while_it_goes_on(work).await
        })
        .await
        .map_err(cannot_open)?;
        match found {
            Found::Ready(key) => Ok(Self {
                pool,
                target: target.clone(),
                key,
            }),
            Found::Refused(refused) => Err(refused.of(target)),
        }
    }

    /// The version of the schema that this version of the program works on.
    pub const SCHEMA_VERSION: i64 = super::migrate::newest(super::migrate::POSTGRES);

    /// Looks what is there. If there is no schema, an error when the role may not make it.
    ///
    /// # Errors
    /// The server cannot be reached, or the role could not make the schema.
    pub async fn look(settings: &Settings) -> Result<Look, StoreError> {
        let cannot_open = |fault: Fault| StoreError::Open {
            target: settings.target.clone(),
            problem: fault.problem(),
        };
        let pool = Pool::new(&settings.url, 1).map_err(cannot_open)?;
        let pool = Arc::new(pool);
        let looking = in_task(async move {
            let work = async |pulse| {
                let mut transaction = pool.begin(Purpose::Read, pulse).await?;
                let found = migrate::look(&mut transaction).await;
                let is_pooled = !transaction.is_direct();
                transaction.roll_back().await;
                found.map(|(version, may_make)| (version, may_make, is_pooled))
            };
            Purpose::Read.while_it_goes_on(work).await
        });
        let (version, may_make, is_pooled) = looking.await.map_err(cannot_open)?;
        if version == 0 && !may_make {
            return Err(StoreError::Open {
                target: settings.target.clone(),
                problem:
                    "there is no schema `reconciled` that this role owns, and it may make none"
                        .to_owned(),
            });
        }
        Ok(Look {
            exists: version > 0,
            is_pooled,
        })
    }

    /// Closes the connections; those in use as soon as their transactions have ended.
    ///
    /// Whatever is asked for afterwards fails.
    pub fn close(&self) {
        self.pool.close();
    }

    /// Whether the role may write to the state.
    ///
    /// # Errors
    /// The server did not answer.
    pub async fn can_write(&self) -> Result<bool, StoreError> {
        self.read("look at its rights", Purpose::Survey, |transaction| {
            Box::pin(async move {
                let row = transaction
                    .query(
                        "SELECT NOT pg_catalog.pg_is_in_recovery()
                            AND NOT EXISTS (SELECT 1
                                            FROM pg_catalog.pg_class
                                            WHERE relnamespace = 'reconciled'::regnamespace
                                              AND relkind = 'r'
                                              AND relname <> 'migration'
                                              AND NOT (has_table_privilege(oid, 'SELECT')
                                                       AND has_table_privilege(oid, 'INSERT')
                                                       AND has_table_privilege(oid, 'UPDATE')
                                                       AND has_table_privilege(oid, 'DELETE'))) AS may",
                    )
                    .fetch_one(transaction.connection())
                    .await?;
                super::codec::Cells::flag(&row, "may")
            })
        })
        .await
    }

    /// Has `work` done in a transaction; returns after its commit. It is done even when the caller stops waiting, and may be
    /// done several times, of which the last one counts.
    async fn write<T, F>(&self, operation: &'static str, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'a> Fn(&'a mut PgRows) -> BoxFuture<'a, Result<T, Fault>> + Send + Sync + 'static,
    {
        let pool = Arc::clone(&self.pool);
        in_task(async move { transact(&pool, &work).await })
            .await
            .map_err(|fault| fault.during(operation))
    }

    /// Has `work` read in a transaction of its own.
    async fn read<T, F>(
        &self,
        operation: &'static str,
        purpose: Purpose,
        work: F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(&'a mut Transaction) -> BoxFuture<'a, Result<T, Fault>> + Send + 'static,
    {
        let pool = Arc::clone(&self.pool);
        in_task(async move {
            let reading = async |pulse| {
                let mut transaction = pool.begin(purpose, pulse).await?;
                let result = work(&mut transaction).await;
                // Nothing was written; a connection that cannot end this is closed.
                transaction.roll_back().await;
                result
            };
            purpose.while_it_goes_on(reading).await
        })
        .await
        .map_err(|fault| fault.during(operation))
    }
}

/// Runs database work in a task of its own, so that nobody who stops waiting cuts it off half-way.
async fn in_task<T: Send + 'static>(
    work: impl Future<Output = Result<T, Fault>> + Send + 'static,
) -> Result<T, Fault> {
    let ended = tokio::spawn(work).await;
    ended.unwrap_or_else(|_| {
        Err(Fault::Database {
            problem: "the task ended unexpectedly".to_owned(),
            transient: false,
        })
    })
}

/// Does `work` in a transaction and commits it; again from the start when it collided with another.
async fn transact<T, F>(pool: &Arc<Pool>, work: &F) -> Result<T, Fault>
where
    F: for<'a> Fn(&'a mut PgRows) -> BoxFuture<'a, Result<T, Fault>>,
{
    let mut takes_guard = false;
    for attempt in 1.. {
        match Purpose::Write
            .while_it_goes_on(|pulse| try_transact(pool, work, takes_guard, pulse))
            .await
        {
            Err(Fault::NeedsGuard) if !takes_guard => takes_guard = true,
            Err(Fault::Collision { .. }) if attempt < TRIES_MAX => {
                tokio::time::sleep(COLLISION_PAUSE * attempt).await;
            }
            result => return result,
        }
    }
    unreachable!("the last attempt returns")
}

async fn try_transact<T, F>(
    pool: &Arc<Pool>,
    work: &F,
    takes_guard: bool,
    pulse: Pulse,
) -> Result<T, Fault>
where
    F: for<'a> Fn(&'a mut PgRows) -> BoxFuture<'a, Result<T, Fault>>,
{
    let mut rows = PgRows::new(pool.begin(Purpose::Write, pulse).await?);
    let done = async {
        if takes_guard {
            rows.take_guard().await?;
        }
        let result = work(&mut rows).await?;
        rows.flush().await?;
        Ok(result)
    };
    let result = done.await;
    match result {
        Ok(result) => {
            rows.transaction.commit().await?;
            Ok(result)
        }
        Err(fault) => {
            rows.transaction.roll_back().await;
            Err(fault)
        }
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn fingerprint_key(&self) -> Result<FingerprintKey, StoreError> {
        Ok(self.key.clone())
    }

    async fn glance(&self, keys: &[ResourceKey]) -> Result<Vec<Glance>, StoreError> {
        let keys = keys.to_vec();
        self.read("look at resources", Purpose::Read, move |transaction| {
            Box::pin(async move { read::glance(transaction, &keys).await })
        })
        .await
    }

    async fn glance_between(
        &self,
        first: (&str, &str),
        last: (&str, &str),
        limit: u32,
    ) -> Result<Option<Glances>, StoreError> {
        let owned = |key: (&str, &str)| (key.0.to_owned(), key.1.to_owned());
        let (first, last) = (owned(first), owned(last));
        self.read("look at resources", Purpose::Read, move |transaction| {
            Box::pin(async move {
                let (first, last) = ((&*first.0, &*first.1), (&*last.0, &*last.1));
                glance::between(transaction, first, last, limit).await
            })
        })
        .await
    }

    async fn records(&self, keys: &[ResourceKey]) -> Result<Vec<Record>, StoreError> {
        let keys = keys.to_vec();
        self.read("read resources", Purpose::Read, move |transaction| {
            Box::pin(async move { read::records(transaction, &keys).await })
        })
        .await
    }

    async fn reconcile(&self, batch: Batch) -> Result<Reconciled, StoreError> {
        let batch = Arc::new(batch);
        self.write("record what a pass found", move |rows| {
            let batch = Arc::clone(&batch);
            Box::pin(async move {
                // The locks of the whole state first, then those of all resources of the batch at once, in order.
                rows.take_guard().await?;
                if let Some(token) = batch.watch
                    && !rows.holds_watch(token).await?
                {
                    return Ok(None);
                }
                let keys: Vec<ResourceKey> = resources_of(&batch).cloned().collect();
                rows.hold(&keys).await?;
                steps::reconcile(rows, &batch).await
            })
        })
        .await?
        .ok_or(StoreError::WatchLost)
    }

    async fn progress(&self) -> Result<Progress, StoreError> {
        self.read("read where passes stand", Purpose::Read, |transaction| {
            Box::pin(read::progress(transaction))
        })
        .await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Claimed>, StoreError> {
        let request = Arc::new(request.clone());
        self.write("claim entries", move |rows| {
            let request = Arc::clone(&request);
            Box::pin(async move { steps::claim::claim(rows, &request).await })
        })
        .await
    }

    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        self.read("find the next due entry", Purpose::Read, |transaction| {
            Box::pin(read::next_due(transaction))
        })
        .await
    }

    async fn advance(&self, settlement: Settlement) -> Result<Option<Advanced>, StoreError> {
        let mut answers = self.advance_all(vec![settlement]).await?;
        Ok(answers.pop().flatten())
    }

    async fn advance_all(
        &self,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Option<Advanced>>, StoreError> {
        let settlements = Arc::new(settlements);
        self.write("record outcomes", move |rows| {
            let settlements = Arc::clone(&settlements);
            Box::pin(async move { steps::advance(rows, &settlements).await })
        })
        .await
    }

    async fn recover(
        &self,
        now: Timestamp,
        late_apply: Duration,
        owner_gone: bool,
    ) -> Result<u64, StoreError> {
        self.write("end leases", move |rows| {
            Box::pin(async move { steps::recover(rows, now, late_apply, owner_gone).await })
        })
        .await
    }

    async fn pause(&self, pause: &Pause) -> Result<(), StoreError> {
        let pause = Arc::new(pause.clone());
        self.write("pause an installation", move |rows| {
            let pause = Arc::clone(&pause);
            Box::pin(async move {
                steps::pause(rows, &pause).await?;
                acts::note_pause(rows, &pause).await
            })
        })
        .await
    }

    async fn resume(
        &self,
        installation_id: &InstallationId,
        kind: PauseKind,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let installation_id = installation_id.clone();
        self.write("resume an installation", move |rows| {
            let installation_id = installation_id.clone();
            Box::pin(async move { steps::resume(rows, &installation_id, kind, now).await })
        })
        .await
    }

    async fn probes_due(&self, now: Timestamp, limit: u32) -> Result<Vec<Pause>, StoreError> {
        self.read(
            "find installations to probe",
            Purpose::Read,
            move |transaction| Box::pin(read::probes_due(transaction, now, limit)),
        )
        .await
    }

    async fn keys_after(
        &self,
        after: Option<&ResourceKey>,
        limit: u32,
    ) -> Result<Vec<ResourceKey>, StoreError> {
        let after = after.cloned();
        self.read("list resources", Purpose::Read, move |transaction| {
            Box::pin(async move { read::keys_after(transaction, after.as_ref(), limit).await })
        })
        .await
    }

    async fn resources(&self) -> Result<u64, StoreError> {
        self.read("count resources", Purpose::Survey, |transaction| {
            Box::pin(read::resources(transaction))
        })
        .await
    }

    async fn unusable_alone(&self) -> Result<u64, StoreError> {
        self.read("count unusable rows", Purpose::Survey, |transaction| {
            Box::pin(read::unusable_alone(transaction))
        })
        .await
    }

    async fn counts(&self, now: Timestamp) -> Result<Counts, StoreError> {
        self.read("count", Purpose::Survey, move |transaction| {
            Box::pin(read::counts(transaction, now))
        })
        .await
    }

    async fn is_blocked(
        &self,
        installation_id: &InstallationId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let installation_id = installation_id.clone();
        self.read(
            "look at an installation",
            Purpose::Read,
            move |transaction| {
                Box::pin(async move { read::is_blocked(transaction, &installation_id, now).await })
            },
        )
        .await
    }

    async fn mark_drifted(
        &self,
        drifted: &[Drifted],
        by: Option<&Person>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let (drifted, by) = (drifted.to_vec(), by.cloned());
        self.write("put fields in doubt", move |rows| {
            let (drifted, by) = (drifted.clone(), by.clone());
            Box::pin(async move {
                let marked = steps::mark_drifted(rows, &drifted, now).await?;
                if let Some(by) = by {
                    acts::note_fixes(rows, &marked, &by, now).await?;
                }
                Ok(marked.len() as u64)
            })
        })
        .await
    }

    async fn rechecks(&self, limit: u32) -> Result<Vec<ResourceKey>, StoreError> {
        self.read(
            "find rows to read again",
            Purpose::Read,
            move |transaction| Box::pin(read::rechecks(transaction, limit)),
        )
        .await
    }

    async fn hold(&self, id: i64) -> Result<Option<HoldReport>, StoreError> {
        self.read("read a hold", Purpose::Survey, move |transaction| {
            Box::pin(guard::report(transaction, id))
        })
        .await
    }

    async fn open_holds(&self) -> Result<Vec<Hold>, StoreError> {
        self.read("list holds", Purpose::Read, |transaction| {
            Box::pin(guard::open_holds(transaction))
        })
        .await
    }

    async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError> {
        let heartbeat = Arc::new(heartbeat.clone());
        self.write("leave a sign of life", move |rows| {
            let heartbeat = Arc::clone(&heartbeat);
            Box::pin(async move { beat(rows, &heartbeat).await })
        })
        .await
    }

    async fn acquire_watch(&self, lease: &Lease, now: Timestamp) -> Result<bool, StoreError> {
        let lease = lease.clone();
        self.write("take the watch", move |rows| {
            let lease = lease.clone();
            Box::pin(async move { steps::watch::acquire(rows, &lease, now).await })
        })
        .await
    }

    async fn renew_watch(
        &self,
        token: LeaseToken,
        expires_at: Timestamp,
    ) -> Result<bool, StoreError> {
        self.write("prolong the watch", move |rows| {
            Box::pin(rows.renew_watch(token, expires_at))
        })
        .await
    }

    async fn release_watch(&self, token: LeaseToken) -> Result<bool, StoreError> {
        self.write("give the watch back", move |rows| {
            Box::pin(rows.drop_watch(Some(token)))
        })
        .await
    }

    async fn watch(&self) -> Result<Option<Lease>, StoreError> {
        self.read("see who has the watch", Purpose::Read, |transaction| {
            Box::pin(read::watch(transaction))
        })
        .await
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn prune(&self, cutoffs: Cutoffs, limit: u32) -> Result<u64, StoreError> {
        self.write("delete what is past its retention", move |rows| {
            Box::pin(prune(rows, cutoffs, limit))
        })
        .await
    }
}

/// All resources of a batch; their rows are locked before the first of them is decided on.
fn resources_of(batch: &Batch) -> impl Iterator<Item = &ResourceKey> {
    let unusable = batch.quarantined.iter().filter_map(|row| row.key.as_ref());
    let observed = batch.observations.iter().map(|row| &row.key);
    observed.chain(&batch.missing).chain(unusable)
}

async fn beat(rows: &mut PgRows, heartbeat: &Heartbeat) -> Result<(), Fault> {
    rows.transaction
        .query(
            "INSERT INTO daemon (owner, seen_at, heartbeat)
             VALUES ($1, clock_timestamp(), $2)
             ON CONFLICT (owner) DO UPDATE
             SET seen_at = excluded.seen_at,
                 heartbeat = excluded.heartbeat",
        )
        .bind(columns::text(&heartbeat.owner))
        .bind(json(heartbeat))
        .execute(rows.transaction.connection())
        .await?;
    Ok(())
}

async fn prune(rows: &mut PgRows, cutoffs: Cutoffs, limit: u32) -> Result<u64, Fault> {
    let Cutoffs { entries, attempts } = cutoffs;
    let mut deleted = 0;
    // Another daemon may be at it: each takes what the other does not.
    for (sql, before) in [
        (
            "DELETE FROM entry
             WHERE id = ANY (ARRAY (SELECT id
                                    FROM entry
                                    WHERE closed_at < $1
                                    ORDER BY closed_at, id
                                    LIMIT $2
                                    FOR UPDATE SKIP LOCKED))",
            entries,
        ),
        (
            "DELETE FROM attempt
             WHERE id = ANY (ARRAY (SELECT id
                                    FROM attempt
                                    WHERE ended_at < $1
                                    ORDER BY ended_at, id
                                    LIMIT $2
                                    FOR UPDATE SKIP LOCKED))",
            attempts,
        ),
    ] {
        let done = rows
            .transaction
            .query(sql)
            .bind(before.as_millis())
            .bind(i64::from(limit))
            .execute(rows.transaction.connection())
            .await?;
        deleted += done.rows_affected();
    }
    rows.transaction
        .query(
            // The last signs of life of daemons that are gone.
            "DELETE FROM daemon
             WHERE seen_at < clock_timestamp() - interval '1 day'",
        )
        .execute(rows.transaction.connection())
        .await?;
    Ok(deleted)
}
