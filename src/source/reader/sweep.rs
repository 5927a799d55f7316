//! Pages of a sweep: in one piece of memory where the database's order allows it, row by row where not.

use std::sync::Arc;

use super::super::connections::Session;
use super::super::dialect::{Dialect, Sink, Taken};
use super::super::pages::{self, Keys, Pages, PlacedRow, sweep_params};
use super::super::statement::Param;
use super::super::{RawKey, SourceError, SweepPage, SweepRows};
use super::{Inner, Layouts, remember_room, room, size};
use crate::model::{RawRow, RawRows};

/// Takes the rows of a statement as ids and fields.
struct Sheet {
    layouts: Arc<Layouts>,
    /// How many rows belong to the page.
    limit: usize,
    rows: RawRows,
    /// The types of the last row's ids, where the statement gives them.
    types: Vec<String>,
    /// The ids of the row after the page's last, if they are texts; empty where none was read.
    beyond: Option<Option<[String; 2]>>,
}

impl Sheet {
    fn new(layouts: &Arc<Layouts>, limit: usize, rows: RawRows) -> Self {
        Self {
            layouts: Arc::clone(layouts),
            limit,
            rows,
            types: Vec::new(),
            beyond: None,
        }
    }

    /// The place of the last row; `None` when its ids do not tell it.
    fn place<D: Dialect>(&self, dialect: &D) -> Option<RawKey> {
        let (installation, resource) = self.rows.last()?.ids()?;
        let (installation_id, resource_id) = match &*self.types {
            [] => (installation.to_owned(), resource.to_owned()),
            [of_installation, of_resource] => (
                dialect.position(of_installation, installation)?,
                dialect.position(of_resource, resource)?,
            ),
            _ => return None,
        };
        Some(RawKey {
            installation_id,
            resource_id,
        })
    }

    /// Whether the row after the last one, which was asked for, shows that this has its place for itself.
    fn is_apart<D: Dialect>(&self, dialect: &D) -> bool {
        match (self.rows.last().and_then(|last| last.ids()), &self.beyond) {
            (_, None) => true,
            (Some(last), Some(Some([installation, resource]))) => {
                dialect.are_apart(last, (installation, resource))
            }
            _ => false,
        }
    }
}

impl Sink for Sheet {
    fn row(&mut self, cells: &[Option<&[u8]>]) -> Taken {
        if self.rows.len() >= self.limit {
            let id = |index: usize| Some(text((*cells.get(index)?)?)?.to_owned());
            self.beyond = Some(id(0).zip(id(1)).map(<[String; 2]>::from));
            return Taken::Kept;
        }
        let layout = &self.layouts.source;
        let (texts, types) = cells.split_at(cells.len().min(2 + layout.fields.len()));
        pages::push_row(&mut self.rows, layout, texts, None);
        self.types.resize_with(types.len(), String::new);
        for (kept, cell) in self.types.iter_mut().zip(types) {
            kept.clear();
            kept.push_str(cell.and_then(text).unwrap_or_default());
        }
        Taken::Kept
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

impl<D: Dialect> Inner<D> {
    /// One page of a sweep, in one piece.
    pub(super) async fn sweep_rows(
        &self,
        session: &mut Session<D>,
        after: Option<&RawKey>,
        limit: u32,
    ) -> Result<SweepRows, SourceError> {
        let layouts = self.layouts(session).await?;
        let pages = self.pages(&layouts.source);
        let keys = pages.sweep_keys();
        let place = after.and_then(|key| sweep_params(&self.connections.dialect, &keys, key));
        // The first page has rows without a place besides.
        if let Some(place) = &place
            && let Some(page) = self
                .sweep_texts(session, &layouts, &keys, place, limit)
                .await?
        {
            return Ok(page);
        }
        session.renew().await?;
        let SweepPage { rows, next } = self.sweep(session, after, limit).await?;
        Ok(SweepRows {
            rows: rows
                .into_iter()
                .map(|row| RawRow {
                    cursor: None,
                    ..row
                })
                .collect(),
            next,
        })
    }

    /// A page of texts; `None` when it has to be read with the place of each row.
    async fn sweep_texts(
        &self,
        session: &mut Session<D>,
        layouts: &Arc<Layouts>,
        keys: &Keys,
        after: &[Param; 2],
        limit: u32,
    ) -> Result<Option<SweepRows>, SourceError> {
        let pages = self.pages(&layouts.source);
        let dialect = &self.connections.dialect;
        let has_ties = session.has_ties();
        // One row more, where that can show that the last one has its place for itself.
        let peeks = D::TELLS_APART && !has_ties;
        let asked = limit.saturating_add(peeks.into());
        let Some(statement) = pages.sweep_texts(keys, Some(after), asked, has_ties) else {
            return Ok(None);
        };
        let most = if peeks { size(limit) } else { usize::MAX };
        let sheet = Sheet::new(layouts, most, room(&self.sweep_bytes));
        let (sheet, is_cut) = session.read(&statement, sheet).await?;
        remember_room(&self.sweep_bytes, &sheet.rows);
        let is_full = sheet.rows.len() >= size(limit);
        if !is_full && !is_cut {
            let rows = sheet.rows;
            return Ok(Some(SweepRows { rows, next: None }));
        }
        let Some(next) = sheet.place(dialect) else {
            return Ok(None);
        };
        let is_apart = !is_cut && (has_ties || (peeks && sheet.is_apart(dialect)));
        if !is_apart && !self.is_alone(session, &pages, keys, &next).await? {
            return Ok(None);
        }
        Ok(Some(SweepRows {
            rows: sheet.rows,
            next: Some(next),
        }))
    }

    /// Whether no other row has the place of a page's last one.
    async fn is_alone(
        &self,
        session: &mut Session<D>,
        pages: &Pages<'_, D>,
        keys: &Keys,
        place: &RawKey,
    ) -> Result<bool, SourceError> {
        let Some(at) = sweep_params(&self.connections.dialect, keys, place) else {
            return Ok(false);
        };
        // A page that was cut short may have been cut between rows of one place, too.
        session.renew().await?;
        let group = session.rows(&pages.sweep_group(keys, &at)).await?;
        Ok(group.rows.len() <= 1 && !group.is_cut)
    }

    /// One page of a sweep, row by row.
    pub(super) async fn sweep(
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
        let mut rows = pages::decode(pages.layout, found);
        let next = rows.last().filter(|_| is_full).map(|last| last.key.clone());
        if let Some(next) = &next
            && let Some(at) = sweep_params(&self.connections.dialect, keys, next)
        {
            session.renew().await?;
            let group = session.rows(&pages.sweep_group(keys, &at)).await?;
            rows = pages::with_sweep_group(rows, pages::decode(pages.layout, group));
        }
        Ok((rows, next))
    }
}
