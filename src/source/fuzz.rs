//! Cursors as they come back from a state that anybody may have written to, for `crate::fuzzing`: the real dialects, no database.

use std::time::Duration;

use sqlx::mysql::MySqlConnectOptions;
use sqlx::postgres::PgConnectOptions;

use super::columns::{CursorColumn, Reach};
use super::dialect::Dialect;
use super::feed;
use super::mysql::MySqlDialect;
use super::postgres::PostgresDialect;
use super::sqlite::SqliteDialect;
use super::statement::{Bind, Statement};

/// A type of cursor, how far a poll reaches back, and a text that is surely one of its values.
type Case = (&'static str, Reach, &'static str);

const UUID: &str = "00000000-0000-0000-0000-000000000000";
const TIME: &str = "2026-01-31 12:00:00";
const POSTGRES: [Case; 8] = [
    ("TIMESTAMPTZ", Reach::Micros(30_000_000), TIME),
    ("TIMESTAMP", Reach::Micros(1), TIME),
    ("NUMERIC", Reach::Units(7), "1"),
    ("INT2", Reach::Units(7), "1"),
    ("INT8", Reach::Units(i64::MAX), "1"),
    ("INT8", Reach::None, "1"),
    ("UUID", Reach::None, UUID),
    ("TEXT", Reach::None, "a"),
];
const MYSQL: [Case; 4] = [
    ("DATETIME", Reach::Micros(30_000_000), TIME),
    ("BIGINT", Reach::Units(7), "1"),
    ("BIGINT UNSIGNED", Reach::Units(i64::MAX), "1"),
    ("VARCHAR", Reach::None, "a"),
];
const SQLITE: [Case; 3] = [
    ("INTEGER", Reach::Units(7), "1"),
    ("INTEGER", Reach::Units(i64::MAX), "1"),
    ("TEXT", Reach::None, "a"),
];

/// Reads the text as a cursor of every type on every database, and as a place in every change feed.
///
/// # Panics
/// A statement depends on the text instead of binding it, or reaches forward.
pub(crate) fn read_cursor(text: &str) {
    let time = Duration::from_secs(1);
    let target = || "fuzzed".to_owned();
    let postgres = PostgresDialect::new(
        PgConnectOptions::new_without_pgpass(),
        target(),
        time,
        "fuzzed",
    );
    POSTGRES
        .iter()
        .for_each(|case| check(&postgres, case, text));
    let mysql = MySqlDialect::new(MySqlConnectOptions::new(), target(), time);
    MYSQL.iter().for_each(|case| check(&mysql, case, text));
    let sqlite = SqliteDialect::new("sqlite:fuzzed", target(), time).expect("a file");
    SQLITE.iter().for_each(|case| check(&sqlite, case, text));
    feed::read_place(text);
}

fn check<D: Dialect>(dialect: &D, (type_name, reach, sample): &Case, text: &str) {
    let cursor = CursorColumn {
        type_name: (*type_name).to_owned(),
        kind: dialect.cursor_kind(type_name).expect("a cursor's type"),
        reach: *reach,
    };
    let floor = |text: &str| {
        let param = dialect.cursor_param(&cursor, text)?;
        let mut statement = Statement::new(D::PLACEHOLDERS);
        dialect.push_floor(&mut statement, &cursor, &param);
        Some(statement)
    };
    let sample = floor(sample).expect("the sample is a value of its type");
    let Some(statement) = floor(text) else {
        return;
    };
    assert_eq!(statement.text(), sample.text(), "{type_name} {text:?}");
    let bound = match statement.binds().first() {
        Some(Bind::Integer(bound)) => Some(i128::from(*bound)),
        Some(Bind::Text(bound)) => bound.parse().ok(),
        _ => None,
    };
    if let (Some(bound), Ok(whole)) = (bound, text.parse::<i128>()) {
        assert!(bound <= whole.max(0), "{type_name} {text:?}");
    }
}
