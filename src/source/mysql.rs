//! MySQL and MariaDB: their expressions, their limits per session, their identity.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use sqlx::mysql::{MySql, MySqlArguments, MySqlConnectOptions, MySqlDatabaseError, MySqlRow};
use sqlx::query::Query as SqlxQuery;
use sqlx::{
    AssertSqlSafe, Column as _, ConnectOptions, Connection, Executor, MySqlConnection, Row,
    SqlSafeStr, Statement as _, TypeInfo,
};

use super::columns::{Column, CursorColumn, Described, Reach};
use super::dialect::{
    Began, Dialect, Key, Limits, MAX_CELLS, MAX_ORDERED_BYTES, Room, Sink, ToldBy, hex,
};
use super::error::{self, Failure};
use super::feed;
use super::horizon::Open;
use super::inspect::{Inspection, bounded};
use super::query::{Lexis, Query};
use super::statement::{Bind, Comparison, Param, Placeholders, Statement, lowered};
use super::{CursorKind, Guarantee};
use crate::model::value::MAX_COLUMN_BYTES;

/// How many prepared statements a connection keeps: those of polls, sweeps and tokens, and some look-ups.
const STATEMENTS_KEPT: usize = 32;

/// One MySQL or MariaDB database. It has no `Debug`: the driver's options would print the password.
pub(super) struct MySqlDialect {
    options: MySqlConnectOptions,
    target: String,
    statement_timeout: Duration,
    transactions: feed::mysql::LastAsked,
}

impl MySqlDialect {
    pub(super) fn new(
        options: MySqlConnectOptions,
        target: String,
        statement_timeout: Duration,
    ) -> Self {
        let options = options
            // The operator's SQL means what it means on their server: its modes stay as they are.
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .charset("utf8mb4")
            .timezone(Some("+00:00".to_owned()))
            // Closing a statement after each use would cost a delayed acknowledgement (40 ms) every time.
            .statement_cache_capacity(STATEMENTS_KEPT)
            .disable_statement_logging();
        Self {
            options,
            target,
            statement_timeout,
            transactions: feed::mysql::LastAsked::default(),
        }
    }
}

/// The families of types, by the driver's names for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Text,
    /// Bytes, or text of a binary collation: the driver does not tell them apart.
    Binary,
    Signed,
    Unsigned,
    Time,
    Other,
}

fn family(type_name: &str) -> Family {
    match type_name {
        "CHAR" | "VARCHAR" | "TINYTEXT" | "TEXT" | "MEDIUMTEXT" | "LONGTEXT" => Family::Text,
        "VARBINARY" | "TINYBLOB" | "BLOB" | "MEDIUMBLOB" | "LONGBLOB" => Family::Binary,
        "BOOLEAN" | "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT" => Family::Signed,
        "TINYINT UNSIGNED" | "SMALLINT UNSIGNED" | "MEDIUMINT UNSIGNED" | "INT UNSIGNED"
        | "BIGINT UNSIGNED" => Family::Unsigned,
        "DATETIME" | "TIMESTAMP" => Family::Time,
        _ => Family::Other,
    }
}

/// The parameter of a family's native type; `None` when the text is none of its values.
fn native_param(family: Family, text: &str) -> Option<Param> {
    let bind = Bind::Text(text.to_owned());
    match family {
        Family::Text | Family::Binary => Some(Param::plain(bind)),
        Family::Signed => text
            .parse::<i64>()
            .is_ok()
            .then(|| Param::cast("CAST(", bind, " AS SIGNED)")),
        Family::Unsigned => text
            .parse::<u64>()
            .is_ok()
            .then(|| Param::cast("CAST(", bind, " AS UNSIGNED)")),
        Family::Time => is_datetime(text).then(|| Param::cast("CAST(", bind, " AS DATETIME(6))")),
        Family::Other => None,
    }
}

/// A value's bytes in UTF-8; what has no character set (bytes, numbers, times) is taken as it is.
fn in_utf8(operand: &str) -> String {
    format!(
        "(CASE CHARSET({operand}) WHEN 'binary' THEN CAST({operand} AS BINARY) ELSE CAST(CONVERT({operand} USING utf8mb4) AS BINARY) END)"
    )
}

/// `2026-01-31 12:00:00`, perhaps with a fraction.
fn is_datetime(text: &str) -> bool {
    text.len() >= 19
        && text.bytes().enumerate().all(|(index, byte)| match index {
            4 | 7 => byte == b'-',
            10 => byte == b' ',
            13 | 16 => byte == b':',
            19 => byte == b'.',
            _ => byte.is_ascii_digit(),
        })
}

#[async_trait]
impl Dialect for MySqlDialect {
    type Connection = MySqlConnection;
    type Error = sqlx::Error;

    const LEXIS: Lexis = Lexis::MySql;
    const PLACEHOLDERS: Placeholders = Placeholders::Positional;
    const COMPARISON: Comparison = Comparison::Expanded;
    // An order of the cursor and expressions is sorted as a whole, however the cursor is indexed.
    const BOUNDS_POLLS: bool = true;
    // The range optimiser knows a list of constant pairs, and no table of them.
    const PAIRS: (&'static str, &'static str) = ("", "");

    fn target(&self) -> &str {
        &self.target
    }

    fn operand(&self, name: &str) -> String {
        format!("resource.`{name}`")
    }

    /// As a text, whatever type the column has by now: text comes in the character set of the connection, bytes come as they are.
    fn text(&self, column: &Column) -> String {
        format!("CONCAT({})", self.operand(column.name))
    }

    fn value(&self, column: &Column) -> String {
        // Of bytes or characters: what is beyond the limit by one is too long.
        format!(
            "LEFT({}, {})",
            self.operand(column.name),
            MAX_COLUMN_BYTES + 1
        )
    }

    fn cursor_kind(&self, type_name: &str) -> Option<CursorKind> {
        match family(type_name) {
            Family::Time => Some(CursorKind::Timestamp),
            Family::Signed | Family::Unsigned => Some(CursorKind::Integer),
            Family::Text | Family::Binary => Some(CursorKind::Text),
            Family::Other => None,
        }
    }

    fn cursor_text(&self, cursor: &CursorColumn) -> String {
        self.text(&Column {
            name: "cursor",
            type_name: cursor.type_name.clone(),
        })
    }

    fn cursor_filter(&self, _: &CursorColumn) -> String {
        format!("{} IS NOT NULL", self.operand("cursor"))
    }

    fn cursor_param(&self, cursor: &CursorColumn, text: &str) -> Option<Param> {
        native_param(family(&cursor.type_name), text)
    }

    fn push_floor(&self, statement: &mut Statement, cursor: &CursorColumn, param: &Param) {
        match cursor.reach {
            Reach::None => {
                statement.param(param);
            }
            Reach::Micros(micros) => {
                statement
                    .param(param)
                    .push(" - INTERVAL ")
                    .param(&Param::plain(Bind::Integer(micros)))
                    .push(" MICROSECOND");
            }
            Reach::Units(units) => {
                let least = match family(&cursor.type_name) {
                    Family::Unsigned => 0,
                    _ => i64::MIN.into(),
                };
                let bind = lowered(&param.bind, units, least);
                statement.param(&Param {
                    bind,
                    ..param.clone()
                });
            }
        }
    }

    fn native_key(&self, column: &Column) -> Option<Key> {
        matches!(
            family(&column.type_name),
            Family::Text | Family::Binary | Family::Signed | Family::Unsigned
        )
        .then(|| Key {
            order: self.operand(column.name),
            position: self.text(column),
            type_name: Some(column.type_name.clone()),
            told_by: ToldBy::Text,
        })
    }

    fn binary_key(&self, column: &Column) -> Key {
        let digits = format!(
            "COALESCE(HEX(LEFT({}, {MAX_ORDERED_BYTES})), '')",
            in_utf8(&self.operand(column.name))
        );
        Key {
            order: digits.clone(),
            position: digits,
            type_name: None,
            told_by: ToldBy::Position,
        }
    }

    fn key_param(&self, key: &Key, text: &str) -> Option<Param> {
        match &key.type_name {
            None => Some(Param::plain(Bind::Text(text.to_owned()))),
            Some(type_name) => native_param(family(type_name), text),
        }
    }

    fn id_param(&self, key: &Key, id: &str) -> Option<Param> {
        match &key.type_name {
            None => Some(Param::plain(hex(id))),
            Some(_) => self.key_param(key, id),
        }
    }

    fn is_irregular(&self, column: &Column) -> String {
        let operand = self.operand(column.name);
        // A character has four bytes in UTF-8 at most, and one at least in any other character set.
        let is_long = format!(
            "(octet_length({operand}) > {} AND octet_length({}) > {MAX_ORDERED_BYTES})",
            MAX_ORDERED_BYTES / 4,
            in_utf8(&operand)
        );
        match family(&column.type_name) {
            Family::Text => format!("({operand} IS NULL OR {is_long})"),
            // Bytes that are no UTF-8 do not survive the conversion.
            Family::Binary => format!(
                "({operand} IS NULL OR {is_long} OR (CHARSET({operand}) = 'binary' \
                 AND COALESCE(CAST(CONVERT({operand} USING utf8mb4) AS BINARY) <> {operand}, TRUE)))"
            ),
            _ => format!("({operand} IS NULL)"),
        }
    }

    async fn open(&self) -> Result<MySqlConnection, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        let version = version(&mut connection).await?;
        let millis = self.statement_timeout.as_millis().clamp(1, 2_000_000_000);
        let limit = if is_mariadb(&version) {
            format!(
                "max_statement_time = {}.{:03}",
                millis / 1000,
                millis % 1000
            )
        } else {
            format!("max_execution_time = {millis}")
        };
        let seconds = millis.div_ceil(1000);
        let settings = format!(
            "SET SESSION {limit}, SESSION lock_wait_timeout = {seconds}, \
             SESSION innodb_lock_wait_timeout = {seconds}, SESSION max_sort_length = 8192"
        );
        for statement in [
            settings,
            "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ".to_owned(),
        ] {
            sqlx::raw_sql(AssertSqlSafe(statement))
                .execute(&mut connection)
                .await?;
        }
        Ok(connection)
    }

    async fn begin(&self, connection: &mut MySqlConnection) -> Result<Began, sqlx::Error> {
        sqlx::raw_sql("START TRANSACTION READ ONLY")
            .execute(&mut *connection)
            .await?;
        Ok(Began { is_replica: false })
    }

    async fn end(&self, connection: &mut MySqlConnection) -> Result<(), sqlx::Error> {
        sqlx::raw_sql("ROLLBACK")
            .execute(&mut *connection)
            .await
            .map(drop)
    }

    async fn describe(
        &self,
        connection: &mut MySqlConnection,
        query: &Query,
    ) -> Result<Vec<Described>, sqlx::Error> {
        // A kept statement would tell of the columns as they were.
        connection.clear_cached_statements().await?;
        let sql = AssertSqlSafe(query.text().to_owned()).into_sql_str();
        let statement = (&mut *connection).prepare(sql).await?;
        let described = statement
            .columns()
            .iter()
            .map(|column| Described {
                name: column.name().to_owned(),
                type_name: column.type_info().name().to_owned(),
                is_guess: false,
            })
            .collect();
        Ok(described)
    }

    async fn rows<S: Sink>(
        &self,
        connection: &mut MySqlConnection,
        statement: &Statement,
        limits: Limits,
        mut sink: S,
    ) -> Result<(S, bool), sqlx::Error> {
        let sql = AssertSqlSafe(statement.text().to_owned());
        let query = bind_all(sqlx::query(sql), statement.binds());
        let mut stream = query.fetch(connection);
        let mut room = Room::new(limits);
        while let Some(row) = stream.try_next().await? {
            let mut cells = [None; MAX_CELLS];
            let cells = cells
                .get_mut(..row.len())
                .expect("no statement selects more columns");
            for (index, cell) in cells.iter_mut().enumerate() {
                *cell = value(&row, index)?;
            }
            if !room.give(&mut sink, cells) {
                return Ok((sink, false));
            }
        }
        Ok((sink, true))
    }

    async fn horizon(
        &self,
        _: &mut MySqlConnection,
        _: Option<Open>,
        _: &CursorColumn,
        _: Option<&str>,
    ) -> Result<Option<String>, sqlx::Error> {
        // Nothing shows from when on a transaction's rows can be: NOW() is the start of a statement, which may wait for long before its
        // transaction begins (trx_started), and is in no list once the statement has ended.
        Ok(None)
    }

    async fn feed(
        &self,
        connection: &mut MySqlConnection,
        wanted: feed::Wanted<'_>,
    ) -> Result<feed::Found, sqlx::Error> {
        feed::mysql::page(connection, wanted, &self.transactions).await
    }

    async fn feed_guarantee(
        &self,
        connection: &mut MySqlConnection,
    ) -> Result<(Guarantee, Option<String>), sqlx::Error> {
        if feed::mysql::sees_everyone(connection).await? {
            return Ok((Guarantee::Exact, None));
        }
        let advice = "let the role see open transactions on the one server that is written to (GRANT PROCESS ON *.*), or keep \
                      `overlap` above the longest transaction that writes";
        Ok((Guarantee::BoundedByOverlap, Some(advice.to_owned())))
    }

    async fn identity(&self, connection: &mut MySqlConnection) -> Result<String, sqlx::Error> {
        let version = version(connection).await?;
        let sql = if is_mariadb(&version) {
            // A Galera cluster is one database, whichever node answers.
            "SELECT CAST(CONCAT_WS(' ', 'mariadb', DATABASE(), COALESCE(
                (
                    SELECT CONCAT('cluster=', s.VARIABLE_VALUE)
                    FROM information_schema.GLOBAL_STATUS AS s
                    WHERE s.VARIABLE_NAME = 'WSREP_CLUSTER_STATE_UUID' AND s.VARIABLE_VALUE <> ''
                ),
                CONCAT('server=', @@global.server_id, ' host=', @@global.hostname, ' port=', @@global.port)
             )) AS BINARY)"
        } else {
            "SELECT CAST(CONCAT_WS(' ', 'mysql', DATABASE(), CONCAT('server=', @@global.server_uuid)) AS BINARY)"
        };
        let row = sqlx::query(sql)
            .persistent(false)
            .fetch_one(&mut *connection)
            .await?;
        let id: Vec<u8> = row.try_get_unchecked(0)?;
        Ok(String::from_utf8_lossy(&id).into_owned())
    }

    async fn inspect(&self, connection: &mut MySqlConnection) -> Result<Inspection, sqlx::Error> {
        let version = version(connection).await?;
        let row = sqlx::query("SELECT CAST(CURRENT_USER() AS BINARY)")
            .persistent(false)
            .fetch_one(&mut *connection)
            .await?;
        let role: Vec<u8> = row.try_get_unchecked(0)?;
        let grants = sqlx::raw_sql("SHOW GRANTS")
            .fetch_all(&mut *connection)
            .await?;
        let can_write = grants.iter().any(|row| {
            let grant: Vec<u8> = row.try_get_unchecked(0).unwrap_or_default();
            may_write(&String::from_utf8_lossy(&grant))
        });
        let product = if is_mariadb(&version) {
            "MariaDB"
        } else {
            "MySQL"
        };
        let number = version.split('-').next().unwrap_or(&version);
        Ok(Inspection {
            server: format!("{product} {number}"),
            role: String::from_utf8_lossy(&role).into_owned(),
            can_write: Some(can_write),
        })
    }

    async fn guarantee(
        &self,
        _: &mut MySqlConnection,
        cursor: &CursorColumn,
    ) -> Result<(Guarantee, Option<String>), sqlx::Error> {
        Ok(bounded(cursor.kind))
    }

    async fn is_indexed(
        &self,
        connection: &mut MySqlConnection,
        statement: &Statement,
    ) -> Result<Option<bool>, sqlx::Error> {
        let sql = AssertSqlSafe(format!("EXPLAIN {}", statement.text()));
        let rows = bind_all(sqlx::query(sql).persistent(false), statement.binds())
            .fetch_all(&mut *connection)
            .await?;
        let text = |row: &MySqlRow, name: &str| {
            let bytes: Option<Vec<u8>> = row.try_get_unchecked(name).ok().flatten();
            bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        if rows.iter().any(|row| text(row, "key").is_some()) {
            return Ok(Some(true));
        }
        // With an index at hand the optimiser may still read a small table as a whole.
        let has_candidate = rows.iter().any(|row| text(row, "possible_keys").is_some());
        Ok(if has_candidate { None } else { Some(false) })
    }

    fn explain(&self, error: sqlx::Error) -> Failure {
        match error.as_database_error() {
            Some(database) => match database.try_downcast_ref::<MySqlDatabaseError>() {
                Some(database) => error::mysql(database.number(), database.message()),
                None => Failure::of_driver(&error),
            },
            None => Failure::of_driver(&error),
        }
    }
}

async fn version(connection: &mut MySqlConnection) -> Result<String, sqlx::Error> {
    let row = sqlx::query("SELECT CAST(VERSION() AS BINARY)")
        .persistent(false)
        .fetch_one(connection)
        .await?;
    let version: Vec<u8> = row.try_get_unchecked(0)?;
    Ok(String::from_utf8_lossy(&version).into_owned())
}

fn is_mariadb(version: &str) -> bool {
    version.to_ascii_lowercase().contains("mariadb")
}

/// Whether a line of `SHOW GRANTS` lets its holder change data.
fn may_write(grant: &str) -> bool {
    const WRITING: [&str; 8] = [
        "ALL PRIVILEGES",
        "INSERT",
        "UPDATE",
        "DELETE",
        "DROP",
        "ALTER",
        "CREATE",
        "SUPER",
    ];
    let rights = grant.split(" ON ").next().unwrap_or_default();
    WRITING.iter().any(|right| rights.contains(right))
}

fn bind_all<'q>(
    mut query: SqlxQuery<'q, MySql, MySqlArguments>,
    binds: &'q [Bind],
) -> SqlxQuery<'q, MySql, MySqlArguments> {
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
fn value(row: &MySqlRow, index: usize) -> Result<Option<&[u8]>, sqlx::Error> {
    row.try_get_unchecked(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_of_another_type_is_no_parameter() {
        assert!(is_datetime("2026-01-31 12:00:00.123456"));
        assert!(is_datetime("2026-01-31 12:00:00"));
        for text in [
            "",
            "17",
            "2026-01-31",
            "2026-01-31T12:00:00",
            "res_1234567890123456",
        ] {
            assert!(!is_datetime(text), "{text}");
        }
        assert!(native_param(Family::Unsigned, "-1").is_none());
        assert!(native_param(Family::Signed, "x").is_none());
    }

    #[test]
    fn a_grant_that_only_reads_does_not_write() {
        assert!(!may_write("GRANT SELECT ON `updates`.* TO `u`@`%`"));
        assert!(!may_write("GRANT USAGE ON *.* TO `u`@`%`"));
        assert!(may_write("GRANT SELECT, INSERT ON `a`.* TO `u`@`%`"));
        assert!(may_write(
            "GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost`"
        ));
    }

    #[test]
    fn an_index_gives_the_order_of_texts_bytes_and_integers_alone() {
        let time = Duration::from_secs(1);
        let dialect = MySqlDialect::new(MySqlConnectOptions::new(), "a server".to_owned(), time);
        for (type_name, is_native) in [
            ("VARCHAR", true),
            ("VARBINARY", true),
            ("BIGINT", true),
            ("INT UNSIGNED", true),
            ("DATETIME", false),
            ("DECIMAL", false),
            ("JSON", false),
        ] {
            let column = Column {
                name: "resource_id",
                type_name: type_name.to_owned(),
            };
            let key = dialect.native_key(&column);
            assert_eq!(key.is_some(), is_native, "{type_name}");
            // The column by itself: an expression has no index.
            let order = key.map(|key| key.order);
            let expected = is_native.then(|| "resource.`resource_id`".to_owned());
            assert_eq!(order, expected, "{type_name}");
        }
        assert_eq!(dialect.target(), "a server");
    }
}
