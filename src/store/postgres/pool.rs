//! A few connections to the state's server, each used by one transaction at a time.
//!
//! A connection comes back only from a transaction that ended in order; one that failed, timed out or was cut off is closed. One
//! that went stale while idle is noticed when its next transaction begins, and replaced. Nothing here is cancelled half-way: whoever
//! uses it does so in a task of its own, which nobody drops. Nothing outlives a transaction either (no named statement, setting or
//! lock of a session) unless the connection is known to reach the server itself, so that a pooler in between does no harm.

use std::pin::pin;
use std::str::FromStr as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::{PgArguments, PgConnectOptions};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, ConnectOptions as _, PgConnection, Postgres, Row as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::store::fault::Fault;

/// How long connecting, beginning and ending a transaction may each take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one statement may take, by the server's clock.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a statement of a command may take: it may count millions of rows.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a transaction may wait for another's rows.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a transaction whose process was frozen keeps its locks.
const FROZEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a transaction may take until its next statement: longer than any that waits for its turn, so that a silent network ends it,
/// and with one look more not so long that the daemon is taken for stuck. One that goes on takes as long as it needs: the end of a
/// pass may let millions of entries go.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(45);
/// In so many looks a transaction that is silent for its longest time is seen to be.
const LOOKS: u32 = 9;
/// How long making or changing the schema may take, waiting for another daemon that does included.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long a transaction waits for a free connection.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);
/// After how many rows written, of resources and entries, a connection plans its statements anew.
///
/// The server keeps the plan of a prepared statement until somebody collects statistics. One that was made while there were few rows goes
/// through all of them, and that is what a state looks like before the first large change.
const ROWS_PER_PLAN: u64 = 10_000;
/// A setting that reaches the server only on a connection of its own: poolers drop or refuse what they do not know.
const PROBE: &str = "reconciled.direct";

/// The connections to one state. It has no `Debug`: the driver's options would print the password.
pub(super) struct Pool {
    direct: PgConnectOptions,
    pooled: PgConnectOptions,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    /// How many rows were written.
    written: AtomicU64,
}

/// An open connection.
struct Connection {
    connection: PgConnection,
    /// Whether it reaches the server itself, so that prepared statements may stay there.
    is_direct: bool,
    /// How many rows had been written when its statements were planned.
    planned_at: u64,
}

/// What a transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To write: its plans are pinned to indexes.
    Write,
    /// To read a few rows by index.
    Read,
    /// To read for a person, perhaps everything.
    Survey,
    /// To make or change the schema.
    Migrate,
}

impl Purpose {
    /// Does a whole transaction, and gives up once it has been silent for its longest time, or up to a ninth more. The work begins its
    /// transaction with the pulse that it is given.
    pub(super) async fn while_it_goes_on<T, W>(
        self,
        work: impl FnOnce(Pulse) -> W,
    ) -> Result<T, Fault>
    where
        W: Future<Output = Result<T, Fault>>,
    {
        let limit = match self {
            Self::Write | Self::Read => SILENCE_TIMEOUT,
            Self::Survey => SILENCE_TIMEOUT + CONSOLE_TIMEOUT,
            Self::Migrate => MIGRATION_TIMEOUT,
        };
        let pulse = Pulse::default();
        let work = work(pulse.clone());
        let done = until_silent(&pulse, || tokio::time::sleep(limit / LOOKS), work);
        done.await.unwrap_or_else(|| Err(late("no answer in time")))
    }

    fn begin(self) -> String {
        let access = match self {
            Self::Write | Self::Migrate => "READ WRITE",
            Self::Read | Self::Survey => "READ ONLY",
        };
        let limit = match self {
            Self::Write | Self::Read => STATEMENT_TIMEOUT,
            Self::Survey => CONSOLE_TIMEOUT,
            // Whoever comes second waits for the first; building an index on a large table may take long.
            Self::Migrate => MIGRATION_TIMEOUT,
        };
        let lock_limit = match self {
            Self::Migrate => MIGRATION_TIMEOUT,
            _ => LOCK_TIMEOUT,
        };
        // All of it ends with the transaction. The plans of the daemon's own statements are known: by index, a page at a time.
        // Statistics that are missing or old must not turn one into a scan of the table, nor into a bitmap of rows where the index
        // alone would do, nor into a list of all quarantined rows that is gone through for each row of a page. What is switched off
        // only costs more in the planner's eyes, which must not make it compile the statement.
        let plans = match self {
            Self::Write | Self::Read => {
                "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_hashjoin = off;
                 SET LOCAL enable_mergejoin = off; SET LOCAL enable_material = off; SET LOCAL jit = off;"
            }
            Self::Survey | Self::Migrate => "",
        };
        // A request leaves after the commit that records its doubt: that must be on the disk then, whatever the role's or the
        // database's own setting is.
        let durability = match self {
            Self::Write | Self::Migrate => "SET LOCAL synchronous_commit = on;",
            Self::Read | Self::Survey => "",
        };
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED {access};
             {durability}
             SET LOCAL search_path = {SCHEMA}, pg_temp;
             SET LOCAL statement_timeout = {};
             SET LOCAL lock_timeout = {};
             SET LOCAL idle_in_transaction_session_timeout = {};
             {plans}",
            limit.as_millis(),
            lock_limit.as_millis(),
            FROZEN_TIMEOUT.as_millis(),
        )
    }
}

/// By what a transaction shows that it goes on: how many statements it has begun.
#[derive(Debug, Clone, Default)]
pub(super) struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// A statement that is about to begin.
    fn statement(&self, sql: &'static str) -> Query<'static, Postgres, PgArguments> {
        self.0.fetch_add(1, Ordering::Relaxed);
        sqlx::query(sql)
    }

    fn beats(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The end of the work; `None` once the pulse has stood still for [`LOOKS`] waits.
async fn until_silent<T, S>(
    pulse: &Pulse,
    mut wait: impl FnMut() -> S,
    work: impl Future<Output = T>,
) -> Option<T>
where
    S: Future<Output = ()>,
{
    let mut work = pin!(work);
    let mut seen = pulse.beats();
    let mut still = 0;
    while still < LOOKS {
        tokio::select! {
            biased;
            done = &mut work => return Some(done),
            () = wait() => {}
        }
        let beats = pulse.beats();
        still = if beats == seen { still + 1 } else { 0 };
        seen = beats;
    }
    None
}

/// Whether the refusal of a setting with this SQLSTATE is a pooler's: of the connection (PgBouncer), or of the feature (RDS Proxy).
fn is_of_a_pooler(code: &str) -> bool {
    code.starts_with("08") || code == "0A000"
}

/// The schema of the state.
pub(super) const SCHEMA: &str = "reconciled";

impl Pool {
    /// The connections that the URL names; nothing is connected yet.
    pub(super) fn new(url: &SecretString, max_connections: u32) -> Result<Self, Fault> {
        // The driver's own words may quote the URL, password included: they are not repeated.
        let options =
            PgConnectOptions::from_str(url.expose_secret()).map_err(|_| Fault::Database {
                problem: "the URL cannot be used".to_owned(),
                transient: false,
            })?;
        let pooled = options
            .application_name("reconciled")
            // A pooler refuses settings that it does not know, and named statements outlive their transaction there.
            .extra_float_digits(None)
            .disable_statement_logging();
        let most = usize::try_from(max_connections.max(1)).unwrap_or(usize::MAX);
        Ok(Self {
            direct: pooled.clone().options([(PROBE, "on")]),
            pooled: pooled.statement_cache_capacity(0),
            idle: Mutex::default(),
            written: AtomicU64::new(0),
            permits: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
        })
    }

    /// Begins a transaction, on an idle connection if one still works.
    pub(super) async fn begin(
        self: &Arc<Self>,
        purpose: Purpose,
        pulse: Pulse,
    ) -> Result<Transaction, Fault> {
        let turn = Arc::clone(&self.permits).acquire_owned();
        let permit = timeout(TURN_TIMEOUT, turn)
            .await
            .map_err(|_| late("no connection became free in time"))?
            .map_err(|_| Fault::Database {
                problem: "the state is closed".to_owned(),
                transient: false,
            })?;
        // Taken out first: the lock is not held while the connection is tried.
        let idle = self.idle().pop();
        if let Some(connection) = idle {
            if let Ok(transaction) = self.begin_on(connection, purpose, &pulse).await {
                return Ok(transaction.holding(permit));
            }
            // What broke this one most likely broke the others; each would cost another wait.
            self.idle().clear();
        }
        let connection = self.open().await?;
        let transaction = self.begin_on(connection, purpose, &pulse).await?;
        Ok(transaction.holding(permit))
    }

    async fn open(&self) -> Result<Connection, Fault> {
        let direct = timeout(CONNECT_TIMEOUT, self.direct.connect())
            .await
            .map_err(|_| late("no answer in time"))?;
        let refused = match direct {
            Ok(mut connection) => {
                let is_direct = timeout(CONNECT_TIMEOUT, is_direct(&mut connection));
                let is_direct = is_direct.await.map_err(|_| late("no answer in time"))??;
                if is_direct {
                    return Ok(Connection {
                        connection,
                        is_direct,
                        planned_at: self.written.load(Ordering::Relaxed),
                    });
                }
                None
            }
            Err(error) => Some(error),
        };
        // Not the server's own refusal of a login, but perhaps a pooler's of the setting.
        let refused_setting = refused.as_ref().is_none_or(|error| {
            let code = error.as_database_error().and_then(|error| error.code());
            code.is_some_and(|code| is_of_a_pooler(&code))
        });
        if let Some(error) = refused
            && !refused_setting
        {
            return Err(error.into());
        }
        let connection = timeout(CONNECT_TIMEOUT, self.pooled.connect())
            .await
            .map_err(|_| late("no answer in time"))??;
        Ok(Connection {
            connection,
            is_direct: false,
            planned_at: 0,
        })
    }

    async fn begin_on(
        self: &Arc<Self>,
        mut connection: Connection,
        purpose: Purpose,
        pulse: &Pulse,
    ) -> Result<Transaction, Fault> {
        let mut begin = purpose.begin();
        let written = self.written.load(Ordering::Relaxed);
        if connection.is_direct && written - connection.planned_at >= ROWS_PER_PLAN {
            begin.push_str("; DISCARD PLANS");
            connection.planned_at = written;
        }
        let begin = AssertSqlSafe(begin);
        let began = sqlx::raw_sql(begin).execute(&mut connection.connection);
        timeout(CONNECT_TIMEOUT, began)
            .await
            .map_err(|_| late("no answer in time"))??;
        Ok(Transaction {
            pool: Arc::clone(self),
            connection,
            permit: None,
            pulse: pulse.clone(),
        })
    }

    /// Closes the idle connections; those in use are closed as they come back.
    pub(super) fn close(&self) {
        self.permits.close();
        self.idle().clear();
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn is_direct(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let sql = AssertSqlSafe(format!(
        "SELECT coalesce(pg_catalog.current_setting('{PROBE}', true), '') = 'on'"
    ));
    let row = sqlx::raw_sql(sql).fetch_one(connection).await?;
    row.try_get(0)
}

fn late(problem: &str) -> Fault {
    Fault::Database {
        problem: problem.to_owned(),
        transient: true,
    }
}

/// A transaction under way. Dropped before it has ended, it closes its connection, which ends it at the server.
pub(super) struct Transaction {
    pool: Arc<Pool>,
    connection: Connection,
    permit: Option<OwnedSemaphorePermit>,
    pulse: Pulse,
}

impl Transaction {
    fn holding(mut self, permit: OwnedSemaphorePermit) -> Self {
        self.permit = Some(permit);
        self
    }

    /// A statement for this connection: kept prepared only where that is safe.
    pub(super) fn query(&self, sql: &'static str) -> Query<'static, Postgres, PgArguments> {
        let query = self.pulse.statement(sql);
        query.persistent(self.connection.is_direct)
    }

    /// Notes that so many rows of resources or entries were written.
    pub(super) fn wrote_rows(&self, rows: usize) {
        self.pool.written.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Whether its connection reaches the server itself.
    pub(super) fn is_direct(&self) -> bool {
        self.connection.is_direct
    }

    /// The connection.
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection.connection
    }

    /// Makes it durable.
    pub(super) async fn commit(self) -> Result<(), Fault> {
        self.end("COMMIT").await
    }

    /// Undoes it.
    pub(super) async fn roll_back(self) {
        // A connection that cannot do that is closed, which undoes it too.
        let _ = self.end("ROLLBACK").await;
    }

    async fn end(mut self, how: &'static str) -> Result<(), Fault> {
        let ending = sqlx::raw_sql(how).execute(&mut self.connection.connection);
        timeout(CONNECT_TIMEOUT.max(STATEMENT_TIMEOUT), ending)
            .await
            .map_err(|_| late("no answer in time"))??;
        if !self.pool.permits.is_closed() {
            self.pool.idle().push(self.connection);
        }
        drop(self.permit);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_writes_flushes_its_commit_whatever_the_servers_own_setting_is() {
        for (purpose, writes) in [
            (Purpose::Write, true),
            (Purpose::Migrate, true),
            (Purpose::Read, false),
            (Purpose::Survey, false),
        ] {
            let sql = purpose.begin();
            assert_eq!(sql.contains("SET LOCAL synchronous_commit = on;"), writes);
            assert_eq!(sql.contains("READ WRITE"), writes);
        }
    }

    /// Begins three statements, each after so many waits.
    async fn work(pulse: Pulse, waits: u32) {
        for _ in 0..3 {
            for _ in 0..waits {
                tokio::task::yield_now().await;
            }
            drop(pulse.statement("SELECT 1"));
        }
    }

    #[tokio::test]
    async fn a_transaction_that_goes_on_has_all_the_time_it_needs_and_a_silent_one_has_not() {
        for (waits, ends) in [
            (0, true),
            (1, true),
            (LOOKS - 1, true),
            (LOOKS, false),
            (LOOKS * 100, false),
        ] {
            let pulse = Pulse::default();
            let work = work(pulse.clone(), waits);
            let done = until_silent(&pulse, || std::future::ready(()), work).await;
            assert_eq!(done.is_some(), ends, "{waits}");
        }
        let longest = SILENCE_TIMEOUT + SILENCE_TIMEOUT / LOOKS;
        assert!(
            longest < Duration::from_secs(60),
            "dispatch is taken for stuck then"
        );
    }

    #[test]
    fn a_poolers_refusal_of_a_setting_is_told_from_the_servers_of_a_login() {
        for (code, expected) in [
            ("08P01", true),
            ("0A000", true),
            ("28P01", false),
            ("3D000", false),
        ] {
            assert_eq!(is_of_a_pooler(code), expected, "{code}");
        }
    }
}
