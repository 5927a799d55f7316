//! What a daemon says of a state on PostgreSQL: that another one reads the source, that the state cannot be read.

use rustix::process::Signal;

use super::{World, get, listening};
use crate::support::postgres::Postgres;
use crate::support::process::{Installation, Process};

/// A world whose state is in this database, and a second daemon's installation.
async fn world(state: &str) -> (World, Installation) {
    let world = World::over(Postgres::shared().database().await).await;
    let own = format!("sqlite://{}", world.installation.path("state.db").display());
    let configuration = world
        .configuration("", "[schedule]\npoll = \"* * * * * *\"\n")
        .replace(&own, state);
    world.installation.configure(&configuration);
    (world, Installation::new(&configuration))
}

/// The answer once it is `expected`; until then the loop has not come to it.
async fn readiness(address: &str, expected: &str) {
    loop {
        let ready = get(address, "/readyz").await;
        if ready.body == expected {
            assert_eq!(ready.status, 200, "{ready:?}");
            return;
        }
        assert_eq!(
            (ready.status, ready.body.as_str()),
            (503, "not ready: the source was not tried yet\n")
        );
    }
}

async fn source_up(address: &str) -> Option<String> {
    let page = get(address, "/metrics").await.body;
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix("reconciled_source_up "));
    line.map(str::to_owned)
}

#[tokio::test]
async fn a_daemon_that_does_not_read_the_source_is_ready_and_says_that_another_does() {
    let state = Postgres::shared().database().await;
    let (world, other) = world(&state.url).await;
    let mut first: Process = world.installation.run();
    let first_address = listening(&first).await;
    first.wait_for_event("watch.gained").await;
    let mut second = other.run();
    let address = listening(&second).await;
    let elsewhere = "ready: the state is open, another daemon reads the source\n";
    readiness(&address, elsewhere).await;
    assert_eq!(source_up(&address).await, None, "it was not tried");
    readiness(
        &first_address,
        "ready: the state is open, the source can be read\n",
    )
    .await;
    assert_eq!(source_up(&first_address).await.as_deref(), Some("1"));
    let alive = get(&address, "/healthz").await;
    assert_eq!(alive.status, 200, "{alive:?}");

    // It takes over, and says so.
    assert!(first.end_with(Signal::TERM).await.success());
    second.wait_for_event("sweep.completed").await;
    readiness(
        &address,
        "ready: the state is open, the source can be read\n",
    )
    .await;
    assert_eq!(source_up(&address).await.as_deref(), Some("1"));
    assert!(second.end_with(Signal::TERM).await.success());
}

#[tokio::test]
async fn a_state_that_cannot_be_read_is_not_ready_and_leaves_its_numbers_out() {
    let mut server = Postgres::dedicated();
    let state = server.database().await;
    let (world, _) = world(&state.url).await;
    let mut daemon = world.installation.run();
    let address = listening(&daemon).await;
    daemon.wait_for_event("sweep.completed").await;
    server.kill();
    daemon.wait_for_event("state.outage_began").await;
    let down = loop {
        // What was read a moment before the end serves for a second.
        let page = get(&address, "/metrics").await.body;
        let is_read = page.contains("\nreconciled_outbox_entries{");
        if !is_read && page.lines().any(|line| line == "reconciled_state_up 0") {
            break page;
        }
    };
    for name in ["reconciled_outbox_entries", "reconciled_resources "] {
        assert!(
            !down.lines().any(|line| line.starts_with(name)),
            "{name}: {down}"
        );
    }
    let ready = get(&address, "/readyz").await;
    assert_eq!(
        (ready.status, ready.body.as_str()),
        (503, "not ready: the state cannot be read\n")
    );
    let alive = get(&address, "/healthz").await;
    assert_eq!(alive.status, 200, "{alive:?}");

    server.start();
    daemon.wait_for_event("state.outage_ended").await;
    let ready = loop {
        let ready = get(&address, "/readyz").await;
        if ready.status == 200 {
            break ready;
        }
    };
    assert!(
        ready.body.starts_with("ready: the state is open, "),
        "{ready:?}"
    );
    let page = get(&address, "/metrics").await.body;
    assert!(
        page.lines().any(|line| line == "reconciled_state_up 1"),
        "{page}"
    );
    assert!(daemon.end_with(Signal::TERM).await.success());
}
