//! When a poll may leave the rows of its overlap unread.
//!
//! Polls read them again since a transaction that is still open may commit a row behind the newest one. Once a row has been the newest for
//! longer than the overlap allows such a transaction, and all behind it was read after that, nothing more is to come there. What a poll
//! would read in vain is then read at a pace, however often polls come: a cursor that does not do as was promised is found later, not
//! never. What fits into a page is read by every poll.

use std::time::Duration;

use crate::model::Timestamp;
use crate::planted::{Bug, is_planted};

/// Nothing is taken to be complete earlier than this after its newest row was found.
const PATIENCE_MIN: Duration = Duration::from_secs(60);

/// How long a row has to be the newest before nothing more is expected behind it: twice what the overlap allows for.
pub(super) fn patience(overlap: Duration) -> Duration {
    if is_planted(Bug::CalmAtOnce) {
        return Duration::ZERO;
    }
    overlap.saturating_mul(2).max(PATIENCE_MIN)
}

/// How fast rows in which nothing is expected are read again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// So few are read by every poll.
    pub(super) page_rows: u32,
    /// More are read again after this long for each of them.
    pub(super) rest_per_row: Duration,
}

/// What the polls found so far that read all of the overlap, while nothing newer comes.
#[derive(Debug, Default)]
pub(super) struct Calm(Option<Reading>);

#[derive(Debug)]
struct Reading {
    /// The newest cursor there is.
    newest: String,
    /// When a poll had found it.
    known_since: Timestamp,
    /// When the last poll began that read all of the overlap.
    began_at: Timestamp,
    /// How many rows lay there.
    rows: u64,
}

impl Calm {
    /// A poll has read all of the overlap, so many rows, and nothing holds its cursor back behind the newest.
    pub(super) fn read(
        &mut self,
        newest: &str,
        began_at: Timestamp,
        ended_at: Timestamp,
        rows: u64,
    ) {
        let before = self.0.take().filter(|before| before.newest == newest);
        self.0 = Some(Reading {
            newest: newest.to_owned(),
            known_since: before.map_or(ended_at, |before| before.known_since),
            began_at,
            rows,
        });
    }

    /// Nothing is known any more of what lies behind the newest cursor.
    pub(super) fn forget(&mut self) {
        self.0 = None;
    }

    /// The cursor behind which a poll that begins now need not read.
    pub(super) fn ends_at(&self, now: Timestamp, patience: Duration, pace: Pace) -> Option<&str> {
        let reading = self.0.as_ref()?;
        let is_complete = reading.began_at.since(reading.known_since) >= patience
            && reading.began_at >= reading.known_since;
        let is_page = reading.rows <= u64::from(pace.page_rows);
        let rows = u32::try_from(reading.rows).unwrap_or(u32::MAX);
        let rest = pace.rest_per_row.saturating_mul(rows);
        // Whatever became of the clock.
        let is_early = now >= reading.began_at && now.since(reading.began_at) < rest;
        (is_complete && !is_page && is_early).then_some(&*reading.newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);
    const PACE: Pace = Pace {
        page_rows: 500,
        rest_per_row: Duration::from_millis(2),
    };

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000).plus(Duration::from_secs(seconds))
    }

    /// After polls that each took a second.
    fn after(polls: &[(&str, u64, u64)]) -> Calm {
        let mut calm = Calm::default();
        for (newest, began_at, rows) in polls {
            calm.read(newest, at(*began_at), at(began_at + 1), *rows);
        }
        calm
    }

    fn ends_at(calm: &Calm, now: u64) -> Option<&str> {
        calm.ends_at(at(now), PATIENCE, PACE)
    }

    #[test]
    fn nothing_is_left_unread_before_a_poll_that_began_late_enough_has_read_it() {
        for (second, expected) in [(1, None), (60, None), (61, Some("9")), (70, Some("9"))] {
            let calm = after(&[("9", 0, 10_000), ("9", second, 10_000)]);
            assert_eq!(ends_at(&calm, second), expected, "{second}");
        }
        let calm = after(&[("9", 0, 10_000)]);
        assert_eq!(ends_at(&calm, 1_000), None, "nothing has read it since");
    }

    #[test]
    fn rows_are_read_again_at_their_pace() {
        for (rows, rest) in [(501, 1), (10_000, 20), (1_000_000, 2_000)] {
            let calm = after(&[("9", 0, rows), ("9", 100, rows)]);
            assert_eq!(ends_at(&calm, 100 + rest - 1), Some("9"), "{rows}");
            assert_eq!(ends_at(&calm, 100 + rest + 1), None, "{rows}");
        }
    }

    #[test]
    fn a_page_of_rows_is_read_by_every_poll() {
        for (rows, expected) in [(500, None), (501, Some("9"))] {
            let calm = after(&[("9", 0, rows), ("9", 100, rows)]);
            assert_eq!(ends_at(&calm, 100), expected);
        }
    }

    #[test]
    fn a_newer_row_is_waited_for_anew() {
        let calm = after(&[("9", 0, 10_000), ("9", 100, 10_000), ("10", 101, 10_000)]);
        assert_eq!(ends_at(&calm, 102), None);
        let mut calm = after(&[("9", 0, 10_000), ("9", 100, 10_000)]);
        calm.forget();
        assert_eq!(ends_at(&calm, 101), None);
        calm.read("9", at(102), at(103), 10_000);
        assert_eq!(ends_at(&calm, 104), None);
    }

    #[test]
    fn a_clock_that_was_set_back_ends_the_rest() {
        let calm = after(&[("9", 0, 10_000), ("9", 100, 10_000)]);
        assert_eq!(ends_at(&calm, 99), None);
        let calm = after(&[("9", 200, 10_000), ("9", 100, 10_000)]);
        assert_eq!(ends_at(&calm, 101), None);
    }

    #[test]
    fn patience_is_twice_the_overlap_and_a_minute_at_least() {
        for (overlap, expected) in [(0, 60), (30, 60), (31, 62), (3_600, 7_200)] {
            let expected = Duration::from_secs(expected);
            assert_eq!(patience(Duration::from_secs(overlap)), expected);
        }
        assert_eq!(patience(Duration::MAX), Duration::MAX);
    }
}
