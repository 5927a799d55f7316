//! The command line as its users meet it: the real binary, its answers on stdout, its faults on stderr, its exit codes.

use std::process::Output;

use reconciled::simulator::{Options, Simulator};
use serde_json::Value;
use tokio::process::Command;

use crate::support::{database::TestDatabase, process::Installation, sqlite};

const PROVIDER: &str = "
CREATE TABLE resources (icfg TEXT, id TEXT, name TEXT, status TEXT, plan TEXT, secrets TEXT, version INTEGER);
CREATE TABLE installations (id TEXT, token TEXT);
INSERT INTO installations VALUES ('icfg_1', 'token-of-one'), ('icfg_2', 'token-of-two');
INSERT INTO resources VALUES
    ('icfg_1', 'res_1', 'orders', 'ready', '{\"id\":\"pro\",\"type\":\"prepayment\",\"name\":\"Pro\",\"cost\":\"$9\"}',
     '{\"DATABASE_URL\":\"hunter2-first\"}', 1),
    ('icfg_2', 'res_2', 'cache', 'ready', NULL, '{\"API_KEY\":\"hunter2-other\"}', 2);";

const QUERY: &str = "SELECT icfg AS installation_id, id AS resource_id, version AS cursor, name, status, \
    plan AS billing_plan, secrets FROM resources";

/// A provider, its configuration, and the simulated Vercel.
struct World {
    installation: Installation,
    provider: TestDatabase,
    simulator: Simulator,
}

impl World {
    async fn new() -> Self {
        Self::with_query(QUERY).await
    }

    async fn with_query(query: &str) -> Self {
        let provider = sqlite::database();
        provider.execute(PROVIDER).await;
        let simulator = Simulator::start(Options::creating())
            .await
            .expect("loopback has a free port");
        let installation = Installation::new("");
        let configuration = format!(
            "[source]\nurl = \"{}\"\nquery = \"{query}\"\n\
             installations_query = \"SELECT id AS installation_id, token AS access_token FROM installations\"\n\
             [state]\nurl = \"sqlite://{}\"\n[vercel]\nbase_url = \"{}\"\n[retry]\ninitial_interval = \"50ms\"\n",
            provider.url,
            installation.path("state.db").display(),
            simulator.base_url()
        );
        installation.configure(&configuration);
        Self {
            installation,
            provider,
            simulator,
        }
    }

    async fn command(&self, arguments: &[&str]) -> Said {
        Said::of(self.installation.output(arguments).await)
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

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

async fn binary(arguments: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_reconciled"))
        .args(arguments)
        .current_dir("/")
        .output()
        .await;
    Said::of(output.expect("the binary under test can be run"))
}

#[tokio::test]
async fn help_and_version_are_answers_and_a_typo_is_usage() {
    let help = binary(&["--help"]).await;
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    assert!(help.stdout.contains("reconciled check"), "{help:?}");
    let version = binary(&["--version"]).await;
    assert_eq!(
        (version.code, version.stdout.as_str()),
        (
            Some(0),
            concat!("reconciled ", env!("CARGO_PKG_VERSION"), "\n")
        )
    );
    for arguments in [
        &["chek"][..],
        &[],
        &["plan", "--limit", "many"],
        &["plan", "--field", "secret"],
        &["once", "--timeout", "5"],
    ] {
        let usage = binary(arguments).await;
        assert_eq!(
            (usage.code, usage.stdout.as_str()),
            (Some(64), ""),
            "{arguments:?}: {usage:?}"
        );
    }
    assert!(binary(&["chek"]).await.stderr.contains("'check'"));
}

#[tokio::test]
async fn every_command_that_needs_a_configuration_ends_with_78_without_one_that_is_valid() {
    let installation =
        Installation::new("[source]\nurl = \"sqlite:///nowhere.db\"\n[schedule]\npol = \"x\"\n");
    for command in ["run", "once", "check", "plan"] {
        let said = Said::of(installation.output(&[command]).await);
        assert_eq!(
            (said.code, said.stdout.as_str()),
            (Some(78), ""),
            "{command}: {said:?}"
        );
        for part in [
            "error[C003]",
            "did you mean `schedule.poll`?",
            "error[C004]",
            "Connections were not tried.",
        ] {
            assert!(said.stderr.contains(part), "{command}: {said:?}");
        }
    }
    let json = Said::of(installation.output(&["check", "--json"]).await);
    assert_eq!(
        (json.code, &json.json()["ready"]),
        (Some(78), &Value::Bool(false))
    );
}

#[tokio::test]
async fn check_says_that_it_is_ready_and_sends_nothing() {
    let world = World::new().await;
    let said = world.command(&["check"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    for part in [
        "2 rows; manages",
        "2 of 2 sampled installations accepted their token",
        "Ready",
        "Nothing was sent.",
        "Next: ",
    ] {
        assert!(said.stdout.contains(part), "{part}: {said:?}");
    }
    assert!(
        world
            .simulator
            .remote()
            .requests()
            .iter()
            .all(|request| request.method == "GET")
    );
    assert!(world.simulator.remote().resources().is_empty());
    assert!(
        !world.installation.path("state.db").exists(),
        "check creates no state"
    );
    let json = world.command(&["check", "--json"]).await.json();
    assert_eq!(
        (&json["schema"], &json["ready"], &json["source"]["rows"]),
        (&1.into(), &true.into(), &2.into())
    );
}

#[tokio::test]
async fn check_makes_no_state_of_an_empty_file() {
    let world = World::new().await;
    let state = world.installation.path("state.db");
    std::fs::write(&state, "").expect("the directory is writable");
    for command in [&["check"][..], &["plan"]] {
        let said = world.command(command).await;
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    let said = world.command(&["check"]).await;
    assert!(said.stdout.contains("created by the first run"), "{said:?}");
    assert_eq!(std::fs::metadata(&state).expect("it is there").len(), 0);
    let files = std::fs::read_dir(world.installation.path("")).expect("it is a directory");
    let names: Vec<_> = files
        .filter_map(|file| file.ok()?.file_name().into_string().ok())
        .collect();
    assert!(
        !names.iter().any(|name| name.starts_with("state.db-")),
        "{names:?}"
    );
    let once = world.command(&["once", "--sweep"]).await;
    assert_eq!(once.code, Some(0), "{once:?}");
}

#[tokio::test]
async fn a_password_on_the_command_line_is_warned_of() {
    let world = World::new().await;
    let set = "state.url=postgres://u:hunter2-word@127.0.0.1:1/db";
    let said = world.command(&["--set", set, "check", "--offline"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.contains("W026"), "{said:?}");
    assert!(!format!("{said:?}").contains("hunter2-word"), "{said:?}");
}

#[tokio::test]
async fn check_tells_what_the_operator_must_change_from_what_may_pass() {
    let misspelt = World::with_query(
        "SELECT icfg AS installation_id, id AS resource_id, status AS statu FROM resources",
    )
    .await;
    let said = misspelt.command(&["check"]).await;
    assert_eq!(said.code, Some(78), "{said:?}");
    assert!(
        said.stdout.contains("R005") && said.stdout.contains("status"),
        "{said:?}"
    );

    // Rows that cannot be used keep no others back.
    let unusable = World::with_query(
        "SELECT icfg AS installation_id, id AS resource_id, 'shiny' AS status FROM resources",
    )
    .await;
    let said = unusable.command(&["check"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let first = "2 of the first 2 rows cannot be used, first icfg_1/res_1: column `status`";
    assert!(said.stdout.contains(first), "{said:?}");

    let world = World::new().await;
    let gone = world.installation.path("gone.db");
    let url = format!("source.url=sqlite://{}", gone.display());
    let said = world.command(&["--set", &url, "check"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stdout.contains("help"), "{said:?}");
    let offline = world.command(&["check", "--offline", "--set", &url]).await;
    assert_eq!(offline.code, Some(0), "{offline:?}");
    assert!(
        offline.stdout.contains("Connections were not tried."),
        "{offline:?}"
    );
}

#[tokio::test]
async fn a_plan_shows_what_once_then_sends_and_nothing_afterwards() {
    let world = World::new().await;
    let plan = world.command(&["plan", "--exit-code"]).await;
    assert_eq!(plan.code, Some(2), "{plan:?}");
    assert!(
        plan.stdout.contains("+ icfg_1 / res_1  \"orders\""),
        "{plan:?}"
    );
    assert!(
        plan.stdout
            .contains("2 resources, 7 fields (2 secrets): 2 would be sent now. 0 unchanged."),
        "{plan:?}"
    );
    assert!(
        !world.installation.path("state.db").exists(),
        "plan creates no state"
    );

    let once = world.command(&["once", "--sweep"]).await;
    assert_eq!(once.code, Some(0), "{once:?}");
    assert!(once.stdout.starts_with("DELIVERED"), "{once:?}");
    let held = world
        .simulator
        .remote()
        .resource("icfg_1", "res_1")
        .expect("it was sent");
    assert_eq!(held.secret("DATABASE_URL"), Some("hunter2-first"));
    assert!(world.simulator.remote().violations().is_empty());

    let again = world.command(&["plan", "--exit-code"]).await;
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(
        again
            .stdout
            .contains("Nothing to send: 2 resources are unchanged."),
        "{again:?}"
    );
}

#[tokio::test]
async fn a_plan_shows_secrets_by_fingerprint_and_plans_by_property() {
    let world = World::new().await;
    assert_eq!(world.command(&["once"]).await.code, Some(0));
    world
        .provider
        .execute(
            "UPDATE resources
             SET secrets = '{\"DATABASE_URL\":\"hunter2-second\"}', plan = replace(plan, '$9', '$19'), version = 3
             WHERE id = 'res_1';
             UPDATE resources SET status = 'sleeping', version = 4 WHERE id = 'res_2'",
        )
        .await;
    let text = world.command(&["plan"]).await;
    assert!(text.stdout.contains("~ icfg_1 / res_1"), "{text:?}");
    assert!(
        text.stdout.contains("billingPlan.cost       $9 → $19"),
        "{text:?}"
    );
    assert!(text.stdout.contains("(status, name unchanged)"), "{text:?}");
    assert!(
        text.stdout.contains("! icfg_2 / res_2  column `status`"),
        "{text:?}"
    );

    let said = world
        .command(&["plan", "--json", "--field", "secrets"])
        .await;
    let json = said.json();
    assert_eq!((&json["schema"], &json["hidden"]), (&1.into(), &0.into()));
    let change = &json["resources"][0]["changes"][0];
    assert_eq!(
        (&change["field"], &change["secret_name"]),
        (&"secrets".into(), &"DATABASE_URL".into())
    );
    let fingerprint = |side: &str| {
        change[side]
            .as_str()
            .map(str::to_owned)
            .expect("a fingerprint")
    };
    assert_ne!(
        fingerprint("old_fingerprint"),
        fingerprint("new_fingerprint")
    );
    assert_eq!(fingerprint("new_fingerprint").len(), 6);
    assert_eq!(
        json["resources"][0]["changes"].as_array().map(Vec::len),
        Some(1)
    );
    assert_eq!(json["quarantined"][0]["column"], "status");
    for said in [text, said] {
        assert!(!format!("{said:?}").contains("hunter2"), "{said:?}");
        assert!(
            !said.stdout.contains('\u{1b}'),
            "no colour in a pipe: {said:?}"
        );
    }
    let elsewhere = world
        .command(&["plan", "--json", "--installation", "icfg_none"])
        .await
        .json();
    assert_eq!(elsewhere["resources"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn once_fails_when_something_stays_undelivered_or_the_source_fails() {
    let world = World::new().await;
    world.simulator.remote().revoke_tokens("icfg_1");
    world
        .simulator
        .remote()
        .install("icfg_1", &"another-token".to_owned().into());
    let said = world.command(&["once", "--timeout", "1s", "--json"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    let json = said.json();
    assert_eq!(
        (&json["schema"], &json["complete"]),
        (&1.into(), &false.into())
    );
    assert!(
        world
            .simulator
            .remote()
            .resource("icfg_2", "res_2")
            .is_some(),
        "the other customer was served"
    );

    let url = format!(
        "source.url=sqlite://{}",
        world.installation.path("gone.db").display()
    );
    let said = world.command(&["once", "--set", &url]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("error[R001]"), "{said:?}");
}

#[tokio::test]
async fn a_second_daemon_on_a_state_is_refused() {
    let world = World::new().await;
    let mut daemon = world.installation.run();
    daemon.wait_for_event("daemon.started").await;
    let said = world.command(&["once"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    let holder = format!("process {}", daemon.pid().as_raw_nonzero());
    assert!(
        said.stderr.contains("error[R011]") && said.stderr.contains(&holder),
        "{said:?}"
    );
    // Looking is allowed beside it.
    assert_eq!(world.command(&["plan"]).await.code, Some(0));
    assert!(
        daemon
            .end_with(rustix::process::Signal::TERM)
            .await
            .success()
    );
}

#[tokio::test]
async fn a_closed_pipe_ends_quietly() {
    let world = World::new().await;
    let script = format!(
        "{} --config {} plan 2>&1 | true; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_reconciled"),
        world.installation.configuration().display()
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .output()
        .await
        .expect("bash runs");
    assert_eq!(Said::of(output).stdout, "0\n");
}

#[tokio::test]
async fn the_simulator_prints_a_line_per_request_and_judges_at_the_end() {
    let installation = Installation::new("");
    let mut simulator = installation.start(&["simulate", "--listen", "127.0.0.1:0"]);
    let line = simulator
        .wait_for_line("its address", |line| line.text.contains("http://"))
        .await
        .text;
    let address = line
        .rsplit("http://")
        .next()
        .expect("the line has an address")
        .to_owned();
    let request = format!(
        "curl -sS -X PATCH http://{address}/v1/installations/icfg_1/resources/res_1 -d '{{}}'"
    );
    Command::new("bash")
        .args(["-c", &request])
        .output()
        .await
        .expect("curl runs");
    simulator
        .wait_for_line("the request", |line| {
            line.text.starts_with("PATCH icfg_1/res_1")
        })
        .await;
    let status = simulator.end_with(rustix::process::Signal::INT).await;
    assert_eq!(
        status.code(),
        Some(1),
        "a request without a token is a violation"
    );
    assert!(
        simulator
            .said()
            .iter()
            .any(|line| line.text.contains("missing_token"))
    );
}

#[tokio::test]
async fn the_demo_proves_agreement() {
    let installation = Installation::new("");
    let said = Said::of(
        installation
            .output(&["demo", "--fast", "--seed", "7"])
            .await,
    );
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.contains("Both sides agree."), "{said:?}");
    assert!(
        said.stdout.contains("0 of 127 values and tokens found"),
        "{said:?}"
    );
}
