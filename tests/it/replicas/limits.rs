//! What one installation may get holds for all daemons of a state together: requests at once, requests a minute, pauses.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use reconciled::simulator::{Entry, Fault, Matcher};

use super::{World, stop, watcher};
use crate::crash::Requests;
use crate::support::postgres::Postgres;

/// The requests of one installation so far.
fn of_installation(world: &World, installation: &str) -> Vec<Entry> {
    let mut entries = world.remote().requests();
    entries.retain(|entry| entry.installation_id.as_deref() == Some(installation));
    entries
}

#[tokio::test]
async fn requests_a_minute_are_those_of_all_daemons_together() {
    /// The burst of sixty a minute is five, and one comes back each second.
    const BURST: u32 = 5;
    const REQUESTS: u32 = 15;
    let state = Postgres::shared().database().await;
    let limit = "requests_per_minute_per_installation = 60\nmax_in_flight_per_installation = 50";
    let world = World::of(&state.url, 40, 1, limit).await;
    let begun = Instant::now();
    let mut seen = Requests::of(world.remote());
    let replicas = world.run();
    seen.more(REQUESTS as usize).await;
    // Three daemons with a limit of their own each would have sent as many at once.
    let least = Duration::from_secs((REQUESTS - BURST).into());
    let elapsed = begun.elapsed();
    assert!(elapsed >= least, "{REQUESTS} requests in {elapsed:?}");
    stop(replicas).await;
    let kept = "SELECT count(*) FROM reconciled.pace WHERE installation_id = 'icfg_0'";
    assert_eq!(state.integer(kept).await, 1);
    assert_eq!(world.remote().violations(), []);
}

#[tokio::test]
async fn requests_at_once_are_those_of_all_daemons_together() {
    const INSTALLATIONS: usize = 3;
    const AT_ONCE: usize = 3;
    /// No daemon alone fills the installations' places.
    const OF_ONE_DAEMON: usize = 4;
    const ANSWER_AFTER: Duration = Duration::from_millis(300);
    let state = Postgres::shared().database().await;
    let limits =
        format!("max_in_flight = {OF_ONE_DAEMON}\nmax_in_flight_per_installation = {AT_ONCE}");
    let world = World::of(&state.url, 90, INSTALLATIONS, &limits).await;
    world
        .remote()
        .fault_always(Fault::Delay(ANSWER_AFTER), Matcher::patch());
    // The end of one and the start of the next may be seen the other way round, but not by half an answer's time.
    let most_at_once = |entries: &[Entry]| {
        let under_way = |at| {
            let covers = |entry: &&Entry| entry.at <= at && at < entry.at + entry.duration;
            entries.iter().filter(covers).count()
        };
        let midpoints = entries.iter().map(|entry| entry.at + ANSWER_AFTER / 2);
        midpoints.map(under_way).max()
    };
    let mut seen = Requests::of(world.remote());
    let replicas = world.run();
    // One daemon alone shows nothing of a common limit: there is work until several have sent at once.
    for round in 0.. {
        world.rotate(round).await;
        seen.more(90).await;
        if most_at_once(&world.remote().requests()) > Some(OF_ONE_DAEMON) {
            break;
        }
        assert!(round < 20, "only one daemon sends");
    }
    stop(replicas).await;
    for n in 0..INSTALLATIONS {
        let entries = of_installation(&world, &format!("icfg_{n}"));
        assert!(most_at_once(&entries) <= Some(AT_ONCE), "icfg_{n}");
    }
    assert_eq!(world.remote().violations(), []);
}

#[tokio::test]
async fn installation_paused_by_a_person_hears_from_no_daemon() {
    let state = Postgres::shared().database().await;
    let world = World::new(&state.url).await;
    world.rotate(0).await;
    let mut replicas = world.run();
    watcher(&mut replicas).await;
    world.agreed(0).await;
    let pause = [
        "installation",
        "pause",
        "icfg_1",
        "--reason",
        "customer migration",
    ];
    let paused = world.replicas[1].output(&pause).await;
    assert_eq!(paused.status.code(), Some(0), "{paused:?}");
    let before = of_installation(&world, "icfg_1").len();
    let mut seen = world.remote().observe();
    world.rotate(1).await;
    // Everybody else's changes arrive, by whichever daemon.
    let others = world.resources - world.resources / world.installations;
    let mut arrived = BTreeSet::new();
    while arrived.len() < others {
        let entry = seen.recv().await.expect("the simulated Vercel is there");
        arrived.insert(entry.resource_id);
    }
    assert_eq!(of_installation(&world, "icfg_1").len(), before);
    let resumed = world.replicas[2]
        .output(&["installation", "resume", "icfg_1"])
        .await;
    assert_eq!(resumed.status.code(), Some(0), "{resumed:?}");
    world.agreed(1).await;
    stop(replicas).await;
    world.assert_clean();
}
