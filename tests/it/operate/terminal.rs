//! What a person sees at a real terminal: progress that overwrites itself and goes away, colours, no log lines.

use std::process::Command;

use crate::support::postgres::Postgres;
use crate::support::process::Installation;
use crate::support::server::find_program;

/// Runs a command on a terminal of its own, 100 columns wide; returns every byte that it wrote there.
async fn on_a_terminal(installation: &Installation, arguments: &str) -> String {
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
        .stdin(std::process::Stdio::null());
    let output = tokio::task::spawn_blocking(move || script.output())
        .await
        .expect("it does not panic")
        .expect("script was found a moment ago");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
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
