//! The statements that read pages: the operator's query as a subquery, wrapped in order, bounds and a limit.
//!
//! Every statement names its columns in one order, so that one decoder serves them all. A full page may end between rows that
//! are equal in the database's own order (the same ids twice, or ids that a collation does not tell apart); the group of its
//! last row is then read whole, and the next page starts after the group.

use std::collections::HashSet;

use zeroize::Zeroizing;

use super::columns::{Column, CursorColumn, Layout};
use super::dialect::{Cell, Dialect, Key, Rows, ToldBy, text};
use super::query::Query;
use super::statement::{Comparison, Param, Statement};
use super::{Position, RawKey};
use crate::model::{CellText, InstallationId, RawRow, RawRows, RawText, ResourceKey};

/// The most rows that are read of one group of equal ids; further ones could only repeat that the id is not unique.
pub(super) const MAX_GROUP_ROWS: u32 = 1_000;
/// The most rows without an id that can be ordered that a sweep reads.
pub(super) const MAX_IRREGULAR_ROWS: u32 = 10_000;
/// The most rows that one look-up of [`KEYS_IN_STATEMENT_MAX`](super::KEYS_IN_STATEMENT_MAX) may yield.
pub(super) const MAX_FETCHED_ROWS: u32 = 2_000;

/// Builds statements for one query of one dialect.
pub(super) struct Pages<'a, D> {
    pub(super) dialect: &'a D,
    pub(super) query: &'a Query,
    pub(super) layout: &'a Layout,
}

/// Where a poll's page starts, its texts already turned into parameters.
pub(super) enum PollStart {
    /// At the first row.
    Beginning,
    /// At the cursor less the overlap.
    Cursor(Param),
    /// At the cursor less the overlap, for what lies before many rows of one cursor.
    Until(Param, Crowd),
    /// After all rows with a cursor.
    Later(Param),
    /// After a row.
    After([Param; 3]),
}

/// Many rows of one cursor.
pub(super) struct Crowd {
    /// Their cursor.
    pub(super) at: Param,
    /// The same as text.
    pub(super) text: String,
    /// Whether no open transaction can commit rows before them.
    pub(super) is_settled: bool,
}

impl Crowd {
    /// Where a pass that passes over them goes on.
    pub(super) fn behind(&self, horizon: &Option<String>) -> Position {
        Position {
            cursor: self.text.clone(),
            key: None,
            horizon: horizon.clone(),
        }
    }
}

/// The parts of an order: one for each id.
pub(super) struct Keys {
    pub(super) installation: Key,
    pub(super) resource: Key,
}

impl<D: Dialect> Pages<'_, D> {
    /// The order of ids within equal cursors.
    pub(super) fn poll_keys(&self) -> Keys {
        Keys {
            installation: self.dialect.binary_key(&self.layout.installation_id),
            resource: self.dialect.binary_key(&self.layout.resource_id),
        }
    }

    /// The order of a sweep: the database's own where the types have one, so that an index may serve it.
    pub(super) fn sweep_keys(&self) -> Keys {
        let key = |column: &Column| {
            let native = self.dialect.native_key(column);
            native.unwrap_or_else(|| self.dialect.binary_key(column))
        };
        Keys {
            installation: key(&self.layout.installation_id),
            resource: key(&self.layout.resource_id),
        }
    }

    /// A poll's page; `upper` bounds it where the dialect asks for that.
    pub(super) fn poll(
        &self,
        cursor: &CursorColumn,
        start: &PollStart,
        upper: Option<&Param>,
        horizon: Option<&Param>,
        limit: u32,
    ) -> Statement {
        let keys = self.poll_keys();
        let operand = self.dialect.operand(super::columns::CURSOR);
        let mut statement = self.select(Some(&keys), horizon.map(|horizon| (&*operand, horizon)));
        self.push_start(&mut statement, cursor, start, &keys);
        if let Some(upper) = upper {
            statement.push(&format!("\nAND {operand} <= ")).param(upper);
        }
        statement.push(&format!(
            "\nORDER BY {operand}, {}, {}\nLIMIT {limit}",
            keys.installation.order, keys.resource.order
        ));
        statement
    }

    /// Everything from a start on in the order of the cursor alone, which an index over it gives however many rows have the same one.
    /// The columns are those of [`Pages::poll`] without the places of the ids.
    pub(super) fn poll_news(
        &self,
        cursor: &CursorColumn,
        start: &PollStart,
        horizon: Option<&Param>,
        limit: u32,
    ) -> Statement {
        let operand = self.dialect.operand(super::columns::CURSOR);
        let mut statement = self.select(None, horizon.map(|horizon| (&*operand, horizon)));
        self.push_start(&mut statement, cursor, start, &self.poll_keys());
        statement.push(&format!("\nORDER BY {operand}\nLIMIT {limit}"));
        statement
    }

    /// The cursor of the `limit`-th row from the start on, by the cursor alone.
    pub(super) fn poll_bound(
        &self,
        cursor: &CursorColumn,
        start: &PollStart,
        limit: u32,
    ) -> Statement {
        let operand = self.dialect.operand(super::columns::CURSOR);
        let mut statement = Statement::new(D::PLACEHOLDERS);
        statement
            .push("SELECT ")
            .push(&self.dialect.cursor_text(cursor));
        self.push_from(&mut statement);
        statement
            .push("\nWHERE ")
            .push(&self.dialect.cursor_filter(cursor));
        match start {
            PollStart::Beginning => {}
            PollStart::Cursor(from) => self.push_floor(&mut statement, cursor, from),
            PollStart::Until(from, crowd) => {
                self.push_floor(&mut statement, cursor, from);
                statement
                    .push(&format!("\nAND {operand} < "))
                    .param(&crowd.at);
            }
            // Of a row, the rest of those with the same cursor comes on top.
            PollStart::Later(after) | PollStart::After([after, ..]) => {
                statement.push(&format!("\nAND {operand} > ")).param(after);
            }
        }
        statement.push(&format!(
            "\nORDER BY {operand}\nLIMIT 1 OFFSET {}",
            limit.saturating_sub(1)
        ));
        statement
    }

    fn push_start(
        &self,
        statement: &mut Statement,
        cursor: &CursorColumn,
        start: &PollStart,
        keys: &Keys,
    ) {
        let operand = self.dialect.operand(super::columns::CURSOR);
        statement
            .push("\nWHERE ")
            .push(&self.dialect.cursor_filter(cursor));
        match start {
            PollStart::Beginning => {}
            PollStart::Cursor(from) => self.push_floor(statement, cursor, from),
            PollStart::Until(from, crowd) => {
                self.push_floor(statement, cursor, from);
                statement
                    .push(&format!("\nAND {operand} < "))
                    .param(&crowd.at);
            }
            PollStart::Later(after) => {
                statement.push(&format!("\nAND {operand} > ")).param(after);
            }
            PollStart::After([after, installation, resource]) => {
                // The first comparison is for the index, the second for the order within equal cursors.
                statement.push(&format!("\nAND {operand} >= ")).param(after);
                statement.push(&format!("\nAND ({operand} > ")).param(after);
                statement.push(" OR ");
                statement.after(
                    [&keys.installation.order, &keys.resource.order],
                    [installation, resource],
                    Comparison::Expanded,
                );
                statement.push(")");
            }
        }
    }

    /// From a cursor on, less the overlap.
    fn push_floor(&self, statement: &mut Statement, cursor: &CursorColumn, from: &Param) {
        let operand = self.dialect.operand(super::columns::CURSOR);
        statement.push(&format!("\nAND {operand} >= "));
        self.dialect.push_floor(statement, cursor, from);
    }

    /// All rows of a poll that are equal to a position.
    pub(super) fn poll_group(&self, cursor: &CursorColumn, at: &[Param; 3]) -> Statement {
        let keys = self.poll_keys();
        let [value, installation, resource] = at;
        let mut statement = Statement::new(D::PLACEHOLDERS);
        self.push_columns(&mut statement, Some(&keys), None);
        self.push_at(&mut statement, cursor, value);
        push_equal(&mut statement, &keys, installation, resource);
        statement
    }

    /// A sweep's page of rows whose ids can be ordered.
    pub(super) fn sweep(&self, keys: &Keys, after: Option<&[Param; 2]>, limit: u32) -> Statement {
        let mut statement = Statement::new(D::PLACEHOLDERS);
        self.push_columns(&mut statement, Some(keys), None);
        self.push_sweep(&mut statement, keys, after);
        statement.push(&format!("\nLIMIT {limit}"));
        statement
    }

    /// The rows whose ids cannot be ordered: NULL, too long, or of a type of their own.
    pub(super) fn sweep_irregular(&self, keys: &Keys) -> Statement {
        let mut statement = self.select(Some(keys), None);
        statement.push(&format!(
            "\nWHERE {}\nLIMIT {MAX_IRREGULAR_ROWS}",
            self.irregular()
        ));
        statement
    }

    /// All rows of a sweep that are equal to a position.
    pub(super) fn sweep_group(
        &self,
        keys: &Keys,
        [installation, resource]: &[Param; 2],
    ) -> Statement {
        let mut statement = self.select(Some(keys), None);
        statement.push(&format!("\nWHERE NOT ({})", self.irregular()));
        push_equal(&mut statement, keys, installation, resource);
        statement
    }

    /// A sweep's page as the texts of its ids and fields, and what else tells the places of both ids; `None` when only a position does.
    pub(super) fn sweep_texts(
        &self,
        keys: &Keys,
        after: Option<&[Param; 2]>,
        limit: u32,
        has_ties: bool,
    ) -> Option<Statement> {
        let (mut columns, mut types) = (Vec::new(), Vec::new());
        for (key, column) in [
            (&keys.installation, &self.layout.installation_id),
            (&keys.resource, &self.layout.resource_id),
        ] {
            match &key.told_by {
                ToldBy::Text => columns.push(key.position.clone()),
                ToldBy::TextAndType(type_name) => {
                    columns.push(self.dialect.text(column));
                    types.push(type_name.clone());
                }
                ToldBy::Position => return None,
            }
        }
        let fields = self.layout.fields.iter();
        columns.extend(fields.map(|(_, column)| self.dialect.value(column)));
        columns.append(&mut types);
        let mut statement = Statement::new(D::PLACEHOLDERS);
        statement.push("SELECT ").push(&columns.join(",\n  "));
        self.push_sweep(&mut statement, keys, after);
        statement.push(&match has_ties {
            true => format!("\nFETCH FIRST {limit} ROWS WITH TIES"),
            false => format!("\nLIMIT {limit}"),
        });
        Some(statement)
    }

    fn push_sweep(&self, statement: &mut Statement, keys: &Keys, after: Option<&[Param; 2]>) {
        self.push_from(statement);
        statement.push(&format!("\nWHERE NOT ({})", self.irregular()));
        if let Some([installation, resource]) = after {
            statement.push("\nAND ");
            statement.after(
                [&keys.installation.order, &keys.resource.order],
                [installation, resource],
                D::COMPARISON,
            );
        }
        statement.push(&format!(
            "\nORDER BY {}, {}",
            keys.installation.order, keys.resource.order
        ));
    }

    fn irregular(&self) -> String {
        format!(
            "{} OR {}",
            self.dialect.is_irregular(&self.layout.installation_id),
            self.dialect.is_irregular(&self.layout.resource_id)
        )
    }

    /// The rows of some resources, and perhaps of ids that the database takes for equal; `None` when no id can be there.
    pub(super) fn fetch(&self, resources: &[ResourceKey]) -> Option<Statement> {
        let keys = self.sweep_keys();
        let params: Vec<[Param; 2]> = resources
            .iter()
            .filter_map(|key| {
                let installation = key.installation_id.as_str();
                let resource = key.resource_id.as_str();
                Some([
                    self.dialect.id_param(&keys.installation, installation)?,
                    self.dialect.id_param(&keys.resource, resource)?,
                ])
            })
            .collect();
        if params.is_empty() {
            return None;
        }
        let mut statement = self.select(Some(&keys), None);
        // As one list: planning so many alternatives would take longer than finding the rows.
        let (before, after) = D::PAIRS;
        statement.push(&format!(
            "\nWHERE ({}, {}) IN ({before}",
            keys.installation.order, keys.resource.order
        ));
        for (index, [installation, resource]) in params.iter().enumerate() {
            statement.push(if index == 0 { "(" } else { ", (" });
            statement.param(installation).push(", ").param(resource);
            statement.push(")");
        }
        statement.push(&format!("{after})\nLIMIT {MAX_FETCHED_ROWS}"));
        Some(statement)
    }

    /// Some row's cursor.
    pub(super) fn any_cursor(&self, cursor: &CursorColumn) -> Statement {
        let mut statement = Statement::new(D::PLACEHOLDERS);
        statement
            .push("SELECT ")
            .push(&self.dialect.cursor_text(cursor));
        self.push_from(&mut statement);
        statement
            .push("\nWHERE ")
            .push(&self.dialect.cursor_filter(cursor))
            .push("\nLIMIT 1");
        statement
    }

    /// The greatest cursor there is.
    pub(super) fn newest_cursor(&self, cursor: &CursorColumn) -> Statement {
        let operand = self.dialect.operand(super::columns::CURSOR);
        let mut statement = Statement::new(D::PLACEHOLDERS);
        statement
            .push("SELECT ")
            .push(&self.dialect.cursor_text(cursor));
        self.push_from(&mut statement);
        statement
            .push("\nWHERE ")
            .push(&self.dialect.cursor_filter(cursor))
            .push(&format!("\nORDER BY {operand} DESC\nLIMIT 1"));
        statement
    }

    /// How many rows the query has.
    pub(super) fn count(&self) -> Statement {
        let mut statement = self.select_total();
        self.push_from(&mut statement);
        statement.push(") AS resource");
        statement
    }

    /// How many rows have a cursor, counted up to `most`.
    pub(super) fn count_at(&self, cursor: &CursorColumn, at: &Param, most: u32) -> Statement {
        let mut statement = self.select_total();
        statement.push("\nFROM (SELECT 1 AS one");
        self.push_at(&mut statement, cursor, at);
        statement.push(&format!("\nLIMIT {most}) AS counted) AS resource"));
        statement
    }

    /// Whether some row has a cursor, and as its value whether that is settled.
    pub(super) fn any_at(
        &self,
        cursor: &CursorColumn,
        at: &Param,
        horizon: Option<&Param>,
    ) -> Statement {
        let operand = self.dialect.operand(super::columns::CURSOR);
        let mut statement = Statement::new(D::PLACEHOLDERS);
        statement.push("SELECT ");
        push_settled(&mut statement, horizon.map(|horizon| (&*operand, horizon)));
        self.push_at(&mut statement, cursor, at);
        statement.push("\nLIMIT 1");
        statement
    }

    /// The rows of the query that have a cursor.
    fn push_at(&self, statement: &mut Statement, cursor: &CursorColumn, at: &Param) {
        let operand = self.dialect.operand(super::columns::CURSOR);
        self.push_from(statement);
        statement
            .push("\nWHERE ")
            .push(&self.dialect.cursor_filter(cursor))
            .push(&format!("\nAND {operand} = "))
            .param(at);
    }

    /// A count as text, of what is to be put after it.
    fn select_total(&self) -> Statement {
        let total = Column {
            name: "total",
            type_name: "BIGINT".to_owned(),
        };
        let mut statement = Statement::new(D::PLACEHOLDERS);
        statement.push(&format!("SELECT {}", self.dialect.text(&total)));
        statement.push("\nFROM (SELECT COUNT(*) AS total");
        statement
    }

    /// `SELECT` with its columns, up to and without `WHERE`.
    fn select(&self, keys: Option<&Keys>, settled: Option<(&str, &Param)>) -> Statement {
        let mut statement = Statement::new(D::PLACEHOLDERS);
        self.push_columns(&mut statement, keys, settled);
        self.push_from(&mut statement);
        statement
    }

    /// The columns that [`decode`] expects; without keys, those without the places of the ids.
    fn push_columns(
        &self,
        statement: &mut Statement,
        keys: Option<&Keys>,
        settled: Option<(&str, &Param)>,
    ) {
        statement.push("SELECT ");
        push_settled(statement, settled);
        if let Some(keys) = keys {
            statement.push(&format!(
                ",\n  {},\n  {}",
                keys.installation.position, keys.resource.position
            ));
        }
        statement.push(",\n  ").push(&match &self.layout.cursor {
            Some(cursor) => self.dialect.cursor_text(cursor),
            None => "NULL".to_owned(),
        });
        let ids = [&self.layout.installation_id, &self.layout.resource_id];
        let fields = self.layout.fields.iter().map(|(_, column)| column);
        for column in ids.into_iter().chain(fields) {
            statement.push(&format!(",\n  {}", self.dialect.value(column)));
        }
    }

    /// The query as a subquery. The line break ends a comment that the query may end with.
    fn push_from(&self, statement: &mut Statement) {
        statement
            .push("\nFROM (")
            .push(self.query.text())
            .push("\n) AS resource");
    }
}

/// Whether a cursor lies before a horizon; it does where there is none.
fn push_settled(statement: &mut Statement, settled: Option<(&str, &Param)>) {
    match settled {
        Some((operand, horizon)) => {
            statement
                .push(&format!("CASE WHEN {operand} <= "))
                .param(horizon)
                .push(" THEN 'y' END");
        }
        None => {
            statement.push("'y'");
        }
    }
}

fn push_equal(statement: &mut Statement, keys: &Keys, installation: &Param, resource: &Param) {
    statement
        .push(&format!("\nAND {} = ", keys.installation.order))
        .param(installation)
        .push(&format!("\nAND {} = ", keys.resource.order))
        .param(resource)
        .push(&format!("\nLIMIT {MAX_GROUP_ROWS}"));
}

/// The statement that looks up the tokens of some installations, and perhaps of ids that the database takes for equal; `None` when no id
/// can be there.
pub(super) fn tokens<D: Dialect>(
    dialect: &D,
    query: &Query,
    layout: &super::columns::InstallationsLayout,
    installation_ids: &[InstallationId],
) -> Option<Statement> {
    let native = dialect.native_key(&layout.installation_id);
    let key = native.unwrap_or_else(|| dialect.binary_key(&layout.installation_id));
    let param = |id: &InstallationId| dialect.id_param(&key, id.as_str());
    let params: Vec<Param> = installation_ids.iter().filter_map(param).collect();
    let (first, rest) = params.split_first()?;
    let mut statement = Statement::new(D::PLACEHOLDERS);
    // The id again as text: the database may take other ids for equal.
    statement
        .push(&format!(
            "SELECT {},\n  {}\nFROM (",
            dialect.text(&layout.installation_id),
            dialect.value(&layout.access_token)
        ))
        .push(query.text())
        .push(&format!("\n) AS resource\nWHERE {} IN (", key.order))
        .param(first);
    for param in rest {
        statement.push(", ").param(param);
    }
    statement.push(&format!(")\nLIMIT {MAX_FETCHED_ROWS}"));
    Some(statement)
}

/// One row with its place in the order.
pub(super) struct PlacedRow {
    pub(super) row: RawRow,
    pub(super) key: RawKey,
}

/// Decodes what [`Pages`] selects.
pub(super) fn decode(layout: &Layout, rows: Rows) -> Vec<PlacedRow> {
    rows.rows
        .into_iter()
        .map(|cells| decode_row(layout, cells))
        .collect()
}

fn decode_row(layout: &Layout, cells: Vec<Cell>) -> PlacedRow {
    let mut cells = cells.into_iter();
    let mut next = || cells.next().flatten();
    // Whether it is settled, which polls alone ask.
    next();
    let key = RawKey {
        installation_id: text(next()).unwrap_or_default(),
        resource_id: text(next()).unwrap_or_default(),
    };
    let cursor = text(next());
    let mut column = || raw_text(next());
    let installation_id = column();
    let resource_id = column();
    let columns = layout
        .fields
        .iter()
        .map(|(field, _)| (*field, column()))
        .collect();
    PlacedRow {
        row: RawRow {
            installation_id,
            resource_id,
            cursor,
            columns,
        },
        key,
    }
}

/// Appends a row to a page in one piece: the cells of both ids and of the fields.
pub(super) fn push_row(
    rows: &mut RawRows,
    layout: &Layout,
    cells: &[Option<&[u8]>],
    cursor: Option<&str>,
) {
    let mut cells = cells.iter().map(|cell| CellText::of(*cell));
    let mut next = || cells.next().expect("every statement selects all columns");
    rows.push_id(next());
    rows.push_id(next());
    for (field, _) in &layout.fields {
        rows.push_field(*field, next());
    }
    rows.end_row(cursor);
}

/// A column's text from its value.
pub(super) fn raw_text(value: Cell) -> RawText {
    match CellText::of(value.as_ref().map(|bytes| bytes.as_slice())) {
        CellText::Null => RawText::Null,
        CellText::Unreadable(problem) => RawText::Unreadable(problem),
        CellText::Text(_) => {
            // Takes the bytes instead of copying them: what is left behind is empty.
            let mut bytes: Zeroizing<Vec<u8>> = value.expect("it has a text");
            let bytes = std::mem::take(&mut *bytes);
            RawText::text(String::from_utf8(bytes).expect("it is a text"))
        }
    }
}

/// Puts the whole group of a sweep's last row at the end of a full page.
///
/// The group is a later reading: a row that changed in between is not to appear as it was, too.
pub(super) fn with_sweep_group(mut page: Vec<PlacedRow>, group: Vec<PlacedRow>) -> Vec<PlacedRow> {
    let places: HashSet<_> = group.iter().map(|placed| placed.key.clone()).collect();
    page.retain(|placed| !places.contains(&placed.key));
    page.extend(group);
    page
}

/// The parameters of a place in the order of a sweep; `None` when the texts fit the columns no more.
pub(super) fn sweep_params<D: Dialect>(
    dialect: &D,
    keys: &Keys,
    key: &RawKey,
) -> Option<[Param; 2]> {
    Some([
        dialect.key_param(&keys.installation, &key.installation_id)?,
        dialect.key_param(&keys.resource, &key.resource_id)?,
    ])
}

/// The parameters of a row's place in the order of a poll; `None` when the texts fit the columns no more, and for a place that is no row's.
pub(super) fn poll_params<D: Dialect>(
    dialect: &D,
    cursor: &CursorColumn,
    keys: &Keys,
    position: &Position,
) -> Option<[Param; 3]> {
    let value = dialect.cursor_param(cursor, &position.cursor)?;
    let [installation, resource] = sweep_params(dialect, keys, position.key.as_ref()?)?;
    Some([value, installation, resource])
}

/// The start of what lies after all rows with a cursor; the beginning when the column can hold no such cursor any more.
pub(super) fn later<D: Dialect>(dialect: &D, cursor: &CursorColumn, text: &str) -> PollStart {
    let param = dialect.cursor_param(cursor, text);
    param.map_or(PollStart::Beginning, |param| {
        PollStart::Later(dialect.unseen(param))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(id: &str, cursor: &str) -> PlacedRow {
        PlacedRow {
            row: RawRow {
                installation_id: RawText::text("icfg_1"),
                resource_id: RawText::text(id),
                cursor: Some(cursor.to_owned()),
                columns: Vec::new(),
            },
            key: RawKey {
                installation_id: "icfg_1".to_owned(),
                resource_id: id.to_owned(),
            },
        }
    }

    #[test]
    fn a_row_that_changed_before_its_group_was_read_is_swept_once() {
        let page = vec![placed("res_1", "1"), placed("res_2", "2")];
        let rows = with_sweep_group(page, vec![placed("res_2", "9")]);
        let read: Vec<_> = rows
            .iter()
            .map(|placed| (&*placed.key.resource_id, placed.row.cursor.as_deref()))
            .collect();
        assert_eq!(read, [("res_1", Some("1")), ("res_2", Some("9"))]);
    }
}
