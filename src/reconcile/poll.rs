//! The poll: what changed since the cursor.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::model::{Origin, Timestamp};
use crate::planted::{Bug, is_planted};
use crate::source::{PollFrom, PollPage, RawKey};
use crate::store::PollProgress;

use super::page::{Duplicates, Position};
use super::{PageCounts, PassError, QuarantineNotice, Reconciler};

/// How many times as long as a pass took polls look only at its end afterwards, when it read more than a page and much of it within the
/// overlap: reading that again each time would keep both databases busy with rows that are known.
const REST_PER_PASS: u32 = 9;
/// The longest such time, unless the pass itself took longer.
const REST_MAX: Duration = Duration::from_secs(30);

/// What a poll found.
#[derive(Debug, Default)]
pub struct PollReport {
    /// The rows by what became of them.
    pub counts: PageCounts,
    /// Unusable rows that are new or changed.
    pub notices: Vec<QuarantineNotice>,
    /// Whether every row has to be read: the cursor cannot be trusted any more, and why.
    pub needs_sweep: Option<&'static str>,
    /// How long it took.
    pub duration: Duration,
    /// Whether it looked only at the end of an earlier poll: what was committed behind that is for the next whole one to find.
    pub at_end: bool,
}

/// How often a pass that finds nothing new notes how far it is: each time is a commit, and a pass that is cut off reads anew what came
/// after the last.
const NOTED_EVERY: Duration = Duration::from_secs(1);

/// One pass.
struct Pass<'a> {
    identity: &'a str,
    started_at: Timestamp,
    report: &'a mut PollReport,
}

/// The end of a pass of several pages that nothing held back: for a while polls go on from there.
#[derive(Debug, Clone)]
pub(super) struct Tail {
    /// The last row of the last page that was full.
    after: crate::source::Position,
    /// The cursor that the pass left in the state.
    cursor: String,
    ended_at: Timestamp,
    rest: Duration,
}

impl Tail {
    /// Whether polls need not read again what the pass has read.
    fn holds(&self, cursor: Option<&str>, now: Timestamp) -> bool {
        cursor == Some(self.cursor.as_str())
            && now >= self.ended_at
            && now.since(self.ended_at) < self.rest
    }
}

impl Reconciler {
    /// Reads what changed since the cursor; `None` when there is neither a cursor nor a change feed and every poll
    /// is a sweep.
    ///
    /// # Errors
    /// The source or the state failed; what was committed stays, and the next poll goes on from there.
    pub async fn poll(&self) -> Result<Option<PollReport>, PassError> {
        let started_at = self.clock.now();
        let shape = self.source.shape().await?;
        if shape.feed {
            return self.poll_feed().await.map(Some);
        }
        if shape.cursor.is_none() {
            return Ok(None);
        }
        let previous = self.store.progress().await?.poll;
        let mut report = PollReport::default();
        let kept = previous.as_ref().and_then(|p| p.cursor.clone());
        let tail = self.tail(kept.as_deref(), started_at);
        let from = match (&tail, &kept) {
            (Some(tail), _) => PollFrom::After(tail.after.clone()),
            (None, Some(cursor)) => PollFrom::Cursor(cursor.clone()),
            (None, None) => PollFrom::Beginning,
        };
        let from = match from {
            PollFrom::Cursor(cursor) if is_planted(Bug::OverlapIgnored) => {
                let key = RawKey {
                    installation_id: String::new(),
                    resource_id: String::new(),
                };
                let horizon = None;
                PollFrom::After(crate::source::Position {
                    cursor,
                    key,
                    horizon,
                })
            }
            from => from,
        };
        // Both at once: that the database is still the same is nearly always so, and known before anything is committed.
        let (identity, first) = futures_util::future::join(
            self.source.identity(),
            self.source.poll_page(&from, self.settings.page_rows),
        )
        .await;
        let identity = identity?.id;
        let is_same = previous.is_none_or(|previous| previous.identity == identity);
        if !is_same && kept.is_some() {
            report.needs_sweep = Some("the source is another database than before");
        }
        let mut pass = Pass {
            identity: &identity,
            started_at,
            report: &mut report,
        };
        if let Some(tail) = tail.filter(|_| is_same) {
            pass.report.at_end = true;
            self.read_tail(tail, first?, &mut pass).await?;
        } else if !is_same || kept.is_none() {
            let first = if is_same { Some(first?) } else { None };
            self.read_pages(PollFrom::Beginning, None, first, &mut pass)
                .await?;
        } else {
            self.read_pages(from, kept, Some(first?), &mut pass).await?;
            if pass.report.counts.rows == 0 {
                // The row that the cursor was taken from is no longer there: the clock went back, or the row was deleted.
                self.read_pages(PollFrom::Beginning, None, None, &mut pass)
                    .await?;
                report.needs_sweep = Some("the newest row of the source is older than before");
            }
        }
        report.duration = self.clock.now().since(started_at);
        Ok(Some(report))
    }

    async fn read_pages(
        &self,
        from: PollFrom,
        cursor: Option<String>,
        first: Option<PollPage>,
        pass: &mut Pass<'_>,
    ) -> Result<(), PassError> {
        let Pass {
            identity,
            started_at,
            report,
        } = pass;
        let restart = cursor.is_none() && from == PollFrom::Beginning;
        self.set_tail(None);
        let mut from = from;
        let mut first = first;
        let mut full = None;
        let mut reached = cursor.clone();
        let mut committed = cursor;
        // The first page that a transaction holds back decides where the next pass starts: later pages lie after it.
        let mut horizon: Option<String> = None;
        let mut rows = 0;
        let mut noted_at = *started_at;
        loop {
            let page = match first.take() {
                Some(page) => page,
                None => {
                    let limit = self.settings.page_rows;
                    self.source.poll_page(&from, limit).await?
                }
            };
            if !is_planted(Bug::HorizonIgnored) {
                horizon = horizon.or(page.horizon);
            }
            let last = page.rows.last().and_then(|row| row.cursor.clone());
            let next_cursor = horizon.clone().or(last).or_else(|| reached.clone());
            rows += page.rows.len() as u64;
            let is_last = page.next.is_none();
            let progress = PollProgress {
                cursor: next_cursor.clone(),
                identity: (*identity).to_owned(),
                completed_at: is_last.then_some(*started_at),
                rows,
            };
            let undecided = is_last && self.poll_undecided.load(Ordering::Relaxed);
            let now = self.clock.now();
            let is_time = is_last || now < noted_at || now.since(noted_at) >= NOTED_EVERY;
            let keep = (is_time && next_cursor != committed) || (restart && is_last) || undecided;
            let position = Position {
                poll: Some(progress),
                sweep: None,
                keep,
                ends_pass: is_last,
            };
            let done = self
                .commit_page(page.rows, Origin::Poll, Duplicates::Anywhere, position)
                .await?;
            if keep {
                committed.clone_from(&next_cursor);
                noted_at = now;
            }
            reached = next_cursor;
            report.counts.add(&done.counts);
            report.notices.extend(done.notices);
            match page.next {
                Some(position) => {
                    full = Some(position.clone());
                    from = PollFrom::After(position);
                }
                None => {
                    // What holds the pass back commits behind its end.
                    if let (Some(after), Some(cursor), None) = (full, committed, horizon) {
                        self.end_at(after, cursor, *started_at);
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Reads what came after the end of the last pass. It leaves the cursor where it is, so that the next whole pass reads all that
    /// may have been committed late since.
    async fn read_tail(
        &self,
        tail: Tail,
        first: PollPage,
        pass: &mut Pass<'_>,
    ) -> Result<(), PassError> {
        let mut page = first;
        loop {
            let position = Position {
                ends_pass: page.next.is_none(),
                ..Position::default()
            };
            let done = self
                .commit_page(page.rows, Origin::Poll, Duplicates::Anywhere, position)
                .await?;
            pass.report.counts.add(&done.counts);
            pass.report.notices.extend(done.notices);
            let Some(mut after) = page.next else {
                return Ok(());
            };
            after.horizon = None;
            self.set_tail(Some(Tail {
                after: after.clone(),
                ..tail.clone()
            }));
            let from = PollFrom::After(after);
            page = self
                .source
                .poll_page(&from, self.settings.page_rows)
                .await?;
        }
    }

    /// Where a poll may begin instead of at the overlap before the cursor.
    fn tail(&self, cursor: Option<&str>, now: Timestamp) -> Option<Tail> {
        let undecided = self.poll_undecided.load(Ordering::Relaxed);
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.clone()
            .filter(|tail| !undecided && tail.holds(cursor, now))
    }

    fn set_tail(&self, tail: Option<Tail>) {
        *self.tail.lock().unwrap_or_else(PoisonError::into_inner) = tail;
    }

    fn end_at(&self, mut after: crate::source::Position, cursor: String, started_at: Timestamp) {
        after.horizon = None;
        let ended_at = self.clock.now();
        let took = ended_at.since(started_at);
        self.set_tail(Some(Tail {
            after,
            cursor,
            ended_at,
            rest: (took * REST_PER_PASS).min(REST_MAX.max(took)),
        }));
    }
}
