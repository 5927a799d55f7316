//! A bad migration that suspends every customer, told with the real daemon and the real commands: held, seen, and discarded,
//! released or undone.

use reconciled::simulator::Field;
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::Connection as _;

use super::World;
use crate::support::process::Process;

/// Customers, each with one resource; one more has a resource that the migration does not touch.
const CUSTOMERS: usize = 12;
const SETTINGS: &str = "[guard]\ndestructive_max = 10\n";

/// The world with a daemon that has delivered everything.
async fn delivered() -> (World, Process) {
    let mut sql = super::TABLES.to_owned();
    for number in 1..=CUSTOMERS {
        sql.push_str(&customer(number));
    }
    sql.push_str(&customer(99));
    let world = World::with(&sql, SETTINGS).await;
    let mut daemon = world.installation.run();
    for _ in 0..=CUSTOMERS {
        daemon.wait_for_event("delivery.acknowledged").await;
    }
    (world, daemon)
}

fn customer(number: usize) -> String {
    format!(
        "INSERT INTO installations VALUES ('icfg_{number}', 'token-of-{number}');
         INSERT INTO resources VALUES
             ('icfg_{number}', 'res_{number}', 'orders', 'ready', '{{\"DATABASE_URL\":\"hunter2-{number}\"}}', {number});\n"
    )
}

impl World {
    /// The migration: everybody from `first` to `last` is suspended.
    async fn suspend(&self, first: usize, last: usize) {
        let among: Vec<String> = (first..=last).map(|n| format!("'res_{n}'")).collect();
        let sql = format!(
            "UPDATE resources SET status = 'suspended', version = version + (SELECT max(version) FROM resources) WHERE id IN ({})",
            among.join(", ")
        );
        self.provider.execute(&sql).await;
    }

    /// A change of the customer whom no migration touches; returns when Vercel has it.
    async fn rename_the_other(&self, daemon: &mut Process, name: &str) {
        let sql = format!(
            "UPDATE resources SET name = '{name}', version = 1 + (SELECT max(version) FROM resources) WHERE id = 'res_99'"
        );
        self.provider.execute(&sql).await;
        let is_other = |event: &Value| event["resource_id"] == "res_99";
        daemon
            .wait_for_event_where("delivery.acknowledged", is_other)
            .await;
        let field = self.field(99, Field::Name);
        assert_eq!(field, Some(json!(name)));
    }

    fn field(&self, number: usize, field: Field) -> Option<Value> {
        let remote = self.simulator.remote();
        let resource = remote.resource(&format!("icfg_{number}"), &format!("res_{number}"));
        resource.and_then(|resource| resource.field(field).cloned())
    }

    /// How many of the customers Vercel shows as suspended.
    fn suspended(&self) -> usize {
        let is_suspended =
            |number: &usize| self.field(*number, Field::Status) == Some(json!("suspended"));
        (1..=CUSTOMERS).filter(is_suspended).count()
    }
}

#[tokio::test]
async fn a_bad_migration_is_held_whole_while_other_changes_go_on() {
    let (world, mut daemon) = delivered().await;
    world.suspend(1, CUSTOMERS).await;
    let held = daemon.wait_for_event("guard.held").await;
    // The error line alone tells a bad migration from a large one.
    assert_eq!(held["level"], "ERROR", "{held:#}");
    assert_eq!(
        (&held["entries"], &held["destructive"]),
        (&json!(12), &json!(12))
    );
    assert_eq!(held["towards"], json!(["status → suspended (12)"]));
    assert_eq!(
        held["examples"].as_array().map(Vec::len),
        Some(10),
        "{held:#}"
    );
    let message = held["message"].as_str().unwrap_or_default();
    for part in [
        "Held 12 resources",
        "status → suspended (12)",
        "plan --held",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }

    world.rename_the_other(&mut daemon, "renamed").await;
    assert_eq!(world.suspended(), 0, "nothing of the pass was sent");

    let status = world.json(&["status", "--json"]).await;
    assert_eq!(
        (&status["verdict"], &status["next"]),
        (
            &json!("held"),
            &json!(world.installation.suggested("plan --held"))
        )
    );
    let hold = &status["holds"][0];
    assert_eq!(
        (&hold["resources"], &hold["destructive"]),
        (&json!(12), &json!(12))
    );
    assert_eq!(
        hold["towards"],
        json!([{"field": "status", "value": "suspended", "resources": 12}])
    );
    assert_eq!(hold["examples"].as_array().map(Vec::len), Some(10));
    assert!(daemon.end_with(Signal::TERM).await.success());
}

#[tokio::test]
async fn all_of_a_hold_is_seen_field_by_field() {
    let (world, mut daemon) = delivered().await;
    let sql = "UPDATE resources SET secrets = '{\"DATABASE_URL\":\"hunter2-rotated\"}' WHERE id = 'res_3'";
    world.provider.execute(sql).await;
    world.suspend(1, CUSTOMERS).await;
    daemon.wait_for_event("guard.held").await;
    // The source is being repaired: what is held is shown all the same.
    world
        .provider
        .execute("ALTER TABLE resources RENAME TO under_repair")
        .await;
    let plan = world.json(&["plan", "--held", "--json"]).await;
    assert_eq!(
        plan["totals"],
        json!({"resources": 12, "fields": 13, "secrets": 1, "held": 12, "in_flight": 0}),
        "{plan:#}"
    );
    assert_eq!(plan["hidden"], 0);
    for resource in plan["resources"].as_array().expect("a list") {
        let changes = resource["changes"].as_array().expect("a list");
        let status = changes.iter().find(|change| change["field"] == "status");
        assert_eq!(
            status.map(|status| (&status["old"], &status["new"])),
            Some((&json!("ready"), &json!("suspended"))),
            "{resource:#}"
        );
    }
    let one = ["plan", "--held", "--json", "--installation", "icfg_3"];
    let one = world.json(&one).await;
    let changes = &one["resources"][0]["changes"];
    assert_eq!(one["totals"]["resources"], 1);
    let fingerprint = |side: &str| changes[0][side].as_str().map(str::len);
    assert_eq!(
        (
            fingerprint("old_fingerprint"),
            fingerprint("new_fingerprint")
        ),
        (Some(6), Some(6)),
        "{changes:#}"
    );
    let rotations = ["plan", "--held", "--json", "--field", "secrets"];
    assert_eq!(world.json(&rotations).await["totals"]["resources"], 1);

    let some = ["plan", "--held", "--installation", "icfg_3"];
    let some = world.command(&some).await;
    some.has(&["1 resource, 2 fields (1 secret) fit the filter."]);

    let text = world.command(&["plan", "--held", "--exit-code"]).await;
    assert_eq!(text.code, Some(2), "{text:?}");
    text.has(&[
        "HELD   12 resources kept back since ",
        "~ icfg_12 / res_12",
        "status                 ready → suspended",
        "12 resources, 13 fields (1 secret).",
        &world
            .installation
            .suggested("outbox release --state held, or reconciled"),
    ]);
    assert!(daemon.end_with(Signal::TERM).await.success());
}

#[tokio::test]
async fn what_was_held_is_discarded_after_a_look_and_stays_discarded() {
    let (world, mut daemon) = delivered().await;
    world.suspend(1, CUSTOMERS).await;
    daemon.wait_for_event("guard.held").await;
    let discard = |more: &'static [&'static str]| {
        let all = [
            "outbox",
            "discard",
            "--state",
            "held",
            "--reason",
            "bad migration 41",
        ];
        [&all[..], more].concat()
    };
    let rehearsal = world.json(&discard(&["--dry-run", "--json"])).await;
    assert_eq!(
        (&rehearsal["done"], &rehearsal["dry_run"]),
        (&json!(12), &json!(true))
    );
    let unasked = world.command(&discard(&[])).await;
    assert_eq!(unasked.code, Some(64), "many need a word: {unasked:?}");
    let still = world.json(&["plan", "--held", "--json"]).await;
    assert_eq!(still["totals"]["resources"], 12, "nothing was changed");

    let discarded = world.command(&discard(&["--yes", "--as", "ana"])).await;
    assert_eq!(discarded.code, Some(0), "{discarded:?}");
    discarded.has(&["DISCARDED   12 entries"]);
    let none = world.command(&["plan", "--held", "--exit-code"]).await;
    assert_eq!(none.code, Some(0), "{none:?}");
    none.has(&["NOT HELD"]);
    // Further passes read the same rows; a delivery that began after them shows that they led to nothing.
    for name in ["once more", "and again"] {
        world.rename_the_other(&mut daemon, name).await;
    }
    assert_eq!(world.suspended(), 0);
    let explained = world.command(&["explain", "icfg_7", "res_7"]).await;
    explained.has(&["ana discarded it at", "bad migration 41"]);

    // The migration is rolled back: both sides agree again, and nothing is sent for it.
    let requests = world
        .simulator
        .remote()
        .requests_of("icfg_7", "res_7")
        .len();
    let rollback = "UPDATE resources SET status = 'ready', version = version + (SELECT max(version) FROM resources) WHERE id <> 'res_99'";
    world.provider.execute(rollback).await;
    world.rename_the_other(&mut daemon, "rolled back").await;
    let agreed = world.command(&["plan", "--exit-code"]).await;
    assert_eq!(agreed.code, Some(0), "{agreed:?}");
    let remote = world.simulator.remote();
    assert_eq!(remote.requests_of("icfg_7", "res_7").len(), requests);
    assert!(daemon.end_with(Signal::TERM).await.success());
}

#[tokio::test]
async fn what_was_held_and_is_meant_is_released_and_sent() {
    let (world, mut daemon) = delivered().await;
    world.suspend(1, CUSTOMERS).await;
    daemon.wait_for_event("guard.held").await;
    let one = [
        "outbox",
        "release",
        "--installation",
        "icfg_5",
        "--reason",
        "a trial",
        "--as",
        "bo",
        "--yes",
    ];
    world.command(&one).await.has(&["RELEASED   1 entry"]);
    let is_fifth = |event: &Value| event["resource_id"] == "res_5";
    daemon
        .wait_for_event_where("delivery.acknowledged", is_fifth)
        .await;
    assert_eq!(world.suspended(), 1, "the others are still held");
    let rest = [
        "outbox",
        "release",
        "--state",
        "held",
        "--reason",
        "it is meant",
        "--as",
        "ana",
        "--yes",
    ];
    let released = world.command(&rest).await;
    released.has(&["RELEASED   11 entries"]);
    assert!(
        released.stderr.contains("\"reason\":\"it is meant\""),
        "{released:?}"
    );
    for _ in 1..CUSTOMERS {
        daemon.wait_for_event("delivery.acknowledged").await;
    }
    assert_eq!(world.suspended(), CUSTOMERS);
    let machine = world.json(&["explain", "icfg_9", "res_9", "--json"]).await;
    let act = &machine["acts"][0];
    assert_eq!(
        (&act["act"], &act["actor"], &act["reason"]),
        (&json!("release"), &json!("ana"), &json!("it is meant"))
    );
    assert!(daemon.end_with(Signal::TERM).await.success());
}

#[tokio::test]
async fn a_mass_change_over_several_passes_counts_as_one() {
    let (world, mut daemon) = delivered().await;
    // Within the limit, so it is sent.
    world.suspend(1, 6).await;
    for _ in 0..6 {
        daemon.wait_for_event("delivery.acknowledged").await;
    }
    assert_eq!(world.suspended(), 6);
    // Alone within the limit too, but with those before it beyond.
    world.suspend(7, 11).await;
    let held = daemon.wait_for_event("guard.held").await;
    assert_eq!(
        (&held["entries"], &held["destructive"]),
        (&json!(5), &json!(11))
    );
    world.suspend(12, 12).await;
    let joined = daemon.wait_for_event("guard.joined").await;
    assert_eq!(joined["destructive"], 12, "{joined:#}");
    world.rename_the_other(&mut daemon, "meanwhile").await;
    assert_eq!(world.suspended(), 6);
    let plan = world.json(&["plan", "--held", "--json"]).await;
    assert_eq!(plan["totals"]["resources"], 6, "{plan:#}");
    assert!(daemon.end_with(Signal::TERM).await.success());
}

#[tokio::test]
async fn a_hold_dissolves_when_the_source_goes_back() {
    let (world, mut daemon) = delivered().await;
    world.suspend(1, CUSTOMERS).await;
    daemon.wait_for_event("guard.held").await;
    let undone = "UPDATE resources SET status = 'ready', version = version + (SELECT max(version) FROM resources) WHERE status = 'suspended'";
    world.provider.execute(undone).await;
    daemon.wait_for_event("guard.dissolved").await;
    world.command(&["plan", "--held"]).await.has(&["NOT HELD"]);
    let status = world.json(&["status", "--json"]).await;
    assert_eq!(
        (&status["outbox"]["held"], &status["holds"]),
        (&json!(0), &json!([]))
    );
    world.rename_the_other(&mut daemon, "afterwards").await;
    let requests = world.simulator.remote().requests_of("icfg_1", "res_1");
    assert_eq!(requests.len(), 1, "the first push, and nothing since");
    assert!(daemon.end_with(Signal::TERM).await.success());
}

#[tokio::test]
async fn an_order_that_is_broken_off_tells_first_what_was_done() {
    let sql = format!(
        "{}INSERT INTO installations VALUES ('icfg_1', 'token-of-one');
         WITH RECURSIVE counted (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < 600)
         INSERT INTO resources SELECT 'icfg_1', 'res_' || (1000 + n), 'orders', 'ready', '{{}}', n FROM counted ORDER BY n",
        super::TABLES
    );
    let world = World::with(&sql, SETTINGS).await;
    world.command(&["baseline", "adopt", "--as", "ana"]).await;
    let suspend = "UPDATE resources SET status = 'suspended', version = version + 600";
    world.provider.execute(suspend).await;
    world.command(&["once"]).await;
    // The last entry cannot be written, and with it none of its transaction, which is the second.
    let url = format!("sqlite://{}", world.installation.path("state.db").display());
    let mut state = sqlx::SqliteConnection::connect(&url)
        .await
        .expect("the state opens");
    sqlx::raw_sql(
        "CREATE TRIGGER broken BEFORE UPDATE ON entry WHEN OLD.resource_id = 'res_1600'
         BEGIN SELECT RAISE(ABORT, 'broken'); END",
    )
    .execute(&mut state)
    .await
    .expect("the state is a file");
    let release = async |how| {
        let order = ["outbox", "release", "--state", "held", "--as", "ana", how];
        world.command(&order).await
    };
    release("--dry-run")
        .await
        .has(&["WOULD BE RELEASED   600 entries; nothing was changed"]);
    let released = release("--yes").await;
    assert_eq!(released.code, Some(1), "{released:?}");
    released.has(&[
        "RELEASED   500 entries, 100 without an answer\n",
        "/res_1500\t",
    ]);
    assert!(!released.stdout.contains("res_1501"), "{released:?}");
    assert!(released.stderr.contains("broken"), "{released:?}");
    let status = world.json(&["status", "--json"]).await;
    assert_eq!(status["holds"][0]["resources"], json!(100), "{status:#}");
}
