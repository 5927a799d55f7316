//! The table of metrics: name, kind, meaning and label of each.
//!
//! The endpoint writes these and no others; `docs/metrics.md`, the alert rules and the dashboard under `deploy/` are tested
//! against it. Units are in the names; labels have few and fixed values, and never hold an id.

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Family {
    /// Its name, with its unit.
    pub name: &'static str,
    /// What its numbers do.
    pub kind: Kind,
    /// What it says, in one line.
    pub help: &'static str,
    /// What tells its numbers apart, if there is more than one.
    pub label: Option<Label>,
}

/// What the numbers of a metric do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// They only grow, from 0 at each start.
    Counter,
    /// They go up and down.
    Gauge,
    /// They are counted by these upper bounds, in seconds.
    Histogram(&'static [f64]),
}

impl Kind {
    /// The word of the text format.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// What tells the numbers of a metric apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// All its values; empty where another table has them.
    pub values: &'static [&'static str],
}

/// What came of entries that were claimed.
pub const DELIVERIES: Family = by(
    "reconciled_deliveries_total",
    Kind::Counter,
    "Claims of entries by what came of them.",
    "outcome",
    &[
        "acknowledged",
        "compared",
        "dead",
        "lease_lost",
        "paused",
        "released",
        "retrying",
        "unrecorded",
    ],
);
/// The requests behind them.
pub const ATTEMPTS: Family = by(
    "reconciled_attempts_total",
    Kind::Counter,
    "Claims for which a request was sent, by how it ended: a patch, or the question that a comparison begins with.",
    "verdict",
    &[
        "acknowledged",
        "compared",
        "conflict",
        "failed",
        "installation_gone",
        "lost",
        "not_found",
        "rate_limited",
        "refused",
        "rejected",
        "released",
        "source_moved",
        "source_unavailable",
        "token_refused",
        "unreachable",
        "unrecorded",
    ],
);
/// Everything that is asked of Vercel.
pub const REQUESTS: Family = by(
    "reconciled_requests_total",
    Kind::Counter,
    "Requests to Vercel's API by their answer: patches, what is asked after a 404 or 409, probes, drift checks.",
    "answer",
    &["2xx", "3xx", "429", "4xx", "5xx", "lost", "other", "unsent"],
);
/// Requests that find out whether a paused installation answers again.
pub const PROBES: Family = by(
    "reconciled_probes_total",
    Kind::Counter,
    "Probes of paused installations by what came of them.",
    "outcome",
    &["resumed", "still_paused", "unrecorded"],
);
/// Time at Vercel.
pub const REQUEST_SECONDS: Family = one(
    "reconciled_request_duration_seconds",
    Kind::Histogram(&[0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]),
    "Time from sending a request for an entry to the end of its answer.",
);
/// How late Vercel knows.
pub const LAG_SECONDS: Family = one(
    "reconciled_delivery_lag_seconds",
    Kind::Histogram(&[
        0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0,
    ]),
    "Time from finding a committed change to its acknowledgement by Vercel.",
);
/// How late Vercel knows, from the provider's side.
pub const COMMIT_LAG_SECONDS: Family = one(
    "reconciled_commit_lag_seconds",
    Kind::Histogram(&[
        0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0,
    ]),
    "Time from a change's commit, as a cursor that is a timestamp tells it, to its acknowledgement by Vercel.",
);
/// What is open.
pub const OUTBOX: Family = by(
    "reconciled_outbox_entries",
    Kind::Gauge,
    "Open entries of the outbox by state.",
    "state",
    &["dead", "held", "in_flight", "waiting"],
);
/// How old it is.
pub const OLDEST_AGE: Family = one(
    "reconciled_outbox_oldest_age_seconds",
    Kind::Gauge,
    "Age of the oldest change that waits or is in flight; 0 when none does.",
);
/// How much there is.
pub const RESOURCES: Family = one(
    "reconciled_resources",
    Kind::Gauge,
    "Resources in the state. They are counted again after a hundred times as long as the last count took.",
);
/// Rows that cannot be used.
pub const QUARANTINED: Family = one(
    "reconciled_quarantined_rows",
    Kind::Gauge,
    "Rows of the source that cannot be used.",
);
/// Installations that get nothing.
pub const PAUSED: Family = one(
    "reconciled_paused_installations",
    Kind::Gauge,
    "Installations that get no requests, paused by a person or since Vercel refuses them.",
);
/// Rows that disappeared.
pub const MISSING: Family = one(
    "reconciled_missing_resources",
    Kind::Gauge,
    "Resources whose row the last sweep did not find.",
);
/// When Vercel last said yes.
pub const LAST_ACKNOWLEDGED: Family = one(
    "reconciled_last_acknowledged_timestamp_seconds",
    Kind::Gauge,
    "When Vercel last acknowledged something; absent if it never did.",
);
/// Polls.
pub const POLLS: Family = by(
    "reconciled_polls_total",
    Kind::Counter,
    "Polls by whether they were complete.",
    "outcome",
    &["completed", "failed"],
);
/// Their time.
pub const POLL_SECONDS: Family = one(
    "reconciled_poll_duration_seconds",
    Kind::Histogram(&[
        0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    ]),
    "Time that complete polls took.",
);
/// Their rows.
pub const POLL_ROWS: Family = one(
    "reconciled_poll_rows_total",
    Kind::Counter,
    "Rows that complete polls read.",
);
/// Their last.
pub const LAST_POLL: Family = one(
    "reconciled_last_poll_timestamp_seconds",
    Kind::Gauge,
    "When the last complete poll of this process ended; absent before the first.",
);
/// Sweeps.
pub const SWEEPS: Family = one(
    "reconciled_sweeps_total",
    Kind::Counter,
    "Sweeps that were complete.",
);
/// Their time.
pub const SWEEP_SECONDS: Family = one(
    "reconciled_sweep_duration_seconds",
    Kind::Histogram(&[
        0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
    ]),
    "Time that complete sweeps took, interruptions included.",
);
/// Their account.
pub const SWEEP_ROWS: Family = by(
    "reconciled_sweep_rows",
    Kind::Gauge,
    "Rows of the last complete sweep by where they stood; missing are resources without a row. Absent before the first.",
    "standing",
    &[
        "dead",
        "equal",
        "held",
        "missing",
        "quarantined",
        "unaccounted",
        "waiting",
    ],
);
/// Their last.
pub const LAST_SWEEP: Family = one(
    "reconciled_last_sweep_timestamp_seconds",
    Kind::Gauge,
    "When the last complete sweep ended, of an earlier process too; absent before the first.",
);
/// The source.
pub const SOURCE_UP: Family = one(
    "reconciled_source_up",
    Kind::Gauge,
    "1 if the source could be read when it was last tried, else 0; absent before the first try and while another daemon reads the source.",
);
/// Vercel.
pub const OUTAGE: Family = one(
    "reconciled_vercel_outage",
    Kind::Gauge,
    "1 while Vercel's API fails as a whole and is probed, else 0.",
);
/// The state.
pub const STATE_UP: Family = one(
    "reconciled_state_up",
    Kind::Gauge,
    "1 if the state could be read for this answer and used by both loops, else 0; what could not be read of it is then absent.",
);
/// Its failures.
pub const STATE_FAILURES: Family = one(
    "reconciled_state_failures_total",
    Kind::Counter,
    "Times that a loop could not read or write the state.",
);
/// Whether the loops go on.
pub const PROGRESS_AGE: Family = by(
    "reconciled_loop_progress_age_seconds",
    Kind::Gauge,
    "Time since a loop last got on, by the monotonic clock.",
    "loop",
    &["dispatch", "watch"],
);
/// Events of the log.
pub const EVENTS: Family = by(
    "reconciled_events_total",
    Kind::Counter,
    "Log events of level WARN and ERROR by name, whatever the log filter hides.",
    "event",
    &[],
);
/// Lines that nobody will read.
pub const LINES_LOST: Family = one(
    "reconciled_log_lines_lost_total",
    Kind::Counter,
    "Log lines that could not be written.",
);
/// Reloads.
pub const RELOADS: Family = by(
    "reconciled_config_reloads_total",
    Kind::Counter,
    "Reloads of the configuration by whether it was taken over.",
    "outcome",
    &["applied", "refused"],
);
/// What runs.
pub const BUILD: Family = by(
    "reconciled_build_info",
    Kind::Gauge,
    "1, with the version.",
    "version",
    &[env!("CARGO_PKG_VERSION")],
);
/// Since when.
pub const START: Family = one(
    "process_start_time_seconds",
    Kind::Gauge,
    "When the process started, since the epoch.",
);
/// Memory.
pub const RESIDENT: Family = one(
    "process_resident_memory_bytes",
    Kind::Gauge,
    "Memory of the process that is in RAM.",
);
/// Time on a processor.
pub const CPU: Family = one(
    "process_cpu_seconds_total",
    Kind::Counter,
    "Time that the process spent on processors, user and system.",
);
/// Open files.
pub const OPEN_FDS: Family = one(
    "process_open_fds",
    Kind::Gauge,
    "Open file descriptors of the process.",
);
/// The most of them.
pub const MAX_FDS: Family = one(
    "process_max_fds",
    Kind::Gauge,
    "How many file descriptors the process may open.",
);

/// Every metric, in the order of the endpoint and the documentation.
pub const ALL: &[Family] = &[
    DELIVERIES,
    ATTEMPTS,
    REQUESTS,
    PROBES,
    REQUEST_SECONDS,
    LAG_SECONDS,
    COMMIT_LAG_SECONDS,
    OUTBOX,
    OLDEST_AGE,
    RESOURCES,
    QUARANTINED,
    PAUSED,
    MISSING,
    LAST_ACKNOWLEDGED,
    POLLS,
    POLL_SECONDS,
    POLL_ROWS,
    LAST_POLL,
    SWEEPS,
    SWEEP_SECONDS,
    SWEEP_ROWS,
    LAST_SWEEP,
    SOURCE_UP,
    OUTAGE,
    STATE_UP,
    STATE_FAILURES,
    PROGRESS_AGE,
    EVENTS,
    LINES_LOST,
    RELOADS,
    BUILD,
    START,
    RESIDENT,
    CPU,
    OPEN_FDS,
    MAX_FDS,
];

const fn one(name: &'static str, kind: Kind, help: &'static str) -> Family {
    Family {
        name,
        kind,
        help,
        label: None,
    }
}

const fn by(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    label: &'static str,
    values: &'static [&'static str],
) -> Family {
    let label = Some(Label {
        name: label,
        values,
    });
    Family {
        name,
        kind,
        help,
        label,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Label names that would let the number of series grow with the fleet.
    const FORBIDDEN: [&str; 4] = ["installation_id", "resource_id", "entry", "vercel_id"];

    #[test]
    fn names_are_unique_carry_their_unit_and_suit_their_kind() {
        for (index, family) in ALL.iter().enumerate() {
            let Family { name, kind, .. } = family;
            assert!(
                ALL[..index].iter().all(|other| other.name != *name),
                "{name} is there twice"
            );
            assert_eq!(
                matches!(kind, Kind::Counter),
                name.ends_with("_total"),
                "{name}"
            );
            if let Kind::Histogram(bounds) = kind {
                assert!(name.ends_with("_seconds"), "{name}");
                assert!(bounds.is_sorted(), "{name}: {bounds:?}");
            }
            assert!(
                family.help.ends_with('.') && !family.help.contains('\n'),
                "{name}"
            );
        }
    }

    #[test]
    fn no_label_can_hold_an_id_and_label_values_are_sorted_and_unique() {
        for family in ALL {
            let Some(Label { name, values }) = family.label else {
                continue;
            };
            assert!(!FORBIDDEN.contains(&name), "{}", family.name);
            assert!(
                values.is_sorted_by(|a, b| a < b),
                "{}: {values:?}",
                family.name
            );
        }
    }

    fn row(family: &Family) -> String {
        let Family {
            name, kind, help, ..
        } = family;
        let label = match family.label {
            None => String::new(),
            // The version changes with each release.
            Some(Label { name, values }) if values.is_empty() || *family == BUILD => {
                format!("`{name}` ")
            }
            Some(Label { name, values }) => {
                let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
                format!("`{name}`: {} ", values.join(", "))
            }
        };
        format!("| `{name}` | {} | {help} | {label}|", kind.name())
    }

    #[test]
    fn the_documentation_has_every_metric_as_it_is() {
        let page = include_str!("../../docs/metrics.md");
        let documented: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("| `reconciled_") || line.starts_with("| `process_"))
            .collect();
        assert_eq!(documented, ALL.iter().map(row).collect::<Vec<_>>());
    }
}
