//! What the last poll saw and the state had: within its overlap every poll reads the same rows again.
//!
//! A row that was found to be as it was last decided on, or was decided on, needs no look-up while nothing else is decided on it.
//! Whatever changes what the state says of a row (a decision, a row that cannot be used, one that is missing) is committed by the holder
//! of the watch, so that what is known holds until this process commits something of the resource itself, or the watch has been another's.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher as _;

use crate::model::{RawRowRef, RawRows, ResourceKey, RowHash, RowHasher};
use crate::planted::{Bug, is_planted};

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
    /// Whether a row of this pass that was let pass was not the only one of its resource.
    is_torn: bool,
}

impl Known {
    /// A pass has ended: what it did not see is known no more.
    pub(super) fn end_pass(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    /// A pass has ended that left the overlap unread: what was known of it stays so.
    pub(super) fn end_part(&mut self) {
        self.before.extend(std::mem::take(&mut self.now));
    }

    /// Which rows of a page were seen and known before, each resource once in the page.
    pub(super) fn is_again(&self, rows: &RawRows, hasher: &RowHasher) -> Vec<bool> {
        let found = self.find(rows, hasher);
        found.into_iter().map(|known| known.is_some()).collect()
    }

    /// The same; what was known stays so for the next pass.
    pub(super) fn again(&mut self, rows: &RawRows, hasher: &RowHasher) -> Vec<bool> {
        let found = self.find(rows, hasher);
        for (slot, hash) in found.iter().flatten() {
            self.keep(*slot, *hash);
        }
        found.into_iter().map(|known| known.is_some()).collect()
    }

    /// How many rows the pass before left known.
    pub(super) fn len(&self) -> usize {
        self.before.len()
    }

    /// Begins a pass whose rows are asked for one by one while they are read ([`Known::passes`]).
    pub(super) fn begin_pass(&mut self) {
        self.now = HashMap::new();
        self.is_torn = false;
    }

    /// Whether a row was let pass and another one of its resource came after it: both are to be looked at together.
    pub(super) const fn is_torn(&self) -> bool {
        self.is_torn
    }

    /// Whether a row, the next of the pass, was seen and known before; then it stays so for the next pass.
    pub(super) fn passes(&mut self, row: RawRowRef<'_>, hasher: &RowHasher) -> bool {
        let Some(ids) = row.ids() else {
            return false;
        };
        let slot = self.slots.hash_one(ids);
        if self.now.contains_key(&slot) {
            self.forget_slot(slot);
            self.is_torn = true;
            return false;
        }
        match self.before.get(&slot) {
            Some(before) if is_planted(Bug::PassesUnread) || *before == row.hash(hasher) => {
                self.keep(slot, *before);
                true
            }
            _ => false,
        }
    }

    fn find(&self, rows: &RawRows, hasher: &RowHasher) -> Vec<Option<(Slot, RowHash)>> {
        let slot = |row: RawRowRef<'_>| row.ids().map(|ids| self.slots.hash_one(ids));
        let slots: Vec<Option<Slot>> = rows.iter().map(slot).collect();
        let mut seen = HashSet::new();
        let once_more = |slot: &&Slot| !seen.insert(**slot);
        let repeated: HashSet<Slot> = slots.iter().flatten().filter(once_more).copied().collect();
        let known = |(row, slot): (RawRowRef<'_>, Option<Slot>)| {
            let slot = slot.filter(|slot| !repeated.contains(slot))?;
            let before = *self.before.get(&slot)?;
            (row.hash(hasher) == before).then_some((slot, before))
        };
        rows.iter().zip(slots).map(known).collect()
    }

    /// A row was looked up, or has been decided on: the state has it as it is.
    pub(super) fn note(&mut self, key: &ResourceKey, hash: RowHash) {
        self.keep(self.slot(key), hash);
    }

    fn keep(&mut self, slot: Slot, hash: RowHash) {
        if self.now.len() < KNOWN_MAX {
            self.now.insert(slot, hash);
        }
    }

    /// Something of the resource is about to be committed.
    pub(super) fn forget(&mut self, key: &ResourceKey) {
        self.forget_slot(self.slot(key));
    }

    fn forget_slot(&mut self, slot: Slot) {
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
    use crate::model::{Field, FingerprintKey, RawRow, RawText};

    /// A row of one installation's resource, and what it says.
    fn row(id: &str, says: u8) -> RawRow {
        RawRow {
            installation_id: RawText::text("icfg_1"),
            resource_id: RawText::text(id),
            cursor: None,
            columns: vec![(Field::Name, RawText::text(says.to_string()))],
        }
    }

    fn hasher() -> RowHasher {
        RowHasher::new(&FingerprintKey::new([5; 32]), 0)
    }

    fn seen(known: &mut Known, page: &[(&str, u8)]) -> Vec<bool> {
        let page: RawRows = page.iter().map(|(id, says)| row(id, *says)).collect();
        let looked_at = known.is_again(&page, &hasher());
        let again = known.again(&page, &hasher());
        assert_eq!(looked_at, again);
        again
    }

    fn hash(id: &str, says: u8) -> RowHash {
        row(id, says).hash(&FingerprintKey::new([5; 32]), 0)
    }

    fn key(id: &str) -> ResourceKey {
        ResourceKey::new("icfg_1", id).expect("ids")
    }

    /// What a pass has looked up.
    fn after_a_pass(rows: &[(&str, u8)]) -> Known {
        let mut known = Known::default();
        for (id, says) in rows {
            known.note(&key(id), hash(id, *says));
        }
        known.end_pass();
        known
    }

    #[test]
    fn what_the_pass_before_saw_is_known_while_each_pass_sees_it_as_it_was() {
        let mut known = after_a_pass(&[("a", 1), ("b", 2)]);
        let page = [("a", 1), ("b", 3), ("c", 4)];
        assert_eq!(seen(&mut known, &page), [true, false, false]);
        known.end_pass();
        assert_eq!(seen(&mut known, &page), [true, false, false]);
        known.end_pass();
        assert_eq!(seen(&mut known, &[("c", 4)]), [false]);
        known.end_pass();
        assert_eq!(seen(&mut known, &page), [false, false, false]);
    }

    /// Which rows pass, read one by one.
    fn passing(known: &mut Known, rows: &[(&str, u8)]) -> Vec<bool> {
        let page: RawRows = rows.iter().map(|(id, says)| row(id, *says)).collect();
        let hasher = hasher();
        page.iter().map(|row| known.passes(row, &hasher)).collect()
    }

    #[test]
    fn a_row_that_is_known_passes_each_pass_and_stays_known() {
        let mut known = after_a_pass(&[("a", 1), ("b", 2)]);
        for _ in 0..2 {
            known.begin_pass();
            let rows = [("a", 1), ("b", 3), ("c", 4)];
            assert_eq!(passing(&mut known, &rows), [true, false, false]);
            known.end_pass();
            assert!(!known.is_torn());
            assert_eq!(known.len(), 1);
        }
        // One that was cut off leaves nothing behind that would be taken for a second row.
        known.begin_pass();
        assert_eq!(passing(&mut known, &[("a", 1)]), [true]);
        known.begin_pass();
        assert_eq!(passing(&mut known, &[("a", 1)]), [true]);
    }

    #[test]
    fn two_rows_of_a_resource_are_seen_where_the_first_one_has_passed() {
        for again in [("a", 1), ("a", 9)] {
            let mut known = after_a_pass(&[("a", 1), ("b", 2)]);
            known.begin_pass();
            let rows = [("a", 1), ("b", 2), again];
            assert_eq!(passing(&mut known, &rows), [true, true, false]);
            assert!(known.is_torn());
            assert_eq!(seen(&mut known, &[again]), [false]);
            known.begin_pass();
            assert!(!known.is_torn());
        }
    }

    #[test]
    fn what_a_pass_left_unread_stays_known_beside_what_it_saw() {
        let mut known = after_a_pass(&[("a", 1), ("b", 2)]);
        known.note(&key("b"), hash("b", 3));
        known.note(&key("c"), hash("c", 4));
        known.end_part();
        let page = [("a", 1), ("b", 3), ("c", 4)];
        assert_eq!(seen(&mut known, &page), [true, true, true]);
    }

    #[test]
    fn what_something_is_committed_of_is_known_no_more() {
        let mut known = after_a_pass(&[("a", 1), ("b", 2)]);
        known.forget(&key("a"));
        assert_eq!(seen(&mut known, &[("a", 1), ("b", 2)]), [false, true]);
        known.forget(&key("b"));
        known.end_pass();
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
        let mut known = after_a_pass(&[("a", 1)]);
        let nameless = RawRow {
            resource_id: RawText::Null,
            ..row("a", 1)
        };
        let page: RawRows = [nameless, row("a", 1)].into_iter().collect();
        assert_eq!(known.again(&page, &hasher()), [false, true]);
    }

    #[test]
    fn no_more_rows_are_known_than_memory_is_kept_for() {
        let mut known = Known::default();
        for number in 0..=KNOWN_MAX {
            let id = number.to_string();
            known.note(&key(&id), hash(&id, 1));
        }
        known.end_pass();
        let last = KNOWN_MAX.to_string();
        assert_eq!(seen(&mut known, &[("0", 1), (&last, 1)]), [true, false]);
        for number in 1..=KNOWN_MAX {
            let id = format!("later {number}");
            known.note(&key(&id), hash(&id, 1));
        }
        assert_eq!(seen(&mut known, &[("1", 1)]), [true]);
        known.end_pass();
        assert_eq!(seen(&mut known, &[("0", 1), ("1", 1)]), [true, false]);
    }
}
