//! Proves that the documentation and the files for other programs name what the program has, and all of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use reconciled::metrics::family::{ALL, Family, Kind};
use reconciled::telemetry::EVENTS;
use serde_json::Value;

use crate::support::server::find_program;

const RULES: &str = include_str!("../../deploy/prometheus/reconciled.rules.yaml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/reconciled.json");
const ON_CALL: &str = include_str!("../../docs/on-call.md");
const LOGS: &str = include_str!("../../docs/logs.md");
const ERRORS: &str = include_str!("../../docs/errors.md");
const GUARANTEES: &str = include_str!("../../docs/guarantees.md");
const TESTING: &str = include_str!("../../docs/testing.md");

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn prometheus_accepts_the_rules_and_each_alert_fires_when_it_should() {
    for arguments in [
        ["check", "rules", "deploy/prometheus/reconciled.rules.yaml"],
        [
            "test",
            "rules",
            "deploy/prometheus/reconciled.rules.test.yaml",
        ],
    ] {
        let output = Command::new(find_program("promtool", &[]))
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("it was found a moment ago");
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let tested = fs::read_to_string(path("deploy/prometheus/reconciled.rules.test.yaml"))
        .expect("it is there");
    for alert in alerts() {
        let fires = tested
            .split(&format!("alertname: {alert}\n"))
            .skip(1)
            .any(|rest| rest.trim_start().starts_with("exp_alerts:\n"));
        let is_quiet = tested.contains(&format!("alertname: {alert}\n        exp_alerts: []"));
        assert!(
            fires && is_quiet,
            "{alert}: tested to fire {fires}, to be quiet {is_quiet}"
        );
    }
}

#[test]
fn every_alert_has_its_section_for_whoever_is_on_call_and_its_log_search() {
    let section = ON_CALL
        .split_once("\n## By alert\n")
        .and_then(|(_, rest)| rest.split("\n## ").next())
        .expect("the page has the section");
    let documented: Vec<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect();
    assert_eq!(documented, alerts());
    for alert in alerts() {
        let link = format!("runbook_url: docs/on-call.md#{}\n", alert.to_lowercase());
        assert_eq!(RULES.matches(&link).count(), 1, "{alert}");
        let text = section
            .split_once(&format!("### {alert}\n"))
            .and_then(|(_, rest)| rest.split("\n### ").next())
            .unwrap_or_default()
            .to_lowercase();
        for part in ["**means:**", "cost", "look", "cure"] {
            assert!(text.contains(part), "{alert} does not say: {part}");
        }
        assert!(
            LOGS.contains(&format!("| `{alert}` |")),
            "{alert} has no log search"
        );
    }
}

#[test]
fn the_documentation_has_no_link_to_a_heading_that_is_not_there() {
    let headings: BTreeSet<String> = ON_CALL.lines().filter_map(anchor).collect();
    for link in ON_CALL.split("](#").skip(1) {
        let target = link.split(')').next().unwrap_or_default();
        assert!(headings.contains(target), "#{target} in docs/on-call.md");
    }
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(line: &str) -> Option<String> {
    let heading = line
        .starts_with('#')
        .then(|| line.trim_start_matches('#').trim())?;
    let kept = |character: &char| character.is_alphanumeric() || "-_ ".contains(*character);
    Some(
        heading
            .to_lowercase()
            .chars()
            .filter(kept)
            .map(|character| if character == ' ' { '-' } else { character })
            .collect(),
    )
}

#[test]
fn rules_name_only_metrics_labels_and_events_that_exist() {
    let expressions: String = RULES
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n");
    check_query(&expressions);
    let used = metrics_in(&expressions);
    assert!(used.len() >= 14, "{used:?}");
}

#[test]
fn the_dashboard_names_only_metrics_that_exist_and_shows_each_of_them() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("it has panels");
    let mut shown = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64()), "an id is there twice");
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().expect("a query");
            check_query(query);
            shown.extend(metrics_in(query));
        }
    }
    let table: BTreeSet<String> = ALL.iter().map(|family| family.name.to_owned()).collect();
    assert_eq!(shown, table);
}

/// The names of the metrics in a query, without what a histogram adds to them.
fn metrics_in(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| word.starts_with("reconciled_") || word.starts_with("process_"))
        .map(|word| family_of(word).name.to_owned())
        .collect()
}

/// The family that a series belongs to; a histogram's is named only through one of its three parts.
fn family_of(series: &str) -> &'static Family {
    let is_of = |family: &&Family| match family.kind {
        Kind::Counter | Kind::Gauge => family.name == series,
        Kind::Histogram(_) => ["_bucket", "_sum", "_count"]
            .iter()
            .any(|end| series.strip_suffix(end) == Some(family.name)),
    };
    ALL.iter()
        .find(is_of)
        .unwrap_or_else(|| panic!("{series} is no metric"))
}

/// Every selector of a metric uses only its label, and only values that it can have.
fn check_query(query: &str) {
    for (index, _) in query.match_indices('{') {
        let before = &query[..index];
        let name_start = before
            .rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .map_or(0, |at| at + 1);
        let name = &before[name_start..];
        if !name.starts_with("reconciled_") {
            continue;
        }
        let family = family_of(name);
        let selector = query[index + 1..].split('}').next().unwrap_or_default();
        for matcher in selector.split(", ") {
            let (label, value) = matcher.split_once('=').expect("a matcher");
            if label == "job" {
                continue;
            }
            let known = family
                .label
                .unwrap_or_else(|| panic!("{name} has no label"));
            assert_eq!(label, known.name, "{name}");
            for value in value.trim_matches(['~', '"']).split('|') {
                let exists = known.values.contains(&value)
                    || EVENTS
                        .iter()
                        .any(|(event, _)| label == "event" && *event == value);
                assert!(exists, "{name}: {label} is never {value}");
            }
        }
    }
}

fn alerts() -> Vec<&'static str> {
    RULES
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("- alert: "))
        .collect()
}

#[test]
fn every_code_in_the_program_is_explained_and_every_explained_code_is_in_the_program() {
    let mut program = String::new();
    read_sources(&path("src"), &mut program);
    let is_code = |word: &&str| {
        word.len() == 4
            && word.starts_with(['C', 'R', 'W'])
            && word[1..].bytes().all(|byte| byte.is_ascii_digit())
    };
    let used: BTreeSet<&str> = program.split('"').filter(is_code).collect();
    let explained: BTreeSet<&str> = ERRORS
        .lines()
        .filter_map(|line| line.strip_prefix("### ")?.split(' ').next())
        .filter(is_code)
        .collect();
    assert_eq!(used, explained);
}

#[test]
fn each_law_names_its_tests_and_every_test_that_is_named_exists() {
    let tests = all_tests();
    let simulated = |name: &String| name.starts_with("simulation::");
    let unknown: Vec<String> = names_of_tests(TESTING)
        .into_iter()
        .filter(simulated)
        .chain(names_of_tests(GUARANTEES))
        .filter(|name| !tests.iter().any(|test| is_meant(name, test)))
        .collect();
    assert_eq!(unknown, [""; 0], "no test is called so");
    for law in 1..=9 {
        let row = GUARANTEES
            .lines()
            .find(|line| line.starts_with(&format!("| **{law} ")))
            .unwrap_or_else(|| panic!("law {law} has no row"));
        let whole = |name: &String| tests.iter().any(|test| test == name);
        assert!(
            names_of_tests(row).iter().any(whole),
            "law {law} names no test by its whole name"
        );
    }
}

/// What a bullet says of itself, or of a part of it, that nothing proves.
const UNPROVEN: &str = "no test stands behind";

#[test]
fn each_promise_and_each_limit_names_its_tests_or_says_that_there_are_none() {
    let (_, promises) = GUARANTEES
        .split_once("\n## The laws\n")
        .expect("the page has the section");
    let parts = parts_of(promises);
    let bullets = parts.iter().filter(|part| part.starts_with("- **"));
    assert!(bullets.count() > 20, "the page has its bullets");
    let bare: Vec<&String> = parts.iter().filter(|part| !is_backed(part)).collect();
    assert_eq!(
        bare, [""; 0],
        "they say neither what proves them nor that nothing does"
    );
}

#[test]
fn a_promise_without_a_test_is_noticed_wherever_it_stands() {
    let page = "| law | test |\n|---|---|\n| a | `plan::laws` |\n| b | nothing |\n\nA sentence,\nof two lines.\n\n\
                - **One** is proven\n  by `store::laws::…`.\n- **Two** is not; `[retry] lease`.\n- **Three**: no test stands\n  behind it.\n\n\
                ## Next\n\nProven: `a::b`.\n";
    let parts = parts_of(page);
    let bare: Vec<&String> = parts.iter().filter(|part| !is_backed(part)).collect();
    let expected = [
        "| b | nothing |",
        "A sentence, of two lines.",
        "- **Two** is not; `[retry] lease`.",
    ];
    assert_eq!(bare, expected);
}

/// The rows of tables, the bullets and the paragraphs of a page, each in one line.
fn parts_of(page: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut lines = page.lines().peekable();
    let mut goes_on = false;
    while let Some(line) = lines.next() {
        let is_row = line.starts_with('|');
        let heads_a_table = |next: &&str| next.starts_with("|---");
        let is_heading = line.starts_with('#') || line.starts_with("|---");
        if line.is_empty() || is_heading || is_row && lines.peek().is_some_and(heads_a_table) {
            goes_on = false;
        } else if goes_on && !is_row && !line.starts_with("- ") {
            let part = parts.last_mut().expect("one goes on");
            part.push(' ');
            part.push_str(line.trim_start());
        } else {
            parts.push(line.to_owned());
            goes_on = !is_row;
        }
    }
    parts
}

/// Whether a part of a page names a test, or says that it has none.
fn is_backed(part: &str) -> bool {
    !names_of_tests(part).is_empty() || part.to_lowercase().contains(UNPROVEN)
}

/// What a page calls a test or a module of tests: `…` stands for any part of a name, `{a,b}` for either.
fn names_of_tests(page: &str) -> Vec<String> {
    let is_name = |word: &&str| {
        word.contains("::")
            && !word.contains(' ')
            && word
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:…{},".contains(c))
    };
    let code = page.split('`').skip(1).step_by(2).filter(is_name);
    code.flat_map(|name| match name.split_once('{') {
        None => vec![name.to_owned()],
        Some((before, rest)) => {
            let (either, after) = rest.split_once('}').expect("the brace is closed");
            either
                .split(',')
                .map(|one| format!("{before}{one}{after}"))
                .collect()
        }
    })
    .collect()
}

/// Whether a test is the one, or in the module, that is named.
fn is_meant(name: &str, test: &str) -> bool {
    let mut parts = name.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = test.strip_prefix(first) else {
        return false;
    };
    let mut is_open = first.ends_with("::") || first.is_empty();
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
        is_open = part.is_empty();
    }
    is_open || rest.is_empty() || rest.starts_with("::")
}

/// The tests of this binary, as it lists them itself, and those of the library, as its sources have them.
fn all_tests() -> BTreeSet<String> {
    let itself = std::env::current_exe().expect("it runs");
    let output = Command::new(itself)
        .arg("--list")
        .output()
        .expect("it can be run once more");
    let listed = String::from_utf8(output.stdout).expect("names are text");
    let mut tests: BTreeSet<String> = listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect();
    assert!(tests.len() > 300, "{} tests", tests.len());
    add_tests_of(&path("src"), "", &mut tests);
    tests
}

fn add_tests_of(directory: &Path, module: &str, tests: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("the sources are here") {
        let path = entry.expect("the sources are here").path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let inner = format!("{module}{}::", name.expect("modules have names of text"));
        if path.is_dir() {
            add_tests_of(&path, &inner, tests);
            continue;
        }
        let source = fs::read_to_string(&path).expect("a source is text");
        let mut inner = inner;
        let mut is_test = false;
        for line in source.lines().map(str::trim_start) {
            if line == "mod tests {" {
                inner.push_str("tests::");
            }
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            let function = line.strip_prefix("async ").unwrap_or(line);
            if let Some(function) = function.strip_prefix("fn ").filter(|_| is_test) {
                let name = function.split('(').next().unwrap_or_default();
                tests.insert(format!("{inner}{name}"));
                is_test = false;
            }
        }
    }
}

fn read_sources(directory: &Path, found: &mut String) {
    for entry in fs::read_dir(directory).expect("the sources are here") {
        let path = entry.expect("the sources are here").path();
        if path.is_dir() {
            read_sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push_str(&fs::read_to_string(&path).expect("a source is text"));
        }
    }
}
