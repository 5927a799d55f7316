//! One connection to the state's file. Its statements run in the thread that asks: none waits for another thread.

use std::path::Path;
use std::sync::Arc;

use rusqlite::types::{FromSql, Value};
use rusqlite::{CachedStatement, Connection, OpenFlags, Params, Rows, Statement, StatementStatus};

use crate::store::codec::Cells;
use crate::store::fault::Fault;

use super::{BUSY_TIMEOUT, CHECKPOINT_PAGES};

/// How many prepared statements a connection keeps: as many as there are.
const STATEMENTS_KEPT: usize = 128;

/// A connection.
#[derive(Debug)]
pub(super) struct Db(Connection);

impl Db {
    /// Opens the file, which must be there and is a state.
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        let db = Self::look_at(path)?;
        db.settle()?;
        Ok(db)
    }

    /// Opens a file that may be another program's: nothing of it is changed.
    pub(super) fn look_at(path: &Path) -> Result<Self, Fault> {
        // What one connection does is done by one thread at a time, which the compiler sees to.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Self::new(Connection::open_with_flags(path, flags)?)
    }

    /// Sets how the state is written.
    pub(super) fn settle(&self) -> Result<(), Fault> {
        let set = &self.0;
        set.pragma_update(None, "journal_mode", "WAL")?;
        set.pragma_update(None, "synchronous", "FULL")?;
        set.pragma_update(None, "foreign_keys", true)?;
        // What a statement may have to undo is kept in memory, as are sorted rows: no file but the state's own holds anything of it.
        set.pragma_update(None, "temp_store", "MEMORY")?;
        set.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        Ok(())
    }

    /// Opens a database in memory.
    #[cfg(test)]
    pub(super) fn in_memory() -> Result<Self, Fault> {
        Self::new(Connection::open_in_memory()?)
    }

    fn new(connection: Connection) -> Result<Self, Fault> {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
        Ok(Self(connection))
    }

    /// Sets how much of the file the connection keeps in memory.
    pub(super) fn keep_in_memory(&self, kib: u32) -> Result<(), Fault> {
        Ok(self.0.pragma_update(None, "cache_size", -i64::from(kib))?)
    }

    /// Refuses to write from now on.
    pub(super) fn only_read(&self) -> Result<(), Fault> {
        Ok(self.0.pragma_update(None, "query_only", true)?)
    }

    /// Closes the connection; the last one writes the journal back into the file.
    pub(super) fn close(self) {
        // Whatever the journal still holds is found again by the next one who opens the state.
        let _ = self.0.close();
    }

    /// A statement to run several times.
    ///
    /// SQLite plans a statement whose LIMIT is a parameter for the value of it, and anew for each other value: hence `LIMIT 0 + ?`.
    pub(super) fn prepare(&self, sql: &str) -> Result<CachedStatement<'_>, Fault> {
        let statement = self.0.prepare_cached(sql)?;
        debug_assert_eq!(
            statement.get_status(StatementStatus::RePrepare),
            0,
            "it is prepared again and again: {sql}"
        );
        Ok(statement)
    }

    /// Runs a statement; returns how many rows it wrote.
    pub(super) fn run(&self, sql: &str, params: impl Params) -> Result<u64, Fault> {
        let written = self.prepare(sql)?.execute(params)?;
        Ok(u64::try_from(written).unwrap_or(u64::MAX))
    }

    /// The number that the last INSERT gave its row.
    pub(super) fn last_number(&self) -> i64 {
        self.0.last_insert_rowid()
    }

    /// The rows of an answer.
    pub(super) fn rows(&self, sql: &str, params: impl Params) -> Result<Vec<Row>, Fault> {
        let mut statement = self.prepare(sql)?;
        let names = names(&statement);
        let mut found = statement.query(params)?;
        let mut rows = Vec::new();
        while let Some(row) = next(&mut found, &names)? {
            rows.push(row);
        }
        Ok(rows)
    }

    /// The first row of an answer, if it has any.
    pub(super) fn find_row(&self, sql: &str, params: impl Params) -> Result<Option<Row>, Fault> {
        let mut statement = self.prepare(sql)?;
        let names = names(&statement);
        next(&mut statement.query(params)?, &names)
    }

    /// The row of an answer that always has one.
    pub(super) fn row(&self, sql: &str, params: impl Params) -> Result<Row, Fault> {
        self.find_row(sql, params)?.ok_or_else(no_row)
    }

    /// The first value of the first row, if there is any.
    pub(super) fn find_value<T: FromSql>(
        &self,
        sql: &str,
        params: impl Params,
    ) -> Result<Option<T>, Fault> {
        let mut statement = self.prepare(sql)?;
        let mut rows = statement.query(params)?;
        Ok(rows.next()?.map(|row| row.get(0)).transpose()?)
    }

    /// The value of an answer that always has one.
    pub(super) fn value<T: FromSql>(&self, sql: &str, params: impl Params) -> Result<T, Fault> {
        self.find_value(sql, params)?.ok_or_else(no_row)
    }
}

fn no_row() -> Fault {
    Fault::Corrupt("an answer that always has a row has none".to_owned())
}

/// The names of an answer's columns.
pub(super) fn names(statement: &Statement<'_>) -> Arc<[Box<str>]> {
    statement
        .column_names()
        .into_iter()
        .map(Box::from)
        .collect()
}

/// The next row of an answer, with the names of its columns.
pub(super) fn next(rows: &mut Rows<'_>, names: &Arc<[Box<str>]>) -> Result<Option<Row>, Fault> {
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    let cells = (0..names.len()).map(|index| row.get(index));
    Ok(Some(Row {
        names: Arc::clone(names),
        cells: cells.collect::<Result<_, _>>()?,
    }))
}

/// A row of an answer.
#[derive(Debug)]
pub(super) struct Row {
    names: Arc<[Box<str>]>,
    cells: Vec<Value>,
}

impl Row {
    fn cell(&self, column: &str) -> Result<&Value, Fault> {
        let position = self.names.iter().position(|name| **name == *column);
        position
            .and_then(|position| self.cells.get(position))
            .ok_or_else(|| Fault::Corrupt(format!("the column {column} is not there")))
    }
}

fn not_null<T>(cell: Option<T>, column: &str) -> Result<T, Fault> {
    cell.ok_or_else(|| unreadable(column))
}

fn unreadable(column: &str) -> Fault {
    Fault::Corrupt(format!("the column {column} cannot be read"))
}

impl Cells for Row {
    fn text(&self, column: &str) -> Result<String, Fault> {
        not_null(self.text_or_null(column)?, column)
    }

    fn text_or_null(&self, column: &str) -> Result<Option<String>, Fault> {
        match self.cell(column)? {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(text.clone())),
            _ => Err(unreadable(column)),
        }
    }

    fn integer(&self, column: &str) -> Result<i64, Fault> {
        not_null(self.integer_or_null(column)?, column)
    }

    fn integer_or_null(&self, column: &str) -> Result<Option<i64>, Fault> {
        match self.cell(column)? {
            Value::Null => Ok(None),
            Value::Integer(integer) => Ok(Some(*integer)),
            _ => Err(unreadable(column)),
        }
    }

    fn bytes(&self, column: &str) -> Result<Vec<u8>, Fault> {
        not_null(self.bytes_or_null(column)?, column)
    }

    fn bytes_or_null(&self, column: &str) -> Result<Option<Vec<u8>>, Fault> {
        match self.cell(column)? {
            Value::Null => Ok(None),
            Value::Blob(bytes) => Ok(Some(bytes.clone())),
            _ => Err(unreadable(column)),
        }
    }

    fn flag(&self, column: &str) -> Result<bool, Fault> {
        Ok(self.integer(column)? != 0)
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::params;

    use super::*;

    #[test]
    fn what_is_kept_in_memory_is_limited_in_kibibytes_and_not_in_pages() {
        let db = Db::in_memory().expect("a database");
        db.keep_in_memory(64).expect("a limit");
        // SQLite's sign for kibibytes: https://www.sqlite.org/pragma.html#pragma_cache_size
        let kept: i64 = db.value("PRAGMA cache_size", params![]).expect("a number");
        assert_eq!(kept, -64);
    }
}
