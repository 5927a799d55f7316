//! PostgreSQL servers from Debian's packages: one that all tests share, and ones that a test may kill.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{
    database::{Engine, TestDatabase, unique_name},
    directory::Directory,
    server::{self, Durability, Launch, Server},
};

/// A PostgreSQL server of the tests' own, on 127.0.0.1; the superuser `postgres` needs no password.
#[derive(Debug)]
pub(crate) struct Postgres {
    /// `None` while it is stopped.
    server: Option<Server>,
    directory: Directory,
    durability: Durability,
    port: u16,
}

impl Postgres {
    /// The server that all tests of this process share; started at the first call.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| Self::create(Durability::Fast))
    }

    /// A server for one test, durable, to be killed and started again at will; removed with the value.
    pub(crate) fn dedicated() -> Self {
        Self::create(Durability::Durable)
    }

    /// Creates an empty database.
    pub(crate) async fn database(&self) -> TestDatabase {
        self.create_database("").await
    }

    /// Creates an empty database that orders text as people do, and not by its bytes, as most have it.
    pub(crate) async fn ordered_database(&self) -> TestDatabase {
        self.create_database("TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en'")
            .await
    }

    async fn create_database(&self, options: &str) -> TestDatabase {
        let name = unique_name();
        let mut admin = PgConnection::connect(&self.url("postgres"))
            .await
            .expect("the private PostgreSQL answers");
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name} {options}")))
            .execute(&mut admin)
            .await
            .expect("a superuser may create a database of a new name");
        TestDatabase {
            engine: Engine::Postgres,
            url: self.url(&name),
            name,
            _directory: None,
        }
    }

    /// The superuser's URL of `database`.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The port it listens on, before and after every restart.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Kills all of its processes with SIGKILL; returns when they are gone.
    pub(crate) fn kill(&mut self) {
        self.server
            .take()
            .expect("a server that is killed was running")
            .kill();
    }

    /// Stops it in order, ending its sessions; returns when it is gone.
    pub(crate) fn stop(&mut self) {
        self.server
            .take()
            .expect("a server that is stopped was running")
            .stop(Signal::INT);
    }

    /// Starts it again, on the same port and data; returns when it answers.
    pub(crate) fn start(&mut self) {
        assert!(
            self.server.is_none(),
            "a server that is started was stopped"
        );
        let server = launch(self.directory.path(), self.durability, self.port);
        self.server = Some(server.unwrap_or_else(|log| panic!("{log}")));
    }

    fn create(durability: Durability) -> Self {
        let directory = Directory::new(user());
        let arguments = [
            format!("--pgdata={}", data(directory.path()).display()),
            "--username=postgres".into(),
            "--auth=trust".into(),
            "--encoding=UTF8".into(),
            "--locale=C.UTF-8".into(),
            "--no-sync".into(),
        ];
        server::prepare(&program("initdb"), &arguments, user());
        let (server, port) =
            server::start_on_free_port(|port| launch(directory.path(), durability, port));
        Self {
            server: Some(server),
            directory,
            durability,
            port,
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            // Immediate shutdown: the data is thrown away, but the shared memory must not stay behind.
            server.stop(Signal::QUIT);
        }
    }
}

fn launch(directory: &Path, durability: Durability, port: u16) -> Result<Server, String> {
    let sync = match durability {
        Durability::Durable => "on",
        Durability::Fast => "off",
    };
    let settings = [
        "listen_addresses=127.0.0.1".to_owned(),
        "unix_socket_directories=".to_owned(),
        format!("port={port}"),
        format!("fsync={sync}"),
        format!("synchronous_commit={sync}"),
        format!("full_page_writes={sync}"),
        "max_connections=200".to_owned(),
        "max_prepared_transactions=10".to_owned(),
        "shared_buffers=32MB".to_owned(),
        "autovacuum_naptime=5s".to_owned(),
        "lc_messages=C".to_owned(),
        "log_timezone=UTC".to_owned(),
        "timezone=UTC".to_owned(),
    ];
    let mut arguments = vec!["-D".to_owned(), data(directory).display().to_string()];
    for setting in settings {
        arguments.extend(["-c".to_owned(), setting]);
    }
    Server::start(Launch {
        program: &program("postgres"),
        arguments,
        user: user(),
        ready: "database system is ready to accept connections",
        end: "QUIT",
    })
}

fn data(directory: &Path) -> PathBuf {
    directory.join("data")
}

/// Who runs it when we are root, which PostgreSQL refuses.
fn user() -> Option<&'static str> {
    server::unprivileged(["postgres", "nobody"])
}

/// A program of the newest PostgreSQL installed; Debian keeps each version's in a directory of its own.
fn program(name: &str) -> PathBuf {
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .max_by_key(version);
    server::find_program(name, newest.map(|path| path.join("bin")).as_slice())
}
