//! Typed reading of merged layers.
//!
//! Each method reads one key, or records a problem and returns nothing; so one pass over all keys finds all problems. A
//! sensitive value never enters a problem.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use config::ValueKind;
use secrecy::{ExposeSecret, SecretString};

use super::key::{self, Kind, Meaning};
use super::layer::Layers;
use super::problem::{Origin, Problem, code, quoted};
use super::secret_file::{self, SecretFileError};
use super::section::{Choice, Overlap};

/// Reads keys and collects what is wrong with them.
pub(crate) struct Reader<'a> {
    layers: &'a Layers,
    /// Everything found so far.
    pub(crate) problems: Vec<Problem>,
    /// Sections that could not be read; nothing below them is reported as missing.
    unreadable: &'a [String],
    /// Where a missing key would be added.
    home: Origin,
    /// Added to the help of a missing key, e.g. which files were looked for.
    missing_help: String,
    #[cfg(test)]
    pub(crate) asked: std::collections::BTreeSet<String>,
}

/// What is wrong with a value, before it is put together with its key and origin.
pub(crate) struct Fault {
    /// Stable code.
    pub(crate) code: &'static str,
    /// Goes between the key and the value: "is no duration".
    pub(crate) what: String,
    /// What is accepted.
    pub(crate) help: String,
}

impl Fault {
    pub(crate) fn new(
        code: &'static str,
        what: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            code,
            what: what.into(),
            help: help.into(),
        }
    }
}

/// A secret and the key that it was read from, `…_file` if it was a file.
pub(crate) struct Secret {
    pub(crate) key: String,
    pub(crate) value: SecretString,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(
        layers: &'a Layers,
        unreadable: &'a [String],
        home: Origin,
        missing_help: String,
    ) -> Self {
        Self {
            layers,
            problems: Vec::new(),
            unreadable,
            home,
            missing_help,
            #[cfg(test)]
            asked: std::collections::BTreeSet::new(),
        }
    }

    /// The layers being read.
    pub(crate) fn layers(&self) -> &'a Layers {
        self.layers
    }

    /// Where a key's value came from, or where it would be added.
    pub(crate) fn origin(&self, key: &str) -> Origin {
        self.layers
            .origin(key)
            .cloned()
            .unwrap_or_else(|| self.home.clone())
    }

    /// Records what is wrong with a key.
    pub(crate) fn refuse(&mut self, key: &str, fault: Fault) {
        let message = format!("`{key}` {}", fault.what);
        let problem = Problem::error(fault.code, key, self.origin(key), message, fault.help);
        self.problems.push(problem);
    }

    /// Records a risk.
    pub(crate) fn warn(
        &mut self,
        code: &'static str,
        key: &str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let problem = Problem::warning(code, key, self.origin(key), message, help);
        self.problems.push(problem);
    }

    /// Records that a required key has no value.
    pub(crate) fn missing(&mut self, key: &str, example: &str) {
        let within = |section: &String| {
            section.is_empty() || key == section || key.starts_with(&format!("{section}."))
        };
        if self.unreadable.iter().any(within) {
            return;
        }
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let mut help = format!("[{section}] {name} = {example}, or {}", key::variable(key));
        if !self.missing_help.is_empty() {
            help = format!("{help}\n{}", self.missing_help);
        }
        let problem = Problem::error(
            code::MISSING,
            key,
            self.home.clone(),
            format!("`{key}` is required"),
            help,
        );
        self.problems.push(problem);
    }

    /// Text, required and not blank.
    pub(crate) fn required_text(&mut self, key: &str, example: &str) -> Option<String> {
        match self.optional_text(key)? {
            Some(text) => Some(text),
            None => {
                self.missing(key, example);
                None
            }
        }
    }

    /// Text; unset and blank mean none.
    pub(crate) fn optional_text(&mut self, key: &str) -> Option<Option<String>> {
        match self.value(key) {
            None => Some(None),
            Some(ValueKind::String(text)) if text.trim().is_empty() => Some(None),
            Some(ValueKind::String(text)) => Some(Some(text.clone())),
            Some(other) => self.wrong_type(key, other),
        }
    }

    /// Text that must parse.
    pub(crate) fn parsed<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        let text = match self.value(key) {
            Some(ValueKind::String(text)) => text.clone(),
            Some(other) => return self.wrong_type(key, other),
            None => String::new(),
        };
        self.checked(key, &text, parse)
    }

    /// Text that must parse; unset and blank mean none.
    pub(crate) fn optional_parsed<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<Option<T>> {
        match self.optional_text(key)? {
            None => Some(None),
            Some(text) => self.checked(key, &text, parse).map(Some),
        }
    }

    /// One of a set of words.
    pub(crate) fn choice<T: Choice>(&mut self, key: &str) -> Option<T> {
        self.parsed(key, |text| {
            let words = || T::WORDS.iter().map(|(word, _)| *word);
            let found = T::WORDS.iter().find(|(word, _)| *word == text);
            found.map(|(_, choice)| *choice).ok_or_else(|| {
                let near = words()
                    .filter(|word| strsim::damerau_levenshtein(word, text) <= 2)
                    .min();
                let near = near
                    .map(|near| format!("did you mean \"{near}\"? "))
                    .unwrap_or_default();
                let accepted = words()
                    .map(|word| format!("\"{word}\""))
                    .collect::<Vec<_>>()
                    .join(", ");
                Fault::new(
                    code::CHOICE,
                    "is not one of its words",
                    format!("{near}accepted: {accepted}"),
                )
            })
        })
    }

    /// A duration within a range.
    pub(crate) fn duration(
        &mut self,
        key: &str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.parsed(key, |text| duration_within(text, &range))
    }

    /// A duration within a range, or zero for none.
    pub(crate) fn duration_or_none(
        &mut self,
        key: &str,
        range: RangeInclusive<Duration>,
    ) -> Option<Option<Duration>> {
        self.parsed(key, |text| match parse_duration(text)? {
            Duration::ZERO => Ok(None),
            _ => duration_within(text, &range)
                .map(Some)
                .map_err(|fault| Fault {
                    help: format!("{}, or \"0s\" for none", fault.help),
                    ..fault
                }),
        })
    }

    /// A whole number within a range.
    pub(crate) fn count(&mut self, key: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let number = match self.value(key) {
            Some(ValueKind::I64(number)) => *number,
            Some(other) => return self.wrong_type(key, other),
            None => -1,
        };
        let count = u32::try_from(number)
            .ok()
            .filter(|count| range.contains(count));
        if count.is_none() {
            let help = format!("from {} to {}", range.start(), range.end());
            self.refuse(
                key,
                Fault::new(code::RANGE, format!("is out of range: {number}"), help),
            );
        }
        count
    }

    /// A number within a range.
    pub(crate) fn number(&mut self, key: &str, range: RangeInclusive<f64>) -> Option<f64> {
        let number = match self.value(key) {
            Some(ValueKind::I64(number)) => *number as f64,
            Some(ValueKind::Float(number)) => *number,
            Some(other) => return self.wrong_type(key, other),
            None => f64::NAN,
        };
        if range.contains(&number) {
            return Some(number);
        }
        let help = format!("from {} to {}", range.start(), range.end());
        self.refuse(
            key,
            Fault::new(code::RANGE, format!("is out of range: {number}"), help),
        );
        None
    }

    /// `true` or `false`.
    pub(crate) fn switch(&mut self, key: &str) -> Option<bool> {
        match self.value(key) {
            Some(ValueKind::Boolean(switch)) => Some(*switch),
            Some(other) => self.wrong_type(key, other),
            None => Some(false),
        }
    }

    /// The overlap: unset, a duration or a whole number.
    pub(crate) fn overlap(
        &mut self,
        key: &str,
        range: RangeInclusive<Duration>,
    ) -> Option<Overlap> {
        match self.value(key) {
            _ if !self.layers.is_set(key) => Some(Overlap::Unset),
            Some(ValueKind::I64(units)) if *units >= 0 => Some(Overlap::Units(*units)),
            Some(ValueKind::I64(units)) => {
                let what = format!("is out of range: {units}");
                self.refuse(
                    key,
                    Fault::new(code::RANGE, what, "0 or more, in the cursor's own unit"),
                );
                None
            }
            Some(ValueKind::String(text)) if text.trim().is_empty() => Some(Overlap::Unset),
            Some(ValueKind::String(_)) => self.duration(key, range).map(Overlap::Duration),
            Some(other) => self.wrong_type(key, other),
            None => Some(Overlap::Unset),
        }
    }

    /// A list of texts.
    pub(crate) fn list(&mut self, key: &str) -> Option<Vec<String>> {
        let value = self.value(key)?;
        let items: Option<Vec<String>> = match value {
            ValueKind::Array(items) => items.iter().map(|item| text_of(&item.kind)).collect(),
            _ => None,
        };
        items.or_else(|| self.wrong_type(key, value))
    }

    /// A table of texts, sorted by name; unset means empty.
    pub(crate) fn table(
        &mut self,
        key: &str,
    ) -> Option<std::collections::BTreeMap<String, String>> {
        match self.value(key) {
            None => Some(std::collections::BTreeMap::new()),
            Some(ValueKind::Table(table)) => {
                let entries = table
                    .iter()
                    .map(|(name, value)| Some((name.clone(), text_of(&value.kind)?)));
                entries
                    .collect::<Option<_>>()
                    .or_else(|| self.wrong_type(key, &ValueKind::Table(table.clone())))
            }
            Some(other) => self.wrong_type(key, other),
        }
    }

    /// A secret given as `key` or as the file `key_file`; the layer that is higher decides, one layer may not set both.
    ///
    /// Outer none: a problem was recorded. Inner none: neither is set.
    pub(crate) fn secret(&mut self, key: &str) -> Option<Option<Secret>> {
        let file_key = format!("{key}_file");
        let direct = self.optional_text(key);
        let file = self.optional_text(&file_key);
        let (direct, file) = (direct?, file?);
        let (direct_rank, file_rank) = (self.layers.rank(key), self.layers.rank(&file_key));
        match (direct, file) {
            (None, None) => Some(None),
            (Some(_), Some(_)) if direct_rank == file_rank => {
                let what = format!("and `{file_key}` are both set");
                self.refuse(key, Fault::new(code::BOTH, what, "keep one of the two"));
                None
            }
            (Some(text), file) if file.is_none() || direct_rank > file_rank => Some(Some(Secret {
                key: key.to_owned(),
                value: text.into(),
            })),
            (_, file) => {
                let path = PathBuf::from(file.unwrap_or_default());
                let value = self.secret_file(&file_key, &path)?;
                Some(Some(Secret {
                    key: file_key,
                    value,
                }))
            }
        }
    }

    /// Parses a secret; its value enters no problem.
    pub(crate) fn parsed_secret<T>(&mut self, secret: &Secret, help: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        match secret.value.expose_secret().parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.refuse(
                    &secret.key,
                    Fault::new(code::URL, format!("is no usable URL: {error}"), help),
                );
                None
            }
        }
    }

    fn secret_file(&mut self, key: &str, path: &Path) -> Option<SecretString> {
        let error = match secret_file::read(path) {
            Ok(secret) => return Some(secret),
            Err(error) => error,
        };
        let fault = match error {
            SecretFileError::Open { path, mode } => {
                let closed = mode & !0o007;
                let what = format!("is readable by everyone (mode {mode:04o})");
                Fault::new(
                    code::SECRET_MODE,
                    what,
                    format!("chmod {closed:04o} {}", path.display()),
                )
            }
            other => {
                let help =
                    "a file with the secret alone, readable by this process and not by everyone";
                Fault::new(code::SECRET_FILE, format!("cannot be used: {other}"), help)
            }
        };
        self.refuse(key, fault);
        None
    }

    fn checked<T>(
        &mut self,
        key: &str,
        text: &str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        match parse(text) {
            Ok(value) => Some(value),
            Err(fault) => {
                let what = match is_sensitive(key) {
                    true => fault.what,
                    false => with_value(&fault.what, text),
                };
                self.refuse(key, Fault { what, ..fault });
                None
            }
        }
    }

    /// Records that a value is of the wrong type.
    fn wrong_type<T>(&mut self, key: &str, found: &ValueKind) -> Option<T> {
        let kind = kind_of(key);
        let found = match found {
            ValueKind::String(text) if !is_sensitive(key) => format!("text {}", quoted(text)),
            ValueKind::String(_) => "text".to_owned(),
            ValueKind::Boolean(_) => "true or false".to_owned(),
            ValueKind::Float(_) => "a number".to_owned(),
            ValueKind::Array(_) => "a list".to_owned(),
            ValueKind::Table(_) => "a table".to_owned(),
            _ => "a whole number".to_owned(),
        };
        self.refuse(
            key,
            Fault::new(
                code::TYPE,
                format!("has the wrong type: {found}"),
                kind.accepted(),
            ),
        );
        None
    }

    fn value(&mut self, key: &str) -> Option<&'a ValueKind> {
        debug_assert!(
            matches!(key::meaning(key), Meaning::Key(_)),
            "{key} is in the table of keys"
        );
        #[cfg(test)]
        self.asked.insert(key.to_owned());
        self.layers.value(key)
    }
}

/// Parses a humantime duration.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, Fault> {
    humantime::parse_duration(text.trim()).map_err(|_| {
        let help = "a number with its unit: \"500ms\", \"30s\", \"10m\", \"2h\", \"7d\"";
        Fault::new(code::DURATION, "is no duration", help)
    })
}

/// A duration as a person writes it: "60s" and "90s", but "10m" and "7d".
pub(crate) fn written(duration: Duration) -> String {
    if duration < SECONDS_WRITTEN_BELOW && duration.subsec_nanos() == 0 {
        return format!("{}s", duration.as_secs());
    }
    let text = humantime::format_duration(duration).to_string();
    text.replace("days", "d")
        .replace("day", "d")
        .replace(' ', "")
}

/// Whole seconds below this are not written as minutes.
const SECONDS_WRITTEN_BELOW: Duration = Duration::from_secs(120);

fn duration_within(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, Fault> {
    let duration = parse_duration(text)?;
    if range.contains(&duration) {
        return Ok(duration);
    }
    let help = format!(
        "from \"{}\" to \"{}\"",
        written(*range.start()),
        written(*range.end())
    );
    Err(Fault::new(code::RANGE, "is out of range", help))
}

/// "is no duration: "x"", with the value before a reason in parentheses.
fn with_value(what: &str, text: &str) -> String {
    match what.split_once(" (") {
        Some((what, reason)) => format!("{what}: {} ({reason}", quoted(text)),
        None => format!("{what}: {}", quoted(text)),
    }
}

fn text_of(kind: &ValueKind) -> Option<String> {
    match kind {
        ValueKind::String(text) => Some(text.clone()),
        _ => None,
    }
}

fn kind_of(key: &str) -> Kind {
    match key::meaning(key) {
        Meaning::Key(key) => key.kind,
        _ => Kind::Text,
    }
}

fn is_sensitive(key: &str) -> bool {
    match key::meaning(key) {
        Meaning::Key(key) | Meaning::Entry(key) => key.sensitive,
        Meaning::Section | Meaning::Unknown => true,
    }
}
