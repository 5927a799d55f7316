//! A map that copies share.

use std::collections::{BTreeMap, btree_map};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A map whose copies share its entries until one of them is changed, which then has its own.
///
/// A record is copied at each step of a delivery, and most steps change none of its maps. Maps that are still shared are known to be
/// equal without a look at what is in them.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct SharedMap<K, V>(Arc<BTreeMap<K, V>>);

impl<K, V> SharedMap<K, V> {
    /// A map without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::from(BTreeMap::new())
    }

    /// Whether it has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, V> From<BTreeMap<K, V>> for SharedMap<K, V> {
    fn from(map: BTreeMap<K, V>) -> Self {
        Self(Arc::new(map))
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for SharedMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        BTreeMap::from(entries).into()
    }
}

/// One entry after the other: there are few, mostly in order, and a map that is made of all at once would sort them in a list first.
impl<K: Ord, V> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = BTreeMap::new();
        map.extend(entries);
        map.into()
    }
}

impl<K, V> Deref for SharedMap<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Whoever asks for it gets a map of its own.
impl<K: Clone, V: Clone> DerefMut for SharedMap<K, V> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        Arc::make_mut(&mut self.0)
    }
}

impl<'a, K, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = btree_map::Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K: Clone, V: Clone> IntoIterator for SharedMap<K, V> {
    type Item = (K, V);
    type IntoIter = btree_map::IntoIter<K, V>;

    fn into_iter(self) -> Self::IntoIter {
        Arc::unwrap_or_clone(self.0).into_iter()
    }
}

impl<K: Serialize, V: Serialize> Serialize for SharedMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Deserialize<'de> for SharedMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_a_copy_leaves_the_others_as_they_are() {
        let first = SharedMap::from([(1, "a"), (2, "b")]);
        let mut second = first.clone();
        second.insert(2, "c");
        second.remove(&1);
        assert_eq!(first, SharedMap::from([(1, "a"), (2, "b")]));
        assert_eq!(second, SharedMap::from([(2, "c")]));
    }

    #[test]
    fn a_copy_shares_the_entries_until_it_is_changed() {
        let first = SharedMap::from([(1, "a")]);
        let mut second = first.clone();
        assert!(Arc::ptr_eq(&first.0, &second.0));
        second.insert(1, "a");
        assert!(!Arc::ptr_eq(&first.0, &second.0));
        assert_eq!(first, second);
    }

    #[test]
    fn it_is_written_and_read_as_the_map_that_it_holds() {
        let map = SharedMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
        let text = serde_json::to_string(&map).expect("JSON");
        assert_eq!(text, r#"{"a":1,"b":2}"#);
        let read: SharedMap<String, i32> = serde_json::from_str(&text).expect("a map");
        assert_eq!(read, map);
    }
}
