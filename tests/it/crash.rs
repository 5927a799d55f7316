//! The real process: killed at random under a stream of changes, stopped politely, its source taken away; over real databases.
//!
//! Nothing here waits for time to pass: each step waits for a log line or for what the simulated Vercel was sent.

use std::time::Duration;

use reconciled::simulator::{Fault, Matcher, Options, Remote, Simulator};
use rustix::process::Signal;
use secrecy::SecretString;
use sqlx::Connection as _;

use crate::support::{
    database::TestDatabase,
    mariadb::MariaDb,
    postgres::Postgres,
    process::{Installation, Process, holds},
    sqlite,
};

/// How often the daemon is killed on each database in the ordinary run; `RECONCILED_KILLS` sets another number.
const KILLS: usize = 4;
const RESOURCES: usize = 40;

struct World {
    installation: Installation,
    provider: TestDatabase,
    simulator: Simulator,
}

impl World {
    async fn new(provider: TestDatabase) -> Self {
        for statement in [
            "CREATE TABLE resource (installation_id VARCHAR(40), id VARCHAR(40), version BIGINT, status VARCHAR(20), secrets TEXT)",
            "CREATE TABLE installation (id VARCHAR(40), token VARCHAR(40))",
            "INSERT INTO installation VALUES ('icfg_0', 'token-0'), ('icfg_1', 'token-1'), ('icfg_2', 'token-2')",
        ] {
            provider.execute(statement).await;
        }
        let simulator = Simulator::start(Options::creating())
            .await
            .expect("a free port");
        for n in 0..3 {
            simulator.remote().install(
                &format!("icfg_{n}"),
                &SecretString::from(format!("token-{n}")),
            );
        }
        let installation = Installation::new("");
        let cursor = if provider.url.starts_with("mysql") || provider.url.starts_with("mariadb") {
            "`cursor`"
        } else {
            "cursor"
        };
        installation.configure(&format!(
            "[source]\nurl = \"{}\"\noverlap = 0\n\
             query = \"SELECT installation_id, id AS resource_id, version AS {cursor}, status, secrets FROM resource\"\n\
             installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
             [state]\nurl = \"sqlite://{}\"\n[vercel]\nbase_url = \"{}\"\nrequest_timeout = \"2s\"\n\
             [retry]\ninitial_interval = \"20ms\"\nmax_interval = \"200ms\"\nlate_apply = \"200ms\"\n\
             [schedule]\npoll = \"* * * * * *\"\n[log]\nsummary_interval = \"1s\"\n",
            provider.url,
            installation.path("state.db").display(),
            simulator.base_url(),
        ));
        Self {
            installation,
            provider,
            simulator,
        }
    }

    fn remote(&self) -> &Remote {
        self.simulator.remote()
    }

    /// Gives every resource the secret of round `round`; rounds only grow, so a remote value that falls went back.
    async fn rotate(&self, round: usize) {
        for n in 0..RESOURCES {
            let (installation, version) = (n % 3, round * RESOURCES + n);
            let secrets = format!("{{\"KEY\":\"secret-value-{round:04}\"}}");
            let values = format!("version = {version}, status = 'ready', secrets = '{secrets}'");
            if round == 0 {
                let insert = format!(
                    "INSERT INTO resource (installation_id, id) VALUES ('icfg_{installation}', 'res_{n}')"
                );
                self.provider.execute(&insert).await;
            }
            self.provider
                .execute(&format!(
                    "UPDATE resource SET {values} WHERE id = 'res_{n}'"
                ))
                .await;
        }
    }

    /// Waits until Vercel holds the secrets of `round` in every resource.
    async fn agreed(&self, round: usize) {
        let expected = format!("secret-value-{round:04}");
        let reached = self.remote().wait_until(|remote| {
            (0..RESOURCES).all(|n| {
                let resource = remote.resource(&format!("icfg_{}", n % 3), &format!("res_{n}"));
                resource.is_some_and(|resource| resource.secret("KEY") == Some(expected.as_str()))
            })
        });
        reached.await.expect("both sides agree in the end");
    }

    /// No rule of the API was broken and no resource went back to an older value.
    fn assert_clean(&self) {
        assert_eq!(self.remote().violations(), []);
        for n in 0..RESOURCES {
            let regressions = self
                .remote()
                .regressions(&format!("icfg_{}", n % 3), &format!("res_{n}"));
            assert!(regressions.is_empty(), "res_{n} went back: {regressions:?}");
        }
        let directory = self.installation.path("");
        for secret in ["secret-value-", "token-1"] {
            assert!(
                !holds(&directory, secret.as_bytes()),
                "{secret} is in a file of the daemon"
            );
        }
    }
}

async fn killed_at_random(provider: TestDatabase) {
    let kills = std::env::var("RECONCILED_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(KILLS);
    let world = World::new(provider).await;
    world.rotate(0).await;
    let mut daemon: Process = world.installation.run();
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
            .expect("it sends");
        daemon.end_with(Signal::KILL).await;
        daemon = world.installation.run();
    }
    world.agreed(kills).await;
    assert!(daemon.end_with(Signal::TERM).await.success());
    world.assert_clean();
}

#[tokio::test]
async fn killed_at_random_over_sqlite_nothing_is_lost_and_nothing_goes_back() {
    killed_at_random(sqlite::database()).await;
}

#[tokio::test]
async fn killed_at_random_over_postgres_nothing_is_lost_and_nothing_goes_back() {
    killed_at_random(Postgres::shared().database().await).await;
}

#[tokio::test]
async fn killed_at_random_over_mariadb_nothing_is_lost_and_nothing_goes_back() {
    killed_at_random(MariaDb::shared().database().await).await;
}

#[tokio::test]
async fn sigterm_lets_the_request_in_flight_end_and_records_it() {
    let world = World::new(sqlite::database()).await;
    world
        .remote()
        .fault(Fault::Delay(Duration::from_secs(600)), Matcher::patch());
    world
        .provider
        .execute("INSERT INTO resource VALUES ('icfg_0', 'res_0', 1, 'ready', NULL)")
        .await;
    let mut daemon = world.installation.run();
    world
        .remote()
        .wait_until(|remote| remote.held() == 1)
        .await
        .expect("a request is in flight");
    daemon.signal(Signal::TERM);
    daemon.wait_for_event("shutdown.requested").await;
    world.remote().release();
    assert!(daemon.wait().await.success());
    assert_eq!(daemon.events("delivery.acknowledged").len(), 1);
    // It was recorded: the next process has nothing to send.
    let said = world.installation.output(&["plan", "--exit-code"]).await;
    assert_eq!(said.status.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_the_request_is_in_doubt() {
    let world = World::new(sqlite::database()).await;
    world
        .remote()
        .fault(Fault::Delay(Duration::from_secs(600)), Matcher::patch());
    world
        .provider
        .execute("INSERT INTO resource VALUES ('icfg_0', 'res_0', 1, 'ready', NULL)")
        .await;
    let mut daemon = world.installation.run();
    world
        .remote()
        .wait_until(|remote| remote.held() == 1)
        .await
        .expect("a request is in flight");
    daemon.signal(Signal::TERM);
    daemon.wait_for_event("shutdown.requested").await;
    daemon.end_with(Signal::INT).await;
    world.remote().release();
    let mut again = world.installation.run();
    again.wait_for_event("delivery.acknowledged").await;
    assert!(again.end_with(Signal::TERM).await.success());
    assert_eq!(world.remote().violations(), []);
}

#[tokio::test]
async fn a_source_that_goes_away_is_said_once_and_found_again_by_itself() {
    let mut server = Postgres::dedicated();
    let world = World::new(server.database().await).await;
    world.rotate(0).await;
    let mut daemon = world.installation.run();
    world.agreed(0).await;
    server.kill();
    daemon.wait_for_event("source.outage_began").await;
    // A summary later it has tried again in vain and has not repeated itself.
    daemon.wait_for_event("summary").await;
    server.start();
    daemon.wait_for_event("source.outage_ended").await;
    assert_eq!(daemon.events("source.outage_began").len(), 1);
    world.rotate(1).await;
    world.agreed(1).await;
    assert!(daemon.end_with(Signal::TERM).await.success());
    world.assert_clean();
}

#[tokio::test]
async fn an_outage_of_the_api_is_two_lines() {
    let mut world = World::new(sqlite::database()).await;
    world.rotate(0).await;
    let (address, remote) = (world.simulator.address(), world.remote().clone());
    let idle = Simulator::start(Options::creating())
        .await
        .expect("a free port");
    std::mem::replace(&mut world.simulator, idle)
        .shutdown()
        .await;
    let mut daemon = world.installation.run();
    daemon.wait_for_event("vercel.outage_began").await;
    daemon.wait_for_event("summary").await;
    let again = Simulator::serve(remote, address)
        .await
        .expect("the port is free again");
    std::mem::replace(&mut world.simulator, again)
        .shutdown()
        .await;
    daemon.wait_for_event("vercel.outage_ended").await;
    world.agreed(0).await;
    assert!(daemon.end_with(Signal::TERM).await.success());
    assert_eq!(daemon.events("vercel.outage_began").len(), 1);
    assert_eq!(daemon.events("vercel.outage_ended").len(), 1);
    world.assert_clean();
}

#[tokio::test]
async fn a_sweep_that_was_killed_goes_on_where_it_stopped() {
    const ROWS: u64 = 2_000;
    const PAGE: u64 = 10;
    let world = World::new(sqlite::database()).await;
    let rows = format!(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO resource SELECT 'icfg_0', 'res_' || i, 1, 'ready', NULL FROM n"
    );
    world.provider.execute(&rows).await;
    let state = world.installation.path("state.db");
    let configure = |rows_per_second: u64| {
        world.installation.configure(&format!(
            "[source]\nurl = \"{}\"\n\
             query = \"SELECT installation_id, id AS resource_id, status FROM resource\"\n\
             installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
             [state]\nurl = \"sqlite://{}\"\n[vercel]\nbase_url = \"{}\"\n\
             [reconcile]\nfirst_sight = \"adopt\"\nsweep_rows_per_second = {rows_per_second}\n",
            world.provider.url,
            state.display(),
            world.simulator.base_url(),
        ));
    };
    configure(PAGE);
    let mut daemon = world.installation.run();
    daemon.wait_for_event("daemon.started").await;
    let adopted = async || -> i64 {
        let mut connection =
            sqlx::SqliteConnection::connect(&format!("sqlite://{}?mode=ro", state.display()))
                .await
                .expect("the state is there");
        sqlx::query_scalar("SELECT COUNT(*) FROM resource")
            .fetch_one(&mut connection)
            .await
            .expect("the state is readable")
    };
    while adopted().await < 2 * i64::try_from(PAGE).expect("small") {
        tokio::task::yield_now().await;
    }
    daemon.end_with(Signal::KILL).await;
    let before = adopted().await;
    assert!(
        before < i64::try_from(ROWS / 2).expect("small"),
        "{before} rows were read"
    );
    configure(0);
    let mut daemon = world.installation.run();
    let account = daemon.wait_for_event("sweep.completed").await;
    // What is written down with a page is the account before it: a sweep that went on counts that page short.
    assert_eq!(account["rows"], ROWS - PAGE, "{account}");
    assert_eq!(adopted().await, i64::try_from(ROWS).expect("small"));
    assert!(daemon.end_with(Signal::TERM).await.success());
}
