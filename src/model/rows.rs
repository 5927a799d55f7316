//! A page of rows in one piece of memory, each row as the bytes that its hash is taken of.
//!
//! Passes read millions of rows to find that nearly all of them are as they were. A row that is unchanged is hashed where it lies and
//! never becomes a [`RawRow`]; one that is not becomes exactly the [`RawRow`] that was pushed. The cursor, which no hash sees, lies behind it.

use std::fmt;

use zeroize::Zeroize as _;

use super::{Field, FingerprintKey, RawRow, RawText, ResourceKey, RowHash};

/// The tag of both ids; fields have their own numbers.
const ID_TAG: u8 = u8::MAX;
/// Before a cell's text: its tag, its kind, its length.
const HEAD_BYTES: usize = 10;
/// What a text can be instead of readable.
const PROBLEMS: [&str; 2] = [TOO_LONG, NO_UTF8];
/// The problem of a value beyond [`MAX_COLUMN_BYTES`](super::value::MAX_COLUMN_BYTES).
pub const TOO_LONG: &str = "is longer than 1 MiB";
/// The problem of a value that is no text.
pub const NO_UTF8: &str = "is no UTF-8";

/// Rows, zeroed when dropped.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RawRows {
    bytes: Vec<u8>,
    ends: Vec<End>,
}

/// Where a row ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    row: usize,
    /// Where its cursor ends, which begins there; `None` for a row without one.
    cursor: Option<usize>,
}

impl End {
    /// Where the next row begins.
    fn all(self) -> usize {
        self.cursor.unwrap_or(self.row)
    }
}

/// Says how many there are and nothing of what is in them.
impl fmt::Debug for RawRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows", self.len())
    }
}

impl RawRows {
    /// Room for so many bytes, so that less has to be moved.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            ends: Vec::new(),
        }
    }

    /// How many rows there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How much memory their texts take, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Begins a row with one of its two ids; the other, the fields and its end ([`RawRows::end_row`]) follow.
    pub fn push_id(&mut self, text: CellText<'_>) {
        self.push_cell(ID_TAG, text);
    }

    /// Goes on with a managed column, in the fixed order of the query's fields.
    pub fn push_field(&mut self, field: Field, text: CellText<'_>) {
        self.push_cell(field as u8, text);
    }

    /// Ends a row, with its cursor if it has one.
    pub fn end_row(&mut self, cursor: Option<&str>) {
        let row = self.bytes.len();
        if let Some(cursor) = cursor {
            self.reserve(cursor.len());
            self.bytes.extend_from_slice(cursor.as_bytes());
        }
        let cursor = cursor.map(|_| self.bytes.len());
        self.ends.push(End { row, cursor });
    }

    /// Appends a row.
    pub fn push(&mut self, row: &RawRow) {
        let RawRow {
            installation_id,
            resource_id,
            cursor,
            columns,
        } = row;
        self.push_id(installation_id.into());
        self.push_id(resource_id.into());
        for (field, text) in columns {
            self.push_field(*field, text.into());
        }
        self.end_row(cursor.as_deref());
    }

    /// Keeps the first rows alone.
    pub fn truncate(&mut self, rows: usize) {
        self.ends.truncate(rows);
        let end = self.ends.last().map_or(0, |end| end.all());
        self.bytes.truncate(end);
    }

    /// Appends other rows.
    pub fn append(&mut self, others: &Self) {
        let base = self.bytes.len();
        self.reserve(others.bytes.len());
        self.bytes.extend_from_slice(&others.bytes);
        self.ends.extend(others.ends.iter().map(|end| End {
            row: base + end.row,
            cursor: end.cursor.map(|cursor| base + cursor),
        }));
    }

    /// The rows in order.
    pub fn iter(&self) -> impl Iterator<Item = RawRowRef<'_>> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// The rows, each by itself.
    #[must_use]
    pub fn to_rows(&self) -> Vec<RawRow> {
        self.iter().map(RawRowRef::to_row).collect()
    }

    /// The last row.
    #[must_use]
    pub fn last(&self) -> Option<RawRowRef<'_>> {
        self.get(self.len().checked_sub(1)?)
    }

    fn get(&self, index: usize) -> Option<RawRowRef<'_>> {
        let end = self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |at| self.ends[at].all());
        let cursor = end.cursor.map(|cursor| &self.bytes[end.row..cursor]);
        Some(RawRowRef {
            cells: &self.bytes[start..end.row],
            // What was pushed as text is text.
            cursor: cursor.and_then(|cursor| std::str::from_utf8(cursor).ok()),
        })
    }

    fn push_cell(&mut self, tag: u8, text: CellText<'_>) {
        let (head, bytes) = cell(tag, text);
        self.reserve(HEAD_BYTES + bytes.len());
        self.bytes.extend_from_slice(&head);
        self.bytes.extend_from_slice(bytes);
    }

    /// Grows into memory of its own, so that what is left behind can be zeroed.
    fn reserve(&mut self, bytes: usize) {
        let needed = self.bytes.len() + bytes;
        if needed > self.bytes.capacity() {
            let mut grown = Vec::with_capacity(needed.max(2 * self.bytes.capacity()).max(4_096));
            grown.extend_from_slice(&self.bytes);
            zero(&mut std::mem::replace(&mut self.bytes, grown));
        }
    }
}

impl Drop for RawRows {
    fn drop(&mut self) {
        zero(&mut self.bytes);
    }
}

/// Zeroes the memory and holds nothing any more. What a vector holds is zeroed byte by byte, what is spare in it all at once: first it
/// holds nothing, then all of it is spare.
fn zero(bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.zeroize();
}

impl FromIterator<RawRow> for RawRows {
    fn from_iter<I: IntoIterator<Item = RawRow>>(rows: I) -> Self {
        let mut all = Self::default();
        for row in rows {
            all.push(&row);
        }
        all
    }
}

/// One column's text while it is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum CellText<'a> {
    /// SQL NULL.
    Null,
    /// The text.
    Text(&'a str),
    /// The source could not give the value as text: why, without the value.
    Unreadable(&'static str),
}

impl<'a> CellText<'a> {
    /// A value as the database gave it.
    #[must_use]
    pub fn of(value: Option<&'a [u8]>) -> Self {
        match value {
            None => Self::Null,
            Some(bytes) if bytes.len() > super::value::MAX_COLUMN_BYTES => {
                Self::Unreadable(TOO_LONG)
            }
            Some(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Self::Text(text),
                Err(_) => Self::Unreadable(NO_UTF8),
            },
        }
    }
}

impl<'a> From<&'a RawText> for CellText<'a> {
    fn from(text: &'a RawText) -> Self {
        match text {
            RawText::Null => Self::Null,
            RawText::Text(text) => Self::Text(text),
            RawText::Unreadable(problem) => Self::Unreadable(problem),
        }
    }
}

/// The bytes of a cell: what stands before its text, and the text.
fn cell(tag: u8, text: CellText<'_>) -> ([u8; HEAD_BYTES], &[u8]) {
    let (kind, bytes) = match text {
        CellText::Null => (0, &[][..]),
        CellText::Text(text) => (1, text.as_bytes()),
        CellText::Unreadable(problem) => (2, problem.as_bytes()),
    };
    let mut head = [0; HEAD_BYTES];
    head[0] = tag;
    head[1] = kind;
    head[2..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    (head, bytes)
}

/// One of the rows.
#[derive(Clone, Copy)]
pub struct RawRowRef<'a> {
    cells: &'a [u8],
    cursor: Option<&'a str>,
}

impl<'a> RawRowRef<'a> {
    /// The row's hash, the same as [`RawRow::hash`].
    #[must_use]
    pub fn hash(self, hasher: &RowHasher) -> RowHash {
        hasher.hash(self.cells)
    }

    /// The column `cursor`.
    #[must_use]
    pub const fn cursor(self) -> Option<&'a str> {
        self.cursor
    }

    /// Both ids, if they are texts.
    #[must_use]
    pub fn ids(self) -> Option<(&'a str, &'a str)> {
        let mut cells = cells(self.cells);
        let mut id = || match cells.next() {
            Some((ID_TAG, CellText::Text(text))) => Some(text),
            _ => None,
        };
        Some((id()?, id()?))
    }

    /// The row's key, if both texts are ids.
    #[must_use]
    pub fn key(self) -> Option<ResourceKey> {
        let (installation_id, resource_id) = self.ids()?;
        ResourceKey::new(installation_id, resource_id).ok()
    }

    /// The row as it was read.
    #[must_use]
    pub fn to_row(self) -> RawRow {
        let mut cells = cells(self.cells);
        let mut id = || {
            cells
                .next()
                .map_or(RawText::Null, |(_, text)| RawText::from(text))
        };
        let (installation_id, resource_id) = (id(), id());
        RawRow {
            installation_id,
            resource_id,
            cursor: self.cursor.map(str::to_owned),
            columns: cells
                .filter_map(|(tag, text)| {
                    let field = Field::ALL.into_iter().find(|field| *field as u8 == tag)?;
                    Some((field, RawText::from(text)))
                })
                .collect(),
        }
    }
}

impl From<CellText<'_>> for RawText {
    fn from(text: CellText<'_>) -> Self {
        match text {
            CellText::Null => Self::Null,
            CellText::Text(text) => Self::text(text),
            CellText::Unreadable(problem) => Self::Unreadable(problem),
        }
    }
}

fn cells(mut row: &[u8]) -> impl Iterator<Item = (u8, CellText<'_>)> {
    std::iter::from_fn(move || {
        let (head, rest) = row.split_first_chunk::<HEAD_BYTES>()?;
        let [tag, kind, length @ ..] = *head;
        let length = usize::try_from(u64::from_le_bytes(length)).ok()?;
        let (bytes, rest) = rest.split_at_checked(length)?;
        row = rest;
        // What was pushed as text is text.
        let text = std::str::from_utf8(bytes).ok()?;
        let problem = PROBLEMS.into_iter().find(|problem| *problem == text);
        Some((
            tag,
            match kind {
                0 => CellText::Null,
                1 => CellText::Text(text),
                _ => CellText::Unreadable(problem.unwrap_or("cannot be read as text")),
            },
        ))
    })
}

/// Hashes rows under one key and one meaning of rows.
#[derive(Debug, Clone)]
pub struct RowHasher(blake3::Hasher);

impl RowHasher {
    /// `epoch` stands for the settings that change what a row means, for instance the fields left to Vercel.
    #[must_use]
    pub fn new(key: &FingerprintKey, epoch: u64) -> Self {
        let mut hasher = key.hasher("row");
        hasher.update(&epoch.to_le_bytes());
        Self(hasher)
    }

    fn hash(&self, row: &[u8]) -> RowHash {
        let mut hasher = self.0.clone();
        hasher.update(row);
        RowHash::from_hasher(&hasher)
    }

    /// The hash that a row has in a page, of one that is in none.
    pub(super) fn hash_row(mut self, row: &RawRow) -> RowHash {
        let RawRow {
            installation_id,
            resource_id,
            cursor: _,
            columns,
        } = row;
        let ids = [installation_id, resource_id].map(|id| (ID_TAG, id));
        let columns = columns.iter().map(|(field, text)| (*field as u8, text));
        for (tag, text) in ids.into_iter().chain(columns) {
            let (head, bytes) = cell(tag, text.into());
            self.0.update(&head);
            self.0.update(bytes);
        }
        RowHash::from_hasher(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_rows() -> Vec<RawRow> {
        let row = |id: RawText, cursor: Option<&str>, columns: Vec<(Field, RawText)>| RawRow {
            installation_id: RawText::text("icfg_1"),
            resource_id: id,
            cursor: cursor.map(str::to_owned),
            columns,
        };
        vec![
            row(RawText::Null, Some("2026-01-02"), vec![]),
            row(
                RawText::text("res_1"),
                None,
                vec![
                    (Field::Name, RawText::text("")),
                    (Field::Status, RawText::Null),
                ],
            ),
            row(
                RawText::Unreadable(NO_UTF8),
                Some(""),
                vec![(Field::Secrets, RawText::Unreadable(TOO_LONG))],
            ),
            row(
                RawText::text("réseau"),
                Some("7"),
                vec![(Field::Name, RawText::text("x".repeat(10_000)))],
            ),
        ]
    }

    #[test]
    fn a_row_comes_out_of_a_page_as_it_went_in() {
        let rows = some_rows();
        let mut page: RawRows = rows.iter().cloned().collect();
        let out = page.to_rows();
        assert_eq!(out, rows);
        let keys = rows.iter().map(|row| row.key().ok());
        assert!(page.iter().map(RawRowRef::key).eq(keys));
        assert!(page.iter().any(|row| row.key().is_some()));
        let again = page.clone();
        page.append(&again);
        assert_eq!(page.len(), 2 * rows.len());
        assert_eq!(page.last().map(RawRowRef::to_row), rows.last().cloned());
        assert_eq!(
            page.iter().nth(1).and_then(RawRowRef::ids),
            Some(("icfg_1", "res_1"))
        );
        assert_eq!(page.iter().next().and_then(RawRowRef::ids), None);
        assert_eq!(page.last().and_then(RawRowRef::cursor), Some("7"));
        page.truncate(rows.len() + 1);
        let out = page.to_rows();
        assert_eq!(out[..rows.len()], rows);
        assert_eq!(out[rows.len()..], rows[..1]);
        page.truncate(0);
        assert!(page.is_empty() && page.size() == 0);
    }

    #[test]
    fn a_row_in_a_page_has_the_hash_of_the_row_by_itself() {
        let key = FingerprintKey::new([5; 32]);
        let rows = some_rows();
        let page: RawRows = rows.iter().cloned().collect();
        for epoch in [0, 7] {
            let hasher = RowHasher::new(&key, epoch);
            for (inside, row) in page.iter().zip(&rows) {
                assert_eq!(inside.hash(&hasher), row.hash(&key, epoch));
            }
        }
    }

    #[test]
    fn what_is_too_long_or_no_text_is_unreadable() {
        let long = vec![b'x'; super::super::value::MAX_COLUMN_BYTES + 1];
        assert!(CellText::of(Some(&long)) == CellText::Unreadable(TOO_LONG));
        assert!(CellText::of(Some(&long[1..])) != CellText::Unreadable(TOO_LONG));
        assert!(CellText::of(Some(b"\xff")) == CellText::Unreadable(NO_UTF8));
        assert!(CellText::of(None) == CellText::Null);
    }
}
