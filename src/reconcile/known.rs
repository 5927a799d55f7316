//! What the last poll saw and the state had: within its overlap every poll reads the same rows again.
//!
//! A row that was found to be as it was last decided on, or was decided on, needs no look-up while nothing else is decided on it. Whatever
//! changes what the state says of a row (a decision, a row that cannot be used, one that is missing) is committed by the holder of the
//! watch, so that what is known holds until this process commits something of the resource itself, or the watch has been another's.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher as _;

use crate::model::{ResourceKey, RowHash};

/// The most rows that are known, of each of two passes: 3.3 MB each. Further ones are looked up by every poll.
const KNOWN_MAX: usize = 100_000;

/// Stands for a resource: for two, so rarely that one may then be forgotten with the other. The row's own hash covers its ids.
type Slot = u64;

/// The rows that the state has as they are, by their resources.
#[derive(Debug, Default)]
pub(super) struct Known {
    slots: RandomState,
    /// Of the pass before.
    before: HashMap<Slot, RowHash>,
    /// Of this pass.
    now: HashMap<Slot, RowHash>,
}

impl Known {
    /// A pass begins: what it does not see again is forgotten with its end.
    pub(super) fn begin_pass(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    /// Which rows of a page were seen and known before, each resource once in the page; these stay known.
    pub(super) fn again<'a>(
        &mut self,
        rows: impl Iterator<Item = (Option<(&'a str, &'a str)>, RowHash)>,
    ) -> Vec<bool> {
        let mut seen = HashSet::new();
        let mut repeated = HashSet::new();
        let rows: Vec<(Option<Slot>, RowHash)> = rows
            .map(|(ids, hash)| {
                let slot = ids.map(|ids| self.slots.hash_one(ids));
                repeated.extend(slot.filter(|slot| !seen.insert(*slot)));
                (slot, hash)
            })
            .collect();
        let mut is_again = |(slot, hash): (Option<Slot>, RowHash)| {
            let Some(slot) = slot.filter(|slot| !repeated.contains(slot)) else {
                return false;
            };
            let is_known = self.before.get(&slot) == Some(&hash);
            if is_known {
                self.now.insert(slot, hash);
            }
            is_known
        };
        rows.into_iter().map(&mut is_again).collect()
    }

    /// A row was looked up, or has been decided on: the state has it as it is.
    pub(super) fn note(&mut self, key: &ResourceKey, hash: RowHash) {
        if self.now.len() < KNOWN_MAX {
            self.now.insert(self.slot(key), hash);
        }
    }

    /// Something of the resource is about to be committed.
    pub(super) fn forget(&mut self, key: &ResourceKey) {
        let slot = self.slot(key);
        self.before.remove(&slot);
        self.now.remove(&slot);
    }

    /// Somebody else may have committed anything.
    pub(super) fn forget_all(&mut self) {
        self.before = HashMap::new();
        self.now = HashMap::new();
    }

    fn slot(&self, key: &ResourceKey) -> Slot {
        self.slots
            .hash_one((key.installation_id.as_str(), key.resource_id.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page of resources of one installation, each with what its row says.
    fn seen(known: &mut Known, page: &[(&str, u8)]) -> Vec<bool> {
        known.again(
            page.iter()
                .map(|(id, says)| (Some(("icfg_1", *id)), hash(*says))),
        )
    }

    fn hash(says: u8) -> RowHash {
        RowHash::from_bytes([says; 16])
    }

    fn key(id: &str) -> ResourceKey {
        ResourceKey::new("icfg_1", id).expect("ids")
    }

    /// What a pass has looked up, and the next one begun.
    fn after_a_pass(rows: &[(&str, u8)]) -> Known {
        let mut known = Known::default();
        known.begin_pass();
        for (id, says) in rows {
            known.note(&key(id), hash(*says));
        }
        known.begin_pass();
        known
    }

    #[test]
    fn what_the_pass_before_saw_is_known_while_each_pass_sees_it_as_it_was() {
        let mut known = after_a_pass(&[("a", 1), ("b", 2)]);
        let page = [("a", 1), ("b", 3), ("c", 4)];
        assert_eq!(seen(&mut known, &page), [true, false, false]);
        known.begin_pass();
        assert_eq!(seen(&mut known, &page), [true, false, false]);
        known.begin_pass();
        assert_eq!(seen(&mut known, &[("c", 4)]), [false]);
        known.begin_pass();
        assert_eq!(seen(&mut known, &page), [false, false, false]);
    }

    #[test]
    fn what_something_is_committed_of_is_known_no_more() {
        let mut known = after_a_pass(&[("a", 1), ("b", 2)]);
        known.forget(&key("a"));
        assert_eq!(seen(&mut known, &[("a", 1), ("b", 2)]), [false, true]);
        known.forget(&key("b"));
        known.begin_pass();
        assert_eq!(seen(&mut known, &[("b", 2)]), [false]);
        let mut known = after_a_pass(&[("a", 1)]);
        known.forget_all();
        assert_eq!(seen(&mut known, &[("a", 1)]), [false]);
    }

    #[test]
    fn a_resource_that_stands_in_a_page_twice_is_looked_up() {
        for again in [("a", 1), ("a", 9)] {
            let mut known = after_a_pass(&[("a", 1), ("b", 2)]);
            let page = [("a", 1), ("b", 2), again];
            assert_eq!(seen(&mut known, &page), [false, true, false]);
        }
    }

    #[test]
    fn a_row_without_ids_is_looked_up() {
        let mut known = after_a_pass(&[]);
        assert_eq!(known.again([(None, hash(1))].into_iter()), [false]);
    }

    #[test]
    fn no_more_rows_are_known_than_memory_is_kept_for() {
        let mut known = Known::default();
        known.begin_pass();
        for number in 0..=KNOWN_MAX {
            known.note(&key(&number.to_string()), hash(1));
        }
        known.begin_pass();
        let last = KNOWN_MAX.to_string();
        assert_eq!(seen(&mut known, &[("0", 1), (&last, 1)]), [true, false]);
    }
}
