//! What commands share: the configuration, the parts that are built from it, the answer's way out.

use std::ffi::OsString;

use super::fault::Fault;
use super::out::{Advice, Look, Out, complain};
use super::{Global, text};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, DatabaseScheme, LoadOptions, Loaded, LogConfig, LogFormat};
use crate::model::Timestamp;
use crate::telemetry::{self, LogHandle, Output, TelemetryError};

/// One run of a command.
pub(crate) struct Session {
    /// Where the answer goes.
    pub(crate) out: Out,
    global: Global,
}

impl Session {
    /// A session with these options.
    pub(crate) fn new(global: Global) -> Self {
        let advice = Advice::new(global.config.as_deref(), super::commands());
        Self {
            out: Out::stdout().with_advice(advice),
            global,
        }
    }

    /// The time now.
    pub(crate) fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    /// How answers look.
    pub(crate) fn look(&self) -> Look {
        self.out.look(self.now())
    }

    /// Loads the configuration, with every problem at once; connects nowhere.
    pub(crate) fn load(&self) -> Result<Loaded, Fault> {
        let Global {
            config,
            set,
            no_color: _,
        } = self.global.clone();
        Ok(Config::load(&LoadOptions::of_process(config, set))?)
    }

    /// Loads the configuration and says its warnings on stderr.
    pub(crate) fn load_with_warnings(&self) -> Result<Loaded, Fault> {
        let loaded = self.load()?;
        loaded
            .warnings
            .iter()
            .for_each(|warning| complain(&format!("{warning}\n")));
        Ok(loaded)
    }

    /// Sends the log of a command to stderr: warnings alone, unless `all` asks for what the configuration says.
    pub(crate) fn log_to_stderr(
        &self,
        config: &LogConfig,
        all: bool,
    ) -> Result<LogHandle, TelemetryError> {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        telemetry::init(&of_command(config, all, terminal), Output::Stderr)
    }
}

/// How a command logs: for a person where stderr is a terminal.
fn of_command(config: &LogConfig, all: bool, terminal: bool) -> LogConfig {
    LogConfig {
        format: if terminal {
            LogFormat::Pretty
        } else {
            config.format
        },
        filter: if all {
            config.filter.clone()
        } else {
            "warn".to_owned()
        },
        ..config.clone()
    }
}

/// Whether there is a state to look at; a state on a server is taken to be there.
pub(crate) fn state_exists(config: &Config) -> bool {
    match config.state.url.scheme() {
        DatabaseScheme::Sqlite => {
            config
                .state
                .url
                .sqlite_path()
                .is_some_and(|path| match path.metadata() {
                    // An empty file holds no state: whoever only looks must not make one of it.
                    Ok(found) => found.len() > 0 || !found.is_file(),
                    // One that this user may not look for may be there.
                    Err(error) => error.kind() != std::io::ErrorKind::NotFound,
                })
        }
        DatabaseScheme::Postgres | DatabaseScheme::MySql => true,
    }
}

/// A duration on the command line: `30s`, `5m`.
pub(crate) fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; a number with its unit: 30s, 5m, 1h"))
}

/// Progress of what takes long, on stderr: for a person at a terminal, and only once it takes long.
pub(crate) struct Progress {
    started_at: Timestamp,
    shown: bool,
    enabled: bool,
}

impl Progress {
    /// Nothing is shown yet.
    pub(crate) fn new(now: Timestamp) -> Self {
        let enabled = std::io::IsTerminal::is_terminal(&std::io::stderr());
        Self {
            started_at: now,
            shown: false,
            enabled,
        }
    }

    /// So many rows were read by now, and so many of them became what the word says.
    pub(crate) fn rows(&mut self, rows: u64, became: Option<(&str, u64)>, now: Timestamp) {
        let became = became.map(|(word, number)| format!(", {} {word}", text::count(number)));
        let became = became.unwrap_or_default();
        self.show(rows, &format!("rows read{became}"), now);
    }

    /// So many entries of all were dealt with by now, in the way that the word says.
    pub(crate) fn entries(&mut self, entries: u64, all: u64, word: &str, now: Timestamp) {
        let all = text::count(all);
        self.show(entries, &format!("of {all} entries {word}"), now);
    }

    fn show(&mut self, number: u64, what: &str, now: Timestamp) {
        if let Some(line) = self.line(number, what, now) {
            self.shown = true;
            complain(&line);
        }
    }

    fn line(&self, number: u64, what: &str, now: Timestamp) -> Option<String> {
        /// What takes less time needs no progress.
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);
        let elapsed = now.since(self.started_at);
        if !self.enabled || elapsed < PATIENCE {
            return None;
        }
        let rate = u128::from(number) * 1000 / elapsed.as_millis().max(1);
        let rate = text::count(u64::try_from(rate).unwrap_or(u64::MAX));
        let line = format!("{} {what}, {rate} a second", text::count(number));
        Some(format!("\r{line:<PROGRESS_COLUMNS$}"))
    }

    /// Removes the line.
    pub(crate) fn done(&self) {
        if self.shown {
            complain(&format!("\r{:PROGRESS_COLUMNS$}\r", ""));
        }
    }
}

/// A line of progress is padded to this, so that it covers the one before it.
const PROGRESS_COLUMNS: usize = 72;

/// Moves a repeatable global option that stands before the command behind it: the parser keeps only one of the two places.
pub(crate) fn merge_globals(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.into_iter();
    let mut kept: Vec<OsString> = arguments.next().into_iter().collect();
    let mut moved = Vec::new();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        if text == "--set" {
            moved.push(argument);
            moved.extend(arguments.next());
        } else if text.starts_with("--set=") {
            moved.push(argument);
        } else if text == "--config" {
            kept.push(argument);
            kept.extend(arguments.next());
        } else if text.starts_with('-') {
            kept.push(argument);
        } else {
            // The command. Without one the options would stand before nothing: then they stay where they were.
            kept.push(argument);
            kept.append(&mut moved);
            kept.extend(arguments);
            return kept;
        }
    }
    kept.splice(1..1, moved);
    kept
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_empty_file_is_no_state_and_one_that_may_not_be_looked_for_may_be_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state.db");
        let config = Config::from_toml(&format!(
            "[source]\nurl = \"sqlite:///provider.db\"\nquery = \"Q\"\ninstallations_query = \"I\"\n[state]\nurl = \"sqlite://{}\"\n",
            path.display()
        ))
        .expect("it is valid");
        assert!(!state_exists(&config), "there is none");
        for (text, exists) in [("", false), ("SQLite format 3", true)] {
            std::fs::write(&path, text).expect("ours");
            assert_eq!(state_exists(&config), exists, "{text:?}");
        }
    }

    #[test]
    fn a_command_logs_warnings_alone_unless_asked_and_for_a_person_at_a_terminal() {
        let config = LogConfig {
            format: LogFormat::Json,
            filter: "debug".to_owned(),
            summary_interval: None,
        };
        for (all, terminal, format, filter) in [
            (false, false, LogFormat::Json, "warn"),
            (false, true, LogFormat::Pretty, "warn"),
            (true, false, LogFormat::Json, "debug"),
            (true, true, LogFormat::Pretty, "debug"),
        ] {
            let expected = LogConfig {
                format,
                filter: filter.to_owned(),
                summary_interval: None,
            };
            assert_eq!(of_command(&config, all, terminal), expected);
        }
    }

    #[test]
    fn progress_is_for_a_terminal_and_only_once_it_takes_long() {
        let start = Timestamp::from_millis(1_000);
        let progress = |enabled| Progress {
            started_at: start,
            shown: false,
            enabled,
        };
        let line = |enabled, millis| {
            let now = start.plus(Duration::from_millis(millis));
            progress(enabled).line(12_000, "rows read, 11,990 adopted", now)
        };
        assert_eq!(line(false, 5_000), None, "nobody looks");
        assert_eq!(line(true, 999), None, "it is not worth a line");
        let shown = line(true, 4_000).expect("it takes long");
        assert_eq!(
            shown.trim_end(),
            "\r12,000 rows read, 11,990 adopted, 3,000 a second"
        );
        assert!(
            shown.len() > PROGRESS_COLUMNS,
            "it covers the one before it"
        );
    }
}
