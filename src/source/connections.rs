//! A few connections to one database, each used by one page at a time.
//!
//! A connection comes back only from a transaction that ended in order; one that failed, timed out or was cut off is dropped.
//! One that went stale while idle is noticed when its next transaction begins, and replaced. Nothing here is cancelled half-way:
//! callers run it in tasks of their own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::SourceError;
use super::dialect::{Began, Dialect, Limits, Rows, Sink, Standing};
use super::error::Failure;
use super::statement::Statement;

/// How long connecting, beginning and ending a transaction may each take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long after the server's own limit a statement is given up.
const GRACE: Duration = Duration::from_millis(500);
/// The most bytes of values that one statement may bring in.
const MAX_STATEMENT_BYTES: usize = 32 << 20;

/// The connections to one database.
pub(super) struct Connections<D: Dialect> {
    pub(super) dialect: D,
    statement_timeout: Duration,
    kept: Mutex<Kept<D::Connection>>,
    /// Told whenever a transaction has ended.
    ended: Notify,
    permits: Arc<Semaphore>,
}

/// The connections that no page uses.
struct Kept<C> {
    idle: Vec<C>,
    /// How many transactions are ending, each on a connection that most likely becomes idle.
    ending: usize,
}

impl<D: Dialect> Connections<D> {
    pub(super) fn new(dialect: D, statement_timeout: Duration, max_connections: u32) -> Self {
        let most = usize::try_from(max_connections.max(1)).unwrap_or(usize::MAX);
        Self {
            dialect,
            statement_timeout,
            kept: Mutex::new(Kept {
                idle: Vec::new(),
                ending: 0,
            }),
            ended: Notify::new(),
            permits: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Begins a read-only transaction, on an idle connection if one still works.
    pub(super) async fn begin(
        self: &Arc<Self>,
        statement: &'static str,
        opening: Opening,
    ) -> Result<Session<D>, SourceError> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        if let Some(connection) = self.take_idle().await {
            if let Ok(session) = self.begin_on(connection, statement, opening).await {
                return Ok(session.holding(permit));
            }
            // What broke this one most likely broke the others; each would cost another wait.
            self.kept().idle.clear();
        }
        let opened = timeout(CONNECT_TIMEOUT, self.dialect.open()).await;
        let connection = self.settle(opened, statement)?;
        let session = self.begin_on(connection, statement, opening).await?;
        Ok(session.holding(permit))
    }

    async fn begin_on(
        self: &Arc<Self>,
        mut connection: D::Connection,
        statement: &'static str,
        opening: Opening,
    ) -> Result<Session<D>, SourceError> {
        let (dialect, on) = (&self.dialect, &mut connection);
        let begin = async {
            match opening {
                Opening::Plain => Ok((dialect.begin(on).await?, None)),
                Opening::Pass { asks_open } => {
                    let (began, standing) = dialect.begin_pass(on, asks_open).await?;
                    Ok((began, Some(standing)))
                }
            }
        };
        let begun = timeout(CONNECT_TIMEOUT, begin).await;
        let (Began { is_replica }, standing) = self.settle(begun, statement)?;
        Ok(Session {
            connections: Arc::clone(self),
            connection,
            standing,
            is_replica,
            is_spent: false,
            statement,
            permit: None,
        })
    }

    /// The outcome of something that had to be done within [`CONNECT_TIMEOUT`].
    fn settle<T>(
        &self,
        outcome: Result<Result<T, D::Error>, tokio::time::error::Elapsed>,
        statement: &'static str,
    ) -> Result<T, SourceError> {
        match outcome {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(self.explain(error, statement)),
            Err(_) => Err(SourceError::Unreachable {
                target: self.dialect.target().to_owned(),
                problem: format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            }),
        }
    }

    fn explain(&self, error: D::Error, statement: &'static str) -> SourceError {
        self.of(self.dialect.explain(error), statement)
    }

    fn of(&self, failure: Failure, statement: &'static str) -> SourceError {
        failure.of(self.dialect.target(), statement, self.statement_timeout)
    }

    /// An idle connection; one that is about to become idle is waited for.
    async fn take_idle(&self) -> Option<D::Connection> {
        loop {
            // Asked for before the look, so that no end in between is missed.
            let ended = self.ended.notified();
            {
                let mut kept = self.kept();
                if let Some(connection) = kept.idle.pop() {
                    return Some(connection);
                }
                if kept.ending == 0 {
                    return None;
                }
            }
            ended.await;
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept<D::Connection>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a transaction begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// Nothing.
    Plain,
    /// What the database says of itself as a pass begins.
    Pass {
        /// What is open in it, too.
        asks_open: bool,
    },
}

/// One read-only transaction on one connection.
pub(super) struct Session<D: Dialect> {
    connections: Arc<Connections<D>>,
    connection: D::Connection,
    /// What the database said of itself as it began.
    pub(super) standing: Option<Standing>,
    /// Whether the database is a replica in recovery.
    pub(super) is_replica: bool,
    /// Whether the connection must not be used any more.
    is_spent: bool,
    statement: &'static str,
    permit: Option<OwnedSemaphorePermit>,
}

impl<D: Dialect> Session<D> {
    fn holding(mut self, permit: OwnedSemaphorePermit) -> Self {
        self.permit = Some(permit);
        self
    }

    /// The dialect and the connection, for `Session::within_limit`.
    pub(super) fn parts(&mut self) -> (Arc<Connections<D>>, &mut D::Connection) {
        (Arc::clone(&self.connections), &mut self.connection)
    }

    /// Runs a page's statement.
    pub(super) async fn rows(&mut self, statement: &Statement) -> Result<Rows, SourceError> {
        let (rows, is_cut) = self.read(statement, Rows::default()).await?;
        Ok(Rows { is_cut, ..rows })
    }

    /// Runs a page's statement and gives its rows to `sink`; true beside it when they were cut short.
    pub(super) async fn read<S: Sink>(
        &mut self,
        statement: &Statement,
        sink: S,
    ) -> Result<(S, bool), SourceError> {
        debug_assert!(!self.is_spent, "an answer was cut short on it");
        let (connections, connection) = self.parts();
        let limits = Limits {
            time: connections.statement_timeout,
            bytes: MAX_STATEMENT_BYTES,
        };
        let running = connections
            .dialect
            .rows(connection, statement, limits, sink);
        let outcome = timeout(limits.time + GRACE, running).await;
        let (sink, is_whole) = self.judge(outcome)?;
        self.is_spent |= !is_whole;
        Ok((sink, !is_whole))
    }

    /// Whether the server can end a page with all rows that are equal to its last one.
    pub(super) fn has_ties(&self) -> bool {
        self.connections.dialect.has_ties(&self.connection)
    }

    /// Judges what a call of the dialect gave within the statement timeout.
    pub(super) fn judge<T>(
        &mut self,
        outcome: Result<Result<T, D::Error>, tokio::time::error::Elapsed>,
    ) -> Result<T, SourceError> {
        let failure = match outcome {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => self.connections.dialect.explain(error),
            Err(_) => Failure::Timeout,
        };
        // After a refusal the connection still works, its transaction rolled back; after anything else nobody knows.
        self.is_spent |= !matches!(failure, Failure::Query(_));
        Err(self.connections.of(failure, self.statement))
    }

    /// How long one call of the dialect may take.
    pub(super) fn limit(&self) -> Duration {
        self.connections.statement_timeout + GRACE
    }

    /// Which query errors are of.
    pub(super) fn statement(&self) -> &'static str {
        self.statement
    }

    /// Says in later errors that another query is being read.
    pub(super) fn reading(&mut self, statement: &'static str) {
        self.statement = statement;
    }

    /// Goes on in a new transaction on a new connection, if this one must not be used any more.
    pub(super) async fn renew(&mut self) -> Result<(), SourceError> {
        if !self.is_spent {
            return Ok(());
        }
        let connections = Arc::clone(&self.connections);
        let opened = timeout(CONNECT_TIMEOUT, connections.dialect.open()).await;
        let connection = connections.settle(opened, self.statement)?;
        let fresh = connections
            .begin_on(connection, self.statement, Opening::Plain)
            .await?;
        self.connection = fresh.connection;
        self.is_spent = false;
        Ok(())
    }

    /// Ends the transaction, beside whatever comes next, and keeps the connection if that went well.
    pub(super) fn end(self) {
        let Self {
            connections,
            mut connection,
            is_spent,
            permit,
            ..
        } = self;
        if is_spent {
            return;
        }
        connections.kept().ending += 1;
        tokio::spawn(async move {
            let ended = timeout(CONNECT_TIMEOUT, connections.dialect.end(&mut connection)).await;
            let mut kept = connections.kept();
            kept.ending -= 1;
            if matches!(ended, Ok(Ok(()))) {
                kept.idle.push(connection);
            }
            drop(kept);
            drop(permit);
            // Whoever waits looks again: it may be the turn of another.
            connections.ended.notify_waiters();
        });
    }
}
