//! A provider as the demo imagines it: a SQLite database of databases, their plans and credentials.
//!
//! Knows nothing of the daemon. Keeps every secret and token it ever made, so that it can be told later where none may be.

use std::collections::BTreeMap;
use std::path::Path;

use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection};

use crate::clock::{Random as _, SeededRandom};

/// Installations at the start.
const INSTALLATIONS: usize = 6;
/// Databases of each.
const DATABASES_EACH: usize = 8;
/// The credentials of each database.
pub(super) const CREDENTIALS: [&str; 2] = ["API_KEY", "DATABASE_URL"];

/// The operator's mapping: what a provider would write into `[source] query`.
pub(super) const QUERY: &str = "
SELECT d.installation_id, d.id AS resource_id, d.version AS cursor, d.name, d.state AS status,
       json_object('id', p.id, 'type', 'subscription', 'name', p.name, 'cost', p.cost) AS billing_plan,
       json_object('region', d.region, 'size', d.size) AS metadata,
       CASE WHEN d.message IS NULL THEN NULL ELSE json_object('level', 'info', 'title', d.message) END AS notification,
       (SELECT json_group_array(json_object('name', c.name, 'value', c.value))
        FROM credentials AS c WHERE c.database_id = d.id) AS secrets
FROM databases AS d JOIN plans AS p ON p.id = d.plan_id";

/// Where the daemon finds access tokens.
pub(super) const INSTALLATIONS_QUERY: &str =
    "SELECT id AS installation_id, access_token FROM installations";

const SCHEMA: &str = "
CREATE TABLE installations (id TEXT PRIMARY KEY, access_token TEXT NOT NULL);
CREATE TABLE plans (id TEXT PRIMARY KEY, name TEXT NOT NULL, cost TEXT NOT NULL);
CREATE TABLE databases (
    id TEXT PRIMARY KEY, installation_id TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,
    plan_id TEXT NOT NULL, region TEXT NOT NULL, size INTEGER NOT NULL, message TEXT, version INTEGER NOT NULL
);
CREATE INDEX databases_by_version ON databases (version);
CREATE TABLE credentials (database_id TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (database_id, name));
INSERT INTO plans VALUES ('hobby', 'Hobby', '$0'), ('pro', 'Pro', '$19'), ('scale', 'Scale', '$99'), ('legacy', 'Legacy', '$7');";

/// One database as the provider has it: what Vercel is to show in the end.
#[derive(Debug, PartialEq)]
pub(super) struct Database {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) plan: Value,
    pub(super) metadata: Value,
    pub(super) notification: Option<Value>,
    pub(super) secrets: BTreeMap<String, String>,
}

/// Databases by installation and id.
pub(super) type Fleet = BTreeMap<(String, String), Database>;

/// What the provider changes in one of its databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edit {
    State(&'static str),
    Plan(&'static str),
    Rename,
    Resize,
    Message(Option<&'static str>),
    Rotate(&'static str),
}

/// The provider and its database.
pub(super) struct Provider {
    connection: SqliteConnection,
    random: SeededRandom,
    databases: Vec<(String, String)>,
    /// The part of every secret and token that is random: where one of these is found, the secret is.
    pub(super) confidential: Vec<String>,
    /// Changes of databases so far.
    pub(super) changes: u64,
    /// How many of them rotated a credential.
    pub(super) rotations: u64,
}

impl Provider {
    /// A provider with some customers; equal seeds give equal providers.
    pub(super) async fn create(path: &Path, seed: u64) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .disable_statement_logging();
        let mut connection = options.connect().await?;
        sqlx::raw_sql(SCHEMA).execute(&mut connection).await?;
        let mut provider = Self {
            connection,
            random: SeededRandom::new(seed),
            databases: Vec::new(),
            confidential: Vec::new(),
            changes: 0,
            rotations: 0,
        };
        for _ in 0..INSTALLATIONS {
            let installation = format!("icfg_{}", provider.letters(6));
            let token = provider.confidential_text();
            sqlx::query("INSERT INTO installations (id, access_token) VALUES (?, ?)")
                .bind(&installation)
                .bind(&token)
                .execute(&mut provider.connection)
                .await?;
            for _ in 0..DATABASES_EACH {
                provider.provision(&installation).await?;
            }
        }
        // What stood there from the beginning is no change.
        provider.changes = 0;
        Ok(provider)
    }

    /// The databases in the order of their making.
    pub(super) fn databases(&self) -> &[(String, String)] {
        &self.databases
    }

    /// A number below `bound`.
    pub(super) fn below(&self, bound: usize) -> usize {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a dice throw over a few dozen sides"
        )]
        let side = (self.random.fraction() * bound as f64) as usize;
        side.min(bound.saturating_sub(1))
    }

    /// A customer provisions another database.
    pub(super) async fn provision(
        &mut self,
        installation: &str,
    ) -> Result<(String, String), sqlx::Error> {
        const NAMES: [&str; 8] = [
            "orders", "cache", "search", "events", "users", "billing", "media", "queue",
        ];
        const REGIONS: [&str; 3] = ["fra1", "iad1", "sin1"];
        let id = format!("db_{}", self.letters(8));
        let name = format!("{}-{}", NAMES[self.below(NAMES.len())], self.letters(3));
        let region = REGIONS[self.below(REGIONS.len())];
        let values: Vec<(&str, String)> = CREDENTIALS
            .map(|name| (name, self.credential(name)))
            .to_vec();
        let mut transaction = self.connection.begin().await?;
        sqlx::query(
            "INSERT INTO databases (id, installation_id, name, state, plan_id, region, size, message, version)
             VALUES (?, ?, ?, 'ready', 'hobby', ?, 1, NULL, (SELECT coalesce(max(version), 0) + 1 FROM databases))",
        )
        .bind(&id)
        .bind(installation)
        .bind(name)
        .bind(region)
        .execute(&mut *transaction)
        .await?;
        for (name, value) in values {
            sqlx::query("INSERT INTO credentials (database_id, name, value) VALUES (?, ?, ?)")
                .bind(&id)
                .bind(name)
                .bind(value)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        self.changes += 1;
        let key = (installation.to_owned(), id);
        self.databases.push(key.clone());
        Ok(key)
    }

    /// Changes one database, in one transaction.
    pub(super) async fn edit(&mut self, id: &str, edits: &[Edit]) -> Result<(), sqlx::Error> {
        let rotated: Vec<Option<String>> = edits
            .iter()
            .map(|edit| match edit {
                Edit::Rotate(name) => Some(self.credential(name)),
                _ => None,
            })
            .collect();
        let suffix = self.letters(3);
        let mut transaction = self.connection.begin().await?;
        for (edit, value) in edits.iter().zip(&rotated) {
            let statement = match edit {
                Edit::State(state) => sqlx::query("UPDATE databases SET state = ? WHERE id = ?").bind(*state),
                Edit::Plan(plan) => sqlx::query("UPDATE databases SET plan_id = ? WHERE id = ?").bind(*plan),
                Edit::Rename => {
                    sqlx::query("UPDATE databases SET name = substr(name, 1, instr(name, '-')) || ? WHERE id = ?").bind(&suffix)
                }
                Edit::Resize => sqlx::query("UPDATE databases SET size = size + ? WHERE id = ?").bind(1_i64),
                Edit::Message(message) => sqlx::query("UPDATE databases SET message = ? WHERE id = ?").bind(*message),
                Edit::Rotate(name) => {
                    sqlx::query("UPDATE credentials SET value = ? WHERE name = ? AND database_id = ?").bind(value).bind(*name)
                }
            };
            statement.bind(id).execute(&mut *transaction).await?;
        }
        sqlx::query(
            "UPDATE databases SET version = (SELECT max(version) + 1 FROM databases) WHERE id = ?",
        )
        .bind(id)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        self.changes += 1;
        self.rotations += edits
            .iter()
            .filter(|edit| matches!(edit, Edit::Rotate(_)))
            .count() as u64;
        Ok(())
    }

    /// Stores a new access token for an installation, and says which.
    pub(super) async fn renew_token(
        &mut self,
        installation: &str,
    ) -> Result<SecretString, sqlx::Error> {
        let token = self.confidential_text();
        sqlx::query("UPDATE installations SET access_token = ? WHERE id = ?")
            .bind(&token)
            .bind(installation)
            .execute(&mut self.connection)
            .await?;
        Ok(SecretString::from(token))
    }

    /// Every installation with its token.
    pub(super) async fn tokens(&mut self) -> Result<Vec<(String, SecretString)>, sqlx::Error> {
        let rows = sqlx::query("SELECT id, access_token FROM installations ORDER BY id")
            .fetch_all(&mut self.connection)
            .await?;
        rows.iter()
            .map(|row| {
                Ok((
                    row.try_get(0)?,
                    SecretString::from(row.try_get::<String, _>(1)?),
                ))
            })
            .collect()
    }

    /// Everything as it stands now, read from the tables themselves and not through the operator's query.
    pub(super) async fn fleet(&mut self) -> Result<Fleet, sqlx::Error> {
        let rows = sqlx::query(
            "SELECT d.installation_id, d.id, d.name, d.state, d.region, d.size, d.message, p.id, p.name, p.cost
             FROM databases AS d
             JOIN plans AS p ON p.id = d.plan_id
             ORDER BY d.installation_id, d.id",
        )
        .fetch_all(&mut self.connection)
        .await?;
        let mut fleet = Fleet::new();
        for row in &rows {
            let text = |index: usize| row.try_get::<String, _>(index);
            let message: Option<String> = row.try_get(6)?;
            let database = Database {
                name: text(2)?,
                state: text(3)?,
                plan: json!({"id": text(7)?, "type": "subscription", "name": text(8)?, "cost": text(9)?}),
                metadata: json!({"region": text(4)?, "size": row.try_get::<i64, _>(5)?}),
                notification: message.map(|message| json!({"level": "info", "title": message})),
                secrets: BTreeMap::new(),
            };
            fleet.insert((text(0)?, text(1)?), database);
        }
        let rows = sqlx::query(
            "SELECT d.installation_id, d.id, c.name, c.value
             FROM credentials AS c
             JOIN databases AS d ON d.id = c.database_id
             ORDER BY d.id, c.name",
        )
        .fetch_all(&mut self.connection)
        .await?;
        for row in &rows {
            if let Some(database) = fleet.get_mut(&(row.try_get(0)?, row.try_get(1)?)) {
                database.secrets.insert(row.try_get(2)?, row.try_get(3)?);
            }
        }
        Ok(fleet)
    }

    fn credential(&mut self, name: &str) -> String {
        let random = self.confidential_text();
        match name {
            "DATABASE_URL" => format!("postgres://app:{random}@{}.db.example/app", self.letters(4)),
            _ => random,
        }
    }

    /// Random text that must appear nowhere but here, in requests and at Vercel.
    fn confidential_text(&mut self) -> String {
        let text = self.letters(32);
        self.confidential.push(text.clone());
        text
    }

    fn letters(&self, count: usize) -> String {
        const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        (0..count)
            .map(|_| char::from(LETTERS[self.below(LETTERS.len())]))
            .collect()
    }
}
