//! A database that is down, goes away, hangs or refuses the login: an error of the call, and the next call tries again.

use std::time::{Duration, Instant};

use reconciled::source::{PollFrom, SourceError};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Executor as _};

use super::bed::{Bed, ids};
use crate::support::mariadb::MariaDb;
use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::Postgres;
use crate::support::proxy::{Mode, Proxy};
use crate::support::sqlite;

async fn prepared(bed: &Bed) {
    bed.create("BIGINT").await;
    bed.database
        .execute(
            "INSERT INTO resource (installation_id, resource_id, updated_at) VALUES ('i', 'r', 1)",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_that_was_killed_is_read_again_after_its_restart() {
    let mut server = Postgres::dedicated();
    let bed = Bed::of(server.database().await);
    prepared(&bed).await;
    let source = bed.source(&bed.query());
    source.sweep_page(None, 10).await.expect("a page");
    server.kill();
    for _ in 0..2 {
        let error = source.sweep_page(None, 10).await.expect_err("it is down");
        assert_eq!(error.code(), "unreachable", "{error}");
    }
    server.start();
    let page = source
        .poll_page(&PollFrom::Beginning, 10, None)
        .await
        .expect("a page");
    assert_eq!(ids(&page.rows.to_rows()), ["r"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_that_was_killed_is_read_again_after_its_restart() {
    let mut server = MariaDb::dedicated();
    let bed = Bed::of(server.database().await);
    prepared(&bed).await;
    let source = bed.source(&bed.query());
    source.sweep_page(None, 10).await.expect("a page");
    server.kill();
    for _ in 0..2 {
        let error = source.sweep_page(None, 10).await.expect_err("it is down");
        assert_eq!(error.code(), "unreachable", "{error}");
    }
    server.start();
    let page = source
        .poll_page(&PollFrom::Beginning, 10, None)
        .await
        .expect("a page");
    assert_eq!(ids(&page.rows.to_rows()), ["r"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_appears_later_is_read_then() {
    let bed = Bed::of(sqlite::database());
    let path = bed.database.name.clone();
    std::fs::remove_file(&path).expect("the file was there");
    let source = bed.source(&bed.query());
    let error = source.shape().await.expect_err("there is no file");
    assert_eq!(error.code(), "unreachable", "{error}");
    assert!(!std::path::Path::new(&path).exists(), "reading made a file");
    std::fs::File::create_new(&path).expect("the directory is there");
    prepared(&bed).await;
    assert_eq!(
        source
            .sweep_page(None, 10)
            .await
            .expect("a page")
            .rows
            .len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_were_cut_or_swallowed_are_replaced() {
    for bed in [Bed::postgres().await, Bed::mariadb().await] {
        prepared(&bed).await;
        let proxy = Proxy::in_front_of_url(&bed.database.url).await;
        let source = bed.source_with(&bed.query(), |settings| {
            settings.url = proxy.url(&bed.database.url).into();
            settings.statement_timeout = Duration::from_secs(2);
        });
        source.sweep_page(None, 10).await.expect("a page");
        proxy.cut().await;
        // Noticed when the next transaction begins, before anything is lost.
        source
            .sweep_page(None, 10)
            .await
            .expect("a page over a new connection");
        proxy.set(Mode::Swallow);
        let started = Instant::now();
        let error = source
            .sweep_page(None, 10)
            .await
            .expect_err("nobody answers");
        assert_eq!(error.code(), "unreachable", "{error}");
        assert!(
            started.elapsed() < Duration::from_secs(12),
            "{:?}",
            started.elapsed()
        );
        proxy.set(Mode::Forward);
        source
            .sweep_page(None, 10)
            .await
            .expect("a page over a new connection");
    }
}

/// A transaction that was cut off with half of its pages written: the file may be read once somebody has undone that, who may write it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_has_to_be_recovered_first_is_said_to_be_so_and_read_afterwards() {
    let bed = Bed::sqlite();
    prepared(&bed).await;
    let whole = &bed.database.name;
    let cut_off = format!("{whole}.cut-off");
    let mut writer = bed.database.session().await;
    let numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) SELECT i FROM n";
    writer
        .execute(&format!(
            "PRAGMA cache_size = 1;
             BEGIN IMMEDIATE;
             UPDATE resource SET updated_at = 2;
             CREATE TABLE filling (value);
             INSERT INTO filling SELECT zeroblob(1000) FROM ({numbers})"
        ))
        .await;
    for end in ["", "-journal"] {
        std::fs::copy(format!("{whole}{end}"), format!("{cut_off}{end}")).expect("copied");
    }
    let source = bed.source_with(&bed.query(), |settings| {
        settings.url = format!("sqlite://{cut_off}").into();
        settings.statement_timeout = Duration::from_millis(50);
    });
    let from = PollFrom::Beginning;
    let error = source
        .poll_page(&from, 10, None)
        .await
        .expect_err("half written");
    assert_eq!(error.code(), "unreachable", "{error}");
    assert!(error.to_string().contains("may write it"), "{error}");

    let mut mender = SqliteConnectOptions::new()
        .filename(&cut_off)
        .connect()
        .await
        .expect("a connection");
    mender
        .execute("SELECT * FROM resource")
        .await
        .expect("recovered");
    let page = source.poll_page(&from, 10, None).await.expect("a page");
    assert_eq!(page.rows.last().and_then(|row| row.cursor()), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_login_is_told_without_the_password() {
    for bed in [Bed::postgres().await, Bed::mariadb().await] {
        prepared(&bed).await;
        let url = bed.database.url_as("nobody_known", "hunter2");
        let source = bed.source_with(&bed.query(), |settings| settings.url = url.into());
        let error = source.shape().await.expect_err("the role does not exist");
        assert!(matches!(error, SourceError::Login { .. }), "{error}");
        let said = format!("{error} {error:?}");
        assert!(said.contains("nobody_known"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_given_up_leaves_the_connection_in_order() {
    for bed in [Bed::postgres().await, Bed::mariadb().await, Bed::sqlite()] {
        prepared(&bed).await;
        let source = bed.source_with(&bed.query(), |settings| settings.max_connections = 1);
        for micros in (0..2_000).step_by(50) {
            let call = source.sweep_page(None, 10);
            // Given up at all kinds of moments; what it holds is not left half-way.
            let _ = tokio::time::timeout(Duration::from_micros(micros), call).await;
        }
        assert_eq!(
            source
                .sweep_page(None, 10)
                .await
                .expect("a page")
                .rows
                .len(),
            1
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_pooler_in_between_changes_nothing() {
    let bed = Bed::postgres().await;
    prepared(&bed).await;
    let pooler = PgBouncer::in_front_of(Postgres::shared(), &["postgres"]);
    let url = pooler.url("postgres", &bed.database.name);
    // Two sources over the same few server connections: neither leaves anything behind that the other trips over.
    let [one, two] = [0, 1]
        .map(|_| bed.source_with(&bed.query(), |settings| settings.url = url.as_str().into()));
    for _ in 0..5 {
        for source in [&one, &two] {
            let page = source
                .poll_page(&PollFrom::Beginning, 10, None)
                .await
                .expect("a page");
            assert_eq!(ids(&page.rows.to_rows()), ["r"]);
            source.identity().await.expect("an identity");
            source.describe().await.expect("a description");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_calls_than_connections_all_get_their_turn() {
    for bed in [Bed::postgres().await, Bed::mariadb().await, Bed::sqlite()] {
        prepared(&bed).await;
        let source = bed.source_with(&bed.query(), |settings| settings.max_connections = 2);
        let calls = (0..40).map(|_| source.sweep_page(None, 10));
        for page in futures_util::future::join_all(calls).await {
            assert_eq!(page.expect("a page").rows.len(), 1);
        }
    }
}
