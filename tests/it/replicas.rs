//! Several real processes on one PostgreSQL state: killed at random, frozen, stopped, their state's server taken away.
//!
//! Nothing here waits for time to pass: each step waits for a log line or for what the simulated Vercel was sent.

use reconciled::simulator::{Fault, Matcher, Options, Remote, Simulator};
use rustix::process::Signal;
use secrecy::SecretString;

use crate::support::{
    database::TestDatabase,
    pgbouncer::PgBouncer,
    postgres::Postgres,
    process::{Installation, Process, holds},
};

/// How often a replica is killed in the ordinary run; `RECONCILED_KILLS` sets another number.
const KILLS: usize = 4;
const REPLICAS: usize = 3;
const RESOURCES: usize = 60;
const INSTALLATIONS: usize = 5;

/// A provider, a simulated Vercel, and a configuration per replica.
struct World {
    replicas: Vec<Installation>,
    provider: TestDatabase,
    simulator: Simulator,
}

impl World {
    async fn new(state: &str) -> Self {
        let provider = Postgres::shared().database().await;
        provider
            .execute(&format!(
                "CREATE TABLE resource (installation_id text, id text, version bigint, secrets text,
                                        PRIMARY KEY (installation_id, id));
                 CREATE INDEX ON resource (version);
                 CREATE TABLE installation (id text, token text);
                 INSERT INTO installation SELECT 'icfg_' || n, 'token-' || n FROM generate_series(0, {last}) AS n",
                last = INSTALLATIONS - 1
            ))
            .await;
        let simulator = Simulator::start(Options::creating())
            .await
            .expect("a free port");
        for n in 0..INSTALLATIONS {
            let token = SecretString::from(format!("token-{n}"));
            simulator.remote().install(&format!("icfg_{n}"), &token);
        }
        let configuration = format!(
            "[source]\nurl = \"{}\"\noverlap = 0\n\
             query = \"SELECT installation_id, id AS resource_id, version AS cursor, 'ready' AS status, secrets FROM resource\"\n\
             installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
             [state]\nurl = \"{state}\"\n[vercel]\nbase_url = \"{}\"\nrequest_timeout = \"2s\"\n\
             [retry]\ninitial_interval = \"20ms\"\nmax_interval = \"200ms\"\nlease = \"10s\"\nlate_apply = \"200ms\"\n\
             [schedule]\npoll = \"* * * * * *\"\n[log]\nsummary_interval = \"1s\"\n",
            provider.url,
            simulator.base_url(),
        );
        Self {
            replicas: (0..REPLICAS)
                .map(|_| Installation::new(&configuration))
                .collect(),
            provider,
            simulator,
        }
    }

    fn remote(&self) -> &Remote {
        self.simulator.remote()
    }

    fn run(&self) -> Vec<Process> {
        self.replicas.iter().map(Installation::run).collect()
    }

    /// Gives every resource the secret of round `round`; rounds only grow, so a remote value that falls went back.
    async fn rotate(&self, round: usize) {
        let (last, first) = (RESOURCES - 1, round * RESOURCES);
        self.provider
            .execute(&format!(
                "INSERT INTO resource
                 SELECT 'icfg_' || n % {INSTALLATIONS}, 'res_' || n, {first} + n, '{{\"KEY\":\"secret-value-{round:04}\"}}'
                 FROM generate_series(0, {last}) AS n
                 ON CONFLICT (installation_id, id) DO UPDATE
                 SET version = excluded.version, secrets = excluded.secrets"
            ))
            .await;
    }

    fn key(n: usize) -> (String, String) {
        (format!("icfg_{}", n % INSTALLATIONS), format!("res_{n}"))
    }

    /// Waits until Vercel holds the secrets of `round` in every resource.
    async fn agreed(&self, round: usize) {
        let expected = format!("secret-value-{round:04}");
        let reached = self.remote().wait_until(|remote| {
            (0..RESOURCES).all(|n| {
                let (installation, resource) = Self::key(n);
                let resource = remote.resource(&installation, &resource);
                resource.is_some_and(|resource| resource.secret("KEY") == Some(expected.as_str()))
            })
        });
        reached.await.expect("both sides agree in the end");
    }

    /// No rule of the API was broken (among them: one request at a time for a resource), no resource went back to an older value,
    /// and no secret is at rest.
    fn assert_clean(&self) {
        assert_eq!(self.remote().violations(), []);
        for n in 0..RESOURCES {
            let (installation, resource) = Self::key(n);
            let regressions = self.remote().regressions(&installation, &resource);
            assert!(
                regressions.is_empty(),
                "{resource} went back: {regressions:?}"
            );
        }
        for replica in &self.replicas {
            for secret in ["secret-value-", "token-1"] {
                assert!(
                    !holds(&replica.path(""), secret.as_bytes()),
                    "{secret} is in a file of a daemon"
                );
            }
        }
    }
}

async fn stop(replicas: Vec<Process>) {
    for mut replica in replicas {
        assert!(replica.end_with(Signal::TERM).await.success());
    }
}

/// Waits until one of the processes reads the source; returns which.
async fn watcher(replicas: &mut [Process]) -> usize {
    let gained = replicas.iter_mut().enumerate().map(|(index, replica)| {
        Box::pin(async move {
            replica.wait_for_event("watch.gained").await;
            index
        })
    });
    futures_util::future::select_all(gained).await.0
}

async fn killed_at_random(state: &str) {
    let kills = std::env::var("RECONCILED_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(KILLS);
    let world = World::new(state).await;
    world.rotate(0).await;
    let mut replicas = world.run();
    world.agreed(0).await;
    for round in 1..=kills {
        // Answers are lost as well, so that doubt and crashes meet.
        world
            .remote()
            .fault_times(3, Fault::DropAfter, Matcher::patch());
        let before = world.remote().requests().len();
        world.rotate(round).await;
        // The kill comes somewhere in the round: after its first requests, at a point that differs from round to round.
        let target = before + 1 + (round * 7) % RESOURCES;
        world
            .remote()
            .wait_until(|remote| remote.requests().len() >= target)
            .await
            .expect("they send");
        // Each in turn: now the one that reads the source, now another.
        let victim = round % REPLICAS;
        replicas[victim].end_with(Signal::KILL).await;
        replicas[victim] = world.replicas[victim].run();
    }
    world.agreed(kills).await;
    stop(replicas).await;
    world.assert_clean();
}

#[tokio::test]
async fn replicas_killed_at_random_lose_nothing_and_send_one_request_at_a_time() {
    let state = Postgres::shared().database().await;
    killed_at_random(&state.url).await;
}

#[tokio::test]
async fn replicas_killed_at_random_behind_a_pooler_do_no_worse() {
    let state = Postgres::shared().database().await;
    let pooler = PgBouncer::in_front_of(Postgres::shared(), &["postgres"]);
    killed_at_random(&pooler.url("postgres", &state.name)).await;
}

#[tokio::test]
async fn replica_that_read_the_source_and_was_frozen_is_replaced_and_commits_nothing_late() {
    let state = Postgres::shared().database().await;
    let world = World::new(&state.url).await;
    world.rotate(0).await;
    let mut replicas = world.run();
    let frozen = watcher(&mut replicas).await;
    world.agreed(0).await;
    replicas[frozen].signal(Signal::STOP);
    world.rotate(1).await;
    let mut sleeper = replicas.remove(frozen);
    watcher(&mut replicas).await;
    world.agreed(1).await;
    sleeper.signal(Signal::CONT);
    sleeper.wait_for_event("watch.lost").await;
    replicas.push(sleeper);
    world.rotate(2).await;
    world.agreed(2).await;
    stop(replicas).await;
    world.assert_clean();
}

#[tokio::test]
async fn replica_that_stops_in_order_hands_over_at_once() {
    let state = Postgres::shared().database().await;
    let world = World::new(&state.url).await;
    world.rotate(0).await;
    let mut replicas = world.run();
    let first = watcher(&mut replicas).await;
    world.agreed(0).await;
    let mut stopped = replicas.remove(first);
    stopped.signal(Signal::TERM);
    stopped.wait_for_event("watch.released").await;
    watcher(&mut replicas).await;
    assert!(stopped.wait().await.success());
    world.rotate(1).await;
    world.agreed(1).await;
    stop(replicas).await;
    world.assert_clean();
}

#[tokio::test]
async fn state_server_that_is_restarted_cuts_every_connection_and_loses_nothing() {
    let mut server = Postgres::dedicated();
    let state = server.database().await;
    let world = World::new(&state.url).await;
    world.rotate(0).await;
    let mut replicas = world.run();
    world.agreed(0).await;
    for round in 1..=2 {
        let before = world.remote().requests().len();
        world.rotate(round).await;
        world
            .remote()
            .wait_until(|remote| remote.requests().len() > before)
            .await
            .expect("they send");
        server.kill();
        server.start();
        world.agreed(round).await;
    }
    // One that starts while the server is away waits for it.
    server.kill();
    replicas[0].end_with(Signal::KILL).await;
    replicas[0] = world.replicas[0].run();
    replicas[0].wait_for_event("state.outage_began").await;
    server.start();
    replicas[0].wait_for_event("daemon.started").await;
    world.rotate(3).await;
    world.agreed(3).await;
    stop(replicas).await;
    world.assert_clean();
}

#[tokio::test]
async fn commands_run_beside_replicas() {
    let state = Postgres::shared().database().await;
    let world = World::new(&state.url).await;
    let check = async || {
        let output = world.replicas[0].output(&["check"]).await;
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let before = check().await;
    assert!(before.contains("created by the first run"), "{before}");
    world.rotate(0).await;
    let mut replicas = world.run();
    watcher(&mut replicas).await;
    world.agreed(0).await;
    let mut shown = serde_json::Value::Null;
    // Each has started when it left its first sign of life, which is before it waits for its turn.
    while shown["daemon"]["replicas"].as_array().map(Vec::len) != Some(REPLICAS) {
        for replica in &mut replicas {
            replica.wait_for_event("summary").await;
        }
        let output = world.replicas[0].output(&["status", "--json"]).await;
        shown = serde_json::from_slice(&output.stdout).expect("JSON");
    }
    let of_replicas = shown["daemon"]["replicas"].as_array().expect("an array");
    let reading = of_replicas.iter().filter(|one| one["reads_source"] == true);
    assert_eq!(reading.count(), 1, "{shown}");
    let after = check().await;
    assert!(after.contains("schema 1, writable"), "{after}");
    assert!(after.contains("3 daemons work on it"), "{after}");
    // What would read the source too is refused, and what only looks or acts is not.
    let once = world.replicas[0].output(&["once"]).await;
    assert_eq!(once.status.code(), Some(1), "{once:?}");
    for command in [
        &["plan"][..],
        &["explain", "icfg_0", "res_0"],
        &["installation", "pause", "icfg_0", "--reason", "a test"],
        &["installation", "resume", "icfg_0"],
        &["outbox", "list"],
    ] {
        let output = world.replicas[1].output(command).await;
        assert_eq!(output.status.code(), Some(0), "{command:?}: {output:?}");
    }
    stop(replicas).await;
    // Without daemons it runs, at once: the watch was given back.
    world.rotate(1).await;
    let once = world.replicas[0].output(&["once"]).await;
    assert_eq!(once.status.code(), Some(0), "{once:?}");
    world.agreed(1).await;
    world.assert_clean();
}
