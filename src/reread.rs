//! Secrets of rows that were read again on behalf of dispatch, in memory until the request that they are for.
//!
//! Without them a row whose secrets change between any two readings would never be sent: the value that a request needs would
//! always be another one than the value that it was claimed for. Nothing here is written down or shown.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::{ResourceKey, SecretSet};

/// The most resources whose secrets are kept; past it all are forgotten, and read again as they are needed.
const KEPT_MAX: usize = 1000;

/// What a re-read found, handed from the pass that reads to the delivery that sends.
#[derive(Clone, Default)]
pub struct Reread(Arc<Mutex<BTreeMap<ResourceKey, SecretSet>>>);

impl Reread {
    /// Keeps the secrets of a row that was just read again, in place of those that were kept before.
    pub(crate) fn keep(&self, key: &ResourceKey, secrets: SecretSet) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX && !kept.contains_key(key) {
            kept.clear();
        }
        kept.insert(key.clone(), secrets);
    }

    /// Gives away what is kept of a resource. Whoever takes it must make sure that it is what was claimed.
    pub(crate) fn take(&self, key: &ResourceKey) -> Option<SecretSet> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(key)
    }
}

impl fmt::Debug for Reread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reread").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> ResourceKey {
        ResourceKey::new("icfg_1", &format!("res_{n}")).expect("two ids")
    }

    #[test]
    fn what_is_taken_is_no_longer_kept() {
        let reread = Reread::default();
        reread.keep(&key(1), SecretSet::default());
        assert!(reread.take(&key(2)).is_none());
        assert!(reread.take(&key(1)).is_some());
        assert!(reread.take(&key(1)).is_none());
    }

    #[test]
    fn no_more_than_so_many_are_kept() {
        let reread = Reread::default();
        (0..=KEPT_MAX).for_each(|n| reread.keep(&key(n), SecretSet::default()));
        assert!(reread.take(&key(0)).is_none());
        assert!(reread.take(&key(KEPT_MAX)).is_some());
    }
}
