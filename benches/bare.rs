//! What the daemon is compared with: the same requests, or the same rows, by the bare libraries and nothing else.
//!
//! Each runs in a process of its own, like the daemon, and prints one line of JSON.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use sqlx::{
    AssertSqlSafe, Connection as _, MySqlConnection, PgConnection, Row as _, SqliteConnection,
};

use crate::client::{client, patch};
use crate::process::Usage;
use crate::provider;

/// What a bare process used.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) items: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_bytes: u64,
}

fn report(items: u64, elapsed: Duration) -> Report {
    report_since(Duration::ZERO, items, elapsed)
}

/// What this process used since it had used so much of a processor's time.
pub(crate) fn report_since(cpu: Duration, items: u64, elapsed: Duration) -> Report {
    let usage = Usage::of(std::process::id());
    Report {
        items,
        seconds: elapsed.as_secs_f64(),
        cpu_seconds: (usage.cpu - cpu).as_secs_f64(),
        peak_bytes: usage.peak_bytes,
    }
}

/// Sends `count` PATCHes, `in_flight` at a time, and reads each answer to its end.
pub(crate) async fn send(base: &str, in_flight: u64, count: u64) -> Report {
    let client = client(in_flight);
    let next = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let senders = (0..in_flight).map(|_| {
        let (client, next, base) = (client.clone(), Arc::clone(&next), base.to_owned());
        tokio::spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return;
                }
                let (installation, resource) = provider::ids(n, provider::INSTALLATIONS);
                patch(&client, &base, &installation, &resource, provider::body(n)).await;
            }
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await.expect("no sender panics");
    }
    report(count, started.elapsed())
}

/// Every row of the source query in the order of its key.
fn scan_query(url: &str) -> String {
    format!(
        "{} ORDER BY installation_id, resource_id",
        provider::scan_query(url)
    )
}

/// Reads them with one statement through SQLite's own interface, in the thread that asks, and looks at every byte.
pub(crate) fn scan_in_thread(url: &str) -> Report {
    let path = url.trim_start_matches("sqlite://");
    let started = Instant::now();
    let connection = rusqlite::Connection::open(path).expect("a file");
    let mut statement = connection.prepare(&scan_query(url)).expect("a query");
    let columns = statement.column_count();
    let mut found = statement.query([]).expect("a query without parameters");
    let mut rows = 0;
    let mut bytes = 0_u64;
    while let Some(row) = found.next().expect("a row") {
        rows += 1;
        for index in 0..columns {
            let value = row.get_ref(index).expect("a column");
            let text = value.as_bytes_or_null().expect("text");
            bytes += text.map_or(0, |text| text.len() as u64);
        }
    }
    assert!(bytes > 0 || rows == 0);
    report(rows, started.elapsed())
}

/// Reads them with one statement through sqlx, and looks at every byte.
pub(crate) async fn scan(url: &str) -> Report {
    let query = scan_query(url);
    let started = Instant::now();
    let mut rows = 0;
    let mut bytes = 0_u64;
    if url.starts_with("sqlite") {
        let mut connection = SqliteConnection::connect(url).await.expect("a file");
        let mut stream = sqlx::query(AssertSqlSafe(query)).fetch(&mut connection);
        while let Some(row) = stream.try_next().await.expect("a row") {
            rows += 1;
            for index in 0..row.len() {
                let text: Option<&str> = row.try_get_unchecked(index).expect("text");
                bytes += text.map_or(0, |text| text.len() as u64);
            }
        }
    } else if url.starts_with("mysql") {
        let mut connection = MySqlConnection::connect(url).await.expect("a server");
        let mut stream = sqlx::query(AssertSqlSafe(query)).fetch(&mut connection);
        while let Some(row) = stream.try_next().await.expect("a row") {
            rows += 1;
            for index in 0..row.len() {
                let text: Option<&[u8]> = row.try_get_unchecked(index).expect("a column");
                bytes += text.map_or(0, |text| text.len() as u64);
            }
        }
    } else {
        let mut connection = PgConnection::connect(url).await.expect("a server");
        let mut stream = sqlx::query(AssertSqlSafe(query)).fetch(&mut connection);
        while let Some(row) = stream.try_next().await.expect("a row") {
            rows += 1;
            for index in 0..row.len() {
                let value = row.try_get_raw(index).expect("a column");
                bytes += value.as_bytes().map_or(0, |text| text.len() as u64);
            }
        }
    }
    assert!(bytes > 0 || rows == 0);
    report(rows, started.elapsed())
}
