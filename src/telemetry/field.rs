//! The fields of an event or span, collected in order.
//!
//! Values keep their JSON type; text is kept whole and escaped only when a line is written. Lists, which `tracing` cannot
//! carry, travel as a marked text that [`JsonList`] writes.

use std::error::Error;
use std::fmt::{self, Write as _};

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
        let items: Vec<_> = items
            .into_iter()
            .map(|item| item.as_ref().to_owned())
            .collect();
        Self(serde_json::to_string(&items).expect("a list of texts is JSON"))
    }
}

impl fmt::Display for JsonList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{LIST_MARK}{}", self.0)
    }
}

/// Marks the text of a list; a control character, which no other text begins with.
const LIST_MARK: char = '\u{1d}';

/// One value of a field.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum FieldValue {
    Text(String),
    /// A number or `true`/`false`, in JSON's spelling.
    Plain(String),
    List(Vec<String>),
}

/// The fields in the order in which they were recorded, each name once.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Fields(Vec<(&'static str, FieldValue)>);

impl Fields {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &FieldValue)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }

    /// Takes a text field out.
    pub(super) fn take_text(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(known, _)| *known == name)?;
        match self.0.remove(index).1 {
            FieldValue::Text(text) | FieldValue::Plain(text) => Some(text),
            FieldValue::List(items) => Some(items.join(", ")),
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
        let list = text
            .strip_prefix(LIST_MARK)
            .and_then(|json| serde_json::from_str(json).ok());
        self.set(field, list.map_or(FieldValue::Text(text), FieldValue::List));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, FieldValue::Text(value.to_owned()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, FieldValue::Plain(value.to_string()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, FieldValue::Plain(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, FieldValue::Plain(value.to_string()));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.set(field, FieldValue::Plain(value.to_string()));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.set(field, FieldValue::Plain(value.to_string()));
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
