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
mod tests;
