//! `/metrics` of a daemon that did something, read by Prometheus' own tool and compared with what happened.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

use reconciled::metrics::family::{ALL, Family, Kind};
use reconciled::simulator::{Fault, Field, Matcher};
use reconciled::telemetry::EVENTS;
use rustix::process::Signal;

use super::{World, get, listening};
use crate::support::postgres::Postgres;
use crate::support::server::find_program;

/// A page of metrics: the value of each series, by its name with its labels.
struct Page {
    text: String,
    series: BTreeMap<String, f64>,
}

impl Page {
    async fn of(address: &str) -> Self {
        let text = get(address, "/metrics").await.body;
        let series = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let (series, value) = line.rsplit_once(' ').expect("a series and its value");
                (series.to_owned(), value.parse().expect("a number"))
            })
            .collect();
        Self { text, series }
    }

    fn value(&self, series: &str) -> f64 {
        let value = self.series.get(series);
        *value.unwrap_or_else(|| panic!("{series} is missing:\n{}", self.text))
    }

    fn expect(&self, expected: &[(&str, f64)]) {
        for (series, value) in expected {
            assert_eq!(self.value(series), *value, "{series}:\n{}", self.text);
        }
    }
}

#[tokio::test]
async fn a_scrape_is_valid_complete_and_says_what_happened() {
    let world = World::new().await;
    for (installation, id) in [(1, "res_1"), (2, "res_2"), (3, "res_3")] {
        world.insert(installation, id, installation, "ready").await;
    }
    world.insert(1, "res_bad", 4, "nonsense").await;
    world.simulator.remote().fault_always(
        Fault::RejectField(Field::Status),
        Matcher {
            field: Some(Field::Status),
            ..Matcher::resource("icfg_3", "res_3")
        },
    );
    world.configure(
        "",
        "[schedule]\npoll = \"* * * * * *\"\nsweep = \"\"\n[log]\nsummary_interval = \"1s\"\n",
    );
    let mut daemon = world.installation.run();
    let address = listening(&daemon).await;
    daemon
        .wait_for_event_where("summary", |event| {
            event["dead"] == 1 && event["waiting"] == 0
        })
        .await;
    assert!(
        !daemon.events("sweep.completed").is_empty(),
        "a sweep ends long before the first second"
    );
    let page = Page::of(&address).await;

    let requests = world.simulator.remote().requests().len();
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let requests = requests as f64;
    let acknowledged = daemon.events("delivery.acknowledged").len();
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let acknowledged = acknowledged as f64;
    page.expect(&[
        (
            "reconciled_deliveries_total{outcome=\"acknowledged\"}",
            acknowledged,
        ),
        ("reconciled_deliveries_total{outcome=\"lease_lost\"}", 0.0),
        (
            "reconciled_attempts_total{verdict=\"acknowledged\"}",
            acknowledged,
        ),
        ("reconciled_delivery_lag_seconds_count", acknowledged),
        ("reconciled_requests_total{answer=\"2xx\"}", acknowledged),
        (
            "reconciled_requests_total{answer=\"4xx\"}",
            requests - acknowledged,
        ),
        // An integer does not say when.
        ("reconciled_commit_lag_seconds_count", 0.0),
        ("reconciled_request_duration_seconds_count", requests),
        ("reconciled_outbox_entries{state=\"dead\"}", 1.0),
        ("reconciled_outbox_entries{state=\"waiting\"}", 0.0),
        ("reconciled_outbox_entries{state=\"in_flight\"}", 0.0),
        ("reconciled_outbox_oldest_age_seconds", 0.0),
        ("reconciled_resources", 3.0),
        ("reconciled_quarantined_rows", 1.0),
        ("reconciled_paused_installations", 0.0),
        ("reconciled_source_up", 1.0),
        ("reconciled_state_up", 1.0),
        ("reconciled_vercel_outage", 0.0),
        ("reconciled_sweeps_total", 1.0),
        ("reconciled_sweep_rows{standing=\"quarantined\"}", 1.0),
        ("reconciled_sweep_rows{standing=\"unaccounted\"}", 0.0),
        ("reconciled_events_total{event=\"row.quarantined\"}", 1.0),
        ("reconciled_events_total{event=\"panic\"}", 0.0),
        ("reconciled_log_lines_lost_total", 0.0),
        ("reconciled_config_reloads_total{outcome=\"applied\"}", 0.0),
    ]);
    assert!(
        page.value("reconciled_attempts_total{verdict=\"rejected\"}") >= 1.0,
        "{}",
        page.text
    );
    assert!(page.value("reconciled_polls_total{outcome=\"completed\"}") >= 1.0);
    for which in ["watch", "dispatch"] {
        let age = page.value(&format!(
            "reconciled_loop_progress_age_seconds{{loop=\"{which}\"}}"
        ));
        assert!((0.0..60.0).contains(&age), "{which}: {age}");
    }

    assert_valid(&page.text);
    assert_is_the_table(&page);
    for id in ["icfg_", "\"res_", "hunter2"] {
        assert!(!page.text.contains(id), "{id} is in a scrape");
    }
    assert!(daemon.end_with(Signal::TERM).await.success());
}

#[tokio::test]
async fn every_request_is_counted_also_those_that_an_answer_leads_to() {
    let world = World::new().await;
    world.insert(1, "res_1", 1, "ready").await;
    world
        .simulator
        .remote()
        .fault(Fault::Conflict, Matcher::patch());
    world.configure("", "[schedule]\npoll = \"\"\nsweep = \"\"\n");
    let mut daemon = world.installation.run();
    let address = listening(&daemon).await;
    daemon.wait_for_event("delivery.acknowledged").await;
    let page = Page::of(&address).await;
    // PATCH 409, GET, PATCH 200.
    let requests = world.simulator.remote().requests();
    let of = |digit: u16| {
        let answered = |entry: &&reconciled::simulator::Entry| {
            entry.status().is_some_and(|status| status / 100 == digit)
        };
        u32::try_from(requests.iter().filter(answered).count()).expect("a handful")
    };
    assert_eq!(requests.len(), 3);
    page.expect(&[
        ("reconciled_requests_total{answer=\"2xx\"}", of(2).into()),
        ("reconciled_requests_total{answer=\"4xx\"}", of(4).into()),
        ("reconciled_attempts_total{verdict=\"conflict\"}", 1.0),
        ("reconciled_attempts_total{verdict=\"acknowledged\"}", 1.0),
    ]);
    assert!(daemon.end_with(Signal::TERM).await.success());
}

#[tokio::test]
async fn the_time_from_commit_to_acknowledgement_is_measured_by_a_cursor_that_is_a_timestamp() {
    let provider = Postgres::shared().database().await;
    let world = World::over(provider).await;
    let timestamped = world
        .configuration("", "[schedule]\npoll = \"* * * * * *\"\nsweep = \"\"\n")
        .replace("version AS cursor", "at AS cursor")
        .replace("overlap = 0", "overlap = \"0s\"");
    world.installation.configure(&timestamped);
    world
        .provider
        .execute("ALTER TABLE resource ADD at timestamptz NOT NULL DEFAULT clock_timestamp()")
        .await;
    world.insert(1, "res_1", 1, "pending").await;
    let mut daemon = world.installation.run();
    let address = listening(&daemon).await;
    daemon.wait_for_event("delivery.acknowledged").await;
    let page = Page::of(&address).await;
    // How long a resource has lain there that was never seen before says nothing.
    page.expect(&[("reconciled_commit_lag_seconds_count", 0.0)]);
    let before = page.value("reconciled_delivery_lag_seconds_sum");
    // What a sweep finds has no such time.
    daemon.has_said("sweep.completed").await;
    world
        .provider
        .execute("UPDATE resource SET status = 'suspended', at = clock_timestamp()")
        .await;
    daemon.wait_for_event("delivery.acknowledged").await;
    world
        .provider
        .execute("UPDATE resource SET status = 'ready', at = clock_timestamp() + interval '1 microsecond'")
        .await;
    daemon.wait_for_event("delivery.acknowledged").await;
    let page = Page::of(&address).await;
    page.expect(&[("reconciled_commit_lag_seconds_count", 2.0)]);
    let sum = page.value("reconciled_commit_lag_seconds_sum");
    let found = page.value("reconciled_delivery_lag_seconds_sum");
    // The commit comes before the poll that finds it; both are told in whole milliseconds.
    assert!(
        sum > 0.0 && sum >= found - before - 0.002,
        "{sum} from the commits, {found} - {before} from the polls"
    );
    assert!(daemon.end_with(Signal::TERM).await.success());
}

/// `promtool` finds nothing to say: neither a fault of the format nor a name that goes against the conventions.
fn assert_valid(text: &str) {
    let mut promtool = Command::new(find_program("promtool", &[]))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it was found a moment ago");
    let mut stdin = promtool.stdin.take().expect("it is piped");
    stdin.write_all(text.as_bytes()).expect("it reads");
    drop(stdin);
    let output = promtool.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(
        output.status.success() && said.trim().is_empty(),
        "{said}\n{text}"
    );
}

/// Exactly the metrics of the table, each with its kind, its label and no value that the table does not have.
fn assert_is_the_table(page: &Page) {
    let written: BTreeSet<(&str, &str)> = page
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    let table: BTreeSet<(&str, &str)> = ALL
        .iter()
        .map(|family| (family.name, family.kind.name()))
        .collect();
    assert_eq!(written, table);
    for series in page.series.keys() {
        let (name, labels) = series
            .split_once('{')
            .map_or((series.as_str(), None), |(name, labels)| {
                (name, Some(labels))
            });
        let family = ALL
            .iter()
            .find(|family| names(family).iter().any(|known| known == name))
            .unwrap_or_else(|| panic!("{series} is in no family"));
        let is_histogram = matches!(family.kind, Kind::Histogram(_));
        match (family.label, labels) {
            (None, None) => {}
            (None, Some(labels)) => {
                assert!(is_histogram && labels.starts_with("le=\""), "{series}")
            }
            (Some(_), None) => panic!("{series} has no label"),
            (Some(label), Some(labels)) => {
                let (key, value) = labels
                    .trim_end_matches("\"}")
                    .split_once("=\"")
                    .expect("a label");
                assert_eq!(key, label.name, "{series}");
                let known = label.values.contains(&value)
                    || (key == "event" && EVENTS.iter().any(|(name, _)| *name == value));
                assert!(known, "{series}: a value that the table does not have");
            }
        }
    }
}

/// The names of a family's series.
fn names(family: &Family) -> Vec<String> {
    match family.kind {
        Kind::Histogram(_) => ["_bucket", "_sum", "_count"]
            .map(|end| format!("{}{end}", family.name))
            .to_vec(),
        Kind::Counter | Kind::Gauge => vec![family.name.to_owned()],
    }
}
