//! What a pass needs to know of resources to skip their rows: of one, or of all between two keys in one piece.

use crate::model::{EntryState, RowHash};

/// What a pass needs to know of one resource to skip it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Glance {
    /// The row that was last decided on; `None`: never seen.
    pub row_hash: Option<RowHash>,
    /// The state of the open entry.
    pub entry: Option<EntryState>,
    /// The unusable row that was last quarantined for it.
    pub quarantined: Option<RowHash>,
    /// Whether a sweep found it missing.
    pub missing: bool,
}

impl Glance {
    /// Whether the one row of its resource with this hash needs no further look.
    #[must_use]
    pub fn is_settled(&self, row: RowHash) -> bool {
        self.row_hash == Some(row) && self.quarantined.is_none() && !self.missing
    }
}

/// The resources between two keys, in the byte order of their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Glances {
    /// All ids, one after another.
    ids: String,
    /// Where each resource's two ids end, and the rest of it.
    all: Vec<(usize, usize, Glance)>,
}

impl Glances {
    /// Appends the next resource.
    pub fn push(&mut self, (installation_id, resource_id): (&str, &str), glance: Glance) {
        self.ids.push_str(installation_id);
        let middle = self.ids.len();
        self.ids.push_str(resource_id);
        self.all.push((middle, self.ids.len(), glance));
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The resources with their keys.
    pub fn iter(&self) -> impl Iterator<Item = ((&str, &str), &Glance)> {
        let mut start = 0;
        self.all.iter().map(move |(middle, end, glance)| {
            let key = (&self.ids[start..*middle], &self.ids[*middle..*end]);
            start = *end;
            (key, glance)
        })
    }

    /// Changes what is known of a resource that is among them.
    pub fn change(&mut self, key: (&str, &str), change: impl FnOnce(&mut Glance)) {
        let starts = |index: usize| index.checked_sub(1).map_or(0, |before| self.all[before].1);
        let (mut low, mut high) = (0, self.all.len());
        while low < high {
            let index = usize::midpoint(low, high);
            let (middle, end, _) = self.all[index];
            let found = (&self.ids[starts(index)..middle], &self.ids[middle..end]);
            match found.cmp(&key) {
                std::cmp::Ordering::Less => low = index + 1,
                std::cmp::Ordering::Greater => high = index,
                std::cmp::Ordering::Equal => return change(&mut self.all[index].2),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_found_by_its_key_alone() {
        let keys = [("a", "b"), ("a", "bc"), ("ab", "c"), ("b", "")];
        let mut glances = Glances::default();
        for key in keys {
            glances.push(key, Glance::default());
        }
        for (index, key) in keys.into_iter().enumerate() {
            glances.change(key, |glance| glance.missing = index % 2 == 0);
        }
        glances.change(("a", "c"), |_| panic!("it is not there"));
        glances.change(("abc", ""), |_| panic!("it is not there"));
        let found: Vec<_> = glances
            .iter()
            .map(|(key, glance)| (key, glance.missing))
            .collect();
        let expected: Vec<_> = keys.into_iter().zip([true, false, true, false]).collect();
        assert_eq!(found, expected);
    }
}
