//! SIGHUP: what is taken over, what waits for a restart, and that a file that is not valid changes nothing.

use std::time::Duration;

use reconciled::simulator::{Fault, Matcher};
use rustix::process::Signal;

use super::{World, get, list, listening};

/// No polls: what is found is found by the first poll and sweep.
const QUIET: &str = "[schedule]\npoll = \"\"\nsweep = \"\"\n";

#[tokio::test]
async fn schedule_limits_guard_and_filter_change_while_it_runs() {
    let world = World::new().await;
    world.insert(1, "res_0", 1, "ready").await;
    world.configure("", QUIET);
    let mut daemon = world.installation.run();
    let address = listening(&daemon).await;
    daemon.wait_for_event("delivery.acknowledged").await;
    daemon.has_said("sweep.completed").await;

    world.configure(
        "max_in_flight = 1",
        "[schedule]\npoll = \"* * * * * *\"\nsweep = \"\"\n[guard]\ndestructive_max = 2\n\
         [log]\nfilter = \"debug\"\nsummary_interval = \"500ms\"\n",
    );
    daemon.signal(Signal::HUP);
    let reloaded = daemon.wait_for_event("config.reloaded").await;
    assert_eq!(
        list(&reloaded, "changed"),
        [
            "vercel.max_in_flight",
            "vercel.max_in_flight_per_installation",
            "guard.destructive_max",
            "schedule.poll",
            "log.filter",
            "log.summary_interval"
        ]
    );
    // The schedule: polls come, one after another. The filter: those that found nothing are seen.
    let is_debug = |event: &serde_json::Value| event["level"] == "DEBUG";
    for _ in 0..2 {
        daemon
            .wait_for_event_where("poll.completed", is_debug)
            .await;
    }
    // The limit: of three installations' requests only one is ever under way.
    world
        .simulator
        .remote()
        .fault_always(Fault::Delay(Duration::from_secs(600)), Matcher::patch());
    for installation in 1..=3 {
        world
            .insert(installation, "res_1", 1 + installation, "ready")
            .await;
    }
    let waits = |event: &serde_json::Value| event["waiting"] == 3;
    daemon.wait_for_event_where("summary", waits).await;
    daemon.wait_for_event_where("summary", waits).await;
    assert_eq!(world.simulator.remote().held(), 1);
    world.simulator.remote().clear_faults();
    world.simulator.remote().release();
    daemon
        .wait_for_event_where("summary", |event| event["waiting"] == 0)
        .await;
    // The guard: three suspensions are one too many.
    world
        .provider
        .execute("UPDATE resource SET status = 'suspended', version = 10 WHERE id = 'res_1'")
        .await;
    let held = daemon.wait_for_event("guard.held").await;
    assert_eq!(held["destructive"], 3);
    let page = get(&address, "/metrics").await.body;
    assert!(
        page.contains("reconciled_config_reloads_total{outcome=\"applied\"} 1\n"),
        "{page}"
    );
    // A second reload of the same file changes nothing.
    daemon.signal(Signal::HUP);
    let reloaded = daemon.wait_for_event("config.reloaded").await;
    assert_eq!(list(&reloaded, "changed"), Vec::<String>::new());
    assert_eq!(world.simulator.remote().violations(), []);
    assert!(daemon.end_with(Signal::TERM).await.success());
}

#[tokio::test]
async fn summaries_go_on_however_often_the_configuration_is_read_again() {
    let world = World::new().await;
    world.configure("", &format!("{QUIET}[log]\nsummary_interval = \"1s\"\n"));
    let mut daemon = world.installation.run();
    daemon.wait_for_event("sweep.completed").await;
    let mut reloads = 0;
    while daemon.events("summary").len() < 2 {
        daemon.signal(Signal::HUP);
        daemon.wait_for_event("config.reloaded").await;
        reloads += 1;
        assert!(reloads < 10_000, "the reloads hold up every summary");
    }
    let covered = |event: &serde_json::Value| event["interval_ms"].as_u64().unwrap_or_default();
    let summaries = daemon.events("summary");
    assert!(
        summaries.iter().all(|event| covered(event) >= 1000),
        "{summaries:?}"
    );
    assert!(daemon.end_with(Signal::TERM).await.success());
}

#[tokio::test]
async fn a_field_that_is_no_longer_left_to_vercel_is_sent_after_a_reload() {
    let world = World::new().await;
    world.insert(1, "res_1", 1, "ready").await;
    world.configure("", &format!("{QUIET}[reconcile]\nignore = [\"status\"]\n"));
    let mut daemon = world.installation.run();
    let sent = daemon.wait_for_event("delivery.acknowledged").await;
    assert_eq!(list(&sent, "fields"), ["secrets"]);
    daemon.has_said("sweep.completed").await;
    world.configure("", QUIET);
    daemon.signal(Signal::HUP);
    daemon.wait_for_event("config.reloaded").await;
    let sent = daemon.wait_for_event("delivery.acknowledged").await;
    assert_eq!(list(&sent, "fields"), ["status"]);
    assert!(daemon.end_with(Signal::TERM).await.success());
}

#[tokio::test]
async fn a_file_that_is_not_valid_changes_nothing_and_says_every_problem_once() {
    let world = World::new().await;
    world.configure("", "[schedule]\npoll = \"* * * * * *\"\n");
    let mut daemon = world.installation.run();
    let address = listening(&daemon).await;
    daemon.wait_for_event("sweep.completed").await;
    let invalid = world.configuration(
        "max_in_fligt = 1",
        "[schedule]\npoll = \"sometimes\"\n[log]\nfilter = \"trace\"\n[guard]\ndestructive_max = -1\n",
    );
    world.installation.configure(&invalid);
    daemon.signal(Signal::HUP);
    for _ in 0..3 {
        daemon.wait_for_event("config.reload_failed").await;
    }
    // The old schedule is in force: what is inserted now is found.
    world.insert(1, "res_1", 1, "ready").await;
    daemon.wait_for_event("delivery.acknowledged").await;
    let failed = daemon.events("config.reload_failed");
    let mut said: Vec<(&str, &str)> = failed
        .iter()
        .map(|event| {
            assert_eq!(event["level"], "ERROR");
            let text = |field: &str| event[field].as_str().unwrap_or_default();
            assert!(text("origin").contains("reconciled.toml:"), "{event}");
            assert!(!text("help").is_empty(), "{event}");
            (text("error_code"), text("key"))
        })
        .collect();
    said.sort_unstable();
    assert_eq!(
        said,
        [
            ("C003", "vercel.max_in_fligt"),
            ("C011", "guard.destructive_max"),
            ("C014", "schedule.poll")
        ]
    );
    assert_eq!(daemon.events("config.reloaded").len(), 0);
    let page = get(&address, "/metrics").await.body;
    assert!(
        page.contains("reconciled_config_reloads_total{outcome=\"refused\"} 1\n"),
        "{page}"
    );
    // The file that is there keeps it from nothing but the next start.
    assert!(daemon.end_with(Signal::TERM).await.success());
    let again = world.installation.output(&["run"]).await;
    assert_eq!(again.status.code(), Some(78));
}

#[tokio::test]
async fn what_needs_a_restart_is_named_and_no_value_is_shown() {
    let world = World::new().await;
    world.configure("", QUIET);
    let mut daemon = world.installation.run();
    daemon.wait_for_event("sweep.completed").await;
    let changed = world
        .configuration("request_timeout = \"7s\"", QUIET)
        .replace(
            &format!("url = \"{}\"", world.provider.url),
            "url = \"postgres://reconciled:hunter2-moved@127.0.0.1:1/provider\"",
        );
    world.installation.configure(&changed);
    daemon.signal(Signal::HUP);
    let reloaded = daemon.wait_for_event("config.reloaded").await;
    assert_eq!(list(&reloaded, "changed"), Vec::<String>::new());
    let waits = daemon.wait_for_event("config.restart_needed").await;
    assert_eq!(waits["level"], "WARN");
    assert_eq!(
        list(&waits, "keys"),
        ["source.url", "vercel.request_timeout"]
    );
    assert!(daemon.end_with(Signal::TERM).await.success());
    for line in daemon.said() {
        assert!(!line.text.contains("hunter2"), "{}", line.text);
    }
}
