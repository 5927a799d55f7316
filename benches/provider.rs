//! The provider's database: so many resources in so many installations, in PostgreSQL or SQLite, and a daemon's configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process;
use crate::support::database::{Engine, TestDatabase};
use crate::support::directory::Directory;
use crate::support::mariadb::MariaDb;
use crate::support::postgres::Postgres;
use crate::support::sqlite;

/// How many installations the resources belong to, so that a limit per installation does not decide a measurement.
pub(crate) const INSTALLATIONS: u64 = 250;

/// The installation and id of the resource with this number.
pub(crate) fn ids(n: u64, installations: u64) -> (String, String) {
    (
        format!("icfg_{:06}", n % installations),
        format!("res_{n:07}"),
    )
}

/// A body of the size that a change of [`Provider::change`] has.
pub(crate) fn body(n: u64) -> String {
    format!(r#"{{"name":"database-{n}-of-round-0","metadata":{{"region":"iad1","round":0}}}}"#)
}

/// The columns that the daemon reads, each as text, for a scan without it.
pub(crate) fn scan_query(url: &str) -> &'static str {
    if url.starts_with("sqlite") {
        "SELECT installation_id, id AS resource_id, cast(updated_at AS TEXT), name, status, metadata, billing_plan, secrets FROM resource"
    } else if url.starts_with("mysql") {
        "SELECT installation_id, id AS resource_id, cast(updated_at AS CHAR), name, status, metadata, billing_plan, secrets FROM resource"
    } else {
        "SELECT installation_id, id AS resource_id, updated_at::text, name, status, metadata::text, billing_plan::text, secrets::text FROM resource"
    }
}

/// A database with resources, and a directory with a configuration and a state.
pub(crate) struct Provider {
    pub(crate) database: TestDatabase,
    directory: Directory,
    pub(crate) resources: u64,
    /// How many installations they belong to.
    installations: u64,
    /// The database of a state on PostgreSQL, on a server of its own that keeps what it commits; otherwise the state is a file.
    shared_state: Option<(TestDatabase, Postgres)>,
}

/// What a daemon is configured with.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) vercel: String,
    pub(crate) max_in_flight: u64,
    /// Whether the daemon listens, and polls on schedule once a minute only.
    pub(crate) listens: bool,
    /// How often it writes a summary, for which resources are counted: "60s" by default.
    pub(crate) summaries: &'static str,
}

impl Provider {
    /// A database of that kind with `resources` rows whose last changes lie a second apart, the newest now.
    pub(crate) async fn new(engine: Engine, resources: u64) -> Self {
        Self::spread(engine, resources, INSTALLATIONS).await
    }

    /// The same with the resources in so many installations.
    pub(crate) async fn spread(engine: Engine, resources: u64, installations: u64) -> Self {
        let database = match engine {
            Engine::Postgres => Postgres::shared().database().await,
            Engine::Sqlite => sqlite::database(),
            Engine::MariaDb => MariaDb::shared().database().await,
        };
        Self::over(database, resources, installations).await
    }

    /// The same in an empty database that is there already.
    pub(crate) async fn over(database: TestDatabase, resources: u64, installations: u64) -> Self {
        let provider = Self {
            database,
            directory: Directory::new(None),
            resources,
            installations,
            shared_state: None,
        };
        provider.fill().await;
        provider
    }

    /// The same with its state in a PostgreSQL database of its own.
    pub(crate) async fn with_shared_state(mut self) -> Self {
        // The shared server does not flush, and would lose what was acknowledged.
        let server = Postgres::dedicated();
        self.shared_state = Some((server.database().await, server));
        self
    }

    async fn fill(&self) {
        let Self {
            resources,
            installations,
            ..
        } = self;
        let sql = match self.database.engine {
            Engine::Sqlite => format!(
                "PRAGMA journal_mode = WAL;
                 CREATE TABLE installation (id TEXT PRIMARY KEY, token TEXT NOT NULL);
                 CREATE TABLE resource (
                     installation_id TEXT NOT NULL, id TEXT NOT NULL, updated_at INTEGER NOT NULL, name TEXT NOT NULL,
                     status TEXT NOT NULL, metadata TEXT NOT NULL, billing_plan TEXT NOT NULL, secrets TEXT NOT NULL,
                     PRIMARY KEY (installation_id, id));
                 CREATE INDEX resource_updated_at ON resource (updated_at);
                 WITH RECURSIVE number (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n + 1 < {installations})
                 INSERT INTO installation SELECT printf('icfg_%06d', n), printf('token-of-icfg_%06d', n) FROM number;
                 WITH RECURSIVE number (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n + 1 < {resources})
                 INSERT INTO resource
                 SELECT printf('icfg_%06d', n % {installations}), printf('res_%07d', n), n, 'database-' || n, 'ready',
                        '{{\"region\":\"iad1\",\"round\":0}}',
                        '{{\"id\":\"pro\",\"type\":\"subscription\",\"name\":\"Pro\",\"cost\":\"$10.00/month\"}}',
                        printf('{{\"DATABASE_URL\":\"postgres://user:password-%d@db.internal/app\"}}', n)
                 FROM number;
                 ANALYZE;"
            ),
            Engine::MariaDb => format!(
                "CREATE TABLE installation (id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PRIMARY KEY, token TEXT NOT NULL);
                 CREATE TABLE resource (
                     installation_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
                     id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL, updated_at TIMESTAMP(6) NOT NULL,
                     name TEXT NOT NULL, status VARCHAR(20) NOT NULL, metadata JSON NOT NULL, billing_plan JSON NOT NULL,
                     secrets JSON NOT NULL, PRIMARY KEY (installation_id, id), INDEX (updated_at));
                 INSERT INTO installation
                 SELECT concat('icfg_', lpad(seq, 6, '0')), concat('token-of-icfg_', lpad(seq, 6, '0'))
                 FROM seq_0_to_{last_installation};
                 INSERT INTO resource
                 SELECT concat('icfg_', lpad(seq % {installations}, 6, '0')), concat('res_', lpad(seq, 7, '0')),
                        now(6) - INTERVAL ({resources} - seq) SECOND, concat('database-', seq), 'ready',
                        '{{\"region\":\"iad1\",\"round\":0}}',
                        '{{\"id\":\"pro\",\"type\":\"subscription\",\"name\":\"Pro\",\"cost\":\"$10.00/month\"}}',
                        json_object('DATABASE_URL', concat('postgres://user:password-', seq, '@db.internal/app'))
                 FROM seq_0_to_{last_resource}
                 ORDER BY 1, 2;
                 ANALYZE TABLE resource;",
                last_installation = installations - 1,
                last_resource = resources - 1,
            ),
            Engine::Postgres => format!(
                "CREATE TABLE installation (id text PRIMARY KEY, token text NOT NULL);
                 CREATE TABLE resource (
                     installation_id text COLLATE \"C\" NOT NULL, id text COLLATE \"C\" NOT NULL, updated_at timestamptz NOT NULL,
                     name text NOT NULL, status text NOT NULL, metadata jsonb NOT NULL, billing_plan jsonb NOT NULL,
                     secrets jsonb NOT NULL, PRIMARY KEY (installation_id, id));
                 INSERT INTO installation
                 SELECT format('icfg_%s', lpad(n::text, 6, '0')), format('token-of-icfg_%s', lpad(n::text, 6, '0'))
                 FROM generate_series(0, {installations} - 1) AS n;
                 INSERT INTO resource
                 SELECT format('icfg_%s', lpad((n % {installations})::text, 6, '0')), format('res_%s', lpad(n::text, 7, '0')),
                        now() - ({resources} - n) * interval '1 second', 'database-' || n, 'ready',
                        '{{\"region\":\"iad1\",\"round\":0}}',
                        '{{\"id\":\"pro\",\"type\":\"subscription\",\"name\":\"Pro\",\"cost\":\"$10.00/month\"}}',
                        jsonb_build_object('DATABASE_URL', format('postgres://user:password-%s@db.internal/app', n))
                 FROM generate_series(0, {resources} - 1) AS n
                 ORDER BY 1, 2;
                 CREATE INDEX resource_updated_at ON resource (updated_at);"
            ),
        };
        self.database.execute(&sql).await;
        self.vacuum().await;
    }

    /// Tidies up after changes, so that a round does not pay for the one before.
    pub(crate) async fn vacuum(&self) {
        if self.database.engine == Engine::Postgres {
            self.database.execute("VACUUM ANALYZE resource").await;
            self.database.execute("CHECKPOINT").await;
        }
    }

    /// Writes the configuration of a daemon over this database and returns its path.
    pub(crate) fn configure(&self, setting: &Setting) -> PathBuf {
        let Setting {
            vercel,
            max_in_flight,
            listens,
            summaries,
        } = setting;
        let (listen, poll) = match listens {
            true => ("listen = \"reconciled\"", "0 * * * * *"),
            false => ("", "* * * * * *"),
        };
        let url = &self.database.url;
        let state = match &self.shared_state {
            Some((database, _)) => database.url.clone(),
            None => format!("sqlite://{}", self.state().display()),
        };
        let text = format!(
            "[source]\nurl = \"{url}\"\n\
             query = \"SELECT installation_id, id AS resource_id, updated_at AS {cursor}, name, status, metadata, billing_plan, secrets FROM resource\"\n\
             installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
             {overlap}\n{listen}\n\
             [state]\nurl = \"{state}\"\n\
             [vercel]\nbase_url = \"{vercel}\"\nmax_in_flight = {max_in_flight}\n\
             [schedule]\npoll = \"{poll}\"\nsweep = \"\"\n\
             [log]\nfilter = \"info,reconciled::app::watch=debug\"\nsummary_interval = \"{summaries}\"\n",
            cursor = match self.database.engine {
                Engine::MariaDb => "`cursor`",
                _ => "cursor",
            },
            overlap = match self.database.engine {
                Engine::Sqlite => "overlap = 0",
                _ => "",
            },
        );
        let path = self.directory.path().join("reconciled.toml");
        std::fs::write(&path, text).expect("the directory is writable");
        path
    }

    /// Where the daemon's state is.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state.db")
    }

    /// Takes every row as acknowledged, so that only changes are to be sent.
    pub(crate) async fn adopt(&self, config: &Path) {
        process::command(config, &["baseline", "adopt", "--json"]).await;
    }

    /// Changes the name and metadata of the first `count` resources in one transaction.
    pub(crate) async fn change(&self, round: u64, count: u64) {
        let set = match self.database.engine {
            Engine::Sqlite => format!(
                "updated_at = {} + rowid, name = 'database-' || rowid || '-of-round-{round}',
                 metadata = '{{\"region\":\"iad1\",\"round\":{round}}}' WHERE rowid <= {count}",
                self.resources * (round + 1)
            ),
            Engine::MariaDb => format!(
                "updated_at = now(6), name = concat(id, '-of-round-{round}'),
                 metadata = '{{\"region\":\"iad1\",\"round\":{round}}}' WHERE id < 'res_{count:07}'"
            ),
            Engine::Postgres => format!(
                "updated_at = clock_timestamp(), name = id || '-of-round-{round}',
                 metadata = '{{\"region\":\"iad1\",\"round\":{round}}}' WHERE id < 'res_{count:07}'"
            ),
        };
        // In the same transaction, as the trigger of the recipe does it; nobody listens unless told to.
        let notify = match self.database.engine {
            Engine::Postgres => "; NOTIFY reconciled",
            _ => "",
        };
        self.database
            .execute(&format!("UPDATE resource SET {set}{notify}"))
            .await;
    }

    /// Gives the first `count` resources one cursor, as a statement does that changes them all, and changes nothing else.
    pub(crate) async fn touch(&self, count: u64) {
        assert_eq!(self.database.engine, Engine::Postgres);
        self.database
            .execute(&format!(
                "UPDATE resource SET updated_at = now() WHERE id < 'res_{count:07}'"
            ))
            .await;
    }

    /// Rotates the secret of the first `count` resources in one transaction.
    pub(crate) async fn rotate(&self, round: u64, count: u64) {
        assert_eq!(self.database.engine, Engine::Postgres);
        self.database
            .execute(&format!(
                "UPDATE resource
                 SET updated_at = clock_timestamp(),
                     secrets = jsonb_build_object('DATABASE_URL', format('postgres://user:password-{round}-%s@db.internal/app', id))
                 WHERE id < 'res_{count:07}'"
            ))
            .await;
    }
}

/// Long enough for anything on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(900);
