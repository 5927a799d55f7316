//! JSON by meaning: one text per meaning, so that equality, hashing and storing are equality, hashing and storing of text.
//!
//! Key order, white space and the spelling of numbers do not survive; everything else does, digits included.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// A JSON value in canonical text: keys sorted, no white space, numbers in their shortest decimal form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Json(Box<str>);

impl Json {
    /// The canonical form of a value.
    #[must_use]
    pub fn from_value(value: &Value) -> Self {
        let mut text = String::new();
        write_canonical(&mut text, value);
        Self(text.into_boxed_str())
    }

    /// A JSON string.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self::from_value(&Value::from(text))
    }

    /// The JSON value `null`.
    #[must_use]
    pub fn null() -> Self {
        Self("null".into())
    }

    /// Whether this is the JSON value `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        &*self.0 == "null"
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The value, parsed again.
    #[must_use]
    pub fn to_value(&self) -> Value {
        serde_json::from_str(&self.0).expect("canonical text is JSON by construction")
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Embeds the value itself, not a string holding it.
impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_value(&Value::deserialize(deserializer)?))
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
    let quoted = serde_json::to_string(string).expect("every string is JSON");
    text.push_str(&quoted);
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

    proptest! {
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
