//! A provider's database with one table, and the source over it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use reconciled::model::{RawRow, RawText};
use reconciled::source::{
    self, Inspect, Overlap, PollFrom, PollPage, RawKey, Settings, Sieve, Source, SourceError,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::support::database::{Engine, TestDatabase};
use crate::support::mariadb::MariaDb;
use crate::support::postgres::Postgres;
use crate::support::sqlite;

/// How long a statement may take where nothing else is said.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);

/// One test's database.
pub(crate) struct Bed {
    pub(crate) database: TestDatabase,
}

impl Bed {
    pub(crate) async fn postgres() -> Self {
        Self::of(Postgres::shared().database().await)
    }

    pub(crate) async fn mariadb() -> Self {
        Self::of(MariaDb::shared().database().await)
    }

    pub(crate) fn sqlite() -> Self {
        Self::of(sqlite::database())
    }

    pub(crate) fn of(database: TestDatabase) -> Self {
        Self { database }
    }

    pub(crate) fn engine(&self) -> Engine {
        self.database.engine
    }

    /// The role that [`TestDatabase::reader`] creates.
    pub(crate) fn reader_role(&self) -> String {
        format!("{}_reader", self.database.name)
    }

    /// Waits until nobody but the reader has a session in this PostgreSQL database: those of earlier statements take a moment to end.
    pub(crate) async fn is_quiet(&self) {
        let sessions = format!(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = '{}' AND usename <> '{}' AND backend_type = 'client backend'",
            self.database.name,
            self.reader_role()
        );
        let mut elsewhere = PgConnection::connect(&Postgres::shared().url("postgres"))
            .await
            .expect("the shared server answers");
        loop {
            let sessions: i64 = sqlx::query_scalar(AssertSqlSafe(sessions.clone()))
                .fetch_one(&mut elsewhere)
                .await
                .expect("a superuser sees all sessions");
            if sessions == 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// One of three texts, by the database.
    pub(crate) fn pick<'a>(&self, postgres: &'a str, mariadb: &'a str, sqlite: &'a str) -> &'a str {
        match self.engine() {
            Engine::Postgres => postgres,
            Engine::MariaDb => mariadb,
            Engine::Sqlite => sqlite,
        }
    }

    pub(crate) fn timestamp(&self) -> &'static str {
        self.pick_static("timestamptz", "DATETIME(6)", "TEXT")
    }

    pub(crate) fn text(&self) -> &'static str {
        self.pick_static("text", "VARCHAR(700)", "TEXT")
    }

    pub(crate) fn json(&self) -> &'static str {
        self.pick_static("jsonb", "JSON", "TEXT")
    }

    /// A type that holds any text or bytes there are.
    pub(crate) fn long(&self) -> &'static str {
        self.pick_static("text", "LONGTEXT", "TEXT")
    }

    fn pick_static(
        &self,
        postgres: &'static str,
        mariadb: &'static str,
        sqlite: &'static str,
    ) -> &'static str {
        match self.engine() {
            Engine::Postgres => postgres,
            Engine::MariaDb => mariadb,
            Engine::Sqlite => sqlite,
        }
    }

    /// `AS cursor`, quoted where that is a reserved word.
    pub(crate) fn as_cursor(&self) -> &'static str {
        match self.engine() {
            Engine::MariaDb => "AS `cursor`",
            Engine::Postgres | Engine::Sqlite => "AS cursor",
        }
    }

    /// The table `resource` with a cursor of the type and an index on it.
    pub(crate) async fn create(&self, cursor_type: &str) {
        let (text, json) = (self.text(), self.json());
        self.database
            .execute(&format!(
                "CREATE TABLE resource (
                    installation_id {text},
                    resource_id {text},
                    updated_at {cursor_type},
                    status {text},
                    metadata {json}
                )"
            ))
            .await;
    }

    /// A query over all columns of that table.
    pub(crate) fn query(&self) -> String {
        format!(
            "SELECT installation_id, resource_id, updated_at {}, status, metadata FROM resource",
            self.as_cursor()
        )
    }

    pub(crate) fn settings(&self, query: &str) -> Settings {
        Settings {
            url: self.database.url.as_str().into(),
            query: query.to_owned(),
            installations_query: None,
            feed: None,
            overlap: Overlap::Unset,
            statement_timeout: STATEMENT_TIMEOUT,
            max_connections: 2,
            allow_replica: false,
            application_name: "reconciled-test".to_owned(),
        }
    }

    pub(crate) fn source(&self, query: &str) -> Arc<dyn Inspect> {
        source::connect(&self.settings(query)).expect("the query is one statement")
    }

    pub(crate) fn source_with(
        &self,
        query: &str,
        change: impl FnOnce(&mut Settings),
    ) -> Arc<dyn Inspect> {
        let mut settings = self.settings(query);
        change(&mut settings);
        source::connect(&settings).expect("the query is one statement")
    }
}

/// Every row of a pass, page by page, and how many pages there were. What is new from a cursor on, read at once, are the same rows.
pub(crate) async fn poll_all(
    source: &dyn Inspect,
    from: PollFrom,
    limit: u32,
) -> (Vec<RawRow>, usize) {
    let (rows, pages) = poll_pages(source, from.clone(), limit).await;
    if let PollFrom::Cursor(cursor) = from {
        let news_max = u32::try_from(rows.len().div_ceil(2)).expect("it fits");
        let (page, mut read) = poll_news(source, &cursor, news_max).await.expect("all");
        assert_eq!(page.reached, rows.last().and_then(|row| row.cursor.clone()));
        // Rows of one cursor come in any order.
        let mut expected = rows.clone();
        for rows in [&mut read, &mut expected] {
            rows.sort_by_key(|row| [&row.installation_id, &row.resource_id].map(ordered));
        }
        assert!(read == expected);
        if let Some(fewer) = news_max.checked_sub(1) {
            assert!(poll_news(source, &cursor, fewer).await.is_none());
        }
    }
    (rows, pages)
}

fn ordered(text: &RawText) -> Option<String> {
    self::text(text).map(str::to_owned)
}

/// What is new from a cursor on when every other row passes, and all rows as they were read; `None` when more than so many do not pass.
pub(crate) async fn poll_news(
    source: &dyn Inspect,
    cursor: &str,
    news_max: u32,
) -> Option<(PollPage, Vec<RawRow>)> {
    let read: Arc<Mutex<Vec<RawRow>>> = Arc::default();
    let seen = Arc::clone(&read);
    let sieve = Sieve {
        passes: Box::new(move |row| {
            let mut seen = seen.lock().expect("nobody panicked");
            seen.push(row.to_row());
            seen.len().is_multiple_of(2)
        }),
        passing_max: news_max,
        news_max,
    };
    let news = source.poll_news(cursor, sieve, None).await;
    let page = news.expect("it is read")?;
    let read = std::mem::take(&mut *read.lock().expect("nobody panicked"));
    let news: Vec<RawRow> = read.iter().step_by(2).cloned().collect();
    assert!(page.rows.to_rows() == news);
    assert_eq!(page.passed, (read.len() - news.len()) as u64);
    assert_eq!(page.next, None);
    Some((page, read))
}

/// Every row of a pass, page by page, and how many pages there were.
pub(crate) async fn poll_pages(
    source: &dyn Inspect,
    from: PollFrom,
    limit: u32,
) -> (Vec<RawRow>, usize) {
    let mut rows = Vec::new();
    let mut from = from;
    for pages in 1.. {
        assert!(pages < 2_000, "a pass does not end");
        let page = source
            .poll_page(&from, limit, None)
            .await
            .expect("a page is read");
        rows.extend(page.rows.to_rows());
        match page.next {
            Some(position) => from = PollFrom::After(position),
            None => return (rows, pages),
        }
    }
    unreachable!("the loop ends by returning");
}

/// Every row of a sweep, page by page.
pub(crate) async fn sweep_all(source: &dyn Inspect, limit: u32) -> Vec<Vec<RawRow>> {
    let mut pages: Vec<Vec<RawRow>> = Vec::new();
    let mut after: Option<RawKey> = None;
    loop {
        assert!(pages.len() < 2_000, "a sweep does not end");
        let page = source
            .sweep_page(after.as_ref(), limit)
            .await
            .expect("a page is read");
        // The same page in one piece holds the same rows, but for the cursors that it leaves out.
        let whole = source
            .sweep_rows(after.as_ref(), limit)
            .await
            .expect("a page is read");
        assert_eq!(whole.next, page.next);
        let bare = page.rows.iter().cloned().map(|row| RawRow {
            cursor: None,
            ..row
        });
        let whole = whole.rows.to_rows();
        assert!(whole.iter().cloned().eq(bare), "{}", pages.len());
        pages.push(page.rows);
        match page.next {
            Some(next) => after = Some(next),
            None => return pages,
        }
    }
}

/// A column's text.
pub(crate) fn text(text: &RawText) -> Option<&str> {
    match text {
        RawText::Text(text) => Some(text),
        RawText::Null | RawText::Unreadable(_) => None,
    }
}

/// The resource ids, in order.
pub(crate) fn ids(rows: &[RawRow]) -> Vec<&str> {
    rows.iter()
        .map(|row| text(&row.resource_id).unwrap_or("NULL"))
        .collect()
}

/// The problem and help of a refused query.
pub(crate) fn refusal(error: SourceError) -> String {
    match error {
        SourceError::Shape {
            statement,
            problem,
            help,
        } => format!("{statement} {problem}; {help}"),
        other => panic!("refused otherwise: {other}"),
    }
}

/// The error of a call that must fail.
pub(crate) async fn first_error(source: &dyn Source) -> SourceError {
    match source.shape().await {
        Err(error) => error,
        Ok(shape) => match shape.cursor {
            Some(_) => source
                .poll_page(&PollFrom::Beginning, 10, None)
                .await
                .map(drop)
                .expect_err("the poll must fail"),
            None => source
                .sweep_page(None, 10)
                .await
                .map(drop)
                .expect_err("the sweep must fail"),
        },
    }
}

/// A position that the last row of a page gives.
pub(crate) fn last_cursor(rows: &[RawRow]) -> String {
    rows.last()
        .and_then(|row| row.cursor.clone())
        .expect("the page has a last row with a cursor")
}
