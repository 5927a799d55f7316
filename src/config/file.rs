//! A TOML file as a layer.
//!
//! Every value keeps its line; unknown keys, sections that are none and syntax errors become problems. Text of the file is
//! never repeated, since a line may hold a password.

use std::path::Path;

use config::{Value as Merged, ValueKind};
use toml_edit::{Document, InlineTable, Item, Key as TomlKey, Table, Value};

use super::key::{self, Kind, Meaning};
use super::layer::Layer;
use super::problem::{Origin, Problem, code, plain, quoted};

/// What a TOML text holds.
#[derive(Default)]
pub(crate) struct Parsed {
    /// The known keys.
    pub(crate) layer: Layer,
    /// What is wrong with the others.
    pub(crate) problems: Vec<Problem>,
    /// Sections that could not be read, so that what is missing below them is no news.
    pub(crate) unreadable: Vec<String>,
    /// How many known keys it sets.
    pub(crate) keys: usize,
}

/// Reads a TOML text that came from `path`.
pub(crate) fn parse(text: &str, path: &Path) -> Parsed {
    let mut reader = FileReader {
        text,
        path,
        parsed: Parsed::default(),
    };
    match Document::parse(text) {
        Ok(document) => reader.section("", document.as_table()),
        Err(error) => reader.syntax(&error),
    }
    reader.parsed
}

struct FileReader<'a> {
    text: &'a str,
    path: &'a Path,
    parsed: Parsed,
}

impl FileReader<'_> {
    fn syntax(&mut self, error: &toml_edit::TomlError) {
        let offset = error.span().map_or(0, |span| span.start);
        let (line, column) = position(self.text, offset);
        let origin = Origin::File {
            path: self.path.to_owned(),
            line: Some(line),
            column: Some(column),
        };
        let message = format!("this is not TOML: {}", plain(error.message()));
        let help = "keys are `name = value` under a `[section]`, text in quotes";
        self.parsed
            .problems
            .push(Problem::error(code::SYNTAX, "", origin, message, help));
        self.parsed.unreadable.push(String::new());
    }

    fn section(&mut self, prefix: &str, table: &Table) {
        for (name, item) in table.iter() {
            let Some((toml_key, _)) = table.get_key_value(name) else {
                continue;
            };
            self.item(&joined(prefix, name), toml_key, item);
        }
    }

    fn inline(&mut self, prefix: &str, table: &InlineTable) {
        for (name, _) in table.iter() {
            let Some((toml_key, item)) = table.get_key_value(name) else {
                continue;
            };
            self.item(&joined(prefix, name), toml_key, item);
        }
    }

    fn item(&mut self, path: &str, toml_key: &TomlKey, item: &Item) {
        let origin = self.origin(toml_key, item);
        match key::meaning(path) {
            Meaning::Unknown => {
                let what = if item.is_table_like() {
                    "section"
                } else {
                    "key"
                };
                let message = format!("unknown {what} `{}`", path.escape_debug());
                self.parsed.problems.push(Problem::error(
                    code::UNKNOWN_KEY,
                    path,
                    origin,
                    message,
                    key::suggestion(path),
                ));
            }
            Meaning::Section => match item {
                Item::Table(table) => self.section(path, table),
                Item::Value(Value::InlineTable(table)) => self.inline(path, table),
                _ => self.not_a_section(path, origin),
            },
            Meaning::Key(_) | Meaning::Entry(_) => {
                self.parsed.keys += 1;
                match merged_value(item) {
                    Some(value) => self.parsed.layer.insert(path, value, origin),
                    None => self.unreadable_value(path, origin),
                }
            }
        }
    }

    fn not_a_section(&mut self, path: &str, origin: Origin) {
        let message = format!("`{path}` is a section, not a value");
        let help = format!("begin it once with [{path}] on a line of its own");
        self.parsed
            .problems
            .push(Problem::error(code::TYPE, path, origin, message, help));
        self.parsed.unreadable.push(path.to_owned());
    }

    fn unreadable_value(&mut self, path: &str, origin: Origin) {
        let accepted = match key::meaning(path) {
            Meaning::Key(key) => key.kind,
            _ => Kind::Text,
        };
        let message = format!("`{path}` has a value of the wrong type");
        self.parsed.problems.push(Problem::error(
            code::TYPE,
            path,
            origin,
            message,
            accepted.accepted(),
        ));
        self.parsed.unreadable.push(path.to_owned());
    }

    /// The line of a key, or of its section's header.
    fn origin(&self, toml_key: &TomlKey, item: &Item) -> Origin {
        let offset = toml_key
            .span()
            .or_else(|| item.span())
            .map(|span| span.start);
        let line = offset.map(|offset| position(self.text, offset).0);
        Origin::File {
            path: self.path.to_owned(),
            line,
            column: None,
        }
    }
}

/// The value as the merging knows it; none for dates, numbers too large, and mixtures.
fn merged_value(item: &Item) -> Option<ValueKind> {
    match item {
        Item::Value(value) => scalar(value),
        Item::Table(table) => {
            let entries = table
                .iter()
                .map(|(name, item)| Some((name.to_owned(), merged(merged_value(item)?))));
            entries.collect::<Option<_>>().map(ValueKind::Table)
        }
        Item::None | Item::ArrayOfTables(_) => None,
    }
}

fn scalar(value: &Value) -> Option<ValueKind> {
    match value {
        Value::String(text) => Some(ValueKind::String(text.value().clone())),
        Value::Integer(number) => Some(ValueKind::I64(*number.value())),
        Value::Float(number) => Some(ValueKind::Float(*number.value())),
        Value::Boolean(switch) => Some(ValueKind::Boolean(*switch.value())),
        Value::Datetime(_) => None,
        Value::Array(items) => {
            let items = items.iter().map(|item| scalar(item).map(merged));
            items.collect::<Option<_>>().map(ValueKind::Array)
        }
        Value::InlineTable(table) => {
            let entries = table
                .iter()
                .map(|(name, value)| Some((name.to_owned(), merged(scalar(value)?))));
            entries.collect::<Option<_>>().map(ValueKind::Table)
        }
    }
}

/// Reads one TOML value, for text from the environment or a flag.
pub(crate) fn parse_value(text: &str) -> Option<ValueKind> {
    scalar(&text.trim().parse::<Value>().ok()?)
}

fn merged(kind: ValueKind) -> Merged {
    Merged::new(None, kind)
}

fn joined(prefix: &str, name: &str) -> String {
    // A dot inside a quoted name must not be taken for a path.
    let name = if name.contains('.') {
        quoted(name)
    } else {
        name.to_owned()
    };
    if prefix.is_empty() {
        name
    } else {
        format!("{prefix}.{name}")
    }
}

/// Line and column, in characters, of a byte offset; both from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> String {
        let paragraphs = parse(text, Path::new("r.toml"))
            .problems
            .into_iter()
            .map(|problem| problem.to_string());
        paragraphs.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn unknown_keys_and_sections_are_named_with_their_lines() {
        assert_eq!(
            report(
                "[schedule]\npol = \"x\"\n\n[shedule]\npoll = 1\n\n[vercel.oauth]\nform.x = \"1\"\nclient_idd = \"x\"\n"
            ),
            "error[C003]: unknown key `schedule.pol`\n  --> r.toml:2\n   = help: did you mean `schedule.poll`?\n\n\
             error[C003]: unknown section `shedule`\n  --> r.toml:4\n   = help: did you mean `schedule`?\n\n\
             error[C003]: unknown key `vercel.oauth.client_idd`\n  --> r.toml:9\n   = help: did you mean `vercel.oauth.client_id`?\n"
        );
    }

    #[test]
    fn a_value_of_the_wrong_type_is_told_what_its_key_accepts() {
        for (key, accepted) in [
            ("schedule.poll", "text in quotes"),
            ("source.max_connections", "a whole number, without quotes"),
        ] {
            let (section, name) = key.split_once('.').expect("both");
            let text = report(&format!("[{section}]\n{name} = 2026-05-04\n"));
            assert_eq!(
                text,
                format!(
                    "error[C005]: `{key}` has a value of the wrong type\n  --> r.toml:2\n   = help: {accepted}\n"
                )
            );
        }
    }

    #[test]
    fn syntax_error_has_line_and_column_and_no_text_of_the_file() {
        let text = report("[source]\nurl = \"postgres://u:hunter2@db\n");
        assert!(
            text.starts_with("error[C002]: this is not TOML: "),
            "{text}"
        );
        assert!(text.contains("\n  --> r.toml:2:"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn value_in_place_of_a_section_is_one_problem() {
        let parsed = parse(
            "source = \"postgres://u:hunter2@db\"\n",
            Path::new("r.toml"),
        );
        assert_eq!(parsed.unreadable, ["source"]);
        assert_eq!(parsed.problems.len(), 1);
        assert_eq!(
            parsed.problems[0].message,
            "`source` is a section, not a value"
        );
    }

    #[test]
    fn sections_may_be_written_inline_or_dotted() {
        for text in [
            "schedule = { poll = \"x\" }",
            "schedule.poll = \"x\"",
            "[schedule]\npoll = \"x\"",
        ] {
            let parsed = parse(text, Path::new("r.toml"));
            assert!(parsed.problems.is_empty(), "{text}");
            assert_eq!(parsed.keys, 1, "{text}");
            assert_eq!(
                format!("{:?}", parsed.layer),
                r#"{"schedule.poll"}"#,
                "{text}"
            );
        }
    }

    #[test]
    fn date_and_nested_sections_are_of_the_wrong_type() {
        assert_eq!(
            report("[log]\nfilter = 2026-01-01\n[[http]]\nlisten = \"\"\n"),
            "error[C005]: `log.filter` has a value of the wrong type\n  --> r.toml:2\n   = help: text in quotes\n\n\
             error[C005]: `http` is a section, not a value\n  --> r.toml:3\n   = help: begin it once with [http] on a line of its own\n"
        );
    }

    #[test]
    fn position_counts_lines_and_characters_from_one() {
        assert_eq!(position("ab\nçd", 0), (1, 1));
        assert_eq!(position("ab\nçd", 5), (2, 2));
        assert_eq!(position("ab", 99), (1, 3));
    }
}
