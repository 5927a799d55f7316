//! Looks up rows by key: of resources, of what a change feed names, of an installation's token.

use std::collections::{BTreeSet, HashMap, HashSet};

use tokio::time::timeout;

use super::super::columns::{INSTALLATIONS_QUERY, Layout, SOURCE_QUERY};
use super::super::connections::Session;
use super::super::dialect::{Dialect, Rows, text};
use super::super::feed::{self, CHANGE_FEED};
use super::super::pages::{self, MAX_FETCHED_ROWS, raw_text};
use super::super::statement::Statement;
use super::super::{FeedPage, KEYS_IN_STATEMENT_MAX, SourceError};
use super::{Inner, size};
use crate::model::{AccessToken, InstallationId, RawRow, RawText, ResourceId, ResourceKey};

/// A token, or why its text cannot be read.
type ToldToken = Result<AccessToken, &'static str>;

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
        let statement = |keys: &[ResourceKey]| pages.fetch(keys);
        let take = |asked: &[ResourceKey], found: Rows| {
            // The database may take other ids for equal; only these were asked for.
            let asked: HashSet<&ResourceKey> = asked.iter().collect();
            let is_asked = |row: &RawRow| row.key().is_ok_and(|key| asked.contains(&key));
            let found = pages::decode(layout, found).into_iter();
            rows.extend(found.map(|placed| placed.row).filter(is_asked));
        };
        in_pieces(session, keys, statement, take).await?;
        Ok(rows)
    }

    /// The token of this installation.
    pub(super) async fn token(
        &self,
        session: &mut Session<D>,
        installation_id: &InstallationId,
    ) -> Result<Option<AccessToken>, SourceError> {
        let asked = std::slice::from_ref(installation_id);
        let mut told = self.told_tokens(session, asked).await?;
        let Some(mut tokens) = told.remove(installation_id) else {
            return Ok(None);
        };
        let token = tokens.pop().transpose();
        let refuse = |problem: String| SourceError::Query {
            statement: INSTALLATIONS_QUERY,
            problem,
        };
        match tokens.pop() {
            None => token.map_err(|problem| refuse(format!("an access_token {problem}"))),
            Some(_) => Err(refuse(
                "an installation has more than one access_token".to_owned(),
            )),
        }
    }

    /// The tokens of those among these installations that have just one.
    pub(super) async fn tokens(
        &self,
        session: &mut Session<D>,
        installation_ids: &[InstallationId],
    ) -> Result<Vec<(InstallationId, AccessToken)>, SourceError> {
        let told = self.told_tokens(session, installation_ids).await?;
        let the_one = |(installation_id, mut tokens): (InstallationId, Vec<ToldToken>)| {
            let token = tokens.pop()?.ok()?;
            tokens.is_empty().then_some((installation_id, token))
        };
        Ok(told.into_iter().filter_map(the_one).collect())
    }

    /// What the rows of these installations have as their tokens, each token once.
    async fn told_tokens(
        &self,
        session: &mut Session<D>,
        installation_ids: &[InstallationId],
    ) -> Result<HashMap<InstallationId, Vec<ToldToken>>, SourceError> {
        let mut told: HashMap<InstallationId, Vec<ToldToken>> = HashMap::new();
        let layouts = self.layouts(session).await?;
        let (Some(layout), Some(query)) = (&layouts.installations, &self.installations_query)
        else {
            return Ok(told);
        };
        let dialect = &self.connections.dialect;
        let statement = |ids: &[InstallationId]| pages::tokens(dialect, query, layout, ids);
        let take = |asked: &[InstallationId], found: Rows| {
            let asked: HashSet<&str> = asked.iter().map(InstallationId::as_str).collect();
            for mut cells in found.rows {
                let token = match raw_text(cells.pop().flatten()) {
                    RawText::Null => continue,
                    RawText::Text(token) if token.is_empty() => continue,
                    RawText::Text(token) => Ok(AccessToken::new(&token)),
                    RawText::Unreadable(problem) => Err(problem),
                };
                // The database may take other ids for equal; only these were asked for.
                let id = text(cells.pop().flatten()).filter(|id| asked.contains(&**id));
                if let Some(id) = id.and_then(|id| InstallationId::new(&id).ok()) {
                    let tokens = told.entry(id).or_default();
                    if !tokens.contains(&token) {
                        tokens.push(token);
                    }
                }
            }
        };
        in_pieces(session, installation_ids, statement, take).await?;
        Ok(told)
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

/// Looks keys up, so many in one statement that it stays small, and gives the rows of each statement that were found to `take`, with
/// what it asked for.
async fn in_pieces<D: Dialect, K: Sync>(
    session: &mut Session<D>,
    keys: &[K],
    statement: impl Fn(&[K]) -> Option<Statement> + Sync,
    mut take: impl FnMut(&[K], Rows) + Send,
) -> Result<(), SourceError> {
    let mut chunks: Vec<&[K]> = keys.chunks(KEYS_IN_STATEMENT_MAX).rev().collect();
    while let Some(chunk) = chunks.pop() {
        let Some(statement) = statement(chunk) else {
            continue;
        };
        let found = session.rows(&statement).await?;
        // A look-up that was cut short says nothing of the rows that it did not come to: each half is looked up by itself.
        let is_partial = found.is_cut || found.rows.len() >= size(MAX_FETCHED_ROWS);
        session.renew().await?;
        if is_partial && chunk.len() > 1 {
            let (first, second) = chunk.split_at(chunk.len() / 2);
            chunks.extend([second, first]);
        } else {
            take(chunk, found);
        }
    }
    Ok(())
}
