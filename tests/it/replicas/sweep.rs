//! A sweep that its daemon did not live to end: whoever takes the watch over goes on with it.

use rustix::process::Signal;

use super::World;
use crate::support::postgres::Postgres;

#[tokio::test]
async fn sweep_of_a_replica_that_was_killed_is_gone_on_with_by_its_successor() {
    const ROWS: usize = 2_000;
    const PAGE: usize = 10;
    let state = Postgres::shared().database().await;
    let world = World::of(&state.url, ROWS, 3, "").await;
    let configure = |replica: usize, rows_per_second: usize| {
        world.replicas[replica].configure(&format!(
            "[source]\nurl = \"{}\"\n\
             query = \"SELECT installation_id, id AS resource_id, 'ready' AS status FROM resource\"\n\
             installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
             [state]\nurl = \"{}\"\n[vercel]\nbase_url = \"{}\"\n\
             [reconcile]\nfirst_sight = \"adopt\"\nsweep_rows_per_second = {rows_per_second}\n",
            world.provider.url,
            state.url,
            world.simulator.base_url(),
        ));
    };
    configure(0, PAGE);
    configure(1, 0);
    let adopted = async || {
        let adopted = state.integer("SELECT count(*) FROM reconciled.resource");
        usize::try_from(adopted.await).expect("a count")
    };
    let mut first = world.replicas[0].run();
    first.wait_for_event("watch.gained").await;
    while adopted().await < 2 * PAGE {
        tokio::task::yield_now().await;
    }
    let mut second = world.replicas[1].run();
    second.wait_for_event("daemon.started").await;
    first.end_with(Signal::KILL).await;
    let before = adopted().await;
    assert!(before < ROWS / 2, "{before} rows were read");
    assert!(first.events("sweep.completed").is_empty());
    second.wait_for_event("watch.gained").await;
    let account = second.wait_for_event("sweep.completed").await;
    // What is written down with a page is the account before it: a sweep that went on counts that page short.
    assert_eq!(account["rows"], ROWS - PAGE, "{account}");
    // It began where the other had stopped, all that was left being new to it.
    assert_eq!(adopted().await, ROWS);
    assert!(second.end_with(Signal::TERM).await.success());
}
