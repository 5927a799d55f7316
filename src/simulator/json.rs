//! JSON as the judge reads it: equality by meaning, and repeated properties found.
//!
//! Guarantees that `1`, `1.0` and `10e-1` are one number, whatever their size.
//! Never rounds a number to compare it.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Whether two values mean the same: key order and the spelling of numbers do not count.
pub(super) fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(a), Value::Number(b)) => same_number(&a.to_string(), &b.to_string()),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(x, y)| same(x, y))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, x)| b.get(key).is_some_and(|y| same(x, y)))
        }
        _ => left == right,
    }
}

/// Reads one JSON document and refuses an object that names a property twice.
///
/// # Errors
/// The parser's message: position and expectation, or the repeated property's name.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, ParseError> {
    let value = serde_json::from_slice::<Value>(bytes).map_err(|error| ParseError::Malformed {
        line: error.line(),
        column: error.column(),
    })?;
    match serde_json::from_slice::<Distinct>(bytes) {
        Ok(Distinct) => Ok(value),
        Err(_) => Err(ParseError::Repeated),
    }
}

/// Why a document was not accepted; never quotes the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ParseError {
    #[error("the body is not JSON (line {line}, column {column})")]
    Malformed { line: usize, column: usize },
    #[error("the body names a property twice in one object")]
    Repeated,
}

fn same_number(left: &str, right: &str) -> bool {
    match (Decimal::parse(left), Decimal::parse(right)) {
        (Some(a), Some(b)) => a == b,
        _ => left == right,
    }
}

/// A decimal number as its significant digits and a power of ten, so that equal numbers are equal values.
#[derive(PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Decimal {
    fn parse(text: &str) -> Option<Self> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        let digits = all.trim_end_matches('0');
        let stripped = i64::try_from(all.len() - digits.len()).ok()?;
        let exponent = exponent
            .checked_sub(i64::try_from(fraction.len()).ok()?)?
            .checked_add(stripped)?;
        let digits = digits.trim_start_matches('0').to_owned();
        Some(if digits.is_empty() {
            Self {
                negative: false,
                digits,
                exponent: 0,
            }
        } else {
            Self {
                negative,
                digits,
                exponent,
            }
        })
    }
}

/// A document in which no object names a property twice.
struct Distinct;

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DistinctVisitor)
    }
}

struct DistinctVisitor;

impl<'de> Visitor<'de> for DistinctVisitor {
    type Value = Distinct;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON without repeated properties")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Distinct, E> {
        Ok(Distinct)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Distinct, E> {
        Ok(Distinct)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Distinct, E> {
        Ok(Distinct)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Distinct, E> {
        Ok(Distinct)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Distinct, E> {
        Ok(Distinct)
    }

    fn visit_unit<E: Error>(self) -> Result<Distinct, E> {
        Ok(Distinct)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Distinct, A::Error> {
        while items.next_element::<Distinct>()?.is_some() {}
        Ok(Distinct)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Distinct, A::Error> {
        let mut seen = BTreeSet::new();
        while let Some((key, Distinct)) = entries.next_entry::<String, Distinct>()? {
            if !seen.insert(key) {
                return Err(A::Error::custom("repeated property"));
            }
        }
        Ok(Distinct)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_by_value() {
        let value = |text: &str| parse(text.as_bytes()).expect("a literal of this test");
        for (left, right, equal) in [
            ("1", "1.0", true),
            ("100", "1e2", true),
            ("0", "-0.0", true),
            ("-1", "1", false),
            ("12345678901234567890123", "12345678901234567890124", false),
            ("0.1", "0.10", true),
            (r#"{"a":1,"b":[2]}"#, r#"{"b":[2.0],"a":1}"#, true),
            (r#"{"a":null}"#, "{}", false),
            (r#""1""#, "1", false),
        ] {
            assert_eq!(same(&value(left), &value(right)), equal, "{left} {right}");
        }
    }

    #[test]
    fn a_property_named_twice_is_refused_at_any_depth() {
        assert!(parse(br#"{"a":{"b":1.50,"c":[true,null,"x",-3]}}"#).is_ok());
        assert_eq!(parse(br#"{"a":1,"a":1}"#), Err(ParseError::Repeated));
        assert_eq!(
            parse(br#"[{"a":{"b":1,"b":2}}]"#),
            Err(ParseError::Repeated)
        );
        assert!(matches!(parse(b"{"), Err(ParseError::Malformed { .. })));
    }
}
