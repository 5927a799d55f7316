//! What people do by hand is in the daemon's log, whichever command and terminal it came from.

use rustix::process::Signal;
use serde_json::{Value, json};

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
    assert!(daemon.end_with(Signal::TERM).await.success());

    // Nobody is there to log it: the next daemon does, and does not repeat the first.
    let resume = ["installation", "resume", "icfg_1", "--as", "bo"];
    let done = world.installation.output(&resume).await;
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let mut daemon = world.installation.run();
    let event = daemon.wait_for_event("act.recorded").await;
    assert_eq!(said(&event), json!(["resume", "bo", null, "icfg_1", null]));
    daemon.wait_for_event("sweep.completed").await;
    assert!(daemon.end_with(Signal::TERM).await.success());
    assert_eq!(daemon.events("act.recorded").len(), 1);
}
