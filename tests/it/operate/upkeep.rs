//! Drift, baselines, missing rows and filters, by the real commands and the real daemon.

use reconciled::simulator::Field;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{PROVIDER, TABLES, World};

async fn world(settings: &str) -> World {
    World::with(&format!("{TABLES}{PROVIDER}"), settings).await
}

impl World {
    /// Somebody changes a resource at Vercel.
    fn change_at_vercel(&self, installation: &str, resource: &str, to: &Value) {
        let remote = self.simulator.remote();
        remote
            .seed(installation, resource, to)
            .expect("within the schema");
    }

    fn held(&self, installation: &str, resource: &str, field: Field) -> Option<Value> {
        let resource = self.simulator.remote().resource(installation, resource);
        resource.and_then(|resource| resource.field(field).cloned())
    }

    async fn once(&self) {
        let once = self.command(&["once", "--sweep"]).await;
        assert_eq!(once.code, Some(0), "{once:?}");
    }
}

#[tokio::test]
async fn the_daemon_tells_a_difference_once_with_both_values() {
    let world = world("drift = \"* * * * * *\"\n").await;
    let mut daemon = world.installation.run();
    for _ in 0..2 {
        daemon.wait_for_event("delivery.acknowledged").await;
    }
    world.change_at_vercel("icfg_1", "res_1", &json!({"name": "renamed at Vercel"}));
    let found = daemon.wait_for_event("drift.found").await;
    assert_eq!(
        (&found["resource_id"], &found["field"]),
        (&json!("res_1"), &json!("name"))
    );
    assert_eq!(
        (&found["acknowledged"], &found["shown"]),
        (&json!("\"orders\""), &json!("\"renamed at Vercel\""))
    );
    for _ in 0..2 {
        let is_drifted = |event: &Value| event["drifted"] == 1;
        daemon
            .wait_for_event_where("drift.completed", is_drifted)
            .await;
    }
    assert_eq!(daemon.events("drift.found").len(), 1, "once, not per check");
    let name = world.held("icfg_1", "res_1", Field::Name);
    assert_eq!(name, Some(json!("renamed at Vercel")), "it is only told");
    assert!(daemon.end_with(Signal::TERM).await.success());
}

#[tokio::test]
async fn with_on_drift_fix_the_daemon_sends_the_providers_side_again() {
    let world = world("drift = \"* * * * * *\"\n[reconcile]\non_drift = \"fix\"\n").await;
    let mut daemon = world.installation.run();
    for _ in 0..2 {
        daemon.wait_for_event("delivery.acknowledged").await;
    }
    world.change_at_vercel("icfg_2", "res_2", &json!({"status": "error"}));
    let fixed = daemon.wait_for_event("delivery.acknowledged").await;
    assert_eq!(
        (&fixed["resource_id"], &fixed["fields"]),
        (&json!("res_2"), &json!(["status"]))
    );
    let status = world.held("icfg_2", "res_2", Field::Status);
    assert_eq!(status, Some(json!("ready")));
    assert!(daemon.end_with(Signal::TERM).await.success());
    // No person ordered it, so none is named.
    let told = world.json(&["explain", "icfg_2", "res_2", "--json"]).await;
    assert_eq!(told["acts"], json!([]));
}

#[tokio::test]
async fn what_a_person_orders_to_be_fixed_is_narrowed_and_told() {
    let world = world("").await;
    world.once().await;
    let elsewhere = json!({"name": "renamed", "status": "error"});
    world.change_at_vercel("icfg_1", "res_1", &elsewhere);
    world.change_at_vercel("icfg_2", "res_2", &elsewhere);
    let all = world.json(&["drift", "--json"]).await;
    assert_eq!((&all["drifted"], &all["fixed"]), (&json!(2), &json!(0)));
    let fix = [
        "drift",
        "--fix",
        "--installation",
        "icfg_1",
        "--field",
        "name",
        "--as",
        "ana",
        "--reason",
        "the console was used",
        "--json",
    ];
    let fixed = world.json(&fix).await;
    assert_eq!(
        (&fixed["resources"], &fixed["drifted"], &fixed["fixed"]),
        (&json!(1), &json!(1), &json!(1)),
        "{fixed:#}"
    );
    assert_eq!(fixed["findings"].as_array().map(Vec::len), Some(1));
    let explained = world.command(&["explain", "icfg_1", "res_1"]).await;
    explained.has(&["\tdrift fixed\tby ana: \"the console was used\"\t"]);
    world.once().await;
    assert_eq!(
        world.held("icfg_1", "res_1", Field::Name),
        Some(json!("orders"))
    );
    assert_eq!(
        world.held("icfg_1", "res_1", Field::Status),
        Some(json!("error"))
    );
    assert_eq!(
        world.held("icfg_2", "res_2", Field::Name),
        Some(json!("renamed"))
    );
}

#[tokio::test]
async fn a_field_left_to_vercel_is_neither_sent_nor_drift() {
    let world = world("[reconcile]\nignore = [\"name\"]\n").await;
    world.once().await;
    world.change_at_vercel("icfg_1", "res_1", &json!({"name": "the customer's own"}));
    world
        .provider
        .execute("UPDATE resources SET name = 'renamed', version = 9 WHERE id = 'res_1'")
        .await;
    world.once().await;
    let name = world.held("icfg_1", "res_1", Field::Name);
    assert_eq!(name, Some(json!("the customer's own")));
    let drift = world.command(&["drift"]).await;
    drift.has(&["NO DRIFT   2 resources compared, none differs"]);
    let plan = world.command(&["plan", "--exit-code"]).await;
    assert_eq!(plan.code, Some(0), "{plan:?}");
}

#[tokio::test]
async fn a_baseline_of_one_customer_is_told_and_leaves_the_others() {
    let world = world("").await;
    let adopt = [
        "baseline",
        "adopt",
        "--installation",
        "icfg_1",
        "--as",
        "ana",
        "--reason",
        "moving in",
        "--json",
    ];
    let adopted = world.json(&adopt).await;
    assert_eq!(
        (&adopted["rows"], &adopted["adopted"]),
        (&json!(1), &json!(1)),
        "{adopted:#}"
    );
    world.once().await;
    assert_eq!(
        world.held("icfg_1", "res_1", Field::Name),
        None,
        "nothing was sent"
    );
    assert_eq!(
        world.held("icfg_2", "res_2", Field::Name),
        Some(json!("cache"))
    );
    let explained = world.command(&["explain", "icfg_1", "res_1"]).await;
    explained.has(&["\tadopted\tby ana the whole installation: \"moving in\"\t"]);
    let other = world.json(&["explain", "icfg_2", "res_2", "--json"]).await;
    assert_eq!(other["acts"], json!([]));
    let fleet = world.command(&["baseline", "compare", "--as", "bo"]).await;
    assert_eq!(fleet.code, Some(0), "{fleet:?}");
    assert!(
        fleet.stderr.contains("\"event\":\"baseline.by_hand\""),
        "{fleet:?}"
    );
    let other = world.json(&["explain", "icfg_2", "res_2", "--json"]).await;
    assert_eq!(
        (&other["acts"][0]["act"], &other["acts"][0]["scope"]),
        (&json!("compare"), &json!("fleet"))
    );
}

#[tokio::test]
async fn a_baseline_that_could_not_begin_was_done_by_nobody() {
    let world = world("").await;
    world.once().await;
    world
        .provider
        .execute("ALTER TABLE resources RENAME TO elsewhere")
        .await;
    let failed = world.command(&["baseline", "adopt", "--as", "ana"]).await;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(!failed.stderr.contains("baseline.by_hand"), "{failed:?}");
    world
        .provider
        .execute("ALTER TABLE elsewhere RENAME TO resources")
        .await;
    let explained = world.json(&["explain", "icfg_1", "res_1", "--json"]).await;
    assert_eq!(explained["acts"], json!([]), "{explained:#}");
}

#[tokio::test]
async fn a_row_gone_in_two_sweeps_is_uninstalled_and_an_empty_source_says_nothing() {
    let world = world("[reconcile]\non_missing = \"uninstall\"\n").await;
    world.once().await;
    let ready = Some(json!("ready"));
    world
        .provider
        .execute("DELETE FROM resources WHERE id = 'res_1'")
        .await;
    world.once().await;
    assert_eq!(
        world.held("icfg_1", "res_1", Field::Status),
        ready,
        "one sweep may be wrong"
    );
    world.once().await;
    assert_eq!(
        world.held("icfg_1", "res_1", Field::Status),
        Some(json!("uninstalled"))
    );
    world.provider.execute("DELETE FROM resources").await;
    for _ in 0..3 {
        world.once().await;
    }
    assert_eq!(world.held("icfg_2", "res_2", Field::Status), ready);
}

#[tokio::test]
async fn what_differs_is_narrowed_by_what_becomes_of_it_and_by_time() {
    let world = world("").await;
    world.once().await;
    let pause = [
        "installation",
        "pause",
        "icfg_1",
        "--reason",
        "a migration",
        "--as",
        "ana",
    ];
    world.command(&pause).await.has(&["PAUSED"]);
    world
        .provider
        .execute("UPDATE resources SET name = name || '-2', version = version + 10")
        .await;
    let once = world.command(&["once", "--timeout", "1s"]).await;
    assert_eq!(once.code, Some(1), "one customer is paused: {once:?}");
    world
        .provider
        .execute(
            "UPDATE resources SET status = 'suspended', version = version + 10 WHERE id = 'res_2'",
        )
        .await;
    let shown = async |filter: &[&str]| {
        let plan = world.json(&[&["plan", "--json"], filter].concat()).await;
        let ids = plan["resources"].as_array().expect("a list").iter();
        let ids: Vec<String> = ids.map(|one| one["resource_id"].to_string()).collect();
        ids.join(" ")
    };
    assert_eq!(shown(&[]).await, "\"res_1\" \"res_2\"");
    assert_eq!(shown(&["--state", "waiting"]).await, "\"res_1\"");
    assert_eq!(shown(&["--state", "now"]).await, "\"res_2\"");
    assert_eq!(shown(&["--state", "held", "--state", "dead"]).await, "");
    assert_eq!(shown(&["--field", "name"]).await, "\"res_1\"");
    // Only of the first the daemon knows since when; a number as cursor tells no time.
    assert_eq!(shown(&["--since", "1h"]).await, "\"res_1\"");
    let typo = world.command(&["plan", "--state", "late"]).await;
    assert_eq!(typo.code, Some(64), "{typo:?}");

    let status = world
        .json(&["status", "--json", "--installation", "icfg_2"])
        .await;
    let installations = status["installations"].as_array().expect("a list");
    assert_eq!(installations.len(), 1);
    assert_eq!(installations[0]["installation_id"], "icfg_2");
    assert_eq!(
        status["verdict"], "paused",
        "the verdict stays that of the whole"
    );

    let would = async |filter: &[&str]| {
        let command = [&["outbox", "retry", "--dry-run", "--json"], filter].concat();
        world.json(&command).await["done"].clone()
    };
    assert_eq!(would(&["--field", "name", "--since", "1h"]).await, 1);
    assert_eq!(would(&["--field", "status"]).await, 0);
    assert_eq!(would(&["--installation", "icfg_2"]).await, 0);
}

#[tokio::test]
async fn when_a_rotation_arrived_is_told_after_its_entry_was_pruned() {
    let world = world("prune = \"* * * * * *\"\n[retention]\ndelivered = \"0s\"\n").await;
    let mut daemon = world.installation.run();
    for _ in 0..2 {
        daemon.wait_for_event("delivery.acknowledged").await;
    }
    let rotation = "UPDATE resources SET secrets = '{\"DATABASE_URL\":\"hunter2-second\"}', version = 3 WHERE id = 'res_1'";
    world.provider.execute(rotation).await;
    let arrived = daemon.wait_for_event("delivery.acknowledged").await;
    let delivered = [
        "outbox",
        "list",
        "--state",
        "delivered",
        "--installation",
        "icfg_1",
        "--json",
    ];
    // Each round of the schedule ends with a line; what was delivered before it is gone then.
    while world.json(&delivered).await["entries"] != json!([]) {
        daemon.wait_for_event("prune.completed").await;
    }
    let vercel_id = arrived["vercel_id"]
        .as_str()
        .expect("the simulator gives one");
    let explained = world.command(&["explain", "icfg_1", "res_1"]).await;
    let line = explained
        .stdout
        .lines()
        .find(|line| line.contains(vercel_id));
    let line = line.unwrap_or_else(|| panic!("{vercel_id}: {explained:?}"));
    assert!(
        line.contains("\tacknowledged\tsecrets.DATABASE_URL\t"),
        "{line}"
    );
    let told = world.json(&["explain", "icfg_1", "res_1", "--json"]).await;
    let last = told["attempts"]
        .as_array()
        .and_then(|all| all.last())
        .expect("an attempt");
    for (property, expected) in [
        ("outcome", json!("acknowledged")),
        ("status", json!(200)),
        ("secret_names", json!(["DATABASE_URL"])),
        ("vercel_id", json!(vercel_id)),
    ] {
        assert_eq!(last[property], expected, "{last:#}");
    }
    assert!(
        last["started_at"].is_string() && last["duration_ms"].is_number(),
        "{last:#}"
    );
    assert!(daemon.end_with(Signal::TERM).await.success());
}
