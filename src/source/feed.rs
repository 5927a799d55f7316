//! The change feed: a table in the provider's database in which triggers name the resources that changed.
//!
//! A poll reads what was added to it since the last one and then the rows of the resources that it names, as they are now. The
//! numbers of a sequence become visible out of order, so each database keeps its place in a way of its own.

pub(super) mod mysql;
pub(super) mod postgres;
pub(super) mod sqlite;

use std::time::Duration;

use super::SourceError;

/// Which statement errors are of.
pub(super) const CHANGE_FEED: &str = "change feed";
/// Why a feed that was never read is no beginning.
pub(super) const FIRST_TIME: &str = "the change feed is read for the first time";
/// Why a place in the feed is no place any more.
pub(super) const LOST: &str = "the change feed was trimmed past the last poll, or made anew";

/// The feed as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Feed {
    /// `schema` and `table`, or the table alone: plain identifiers.
    parts: Vec<String>,
    /// How long a number that is left out is waited for, where nothing better tells that it will never come.
    pub(super) patience: Duration,
}

/// What is asked of a feed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) feed: &'a Feed,
    /// The place that the last page gave.
    pub(super) from: Option<&'a str>,
    /// The most entries to read.
    pub(super) limit: u32,
}

/// What a feed has after a place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Found {
    /// The ids that the entries name, usable or not; a resource may be there many times.
    pub(super) ids: Vec<(Option<String>, Option<String>)>,
    /// The place after them.
    pub(super) position: String,
    /// Whether there is more.
    pub(super) more: bool,
    /// Why what was added since the last page is not all here.
    pub(super) lost: Option<&'static str>,
}

impl Feed {
    /// A feed in `table` or `schema.table`.
    ///
    /// # Errors
    /// [`SourceError::Shape`] when that is no plain name.
    pub(super) fn new(name: &str, patience: Duration) -> Result<Self, SourceError> {
        let is_plain = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        let parts: Vec<String> = name.split('.').map(str::to_owned).collect();
        if parts.len() > 2 || !parts.iter().all(|part| is_plain(part)) {
            return Err(SourceError::Shape {
                statement: CHANGE_FEED,
                problem: "has no plain name".to_owned(),
                help: "table or schema.table: ASCII letters, digits and underscores".to_owned(),
            });
        }
        Ok(Self { parts, patience })
    }

    /// The name as it was given.
    pub(super) fn name(&self) -> String {
        self.parts.join(".")
    }

    /// The name for a statement, with the dialect's quotes.
    pub(super) fn quoted(&self, quote: char) -> String {
        let parts: Vec<String> = self
            .parts
            .iter()
            .map(|part| format!("{quote}{part}{quote}"))
            .collect();
        parts.join(".")
    }
}

/// A place as it is kept between polls.
fn write<T: serde::Serialize>(place: &T) -> String {
    serde_json::to_string(place).expect("numbers, texts and lists of them are JSON")
}

/// A place as it was kept; `None` when it is none of this database's.
fn read<T: serde::de::DeserializeOwned>(from: Option<&str>) -> Option<T> {
    serde_json::from_str(from?).ok()
}

/// Reads a place of every database out of the same text, for [`super::fuzz`].
#[cfg(any(test, fuzzing))]
pub(super) fn read_place(text: &str) {
    mysql::read_place(text);
    postgres::read_place(text);
    sqlite::read_place(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_hold_sql_is_refused() {
        let feed = |name| Feed::new(name, Duration::ZERO);
        assert_eq!(
            feed("app.feed").expect("a name").quoted('"'),
            "\"app\".\"feed\""
        );
        assert_eq!(feed("feed").expect("a name").quoted('`'), "`feed`");
        for name in ["", "a.b.c", "a.", "a;b", "a\"b", "a b", "ä"] {
            assert!(feed(name).is_err(), "{name}");
        }
    }
}
