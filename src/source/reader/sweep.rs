//! Pages of a sweep: in one piece of memory where the database's order allows it, row by row where not.

use std::sync::atomic::Ordering;

use super::super::columns::Layout;
use super::super::connections::Session;
use super::super::dialect::{Dialect, Sink};
use super::super::pages::{self, Keys, Pages, PlacedRow, sweep_params};
use super::super::statement::Param;
use super::super::{RawKey, SourceError, SweepPage, SweepRows, packed};
use super::{Inner, size};
use crate::model::{RawRow, RawRows};

/// How many pages are read row by row after one that could not be read as one text.
const PAGES_UNPACKED: u32 = 64;
/// How much memory a row is given at first. What a page of longer rows has outgrown is copied and wiped, several times until it is read.
const ROW_BYTES: usize = 384;

/// Takes the rows of a statement as ids and fields.
struct Sheet<'l> {
    layout: &'l Layout,
    rows: RawRows,
}

impl Sink for Sheet<'_> {
    fn row(&mut self, cells: &[Option<&[u8]>]) {
        pages::push_row(&mut self.rows, self.layout, cells, None);
    }
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
        if let Some(place) = &place {
            let page = self
                .sweep_packed(session, &pages, &keys, place, limit)
                .await?;
            let page = match page {
                Some(page) => Some(page),
                None => {
                    self.sweep_texts(session, &pages, &keys, place, limit)
                        .await?
                }
            };
            if let Some(page) = page {
                return Ok(page);
            }
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

    /// A page whose rows come one by one; `None` when it has to be read with the place of each row.
    async fn sweep_texts(
        &self,
        session: &mut Session<D>,
        pages: &Pages<'_, D>,
        keys: &Keys,
        after: &[Param; 2],
        limit: u32,
    ) -> Result<Option<SweepRows>, SourceError> {
        let has_ties = session.has_ties();
        let Some(statement) = pages.sweep_texts(keys, Some(after), limit, has_ties) else {
            return Ok(None);
        };
        let mut sheet = Sheet {
            layout: pages.layout,
            rows: RawRows::with_capacity(size(limit).saturating_mul(ROW_BYTES)),
        };
        let is_cut = session.read(&statement, &mut sheet).await?;
        let rows = sheet.rows;
        let is_full = is_cut || rows.len() >= size(limit);
        let Some(last) = rows.last().filter(|_| is_full) else {
            return Ok(Some(SweepRows { rows, next: None }));
        };
        let Some((installation_id, resource_id)) = last.ids() else {
            return Ok(None);
        };
        let next = RawKey {
            installation_id: installation_id.to_owned(),
            resource_id: resource_id.to_owned(),
        };
        if !is_cut && !has_ties && !self.is_alone(session, pages, keys, &next).await? {
            return Ok(None);
        }
        let next = Some(next);
        Ok(Some(SweepRows { rows, next }))
    }

    /// A page that comes as one text; `None` when it has to be read row by row.
    async fn sweep_packed(
        &self,
        session: &mut Session<D>,
        pages: &Pages<'_, D>,
        keys: &Keys,
        after: &[Param; 2],
        limit: u32,
    ) -> Result<Option<SweepRows>, SourceError> {
        let rest = |left: u32| left.checked_sub(1);
        let is_resting = self
            .unpacked
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest)
            .is_ok();
        if is_resting {
            return Ok(None);
        }
        let Some(statement) = pages.sweep_packed(keys, Some(after), limit) else {
            return Ok(None);
        };
        let mut line = Line::of(pages.layout);
        // One row is never cut: what it may hold is limited by the statement.
        session.read(&statement, &mut line).await?;
        let Some((rows, place)) = line.page else {
            self.unpacked.store(PAGES_UNPACKED, Ordering::Relaxed);
            return Ok(None);
        };
        let next = place.filter(|_| rows.len() >= size(limit));
        if let Some(next) = &next
            && !self.is_alone(session, pages, keys, next).await?
        {
            return Ok(None);
        }
        Ok(Some(SweepRows { rows, next }))
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
}

/// Takes the one row that a packed page is.
struct Line<'l> {
    layout: &'l Layout,
    page: Option<(RawRows, Option<RawKey>)>,
}

impl<'l> Line<'l> {
    fn of(layout: &'l Layout) -> Self {
        Self { layout, page: None }
    }
}

impl Sink for Line<'_> {
    fn row(&mut self, cells: &[Option<&[u8]>]) {
        // No rows have no text.
        let text = cells.first().copied().flatten().unwrap_or_default();
        self.page = packed::unpack(self.layout, text);
    }
}
