//! SQLite: a file that is opened for reading only.
//!
//! SQLite's types belong to values, not to columns: an id may be an integer or text, and a cursor is one of both, as its newest
//! values are. Writers exclude each other, so a cursor that the writing statement itself sets grows with every commit.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use sqlx::query::Query as SqlxQuery;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnectOptions, SqliteError, SqliteRow};
use sqlx::{
    AssertSqlSafe, Column as _, ConnectOptions, Executor, Row, SqlSafeStr, SqliteConnection,
    Statement as _, TypeInfo,
};

use super::columns::{CURSOR, Column, CursorColumn, Described, Reach};
use super::connections::CONNECT_TIMEOUT;
use super::dialect::{Began, Dialect, Key, Limits, MAX_CELLS, MAX_ORDERED_BYTES, Sink, hex};
use super::error::{self, Failure};
use super::feed;
use super::horizon::Open;
use super::inspect::Inspection;
use super::packed;
use super::query::{Lexis, Query};
use super::statement::{Bind, Comparison, Param, Placeholders, Statement, lowered};
use super::{CursorKind, Guarantee};
use crate::model::value::MAX_COLUMN_BYTES;

/// After how many of SQLite's own instructions the deadline is looked at.
const INSTRUCTIONS_BETWEEN_CHECKS: i32 = 1_000;

/// Begins a transaction and takes its place in the file: what its later statements read is there, and nobody has to be waited for.
const BEGIN: &str = "BEGIN; SELECT 1 FROM sqlite_schema LIMIT 1";
/// After how long a reader that has to wait for a writer looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How much of the file a connection keeps in memory, in the words of `PRAGMA cache_size`: 256 KiB. What lies above the rows that are read
/// next finds room in it; the rows themselves are read once in a pass.
const CACHE_SIZE: &str = "-256";

/// One SQLite file.
pub(super) struct SqliteDialect {
    options: SqliteConnectOptions,
    target: String,
    statement_timeout: Duration,
}

impl SqliteDialect {
    pub(super) fn new(
        options: SqliteConnectOptions,
        target: String,
        statement_timeout: Duration,
    ) -> Self {
        let options = options
            .read_only(true)
            .create_if_missing(false)
            .pragma("query_only", "ON")
            .pragma("trusted_schema", "OFF")
            .pragma("cache_size", CACHE_SIZE)
            .statement_cache_capacity(0)
            .disable_statement_logging();
        let dialect = Self {
            options,
            target,
            statement_timeout,
        };
        let patience = dialect.patience();
        Self {
            options: dialect.options.busy_timeout(patience),
            ..dialect
        }
    }
}

impl SqliteDialect {
    /// How long whoever writes the file is waited for.
    fn patience(&self) -> Duration {
        self.statement_timeout.min(CONNECT_TIMEOUT)
    }

    /// Whether a reader has to wait for a writer, which SQLite does by itself only for a lock.
    ///
    /// Beside several writers this happens without any of them having been cut off: a reader that sees the journal of one and then not its
    /// lock takes the journal of the next for one that was left behind (`hasHotJournal` in SQLite's pager.c), which it must not roll back.
    fn awaits_writer(&self, error: &sqlx::Error, waited: Duration) -> bool {
        let code = error.as_database_error().and_then(|error| error.code());
        let needs_recovery = code
            .and_then(|code| code.parse().ok())
            .is_some_and(error::needs_recovery);
        needs_recovery && waited < self.patience()
    }
}

async fn set_deadline(
    connection: &mut SqliteConnection,
    time: Duration,
) -> Result<(), sqlx::Error> {
    let started = Instant::now();
    connection
        .lock_handle()
        .await?
        .set_progress_handler(INSTRUCTIONS_BETWEEN_CHECKS, move || {
            started.elapsed() < time
        });
    Ok(())
}

#[async_trait]
impl Dialect for SqliteDialect {
    type Connection = SqliteConnection;

    const LEXIS: Lexis = Lexis::Sqlite;
    const PLACEHOLDERS: Placeholders = Placeholders::Positional;
    const COMPARISON: Comparison = Comparison::RowValues;
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

    fn packed(&self, columns: &[&Column]) -> Option<String> {
        let operands: Vec<String> = columns
            .iter()
            .map(|column| self.operand(column.name))
            .collect();
        Some(packed::line(&operands))
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
            order: operand,
            type_name: Some(column.type_name.clone()),
            is_text: false,
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
            is_text: false,
        }
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

    fn is_irregular(&self, column: &Column) -> String {
        let operand = self.operand(column.name);
        format!(
            "(typeof({operand}) NOT IN ('integer', 'text') OR octet_length({operand}) > {MAX_ORDERED_BYTES})"
        )
    }

    async fn open(&self) -> Result<SqliteConnection, sqlx::Error> {
        self.options.connect().await
    }

    async fn begin(&self, connection: &mut SqliteConnection) -> Result<Began, sqlx::Error> {
        let begun = Instant::now();
        set_deadline(connection, self.statement_timeout).await?;
        loop {
            match sqlx::raw_sql(BEGIN).execute(&mut *connection).await {
                Err(error) if self.awaits_writer(&error, begun.elapsed()) => {
                    sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                begun => {
                    begun?;
                    return Ok(Began { is_replica: false });
                }
            }
        }
    }

    async fn end(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        set_deadline(connection, self.statement_timeout).await?;
        sqlx::raw_sql("ROLLBACK")
            .execute(&mut *connection)
            .await
            .map(drop)
    }

    async fn describe(
        &self,
        connection: &mut SqliteConnection,
        query: &Query,
    ) -> Result<Vec<Described>, sqlx::Error> {
        set_deadline(connection, self.statement_timeout).await?;
        // In parentheses nothing but a SELECT is accepted, and only one.
        let wrapped = format!("SELECT 1 FROM (\n{}\n) LIMIT 0", query.text());
        (&mut *connection)
            .prepare(AssertSqlSafe(wrapped).into_sql_str())
            .await?;
        let sql = AssertSqlSafe(query.text().to_owned()).into_sql_str();
        let statement = (&mut *connection).prepare(sql).await?;
        let mut described: Vec<Described> = statement
            .columns()
            .iter()
            .map(|column| Described {
                name: column.name().to_owned(),
                type_name: column.type_info().name().to_owned(),
                is_guess: false,
            })
            .collect();
        let names: Vec<&str> = described
            .iter()
            .map(|column| column.name.as_str())
            .collect();
        if names.iter().filter(|name| **name == CURSOR).count() == 1 {
            let found = newest_type(connection, query).await?;
            for column in described.iter_mut().filter(|column| column.name == CURSOR) {
                match &found {
                    Some(class) => column.type_name = class.to_uppercase(),
                    None => guess(column),
                }
            }
        }
        Ok(described)
    }

    async fn rows(
        &self,
        connection: &mut SqliteConnection,
        statement: &Statement,
        limits: Limits,
        sink: &mut (dyn Sink + Send),
    ) -> Result<bool, sqlx::Error> {
        set_deadline(connection, limits.time).await?;
        let sql = AssertSqlSafe(statement.text().to_owned());
        let query = bind_all(sqlx::query(sql).persistent(false), statement.binds());
        let mut stream = query.fetch(connection);
        let mut bytes = 0;
        while let Some(row) = stream.try_next().await? {
            let mut cells = [None; MAX_CELLS];
            let cells = cells
                .get_mut(..row.len())
                .expect("no statement selects more columns");
            for (index, cell) in cells.iter_mut().enumerate() {
                *cell = value(&row, index)?;
                bytes += cell.map_or(0, <[u8]>::len);
            }
            sink.row(cells);
            if bytes > limits.bytes {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn horizon(
        &self,
        _: &mut SqliteConnection,
        _: Option<Open>,
        _: &CursorColumn,
        _: Option<&str>,
    ) -> Result<Option<String>, sqlx::Error> {
        // Writers exclude each other: none is open that could commit before what was read.
        Ok(None)
    }

    async fn feed(
        &self,
        connection: &mut SqliteConnection,
        wanted: feed::Wanted<'_>,
    ) -> Result<feed::Found, sqlx::Error> {
        set_deadline(connection, self.statement_timeout).await?;
        feed::sqlite::page(connection, wanted).await
    }

    async fn feed_guarantee(
        &self,
        _: &mut SqliteConnection,
    ) -> Result<(Guarantee, Option<String>), sqlx::Error> {
        Ok((Guarantee::Exact, None))
    }

    /// The file itself: another file under the same name is another database.
    async fn identity(&self, _: &mut SqliteConnection) -> Result<String, sqlx::Error> {
        use std::os::unix::fs::MetadataExt as _;
        let path = self.options.get_filename().to_owned();
        let metadata = tokio::fs::metadata(&path).await?;
        Ok(format!("sqlite file={}", metadata.ino()))
    }

    async fn inspect(&self, connection: &mut SqliteConnection) -> Result<Inspection, sqlx::Error> {
        let (version,): (String,) = sqlx::query_as("SELECT sqlite_version()")
            .persistent(false)
            .fetch_one(&mut *connection)
            .await?;
        Ok(Inspection {
            server: format!("SQLite {version}"),
            role: String::new(),
            can_write: Some(false),
        })
    }

    async fn guarantee(
        &self,
        _: &mut SqliteConnection,
        _: &CursorColumn,
    ) -> Result<(Guarantee, Option<String>), sqlx::Error> {
        Ok((Guarantee::Exact, None))
    }

    async fn is_indexed(
        &self,
        connection: &mut SqliteConnection,
        statement: &Statement,
    ) -> Result<Option<bool>, sqlx::Error> {
        let sql = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", statement.text()));
        let rows = bind_all(sqlx::query(sql).persistent(false), statement.binds())
            .fetch_all(&mut *connection)
            .await?;
        let steps: Vec<String> = rows
            .iter()
            .filter_map(|row| row.try_get::<String, _>("detail").ok())
            .collect();
        let scans = steps
            .iter()
            .any(|step| step.starts_with("SCAN") && !step.contains("INDEX"));
        let sorts = steps
            .iter()
            .any(|step| step == "USE TEMP B-TREE FOR ORDER BY");
        Ok(Some(!scans && !sorts))
    }

    fn explain(&self, error: sqlx::Error) -> Failure {
        match error.as_database_error() {
            Some(database) if database.try_downcast_ref::<SqliteError>().is_some() => {
                error::sqlite(database.code().as_deref(), database.message())
            }
            _ => Failure::of_driver(&error),
        }
    }
}

/// The type of a cursor's value, `None` when there is none yet.
async fn newest_type(
    connection: &mut SqliteConnection,
    query: &Query,
) -> Result<Option<String>, sqlx::Error> {
    let sql = format!(
        "SELECT typeof(resource.\"cursor\")\nFROM (\n{}\n) AS resource\nWHERE resource.\"cursor\" IS NOT NULL\nLIMIT 1",
        query.text()
    );
    let row = sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_optional(connection)
        .await?;
    row.map(|row| row.try_get(0)).transpose()
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

fn bind_all<'q>(
    mut query: SqlxQuery<'q, Sqlite, SqliteArguments>,
    binds: &'q [Bind],
) -> SqlxQuery<'q, Sqlite, SqliteArguments> {
    for bind in binds {
        query = match bind {
            Bind::Text(text) => query.bind(text.as_str()),
            Bind::Integer(integer) => query.bind(*integer),
            Bind::Bytes(bytes) => query.bind(bytes.as_slice()),
        };
    }
    query
}

/// Every value that a page selects is bytes or text.
fn value(row: &SqliteRow, index: usize) -> Result<Option<&[u8]>, sqlx::Error> {
    row.try_get_unchecked(index)
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
    }

    #[test]
    fn a_file_that_cannot_be_reached_is_named() {
        let time = Duration::from_secs(1);
        let dialect = SqliteDialect::new(SqliteConnectOptions::new(), "the file".to_owned(), time);
        assert_eq!(dialect.target(), "the file");
    }
}
