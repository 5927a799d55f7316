//! Numbers, times and foreign text as people read them. Pure.

use std::time::Duration;

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::model::Timestamp;

/// `41,207`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 row`, `41,207 rows`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(number))
}

/// The two largest units: `14 ms`, `9 s`, `2 min 14 s`, `6 d 2 h`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        return format!("{} ms", duration.as_millis());
    }
    let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let from_largest = units.iter().skip_while(|(length, _)| seconds < *length);
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (length, unit) in from_largest.take(2) {
        if rest / length > 0 {
            parts.push(format!("{} {unit}", rest / length));
        }
        rest %= length;
    }
    parts.join(" ")
}

/// `1.4 s`: for what was measured and is short.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// How long ago an instant was; a clock set back shows as `0 ms`.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    format!("{} ago", duration(now.since(then)))
}

/// The hour and minute in UTC, for a moment of today; with the date for any other.
pub(crate) fn moment(at: Timestamp, now: Timestamp) -> String {
    let (at, now) = (at.to_string(), now.to_string());
    let same_day = at.get(..10) == now.get(..10);
    let range = if same_day { 11..16 } else { 0..16 };
    at.get(range).unwrap_or(&at).replace('T', " ")
}

/// Foreign text that can neither break a line, nor move the cursor, nor turn the direction of what follows.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        let misleads = character.is_control()
            || matches!(character,
                '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if misleads {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Cut to so many columns of a terminal, with an ellipsis where something is missing.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let room = columns.saturating_sub(1);
    let mut used = 0;
    let mut shown: String = text
        .chars()
        .take_while(|character| {
            used += character.width().unwrap_or(0);
            used <= room
        })
        .collect();
    shown.push('…');
    shown
}

/// Filled with blanks to so many columns.
pub(crate) fn pad(text: &str, columns: usize) -> String {
    let missing = columns.saturating_sub(text.width());
    format!("{text}{}", " ".repeat(missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_counted() {
        let shown = [0, 7, 999, 1_000, 41_207, 1_234_567].map(count);
        assert_eq!(shown, ["0", "7", "999", "1,000", "41,207", "1,234,567"]);
        assert_eq!(counted(1, "row"), "1 row");
        assert_eq!(counted(0, "row"), "0 rows");
    }

    #[test]
    fn durations_show_their_two_largest_units() {
        let cases = [
            (0, "0 ms"),
            (14, "14 ms"),
            (9_400, "9 s"),
            (60_000, "1 min"),
            (134_000, "2 min 14 s"),
            (3_600_000, "1 h"),
            (3_601_000, "1 h"),
            (525_600_000, "6 d 2 h"),
        ];
        for (millis, shown) in cases {
            assert_eq!(duration(Duration::from_millis(millis)), shown);
        }
    }

    #[test]
    fn moments_of_another_day_carry_their_date() {
        let now = Timestamp::from_millis(1_777_903_331_000);
        let earlier = now.minus(Duration::from_secs(120));
        assert_eq!(moment(earlier, now), "14:00");
        assert_eq!(
            moment(earlier.minus(Duration::from_secs(86_400)), now),
            "2026-05-03 14:00"
        );
    }

    #[test]
    fn foreign_text_cannot_forge_lines_or_colours() {
        assert_eq!(
            visible("a\nb\u{1b}[31m\u{202e}c"),
            "a\\u{a}b\\u{1b}[31m\\u{202e}c"
        );
        assert_eq!(visible("größe 表"), "größe 表");
    }

    #[test]
    fn text_is_cut_by_columns_not_by_bytes() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 5), "abcd…");
        assert_eq!(cut("表表表", 5), "表表…");
        assert_eq!(pad("表", 4), "表  ");
    }

    #[test]
    fn a_duration_has_no_more_than_two_units_that_follow_each_other() {
        let cases = [
            (999, "999 ms"),
            (1_000, "1 s"),
            (59_999, "59 s"),
            (61_000, "1 min 1 s"),
            (3_599_000, "59 min 59 s"),
            (3_660_000, "1 h 1 min"),
            (86_399_000, "23 h 59 min"),
            (86_400_000, "1 d"),
            (86_460_000, "1 d"),
        ];
        for (millis, shown) in cases {
            assert_eq!(duration(Duration::from_millis(millis)), shown);
        }
        assert_eq!(seconds(Duration::from_millis(1_449)), "1.4 s");
        let now = Timestamp::from_millis(1_777_903_331_000);
        let earlier = now.minus(Duration::from_secs(9));
        assert_eq!(ago(earlier, now), "9 s ago");
        assert_eq!(ago(now, earlier), "0 ms ago");
    }

    #[test]
    fn text_is_cut_to_nothing_and_padded_no_further_than_is_asked_for() {
        assert_eq!(cut("abc", 1), "…");
        assert_eq!(cut("", 0), "");
        assert_eq!(cut("表表表", 4), "表…");
        assert_eq!(pad("abc", 3), "abc");
        assert_eq!(pad("abcd", 3), "abcd");
        assert_eq!(pad("a", 3), "a  ");
    }
}
