//! The provider's own database, only ever read.
//!
//! Every read is one page in its own read-only transaction under a statement timeout. What a row means is decided elsewhere
//! ([`crate::model::row`]); this module finds rows and gives each column as text.

mod columns;
mod connect;
mod connections;
mod dialect;
mod error;
mod feed;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod horizon;
mod identity;
mod inspect;
mod listen;
mod mysql;
mod pages;
mod postgres;
mod query;
mod reader;
mod sqlite;
mod statement;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use columns::{DEFAULT_OVERLAP, Overlap};
pub use connect::{Settings, connect, listen};
pub use inspect::{Description, Guarantee};
pub use listen::{Keepalive, Listen, ListenError};

use crate::model::{
    AccessToken, FieldSet, InstallationId, RawRow, RawRowRef, RawRows, ResourceKey,
};

/// Reads the source query and the installations query.
#[async_trait]
pub trait Source: Send + Sync {
    /// What the query's columns are; asked once and remembered, asked again after a failure.
    async fn shape(&self) -> Result<Shape, SourceError>;

    /// The rows at and after `from` in the order of (cursor, installation_id, resource_id), at most `limit` of them.
    async fn poll_page(
        &self,
        from: &PollFrom,
        limit: u32,
        suspects: Option<Suspects>,
    ) -> Result<PollPage, SourceError>;

    /// Everything from a cursor on, less the overlap, as the only page of a pass, without the rows that pass `sieve`; `None` when there is
    /// more than it allows for, and the pass is to be read page by page.
    async fn poll_news(
        &self,
        from: &str,
        mut sieve: Sieve,
        suspects: Option<Suspects>,
    ) -> Result<Option<PollPage>, SourceError> {
        let limit = sieve.passing_max.saturating_add(sieve.news_max);
        let from = PollFrom::Cursor(from.to_owned());
        let mut page = self.poll_page(&from, limit, None).await?;
        if page.next.is_some() {
            return Ok(None);
        }
        let news = page.rows.iter().filter(|row| !(sieve.passes)(*row));
        let news: RawRows = news.map(RawRowRef::to_row).collect();
        if news.len() as u64 > u64::from(sieve.news_max) {
            return Ok(None);
        }
        page.passed = (page.rows.len() - news.len()) as u64;
        page.rows = news;
        let suspects = suspects.map_or_else(Vec::new, |suspects| suspects(&page.rows));
        if !suspects.is_empty() {
            let ids = self.fetch_ids(&suspects).await?;
            page.found = rows_of(suspects, &ids);
        }
        Ok(Some(page))
    }

    /// How many rows have this cursor, counted up to `most`.
    async fn count_at(&self, cursor: &str, most: u32) -> Result<u32, SourceError>;

    /// What was added to the change feed after `from`, the place that the last page gave, at most `limit` entries; `None`: nothing
    /// was ever read. Only where [`Shape::feed`] says that there is one.
    async fn feed_page(&self, from: Option<&str>, limit: u32) -> Result<FeedPage, SourceError> {
        let _ = (from, limit);
        Err(SourceError::Shape {
            statement: feed::CHANGE_FEED,
            problem: "is not configured".to_owned(),
            help: "[source] feed names its table".to_owned(),
        })
    }

    /// The rows after `after` in the database's own order of (installation_id, resource_id), at most `limit` of them.
    ///
    /// Rows with a NULL id are in the first page. Rows with equal ids are never torn apart.
    async fn sweep_page(
        &self,
        after: Option<&RawKey>,
        limit: u32,
    ) -> Result<SweepPage, SourceError>;

    /// The page of [`Source::sweep_page`] in one piece: the rows without their cursors.
    async fn sweep_rows(
        &self,
        after: Option<&RawKey>,
        limit: u32,
    ) -> Result<SweepRows, SourceError> {
        let SweepPage { rows, next } = self.sweep_page(after, limit).await?;
        Ok(SweepRows {
            rows: rows.into_iter().collect(),
            next,
        })
    }

    /// The ids of the rows that [`Source::fetch`] would give, one for each row.
    async fn fetch_ids(&self, keys: &[ResourceKey]) -> Result<Vec<ResourceKey>, SourceError> {
        let rows = self.fetch(keys).await?;
        Ok(rows.iter().filter_map(|row| row.key().ok()).collect())
    }

    /// The rows of these resources, in any order; a resource may have none, or more than one.
    async fn fetch(&self, keys: &[ResourceKey]) -> Result<Vec<RawRow>, SourceError>;

    /// The access token that the installations query has for an installation; `None` when it has no row or a NULL token.
    async fn token(
        &self,
        installation_id: &InstallationId,
    ) -> Result<Option<AccessToken>, SourceError>;

    /// The tokens of those among these installations that have one, in any order. One that cannot be told is left out, and the others
    /// are given all the same: [`Source::token`] says why.
    async fn tokens(
        &self,
        installation_ids: &[InstallationId],
    ) -> Result<Vec<(InstallationId, AccessToken)>, SourceError> {
        let mut tokens = Vec::new();
        for installation_id in installation_ids {
            let token = self.token(installation_id).await?;
            tokens.extend(token.map(|token| (installation_id.clone(), token)));
        }
        Ok(tokens)
    }

    /// Who the database says it is: changes after a restore, a failover or a move.
    async fn identity(&self) -> Result<Identity, SourceError>;
}

/// A source that can also say what it is, for a person who is about to trust it.
#[async_trait]
pub trait Inspect: Source {
    /// The server, the role, the query's columns and what its polls guarantee.
    async fn describe(&self) -> Result<Description, SourceError>;
}

/// The columns of the source query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The fields that the query has a column for.
    pub managed: FieldSet,
    /// What kind of cursor it has; `None`: every poll is a sweep, unless there is a change feed.
    pub cursor: Option<CursorKind>,
    /// How far behind the newest cursor each poll reads, where that is a time; zero elsewhere.
    pub overlap: Duration,
    /// Whether polls follow a change feed; the cursor is then read and not followed.
    pub feed: bool,
}

/// What a cursor column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CursorKind {
    /// A timestamp with or without time zone.
    Timestamp,
    /// An integer.
    Integer,
    /// Text that sorts.
    Text,
}

/// Where a poll's page starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PollFrom {
    /// The first page of the very first poll.
    Beginning,
    /// The first page of a pass: everything from this cursor on, less the overlap; ties included.
    Cursor(String),
    /// The first page of a pass like [`PollFrom::Cursor`] where many rows have one cursor: what lies before those; the next page starts
    /// behind them.
    Until {
        /// Where the pass starts.
        cursor: String,
        /// The cursor of the many. If no row has it any more this is a page from the cursor on.
        crowd: String,
    },
    /// The first page of a pass: everything whose cursor is later than this one, ties not included. Without a row it tells by
    /// [`PollPage::reached`] what the newest cursor is.
    Later(String),
    /// A further page of the same pass: everything after this row.
    After(Position),
}

/// A row's place in the order of a poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The cursor in the database's own text form.
    pub cursor: String,
    /// The ids' place in the order; `None`: behind all rows with this cursor.
    pub key: Option<RawKey>,
    /// The horizon that was taken when the pass began; each page of the pass carries it on.
    pub horizon: Option<String>,
}

/// The two ids of a row as places in the database's own order, usable or not.
///
/// Only the source that gave them reads them: they may be written in another form than the row's own columns.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct RawKey {
    /// The column `installation_id`.
    pub installation_id: String,
    /// The column `resource_id`.
    pub resource_id: String,
}

/// Says of a page that was just read which resources are to be looked up by key in the same transaction; in a new one if the page was cut short.
pub type Suspects = Arc<dyn Fn(&RawRows) -> Vec<ResourceKey> + Send + Sync>;

/// Lets rows pass that nothing is to be done about, while they are read.
pub struct Sieve {
    /// Whether a row passes; asked once for each row.
    pub passes: Box<dyn FnMut(RawRowRef<'_>) -> bool + Send>,
    /// The most rows that can pass.
    pub passing_max: u32,
    /// The most others that there may be.
    pub news_max: u32,
}

/// One page of a poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollPage {
    /// The rows, in order (where a [`Sieve`] let others pass, in that of the cursor alone), each with its cursor. Rows whose cursor is NULL are not among them: only sweeps see those.
    /// One whose cursor is no UTF-8 is without it here; at the end of a page that is not the last it may be in the next, too.
    pub rows: RawRows,
    /// How many rows passed a [`Sieve`]: they are not among the rows.
    pub passed: u64,
    /// The cursor of the last row that was read and has one that is UTF-8, whether it passed or not; after [`PollFrom::Later`] the
    /// newest one there is, even where no row was read.
    pub reached: Option<String>,
    /// Where the next page starts; `None`: this was the last.
    pub next: Option<Position>,
    /// The cursor to keep with this page instead of its last row's: a transaction that was open when the pass began may still
    /// commit rows with cursors from here on. `None`: nothing is known to hold the last row's cursor back.
    ///
    /// It is never later than the last row's cursor, and it is taken before the pass's first page is read, so that it holds for
    /// every page of the pass, also when the pass is not finished.
    pub horizon: Option<String>,
    /// Who the database says it is, with the first page of a pass.
    pub identity: Option<Identity>,
    /// How many rows each of the suspects has, found by key after the page was read; 0 for one that has none any more.
    pub found: BTreeMap<ResourceKey, usize>,
}

/// The most resources that one statement looks up; more take more statements, each with an answer of its own.
pub(crate) const KEYS_IN_STATEMENT_MAX: usize = 500;

/// How many rows each of these resources has, by the ids of all of them.
pub(crate) fn rows_of(keys: Vec<ResourceKey>, ids: &[ResourceKey]) -> BTreeMap<ResourceKey, usize> {
    let mut rows: BTreeMap<ResourceKey, usize> = keys.into_iter().map(|key| (key, 0)).collect();
    for id in ids {
        if let Some(count) = rows.get_mut(id) {
            *count += 1;
        }
    }
    rows
}

/// One page of a change feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedPage {
    /// The rows of the resources that the entries name, as they are now, in any order; a resource may have none, or more than one.
    pub rows: Vec<RawRow>,
    /// Where the next page starts. Only the source that gave it reads it.
    pub position: String,
    /// Whether there is more now.
    pub more: bool,
    /// Why changes since `from` may not be among the rows: every row has to be read.
    pub lost: Option<&'static str>,
}

/// One page of a sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweepPage {
    /// The rows, in order.
    pub rows: Vec<RawRow>,
    /// Where the next page starts; `None`: this was the last.
    pub next: Option<RawKey>,
}

/// One page of a sweep in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweepRows {
    /// The rows, in order, without their cursors.
    pub rows: RawRows,
    /// Where the next page starts; `None`: this was the last.
    pub next: Option<RawKey>,
}

/// Who the database says it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// Stable while the cursor's values go on from where they were; for instance system identifier and timeline.
    pub id: String,
}

/// Why the source could not be read. Never holds a row's values, a password or a statement's text.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No connection, or it broke: worth another try later.
    #[error("cannot reach the source at {target}: {problem}")]
    Unreachable {
        /// The database without its password.
        target: String,
        /// What the driver or the server said, in safe words.
        problem: String,
    },
    /// The server refused the login.
    #[error("the source at {target} refuses the login: {problem}")]
    Login {
        /// The database without its password.
        target: String,
        /// What the server said, in safe words.
        problem: String,
    },
    /// The statement ran into its time limit.
    #[error("the {statement} took longer than {limit}")]
    Timeout {
        /// Which statement: "source query" or "installations query".
        statement: &'static str,
        /// The limit that it ran into.
        limit: String,
    },
    /// The server refused the statement.
    #[error("the {statement} failed: {problem}")]
    Query {
        /// Which statement.
        statement: &'static str,
        /// The server's code and message, without row values.
        problem: String,
    },
    /// The query has a column that means nothing, or lacks one that is needed, or a type that cannot serve.
    #[error("the {statement} {problem}")]
    Shape {
        /// Which statement.
        statement: &'static str,
        /// What is wrong with its columns.
        problem: String,
        /// What is accepted.
        help: String,
    },
    /// The database is a replica that lags behind; polling it could miss changes.
    #[error("the source at {target} is a replica in recovery")]
    Replica {
        /// The database without its password.
        target: String,
    },
}

impl SourceError {
    /// Whether the configuration has to be changed before another try makes sense.
    #[must_use]
    pub const fn is_configuration(&self) -> bool {
        matches!(self, Self::Shape { .. })
    }

    /// A short stable code for logs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Login { .. } => "login",
            Self::Timeout { .. } => "timeout",
            Self::Query { .. } => "query",
            Self::Shape { .. } => "shape",
            Self::Replica { .. } => "replica",
        }
    }
}
