//! What is kept of an HTTP answer: few headers, and the code and message of an error, all of it bounded and safe to print.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;

use crate::model::Timestamp;
use crate::plan::{Answer, AnswerKind};

use super::scrub::Scrubber;

/// The most bytes of an error's body that are read.
pub(super) const ERROR_BODY_BYTES_MAX: usize = 64 * 1024;
/// The longest `X-Vercel-Id` that is kept, in characters.
const VERCEL_ID_CHARS_MAX: usize = 200;
/// The longest error code that is kept, in characters.
const CODE_CHARS_MAX: usize = 100;
/// The longest error message that is kept, in characters.
const MESSAGE_CHARS_MAX: usize = 500;
/// A number of seconds beyond this (the year 5138) is taken for milliseconds.
const EPOCH_SECONDS_MAX: u64 = 100_000_000_000;

/// What the headers say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Headers {
    /// `X-Vercel-Id`.
    pub(super) vercel_id: Option<String>,
    /// `Retry-After`.
    pub(super) retry_after: Option<Timestamp>,
    /// `X-RateLimit-Reset`.
    pub(super) rate_limit_reset: Option<Timestamp>,
}

impl Headers {
    /// Reads the headers of an answer that came at `now`.
    pub(super) fn read(headers: &HeaderMap, now: Timestamp, scrubber: &Scrubber<'_>) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        Self {
            vercel_id: text("x-vercel-id")
                .filter(|id| is_vercel_id(id) && !scrubber.is_in(id))
                .map(str::to_owned),
            retry_after: text(RETRY_AFTER.as_str()).and_then(|text| retry_after(text, now)),
            rate_limit_reset: text("x-ratelimit-reset").and_then(rate_limit_reset),
        }
    }
}

impl Headers {
    /// The answer with this status and, unless it is a success, this body.
    pub(super) fn answer(
        self,
        status: u16,
        error: Option<&[u8]>,
        scrubber: &Scrubber<'_>,
    ) -> Answer {
        let Self {
            vercel_id,
            retry_after,
            rate_limit_reset,
        } = self;
        let (code, message) = error.map_or((None, None), |body| problem(body, scrubber));
        let kind = AnswerKind::Http {
            status,
            code,
            message,
            retry_after,
            rate_limit_reset,
        };
        Answer { kind, vercel_id }
    }
}

fn is_vercel_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= VERCEL_ID_CHARS_MAX
        && id.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// Seconds from `now`, with or without a fraction, or an HTTP date (RFC 9110, section 10.2.3).
fn retry_after(text: &str, now: Timestamp) -> Option<Timestamp> {
    let text = text.trim();
    if let Some(wait) = seconds(text) {
        return Some(now.plus(wait));
    }
    httpdate::parse_http_date(text)
        .ok()
        .map(|date: SystemTime| date.into())
}

/// Seconds since the epoch; so many that they must be milliseconds are taken for these.
fn rate_limit_reset(text: &str) -> Option<Timestamp> {
    let since_epoch = seconds(text.trim())?;
    let since_epoch = if since_epoch.as_secs() > EPOCH_SECONDS_MAX {
        since_epoch / 1000
    } else {
        since_epoch
    };
    Some(Timestamp::EPOCH.plus(since_epoch))
}

/// A decimal number of seconds; a number beyond all bounds is the longest duration.
fn seconds(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let all_digits =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let whole = whole.parse().unwrap_or(u64::MAX);
    let millis: String = fraction.chars().chain("000".chars()).take(3).collect();
    let millis = millis.parse().expect("three digits are a number");
    Some(Duration::from_secs(whole).saturating_add(Duration::from_millis(millis)))
}

/// The code and the message of an error's body.
///
/// Vercel writes `{"error": {"code", "message"}}`, an authorization server
/// `{"error": code, "error_description": message}` (RFC 6749, section 5.2).
fn problem(body: &[u8], scrubber: &Scrubber<'_>) -> (Option<String>, Option<String>) {
    let Ok(body) = serde_json::from_slice::<Value>(body) else {
        return (None, None);
    };
    let (code, message) = match &body["error"] {
        code @ Value::String(_) => (code, &body["error_description"]),
        error => (&error["code"], &error["message"]),
    };
    (
        code.as_str().and_then(|code| safe_code(code, scrubber)),
        message
            .as_str()
            .and_then(|message| safe_message(message, scrubber)),
    )
}

fn safe_code(code: &str, scrubber: &Scrubber<'_>) -> Option<String> {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let usable = (1..=CODE_CHARS_MAX).contains(&code.len()) && code.bytes().all(is_safe);
    (usable && !scrubber.is_in(code)).then(|| code.to_owned())
}

fn safe_message(message: &str, scrubber: &Scrubber<'_>) -> Option<String> {
    let cleaned = scrubber.clean(message)?;
    let printable: String = cleaned.chars().map(printable).collect();
    // A line break inside a secret may have become the blank that makes it whole.
    if printable.trim().is_empty() || scrubber.is_in(&printable) {
        return None;
    }
    Some(shortened(printable.trim(), MESSAGE_CHARS_MAX))
}

/// The character, unless it would break a line, move the cursor or turn the direction of what follows.
fn printable(character: char) -> char {
    match character {
        '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => ' ',
        '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}' => char::REPLACEMENT_CHARACTER,
        other if other.is_control() => char::REPLACEMENT_CHARACTER,
        other => other,
    }
}

fn shortened(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max - 1).chain(['…']).collect()
}

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz {
    use reqwest::header::{HeaderMap, HeaderValue};

    use super::{Headers, Scrubber};
    use crate::model::Timestamp;
    use crate::plan::Answer;

    /// An answer read as the client reads one, for `crate::fuzzing`. A header that no HTTP could carry is left out.
    pub(crate) fn read_answer(
        status: u16,
        headers: &[(&'static str, &[u8])],
        body: &[u8],
        secret: &str,
        now: Timestamp,
    ) -> Answer {
        let scrubber = Scrubber::of([secret]);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                map.insert(*name, value);
            }
        }
        let error = (!(200..=299).contains(&status)).then_some(body);
        Headers::read(&map, now, &scrubber).answer(status, error, &scrubber)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::{HeaderName, HeaderValue};
    use serde_json::json;

    use super::*;

    /// 1994-11-06 08:49:37 UTC.
    const DATE: i64 = 784_111_777_000;
    const NOW: Timestamp = Timestamp::from_millis(DATE - 60_000);

    fn read(name: &'static str, value: &[u8]) -> Headers {
        let value = HeaderValue::from_bytes(value).expect("a header value");
        let headers = [(HeaderName::from_static(name), value)]
            .into_iter()
            .collect();
        Headers::read(&headers, NOW, &Scrubber::of(["s3cret-token"]))
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let cases: [(&str, Option<i64>); 14] = [
            ("0", Some(0)),
            ("120", Some(120_000)),
            (" 7 ", Some(7_000)),
            ("1.5", Some(1_500)),
            ("0.0004", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(60_000)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(60_000)),
            ("Sun Nov  6 08:49:37 1994", Some(60_000)),
            ("Sat, 05 Nov 1994 08:49:37 GMT", Some(60_000 - 86_400_000)),
            ("-1", None),
            ("1e3", None),
            (".5", None),
            ("soon", None),
            ("", None),
        ];
        for (text, after) in cases {
            let expected = after.map(|after| Timestamp::from_millis(NOW.as_millis() + after));
            assert_eq!(
                read("retry-after", text.as_bytes()).retry_after,
                expected,
                "{text:?}"
            );
        }
        let endless = read("retry-after", "9".repeat(400).as_bytes()).retry_after;
        assert_eq!(endless, Some(Timestamp::from_millis(i64::MAX)));
        assert_eq!(read("retry-after", b"\xff").retry_after, None);
    }

    #[test]
    fn a_rate_limit_s_reset_is_an_epoch() {
        let cases = [
            ("784111777", Some(DATE)),
            ("784111777.25", Some(DATE + 250)),
            ("784111777000", Some(DATE)),
            ("tomorrow", None),
        ];
        for (text, millis) in cases {
            assert_eq!(
                read("x-ratelimit-reset", text.as_bytes()).rate_limit_reset,
                millis.map(Timestamp::from_millis),
                "{text}"
            );
        }
    }

    #[test]
    fn an_id_is_kept_only_when_it_is_printable_short_and_no_secret() {
        let id = |value: &[u8]| read("x-vercel-id", value).vercel_id;
        assert_eq!(id(b"fra1::abc-123").as_deref(), Some("fra1::abc-123"));
        let long = "x".repeat(201);
        for value in [
            &b""[..],
            b"a\tb",
            b"\xc3\xa9",
            b"s3cret-token",
            long.as_bytes(),
        ] {
            assert_eq!(id(value), None);
        }
    }

    #[test]
    fn code_and_message_come_from_either_shape() {
        let none = Scrubber::of([]);
        let vercel =
            json!({ "error": { "code": "bad_request", "message": "No\r\nplan \u{1b}[31m" } });
        assert_eq!(
            problem(vercel.to_string().as_bytes(), &none),
            (
                Some("bad_request".to_owned()),
                Some("No  plan \u{fffd}[31m".to_owned())
            )
        );
        let oauth = json!({ "error": "invalid_client", "error_description": "gone" });
        assert_eq!(
            problem(oauth.to_string().as_bytes(), &none),
            (Some("invalid_client".to_owned()), Some("gone".to_owned()))
        );
        for body in [
            "",
            "<html>",
            "[]",
            "null",
            "{}",
            r#"{"error":7}"#,
            r#"{"error":{"code":7,"message":[]}}"#,
            "\u{0}",
        ] {
            assert_eq!(problem(body.as_bytes(), &none), (None, None), "{body}");
        }
    }

    #[test]
    fn a_code_with_unsafe_characters_is_dropped_and_a_long_message_is_cut() {
        let none = Scrubber::of([]);
        for code in ["", "a b", "é", "a\n", &"x".repeat(101)] {
            assert_eq!(safe_code(code, &none), None, "{code:?}");
        }
        let cut = safe_message(&"é".repeat(10_000), &none).expect("a message");
        assert_eq!(cut.chars().count(), MESSAGE_CHARS_MAX);
        assert!(cut.ends_with('…'));
    }

    #[test]
    fn a_secret_that_only_a_replaced_line_break_completes_is_not_kept() {
        let scrubber = Scrubber::of(["a b c d e f"]);
        assert_eq!(safe_message("a\nb\tc\nd\te\nf", &scrubber), None);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic_or_print_a_control_character(body in prop::collection::vec(any::<u8>(), 0..200), message in any::<String>(), header in "[ -~]{0,40}") {
            let scrubber = Scrubber::of(["s3cret-token"]);
            let _ = problem(&body, &scrubber);
            let body = json!({ "error": { "message": message } }).to_string();
            if let Some(message) = problem(body.as_bytes(), &scrubber).1 {
                prop_assert!(!message.chars().any(char::is_control));
                prop_assert!(message.chars().count() <= MESSAGE_CHARS_MAX);
            }
            for name in ["retry-after", "x-ratelimit-reset", "x-vercel-id"] {
                let _ = read(name, header.as_bytes());
            }
        }
    }
}
