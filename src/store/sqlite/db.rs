//! One connection to the state's file. Its statements run in the thread that asks: none waits for another thread.

use std::cell::Cell;
use std::ops::Range;
use std::path::Path;

use rusqlite::types::{FromSql, ValueRef};
use rusqlite::{CachedStatement, Connection, OpenFlags, Params, Statement, StatementStatus};

use crate::store::codec::Cells;
use crate::store::fault::Fault;

use super::{BUSY_TIMEOUT, CHECKPOINT_PAGES};

/// How many prepared statements a connection keeps: as many as there are.
const STATEMENTS_KEPT: usize = 128;
/// Room for the name of each column, in bytes: on average they need less.
const NAME_BYTES: usize = 16;

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

    /// Opens a new state in memory.
    #[cfg(test)]
    pub(super) fn of_state() -> Result<Self, Fault> {
        let db = Self::in_memory()?;
        db.0.execute_batch(include_str!("../../../migrations/sqlite/0001_state.sql"))?;
        db.0.pragma_update(None, "foreign_keys", true)?;
        Ok(db)
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

    /// A question to ask several times.
    pub(super) fn query(&self, sql: &str) -> Result<Query<'_>, Fault> {
        Ok(Query {
            statement: self.prepare(sql)?,
            names: None,
        })
    }

    /// Reads the rows of an answer one after another.
    pub(super) fn each(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.query(sql)?.each(params, read)
    }

    /// What is read from the rows of an answer, in order.
    pub(super) fn rows<T>(
        &self,
        sql: &str,
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        let mut rows = Vec::new();
        self.each(sql, params, |row| {
            rows.push(read(row)?);
            Ok(())
        })?;
        Ok(rows)
    }

    /// What is read from the first row of an answer, if it has any.
    pub(super) fn find_row<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T, Fault>,
    ) -> Result<Option<T>, Fault> {
        self.query(sql)?.find_row(params, read)
    }

    /// What is read from the row of an answer that always has one.
    pub(super) fn row<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.find_row(sql, params, read)?.ok_or_else(no_row)
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

/// A question, prepared once however often it is asked.
pub(super) struct Query<'c> {
    statement: CachedStatement<'c>,
    /// Known from the first row on.
    names: Option<Names>,
}

impl Query<'_> {
    /// Reads the rows of an answer one after another.
    fn each(
        &mut self,
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut found = self.statement.query(params)?;
        while let Some(cells) = found.next()? {
            read(&Row::new(cells, &mut self.names)?)?;
        }
        Ok(())
    }

    /// What is read from the first row of an answer, if it has any.
    pub(super) fn find_row<T>(
        &mut self,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T, Fault>,
    ) -> Result<Option<T>, Fault> {
        let mut found = self.statement.query(params)?;
        match found.next()? {
            Some(cells) => read(&Row::new(cells, &mut self.names)?).map(Some),
            None => Ok(None),
        }
    }
}

/// The names of an answer's columns, one behind the other in one text.
struct Names {
    all: String,
    /// Where in it each of them is.
    places: Vec<Range<usize>>,
}

impl Names {
    fn of(statement: &Statement<'_>) -> Result<Self, Fault> {
        let columns = statement.column_count();
        let mut names = Self {
            all: String::with_capacity(columns * NAME_BYTES),
            places: Vec::with_capacity(columns),
        };
        for column in 0..columns {
            let name = statement.column_name(column)?;
            // They are looked for from anywhere.
            debug_assert_eq!(names.position(name, 0), None, "two are named {name}");
            let start = names.all.len();
            names.all.push_str(name);
            names.places.push(start..names.all.len());
        }
        Ok(names)
    }

    /// The position of a column; looked for from `first` on, then before it.
    fn position(&self, column: &str, first: usize) -> Option<usize> {
        let is_it = |position: &usize| {
            let place = self.places.get(*position).cloned();
            place.and_then(|place| self.all.get(place)) == Some(column)
        };
        (first..self.places.len()).chain(0..first).find(is_it)
    }
}

/// A row of an answer, while its statement stands on it.
pub(super) struct Row<'a> {
    cells: &'a rusqlite::Row<'a>,
    names: &'a Names,
    /// Behind the column that was found last: what is read is mostly read in the order in which it is selected.
    next: Cell<usize>,
}

impl<'a> Row<'a> {
    fn new(cells: &'a rusqlite::Row<'a>, names: &'a mut Option<Names>) -> Result<Self, Fault> {
        let names = match names {
            Some(names) => names,
            None => names.insert(Names::of(cells.as_ref())?),
        };
        Ok(Self {
            cells,
            names,
            next: Cell::new(0),
        })
    }

    fn cell(&self, column: &str) -> Result<ValueRef<'_>, Fault> {
        let position = self
            .names
            .position(column, self.next.get())
            .ok_or_else(|| Fault::Corrupt(format!("the column {column} is not there")))?;
        self.next.set(position + 1);
        Ok(self.cells.get_ref(position)?)
    }
}

fn not_null<T>(cell: Option<T>, column: &str) -> Result<T, Fault> {
    cell.ok_or_else(|| unreadable(column))
}

fn unreadable(column: &str) -> Fault {
    Fault::Corrupt(format!("the column {column} cannot be read"))
}

impl Cells for Row<'_> {
    fn text(&self, column: &str) -> Result<&str, Fault> {
        not_null(self.text_or_null(column)?, column)
    }

    fn text_or_null(&self, column: &str) -> Result<Option<&str>, Fault> {
        let text = self.cell(column)?.as_str_or_null();
        text.map_err(|_| unreadable(column))
    }

    fn integer(&self, column: &str) -> Result<i64, Fault> {
        not_null(self.integer_or_null(column)?, column)
    }

    fn integer_or_null(&self, column: &str) -> Result<Option<i64>, Fault> {
        let integer = self.cell(column)?.as_i64_or_null();
        integer.map_err(|_| unreadable(column))
    }

    fn bytes(&self, column: &str) -> Result<&[u8], Fault> {
        not_null(self.bytes_or_null(column)?, column)
    }

    fn bytes_or_null(&self, column: &str) -> Result<Option<&[u8]>, Fault> {
        let bytes = self.cell(column)?.as_blob_or_null();
        bytes.map_err(|_| unreadable(column))
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

    #[test]
    fn a_column_is_found_by_its_name_in_whatever_order_the_columns_are_asked_for() {
        let db = Db::in_memory().expect("a database");
        let sql = "SELECT 1 AS one, 2 AS two, 3 AS three";
        for (columns, held) in [
            (["one", "two", "three"], [1, 2, 3]),
            (["three", "two", "one"], [3, 2, 1]),
            (["two", "one", "three"], [2, 1, 3]),
            (["three", "three", "three"], [3, 3, 3]),
        ] {
            let found = db.row(sql, params![], |row| {
                let [a, b, c] = columns;
                Ok([row.integer(a)?, row.integer(b)?, row.integer(c)?])
            });
            assert_eq!(found.expect("readable"), held, "{columns:?}");
        }
    }

    #[test]
    fn a_column_that_is_not_there_or_of_another_type_is_a_fault_that_names_it() {
        let db = Db::in_memory().expect("a database");
        let sql = "SELECT 'one' AS one, 2 AS two, NULL AS three, CAST(x'ff' AS TEXT) AS four";
        let faults = db.row(sql, params![], |row| {
            assert_eq!(row.text_or_null("three")?, None);
            Ok([
                row.text("two").err(),
                row.integer("one").err(),
                row.bytes("one").err(),
                row.text("three").err(),
                row.text("four").err(),
                row.text("five").err(),
                // Names are told apart by their case, and none is a part of another.
                row.text("ONE").err(),
                row.text("").err(),
                row.text("onetwo").err(),
            ])
        });
        let problems = faults.expect("a row").map(|fault| match fault {
            Some(Fault::Corrupt(problem)) => problem,
            other => panic!("{other:?}"),
        });
        assert_eq!(
            problems,
            [
                "the column two cannot be read",
                "the column one cannot be read",
                "the column one cannot be read",
                "the column three cannot be read",
                "the column four cannot be read",
                "the column five is not there",
                "the column ONE is not there",
                "the column  is not there",
                "the column onetwo is not there",
            ]
        );
    }
}
