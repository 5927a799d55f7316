//! The table of events: every name that `event = "…"` may have, with its level.
//!
//! It feeds three places that must not disagree: the log (`docs/logs.md` is tested against it, and so is every line that the
//! program can write), the metric `reconciled_events_total`, and the alerts on either of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Every event with the level that it is logged at, the higher one where it has two; in the order of `docs/logs.md`.
pub const EVENTS: &[(&str, Level)] = &[
    ("daemon.started", Level::INFO),
    ("daemon.stopped", Level::INFO),
    ("daemon.failed", Level::ERROR),
    ("daemon.aborted", Level::WARN),
    ("daemon.grace_exceeded", Level::ERROR),
    ("shutdown.requested", Level::INFO),
    ("shutdown.aborted", Level::WARN),
    ("config.warning", Level::WARN),
    ("config.reloaded", Level::INFO),
    ("config.restart_needed", Level::WARN),
    ("config.reload_failed", Level::ERROR),
    ("http.listening", Level::INFO),
    ("summary", Level::INFO),
    ("watch.gained", Level::INFO),
    ("watch.lost", Level::WARN),
    ("watch.released", Level::INFO),
    ("listen.began", Level::INFO),
    ("listen.lost", Level::WARN),
    ("listen.restored", Level::WARN),
    ("listen.heard", Level::DEBUG),
    ("poll.completed", Level::INFO),
    ("poll.needs_sweep", Level::WARN),
    ("sweep.started", Level::DEBUG),
    ("sweep.completed", Level::INFO),
    ("guard.held", Level::ERROR),
    ("guard.joined", Level::WARN),
    ("guard.dissolved", Level::INFO),
    ("drift.found", Level::WARN),
    ("drift.missing", Level::WARN),
    ("drift.completed", Level::INFO),
    ("drift.failed", Level::WARN),
    ("row.quarantined", Level::WARN),
    ("delivery.acknowledged", Level::INFO),
    ("delivery.retrying", Level::WARN),
    ("delivery.dead", Level::ERROR),
    ("delivery.compared", Level::DEBUG),
    ("delivery.released", Level::DEBUG),
    ("delivery.lease_lost", Level::WARN),
    ("delivery.unrecorded", Level::ERROR),
    ("installation.paused", Level::ERROR),
    ("installation.resumed", Level::WARN),
    ("installation.paused_by_hand", Level::INFO),
    ("installation.resumed_by_hand", Level::INFO),
    ("baseline.by_hand", Level::INFO),
    ("drift.fixed_by_hand", Level::INFO),
    ("entry.changed_by_hand", Level::INFO),
    ("act.recorded", Level::INFO),
    ("installation.probe_failed", Level::DEBUG),
    ("vercel.outage_began", Level::ERROR),
    ("vercel.outage_ended", Level::WARN),
    ("vercel.request_not_built", Level::ERROR),
    ("source.outage_began", Level::ERROR),
    ("source.outage_ended", Level::WARN),
    ("state.outage_began", Level::ERROR),
    ("state.outage_ended", Level::WARN),
    ("prune.completed", Level::INFO),
    ("prune.failed", Level::WARN),
    ("panic", Level::ERROR),
];

/// Counts the events of level WARN and ERROR, whatever the log filter hides.
#[derive(Debug, Clone)]
pub(super) struct EventCounts(Arc<[(&'static str, AtomicU64)]>);

impl EventCounts {
    pub(super) fn new() -> Self {
        let counted = EVENTS.iter().filter(|(_, level)| is_counted(*level));
        Self(
            counted
                .map(|(name, _)| (*name, AtomicU64::new(0)))
                .collect(),
        )
    }

    /// How many there were, by name, in the order of the table.
    pub(super) fn get(&self) -> Vec<(&'static str, u64)> {
        let count =
            |(name, count): &(&'static str, AtomicU64)| (*name, count.load(Ordering::Relaxed));
        self.0.iter().map(count).collect()
    }
}

/// Whether an event of this origin is counted: the rest never reaches the counting layer.
pub(super) fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.is_event()
        && is_counted(*metadata.level())
        && metadata.target().starts_with(env!("CARGO_PKG_NAME"))
}

fn is_counted(level: Level) -> bool {
    level <= Level::WARN
}

impl<S: Subscriber> Layer<S> for EventCounts {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut name = Name(None);
        event.record(&mut name);
        let found = self.0.iter().find(|(known, _)| name.0 == Some(known));
        if let Some((_, count)) = found {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Finds the name of an event in the table.
struct Name(Option<&'static str>);

impl Visit for Name {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "event" {
            let known = EVENTS.iter().find(|(name, _)| *name == value);
            self.0 = known.map(|(name, _)| *name);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// The program's own text, tests left out.
    fn sources(directory: &Path, found: &mut String) {
        for entry in fs::read_dir(directory).expect("the sources are here") {
            let path = entry.expect("the sources are here").path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                if name != "tests" && name != "simulation" && name != "protocol" {
                    sources(&path, found);
                }
            } else if name.ends_with(".rs") && name != "tests.rs" && name != "event.rs" {
                let text = fs::read_to_string(&path).expect("a source is text");
                let program = text.split("#[cfg(test)]\nmod ").next().unwrap_or(&text);
                found.push_str(program);
            }
        }
    }

    fn program() -> String {
        let mut found = String::new();
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut found,
        );
        found
    }

    #[test]
    fn every_event_that_the_program_logs_is_in_the_table_and_the_other_way_round() {
        let program = program();
        let logged: Vec<&str> = program
            .split("event = \"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        for name in &logged {
            assert!(
                EVENTS.iter().any(|(known, _)| known == name),
                "`{name}` is logged and not in the table of events"
            );
        }
        for (name, _) in EVENTS {
            assert!(
                program.contains(&format!("\"{name}\"")),
                "`{name}` is in the table of events and nowhere logged"
            );
        }
    }

    #[test]
    fn the_documentation_has_every_event_once_with_its_level() {
        let page = include_str!("../../docs/logs.md");
        let section = page
            .split_once("\n## Events\n")
            .and_then(|(_, rest)| rest.split("\n## ").next())
            .expect("the page has the section");
        let rows: Vec<(&str, &str)> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
            .filter(|(name, _)| *name != "log")
            .map(|(name, rest)| (name, rest.split([' ', ',', ';']).next().unwrap_or(rest)))
            .collect();
        let table: Vec<(&str, &str)> = EVENTS
            .iter()
            .map(|(name, level)| (*name, level.as_str()))
            .collect();
        assert_eq!(rows, table);
    }

    #[test]
    fn every_error_event_has_a_section_for_whoever_is_on_call() {
        let page = include_str!("../../docs/on-call.md");
        for (name, level) in EVENTS {
            if *level == Level::ERROR {
                let heading = format!("\n### {name}\n");
                assert_eq!(
                    page.matches(&heading).count(),
                    1,
                    "{name} in docs/on-call.md"
                );
            }
        }
    }
}
