//! Reads pages from one database, whichever it is.
//!
//! Every call is one read-only transaction in a task of its own, which runs to its end even when the caller stops waiting: a
//! connection is never left in the middle of something.

mod describe;
mod fetch;
mod news;
mod poll;
mod sweep;

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::time::timeout;

use super::columns::{
    Described, INSTALLATIONS_QUERY, InstallationsLayout, Layout, Overlap, SOURCE_QUERY,
};
use super::connections::{Connections, Opening, Session};
use super::dialect::Dialect;
use super::feed::{CHANGE_FEED, Feed};
use super::inspect::Description;
use super::pages::Pages;
use super::query::Query;
use super::{
    FeedPage, Identity, Inspect, PollFrom, PollPage, RawKey, Shape, Sieve, Source, SourceError,
    Suspects, SweepPage, SweepRows,
};
use crate::model::{AccessToken, InstallationId, RawRow, RawRows, ResourceKey};

/// A source over one dialect.
pub(super) struct Reader<D: Dialect>(Arc<Inner<D>>);

struct Inner<D: Dialect> {
    connections: Arc<Connections<D>>,
    query: Query,
    installations_query: Option<Query>,
    feed: Option<Feed>,
    overlap: Overlap,
    allow_replica: bool,
    layouts: Mutex<Option<Arc<Layouts>>>,
    /// How much memory the rows of the last poll's page took.
    poll_bytes: AtomicUsize,
    /// The same of a sweep's.
    sweep_bytes: AtomicUsize,
    /// Whether the last pass had more than a page, as the next may have.
    is_long: AtomicBool,
}

/// What the columns of both queries mean.
struct Layouts {
    described: Vec<Described>,
    source: Layout,
    installations: Option<InstallationsLayout>,
}

impl<D: Dialect> Reader<D> {
    pub(super) fn new(
        connections: Connections<D>,
        query: Query,
        installations_query: Option<Query>,
        feed: Option<Feed>,
        overlap: Overlap,
        allow_replica: bool,
    ) -> Self {
        Self(Arc::new(Inner {
            connections: Arc::new(connections),
            query,
            installations_query,
            feed,
            overlap,
            allow_replica,
            layouts: Mutex::default(),
            poll_bytes: AtomicUsize::new(0),
            sweep_bytes: AtomicUsize::new(0),
            is_long: AtomicBool::new(false),
        }))
    }

    /// Runs a call in a task of its own.
    async fn detached<T, F>(&self, call: impl FnOnce(Arc<Inner<D>>) -> F) -> Result<T, SourceError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, SourceError>> + Send + 'static,
    {
        match tokio::spawn(call(Arc::clone(&self.0))).await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(SourceError::Unreachable {
                target: self.0.connections.dialect.target().to_owned(),
                problem: "the process is ending".to_owned(),
            }),
        }
    }
}

#[async_trait]
impl<D: Dialect> Source for Reader<D> {
    async fn shape(&self) -> Result<Shape, SourceError> {
        if let Some(layouts) = self.0.remembered() {
            return Ok(self.0.shape(&layouts));
        }
        self.detached(|inner| async move {
            let mut session = inner.begin(SOURCE_QUERY).await?;
            let layouts = inner.layouts(&mut session).await;
            session.end();
            Ok(inner.shape(&*layouts?))
        })
        .await
    }

    async fn poll_page(
        &self,
        from: &PollFrom,
        limit: u32,
        suspects: Option<Suspects>,
    ) -> Result<PollPage, SourceError> {
        let from = from.clone();
        self.detached(move |inner| async move {
            let opening = inner.opening(&from);
            let mut session = inner.begin_with(SOURCE_QUERY, opening).await?;
            let page = inner
                .poll(&mut session, &from, limit.max(1), suspects.as_ref())
                .await;
            inner.finish(session, page)
        })
        .await
    }

    async fn poll_news(
        &self,
        from: &str,
        sieve: Sieve,
        suspects: Option<Suspects>,
    ) -> Result<Option<PollPage>, SourceError> {
        let from = from.to_owned();
        self.detached(move |inner| async move {
            let opening = inner.opening(&PollFrom::Cursor(from.clone()));
            let mut session = inner.begin_with(SOURCE_QUERY, opening).await?;
            let page = inner
                .poll_news(&mut session, &from, sieve, suspects.as_ref())
                .await;
            inner.finish(session, page)
        })
        .await
    }

    async fn count_at(&self, cursor: &str, most: u32) -> Result<u32, SourceError> {
        let cursor = cursor.to_owned();
        self.detached(move |inner| async move {
            let mut session = inner.begin(SOURCE_QUERY).await?;
            let counted = inner.count_at(&mut session, &cursor, most).await;
            inner.finish(session, counted)
        })
        .await
    }

    async fn feed_page(&self, from: Option<&str>, limit: u32) -> Result<FeedPage, SourceError> {
        let from = from.map(str::to_owned);
        self.detached(move |inner| async move {
            let mut session = inner.begin(CHANGE_FEED).await?;
            let page = inner
                .feed(&mut session, from.as_deref(), limit.max(1))
                .await;
            inner.finish(session, page)
        })
        .await
    }

    async fn sweep_page(
        &self,
        after: Option<&RawKey>,
        limit: u32,
    ) -> Result<SweepPage, SourceError> {
        let after = after.cloned();
        self.detached(move |inner| async move {
            let mut session = inner.begin(SOURCE_QUERY).await?;
            let page = inner
                .sweep(&mut session, after.as_ref(), limit.max(1))
                .await;
            inner.finish(session, page)
        })
        .await
    }

    async fn sweep_rows(
        &self,
        after: Option<&RawKey>,
        limit: u32,
    ) -> Result<SweepRows, SourceError> {
        let after = after.cloned();
        self.detached(move |inner| async move {
            let mut session = inner.begin(SOURCE_QUERY).await?;
            let page = inner
                .sweep_rows(&mut session, after.as_ref(), limit.max(1))
                .await;
            inner.finish(session, page)
        })
        .await
    }

    async fn fetch_ids(&self, keys: &[ResourceKey]) -> Result<Vec<ResourceKey>, SourceError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let keys = keys.to_vec();
        self.detached(move |inner| async move {
            let mut session = inner.begin(SOURCE_QUERY).await?;
            let ids = inner.fetch_ids(&mut session, &keys).await;
            inner.finish(session, ids)
        })
        .await
    }

    async fn fetch(&self, keys: &[ResourceKey]) -> Result<Vec<RawRow>, SourceError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let keys = keys.to_vec();
        self.detached(move |inner| async move {
            let mut session = inner.begin(SOURCE_QUERY).await?;
            let rows = inner.fetch(&mut session, &keys).await;
            inner.finish(session, rows)
        })
        .await
    }

    async fn token(
        &self,
        installation_id: &InstallationId,
    ) -> Result<Option<AccessToken>, SourceError> {
        if self.0.installations_query.is_none() {
            return Ok(None);
        }
        let installation_id = installation_id.clone();
        self.detached(move |inner| async move {
            let mut session = inner.begin(INSTALLATIONS_QUERY).await?;
            let token = inner.token(&mut session, &installation_id).await;
            inner.finish(session, token)
        })
        .await
    }

    async fn tokens(
        &self,
        installation_ids: &[InstallationId],
    ) -> Result<Vec<(InstallationId, AccessToken)>, SourceError> {
        if self.0.installations_query.is_none() || installation_ids.is_empty() {
            return Ok(Vec::new());
        }
        let installation_ids = installation_ids.to_vec();
        self.detached(move |inner| async move {
            let mut session = inner.begin(INSTALLATIONS_QUERY).await?;
            let tokens = inner.tokens(&mut session, &installation_ids).await;
            inner.finish(session, tokens)
        })
        .await
    }

    async fn identity(&self) -> Result<Identity, SourceError> {
        self.detached(|inner| async move {
            let mut session = inner.begin("identity query").await?;
            let limit = session.limit();
            let (connections, connection) = session.parts();
            let asked = timeout(limit, connections.dialect.identity(connection)).await;
            let id = session.judge(asked);
            session.end();
            Ok(inner.identity(id?))
        })
        .await
    }
}

#[async_trait]
impl<D: Dialect> Inspect for Reader<D> {
    async fn describe(&self) -> Result<Description, SourceError> {
        self.detached(|inner| async move { inner.describe().await })
            .await
    }
}

impl<D: Dialect> Inner<D> {
    /// Begins a transaction on the primary.
    async fn begin(&self, statement: &'static str) -> Result<Session<D>, SourceError> {
        self.begin_with(statement, Opening::Plain).await
    }

    async fn begin_with(
        &self,
        statement: &'static str,
        opening: Opening,
    ) -> Result<Session<D>, SourceError> {
        let session = self.connections.begin(statement, opening).await?;
        if session.is_replica && !self.allow_replica {
            session.end();
            return Err(SourceError::Replica {
                target: self.connections.dialect.target().to_owned(),
            });
        }
        Ok(session)
    }

    /// Ends the transaction. A query that failed may have new columns: they are asked again next time.
    fn finish<T>(
        &self,
        session: Session<D>,
        outcome: Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        session.end();
        if matches!(
            outcome,
            Err(SourceError::Query { .. } | SourceError::Shape { .. })
        ) {
            self.remember(None);
        }
        outcome
    }

    /// What the transaction of a poll's page begins with.
    fn opening(&self, from: &PollFrom) -> Opening {
        if matches!(from, PollFrom::After(_)) {
            return Opening::Plain;
        }
        let layouts = self.remembered();
        let cursor = layouts.as_ref().and_then(|l| l.source.cursor.as_ref());
        Opening::Pass {
            asks_open: cursor.is_some_and(|cursor| D::holds_back(&cursor.type_name)),
        }
    }

    fn identity(&self, id: String) -> Identity {
        let id = match &self.feed {
            // A place in a feed is none in a cursor's order, nor in another feed.
            Some(feed) => format!("{id} feed={}", feed.name()),
            None => id,
        };
        Identity { id }
    }

    fn remember(&self, layouts: Option<Arc<Layouts>>) {
        *self.layouts.lock().unwrap_or_else(PoisonError::into_inner) = layouts;
    }

    fn remembered(&self) -> Option<Arc<Layouts>> {
        self.layouts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The columns of both queries, as they were the first time.
    async fn layouts(&self, session: &mut Session<D>) -> Result<Arc<Layouts>, SourceError> {
        if let Some(known) = self.remembered() {
            return Ok(known);
        }
        let reading = session.statement();
        session.reading(SOURCE_QUERY);
        let described = describe(session, &self.query).await?;
        let dialect = &self.connections.dialect;
        let source = Layout::new(&described, self.overlap, |name| dialect.cursor_kind(name))?;
        let installations = match &self.installations_query {
            Some(query) => {
                session.reading(INSTALLATIONS_QUERY);
                let described = describe(session, query).await?;
                Some(InstallationsLayout::new(&described)?)
            }
            None => None,
        };
        session.reading(reading);
        let is_guess = described.iter().any(|column| column.is_guess);
        let layouts = Arc::new(Layouts {
            described,
            source,
            installations,
        });
        if !is_guess {
            self.remember(Some(Arc::clone(&layouts)));
        }
        Ok(layouts)
    }

    fn pages<'a>(&'a self, layout: &'a Layout) -> Pages<'a, D> {
        Pages {
            dialect: &self.connections.dialect,
            query: &self.query,
            layout,
        }
    }

    fn shape(&self, layouts: &Layouts) -> Shape {
        Shape {
            feed: self.feed.is_some(),
            ..layouts.source.shape()
        }
    }
}

async fn describe<D: Dialect>(
    session: &mut Session<D>,
    query: &Query,
) -> Result<Vec<Described>, SourceError> {
    let limit = session.limit();
    let (connections, connection) = session.parts();
    let asked = timeout(limit, connections.dialect.describe(connection, query)).await;
    session.judge(asked)
}

/// The most memory that a page is given before it has any row.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// Room for a page: as much as the one before had, and a little more. What a page has outgrown is copied and wiped each time.
fn room(last: &AtomicUsize) -> RawRows {
    let bytes = last.load(Ordering::Relaxed);
    RawRows::with_capacity(bytes + bytes / 8)
}

/// Keeps in mind how much room a page took.
fn remember_room(last: &AtomicUsize, rows: &RawRows) {
    last.store(rows.size().min(KEPT_BYTES_MAX), Ordering::Relaxed);
}

fn size(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}
