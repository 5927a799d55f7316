//! Environment variables and `key=value` flags as layers.
//!
//! Both give text; the key's kind decides what it becomes. Names are exact; values of sensitive keys are never repeated,
//! nor are values of unknown ones.

use std::ffi::OsString;

use config::ValueKind;

use super::file::parse_value;
use super::key::{self, Key, Kind, Meaning, PREFIX};
use super::layer::Layer;
use super::problem::{Origin, Problem, code, plain, quoted};

/// What a list of texts holds.
#[derive(Default)]
pub(crate) struct Parsed {
    /// The known keys.
    pub(crate) layer: Layer,
    /// What is wrong with the others.
    pub(crate) problems: Vec<Problem>,
}

/// Reads the variables that begin with `RECONCILED__`, in the order of their names.
pub(crate) fn environment(variables: &[(OsString, OsString)]) -> Parsed {
    let mut sorted: Vec<_> = variables.iter().collect();
    sorted.sort();
    let mut parsed = Parsed::default();
    for (name, value) in sorted {
        let name = name.to_string_lossy();
        match name.strip_prefix(PREFIX) {
            Some(rest) => variable(&mut parsed, &name, rest, value),
            None => parsed.problems.extend(near_miss(&name)),
        }
    }
    parsed
}

/// Reads `key=value` texts in the order given; a later one replaces an earlier one.
pub(crate) fn flags(overrides: &[String]) -> Parsed {
    let mut parsed = Parsed::default();
    for text in overrides {
        let Some((path, value)) = text.split_once('=') else {
            // Without the rest of a URL, which may hold a password.
            let key = match text.split_once("://") {
                Some((before, _)) => format!("{}://…", plain(before)),
                None => plain(text),
            };
            let origin = Origin::Flag { key, value: None };
            let message = "a setting on the command line has no `=`";
            let help = "write key=value, e.g. log.format=pretty";
            parsed
                .problems
                .push(Problem::error(code::MALFORMED, "", origin, message, help));
            continue;
        };
        let path = path.trim();
        let origin = |value| Origin::Flag {
            key: plain(path),
            value,
        };
        match typed_for(path, value) {
            Some((sensitive, kind)) => {
                let shown = may_show(path, value, sensitive).then(|| plain(value));
                parsed.layer.insert(path, kind, origin(shown));
            }
            None => {
                let message = format!("unknown key `{}`", path.escape_debug());
                let help = key::suggestion(path);
                parsed.problems.push(Problem::error(
                    code::UNKNOWN_KEY,
                    path,
                    origin(None),
                    message,
                    help,
                ));
            }
        }
    }
    parsed
}

fn variable(parsed: &mut Parsed, name: &str, rest: &str, value: &OsString) {
    let path = rest.to_lowercase().replace("__", ".");
    let origin = |value| Origin::Environment {
        name: plain(name),
        value,
    };
    let Some(value) = value.to_str() else {
        let message = format!("the value of {} is not UTF-8", plain(name));
        parsed.problems.push(Problem::error(
            code::MALFORMED,
            &path,
            origin(None),
            message,
            "set it again as UTF-8 text",
        ));
        return;
    };
    let exact = rest == rest.to_uppercase();
    match typed_for(&path, value).filter(|_| exact) {
        Some((sensitive, kind)) => {
            let shown = may_show(&path, value, sensitive).then(|| plain(value));
            parsed.layer.insert(path, kind, origin(shown));
        }
        None => {
            let help = if matches!(key::meaning(&path), Meaning::Key(_) | Meaning::Entry(_)) {
                format!("names are in capitals: {}", key::variable(&path))
            } else {
                key::suggestion(&path).replace("did you mean `", "did you mean the variable of `")
            };
            let message = format!("unknown variable {}", quoted(name).trim_matches('"'));
            parsed.problems.push(Problem::error(
                code::UNKNOWN_KEY,
                &path,
                origin(None),
                message,
                help,
            ));
        }
    }
}

/// A warning for a variable that would be a setting if its underscores were doubled.
fn near_miss(name: &str) -> Option<Problem> {
    let rest = name.strip_prefix("RECONCILED_")?;
    let flat = |text: &str| text.replace(['.', '_'], "").to_uppercase();
    let meant = key::KEYS.iter().find(|key| flat(key.path) == flat(rest))?;
    let origin = Origin::Environment {
        name: name.to_owned(),
        value: None,
    };
    let message = format!("the variable {name} is not read");
    let help = format!(
        "sections and keys are joined by two underscores: {}",
        key::variable(meant.path)
    );
    Some(Problem::warning(
        code::VARIABLE,
        meant.path,
        origin,
        message,
        help,
    ))
}

/// Whether the key that a path names is sensitive, and the text as a value of its kind; none when there is no such key.
fn typed_for(path: &str, text: &str) -> Option<(bool, ValueKind)> {
    match key::meaning(path) {
        Meaning::Key(Key {
            kind, sensitive, ..
        }) => Some((*sensitive, typed(*kind, text))),
        Meaning::Entry(_) => Some((true, ValueKind::String(text.to_owned()))),
        Meaning::Section | Meaning::Unknown => None,
    }
}

/// Text as a value of a kind; text that is none stays text, which the typed reading then refuses.
fn typed(kind: Kind, text: &str) -> ValueKind {
    let as_text = || ValueKind::String(text.to_owned());
    let trimmed = text.trim();
    match kind {
        Kind::Text => as_text(),
        Kind::Integer | Kind::TextOrInteger => {
            trimmed.parse().map_or_else(|_| as_text(), ValueKind::I64)
        }
        Kind::Number => trimmed.parse().map_or_else(|_| as_text(), ValueKind::Float),
        Kind::Switch => trimmed
            .parse()
            .map_or_else(|_| as_text(), ValueKind::Boolean),
        Kind::List if trimmed.starts_with('[') => parse_value(trimmed).unwrap_or_else(as_text),
        Kind::List => {
            let items = trimmed
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty());
            ValueKind::Array(
                items
                    .map(|item| config::Value::new(None, item.to_owned()))
                    .collect(),
            )
        }
        Kind::Table => parse_value(trimmed).unwrap_or_else(as_text),
    }
}

/// Whether a value may be repeated: not that of a secret, nor a URL where the path of a secret's file belongs.
fn may_show(path: &str, value: &str, sensitive: bool) -> bool {
    let is_misplaced = path.ends_with("_file") && value.contains("://");
    !sensitive && !is_misplaced
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn report(problems: &[Problem]) -> String {
        problems
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn variables(pairs: &[(&str, &str)]) -> Parsed {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        environment(&pairs)
    }

    #[test]
    fn text_becomes_what_its_key_is() {
        let list = |items: &[&str]| {
            ValueKind::Array(
                items
                    .iter()
                    .map(|item| config::Value::new(None, (*item).to_owned()))
                    .collect(),
            )
        };
        let cases = [
            (Kind::Integer, " 64 ", ValueKind::I64(64)),
            (Kind::Integer, "many", ValueKind::String("many".to_owned())),
            (Kind::Number, "2", ValueKind::Float(2.0)),
            (Kind::Switch, "true", ValueKind::Boolean(true)),
            (
                Kind::TextOrInteger,
                "30s",
                ValueKind::String("30s".to_owned()),
            ),
            (Kind::TextOrInteger, "30", ValueKind::I64(30)),
            (Kind::List, "name, status", list(&["name", "status"])),
            (Kind::List, "[\"name\"]", list(&["name"])),
            (Kind::List, "", list(&[])),
            (Kind::Text, "8080", ValueKind::String("8080".to_owned())),
        ];
        for (kind, text, expected) in cases {
            assert_eq!(typed(kind, text), expected, "{text}");
        }
    }

    #[test]
    fn unknown_variable_shows_its_name_and_never_its_value() {
        let parsed = variables(&[
            ("RECONCILED__SOURCE__ULR", "postgres://u:hunter2@db"),
            ("RECONCILED__source__url", "postgres://u:hunter2@db"),
            ("RECONCILED_SOURCE_URL", "postgres://u:hunter2@db"),
            ("RECONCILED_SERVICE_HOST", "10.0.0.1"),
            ("PATH", "/bin"),
        ]);
        assert_eq!(
            report(&parsed.problems),
            "warning[W023]: the variable RECONCILED_SOURCE_URL is not read\n  --> RECONCILED_SOURCE_URL\n   \
             = help: sections and keys are joined by two underscores: RECONCILED__SOURCE__URL\n\n\
             error[C003]: unknown variable RECONCILED__SOURCE__ULR\n  --> RECONCILED__SOURCE__ULR\n   \
             = help: did you mean the variable of `source.url`?\n\n\
             error[C003]: unknown variable RECONCILED__source__url\n  --> RECONCILED__source__url\n   \
             = help: names are in capitals: RECONCILED__SOURCE__URL\n"
        );
        assert_eq!(format!("{:?}", parsed.layer), "{}");
    }

    #[test]
    fn a_url_in_the_wrong_place_is_not_repeated() {
        let url = "postgres://u:hunter2@db/app";
        let said = format!("{:?}", flags(&[format!("source.url:{url}")]).problems);
        assert!(said.contains("source.url:postgres://…"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
        assert!(!may_show("source.url_file", url, false));
        assert!(may_show("vercel.base_url", "https://api.vercel.com", false));
        assert!(may_show("source.url_file", "/run/secrets/url", false));
        assert!(!may_show("source.url", url, true));
    }

    #[test]
    fn value_that_is_not_utf8_is_a_problem_without_the_value() {
        let parsed = environment(&[(
            "RECONCILED__SOURCE__URL".into(),
            OsString::from_vec(vec![b'h', 0xff]),
        )]);
        assert_eq!(parsed.problems.len(), 1);
        assert_eq!(parsed.problems[0].code, code::MALFORMED);
    }

    #[test]
    fn flag_is_a_known_key_and_a_value() {
        let parsed = flags(&["log.format=pretty".into(), "vercel.oauth.form.a=b=c".into()]);
        assert!(parsed.problems.is_empty());
        assert_eq!(
            format!("{:?}", parsed.layer),
            r#"{"log.format", "vercel.oauth.form.a"}"#
        );
        let parsed = flags(&["log.fromat=pretty".into(), "pretty".into()]);
        assert_eq!(
            report(&parsed.problems),
            "error[C003]: unknown key `log.fromat`\n  --> command line: log.fromat\n   = help: did you mean `log.format`?\n\n\
             error[C007]: a setting on the command line has no `=`\n  --> command line: pretty\n   \
             = help: write key=value, e.g. log.format=pretty\n"
        );
    }
}
