//! JSON by meaning: one text per meaning, so that equality, hashing and storing are equality, hashing and storing of text.
//!
//! Key order, white space and the spelling of numbers do not survive; everything else does, digits included.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;
use smol_str::SmolStr;

/// A JSON value in canonical text: keys sorted, no white space, numbers in their shortest decimal form. A copy shares the text, and a
/// short one, as most statuses and names are, takes no memory of its own.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Json(SmolStr);

impl Json {
    /// The canonical form of a value.
    #[must_use]
    pub fn from_value(value: &Value) -> Self {
        let mut text = String::new();
        write_canonical(&mut text, value);
        Self(text.into())
    }

    /// A JSON string.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        let mut quoted = String::with_capacity(text.len() + 2);
        write_string(&mut quoted, text);
        Self(quoted.into())
    }

    /// The JSON value `null`.
    #[must_use]
    pub const fn null() -> Self {
        Self(SmolStr::new_static("null"))
    }

    /// Whether this is the JSON value `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.as_str() == "null"
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The value, parsed again.
    #[must_use]
    pub fn to_value(&self) -> Value {
        serde_json::from_str(self.as_str()).expect("canonical text is JSON by construction")
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Json").field(&self.as_str()).finish()
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Embeds the value itself, not a string holding it.
impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match plain_text(self.as_str()) {
            // The usual kind, and a string is written without being parsed first.
            Some(text) => serializer.serialize_str(text),
            None => raw(self.as_str()).serialize(serializer),
        }
    }
}

/// The inside of canonical text that is a string without escapes.
fn plain_text(text: &str) -> Option<&str> {
    let inside = text.strip_prefix('"')?.strip_suffix('"')?;
    (!inside.contains('\\')).then_some(inside)
}

/// Canonical text as JSON that is written as it is.
fn raw(text: &str) -> &RawValue {
    serde_json::from_str(text).expect("canonical text is JSON by construction")
}

/// What the state holds is canonical already, which is seen in one pass; anything else is parsed and written anew.
///
/// From text in memory alone, in which it is looked at where it lies: not from a reader.
impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?.get();
        if is_canonical(text) {
            return Ok(Self(text.into()));
        }
        let value = serde_json::from_str(text).map_err(serde::de::Error::custom)?;
        Ok(Self::from_value(&value))
    }
}

/// How deep a value may be nested to be looked at without parsing it.
const SEEN_DEPTH_MAX: u32 = 32;
/// How many digits a number may have to be known for canonical at sight.
const SEEN_DIGITS_MAX: usize = 15;

/// Whether JSON text is surely its own canonical form. Of rare spellings (escapes, fractions, negative numbers) it says no.
fn is_canonical(text: &str) -> bool {
    let mut rest = text.as_bytes();
    take_value(&mut rest, SEEN_DEPTH_MAX) && rest.is_empty()
}

fn take_value(rest: &mut &[u8], depth: u32) -> bool {
    let Some(depth) = depth.checked_sub(1) else {
        return false;
    };
    match rest.first() {
        Some(b'"') => take_string(rest).is_some(),
        Some(b'{') => take_object(rest, depth),
        Some(b'[') => take_array(rest, depth),
        Some(b'0'..=b'9') => take_integer(rest),
        Some(_) => ["true", "false", "null"]
            .iter()
            .any(|word| take(rest, word)),
        None => false,
    }
}

fn take_object(rest: &mut &[u8], depth: u32) -> bool {
    if !take(rest, "{") {
        return false;
    }
    if take(rest, "}") {
        return true;
    }
    let mut last: Option<&[u8]> = None;
    loop {
        let Some(name) = take_string(rest) else {
            return false;
        };
        // In order, and none twice.
        if last.is_some_and(|last| last >= name) {
            return false;
        }
        last = Some(name);
        if !take(rest, ":") || !take_value(rest, depth) {
            return false;
        }
        if !take(rest, ",") {
            return take(rest, "}");
        }
    }
}

fn take_array(rest: &mut &[u8], depth: u32) -> bool {
    if !take(rest, "[") {
        return false;
    }
    if take(rest, "]") {
        return true;
    }
    loop {
        if !take_value(rest, depth) {
            return false;
        }
        if !take(rest, ",") {
            return take(rest, "]");
        }
    }
}

/// The inside of a string without escapes.
fn take_string<'t>(rest: &mut &'t [u8]) -> Option<&'t [u8]> {
    let inside = rest.strip_prefix(b"\"")?;
    let end = inside
        .iter()
        .position(|byte| matches!(byte, b'"' | b'\\'))?;
    let (string, after) = inside.split_at(end);
    *rest = after.strip_prefix(b"\"")?;
    Some(string)
}

fn take_integer(rest: &mut &[u8]) -> bool {
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let is_plain = digits <= SEEN_DIGITS_MAX && (digits == 1 || rest.first() != Some(&b'0'));
    *rest = &rest[digits..];
    // What follows a whole number is never a part of it.
    is_plain && !matches!(rest.first(), Some(b'.' | b'e' | b'E'))
}

fn take(rest: &mut &[u8], text: &str) -> bool {
    match rest.strip_prefix(text.as_bytes()) {
        Some(after) => {
            *rest = after;
            true
        }
        None => false,
    }
}

fn write_canonical(text: &mut String, value: &Value) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(true) => text.push_str("true"),
        Value::Bool(false) => text.push_str("false"),
        Value::Number(number) => text.push_str(&canonical_number(&number.to_string())),
        Value::String(string) => write_string(text, string),
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_canonical(text, item);
            }
            text.push(']');
        }
        Value::Object(properties) => {
            // Sorted here, whatever order the map type keeps.
            let mut sorted: Vec<_> = properties.iter().collect();
            sorted.sort_unstable_by_key(|(name, _)| name.as_str());
            text.push('{');
            for (index, (name, property)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_string(text, name);
                text.push(':');
                write_canonical(text, property);
            }
            text.push('}');
        }
    }
}

fn write_string(text: &mut String, string: &str) {
    let is_plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
    if string.bytes().all(is_plain) {
        text.push('"');
        text.push_str(string);
        text.push('"');
    } else {
        let quoted = serde_json::to_string(string).expect("every string is JSON");
        text.push_str(&quoted);
    }
}

/// How many digits a number may have written out before the exponent form is shorter to read and to store.
const PLAIN_DIGITS_MAX: i64 = 40;

/// The one spelling of a JSON number: `1`, `1.0`, `10e-1` are all `1`; no digit is lost.
fn canonical_number(text: &str) -> String {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let Ok(exponent) = exponent.parse::<i64>() else {
        return text.to_owned();
    };
    let (sign, magnitude) = mantissa
        .strip_prefix('-')
        .map_or(("", mantissa), |rest| ("-", rest));
    let (whole, fraction) = magnitude.split_once('.').unwrap_or((magnitude, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_start_matches('0');
    let stripped = significant.trim_end_matches('0');
    if stripped.is_empty() {
        return "0".to_owned();
    }
    let length = |text: &str| i64::try_from(text.len()).unwrap_or(i64::MAX);
    // The value is `stripped` × 10^scale.
    let scale = exponent
        .saturating_sub(length(fraction))
        .saturating_add(length(significant) - length(stripped));
    let point = length(stripped).saturating_add(scale);
    let mut out = String::from(sign);
    if scale >= 0 && point <= PLAIN_DIGITS_MAX {
        out.push_str(stripped);
        out.extend(std::iter::repeat_n(
            '0',
            usize::try_from(scale).unwrap_or(0),
        ));
    } else if scale < 0 && point > 0 {
        let (before, after) = stripped.split_at(usize::try_from(point).unwrap_or(0));
        let _ = write!(out, "{before}.{after}");
    } else if scale < 0 && point > -PLAIN_DIGITS_MAX {
        out.push_str("0.");
        out.extend(std::iter::repeat_n(
            '0',
            usize::try_from(-point).unwrap_or(0),
        ));
        out.push_str(stripped);
    } else {
        let (first, rest) = stripped.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        let _ = write!(out, "{first}{dot}{rest}e{}", point.saturating_sub(1));
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(text: &str) -> Json {
        Json::from_value(&serde_json::from_str(text).expect("valid JSON"))
    }

    #[test]
    fn the_spelling_of_a_number_does_not_matter_and_no_digit_is_lost() {
        let same: [&[&str]; 7] = [
            &["1", "1.0", "10e-1", "1e0", "0.1e1", "1.000E+0"],
            &["0", "-0", "0.0", "0e10"],
            &["100", "1e2", "100.00"],
            &["0.001", "1e-3", "0.0010"],
            &["-12.5", "-125e-1"],
            &[
                "123456789012345678901234567890",
                "123456789012345678901234567890.0",
            ],
            &["1e400", "10e399"],
        ];
        for spellings in same {
            for spelling in spellings {
                assert_eq!(json(spelling), json(spellings[0]), "{spelling}");
            }
        }
        assert_ne!(
            json("12345678901234567890123"),
            json("12345678901234567890124")
        );
        assert_eq!(json("12.50").as_str(), "12.5");
        assert_eq!(json("1e400").as_str(), "1e400");
        assert_eq!(json("-15e-60").as_str(), "-1.5e-59");
    }

    #[test]
    fn key_order_and_white_space_do_not_matter() {
        assert_eq!(
            json(r#"{ "b": [1.0, null], "a": "x" }"#),
            json(r#"{"a":"x","b":[1,null]}"#)
        );
        assert_ne!(json("[1,2]"), json("[2,1]"));
    }

    #[test]
    fn forty_digits_are_written_out_and_further_ones_are_an_exponent() {
        let digits = "1234567890".repeat(4);
        let whole = digits.replace('0', "1");
        let longer = format!("{whole}7");
        let cases = [
            (whole.clone(), whole.clone()),
            (longer.clone(), format!("1.{}e40", &longer[1..])),
            ("1e39".to_owned(), format!("1{}", "0".repeat(39))),
            ("1e40".to_owned(), "1e40".to_owned()),
            ("1e-40".to_owned(), format!("0.{}1", "0".repeat(39))),
            ("1e-41".to_owned(), "1e-41".to_owned()),
            ("125e-1".to_owned(), "12.5".to_owned()),
            ("125e-3".to_owned(), "0.125".to_owned()),
        ];
        for (text, expected) in cases {
            assert_eq!(json(&text).as_str(), expected);
        }
    }

    #[test]
    fn what_is_canonical_at_sight_is_what_writing_it_anew_gives() {
        let seen = [
            "null",
            "true",
            "0",
            "100",
            r#""ready""#,
            r#"{"a":[1,{}],"b":"…"}"#,
            "[]",
        ];
        for text in seen {
            assert!(is_canonical(text), "{text}");
            assert_eq!(json(text).as_str(), text);
        }
        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
        let unseen = [
            "1.0",
            "1e2",
            "01",
            "-0",
            r#"{"b":1,"a":1}"#,
            r#"{"a":1,"a":1}"#,
            r#"{"a": 1}"#,
            r#""\u0061""#,
            "[1,]",
            "1 ",
            "",
            &deep,
        ];
        for text in unseen {
            assert!(!is_canonical(text), "{text}");
        }
    }

    /// JSON text of any spelling, canonical or not.
    fn spelled() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            "-?[0-9]{1,3}(\\.[0-9]{1,2})?",
            "\"[a-c\\\\/n]{0,3}\"",
        ];
        leaf.prop_recursive(3, 16, 3, |inner| {
            let member = ("[ab]{1,2}", inner.clone()).prop_map(|(k, v)| format!("\"{k}\":{v}"));
            prop_oneof![
                proptest::collection::vec(inner, 0..3).prop_map(|i| format!("[{}]", i.join(","))),
                proptest::collection::vec(member, 0..3)
                    .prop_map(|m| format!("{{{}}}", m.join(","))),
            ]
        })
    }

    proptest! {
        #[test]
        fn reading_a_text_gives_the_form_that_parsing_it_gives(text in spelled()) {
            let read = serde_json::from_str::<Json>(&text).ok();
            let parsed = serde_json::from_str(&text).ok().map(|value| Json::from_value(&value));
            prop_assert_eq!(read, parsed);
        }

        #[test]
        fn it_is_written_as_its_text_whatever_it_holds(spelled in spelled(), text in any::<String>()) {
            let read = serde_json::from_str::<Json>(&spelled).ok();
            for json in read.into_iter().chain([Json::from_text(&text), Json::null()]) {
                prop_assert_eq!(serde_json::to_string(&json).expect("JSON"), json.as_str());
                prop_assert_eq!(serde_json::to_value(&json).expect("JSON"), json.to_value());
            }
        }

        #[test]
        fn canonical_text_is_a_fixed_point(number in any::<f64>().prop_filter("finite", |n| n.is_finite()), text in ".*") {
            let value = serde_json::json!({ "number": number, "text": text });
            let once = Json::from_value(&value);
            let twice = Json::from_value(&once.to_value());
            prop_assert_eq!(&once, &twice);
            let number_again: f64 = once.to_value()["number"].to_string().parse().expect("a number");
            prop_assert_eq!(number_again, number);
        }
    }
}
