//! Looks up rows by key: of resources, of what a change feed names, of an installation's token.

use std::collections::{BTreeSet, HashSet};

use tokio::time::timeout;

use super::super::columns::{INSTALLATIONS_QUERY, Layout, SOURCE_QUERY};
use super::super::connections::Session;
use super::super::dialect::{Dialect, text};
use super::super::feed::{self, CHANGE_FEED};
use super::super::pages::{self, MAX_FETCHED_ROWS, raw_text};
use super::super::{FeedPage, KEYS_IN_STATEMENT_MAX, SourceError};
use super::{Inner, size};
use crate::model::{AccessToken, InstallationId, RawRow, RawText, ResourceId, ResourceKey};

impl<D: Dialect> Inner<D> {
    /// The rows of these resources.
    pub(super) async fn fetch(
        &self,
        session: &mut Session<D>,
        keys: &[ResourceKey],
    ) -> Result<Vec<RawRow>, SourceError> {
        let layouts = self.layouts(session).await?;
        self.look_up(session, &layouts.source, keys).await
    }

    /// The ids of the rows of these resources, one for each row.
    pub(super) async fn fetch_ids(
        &self,
        session: &mut Session<D>,
        keys: &[ResourceKey],
    ) -> Result<Vec<ResourceKey>, SourceError> {
        let layouts = self.layouts(session).await?;
        let ids = Layout {
            cursor: None,
            fields: Vec::new(),
            ..layouts.source.clone()
        };
        let rows = self.look_up(session, &ids, keys).await?;
        Ok(rows.iter().filter_map(|row| row.key().ok()).collect())
    }

    async fn look_up(
        &self,
        session: &mut Session<D>,
        layout: &Layout,
        keys: &[ResourceKey],
    ) -> Result<Vec<RawRow>, SourceError> {
        let pages = self.pages(layout);
        let mut rows = Vec::new();
        let mut chunks: Vec<&[ResourceKey]> = keys.chunks(KEYS_IN_STATEMENT_MAX).rev().collect();
        while let Some(chunk) = chunks.pop() {
            let Some(statement) = pages.fetch(chunk) else {
                continue;
            };
            let found = session.rows(&statement).await?;
            // A look-up that was cut short says nothing of the rows that it did not come to: each half is looked up by itself.
            let is_partial = found.is_cut || found.rows.len() >= size(MAX_FETCHED_ROWS);
            session.renew().await?;
            if is_partial && chunk.len() > 1 {
                let (first, second) = chunk.split_at(chunk.len() / 2);
                chunks.extend([second, first]);
                continue;
            }
            let found = pages::decode(layout, found).into_iter();
            // The database may take other ids for equal; only these were asked for.
            let asked: HashSet<&ResourceKey> = chunk.iter().collect();
            let is_asked = |row: &RawRow| row.key().is_ok_and(|key| asked.contains(&key));
            rows.extend(found.map(|placed| placed.row).filter(is_asked));
        }
        Ok(rows)
    }

    pub(super) async fn token(
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
            let token = cells.pop().flatten();
            if text(cells.pop().flatten()).as_deref() != Some(installation_id.as_str()) {
                continue;
            }
            match raw_text(token) {
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

    pub(super) async fn feed(
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
}
