//! The poll: what changed since the cursor.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::{Origin, RawRow, RawRows, ResourceKey, RowHasher, Timestamp};
use crate::planted::{Bug, is_planted};
use crate::source::{PollFrom, PollPage, RawKey, SourceError, Suspects};
use crate::store::PollProgress;

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
    /// How long it took.
    pub duration: Duration,
}

/// One pass.
struct Pass<'a> {
    /// Who the database is that the rows are read from.
    identity: String,
    started_at: Timestamp,
    report: &'a mut PollReport,
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
        // Both at once: that the state stands where the last pass left it is nearly always so.
        let (progress, ahead) =
            futures_util::future::join(self.store.progress(), self.read_ahead()).await;
        let previous = progress?.poll;
        let mut report = PollReport::default();
        let kept = previous.as_ref().and_then(|p| p.cursor.clone());
        let from = kept.clone().map_or(PollFrom::Beginning, PollFrom::Cursor);
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
        let first = match ahead.filter(|(read_from, _)| *read_from == from) {
            Some((_, page)) => page,
            None => {
                // Whoever moved the cursor may have done more.
                self.known().forget_all();
                self.first_page(&from).await
            }
        };
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
            report.needs_sweep = Some("the source is another database than before");
        }
        let mut pass = Pass {
            identity: identity.id,
            started_at,
            report: &mut report,
        };
        let reached = if !is_same || kept.is_none() {
            let first = if is_same { Some(first?) } else { None };
            self.read_pages(PollFrom::Beginning, None, first, &mut pass)
                .await?
        } else {
            let reached = self.read_pages(from, kept, Some(first?), &mut pass).await?;
            if pass.report.counts.rows == 0 {
                // The row that the cursor was taken from is no longer there: the clock went back, or the row was deleted.
                pass.report.needs_sweep = Some("the newest row of the source is older than before");
                self.read_pages(PollFrom::Beginning, None, None, &mut pass)
                    .await?
            } else {
                reached
            }
        };
        *self.left_at() = reached;
        report.duration = self.clock.now().since(started_at);
        Ok(Some(report))
    }

    /// The first page of a pass from where the last one left the state, if there was one, and where it was read from.
    async fn read_ahead(&self) -> Option<(PollFrom, Result<PollPage, SourceError>)> {
        let from = PollFrom::Cursor(self.left_at().take()?);
        let page = self.first_page(&from).await;
        Some((from, page))
    }

    async fn first_page(&self, from: &PollFrom) -> Result<PollPage, SourceError> {
        self.poll_page(from, self.settings.page_rows, NEWS_MAX)
            .await
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
        let counts = PageCounts {
            rows: known,
            known,
            ..PageCounts::default()
        };
        (rest, counts)
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
            // What was found of others proves nothing of these: they may have been asked for in another statement.
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
            report,
        } = pass;
        let restart = cursor.is_none() && from == PollFrom::Beginning;
        let mut page = match first {
            Some(page) => page,
            None => self.first_page(&from).await?,
        };
        let mut news_max = NEWS_MAX;
        let mut limit = self.settings.page_rows;
        let mut reached = cursor.clone();
        let mut committed = cursor;
        // The first page that a transaction holds back decides where the next pass starts: later pages lie after it.
        let mut horizon: Option<String> = None;
        let mut rows = 0;
        let mut noted_at = *started_at;
        loop {
            if let Some(told) = page.identity {
                *identity = told.id;
            }
            if !is_planted(Bug::HorizonIgnored) {
                horizon = horizon.or(page.horizon);
            }
            let last = page.rows.last().and_then(|row| row.cursor());
            let last = last.map(str::to_owned);
            let next_cursor = horizon.clone().or(last).or_else(|| reached.clone());
            rows += page.rows.len() as u64;
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
                sweep: None,
                keep,
                ends_pass: is_last,
            };
            let (rest, known) = self.pass_over(&page.rows);
            report.counts.add(&known);
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
            reached = next_cursor;
            report.counts.add(&done.counts);
            report.notices.extend(done.notices);
            page = match read {
                Some(next) => next?,
                None => {
                    self.known().end_pass();
                    return Ok(committed);
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock as _;
    use crate::reconcile::Settings;
    use crate::reconcile::fixture::{Bench, Failure, START, key, row, swept};
    use crate::store::Store as _;

    /// A poll, in pages of a hundred rows.
    async fn polled(reconciler: &Reconciler) -> PollReport {
        let report = reconciler.poll().await.expect("it can be read");
        report.expect("there is a cursor")
    }

    fn rows(count: u32) -> impl Iterator<Item = RawRow> {
        (0..count).map(|id| row(&format!("res_{id:03}"), "a", id.into()))
    }

    fn in_one_page(settings: &mut Settings) {
        settings.page_rows = 100;
    }

    #[tokio::test]
    async fn rows_of_the_overlap_are_passed_over_and_counted_as_known() {
        let bench = Bench::new(rows(3));
        let reconciler = bench.reconciler(in_one_page);
        let first = polled(&reconciler).await.counts;
        assert_eq!((first.rows, first.changed, first.adopted), (3, 3, 3));
        // From the last cursor on there is its row.
        let again = polled(&reconciler).await.counts;
        let expected = PageCounts {
            rows: 1,
            known: 1,
            ..PageCounts::default()
        };
        assert_eq!(again, expected);
        bench.table.puts(row("res_000", "b", 7));
        let changed = polled(&reconciler).await.counts;
        assert_eq!((changed.rows, changed.changed, changed.enqueued), (2, 1, 1));
        assert_eq!((changed.known, changed.folded), (2, 0));
    }

    #[tokio::test]
    async fn a_few_changed_rows_are_looked_up_with_their_page_and_more_by_themselves() {
        for (changed, expected) in [(8_u32, None), (9, Some("ids of 9"))] {
            let bench = Bench::new(rows(20));
            let reconciler = bench.reconciler(in_one_page);
            polled(&reconciler).await;
            for id in 0..changed {
                bench
                    .table
                    .puts(row(&format!("res_{id:03}"), "b", 100 + i64::from(id)));
            }
            bench.table.asked();
            let counts = polled(&reconciler).await.counts;
            assert_eq!(counts.changed, u64::from(changed));
            let mut asked = vec!["poll 100"];
            asked.extend(expected);
            assert_eq!(bench.table.asked(), asked);
        }
    }

    #[tokio::test]
    async fn where_most_rows_of_a_page_have_changed_those_of_later_pages_are_looked_up_with_them() {
        // The second page, of twice as many rows, is read before it is known what the first one held.
        for (changed_of_ten, apart) in [(10, 3), (6, 3), (5, 6)] {
            let bench = Bench::new(rows(60));
            let ten_a_page = |settings: &mut Settings| settings.page_rows = 10;
            polled(&bench.reconciler(ten_a_page)).await;
            for id in (0..60).filter(|id| id % 10 < changed_of_ten) {
                bench.table.puts(row(&format!("res_{id:03}"), "b", id));
            }
            // Of another database every row is read, and nothing is known after a start.
            bench.table.becomes("another");
            bench.table.asked();
            polled(&bench.reconciler(ten_a_page)).await;
            let asked = bench.table.asked();
            let looked_up: Vec<&String> = asked
                .iter()
                .filter(|what| what.starts_with("ids"))
                .collect();
            let expected = format!("ids of {changed_of_ten}");
            assert_eq!(looked_up, vec![&expected; apart], "{asked:?}");
        }
    }

    #[tokio::test]
    async fn pages_of_a_long_pass_grow_fourfold_and_the_next_pass_begins_with_a_small_one() {
        let bench = Bench::new(rows(70));
        let reconciler = bench.reconciler(|_| {});
        let report = polled(&reconciler).await;
        assert_eq!((report.counts.rows, report.counts.adopted), (70, 70));
        let pages = |asked: Vec<String>| -> Vec<String> {
            let is_page = |what: &String| what.starts_with("poll");
            asked.into_iter().filter(is_page).collect()
        };
        let expected = [&["poll 2", "poll 4"][..], &["poll 8"; 8]].concat();
        assert_eq!(pages(bench.table.asked()), expected);
        polled(&reconciler).await;
        assert_eq!(pages(bench.table.asked()), ["poll 2"]);
    }

    #[test]
    fn a_page_grows_no_further_than_its_bytes_allow_and_shrinks_where_rows_are_long() {
        let bench = Bench::new([]);
        let reconciler = bench.reconciler(|settings| settings.page_rows = 100);
        for (limit, bytes, expected) in [
            (100, 0, 200),
            (200, PAGE_BYTES / 2, 400),
            (400, PAGE_BYTES / 2, 400),
            (200, PAGE_BYTES / 2 + 1, 200),
            (400, PAGE_BYTES, 400),
            (400, PAGE_BYTES + 1, 200),
            (100, PAGE_BYTES + 1, 100),
        ] {
            assert_eq!(reconciler.next_poll_rows(limit, bytes), expected);
        }
    }

    #[tokio::test]
    async fn a_large_page_is_committed_in_parts_and_its_position_with_the_last() {
        let bench = Bench::new(rows(5));
        let reconciler = bench.reconciler(|_| {});
        let position = || Position {
            poll: Some(PollProgress {
                cursor: Some("4".to_owned()),
                identity: "a database".to_owned(),
                completed_at: None,
                rows: 5,
            }),
            sweep: None,
            keep: true,
            ends_pass: true,
        };
        // The rows of the third part are asked for in vain, when the others are committed.
        let failing = Arc::clone(&bench.table);
        bench.table.when_asked(move |what, rows| {
            if what == "ids of 1" {
                rows.clear();
            }
        });
        let found = BTreeMap::new;
        let cut_off = reconciler
            .commit_rows(rows(5).collect(), found(), position())
            .await;
        assert!(cut_off.is_err());
        let mut parts = failing.asked();
        parts.truncate(3);
        assert_eq!(parts, ["ids of 2", "ids of 2", "ids of 1"]);
        assert_eq!(bench.progress().await.poll, None);
        for row in rows(5) {
            bench.table.puts(row);
        }
        bench.table.when_asked(|_, _| {});
        let done = reconciler
            .commit_rows(rows(5).collect(), found(), position())
            .await
            .expect("it can be read");
        // Four were decided on before it was cut off.
        assert_eq!((done.counts.rows, done.counts.adopted), (5, 1));
        assert_eq!(bench.progress().await.poll, position().poll);
    }

    #[tokio::test]
    async fn a_look_up_that_found_nothing_of_a_part_is_not_believed() {
        for missed in [["res_000", "res_001"], ["res_002", "res_003"]] {
            let bench = Bench::new(rows(4));
            let reconciler = bench.reconciler(|_| {});
            let found = |row: RawRow| {
                let key = row.key().expect("ids");
                let is_missed = missed.contains(&key.resource_id.as_str());
                (key, usize::from(!is_missed))
            };
            let found = rows(4).map(found).collect();
            let done = reconciler
                .commit_rows(rows(4).collect(), found, Position::default())
                .await
                .expect("it can be read");
            assert_eq!(done.counts.adopted, 4, "{missed:?}");
        }
    }

    #[tokio::test]
    async fn rows_of_one_resource_in_two_parts_of_a_page_are_unusable() {
        let bench = Bench::new(rows(3));
        let twice = row("res_000", "b", 3);
        bench.table.doubles(twice.clone());
        let reconciler = bench.reconciler(|_| {});
        let mut page: Vec<RawRow> = rows(3).collect();
        page[0] = twice.clone();
        page.push(twice);
        let keys = [key("res_000"), key("res_001")];
        for found in [BTreeMap::new(), [(key("res_000"), 2)].into()] {
            let done = reconciler.commit_rows(page.clone(), found, Position::default());
            done.await.expect("it can be read");
            let records = bench.store.records(&keys).await.expect("in memory");
            let decided: Vec<bool> = records.iter().map(|r| r.row_hash.is_some()).collect();
            assert_eq!(decided, [false, true]);
        }
    }

    #[tokio::test]
    async fn a_poll_of_several_pages_counts_all_and_goes_on_from_the_last_row() {
        let bench = Bench::new(rows(5));
        let reconciler = bench.reconciler(|_| {});
        let report = polled(&reconciler).await;
        assert_eq!((report.counts.rows, report.counts.adopted), (5, 5));
        assert_eq!(report.needs_sweep, None);
        let progress = bench.progress().await.poll.expect("there was one");
        assert_eq!(progress.cursor.as_deref(), Some("4"));
        assert_eq!((progress.rows, progress.completed_at), (5, Some(START)));
    }

    #[tokio::test]
    async fn every_row_is_to_be_read_if_the_cursor_cannot_be_trusted() {
        let bench = Bench::new(rows(3));
        let reconciler = bench.reconciler(in_one_page);
        assert_eq!(polled(&reconciler).await.needs_sweep, None);
        bench.table.becomes("restored");
        let report = polled(&reconciler).await;
        let why = "the source is another database than before";
        assert_eq!((report.needs_sweep, report.counts.rows), (Some(why), 3));
        assert_eq!(polled(&reconciler).await.needs_sweep, None);
        bench.table.deletes("res_002");
        let report = polled(&reconciler).await;
        let why = "the newest row of the source is older than before";
        assert_eq!((report.needs_sweep, report.counts.rows), (Some(why), 2));
        assert_eq!(polled(&reconciler).await.needs_sweep, None);
    }

    #[tokio::test]
    async fn a_poll_that_fails_leaves_the_next_one_to_read_the_same_rows() {
        let bench = Bench::new(rows(3));
        let reconciler = bench.reconciler(in_one_page);
        polled(&reconciler).await;
        bench.table.puts(row("res_000", "b", 7));
        bench.table.fails(Some(Failure::Away));
        assert!(matches!(reconciler.poll().await, Err(PassError::Source(_))));
        bench.table.fails(None);
        assert_eq!(polled(&reconciler).await.counts.enqueued, 1);
    }

    #[tokio::test]
    async fn the_time_that_a_poll_took_is_told() {
        let bench = Bench::new(rows(1));
        let reconciler = bench.reconciler(in_one_page);
        let (clock, later) = (bench.clock, START.plus(Duration::from_secs(3)));
        bench.table.when_asked(move |_, _| clock.set(later));
        assert_eq!(polled(&reconciler).await.duration, Duration::from_secs(3));
    }

    /// What a poll commits: whatever it does, nothing else runs here.
    async fn commits(reconciler: &Reconciler) -> u64 {
        let before = reconciler.overtakes.load(Ordering::Relaxed);
        polled(reconciler).await;
        reconciler.overtakes.load(Ordering::Relaxed) - before
    }

    #[tokio::test]
    async fn a_pass_without_news_notes_where_it_is_at_its_end_and_once_a_second() {
        let ms = Duration::from_millis;
        for (a_page, expected) in [(ms(0), 1), (ms(999), 2), (ms(1_000), 4)] {
            // Four pages, since each may have twice as many rows as the one before.
            let bench = Bench::new(rows(15));
            let reconciler = bench.reconciler(|_| {});
            polled(&reconciler).await;
            // The same rows again, found later.
            for id in 0..15 {
                bench.table.puts(row(&format!("res_{id:03}"), "a", 20 + id));
            }
            let clock = Arc::clone(&bench.clock);
            bench.table.when_asked(move |_, _| clock.pass(a_page));
            assert_eq!(commits(&reconciler).await, expected, "{a_page:?}");
            let progress = bench.progress().await.poll.expect("there was one");
            assert_eq!(progress.cursor.as_deref(), Some("34"));
            assert_eq!(commits(&reconciler).await, 0, "it has not moved");
        }
    }

    #[tokio::test]
    async fn a_pass_without_news_notes_where_it_is_whenever_the_clock_was_set_back() {
        let bench = Bench::new(rows(15));
        let reconciler = bench.reconciler(|_| {});
        polled(&reconciler).await;
        for id in 0..15 {
            bench.table.puts(row(&format!("res_{id:03}"), "a", 20 + id));
        }
        let clock = Arc::clone(&bench.clock);
        let a_moment = Duration::from_millis(1);
        bench
            .table
            .when_asked(move |_, _| clock.set(clock.now().minus(a_moment)));
        // Of the first page the clock says what it said at the beginning or less.
        assert_eq!(commits(&reconciler).await, 4);
    }

    #[tokio::test]
    async fn the_first_poll_of_a_database_is_noted_although_it_is_empty() {
        let bench = Bench::new(rows(1));
        let reconciler = bench.reconciler(|_| {});
        assert_eq!(commits(&reconciler).await, 1);
        bench.table.deletes("res_000");
        bench.table.becomes("another");
        assert_eq!(commits(&reconciler).await, 1);
        let progress = bench.progress().await.poll.expect("there was one");
        assert_eq!(
            (progress.identity.as_str(), progress.cursor),
            ("another", None)
        );
    }

    #[tokio::test]
    async fn a_poll_that_may_have_left_changes_undecided_ends_with_a_commit() {
        let bench = Bench::new(rows(1));
        let reconciler = bench.reconciler(|_| {});
        polled(&reconciler).await;
        assert_eq!(commits(&reconciler).await, 0);
        // As after a restart.
        assert_eq!(commits(&bench.reconciler(|_| {})).await, 1);
        let held = bench.reconciler(|settings| settings.guard.changes_max = Some(1));
        polled(&held).await;
        swept(&held).await;
        assert_eq!(commits(&held).await, 0, "a sweep leaves nothing to a poll");
    }

    #[tokio::test]
    async fn the_cursor_is_not_moved_past_a_transaction_that_is_still_open() {
        let bench = Bench::new(rows(5));
        let reconciler = bench.reconciler(|_| {});
        bench.table.is_held_back_at(Some(1));
        polled(&reconciler).await;
        let cursor = async || {
            let progress = bench.progress().await.poll.expect("there was one");
            progress.cursor
        };
        assert_eq!(cursor().await.as_deref(), Some("1"));
        bench.table.is_held_back_at(None);
        polled(&reconciler).await;
        assert_eq!(cursor().await.as_deref(), Some("4"));
    }

    #[tokio::test]
    async fn a_database_that_refuses_the_cursor_is_read_anew_only_if_it_is_another() {
        for (other, is_read) in [(true, true), (false, false)] {
            let bench = Bench::new(rows(3));
            let reconciler = bench.reconciler(in_one_page);
            polled(&reconciler).await;
            if other {
                bench.table.becomes("another");
            }
            bench.table.refuses_once();
            let report = reconciler.poll().await;
            assert_eq!(report.is_ok(), is_read);
            if let Ok(Some(report)) = report {
                assert_eq!(report.counts.rows, 3);
                assert!(report.needs_sweep.is_some());
            }
        }
        // Without a cursor it is the query that is refused.
        let bench = Bench::new(rows(3));
        let reconciler = bench.reconciler(in_one_page);
        bench.table.fails(Some(Failure::Refuses));
        assert!(matches!(reconciler.poll().await, Err(PassError::Source(_))));
        assert_eq!(bench.table.asked(), ["poll 100"]);
    }

    #[tokio::test]
    async fn a_row_that_is_back_as_it_was_is_found_again_though_it_is_known() {
        let bench = Bench::new(rows(2));
        let reconciler = bench.reconciler(in_one_page);
        polled(&reconciler).await;
        polled(&reconciler).await;
        bench.table.deletes("res_001");
        assert_eq!(swept(&reconciler).await.newly_missing, 1);
        bench.table.puts(row("res_001", "a", 1));
        polled(&reconciler).await;
        let record = bench
            .store
            .records(&[key("res_001")])
            .await
            .expect("in memory");
        assert_eq!(record[0].missing, None);
    }
}
