//! A page of SQLite as one text: its driver hands every row from one thread to another, and that costs more than the row.
//!
//! A line is a letter for the type of each id, then every value with its length in bytes before it, NULL without a length. The page is
//! all lines one after another. What is too large for that, or is not what it says, is left to be read row by row.

use super::RawKey;
use super::columns::Layout;
use crate::model::{CellText, RawRows};

/// The most bytes of values in a line; the limit on a page's rows is no limit on its memory.
const MAX_LINE_BYTES: usize = 4_096;
/// Stands for a row that is larger.
const TOO_LARGE: u8 = b'!';

/// The expression of a line over these operands, the two ids first.
pub(super) fn line(operands: &[String]) -> String {
    let total: Vec<String> = operands
        .iter()
        .map(|operand| format!("ifnull(octet_length({operand}), 0)"))
        .collect();
    let kinds = operands
        .iter()
        .take(2)
        .map(|operand| format!("substr(typeof({operand}), 1, 1)"));
    // What is NULL is nothing to concat, its length too.
    let values = operands
        .iter()
        .map(|operand| format!("octet_length({operand}), ':', {operand}"));
    let parts: Vec<String> = kinds.chain(values).collect();
    format!(
        "CASE WHEN {} <= {MAX_LINE_BYTES} THEN concat({}) ELSE '{}' END",
        total.join(" + "),
        parts.join(", "),
        char::from(TOO_LARGE)
    )
}

/// The rows of a page and the place of its last one; `None` when they have to be read one by one.
pub(super) fn unpack(layout: &Layout, page: &[u8]) -> Option<(RawRows, Option<RawKey>)> {
    let mut rows = RawRows::with_capacity(page.len() + page.len() / 4);
    let mut place = None;
    let mut rest = page;
    while let Some((kinds, values)) = rest.split_first_chunk::<2>() {
        if kinds.contains(&TOO_LARGE) || !kinds.iter().all(|kind| matches!(kind, b'i' | b't')) {
            return None;
        }
        rest = values;
        let installation = take(&mut rest)??;
        let resource = take(&mut rest)??;
        rows.push_id(CellText::of(Some(installation)));
        rows.push_id(CellText::of(Some(resource)));
        for (field, _) in &layout.fields {
            rows.push_field(*field, CellText::of(take(&mut rest)?));
        }
        rows.end_row(None);
        place = Some([(kinds[0], installation), (kinds[1], resource)]);
    }
    if !rest.is_empty() {
        return None;
    }
    let place = match place {
        Some([installation, resource]) => Some(RawKey {
            installation_id: position(installation)?,
            resource_id: position(resource)?,
        }),
        None => None,
    };
    Some((rows, place))
}

/// One value with its length before it: the outer `None` for what is none.
fn take<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let colon = rest.iter().position(|byte| *byte == b':')?;
    let (digits, value) = rest.split_at(colon);
    let value = &value[1..];
    if digits.is_empty() {
        *rest = value;
        return Some(None);
    }
    let length = std::str::from_utf8(digits).ok()?.parse::<usize>().ok()?;
    let (value, after) = value.split_at_checked(length)?;
    *rest = after;
    Some(Some(value))
}

/// The place of an id as the dialect writes it.
fn position((kind, id): (u8, &[u8])) -> Option<String> {
    use std::fmt::Write as _;
    if kind == b'i' {
        return Some(format!("i{}", std::str::from_utf8(id).ok()?));
    }
    let mut text = String::with_capacity(1 + 2 * id.len());
    text.push('t');
    for byte in id {
        write!(text, "{byte:02X}").expect("a String takes all text");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Field;
    use crate::source::columns::Column;

    fn layout() -> Layout {
        let column = |name: &'static str| Column {
            name,
            type_name: "TEXT".to_owned(),
        };
        Layout {
            installation_id: column("installation_id"),
            resource_id: column("resource_id"),
            cursor: None,
            fields: vec![
                (Field::Name, column("name")),
                (Field::Status, column("status")),
            ],
        }
    }

    #[test]
    fn lines_are_told_apart_by_their_lengths_alone() {
        let page = b"tt1:a2:b:3:x:y:it1:72:\xc3\xa9:5:ready";
        let (rows, place) = unpack(&layout(), page).expect("it is a page");
        assert_eq!(rows.len(), 2);
        let ids: Vec<_> = rows.iter().map(|row| row.ids()).collect();
        assert_eq!(ids, [Some(("a", "b:")), Some(("7", "é"))]);
        let place = place.expect("there is a last row");
        assert_eq!(place.installation_id, "i7");
        assert_eq!(place.resource_id, "tC3A9");
        assert!(unpack(&layout(), b"").expect("no rows").1.is_none());
    }

    #[test]
    fn what_is_no_page_is_read_row_by_row() {
        let whole = b"tt1:a1:b:5:ready";
        for end in 1..whole.len() {
            assert!(unpack(&layout(), &whole[..end]).is_none(), "{end}");
        }
        assert!(unpack(&layout(), b"!tt1:a1:b:5:ready").is_none());
        assert!(unpack(&layout(), b"tt1:a1:b:5:ready!").is_none());
        assert!(unpack(&layout(), b"tt:1:b:5:ready").is_none());
        assert!(unpack(&layout(), b"rt3:1.51:b:5:ready").is_none());
    }
}
