//! What only the PostgreSQL state promises: its schema, its roles, and daemons that share it.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use reconciled::model::{EntryId, Timestamp};
use reconciled::plan::pace::Rate;
use reconciled::plan::{Claimed, Outcome};
use reconciled::store::postgres::Settings;
use reconciled::store::{Access, Batch, ClaimRequest, PostgresStore, Store, StoreError};

use sqlx::{Connection as _, PgConnection};

use super::fixture::*;
use crate::support::database::TestDatabase;
use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::Postgres;

async fn database() -> TestDatabase {
    Postgres::shared().database().await
}

#[tokio::test]
async fn any_number_of_daemons_may_start_at_once() {
    let database = database().await;
    let stores = join_all((0..6).map(|_| open_postgres(&database.url))).await;
    let keys = join_all(stores.iter().map(Store::fingerprint_key)).await;
    let first = keys[0].as_ref().expect("a key").hasher("test").finalize();
    for key in &keys {
        assert_eq!(
            key.as_ref().expect("a key").hasher("test").finalize(),
            first
        );
    }
    let versions = database
        .integer("SELECT count(*) FROM reconciled.migration")
        .await;
    assert_eq!(versions, 1);
}

#[tokio::test]
async fn command_makes_no_schema() {
    let database = database().await;
    let missing = PostgresStore::open(&settings(&database.url), Access::Beside).await;
    match missing {
        Err(StoreError::Open { problem, .. }) => assert!(problem.contains("none yet"), "{problem}"),
        other => panic!("{other:?}"),
    }
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'reconciled'";
    assert_eq!(database.integer(schemas).await, 0);
    open_postgres(&database.url).await;
    let beside = PostgresStore::open(&settings(&database.url), Access::Beside).await;
    assert!(
        beside
            .expect("it is there")
            .can_write()
            .await
            .expect("answered")
    );
}

#[tokio::test]
async fn newer_schema_is_refused() {
    let database = database().await;
    open_postgres(&database.url).await.close();
    database
        .execute("INSERT INTO reconciled.migration (version, description) VALUES (99, 'from the future')")
        .await;
    for access in [Access::Daemon, Access::Beside] {
        let refused = PostgresStore::open(&settings(&database.url), access).await;
        assert!(
            matches!(refused, Err(StoreError::Newer { found: 99, .. })),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn role_that_owns_only_its_schema_is_enough() {
    let database = database().await;
    let role = format!("{}_state", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'state';
             REVOKE ALL ON DATABASE {name} FROM PUBLIC;
             REVOKE ALL ON SCHEMA public FROM PUBLIC;
             GRANT CONNECT ON DATABASE {name} TO {role};
             CREATE SCHEMA reconciled AUTHORIZATION {role};",
            name = database.name
        ))
        .await;
    let store = open_postgres(&database.url_as(&role, "state")).await;
    deliver(&store, START, &key("icfg_1", "res_1"), &status("ready")).await;
    assert!(store.can_write().await.expect("answered"));
    // Another who may look but not touch.
    let reader = format!("{}_looks", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {reader} LOGIN PASSWORD 'looks';
             GRANT CONNECT ON DATABASE {name} TO {reader};
             GRANT USAGE ON SCHEMA reconciled TO {reader};
             GRANT SELECT ON ALL TABLES IN SCHEMA reconciled TO {reader};",
            name = database.name
        ))
        .await;
    let url = database.url_as(&reader, "looks");
    let beside = PostgresStore::open(&settings(&url), Access::Beside).await;
    let beside = beside.expect("it may look");
    assert_eq!(beside.resources().await.expect("counted"), 1);
    assert!(!beside.can_write().await.expect("answered"));
}

#[tokio::test]
async fn database_of_another_encoding_is_refused() {
    let database = database().await;
    let name = format!("{}_latin", database.name);
    database
        .execute(&format!(
            "CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        ))
        .await;
    let url = Postgres::shared().url(&name);
    match PostgresStore::open(&settings(&url), Access::Daemon).await {
        Err(StoreError::Open { problem, .. }) => assert!(problem.contains("LATIN1"), "{problem}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn password_is_in_no_error_and_no_debug_output() {
    let port = Postgres::shared().port();
    for url in [
        format!("postgres://ana:hunter2@127.0.0.1:{port}/none"),
        "postgres://ana:hunter2@127.0.0.1:1/none".to_owned(),
        "postgres://ana:hunter2@[/none".to_owned(),
    ] {
        let settings: Settings = settings(&url);
        let refused = PostgresStore::open(&settings, Access::Daemon).await;
        let shown = format!("{refused:?} {settings:?}");
        assert!(refused.is_err() && !shown.contains("hunter2"), "{shown}");
    }
}

#[tokio::test]
async fn entries_are_claimed_once_however_many_claim_at_once() {
    let database = database().await;
    let stores = join_all((0..4).map(|_| open_postgres(&database.url))).await;
    let rows = (0..200).map(|n| {
        row(
            &key(&format!("icfg_{}", n % 20), &format!("res_{n}")),
            &status("ready"),
        )
    });
    read(&stores[0], START, rows.collect()).await;
    let claim = async |index: usize| {
        let mut request = request(START, 64);
        request.owner = format!("owner_{index}");
        request.per_installation = 3;
        claim_by(&stores[index % stores.len()], &request).await
    };
    // The first claims meet each other; the others take what these passed over.
    let mut claimed: Vec<Claimed> = join_all((0..12).map(claim)).await.concat();
    for index in 12..16 {
        claimed.extend(claim(index).await);
    }
    let entries: BTreeSet<EntryId> = claimed.iter().map(|claimed| claimed.entry_id).collect();
    assert_eq!(entries.len(), claimed.len(), "an entry was claimed twice");
    // Twenty installations, three at once for each of them, in all processes together.
    assert_eq!(claimed.len(), 60);
}

#[tokio::test]
async fn what_several_daemons_do_at_once_collides_without_harm() {
    let database = database().await;
    let stores: Arc<Vec<PostgresStore>> =
        Arc::new(join_all((0..3).map(|_| open_postgres(&database.url))).await);
    let keys: Arc<Vec<_>> = Arc::new(
        (0..40)
            .map(|n| key(&format!("i_{}", n % 4), &format!("r_{n}")))
            .collect(),
    );
    let mut tasks = Vec::new();
    for (index, desired) in ["ready", "suspended", "error"].into_iter().enumerate() {
        let (stores, keys) = (Arc::clone(&stores), Arc::clone(&keys));
        tasks.push(tokio::spawn(async move {
            for round in 0..15_u64 {
                let now = seconds(round);
                // Every other pass goes through the keys the other way round.
                let mut rows: Vec<_> = keys.iter().map(|key| row(key, &status(desired))).collect();
                if round % 2 == 0 {
                    rows.reverse();
                }
                let pass: Batch = batch(now, rows);
                stores[index]
                    .reconcile(pass)
                    .await
                    .expect("committed in the end");
                let mut request = request(now, 16);
                request.owner = format!("owner_{index}");
                let claimed = stores[index].claim(&request).await.expect("claimed");
                let settled = claimed.iter().map(|claimed| {
                    let outcome = Outcome::Acknowledged { sent_at: now };
                    stores[index].advance(settlement(claimed, outcome, now))
                });
                for settled in join_all(settled).await {
                    settled.expect("recorded").expect("the token matches");
                }
            }
        }));
    }
    for task in tasks {
        task.await.expect("no daemon failed");
    }
    let records = stores[0].records(&keys).await.expect("readable");
    let open = records
        .iter()
        .filter(|record| record.entry.is_some())
        .count() as u64;
    let counts = stores[0].counts(seconds(20)).await.expect("counted");
    assert_eq!((counts.waiting, counts.in_flight), (open, 0));
    assert_eq!(stores[0].resources().await.expect("counted"), 40);
}

#[tokio::test]
async fn connections_that_were_cut_are_replaced() {
    let database = database().await;
    let store = open_postgres(&database.url).await;
    let key = key("icfg_1", "res_1");
    deliver(&store, START, &key, &status("ready")).await;
    database
        .execute(
            "SELECT pg_terminate_backend(pid)
             FROM pg_stat_activity
             WHERE datname = current_database()
               AND pid <> pg_backend_pid()",
        )
        .await;
    deliver(&store, seconds(1), &key, &status("suspended")).await;
    assert_eq!(record(&store, &key).await.acknowledged, status("suspended"));
}

#[tokio::test]
async fn nothing_stays_in_a_session_behind_a_pooler() {
    let database = database().await;
    let pooler = PgBouncer::in_front_of(Postgres::shared(), &["postgres"]);
    let url = pooler.url("postgres", &database.name);
    let stores = join_all((0..3).map(|_| open_postgres(&url))).await;
    for (round, store) in stores.iter().cycle().take(9).enumerate() {
        let key = key("icfg_1", &format!("res_{round}"));
        deliver(store, seconds(round as u64), &key, &status("ready")).await;
    }
    let mut session = PgConnection::connect(&url).await.expect("connected");
    let prepared: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_prepared_statements")
        .persistent(false)
        .fetch_one(&mut session)
        .await
        .expect("readable");
    let held = "SELECT count(*)
                FROM pg_locks
                JOIN pg_database ON pg_database.oid = pg_locks.database
                WHERE pg_locks.locktype = 'advisory'
                  AND pg_database.datname = current_database()";
    let locks: i64 = sqlx::query_scalar(held)
        .persistent(false)
        .fetch_one(&mut session)
        .await
        .expect("readable");
    let path: String = sqlx::query_scalar("SELECT current_setting('search_path')")
        .persistent(false)
        .fetch_one(&mut session)
        .await
        .expect("readable");
    assert!(!path.contains("reconciled"), "{path}");
    assert_eq!((prepared, locks), (0, 0));
}

#[tokio::test]
async fn requests_a_minute_are_counted_over_all_owners() {
    let database = database().await;
    let (one, other) = (
        open_postgres(&database.url).await,
        open_postgres(&database.url).await,
    );
    let rows = (0..40).map(|n| row(&key("icfg_1", &format!("res_{n}")), &status("ready")));
    read(&one, START, rows.collect()).await;
    let rate = Rate::per_minute(NonZeroU32::new(60).expect("not zero"));
    let claimed = async |store: &PostgresStore, owner: &str, now: Timestamp, rate| {
        let request = ClaimRequest {
            owner: owner.to_owned(),
            per_installation: 64,
            rate,
            ..request(now, 64)
        };
        claim_by(store, &request).await.len()
    };
    let start = seconds(10);
    // Five seconds' worth at once, whoever asks.
    assert_eq!(claimed(&one, "one", start, Some(rate)).await, 5);
    assert_eq!(claimed(&other, "other", start, Some(rate)).await, 0);
    // One comes back each second, for one of them.
    let later = start.plus(Duration::from_secs(2));
    assert_eq!(claimed(&other, "other", later, Some(rate)).await, 2);
    assert_eq!(claimed(&one, "one", later, Some(rate)).await, 0);
    // A clock that went back by hours is not waited for.
    let earlier = seconds(1);
    database
        .execute("UPDATE reconciled.pace SET full_at = full_at + 36000000")
        .await;
    assert_eq!(claimed(&one, "one", earlier, Some(rate)).await, 5);
    // Without a limit nothing is counted.
    assert!(claimed(&one, "one", later, None).await > 20);
}
