//! Many rows of SQLite as one: each value by its length in bytes and its text, one after another.
//!
//! Every row that a statement answers passes from SQLite's thread to the one that asked by itself, which costs more than the
//! row. So the rows of a page are put together where they are.

use sqlx::Error;
use sqlx::sqlite::SqliteConnection;

use crate::store::codec::Cells;
use crate::store::fault::Fault;

use super::many::Many;

/// The SQL of one packed row of these columns, each given by its name and its expression.
macro_rules! packed {
    ($($name:literal = $sql:literal),+ $(,)?) => {
        concat!("concat(''" $(, ", octet_length(", $sql, "), ':', ", $sql)+, ")")
    };
}
/// The names of these columns.
macro_rules! names {
    ($($name:literal = $sql:literal),+ $(,)?) => { &[$($name),+] };
}
pub(super) use {names, packed};

/// Runs a statement whose every part answers with the packed rows of its keys; returns the rows of all of them.
pub(super) async fn fetch(
    many: Many,
    names: &'static [&'static str],
    connection: &mut SqliteConnection,
) -> Result<PackedRows, Fault> {
    let mut text = String::new();
    for row in many.fetch(connection).await? {
        // None when there is no row at all.
        text.push_str(sqlx::Row::try_get::<Option<&str>, _>(&row, 0)?.unwrap_or_default());
    }
    Ok(PackedRows { names, text })
}

/// Rows of these columns.
#[derive(Debug)]
pub(super) struct PackedRows {
    names: &'static [&'static str],
    text: String,
}

impl PackedRows {
    pub(super) fn new(names: &'static [&'static str], text: Option<String>) -> Self {
        let text = text.unwrap_or_default();
        Self { names, text }
    }

    /// The rows, in order.
    pub(super) fn rows(&self) -> Result<Vec<PackedRow<'_>>, Fault> {
        let mut rest = self.text.as_str();
        let mut rows = Vec::new();
        while !rest.is_empty() {
            let cells = self.names.iter().map(|_| take_cell(&mut rest));
            let cells: Option<Vec<Option<&str>>> = cells.collect();
            let names = self.names;
            let cells =
                cells.ok_or_else(|| Fault::Corrupt("packed rows are cut short".to_owned()))?;
            rows.push(PackedRow { names, cells });
        }
        Ok(rows)
    }
}

/// The value at the front; the inner none is NULL, which has no length.
fn take_cell<'t>(rest: &mut &'t str) -> Option<Option<&'t str>> {
    let (length, after) = rest.split_once(':')?;
    if length.is_empty() {
        *rest = after;
        return Some(None);
    }
    let (cell, after) = after.split_at_checked(length.parse().ok()?)?;
    *rest = after;
    Some(Some(cell))
}

/// One row.
#[derive(Debug)]
pub(super) struct PackedRow<'t> {
    names: &'static [&'static str],
    cells: Vec<Option<&'t str>>,
}

impl PackedRow<'_> {
    fn cell(&self, column: &str) -> Result<Option<&str>, Error> {
        let position = self.names.iter().position(|name| *name == column);
        let position = position.ok_or_else(|| Error::ColumnNotFound(column.to_owned()))?;
        Ok(self.cells.get(position).copied().flatten())
    }
}

fn not_null<T>(cell: Option<T>, column: &str) -> Result<T, Error> {
    cell.ok_or_else(|| undecodable(column))
}

fn undecodable(column: &str) -> Error {
    Error::Decode(format!("the column {column} holds no such value").into())
}

impl Cells for PackedRow<'_> {
    fn text(&self, column: &str) -> Result<String, Error> {
        not_null(self.text_or_null(column)?, column)
    }

    fn text_or_null(&self, column: &str) -> Result<Option<String>, Error> {
        Ok(self.cell(column)?.map(str::to_owned))
    }

    fn integer(&self, column: &str) -> Result<i64, Error> {
        not_null(self.integer_or_null(column)?, column)
    }

    fn integer_or_null(&self, column: &str) -> Result<Option<i64>, Error> {
        let parse = |cell: &str| cell.parse().map_err(|_| undecodable(column));
        self.cell(column)?.map(parse).transpose()
    }

    fn bytes(&self, column: &str) -> Result<Vec<u8>, Error> {
        not_null(self.bytes_or_null(column)?, column)
    }

    /// Bytes are packed as hexadecimal digits.
    fn bytes_or_null(&self, column: &str) -> Result<Option<Vec<u8>>, Error> {
        self.cell(column)?
            .map(|cell| from_hex(cell).ok_or_else(|| undecodable(column)))
            .transpose()
    }

    fn flag(&self, column: &str) -> Result<bool, Error> {
        Ok(self.integer(column)? != 0)
    }
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = digits.as_bytes().chunks(2).map(|pair| match *pair {
        [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[&str] = &["text", "integer", "bytes"];

    fn unpacked(text: &str) -> Vec<[Option<String>; 3]> {
        let rows = PackedRows::new(NAMES, Some(text.to_owned()));
        rows.rows()
            .expect("rows")
            .iter()
            .map(|row| {
                [
                    row.text_or_null("text").expect("text"),
                    row.integer_or_null("integer")
                        .expect("an integer")
                        .map(|integer| integer.to_string()),
                    row.bytes_or_null("bytes")
                        .expect("bytes")
                        .map(|bytes| format!("{bytes:?}")),
                ]
            })
            .collect()
    }

    #[test]
    fn values_keep_their_colons_digits_and_letters_of_many_bytes() {
        let rows = unpacked("6:a:1:ü2:-74:00FF0::0:");
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            rows,
            [
                [some("a:1:ü"), some("-7"), some("[0, 255]")],
                [some(""), None, some("[]")]
            ]
        );
    }

    #[test]
    fn rows_that_are_cut_short_are_refused() {
        for text in ["1:a", "1:a1:1", "9:a1:14:00FF", "x:a1:14:00FF", "1:ü:::"] {
            let rows = PackedRows::new(NAMES, Some(text.to_owned()));
            assert!(rows.rows().is_err(), "{text}");
        }
    }
}
