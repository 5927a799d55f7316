//! The commands for the person on call, on a state that the real daemon made against the simulated Vercel.

use std::process::Output;

use reconciled::simulator::{Fault, Field, Matcher, Options, Simulator};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    database::TestDatabase,
    process::{Installation, holds},
    sqlite,
};

mod guard;
mod terminal;
mod upkeep;

const TABLES: &str = "
CREATE TABLE resources (icfg TEXT, id TEXT, name TEXT, status TEXT, secrets TEXT, version INTEGER);
CREATE TABLE installations (id TEXT, token TEXT);";
const PROVIDER: &str = "
INSERT INTO installations VALUES ('icfg_1', 'token-of-one'), ('icfg_2', 'token-of-two');
INSERT INTO resources VALUES
    ('icfg_1', 'res_1', 'orders', 'ready', '{\"DATABASE_URL\":\"hunter2-first\"}', 1),
    ('icfg_2', 'res_2', 'cache', 'ready', '{\"API_KEY\":\"hunter2-other\"}', 2);";

/// A provider, its configuration, and the simulated Vercel.
struct World {
    installation: Installation,
    provider: TestDatabase,
    simulator: Simulator,
}

impl World {
    async fn new() -> Self {
        Self::with(&format!("{TABLES}{PROVIDER}"), "").await
    }

    /// With these tables and rows, and settings beyond the usual ones.
    async fn with(provider_sql: &str, settings: &str) -> Self {
        let provider = sqlite::database();
        provider.execute(provider_sql).await;
        let simulator = Simulator::start(Options::creating())
            .await
            .expect("loopback has a free port");
        let installation = Installation::new("");
        installation.configure(&format!(
            "[source]\nurl = \"{}\"\n\
             query = \"SELECT icfg AS installation_id, id AS resource_id, version AS cursor, name, status, secrets FROM resources\"\n\
             installations_query = \"SELECT id AS installation_id, token AS access_token FROM installations\"\n\
             [state]\nurl = \"sqlite://{}\"\n[vercel]\nbase_url = \"{}\"\n[retry]\ninitial_interval = \"50ms\"\n\
             [schedule]\npoll = \"* * * * * *\"\n{settings}",
            provider.url,
            installation.path("state.db").display(),
            simulator.base_url()
        ));
        Self {
            installation,
            provider,
            simulator,
        }
    }

    async fn command(&self, arguments: &[&str]) -> Said {
        let said = Said::of(self.installation.output(arguments).await);
        for value in ["hunter2", "token-of"] {
            let all = format!("{}{}", said.stdout, said.stderr);
            assert!(
                !all.contains(value),
                "{arguments:?} shows {value}: {said:?}"
            );
        }
        said
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let said = self.command(arguments).await;
        serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"))
    }

    /// Everything is delivered, but for the status of `icfg_1/res_1`, which Vercel rejects. Returns the dead letter's number.
    async fn with_a_dead_letter(&self) -> String {
        let first = Matcher::resource("icfg_1", "res_1");
        self.simulator.remote().fault_always(
            Fault::RejectField(Field::Status),
            Matcher {
                field: Some(Field::Status),
                ..first
            },
        );
        self.command(&["once"]).await;
        let list = self
            .json(&["outbox", "list", "--state", "dead", "--json"])
            .await;
        assert_eq!(
            (&list["schema"], &list["total"], &list["cut"]),
            (&json!(1), &json!(1), &json!(0))
        );
        list["entries"][0]["entry"].to_string()
    }
}

/// What a command said, and how it ended.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Said {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    fn has(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.stdout.contains(part), "{part}: {self:?}");
        }
    }
}

#[tokio::test]
async fn without_a_state_the_answer_is_where_to_begin() {
    let world = World::new().await;
    let commands: [&[&str]; 5] = [
        &["status", "--json"],
        &["outbox", "list"],
        &["explain", "icfg_1", "res_1"],
        &["installation", "list"],
        &["outbox", "retry", "1"],
    ];
    for command in commands {
        let said = world.command(command).await;
        assert_eq!(
            (said.code, said.stdout.as_str()),
            (Some(1), ""),
            "{command:?}: {said:?}"
        );
        assert!(
            said.stderr.contains("error[R015]")
                && said.stderr.contains(&world.installation.suggested("plan")),
            "{said:?}"
        );
    }
    assert!(
        !world.installation.path("state.db").exists(),
        "looking creates nothing"
    );
}

#[tokio::test]
async fn a_state_that_jobs_keep_is_in_sync_without_a_daemon() {
    let world = World::new().await;
    let once = world.command(&["once", "--sweep"]).await;
    assert_eq!(once.code, Some(0), "{once:?}");
    // The first sweep finds both resources new; the second proves that what was sent is equal.
    let proof = world.command(&["once", "--sweep"]).await;
    assert_eq!(proof.code, Some(0), "{proof:?}");
    let status = world.json(&["status", "--json"]).await;
    assert_eq!(status["verdict"], "in_sync", "{status:#}");
    assert_eq!(
        (&status["resources"], &status["sweep"]["last"]["equal"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(status["daemon"]["running"], false);
    assert_eq!(status["installations"].as_array().map(Vec::len), Some(2));
    let explained = world.command(&["explain", "icfg_1", "res_1"]).await;
    assert_eq!(explained.code, Some(0), "{explained:?}");
    explained.has(&[
        "IN SYNC",
        "secrets.DATABASE_URL\t",
        "\tacknowledged\tstatus, name, secrets.DATABASE_URL\t",
    ]);
    let unknown = world.command(&["explain", "icfg_1", "res_9"]).await;
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    unknown.has(&["UNKNOWN"]);
}

#[tokio::test]
async fn a_dead_letter_is_seen_explained_and_given_up() {
    let world = World::new().await;
    let id = world.with_a_dead_letter().await;
    let status = world.command(&["status"]).await;
    assert_eq!(status.code, Some(0), "{status:?}");
    assert!(status.stdout.starts_with("DEAD\t1 dead"), "{status:?}");
    status.has(&[
        "\nicfg_1\tactive\t1\t0\t0\t1\t",
        &format!(
            "Next: {}\n",
            world.installation.suggested("outbox list --state dead")
        ),
    ]);
    let show = world.command(&["outbox", "show", &id]).await;
    show.has(&[
        "DEAD   entry",
        "status\tready\t\t\trejected (4",
        "Next: correct the value in the source",
    ]);
    let explained = world.command(&["explain", "icfg_1", "res_1"]).await;
    explained.has(&["DEAD   status rejected", "\trejected\t4", "Vercel said: "]);

    // A rehearsal decides the same and changes nothing.
    let rehearsal = world
        .json(&["outbox", "retry", "--state", "dead", "--dry-run", "--json"])
        .await;
    assert_eq!(
        (&rehearsal["dry_run"], &rehearsal["done"]),
        (&json!(true), &json!(1))
    );
    let list = world.json(&["outbox", "list", "--json"]).await;
    assert_eq!(list["entries"][0]["state"], "dead");

    let discarded = world
        .command(&[
            "outbox",
            "discard",
            "--state",
            "dead",
            "--reason",
            "rolled back",
            "--as",
            "ana",
            "--yes",
        ])
        .await;
    assert_eq!(discarded.code, Some(0), "{discarded:?}");
    discarded.has(&["DISCARDED   1 entry", "icfg_1/res_1\tdiscarded"]);
    assert!(
        discarded.stderr.contains("\"actor\":\"ana\""),
        "the log tells who: {discarded:?}"
    );
    let explained = world.command(&["explain", "icfg_1", "res_1"]).await;
    explained.has(&[
        "DISCARDED",
        "ana discarded it at",
        "rolled back",
        "\tdiscarded\tby ana: \"rolled back\"\t",
    ]);
    let machine = world.json(&["explain", "icfg_1", "res_1", "--json"]).await;
    assert_eq!(
        (&machine["acts"][0]["actor"], &machine["acts"][0]["act"]),
        (&json!("ana"), &json!("discard"))
    );
    assert_eq!(
        world.json(&["outbox", "list", "--json"]).await["entries"],
        json!([])
    );
}

#[tokio::test]
async fn of_a_duplicated_id_everybody_says_whether_rows_or_resources_are_counted() {
    let world = World::new().await;
    world.command(&["once", "--sweep"]).await;
    let again = "INSERT INTO resources SELECT * FROM resources WHERE id = 'res_2'";
    world.provider.execute(again).await;
    let once = world.command(&["once", "--sweep"]).await;
    once.has(&["1 resource quarantined"]);
    let check = world.command(&["check"]).await;
    check.has(&["   3 rows; manages ", ", 2 resources, "]);
    let plan = world.command(&["plan"]).await;
    plan.has(&["1 resource is unchanged. 2 rows of 1 resource cannot be used."]);
    let status = world.command(&["status"]).await;
    status.has(&[
        "rows of 1 resource in the source cannot be used",
        "3 rows = 1 equal + 0 waiting + 0 held + 0 dead + 2 quarantined",
    ]);
}

#[tokio::test]
async fn what_is_suggested_works_as_it_stands() {
    let world = World::new().await;
    world.with_a_dead_letter().await;
    let status = world.command(&["status"]).await;
    let next = status
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("Next: reconciled "))
        .unwrap_or_else(|| panic!("nothing is suggested: {status:?}"));
    // Without the configuration that every command of this world is given.
    let program = world.installation.command(&[]);
    let said = tokio::process::Command::new(program.as_std().get_program())
        .args(next.split(' '))
        .current_dir("/")
        .output()
        .await
        .expect("the binary is there");
    let said = Said::of(said);
    assert_eq!(said.code, Some(0), "{said:?}");
    said.has(&["\tdead\ticfg_1\tres_1\t"]);
}

#[tokio::test]
async fn a_mistyped_installation_does_not_look_like_success() {
    let world = World::new().await;
    let only_in_source = world.command(&["plan", "--installation", "icfg_1"]).await;
    assert_eq!(only_in_source.code, Some(0), "{only_in_source:?}");
    world.command(&["once", "--sweep"]).await;
    let commands: [&[&str]; 7] = [
        &["installation", "resume", "icfg_11"],
        &["status", "--installation", "icfg_11"],
        &["status", "--installation", "icfg_11", "--json"],
        &["plan", "--installation", "icfg_11"],
        &["plan", "--installation", "icfg_11", "--exit-code", "--json"],
        &["plan", "--held", "--installation", "icfg_11"],
        &["plan", "--held", "--installation", "icfg_11", "--json"],
    ];
    for command in commands {
        let said = world.command(command).await;
        assert_eq!(said.code, Some(1), "{command:?}: {said:?}");
        let told = said.stdout.contains("\"installation_known\": false")
            || format!("{}{}", said.stdout, said.stderr).contains("did you mean icfg_1?");
        assert!(told, "{command:?}: {said:?}");
        let known: Vec<&str> = command
            .iter()
            .map(|word| if *word == "icfg_11" { "icfg_1" } else { *word })
            .collect();
        let said = world.command(&known).await;
        assert_eq!(said.code, Some(0), "{known:?}: {said:?}");
    }
    world
        .provider
        .execute("DELETE FROM resources WHERE icfg = 'icfg_1'")
        .await;
    let gone = world.command(&["plan", "--installation", "icfg_1"]).await;
    assert_eq!(gone.code, Some(0), "{gone:?}");
    gone.has(&["The source has no row of this installation; the state knows it."]);
}

#[tokio::test]
async fn a_plan_tells_what_was_discarded_from_what_is_dead_and_names_what_is_to_be_compared() {
    let world = World::new().await;
    world.with_a_dead_letter().await;
    let dead = world.command(&["plan", "--state", "dead"]).await;
    dead.has(&["dead   status rejected by Vercel", "1 is dead"]);
    let discard = [
        "outbox",
        "discard",
        "--state",
        "dead",
        "--reason",
        "rolled back",
        "--yes",
    ];
    world.command(&discard).await;
    let plan = world.command(&["plan"]).await;
    plan.has(&[
        "note   status discarded by a person; not sent until the source changes it",
        "1 was discarded by a person",
    ]);
    assert!(!plan.stdout.contains("dead"), "{plan:?}");
    let json = world
        .json(&["plan", "--state", "discarded", "--json"])
        .await;
    assert_eq!(
        (
            &json["resources"][0]["standing"],
            &json["totals"]["discarded"],
            &json["totals"]["parked"]
        ),
        (&json!("discarded"), &json!(1), &json!(0))
    );
    let prepared = world.command(&["baseline", "compare", "--all"]).await;
    assert_eq!(prepared.code, Some(0), "{prepared:?}");
    let plan = world.command(&["plan"]).await;
    plan.has(&["of the unchanged is compared with what Vercel shows first"]);
    let json = world.json(&["plan", "--json"]).await;
    assert_eq!(json["totals"]["prepared"], json!(1), "{json:#}");
}

#[tokio::test]
async fn a_retry_delivers_what_died_once_vercel_takes_it() {
    let world = World::new().await;
    let id = world.with_a_dead_letter().await;
    world.simulator.remote().clear_faults();
    let retried = world.command(&["outbox", "retry", &id]).await;
    assert_eq!(retried.code, Some(0), "{retried:?}");
    retried.has(&["RETRIED   1 entry", "icfg_1/res_1\twaiting"]);
    let once = world.command(&["once"]).await;
    assert_eq!(once.code, Some(0), "{once:?}");
    let closed = world
        .json(&[
            "outbox",
            "list",
            "--state",
            "delivered",
            "--installation",
            "icfg_1",
            "--json",
        ])
        .await;
    assert_eq!(
        closed["entries"][0]["secret_names"],
        json!(["DATABASE_URL"])
    );
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_one_by_one() {
    let world = World::new().await;
    let id = world.with_a_dead_letter().await;
    let refused = world.command(&["outbox", "release", &id, "999"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    refused.has(&[
        "NOT RELEASED",
        "refused: the entry is not held",
        "refused: there is no such entry",
    ]);
    let usage: [&[&str]; 7] = [
        &["outbox", "retry"],
        &["outbox", "retry", "--state", "dead"],
        &["outbox", "retry", "1", "--state", "dead"],
        &["outbox", "retry", "--state", "delivered"],
        &["outbox", "discard", "1"],
        &["outbox", "discard", "1", "--reason", " "],
        &["explain", "icfg_1", ".."],
    ];
    for arguments in usage {
        let said = world.command(arguments).await;
        assert_eq!(
            (said.code, said.stdout.as_str()),
            (Some(64), ""),
            "{arguments:?}: {said:?}"
        );
    }
    let typo = world
        .command(&["installation", "pause", "icfg_11", "--reason", "x"])
        .await;
    assert_eq!(typo.code, Some(1), "{typo:?}");
    typo.has(&["NOT PAUSED", "did you mean icfg_1?"]);
    let list = world.json(&["installation", "list", "--json"]).await;
    assert_eq!(list["installations"][0]["pauses"], json!([]));
}

#[tokio::test]
async fn the_story_is_told_without_the_source() {
    let world = World::new().await;
    assert_eq!(world.command(&["once"]).await.code, Some(0));
    world
        .provider
        .execute("ALTER TABLE resources RENAME TO moved")
        .await;
    let explained = world.command(&["explain", "icfg_1", "res_1"]).await;
    assert_eq!(explained.code, Some(0), "{explained:?}");
    explained.has(&[
        "UNPROVEN",
        "Why: the source query failed: no such table",
        "status\t?\tready\t",
        "\tacknowledged\t",
    ]);
    let machine = world.json(&["explain", "icfg_1", "res_1", "--json"]).await;
    assert_eq!(machine["source"]["row"], "unreachable");
}

#[tokio::test]
async fn beside_a_running_daemon_a_pause_holds_and_a_resume_lets_go() {
    let world = World::new().await;
    let mut daemon = world.installation.run();
    let is_first = |event: &Value| event["resource_id"] == "res_1";
    daemon
        .wait_for_event_where("delivery.acknowledged", is_first)
        .await;
    let pause = [
        "installation",
        "pause",
        "icfg_1",
        "--reason",
        "customer migration",
        "--as",
        "ana",
    ];
    let paused = world.command(&pause).await;
    assert_eq!(paused.code, Some(0), "{paused:?}");
    paused.has(&["PAUSED", "until it is resumed"]);
    world
        .provider
        .execute("UPDATE resources SET secrets = '{\"DATABASE_URL\":\"hunter2-second\"}', version = 3 WHERE id = 'res_1'")
        .await;
    daemon
        .wait_for_event_where("poll.completed", |event| event["enqueued"] == 1)
        .await;

    let status = world.json(&["status", "--json"]).await;
    assert_eq!(status["verdict"], "paused", "{status:#}");
    assert_eq!(status["daemon"]["running"], true);
    assert_eq!(
        status["next"],
        world.installation.suggested("installation resume icfg_1")
    );
    let list = world
        .json(&[
            "outbox", "list", "--field", "secrets", "--since", "1h", "--json",
        ])
        .await;
    let entry = &list["entries"][0];
    assert_eq!(
        (&entry["standing"], &entry["secret_names"]),
        (&json!("paused"), &json!(["DATABASE_URL"]))
    );
    let explained = world.command(&["explain", "icfg_1", "res_1"]).await;
    explained.has(&[
        "PAUSED",
        "installation paused by ana",
        "\tpaused\tby ana the whole installation: \"customer migration\"\t",
    ]);

    let resumed = world
        .command(&["installation", "resume", "icfg_1", "--as", "bo"])
        .await;
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    resumed.has(&["RESUMED"]);
    let rotated = |event: &Value| {
        event["resource_id"] == "res_1" && event["secret_names"] == json!(["DATABASE_URL"])
    };
    daemon
        .wait_for_event_where("delivery.acknowledged", rotated)
        .await;
    assert!(daemon.end_with(Signal::TERM).await.success());
    let status = world.command(&["status"]).await;
    assert!(
        status.stdout.starts_with("DOWN\tthe daemon does not run"),
        "{status:?}"
    );
    assert!(
        !holds(&world.installation.path(""), b"hunter2"),
        "no act left a secret in the state"
    );
}

#[tokio::test]
async fn a_migration_that_suspends_everybody_is_held_seen_and_discarded_or_released() {
    let world = World::new().await;
    let guarded = |command: &'static [&'static str]| {
        [&["--set", "guard.destructive_max=1"], command].concat()
    };
    assert_eq!(world.command(&guarded(&["once"])).await.code, Some(0));
    world
        .provider
        .execute("UPDATE resources SET status = 'suspended', version = version + 10")
        .await;
    let once = world.command(&guarded(&["once"])).await;
    assert_eq!(
        once.code,
        Some(1),
        "what is held is not delivered: {once:?}"
    );

    let status = world.json(&["status", "--json"]).await;
    assert_eq!(status["verdict"], "held", "{status:#}");
    let hold = &status["holds"][0];
    assert_eq!(
        (&hold["resources"], &hold["destructive"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(
        hold["towards"],
        json!([{"field": "status", "value": "suspended", "resources": 2}])
    );
    world.command(&["status"]).await.has(&[
        "HELD\t2 held",
        "status → suspended (2)",
        "icfg_1/res_1, icfg_2/res_2",
    ]);
    let retried = world
        .command(&["outbox", "retry", "--state", "held", "--yes"])
        .await;
    assert_eq!(retried.code, Some(1), "{retried:?}");
    retried.has(&["refused: the entry is held; release or discard it"]);

    let discard = [
        "outbox",
        "discard",
        "--installation",
        "icfg_1",
        "--reason",
        "bad migration",
        "--yes",
    ];
    assert_eq!(world.command(&discard).await.code, Some(0));
    let released = world
        .command(&["outbox", "release", "--state", "held", "--yes"])
        .await;
    assert_eq!(released.code, Some(0), "{released:?}");
    released.has(&["RELEASED   1 entry", "icfg_2/res_2\twaiting"]);
    assert_eq!(world.command(&guarded(&["once"])).await.code, Some(0));
    let status = |installation, resource| {
        let resource = world.simulator.remote().resource(installation, resource);
        resource.and_then(|resource| resource.field(Field::Status).cloned())
    };
    assert_eq!(status("icfg_1", "res_1"), Some(json!("ready")));
    assert_eq!(status("icfg_2", "res_2"), Some(json!("suspended")));
}
