//! What is wrong with a configuration, said in full.
//!
//! A problem has a stable code (explained in `docs/errors.md`), the key, where its value came from, and the cure. Reports
//! list every problem at once and never repeat a value that may be secret.

use std::fmt;
use std::path::PathBuf;

/// The configuration cannot be used: every problem found, errors and warnings alike.
///
/// Its `Display` is the whole report, ready for a person; the process exits with 78 after it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", render(.problems))]
pub struct ConfigError {
    /// All problems, in the order of the file, then the environment, then flags.
    pub problems: Vec<Problem>,
}

/// One problem with one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Stable code, one of [`code::ALL`].
    pub code: &'static str,
    /// Whether the configuration can be used in spite of it.
    pub severity: Severity,
    /// The dotted key, where the problem belongs to one.
    pub key: Option<String>,
    /// What is wrong, without a cure and without secrets.
    pub message: String,
    /// Where the value came from.
    pub origin: Origin,
    /// What to do; one `help:` line for each line of it.
    pub help: String,
}

/// Whether a configuration can be used in spite of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can, with the risk that the message names.
    Warning,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default.
    Default,
    /// A configuration file.
    File {
        /// Path as it was given.
        path: PathBuf,
        /// Line, from 1; none when the whole file is meant.
        line: Option<usize>,
        /// Column in characters, from 1; only where the line alone would not do.
        column: Option<usize>,
    },
    /// An environment variable; the value only when it cannot be secret.
    Environment {
        /// The variable's name.
        name: String,
        /// Its value, escaped and shortened.
        value: Option<String>,
    },
    /// A `key=value` from the command line; the value only when it cannot be secret.
    Flag {
        /// The dotted key.
        key: String,
        /// Its value, escaped and shortened.
        value: Option<String>,
    },
    /// Nowhere: the value is missing and there is no file to add it to.
    Nowhere,
}

impl Problem {
    /// A problem that makes the configuration unusable.
    pub fn error(
        code: &'static str,
        key: &str,
        origin: Origin,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            code,
            severity: Severity::Error,
            key: (!key.is_empty()).then(|| key.to_owned()),
            message: message.into(),
            origin,
            help: help.into(),
        }
    }

    /// A risk that the configuration can be used with.
    pub fn warning(
        code: &'static str,
        key: &str,
        origin: Origin,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, key, origin, message, help)
        }
    }
}

impl fmt::Display for Problem {
    /// One paragraph of the report, ending in a newline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        writeln!(f, "{severity}[{}]: {}", self.code, self.message)?;
        if self.origin != Origin::Nowhere {
            writeln!(f, "  --> {}", self.origin)?;
        }
        for line in self.help.lines() {
            writeln!(f, "   = help: {line}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("built-in default"),
            Self::Nowhere => f.write_str("not set"),
            Self::File { path, line, column } => {
                f.write_str(&plain(&path.to_string_lossy()))?;
                line.iter()
                    .chain(column)
                    .try_for_each(|number| write!(f, ":{number}"))
            }
            Self::Environment { name, value } => {
                f.write_str(name)?;
                value.iter().try_for_each(|value| write!(f, "={value}"))
            }
            Self::Flag { key, value } => {
                write!(f, "command line: {key}")?;
                value.iter().try_for_each(|value| write!(f, "={value}"))
            }
        }
    }
}

/// Renders a report: a paragraph per problem, then how many there are.
pub fn render(problems: &[Problem]) -> String {
    let mut report = String::new();
    for problem in problems {
        report.push_str(&problem.to_string());
        report.push('\n');
    }
    let count = |severity| {
        problems
            .iter()
            .filter(|problem| problem.severity == severity)
            .count()
    };
    let errors = count(Severity::Error);
    let warnings = count(Severity::Warning);
    let counts = [(errors, "error"), (warnings, "warning")];
    let total: Vec<String> = counts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, noun)| counted(count, noun))
        .collect();
    report.push_str(&total.join(", "));
    report.push('.');
    if errors > 0 {
        report.push_str(" Connections were not tried.");
    }
    report
}

/// A value in quotes for a message: control characters escaped, long ones shortened.
pub(crate) fn quoted(value: &str) -> String {
    format!("\"{}\"", shortened(value).escape_debug())
}

/// A value without quotes for an origin: control characters escaped, long ones shortened.
pub(crate) fn plain(value: &str) -> String {
    let mut text = String::new();
    for character in shortened(value).chars() {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text
}

/// At most this many characters of a value are repeated.
const SHOWN_MAX: usize = 80;

fn shortened(value: &str) -> String {
    if value.chars().count() <= SHOWN_MAX {
        return value.to_owned();
    }
    let mut text: String = value.chars().take(SHOWN_MAX).collect();
    text.push('…');
    text
}

fn counted(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// The codes, each explained in `docs/errors.md`.
pub mod code {
    /// The configuration file cannot be read.
    pub const FILE: &str = "C001";
    /// The file is not TOML.
    pub const SYNTAX: &str = "C002";
    /// A key, section or variable that does not exist.
    pub const UNKNOWN_KEY: &str = "C003";
    /// A required key has no value.
    pub const MISSING: &str = "C004";
    /// A value of the wrong type.
    pub const TYPE: &str = "C005";
    /// A setting was given both directly and as a file.
    pub const BOTH: &str = "C006";
    /// A flag or variable that cannot be read at all.
    pub const MALFORMED: &str = "C007";
    /// Text that is no duration.
    pub const DURATION: &str = "C010";
    /// A number or duration out of range.
    pub const RANGE: &str = "C011";
    /// A word that is not one of those accepted.
    pub const CHOICE: &str = "C012";
    /// Text that is no usable URL.
    pub const URL: &str = "C013";
    /// Text that is no cron expression.
    pub const CRON: &str = "C014";
    /// A field name that does not exist.
    pub const FIELD: &str = "C015";
    /// Text that is no address with a port.
    pub const ADDRESS: &str = "C016";
    /// Text that is no log filter.
    pub const FILTER: &str = "C017";
    /// Text that names no table or channel.
    pub const NAME: &str = "C018";
    /// Values that contradict each other.
    pub const CONFLICT: &str = "C019";
    /// A secret file that everyone can read.
    pub const SECRET_MODE: &str = "C020";
    /// A secret file that cannot be used.
    pub const SECRET_FILE: &str = "C021";
    /// A file of certificate authorities that cannot be used.
    pub const CA_FILE: &str = "C022";
    /// A form value with an unknown placeholder.
    pub const TEMPLATE: &str = "C023";
    /// A lease with little room beyond the request timeout.
    pub const LEASE_ROOM: &str = "W021";
    /// A password in a configuration file that everyone can read.
    pub const PASSWORD_MODE: &str = "W022";
    /// A variable that looks like a setting but is not read.
    pub const VARIABLE: &str = "W023";
    /// Nothing looks for changes.
    pub const NO_SCHEDULE: &str = "W024";
    /// A state database that does not outlive the process.
    pub const MEMORY_STATE: &str = "W025";
    /// A password on the command line.
    pub const PASSWORD_IN_SIGHT: &str = "W026";

    /// Every code, in order.
    pub const ALL: &[&str] = &[
        FILE,
        SYNTAX,
        UNKNOWN_KEY,
        MISSING,
        TYPE,
        BOTH,
        MALFORMED,
        DURATION,
        RANGE,
        CHOICE,
        URL,
        CRON,
        FIELD,
        ADDRESS,
        FILTER,
        NAME,
        CONFLICT,
        SECRET_MODE,
        SECRET_FILE,
        CA_FILE,
        TEMPLATE,
        LEASE_ROOM,
        PASSWORD_MODE,
        VARIABLE,
        NO_SCHEDULE,
        MEMORY_STATE,
        PASSWORD_IN_SIGHT,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_has_a_paragraph_per_problem_and_a_count() {
        let origin = |line| Origin::File {
            path: "/etc/reconciled/reconciled.toml".into(),
            line: Some(line),
            column: None,
        };
        let problems = vec![
            Problem::error(
                code::UNKNOWN_KEY,
                "schedule.pol",
                origin(12),
                "unknown key `schedule.pol`",
                "did you mean `schedule.poll`?",
            ),
            Problem::warning(
                code::LEASE_ROOM,
                "retry.lease",
                origin(31),
                "[retry] lease 45s leaves 15s",
                "lease = \"60s\"",
            ),
        ];
        assert_eq!(
            render(&problems),
            r#"error[C003]: unknown key `schedule.pol`
  --> /etc/reconciled/reconciled.toml:12
   = help: did you mean `schedule.poll`?

warning[W021]: [retry] lease 45s leaves 15s
  --> /etc/reconciled/reconciled.toml:31
   = help: lease = "60s"

1 error, 1 warning. Connections were not tried."#
        );
    }

    #[test]
    fn values_in_reports_cannot_forge_lines_or_flood_them() {
        assert_eq!(quoted("a\nb\u{1b}[31m\""), r#""a\nb\u{1b}[31m\"""#);
        assert_eq!(plain("a\nb"), r"a\nb");
        assert_eq!(quoted(&"x".repeat(500)).chars().count(), SHOWN_MAX + 3);
    }

    #[test]
    fn every_code_is_explained_once() {
        let page = include_str!("../../docs/errors.md");
        for code in code::ALL {
            let headings = page
                .lines()
                .filter(|line| line.starts_with(&format!("### {code} ")))
                .count();
            assert_eq!(headings, 1, "{code} in docs/errors.md");
        }
    }
}
