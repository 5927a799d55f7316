//! The provider: rows that change at a steady rate, and what Vercel must hold in the end.

use std::time::Duration;

use reconciled::simulator::{Field, Remote};
use secrecy::SecretString;
use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection};

use super::CHANGES_PER_SECOND;
use crate::support::database::TestDatabase;

/// What every secret's value begins with.
pub(super) const SECRET_MARK: &str = "soak-secret-";
/// What every access token begins with.
pub(super) const TOKEN_MARK: &str = "soak-token-";

const INSTALLATIONS: u64 = 10;
const RESOURCES: u64 = 200;
/// Changes in one statement at most; the resources of one statement differ.
const BATCH: u64 = RESOURCES;

/// The rows and the connection that changes them.
pub(super) struct Load {
    database: TestDatabase,
    /// Opened again after the server was killed.
    connection: PgConnection,
    /// Of each resource, by number.
    versions: Vec<u64>,
    changes: u64,
    tokens: u64,
}

impl Load {
    /// Creates the tables and the rows.
    pub(super) async fn create(database: &TestDatabase) -> Self {
        let database = TestDatabase {
            engine: database.engine,
            url: database.url.clone(),
            name: database.name.clone(),
            _directory: None,
        };
        let connection = database.postgres().await;
        let mut load = Self {
            database,
            connection,
            versions: vec![0; RESOURCES as usize],
            changes: 0,
            tokens: 0,
        };
        load.execute(
            "CREATE TABLE resource (n BIGINT PRIMARY KEY, installation_id TEXT, id TEXT, version BIGINT, name TEXT,
                 status TEXT, metadata JSONB, billing_plan JSONB, secrets JSONB);
             CREATE INDEX ON resource (version, installation_id, id);
             CREATE TABLE installation (id TEXT PRIMARY KEY, token TEXT);",
        )
        .await;
        for n in 0..INSTALLATIONS {
            let (id, token) = (installation_id(n), token(n, 0));
            load.execute(&format!(
                "INSERT INTO installation VALUES ('{id}', '{token}')"
            ))
            .await;
        }
        load.execute(&format!(
            "INSERT INTO resource (n, installation_id, id)
             SELECT n, 'icfg_' || n % {INSTALLATIONS}, 'res_' || n FROM generate_series(0, {RESOURCES} - 1) AS n"
        ))
        .await;
        load.change(RESOURCES).await;
        load
    }

    /// Makes every installation known to Vercel.
    pub(super) fn install(&self, remote: &Remote) {
        for n in 0..INSTALLATIONS {
            remote.install(&installation_id(n), &SecretString::from(token(n, 0)));
        }
    }

    /// Makes the changes that are due after so much time.
    pub(super) async fn go_on(&mut self, elapsed: Duration) {
        let elapsed_ms = u64::try_from(elapsed.as_millis()).expect("a test ends before that");
        let due = RESOURCES + elapsed_ms * CHANGES_PER_SECOND / 1000;
        while self.changes < due {
            self.change((due - self.changes).min(BATCH)).await;
        }
    }

    /// Changes every resource once more, so that no poisoned row is left and every row is under way.
    pub(super) async fn settle(&mut self) {
        self.change(RESOURCES).await;
    }

    /// How many changes were made.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Gives a row a status that does not exist, until its next change.
    pub(super) async fn poison(&mut self) {
        let n = self.changes % RESOURCES;
        self.execute(&format!(
            "UPDATE resource SET status = 'no such status', version = {} WHERE n = {n}",
            self.changes
        ))
        .await;
    }

    /// Replaces the token of one installation, in the database first.
    pub(super) async fn rotate_token(&mut self, remote: &Remote) {
        self.tokens += 1;
        let n = self.tokens % INSTALLATIONS;
        let (id, token) = (installation_id(n), token(n, self.tokens));
        self.execute(&format!(
            "UPDATE installation SET token = '{token}' WHERE id = '{id}'"
        ))
        .await;
        remote.rotate_token(&id, &SecretString::from(token));
    }

    /// Connects again after the server was killed.
    pub(super) async fn reconnect(&mut self) {
        self.connection = self.database.postgres().await;
    }

    /// A resource that Vercel holds otherwise than the provider wants it, in words.
    pub(super) fn disagreement(&self, remote: &Remote) -> Option<String> {
        self.versions.iter().zip(0..).find_map(|(version, n)| {
            let (installation, id) = (installation_id(n % INSTALLATIONS), format!("res_{n}"));
            let Some(held) = remote.resource(&installation, &id) else {
                return Some(format!("{installation}/{id} was never sent"));
            };
            let field = |field| held.field(field).cloned().unwrap_or_default();
            let agrees = field(Field::Name) == json!(format!("name {version}"))
                && field(Field::Metadata) == json!({"version": version})
                && field(Field::Status) == status(*version)
                && field(Field::BillingPlan)["name"] == json!(format!("plan {version}"))
                && held.secret("KEY") == Some(&format!("{SECRET_MARK}{version}"))
                && held.secret("FIXED") == Some(&format!("{SECRET_MARK}fixed-{n}"));
            (!agrees).then(|| {
                let metadata = field(Field::Metadata);
                format!("{installation}/{id} should be at version {version}, but is at {metadata}")
            })
        })
    }

    /// Changes as many resources as asked for, one statement, the next ones in turn.
    async fn change(&mut self, count: u64) {
        let first = self.changes % RESOURCES;
        // The statement takes one range of numbers, so it ends where they begin again.
        let count = count.min(RESOURCES - first);
        let base = self.changes + 1;
        self.execute(&format!(
            "UPDATE resource AS r SET version = c.version, name = 'name ' || c.version,
                 status = CASE c.version % 3 WHEN 0 THEN 'ready' WHEN 1 THEN 'pending' ELSE 'suspended' END,
                 metadata = jsonb_build_object('version', c.version),
                 billing_plan = jsonb_build_object('id', 'p', 'type', 'subscription', 'name', 'plan ' || c.version),
                 secrets = jsonb_build_object('KEY', '{SECRET_MARK}' || c.version, 'FIXED', '{SECRET_MARK}fixed-' || r.n)
             FROM (SELECT n, {base} + n - {first} AS version FROM resource WHERE n >= {first} AND n < {first} + {count}) AS c
             WHERE r.n = c.n"
        ))
        .await;
        for n in 0..count {
            let resource = usize::try_from(first + n).expect("there are few resources");
            self.versions[resource] = base + n;
        }
        self.changes += count;
    }

    async fn execute(&mut self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut self.connection)
            .await
            .expect("the provider's database takes the provider's changes");
    }
}

fn installation_id(n: u64) -> String {
    format!("icfg_{n}")
}

fn token(n: u64, rotation: u64) -> String {
    format!("{TOKEN_MARK}{n}-{rotation}")
}

fn status(version: u64) -> &'static str {
    ["ready", "pending", "suspended"][usize::try_from(version % 3).expect("it is below 3")]
}
