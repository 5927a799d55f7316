//! From a commit in the provider's PostgreSQL to the request at Vercel by notification, with the real process.

use std::time::{Duration, Instant};

use reconciled::simulator::{Field, Options, Simulator};
use rustix::process::Signal;
use secrecy::SecretString;

use crate::support::{
    database::TestDatabase,
    pgbouncer::PgBouncer,
    postgres::Postgres,
    process::{Installation, Process},
    proxy::Proxy,
};

const PROVIDER: &str = include_str!("../../deploy/compose/provider.sql");
const NOTIFY: &str = include_str!("../../deploy/source/postgres-notify.sql");
const FEED: &str = include_str!("../../deploy/source/postgres-feed.sql");
const FEED_NOTIFY: &str = include_str!("../../deploy/source/postgres-feed-notify.sql");
/// No poll on schedule: what arrives was notified of, or follows a new connection.
const NO_SCHEDULE: &str = "";
const LISTEN: &str = "listen = \"reconciled\"";
const LISTEN_TO_FEED: &str = "listen = \"reconciled\"\nfeed = \"public.reconciled_feed\"";
const QUERY: &str =
    "SELECT installation_id, id AS resource_id, updated_at AS cursor, name FROM resources";
const EVERY_SECOND: &str = "* * * * * *";

struct World {
    provider: TestDatabase,
    simulator: Simulator,
    installation: Installation,
    query: &'static str,
}

impl World {
    /// The provider of the compose file with the triggers of the recipe.
    async fn new() -> Self {
        Self::with(&[NOTIFY]).await
    }

    /// The provider of the compose file, and what is run there besides.
    async fn with(recipes: &[&str]) -> Self {
        let provider = Postgres::shared().database().await;
        provider.execute(PROVIDER).await;
        for recipe in recipes {
            provider.execute(recipe).await;
            // It may be run again.
            provider.execute(recipe).await;
        }
        let simulator = Simulator::start(Options::creating())
            .await
            .expect("a free port");
        for n in 1..=2 {
            simulator.remote().install(
                &format!("icfg_example{n}"),
                &SecretString::from(format!("example-token-{n}")),
            );
        }
        Self {
            provider,
            simulator,
            installation: Installation::new(""),
            query: QUERY,
        }
    }

    fn run(&self, url: &str, poll: &str) -> Process {
        self.run_with(url, poll, LISTEN)
    }

    fn run_with(&self, url: &str, poll: &str, source: &str) -> Process {
        self.configure(url, poll, source, "");
        self.installation.run()
    }

    fn configure(&self, url: &str, poll: &str, source: &str, more: &str) {
        self.installation.configure(&format!(
            "[source]\nurl = \"{url}\"\n{source}\n\
             query = \"\"\"{}\"\"\"\n\
             installations_query = \"SELECT id AS installation_id, vercel_access_token AS access_token FROM installations\"\n\
             [state]\nurl = \"sqlite://{}\"\n[vercel]\nbase_url = \"{}\"\n\
             [schedule]\npoll = \"{poll}\"\nsweep = \"\"\n[log]\nfilter = \"info,reconciled::app=debug\"\n{more}",
            self.query,
            self.installation.path("state.db").display(),
            self.simulator.base_url(),
        ));
    }

    async fn rename(&self, name: &str) {
        self.provider
            .execute(&format!(
                "UPDATE resources SET name = '{name}' WHERE id = 'db_orders'"
            ))
            .await;
    }

    async fn shows(&self, name: &str) {
        self.simulator
            .remote()
            .wait_until(|remote| {
                remote
                    .resource("icfg_example1", "db_orders")
                    .and_then(|resource| resource.field(Field::Name).cloned())
                    .is_some_and(|shown| shown == name)
            })
            .await
            .expect("Vercel is told");
    }

    async fn end(&self, mut daemon: Process) {
        assert!(daemon.end_with(Signal::TERM).await.success());
        assert_eq!(self.simulator.remote().violations(), []);
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the measured lags are what a person runs this for"
)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_delivered_by_its_notification_alone() {
    let world = World::new().await;
    let mut daemon = world.run(&world.provider.url, NO_SCHEDULE);
    daemon.wait_for_event("listen.began").await;
    daemon.has_said("sweep.completed").await;
    world.shows("orders").await;
    let mut lags = Vec::new();
    for round in 0..20 {
        let name = format!("orders-{round}");
        world.rename(&name).await;
        let committed = Instant::now();
        world.shows(&name).await;
        lags.push(committed.elapsed());
    }
    lags.sort_unstable();
    eprintln!(
        "from commit to PATCH: least {:?}, median {:?}, most {:?}",
        lags[0], lags[10], lags[19]
    );
    world.end(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_while_nobody_listened_is_found_by_the_poll_after_the_connection_is_made_again() {
    let world = World::new().await;
    let mut proxy = Proxy::in_front_of_url(&world.provider.url).await;
    let mut daemon = world.run(&proxy.url(&world.provider.url), NO_SCHEDULE);
    daemon.wait_for_event("listen.began").await;
    world.shows("orders").await;
    proxy.refuse().await;
    let lost = daemon.wait_for_event("listen.lost").await;
    assert_eq!(lost["error_code"], "unreachable", "{lost}");
    world.rename("renamed meanwhile").await;
    proxy.accept().await;
    daemon.wait_for_event("listen.restored").await;
    world.shows("renamed meanwhile").await;
    assert_eq!(daemon.events("listen.lost").len(), 1);
    assert_eq!(daemon.events("listen.began").len(), 1);
    world.end(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_transaction_pooler_it_says_so_and_polls() {
    let world = World::new().await;
    let pooler = PgBouncer::in_front_of(Postgres::shared(), &["postgres"]);
    let url = pooler.url("postgres", &world.provider.name);
    let mut daemon = world.run(&url, EVERY_SECOND);
    let lost = daemon.wait_for_event("listen.lost").await;
    assert_eq!(lost["error_code"], "deaf", "{lost}");
    for name in ["one", "two"] {
        world.rename(name).await;
        world.shows(name).await;
    }
    assert_eq!(daemon.events("listen.lost").len(), 1);
    world.end(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_change_notifies_and_a_transaction_that_is_undone_does_not() {
    use reconciled::source::{Keepalive, Overlap, Settings};
    let world = World::new().await;
    let settings = Settings {
        url: world.provider.url.as_str().into(),
        query: "SELECT 1".to_owned(),
        installations_query: None,
        feed: None,
        overlap: Overlap::Unset,
        statement_timeout: Duration::from_secs(10),
        max_connections: 1,
        allow_replica: false,
        application_name: "reconciled-test".to_owned(),
    };
    let mut listener = reconciled::source::listen(&settings, "reconciled", 1, Keepalive::default())
        .expect("it can");
    listener.open().await.expect("it listens");
    for change in [
        "UPDATE resources SET name = 'x' WHERE id = 'db_orders'",
        "UPDATE plans SET cost = '$1.00' WHERE id = 'pro'",
        "UPDATE resource_secrets SET value = 'y' WHERE resource_id = 'db_orders'",
        "DELETE FROM resource_secrets WHERE resource_id = 'db_search'",
        "DELETE FROM resources WHERE id = 'db_search'",
    ] {
        world.provider.execute(change).await;
        listener
            .heard()
            .await
            .unwrap_or_else(|error| panic!("{change}: {error}"));
    }
    world
        .provider
        .execute("BEGIN; UPDATE resources SET name = 'z'; ROLLBACK; NOTIFY reconciled")
        .await;
    listener.heard().await.expect("the one by hand");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_feed_without_a_cursor_is_followed_over_restarts() {
    let world = World::new().await;
    world.provider.execute(FEED).await;
    let feed = LISTEN_TO_FEED;
    let url = world.provider.url.as_str();
    let mut daemon = world.run_with(url, NO_SCHEDULE, feed);
    // Nothing was read before the feed: every row is.
    daemon.wait_for_event("poll.needs_sweep").await;
    world.shows("orders").await;
    world.rename("by the feed").await;
    world.shows("by the feed").await;
    daemon.end_with(Signal::KILL).await;
    world.rename("meanwhile").await;
    let mut daemon = world.run_with(url, NO_SCHEDULE, feed);
    world.shows("meanwhile").await;
    daemon.wait_for_event("sweep.completed").await;
    assert_eq!(
        daemon.events("poll.needs_sweep").len(),
        0,
        "the place was kept"
    );
    // Another feed is another order: every row is read again.
    assert!(daemon.end_with(Signal::TERM).await.success());
    let mut daemon = world.run(url, NO_SCHEDULE);
    daemon.wait_for_event("poll.needs_sweep").await;
    let check = world.installation.output(&["check"]).await;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(said.contains("listen   notifications arrive"), "{said}");
    world.end(daemon).await;
    let _ = world.run_with(url, NO_SCHEDULE, feed);
    let check = world.installation.output(&["check"]).await;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    for part in [
        "polls follow the change feed public.reconciled_feed",
        "exact, by the change feed",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

/// Triggers that touch the resource's row would notify of what happens elsewhere: without them there is the feed alone.
const UNTOUCHED: &str = "DROP TRIGGER IF EXISTS secret_changed ON resource_secrets;
    DROP TRIGGER IF EXISTS plan_changed ON plans;
    DROP TRIGGER IF EXISTS resource_changed ON resources";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_secret_or_plan_is_delivered_by_the_notification_of_the_feed_alone() {
    let mut world = World::with(&[UNTOUCHED, FEED, FEED_NOTIFY]).await;
    world.query = "SELECT resources.installation_id, resources.id AS resource_id, resources.name,
        jsonb_build_object('id', plans.id, 'type', plans.type, 'name', plans.name, 'cost', plans.cost) AS billing_plan,
        (SELECT jsonb_object_agg(s.name, s.value) FROM resource_secrets AS s WHERE s.resource_id = resources.id) AS secrets
        FROM resources JOIN plans ON plans.id = resources.plan_id";
    let mut daemon = world.run_with(&world.provider.url, NO_SCHEDULE, LISTEN_TO_FEED);
    daemon.wait_for_event("listen.began").await;
    daemon.has_said("sweep.completed").await;
    let order = || {
        world
            .simulator
            .remote()
            .resource("icfg_example1", "db_orders")
    };
    let secret = |name: &str| order().and_then(|order| order.secret(name).map(str::to_owned));
    let cost = || order().and_then(|order| Some(order.field(Field::BillingPlan)?["cost"].clone()));
    for round in 0..3 {
        for (change, is_there) in [
            (
                format!(
                    "UPDATE resource_secrets SET value = 'v{round}' WHERE name = 'DATABASE_URL'"
                ),
                &(|| secret("DATABASE_URL") == Some(format!("v{round}"))) as &dyn Fn() -> bool,
            ),
            (
                format!("UPDATE plans SET cost = '${round}.50' WHERE id = 'pro'"),
                &|| cost() == Some(format!("${round}.50").into()),
            ),
            (
                "INSERT INTO resource_secrets VALUES ('db_orders', 'ANOTHER', 'w')".to_owned(),
                &|| secret("ANOTHER").is_some(),
            ),
            (
                "DELETE FROM resource_secrets WHERE name = 'ANOTHER'".to_owned(),
                &|| secret("ANOTHER").is_none(),
            ),
        ] {
            world.provider.execute(&change).await;
            world
                .simulator
                .remote()
                .wait_until(|_| is_there())
                .await
                .unwrap_or_else(|error| panic!("{change}: {error}"));
        }
    }
    assert_eq!(daemon.events("sweep.completed").len(), 1);
    world.end(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_feed_notifies_once_a_transaction_and_not_of_what_adds_nothing() {
    let world = World::with(&[FEED, FEED_NOTIFY]).await;
    let mut listener = sqlx::postgres::PgListener::connect(&world.provider.url)
        .await
        .expect("it connects");
    listener.listen("reconciled").await.expect("it listens");
    for (change, heard) in [
        ("UPDATE resources SET name = 'x' WHERE FALSE", 0),
        ("UPDATE plans SET cost = '1' WHERE FALSE", 0),
        ("BEGIN; UPDATE resources SET name = 'x'; ROLLBACK", 0),
        ("UPDATE resources SET name = 'x'", 1),
        (
            "BEGIN; UPDATE resources SET name = 'y'; UPDATE resource_secrets SET value = 'z'; COMMIT",
            1,
        ),
    ] {
        world.provider.execute(change).await;
        world.provider.execute("NOTIFY reconciled, 'last'").await;
        let mut before = 0;
        while listener.recv().await.expect("it is there").payload() != "last" {
            before += 1;
        }
        assert_eq!(before, heard, "{change}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_does_not_wait_for_a_sweep_that_takes_an_hour() {
    let world = World::new().await;
    world
        .provider
        .execute(
            "INSERT INTO resources (id, installation_id, plan_id, name, state)
             SELECT 'r' || n, 'icfg_example1', 'pro', 'x', 'active' FROM generate_series(1, 3600) AS n",
        )
        .await;
    let url = world.provider.url.as_str();
    // One row a second, and nothing is sent for rows that were never seen before.
    world.configure(
        url,
        NO_SCHEDULE,
        LISTEN,
        "[reconcile]\nfirst_sight = \"adopt\"\nsweep_rows_per_second = 1\n",
    );
    let mut daemon = world.installation.run();
    daemon.wait_for_event("listen.began").await;
    daemon.has_said("sweep.started").await;
    for name in ["during", "the sweep"] {
        world.rename(name).await;
        world.shows(name).await;
    }
    assert_eq!(daemon.events("sweep.completed").len(), 0);
    world.end(daemon).await;
}
