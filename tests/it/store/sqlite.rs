//! What only the SQLite state promises: files, locks, constraints, durability.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use reconciled::model::EntryState;
use reconciled::store::Access;
use reconciled::store::console::Console as _;
use reconciled::store::{Heartbeat, SqliteStore, Store as _, StoreError};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, SqliteConnection};
use tempfile::TempDir;

use super::fixture::*;

fn state() -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("state.db");
    (directory, path)
}

async fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(path, Access::Daemon)
        .await
        .expect("a state")
}

/// Another process's view of the file.
async fn connect(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .foreign_keys(true);
    options.connect().await.expect("a connection")
}

#[tokio::test]
async fn file_mode_is_0600() {
    let (directory, path) = state();
    let store = open(&path).await;
    deliver(&store, START, &key("icfg_1", "res_1"), &status("ready")).await;
    store.heartbeat(&heartbeat()).await.expect("written");
    let mut names = Vec::new();
    for file in std::fs::read_dir(directory.path()).expect("readable") {
        let file = file.expect("readable");
        let mode = file.metadata().expect("readable").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", file.file_name());
        names.push(file.file_name().into_string().expect("UTF-8"));
    }
    names.sort();
    let expected = [
        "state.db",
        "state.db-shm",
        "state.db-wal",
        "state.db.daemon",
        "state.db.lock",
    ];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn file_that_others_may_read_is_closed_to_them() {
    let (_directory, path) = state();
    std::fs::write(&path, "").expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("changed");
    open(&path).await.close().await;
    let mode = std::fs::metadata(&path)
        .expect("readable")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn second_daemon_is_refused() {
    let (_directory, path) = state();
    let first = open(&path).await;
    match SqliteStore::open(&path, Access::Daemon).await {
        Err(StoreError::InUse { holder, .. }) => {
            assert_eq!(holder, Some(std::process::id().to_string()));
        }
        other => panic!("{other:?}"),
    }
    first.close().await;
    open(&path).await;
}

#[tokio::test]
async fn what_the_guard_counted_is_forgotten_with_its_window() {
    let (_directory, path) = state();
    let store = open(&path).await;
    let keys = ["1", "2", "3"].map(|id| key("icfg_1", id));
    for key in &keys {
        deliver(&store, START, key, &status("ready")).await;
    }
    // Each pass suspends one, an hour apart; the last found its change before the clock was set back.
    for (at, key) in [4_000, 8_000, 1_000].into_iter().zip(&keys) {
        let mut pass = batch(seconds(at), vec![row(key, &status("suspended"))]);
        pass.guard.destructive_max = Some(100);
        pass.ends_pass = true;
        store.reconcile(pass).await.expect("committed");
        let counted: Vec<(String,)> = sqlx::query_as("SELECT DISTINCT resource_id FROM guarded")
            .fetch_all(&mut connect(&path).await)
            .await
            .expect("read");
        assert_eq!(counted, [(key.resource_id.to_string(),)], "at {at}");
    }
}

#[tokio::test]
async fn command_beside_a_daemon_reads_and_acts() {
    let (_directory, path) = state();
    let missing = SqliteStore::open(&path, Access::Beside).await;
    assert!(
        matches!(missing, Err(StoreError::Open { .. })),
        "{missing:?}"
    );
    assert!(!path.exists(), "a command makes no state");
    let daemon = open(&path).await;
    let beside = SqliteStore::open(&path, Access::Beside)
        .await
        .expect("beside");
    read(
        &daemon,
        START,
        vec![row(&key("icfg_1", "res_1"), &status("ready"))],
    )
    .await;
    assert_eq!(beside.counts(START).await.expect("counted").waiting, 1);
    beside
        .pause(&pause(
            "icfg_1",
            reconciled::store::PauseKind::Manual,
            START,
        ))
        .await
        .expect("paused");
    assert!(claim(&daemon, START).await.is_empty());
}

fn heartbeat() -> Heartbeat {
    Heartbeat {
        owner: "812-1".to_owned(),
        pid: 812,
        version: "0.1.0".to_owned(),
        started_at: START,
        at: seconds(9),
        last_poll: Some((seconds(8), 41_207)),
        source_problem: None,
        state_problem: None,
        outage_since: None,
    }
}

#[tokio::test]
async fn daemon_is_known_by_its_lock_and_its_last_sign_of_life() {
    let (_directory, path) = state();
    let daemon = open(&path).await;
    let beside = SqliteStore::open(&path, Access::Beside)
        .await
        .expect("beside");
    let seen = beside.daemon().await.expect("answered");
    assert_eq!((seen.running, seen.heartbeat), (true, None));
    daemon.heartbeat(&heartbeat()).await.expect("written");
    let seen = beside.daemon().await.expect("answered");
    assert_eq!((seen.running, seen.heartbeat), (true, Some(heartbeat())));
    daemon.close().await;
    let seen = beside.daemon().await.expect("answered");
    assert_eq!((seen.running, seen.heartbeat), (false, Some(heartbeat())));
}

#[tokio::test]
async fn newer_schema_is_refused() {
    let (_directory, path) = state();
    open(&path).await.close().await;
    let mut connection = connect(&path).await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99, 'of the future', TRUE, x'00', 0)",
    )
    .execute(&mut connection)
    .await
    .expect("written");
    for access in [Access::Daemon, Access::Beside] {
        let refused = SqliteStore::open(&path, access).await;
        assert!(
            matches!(
                refused,
                Err(StoreError::Newer {
                    found: 99,
                    known: 1
                })
            ),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn another_programs_database_is_refused_and_left_alone() {
    let (_directory, path) = state();
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true);
    let mut connection = options.connect().await.expect("a connection");
    sqlx::query("CREATE TABLE customer (id INTEGER)")
        .execute(&mut connection)
        .await
        .expect("made");
    connection.close().await.expect("closed");
    let before = std::fs::read(&path).expect("readable");
    let refused = SqliteStore::open(&path, Access::Daemon).await;
    assert!(
        matches!(refused, Err(StoreError::Open { .. })),
        "{refused:?}"
    );
    // Byte for byte: also how it keeps its journal is its own affair.
    let after = std::fs::read(&path).expect("readable");
    assert!(before == after, "the file was changed");
}

#[tokio::test]
async fn state_that_cannot_be_opened_says_why() {
    let (directory, path) = state();
    let nowhere = directory.path().join("missing/state.db");
    let refused = SqliteStore::open(&nowhere, Access::Daemon)
        .await
        .expect_err("refused");
    assert!(refused.to_string().contains("does not exist"), "{refused}");
    std::fs::write(
        &path,
        "no database at all, but longer than a header".repeat(100),
    )
    .expect("written");
    let refused = SqliteStore::open(&path, Access::Daemon)
        .await
        .expect_err("refused");
    assert!(refused.to_string().contains("not a database"), "{refused}");
}

#[tokio::test]
async fn damaged_file_is_refused() {
    let (_directory, path) = state();
    let store = open(&path).await;
    let rows = (0..500).map(|n| row(&key("icfg_1", &format!("res_{n}")), &status("ready")));
    read(&store, START, rows.collect()).await;
    store.close().await;
    let mut bytes = std::fs::read(&path).expect("readable");
    let half = bytes.len() / 2;
    bytes[half..half + 8192].fill(0xa5);
    std::fs::write(&path, bytes).expect("written");
    let refused = SqliteStore::open(&path, Access::Daemon)
        .await
        .expect_err("refused");
    assert!(
        matches!(
            refused,
            StoreError::Corrupt { .. } | StoreError::Open { .. }
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn survives_reopen() {
    let (_directory, path) = state();
    let store = open(&path).await;
    let fingerprint_key = store.fingerprint_key().await.expect("a key");
    let (one, two) = (key("icfg_1", "res_1"), key("icfg_2", "res_1"));
    deliver(
        &store,
        START,
        &one,
        &with_secrets(status("ready"), &["URL=1"]),
    )
    .await;
    read(&store, seconds(1), vec![row(&two, &status("suspended"))]).await;
    let claimed = claim_one(&store, seconds(1)).await;
    let before = store
        .records(&[one.clone(), two.clone()])
        .await
        .expect("readable");
    // No farewell: what was answered was durable.
    drop(store);
    let store = loop {
        match SqliteStore::open(&path, Access::Daemon).await {
            Ok(store) => break store,
            // The task that writes gives the lock back when it has ended.
            Err(StoreError::InUse { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    let again = store.fingerprint_key().await.expect("a key");
    assert_eq!(again.as_bytes(), fingerprint_key.as_bytes());
    assert_eq!(store.records(&[one, two]).await.expect("readable"), before);
    let advanced = acknowledge(&store, &claimed, seconds(2)).await;
    assert_eq!(advanced.state, EntryState::Delivered);
}

#[tokio::test]
async fn unchanged_row_writes_nothing() {
    let (_directory, path) = state();
    let store = open(&path).await;
    let desired = status("ready");
    deliver(&store, START, &key("icfg_1", "res_1"), &desired).await;
    read(&store, START, vec![row(&key("icfg_1", "res_2"), &desired)]).await;
    let mut other = connect(&path).await;
    let mut version = async || -> i64 {
        let version = sqlx::query_scalar("PRAGMA data_version")
            .fetch_one(&mut other)
            .await;
        version.expect("readable")
    };
    let before = version().await;
    let rows = vec![
        row(&key("icfg_1", "res_1"), &desired),
        row(&key("icfg_1", "res_2"), &desired),
    ];
    read(&store, seconds(9), rows).await;
    assert_eq!(version().await, before);
    read(
        &store,
        seconds(9),
        vec![row(&key("icfg_1", "res_2"), &status("error"))],
    )
    .await;
    assert_ne!(version().await, before);
}

#[tokio::test]
async fn check_constraints_refuse_impossible_rows() {
    let (_directory, path) = state();
    let store = open(&path).await;
    read(
        &store,
        START,
        vec![row(&key("icfg_1", "res_1"), &status("ready"))],
    )
    .await;
    read(
        &store,
        START,
        vec![row(&key("icfg_1", "res_2"), &status("ready"))],
    )
    .await;
    let mut connection = connect(&path).await;
    let impossible = [
        "UPDATE entry SET lease_token = 1",
        "UPDATE entry SET lease_owner = 'a', lease_token = 1, lease_expires_at = 1",
        "UPDATE entry SET in_flight = '{}'",
        "UPDATE entry SET closed_at = 1",
        "UPDATE entry SET state = 'delivered'",
        "UPDATE entry SET state = 'held'",
        "UPDATE entry SET state = 'lost'",
        "UPDATE entry SET hold_id = 1",
        "UPDATE entry SET desired = '{'",
        "UPDATE entry SET resource_id = 'res_1'",
        "UPDATE entry SET resource_id = 'res_3'",
        "UPDATE entry SET attempts = -1",
        "UPDATE entry SET due_at = 'soon'",
        "UPDATE resource SET missing_since = 1",
        "UPDATE resource SET row_hash = x'00'",
        "UPDATE resource SET installation_id = ''",
        "INSERT INTO pause VALUES ('icfg_1', 'manual', 'ana', 'because', 1, NULL, 1, 0)",
        "INSERT INTO pause VALUES ('icfg_1', 'token', 'ana', 'because', 1, 1, NULL, 0)",
        "INSERT INTO act (at, actor, act, installation_id, resource_id, entry_id) VALUES (1, 'ana', 'discard', 'a', 'b', 1)",
        "INSERT INTO progress VALUES ('other', '{}')",
    ];
    for statement in impossible {
        let refused = sqlx::query(AssertSqlSafe(statement))
            .execute(&mut connection)
            .await;
        assert!(refused.is_err(), "{statement}");
    }
    // The same statement with a possible value passes: what is refused is the value.
    for statement in [
        "UPDATE entry SET lease_owner = 'a', lease_token = 1, lease_expires_at = 1, in_flight = '{}'",
        "UPDATE resource SET missing_since = 1, missing_sweeps = 1",
    ] {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut connection)
            .await
            .expect(statement);
    }
}

#[tokio::test]
async fn closed_store_refuses_politely() {
    let (_directory, path) = state();
    let store = open(&path).await;
    store.close().await;
    let refused = store.reconcile(batch(START, Vec::new())).await;
    assert!(
        matches!(refused, Err(StoreError::Failed { .. })),
        "{refused:?}"
    );
    assert!(store.counts(START).await.is_err());
    store.close().await;
}
