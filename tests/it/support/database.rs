//! One test's own database, the same to use whichever engine holds it.

use sqlx::mysql::MySqlRow;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Connection, FromRow, MySqlConnection, PgConnection, SqliteConnection};

use super::directory::Directory;

/// An empty database that no other test sees.
#[derive(Debug)]
pub(crate) struct TestDatabase {
    pub(crate) engine: Engine,
    /// The URL of a role that may do everything in it.
    pub(crate) url: String,
    /// The database's name on its server; the file's path for SQLite.
    pub(crate) name: String,
    /// Held for its end: SQLite's file goes with the test.
    pub(crate) _directory: Option<Directory>,
}

/// The kinds of database that the daemon reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Postgres,
    MariaDb,
    Sqlite,
}

impl TestDatabase {
    /// Runs one or more statements, each in a transaction of its own unless `sql` says otherwise.
    pub(crate) async fn execute(&self, sql: &str) {
        self.session().await.execute(sql).await;
    }

    /// Opens a connection for many statements.
    pub(crate) async fn session(&self) -> Session {
        match self.engine {
            Engine::Postgres => Session::Postgres(self.postgres().await),
            Engine::MariaDb => Session::MariaDb(self.mariadb().await),
            Engine::Sqlite => Session::Sqlite(self.sqlite().await),
        }
    }

    /// The one integer that `sql` yields.
    pub(crate) async fn integer(&self, sql: &str) -> i64 {
        self.one(sql).await
    }

    /// The one text that `sql` yields.
    pub(crate) async fn text(&self, sql: &str) -> String {
        self.one(sql).await
    }

    async fn one<T>(&self, sql: &str) -> T
    where
        (T,): for<'r> FromRow<'r, PgRow>
            + for<'r> FromRow<'r, MySqlRow>
            + for<'r> FromRow<'r, SqliteRow>,
        T: Send + Unpin,
    {
        let sql = AssertSqlSafe(sql.to_owned());
        let outcome = match self.engine {
            Engine::Postgres => {
                sqlx::query_scalar(sql)
                    .fetch_one(&mut self.postgres().await)
                    .await
            }
            Engine::MariaDb => {
                sqlx::query_scalar(sql)
                    .fetch_one(&mut self.mariadb().await)
                    .await
            }
            Engine::Sqlite => {
                sqlx::query_scalar(sql)
                    .fetch_one(&mut self.sqlite().await)
                    .await
            }
        };
        outcome.unwrap_or_else(|error| panic!("{:?} refused a test's query: {error}", self.engine))
    }

    /// Creates a role that may only read, tables made later by the owner included, and returns its URL.
    pub(crate) async fn reader(&self) -> String {
        let role = format!("{}_reader", self.name);
        match self.engine {
            Engine::Postgres => {
                self.execute(&format!(
                    "CREATE ROLE {role} LOGIN PASSWORD 'reader';
                     GRANT USAGE ON SCHEMA public TO {role};
                     GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};
                     ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO {role};"
                ))
                .await;
                self.url_as(&role, "reader")
            }
            Engine::MariaDb => {
                let name = &self.name;
                self.execute(&format!(
                    "CREATE USER {role} IDENTIFIED BY 'reader';
                     GRANT SELECT ON {name}.* TO {role};"
                ))
                .await;
                self.url_as(&role, "reader")
            }
            Engine::Sqlite => format!("{}?mode=ro", self.url),
        }
    }

    /// This database's URL with another role.
    pub(crate) fn url_as(&self, role: &str, password: &str) -> String {
        let (scheme, rest) = self.url.split_once("://").expect("a URL has a scheme");
        let (_, place) = rest.split_once('@').expect("a server's URL names a role");
        format!("{scheme}://{role}:{password}@{place}")
    }

    /// Opens a connection; the engine must be PostgreSQL.
    pub(crate) async fn postgres(&self) -> PgConnection {
        PgConnection::connect(&self.url)
            .await
            .expect("the test's PostgreSQL database answers")
    }

    /// Opens a connection; the engine must be MariaDB.
    pub(crate) async fn mariadb(&self) -> MySqlConnection {
        MySqlConnection::connect(&self.url)
            .await
            .expect("the test's MariaDB database answers")
    }

    /// Opens a connection; the engine must be SQLite.
    pub(crate) async fn sqlite(&self) -> SqliteConnection {
        SqliteConnection::connect(&self.url)
            .await
            .expect("the test's SQLite file opens")
    }
}

/// One connection to a database of any kind.
#[derive(Debug)]
pub(crate) enum Session {
    Postgres(PgConnection),
    MariaDb(MySqlConnection),
    Sqlite(SqliteConnection),
}

impl Session {
    /// Runs one or more statements, each in a transaction of its own unless `sql` says otherwise.
    pub(crate) async fn execute(&mut self, sql: &str) {
        let query = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        let outcome = match self {
            Self::Postgres(connection) => query.execute(connection).await.map(drop),
            Self::MariaDb(connection) => query.execute(connection).await.map(drop),
            Self::Sqlite(connection) => query.execute(connection).await.map(drop),
        };
        outcome.unwrap_or_else(|error| panic!("{self:?} refused a test's statement: {error}"));
    }
}

/// A name for a database that no other test, and no other process on the same server, uses.
pub(super) fn unique_name() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!(
        "test_{}_{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}
