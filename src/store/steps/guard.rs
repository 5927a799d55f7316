//! The guard inside a transaction: what counts waits under a provisional hold until its pass ends, then goes on or stays.
//!
//! A crash between pages leaves the provisional hold behind, and nothing of it is sent before a pass of the same origin has ended.

use std::future::Future;

use crate::model::{EntryState, Origin, Record, ResourceKey, Timestamp};
use crate::plan::Decision;
use crate::plan::decide::Decided;
use crate::plan::guard::{self, Exceeded, Found, Impact, Limits, WINDOW};
use crate::plan::manual::{self, Refusal};
use crate::store::console::Order;
use crate::store::hold::{GuardEvent, Hold, HoldState};
use crate::store::{Batch, Reconciled};

use super::{Change, Rows};

/// How many entries of a hold are worked on at a time.
const ENTRIES_PER_ROUND: usize = 500;

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

    /// Counts the resources whose changes were found after `after` and no later than `until`.
    fn count_guarded(
        &mut self,
        after: Timestamp,
        until: Timestamp,
    ) -> impl Future<Output = Result<Found, Self::Error>> + Send;

    /// Of the resources that count, those with a waiting entry under no hold, after `after` in byte order of the key.
    fn keys_guarded(
        &mut self,
        after: Option<&ResourceKey>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<ResourceKey>, Self::Error>> + Send;

    /// Forgets what was found at or before `before`, and what was found after `after`.
    fn prune_guarded(
        &mut self,
        before: Timestamp,
        after: Timestamp,
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
        for hold in &provisional {
            self.count_anew(rows, hold).await?;
        }
        let (from, to) = (self.now.minus(WINDOW), self.now.plus(WINDOW));
        rows.prune_guarded(from, to).await?;
        let found = rows.count_guarded(from, to).await?;
        let exceeded = self.limits.exceeded(found);
        let event = self.keep(rows, &provisional, exceeded, found).await?;
        reconciled.guard.extend(event);
        Ok(())
    }

    /// A pass of several pages may last longer than the window: its changes count as found at its end.
    async fn count_anew<R: GuardRows>(&self, rows: &mut R, hold: &Hold) -> Result<(), R::Error> {
        if hold.opened_at == self.now {
            return Ok(());
        }
        let mut after: Option<ResourceKey> = None;
        loop {
            let keys = rows
                .keys_under(hold.id, after.as_ref(), ENTRIES_PER_ROUND)
                .await?;
            let Some(last) = keys.last().cloned() else {
                return Ok(());
            };
            for record in rows.records(&keys).await? {
                rows.note_guarded(&record.key, guard::impact(&record), self.now)
                    .await?;
            }
            after = Some(last);
        }
    }

    /// Lets the provisional entries go that no exceeded limit counts, and keeps the others under the open hold.
    async fn keep<R: GuardRows>(
        &self,
        rows: &mut R,
        provisional: &[Hold],
        exceeded: Exceeded,
        found: Found,
    ) -> Result<Option<GuardEvent>, R::Error> {
        let open = self.holds.iter().find(|hold| hold.state == HoldState::Open);
        // Without an open hold a provisional one becomes it, if it keeps anything.
        let target = open.or(provisional.first()).filter(|_| exceeded.any());
        let mut kept = 0;
        for hold in provisional {
            let to = target.map(|target| target.id);
            kept += self.sift(rows, hold.id, to, exceeded).await?;
        }
        let Some(target) = target else {
            return delete_all(rows, provisional, None).await.map(|()| None);
        };
        kept += self.gather(rows, target.id, exceeded).await?;
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
    async fn sift<R: GuardRows>(
        &self,
        rows: &mut R,
        from: i64,
        to: Option<i64>,
        exceeded: Exceeded,
    ) -> Result<u64, R::Error> {
        let mut kept = 0;
        let mut after: Option<ResourceKey> = None;
        loop {
            let keys = rows
                .keys_under(from, after.as_ref(), ENTRIES_PER_ROUND)
                .await?;
            let Some(last) = keys.last().cloned() else {
                return Ok(kept);
            };
            for before in rows.records(&keys).await? {
                let mut record = before.clone();
                match to.filter(|_| exceeded.keeps(guard::impact(&before))) {
                    Some(to) => {
                        guard::hold(&mut record, to);
                        kept += 1;
                    }
                    None => guard::let_go(&mut record, self.now),
                }
                save(rows, &before, record, self.now).await?;
            }
            after = Some(last);
        }
    }

    /// Keeps back what earlier passes within the window found and nobody has sent yet.
    async fn gather<R: GuardRows>(
        &self,
        rows: &mut R,
        to: i64,
        exceeded: Exceeded,
    ) -> Result<u64, R::Error> {
        let mut kept = 0;
        let mut after: Option<ResourceKey> = None;
        loop {
            let keys = rows.keys_guarded(after.as_ref(), ENTRIES_PER_ROUND).await?;
            let Some(last) = keys.last().cloned() else {
                return Ok(kept);
            };
            for before in rows.records(&keys).await? {
                if exceeded.keeps(guard::impact(&before)) {
                    let mut record = before.clone();
                    guard::hold(&mut record, to);
                    save(rows, &before, record, self.now).await?;
                    kept += 1;
                }
            }
            after = Some(last);
        }
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

async fn save<R: Rows>(
    rows: &mut R,
    before: &Record,
    mut after: Record,
    now: Timestamp,
) -> Result<(), R::Error> {
    rows.save(Change {
        before,
        after: &mut after,
        closed: None,
        now,
    })
    .await
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

/// Carries out a person's order for a resource's open entry; returns the entry's state then.
pub(in crate::store) async fn order<R: GuardRows>(
    rows: &mut R,
    key: &ResourceKey,
    order: Order,
    now: Timestamp,
) -> Result<Result<EntryState, Refusal>, R::Error> {
    let Some(before) = rows.records(std::slice::from_ref(key)).await?.pop() else {
        return Ok(Err(Refusal::Closed));
    };
    let mut after = before.clone();
    let outcome = match order {
        Order::Retry => manual::retry(&mut after, now).map(|()| None),
        Order::Release => manual::release(&mut after, now).map(|()| None),
        Order::Discard => manual::discard(&mut after).map(Some),
    };
    let closed = match outcome {
        Ok(closed) => closed,
        Err(refusal) => return Ok(Err(refusal)),
    };
    rows.save(Change {
        before: &before,
        after: &mut after,
        closed: closed.as_ref(),
        now,
    })
    .await?;
    let ended = match order {
        Order::Retry => None,
        Order::Release => Some(HoldState::Released),
        Order::Discard => Some(HoldState::Discarded),
    };
    if let Some(state) = ended {
        // A person has decided: the change does not count again.
        rows.forget_guarded(key, Impact::Destructive).await?;
        if before
            .entry
            .as_ref()
            .is_some_and(|entry| entry.hold.is_some())
        {
            close_empty(rows, state, now).await?;
        }
    }
    let shown = closed.as_ref().or(after.entry.as_ref());
    Ok(Ok(shown.map_or(EntryState::Waiting, |entry| entry.state)))
}
