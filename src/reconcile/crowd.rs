//! Rows of one cursor that are too many for polls.
//!
//! A statement that changes a million rows, or adds the column with a default, leaves them with one cursor. In the order of a poll they
//! are ordered by their ids, which no index of the cursor serves: the source looks at all of them for each page. A sweep reads in the
//! order of an index. So polls pass over a crowd and call for a sweep, and for one more once no transaction can add to the crowd.

use std::collections::VecDeque;

use crate::model::{RawRowRef, RawRows, Timestamp};
use crate::source::{PollPage, SourceError};

use super::{PollReport, Reconciler};

/// The most crowds that are kept in mind. One that was forgotten is counted again, and called for again, when a poll meets it.
const CROWDS_MAX: usize = 16;

/// The crowds that polls have met.
#[derive(Debug, Default)]
pub(super) struct Crowds {
    cursors: VecDeque<String>,
    /// Where the last pass began, and which crowd it met first.
    ahead: Option<(String, String)>,
    /// When nothing can join them any more.
    complete_at: Option<Timestamp>,
}

impl Crowds {
    /// Whether a sweep was called for since the rows with this cursor were found to be a crowd.
    pub(super) fn is_known(&self, cursor: &str) -> bool {
        self.cursors.iter().any(|known| known == cursor)
    }

    /// The rows with this cursor are a crowd, which may grow until `complete_at`.
    pub(super) fn found(&mut self, cursor: &str, complete_at: Timestamp) {
        if self.cursors.len() == CROWDS_MAX {
            self.cursors.pop_front();
        }
        self.cursors.push_back(cursor.to_owned());
        self.complete_at = self.complete_at.max(Some(complete_at));
    }

    /// A pass from this cursor on met a crowd first, or none.
    pub(super) fn met(&mut self, from: &str, first: Option<&str>) {
        self.ahead = first.map(|first| (from.to_owned(), first.to_owned()));
    }

    /// The crowd that a pass from this cursor on will meet, if the last one began there and met one.
    pub(super) fn ahead_of(&self, from: &str) -> Option<&str> {
        let (began, met) = self.ahead.as_ref()?;
        (began == from).then_some(met)
    }

    /// Whether a sweep is due since nothing can join the crowds any more; said once.
    pub(super) fn are_complete(&mut self, now: Timestamp) -> bool {
        let is_due = self
            .complete_at
            .is_some_and(|complete_at| now >= complete_at);
        if is_due {
            self.complete_at = None;
        }
        is_due
    }

    /// Nothing is known of crowds any more.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

impl Reconciler {
    /// Whether a page ends amid rows of one cursor that are too many for a poll.
    pub(super) async fn is_crowded(
        &self,
        page: &PollPage,
        counted: &mut Option<String>,
    ) -> Result<bool, SourceError> {
        let Some(next) = &page.next else {
            return Ok(false);
        };
        let cursor = &*next.cursor;
        if self.crowds().is_known(cursor) {
            return Ok(true);
        }
        // A page in which few rows have its last cursor shows no crowd; the next one does.
        let has_many = 2 * rows_before(&page.rows, cursor) < page.rows.len();
        if !has_many || counted.as_deref() == Some(cursor) {
            return Ok(false);
        }
        *counted = Some(cursor.to_owned());
        let most = self.settings.crowd_rows;
        Ok(self.source.count_at(cursor, most.saturating_add(1)).await? > most)
    }

    /// Leaves the rows of a page's last cursor, and all that follow with the same, to a sweep: all of them, for the guard's sake. Returns how
    /// many the source had put in order for the page.
    pub(super) fn pass_over_crowd(
        &self,
        page: &mut PollPage,
        complete_at: Timestamp,
        report: &mut PollReport,
    ) -> u64 {
        let Some(next) = &mut page.next else {
            return 0;
        };
        let before = rows_before(&page.rows, &next.cursor);
        let is_ordered = before < page.rows.len();
        page.rows.truncate(before);
        next.key = None;
        let mut crowds = self.crowds();
        if !crowds.is_known(&next.cursor) {
            crowds.found(&next.cursor, complete_at);
            self.call_for_sweep("one cursor has more rows than a poll reads");
        }
        report.left_to_sweeps.push(next.cursor.clone());
        u64::from(self.settings.crowd_rows) * u64::from(is_ordered)
    }
}

/// How many rows of a page come before those with its last cursor.
fn rows_before(rows: &RawRows, cursor: &str) -> usize {
    let is_it = |row: RawRowRef<'_>| row.cursor() == Some(cursor);
    rows.iter().position(is_it).unwrap_or(rows.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    #[test]
    fn that_crowds_are_complete_is_said_once_when_the_last_of_them_is() {
        let mut crowds = Crowds::default();
        assert!(!crowds.are_complete(at(i64::MAX)));
        crowds.found("7", at(60));
        crowds.found("8", at(70));
        crowds.found("6", at(65));
        let said = [60, 69, 70, 71].map(|now| crowds.are_complete(at(now)));
        assert_eq!(said, [false, false, true, false]);
        assert!(["6", "7", "8"].iter().all(|cursor| crowds.is_known(cursor)));
        assert!(!crowds.is_known("9"));
        crowds.found("9", at(80));
        crowds.forget();
        assert!(!crowds.is_known("9") && !crowds.are_complete(at(80)));
    }

    #[test]
    fn a_crowd_is_ahead_where_the_last_pass_began_alone() {
        let mut crowds = Crowds::default();
        assert_eq!(crowds.ahead_of("5"), None);
        crowds.met("5", Some("7"));
        assert_eq!(
            (crowds.ahead_of("5"), crowds.ahead_of("6")),
            (Some("7"), None)
        );
        crowds.met("5", None);
        assert_eq!(crowds.ahead_of("5"), None);
        crowds.met("5", Some("7"));
        crowds.forget();
        assert_eq!(crowds.ahead_of("5"), None);
    }

    #[test]
    fn so_many_crowds_are_kept_in_mind_and_the_oldest_is_forgotten_first() {
        let mut crowds = Crowds::default();
        for cursor in 0..=CROWDS_MAX {
            crowds.found(&cursor.to_string(), at(0));
        }
        let known = [0, 1, CROWDS_MAX].map(|cursor| crowds.is_known(&cursor.to_string()));
        assert_eq!(known, [false, true, true]);
    }
}
