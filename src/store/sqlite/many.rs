//! Statements that take many rows at once as bound values, prepared for a few numbers of rows only.
//!
//! One array of JSON for all rows would be simpler, and costs several times as much: SQLite writes each element out as text again
//! for every column that is taken from it.

use std::sync::Arc;

use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, Sqlite, SqliteConnection};

use crate::model::{Entry, InFlight, Lease};
use crate::store::codec::json;
use crate::store::fault::Fault;

/// The numbers of rows that statements are prepared for: any number is a sum of few of them.
const SIZES: [usize; 3] = [64, 8, 1];

/// A statement that takes rows of so many columns where its two parts meet.
#[derive(Debug)]
pub(super) struct Statement {
    /// What it writes, for whoever reads that it failed.
    pub(super) what: &'static str,
    /// How many values a row has.
    pub(super) columns: usize,
    /// What comes before the rows.
    pub(super) before: &'static str,
    /// What comes after them.
    pub(super) after: &'static str,
}

impl Statement {
    fn text(&self, rows: usize) -> String {
        let row = format!("({})", vec!["?"; self.columns].join(", "));
        format!(
            "{}{}{}",
            self.before,
            vec![row; rows].join(", "),
            self.after
        )
    }
}

/// A value of a row.
#[derive(Debug)]
enum Cell {
    Null,
    Integer(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// A statement and the rows that it is to take.
#[derive(Debug)]
pub(super) struct Many {
    statement: &'static Statement,
    cells: Vec<Cell>,
}

impl Many {
    pub(super) const fn new(statement: &'static Statement) -> Self {
        Self {
            statement,
            cells: Vec::new(),
        }
    }

    /// Begins a row; its values follow in order.
    pub(super) fn row(&mut self) -> Row<'_> {
        debug_assert_eq!(self.cells.len() % self.statement.columns, 0);
        Row(&mut self.cells)
    }

    /// Runs the statement, which must write one row for each that was given.
    pub(super) async fn run(self, connection: &mut SqliteConnection) -> Result<(), Fault> {
        let (what, rows) = (self.statement.what, self.rows() as u64);
        let mut written = 0;
        for (text, arguments) in self.parts()? {
            let query = sqlx::query_with::<Sqlite, _>(AssertSqlSafe(text), arguments);
            written += query.execute(&mut *connection).await?.rows_affected();
        }
        if written == rows {
            Ok(())
        } else {
            Err(Fault::Corrupt(format!(
                "writing {rows} {what} changed {written} rows"
            )))
        }
    }

    /// Runs the statement and returns what it answers.
    pub(super) async fn fetch(
        self,
        connection: &mut SqliteConnection,
    ) -> Result<Vec<SqliteRow>, Fault> {
        let mut rows = Vec::with_capacity(self.rows());
        for (text, arguments) in self.parts()? {
            let query = sqlx::query_with::<Sqlite, _>(AssertSqlSafe(text), arguments);
            rows.extend(query.fetch_all(&mut *connection).await?);
        }
        Ok(rows)
    }

    fn rows(&self) -> usize {
        self.cells.len() / self.statement.columns
    }

    /// The statements to run, each with its values. Nothing of a value is in their text, which is made of constants alone.
    fn parts(self) -> Result<Vec<(Arc<str>, SqliteArguments)>, Fault> {
        let mut left = self.rows();
        let Self { statement, cells } = self;
        let mut cells = cells.into_iter();
        let mut parts = Vec::new();
        for size in SIZES {
            if left < size {
                continue;
            }
            let text: Arc<str> = statement.text(size).into();
            while left >= size {
                left -= size;
                let arguments = bind(cells.by_ref().take(size * statement.columns))?;
                parts.push((Arc::clone(&text), arguments));
            }
        }
        Ok(parts)
    }
}

fn bind(cells: impl Iterator<Item = Cell>) -> Result<SqliteArguments, Fault> {
    let mut arguments = SqliteArguments::default();
    for cell in cells {
        match cell {
            Cell::Null => arguments.add(None::<i64>),
            Cell::Integer(integer) => arguments.add(integer),
            Cell::Text(text) => arguments.add(text),
            Cell::Bytes(bytes) => arguments.add(bytes),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

/// One row under construction.
pub(super) struct Row<'a>(&'a mut Vec<Cell>);

impl Row<'_> {
    pub(super) fn int(self, integer: impl Into<Option<i64>>) -> Self {
        self.0
            .push(integer.into().map_or(Cell::Null, Cell::Integer));
        self
    }

    pub(super) fn text<'t>(self, text: impl Into<Option<&'t str>>) -> Self {
        self.owned(text.into().map(str::to_owned))
    }

    /// Text that was made for the row.
    pub(super) fn owned(self, text: impl Into<Option<String>>) -> Self {
        self.0.push(text.into().map_or(Cell::Null, Cell::Text));
        self
    }

    pub(super) fn bytes(self, bytes: Option<Vec<u8>>) -> Self {
        self.0.push(bytes.map_or(Cell::Null, Cell::Bytes));
        self
    }

    /// The four columns that are set exactly while a request is under way.
    pub(super) fn lease(self, entry: &Entry) -> Self {
        let lease = entry.lease.as_ref();
        self.text(lease.map(|lease| lease.owner.as_str()))
            .int(lease.map(|lease: &Lease| lease.token.0))
            .int(lease.map(|lease| lease.expires_at.as_millis()))
            .owned(entry.in_flight.as_ref().map(json::<InFlight>))
    }
}
