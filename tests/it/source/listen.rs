//! Notifications of PostgreSQL: heard, lost, behind a pooler.

use std::time::Duration;

use reconciled::source::{self, Keepalive, Listen, ListenError};

use super::bed::Bed;
use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::Postgres;
use crate::support::proxy::{Mode, Proxy};

/// A check that comes soon: what it waits for is an answer, never time to pass.
const SOON: Keepalive = Keepalive {
    after: Duration::from_millis(20),
    within: Duration::from_secs(3),
};

fn listener(bed: &Bed, url: &str, keepalive: Keepalive) -> Box<dyn Listen> {
    let mut settings = bed.settings(&bed.query());
    settings.url = url.into();
    source::listen(&settings, "changes", 7, keepalive).expect("PostgreSQL has notifications")
}

async fn notify(bed: &Bed) {
    bed.database.execute("NOTIFY changes").await;
}

fn problem(outcome: Result<(), ListenError>) -> String {
    let error = outcome.expect_err("it must fail");
    format!("{}: {error}", error.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notification_is_heard() {
    let bed = Bed::postgres().await;
    let mut listener = listener(&bed, &bed.database.url, Keepalive::default());
    listener.open().await.expect("it listens");
    for _ in 0..3 {
        notify(&bed).await;
        listener.heard().await.expect("it arrived");
    }
    // Only its own channel is left: the proof's is given up.
    let channels = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'reconciled-test' AND state = 'idle'";
    assert_eq!(bed.database.integer(channels).await, 1, "one connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_connection_passes_its_checks_and_hears_what_comes_after() {
    let bed = Bed::postgres().await;
    let proxy = Proxy::in_front_of_url(&bed.database.url).await;
    let mut listener = listener(&bed, &proxy.url(&bed.database.url), SOON);
    listener.open().await.expect("it listens");
    let hearing = tokio::spawn(async move { listener.heard().await });
    // The check is the only thing that this connection runs by the extended protocol or otherwise: wait for one to be seen.
    let checked = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'reconciled-test' AND query = 'SELECT 1'";
    while bed.database.integer(checked).await == 0 {
        tokio::task::yield_now().await;
    }
    notify(&bed).await;
    hearing.await.expect("no panic").expect("it arrived");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_cut_is_noticed_and_made_again() {
    let bed = Bed::postgres().await;
    let proxy = Proxy::in_front_of_url(&bed.database.url).await;
    let mut listener = listener(&bed, &proxy.url(&bed.database.url), Keepalive::default());
    listener.open().await.expect("it listens");
    proxy.cut().await;
    let said = problem(listener.heard().await);
    assert!(said.starts_with("unreachable"), "{said}");
    listener.open().await.expect("it listens again");
    notify(&bed).await;
    listener.heard().await.expect("it arrived");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_half_open_is_noticed_by_its_check() {
    let bed = Bed::postgres().await;
    let proxy = Proxy::in_front_of_url(&bed.database.url).await;
    let mut listener = listener(&bed, &proxy.url(&bed.database.url), SOON);
    listener.open().await.expect("it listens");
    proxy.set(Mode::Swallow);
    let said = problem(listener.heard().await);
    assert!(said.contains("no answer within"), "{said}");
    let said = problem(listener.open().await);
    assert!(said.starts_with("unreachable"), "{said}");
    proxy.set(Mode::Forward);
    listener.open().await.expect("it listens again");
    notify(&bed).await;
    listener.heard().await.expect("it arrived");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_killed_is_listened_to_again_after_its_restart() {
    let mut server = Postgres::dedicated();
    let bed = Bed::of(server.database().await);
    let mut listener = listener(&bed, &bed.database.url, Keepalive::default());
    listener.open().await.expect("it listens");
    server.kill();
    assert!(problem(listener.heard().await).starts_with("unreachable"));
    assert!(problem(listener.open().await).starts_with("unreachable"));
    server.start();
    listener.open().await.expect("it listens again");
    notify(&bed).await;
    listener.heard().await.expect("it arrived");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_in_transaction_mode_is_found_out() {
    let bed = Bed::postgres().await;
    let pooler = PgBouncer::in_front_of(Postgres::shared(), &["postgres"]);
    let url = pooler.url("postgres", &bed.database.name);
    let mut listener = listener(&bed, &url, SOON);
    for _ in 0..2 {
        let said = problem(listener.open().await);
        assert!(
            said.starts_with("deaf: notifications do not arrive"),
            "{said}"
        );
    }
    // No session of the server is left listening: what it is sent would go to whoever has it next.
    notify(&bed).await;
    let through = bed.source_with(&bed.query(), |settings| settings.url = url.as_str().into());
    bed.create("BIGINT").await;
    for _ in 0..5 {
        notify(&bed).await;
        through.identity().await.expect("an identity");
        through.sweep_page(None, 10).await.expect("a page");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_login_is_told_without_the_password() {
    let bed = Bed::postgres().await;
    let url = bed.database.url_as("nobody_known", "hunter2");
    let mut listener = listener(&bed, &url, Keepalive::default());
    let said = problem(listener.open().await);
    assert!(said.starts_with("login"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_notifications_is_refused() {
    for bed in [Bed::mariadb().await, Bed::sqlite()] {
        let settings = bed.settings("SELECT 1");
        let refused = source::listen(&settings, "changes", 7, Keepalive::default());
        let Err(error) = refused else {
            panic!("{} has notifications", bed.database.url);
        };
        assert!(error.is_configuration(), "{error}");
    }
}
