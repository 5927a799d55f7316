//! A provider with a SQLite database, a simulated Vercel, and single runs of the daemon between them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reconciled::app::{OnceOptions, OnceReport, Parts, once};
use reconciled::config::Config;
use reconciled::simulator::{Entry, Options, Remote, Simulator};
use reconciled::store::Access;
use secrecy::SecretString;
use serde_json::Value;
use sqlx::Connection as _;
use tokio_util::sync::CancellationToken;

use crate::support::database::TestDatabase;
use crate::support::sqlite;

const SCHEMA: &str = "
CREATE TABLE installation (id TEXT PRIMARY KEY, token TEXT);
CREATE TABLE resource (
    installation_id TEXT, id TEXT, version INTEGER,
    ownership TEXT, name TEXT, status TEXT, metadata TEXT, extras TEXT, billing_plan TEXT, notification TEXT, secrets TEXT
);
";

/// For how long Vercel may apply a request whose answer was lost, as the daemon is told.
pub(super) const LATE_APPLY: Duration = Duration::from_millis(150);

/// A provider, Vercel and the settings of the daemon between them.
pub(super) struct Fleet {
    pub(super) provider: TestDatabase,
    pub(super) simulator: Option<Simulator>,
    pub(super) remote: Remote,
    base_url: String,
    settings: String,
}

impl Fleet {
    /// Two installations, `icfg_1` and `icfg_2`, without resources; the daemon manages status, name and secrets.
    pub(super) async fn new() -> Self {
        Self::managing("status, name, secrets").await
    }

    /// The same with other columns.
    pub(super) async fn managing(columns: &str) -> Self {
        let provider = sqlite::database();
        provider.execute(SCHEMA).await;
        for installation in ["icfg_1", "icfg_2"] {
            let sql = format!(
                "INSERT INTO installation VALUES ('{installation}', 'token-of-{installation}')"
            );
            provider.execute(&sql).await;
        }
        let simulator = Simulator::start(Options::creating())
            .await
            .expect("a free port");
        let remote = simulator.remote().clone();
        for installation in ["icfg_1", "icfg_2"] {
            remote.install(
                installation,
                &SecretString::from(format!("token-of-{installation}")),
            );
        }
        let settings = format!(
            r#"
            [source]
            query = "SELECT installation_id, id AS resource_id, version AS cursor, {columns} FROM resource"
            installations_query = "SELECT id AS installation_id, token AS access_token FROM installation"
            overlap = 0
            [retry]
            initial_interval = "5ms"
            max_interval = "40ms"
            max_conflicts = 3
            lease = "10s"
            late_apply = "{}ms"
            "#,
            LATE_APPLY.as_millis()
        );
        let base_url = simulator.base_url();
        Self {
            provider,
            simulator: Some(simulator),
            remote,
            base_url,
            settings,
        }
    }

    /// The same provider in front of another Vercel.
    pub(super) fn against(mut self, simulator: Simulator) -> Self {
        self.base_url = simulator.base_url();
        self.remote = simulator.remote().clone();
        self.simulator = Some(simulator);
        self
    }

    /// Adds settings in TOML, after `[retry]`.
    pub(super) fn with(mut self, settings: &str) -> Self {
        self.settings.push_str(settings);
        self
    }

    /// Creates a resource or changes columns of one: `name = 'x', status = 'ready'`.
    pub(super) async fn set(&self, installation: &str, resource: &str, columns: &str) {
        let key = format!("installation_id = '{installation}' AND id = '{resource}'");
        let next = "(SELECT coalesce(max(version), 0) + 1 FROM resource)";
        let insert = format!(
            "INSERT INTO resource (installation_id, id) SELECT '{installation}', '{resource}'
             WHERE NOT EXISTS (SELECT 1 FROM resource WHERE {key})"
        );
        self.provider.execute(&insert).await;
        self.provider
            .execute(&format!(
                "UPDATE resource SET version = {next}, {columns} WHERE {key}"
            ))
            .await;
    }

    /// Everything that the daemon keeps.
    pub(super) async fn parts(&self) -> Parts {
        let directory = std::path::Path::new(&self.provider.name)
            .parent()
            .expect("a file has a directory");
        let text = format!(
            "{}\n[state]\nurl = \"sqlite://{}/state.db\"\n",
            self.settings.replacen(
                "[source]",
                &format!("[source]\nurl = \"{}\"", self.provider.url),
                1
            ),
            directory.display(),
        );
        let vercel = format!(
            "[vercel]\nbase_url = \"{}\"\nrequest_timeout = \"2s\"\n",
            self.base_url
        );
        let text = if text.contains("[vercel]") {
            text.replace("[vercel]", &vercel)
        } else {
            format!("{text}{vercel}")
        };
        let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
        Parts::open(Arc::new(config), Access::Daemon)
            .await
            .expect("the state opens")
    }

    /// One run: a poll, and deliveries until nothing is left or five seconds have passed.
    pub(super) async fn once(&self) -> OnceReport {
        self.once_within(Duration::from_secs(5)).await
    }

    /// One run that gives up after `timeout`.
    pub(super) async fn once_within(&self, timeout: Duration) -> OnceReport {
        self.run(OnceOptions {
            sweep: false,
            timeout,
        })
        .await
    }

    /// One run that reads every row.
    pub(super) async fn sweep(&self) -> OnceReport {
        self.run(OnceOptions {
            sweep: true,
            timeout: Duration::from_secs(5),
        })
        .await
    }

    async fn run(&self, options: OnceOptions) -> OnceReport {
        let parts = self.parts().await;
        let report = once(&parts, options, &CancellationToken::new())
            .await
            .expect("source and state work");
        assert_eq!(
            self.remote.violations(),
            [],
            "the simulator saw what a client must never do"
        );
        report
    }

    /// Why each open entry waits, as the state has it; no run may be under way.
    pub(super) async fn waits_because(&self) -> Vec<String> {
        let directory = std::path::Path::new(&self.provider.name).parent();
        let state = directory.expect("a directory").join("state.db");
        let url = format!("sqlite://{}", state.display());
        let mut connection = sqlx::SqliteConnection::connect(&url)
            .await
            .expect("the state is there");
        let waiting = "SELECT reason FROM entry WHERE state = 'waiting' ORDER BY id";
        sqlx::query_scalar(waiting)
            .fetch_all(&mut connection)
            .await
            .expect("the state is readable")
    }

    /// What Vercel holds for a field; `Value::Null` when it holds nothing.
    pub(super) fn held(&self, installation: &str, resource: &str, field: &str) -> Value {
        let resource = self.remote.resource(installation, resource);
        let field = reconciled::simulator::Field::ALL
            .into_iter()
            .find(|known| known.as_str() == field);
        resource
            .and_then(|resource| resource.field(field.expect("a field")).cloned())
            .unwrap_or(Value::Null)
    }

    /// The value of a secret at Vercel.
    pub(super) fn secret(&self, installation: &str, resource: &str, name: &str) -> Option<String> {
        self.remote
            .resource(installation, resource)?
            .secret(name)
            .map(str::to_owned)
    }

    /// The bodies of the PATCH requests for a resource, secret values as fingerprints.
    pub(super) fn patches(&self, installation: &str, resource: &str) -> Vec<Value> {
        self.patch_requests(installation, resource)
            .filter_map(|request| request.body)
            .collect()
    }

    /// When each PATCH arrived.
    pub(super) fn arrivals(&self, installation: &str, resource: &str) -> Vec<SystemTime> {
        self.patch_requests(installation, resource)
            .map(|request| request.at)
            .collect()
    }

    fn patch_requests(&self, installation: &str, resource: &str) -> impl Iterator<Item = Entry> {
        let requests = self.remote.requests_of(installation, resource);
        requests
            .into_iter()
            .filter(|request| request.method == "PATCH")
    }

    /// The names of the top-level properties of each PATCH.
    pub(super) fn patched_fields(&self, installation: &str, resource: &str) -> Vec<Vec<String>> {
        let names = |body: Value| {
            body.as_object()
                .map(|body| body.keys().cloned().collect())
                .unwrap_or_default()
        };
        self.patches(installation, resource)
            .into_iter()
            .map(names)
            .collect()
    }
}
