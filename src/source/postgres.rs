//! PostgreSQL: its expressions, its limits per transaction, its identity.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgDatabaseError, PgRow, Postgres};
use sqlx::query::Query as SqlxQuery;
use sqlx::{
    AssertSqlSafe, Column as _, ConnectOptions, Executor, PgConnection, Row, SqlSafeStr,
    Statement as _, TypeInfo, ValueRef,
};

use super::columns::{Column, CursorColumn, Described, Reach};
use super::dialect::{
    Began, Dialect, Key, Limits, MAX_CELLS, MAX_ORDERED_BYTES, Room, Sink, Standing, ToldBy,
};
use super::error::{self, Failure};
use super::feed;
use super::horizon::{self, OPEN, Open, Sight};
use super::identity::{self, Identity};
use super::inspect::{Inspection, bounded};
use super::query::{Lexis, Query};
use super::statement::{Bind, Comparison, Param, Placeholders, Statement, lowered};
use super::{CursorKind, Guarantee};
use crate::model::value::MAX_COLUMN_BYTES;

/// What a value may take in the table, compressed or not, to be taken as text without a look at its length.
const SMALL_BYTES: usize = 2_000;

/// One PostgreSQL database. It has no `Debug`: the driver's options would print the password.
pub(super) struct PostgresDialect {
    pub(super) options: PgConnectOptions,
    pub(super) target: String,
    pub(super) statement_timeout: Duration,
    identity: Identity,
}

impl PostgresDialect {
    pub(super) fn new(
        options: PgConnectOptions,
        target: String,
        statement_timeout: Duration,
        application_name: &str,
    ) -> Self {
        let options = options
            .application_name(application_name)
            // A pooler refuses settings that it does not know, and named statements outlive their connection there.
            .extra_float_digits(None)
            .statement_cache_capacity(0)
            .disable_statement_logging();
        Self {
            options,
            target,
            statement_timeout,
            identity: Identity::default(),
        }
    }

    /// Everything here is set again for each transaction: a function in a query may have changed the session.
    fn begin_sql(&self) -> String {
        let millis = self.statement_timeout.as_millis().clamp(1, 2_000_000_000);
        let idle_millis = (millis + 5_000).min(2_000_000_000);
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY;
             SET LOCAL statement_timeout = {millis};
             SET LOCAL lock_timeout = {millis};
             SET LOCAL idle_in_transaction_session_timeout = {idle_millis};
             SET LOCAL client_min_messages = error;
             SET LOCAL client_encoding = 'UTF8';
             SET LOCAL TimeZone = 'UTC';
             SET LOCAL DateStyle = 'ISO, MDY';
             SELECT pg_catalog.pg_is_in_recovery()"
        )
    }
}

/// The types that sort as an index over them does, with the cast of a parameter.
///
/// Text may sort by any collation and take different ids for equal: pages are made so that this does no harm.
fn native_cast(type_name: &str) -> Option<&'static str> {
    Some(match type_name {
        "TEXT" | "VARCHAR" => "::text",
        "CHAR" => "::bpchar",
        "UUID" => "::uuid",
        "INT2" | "INT4" | "INT8" => "::int8",
        _ => return None,
    })
}

#[async_trait]
impl Dialect for PostgresDialect {
    type Connection = PgConnection;
    type Error = sqlx::Error;

    const LEXIS: Lexis = Lexis::Postgres;
    const PLACEHOLDERS: Placeholders = Placeholders::Numbered;
    const COMPARISON: Comparison = Comparison::RowValues;
    // Rows come in the order of an index on the cursor, and only ties are sorted, where the planner expects many.
    const BOUNDS_POLLS: bool = false;

    fn target(&self) -> &str {
        &self.target
    }

    fn operand(&self, name: &str) -> String {
        format!("resource.\"{name}\"")
    }

    fn text(&self, column: &Column) -> String {
        format!("({})::text", self.operand(column.name))
    }

    /// Neither form is computed twice, and one value brings in a few MiB at most: a small value is small as text too, and of any
    /// other no more is taken than shows that it is too long.
    fn value(&self, column: &Column) -> String {
        let (operand, text) = (self.operand(column.name), self.text(column));
        let most = MAX_COLUMN_BYTES + 1;
        format!(
            "CASE WHEN pg_column_size({operand}) <= {SMALL_BYTES} THEN {text} ELSE left({text}, {most}) END"
        )
    }

    fn cursor_kind(&self, type_name: &str) -> Option<CursorKind> {
        Some(match type_name {
            "TIMESTAMPTZ" | "TIMESTAMP" => CursorKind::Timestamp,
            "INT2" | "INT4" | "INT8" | "NUMERIC" => CursorKind::Integer,
            "TEXT" | "VARCHAR" | "CHAR" | "UUID" => CursorKind::Text,
            _ => return None,
        })
    }

    fn cursor_text(&self, _: &CursorColumn) -> String {
        format!("({})::text", self.operand("cursor"))
    }

    fn cursor_filter(&self, _: &CursorColumn) -> String {
        format!("{} IS NOT NULL", self.operand("cursor"))
    }

    fn cursor_param(&self, cursor: &CursorColumn, text: &str) -> Option<Param> {
        let (fits, cast) = match cursor.type_name.as_str() {
            "TIMESTAMPTZ" => (is_timestamp(text), "::timestamptz"),
            "TIMESTAMP" => (is_timestamp(text), "::timestamp"),
            "NUMERIC" => (is_number(text), "::numeric"),
            other => (native_key_fits(other, text), native_cast(other)?),
        };
        fits.then(|| Param::cast("", Bind::Text(text.to_owned()), format!("::text{cast}")))
    }

    fn unseen(&self, param: Param) -> Param {
        Param {
            before: "(SELECT ",
            after: format!("{})", param.after),
            ..param
        }
    }

    fn push_floor(&self, statement: &mut Statement, cursor: &CursorColumn, param: &Param) {
        match cursor.reach {
            Reach::None => {
                statement.param(param);
            }
            Reach::Micros(micros) => {
                statement
                    .param(param)
                    .push(" - ")
                    .param(&Param::cast("", Bind::Integer(micros), "::int8"))
                    .push(" * interval '1 microsecond'");
            }
            Reach::Units(units) if cursor.type_name == "NUMERIC" => {
                statement.param(param).push(" - ").param(&Param::cast(
                    "",
                    Bind::Integer(units),
                    "::int8",
                ));
            }
            Reach::Units(units) => {
                let bind = lowered(&param.bind, units, i64::MIN.into());
                statement.param(&Param {
                    bind,
                    ..param.clone()
                });
            }
        }
    }

    fn native_key(&self, column: &Column) -> Option<Key> {
        native_cast(&column.type_name)?;
        Some(Key {
            order: self.operand(column.name),
            position: self.text(column),
            type_name: Some(column.type_name.clone()),
            told_by: ToldBy::Text,
        })
    }

    fn binary_key(&self, column: &Column) -> Key {
        let text = self.text(column);
        let prefix = format!("COALESCE(left({text}, {MAX_ORDERED_BYTES}), '')");
        Key {
            order: format!("{prefix} COLLATE \"C\""),
            position: prefix,
            type_name: None,
            told_by: ToldBy::Position,
        }
    }

    fn key_param(&self, key: &Key, text: &str) -> Option<Param> {
        let cast = match &key.type_name {
            None => "",
            Some(type_name) if native_key_fits(type_name, text) => native_cast(type_name)?,
            Some(_) => return None,
        };
        Some(Param::cast(
            "",
            Bind::Text(text.to_owned()),
            format!("::text{cast}"),
        ))
    }

    fn id_param(&self, key: &Key, id: &str) -> Option<Param> {
        // PostgreSQL's text holds no NUL; an id with one is refused long before, a parameter with one would be an error.
        (!id.contains('\0')).then(|| self.key_param(key, id))?
    }

    fn is_irregular(&self, column: &Column) -> String {
        let operand = self.operand(column.name);
        match native_cast(&column.type_name) {
            Some("::text") => format!(
                "({operand} IS NULL OR octet_length({}) > {MAX_ORDERED_BYTES})",
                self.text(column)
            ),
            _ => format!("({operand} IS NULL)"),
        }
    }

    fn has_ties(&self, connection: &PgConnection) -> bool {
        connection
            .server_version_num()
            .is_some_and(|version| version >= 130_000)
    }

    async fn open(&self) -> Result<PgConnection, sqlx::Error> {
        self.options.connect().await
    }

    async fn begin(&self, connection: &mut PgConnection) -> Result<Began, sqlx::Error> {
        let rows = sqlx::raw_sql(AssertSqlSafe(self.begin_sql()))
            .fetch_all(&mut *connection)
            .await?;
        let is_replica = rows.iter().any(|row| row.try_get(0).unwrap_or(false));
        Ok(Began { is_replica })
    }

    /// Unprepared and without parameters: one exchange for everything, once it is known what the role may ask.
    async fn begin_pass(
        &self,
        connection: &mut PgConnection,
        asks_open: bool,
    ) -> Result<(Began, Standing), sqlx::Error> {
        let mut began = None;
        let mut sql = String::new();
        if self.identity.is_known() {
            sql = self.begin_sql() + ";\n";
        } else {
            began = Some(self.begin(connection).await?);
        }
        sql += self.identity.question(connection).await?;
        if asks_open {
            sql += ";\n";
            sql += OPEN;
        }
        let asked = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection);
        let answers = self.identity.judge(asked.await)?;
        let mut rest = &answers[..];
        let mut next = || rest.split_off_first().ok_or(sqlx::Error::RowNotFound);
        let began = match began {
            Some(began) => began,
            None => Began {
                is_replica: next()?.try_get(0)?,
            },
        };
        let standing = Standing {
            identity: identity::read(next()?)?,
            open: asks_open.then(|| Open::read(rest)).transpose()?,
        };
        Ok((began, standing))
    }

    async fn end(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        sqlx::raw_sql("ROLLBACK")
            .execute(&mut *connection)
            .await
            .map(drop)
    }

    async fn describe(
        &self,
        connection: &mut PgConnection,
        query: &Query,
    ) -> Result<Vec<Described>, sqlx::Error> {
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
        // The driver names what it prepares; behind a pooler the name would outlive this connection.
        sqlx::raw_sql("DEALLOCATE ALL")
            .execute(&mut *connection)
            .await?;
        Ok(described)
    }

    async fn rows<S: Sink>(
        &self,
        connection: &mut PgConnection,
        statement: &Statement,
        limits: Limits,
        mut sink: S,
    ) -> Result<(S, bool), sqlx::Error> {
        let mut stream = prepared(statement).fetch(connection);
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

    fn holds_back(type_name: &str) -> bool {
        horizon::holds_back(type_name)
    }

    async fn horizon(
        &self,
        connection: &mut PgConnection,
        open: Option<Open>,
        cursor: &CursorColumn,
        from: Option<&str>,
    ) -> Result<Option<String>, sqlx::Error> {
        horizon::horizon(connection, open, cursor, from).await
    }

    async fn feed(
        &self,
        connection: &mut PgConnection,
        wanted: feed::Wanted<'_>,
    ) -> Result<feed::Found, sqlx::Error> {
        feed::postgres::page(connection, wanted).await
    }

    async fn feed_guarantee(
        &self,
        _: &mut PgConnection,
    ) -> Result<(Guarantee, Option<String>), sqlx::Error> {
        Ok((Guarantee::Exact, None))
    }

    async fn identity(&self, connection: &mut PgConnection) -> Result<String, sqlx::Error> {
        let question = self.identity.question(connection).await?;
        let asked = sqlx::raw_sql(question).fetch_one(connection);
        identity::read(&self.identity.judge(asked.await)?)
    }

    async fn inspect(&self, connection: &mut PgConnection) -> Result<Inspection, sqlx::Error> {
        let (version, role, can_write): (String, String, bool) = sqlx::query_as(
            "SELECT current_setting('server_version'), current_user::text,
                (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
                OR EXISTS (
                    SELECT FROM pg_catalog.pg_class AS c
                    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
                    WHERE c.relkind IN ('r', 'p', 'f', 'v')
                        AND n.nspname NOT IN ('pg_catalog', 'information_schema')
                        AND n.nspname NOT LIKE 'pg\\_temp%' AND n.nspname NOT LIKE 'pg\\_toast%'
                        AND has_schema_privilege(n.oid, 'USAGE')
                        AND (has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
                            OR has_any_column_privilege(c.oid, 'INSERT, UPDATE'))
                )",
        )
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
        Ok(Inspection {
            server: format!("PostgreSQL {version}"),
            role,
            can_write: Some(can_write),
        })
    }

    async fn guarantee(
        &self,
        connection: &mut PgConnection,
        cursor: &CursorColumn,
    ) -> Result<(Guarantee, Option<String>), sqlx::Error> {
        let (is_replica,): (bool,) = sqlx::query_as("SELECT pg_catalog.pg_is_in_recovery()")
            .persistent(false)
            .fetch_one(&mut *connection)
            .await?;
        if is_replica {
            return Ok((
                Guarantee::BoundedByOverlap,
                Some("read the primary: a replica does not show what is open there".into()),
            ));
        }
        if cursor.type_name == "TIMESTAMP" {
            return Ok((
                Guarantee::BoundedByOverlap,
                Some("make the cursor timestamptz: without a time zone it cannot be compared with open transactions".into()),
            ));
        }
        if cursor.type_name != "TIMESTAMPTZ" {
            return Ok(bounded(cursor.kind));
        }
        let improvement = match horizon::sight(connection).await? {
            Sight::Whole => return Ok((Guarantee::Exact, None)),
            Sight::Own => {
                let (role,): (String,) = sqlx::query_as("SELECT quote_ident(current_user)")
                    .persistent(false)
                    .fetch_one(&mut *connection)
                    .await?;
                format!("GRANT pg_read_all_stats TO {role}")
            }
            Sight::Hidden => "keep track_activities on in every session: one that is open hides when its transaction began".to_owned(),
        };
        Ok((Guarantee::BoundedByOverlap, Some(improvement)))
    }

    async fn is_indexed(
        &self,
        connection: &mut PgConnection,
        statement: &Statement,
    ) -> Result<Option<bool>, sqlx::Error> {
        // With sequential scans and sorts priced out the plan shows what the indexes can do, however small the table is today.
        sqlx::raw_sql("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
            .execute(&mut *connection)
            .await?;
        let mut explained = Statement::new(Placeholders::Numbered);
        explained.push("EXPLAIN ").push(statement.text());
        let sql = AssertSqlSafe(explained.text().to_owned());
        let rows = bind_all(sqlx::query(sql).persistent(false), statement.binds())
            .fetch_all(&mut *connection)
            .await?;
        let plan: Vec<String> = rows
            .iter()
            .filter_map(|row| row.try_get::<String, _>(0).ok())
            .collect();
        let has = |node: &str| plan.iter().any(|line| line.contains(node));
        // An incremental sort only orders ties; the line of the node itself is meant, not its "Sort Key".
        let sorts_everything = plan.iter().any(|line| {
            line.trim_start_matches([' ', '-', '>'])
                .starts_with("Sort  (")
        });
        Ok(Some(!has("Seq Scan") && !sorts_everything))
    }

    fn explain(&self, error: sqlx::Error) -> Failure {
        match error.as_database_error() {
            Some(database) => match database.try_downcast_ref::<PgDatabaseError>() {
                Some(database) => error::postgres(database.code(), database.message()),
                None => Failure::of_driver(&error),
            },
            None => Failure::of_driver(&error),
        }
    }
}

fn prepared(statement: &Statement) -> SqlxQuery<'_, Postgres, PgArguments> {
    let sql = AssertSqlSafe(statement.text().to_owned());
    bind_all(sqlx::query(sql).persistent(false), statement.binds())
}

fn bind_all<'q>(
    mut query: SqlxQuery<'q, Postgres, PgArguments>,
    binds: &'q [Bind],
) -> SqlxQuery<'q, Postgres, PgArguments> {
    for bind in binds {
        query = match bind {
            Bind::Text(text) => query.bind(text.as_str()),
            Bind::Integer(integer) => query.bind(*integer),
            Bind::Bytes(bytes) => query.bind(bytes.as_slice()),
        };
    }
    query
}

/// Every value that a page selects is text, whose binary form is its bytes.
fn value(row: &PgRow, index: usize) -> Result<Option<&[u8]>, sqlx::Error> {
    let value = row.try_get_raw(index)?;
    if value.is_null() {
        return Ok(None);
    }
    value.as_bytes().map(Some).map_err(sqlx::Error::Decode)
}

fn native_key_fits(type_name: &str, text: &str) -> bool {
    match type_name {
        "INT2" | "INT4" | "INT8" => text.parse::<i64>().is_ok(),
        "UUID" => is_uuid(text),
        _ => true,
    }
}

/// The form that PostgreSQL writes.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

fn is_number(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_digit())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
}

/// The form that PostgreSQL writes under `DateStyle` ISO: `2026-01-31 12:00:00.123456+00`, perhaps `BC`, or an infinity.
fn is_timestamp(text: &str) -> bool {
    if matches!(text, "infinity" | "-infinity") {
        return true;
    }
    let date = text.split(' ').next().unwrap_or_default();
    date.len() >= 10
        && date.split('-').count() == 3
        && date
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_of_another_type_is_no_parameter() {
        assert!(is_timestamp("2026-01-31 12:00:00.123456+00"));
        assert!(is_timestamp("0044-03-15 00:00:00 BC"));
        assert!(is_timestamp("12026-01-31 12:00:00"));
        for text in ["", "17", "2026", "x-y-z", "res_1"] {
            assert!(!is_timestamp(text), "{text}");
        }
        assert!(is_uuid("6e8bc430-9c3a-11d9-9669-0800200c9a66"));
        assert!(!is_uuid("6e8bc430"));
        assert!(is_number("-12.5"));
        assert!(!is_number("NaN"));
    }
}
