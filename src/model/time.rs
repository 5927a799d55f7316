//! Wall-clock instants as the state database keeps them: milliseconds since the Unix epoch.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// An instant in milliseconds since the Unix epoch, given as an argument wherever a decision needs it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The epoch itself: earlier than anything that can be recorded.
    pub const EPOCH: Self = Self(0);

    /// An instant from milliseconds since the epoch.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// The instant `duration` later, saturating at the end of time.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// The instant `duration` earlier, saturating at the beginning of time.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// The instant of a database's timestamp in its own text form, in UTC when it says no offset; `None` for what is none, lies
    /// before the epoch, or has another offset.
    #[must_use]
    pub fn from_sql(text: &str) -> Option<Self> {
        let text = ["+00:00", "+00", "Z"]
            .iter()
            .find_map(|utc| text.strip_suffix(utc))
            .unwrap_or(text)
            .trim_end();
        humantime::parse_rfc3339_weak(text).ok().map(Self::from)
    }

    /// How long after `earlier` this instant is; zero when it is not after it.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The same instant as a `SystemTime`; instants before the epoch become the epoch.
    #[must_use]
    pub fn to_system_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(u64::try_from(self.0).unwrap_or(0))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }
}

/// RFC 3339 in UTC with milliseconds.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The end of what the format can say: later times come of a clock or a file that is wrong, and must not keep anybody from reading.
        const LAST: Timestamp = Timestamp(253_402_300_799_999);
        humantime::format_rfc3339_millis((*self).min(LAST).to_system_time()).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_after_the_last_that_can_be_written_is_shown_as_that() {
        let last = "9999-12-31T23:59:59.999Z";
        assert_eq!(Timestamp::from_millis(i64::MAX).to_string(), last);
        assert_eq!(
            Timestamp::from_millis(253_402_300_799_999).to_string(),
            last
        );
    }

    #[test]
    fn timestamps_of_databases_are_understood_as_utc() {
        let instant = Some(Timestamp::from_millis(1_780_000_000_250));
        for text in [
            "2026-05-28 20:26:40.25+00",
            "2026-05-28 20:26:40.250000",
            "2026-05-28T20:26:40.25Z",
            "2026-05-28T20:26:40.250+00:00",
        ] {
            assert_eq!(Timestamp::from_sql(text), instant, "{text}");
        }
        for text in [
            "",
            "41207",
            "infinity",
            "2026-05-28 22:26:40+02",
            "0044-03-15 12:00:00 BC",
            "2026-05-28",
        ] {
            assert_eq!(Timestamp::from_sql(text), None, "{text}");
        }
    }
}
