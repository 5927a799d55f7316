//! Three daemons on one state while a thousand rows change in a second: killed at random, behind a pooler, the one that reads
//! the source frozen past its leases, the state's server killed.
//!
//! In the end both sides agree, nothing went back, and Vercel never saw two requests at once for a resource: each takes it a while, as
//! in life, so that two would meet.

use std::time::{Duration, Instant};

use reconciled::simulator::{Fault, Matcher, Weather};
use rustix::process::Signal;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{REPLICAS, World, kills, rotation, stop, watcher};
use crate::crash::Requests;
use crate::support::database::TestDatabase;
use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::Postgres;

/// Resources under the stream of changes, and the installations that they belong to.
const RESOURCES: usize = 400;
const INSTALLATIONS: usize = 8;
/// Resources that change at once, and how often some do: a thousand rows change in a second.
const CHANGED: usize = 40;
const CHANGES_EVERY: Duration = Duration::from_millis(40);
/// Rounds with the same secrets: one that changes faster than it can be read and sent is never sent.
const ROUNDS_PER_SECRET: usize = 5;
/// Vercel answers after at most this, and half of it in the mean: longer than it takes another daemon to claim and send, much shorter than
/// a request may take.
const ANSWER_WITHIN: Duration = Duration::from_millis(600);
/// All places of three daemons, 384, may be taken, which is good for a thousand requests a second.
const PLACES: &str = "max_in_flight = 128\nmax_in_flight_per_installation = 48";

/// The provider, changing all its rows again and again until it is told to stop.
struct Stream {
    stop: CancellationToken,
    begun: Instant,
    rounds: JoinHandle<usize>,
}

impl Stream {
    /// Begins with round 1.
    async fn start(provider: &TestDatabase) -> Self {
        let stop = CancellationToken::new();
        let mut session = provider.session().await;
        let told = stop.clone();
        let rounds = tokio::spawn(async move {
            // A tick that is late is made up for: what is offered is a thousand a second in the mean.
            let mut ticks = tokio::time::interval(CHANGES_EVERY);
            let mut round = 0;
            while !told.is_cancelled() {
                round += 1;
                for first in (0..RESOURCES).step_by(CHANGED) {
                    ticks.tick().await;
                    let some = first..first + CHANGED;
                    session
                        .execute(&rotation(round, round / ROUNDS_PER_SECRET, some))
                        .await;
                }
            }
            round
        });
        Self {
            stop,
            begun: Instant::now(),
            rounds,
        }
    }

    /// Ends it; waits until both sides agree on the last round, and says what was offered and what it took.
    #[expect(
        clippy::print_stdout,
        reason = "the figures are what a long run is for"
    )]
    async fn end(self, world: &World, what: &str) {
        self.stop.cancel();
        let rounds = self.rounds.await.expect("the provider does not panic");
        let offered = self.begun.elapsed();
        world.agreed_on(rounds, rounds / ROUNDS_PER_SECRET).await;
        let agreed = self.begun.elapsed() - offered;
        let changes = rounds * RESOURCES;
        println!(
            "{what}: {changes} changes in {offered:.0?} ({:.0}/s), {} requests, both sides agree {agreed:.1?} after the last change",
            changes as f64 / offered.as_secs_f64(),
            world.remote().requests().len(),
        );
    }
}

async fn world(state: &str) -> World {
    let world = World::of(state, RESOURCES, INSTALLATIONS, PLACES).await;
    // The weather is what strikes where no fault on command does.
    let slow = Weather {
        p_delay: 1.0,
        delay_max: ANSWER_WITHIN,
        ..Weather::default()
    };
    let set = world.remote().set_weather(Some(slow));
    set.expect("a probability of one");
    world.rotate(0).await;
    world
}

async fn killed_at_random(state: &str, how: &str) {
    let kills = kills();
    let world = world(state).await;
    let mut replicas = world.run();
    world.agreed(0).await;
    let stream = Stream::start(&world.provider).await;
    for kill in 1..=kills {
        // Answers are lost as well, so that doubt and crashes meet.
        world
            .remote()
            .fault_times(3, Fault::DropAfter, Matcher::patch());
        // The kill comes after some seconds' worth of requests, at a point that differs from kill to kill.
        let mut seen = Requests::of(world.remote());
        seen.more(100 + kill * 97 % 200).await;
        // Each in turn, so now the one that reads the source, now another.
        let victim = kill % REPLICAS;
        replicas[victim].end_with(Signal::KILL).await;
        replicas[victim] = world.replicas[victim].run();
    }
    stream.end(&world, &format!("{kills} kills{how}")).await;
    stop(replicas).await;
    world.assert_clean();
}

#[tokio::test]
async fn killed_at_random_under_load_lose_nothing_and_send_one_request_at_a_time() {
    let state = Postgres::shared().database().await;
    killed_at_random(&state.url, "").await;
}

#[tokio::test]
async fn killed_at_random_under_load_behind_a_pooler_do_no_worse() {
    let state = Postgres::shared().database().await;
    let pooler = PgBouncer::in_front_of(Postgres::shared(), &["postgres"]);
    killed_at_random(&pooler.url("postgres", &state.name), " behind PgBouncer").await;
}

#[tokio::test]
async fn leader_frozen_past_its_leases_under_load_wakes_and_does_no_harm() {
    let state = Postgres::shared().database().await;
    let world = world(&state.url).await;
    let mut replicas = world.run();
    let leader = watcher(&mut replicas).await;
    world.agreed(0).await;
    let stream = Stream::start(&world.provider).await;
    Requests::of(world.remote()).more(100).await;
    let mut frozen = replicas.remove(leader);
    frozen.signal(Signal::STOP);
    // The others send what they have claimed; one of them takes the watch over, and later the entries whose leases ran out.
    watcher(&mut replicas).await;
    let machine = rustix::system::uname();
    let owner = format!(
        "{}-{}-%",
        machine.nodename().to_string_lossy(),
        frozen.pid().as_raw_nonzero()
    );
    let leased = format!("SELECT count(*) FROM reconciled.entry WHERE lease_owner LIKE '{owner}'");
    while state.integer(&leased).await > 0 {
        Requests::of(world.remote()).more(10).await;
    }
    frozen.signal(Signal::CONT);
    frozen.wait_for_event("watch.lost").await;
    Requests::of(world.remote()).more(100).await;
    replicas.push(frozen);
    stream.end(&world, "the leader frozen").await;
    stop(replicas).await;
    world.assert_clean();
}

#[tokio::test]
async fn state_server_killed_under_load_cuts_every_connection_and_loses_nothing() {
    let mut server = Postgres::dedicated();
    let state = server.database().await;
    let world = world(&state.url).await;
    let replicas = world.run();
    world.agreed(0).await;
    let stream = Stream::start(&world.provider).await;
    for _ in 0..3 {
        Requests::of(world.remote()).more(150).await;
        server.kill();
        server.start();
    }
    Requests::of(world.remote()).more(150).await;
    stream
        .end(&world, "the state's server killed 3 times")
        .await;
    stop(replicas).await;
    world.assert_clean();
}
