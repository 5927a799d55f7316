//! What a source is, for a person who is about to trust it.

use std::time::Instant;

use tokio::time::timeout;

use super::super::SourceError;
use super::super::columns::{CursorColumn, SOURCE_QUERY};
use super::super::connections::Session;
use super::super::dialect::{Dialect, Rows};
use super::super::feed::{self, CHANGE_FEED, Feed};
use super::super::inspect::{Description, Guarantee};
use super::super::pages::{self, Pages, PollStart};
use super::Inner;
use crate::model::InstallationId;

impl<D: Dialect> Inner<D> {
    /// Describes the source.
    pub(super) async fn describe(&self) -> Result<Description, SourceError> {
        let started = Instant::now();
        let mut session = self.begin(SOURCE_QUERY).await?;
        let described = self.describe_in(&mut session).await;
        let mut description = self.finish(session, described)?;
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
        // Last, since its failure ends the transaction: whoever reads a token tells why.
        let is_token_indexed = self.is_token_indexed(session).await.unwrap_or(None);
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
            is_token_indexed,
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

    /// Whether an index serves the look-up of tokens.
    async fn is_token_indexed(
        &self,
        session: &mut Session<D>,
    ) -> Result<Option<bool>, SourceError> {
        /// One of them fits the column, whatever its type is.
        const IDS: [&str; 3] = ["icfg", "0", "00000000-0000-0000-0000-000000000000"];
        let layouts = self.layouts(session).await?;
        let (Some(layout), Some(query)) = (&layouts.installations, &self.installations_query)
        else {
            return Ok(None);
        };
        let dialect = &self.connections.dialect;
        let look_up = |id: &str| {
            let id = InstallationId::new(id).ok()?;
            pages::tokens(dialect, query, layout, &[id])
        };
        let Some(statement) = IDS.into_iter().find_map(look_up) else {
            return Ok(None);
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
            Err(_) => Ok(Rows::default()),
        };
        session.end();
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
