//! The poll: what changed since the cursor.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::{Origin, RawRow, RawRowRef, RawRows, ResourceKey, RowHasher, Timestamp};
use crate::planted::{Bug, is_planted};
use crate::source::{PollFrom, PollPage, RawKey, Sieve, SourceError, Suspects};
use crate::store::{PollProgress, SweepProgress};

use super::calm::{self, Pace};
use super::page::{Duplicates, PageReport, Position};
use super::{PageCounts, PassError, QuarantineNotice, Reconciler};

/// How often a pass that finds nothing new notes how far it is: each time is a commit, and a pass that is cut off reads anew what came
/// after the last.
const NOTED_EVERY: Duration = Duration::from_secs(1);

/// Of so few rows that are not known it is asked with their page how many rows their resources have.
const NEWS_MAX: usize = 8;

/// A pass's pages grow to so many times `page_rows`: where many rows have one cursor, the source looks at all of those that are left for
/// each page.
const GROWTH_MAX: u32 = 4;
/// Pages do not grow to more bytes than this.
const PAGE_BYTES: usize = 1 << 20;

/// What a poll found.
#[derive(Debug, Default)]
pub struct PollReport {
    /// The rows by what became of them.
    pub counts: PageCounts,
    /// Unusable rows that are new or changed.
    pub notices: Vec<QuarantineNotice>,
    /// Whether every row has to be read: the cursor cannot be trusted any more, and why.
    pub needs_sweep: Option<&'static str>,
    /// The cursors whose rows were too many: sweeps read them.
    pub left_to_sweeps: Vec<String>,
    /// How long it took.
    pub duration: Duration,
}

/// Where a pass is taken to have left the state, where the next begins, and its first page.
type Ahead = (String, PollFrom, Result<PollPage, SourceError>);

impl PollReport {
    /// Whether there was no row, not even one that was left to sweeps.
    fn is_empty(&self) -> bool {
        self.counts.rows == 0 && self.left_to_sweeps.is_empty()
    }
}

/// One pass.
struct Pass<'a> {
    /// Who the database is that the rows are read from.
    identity: String,
    started_at: Timestamp,
    /// How long after its newest row was found nothing more is expected behind it.
    patience: Duration,
    /// Where the sweep stood as it began.
    swept: Option<SweepProgress>,
    report: &'a mut PollReport,
}

impl Reconciler {
    /// Reads what changed since the cursor; `None` when there is neither a cursor nor a change feed and every poll
    /// is a sweep.
    ///
    /// # Errors
    /// The source or the state failed; what was committed stays, and the next poll goes on from there.
    pub async fn poll(&self) -> Result<Option<PollReport>, PassError> {
        let shape = self.source.shape().await?;
        let mut report = if shape.feed {
            self.poll_feed().await?
        } else if shape.cursor.is_some() {
            self.poll_cursor(calm::patience(shape.overlap)).await?
        } else {
            return Ok(None);
        };
        report.needs_sweep = self.called_for_sweep().take();
        Ok(Some(report))
    }

    async fn poll_cursor(&self, patience: Duration) -> Result<PollReport, PassError> {
        let started_at = self.clock.now();
        // Both at once: that the state stands where the last pass left it is nearly always so.
        let reading = self.read_ahead(started_at, patience);
        let (progress, ahead) = futures_util::future::join(self.store.progress(), reading).await;
        let progress = progress?;
        let (previous, swept) = (progress.poll, progress.sweep);
        let mut report = PollReport::default();
        let kept = previous.as_ref().and_then(|p| p.cursor.clone());
        let (from, first) = self.begin(kept.as_ref(), ahead).await;
        let is_part = matches!(from, PollFrom::Later(_));
        let told = match &first {
            Ok(page) => page.identity.clone(),
            // Another database may know nothing of such a cursor.
            Err(SourceError::Query { .. }) if kept.is_some() => None,
            Err(_) => return Err(first.map(drop).expect_err("it failed").into()),
        };
        let identity = match told {
            Some(identity) => identity,
            None => self.source.identity().await?,
        };
        let is_same = previous.is_none_or(|previous| previous.identity == identity.id);
        if !is_same && kept.is_some() {
            self.call_for_sweep("the source is another database than before");
            self.calm().forget();
            self.crowds().forget();
        }
        let mut pass = Pass {
            identity: identity.id,
            started_at,
            patience,
            swept,
            report: &mut report,
        };
        if !is_part && self.crowds().are_complete(started_at) {
            self.call_for_sweep("rows may have joined those of one cursor since a sweep read them");
        }
        let reached = if !is_same || kept.is_none() {
            let first = if is_same { Some(first?) } else { None };
            self.read_pages(PollFrom::Beginning, None, first, &mut pass)
                .await?
        } else {
            let reached = self.read_pages(from, kept, Some(first?), &mut pass).await?;
            if pass.report.is_empty() && !is_part {
                // The row that the cursor was taken from is no longer there: the clock went back, or the row was deleted.
                self.call_for_sweep("the newest row of the source is older than before");
                self.read_pages(PollFrom::Beginning, None, None, &mut pass)
                    .await?
            } else {
                reached
            }
        };
        *self.left_at() = reached;
        report.duration = self.clock.now().since(started_at);
        Ok(report)
    }

    /// Where a pass begins that goes on from `kept`, and its first page: the one that was read ahead, if it is the one.
    async fn begin(
        &self,
        kept: Option<&String>,
        ahead: Option<Ahead>,
    ) -> (PollFrom, Result<PollPage, SourceError>) {
        let from = kept.cloned().map_or(PollFrom::Beginning, PollFrom::Cursor);
        let from = match from {
            PollFrom::Cursor(cursor) if is_planted(Bug::OverlapIgnored) => {
                let key = RawKey {
                    installation_id: String::new(),
                    resource_id: String::new(),
                };
                let horizon = None;
                PollFrom::After(crate::source::Position {
                    cursor,
                    key: Some(key),
                    horizon,
                })
            }
            from => from,
        };
        let reads_ahead = !matches!(from, PollFrom::After(_));
        let ahead = ahead.filter(|(left_at, ..)| reads_ahead && kept == Some(left_at));
        match ahead {
            // Nothing is later, and the newest row is another one: all of the overlap is to be looked at.
            Some((_, PollFrom::Later(_), Ok(page)))
                if page.rows.is_empty() && page.reached.as_ref() != kept =>
            {
                let first = self.first_page(&from).await;
                (from, first)
            }
            Some((_, from, page)) => (from, page),
            None => {
                // Whoever moved the cursor may have done more.
                self.known().forget_all();
                self.calm().forget();
                let first = self.first_page(&from).await;
                (from, first)
            }
        }
    }

    /// Where the last pass left the state, if there was one, and the first page of a pass from there on.
    async fn read_ahead(&self, now: Timestamp, patience: Duration) -> Option<Ahead> {
        let left_at = self.left_at().take()?;
        let is_calm = self.calm().ends_at(now, patience, self.pace()) == Some(&left_at);
        let crowd = self.crowds().ahead_of(&left_at).map(str::to_owned);
        let cursor = left_at.clone();
        let from = match crowd {
            _ if is_calm => PollFrom::Later(cursor),
            Some(crowd) => PollFrom::Until { cursor, crowd },
            None => PollFrom::Cursor(cursor),
        };
        let page = self.first_page(&from).await;
        Some((left_at, from, page))
    }

    fn pace(&self) -> Pace {
        Pace {
            page_rows: self.settings.page_rows,
            rest_per_row: self.settings.rest_per_row,
        }
    }

    async fn first_page(&self, from: &PollFrom) -> Result<PollPage, SourceError> {
        if let PollFrom::Cursor(cursor) = from
            && let Some(sieve) = self.sieve()
        {
            let suspects = Some(self.suspects(NEWS_MAX));
            let passing = sieve.passing_max;
            match self.source.poll_news(cursor, sieve, suspects).await {
                Ok(Some(page)) if !self.known().is_torn() => return Ok(page),
                Ok(_) => {}
                // A statement for each page has time enough where one for all of them has not.
                Err(SourceError::Timeout { .. }) => {
                    self.too_many.fetch_min(passing, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        self.poll_page(from, self.settings.page_rows, NEWS_MAX)
            .await
    }

    /// Lets the rows pass that the pass before left known, if they are more than a page. Nothing is committed while they are read.
    fn sieve(&self) -> Option<Sieve> {
        let mut known = self.known();
        let (most, page_rows) = (u32::try_from(known.len()).ok()?, self.settings.page_rows);
        if most <= page_rows || most >= self.too_many.load(Ordering::Relaxed) {
            return None;
        }
        known.begin_pass();
        drop(known);
        let hasher = RowHasher::new(&self.key, self.settings.epoch());
        let known = Arc::clone(&self.known);
        let passes = move |row: RawRowRef<'_>| {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.passes(row, &hasher)
        };
        Some(Sieve {
            passes: Box::new(passes),
            passing_max: most,
            news_max: page_rows,
        })
    }

    /// A page, and how many rows the resources have of which it has news, if there are at most so many of them.
    async fn poll_page(
        &self,
        from: &PollFrom,
        limit: u32,
        news_max: usize,
    ) -> Result<PollPage, SourceError> {
        let suspects = self.suspects(news_max);
        self.source.poll_page(from, limit, Some(suspects)).await
    }

    /// How many rows the page after one of so many rows and bytes may have.
    fn next_poll_rows(&self, limit: u32, bytes: usize) -> u32 {
        let least = self.settings.page_rows;
        let most = least.saturating_mul(GROWTH_MAX);
        if bytes > PAGE_BYTES {
            return (limit / 2).clamp(least, most);
        }
        let fits = bytes <= PAGE_BYTES / 2;
        let next = if fits { limit.saturating_mul(2) } else { limit };
        next.clamp(least, most)
    }

    /// Of a page with so few rows that are not known, unless they are those of the page before: these resources.
    fn suspects(&self, news_max: usize) -> Suspects {
        let hasher = RowHasher::new(&self.key, self.settings.epoch());
        let (known, last_news) = (Arc::clone(&self.known), Arc::clone(&self.last_news));
        Arc::new(move |rows| {
            let lock = PoisonError::into_inner;
            let again = known.lock().unwrap_or_else(lock).is_again(rows, &hasher);
            let news: Vec<_> = rows.iter().zip(again).filter(|(_, again)| !again).collect();
            if news.len() > news_max {
                return Vec::new();
            }
            let hashes = news.iter().map(|(row, _)| row.hash(&hasher)).collect();
            let mut last = last_news.lock().unwrap_or_else(PoisonError::into_inner);
            let is_news = *last != hashes;
            *last = hashes;
            if is_news {
                news.iter().filter_map(|(row, _)| row.key()).collect()
            } else {
                Vec::new()
            }
        })
    }

    /// Takes out of a page what was looked up by the pass before and has not changed since.
    fn pass_over(&self, rows: &RawRows) -> (Vec<RawRow>, PageCounts) {
        let hasher = RowHasher::new(&self.key, self.settings.epoch());
        let again = self.known().again(rows, &hasher);
        let rest = rows.iter().zip(&again).filter(|(_, again)| !**again);
        let rest: Vec<RawRow> = rest.map(|(row, _)| row.to_row()).collect();
        let known = (rows.len() - rest.len()) as u64;
        (rest, all_known(known))
    }

    /// Commits what a page of rows means, so many together that other transactions need not wait for long. The position is committed
    /// with the last of them: what is cut off before is read again.
    async fn commit_rows(
        &self,
        mut rows: Vec<RawRow>,
        found: BTreeMap<ResourceKey, usize>,
        position: Position,
    ) -> Result<PageReport, PassError> {
        let most = usize::try_from(self.settings.page_rows).unwrap_or(usize::MAX);
        let mut report = PageReport::default();
        let mut position = Some(position);
        loop {
            let later = (rows.len() > most).then(|| rows.split_off(most));
            let here = match &later {
                Some(_) => Position::default(),
                None => position.take().unwrap_or_default(),
            };
            // What was found of others is theirs to decide on.
            let of_these = |key| {
                let (key, rows) = found.get_key_value(&key)?;
                Some((key.clone(), *rows))
            };
            let keys = rows.iter().filter_map(|row| row.key().ok());
            let duplicates = Duplicates::Anywhere(keys.filter_map(of_these).collect());
            let done = self
                .commit_page(rows, Origin::Poll, duplicates, here)
                .await?;
            report.counts.add(&done.counts);
            report.notices.extend(done.notices);
            match later {
                Some(later) => rows = later,
                None => return Ok(report),
            }
        }
    }

    fn left_at(&self) -> MutexGuard<'_, Option<String>> {
        self.left_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the cursor that is committed at the end.
    async fn read_pages(
        &self,
        from: PollFrom,
        cursor: Option<String>,
        first: Option<PollPage>,
        pass: &mut Pass<'_>,
    ) -> Result<Option<String>, PassError> {
        let Pass {
            identity,
            started_at,
            patience,
            swept,
            report,
        } = pass;
        let is_part = matches!(from, PollFrom::Later(_));
        let restart = cursor.is_none() && from == PollFrom::Beginning;
        let began = cursor.clone();
        let mut page = match first {
            Some(page) => page,
            None => self.first_page(&from).await?,
        };
        let mut news_max = NEWS_MAX;
        let mut limit = self.settings.page_rows;
        let mut newest = cursor.clone();
        let mut committed = cursor;
        // The first page that a transaction holds back decides where the next pass starts: later pages lie after it.
        let mut horizon: Option<String> = None;
        let mut rows = 0;
        let mut noted_at = *started_at;
        let mut counted = None;
        // How many rows the source has put in order for pages of which they were taken out.
        let mut ordered = 0;
        loop {
            if self.is_crowded(&page, &mut counted).await? {
                let complete_at = self.clock.now().plus(*patience);
                ordered += self.pass_over_crowd(&mut page, complete_at, report);
            }
            if let Some(told) = page.identity {
                *identity = told.id;
            }
            if !is_planted(Bug::HorizonIgnored) {
                horizon = horizon.or(page.horizon);
            }
            newest = page.reached.or(newest);
            let next_cursor = horizon.clone().or_else(|| newest.clone());
            rows += page.rows.len() as u64 + page.passed;
            let is_last = page.next.is_none();
            let progress = PollProgress {
                cursor: next_cursor.clone(),
                identity: identity.clone(),
                completed_at: is_last.then_some(*started_at),
                rows,
            };
            let undecided = is_last && self.poll_undecided.load(Ordering::Relaxed);
            let now = self.clock.now();
            let is_time = is_last || now < noted_at || now.since(noted_at) >= NOTED_EVERY;
            let keep = (is_time && next_cursor != committed) || (restart && is_last) || undecided;
            let position = Position {
                poll: Some(progress),
                sweep: self.owed(swept.as_ref(), *started_at),
                keep,
                ends_pass: is_last,
            };
            let (rest, known) = self.pass_over(&page.rows);
            report.counts.add(&known);
            report.counts.add(&all_known(page.passed));
            let next = page.next.map(PollFrom::After);
            limit = self.next_poll_rows(limit, page.rows.size());
            let reading = async {
                match &next {
                    Some(next) => Some(self.poll_page(next, limit, news_max).await),
                    None => None,
                }
            };
            let deciding = self.commit_rows(rest, page.found, position);
            // What the state has of the next page's rows is asked for after this page was committed.
            let (done, read) = futures_util::future::join(deciding, reading).await;
            let done = done?;
            // Where most has changed it is asked at once how many rows each resource has.
            let is_mass_change = done.counts.changed > done.counts.rows / 2;
            news_max = if is_mass_change { usize::MAX } else { NEWS_MAX };
            if keep {
                committed.clone_from(&next_cursor);
                noted_at = now;
            }
            report.counts.add(&done.counts);
            report.notices.extend(done.notices);
            page = match read {
                Some(next) => next?,
                None => break,
            };
        }
        if is_part {
            self.known().end_part();
        } else {
            self.known().end_pass();
        }
        match committed.as_ref().filter(|_| committed == newest) {
            Some(newest) if !is_part => {
                let now = self.clock.now();
                self.calm().read(newest, *started_at, now, rows + ordered);
            }
            Some(_) if rows == 0 => {}
            // Something is newer, or may still come before the newest.
            _ => self.calm().forget(),
        }
        if let Some(at) = committed.as_ref().filter(|_| !is_part) {
            // From there the next pass meets it again: there it is, or there this pass began, too.
            let first = report.left_to_sweeps.first();
            let first = first.filter(|first| *first == at || began.as_ref() == Some(at));
            self.crowds().met(at, first.map(String::as_str));
        }
        Ok(committed)
    }
}

/// So many rows that are as the pass before found them.
fn all_known(rows: u64) -> PageCounts {
    PageCounts {
        rows,
        known: rows,
        ..PageCounts::default()
    }
}

#[cfg(test)]
mod tests;
