//! The client's own rate limit: requests a minute, spread evenly with a small burst (generic cell rate algorithm).
//!
//! All that is kept for an installation is one instant, `full_at`, at which its allowance is whole again.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::model::Timestamp;

/// How much of an allowance may be used at once.
const BURST: Duration = Duration::from_secs(5);

/// A number of requests a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    interval: Duration,
}

impl Rate {
    /// So many requests a minute.
    #[must_use]
    pub fn per_minute(requests: NonZeroU32) -> Self {
        Self {
            interval: Duration::from_secs(60) / requests.get(),
        }
    }

    /// Whether nothing may be sent at `now`.
    ///
    /// An instant that lies further ahead than any allowance reaches comes from a clock that went back, and holds nothing up.
    #[must_use]
    pub fn is_used_up(self, full_at: Timestamp, now: Timestamp) -> bool {
        let burst = BURST.max(self.interval);
        full_at.plus(self.interval) > now.plus(burst) && full_at <= now.plus(burst * 4)
    }

    /// Where the allowance stands after a request at `now`.
    #[must_use]
    pub fn spend(self, full_at: Option<Timestamp>, now: Timestamp) -> Timestamp {
        full_at.unwrap_or(now).max(now).plus(self.interval)
    }
}
