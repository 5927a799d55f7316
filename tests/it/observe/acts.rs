//! What people do by hand is in the daemon's log, whichever command and terminal it came from.

use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::Connection as _;

use super::World;

fn said(event: &Value) -> Value {
    let of = |field: &str| event[field].clone();
    json!([
        of("act"),
        of("actor"),
        of("reason"),
        of("installation_id"),
        of("resource_id")
    ])
}

/// How many acts stand in the state that no daemon has logged.
async fn untold(world: &World) -> i64 {
    let path = world.installation.path("state.db");
    let url = format!("sqlite://{}?mode=ro", path.display());
    let connection = sqlx::SqliteConnection::connect(&url).await;
    let mut connection = connection.expect("the state is there");
    let count = sqlx::query_scalar("SELECT count(*) FROM act WHERE told_at IS NULL");
    let count = count.fetch_one(&mut connection).await;
    count.expect("the state is readable")
}

#[tokio::test]
async fn each_act_is_logged_by_the_daemon_once_with_who_and_why() {
    let world = World::new().await;
    world.insert(1, "res_1", 1, "ready").await;
    world.configure("", "");
    let mut daemon = world.installation.run();
    daemon.wait_for_event("sweep.completed").await;
    let pause = [
        "installation",
        "pause",
        "icfg_1",
        "--reason",
        "customer migration",
        "--as",
        "ana",
    ];
    let done = world.installation.output(&pause).await;
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let event = daemon.wait_for_event("act.recorded").await;
    assert_eq!(
        said(&event),
        json!(["pause", "ana", "customer migration", "icfg_1", null])
    );
    assert_eq!(
        event["message"],
        "ana did by hand: pause icfg_1 (customer migration)"
    );
    // A daemon that ends between the line and its mark says it again: this one is to have left the mark.
    while untold(&world).await > 0 {
        tokio::task::yield_now().await;
    }
    assert!(daemon.end_with(Signal::TERM).await.success());

    // Nobody is there to log it: the next daemon does, and does not repeat the first.
    let resume = ["installation", "resume", "icfg_1", "--as", "bo"];
    let done = world.installation.output(&resume).await;
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let mut daemon = world.installation.run();
    let event = daemon.wait_for_event("act.recorded").await;
    assert_eq!(said(&event), json!(["resume", "bo", null, "icfg_1", null]));
    daemon.has_said("sweep.completed").await;
    assert!(daemon.end_with(Signal::TERM).await.success());
    assert_eq!(daemon.events("act.recorded").len(), 1);
}
