//! When changes were committed that Vercel has not acknowledged yet: from a row's cursor to its acknowledgement.
//!
//! Kept in this process only, for the changes that its own polls found; another daemon's deliveries are not measured here.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::model::{ResourceKey, Timestamp};

/// The most changes that are kept in mind; beyond them, all are forgotten, and some deliveries are not measured.
const COMMITS_MAX: usize = 100_000;

/// The newest change of each resource.
#[derive(Debug, Default)]
pub struct Commits(Mutex<BTreeMap<ResourceKey, Commit>>);

#[derive(Debug, Clone, Copy)]
struct Commit {
    committed_at: Timestamp,
    found_at: Timestamp,
}

impl Commits {
    /// Takes note of a change that was found.
    pub fn found(&self, key: &ResourceKey, committed_at: Timestamp, found_at: Timestamp) {
        let mut commits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if commits.len() >= COMMITS_MAX {
            commits.clear();
        }
        let commit = Commit {
            committed_at,
            found_at,
        };
        commits.insert(key.clone(), commit);
    }

    /// How long the newest change of a resource took until `now`, when a request was acknowledged that was sent at `sent_at`;
    /// `None` when it is not known, or was found after the request had left.
    pub fn acknowledged(
        &self,
        key: &ResourceKey,
        sent_at: Timestamp,
        now: Timestamp,
    ) -> Option<Duration> {
        let mut commits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let commit = commits
            .get(key)
            .filter(|c| c.found_at <= sent_at)
            .copied()?;
        commits.remove(key);
        Some(now.since(commit.committed_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InstallationId, ResourceId};

    fn key(n: usize) -> ResourceKey {
        ResourceKey {
            installation_id: InstallationId::new("icfg_1").expect("an id"),
            resource_id: ResourceId::new(&format!("res_{n}")).expect("an id"),
        }
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn a_request_that_left_before_the_newest_change_was_found_does_not_count_for_it() {
        let commits = Commits::default();
        commits.found(&key(1), at(100), at(150));
        commits.found(&key(1), at(200), at(250));
        assert_eq!(commits.acknowledged(&key(1), at(240), at(260)), None);
        let took = commits.acknowledged(&key(1), at(250), at(300));
        assert_eq!(took, Some(Duration::from_millis(100)));
        assert_eq!(
            commits.acknowledged(&key(1), at(350), at(400)),
            None,
            "once"
        );
    }

    #[test]
    fn what_is_kept_in_mind_is_bounded() {
        let commits = Commits::default();
        for n in 0..=COMMITS_MAX {
            commits.found(&key(n), at(0), at(0));
        }
        assert_eq!(commits.acknowledged(&key(0), at(1), at(2)), None);
        assert!(
            commits
                .acknowledged(&key(COMMITS_MAX), at(1), at(2))
                .is_some()
        );
    }
}
