//! What is measured, one file for each kind.

pub(crate) mod backlog;
pub(crate) mod delivery;
pub(crate) mod floor;
pub(crate) mod listen;
pub(crate) mod poll;
pub(crate) mod size;
pub(crate) mod sweep;

pub(crate) use crate::figure::{float, megabytes};
pub(crate) use crate::process::assert_agrees;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// How often each pair of measurements is repeated.
    pub(crate) rounds: u64,
    /// Resources that change where answers take no time.
    pub(crate) changes: u64,
    /// Resources that change where an answer takes 50 ms, for each place in flight.
    pub(crate) slow_changes_each: u64,
    /// Resources of a small and of a large fleet.
    pub(crate) few: u64,
    pub(crate) many: u64,
    /// Resources that change at once in a backlog.
    pub(crate) backlog: u64,
    /// Seconds during which an idle daemon is watched.
    pub(crate) idle_seconds: u64,
    /// Changes made one at a time.
    pub(crate) singles: u64,
}

impl Scale {
    /// With another number of changes, where one is asked for: few, under a profiler.
    pub(crate) fn or_asked_for(self) -> Self {
        let asked = std::env::var("BARS_CHANGES").ok();
        let changes = asked.map(|text| text.parse().expect("BARS_CHANGES is a number"));
        Self {
            changes: changes.unwrap_or(self.changes),
            ..self
        }
    }

    pub(crate) const FULL: Self = Self {
        rounds: 3,
        changes: 20_000,
        slow_changes_each: 80,
        few: 10_000,
        many: 1_000_000,
        backlog: 500_000,
        idle_seconds: 120,
        singles: 40,
    };

    /// Enough to see that everything still works.
    pub(crate) const SHORT: Self = Self {
        rounds: 1,
        changes: 300,
        slow_changes_each: 1,
        few: 100,
        many: 1_200,
        backlog: 600,
        idle_seconds: 2,
        singles: 3,
    };
}
