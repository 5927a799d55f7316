//! Late commits on PostgreSQL, met by the running daemon that only polls, without any overlap: the horizon alone finds them.

use reconciled::simulator::{Field, Options, Simulator};
use rustix::process::Signal;
use secrecy::SecretString;
use serde_json::json;

use crate::source::bed::Bed;
use crate::support::process::Installation;

/// How long by the server's clock the transaction stays open, in milliseconds.
const LATE_MS: i64 = 3_500;

/// A provider with two resources, `late` and `busy`, and Vercel.
struct World {
    bed: Bed,
    simulator: Simulator,
    installation: Installation,
}

impl World {
    async fn new() -> Self {
        let bed = Bed::postgres().await;
        bed.create("timestamptz").await;
        bed.database
            .execute(
                "INSERT INTO resource (installation_id, resource_id, updated_at, status)
                 VALUES ('i', 'late', now(), 'ready'), ('i', 'busy', now(), 'ready');
                 CREATE TABLE installation (id text, token text);
                 INSERT INTO installation VALUES ('i', 'hunter2')",
            )
            .await;
        let simulator = Simulator::start(Options::creating())
            .await
            .expect("a free port");
        simulator
            .remote()
            .install("i", &SecretString::from("hunter2"));
        Self {
            bed,
            simulator,
            installation: Installation::new(""),
        }
    }

    /// Polls every second, and sweeps at the start alone.
    fn configure(&self, url: &str) {
        self.installation.configure(&format!(
            "[source]\nurl = \"{url}\"\noverlap = \"0s\"\nquery = \"{}\"\n\
             installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
             [state]\nurl = \"sqlite://{}\"\n[vercel]\nbase_url = \"{}\"\n\
             [schedule]\npoll = \"* * * * * *\"\nsweep = \"\"\n",
            self.bed.query(),
            self.installation.path("state.db").display(),
            self.simulator.base_url(),
        ));
    }

    /// The server's clock, in milliseconds.
    async fn clock(&self) -> i64 {
        self.bed
            .database
            .integer("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
            .await
    }

    fn holds(&self, id: &str, field: Field, value: &serde_json::Value) -> bool {
        let resource = self.simulator.remote().resource("i", id);
        resource.is_some_and(|resource| resource.field(field) == Some(value))
    }

    async fn shows(&self, id: &str, field: Field, value: serde_json::Value) {
        self.simulator
            .remote()
            .wait_until(|_| self.holds(id, field, &value))
            .await
            .unwrap_or_else(|error| panic!("{id} {value}: {error}"));
    }

    /// What `check` says.
    async fn check(&self) -> String {
        let output = self.installation.output(&["check"]).await;
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_commits_seconds_after_others_were_delivered_is_delivered_by_a_poll() {
    let world = World::new().await;
    world.configure(&world.bed.database.url);
    let mut daemon = world.installation.run();
    daemon.has_said("sweep.completed").await;
    for id in ["late", "busy"] {
        world.shows(id, Field::Status, json!("ready")).await;
    }

    let mut late = world.bed.database.session().await;
    late.execute("BEGIN").await;
    late.execute(
        "UPDATE resource SET status = 'suspended', updated_at = now() WHERE resource_id = 'late'",
    )
    .await;
    let begun = world.clock().await;
    for n in 0.. {
        let now = world.clock().await;
        world
            .bed
            .database
            .execute(&format!(
                "UPDATE resource SET metadata = '{{\"n\": {n}}}', updated_at = now() WHERE resource_id = 'busy'"
            ))
            .await;
        world
            .shows("busy", Field::Metadata, json!({ "n": n }))
            .await;
        if now > begun + LATE_MS {
            break;
        }
    }
    assert!(world.holds("late", Field::Status, &json!("ready")));
    late.execute("COMMIT").await;
    world.shows("late", Field::Status, json!("suspended")).await;

    assert_eq!(daemon.events("sweep.completed").len(), 1, "a poll found it");
    assert!(daemon.end_with(Signal::TERM).await.success());
    assert_eq!(world.simulator.remote().violations(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_promises_exactness_by_the_roles_right_not_by_who_is_there() {
    let world = World::new().await;
    world.configure(&world.bed.database.reader().await);
    let role = world.bed.reader_role();
    world.bed.is_quiet().await;
    let said = world.check().await;
    for part in [
        "detect   bounded: polls miss rows that commit later than the overlap",
        "W033",
        &format!("GRANT pg_read_all_stats TO {role}"),
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    world
        .bed
        .database
        .execute(&format!("GRANT pg_read_all_stats TO {role}"))
        .await;
    let said = world.check().await;
    let exact = "detect   exact, if the database sets the cursor and not the application's clock";
    assert!(said.contains(exact), "{said}");
    assert!(!said.contains("W033"), "{said}");
}
