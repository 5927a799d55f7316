//! SQLite: a file that is opened for reading only.
//!
//! SQLite's types belong to values, not to columns: an id may be an integer or text, and a cursor is one of both, as its newest
//! values are. Writers exclude each other, so a cursor that the writing statement itself sets grows with every commit.

mod file;

use std::time::Duration;

use async_trait::async_trait;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _, Statement as Prepared};

use self::file::{File, FileError, Location};
use super::columns::{CURSOR, Column, CursorColumn, Described, Reach};
use super::connections::CONNECT_TIMEOUT;
use super::dialect::{
    Began, Dialect, Key, Limits, MAX_CELLS, MAX_ORDERED_BYTES, Room, Sink, ToldBy, hex,
};
use super::error::{self, Failure};
use super::feed;
use super::horizon::Open;
use super::inspect::Inspection;
use super::query::{Lexis, Query};
use super::statement::{Bind, Comparison, Param, Placeholders, Statement, lowered};
use super::{CursorKind, Guarantee};
use crate::model::value::MAX_COLUMN_BYTES;

/// The longest statement that a connection keeps prepared, in bytes.
const KEPT_TEXT_MAX: usize = 8 << 10;

/// How long whoever writes the file is waited for, at most: less than connecting may take, so that it is said what was waited for.
const PATIENCE_MAX: Duration = CONNECT_TIMEOUT.saturating_sub(Duration::from_millis(500));

/// One SQLite file.
pub(super) struct SqliteDialect {
    location: Location,
    target: String,
    statement_timeout: Duration,
}

impl SqliteDialect {
    /// A file by its URL; `None` when the URL says what cannot be done.
    pub(super) fn new(url: &str, target: String, statement_timeout: Duration) -> Option<Self> {
        let patience = statement_timeout.min(PATIENCE_MAX);
        Some(Self {
            location: Location::of(url, patience)?,
            target,
            statement_timeout,
        })
    }
}

#[async_trait]
impl Dialect for SqliteDialect {
    type Connection = File;
    type Error = FileError;

    const LEXIS: Lexis = Lexis::Sqlite;
    const PLACEHOLDERS: Placeholders = Placeholders::Positional;
    const COMPARISON: Comparison = Comparison::RowValues;
    const TELLS_APART: bool = true;
    // With statistics the planner takes no account of the limit: it reads and sorts all rows after the cursor, if they are many.
    const BOUNDS_POLLS: bool = true;
    // Constant rows by themselves would be looked through for each row of the query.
    const PAIRS: (&'static str, &'static str) = ("SELECT column1, column2 FROM (VALUES ", ")");

    fn target(&self) -> &str {
        &self.target
    }

    fn operand(&self, name: &str) -> String {
        format!("resource.\"{name}\"")
    }

    /// As bytes: text that is no UTF-8 is legal in SQLite.
    fn text(&self, column: &Column) -> String {
        format!("CAST({} AS BLOB)", self.operand(column.name))
    }

    fn value(&self, column: &Column) -> String {
        // The length of a value is known without reading it; the zeroes that stand for it are as many as are too many.
        format!(
            "CASE WHEN octet_length({}) > {MAX_COLUMN_BYTES} THEN zeroblob({}) ELSE {} END",
            self.operand(column.name),
            MAX_COLUMN_BYTES + 1,
            self.text(column)
        )
    }

    fn cursor_kind(&self, type_name: &str) -> Option<CursorKind> {
        match type_name {
            "INTEGER" => Some(CursorKind::Integer),
            "TEXT" => Some(CursorKind::Text),
            _ => None,
        }
    }

    fn cursor_text(&self, _: &CursorColumn) -> String {
        format!("CAST({} AS TEXT)", self.operand(CURSOR))
    }

    fn cursor_filter(&self, cursor: &CursorColumn) -> String {
        let class = match cursor.kind {
            CursorKind::Integer => "integer",
            CursorKind::Text | CursorKind::Timestamp => "text",
        };
        format!("typeof({}) = '{class}'", self.operand(CURSOR))
    }

    fn cursor_param(&self, cursor: &CursorColumn, text: &str) -> Option<Param> {
        let bind = match cursor.kind {
            CursorKind::Integer => Bind::Integer(text.parse().ok()?),
            CursorKind::Text | CursorKind::Timestamp => Bind::Text(text.to_owned()),
        };
        Some(Param::plain(bind))
    }

    fn push_floor(&self, statement: &mut Statement, cursor: &CursorColumn, param: &Param) {
        let bind = match cursor.reach {
            Reach::Units(units) => lowered(&param.bind, units, i64::MIN.into()),
            // No column of SQLite is a timestamp to us.
            Reach::None | Reach::Micros(_) => param.bind.clone(),
        };
        statement.param(&Param::plain(bind));
    }

    /// The position says which of its two types the value has: `i42`, or `t` and the text's bytes in hexadecimal.
    ///
    /// A column that is declared neither integer nor text, an expression above all, can hold `42` as either.
    fn native_key(&self, column: &Column) -> Option<Key> {
        if !matches!(column.type_name.as_str(), "INTEGER" | "TEXT") {
            return None;
        }
        let operand = self.operand(column.name);
        Some(Key {
            position: format!(
                "CASE typeof({operand}) WHEN 'integer' THEN 'i' || {operand} ELSE 't' || hex({operand}) END"
            ),
            // Numbers come before texts, and integers alone are regular. The sign keeps a number from being compared as a text.
            told_by: ToldBy::TextAndType(format!(
                "CASE WHEN +{operand} < '' THEN 'integer' ELSE 'text' END"
            )),
            order: operand,
            type_name: Some(column.type_name.clone()),
        })
    }

    fn binary_key(&self, column: &Column) -> Key {
        let digits = format!(
            "COALESCE(hex(substr({}, 1, {MAX_ORDERED_BYTES})), '')",
            self.text(column)
        );
        Key {
            order: digits.clone(),
            position: digits,
            type_name: None,
            told_by: ToldBy::Position,
        }
    }

    fn position(&self, type_name: &str, id: &str) -> Option<String> {
        match type_name {
            "integer" => Some(format!("i{id}")),
            "text" => Some(format!("t{}", digits(id.as_bytes()))),
            _ => None,
        }
    }

    /// One collation ignores the case of ASCII letters, one the spaces at the end, and others there are none but that of bytes
    /// (<https://www.sqlite.org/datatype3.html#collation>).
    fn are_apart(&self, left: (&str, &str), right: (&str, &str)) -> bool {
        let trimmed = |id: &str| id.trim_end_matches(' ').to_ascii_lowercase();
        trimmed(left.0) != trimmed(right.0) || trimmed(left.1) != trimmed(right.1)
    }

    fn key_param(&self, key: &Key, text: &str) -> Option<Param> {
        if key.type_name.is_none() {
            return Some(Param::plain(Bind::Text(text.to_owned())));
        }
        if let Some(integer) = text.strip_prefix('i') {
            return Some(Param::plain(Bind::Integer(integer.parse().ok()?)));
        }
        let bytes = unhex(text.strip_prefix('t')?)?;
        Some(Param::cast("CAST(", Bind::Bytes(bytes), " AS TEXT)"))
    }

    fn id_param(&self, key: &Key, id: &str) -> Option<Param> {
        Some(match (&key.type_name, id.parse::<i64>()) {
            (None, _) => Param::plain(hex(id)),
            // A column that holds integers is compared with one; its text is compared once more afterwards.
            (Some(type_name), Ok(integer)) if type_name == "INTEGER" => {
                Param::plain(Bind::Integer(integer))
            }
            (Some(_), _) => Param::plain(Bind::Text(id.to_owned())),
        })
    }

    /// Numbers come before texts, these before bytes: comparing tells them apart in a fraction of the time of a function, once for each row.
    /// The sign takes away the column's affinity, by which a number might be compared as a text.
    fn is_irregular(&self, column: &Column) -> String {
        let operand = self.operand(column.name);
        format!(
            "CASE WHEN +{operand} >= '' AND +{operand} < x'' THEN octet_length({operand}) > {MAX_ORDERED_BYTES} \
             ELSE typeof({operand}) <> 'integer' END"
        )
    }

    async fn open(&self) -> Result<File, FileError> {
        File::open(self.location.clone()).await
    }

    async fn begin(&self, connection: &mut File) -> Result<Began, FileError> {
        connection.begin()?;
        Ok(Began { is_replica: false })
    }

    async fn end(&self, connection: &mut File) -> Result<(), FileError> {
        connection.end(self.statement_timeout)
    }

    async fn describe(
        &self,
        connection: &mut File,
        query: &Query,
    ) -> Result<Vec<Described>, FileError> {
        let query = query.text().to_owned();
        let describing = connection.run(self.statement_timeout, move |file| describe(file, &query));
        describing.await
    }

    async fn rows<S: Sink>(
        &self,
        connection: &mut File,
        statement: &Statement,
        limits: Limits,
        mut sink: S,
    ) -> Result<(S, bool), FileError> {
        let statement = statement.clone();
        let reading = connection.run(limits.time, move |file| {
            let (mut kept, mut once);
            // One that names many keys is not asked again.
            let prepared: &mut Prepared<'_> = if statement.text().len() <= KEPT_TEXT_MAX {
                kept = file.prepare_cached(statement.text())?;
                &mut kept
            } else {
                once = file.prepare(statement.text())?;
                &mut once
            };
            bind_all(prepared, statement.binds())?;
            let columns = prepared.column_count();
            let mut rows = prepared.raw_query();
            let mut room = Room::new(limits);
            while let Some(row) = rows.next()? {
                let mut cells = [None; MAX_CELLS];
                let cells = cells
                    .get_mut(..columns)
                    .expect("no statement selects more columns");
                for (index, cell) in cells.iter_mut().enumerate() {
                    *cell = value(row.get_ref(index)?)?;
                }
                if !room.give(&mut sink, cells) {
                    return Ok((sink, false));
                }
            }
            Ok((sink, true))
        });
        reading.await
    }

    async fn horizon(
        &self,
        _: &mut File,
        _: Option<Open>,
        _: &CursorColumn,
        _: Option<&str>,
    ) -> Result<Option<String>, FileError> {
        // Writers exclude each other: none is open that could commit before what was read.
        Ok(None)
    }

    async fn feed(
        &self,
        connection: &mut File,
        wanted: feed::Wanted<'_>,
    ) -> Result<feed::Found, FileError> {
        let reading = feed::sqlite::Reading::of(wanted);
        let reading = connection.run(self.statement_timeout, move |file| Ok(reading.page(file)?));
        reading.await
    }

    async fn feed_guarantee(&self, _: &mut File) -> Result<(Guarantee, Option<String>), FileError> {
        Ok((Guarantee::Exact, None))
    }

    /// The file itself: another file under the same name is another database.
    async fn identity(&self, _: &mut File) -> Result<String, FileError> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = tokio::fs::metadata(&self.location.path).await?;
        Ok(format!("sqlite file={}", metadata.ino()))
    }

    async fn inspect(&self, _: &mut File) -> Result<Inspection, FileError> {
        Ok(Inspection {
            server: format!("SQLite {}", rusqlite::version()),
            role: String::new(),
            can_write: Some(false),
        })
    }

    async fn guarantee(
        &self,
        _: &mut File,
        _: &CursorColumn,
    ) -> Result<(Guarantee, Option<String>), FileError> {
        Ok((Guarantee::Exact, None))
    }

    async fn is_indexed(
        &self,
        connection: &mut File,
        statement: &Statement,
    ) -> Result<Option<bool>, FileError> {
        let statement = statement.clone();
        let asking = connection.run(self.statement_timeout, move |file| {
            let mut prepared = file.prepare(&format!("EXPLAIN QUERY PLAN {}", statement.text()))?;
            bind_all(&mut prepared, statement.binds())?;
            let steps = prepared
                .raw_query()
                .mapped(|row| row.get::<_, String>("detail"));
            Ok(steps.collect::<Result<Vec<_>, _>>()?)
        });
        let steps = asking.await?;
        let scans = steps
            .iter()
            .any(|step| step.starts_with("SCAN") && !step.contains("INDEX"));
        let sorts = steps
            .iter()
            .any(|step| step == "USE TEMP B-TREE FOR ORDER BY");
        Ok(Some(!scans && !sorts))
    }

    fn explain(&self, error: FileError) -> Failure {
        match (error.sqlite(), &error) {
            (Some((code, words)), _) => error::sqlite(code, words),
            (None, FileError::Io(error)) => Failure::Unreachable(error::io(error)),
            (None, FileError::Ended) => {
                Failure::Unreachable("the thread that reads the file ended".into())
            }
            (None, FileError::Value) => Failure::Query("a value could not be decoded".into()),
            (None, FileError::Sqlite(_)) => Failure::Query("the driver could not run it".into()),
        }
    }
}

fn describe(file: &Connection, query: &str) -> Result<Vec<Described>, FileError> {
    // In parentheses nothing but a SELECT is accepted, and only one.
    file.prepare(&format!("SELECT 1 FROM (\n{query}\n) LIMIT 0"))?;
    let statement = file.prepare(query)?;
    let mut described: Vec<Described> = statement
        .columns()
        .iter()
        .map(|column| Described {
            name: column.name().to_owned(),
            type_name: type_name(column.decl_type()).to_owned(),
            is_guess: false,
        })
        .collect();
    let mut cursors = described.iter_mut().filter(|column| column.name == CURSOR);
    if let (Some(cursor), None) = (cursors.next(), cursors.next()) {
        match newest_type(file, query)? {
            Some(class) => cursor.type_name = class.to_uppercase(),
            None => guess(cursor),
        }
    }
    Ok(described)
}

/// What a column is by its declaration, of which SQLite itself reads no more than its affinity
/// (<https://www.sqlite.org/datatype3.html#affname>); `NULL` where there is none, or none that is known.
fn type_name(declared: Option<&str>) -> &'static str {
    let declared = declared.unwrap_or_default().to_ascii_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| declared.contains(part));
    match &*declared {
        "boolean" | "bool" => "BOOLEAN",
        "date" => "DATE",
        "time" => "TIME",
        "datetime" | "timestamp" => "DATETIME",
        _ if has(&["int"]) => "INTEGER",
        _ if has(&["char", "clob", "text"]) => "TEXT",
        _ if has(&["blob"]) => "BLOB",
        _ if has(&["real", "floa", "doub"]) => "REAL",
        _ => "NULL",
    }
}

/// The type of a cursor's value, `None` when there is none yet.
fn newest_type(file: &Connection, query: &str) -> Result<Option<String>, rusqlite::Error> {
    let sql = format!(
        "SELECT typeof(resource.\"cursor\")\nFROM (\n{query}\n) AS resource\nWHERE resource.\"cursor\" IS NOT NULL\nLIMIT 1"
    );
    file.query_row(&sql, [], |row| row.get(0)).optional()
}

/// The type of a cursor without values, by its declaration.
fn guess(column: &mut Described) {
    column.is_guess = true;
    if matches!(column.type_name.as_str(), "DATETIME" | "DATE" | "NULL") {
        column.type_name = "TEXT".to_owned();
    }
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return None;
    }
    (0..digits.len() / 2)
        .map(|index| u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).ok())
        .collect()
}

fn digits(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(digits, "{byte:02X}").expect("a String takes all text");
    }
    digits
}

fn bind_all(prepared: &mut Prepared<'_>, binds: &[Bind]) -> Result<(), rusqlite::Error> {
    for (index, bind) in (1..).zip(binds) {
        match bind {
            Bind::Text(text) => prepared.raw_bind_parameter(index, text),
            Bind::Integer(integer) => prepared.raw_bind_parameter(index, integer),
            Bind::Bytes(bytes) => prepared.raw_bind_parameter(index, bytes),
        }?;
    }
    Ok(())
}

/// Every value that a page selects is bytes or text.
fn value(value: ValueRef<'_>) -> Result<Option<&[u8]>, FileError> {
    match value {
        ValueRef::Null => Ok(None),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Ok(Some(bytes)),
        ValueRef::Integer(_) | ValueRef::Real(_) => Err(FileError::Value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_keeps_the_type_of_its_value() {
        assert_eq!(unhex("61"), Some(vec![b'a']));
        assert_eq!(unhex(""), Some(vec![]));
        assert_eq!(unhex("6"), None);
        assert_eq!(unhex("zz"), None);
        let time = Duration::from_secs(1);
        let dialect = SqliteDialect::new("sqlite:x", String::new(), time).expect("a file");
        assert_eq!(dialect.position("integer", "-7").as_deref(), Some("i-7"));
        assert_eq!(
            dialect.position("text", "\u{e9}7").as_deref(),
            Some("tC3A937")
        );
        assert_eq!(dialect.position("real", "7.0"), None);
    }

    #[test]
    fn ids_that_a_collation_may_take_for_equal_are_not_apart() {
        let dialect = SqliteDialect::new("sqlite:x", String::new(), Duration::ZERO);
        let dialect = dialect.expect("a file");
        for (left, right, expected) in [
            (("a", "b"), ("a", "b"), false),
            (("a", "b"), ("A", "B "), false),
            (("a ", "b"), ("a", "b"), false),
            ((" ", "b"), ("", "b"), false),
            (("a", "b"), ("a", " b"), true),
            (("a", "b"), ("a", "c"), true),
            (("a", "b"), ("b", "b"), true),
            (("ä", "b"), ("Ä", "b"), true),
        ] {
            assert_eq!(
                dialect.are_apart(left, right),
                expected,
                "{left:?} {right:?}"
            );
        }
    }

    #[test]
    fn a_declaration_is_read_as_far_as_it_says_what_a_value_is() {
        for (declared, expected) in [
            (Some("BIGINT"), "INTEGER"),
            (Some("INT8"), "INTEGER"),
            (Some("VARCHAR(40)"), "TEXT"),
            (Some("CLOB"), "TEXT"),
            (Some("BLOB"), "BLOB"),
            (Some("DOUBLE PRECISION"), "REAL"),
            (Some("Timestamp"), "DATETIME"),
            (Some("DATE"), "DATE"),
            (Some("TIME"), "TIME"),
            (Some("BOOL"), "BOOLEAN"),
            (Some("NUMERIC"), "NULL"),
            (None, "NULL"),
        ] {
            assert_eq!(type_name(declared), expected, "{declared:?}");
        }
    }
}
