//! The guard's holds: what a pass beyond the blast radius leaves for a person to decide.

use crate::model::{Origin, Timestamp};
use crate::plan::guard::{Found, Summary};

/// Where a hold is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HoldState {
    /// A pass is under way: what the guard counts waits for its end. Left when the pass ends, deleted if it is within the limits.
    Provisional,
    /// The pass is beyond the limits: its changes wait for a person.
    Open,
    /// Closed: a person let the last of its entries go.
    Released,
    /// Closed: a person discarded the last of its entries.
    Discarded,
    /// Closed by itself: the source went back, so nothing is left under it.
    Dissolved,
}

impl HoldState {
    /// All states.
    pub const ALL: [Self; 5] = [
        Self::Provisional,
        Self::Open,
        Self::Released,
        Self::Discarded,
        Self::Dissolved,
    ];

    /// The state's name in the state database and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Provisional => "provisional",
            Self::Open => "open",
            Self::Released => "released",
            Self::Discarded => "discarded",
            Self::Dissolved => "dissolved",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether it keeps entries back.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Provisional | Self::Open)
    }
}

/// A hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Its number, never used twice.
    pub id: i64,
    /// Where it is in its life.
    pub state: HoldState,
    /// What kind of pass found the changes.
    pub origin: Origin,
    /// When it was opened; of a provisional one, when its pass first found a change that counts.
    pub opened_at: Timestamp,
    /// When it was closed.
    pub closed_at: Option<Timestamp>,
    /// What the guard counted within its window when changes last came under it; those that were sent before are included.
    pub found: Found,
}

/// A hold and what its entries would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldReport {
    /// The hold.
    pub hold: Hold,
    /// How many entries it keeps back.
    pub entries: u64,
    /// What they would do, of the first [`SUMMARY_ENTRIES_MAX`] of them.
    pub summary: Summary,
}

/// How many entries a report looks at.
pub const SUMMARY_ENTRIES_MAX: u32 = 10_000;

/// Something that the guard did, to be told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardEvent {
    /// A pass is beyond the limits: its changes are held.
    Held {
        /// The hold.
        hold: i64,
        /// What was counted within the window.
        found: Found,
    },
    /// A further pass came under a hold that was open already.
    Joined {
        /// The hold.
        hold: i64,
        /// What was counted within the window.
        found: Found,
    },
    /// The source went back: nothing is left under the hold.
    Dissolved {
        /// The hold.
        hold: i64,
    },
}
