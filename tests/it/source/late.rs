//! Late commits on PostgreSQL with no overlap at all: the horizon keeps the cursor behind every transaction that is open.

use std::time::Duration;

use reconciled::model::RawRow;
use reconciled::source::{Inspect, Overlap, PollFrom};
use sqlx::{Executor, PgConnection};

use super::bed::{Bed, ids, poll_news};

/// How old by the server's clock a transaction is before it commits, in milliseconds. A pass steps back a second anyway: what commits
/// within that would be found without looking at what is open.
const LATE_MS: i64 = 2_500;

/// A reader that keeps its cursor as the daemon does.
struct Reader {
    source: std::sync::Arc<dyn Inspect>,
    cursor: Option<String>,
    seen: Vec<String>,
    passes: usize,
}

impl Reader {
    fn new(bed: &Bed) -> Self {
        let source = bed.source_with(&bed.query(), |settings| {
            settings.overlap = Overlap::Duration(Duration::ZERO);
        });
        Self {
            source,
            cursor: None,
            seen: Vec::new(),
            passes: 0,
        }
    }

    /// One pass: at once what is new, every other time, or in small pages, the cursor kept page by page.
    async fn pass(&mut self) {
        self.passes += 1;
        if self.passes.is_multiple_of(2)
            && let Some(cursor) = &self.cursor
        {
            let news = poll_news(&*self.source, cursor, 10_000).await;
            let (page, read) = news.expect("all");
            self.keep(&read, page.horizon.or(page.reached));
            return;
        }
        let mut from = match self.cursor.clone() {
            Some(cursor) => PollFrom::Cursor(cursor),
            None => PollFrom::Beginning,
        };
        loop {
            from = match self.page(&from).await {
                Some(next) => next,
                None => return,
            };
        }
    }

    /// One page; where the next one starts.
    async fn page(&mut self, from: &PollFrom) -> Option<PollFrom> {
        let page = self.source.poll_page(from, 2, None).await.expect("a page");
        self.keep(&page.rows.to_rows(), page.horizon.or(page.reached));
        page.next.map(PollFrom::After)
    }

    fn keep(&mut self, rows: &[RawRow], cursor: Option<String>) {
        self.seen.extend(ids(rows).into_iter().map(str::to_owned));
        if !rows.is_empty() {
            self.cursor = cursor;
        }
    }

    /// Passes go on beside a row that changes, until what began at `begun` is late.
    async fn follow(&mut self, bed: &Bed, begun: i64) {
        loop {
            let now = clock(bed).await;
            // Without something new the cursor would stay where it is.
            bed.database
                .execute("UPDATE resource SET updated_at = now() WHERE resource_id = 'busy'")
                .await;
            self.pass().await;
            if now > begun + LATE_MS {
                return;
            }
        }
    }

    fn saw(&self, id: &str) -> bool {
        self.seen.iter().any(|seen| seen == id)
    }
}

/// A table with one row.
async fn bed() -> Bed {
    let bed = Bed::postgres().await;
    bed.create("timestamptz").await;
    bed.database.execute(&insert("busy")).await;
    bed
}

/// The server's clock, in milliseconds.
async fn clock(bed: &Bed) -> i64 {
    bed.database
        .integer("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        .await
}

fn insert(id: &str) -> String {
    format!(
        "INSERT INTO resource (installation_id, resource_id, updated_at) VALUES ('i', '{id}', now())"
    )
}

async fn run(connection: &mut PgConnection, sql: &str) {
    connection
        .execute(sqlx::AssertSqlSafe(sql.to_owned()))
        .await
        .expect("the provider's statement works");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_was_idle_without_an_xid_is_not_missed() {
    let bed = bed().await;
    let mut reader = Reader::new(&bed);
    let mut late = bed.database.postgres().await;
    // Its time is taken here; it has written nothing and so has no xid.
    run(&mut late, "BEGIN").await;
    run(&mut late, "SELECT now()").await;
    let begun = clock(&bed).await;
    for index in 0..5 {
        bed.database
            .execute(&insert(&format!("early{index}")))
            .await;
    }
    reader.follow(&bed, begun).await;
    assert!(reader.saw("early4"));
    run(&mut late, &insert("late")).await;
    reader.pass().await;
    assert!(!reader.saw("late"));
    run(&mut late, "COMMIT").await;
    reader.pass().await;
    assert!(reader.saw("late"), "cursor {:?}", reader.cursor);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_with_savepoints_is_not_missed() {
    let bed = bed().await;
    let mut reader = Reader::new(&bed);
    let mut late = bed.database.postgres().await;
    run(&mut late, "BEGIN").await;
    run(&mut late, "SAVEPOINT a").await;
    run(&mut late, &insert("late")).await;
    run(&mut late, "SAVEPOINT b").await;
    run(&mut late, &insert("undone")).await;
    let begun = clock(&bed).await;
    bed.database.execute(&insert("early")).await;
    reader.follow(&bed, begun).await;
    assert!(reader.saw("early"));
    run(&mut late, "ROLLBACK TO SAVEPOINT b").await;
    reader.pass().await;
    run(&mut late, "COMMIT").await;
    reader.pass().await;
    assert!(reader.saw("late"));
    assert!(!reader.saw("undone"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_is_not_missed() {
    let bed = bed().await;
    let mut reader = Reader::new(&bed);
    bed.database.execute(&insert("first")).await;
    reader.pass().await;
    let name = &bed.database.name;
    let mut late = bed.database.postgres().await;
    run(&mut late, "BEGIN").await;
    run(&mut late, &insert("late")).await;
    let begun = clock(&bed).await;
    bed.database.execute(&insert("early")).await;
    // Prepared between two passes, after the cursor's row was written: its own time is earlier.
    run(&mut late, &format!("PREPARE TRANSACTION '{name}'")).await;
    reader.follow(&bed, begun).await;
    assert!(reader.saw("early"));
    run(&mut late, &format!("COMMIT PREPARED '{name}'")).await;
    reader.pass().await;
    assert!(reader.saw("late"), "cursor {:?}", reader.cursor);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_was_open_for_long_and_then_prepared_is_not_missed() {
    let bed = bed().await;
    let mut reader = Reader::new(&bed);
    let name = &bed.database.name;
    let mut late = bed.database.postgres().await;
    run(&mut late, "BEGIN").await;
    run(&mut late, &insert("late")).await;
    reader.follow(&bed, clock(&bed).await).await;
    run(&mut late, &format!("PREPARE TRANSACTION '{name}'")).await;
    reader.follow(&bed, clock(&bed).await).await;
    run(&mut late, &format!("COMMIT PREPARED '{name}'")).await;
    reader.pass().await;
    assert!(reader.saw("late"), "cursor {:?}", reader.cursor);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_was_prepared_before_the_first_pass_is_not_missed() {
    let bed = bed().await;
    let name = &bed.database.name;
    let mut late = bed.database.postgres().await;
    run(&mut late, "BEGIN").await;
    run(&mut late, &insert("late")).await;
    run(&mut late, &format!("PREPARE TRANSACTION '{name}'")).await;
    // By the time of its first pass this is late already, and there is no cursor that an earlier pass would have held back.
    let prepared = clock(&bed).await;
    Reader::new(&bed).follow(&bed, prepared).await;
    let mut reader = Reader::new(&bed);
    reader.follow(&bed, clock(&bed).await).await;
    run(&mut late, &format!("COMMIT PREPARED '{name}'")).await;
    reader.pass().await;
    assert!(reader.saw("late"), "cursor {:?}", reader.cursor);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_commits_between_two_pages_is_not_missed() {
    let bed = bed().await;
    let mut reader = Reader::new(&bed);
    let mut late = bed.database.postgres().await;
    run(&mut late, "BEGIN").await;
    run(&mut late, &insert("late")).await;
    let begun = clock(&bed).await;
    reader.follow(&bed, begun).await;
    for index in 0..6 {
        bed.database
            .execute(&insert(&format!("early{index}")))
            .await;
    }
    let cursor = reader.cursor.clone().expect("passes went on");
    let next = reader.page(&PollFrom::Cursor(cursor)).await.expect("more");
    // After the pass went by its place, and before the pass ends.
    run(&mut late, "COMMIT").await;
    let mut next = Some(next);
    while let Some(from) = next {
        next = reader.page(&from).await;
    }
    assert!(!reader.saw("late"), "this pass had gone by");
    reader.pass().await;
    assert!(reader.saw("late"), "cursor {:?}", reader.cursor);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_is_older_than_a_crowd_keeps_the_cursor_behind_it() {
    let bed = bed().await;
    let mut late = bed.database.postgres().await;
    run(&mut late, "BEGIN").await;
    run(&mut late, &insert("late")).await;
    bed.database
        .execute(
            "INSERT INTO resource (installation_id, resource_id, updated_at)
            SELECT 'i', 'r' || n, now() FROM generate_series(1, 5) AS n",
        )
        .await;
    let mut reader = Reader::new(&bed);
    let source = std::sync::Arc::clone(&reader.source);
    let from = PollFrom::Beginning;
    let page = source.poll_page(&from, 10, None).await.expect("a page");
    let (cursor, crowd) = (
        page.horizon.expect("it is open"),
        page.reached.expect("one"),
    );
    let until = PollFrom::Until { cursor, crowd };
    let page = source.poll_page(&until, 10, None).await.expect("a page");
    assert_eq!(page.next.expect("what is later").key, None);
    assert_ne!(
        page.horizon, None,
        "a pass that goes on behind the crowd is held back"
    );
    reader.cursor = page.horizon;
    run(&mut late, "COMMIT").await;
    reader.pass().await;
    assert!(reader.saw("late"), "cursor {:?}", reader.cursor);
    // A crowd of yesterday is behind whatever is open now.
    bed.database
        .execute("UPDATE resource SET updated_at = date_trunc('day', now()) - interval '1 day'")
        .await;
    let page = source.poll_page(&from, 10, None).await.expect("a page");
    let crowd = page.reached.expect("one");
    let until = PollFrom::Until {
        cursor: crowd.clone(),
        crowd,
    };
    let page = source.poll_page(&until, 10, None).await.expect("a page");
    assert_eq!((page.rows.len(), page.horizon), (0, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_open_transactions_the_cursor_is_the_last_rows() {
    let bed = Bed::postgres().await;
    bed.create("timestamptz").await;
    bed.database
        .execute(
            "INSERT INTO resource (installation_id, resource_id, updated_at)
            SELECT 'i', 'r' || n, now() - interval '1 minute' * n FROM generate_series(1, 5) AS n",
        )
        .await;
    let source = bed.source(&bed.query());
    let page = source
        .poll_page(&PollFrom::Beginning, 10, None)
        .await
        .expect("a page");
    assert_eq!(page.rows.len(), 5);
    assert_eq!(page.horizon, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_cannot_see_the_sessions_has_no_horizon() {
    let bed = bed().await;
    bed.database.execute(&insert("r")).await;
    let mut late = bed.database.postgres().await;
    run(&mut late, "BEGIN").await;
    run(&mut late, &insert("late")).await;
    bed.database.execute(&insert("s")).await;
    let mut settings = bed.settings(&bed.query());
    settings.url = bed.database.reader().await.into();
    let blind = reconciled::source::connect(&settings).expect("settings");
    let page = blind
        .poll_page(&PollFrom::Beginning, 10, None)
        .await
        .expect("a page");
    assert_eq!(page.horizon, None);
    let reader = format!("{}_reader", bed.database.name);
    bed.database
        .execute(&format!("GRANT pg_read_all_stats TO {reader}"))
        .await;
    let page = blind
        .poll_page(&PollFrom::Beginning, 10, None)
        .await
        .expect("a page");
    assert!(page.horizon.is_some());
}
