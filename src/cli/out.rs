//! Where answers go: stdout, for a person at a terminal or for a pipe.
//!
//! Printing never fails for the caller: a closed pipe swallows the rest quietly, any other failure is kept and reported at the
//! end. Colour goes to terminals only; a pipe gets tabs, exact times and nothing cut.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::beside::shell;
use super::text::{cut, pad};
use crate::model::Timestamp;

/// Everything is well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// Worth a look.
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default();
/// A person should act.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// The line to read first.
pub(crate) const HEAD: Style = Style::new().bold();
/// What can be skipped.
pub(crate) const DIM: Style = Style::new().dimmed();

/// Text in a style; written to anything, it carries the style's codes, which [`Out`] removes where they do not belong.
pub(crate) fn styled(style: Style, text: impl fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// What decides how an answer looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// A person reads it at once: relative times, aligned columns, long values cut.
    pub(crate) terminal: bool,
    /// Columns of the terminal.
    pub(crate) width: usize,
    /// The time to which relative times relate.
    pub(crate) now: Timestamp,
}

impl Look {
    /// A value in the room that a terminal leaves after `used` columns; whole in a pipe.
    pub(crate) fn fit(&self, text: &str, used: usize) -> String {
        /// However narrow the terminal, this much of a value is shown.
        const COLUMNS_MIN: usize = 20;
        if self.terminal {
            cut(text, self.width.saturating_sub(used).max(COLUMNS_MIN))
        } else {
            text.to_owned()
        }
    }

    /// How long ago for a person, the exact time for a pipe.
    pub(crate) fn when(&self, at: Timestamp) -> String {
        if self.terminal {
            super::text::ago(at, self.now)
        } else {
            at.to_string()
        }
    }
}

/// Stdout.
pub(crate) struct Out {
    stream: AutoStream<io::Stdout>,
    terminal: bool,
    advice: Advice,
    failure: Option<io::Error>,
}

impl Out {
    /// Stdout, in colour if it is a terminal that can show it and nobody refused it.
    pub(crate) fn stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        Self {
            stream: AutoStream::new(io::stdout(), colour(terminal)),
            terminal,
            advice: Advice::default(),
            failure: None,
        }
    }

    /// The same, in which suggested commands are completed.
    pub(crate) fn with_advice(self, advice: Advice) -> Self {
        Self { advice, ..self }
    }

    /// How suggested commands are completed here.
    pub(crate) const fn advice(&self) -> &Advice {
        &self.advice
    }

    /// How answers look here.
    pub(crate) fn look(&self, now: Timestamp) -> Look {
        /// Where a terminal does not say how wide it is.
        const WIDTH_DEFAULT: usize = 100;
        let width = rustix::termios::tcgetwinsize(io::stdout())
            .map(|size| usize::from(size.ws_col))
            .ok()
            .filter(|width| *width > 0);
        Look {
            terminal: self.terminal,
            width: width.unwrap_or(WIDTH_DEFAULT),
            now,
        }
    }

    /// Prints text as it is, but for suggested commands, which are completed.
    pub(crate) fn print(&mut self, text: &str) {
        if self.failure.is_none() {
            let text = self.advice.complete(text);
            let written = self
                .stream
                .write_all(text.as_bytes())
                .and_then(|()| self.stream.flush());
            self.failure = written.err();
        }
    }

    /// Prints a line.
    pub(crate) fn line(&mut self, text: impl fmt::Display) {
        self.print(&format!("{text}\n"));
    }

    /// Prints an answer for machines: one JSON object.
    pub(crate) fn json(&mut self, mut answer: Value) {
        self.complete(&mut answer);
        self.write_json(&answer);
    }

    /// Prints an answer for machines that has a list of this name besides. The list may be long: its items are made one at a time.
    pub(crate) fn json_with(
        &mut self,
        mut answer: Value,
        name: &str,
        items: impl Iterator<Item = Value>,
    ) {
        self.complete(&mut answer);
        let answer = WithList {
            answer: answer.as_object().expect("answers are objects"),
            name,
            items: RefCell::new(items),
        };
        self.write_json(&answer);
    }

    fn complete(&self, answer: &mut Value) {
        if let Some(Value::String(next)) = answer.get_mut("next") {
            *next = self.advice.complete_commands(next);
        }
    }

    fn write_json(&mut self, answer: &impl Serialize) {
        if self.failure.is_some() {
            return;
        }
        let mut stream = BufWriter::new(&mut self.stream);
        let written = serde_json::to_writer_pretty(&mut stream, answer);
        let ended = written
            .map_err(io::Error::from)
            .and_then(|()| stream.write_all(b"\n"))
            .and_then(|()| stream.flush());
        self.failure = ended.err();
    }

    /// Whether nobody reads any more.
    pub(crate) const fn is_closed(&self) -> bool {
        self.failure.is_some()
    }

    /// Why something could not be printed, unless the reader simply had enough.
    pub(crate) fn failure(self) -> Option<io::Error> {
        self.failure
            .filter(|failure| failure.kind() != io::ErrorKind::BrokenPipe)
    }
}

/// An object with a list besides, in its place among the other names.
struct WithList<'a, I> {
    answer: &'a Map<String, Value>,
    name: &'a str,
    items: RefCell<I>,
}

impl<I: Iterator<Item = Value>> Serialize for WithList<'_, I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let is_before = |entry: &(&String, &Value)| entry.0.as_str() < self.name;
        for (name, value) in self.answer.iter().filter(is_before) {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry(self.name, &Items(&self.items))?;
        for (name, value) in self.answer.iter().filter(|entry| !is_before(entry)) {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Items that are made while they are written.
struct Items<'a, I>(&'a RefCell<I>);

impl<I: Iterator<Item = Value>> Serialize for Items<'_, I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&mut *self.0.borrow_mut())
    }
}

/// Completes suggested commands, so that they mean the same daemon when they are pasted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Advice {
    /// What stands between the program's name and a command's: the options of this run that say which daemon is meant.
    options: String,
    /// The names of commands that read the configuration.
    commands: Vec<String>,
}

impl Advice {
    /// Lines in which commands are suggested begin so, or have it before the command.
    const MARKS: [&str; 4] = ["Next: ", "   = help: ", "       help     ", "all of it: "];

    /// With the configuration that was named, if one was.
    pub(crate) fn new(config: Option<&Path>, commands: impl IntoIterator<Item = String>) -> Self {
        let Some(config) = config else {
            return Self::default();
        };
        let options = format!(" --config {}", shell(&config.display().to_string()));
        Self {
            options,
            commands: commands.into_iter().collect(),
        }
    }

    /// A text for people with the commands in its last word of advice, or in its help, completed.
    pub(crate) fn complete(&self, text: &str) -> String {
        if self.options.is_empty() {
            return text.to_owned();
        }
        let is_advice = |line: &str| {
            let line = line.trim_start_matches(' ');
            Self::MARKS
                .iter()
                .any(|mark| line.starts_with(mark.trim_start_matches(' ')))
        };
        text.split_inclusive('\n')
            .map(|line| match is_advice(line) {
                true => self.complete_commands(line),
                false => line.to_owned(),
            })
            .collect()
    }

    /// A text that is nothing but advice.
    pub(crate) fn complete_commands(&self, text: &str) -> String {
        const PROGRAM: &str = "reconciled";
        let mut completed = String::new();
        let mut rest = text;
        while let Some(found) = rest.find(PROGRAM) {
            let (before, after) = rest.split_at(found + PROGRAM.len());
            completed.push_str(before);
            let word = after.strip_prefix(' ').and_then(|after| {
                let end = after.find(|c: char| !c.is_ascii_alphabetic());
                after.get(..end.unwrap_or(after.len()))
            });
            if word.is_some_and(|word| self.commands.iter().any(|command| command == word)) {
                completed.push_str(&self.options);
            }
            rest = after;
        }
        completed + rest
    }
}

/// Prints to stderr; nothing can be done if that fails.
pub(crate) fn complain(text: &str) {
    let mut stream = AutoStream::new(io::stderr(), colour(io::stderr().is_terminal()));
    let _ = stream
        .write_all(text.as_bytes())
        .and_then(|()| stream.flush());
}

/// Colour is for a terminal that can show it and a person who has not refused it (no-color.org).
fn colour(terminal: bool) -> ColorChoice {
    let variable = |name| std::env::var_os(name).unwrap_or_default();
    let never = ColorChoice::global() == ColorChoice::Never;
    choice(terminal, never, &variable("NO_COLOR"), &variable("TERM"))
}

fn choice(terminal: bool, never: bool, no_color: &OsStr, term: &OsStr) -> ColorChoice {
    let refused = never || !no_color.is_empty() || term == "dumb";
    if terminal && !refused {
        ColorChoice::Always
    } else {
        ColorChoice::Never
    }
}

/// Rows of cells under headings: aligned at a terminal, tabs in a pipe.
#[derive(Debug)]
pub(crate) struct Table {
    /// Whether the first row is the headings.
    is_headed: bool,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self {
            is_headed: true,
            rows: vec![
                headings
                    .iter()
                    .map(|heading| (*heading).to_owned())
                    .collect(),
            ],
        }
    }

    /// Further rows of a table that began before, in a pipe, where they need not stand below each other.
    pub(crate) const fn further() -> Self {
        Self {
            is_headed: false,
            rows: Vec::new(),
        }
    }

    /// Adds a row of plain cells.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as text, a line per row.
    pub(crate) fn render(&self, look: Look) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| unicode_width::UnicodeWidthStr::width(cell.as_str()))
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let line = if look.terminal {
                let cells: Vec<String> = row
                    .iter()
                    .zip(&widths)
                    .map(|(cell, width)| pad(cell, *width))
                    .collect();
                cells.join("  ").trim_end().to_owned()
            } else {
                row.join("\t")
            };
            let is_heading = self.is_headed && index == 0;
            text.push_str(&if is_heading { styled(HEAD, line) } else { line });
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_suggested_command_names_the_configuration_that_was_named() {
        let commands = || ["run", "once", "plan", "outbox"].map(str::to_owned);
        let advice = Advice::new(Some(Path::new("my file.toml")), commands());
        let text = "reconciled plan\n  all of it: reconciled plan --held\nNext: systemctl restart reconciled, or reconciled run; \
                    reconciled running\n   = help: reconciled once begins\n";
        let completed = "reconciled plan\n  all of it: reconciled --config 'my file.toml' plan --held\nNext: systemctl restart \
                         reconciled, or reconciled --config 'my file.toml' run; reconciled running\n   = help: reconciled \
                         --config 'my file.toml' once begins\n";
        assert_eq!(advice.complete(text), completed);
        assert_eq!(
            advice.complete_commands("reconciled plan"),
            "reconciled --config 'my file.toml' plan"
        );
        assert_eq!(Advice::new(None, commands()).complete(text), text);
    }

    #[test]
    fn colour_is_for_a_terminal_that_can_and_a_person_who_has_not_refused() {
        for (terminal, never, no_color, term, expected) in [
            (true, false, "", "xterm", ColorChoice::Always),
            (true, false, "", "", ColorChoice::Always),
            (true, false, "", "dumb", ColorChoice::Never),
            (true, false, "1", "xterm", ColorChoice::Never),
            (true, true, "", "xterm", ColorChoice::Never),
            (false, false, "", "xterm", ColorChoice::Never),
        ] {
            let found = choice(terminal, never, no_color.as_ref(), term.as_ref());
            assert_eq!(found, expected, "{terminal} {never} {no_color} {term}");
        }
    }

    fn look(terminal: bool) -> Look {
        Look {
            terminal,
            width: 40,
            now: Timestamp::from_millis(10_000),
        }
    }

    #[test]
    fn a_table_is_aligned_for_people_and_tabbed_for_pipes() {
        let mut table = Table::new(&["ID", "STATE"]);
        table.row(vec!["icfg_7Hd".into(), "active".into()]);
        let plain = |look| anstream::adapter::strip_str(&table.render(look)).to_string();
        assert_eq!(plain(look(true)), "ID        STATE\nicfg_7Hd  active\n");
        assert_eq!(plain(look(false)), "ID\tSTATE\nicfg_7Hd\tactive\n");
    }

    #[test]
    fn a_list_stands_in_its_place_among_the_other_names() {
        for (answer, written) in [
            (json!({"a": 1, "z": [2]}), r#"{"a":1,"list":[0,1],"z":[2]}"#),
            (json!({}), r#"{"list":[0,1]}"#),
        ] {
            let answer = WithList {
                answer: answer.as_object().expect("an object"),
                name: "list",
                items: RefCell::new((0..2).map(Value::from)),
            };
            assert_eq!(serde_json::to_string(&answer).expect("JSON"), written);
        }
    }

    #[test]
    fn nothing_is_cut_and_no_time_is_relative_in_a_pipe() {
        let long = "x".repeat(100);
        assert_eq!(look(false).fit(&long, 4), long);
        assert_eq!(look(true).fit(&long, 4).chars().count(), 36);
        assert_eq!(look(true).when(Timestamp::from_millis(1_000)), "9 s ago");
        assert_eq!(
            look(false).when(Timestamp::from_millis(1_000)),
            "1970-01-01T00:00:01.000Z"
        );
    }
}
