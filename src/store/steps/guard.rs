//! The guard inside a transaction: what counts waits under a provisional hold until its pass ends, then goes on or stays.
//!
//! A crash between pages leaves the provisional hold behind, and nothing of it is sent before a pass of the same origin has ended.

use std::future::Future;

use crate::model::{Origin, Record, ResourceKey, Timestamp};
use crate::plan::Decision;
use crate::plan::decide::Decided;
use crate::plan::guard::{self, Exceeded, Found, Impact, Limits, WINDOW};
use crate::store::hold::{GuardEvent, Hold, HoldState};
use crate::store::{Batch, Reconciled};

use super::{Rows, Step, save_steps};

/// How many entries of a hold are decided on one by one at a time.
const ENTRIES_PER_ROUND: usize = 500;
/// How many entries of a hold are looked at, or moved, by one statement.
const ENTRIES_PER_LOOK: usize = 10_000;

/// The time within which changes count together.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Window {
    /// What was found later than this.
    pub(in crate::store) after: Timestamp,
    /// And no later than this: a later time is the trace of a clock that was set back.
    pub(in crate::store) until: Timestamp,
}

/// Entries under a hold that lie side by side in byte order of their keys.
#[derive(Debug, Default)]
pub(in crate::store) struct Under {
    /// How many of those that are as they were weighed are changed destructively.
    pub(in crate::store) destructive: u64,
    /// How many of those that are as they were weighed are changed otherwise.
    pub(in crate::store) changes: u64,
    /// The others: what was noted of them need not be what they would do now.
    pub(in crate::store) others: Vec<ResourceKey>,
    /// The last of them all.
    pub(in crate::store) last: Option<ResourceKey>,
}

impl Under {
    /// How many of those that are as they were weighed have this impact.
    const fn of(&self, impact: Impact) -> u64 {
        match impact {
            Impact::None => 0,
            Impact::Change => self.changes,
            Impact::Destructive => self.destructive,
        }
    }
}

/// Where entries that are as they were weighed go.
#[derive(Debug)]
pub(in crate::store) struct Move<'a> {
    /// The hold that they are under.
    pub(in crate::store) from: i64,
    /// Only those after this one in byte order of the key.
    pub(in crate::store) after: Option<&'a ResourceKey>,
    /// Only those up to this one, it included.
    pub(in crate::store) up_to: &'a ResourceKey,
    /// Only those with this impact.
    pub(in crate::store) impact: Impact,
    /// The hold that keeps them from now on; without one they go on.
    pub(in crate::store) to: Option<i64>,
    /// From when on their changes count.
    pub(in crate::store) now: Timestamp,
}

/// The guard's rows of one transaction.
pub(in crate::store) trait GuardRows: Rows {
    /// The holds that are provisional or open, by number.
    fn holds(&mut self) -> impl Future<Output = Result<Vec<Hold>, Self::Error>> + Send;

    /// A new provisional hold; returns its number.
    fn add_hold(
        &mut self,
        origin: Origin,
        now: Timestamp,
    ) -> impl Future<Output = Result<i64, Self::Error>> + Send;

    /// Writes a hold over the one with its number.
    fn put_hold(&mut self, hold: &Hold) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Deletes a hold under which no open entry is left.
    fn delete_hold(&mut self, id: i64) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// The resources with a waiting or held entry under the hold, after `after` in byte order of the key.
    fn keys_under(
        &mut self,
        hold: i64,
        after: Option<&ResourceKey>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<ResourceKey>, Self::Error>> + Send;

    /// Counts a resource's change from now on, or again.
    fn note_guarded(
        &mut self,
        key: &ResourceKey,
        impact: Impact,
        at: Timestamp,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// No longer counts a resource's change: a destructive one counts as both kinds.
    fn forget_guarded(
        &mut self,
        key: &ResourceKey,
        impact: Impact,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// The first entries under the hold after `after` in byte order of the key, waiting or held.
    ///
    /// An entry is *as it was weighed* when nothing can have changed since what it would do: it is held, was made by the change
    /// that was weighed, has no newer target, and what was noted then is still there. It was never claimed. Both kinds of a
    /// destructive change were noted at one time; of an earlier one that was sent, the time is another. A store that cannot
    /// tell lists every entry.
    fn look_under(
        &mut self,
        hold: i64,
        after: Option<&ResourceKey>,
        _limit: usize,
    ) -> impl Future<Output = Result<Under, Self::Error>> + Send {
        async move {
            let others = self.keys_under(hold, after, ENTRIES_PER_ROUND).await?;
            Ok(Under {
                last: others.last().cloned(),
                others,
                ..Under::default()
            })
        }
    }

    /// Moves entries that are as they were weighed, as [`guard::hold`] and [`guard::let_go`] move one, and counts their changes
    /// from now on.
    fn move_weighed(
        &mut self,
        _moved: Move<'_>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        async { Ok(()) }
    }

    /// Counts the resources whose changes were found within the window, and those that are as they were weighed under one of the
    /// holds in `also`, whenever that was.
    fn count_guarded(
        &mut self,
        window: Window,
        also: &[i64],
    ) -> impl Future<Output = Result<Found, Self::Error>> + Send;

    /// Of the resources whose changes were found within the window, those with a waiting entry under no hold, after `after` in
    /// byte order of the key.
    fn keys_guarded(
        &mut self,
        window: Window,
        after: Option<&ResourceKey>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<ResourceKey>, Self::Error>> + Send;

    /// Forgets what was not found within the window.
    fn prune_guarded(
        &mut self,
        window: Window,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// The guard's view of one batch.
pub(super) struct Watch {
    limits: Limits,
    origin: Origin,
    now: Timestamp,
    ends_pass: bool,
    holds: Vec<Hold>,
    /// Whether an entry left an open hold.
    left: bool,
}

impl Watch {
    pub(super) async fn new<R: GuardRows>(rows: &mut R, batch: &Batch) -> Result<Self, R::Error> {
        Ok(Self {
            limits: batch.guard,
            origin: batch.origin,
            now: batch.now,
            ends_pass: batch.ends_pass,
            holds: rows.holds().await?,
            left: false,
        })
    }

    /// Weighs a decision that has just been made and keeps the record's entry back if it counts.
    pub(super) async fn weigh<R: GuardRows>(
        &mut self,
        rows: &mut R,
        before: &Record,
        after: &mut Record,
        decided: &Decided,
    ) -> Result<(), R::Error> {
        let changed = matches!(
            decided.decision,
            Decision::Enqueued | Decision::Folded | Decision::Withdrawn | Decision::Adopted
        );
        if !changed {
            return Ok(());
        }
        // A request in flight may have done what it was to do: it goes on to count.
        let replaced = before
            .entry
            .as_ref()
            .filter(|entry| entry.in_flight.is_none());
        if replaced.is_some() {
            let impact = guard::impact(before);
            if impact != Impact::None {
                rows.forget_guarded(&before.key, impact).await?;
            }
        }
        let impact = guard::impact(after);
        if self.limits.concern(impact) {
            rows.note_guarded(&after.key, impact, self.now).await?;
            if !self.is_under_open_hold(after) {
                let hold = self.provisional(rows).await?;
                guard::hold(after, hold);
            }
        } else if after
            .entry
            .as_ref()
            .is_some_and(|entry| entry.hold.is_some())
        {
            guard::let_go(after, self.now);
        }
        let hold = |record: &Record| record.entry.as_ref().and_then(|entry| entry.hold);
        self.left |= hold(before).is_some() && hold(before) != hold(after);
        Ok(())
    }

    fn is_under_open_hold(&self, record: &Record) -> bool {
        let hold = record.entry.as_ref().and_then(|entry| entry.hold);
        self.holds
            .iter()
            .any(|open| open.state == HoldState::Open && Some(open.id) == hold)
    }

    /// The provisional hold of this kind of pass.
    async fn provisional<R: GuardRows>(&mut self, rows: &mut R) -> Result<i64, R::Error> {
        if let Some(hold) = self.provisionals().next() {
            return Ok(hold.id);
        }
        let id = rows.add_hold(self.origin, self.now).await?;
        self.holds.push(Hold {
            id,
            state: HoldState::Provisional,
            origin: self.origin,
            opened_at: self.now,
            closed_at: None,
            found: Found::default(),
        });
        Ok(id)
    }

    fn provisionals(&self) -> impl Iterator<Item = &Hold> {
        self.holds
            .iter()
            .filter(|hold| hold.state == HoldState::Provisional && hold.origin == self.origin)
    }

    /// Closes the holds that were left empty and, at the end of a pass, decides on what the pass counted.
    pub(super) async fn end<R: GuardRows>(
        self,
        rows: &mut R,
        reconciled: &mut Reconciled,
    ) -> Result<(), R::Error> {
        if self.left {
            let dissolved = close_empty(rows, HoldState::Dissolved, self.now).await?;
            let events = dissolved
                .into_iter()
                .map(|hold| GuardEvent::Dissolved { hold });
            reconciled.guard.extend(events);
        }
        let provisional: Vec<Hold> = self.provisionals().cloned().collect();
        if !self.ends_pass {
            reconciled.undecided = !provisional.is_empty();
            return Ok(());
        }
        if provisional.is_empty() {
            return Ok(());
        }
        let mut under = Vec::with_capacity(provisional.len());
        for hold in &provisional {
            under.push(self.count_anew(rows, hold).await?);
        }
        let window = Window {
            after: self.now.minus(WINDOW),
            until: self.now.plus(WINDOW),
        };
        let pass = provisional.iter().map(|hold| hold.id);
        let also: Vec<i64> = pass
            .chain(self.opened_within(window).map(|hold| hold.id))
            .collect();
        let found = rows.count_guarded(window, &also).await?;
        let exceeded = self.limits.exceeded(found);
        let verdict = Verdict {
            exceeded,
            found,
            window,
        };
        let event = self.keep(rows, &provisional, &under, verdict).await?;
        // What a hold keeps that opened just now may have been found before the window.
        let opens = matches!(event, Some(GuardEvent::Held { .. }));
        if !opens && self.may_forget(window) {
            rows.prune_guarded(window).await?;
        }
        reconciled.guard.extend(event);
        Ok(())
    }

    /// The open hold, if it was opened within the window: what came under it then counts as found then, whenever it was.
    fn opened_within(&self, window: Window) -> impl Iterator<Item = &Hold> {
        self.holds.iter().filter(move |hold| {
            let is_within = hold.opened_at > window.after && hold.opened_at <= window.until;
            hold.state == HoldState::Open && is_within
        })
    }

    /// Whether what was found out of the window is of no use to anybody: no hold counts it, and no other pass is under way that
    /// may have begun before.
    fn may_forget(&self, window: Window) -> bool {
        let is_another =
            |hold: &Hold| hold.state == HoldState::Provisional && hold.origin != self.origin;
        self.opened_within(window).next().is_none() && !self.holds.iter().any(is_another)
    }

    /// A pass of several pages may last longer than the window: its changes count as found at its end.
    ///
    /// Of those that are as they were weighed nothing is written: they are told apart by their hold. Returns how many they are,
    /// and some of the others.
    async fn count_anew<R: GuardRows>(&self, rows: &mut R, hold: &Hold) -> Result<Under, R::Error> {
        let mut all = Under::default();
        loop {
            let under = rows
                .look_under(hold.id, all.last.as_ref(), ENTRIES_PER_LOOK)
                .await?;
            if under.last.is_none() {
                return Ok(all);
            }
            all.destructive += under.destructive;
            all.changes += under.changes;
            all.last = under.last;
            if hold.opened_at != self.now {
                for keys in under.others.chunks(ENTRIES_PER_ROUND) {
                    for record in rows.records(keys).await? {
                        rows.note_guarded(&record.key, guard::impact(&record), self.now)
                            .await?;
                    }
                    rows.forget_read().await?;
                }
            }
            if all.others.is_empty() {
                all.others = under.others;
            }
        }
    }

    /// Lets the provisional entries go that no exceeded limit counts, and keeps the others under the open hold.
    async fn keep<R: GuardRows>(
        &self,
        rows: &mut R,
        provisional: &[Hold],
        under: &[Under],
        verdict: Verdict,
    ) -> Result<Option<GuardEvent>, R::Error> {
        let Verdict {
            exceeded,
            found,
            window,
        } = verdict;
        let open = self.holds.iter().find(|hold| hold.state == HoldState::Open);
        // Without an open hold a provisional one becomes it, if it keeps anything.
        let target = open.or(provisional.first()).filter(|_| exceeded.any());
        let mut kept = 0;
        for (hold, under) in provisional.iter().zip(under) {
            let sieve = Sieve {
                from: hold.id,
                to: target.map(|target| target.id),
                exceeded,
            };
            kept += self.sift(rows, sieve, under).await?;
        }
        let Some(target) = target else {
            return delete_all(rows, provisional, None).await.map(|()| None);
        };
        kept += self.gather(rows, target.id, exceeded, window).await?;
        let stays = open.is_some() || kept > 0;
        delete_all(rows, provisional, stays.then_some(target.id)).await?;
        if kept == 0 {
            return Ok(None);
        }
        let opened_at = open.map_or(self.now, |open| open.opened_at);
        let hold = Hold {
            state: HoldState::Open,
            opened_at,
            found,
            ..target.clone()
        };
        rows.put_hold(&hold).await?;
        let hold = target.id;
        Ok(Some(match open {
            Some(_) => GuardEvent::Joined { hold, found },
            None => GuardEvent::Held { hold, found },
        }))
    }

    /// Goes through the entries under a provisional hold; returns how many are kept, all of them under `to` then.
    ///
    /// What is as it was weighed and stays under its hold is neither read again nor written.
    async fn sift<R: GuardRows>(
        &self,
        rows: &mut R,
        sieve: Sieve,
        counted: &Under,
    ) -> Result<u64, R::Error> {
        let impacts = [Impact::Change, Impact::Destructive];
        let kept_of = |under: &Under| -> u64 {
            let kept = impacts.into_iter().filter(|impact| sieve.keeps(*impact));
            kept.map(|impact| under.of(impact)).sum()
        };
        let stays = |impact: &Impact| sieve.goes_to(*impact) == Some(sieve.from);
        let moves = |impact: &Impact| counted.of(*impact) > 0 && !stays(impact);
        if counted.others.is_empty() && !impacts.iter().any(moves) {
            return Ok(kept_of(counted));
        }
        let mut kept = 0;
        let mut after: Option<ResourceKey> = None;
        loop {
            let under = rows
                .look_under(sieve.from, after.as_ref(), ENTRIES_PER_LOOK)
                .await?;
            let Some(last) = &under.last else {
                return Ok(kept);
            };
            kept += kept_of(&under);
            for impact in impacts {
                if under.of(impact) > 0 && !stays(&impact) {
                    let moved = Move {
                        from: sieve.from,
                        after: after.as_ref(),
                        up_to: last,
                        impact,
                        to: sieve.goes_to(impact),
                        now: self.now,
                    };
                    rows.move_weighed(moved).await?;
                }
            }
            for keys in under.others.chunks(ENTRIES_PER_ROUND) {
                kept += self.sift_others(rows, sieve, keys).await?;
            }
            after = under.last;
        }
    }

    /// The same for entries that are decided on one by one.
    async fn sift_others<R: GuardRows>(
        &self,
        rows: &mut R,
        sieve: Sieve,
        keys: &[ResourceKey],
    ) -> Result<u64, R::Error> {
        let mut kept = 0;
        let mut steps = Vec::with_capacity(keys.len());
        for before in rows.records(keys).await? {
            let mut after = before.clone();
            match sieve.goes_to(guard::impact(&before)) {
                Some(to) => {
                    guard::hold(&mut after, to);
                    kept += 1;
                }
                None => guard::let_go(&mut after, self.now),
            }
            steps.push(self.step(before, after));
        }
        save_steps(rows, &mut steps).await?;
        rows.forget_read().await?;
        Ok(kept)
    }

    /// Keeps back what earlier passes within the window found and nobody has sent yet. It counts from now on, like all else that
    /// the hold keeps.
    async fn gather<R: GuardRows>(
        &self,
        rows: &mut R,
        to: i64,
        exceeded: Exceeded,
        window: Window,
    ) -> Result<u64, R::Error> {
        let mut kept = 0;
        let mut last: Option<ResourceKey> = None;
        loop {
            let keys = rows
                .keys_guarded(window, last.as_ref(), ENTRIES_PER_ROUND)
                .await?;
            if keys.is_empty() {
                return Ok(kept);
            }
            let mut steps = Vec::with_capacity(keys.len());
            for before in rows.records(&keys).await? {
                let impact = guard::impact(&before);
                if exceeded.keeps(impact) {
                    let mut after = before.clone();
                    guard::hold(&mut after, to);
                    rows.note_guarded(&after.key, impact, self.now).await?;
                    steps.push(self.step(before, after));
                    kept += 1;
                }
            }
            save_steps(rows, &mut steps).await?;
            rows.forget_read().await?;
            last = keys.last().cloned();
        }
    }

    fn step(&self, before: Record, after: Record) -> Step {
        Step {
            before,
            after,
            closed: None,
            now: self.now,
        }
    }
}

/// What the end of a pass found.
#[derive(Clone, Copy)]
struct Verdict {
    exceeded: Exceeded,
    found: Found,
    window: Window,
}

/// Where the entries under a provisional hold go.
#[derive(Clone, Copy)]
struct Sieve {
    from: i64,
    /// The open hold, if anything is kept.
    to: Option<i64>,
    exceeded: Exceeded,
}

impl Sieve {
    /// The hold that keeps a change with this impact; none when it goes on.
    fn goes_to(self, impact: Impact) -> Option<i64> {
        self.to.filter(|_| self.exceeded.keeps(impact))
    }

    fn keeps(self, impact: Impact) -> bool {
        self.goes_to(impact).is_some()
    }
}

async fn delete_all<R: GuardRows>(
    rows: &mut R,
    holds: &[Hold],
    but: Option<i64>,
) -> Result<(), R::Error> {
    for hold in holds.iter().filter(|hold| Some(hold.id) != but) {
        rows.delete_hold(hold.id).await?;
    }
    Ok(())
}

/// Closes the open holds that keep nothing back any more; returns their numbers.
pub(in crate::store) async fn close_empty<R: GuardRows>(
    rows: &mut R,
    state: HoldState,
    now: Timestamp,
) -> Result<Vec<i64>, R::Error> {
    let mut closed = Vec::new();
    for hold in rows.holds().await? {
        if hold.state == HoldState::Open && rows.keys_under(hold.id, None, 1).await?.is_empty() {
            let closed_at = Some(now);
            rows.put_hold(&Hold {
                state,
                closed_at,
                ..hold
            })
            .await?;
            closed.push(hold.id);
        }
    }
    Ok(closed)
}
