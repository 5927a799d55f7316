//! What a person sees at a real terminal: progress that overwrites itself and goes away, colours, no log lines.

use std::io::Write as _;
use std::process::Command;

use super::World;
use crate::support::postgres::Postgres;
use crate::support::process::Installation;
use crate::support::server::find_program;

/// Runs a command on a terminal of its own, 100 columns wide, where nobody types anything; returns every byte that it wrote there.
async fn on_a_terminal(installation: &Installation, arguments: &str) -> String {
    let (success, said) = typing(installation, arguments, "").await;
    assert!(success, "{said}");
    said
}

/// The same where somebody types this; whether it ended well, and what is on the terminal then.
async fn typing(installation: &Installation, arguments: &str, typed: &str) -> (bool, String) {
    let command = format!(
        "stty cols 100; exec {} --config {} {arguments}",
        env!("CARGO_BIN_EXE_reconciled"),
        installation.configuration().display()
    );
    let mut script = Command::new(find_program("script", &[]));
    script
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    let typed = typed.to_owned();
    let run = move || {
        let mut running = script.spawn()?;
        let keyboard = running.stdin.take();
        keyboard.map_or(Ok(()), |mut keyboard| keyboard.write_all(typed.as_bytes()))?;
        running.wait_with_output()
    };
    let output = tokio::task::spawn_blocking(run)
        .await
        .expect("it does not panic")
        .expect("script was found a moment ago");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    (output.status.success(), said)
}

#[tokio::test]
async fn an_order_for_several_entries_is_carried_out_only_when_it_is_confirmed() {
    let world = World::new().await;
    world.command(&["once"]).await;
    for installation in ["icfg_1", "icfg_2"] {
        let pause = ["installation", "pause", installation, "--reason", "a trial"];
        world.command(&pause).await;
    }
    let rename = "UPDATE resources SET name = 'renamed', version = version + 10";
    world.provider.execute(rename).await;
    world.command(&["once"]).await;
    let discard = "outbox discard --state waiting --as ana --reason left";
    for (typed, is_done) in [("", false), ("n\n", false), ("yep\n", false), ("Y\n", true)] {
        let (success, said) = typing(&world.installation, discard, typed).await;
        assert!(said.contains("Discard 2 entries?"), "{said}");
        assert_eq!(success, is_done, "{typed:?}: {said}");
        assert_eq!(
            said.contains("Nothing was changed."),
            !is_done,
            "{typed:?}: {said}"
        );
        assert_eq!(said.contains("DISCARDED"), is_done, "{typed:?}: {said}");
    }
    let list = world.json(&["outbox", "list", "--json"]).await;
    assert_eq!(list["total"], 0, "{list:#}");
}

#[tokio::test]
async fn an_order_shows_its_progress_in_one_line_and_takes_it_away() {
    let world = World::new().await;
    let state = Postgres::shared().database().await;
    let on_postgres = format!("--set state.url={}", state.url);
    let set = on_postgres.split(' ').collect::<Vec<_>>();
    world
        .command(&[&["baseline", "adopt"], &set[..]].concat())
        .await;
    for installation in ["icfg_1", "icfg_2"] {
        let pause = ["installation", "pause", installation, "--reason", "a trial"];
        world.command(&[&pause[..], &set].concat()).await;
    }
    let rename = "UPDATE resources SET name = 'renamed', version = version + 10";
    world.provider.execute(rename).await;
    world.command(&[&["once"], &set[..]].concat()).await;
    // Each entry takes longer than half the time after which progress is shown.
    state
        .execute(
            "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.6); RETURN NEW; END';
             CREATE TRIGGER linger BEFORE UPDATE ON reconciled.entry FOR EACH ROW EXECUTE FUNCTION linger()",
        )
        .await;
    let discard =
        format!("outbox discard --state waiting --as ana --reason left --yes {on_postgres}");
    let said = on_a_terminal(&world.installation, &discard).await;
    let blank = " ".repeat(72);
    let progress = format!(
        "\r{:<72}\r{blank}\r",
        "2 of 2 entries discarded, 1 a second"
    );
    // How fast it was is the machine's affair.
    let shown = said.replace(", 0 a second", ", 1 a second");
    assert!(shown.starts_with(&progress), "{said:?}");
    assert!(
        shown.contains("DISCARDED\u{1b}[0m   2 entries\r\n"),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_baseline_shows_its_progress_in_one_line_and_takes_it_away() {
    let provider = Postgres::shared().database().await;
    provider
        .execute(
            "CREATE TABLE resource (installation_id text, id text);
             CREATE TABLE installation (id text, token text);
             INSERT INTO resource VALUES ('icfg_1', 'res_1'), ('icfg_1', 'res_2')",
        )
        .await;
    let installation = Installation::new("");
    // Each row takes longer than half the time after which progress is shown.
    installation.configure(&format!(
        "[source]\nurl = \"{}\"\n\
         query = \"SELECT installation_id, id AS resource_id, 'ready' AS status FROM resource WHERE pg_sleep(0.6) IS NOT NULL\"\n\
         installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
         [state]\nurl = \"sqlite://{}\"\n",
        provider.url,
        installation.path("state.db").display(),
    ));
    let said = on_a_terminal(&installation, "baseline adopt --as ana").await;
    let blank = " ".repeat(72);
    let progress = format!("\r{:<72}\r{blank}\r", "2 rows read, 2 adopted, 1 a second");
    // How fast it was is the machine's affair.
    let shown = said.replace(", 0 a second", ", 1 a second");
    let expected = format!(
        "{progress}\u{1b}[32mADOPTED\u{1b}[0m   2 of 2 rows taken as acknowledged. Nothing was sent.\r\n\
         Next: {}\r\n",
        installation.suggested("plan")
    );
    assert_eq!(shown, expected);
}
