//! How the server carries out what daemons ask of a PostgreSQL state all the time: by index, and where it can be by index alone.
//!
//! The server itself tells the plan of every statement that the daemon's own code sends (auto_explain), in a state that is large enough
//! for a scan of a table to be tempting.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use reconciled::model::{LeaseToken, ResourceKey};
use reconciled::plan::Outcome;
use reconciled::plan::guard::Limits;
use reconciled::store::{Batch, ClaimRequest, GuardEvent, PauseKind, PostgresStore, Store as _};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use super::fixture::*;
use crate::support::database::TestDatabase;
use crate::support::heard::heard_by;
use crate::support::postgres::Postgres;

const INSTALLATIONS: usize = 1_000;
const RESOURCES_EACH: usize = 20;

/// Multiplies what one of each kind left behind: every resource delivered once, a quarter to be sent again, of these some in flight.
fn multiplying() -> String {
    let last = INSTALLATIONS * RESOURCES_EACH - 1;
    format!(
        "INSERT INTO reconciled.resource
             (installation_id, resource_id, acknowledged, doubt, dismissed, row_hash, acknowledged_at)
         SELECT 'icfg_' || n / {RESOURCES_EACH}, 'res_' || n,
                acknowledged, doubt, dismissed, row_hash, acknowledged_at
         FROM reconciled.resource, generate_series(0, {last}) AS n
         WHERE resource_id = 'delivered';
         INSERT INTO reconciled.entry
             (installation_id, resource_id, state, desired, generation, origin, mode, reason, created_at, due_at, attempts,
              failures, conflicts, rejected, lease_owner, lease_token, lease_expires_at, in_flight, closed_at)
         SELECT 'icfg_' || n / {RESOURCES_EACH}, 'res_' || n,
                state, desired, generation, origin, mode, reason, created_at, due_at, attempts,
                failures, conflicts, rejected, lease_owner, lease_token + n, lease_expires_at, in_flight, closed_at
         FROM reconciled.entry, generate_series(0, {last}) AS n
         WHERE resource_id = 'delivered'
            OR resource_id = 'waiting' AND n % 4 = 0 AND n % 40 <> 0
            OR resource_id = 'claimed' AND n % 40 = 0;
         INSERT INTO reconciled.attempt
             (entry_id, number, installation_id, resource_id, started_at, ended_at, method, fields, secret_names, outcome,
              status)
         SELECT entry.id, 1, entry.installation_id, entry.resource_id,
                started_at, ended_at, method, fields, secret_names, outcome, status
         FROM reconciled.attempt, reconciled.entry
         WHERE entry.state = 'delivered'"
    )
}

/// The plans that the server tells, as `(statement, plan)`.
#[derive(Clone, Default)]
struct Plans(Arc<Mutex<Vec<(String, String)>>>);

impl Plans {
    /// What was told since the last call.
    fn take(&self) -> Vec<(String, String)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: Subscriber> Layer<S> for Plans {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        struct Message(String);
        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }

            fn record_str(&mut self, field: &Field, value: &str) {
                if field.name() == "message" {
                    value.clone_into(&mut self.0);
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        let told = message.0.split_once("Query Text: ");
        // The plan's first line is the only one with costs that does not begin with an arrow.
        let parts = told.and_then(|(_, told)| {
            let at = told.find("(cost=")?;
            let line = told[..at].rfind('\n')?;
            Some((told[..line].to_owned(), told[line..].to_owned()))
        });
        if let Some(parts) = parts {
            let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            plans.push(parts);
        }
    }
}

async fn state() -> (TestDatabase, PostgresStore) {
    let database = Postgres::shared().database().await;
    let store = open_postgres(&database.url).await;
    deliver(&store, START, &key("icfg", "delivered"), &status("ready")).await;
    let claimed = row(&key("icfg", "claimed"), &status("ready"));
    read(&store, START, vec![claimed]).await;
    let by_another = ClaimRequest {
        owner: "another".to_owned(),
        ..request(START, 1)
    };
    assert_eq!(claim_by(&store, &by_another).await.len(), 1);
    let waiting = row(&key("icfg", "waiting"), &status("error"));
    read(&store, START, vec![waiting]).await;
    store.close();
    database.execute(&multiplying()).await;
    // What a snapshot may still be interested in is not marked as visible to all: until there is none.
    let unmarked = "SELECT count(*) FROM pg_class
                    WHERE oid IN ('reconciled.resource'::regclass, 'reconciled.entry'::regclass)
                      AND (relallvisible < relpages OR relpages = 0)";
    for attempt in 0.. {
        assert!(attempt < 100, "somebody keeps a snapshot");
        for table in ["resource", "entry", "attempt"] {
            let vacuum = format!("VACUUM (ANALYZE, INDEX_CLEANUP ON) reconciled.{table}");
            database.execute(&vacuum).await;
        }
        if database.integer(unmarked).await == 0 {
            break;
        }
    }
    tell_plans(&database).await;
    let store = open_postgres(&database.url).await;
    (database, store)
}

/// In every session that begins from now on; a notice reaches whoever asked, with the statement.
async fn tell_plans(database: &TestDatabase) {
    let name = &database.name;
    database
        .execute(&format!(
            "ALTER DATABASE {name} SET session_preload_libraries = 'auto_explain';
             ALTER DATABASE {name} SET auto_explain.log_min_duration = 0;
             ALTER DATABASE {name} SET auto_explain.log_level = 'notice';
             ALTER DATABASE {name} SET auto_explain.log_analyze = on;
             ALTER DATABASE {name} SET auto_explain.log_timing = off"
        ))
        .await;
}

fn keys(count: usize) -> Vec<ResourceKey> {
    let key_of = |n: usize| key(&format!("icfg_{}", n / RESOURCES_EACH), &format!("res_{n}"));
    (0..count).map(key_of).collect()
}

/// Where a plan looks into a table: how, and into which.
fn looks(plan: &str) -> impl Iterator<Item = (&str, &str)> {
    plan.lines().filter_map(|line| {
        let line = line.split("  (cost=").next()?;
        let (how, rest) = line.split_once(" on ")?;
        let how = how.trim_start().trim_start_matches("->").trim_start();
        let table = rest.split(' ').next()?;
        (how.contains("Scan") && !how.starts_with("CTE") && !how.starts_with("Function"))
            .then_some((how, table))
    })
}

/// How many rows of the state's large tables the scans of a plan looked at.
fn looked_at(plan: &str) -> f64 {
    let number = |text: &str| text.parse::<f64>().expect("a number");
    let mut loops = 0.0;
    let mut looked_at = 0.0;
    for line in plan.lines() {
        let (what, told) = line.split_once("  (cost=").unwrap_or((line, ""));
        if let Some((_, actual)) = told.split_once("(actual rows=") {
            let is_scan = [" on resource", " on entry"]
                .iter()
                .any(|on| what.contains(on));
            let (rows, rest) = actual.split_once(" loops=").expect("both are told");
            loops = if is_scan && what.contains("Scan") {
                number(rest.trim_end_matches(')'))
            } else {
                0.0
            };
            looked_at += number(rows) * loops;
        } else if let Some((_, removed)) = line.split_once("Rows Removed by Filter: ") {
            looked_at += number(removed.trim()) * loops;
        }
    }
    looked_at
}

/// Rows that an index-only scan had to look up in the table all the same.
fn heap_fetches(plan: &str) -> u64 {
    plan.lines()
        .filter_map(|line| line.trim().strip_prefix("Heap Fetches: "))
        .filter_map(|count| count.parse::<u64>().ok())
        .sum()
}

#[tokio::test]
async fn statements_of_every_second_read_indexes_and_where_they_can_nothing_else() {
    /// More executions than those after which the server may plan a prepared statement for any values.
    const TIMES: u64 = 8;
    let (_database, store) = state().await;
    let plans = Plans::default();
    let subscriber = tracing_subscriber::registry().with(plans.clone());
    let _guard = heard_by(subscriber);
    let keys = keys(500);

    let mut told: BTreeMap<&str, Vec<(String, String)>> = BTreeMap::new();
    for _ in 0..TIMES {
        store.glance(&keys).await.expect("glanced");
    }
    told.insert("glance", plans.take());
    for _ in 0..TIMES {
        let (first, last) = (("icfg_1", "res_"), ("icfg_12", "res_~"));
        let between = store.glance_between(first, last, 5_000).await;
        assert!(between.expect("glanced").is_some());
    }
    told.insert("glance between", plans.take());
    for _ in 0..TIMES {
        assert!(store.next_due().await.expect("found").is_some());
    }
    told.insert("next due", plans.take());
    for round in 1..=TIMES {
        let claimed = claim_by(&store, &request(seconds(round), 64)).await;
        assert_eq!(claimed.len(), 64);
        let settled = claimed.iter().map(|claimed| {
            let sent_at = seconds(round);
            settlement(claimed, Outcome::Acknowledged { sent_at }, sent_at)
        });
        let settled = store.advance_all(settled.collect()).await;
        settled.expect("recorded");
    }
    let (due, others) = plans
        .take()
        .into_iter()
        .partition::<Vec<_>, _>(|(statement, _)| statement.contains("RECURSIVE turn"));
    told.insert("due installations", due);
    told.insert("claim and outcome", others);
    for _ in 0..TIMES {
        let installation_id = installation("icfg_1");
        store.probes_due(START, 10).await.expect("found");
        let blocked = store.is_blocked(&installation_id, START).await;
        blocked.expect("answered");
        store.rechecks(10).await.expect("found");
        let renewed = store.renew_watch(LeaseToken(1), START).await;
        renewed.expect("answered");
    }
    told.insert("other looks", plans.take());

    for (what, plans) in &told {
        assert!(plans.len() >= 8, "{what}: {}", plans.len());
        for (statement, plan) in plans {
            let whole = format!("{what}:{statement}{plan}");
            // Nothing is collected first that the statement then does not ask for.
            for wasteful in ["Bitmap", "hashed SubPlan", "Materialize"] {
                assert!(!plan.contains(wasteful), "{wasteful} in {whole}");
            }
            for (how, table) in looks(plan) {
                // Those that Vercel limits just now: few, whatever the number of installations.
                let is_small = table == "installation";
                assert!(
                    how != "Seq Scan" || is_small,
                    "{table} is scanned in {whole}"
                );
            }
        }
    }
    // What reads and changes nothing has all it asks for in an index.
    for what in ["glance", "glance between", "next due", "due installations"] {
        let mut seen = 0;
        for (statement, plan) in &told[what] {
            for (how, _) in looks(plan).filter(|(_, table)| ["resource", "entry"].contains(table)) {
                seen += 1;
                let is_alone = how.starts_with("Index Only Scan");
                assert!(is_alone, "{how} in {what}:{statement}{plan}");
            }
        }
        assert!(seen >= 8, "{what}: {seen}");
    }
    // Pages of a sweep and of a poll that finds nothing new look at no row of a table that was vacuumed.
    for what in ["glance", "glance between"] {
        for (statement, plan) in &told[what] {
            assert_eq!(heap_fetches(plan), 0, "{what}:{statement}{plan}");
        }
    }
}

/// A large change comes before anybody has collected statistics: in the first minute of a state, and in each after a long rest.
#[tokio::test]
async fn tables_that_the_server_takes_for_empty_are_read_by_the_key_all_the_same() {
    const PAGE: usize = 500;
    let database = Postgres::shared().database().await;
    open_postgres(&database.url).await.close();
    for table in ["resource", "entry", "attempt"] {
        let off = format!("ALTER TABLE reconciled.{table} SET (autovacuum_enabled = off)");
        database.execute(&off).await;
        let empty = format!("ANALYZE reconciled.{table}");
        database.execute(&empty).await;
    }
    tell_plans(&database).await;
    let store = open_postgres(&database.url).await;
    let plans = Plans::default();
    let subscriber = tracing_subscriber::registry().with(plans.clone());
    let _guard = heard_by(subscriber);
    // Often enough for plans that are kept, while there is next to nothing.
    for round in 0..8 {
        let key = key("icfg_few", &format!("res_{round}"));
        deliver(&store, START, &key, &status("ready")).await;
    }
    let all = keys(22 * PAGE);
    let rows = all.iter().map(|key| row(key, &status("ready")));
    let rows: Vec<_> = rows.collect();
    let (last, pages) = rows.split_at(PAGE);
    for page in pages.chunks(PAGE) {
        read(&store, START, page.to_vec()).await;
    }
    plans.take();
    store.glance(&all[..PAGE]).await.expect("glanced");
    read(&store, START, last.to_vec()).await;
    let claimed = claim_by(&store, &request(START, 64)).await;
    assert_eq!(claimed.len(), 64);
    let settled = claimed.iter().map(|claimed| {
        let outcome = Outcome::Acknowledged { sent_at: START };
        settlement(claimed, outcome, START)
    });
    store
        .advance_all(settled.collect())
        .await
        .expect("recorded");
    store.next_due().await.expect("found");
    let elsewhere = pause("icfg_elsewhere", PauseKind::Manual, START);
    store.pause(&elsewhere).await.expect("paused");
    store.next_due().await.expect("found");
    let told = plans.take();
    assert!(told.len() >= 10, "{}", told.len());
    for (statement, plan) in &told {
        // A page looks each of its rows up once or twice, and so is each installation with a pause somewhere.
        let most = 4 * PAGE;
        assert!(looked_at(plan) <= most as f64, "{statement}{plan}");
    }
}

/// What a large change costs at the end of its pass: nothing of it is read again one by one, locked or written to be held.
#[tokio::test]
async fn a_large_change_is_held_by_looking_at_each_of_its_entries_once() {
    const PAGE: usize = 2_000;
    let (database, store) = state().await;
    let all = keys(INSTALLATIONS * RESOURCES_EACH);
    let guarded = |now, observations, ends_pass| Batch {
        guard: Limits {
            destructive_max: Some(1),
            changes_max: None,
        },
        ends_pass,
        ..batch(now, observations)
    };
    for (page, keys) in all.chunks(PAGE).enumerate() {
        let rows = keys.iter().map(|key| row(key, &status("suspended")));
        let page = guarded(seconds(page as u64), rows.collect(), false);
        store.reconcile(page).await.expect("committed");
    }
    let under = "SELECT count(*) FROM reconciled.entry WHERE state = 'held' AND generation = 0";
    let under = usize::try_from(database.integer(under).await).expect("a count");
    assert!(under > all.len() / 2, "{under}");
    let plans = Plans::default();
    let subscriber = tracing_subscriber::registry().with(plans.clone());
    let _guard = heard_by(subscriber);
    let decided = store.reconcile(guarded(seconds(60), vec![], true)).await;
    let decided = decided.expect("committed");
    assert!(
        matches!(decided.guard[..], [GuardEvent::Held { .. }]),
        "{:?}",
        decided.guard
    );
    let told = plans.take();
    assert!(told.len() >= 4, "{}", told.len());
    let looked: f64 = told.iter().map(|(_, plan)| looked_at(plan)).sum();
    // The others have a newer target than the one they were made for, or are in flight: they are decided on one by one.
    let others = all.len() - under;
    assert!(
        looked <= (2 * under + 20 * others) as f64,
        "{looked} of {under} and {others}"
    );
    let locks = told.iter().filter(|(_, plan)| plan.contains("LockRows"));
    let rows = |plan: &str| {
        let line = plan.lines().find(|line| line.contains("LockRows"))?;
        let (_, actual) = line.split_once("actual rows=")?;
        actual.split(' ').next()?.parse::<usize>().ok()
    };
    let locked: usize = locks.filter_map(|(_, plan)| rows(plan)).sum();
    assert!(locked <= 2 * others, "{locked} of {others} were locked");
}
