//! From the columns that a query has to what they mean.
//!
//! Pure: names and types in, a layout or a problem in words out. Nothing is guessed: a name that means nothing is refused.

use std::time::Duration;

use super::{CursorKind, Shape, SourceError};
use crate::model::{Field, FieldSet};

/// How far behind the cursor a poll reads when the operator set nothing and the cursor is a timestamp.
pub const DEFAULT_OVERLAP: Duration = Duration::from_secs(30);

pub(super) const SOURCE_QUERY: &str = "source query";
pub(super) const INSTALLATIONS_QUERY: &str = "installations query";
pub(super) const INSTALLATION_ID: &str = "installation_id";
pub(super) const RESOURCE_ID: &str = "resource_id";
pub(super) const CURSOR: &str = "cursor";
pub(super) const ACCESS_TOKEN: &str = "access_token";

/// How far behind the cursor a poll reads, as the operator set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overlap {
    /// Not set: 30 s for a timestamp, nothing for an integer.
    #[default]
    Unset,
    /// A length of time: timestamps only.
    Duration(Duration),
    /// A distance in the cursor's own unit, not negative: integers only.
    Units(i64),
}

/// A column as the database describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) name: String,
    /// The database's own name of its type.
    pub(super) type_name: String,
    /// Whether the type was concluded from less than it takes, so that it has to be asked again.
    pub(super) is_guess: bool,
}

/// A column that has a meaning, with its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) type_name: String,
}

/// The columns of the source query.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) installation_id: Column,
    pub(super) resource_id: Column,
    pub(super) cursor: Option<CursorColumn>,
    /// In the order of [`Field::ALL`].
    pub(super) fields: Vec<(Field, Column)>,
}

/// The column `cursor`.
#[derive(Debug, Clone)]
pub(super) struct CursorColumn {
    pub(super) type_name: String,
    pub(super) kind: CursorKind,
    pub(super) reach: Reach,
}

/// How far before the cursor a pass begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// At the cursor itself.
    None,
    /// So many microseconds earlier.
    Micros(i64),
    /// So many units lower.
    Units(i64),
}

/// The types of the columns of the installations query that are needed to read it.
#[derive(Debug, Clone)]
pub(super) struct InstallationsLayout {
    pub(super) installation_id: Column,
    pub(super) access_token: Column,
}

impl Layout {
    pub(super) fn shape(&self) -> Shape {
        Shape {
            managed: self
                .fields
                .iter()
                .map(|(field, _)| *field)
                .collect::<FieldSet>(),
            cursor: self.cursor.as_ref().map(|cursor| cursor.kind),
            overlap: match self.cursor.as_ref().map(|cursor| cursor.reach) {
                Some(Reach::Micros(micros)) => {
                    Duration::from_micros(micros.try_into().unwrap_or_default())
                }
                Some(Reach::None | Reach::Units(_)) | None => Duration::ZERO,
            },
            feed: false,
        }
    }

    /// Gives every column its meaning.
    ///
    /// # Errors
    /// [`SourceError::Shape`] names the columns that are unknown, missing or twice there, or a cursor that cannot serve.
    pub(super) fn new(
        described: &[Described],
        overlap: Overlap,
        cursor_kind: impl Fn(&str) -> Option<CursorKind>,
    ) -> Result<Self, SourceError> {
        let mut allowed = vec![INSTALLATION_ID, RESOURCE_ID, CURSOR];
        allowed.extend(Field::ALL.map(Field::column));
        let mut columns = recognise(
            SOURCE_QUERY,
            described,
            &allowed,
            &[INSTALLATION_ID, RESOURCE_ID],
        )?;
        let mut take = |name: &str| {
            let index = columns.iter().position(|column| column.name == name)?;
            Some(columns.swap_remove(index))
        };
        Ok(Self {
            installation_id: take(INSTALLATION_ID).expect("recognise refuses a query without it"),
            resource_id: take(RESOURCE_ID).expect("recognise refuses a query without it"),
            cursor: take(CURSOR)
                .map(|column| cursor(column, overlap, cursor_kind))
                .transpose()?,
            fields: Field::ALL
                .into_iter()
                .filter_map(|field| Some((field, take(field.column())?)))
                .collect(),
        })
    }
}

impl InstallationsLayout {
    /// Gives every column its meaning.
    ///
    /// # Errors
    /// [`SourceError::Shape`] when the columns are not exactly `installation_id` and `access_token`.
    pub(super) fn new(described: &[Described]) -> Result<Self, SourceError> {
        let both = [INSTALLATION_ID, ACCESS_TOKEN];
        let columns = recognise(INSTALLATIONS_QUERY, described, &both, &both)?;
        let take = |name: &str| {
            let column = columns.iter().find(|column| column.name == name);
            column
                .cloned()
                .expect("recognise refuses a query without it")
        };
        Ok(Self {
            installation_id: take(INSTALLATION_ID),
            access_token: take(ACCESS_TOKEN),
        })
    }
}

/// Checks the names: all known, none twice, none missing.
fn recognise(
    statement: &'static str,
    described: &[Described],
    allowed: &[&'static str],
    required: &[&'static str],
) -> Result<Vec<Column>, SourceError> {
    let refuse = |problem: String, help: String| SourceError::Shape {
        statement,
        problem,
        help,
    };
    if described.is_empty() {
        return Err(refuse("yields no columns".into(), "one SELECT".into()));
    }
    let mut columns: Vec<Column> = Vec::with_capacity(described.len());
    let mut flaws = Flaws::default();
    for Described {
        name, type_name, ..
    } in described
    {
        match allowed.iter().find(|allowed| *allowed == name) {
            None => {
                let shown = name.chars().take(64).collect();
                flaws.unknown.push((shown, nearest(name, allowed)));
            }
            Some(known) if columns.iter().any(|column| column.name == *known) => {
                if !flaws.twice.contains(known) {
                    flaws.twice.push(known);
                }
            }
            Some(known) => columns.push(Column {
                name: known,
                type_name: type_name.clone(),
            }),
        }
    }
    let is_there = |name: &str| columns.iter().any(|column| column.name == name);
    let is_meant = |name: &str| flaws.unknown.iter().any(|(_, near)| *near == Some(name));
    let missing = required.iter().copied();
    flaws.missing = missing
        .filter(|name| !is_there(name) && !is_meant(name))
        .collect();
    match flaws.is_none() {
        true => Ok(columns),
        false => Err(refuse(flaws.problem(), flaws.help(allowed))),
    }
}

/// What is wrong with a query's columns: all of it, since whoever corrects the query wants to do so once.
#[derive(Default)]
struct Flaws {
    /// Names that mean nothing, each with the one that it most likely stands for.
    unknown: Vec<(String, Option<&'static str>)>,
    twice: Vec<&'static str>,
    /// Neither there nor misspelt.
    missing: Vec<&'static str>,
}

impl Flaws {
    /// The most unknown columns that are named: `SELECT *` may yield many.
    const NAMED_MAX: usize = 8;

    fn is_none(&self) -> bool {
        self.unknown.is_empty() && self.twice.is_empty() && self.missing.is_empty()
    }

    fn problem(&self) -> String {
        let named = self.unknown.iter().take(Self::NAMED_MAX);
        let named: Vec<String> = named.map(|(name, _)| format!("`{name}`")).collect();
        let unknown = match self.unknown.len() {
            0 => None,
            1 => Some(format!("the unknown column {}", named[0])),
            all if all > named.len() => Some(format!(
                "the unknown columns {} and {} more",
                named.join(", "),
                all - named.len()
            )),
            _ => Some(format!("the unknown columns {}", named.join(", "))),
        };
        let twice = self.twice.iter();
        let twice = twice.map(|name| format!("the column `{name}` twice"));
        let missing = self.missing.iter();
        let missing = missing.map(|name| format!("no column `{name}`"));
        let all: Vec<String> = unknown.into_iter().chain(twice).chain(missing).collect();
        format!("has {}", all.join("; "))
    }

    fn help(&self, allowed: &[&str]) -> String {
        let is_one = self.unknown.len() == 1;
        let meant = self.unknown.iter().take(Self::NAMED_MAX);
        let meant = meant.filter_map(|(name, near)| {
            Some(match is_one {
                true => format!("`{}`", (*near)?),
                false => format!("`{}` for `{name}`", (*near)?),
            })
        });
        let meant: Vec<String> = meant.collect();
        let mut help = match meant.is_empty() {
            true => String::new(),
            false => format!("did you mean {}? ", meant.join(", ")),
        };
        let mut rest = Vec::new();
        if !self.twice.is_empty() {
            rest.push("each column once".to_owned());
        }
        if let Some(first) = self.missing.first() {
            let what = match self.missing.len() {
                1 => "it",
                _ => "them",
            };
            rest.push(format!("add {what}, for instance SELECT … AS {first}"));
        }
        if self.unknown.len() + self.missing.len() > 0 {
            rest.push(format!("the columns are {}", allowed.join(", ")));
        }
        help.push_str(&rest.join("; "));
        help
    }
}

/// The allowed name that a misspelt one most likely meant.
fn nearest(name: &str, allowed: &[&'static str]) -> Option<&'static str> {
    let name = name.to_lowercase();
    allowed
        .iter()
        .map(|allowed| {
            (
                strsim::damerau_levenshtein(&name, &allowed.replace('_', ""))
                    .min(strsim::damerau_levenshtein(&name, allowed)),
                *allowed,
            )
        })
        .min()
        .filter(|(distance, near)| *distance <= near.len() / 3)
        .map(|(_, near)| near)
}

fn cursor(
    column: Column,
    overlap: Overlap,
    cursor_kind: impl Fn(&str) -> Option<CursorKind>,
) -> Result<CursorColumn, SourceError> {
    let refuse = |problem: String, help: &str| SourceError::Shape {
        statement: SOURCE_QUERY,
        problem,
        help: help.to_owned(),
    };
    let Column { type_name, .. } = column;
    let Some(kind) = cursor_kind(&type_name) else {
        return Err(refuse(
            format!("has a cursor of type {type_name}"),
            "a timestamp, an integer or text that sorts; CAST it, or leave the column out and let sweeps find changes",
        ));
    };
    let reach = match (kind, overlap) {
        (CursorKind::Timestamp, Overlap::Unset) => micros(DEFAULT_OVERLAP),
        (CursorKind::Timestamp, Overlap::Duration(duration)) => micros(duration),
        (CursorKind::Integer, Overlap::Units(units)) if units >= 0 => Reach::Units(units),
        (CursorKind::Integer, Overlap::Units(_)) => {
            return Err(refuse(
                "has an integer cursor, and the overlap is negative".into(),
                "overlap = a number of the cursor's own units, 0 or more",
            ));
        }
        // Nothing to subtract is no contradiction, whatever its unit.
        (_, Overlap::Unset | Overlap::Duration(Duration::ZERO) | Overlap::Units(0)) => Reach::None,
        (CursorKind::Integer, Overlap::Duration(_)) => {
            return Err(refuse(
                format!("has an integer cursor ({type_name}), and the overlap is a duration"),
                "overlap = a plain number in the cursor's own unit",
            ));
        }
        (CursorKind::Timestamp, Overlap::Units(_)) => {
            return Err(refuse(
                format!("has a timestamp cursor ({type_name}), and the overlap is a plain number"),
                "overlap = a duration, for instance \"30s\"",
            ));
        }
        (CursorKind::Text, _) => {
            return Err(refuse(
                format!("has a text cursor ({type_name}), which takes no overlap"),
                "leave overlap out, or use a timestamp or integer as cursor",
            ));
        }
    };
    Ok(CursorColumn {
        type_name,
        kind,
        reach,
    })
}

fn micros(duration: Duration) -> Reach {
    /// A hundred years: more would only leave the range of the databases' types.
    const MOST: i64 = 100 * 366 * 86_400 * 1_000_000;
    Reach::Micros(
        i64::try_from(duration.as_micros())
            .unwrap_or(MOST)
            .min(MOST),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(names: &[&str], overlap: Overlap) -> Result<Layout, SourceError> {
        let described: Vec<Described> = names
            .iter()
            .map(|name| {
                let (name, type_name) = name.split_once(' ').unwrap_or((name, "TEXT"));
                Described {
                    name: name.to_owned(),
                    type_name: type_name.to_owned(),
                    is_guess: false,
                }
            })
            .collect();
        Layout::new(&described, overlap, |type_name| match type_name {
            "TIMESTAMP" => Some(CursorKind::Timestamp),
            "BIGINT" => Some(CursorKind::Integer),
            "TEXT" => Some(CursorKind::Text),
            _ => None,
        })
    }

    fn refusal(names: &[&str], overlap: Overlap) -> String {
        match layout(names, overlap).expect_err("refused") {
            SourceError::Shape { problem, help, .. } => format!("{problem}: {help}"),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn columns_are_recognised_in_any_order() {
        let layout = layout(
            &[
                "secrets",
                "resource_id",
                "cursor BIGINT",
                "billing_plan",
                "installation_id",
            ],
            Overlap::Unset,
        )
        .expect("a usable query");
        let shape = layout.shape();
        assert_eq!(shape.managed.to_string(), "secrets, billingPlan");
        assert_eq!(shape.cursor, Some(CursorKind::Integer));
    }

    #[test]
    fn a_name_that_means_nothing_is_refused_with_the_nearest() {
        for (name, near) in [
            ("sttaus", "did you mean `status`?"),
            ("billingPlan", "did you mean `billing_plan`?"),
            ("installationid", "did you mean `installation_id`?"),
            (
                "updated_at",
                "the columns are installation_id, resource_id, cursor",
            ),
        ] {
            let refusal = refusal(&["installation_id", "resource_id", name], Overlap::Unset);
            assert!(
                refusal.starts_with(&format!("has the unknown column `{name}`: {near}")),
                "{refusal}"
            );
        }
    }

    #[test]
    fn missing_and_repeated_columns_are_refused() {
        assert!(
            refusal(&["resource_id"], Overlap::Unset)
                .starts_with("has no column `installation_id`")
        );
        assert!(
            refusal(&["installation_id"], Overlap::Unset)
                .starts_with("has no column `resource_id`")
        );
        assert!(refusal(&[], Overlap::Unset).starts_with("yields no columns"));
        let twice = ["installation_id", "resource_id", "name", "name"];
        assert!(refusal(&twice, Overlap::Unset).starts_with("has the column `name` twice"));
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let names = [
            "resource_id",
            "sttaus",
            "updated_at",
            "name",
            "name",
            "name",
        ];
        let said = refusal(&names, Overlap::Unset);
        let (said, columns) = said
            .split_once("; the columns are ")
            .expect("it names them");
        assert_eq!(
            said,
            "has the unknown columns `sttaus`, `updated_at`; the column `name` twice; no column `installation_id`: \
             did you mean `status` for `sttaus`? each column once; add it, for instance SELECT … AS installation_id"
        );
        assert!(columns.starts_with("installation_id, "), "{columns}");
        // A misspelt column is not missing besides.
        let said = refusal(&["resouce_id", "installation_id"], Overlap::Unset);
        let expected =
            "has the unknown column `resouce_id`: did you mean `resource_id`? the columns are";
        assert!(said.starts_with(expected), "{said}");
        let said = refusal(&["name"], Overlap::Unset);
        let expected =
            "has no column `installation_id`; no column `resource_id`: add them, for instance";
        assert!(said.starts_with(expected), "{said}");
        let many: Vec<String> = (0..20).map(|n| format!("column_of_theirs_{n}")).collect();
        let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
        many.extend(["installation_id", "resource_id"]);
        let said = refusal(&many, Overlap::Unset);
        assert!(
            said.contains("`column_of_theirs_7` and 12 more: the columns are"),
            "{said}"
        );
    }

    #[test]
    fn the_overlap_must_fit_the_cursor() {
        let second = Overlap::Duration(Duration::from_secs(1));
        let reach = |cursor: &str, overlap| {
            let layout = layout(&["installation_id", "resource_id", cursor], overlap);
            layout.map(|layout| layout.cursor.expect("there is one").reach)
        };
        let cases = [
            (
                "cursor TIMESTAMP",
                Overlap::Unset,
                Reach::Micros(30_000_000),
            ),
            ("cursor TIMESTAMP", second, Reach::Micros(1_000_000)),
            ("cursor BIGINT", Overlap::Unset, Reach::None),
            ("cursor BIGINT", Overlap::Units(7), Reach::Units(7)),
            ("cursor TEXT", Overlap::Unset, Reach::None),
            (
                "cursor TEXT",
                Overlap::Duration(Duration::ZERO),
                Reach::None,
            ),
        ];
        for (cursor, overlap, expected) in cases {
            assert_eq!(reach(cursor, overlap).expect(cursor), expected);
        }
        for (cursor, overlap) in [
            ("cursor BIGINT", second),
            ("cursor BIGINT", Overlap::Units(-1)),
            ("cursor TIMESTAMP", Overlap::Units(7)),
            ("cursor TEXT", second),
            ("cursor TEXT", Overlap::Units(7)),
            ("cursor DOUBLE", Overlap::Unset),
        ] {
            assert!(reach(cursor, overlap).is_err(), "{cursor} {overlap:?}");
        }
    }
}
