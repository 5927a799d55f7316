//! Every kind of row that cannot be used, met by the running daemon over a real database; and answers that never come to an end.

use std::time::Duration;

use reconciled::simulator::{Fault, Matcher, Options, Simulator};
use rustix::process::Signal;
use secrecy::SecretString;
use serde_json::Value;

use crate::source::bed::Bed;
use crate::source::on_every_database;
use crate::source::rows::{COLUMNS, NO_TEXT, UNUSABLE, Unusable};
use crate::support::process::Installation;

on_every_database!(every_unusable_row_is_quarantined_by_one_poll_and_disturbs_no_other);

/// Whether the daemon quarantined a row for this reason; the resource is the one that its row shows.
fn says(event: &Value, column: &str, problem: &str, resource_id: Option<&str>) -> bool {
    event["column"] == column
        && event["problem"]
            .as_str()
            .is_some_and(|said| said.contains(problem))
        && resource_id.is_none_or(|id| event["resource_id"] == id)
}

async fn every_unusable_row_is_quarantined_by_one_poll_and_disturbs_no_other(bed: Bed) {
    let long = bed.long();
    quarantined_by_one_poll(bed, long, &UNUSABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_rows_that_hold_no_text_are_quarantined_by_one_poll() {
    quarantined_by_one_poll(Bed::mariadb().await, "LONGBLOB", &NO_TEXT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_rows_that_hold_no_text_are_quarantined_by_one_poll() {
    quarantined_by_one_poll(Bed::sqlite(), "TEXT", &NO_TEXT).await;
}

/// Adds rows of each kind to a table whose columns are all of one type, beside good ones and one resource that is there twice.
async fn quarantined_by_one_poll(bed: Bed, long: &str, kinds: &[Unusable]) {
    let columns = COLUMNS.map(|column| format!("{column} {long}")).join(", ");
    bed.database
        .execute(&format!(
            "CREATE TABLE resource ({columns}, version BIGINT);
             INSERT INTO resource (installation_id, resource_id, status, version) VALUES ('i', 'first', 'ready', 1);
             CREATE TABLE installation (id VARCHAR(40), token VARCHAR(40));
             INSERT INTO installation VALUES ('i', 'hunter2')"
        ))
        .await;
    let simulator = Simulator::start(Options::creating())
        .await
        .expect("a free port");
    let remote = simulator.remote();
    remote.install("i", &SecretString::from("hunter2"));
    let installation = Installation::new("");
    installation.configure(&format!(
        "[source]\nurl = \"{}\"\noverlap = 0\n\
         query = \"SELECT {}, version {} FROM resource\"\n\
         installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
         [state]\nurl = \"sqlite://{}\"\n[vercel]\nbase_url = \"{}\"\n\
         [schedule]\npoll = \"* * * * * *\"\n[log]\nfilter = \"debug\"\n",
        bed.database.url,
        COLUMNS.join(", "),
        bed.as_cursor(),
        installation.path("state.db").display(),
        simulator.base_url(),
    ));
    let mut daemon = installation.run();
    daemon.wait_for_event("delivery.acknowledged").await;
    daemon.has_said("sweep.completed").await;

    // They appear all at once, each beside one that is as it should be.
    let mut session = bed.database.session().await;
    session.execute("BEGIN").await;
    for (index, unusable) in kinds.iter().enumerate() {
        let version = index + 2;
        session
            .execute(&unusable.insert(&bed, index, &format!(", {version}")))
            .await;
        session
            .execute(&format!(
                "INSERT INTO resource (installation_id, resource_id, status, version) VALUES ('i', 'good{index}', 'ready', {version})"
            ))
            .await;
    }
    for _ in 0..2 {
        session
            .execute("INSERT INTO resource (installation_id, resource_id, version) VALUES ('i', 'twice', 2)")
            .await;
    }
    session.execute("COMMIT").await;
    for _ in 0..=kinds.len() {
        daemon.wait_for_event("row.quarantined").await;
    }
    let said = daemon.events("row.quarantined");
    let mut left = said.clone();
    for (index, unusable) in kinds.iter().enumerate() {
        let shown = unusable.shown_id(index);
        let found = left
            .iter()
            .position(|event| says(event, unusable.column, unusable.problem, shown.as_deref()));
        let found =
            found.unwrap_or_else(|| panic!("{} {}: {left:#?}", unusable.column, unusable.problem));
        left.swap_remove(found);
    }
    assert_eq!(left.len(), 1, "{left:#?}");
    assert!(says(
        &left[0],
        "resource_id",
        "another row names too",
        Some("twice")
    ));

    // One poll found them all: of those that looked after they were there it is the first.
    let lines = daemon.said();
    let event = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    let quarantined = |text: &str| event(text)["event"] == "row.quarantined";
    let first = lines.iter().position(|line| quarantined(&line.text));
    let last = lines.iter().rposition(|line| quarantined(&line.text));
    let between = &lines[first.expect("some")..last.expect("some")];
    let polls = between
        .iter()
        .filter(|line| event(&line.text)["event"] == "poll.completed");
    assert_eq!(polls.count(), 0, "they were told by one poll");

    for index in 0..kinds.len() {
        remote
            .wait_until(|remote| remote.resource("i", &format!("good{index}")).is_some())
            .await
            .expect("a good row is delivered whatever stands beside it");
    }
    let status = installation.output(&["status", "--json"]).await;
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["quarantined"]["count"], kinds.len() + 1, "{status}");
    assert!(daemon.end_with(Signal::TERM).await.success());
    assert_eq!(remote.violations(), []);
}

#[tokio::test]
async fn an_answer_that_comes_byte_by_byte_is_cut_within_the_request_timeout() {
    let provider = crate::support::sqlite::database();
    provider
        .execute(
            "CREATE TABLE resource (id TEXT, status TEXT); INSERT INTO resource VALUES ('res_1', 'ready');
             CREATE TABLE installation (id TEXT, token TEXT); INSERT INTO installation VALUES ('icfg_1', 'hunter2')",
        )
        .await;
    let simulator = Simulator::start(Options::creating())
        .await
        .expect("a free port");
    let remote = simulator.remote();
    remote.install("icfg_1", &SecretString::from("hunter2"));
    // Each byte comes long before any silence would be noticed, and the whole would take hours.
    remote.fault(
        Fault::Status {
            code: 409,
            body: None,
            headers: Vec::new(),
        },
        Matcher::patch(),
    );
    remote.fault(
        Fault::SlowBody(Duration::from_secs(600)),
        Matcher::method("GET"),
    );
    remote.fault(Fault::SlowBody(Duration::from_secs(600)), Matcher::patch());
    let installation = Installation::new("");
    installation.configure(&format!(
        "[source]\nurl = \"{}\"\nquery = \"SELECT 'icfg_1' AS installation_id, id AS resource_id, status FROM resource\"\n\
         installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
         [state]\nurl = \"sqlite://{}\"\n[vercel]\nbase_url = \"{}\"\nrequest_timeout = \"1s\"\n\
         [retry]\ninitial_interval = \"20ms\"\nmax_interval = \"200ms\"\nlate_apply = \"200ms\"\n",
        provider.url,
        installation.path("state.db").display(),
        simulator.base_url(),
    ));
    let mut daemon = installation.run();
    // What it did not hear the end of in time it goes on without: the pauses never end by themselves while the test runs.
    let acknowledged = daemon.wait_for_event("delivery.acknowledged").await;
    assert_eq!(
        acknowledged["status"], 200,
        "its head had come: {acknowledged}"
    );
    remote
        .wait_until(|remote| remote.ended() >= 3)
        .await
        .expect("it has left all of them");
    assert!(daemon.end_with(Signal::TERM).await.success());
    assert_eq!(remote.violations(), []);
}
