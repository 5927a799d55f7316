//! The guard's rows of a state in memory.

use std::collections::BTreeMap;
use std::convert::Infallible;

use crate::model::{EntryState, Origin, ResourceKey, Timestamp};
use crate::plan::guard::{Found, Impact, Summary};
use crate::store::hold::{Hold, HoldReport, HoldState, SUMMARY_ENTRIES_MAX};
use crate::store::steps::guard::{GuardRows, Window};

use super::{State, at_most};

/// The guard's holds and what it has counted.
#[derive(Debug, Default)]
pub(super) struct Guarded {
    holds: BTreeMap<i64, Hold>,
    last_hold: i64,
    /// When each change was found; a destructive one is under both kinds.
    noted: BTreeMap<(ResourceKey, Kind), Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Change,
    Destructive,
}

fn kinds(impact: Impact) -> &'static [Kind] {
    match impact {
        Impact::None => &[],
        Impact::Change => &[Kind::Change],
        Impact::Destructive => &[Kind::Change, Kind::Destructive],
    }
}

impl State {
    fn under(&self, hold: i64) -> impl Iterator<Item = &ResourceKey> {
        self.entries()
            .filter(move |(_, entry)| entry.hold == Some(hold) && entry.state != EntryState::Dead)
            .map(|(key, _)| key)
    }

    pub(super) fn hold_report(&self, id: i64) -> Option<HoldReport> {
        let hold = self.guarded.holds.get(&id)?.clone();
        let mut summary = Summary::default();
        for key in self.under(id).take(at_most(SUMMARY_ENTRIES_MAX)) {
            summary.add(&self.record(key));
        }
        Some(HoldReport {
            hold,
            entries: self.under(id).count() as u64,
            summary,
        })
    }

    pub(super) fn open_holds(&self) -> Vec<Hold> {
        let open = |hold: &&Hold| hold.state == HoldState::Open;
        self.guarded.holds.values().filter(open).cloned().collect()
    }
}

impl GuardRows for State {
    async fn holds(&mut self) -> Result<Vec<Hold>, Infallible> {
        let holds = self.guarded.holds.values();
        Ok(holds.filter(|hold| hold.state.is_open()).cloned().collect())
    }

    async fn add_hold(&mut self, origin: Origin, now: Timestamp) -> Result<i64, Infallible> {
        self.guarded.last_hold += 1;
        let id = self.guarded.last_hold;
        let hold = Hold {
            id,
            state: HoldState::Provisional,
            origin,
            opened_at: now,
            closed_at: None,
            found: Found::default(),
        };
        self.guarded.holds.insert(id, hold);
        Ok(id)
    }

    async fn put_hold(&mut self, hold: &Hold) -> Result<(), Infallible> {
        self.guarded.holds.insert(hold.id, hold.clone());
        Ok(())
    }

    async fn delete_hold(&mut self, id: i64) -> Result<(), Infallible> {
        self.guarded.holds.remove(&id);
        let open = self
            .records
            .values_mut()
            .filter_map(|record| record.entry.as_mut());
        let closed = self.closed.values_mut().map(|closed| &mut closed.entry);
        open.chain(closed)
            .filter(|entry| entry.hold == Some(id))
            .for_each(|entry| entry.hold = None);
        Ok(())
    }

    async fn keys_under(
        &mut self,
        hold: i64,
        after: Option<&ResourceKey>,
        limit: usize,
    ) -> Result<Vec<ResourceKey>, Infallible> {
        let further = self
            .under(hold)
            .filter(|key| after.is_none_or(|after| *key > after));
        Ok(further.take(limit).cloned().collect())
    }

    async fn note_guarded(
        &mut self,
        key: &ResourceKey,
        impact: Impact,
        at: Timestamp,
    ) -> Result<(), Infallible> {
        for kind in kinds(impact) {
            self.guarded.noted.insert((key.clone(), *kind), at);
        }
        Ok(())
    }

    async fn forget_guarded(
        &mut self,
        key: &ResourceKey,
        impact: Impact,
    ) -> Result<(), Infallible> {
        for kind in kinds(impact) {
            self.guarded.noted.remove(&(key.clone(), *kind));
        }
        Ok(())
    }

    async fn count_guarded(
        &mut self,
        window: Window,
        // Here every entry is counted anew with its pass.
        _also: &[i64],
    ) -> Result<Found, Infallible> {
        let count = |kind| {
            let within = self
                .guarded
                .noted
                .iter()
                .filter(|((_, noted), at)| *noted == kind && is_within(**at, window));
            u32::try_from(within.count()).unwrap_or(u32::MAX)
        };
        Ok(Found {
            destructive: count(Kind::Destructive),
            changes: count(Kind::Change),
        })
    }

    async fn keys_guarded(
        &mut self,
        window: Window,
        after: Option<&ResourceKey>,
        limit: usize,
    ) -> Result<Vec<ResourceKey>, Infallible> {
        let waits = |key: &ResourceKey| {
            let record = self.records.get(key);
            let entry = record.and_then(|record| record.entry.as_ref());
            entry.is_some_and(|entry| entry.state == EntryState::Waiting && entry.hold.is_none())
        };
        let keys = self
            .guarded
            .noted
            .iter()
            .filter(|((_, kind), at)| *kind == Kind::Change && is_within(**at, window))
            .map(|((key, _), _)| key)
            .filter(|key| after.is_none_or(|after| *key > after) && waits(key));
        Ok(keys.take(limit).cloned().collect())
    }

    async fn prune_guarded(&mut self, window: Window) -> Result<(), Infallible> {
        let noted = &mut self.guarded.noted;
        noted.retain(|_, at| is_within(*at, window));
        Ok(())
    }
}

fn is_within(at: Timestamp, window: Window) -> bool {
    at > window.after && at <= window.until
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Entry, Mode, Record, Snapshot};

    fn key(id: &str) -> ResourceKey {
        ResourceKey::new("icfg_1", id).expect("ids")
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    const WINDOW: Window = Window {
        after: Timestamp::from_millis(10),
        until: Timestamp::from_millis(20),
    };

    async fn noted(impact: Impact, times: &[(&str, i64)]) -> State {
        let mut state = State::default();
        for (id, ms) in times {
            let Ok(()) = state.note_guarded(&key(id), impact, at(*ms)).await;
        }
        state
    }

    #[tokio::test]
    async fn what_was_found_up_to_one_time_or_after_the_other_is_forgotten() {
        let mut state = noted(
            Impact::Change,
            &[("a", 9), ("b", 10), ("c", 11), ("d", 20), ("e", 21)],
        )
        .await;
        let Ok(()) = state.prune_guarded(WINDOW).await;
        let left = state.guarded.noted.keys().map(|(key, _)| key.clone());
        assert_eq!(left.collect::<Vec<_>>(), [key("c"), key("d")]);
    }

    #[tokio::test]
    async fn what_was_found_after_one_time_and_up_to_the_other_counts() {
        let times = [("a", 9), ("b", 10), ("c", 11), ("d", 20), ("e", 21)];
        for (impact, expected) in [
            (Impact::None, (0, 0)),
            (Impact::Change, (0, 2)),
            (Impact::Destructive, (2, 2)),
        ] {
            let mut state = noted(impact, &times).await;
            let Ok(found) = state.count_guarded(WINDOW, &[]).await;
            assert_eq!((found.destructive, found.changes), expected);
            let Ok(()) = state.forget_guarded(&key("c"), impact).await;
            let Ok(found) = state.count_guarded(WINDOW, &[]).await;
            assert_eq!(found.changes, expected.1.saturating_sub(1));
        }
    }

    #[tokio::test]
    async fn only_what_waits_under_no_hold_is_still_to_be_guarded() {
        let ids = ["a", "b", "c", "d", "e"];
        let mut state = noted(Impact::Destructive, &ids.map(|id| (id, 11))).await;
        let stands = [
            ("a", EntryState::Waiting, None),
            ("b", EntryState::Waiting, Some(1)),
            ("c", EntryState::Held, None),
            ("d", EntryState::Dead, Some(1)),
            // Nothing is known of a change of this one.
            ("f", EntryState::Waiting, None),
        ];
        for (id, entry_state, hold) in stands {
            let entry = Entry {
                state: entry_state,
                hold,
                ..Entry::new(Snapshot::default(), Origin::Poll, Mode::Whole, at(1))
            };
            let record = Record {
                entry: Some(entry),
                ..Record::new(key(id))
            };
            state.records.insert(key(id), record);
        }
        let Ok(keys) = state.keys_guarded(WINDOW, None, 10).await;
        assert_eq!(keys, [key("a")]);
        let Ok(keys) = state.keys_guarded(WINDOW, Some(&key("a")), 10).await;
        assert_eq!(keys, []);
    }
}
