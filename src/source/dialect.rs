//! What differs between the databases: a few SQL expressions, and how their drivers are called.

use std::time::Duration;

use async_trait::async_trait;
use zeroize::Zeroizing;

use super::columns::{Column, CursorColumn, Described};
use super::feed;
use super::horizon::Open;
use super::inspect::Inspection;
use super::query::{Lexis, Query};
use super::statement::{Bind, Comparison, Param, Placeholders, Statement};
use super::{CursorKind, Guarantee};

/// The longest id, in bytes, that takes part in the order of a sweep; no usable id is longer.
pub(super) const MAX_ORDERED_BYTES: usize = 600;

/// One kind of database.
#[async_trait]
pub(super) trait Dialect: Send + Sync + 'static {
    /// The driver's connection.
    type Connection: Send + 'static;
    /// The driver's error.
    type Error: Send + 'static;

    const LEXIS: Lexis;
    const PLACEHOLDERS: Placeholders;
    const COMPARISON: Comparison;
    /// Whether a poll's page is bounded first, since the database would sort everything after the cursor for every page.
    const BOUNDS_POLLS: bool;
    /// Whether [`Dialect::are_apart`] can say so: then a page of a sweep is read with one row more.
    const TELLS_APART: bool = false;
    /// What stands before and after a list of pairs in `IN (…)`, such that an index serves it.
    const PAIRS: (&'static str, &'static str) = ("VALUES ", "");

    /// The database for messages: never with a password.
    fn target(&self) -> &str;

    /// `resource.name`, quoted.
    fn operand(&self, name: &str) -> String;
    /// The column as text (or as bytes that should be UTF-8).
    fn text(&self, column: &Column) -> String;
    /// The column as text; of a value beyond [`MAX_COLUMN_BYTES`](crate::model::value::MAX_COLUMN_BYTES) no more than shows
    /// that it is. NULL only where the column is.
    fn value(&self, column: &Column) -> String;
    /// The kind of cursor that a column of this type is; `None` when it cannot be one.
    fn cursor_kind(&self, type_name: &str) -> Option<CursorKind>;
    /// The cursor as text from which [`Dialect::cursor_param`] gives exactly the same value back.
    fn cursor_text(&self, cursor: &CursorColumn) -> String;
    /// Rows that polls see.
    fn cursor_filter(&self, cursor: &CursorColumn) -> String;
    /// The value of a cursor; `None` when the text cannot be one of this column's.
    fn cursor_param(&self, cursor: &CursorColumn, text: &str) -> Option<Param>;
    /// The cursor's value such that the planner cannot look at it: it plans for many rows whatever its statistics say of that value,
    /// and computes it once for the whole statement.
    fn unseen(&self, param: Param) -> Param {
        param
    }
    /// Appends the cursor less the column's reach.
    fn push_floor(&self, statement: &mut Statement, cursor: &CursorColumn, param: &Param);

    /// How a column takes part in an order that an index can give; `None` when its type has no such order.
    fn native_key(&self, column: &Column) -> Option<Key>;
    /// How any column takes part in an order: byte by byte, NULL first.
    fn binary_key(&self, column: &Column) -> Key;
    /// The position of an id whose text and type ([`ToldBy::TextAndType`]) were read; `None` when such an id has no place.
    fn position(&self, _type_name: &str, _id: &str) -> Option<String> {
        None
    }
    /// Whether the ids of two rows have different places, whatever order the columns have.
    fn are_apart(&self, _left: (&str, &str), _right: (&str, &str)) -> bool {
        false
    }
    /// The value of a position in that order; `None` when the text cannot be one.
    fn key_param(&self, key: &Key, text: &str) -> Option<Param>;
    /// The value of an id as a person or the state has it; `None` when the column cannot hold it.
    fn id_param(&self, key: &Key, id: &str) -> Option<Param>;
    /// Whether a row's id is NULL, too long or of a type that takes no part in the native order.
    fn is_irregular(&self, column: &Column) -> String;

    /// Connects and prepares the session.
    async fn open(&self) -> Result<Self::Connection, Self::Error>;
    /// Begins a read-only transaction with its limits.
    async fn begin(&self, connection: &mut Self::Connection) -> Result<Began, Self::Error>;
    /// Begins the transaction of a pass's first page, and has the database say who it is and, if asked for, what is open in it.
    async fn begin_pass(
        &self,
        connection: &mut Self::Connection,
        _asks_open: bool,
    ) -> Result<(Began, Standing), Self::Error> {
        let began = self.begin(connection).await?;
        let identity = self.identity(connection).await?;
        let standing = Standing {
            identity,
            open: None,
        };
        Ok((began, standing))
    }
    /// Ends the transaction.
    async fn end(&self, connection: &mut Self::Connection) -> Result<(), Self::Error>;
    /// The columns of a query, without running it.
    async fn describe(
        &self,
        connection: &mut Self::Connection,
        query: &Query,
    ) -> Result<Vec<Described>, Self::Error>;
    /// Runs one prepared statement and gives its rows away until they end, or no more are to be read ([`Room::give`]): then false,
    /// and the connection must not be used any more.
    async fn rows<S: Sink>(
        &self,
        connection: &mut Self::Connection,
        statement: &Statement,
        limits: Limits,
        sink: S,
    ) -> Result<(S, bool), Self::Error>;
    /// Whether this server can end a page with all rows that are equal to its last one.
    fn has_ties(&self, _: &Self::Connection) -> bool {
        false
    }

    /// Whether transactions that are open can hold a cursor of this type back, as far as the database tells.
    fn holds_back(_type_name: &str) -> bool {
        false
    }
    /// Where the next poll must start because of transactions that are open now, or were when the pass began; asked before the first
    /// page is read.
    async fn horizon(
        &self,
        connection: &mut Self::Connection,
        open: Option<Open>,
        cursor: &CursorColumn,
        from: Option<&str>,
    ) -> Result<Option<String>, Self::Error>;
    /// What the change feed has after a place.
    async fn feed(
        &self,
        connection: &mut Self::Connection,
        wanted: feed::Wanted<'_>,
    ) -> Result<feed::Found, Self::Error>;
    /// What a poll of the change feed guarantees, and how to get more.
    async fn feed_guarantee(
        &self,
        connection: &mut Self::Connection,
    ) -> Result<(Guarantee, Option<String>), Self::Error>;
    /// Who the database is.
    async fn identity(&self, connection: &mut Self::Connection) -> Result<String, Self::Error>;
    /// What `check` tells of the server and the role.
    async fn inspect(&self, connection: &mut Self::Connection) -> Result<Inspection, Self::Error>;
    /// What a poll over this cursor guarantees, and how to get more.
    async fn guarantee(
        &self,
        connection: &mut Self::Connection,
        cursor: &CursorColumn,
    ) -> Result<(Guarantee, Option<String>), Self::Error>;
    /// Whether an index serves the statement; `None` when the plan does not say.
    async fn is_indexed(
        &self,
        connection: &mut Self::Connection,
        statement: &Statement,
    ) -> Result<Option<bool>, Self::Error>;
    /// What the driver's error means.
    fn explain(&self, error: Self::Error) -> super::error::Failure;
}

/// How a column takes part in an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// What is compared and sorted.
    pub(super) order: String,
    /// Its value as text, from which [`Dialect::key_param`] gives the value back.
    pub(super) position: String,
    /// The column's type; `None` for the byte order.
    pub(super) type_name: Option<String>,
    /// What has to be read to know the position.
    pub(super) told_by: ToldBy,
}

/// What has to be read of a row to know its position in an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ToldBy {
    /// The column's own text is the position.
    Text,
    /// The column's text, and the type of its value, which this expression gives: they make [`Dialect::position`].
    TextAndType(String),
    /// The position itself.
    Position,
}

/// What a transaction found when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Began {
    pub(super) is_replica: bool,
}

/// What a database says as a pass begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    /// Who it is.
    pub(super) identity: String,
    /// What is open in it; `None`: it was not asked.
    pub(super) open: Option<Open>,
}

/// What one statement may cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) time: Duration,
    pub(super) bytes: usize,
}

/// One value as the driver gave it: NULL, or bytes that should be UTF-8 text.
pub(super) type Cell = Option<Zeroizing<Vec<u8>>>;

/// Takes the rows of a statement while they are read, in whichever thread reads them.
pub(super) trait Sink: Send + 'static {
    /// Takes one row.
    fn row(&mut self, cells: &[Option<&[u8]>]) -> Taken;
}

/// What a sink did with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It keeps the row, or what it makes of it.
    Kept,
    /// It keeps nothing of the row.
    Passed,
    /// It has no use for this row nor for any further one.
    Refused,
}

/// How many bytes of values a statement may still bring in.
pub(super) struct Room {
    left: usize,
}

impl Room {
    /// For a statement within these limits.
    pub(super) const fn new(limits: Limits) -> Self {
        Self { left: limits.bytes }
    }

    /// Gives a row to the sink; false when none is to be read after it.
    pub(super) fn give<S: Sink>(&mut self, sink: &mut S, cells: &[Option<&[u8]>]) -> bool {
        match sink.row(cells) {
            Taken::Refused => false,
            Taken::Passed => true,
            Taken::Kept => {
                let bytes: usize = cells.iter().flatten().map(|cell| cell.len()).sum();
                let left = self.left.checked_sub(bytes);
                self.left = left.unwrap_or_default();
                left.is_some()
            }
        }
    }
}

/// The most columns that a statement of ours selects.
pub(super) const MAX_CELLS: usize = 16;

/// What a statement yielded.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) rows: Vec<Vec<Cell>>,
    /// Whether reading stopped at the limit on bytes; the connection must not be used any more.
    pub(super) is_cut: bool,
}

impl Sink for Rows {
    fn row(&mut self, cells: &[Option<&[u8]>]) -> Taken {
        let kept = |cell: &Option<&[u8]>| cell.map(|bytes| Zeroizing::new(bytes.to_vec()));
        self.rows.push(cells.iter().map(kept).collect());
        Taken::Kept
    }
}

impl Rows {
    /// The first row's values as text; NULL where a value is no UTF-8.
    pub(super) fn first(self) -> Vec<Option<String>> {
        let row = self.rows.into_iter().next().unwrap_or_default();
        row.into_iter().map(text).collect()
    }
}

/// The value as text, if it is any.
pub(super) fn text(cell: Cell) -> Option<String> {
    cell.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok())
}

/// A key's text in the byte order of hexadecimal digits, for dialects that compare it so.
pub(super) fn hex(id: &str) -> Bind {
    use std::fmt::Write as _;
    let end = id.len().min(MAX_ORDERED_BYTES);
    let mut text = String::with_capacity(2 * end);
    for byte in &id.as_bytes()[..end] {
        write!(text, "{byte:02X}").expect("a String takes all text");
    }
    Bind::Text(text)
}
