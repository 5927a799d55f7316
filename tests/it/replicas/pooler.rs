//! PgBouncer as it comes out of its package, before the state and the source: it refuses whoever sets what it does not know.

use super::{World, stop, watcher};
use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::Postgres;

/// The configuration of a replica with its source through the pooler, and a channel to listen on.
fn configuration_through(world: &World, pooler: &PgBouncer) -> String {
    let file = world.replicas[0].configuration();
    let configuration = std::fs::read_to_string(file).expect("it was written");
    let through = pooler.url("postgres", &world.provider.name);
    let source = format!("url = \"{}\"\n", world.provider.url);
    assert!(configuration.contains(&source), "{configuration}");
    let listening = format!("url = \"{through}\"\nlisten = \"changes\"\n");
    configuration.replace(&source, &listening)
}

#[tokio::test]
async fn stock_pooler_carries_the_state_and_check_names_it_and_what_cannot_pass() {
    let state = Postgres::shared().database().await;
    let pooler = PgBouncer::stock_in_front_of(Postgres::shared(), &["postgres"]);
    let world = World::new(&pooler.url("postgres", &state.name)).await;
    let configuration = configuration_through(&world, &pooler);
    for replica in &world.replicas {
        replica.configure(&configuration);
    }
    let check = async || {
        let output = world.replicas[0].output(&["check"]).await;
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(output.status.code(), Some(0), "{said}");
        said
    };
    let before = check().await;
    assert!(
        before.contains("through a pooler, created by the first run"),
        "{before}"
    );
    world.rotate(0).await;
    let mut replicas = world.run();
    watcher(&mut replicas).await;
    for round in 0..3 {
        world.rotate(round).await;
        world.agreed(round).await;
    }
    let after = check().await;
    assert!(
        after.contains("through a pooler, schema 1, writable, 60 resources, "),
        "{after}"
    );
    // What does not pass is said, with what follows from it.
    let deaf = after.lines().find(|line| line.contains("W036"));
    assert!(
        deaf.is_some_and(|line| line.contains("no notifications")),
        "{after}"
    );
    stop(replicas).await;
    world.assert_clean();
}

#[tokio::test]
async fn state_that_is_reached_directly_is_not_said_to_be_pooled() {
    let state = Postgres::shared().database().await;
    let world = World::new(&state.url).await;
    let check = world.replicas[0].output(&["check"]).await;
    let said = String::from_utf8(check.stdout).expect("UTF-8");
    assert!(said.contains("created by the first run"), "{said}");
    assert!(!said.contains("pooler"), "{said}");
}
