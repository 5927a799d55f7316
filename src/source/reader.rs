//! Reads pages from one database, whichever it is.
//!
//! Every call is one read-only transaction in a task of its own, which runs to its end even when the caller stops waiting: a
//! connection is never left in the middle of something.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use tokio::time::timeout;

use super::columns::{
    CursorColumn, Described, INSTALLATIONS_QUERY, InstallationsLayout, Layout, Overlap,
    SOURCE_QUERY,
};
use super::connections::{Connections, Session};
use super::dialect::{Dialect, text};
use super::feed::{self, CHANGE_FEED, Feed};
use super::inspect::{Description, Guarantee};
use super::pages::{
    self, Keys, MAX_FETCH_KEYS, MAX_FETCHED_ROWS, Pages, PlacedRow, PollStart, poll_params,
    raw_text, sweep_params,
};
use super::query::Query;
use super::statement::Param;
use super::{
    FeedPage, Identity, Inspect, PollFrom, PollPage, RawKey, Shape, Source, SourceError, SweepPage,
};
use crate::model::{AccessToken, InstallationId, RawRow, RawText, ResourceId, ResourceKey};

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
            session.end().await;
            Ok(inner.shape(&*layouts?))
        })
        .await
    }

    async fn poll_page(&self, from: &PollFrom, limit: u32) -> Result<PollPage, SourceError> {
        let from = from.clone();
        self.detached(move |inner| async move {
            let mut session = inner.begin(SOURCE_QUERY).await?;
            let page = inner.poll(&mut session, &from, limit.max(1)).await;
            inner.finish(session, page).await
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
            inner.finish(session, page).await
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
            inner.finish(session, page).await
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
            inner.finish(session, rows).await
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
            inner.finish(session, token).await
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
            session.end().await;
            let mut id = id?;
            if let Some(feed) = &inner.feed {
                // A place in a feed is none in a cursor's order, nor in another feed.
                id = format!("{id} feed={}", feed.name());
            }
            Ok(Identity { id })
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
        let session = self.connections.begin(statement).await?;
        if session.is_replica && !self.allow_replica {
            session.end().await;
            return Err(SourceError::Replica {
                target: self.connections.dialect.target().to_owned(),
            });
        }
        Ok(session)
    }

    /// Ends the transaction. A query that failed may have new columns: they are asked again next time.
    async fn finish<T>(
        &self,
        session: Session<D>,
        outcome: Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        session.end().await;
        if matches!(
            outcome,
            Err(SourceError::Query { .. } | SourceError::Shape { .. })
        ) {
            self.remember(None);
        }
        outcome
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

    async fn poll(
        &self,
        session: &mut Session<D>,
        from: &PollFrom,
        limit: u32,
    ) -> Result<PollPage, SourceError> {
        let layouts = self.layouts(session).await?;
        let layout = &layouts.source;
        let Some(cursor) = &layout.cursor else {
            return Err(SourceError::Shape {
                statement: SOURCE_QUERY,
                problem: "has no column `cursor`, so it cannot be polled".to_owned(),
                help: "sweep it, or add a cursor".to_owned(),
            });
        };
        let pages = self.pages(layout);
        let keys = pages.poll_keys();
        let dialect = &self.connections.dialect;
        let (start, horizon) = match from {
            PollFrom::After(position) => match poll_params(dialect, cursor, &keys, position) {
                Some(params) => (PollStart::After(params), position.horizon.clone()),
                None => (PollStart::Beginning, position.horizon.clone()),
            },
            // Before the first row is read: what is open now may commit behind the pass.
            PollFrom::Cursor(text) => {
                let param = dialect.cursor_param(cursor, text);
                let from = param.as_ref().map(|_| text.as_str());
                let horizon = horizon(session, cursor, from).await?;
                let start = param.map_or(PollStart::Beginning, PollStart::Cursor);
                (start, horizon)
            }
            PollFrom::Beginning => (PollStart::Beginning, horizon(session, cursor, None).await?),
        };
        let is_first = !matches!(from, PollFrom::After(_));
        let is_bounded = horizon.is_some();
        let page = self
            .poll_from(session, layout, cursor, &start, horizon, limit)
            .await?;
        if !is_first || is_bounded || page.next.is_none() {
            return Ok(page);
        }
        // More pages follow, and nobody tells what may still commit behind this one while they are read. What commits from
        // here on lies at most the overlap behind the newest cursor that there is now, so that is as far as this pass may take
        // the next one's start; this page is read again, after that was asked.
        let newest = session.rows(&pages.newest_cursor(cursor)).await?;
        let newest = newest.first().into_iter().next().flatten();
        self.poll_from(session, layout, cursor, &start, newest, limit)
            .await
    }

    /// A poll's page from a place on, its rows compared with the horizon.
    async fn poll_from(
        &self,
        session: &mut Session<D>,
        layout: &Layout,
        cursor: &CursorColumn,
        start: &PollStart,
        horizon: Option<String>,
        limit: u32,
    ) -> Result<PollPage, SourceError> {
        let pages = self.pages(layout);
        let keys = pages.poll_keys();
        let dialect = &self.connections.dialect;
        let upper = match D::BOUNDS_POLLS {
            true => {
                let bound = session
                    .rows(&pages.poll_bound(cursor, start, limit))
                    .await?;
                let bound = bound.first().into_iter().next().flatten();
                bound.and_then(|bound| dialect.cursor_param(cursor, &bound))
            }
            false => None,
        };
        let horizon_param = horizon
            .as_deref()
            .and_then(|horizon| dialect.cursor_param(cursor, horizon));
        let statement = pages.poll(cursor, start, upper.as_ref(), horizon_param.as_ref(), limit);
        let found = session.rows(&statement).await?;
        let is_full = found.is_cut || found.rows.len() >= size(limit) || upper.is_some();
        let is_cut = found.is_cut;
        let mut rows = pages::decode(layout, found);
        // Rows are in the order of their cursors: the last one tells whether all are settled.
        let is_settled = rows.last().is_none_or(|last| last.is_settled);
        let next = match rows.last() {
            Some(last) if is_full => last.position(horizon.clone()),
            _ => None,
        };
        if let Some(next) = &next
            && !is_cut
            && let Some(at) = poll_params(dialect, cursor, &keys, next)
        {
            let group = session.rows(&pages.poll_group(cursor, &at)).await?;
            rows = pages::with_poll_group(rows, pages::decode(layout, group));
        }
        Ok(PollPage {
            rows: rows.into_iter().map(|placed| placed.row).collect(),
            next,
            horizon: horizon.filter(|_| !is_settled),
        })
    }

    fn shape(&self, layouts: &Layouts) -> Shape {
        Shape {
            feed: self.feed.is_some(),
            ..layouts.source.shape()
        }
    }

    async fn feed(
        &self,
        session: &mut Session<D>,
        from: Option<&str>,
        limit: u32,
    ) -> Result<FeedPage, SourceError> {
        let Some(feed) = &self.feed else {
            return Err(SourceError::Shape {
                statement: CHANGE_FEED,
                problem: "is not configured".to_owned(),
                help: "[source] feed names its table".to_owned(),
            });
        };
        let wanted = feed::Wanted { feed, from, limit };
        let time = session.limit();
        let (connections, connection) = session.parts();
        let asked = timeout(time, connections.dialect.feed(connection, wanted)).await;
        let feed::Found {
            ids,
            position,
            more,
            lost,
        } = session.judge(asked)?;
        session.reading(SOURCE_QUERY);
        // What is no usable id names no resource that could be looked up.
        let usable = |(installation_id, resource_id): (Option<String>, Option<String>)| {
            let installation_id = InstallationId::new(&installation_id?).ok()?;
            let resource_id = ResourceId::new(&resource_id?).ok()?;
            Some(ResourceKey {
                installation_id,
                resource_id,
            })
        };
        let keys: BTreeSet<ResourceKey> = ids.into_iter().filter_map(usable).collect();
        let keys: Vec<ResourceKey> = keys.into_iter().collect();
        let rows = match keys.is_empty() {
            true => Vec::new(),
            false => self.fetch(session, &keys).await?,
        };
        Ok(FeedPage {
            rows,
            position,
            more,
            lost,
        })
    }

    async fn sweep(
        &self,
        session: &mut Session<D>,
        after: Option<&RawKey>,
        limit: u32,
    ) -> Result<SweepPage, SourceError> {
        let layouts = self.layouts(session).await?;
        let layout = &layouts.source;
        let pages = self.pages(layout);
        let keys = pages.sweep_keys();
        // A place that the columns' types do not know any more is the beginning.
        let after = after.and_then(|key| sweep_params(&self.connections.dialect, &keys, key));
        let irregular = match &after {
            None => {
                let found = session.rows(&pages.sweep_irregular(&keys)).await?;
                pages::decode(layout, found)
            }
            Some(_) => Vec::new(),
        };
        let (rows, next) = self
            .sweep_regular(session, &pages, &keys, after.as_ref(), limit)
            .await?;
        Ok(SweepPage {
            rows: irregular
                .into_iter()
                .chain(rows)
                .map(|placed| placed.row)
                .collect(),
            next,
        })
    }

    async fn sweep_regular(
        &self,
        session: &mut Session<D>,
        pages: &Pages<'_, D>,
        keys: &Keys,
        after: Option<&[Param; 2]>,
        limit: u32,
    ) -> Result<(Vec<PlacedRow>, Option<RawKey>), SourceError> {
        let found = session.rows(&pages.sweep(keys, after, limit)).await?;
        let is_full = found.is_cut || found.rows.len() >= size(limit);
        let is_cut = found.is_cut;
        let mut rows = pages::decode(pages.layout, found);
        let next = rows.last().filter(|_| is_full).map(|last| last.key.clone());
        if let Some(next) = &next
            && !is_cut
            && let Some(at) = sweep_params(&self.connections.dialect, keys, next)
        {
            let group = session.rows(&pages.sweep_group(keys, &at)).await?;
            rows = pages::with_sweep_group(rows, pages::decode(pages.layout, group));
        }
        Ok((rows, next))
    }

    async fn fetch(
        &self,
        session: &mut Session<D>,
        keys: &[ResourceKey],
    ) -> Result<Vec<RawRow>, SourceError> {
        let layouts = self.layouts(session).await?;
        let layout = &layouts.source;
        let pages = self.pages(layout);
        let mut rows = Vec::new();
        let mut chunks: Vec<&[ResourceKey]> = keys.chunks(MAX_FETCH_KEYS).rev().collect();
        while let Some(chunk) = chunks.pop() {
            let Some(statement) = pages.fetch(chunk) else {
                continue;
            };
            let found = session.rows(&statement).await?;
            // A look-up that was cut short says nothing of the rows that it did not come to: each half is looked up by itself.
            let is_partial = found.is_cut || found.rows.len() >= size(MAX_FETCHED_ROWS);
            if found.is_cut {
                session.renew().await?;
            }
            if is_partial && chunk.len() > 1 {
                let (first, second) = chunk.split_at(chunk.len() / 2);
                chunks.extend([second, first]);
                continue;
            }
            let found = pages::decode(layout, found).into_iter();
            // The database may take other ids for equal; only these were asked for.
            let is_asked = |row: &RawRow| row.key().is_ok_and(|key| chunk.contains(&key));
            rows.extend(found.map(|placed| placed.row).filter(is_asked));
        }
        Ok(rows)
    }

    async fn token(
        &self,
        session: &mut Session<D>,
        installation_id: &InstallationId,
    ) -> Result<Option<AccessToken>, SourceError> {
        let layouts = self.layouts(session).await?;
        let (Some(layout), Some(query)) = (&layouts.installations, &self.installations_query)
        else {
            return Ok(None);
        };
        let dialect = &self.connections.dialect;
        let Some(statement) = pages::token(dialect, query, layout, installation_id.as_str()) else {
            return Ok(None);
        };
        let refuse = |problem: String| SourceError::Query {
            statement: INSTALLATIONS_QUERY,
            problem,
        };
        let mut tokens: Vec<AccessToken> = Vec::new();
        for mut cells in session.rows(&statement).await?.rows {
            let is_present = cells.pop().flatten().is_some();
            let token = cells.pop().flatten();
            if text(cells.pop().flatten()).as_deref() != Some(installation_id.as_str()) {
                continue;
            }
            match raw_text(token, is_present) {
                RawText::Null => {}
                RawText::Text(token) if token.is_empty() => {}
                RawText::Text(token) => tokens.push(AccessToken::new(&token)),
                RawText::Unreadable(problem) => {
                    return Err(refuse(format!("an access_token {problem}")));
                }
            }
        }
        tokens.dedup();
        match tokens.len() {
            0 | 1 => Ok(tokens.pop()),
            _ => Err(refuse(
                "an installation has more than one access_token".to_owned(),
            )),
        }
    }

    async fn describe(&self) -> Result<Description, SourceError> {
        let started = Instant::now();
        let mut session = self.begin(SOURCE_QUERY).await?;
        let described = self.describe_in(&mut session).await;
        let mut description = self.finish(session, described).await?;
        description.latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Counting may take long, and its failure would spoil the rest: a transaction of its own.
        description.rows = self.count().await?;
        Ok(description)
    }

    async fn describe_in(&self, session: &mut Session<D>) -> Result<Description, SourceError> {
        let layouts = self.layouts(session).await?;
        let layout = &layouts.source;
        let limit = session.limit();
        let (connections, connection) = session.parts();
        let dialect = &connections.dialect;
        let asked = timeout(limit, dialect.inspect(connection)).await;
        let inspection = session.judge(asked)?;
        let pages = self.pages(layout);
        let keys = pages.sweep_keys();
        let sweep = pages.sweep(&keys, None, 1);
        let mut is_poll_indexed = None;
        let (mut guarantee, mut improvement) = (
            Guarantee::SweepOnly,
            Some("add a column `cursor` that grows with every change".to_owned()),
        );
        if let Some(feed) = &self.feed {
            // It is there, and may be read.
            let wanted = feed::Wanted {
                feed,
                from: None,
                limit: 1,
            };
            session.reading(CHANGE_FEED);
            let (_, connection) = session.parts();
            let asked = timeout(limit, dialect.feed(connection, wanted)).await;
            session.judge(asked)?;
            session.reading(SOURCE_QUERY);
            let (_, connection) = session.parts();
            let asked = timeout(limit, dialect.feed_guarantee(connection)).await;
            (guarantee, improvement) = session.judge(asked)?;
        } else if let Some(cursor) = &layout.cursor {
            let (_, connection) = session.parts();
            let asked = timeout(limit, dialect.guarantee(connection, cursor)).await;
            (guarantee, improvement) = session.judge(asked)?;
            is_poll_indexed = self.is_poll_indexed(session, &pages, cursor).await?;
        }
        let (_, connection) = session.parts();
        let asked = timeout(limit, dialect.is_indexed(connection, &sweep)).await;
        let is_sweep_indexed = session.judge(asked)?;
        Ok(Description {
            target: dialect.target().to_owned(),
            server: inspection.server,
            role: inspection.role,
            can_write: inspection.can_write,
            columns: layouts
                .described
                .iter()
                .map(|column| (column.name.clone(), column.type_name.to_lowercase()))
                .collect(),
            shape: self.shape(&layouts),
            feed: self.feed.as_ref().map(Feed::name),
            cursor_type: layout
                .cursor
                .as_ref()
                .map(|cursor| cursor.type_name.to_lowercase()),
            rows: None,
            is_poll_indexed,
            is_sweep_indexed,
            guarantee,
            improvement,
            latency_ms: 0,
        })
    }

    /// Whether an index serves a poll; `None` also when there is no cursor yet to poll from.
    async fn is_poll_indexed(
        &self,
        session: &mut Session<D>,
        pages: &Pages<'_, D>,
        cursor: &CursorColumn,
    ) -> Result<Option<bool>, SourceError> {
        let some = session.rows(&pages.any_cursor(cursor)).await?.first();
        let some = some.into_iter().next().flatten();
        let dialect = &self.connections.dialect;
        let Some(from) = some.and_then(|text| dialect.cursor_param(cursor, &text)) else {
            return Ok(None);
        };
        let start = PollStart::Cursor(from);
        let statement = match D::BOUNDS_POLLS {
            true => pages.poll_bound(cursor, &start, 1),
            false => pages.poll(cursor, &start, None, None, 1),
        };
        let limit = session.limit();
        let (_, connection) = session.parts();
        let asked = timeout(limit, dialect.is_indexed(connection, &statement)).await;
        session.judge(asked)
    }

    /// How many rows there are; `None` when counting takes too long.
    async fn count(&self) -> Result<Option<u64>, SourceError> {
        let mut session = self.begin(SOURCE_QUERY).await?;
        let layouts = self.layouts(&mut session).await;
        let counted = match &layouts {
            Ok(layouts) => session.rows(&self.pages(&layouts.source).count()).await,
            Err(_) => Ok(super::dialect::Rows::default()),
        };
        session.end().await;
        layouts?;
        match counted {
            Ok(rows) => Ok(rows
                .first()
                .into_iter()
                .next()
                .flatten()
                .and_then(|count| count.parse().ok())),
            Err(SourceError::Timeout { .. }) => Ok(None),
            Err(error) => Err(error),
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

async fn horizon<D: Dialect>(
    session: &mut Session<D>,
    cursor: &CursorColumn,
    from: Option<&str>,
) -> Result<Option<String>, SourceError> {
    let limit = session.limit();
    let (connections, connection) = session.parts();
    let asked = timeout(limit, connections.dialect.horizon(connection, cursor, from)).await;
    session.judge(asked)
}

fn size(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}
