//! Several real processes on one PostgreSQL state: killed at random, frozen, stopped, their state's server taken away.
//!
//! Nothing here waits for time to pass: each step waits for a log line or for what the simulated Vercel was sent.

mod limits;
mod load;
mod pooler;
mod role;
mod sweep;

use std::ops::Range;
use std::time::{Duration, SystemTime};

use reconciled::simulator::{Field, Options, Remote, Simulator};
use rustix::process::Signal;
use secrecy::SecretString;

use crate::support::{
    database::TestDatabase,
    postgres::Postgres,
    process::{Installation, Process, holds},
};

/// How often a replica is killed in an ordinary run; `RECONCILED_KILLS` sets another number.
const KILLS: usize = 4;
const REPLICAS: usize = 3;
const RESOURCES: usize = 60;
const INSTALLATIONS: usize = 5;

/// A provider, a simulated Vercel, and a configuration per replica.
struct World {
    resources: usize,
    installations: usize,
    replicas: Vec<Installation>,
    provider: TestDatabase,
    simulator: Simulator,
}

impl World {
    async fn new(state: &str) -> Self {
        Self::of(state, RESOURCES, INSTALLATIONS, "").await
    }

    /// So many resources of so many installations; `vercel` are further keys of `[vercel]`.
    async fn of(state: &str, resources: usize, installations: usize, vercel: &str) -> Self {
        Self::on(Postgres::shared(), state, resources, installations, vercel).await
    }

    /// The same with the provider's database on this server.
    async fn on(
        server: &Postgres,
        state: &str,
        resources: usize,
        installations: usize,
        vercel: &str,
    ) -> Self {
        let provider = server.database().await;
        provider
            .execute(&format!(
                "CREATE TABLE resource (n integer, installation_id text, id text, version bigint, metadata text, secrets text,
                                        PRIMARY KEY (installation_id, id));
                 CREATE INDEX ON resource (version);
                 CREATE INDEX ON resource (n);
                 CREATE TABLE installation (id text, token text);
                 INSERT INTO installation SELECT 'icfg_' || n, 'token-' || n FROM generate_series(0, {last}) AS n;
                 INSERT INTO resource
                 SELECT n, 'icfg_' || n % {installations}, 'res_' || n, -1, '{{}}', '[]'
                 FROM generate_series(0, {resources} - 1) AS n",
                last = installations - 1
            ))
            .await;
        let simulator = Simulator::start(Options::creating())
            .await
            .expect("a free port");
        for n in 0..installations {
            let token = SecretString::from(format!("token-{n}"));
            simulator.remote().install(&format!("icfg_{n}"), &token);
        }
        let configuration = format!(
            "[source]\nurl = \"{}\"\noverlap = 0\n\
             query = \"SELECT installation_id, id AS resource_id, version AS cursor, 'ready' AS status, metadata, secrets FROM resource\"\n\
             installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
             [state]\nurl = \"{state}\"\n[vercel]\nbase_url = \"{}\"\nrequest_timeout = \"2s\"\n{vercel}\n\
             [retry]\ninitial_interval = \"20ms\"\nmax_interval = \"200ms\"\nlease = \"10s\"\nlate_apply = \"200ms\"\n\
             [schedule]\npoll = \"* * * * * *\"\n[log]\nsummary_interval = \"1s\"\n",
            provider.url,
            simulator.base_url(),
        );
        Self {
            resources,
            installations,
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

    /// Gives every resource the values of round `round`; rounds only grow, so a remote value that falls went back.
    async fn rotate(&self, round: usize) {
        let all = rotation(round, round, 0..self.resources);
        self.provider.execute(&all).await;
    }

    fn key(&self, n: usize) -> (String, String) {
        (
            format!("icfg_{}", n % self.installations),
            format!("res_{n}"),
        )
    }

    /// Waits until Vercel holds the values of `round` in every resource.
    async fn agreed(&self, round: usize) {
        self.agreed_on(round, round).await;
    }

    /// Waits until Vercel holds the metadata of `round` and the secrets of round `secrets` in every resource.
    async fn agreed_on(&self, round: usize, secrets: usize) {
        let metadata = serde_json::json!({ "round": round });
        let expected = format!("secret-value-{secrets:06}");
        // What agrees once goes on to: these are the last values.
        let mut agreed = 0;
        let reached = self.remote().wait_until(|remote| {
            while agreed < self.resources {
                let (installation, resource) = self.key(agreed);
                let resource = remote.resource(&installation, &resource);
                let agrees = resource.is_some_and(|resource| {
                    resource.field(Field::Metadata) == Some(&metadata)
                        && resource.secret("KEY") == Some(expected.as_str())
                });
                if !agrees {
                    return false;
                }
                agreed += 1;
            }
            true
        });
        reached.await.expect("both sides agree in the end");
    }

    /// No rule of the API was broken (among them: one request at a time for a resource), no resource went back to an older value,
    /// and no secret is at rest.
    fn assert_clean(&self) {
        assert_eq!(self.remote().violations(), []);
        for n in 0..self.resources {
            let (installation, resource) = self.key(n);
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

/// The statement that gives some resources the metadata of round `round` and the secret of round `secrets`.
fn rotation(round: usize, secrets: usize, resources: Range<usize>) -> String {
    let Range { start, end } = resources;
    // More than there are resources, so that the next round begins beyond the last one's end.
    let base = round * 10_000;
    format!(
        "UPDATE resource
         SET version = {base} + n, metadata = '{{\"round\":{round}}}', secrets = '{{\"KEY\":\"secret-value-{secrets:06}\"}}'
         WHERE n >= {start} AND n < {end}"
    )
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

/// When a log line was written, by the process's own clock, which is this machine's.
fn written_at(line: &serde_json::Value) -> SystemTime {
    let timestamp = line["timestamp"].as_str().expect("a line has a timestamp");
    humantime::parse_rfc3339(timestamp).expect("it is one of RFC 3339")
}

/// How long after `earlier` `later` was.
fn after(earlier: SystemTime, later: SystemTime) -> Duration {
    later.duration_since(earlier).unwrap_or_default()
}

fn kills() -> usize {
    std::env::var("RECONCILED_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(KILLS)
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
#[expect(
    clippy::disallowed_methods,
    reason = "the moment of a kill is on no log line"
)]
async fn replica_that_is_killed_is_replaced_within_ten_seconds() {
    let state = Postgres::shared().database().await;
    let world = World::new(&state.url).await;
    world.rotate(0).await;
    let mut replicas = world.run();
    let first = watcher(&mut replicas).await;
    world.agreed(0).await;
    let mut victim = replicas.remove(first);
    let killed = SystemTime::now();
    victim.end_with(Signal::KILL).await;
    let second = watcher(&mut replicas).await;
    // Its lease lasts six seconds, and nobody but the clock tells the others.
    let gained = &replicas[second].events("watch.gained")[0];
    let waited = after(killed, written_at(gained));
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    world.rotate(1).await;
    world.agreed(1).await;
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
    let released = stopped.wait_for_event("watch.released").await;
    let second = watcher(&mut replicas).await;
    assert!(stopped.wait().await.success());
    // Not only when the lease of six seconds has run out.
    let gained = &replicas[second].events("watch.gained")[0];
    let waited = after(written_at(&released), written_at(gained));
    assert!(waited < Duration::from_secs(3), "{waited:?}");
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
