//! The report of `check`: one line per part, the verdict, the next command.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::super::exit::Exit;
use super::super::fault::Failure;
use super::super::out::{BAD, DIM, GOOD, HEAD, Look, WARN, styled};
use super::super::text::{counted, visible};
use crate::config::{ConfigError, Loaded, Origin, Problem, Severity};
use crate::source::Description;

/// The version of the JSON shape.
const SCHEMA: u32 = 1;

/// Everything that was found.
#[derive(Debug)]
pub(super) struct Report {
    path: Option<String>,
    keys: (usize, usize),
    offline: bool,
    lines: Vec<Line>,
    exit: Exit,
    /// The source, if it could be described.
    pub(super) source: Option<Description>,
    /// How many installations were asked, and how many accepted their token.
    pub(super) sampled: (usize, usize),
    /// Whether there is a state already.
    has_state: bool,
}

/// One part, one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    level: Level,
    /// The part, or the code of a warning or an error.
    topic: String,
    text: String,
    causes: Vec<String>,
    help: Vec<String>,
    at: Option<String>,
}

/// How it is with a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Ok,
    Warning,
    Error,
    Skipped,
}

impl Level {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warn",
            Self::Error => "error",
            Self::Skipped => "skip",
        }
    }
}

impl Line {
    pub(super) fn new(level: Level, topic: impl Into<String>, text: impl Into<String>) -> Self {
        let (topic, text) = (topic.into(), text.into());
        Self {
            level,
            topic,
            text,
            causes: Vec::new(),
            help: Vec::new(),
            at: None,
        }
    }

    pub(super) fn warning(code: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Warning, code, text)
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    fn of_problem(problem: &Problem) -> Self {
        let Problem {
            code,
            message,
            origin,
            help,
            ..
        } = problem;
        Self {
            help: help.lines().map(str::to_owned).collect(),
            at: (*origin != Origin::Nowhere).then(|| origin.to_string()),
            ..Self::warning(code, message.clone())
        }
    }
}

impl Report {
    pub(super) fn new(loaded: &Loaded, offline: bool) -> Self {
        let mut report = Self {
            path: loaded.path.as_ref().map(|path| path.display().to_string()),
            keys: (loaded.keys_total, loaded.keys_from_file),
            offline,
            lines: vec![Line::new(Level::Ok, "config", super::config_line(loaded))],
            exit: Exit::Done,
            source: None,
            sampled: (0, 0),
            has_state: super::state_exists(&loaded.config),
        };
        report
            .lines
            .extend(loaded.warnings.iter().map(Line::of_problem));
        report
    }

    pub(super) fn add(&mut self, line: Line) {
        self.lines.push(line);
    }

    /// Adds a part that failed; a configuration that has to change outweighs what may pass by itself.
    pub(super) fn failed(&mut self, part: &'static str, failure: &Failure) {
        let Failure {
            code,
            message,
            causes,
            help,
            exit,
        } = failure;
        if self.exit != Exit::Configuration {
            self.exit = *exit;
        }
        self.lines.push(Line {
            causes: causes.clone(),
            help: help.clone(),
            ..Line::new(Level::Error, *code, format!("{part}: {message}"))
        });
    }

    pub(super) const fn exit(&self) -> Exit {
        self.exit
    }

    fn number(&self, level: Level) -> u64 {
        self.lines.iter().filter(|line| line.level == level).count() as u64
    }

    pub(super) fn render(&self, look: Look) -> String {
        let mut text = String::new();
        let path = self.path.as_deref().unwrap_or("no configuration file");
        let _ = writeln!(
            text,
            "{}   {}",
            styled(
                HEAD,
                format_args!("reconciled {}", env!("CARGO_PKG_VERSION"))
            ),
            visible(path)
        );
        // Warnings and errors after what is well: the last lines are those that are read.
        for levels in [
            &[Level::Ok, Level::Skipped][..],
            &[Level::Warning],
            &[Level::Error],
        ] {
            for line in self
                .lines
                .iter()
                .filter(|line| levels.contains(&line.level))
            {
                write_line(&mut text, line, look);
            }
        }
        let _ = writeln!(text, "{}", self.verdict());
        let _ = writeln!(text, "Next: {}", self.next());
        text
    }

    fn verdict(&self) -> String {
        let (errors, warnings) = (self.number(Level::Error), self.number(Level::Warning));
        let warned = if warnings > 0 {
            format!(", {}", counted(warnings, "warning"))
        } else {
            String::new()
        };
        let sent = if self.offline {
            "Connections were not tried."
        } else {
            "Nothing was sent."
        };
        match errors {
            0 if self.offline => format!(
                "{}{warned}. {sent}",
                styled(GOOD, "The configuration is valid")
            ),
            0 => format!("{}{warned}. {sent}", styled(GOOD, "Ready")),
            _ => format!(
                "{}: {}{warned}. {sent}",
                styled(BAD, "Not ready"),
                counted(errors, "error")
            ),
        }
    }

    fn next(&self) -> &'static str {
        match (self.number(Level::Error), self.offline, self.has_state) {
            (1.., ..) => "follow the help above, then reconciled check",
            (0, true, _) => "reconciled check",
            (0, false, false) => {
                "reconciled baseline compare if Vercel knows these resources, then reconciled plan"
            }
            (0, false, true) => "reconciled run",
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let Self {
            path,
            keys,
            offline,
            lines,
            exit,
            source,
            sampled,
            has_state,
        } = self;
        json!({
            "schema": SCHEMA,
            "ready": *exit == Exit::Done,
            "offline": offline,
            "has_state": has_state,
            "config": { "path": path, "keys": keys.0, "keys_from_file": keys.1 },
            "checks": lines.iter().map(line_json).collect::<Vec<_>>(),
            "source": source.as_ref().map(source_json),
            "installations_asked": sampled.0,
            "installations_accepted": sampled.1,
            "next": self.next(),
        })
    }
}

fn write_line(text: &mut String, line: &Line, look: Look) {
    let Line {
        level,
        topic,
        text: said,
        causes,
        help,
        at,
    } = line;
    let style = match level {
        Level::Ok => GOOD,
        Level::Warning => WARN,
        Level::Error => BAD,
        Level::Skipped => DIM,
    };
    let _ = writeln!(
        text,
        "{}  {topic:<7}  {said}",
        styled(style, format_args!("{:<5}", level.word()))
    );
    for cause in causes {
        let _ = writeln!(text, "       cause    {cause}");
    }
    let mut at = at.as_deref();
    for help in help {
        let help = format!("       help     {help}");
        let _ = match at.take() {
            Some(at) if look.terminal => writeln!(
                text,
                "{}{}",
                super::super::text::pad(&help, 58),
                styled(DIM, at)
            ),
            Some(at) => writeln!(text, "{help}\t{at}"),
            None => writeln!(text, "{help}"),
        };
    }
}

fn line_json(line: &Line) -> Value {
    let Line {
        level,
        topic,
        text,
        causes,
        help,
        at,
    } = line;
    let has_code = matches!(level, Level::Warning | Level::Error);
    json!({
        "level": level.word(),
        "part": (!has_code).then_some(topic),
        "code": has_code.then_some(topic),
        "text": text,
        "causes": causes,
        "help": help,
        "at": at,
    })
}

fn source_json(description: &Description) -> Value {
    let guarantee = match description.guarantee {
        crate::source::Guarantee::Exact => "exact",
        crate::source::Guarantee::BoundedByOverlap => "bounded",
        crate::source::Guarantee::SweepOnly => "sweep_only",
    };
    json!({
        "target": description.target,
        "server": description.server,
        "role": description.role,
        "can_write": description.can_write,
        "columns": description.columns.iter().map(|(name, kind)| json!({"name": name, "type": kind})).collect::<Vec<_>>(),
        "manages": description.shape.managed.iter().map(|field| field.wire_name()).collect::<Vec<_>>(),
        "cursor_type": description.cursor_type,
        "feed": description.feed,
        "rows": description.rows,
        "poll_indexed": description.is_poll_indexed,
        "sweep_indexed": description.is_sweep_indexed,
        "token_indexed": description.is_token_indexed,
        "guarantee": guarantee,
        "improvement": description.improvement,
        "latency_ms": description.latency_ms,
    })
}

/// A configuration that cannot be used, for machines.
pub(super) fn problems(error: &ConfigError) -> Value {
    let problem = |problem: &Problem| {
        let Problem {
            code,
            severity,
            key,
            message,
            origin,
            help,
        } = problem;
        json!({
            "level": match severity { Severity::Error => "error", Severity::Warning => "warn" },
            "part": Value::Null,
            "code": code,
            "key": key,
            "text": message,
            "causes": [],
            "help": help.lines().collect::<Vec<_>>(),
            "at": (*origin != Origin::Nowhere).then(|| origin.to_string()),
        })
    };
    json!({
        "schema": SCHEMA,
        "ready": false,
        "checks": error.problems.iter().map(problem).collect::<Vec<_>>(),
        "next": "follow the help above, then reconciled check",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    const LOOK: Look = Look {
        terminal: true,
        width: 80,
        now: Timestamp::EPOCH,
    };

    fn report() -> Report {
        Report {
            path: Some("/etc/reconciled/reconciled.toml".to_owned()),
            keys: (31, 4),
            offline: false,
            lines: vec![
                Line::new(Level::Ok, "config", "31 keys, 4 from this file"),
                Line {
                    at: Some("reconciled.toml:31".to_owned()),
                    ..Line::warning(
                        "W021",
                        "[retry] lease 45s leaves 15s beyond request_timeout 30s",
                    )
                    .help("lease = \"60s\"")
                },
                Line::new(
                    Level::Ok,
                    "state",
                    "sqlite:///state.db, created by the first run",
                ),
            ],
            exit: Exit::Done,
            source: None,
            sampled: (0, 0),
            has_state: false,
        }
    }

    fn shown(report: &Report) -> String {
        anstream::adapter::strip_str(&report.render(LOOK)).to_string()
    }

    #[test]
    fn a_good_report_ends_with_the_verdict_and_the_next_command() {
        insta::assert_snapshot!(shown(&report()), @r#"
        reconciled 0.1.0   /etc/reconciled/reconciled.toml
        ok     config   31 keys, 4 from this file
        ok     state    sqlite:///state.db, created by the first run
        warn   W021     [retry] lease 45s leaves 15s beyond request_timeout 30s
               help     lease = "60s"                             reconciled.toml:31
        Ready, 1 warning. Nothing was sent.
        Next: reconciled baseline compare if Vercel knows these resources, then reconciled plan
        "#);
    }

    #[test]
    fn a_pipe_gets_the_place_behind_a_tab() {
        let pipe = Look {
            terminal: false,
            ..LOOK
        };
        let text = anstream::adapter::strip_str(&report().render(pipe)).to_string();
        let help = "       help     lease = \"60s\"\treconciled.toml:31\n";
        assert!(text.contains(help), "{text}");
    }

    #[test]
    fn a_fault_of_the_configuration_outweighs_an_outage() {
        let mut report = report();
        report.failed(
            "query",
            &Failure::new("R005", "has a column `statu`")
                .help("did you mean `status`?")
                .exit(Exit::Configuration),
        );
        report.failed("vercel", &Failure::new("R022", "cannot be reached"));
        assert_eq!(report.exit(), Exit::Configuration);
        insta::assert_snapshot!(shown(&report), @r#"
        reconciled 0.1.0   /etc/reconciled/reconciled.toml
        ok     config   31 keys, 4 from this file
        ok     state    sqlite:///state.db, created by the first run
        warn   W021     [retry] lease 45s leaves 15s beyond request_timeout 30s
               help     lease = "60s"                             reconciled.toml:31
        error  R005     query: has a column `statu`
               help     did you mean `status`?
        error  R022     vercel: cannot be reached
        Not ready: 2 errors, 1 warning. Nothing was sent.
        Next: follow the help above, then reconciled check
        "#);
        let json = report.to_json();
        assert_eq!(
            (&json["ready"], &json["schema"]),
            (&Value::Bool(false), &json!(1))
        );
        assert_eq!(json["checks"][0]["help"], json!([]));
    }
}
