//! What is new from a cursor on, in one statement: rows that pass are read and not kept, however many there are.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::connections::Session;
use super::super::dialect::{Dialect, Sink, Taken};
use super::super::pages::{self, PollStart};
use super::super::{PollPage, Sieve, SourceError, Suspects};
use super::poll::{as_text, cursor_of};
use super::{Inner, Layouts};
use crate::model::RawRows;

impl<D: Dialect> Inner<D> {
    /// The pass from a cursor on as its only page; `None` when it holds more than the sieve allows for.
    pub(super) async fn poll_news(
        &self,
        session: &mut Session<D>,
        from: &str,
        sieve: Sieve,
        suspects: Option<&Suspects>,
    ) -> Result<Option<PollPage>, SourceError> {
        let layouts = self.layouts(session).await?;
        let cursor = cursor_of(&layouts.source)?;
        let (param, horizon) = self.start_at(session, cursor, from).await?;
        let start = param.map_or(PollStart::Beginning, PollStart::Cursor);
        let horizon_param = self.horizon_param(cursor, horizon.as_deref());
        let limit = sieve.passing_max.saturating_add(sieve.news_max);
        let limit = limit.saturating_add(1);
        let pages = self.pages(&layouts.source);
        let statement = pages.poll_news(cursor, &start, horizon_param.as_ref(), limit);
        let net = Net {
            layouts: Arc::clone(&layouts),
            sieve,
            news: RawRows::default(),
            read: 0,
            reached: None,
            is_settled: true,
        };
        let (net, is_cut) = session.read(&statement, net).await?;
        if is_cut || net.read >= u64::from(limit) {
            return Ok(None);
        }
        let mut page = PollPage {
            passed: net.read - net.news.len() as u64,
            rows: net.news,
            reached: net.reached,
            next: None,
            horizon: horizon.filter(|_| !net.is_settled),
            identity: self.told_identity(session),
            found: BTreeMap::new(),
        };
        self.find_suspects(session, &mut page, suspects).await?;
        Ok(Some(page))
    }
}

/// Takes the rows of the statement and keeps what does not pass.
struct Net {
    layouts: Arc<Layouts>,
    sieve: Sieve,
    news: RawRows,
    /// How many rows there were, those that passed included.
    read: u64,
    /// The cursor of the last row that has one as text.
    reached: Option<String>,
    /// Whether no open transaction can commit rows before that.
    is_settled: bool,
}

impl Sink for Net {
    fn row(&mut self, cells: &[Option<&[u8]>]) -> Taken {
        let [settled, cursor, cells @ ..] = cells else {
            unreachable!("every statement selects all columns");
        };
        let cursor = as_text(*cursor);
        self.read += 1;
        self.is_settled = settled.is_some();
        if let Some(cursor) = cursor {
            let reached = self.reached.get_or_insert_default();
            reached.clear();
            reached.push_str(cursor);
        }
        let before = self.news.len();
        pages::push_row(&mut self.news, &self.layouts.source, cells, cursor);
        let row = self.news.last().expect("it was pushed just now");
        if (self.sieve.passes)(row) {
            self.news.truncate(before);
            return Taken::Passed;
        }
        let has_room = self.news.len() as u64 <= u64::from(self.sieve.news_max);
        if has_room {
            Taken::Kept
        } else {
            Taken::Refused
        }
    }
}
