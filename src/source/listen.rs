//! Notifications of PostgreSQL: hints that something changed, never the truth.
//!
//! One connection listens and does nothing else. That notifications really arrive on it is proved each time it is opened, since
//! behind a pooler in transaction mode LISTEN succeeds and nothing ever comes: the server's connection goes to somebody else, who is
//! then sent what he did not ask for. So a pooler is looked for before LISTEN is sent.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgConnectOptions, PgDatabaseError, PgListener, Postgres};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _};
use tokio::time::timeout;

use super::SourceError;
use super::connections::CONNECT_TIMEOUT;
use super::error::{self, Failure};

/// The most notifications that are taken as one.
const TAKEN_AT_ONCE: u32 = 10_000;
/// How often a pooler is looked for: it may give a session back by chance while its others are in use.
const LOOKS_FOR_POOLER: u32 = 8;
/// What errors are of.
const STATEMENT: &str = "LISTEN";

/// Something that tells when the source may have changed.
#[async_trait]
pub trait Listen: Send {
    /// Connects anew, whatever there was before, and makes sure that notifications arrive.
    ///
    /// What was sent before this returns may have been lost: poll once.
    ///
    /// # Errors
    /// No connection, or one on which nothing arrives.
    async fn open(&mut self) -> Result<(), ListenError>;

    /// Waits for a notification; all that have arrived by then count as one.
    ///
    /// # Errors
    /// The connection is lost: [`Listen::open`] makes another.
    async fn heard(&mut self) -> Result<(), ListenError>;
}

/// Why nothing is heard.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// No connection, or it broke, or the server refuses to listen.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Notifications do not arrive on this connection.
    #[error(
        "notifications do not arrive through {target}, most likely a pooler in transaction mode"
    )]
    Deaf {
        /// The database without its password.
        target: String,
    },
}

impl ListenError {
    /// A short stable code for logs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Source(error) => error.code(),
            Self::Deaf { .. } => "deaf",
        }
    }
}

/// How a connection on which nothing happens is looked after.
#[derive(Debug, Clone, Copy)]
pub struct Keepalive {
    /// How long nothing may arrive before the connection is checked.
    pub after: Duration,
    /// How long a check may take, and a notification of our own to come back.
    pub within: Duration,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            after: Duration::from_secs(15),
            within: CONNECT_TIMEOUT,
        }
    }
}

/// Listens on one channel of a PostgreSQL database. It has no `Debug`: the driver's options would print the password.
pub(super) struct PostgresListener {
    options: PgConnectOptions,
    target: String,
    channel: String,
    /// A channel of our own, for the proof alone: nobody else is woken by it.
    proof_channel: String,
    keepalive: Keepalive,
    open: Option<PgListener>,
}

impl PostgresListener {
    pub(super) fn new(
        options: PgConnectOptions,
        target: String,
        channel: String,
        unique: i64,
        keepalive: Keepalive,
    ) -> Self {
        Self {
            options,
            target,
            channel,
            proof_channel: format!("reconciled_proof_{unique:x}"),
            keepalive,
            open: None,
        }
    }

    /// Opens the connection that is to listen.
    async fn connect(&self) -> Result<PgListener, ListenError> {
        let pool = PoolOptions::<Postgres>::new()
            .max_connections(1)
            .acquire_timeout(CONNECT_TIMEOUT)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_lazy_with(self.options.clone());
        let mut listener = self
            .settle(CONNECT_TIMEOUT, PgListener::connect_with(&pool))
            .await?;
        listener.ignore_pool_close_event(true);
        listener.eager_reconnect(false);
        Ok(listener)
    }

    /// Makes sure, as far as that can be seen, that the connection keeps its session between transactions.
    ///
    /// While the other connection is inside a transaction, its session is nobody else's: a session that both have, or that this one
    /// has lost to it, belongs to a pooler.
    async fn find_pooler(
        &self,
        listener: &mut PgListener,
        other: &mut PgConnection,
    ) -> Result<(), ListenError> {
        for _ in 0..LOOKS_FOR_POOLER {
            self.look_for_pooler(listener, other).await?;
        }
        Ok(())
    }

    async fn look_for_pooler(
        &self,
        listener: &mut PgListener,
        other: &mut PgConnection,
    ) -> Result<(), ListenError> {
        let before = self.backend(&mut *listener).await?;
        self.settle(CONNECT_TIMEOUT, other.execute("BEGIN")).await?;
        let others = self.backend(&mut *other).await?;
        let after = self.backend(&mut *listener).await?;
        self.settle(CONNECT_TIMEOUT, other.execute("ROLLBACK"))
            .await?;
        if before == after && before != others {
            Ok(())
        } else {
            Err(self.deaf())
        }
    }

    async fn backend<'c>(
        &self,
        connection: impl sqlx::Executor<'c, Database = Postgres>,
    ) -> Result<i32, ListenError> {
        // Unprepared: a pooler may not keep a statement between its parts.
        let asked = sqlx::raw_sql("SELECT pg_catalog.pg_backend_pid()").fetch_one(connection);
        let row = self.settle(CONNECT_TIMEOUT, asked).await?;
        row.try_get(0).map_err(|error| self.explain(&error))
    }

    /// Listens on both channels, sends a notification over another connection and waits for it.
    async fn prove(
        &self,
        listener: &mut PgListener,
        other: &mut PgConnection,
    ) -> Result<(), ListenError> {
        let channels = [self.channel.as_str(), self.proof_channel.as_str()];
        self.settle(CONNECT_TIMEOUT, listener.listen_all(channels))
            .await?;
        // Over the listening connection itself it would come back even through a pooler.
        let notify = format!("NOTIFY \"{}\"", self.proof_channel);
        let sent = other.execute(sqlx::AssertSqlSafe(notify));
        self.settle(CONNECT_TIMEOUT, sent).await?;
        // Whatever arrives proves that notifications do.
        match timeout(self.keepalive.within, listener.try_recv()).await {
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => return Err(self.closed()),
            Ok(Err(error)) => return Err(self.explain(&error)),
            Err(_) => return Err(self.deaf()),
        }
        self.settle(CONNECT_TIMEOUT, listener.unlisten(&self.proof_channel))
            .await
    }

    async fn settle<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, sqlx::Error>> + Send,
    ) -> Result<T, ListenError> {
        match timeout(limit, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(sqlx::Error::PoolTimedOut)) | Err(_) => Err(self.unreachable(format!(
                "no answer within {}",
                humantime::format_duration(limit)
            ))),
            Ok(Err(error)) => Err(self.explain(&error)),
        }
    }

    fn explain(&self, error: &sqlx::Error) -> ListenError {
        let failure = match error
            .as_database_error()
            .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        {
            Some(database) => error::postgres(database.code(), database.message()),
            None => Failure::of_driver(error),
        };
        failure.of(&self.target, STATEMENT, CONNECT_TIMEOUT).into()
    }

    fn deaf(&self) -> ListenError {
        let target = self.target.clone();
        ListenError::Deaf { target }
    }

    fn closed(&self) -> ListenError {
        self.unreachable("connection closed".to_owned())
    }

    fn unreachable(&self, problem: String) -> ListenError {
        let target = self.target.clone();
        SourceError::Unreachable { target, problem }.into()
    }
}

#[async_trait]
impl Listen for PostgresListener {
    async fn open(&mut self) -> Result<(), ListenError> {
        self.open = None;
        let mut listener = self.connect().await?;
        let mut other = self.settle(CONNECT_TIMEOUT, self.options.connect()).await?;
        self.find_pooler(&mut listener, &mut other).await?;
        self.prove(&mut listener, &mut other).await?;
        // A connection that does not close in order is closed all the same.
        let _ = timeout(CONNECT_TIMEOUT, other.close()).await;
        self.open = Some(listener);
        Ok(())
    }

    async fn heard(&mut self) -> Result<(), ListenError> {
        let Some(mut listener) = self.open.take() else {
            return Err(self.closed());
        };
        loop {
            match timeout(self.keepalive.after, listener.try_recv()).await {
                Ok(Ok(Some(_))) => break,
                Ok(Ok(None)) => return Err(self.closed()),
                Ok(Err(error)) => return Err(self.explain(&error)),
                // A peer that is gone without a word is found out by asking it something.
                Err(_) => {
                    let check = listener.execute("SELECT 1");
                    self.settle(self.keepalive.within, check).await?;
                }
            }
        }
        for _ in 0..TAKEN_AT_ONCE {
            // A connection that breaks now is noticed by the next call.
            let Some(Ok(Some(_))) = listener.try_recv().now_or_never() else {
                break;
            };
        }
        self.open = Some(listener);
        Ok(())
    }
}
