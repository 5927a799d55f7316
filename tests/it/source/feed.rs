//! The change feeds of `deploy/source`: what their triggers record is read once, whatever order transactions commit in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use reconciled::source::{FeedPage, Guarantee, Inspect, Overlap};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection, Executor as _};

use super::bed::{Bed, ids, text};
use super::on_every_database;
use crate::support::database::Engine;

on_every_database!(
    every_change_that_a_resource_shows_is_read_once,
    a_backlog_is_read_in_pages_and_goes_on_where_it_stopped,
    a_feed_that_was_trimmed_past_the_place_or_made_anew_is_told,
    the_trimming_job_disturbs_nobody,
    many_writers_at_once_are_all_read,
);

const POSTGRES: &str = include_str!("../../../deploy/source/postgres-feed.sql");
const MYSQL: &str = include_str!("../../../deploy/source/mysql-feed.sql");
const SQLITE: &str = include_str!("../../../deploy/source/sqlite-feed.sql");

const SCHEMA: &str = "
CREATE TABLE plans (id VARCHAR(40) PRIMARY KEY, cost VARCHAR(20));
CREATE TABLE resources (id VARCHAR(40) PRIMARY KEY, installation_id VARCHAR(40), plan_id VARCHAR(40), name VARCHAR(100));
CREATE TABLE resource_secrets (resource_id VARCHAR(40), name VARCHAR(40), value VARCHAR(100));
INSERT INTO plans VALUES ('pro', '1');
INSERT INTO resources VALUES ('old', 'i', 'pro', 'old');";

/// Longer than any test: what is waited for is given up by none of them.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Follows the feed as the daemon does.
struct Follower {
    source: Arc<dyn Inspect>,
    position: Option<String>,
}

impl Follower {
    async fn on(bed: &Bed) -> Self {
        let recipe = recipe(bed);
        bed.database.execute(SCHEMA).await;
        bed.database.execute(recipe).await;
        // It may be run again.
        bed.database.execute(recipe).await;
        let mut follower = Self::again(bed);
        let first = follower.page(100).await;
        assert!(first.lost.is_some_and(|why| why.contains("first time")));
        assert!(!first.more);
        follower
    }

    fn again(bed: &Bed) -> Self {
        Self::waiting(bed, &bed.database.url, PATIENCE)
    }

    fn waiting(bed: &Bed, url: &str, patience: Duration) -> Self {
        let query = "SELECT installation_id, id AS resource_id, name FROM resources";
        let source = bed.source_with(query, |settings| {
            settings.feed = Some("reconciled_feed".to_owned());
            settings.overlap = Overlap::Duration(patience);
            settings.url = url.into();
        });
        Self {
            source,
            position: None,
        }
    }

    async fn page(&mut self, limit: u32) -> FeedPage {
        let page = self
            .source
            .feed_page(self.position.as_deref(), limit)
            .await
            .expect("the feed is read");
        self.position = Some(page.position.clone());
        page
    }

    /// What was added, in pages; nothing may be lost.
    async fn poll(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        loop {
            let page = self.page(50).await;
            assert_eq!(page.lost, None);
            found.extend(ids(&page.rows).into_iter().map(str::to_owned));
            if !page.more {
                return found;
            }
        }
    }
}

fn recipe(bed: &Bed) -> &'static str {
    match bed.engine() {
        Engine::Postgres => POSTGRES,
        Engine::MariaDb => MYSQL,
        Engine::Sqlite => SQLITE,
    }
}

/// The statement that the recipe's header gives for the trimming job.
fn trimming(bed: &Bed) -> String {
    recipe(bed)
        .lines()
        .skip_while(|line| !line.contains("DELETE FROM"))
        .take_while(|line| line.len() > 2)
        .map(|line| line.trim_start_matches("--"))
        .collect::<Vec<_>>()
        .join("\n")
}

async fn every_change_that_a_resource_shows_is_read_once(bed: Bed) {
    let mut follower = Follower::on(&bed).await;
    for (change, expected) in [
        (
            "INSERT INTO resources VALUES ('new', 'i', 'none', 'x')",
            &["new"][..],
        ),
        ("UPDATE resources SET name = 'y' WHERE id = 'new'", &["new"]),
        ("UPDATE plans SET cost = '2' WHERE id = 'pro'", &["old"]),
        (
            "INSERT INTO resource_secrets VALUES ('old', 'KEY', 'v')",
            &["old"],
        ),
        ("UPDATE resource_secrets SET value = 'w'", &["old"]),
        (
            "UPDATE resource_secrets SET resource_id = 'new'",
            &["new", "old"],
        ),
        ("DELETE FROM resource_secrets", &["new"]),
        // The row is gone: the sweep is to decide what that means.
        ("DELETE FROM resources WHERE id = 'old'", &[]),
        (
            "INSERT INTO resources VALUES ('old', 'j', 'pro', 'moved')",
            &["old"],
        ),
        ("UPDATE resources SET name = name WHERE id = 'nobody'", &[]),
    ] {
        bed.database.execute(change).await;
        let mut found = follower.poll().await;
        found.sort();
        assert_eq!(found, expected, "{change}");
        assert_eq!(follower.poll().await, [""; 0], "{change}, read again");
    }
    // Ids that could name no resource are passed over.
    bed.database
        .execute("INSERT INTO resources VALUES ('', NULL, NULL, 'nameless')")
        .await;
    assert_eq!(follower.poll().await, [""; 0]);
    // Nothing new is no new place, as soon as a number that nobody used is waited for no longer.
    loop {
        let place = follower.position.clone();
        assert_eq!(follower.poll().await, [""; 0]);
        if follower.position == place {
            break;
        }
    }
}

async fn a_backlog_is_read_in_pages_and_goes_on_where_it_stopped(bed: Bed) {
    let mut follower = Follower::on(&bed).await;
    for n in 0..7 {
        let sql = format!("INSERT INTO resources VALUES ('r{n}', 'i', NULL, 'x')");
        bed.database.execute(&sql).await;
    }
    let mut found = Vec::new();
    let mut pages = 0;
    loop {
        let page = follower.page(2).await;
        assert!(page.rows.len() <= 2);
        found.extend(ids(&page.rows).into_iter().map(str::to_owned));
        pages += 1;
        if !page.more {
            break;
        }
        if pages == 2 {
            // Another process takes over in the middle, and more is added.
            let position = follower.position.take();
            follower = Follower::again(&bed);
            follower.position = position;
            bed.database
                .execute("INSERT INTO resources VALUES ('r7', 'i', NULL, 'x')")
                .await;
        }
    }
    found.extend(follower.poll().await);
    found.sort();
    assert_eq!(found, ["r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7"]);
}

async fn a_feed_that_was_trimmed_past_the_place_or_made_anew_is_told(bed: Bed) {
    let mut follower = Follower::on(&bed).await;
    bed.database
        .execute("UPDATE resources SET name = 'x'")
        .await;
    assert_eq!(follower.poll().await, ["old"]);
    bed.database
        .execute("UPDATE resources SET name = 'y'; DELETE FROM reconciled_feed; UPDATE resources SET name = 'z'")
        .await;
    let page = follower.page(10).await;
    assert!(
        page.lost.is_some_and(|why| why.contains("trimmed")),
        "{page:?}"
    );
    // Afterwards it goes on from there.
    bed.database
        .execute("UPDATE resources SET name = 'a'")
        .await;
    assert_eq!(follower.poll().await, ["old"]);
    let again = format!("DROP TABLE reconciled_feed; {}", recipe(&bed));
    bed.database.execute(&again).await;
    bed.database
        .execute("UPDATE resources SET name = 'b'; UPDATE resources SET name = 'c'; UPDATE resources SET name = 'd'")
        .await;
    let page = follower.page(10).await;
    assert!(page.lost.is_some(), "its numbers begin anew: {page:?}");
    bed.database.execute("DROP TABLE reconciled_feed").await;
    let gone = follower
        .source
        .feed_page(follower.position.as_deref(), 10)
        .await
        .expect_err("there is no feed");
    assert!(gone.to_string().contains("change feed"), "{gone}");
}

async fn the_trimming_job_disturbs_nobody(bed: Bed) {
    let mut follower = Follower::on(&bed).await;
    for n in 0..5 {
        let sql = format!("UPDATE resources SET name = 'x{n}'");
        bed.database.execute(&sql).await;
    }
    assert!(!follower.poll().await.is_empty());
    let old = bed.pick(
        "UPDATE reconciled_feed SET changed_at = now() - interval '8 days'",
        "UPDATE reconciled_feed SET changed_at = UTC_TIMESTAMP() - INTERVAL 8 DAY WHERE sequence < (SELECT m FROM (SELECT MAX(sequence) AS m FROM reconciled_feed) AS t)",
        "UPDATE reconciled_feed SET changed_at = datetime('now', '-8 days') WHERE sequence < (SELECT max(sequence) FROM reconciled_feed)",
    );
    bed.database.execute(old).await;
    bed.database.execute(&trimming(&bed)).await;
    let left = "SELECT COUNT(*) FROM reconciled_feed";
    assert_eq!(bed.database.integer(left).await, 1, "the newest stays");
    assert_eq!(follower.poll().await, [""; 0]);
    bed.database
        .execute("UPDATE resources SET name = 'after'")
        .await;
    assert_eq!(follower.poll().await, ["old"]);
}

/// Writers that overlap, undo, wait and commit in any order, and a reader beside them that in the end knows what they left.
async fn many_writers_at_once_are_all_read(bed: Bed) {
    const WRITERS: u64 = 6;
    const ROUNDS: u64 = 25;
    let mut follower = Follower::on(&bed).await;
    let url = bed.database.url.clone();
    let engine = bed.engine();
    let writing =
        (0..WRITERS).map(|writer| tokio::spawn(write(engine, url.clone(), writer, ROUNDS)));
    let mut writing = std::pin::pin!(futures_util::future::join_all(writing));
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut is_over = false;
    loop {
        let page = follower.page(20).await;
        assert_eq!(page.lost, None);
        for row in &page.rows {
            let id = text(&row.resource_id).expect("an id").to_owned();
            let name = text(&row.columns[0].1).expect("a name").to_owned();
            known.insert(id, name);
        }
        if page.more {
            continue;
        }
        if is_over {
            break;
        }
        tokio::select! {
            biased;
            done = &mut writing => {
                done.into_iter().for_each(|done| done.expect("no writer panics"));
                is_over = true;
            }
            () = tokio::task::yield_now() => {}
        }
    }
    let mut left = BTreeMap::new();
    for page in super::bed::sweep_all(&*follower.source, 500).await {
        for row in page {
            let id = text(&row.resource_id).expect("an id").to_owned();
            left.insert(id, text(&row.columns[0].1).expect("a name").to_owned());
        }
    }
    assert!(left.len() > 20, "{left:?}");
    assert_eq!(known, left);
}

/// One writer's transactions; each touches rows of its own and one that all fight over.
async fn write(engine: Engine, url: String, writer: u64, rounds: u64) {
    let mut seed = writer.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    for round in 0..rounds {
        let id = format!("w{writer}_{}", next(6));
        let mut statements = vec![
            format!("DELETE FROM resources WHERE id = '{id}'"),
            format!("INSERT INTO resources VALUES ('{id}', 'i', NULL, 'v{round}')"),
        ];
        if next(3) == 0 {
            statements.push(format!(
                "UPDATE resources SET name = 'w{writer} v{round}' WHERE id = 'old'"
            ));
        }
        let pauses = next(20);
        let end = if next(4) == 0 { "ROLLBACK" } else { "COMMIT" };
        let begin = match engine {
            Engine::Sqlite => "BEGIN IMMEDIATE",
            Engine::Postgres | Engine::MariaDb => "BEGIN",
        };
        macro_rules! transaction {
            ($connection:expr) => {{
                let mut connection = $connection.await.expect("a connection");
                connection.execute(begin).await.expect("a transaction");
                let mut is_whole = true;
                for statement in &statements {
                    // A deadlock undoes it all, as it would a provider's transaction.
                    is_whole &= connection
                        .execute(AssertSqlSafe(statement.clone()))
                        .await
                        .is_ok();
                    for _ in 0..pauses {
                        connection.execute("SELECT 1").await.expect("it answers");
                    }
                }
                let end = if is_whole { end } else { "ROLLBACK" };
                let _ = connection.execute(end).await;
                let _ = connection.close().await;
            }};
        }
        match engine {
            Engine::Postgres => transaction!(sqlx::PgConnection::connect(&url)),
            Engine::MariaDb => transaction!(sqlx::MySqlConnection::connect(&url)),
            // One writes at a time and the others ask again and again, with no turn kept for them.
            Engine::Sqlite => transaction!(async {
                let options: SqliteConnectOptions = url.parse()?;
                options.busy_timeout(PATIENCE).connect().await
            }),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_reads_what_commits_late_and_never_what_is_undone() {
    let bed = Bed::postgres().await;
    let mut follower = Follower::on(&bed).await;
    let mut late = bed.database.postgres().await;
    let mut undone = bed.database.postgres().await;
    let mut prepared = bed.database.postgres().await;
    for connection in [&mut late, &mut undone, &mut prepared] {
        connection
            .execute("BEGIN; SELECT now()")
            .await
            .expect("it works");
    }
    let insert = |id: &str| {
        AssertSqlSafe(format!(
            "INSERT INTO resources VALUES ('{id}', 'i', NULL, 'x')"
        ))
    };
    late.execute("SAVEPOINT a").await.expect("it works");
    late.execute(insert("late")).await.expect("it works");
    late.execute("SAVEPOINT b").await.expect("it works");
    late.execute(insert("not this")).await.expect("it works");
    late.execute("ROLLBACK TO SAVEPOINT b")
        .await
        .expect("it works");
    undone.execute(insert("undone")).await.expect("it works");
    prepared
        .execute(insert("prepared"))
        .await
        .expect("it works");
    let name = bed.database.name.clone();
    prepared
        .execute(AssertSqlSafe(format!("PREPARE TRANSACTION '{name}'")))
        .await
        .expect("it works");
    for n in 0..3 {
        // What others commit meanwhile is not held up.
        bed.database
            .execute(&format!(
                "INSERT INTO resources VALUES ('early{n}', 'i', NULL, 'x')"
            ))
            .await;
        assert_eq!(follower.poll().await, [format!("early{n}")]);
        assert_eq!(follower.poll().await, [""; 0]);
    }
    late.execute("COMMIT").await.expect("it works");
    assert_eq!(follower.poll().await, ["late"]);
    undone.execute("ROLLBACK").await.expect("it works");
    assert_eq!(follower.poll().await, [""; 0]);
    bed.database
        .execute(&format!("COMMIT PREPARED '{name}'"))
        .await;
    assert_eq!(follower.poll().await, ["prepared"]);
    assert_eq!(follower.poll().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_reads_what_commits_late_and_never_what_is_undone() {
    let bed = Bed::mariadb().await;
    let mut follower = Follower::on(&bed).await;
    let mut late = bed.database.mariadb().await;
    let mut undone = bed.database.mariadb().await;
    let insert = |id: &str| {
        AssertSqlSafe(format!(
            "INSERT INTO resources VALUES ('{id}', 'i', NULL, 'x')"
        ))
    };
    for connection in [&mut late, &mut undone] {
        connection.execute("BEGIN").await.expect("it works");
    }
    late.execute(insert("late")).await.expect("it works");
    undone.execute(insert("undone")).await.expect("it works");
    for n in 0..3 {
        bed.database
            .execute(&format!(
                "INSERT INTO resources VALUES ('early{n}', 'i', NULL, 'x')"
            ))
            .await;
        assert_eq!(follower.poll().await, [format!("early{n}")]);
        assert_eq!(follower.poll().await, [""; 0]);
    }
    late.execute("COMMIT").await.expect("it works");
    assert_eq!(follower.poll().await, ["late"]);
    undone.execute("ROLLBACK").await.expect("it works");
    assert_eq!(follower.poll().await, [""; 0]);
}

/// The promise of the feed, as `check` tells it.
async fn promise(follower: &Follower) -> (Guarantee, Option<String>) {
    let described = follower.source.describe().await.expect("it is described");
    (described.guarantee, described.improvement)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_is_exact_without_overlap_for_a_role_that_sees_transactions() {
    let bed = Bed::mariadb().await;
    bed.database.execute(SCHEMA).await;
    bed.database.execute(MYSQL).await;
    let url = bed.database.reader().await;
    let role = format!("{}_reader", bed.database.name);
    let mut follower = Follower::waiting(&bed, &url, Duration::ZERO);
    let (guarantee, improvement) = promise(&follower).await;
    assert_eq!(guarantee, Guarantee::BoundedByOverlap);
    assert!(
        improvement.is_some_and(|advice| advice.contains("GRANT PROCESS ON *.*")),
        "it says what to grant"
    );
    bed.database
        .execute(&format!("GRANT PROCESS ON *.* TO {role}"))
        .await;
    follower = Follower::waiting(&bed, &url, Duration::ZERO);
    assert_eq!(promise(&follower).await, (Guarantee::Exact, None));

    assert!(follower.page(100).await.lost.is_some(), "the first time");
    let mut late = bed.database.mariadb().await;
    let mut undone = bed.database.mariadb().await;
    let insert = |id: &str| {
        AssertSqlSafe(format!(
            "INSERT INTO resources VALUES ('{id}', 'i', NULL, 'x')"
        ))
    };
    for connection in [&mut late, &mut undone] {
        connection.execute("BEGIN").await.expect("it works");
    }
    late.execute(insert("late")).await.expect("it works");
    undone.execute(insert("undone")).await.expect("it works");
    let waits_for = |follower: &Follower| {
        let position: serde_json::Value =
            serde_json::from_str(follower.position.as_deref().expect("it has read")).expect("JSON");
        position.to_string().contains("\"missing\":[[")
    };
    let clock = "SELECT CAST(UNIX_TIMESTAMP(SYSDATE()) AS SIGNED)";
    let begun = bed.database.integer(clock).await;
    let mut n = 0;
    // Polls go on for as long as it takes that time alone would have given the numbers up.
    while bed.database.integer(clock).await < begun + 4 {
        n += 1;
        bed.database
            .execute(&format!(
                "INSERT INTO resources VALUES ('early{n}', 'i', NULL, 'x')"
            ))
            .await;
        assert_eq!(follower.poll().await, [format!("early{n}")]);
    }
    late.execute("COMMIT").await.expect("it works");
    assert_eq!(follower.poll().await, ["late"]);
    assert!(waits_for(&follower), "the other one is still open");
    undone.execute("ROLLBACK").await.expect("it works");
    // What was undone is given up in the end: nothing is looked for for ever.
    while waits_for(&follower) {
        assert_eq!(follower.poll().await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_of_an_idle_feed_reads_no_table_on_postgres() {
    let bed = Bed::postgres().await;
    let mut follower = Follower::on(&bed).await;
    bed.database
        .execute(
            "INSERT INTO reconciled_feed (installation_id, resource_id)
             SELECT 'i', 'old' FROM generate_series(1, 20000);
             ANALYZE reconciled_feed",
        )
        .await;
    while follower.page(5_000).await.more {}
    let scans = "SELECT (COALESCE(seq_scan, 0) * 1000000 + COALESCE(idx_tup_fetch, 0))::bigint FROM pg_stat_user_tables
        WHERE relname = 'reconciled_feed'";
    // A session tells what it read when it ends at the latest.
    let place = follower.position.clone();
    drop(follower);
    let sessions = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'reconciled-test'";
    while bed.database.integer(sessions).await > 0 {
        tokio::task::yield_now().await;
    }
    let before = bed.database.integer(scans).await;
    let mut follower = Follower::again(&bed);
    follower.position = place;
    const POLLS: i64 = 20;
    for _ in 0..POLLS {
        assert_eq!(follower.poll().await, [""; 0]);
    }
    drop(follower);
    while bed.database.integer(sessions).await > 0 {
        tokio::task::yield_now().await;
    }
    let read = bed.database.integer(scans).await - before;
    assert!(
        read <= 2 * POLLS,
        "{read} rows, or whole tables in millions, for {POLLS} polls"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overlap_in_numbers_means_nothing_to_a_feed() {
    let bed = Bed::sqlite();
    let mut settings = bed.settings("SELECT 1");
    settings.feed = Some("reconciled_feed".to_owned());
    settings.overlap = Overlap::Units(3);
    let Err(refused) = reconciled::source::connect(&settings) else {
        panic!("it was accepted");
    };
    assert!(refused.is_configuration(), "{refused}");
}
