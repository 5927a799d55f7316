//! The change feed on MySQL and MariaDB: numbers of InnoDB become visible out of order, so those left out are waited for.
//!
//! A number that is missing below the highest one belongs to a transaction that is still open, or was rolled back, or was trimmed. It is
//! looked for at every poll until it can come no more: when every transaction has ended that was open when it was missed first. That is
//! exact, and needs the right to see all transactions (PROCESS); without it a number is given up when it has been missing for as long as
//! `[source] overlap`. Each entry is read once.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, MySqlConnection, Row as _};

use super::{FIRST_TIME, Found, LOST, Wanted};

/// The most ranges of missing numbers that are kept; beyond it neighbours become one, and what lies between is read again.
const RANGES_MAX: usize = 200;
/// How many marks share the time that a number is waited for.
const MARKS: u32 = 16;
/// The list of transactions may be some tenths of a second old, and their starts are whole seconds.
const LIST_AGE_MILLIS: i64 = 1_000;
/// InnoDB makes the list anew only when nobody has read it for a tenth of a second: sooner than this it is not asked for again.
const LIST_REST_MILLIS: i64 = 150;

/// When a missing number can come no more.
#[derive(Debug, Clone, Copy)]
enum Wait {
    /// When it has been missing for so long.
    For(Duration),
    /// When the transactions have ended that were open when it was missed.
    Ended {
        /// When it was asked which are open, in milliseconds of the server.
        asked_at: i64,
        /// The start of the oldest open one.
        oldest: Option<i64>,
    },
    /// The list was read a moment ago, and is let rest until it can say something new.
    Unasked,
}

/// When this process last read the list of transactions, in milliseconds of the server; 0 before it did.
#[derive(Debug, Default)]
pub(in super::super) struct LastAsked(AtomicI64);

impl LastAsked {
    /// Whether the list may be read now, which is taken as done.
    fn may_ask(&self, now: i64) -> bool {
        let last = self.0.load(Ordering::Relaxed);
        let rests = (0..LIST_REST_MILLIS).contains(&now.saturating_sub(last));
        if !rests {
            self.0.store(now, Ordering::Relaxed);
        }
        !rests
    }
}

impl Wait {
    /// Whether what was missing at a time is settled at `now`.
    fn is_over(self, at: i64, now: i64) -> bool {
        match self {
            Self::For(patience) => {
                let patience = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
                now.saturating_sub(at) >= patience
            }
            Self::Ended { asked_at, oldest } => {
                at.saturating_add(LIST_AGE_MILLIS) <= asked_at
                    && oldest.is_none_or(|oldest| at < oldest)
            }
            Self::Unasked => false,
        }
    }
}

/// Which entries have been read: all up to `top` but those in `missing`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Place {
    top: u64,
    /// Ranges, both ends in them, in order.
    missing: Vec<(u64, u64)>,
    /// How high the numbers were at some times of the server (milliseconds), in order.
    marks: Vec<(u64, i64)>,
    /// The highest entry and when it was written: while it is there, the feed was not trimmed past us.
    newest: Option<(u64, String)>,
}

impl Place {
    /// Takes the entries of these numbers as read. They are in order, and all that were asked for up to the last of them.
    fn take(&mut self, numbers: &[u64]) {
        for &number in numbers {
            if number > self.top {
                if number > self.top + 1 {
                    self.missing.push((self.top + 1, number - 1));
                }
                self.top = number;
            } else {
                self.found(number);
            }
        }
        while self.missing.len() > RANGES_MAX {
            self.join();
        }
    }

    /// A missing number was there after all.
    fn found(&mut self, number: u64) {
        let Some(index) = self
            .missing
            .iter()
            .position(|(low, high)| (*low..=*high).contains(&number))
        else {
            return;
        };
        let (low, high) = self.missing.remove(index);
        if number < high {
            self.missing.insert(index, (number + 1, high));
        }
        if low < number {
            self.missing.insert(index, (low, number - 1));
        }
    }

    /// Makes one range of the two neighbours that are nearest to each other.
    fn join(&mut self) {
        let distance = |pair: &[(u64, u64)]| pair[1].0 - pair[0].1;
        let nearest = (0..self.missing.len() - 1)
            .min_by_key(|index| distance(&self.missing[*index..index + 2]))
            .unwrap_or(0);
        let (_, high) = self.missing.remove(nearest + 1);
        self.missing[nearest].1 = high;
    }

    /// Gives up numbers that can come no more, and remembers how high the numbers are at `now`, at least `step` milliseconds after
    /// the last time.
    fn watch(&mut self, now: i64, wait: Wait, step: i64) {
        let mut settled = 0;
        self.marks.retain(|(top, at)| {
            let is_old = wait.is_over(*at, now);
            if is_old {
                settled = settled.max(*top);
            }
            // A mark in the future was made before the clock was set back: another one takes its place.
            !is_old && *at <= now
        });
        self.missing.retain_mut(|(low, high)| {
            *low = (*low).max(settled + 1);
            low <= high
        });
        if self.missing.is_empty() {
            self.marks.clear();
            return;
        }
        let is_due = self
            .marks
            .last()
            .is_none_or(|(top, at)| *top < self.top && now - at >= step);
        if is_due {
            self.marks.push((self.top, now));
        }
        // A transaction that stays open for hours: numbers between two marks are settled with the later one.
        if self.marks.len() > 2 * MARKS as usize {
            let mut keep = false;
            self.marks.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }
}

/// The entries after a place.
pub(in super::super) async fn page(
    connection: &mut MySqlConnection,
    wanted: Wanted<'_>,
    list: &LastAsked,
) -> Result<Found, sqlx::Error> {
    let mut found = Found::default();
    let known = super::read::<Place>(wanted.from);
    // Before anything is read: what is missing then was missing at this time, and what has ended by now is in what is read.
    let wait = match &known {
        Some(place) if !place.missing.is_empty() => open_transactions(connection, list).await?,
        _ => None,
    };
    let begun_at = now(connection).await?;
    let mut place = match known {
        Some(place) if is_there(connection, wanted, &place).await? => place,
        known => {
            // Entries of transactions that are open now may have any number: so the whole feed is read, missing numbers and all.
            found.lost = Some(if known.is_some() { LOST } else { FIRST_TIME });
            Place::default()
        }
    };
    let ranges = " OR sequence BETWEEN ? AND ?".repeat(place.missing.len());
    let sql = format!(
        "SELECT CAST(sequence AS UNSIGNED), CAST(changed_at AS CHAR), CAST(installation_id AS CHAR), CAST(resource_id AS CHAR)
         FROM {}
         WHERE sequence > ?{ranges}
         ORDER BY sequence
         LIMIT {}",
        wanted.feed.quoted('`'),
        wanted.limit
    );
    let mut query = sqlx::query(AssertSqlSafe(sql)).bind(place.top);
    for (low, high) in &place.missing {
        query = query.bind(*low).bind(*high);
    }
    let rows = query.fetch_all(&mut *connection).await?;
    let mut numbers = Vec::with_capacity(rows.len());
    for row in &rows {
        let number: u64 = row.try_get_unchecked(0)?;
        numbers.push(number);
        let is_newest = place
            .newest
            .as_ref()
            .is_none_or(|(newest, _)| number > *newest);
        if is_newest {
            place.newest = Some((number, text(row, 1)?.unwrap_or_default()));
        }
        found.ids.push((text(row, 2)?, text(row, 3)?));
    }
    found.more = u32::try_from(rows.len()).is_ok_and(|count| count >= wanted.limit);
    place.take(&numbers);
    if !found.more {
        let patience = i64::try_from(wanted.feed.patience.as_millis()).unwrap_or(i64::MAX);
        let step = patience / i64::from(MARKS);
        // A transaction may have begun, and taken a number, while this was read: a mark says when the reading had ended.
        match wait.unwrap_or(Wait::For(wanted.feed.patience)) {
            Wait::For(patience) => place.watch(begun_at, Wait::For(patience), step),
            wait => {
                let read_at = now(connection).await?;
                place.watch(read_at, wait, step.min(LIST_AGE_MILLIS));
            }
        }
    }
    found.position = super::write(&place);
    Ok(found)
}

/// The server's time in milliseconds.
async fn now(connection: &mut MySqlConnection) -> Result<i64, sqlx::Error> {
    let row = sqlx::query("SELECT CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)")
        .fetch_one(connection)
        .await?;
    row.try_get_unchecked(0)
}

/// Whether all transactions that can add to the feed are seen here: the role has the right to, and the server is neither a replica nor
/// one of several that hand out numbers (they then leave gaps for each other).
pub(in super::super) async fn sees_everyone(
    connection: &mut MySqlConnection,
) -> Result<bool, sqlx::Error> {
    // Without the right the list of transactions is empty instead of refused, so the right itself is looked up.
    let row = sqlx::query(
        "SELECT CAST(
            @@global.auto_increment_increment = 1
            AND @@global.read_only = 0
            AND EXISTS (
                SELECT 1
                FROM information_schema.USER_PRIVILEGES AS p
                WHERE p.PRIVILEGE_TYPE = 'PROCESS'
                  AND p.GRANTEE = CONCAT('''', REPLACE(CURRENT_USER(), '@', '''@'''), '''')
            )
         AS SIGNED)",
    )
    .persistent(false)
    .fetch_one(connection)
    .await?;
    Ok(row.try_get_unchecked::<i64, _>(0)? == 1)
}

/// Which transactions that may have taken a number are open; `None` when not all can be seen.
async fn open_transactions(
    connection: &mut MySqlConnection,
    list: &LastAsked,
) -> Result<Option<Wait>, sqlx::Error> {
    if !sees_everyone(connection).await? {
        return Ok(None);
    }
    let asked_at = now(connection).await?;
    if !list.may_ask(asked_at) {
        return Ok(Some(Wait::Unasked));
    }
    // A start is in the session's time zone, which is UTC.
    let row = sqlx::query(
        "SELECT CAST(MIN(UNIX_TIMESTAMP(trx_started)) * 1000 AS SIGNED)
         FROM information_schema.INNODB_TRX
         WHERE trx_is_read_only = 0
           AND trx_mysql_thread_id <> CONNECTION_ID()",
    )
    .fetch_one(connection)
    .await?;
    let oldest: Option<i64> = row.try_get_unchecked(0)?;
    Ok(Some(Wait::Ended { asked_at, oldest }))
}

/// Whether the feed still has the newest entry that was read.
async fn is_there(
    connection: &mut MySqlConnection,
    wanted: Wanted<'_>,
    place: &Place,
) -> Result<bool, sqlx::Error> {
    let Some((number, written_at)) = &place.newest else {
        return Ok(true);
    };
    let sql = format!(
        "SELECT CAST(changed_at AS CHAR) FROM {} WHERE sequence = ?",
        wanted.feed.quoted('`')
    );
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(*number)
        .fetch_optional(&mut *connection)
        .await?;
    match row {
        Some(row) => Ok(text(&row, 0)?.as_ref() == Some(written_at)),
        None => Ok(false),
    }
}

fn text(row: &sqlx::mysql::MySqlRow, index: usize) -> Result<Option<String>, sqlx::Error> {
    let bytes: Option<Vec<u8>> = row.try_get_unchecked(index)?;
    Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()))
}

/// Reads a place out of any text, for [`crate::source::fuzz`].
#[cfg(any(test, fuzzing))]
pub(in crate::source) fn read_place(text: &str) {
    if let Some(mut place) = super::read::<Place>(Some(text)) {
        place.take(&[1, 2, u64::MAX]);
        assert!(super::read::<Place>(Some(&super::write(&place))).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(16);
    const STEP: i64 = 1_000;

    fn place(numbers: &[u64]) -> Place {
        let mut place = Place::default();
        place.take(numbers);
        place
    }

    #[test]
    fn numbers_that_are_left_out_are_missing_until_they_come() {
        let mut place = place(&[1, 2, 5, 9]);
        assert_eq!(place.missing, [(3, 4), (6, 8)]);
        place.take(&[4, 7, 10]);
        assert_eq!(place.missing, [(3, 3), (6, 6), (8, 8)]);
        place.take(&[3, 6, 8]);
        assert_eq!(place.missing, []);
        assert_eq!(place.top, 10);
    }

    #[test]
    fn a_number_is_given_up_when_it_was_missing_for_long_enough_and_not_before() {
        let mut place = place(&[1, 3]);
        place.watch(1_000_000, Wait::For(PATIENCE), STEP);
        place.take(&[5]);
        place.watch(1_008_000, Wait::For(PATIENCE), STEP);
        place.watch(1_015_999, Wait::For(PATIENCE), STEP);
        assert_eq!(place.missing, [(2, 2), (4, 4)]);
        place.watch(1_016_000, Wait::For(PATIENCE), STEP);
        assert_eq!(place.missing, [(4, 4)]);
        place.watch(1_024_000, Wait::For(PATIENCE), STEP);
        assert_eq!(place.missing, []);
        assert_eq!(place.marks, []);
    }

    #[test]
    fn a_number_is_given_up_when_all_have_ended_that_were_open_when_it_was_missed() {
        let mut place = place(&[1, 3]);
        let ended = |asked_at, oldest| Wait::Ended { asked_at, oldest };
        place.watch(10_500, ended(9_000, None), STEP);
        // Its transaction began before the mark, or in the same second; hours later it is still waited for.
        for oldest in [9_000, 10_000] {
            place.watch(9_000_000, ended(9_000_000, Some(oldest)), STEP);
            assert_eq!(place.missing, [(2, 2)]);
        }
        // The list may have been made before the mark.
        place.watch(11_600, ended(11_400, None), STEP);
        assert_eq!(place.missing, [(2, 2)]);
        place.watch(11_700, ended(11_500, Some(11_000)), STEP);
        assert_eq!(place.missing, []);
    }

    #[test]
    fn the_list_of_transactions_rests_between_two_readings_and_settles_nothing_meanwhile() {
        let list = LastAsked::default();
        let asked: Vec<bool> = [10_000, 10_149, 10_150, 9_000, 9_150]
            .into_iter()
            .map(|now| list.may_ask(now))
            .collect();
        // A clock that went back is no reason to wait for it.
        assert_eq!(asked, [true, false, true, true, true]);
        let mut place = place(&[1, 3]);
        for now in [10_000, 900_000] {
            place.watch(now, Wait::Unasked, STEP);
            assert_eq!(place.missing, [(2, 2)]);
        }
    }

    #[test]
    fn marks_stay_few_while_a_transaction_is_open_for_long() {
        let mut place = place(&[1, 3]);
        for second in 0..10_000_u64 {
            let now = i64::try_from(second).expect("small") * 1_000 + 5_500;
            place.take(&[4 + second]);
            let wait = Wait::Ended {
                asked_at: now,
                oldest: Some(5_000),
            };
            place.watch(now, wait, STEP);
            assert!(place.marks.len() <= 2 * MARKS as usize);
        }
        assert_eq!(place.missing, [(2, 2)]);
        let end = Wait::Ended {
            asked_at: 20_000_000,
            oldest: None,
        };
        place.watch(20_000_000, end, STEP);
        assert_eq!((place.missing, place.marks), (vec![], vec![]));
    }

    #[test]
    fn a_clock_that_goes_back_makes_the_wait_longer_never_shorter() {
        let mut place = place(&[1, 3]);
        place.watch(1_000_000, Wait::For(PATIENCE), STEP);
        place.watch(900_000, Wait::For(PATIENCE), STEP);
        place.watch(915_999, Wait::For(PATIENCE), STEP);
        assert_eq!(place.missing, [(2, 2)]);
        place.watch(916_000, Wait::For(PATIENCE), STEP);
        assert_eq!(place.missing, []);
    }

    #[test]
    fn a_place_stays_small_and_loses_nothing_when_most_numbers_are_missing() {
        let numbers: Vec<u64> = (1..=1_000).map(|n| 2 * n).collect();
        let mut place = place(&numbers);
        assert_eq!(place.missing.len(), RANGES_MAX);
        for number in (1..2_000).step_by(2) {
            let is_missing = |(low, high): &(u64, u64)| (*low..=*high).contains(&number);
            assert!(place.missing.iter().any(is_missing), "{number}");
        }
        for second in 0..1_000 {
            place.take(&[2_002 + 2 * second]);
            place.watch(
                i64::try_from(second).expect("small") * 100,
                Wait::For(PATIENCE),
                STEP,
            );
        }
        assert!(place.marks.len() <= 1 + MARKS as usize, "{:?}", place.marks);
    }
}
