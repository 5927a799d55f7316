//! Pages of a poll, and how far the pass may take the next one's start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::timeout;

use super::super::columns::{CursorColumn, Layout, SOURCE_QUERY};
use super::super::connections::Session;
use super::super::dialect::{Dialect, Sink, Taken};
use super::super::pages::{self, Crowd, Pages, PollStart, poll_params};
use super::super::statement::Param;
use super::super::{
    Identity, PollFrom, PollPage, Position, RawKey, SourceError, Suspects, rows_of,
};
use super::{Inner, Layouts, remember_room, room, size};
use crate::model::RawRows;

impl<D: Dialect> Inner<D> {
    /// One page of a poll, and the ids of the rows of its suspects.
    pub(super) async fn poll(
        &self,
        session: &mut Session<D>,
        from: &PollFrom,
        limit: u32,
        suspects: Option<&Suspects>,
    ) -> Result<PollPage, SourceError> {
        let mut page = self.poll_rows(session, from, limit).await?;
        self.find_suspects(session, &mut page, suspects).await?;
        Ok(page)
    }

    /// Looks up the suspects among the rows of a page.
    pub(super) async fn find_suspects(
        &self,
        session: &mut Session<D>,
        page: &mut PollPage,
        suspects: Option<&Suspects>,
    ) -> Result<(), SourceError> {
        let suspects = suspects.map_or_else(Vec::new, |suspects| suspects(&page.rows));
        if !suspects.is_empty() {
            // The page may have been cut short.
            session.renew().await?;
            let ids = self.fetch_ids(session, &suspects).await?;
            page.found = rows_of(suspects, &ids);
        }
        Ok(())
    }

    async fn poll_rows(
        &self,
        session: &mut Session<D>,
        from: &PollFrom,
        limit: u32,
    ) -> Result<PollPage, SourceError> {
        let layouts = self.layouts(session).await?;
        let layout = &layouts.source;
        let cursor = cursor_of(layout)?;
        let pages = self.pages(layout);
        let (start, horizon) = self.start(session, layout, cursor, from).await?;
        let is_bounded = horizon.is_some();
        let mut page = self
            .poll_from(session, &layouts, cursor, &start, horizon, limit)
            .await?;
        page.identity = self.told_identity(session);
        if matches!(from, PollFrom::Later(_)) && page.rows.is_empty() {
            page.reached = newest(session, &pages, cursor).await?;
        }
        let is_first = !matches!(from, PollFrom::After(_));
        if !is_first || is_bounded || page.next.is_none() {
            return Ok(page);
        }
        // More pages follow, and nobody tells what may still commit behind this one while they are read. What commits from
        // here on lies at most the overlap behind the newest cursor that there is now, so that is as far as this pass may take
        // the next one's start; this page is read again, after that was asked.
        session.renew().await?;
        let newest = newest(session, &pages, cursor).await?;
        let again = self
            .poll_from(session, &layouts, cursor, &start, newest, limit)
            .await?;
        Ok(PollPage {
            identity: page.identity,
            ..again
        })
    }

    /// Where a page starts, and the horizon that holds for the whole pass.
    async fn start(
        &self,
        session: &mut Session<D>,
        layout: &Layout,
        cursor: &CursorColumn,
        from: &PollFrom,
    ) -> Result<(PollStart, Option<String>), SourceError> {
        let keys = self.pages(layout).poll_keys();
        let dialect = &self.connections.dialect;
        Ok(match from {
            PollFrom::After(position) if position.key.is_none() => {
                let start = pages::later(dialect, cursor, &position.cursor);
                (start, position.horizon.clone())
            }
            PollFrom::After(position) => match poll_params(dialect, cursor, &keys, position) {
                Some([after, ids @ ..]) => {
                    let [installation, resource] = ids;
                    let after = dialect.unseen(after);
                    let start = PollStart::After([after, installation, resource]);
                    (start, position.horizon.clone())
                }
                None => (PollStart::Beginning, position.horizon.clone()),
            },
            PollFrom::Cursor(text) | PollFrom::Until { cursor: text, .. } => {
                let (param, horizon) = self.start_at(session, cursor, text).await?;
                // Statistics may be older than a change of many rows: by those nothing lies here, and to sort all of nothing costs nothing.
                let param = match self.is_long.load(Ordering::Relaxed) {
                    true => param.map(|param| dialect.unseen(param)),
                    false => param,
                };
                let crowd = match from {
                    PollFrom::Until { crowd, .. } => {
                        self.crowd(session, cursor, crowd, horizon.as_deref())
                            .await?
                    }
                    _ => None,
                };
                let start = match (param, crowd) {
                    (Some(from), Some(crowd)) => PollStart::Until(from, crowd),
                    (Some(from), None) => PollStart::Cursor(from),
                    (None, _) => PollStart::Beginning,
                };
                (start, horizon)
            }
            PollFrom::Later(text) => {
                let horizon = horizon(session, cursor, Some(text)).await?;
                (pages::later(dialect, cursor, text), horizon)
            }
            PollFrom::Beginning => (PollStart::Beginning, horizon(session, cursor, None).await?),
        })
    }

    /// The rows with a cursor, if there are any.
    async fn crowd(
        &self,
        session: &mut Session<D>,
        cursor: &CursorColumn,
        text: &str,
        horizon: Option<&str>,
    ) -> Result<Option<Crowd>, SourceError> {
        let layouts = self.layouts(session).await?;
        let pages = self.pages(&layouts.source);
        let Some(at) = self.connections.dialect.cursor_param(cursor, text) else {
            return Ok(None);
        };
        let horizon = self.horizon_param(cursor, horizon);
        let row = pages.any_at(cursor, &at, horizon.as_ref());
        let row = session.rows(&row).await?.rows.into_iter().next();
        Ok(row.map(|row| Crowd {
            at,
            text: text.to_owned(),
            is_settled: row.into_iter().next().flatten().is_some(),
        }))
    }

    /// How many rows have a cursor, counted up to `most`; none where the column can hold no such cursor.
    pub(super) async fn count_at(
        &self,
        session: &mut Session<D>,
        text: &str,
        most: u32,
    ) -> Result<u32, SourceError> {
        let layouts = self.layouts(session).await?;
        let cursor = cursor_of(&layouts.source)?;
        let pages = self.pages(&layouts.source);
        let Some(at) = self.connections.dialect.cursor_param(cursor, text) else {
            return Ok(0);
        };
        let counted = session.rows(&pages.count_at(cursor, &at, most)).await?;
        let counted = counted.first().into_iter().next().flatten();
        Ok(counted.and_then(|total| total.parse().ok()).unwrap_or(0))
    }

    /// Where a pass from a cursor on starts, if the column can hold such a cursor, and the horizon that holds for all of it.
    pub(super) async fn start_at(
        &self,
        session: &mut Session<D>,
        cursor: &CursorColumn,
        text: &str,
    ) -> Result<(Option<Param>, Option<String>), SourceError> {
        let param = self.connections.dialect.cursor_param(cursor, text);
        let from = param.as_ref().map(|_| text);
        // Before the first row is read: what is open now may commit behind the pass.
        let horizon = horizon(session, cursor, from).await?;
        Ok((param, horizon))
    }

    /// A horizon as rows are compared with it.
    pub(super) fn horizon_param(
        &self,
        cursor: &CursorColumn,
        horizon: Option<&str>,
    ) -> Option<Param> {
        let dialect = &self.connections.dialect;
        let param = dialect.cursor_param(cursor, horizon?)?;
        Some(dialect.unseen(param))
    }

    /// Who the database said it is as the transaction began, if it was asked.
    pub(super) fn told_identity(&self, session: &mut Session<D>) -> Option<Identity> {
        let standing = session.standing.take()?;
        Some(self.identity(standing.identity))
    }

    /// A poll's page from a place on, its rows compared with the horizon.
    async fn poll_from(
        &self,
        session: &mut Session<D>,
        layouts: &Arc<Layouts>,
        cursor: &CursorColumn,
        start: &PollStart,
        horizon: Option<String>,
        limit: u32,
    ) -> Result<PollPage, SourceError> {
        let pages = self.pages(&layouts.source);
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
        let horizon_param = self.horizon_param(cursor, horizon.as_deref());
        let statement = pages.poll(cursor, start, upper.as_ref(), horizon_param.as_ref(), limit);
        let sheet = Sheet::new(layouts, room(&self.poll_bytes));
        let (mut sheet, is_cut) = session.read(&statement, sheet).await?;
        remember_room(&self.poll_bytes, &sheet.rows);
        let is_full = is_cut || sheet.rows.len() >= size(limit) || upper.is_some();
        if is_full || !matches!(start, PollStart::After(_)) {
            self.is_long.store(is_full, Ordering::Relaxed);
        }
        // Rows are in the order of their cursors: the last one tells whether all are settled.
        let mut is_settled = sheet.is_settled;
        // Without a row there is nothing to go on behind, whatever the bound was: it may have been deleted since.
        let next = match is_full && !sheet.rows.is_empty() {
            true => Some(sheet.position(horizon.clone()).ok_or_else(without_place)?),
            false => None,
        };
        if let Some(next) = &next
            && let Some(at) = poll_params(dialect, cursor, &keys, next)
        {
            // A page that was cut short may have been cut between rows of one place, too.
            session.renew().await?;
            let group = pages.poll_group(cursor, &at);
            let (group, _) = session
                .read(&group, Sheet::new(layouts, RawRows::default()))
                .await?;
            sheet.end_with(&group);
        }
        let (reached, next) = match (next, start) {
            // What lies before the crowd has been read, and the crowd is passed over.
            (None, PollStart::Until(_, crowd)) => {
                is_settled &= crowd.is_settled;
                (Some(crowd.text.clone()), Some(crowd.behind(&horizon)))
            }
            (next, _) => (sheet.reached(), next),
        };
        Ok(PollPage {
            reached,
            rows: sheet.rows,
            passed: 0,
            next,
            horizon: horizon.filter(|_| !is_settled),
            identity: None,
            found: BTreeMap::new(),
        })
    }
}

/// Takes the rows of a poll's page, and where the last of them lies.
struct Sheet {
    layouts: Arc<Layouts>,
    rows: RawRows,
    /// The cursor of the last row that has one as text, and that row's ids as the database's order has them, each empty where it is no text.
    place: [String; 3],
    /// How many rows have that place, the last of them, but for those without one.
    at_place: usize,
    /// How many rows at the end have a cursor that is no text, and so no place: the next page, which starts before them, has them too.
    without_place: usize,
    /// Whether no open transaction can commit rows before the last one's cursor.
    is_settled: bool,
}

impl Sheet {
    fn new(layouts: &Arc<Layouts>, rows: RawRows) -> Self {
        Self {
            layouts: Arc::clone(layouts),
            rows,
            place: Default::default(),
            at_place: 0,
            without_place: 0,
            is_settled: true,
        }
    }

    /// The cursor of the last row that has a place.
    fn reached(&self) -> Option<String> {
        let [cursor, ..] = &self.place;
        (self.at_place > 0).then(|| cursor.clone())
    }

    /// The place of the last row that has one.
    fn position(&self, horizon: Option<String>) -> Option<Position> {
        let [_, installation_id, resource_id] = &self.place;
        Some(Position {
            cursor: self.reached()?,
            key: Some(RawKey {
                installation_id: installation_id.clone(),
                resource_id: resource_id.clone(),
            }),
            horizon,
        })
    }

    /// Puts the whole group of the last row at the end of a full page.
    ///
    /// The group is a later reading: a row that changed in between is not to appear as it was, too.
    fn end_with(&mut self, group: &Self) {
        if !group.rows.is_empty() {
            let before = self.rows.len() - self.without_place - self.at_place;
            self.rows.truncate(before);
            self.rows.append(&group.rows);
        }
    }
}

impl Sink for Sheet {
    fn row(&mut self, cells: &[Option<&[u8]>]) -> Taken {
        let [settled, installation, resource, cursor, cells @ ..] = cells else {
            unreachable!("every statement selects all columns");
        };
        let cursor = as_text(*cursor);
        if let Some(cursor) = cursor {
            let ids = [*installation, *resource].map(|id| as_text(id).unwrap_or_default());
            let place = [cursor, ids[0], ids[1]];
            if self.without_place > 0 || self.place.iter().zip(place).any(|(old, new)| old != new) {
                self.at_place = 0;
                for (old, new) in self.place.iter_mut().zip(place) {
                    old.clear();
                    old.push_str(new);
                }
            }
            self.at_place += 1;
            self.without_place = 0;
        } else {
            self.without_place += 1;
        }
        self.is_settled = settled.is_some();
        pages::push_row(&mut self.rows, &self.layouts.source, cells, cursor);
        Taken::Kept
    }
}

/// The column that polls follow.
pub(super) fn cursor_of(layout: &Layout) -> Result<&CursorColumn, SourceError> {
    layout.cursor.as_ref().ok_or_else(|| SourceError::Shape {
        statement: SOURCE_QUERY,
        problem: "has no column `cursor`, so it cannot be polled".to_owned(),
        help: "sweep it, or add a cursor".to_owned(),
    })
}

/// A full page that shows no place from which the next could be read.
fn without_place() -> SourceError {
    SourceError::Shape {
        statement: SOURCE_QUERY,
        problem:
            "has a page of rows none of whose cursors is UTF-8, so polls cannot go on behind it"
                .to_owned(),
        help: "select a cursor of text, as `hex(...)` of bytes is, or correct those rows"
            .to_owned(),
    }
}

pub(super) fn as_text(cell: Option<&[u8]>) -> Option<&str> {
    std::str::from_utf8(cell?).ok()
}

/// The greatest cursor there is.
async fn newest<D: Dialect>(
    session: &mut Session<D>,
    pages: &Pages<'_, D>,
    cursor: &CursorColumn,
) -> Result<Option<String>, SourceError> {
    let newest = session.rows(&pages.newest_cursor(cursor)).await?;
    Ok(newest.first().into_iter().next().flatten())
}

async fn horizon<D: Dialect>(
    session: &mut Session<D>,
    cursor: &CursorColumn,
    from: Option<&str>,
) -> Result<Option<String>, SourceError> {
    // What is open in the primary a replica does not know.
    if session.is_replica {
        return Ok(None);
    }
    let limit = session.limit();
    let open = session.standing.as_mut().and_then(|s| s.open.take());
    let (connections, connection) = session.parts();
    let asking = connections.dialect.horizon(connection, open, cursor, from);
    let asked = timeout(limit, asking).await;
    session.judge(asked)
}
