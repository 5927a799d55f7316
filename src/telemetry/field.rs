//! The fields of an event or span, collected in order.
//!
//! Values keep their JSON type; text is kept whole and escaped only when a line is written. Lists, which `tracing` cannot
//! carry, travel as a marked text that [`JsonList`] writes.

use std::error::Error;
use std::fmt::{self, Write as _};

use serde::ser::{SerializeSeq, Serializer as _};
use serde::{Deserialize, Deserializer, de};
use tracing::field::{Field, Visit};

/// A list of texts as one field: `fields = %JsonList::new(&names)` becomes a JSON array.
///
/// Anything else that is recorded stays text, whatever it looks like.
#[derive(Debug, Clone)]
pub struct JsonList(String);

impl JsonList {
    /// Takes the items in their order.
    pub fn new<I>(items: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut json = Vec::with_capacity(LIST_BYTES_USUAL);
        let mut writer = serde_json::Serializer::new(&mut json);
        let mut list = writer.serialize_seq(None).expect("memory takes a list");
        for item in items {
            let item = list.serialize_element(item.as_ref());
            item.expect("text is JSON");
        }
        SerializeSeq::end(list).expect("memory takes a list");
        Self(String::from_utf8(json).expect("JSON is UTF-8"))
    }
}

impl fmt::Display for JsonList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{LIST_MARK}{}", self.0)
    }
}

/// Room that most lists find enough.
const LIST_BYTES_USUAL: usize = 64;

/// Marks the text of a list; a control character, which no other text begins with.
const LIST_MARK: char = '\u{1d}';

/// One value of a field.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum FieldValue {
    Text(String),
    Integer(i64),
    /// Another number or `true`/`false`, in JSON's spelling.
    Plain(String),
    /// Texts, as JSON without a line break.
    List(String),
}

impl FieldValue {
    /// A number of any size.
    fn integer<T: TryInto<i64> + ToString + Copy>(value: T) -> Self {
        match value.try_into() {
            Ok(value) => Self::Integer(value),
            Err(_) => Self::Plain(value.to_string()),
        }
    }
}

/// The texts of a [`FieldValue::List`].
pub(super) fn items(json: &str) -> Vec<String> {
    serde_json::from_str(json).expect("only a list of texts is kept as one")
}

/// One text of a list, of which only is looked at whether it is one.
struct Item;

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyText;
        impl de::Visitor<'_> for AnyText {
            type Value = Item;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E>(self, _: &str) -> Result<Item, E> {
                Ok(Item)
            }
        }
        deserializer.deserialize_str(AnyText)
    }
}

fn is_list(json: &str) -> bool {
    // Between its items JSON may have line breaks.
    !json.contains(|character| character < ' ') && serde_json::from_str::<Vec<Item>>(json).is_ok()
}

/// The fields in the order in which they were recorded, each name once.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Fields(Vec<(&'static str, FieldValue)>);

impl Fields {
    /// No fields yet, and room for so many.
    pub(super) fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &FieldValue)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }

    /// Takes a text field out.
    pub(super) fn take_text(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(known, _)| *known == name)?;
        match self.0.remove(index).1 {
            FieldValue::Text(text) | FieldValue::Plain(text) => Some(text),
            FieldValue::Integer(value) => Some(value.to_string()),
            FieldValue::List(json) => Some(items(&json).join(", ")),
        }
    }

    /// Adds the fields of an outer span that the inner ones do not set.
    pub(super) fn add_outer(&mut self, outer: &Fields) {
        for (name, value) in &outer.0 {
            if !self.0.iter().any(|(known, _)| known == name) {
                self.0.push((name, value.clone()));
            }
        }
    }

    fn set(&mut self, field: &Field, value: FieldValue) {
        match self.0.iter_mut().find(|(known, _)| *known == field.name()) {
            Some((_, known)) => *known = value,
            None => self.0.push((field.name(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        let list = text.strip_prefix(LIST_MARK).filter(|json| is_list(json));
        let list = list.map(|json| FieldValue::List(json.to_owned()));
        self.set(field, list.unwrap_or(FieldValue::Text(text)));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, FieldValue::Text(value.to_owned()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, FieldValue::Plain(value.to_string()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, FieldValue::integer(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, FieldValue::integer(value));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.set(field, FieldValue::integer(value));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.set(field, FieldValue::integer(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no NaN and no infinity.
        match serde_json::Number::from_f64(value) {
            Some(number) => self.set(field, FieldValue::Plain(number.to_string())),
            None => self.set(field, FieldValue::Text(value.to_string())),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            write!(text, ": {error}").expect("writing to a string cannot fail");
            cause = error.source();
        }
        self.set(field, FieldValue::Text(text));
    }
}
