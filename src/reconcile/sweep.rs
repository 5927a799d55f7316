//! The sweep: every row, in constant memory, resumed where it stopped, ending with an account.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::{Origin, RawRow, ResourceKey, Timestamp};
use crate::planted::{Bug, is_planted};
use crate::source::{RawKey, SourceError, SweepRows};
use crate::store::{Batch, StoreError, SweepAccount, SweepProgress};

use super::page::{Duplicates, KEYS_WITH_WITNESS_MAX, PageReport, Position};
use super::skim::{self, Skimmed};
use super::{OnMissing, PageCounts, PassError, QuarantineNotice, Reconciler};

/// How many unchanged rows a sweep reads, at least, before it writes down where it is, in pages of `page_rows`.
const PAGES_BETWEEN_MARKS: u64 = 20;
/// A page grows, while its rows can be compared where they lie, to so many times `page_rows`.
const GROWTH_MAX: u32 = 4;
/// A page of more bytes than this grows no further.
const PAGE_BYTES: usize = 512 << 10;
/// How long a page that was read ahead may wait before it is read again instead.
const AHEAD_MAX: Duration = Duration::from_secs(5);

/// What a step of a sweep did.
#[derive(Debug)]
pub enum SweepStep {
    /// A page was read; there is more.
    Page {
        /// Unusable rows that are new or changed.
        notices: Vec<QuarantineNotice>,
    },
    /// The sweep is complete.
    Complete {
        /// Unusable rows that are new or changed, of the last page.
        notices: Vec<QuarantineNotice>,
        /// The whole account.
        report: Box<SweepReport>,
    },
}

/// The account of a complete sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweepReport {
    /// Rows by where they stand.
    pub account: SweepAccount,
    /// Rows that the account does not explain: always 0.
    pub unaccounted: i64,
    /// Resources found missing for the first time.
    pub newly_missing: u64,
    /// Resources that are to be uninstalled since this sweep.
    pub uninstalled: u64,
    /// How long it took, interruptions included.
    pub duration: Duration,
}

impl SweepReport {
    /// Whether both sides agree on every row.
    #[must_use]
    pub const fn converged(&self) -> bool {
        let SweepAccount {
            waiting,
            held,
            dead,
            quarantined,
            missing,
            ..
        } = self.account;
        waiting + held + dead + quarantined + missing == 0
    }
}

/// A sweep under way; dropped, it goes on later from what was written down.
#[derive(Debug)]
pub struct Sweep {
    progress: SweepProgress,
    /// Rows of resources that the state knows; `None` when it was resumed and cannot say.
    known: Option<u64>,
    /// Rows since it was last written down where the sweep is.
    unmarked: u64,
    /// The most rows of the next page.
    page_rows: u32,
    ahead: Option<Ahead>,
    started_at: Timestamp,
    /// Every row was read, and what the state has beyond them is looked for.
    search: Option<Search>,
    /// Before when the next step is too early.
    rests_until: Timestamp,
}

/// The next page, read while the one before it was compared.
#[derive(Debug)]
struct Ahead {
    page: SweepRows,
    read_at: Timestamp,
    /// [`Reconciler::overtakes`] when it was asked for.
    overtakes: u64,
    limit: u32,
}

impl Sweep {
    /// How long the next step is to wait, so that the sweep reads no more rows in a second than it may.
    #[must_use]
    pub fn rest(&self, now: Timestamp) -> Duration {
        // A page holds no more rows than one second may: a longer rest is the trace of a clock that was set back.
        self.rests_until.since(now).min(Duration::from_secs(1))
    }

    /// A poll has called for every row to be read: this sweep, which has read some before, does not count as that.
    pub const fn owe(&mut self) {
        self.progress.owed = true;
    }

    /// Whether it goes on from an interrupted one: what changed in the rows before that place is not found by it.
    #[must_use]
    pub const fn is_resumed(&self) -> bool {
        self.known.is_none()
    }
}

impl Reconciler {
    /// Whether a sweep that a poll has called for was never begun, or cut off before it was written down where it is.
    ///
    /// # Errors
    /// The state could not be read.
    pub async fn owes_sweep(&self) -> Result<bool, StoreError> {
        let progress = self.store.progress().await?;
        Ok(progress.sweep.is_some_and(|sweep| sweep.owed))
    }

    /// Has every row read, for the first reason that was found.
    pub(super) fn call_for_sweep(&self, why: &'static str) {
        self.called_for_sweep().get_or_insert(why);
    }

    pub(super) fn called_for_sweep(&self) -> MutexGuard<'_, Option<&'static str>> {
        let called = self.called_for_sweep.lock();
        called.unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the sweep stands if a poll has called for every row to be read, to be committed with the poll's place: whoever goes on from
    /// that place does not call for it again.
    pub(super) fn owed(
        &self,
        previous: Option<&SweepProgress>,
        now: Timestamp,
    ) -> Option<SweepProgress> {
        (*self.called_for_sweep())?;
        let never = SweepProgress {
            number: 0,
            started_at: now,
            after: None,
            account: SweepAccount::default(),
            complete: false,
            owed: true,
            last: None,
        };
        Some(SweepProgress {
            owed: true,
            ..previous.cloned().unwrap_or(never)
        })
    }

    /// Starts a sweep, or takes up the one that was interrupted.
    ///
    /// # Errors
    /// The state could not be read.
    pub async fn begin_sweep(&self) -> Result<Sweep, PassError> {
        let now = self.clock.now();
        let previous = self.store.progress().await?.sweep;
        let resumed = previous.as_ref().is_some_and(|previous| {
            !previous.complete && previous.after.is_some() && !previous.owed
        });
        let progress = match previous {
            Some(previous) if resumed => previous,
            previous => SweepProgress {
                number: previous.as_ref().map_or(1, |previous| previous.number + 1),
                started_at: now,
                after: None,
                account: SweepAccount::default(),
                complete: false,
                owed: false,
                last: previous.and_then(|previous| previous.last),
            },
        };
        let started_at = progress.started_at;
        Ok(Sweep {
            progress,
            known: (!resumed).then_some(0),
            unmarked: 0,
            page_rows: self.settings.page_rows,
            ahead: None,
            started_at,
            search: None,
            rests_until: now,
        })
    }

    /// Reads and commits the sweep's next page, or closes its account.
    ///
    /// # Errors
    /// The source or the state failed; the step may be tried again.
    pub async fn step(&self, sweep: &mut Sweep) -> Result<SweepStep, PassError> {
        let begun_at = self.clock.now();
        let mut limit = self.at_most(sweep.page_rows);
        let step = match &mut sweep.search {
            None => self.read_page(sweep, &mut limit).await?,
            Some(search) => {
                let most = u32::try_from(KEYS_WITH_WITNESS_MAX).unwrap_or(u32::MAX);
                limit = self.at_most(self.settings.page_rows.min(most));
                if self.search_page(search, &sweep.progress, limit).await? {
                    let found = search.found;
                    self.complete(sweep, found, Vec::new()).await?
                } else {
                    SweepStep::Page {
                        notices: Vec::new(),
                    }
                }
            }
        };
        if let Some(most) = self.settings.sweep_rows_per_second {
            let share = Duration::from_secs(1).mul_f64(f64::from(limit) / f64::from(most.get()));
            sweep.rests_until = begun_at.plus(share);
        }
        Ok(step)
    }

    /// A page holds no more rows than one second may.
    fn at_most(&self, page_rows: u32) -> u32 {
        let most = self.settings.sweep_rows_per_second;
        page_rows.min(most.map_or(u32::MAX, std::num::NonZeroU32::get))
    }

    /// The page that was read ahead, unless something that was read later has been committed since: an older reading is never
    /// to follow a newer one.
    fn take_ahead(&self, sweep: &mut Sweep) -> Option<Ahead> {
        let ahead = sweep.ahead.take()?;
        let is_newest = ahead.overtakes == self.overtakes.load(Ordering::Relaxed);
        (is_newest && self.clock.now().since(ahead.read_at) <= AHEAD_MAX).then_some(ahead)
    }

    async fn read(&self, after: Option<&RawKey>, limit: u32) -> Result<Ahead, SourceError> {
        // Taken before the page is read.
        let overtakes = self.overtakes.load(Ordering::Relaxed);
        let read_at = self.clock.now();
        let page = self.source.sweep_rows(after, limit).await?;
        Ok(Ahead {
            page,
            read_at,
            overtakes,
            limit,
        })
    }

    /// The next page's rows: as many as fit, where rows are compared in order; few where each is looked at by itself.
    fn next_page_rows(&self, page: &SweepRows, limit: u32, is_ordered: bool) -> u32 {
        let least = self.settings.page_rows;
        if !is_ordered || page.rows.size() == 0 {
            return least;
        }
        let fit = page.rows.len().saturating_mul(PAGE_BYTES) / page.rows.size();
        let fit = u32::try_from(fit).unwrap_or(u32::MAX);
        fit.min(limit.saturating_mul(2))
            .clamp(least, least.saturating_mul(GROWTH_MAX))
    }

    async fn read_page(&self, sweep: &mut Sweep, limit: &mut u32) -> Result<SweepStep, PassError> {
        let Ahead {
            page, limit: asked, ..
        } = match self.take_ahead(sweep) {
            Some(ahead) => ahead,
            None => self.read(sweep.progress.after.as_ref(), *limit).await?,
        };
        *limit = asked;
        let is_ordered = skim::is_ordered(&page.rows);
        sweep.page_rows = self.next_page_rows(&page, asked, is_ordered);
        let mut progress = sweep.progress.clone();
        // What is written down of this one must not cover up what a poll that failed has left.
        progress.owed |= self.called_for_sweep().is_some();
        progress.after = page.next.clone();
        sweep.unmarked += page.rows.len() as u64;
        let marks = PAGES_BETWEEN_MARKS * u64::from(self.settings.page_rows);
        let keep = sweep.unmarked >= marks;
        // A throttled sweep waits anyway, and reads then.
        let is_throttled = self.settings.sweep_rows_per_second.is_some();
        let next_rows = self.at_most(sweep.page_rows);
        let ahead = async {
            match page.next.as_ref().filter(|_| !is_throttled) {
                Some(next) => self.read(Some(next), next_rows).await.ok(),
                None => None,
            }
        };
        let rows = page.rows;
        let comparing = async {
            let Skimmed { rest, counts } = self.skim(&rows, is_ordered).await?;
            drop(rows);
            let mut done = self.commit_rest(rest, is_ordered, &progress, keep).await?;
            done.counts.add(&counts);
            Ok::<_, PassError>(done)
        };
        // One that could not be read is asked for again in its turn, and then says why. It is asked for first.
        let (ahead, done) = futures_util::future::join(ahead, comparing).await;
        let done = done?;
        sweep.ahead = ahead;
        if keep {
            sweep.unmarked = 0;
        }
        add(&mut progress.account, &done.counts);
        sweep.known = sweep.known.map(|known| known + done.counts.known);
        sweep.progress = progress;
        if page.next.is_some() {
            return Ok(SweepStep::Page {
                notices: done.notices,
            });
        }
        // Law 9: a source that returns nothing proves nothing.
        if sweep.progress.account.rows > 0 || is_planted(Bug::EmptySourceDeletes) {
            let resources = self.store.resources().await? + self.store.unusable_alone().await?;
            if sweep.known != Some(resources) {
                sweep.search = Some(Search::default());
                return Ok(SweepStep::Page {
                    notices: done.notices,
                });
            }
        }
        self.complete(sweep, Missing::default(), done.notices).await
    }

    /// Commits what is not as it was, a transaction's rows at a time, and the place after the page with the last of them.
    ///
    /// The account of this page is known only after it was decided: what is written down with it is that before it, so a
    /// resumed sweep may count a page short, never read one twice.
    async fn commit_rest(
        &self,
        mut rest: Vec<RawRow>,
        is_ordered: bool,
        progress: &SweepProgress,
        keep: bool,
    ) -> Result<PageReport, PassError> {
        let mut report = PageReport::default();
        let page_rows = usize::try_from(self.settings.page_rows).unwrap_or(usize::MAX);
        // Rows of one resource are decided on together: only where there are none can a page be cut.
        while is_ordered && rest.len() > page_rows {
            let later = rest.split_off(page_rows);
            let rows = std::mem::replace(&mut rest, later);
            let done = self
                .commit_page(
                    rows,
                    Origin::Sweep,
                    Duplicates::InThisPage,
                    Position::default(),
                )
                .await?;
            report.counts.add(&done.counts);
            report.notices.extend(done.notices);
        }
        let position = Position {
            poll: None,
            sweep: Some(progress.clone()),
            keep,
            // The sweep ends with its account.
            ends_pass: false,
        };
        let done = self
            .commit_page(rest, Origin::Sweep, Duplicates::InThisPage, position)
            .await?;
        report.counts.add(&done.counts);
        report.notices.extend(done.notices);
        Ok(report)
    }

    async fn complete(
        &self,
        sweep: &mut Sweep,
        found: Missing,
        notices: Vec<QuarantineNotice>,
    ) -> Result<SweepStep, PassError> {
        let report = Box::new(self.conclude(sweep, found).await?);
        Ok(SweepStep::Complete { notices, report })
    }

    async fn conclude(&self, sweep: &mut Sweep, found: Missing) -> Result<SweepReport, PassError> {
        sweep.progress.account.missing = found.missing;
        let now = self.clock.now();
        let account = sweep.progress.account;
        sweep.progress.complete = true;
        sweep.progress.owed |= self.called_for_sweep().is_some();
        sweep.progress.after = None;
        sweep.progress.last = Some((now, account));
        let batch = Batch {
            sweep: Some(sweep.progress.clone()),
            ends_pass: true,
            ..self.sweep_batch(Vec::new())
        };
        self.commit(batch).await?;
        let explained =
            account.equal + account.waiting + account.held + account.dead + account.quarantined;
        let unaccounted = i64::try_from(account.rows).unwrap_or(i64::MAX)
            - i64::try_from(explained).unwrap_or(i64::MAX);
        Ok(SweepReport {
            account,
            unaccounted,
            newly_missing: found.newly,
            uninstalled: found.uninstalled,
            duration: now.since(sweep.started_at),
        })
    }

    /// Asks the source by key for the next resources of the state; true when there are no more.
    ///
    /// A page at a time as the rows are read, so that polls go on in between.
    async fn search_page(
        &self,
        search: &mut Search,
        sweep: &SweepProgress,
        limit: u32,
    ) -> Result<bool, PassError> {
        // Law 9: a sweep that read nothing proves nothing, neither then nor now.
        let uninstall_missing_since = sweep
            .last
            .filter(|(_, account)| account.rows > 0)
            .filter(|_| self.settings.on_missing == OnMissing::Uninstall)
            .map(|(ended_at, _)| ended_at);
        let keys = self.store.keys_after(search.after.as_ref(), limit).await?;
        let Some(last) = keys.last().cloned() else {
            return Ok(true);
        };
        self.mark.leave();
        if let Some(rows) = self.fetch_or_prove_absent(&keys).await? {
            let present: HashSet<ResourceKey> =
                rows.iter().filter_map(|row| row.key().ok()).collect();
            let gone: Vec<ResourceKey> = keys
                .into_iter()
                .filter(|key| !present.contains(key))
                .collect();
            if !gone.is_empty() {
                let missing = gone.len() as u64;
                let batch = Batch {
                    uninstall_missing_since,
                    ..self.sweep_batch(gone)
                };
                let reconciled = self.commit(batch).await?;
                search.found.missing += missing;
                search.found.newly += reconciled.newly_missing;
                search.found.uninstalled += reconciled.uninstalled;
            }
        }
        search.after = Some(last);
        Ok(false)
    }

    fn sweep_batch(&self, missing: Vec<ResourceKey>) -> Batch {
        Batch {
            now: self.clock.now(),
            origin: Origin::Sweep,
            policy: self.settings.policy,
            observations: Vec::new(),
            quarantined: Vec::new(),
            missing,
            poll: None,
            sweep: None,
            guard: self.settings.guard,
            ends_pass: false,
            uninstall_missing_since: None,
            baseline: None,
            watch: self.watch,
            claim: None,
        }
    }
}

/// The look for missing resources.
#[derive(Debug, Default)]
struct Search {
    after: Option<ResourceKey>,
    found: Missing,
}

/// What a look for missing resources found.
#[derive(Debug, Clone, Copy, Default)]
struct Missing {
    missing: u64,
    newly: u64,
    uninstalled: u64,
}

fn add(account: &mut SweepAccount, page: &PageCounts) {
    account.rows += page.rows;
    account.equal += page.equal;
    account.waiting += page.waiting;
    account.held += page.held;
    account.dead += page.dead;
    account.quarantined += page.quarantined;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Field, RawRows, RawText};
    use crate::plan::decide::FirstSight;
    use crate::reconcile::Settings;
    use crate::reconcile::fixture::{Bench, START, row, stepped, swept};
    use crate::store::Store as _;

    fn rows(ids: impl IntoIterator<Item = u32>) -> impl Iterator<Item = RawRow> {
        let row = |id: u32| row(&format!("res_{id:03}"), "a", id.into());
        ids.into_iter().map(row)
    }

    #[tokio::test]
    async fn each_sweep_has_the_number_after_that_of_the_one_before() {
        let bench = Bench::new(rows(0..1));
        let reconciler = bench.reconciler(|_| {});
        for number in 1..=3 {
            swept(&reconciler).await;
            assert_eq!(bench.marked().await.number, number);
        }
    }

    #[tokio::test]
    async fn a_row_that_is_gone_is_missed_also_while_another_stands_there_twice() {
        let bench = Bench::new(rows(0..3));
        let reconciler = bench.reconciler(|settings| settings.page_rows = 100);
        swept(&reconciler).await;
        bench.table.deletes("res_001");
        bench.table.doubles(row("res_002", "a", 2));
        for newly in [1, 0] {
            let report = swept(&reconciler).await;
            assert_eq!((report.account.missing, report.newly_missing), (1, newly));
            assert_eq!((report.account.rows, report.unaccounted), (3, 0));
        }
    }

    #[tokio::test]
    async fn what_was_never_usable_is_forgotten_once_it_is_gone() {
        let bench = Bench::new(rows(0..3));
        let reconciler = bench.reconciler(|settings| settings.page_rows = 100);
        let unusable = |id: &str, metadata: &str| {
            let mut row = row(id, "a", 9);
            row.columns = vec![(Field::Metadata, RawText::text(metadata))];
            row
        };
        let mut without_ids = unusable("", "no JSON");
        without_ids.resource_id = RawText::Null;
        bench.table.puts(without_ids);
        bench.table.puts(unusable("res_900", "no JSON"));
        bench.table.puts(unusable("res_901", "no JSON"));
        let sweep = async || {
            bench.table.asked();
            let report = swept(&reconciler).await;
            let asked = bench.table.asked();
            let has_searched = asked.iter().any(|asked| asked.starts_with("rows of"));
            let counts = bench.store.counts(START).await.expect("in memory");
            (report.account.quarantined, counts.quarantined, has_searched)
        };
        // Nothing is looked for while each of them is met, as it was or changed.
        assert_eq!(sweep().await, (3, 3, false));
        assert_eq!(sweep().await, (3, 3, false));
        bench.table.puts(unusable("res_900", "still none"));
        assert_eq!(sweep().await, (3, 3, false));
        bench.table.deletes("res_901");
        assert_eq!(sweep().await, (2, 2, true));
        assert_eq!(sweep().await, (2, 2, false));
    }

    #[tokio::test]
    async fn a_sweep_that_was_cut_off_goes_on_where_it_was_written_down_under_its_number() {
        let bench = Bench::new(rows(0..6));
        let reconciler = bench.reconciler(|_| {});
        let mut sweep = reconciler.begin_sweep().await.expect("in memory");
        assert!(!sweep.is_resumed());
        assert_eq!(stepped(&reconciler, &mut sweep).await, None);
        drop(sweep);
        let mut sweep = reconciler.begin_sweep().await.expect("in memory");
        assert!(sweep.is_resumed());
        let marked = bench.marked().await;
        assert_eq!((marked.number, sweep.progress.number), (1, 1));
        let after = marked.after.expect("a place");
        assert_eq!(after.installation_id, "2", "after two rows");
        while stepped(&reconciler, &mut sweep).await.is_none() {}
        // It does not know what it read before, and so looks for what is missing: nothing is.
        let marked = bench.marked().await;
        assert_eq!((marked.number, marked.account.missing), (1, 0));
        assert!(marked.complete && marked.after.is_none());
    }

    #[tokio::test]
    async fn a_sweep_writes_down_where_it_is_after_every_twenty_pages_of_unchanged_rows() {
        // Out of order a page does not grow.
        let bench = Bench::new(rows((0..100).rev()));
        let reconciler = bench.reconciler(|_| {});
        swept(&reconciler).await;
        let mut sweep = reconciler.begin_sweep().await.expect("in memory");
        for page in 1..50 {
            assert_eq!(stepped(&reconciler, &mut sweep).await, None);
            let marked = bench.marked().await;
            let after = marked.after.map(|after| after.installation_id);
            let expected = match page {
                0..20 => None,
                20..40 => Some("40"),
                _ => Some("80"),
            };
            assert_eq!(after.as_deref(), expected, "{page}");
            let number = if page < 20 { 1 } else { 2 };
            assert_eq!(marked.number, number, "{page}");
        }
        let report = stepped(&reconciler, &mut sweep).await.expect("the last");
        assert_eq!((report.account.rows, report.account.equal), (100, 100));
    }

    #[tokio::test]
    async fn pages_in_order_grow_twofold_to_four_times_and_others_do_not() {
        let cases: [(Vec<u32>, &[&str]); 2] = [
            (
                (0..40).collect(),
                &["sweep 2", "sweep 4", "sweep 8", "sweep 8", "sweep 8"],
            ),
            ((0..6).rev().collect(), &["sweep 2", "sweep 2", "sweep 2"]),
        ];
        for (ids, expected) in cases {
            let bench = Bench::new(rows(ids));
            let reconciler = bench.reconciler(|_| {});
            swept(&reconciler).await;
            bench.table.asked();
            swept(&reconciler).await;
            let asked = bench.table.asked();
            assert_eq!(&asked[..expected.len()], expected);
        }
    }

    #[test]
    fn a_page_of_long_rows_has_no_more_than_fit_and_no_less_than_the_least() {
        let bench = Bench::new([]);
        let reconciler = bench.reconciler(|settings| settings.page_rows = 10);
        let page = |count: usize, bytes: usize| {
            let name = "x".repeat(bytes);
            let rows: RawRows = (0..count).map(|_| row("res_1", &name, 0)).collect();
            SweepRows { rows, next: None }
        };
        for (page, limit, is_ordered, expected) in [
            (page(0, 0), 10, true, 10),
            (page(10, 1), 10, false, 10),
            (page(10, 1), 10, true, 20),
            (page(10, 1), 20, true, 40),
            (page(10, 1), 40, true, 40),
            // Some 16 kB each: 31 fit.
            (page(10, 16_500), 40, true, 31),
            (page(10, 1 << 17), 40, true, 10),
        ] {
            let rows = reconciler.next_page_rows(&page, limit, is_ordered);
            assert_eq!(rows, expected, "{limit} {is_ordered}");
        }
    }

    #[tokio::test]
    async fn a_throttled_sweep_reads_no_more_in_a_second_than_it_may() {
        let most = |rows| std::num::NonZeroU32::new(rows);
        for (most, limit, rest_ms) in [
            (None, 2, 0),
            (most(8), 2, 250),
            (most(2), 2, 1_000),
            (most(1), 1, 1_000),
        ] {
            let bench = Bench::new(rows(0..10));
            let reconciler = bench.reconciler(|settings| settings.sweep_rows_per_second = most);
            let mut sweep = reconciler.begin_sweep().await.expect("in memory");
            assert_eq!(sweep.rest(START), Duration::ZERO);
            stepped(&reconciler, &mut sweep).await;
            // Unthrottled, the next page is read while this one is decided on.
            let mut asked = bench.table.asked();
            assert_eq!(asked.remove(0), format!("sweep {limit}"));
            assert_eq!(asked.is_empty(), most.is_some());
            let rest = Duration::from_millis(rest_ms);
            assert_eq!(sweep.rest(START), rest);
            let later = START.plus(Duration::from_millis(100));
            assert_eq!(
                sweep.rest(later),
                rest.saturating_sub(Duration::from_millis(100))
            );
            let set_back = START.minus(Duration::from_secs(3_600));
            assert!(sweep.rest(set_back) <= Duration::from_secs(1));
        }
    }

    #[tokio::test]
    async fn a_page_read_ahead_is_read_again_if_something_newer_was_committed_or_it_is_old() {
        for (waited_ms, changes, reads) in [
            (0, false, 1),
            (5_000, false, 1),
            (5_001, false, 2),
            (0, true, 2),
        ] {
            let bench = Bench::new(rows(0..6));
            let reconciler = bench.reconciler(|_| {});
            swept(&reconciler).await;
            let mut sweep = reconciler.begin_sweep().await.expect("in memory");
            stepped(&reconciler, &mut sweep).await;
            bench
                .clock
                .set(START.plus(Duration::from_millis(waited_ms)));
            if changes {
                bench.table.puts(row("res_000", "b", 100));
                reconciler.poll().await.expect("it can be read");
            }
            bench.table.asked();
            assert!(stepped(&reconciler, &mut sweep).await.is_some());
            let sweeps = bench.table.asked();
            let sweeps = sweeps.iter().filter(|asked| asked.starts_with("sweep"));
            // The page itself is the last: nothing is read ahead.
            assert_eq!(sweeps.count() + 1, reads, "{waited_ms} {changes}");
        }
    }

    #[tokio::test]
    async fn the_account_says_of_each_row_where_it_stands() {
        let mut all: Vec<RawRow> = rows(0..7).collect();
        // Two rows of one resource, and one that cannot be used.
        all[1] = all[0].clone();
        all[6].columns[0].1 = RawText::Unreadable("is no text");
        let bench = Bench::new(all);
        let push = |settings: &mut Settings| settings.policy.first_sight = FirstSight::Push;
        let report = swept(&bench.reconciler(push)).await;
        let account = SweepAccount {
            rows: 7,
            waiting: 4,
            quarantined: 3,
            ..SweepAccount::default()
        };
        assert_eq!((report.account, report.unaccounted), (account, 0));
        assert!(!report.converged());
        let kept = bench.marked().await;
        assert_eq!(kept.last, Some((START, account)));
        // The same once more, row by row as it was.
        let report = swept(&bench.reconciler(push)).await;
        assert_eq!((report.account, report.unaccounted), (account, 0));
    }

    #[test]
    fn both_sides_agree_if_every_row_is_equal_and_none_is_missing() {
        let with = |change: fn(&mut SweepAccount)| {
            let mut account = SweepAccount {
                rows: 3,
                equal: 3,
                ..SweepAccount::default()
            };
            change(&mut account);
            let report = SweepReport {
                account,
                unaccounted: 0,
                newly_missing: 0,
                uninstalled: 0,
                duration: Duration::ZERO,
            };
            report.converged()
        };
        assert!(with(|_| {}));
        assert!(!with(|account| account.waiting = 1));
        assert!(!with(|account| account.held = 1));
        assert!(!with(|account| account.dead = 1));
        assert!(!with(|account| account.quarantined = 1));
        assert!(!with(|account| account.missing = 1));
    }

    #[test]
    fn the_account_grows_with_each_page() {
        let page = PageCounts {
            rows: 15,
            equal: 5,
            waiting: 4,
            held: 3,
            dead: 2,
            quarantined: 1,
            ..PageCounts::default()
        };
        let mut account = SweepAccount::default();
        add(&mut account, &page);
        add(&mut account, &page);
        let expected = SweepAccount {
            rows: 30,
            equal: 10,
            waiting: 8,
            held: 6,
            dead: 4,
            quarantined: 2,
            missing: 0,
        };
        assert_eq!(account, expected);
    }

    #[tokio::test]
    async fn what_the_source_no_longer_has_is_new_once_and_uninstalled_by_the_second_sweep() {
        let bench = Bench::new(rows(0..6));
        let reconciler = bench.reconciler(|settings| settings.on_missing = OnMissing::Uninstall);
        assert_eq!(swept(&reconciler).await.account.missing, 0);
        for id in ["res_001", "res_004", "res_005"] {
            bench.table.deletes(id);
        }
        let found = |report: &SweepReport| {
            (
                report.account.missing,
                report.newly_missing,
                report.uninstalled,
            )
        };
        let second = Duration::from_secs(1);
        for (seconds, expected) in [(1, (3, 3, 0)), (2, (3, 0, 3)), (3, (3, 0, 0))] {
            bench.clock.set(START.plus(second * seconds));
            assert_eq!(found(&swept(&reconciler).await), expected, "{seconds}");
        }
    }

    #[tokio::test]
    async fn a_source_without_rows_proves_nothing() {
        let bench = Bench::new(rows(0..2));
        let reconciler = bench.reconciler(|_| {});
        swept(&reconciler).await;
        bench.table.deletes("res_000");
        bench.table.deletes("res_001");
        bench.table.asked();
        let report = swept(&reconciler).await;
        assert_eq!((report.account.rows, report.account.missing), (0, 0));
        assert_eq!(bench.table.asked(), ["sweep 2"], "nothing is looked for");
    }

    #[tokio::test]
    async fn a_sweep_that_read_nothing_does_not_count_for_an_uninstallation() {
        let bench = Bench::new(rows(0..2));
        let reconciler = bench.reconciler(|settings| settings.on_missing = OnMissing::Uninstall);
        swept(&reconciler).await;
        let left = row("res_001", "a", 1);
        let mut uninstalled = Vec::new();
        for (seconds, is_empty) in [(1, false), (2, true), (3, false), (4, false)] {
            bench.clock.set(START.plus(Duration::from_secs(seconds)));
            bench.table.deletes("res_000");
            match is_empty {
                true => bench.table.deletes("res_001"),
                false => bench.table.puts(left.clone()),
            }
            uninstalled.push(swept(&reconciler).await.uninstalled);
        }
        // Missing in the first, not looked for in the second; the one before the third proves nothing.
        assert_eq!(uninstalled, [0, 0, 0, 1]);
    }

    #[tokio::test]
    async fn a_sweep_that_was_cut_off_after_its_last_row_begins_anew() {
        let bench = Bench::new(rows(0..2));
        let reconciler = bench.reconciler(|_| {});
        swept(&reconciler).await;
        bench.table.deletes("res_000");
        bench.table.puts(row("res_001", "b", 1));
        let mut sweep = reconciler.begin_sweep().await.expect("in memory");
        assert_eq!(stepped(&reconciler, &mut sweep).await, None);
        let marked = bench.marked().await;
        assert_eq!(
            (marked.number, marked.complete, marked.after),
            (2, false, None)
        );
        let sweep = reconciler.begin_sweep().await.expect("in memory");
        assert!(!sweep.is_resumed());
        assert_eq!(sweep.progress.number, 3);
    }

    #[tokio::test]
    async fn an_unusable_row_that_goes_or_doubles_under_a_sweep_leaves_its_account_whole() {
        for (copies, expected) in [(0, 1), (2, 3)] {
            let mut unusable = row("res_000", "a", 0);
            unusable.columns[0].1 = RawText::Unreadable("is no text");
            let bench = Bench::new([unusable.clone(), row("res_001", "a", 1)]);
            let reconciler = bench.reconciler(|_| {});
            swept(&reconciler).await;
            // Another value, so that it is looked up by key.
            bench.table.puts(row("res_000", "b", 0));
            bench.table.when_asked(move |what, rows| {
                if what == "ids of 1" {
                    let found = rows.remove(0);
                    (0..copies).for_each(|_| rows.insert(0, found.clone()));
                }
            });
            let report = swept(&reconciler).await;
            assert_eq!((report.account.rows, report.unaccounted), (expected, 0));
        }
    }
}
