//! A provider with a real database, the real daemon, and the simulated Vercel between which it keeps the peace.

use std::{ops::Range, path::Path};

use reconciled::simulator::{Field, Options, Remote, Simulator};
use secrecy::SecretString;
use sqlx::Connection as _;

use crate::support::{
    database::{Engine, TestDatabase},
    directory::Directory,
    process::{Installation, holds},
};

/// What every secret's value begins with.
const SECRET: &str = "secret-value-";

/// Settings of its own go into `installation`'s environment before the daemon is started.
pub(crate) struct World {
    /// How many resources the provider has.
    pub(crate) resources: usize,
    pub(crate) installation: Installation,
    pub(crate) provider: TestDatabase,
    pub(crate) simulator: Simulator,
}

impl World {
    /// Three installations and no resource yet.
    pub(crate) async fn new(provider: TestDatabase) -> Self {
        Self::of(provider, 40).await
    }

    /// The same, for so many resources.
    pub(crate) async fn of(provider: TestDatabase, resources: usize) -> Self {
        for statement in [
            "CREATE TABLE resource (n INTEGER, installation_id VARCHAR(40), id VARCHAR(40), version BIGINT, status VARCHAR(20),
                 metadata TEXT, secrets TEXT)",
            "CREATE TABLE installation (id VARCHAR(40), token VARCHAR(40))",
            "INSERT INTO installation VALUES ('icfg_0', 'token-0'), ('icfg_1', 'token-1'), ('icfg_2', 'token-2')",
        ] {
            provider.execute(statement).await;
        }
        let simulator = Simulator::start(Options::creating())
            .await
            .expect("a free port");
        for n in 0..3 {
            simulator.remote().install(
                &format!("icfg_{n}"),
                &SecretString::from(format!("token-{n}")),
            );
        }
        let installation = Installation::new("");
        let cursor = match provider.engine {
            Engine::MariaDb => "`cursor`",
            Engine::Postgres | Engine::Sqlite => "cursor",
        };
        installation.configure(&format!(
            "[source]\nurl = \"{}\"\noverlap = 0\n\
             query = \"SELECT installation_id, id AS resource_id, version AS {cursor}, status, metadata, secrets FROM resource\"\n\
             installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
             [state]\nurl = \"sqlite://{}\"\n[vercel]\nbase_url = \"{}\"\nrequest_timeout = \"2s\"\n\
             [retry]\ninitial_interval = \"20ms\"\nmax_interval = \"200ms\"\nlate_apply = \"200ms\"\n\
             [schedule]\npoll = \"* * * * * *\"\n[log]\nsummary_interval = \"1s\"\n",
            provider.url,
            installation.path("state.db").display(),
            simulator.base_url(),
        ));
        Self {
            resources,
            installation,
            provider,
            simulator,
        }
    }

    pub(crate) fn remote(&self) -> &Remote {
        self.simulator.remote()
    }

    /// The first secret of every resource, before the daemon runs.
    pub(crate) async fn create(&self) {
        let rows: Vec<String> = (0..self.resources)
            .map(|n| format!("({n}, 'icfg_{}', 'res_{n}')", n % 3))
            .collect();
        self.provider
            .execute(&format!(
                "INSERT INTO resource (n, installation_id, id) VALUES {}",
                rows.join(", ")
            ))
            .await;
        self.rotate(0).await;
    }

    /// Gives every resource the secret of round `round`; rounds only grow, so a remote value that falls went back.
    pub(crate) async fn rotate(&self, round: usize) {
        let all = rotation(round, round, 0..self.resources);
        self.provider.execute(&all).await;
    }

    /// Waits until Vercel holds the secrets of `round` in every resource.
    pub(crate) async fn agreed(&self, round: usize) {
        self.agreed_on(round, round).await;
    }

    /// Waits until Vercel holds the metadata of `round` and the secrets of round `secrets` in every resource.
    pub(crate) async fn agreed_on(&self, round: usize, secrets: usize) {
        let metadata = serde_json::json!({ "round": round });
        let expected = format!("{SECRET}{secrets:06}");
        let agrees = |remote: &Remote, n: usize| {
            let resource = remote.resource(&format!("icfg_{}", n % 3), &format!("res_{n}"));
            resource.is_some_and(|resource| {
                resource.field(Field::Metadata) == Some(&metadata)
                    && resource.secret("KEY") == Some(expected.as_str())
            })
        };
        // What agrees once goes on to: these are the last values.
        let mut agreed = 0;
        let reached = self.remote().wait_until(|remote| {
            while agreed < self.resources && agrees(remote, agreed) {
                agreed += 1;
            }
            agreed == self.resources
        });
        reached.await.expect("both sides agree in the end");
    }

    /// No rule of the API was broken, no resource went back to an older value, no secret is in a file.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.remote().violations(), []);
        for n in 0..self.resources {
            let regressions = self
                .remote()
                .regressions(&format!("icfg_{}", n % 3), &format!("res_{n}"));
            assert!(regressions.is_empty(), "res_{n} went back: {regressions:?}");
        }
        let directory = self.installation.path("");
        for secret in [SECRET, "token-1"] {
            assert!(
                !holds(&directory, secret.as_bytes()),
                "{secret} is in a file of the daemon"
            );
        }
    }

    /// SQLite finds no fault in the state; no daemon may run.
    pub(crate) async fn assert_sound(&self) {
        assert_no_fault(&self.installation.path("state.db")).await;
    }

    /// SQLite finds no fault in what a daemon that was killed left, nor does it once the journal is read: a copy's, since recovering
    /// the state itself is for the next daemon to do.
    pub(crate) async fn assert_killed_state_is_sound(&self) {
        let copy = Directory::new(None);
        let [file, journal] = ["state.db", "state.db-wal"].map(|name| {
            let to = copy.path().join(name);
            std::fs::copy(self.installation.path(name), &to)
                .unwrap_or_else(|error| panic!("{name} of a daemon that was killed: {error}"));
            to
        });
        // Without one there would be nothing to recover.
        let recorded = std::fs::metadata(journal).expect("it was made just now");
        assert!(recorded.len() > 0, "the journal is empty");
        assert_no_fault(&file).await;
        // A journal that cannot be read is passed over without a word, and an empty file has no fault.
        let mut connection = connect(&file).await;
        let known: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM resource")
            .fetch_one(&mut connection)
            .await
            .expect("the state has its tables");
        assert_eq!(usize::try_from(known), Ok(self.resources));
    }
}

async fn connect(state: &Path) -> sqlx::SqliteConnection {
    let url = format!("sqlite://{}", state.display());
    sqlx::SqliteConnection::connect(&url)
        .await
        .expect("the state opens")
}

/// SQLite finds no fault in this file, whose journal it reads first.
async fn assert_no_fault(state: &Path) {
    let mut connection = connect(state).await;
    let said: String = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_one(&mut connection)
        .await
        .expect("the state can be checked");
    assert_eq!(said, "ok");
    let orphans = sqlx::query("PRAGMA foreign_key_check")
        .fetch_all(&mut connection)
        .await
        .expect("the state can be checked");
    assert_eq!(orphans.len(), 0, "rows without the row that they belong to");
}

/// The statement that gives some resources the metadata of round `round` and the secret of round `secrets`.
pub(crate) fn rotation(round: usize, secrets: usize, resources: Range<usize>) -> String {
    let Range { start, end } = resources;
    // More than there are resources, so that the next round begins beyond the last one's end.
    let base = round * 10_000;
    format!(
        "UPDATE resource SET version = {base} + n, status = 'ready', metadata = '{{\"round\":{round}}}',
             secrets = '{{\"KEY\":\"{SECRET}{secrets:06}\"}}'
         WHERE n >= {start} AND n < {end}"
    )
}
