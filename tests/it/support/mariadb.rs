//! MariaDB servers from Debian's packages: one that all tests share, and ones that a test may kill.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Connection, MySqlConnection};

use super::{
    database::{Engine, TestDatabase, unique_name},
    directory::Directory,
    server::{self, Durability, Launch, Server},
};

/// A MariaDB server of the tests' own, on 127.0.0.1; `root` needs no password.
#[derive(Debug)]
pub(crate) struct MariaDb {
    /// `None` while it is stopped.
    server: Option<Server>,
    directory: Directory,
    durability: Durability,
    port: u16,
}

impl MariaDb {
    /// The server that all tests of this process share; started at the first call.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<MariaDb> = OnceLock::new();
        SHARED.get_or_init(|| Self::create(Durability::Fast))
    }

    /// A server for one test, durable, to be killed and started again at will; removed with the value.
    pub(crate) fn dedicated() -> Self {
        Self::create(Durability::Durable)
    }

    /// Creates an empty database.
    pub(crate) async fn database(&self) -> TestDatabase {
        let name = unique_name();
        let mut admin = MySqlConnection::connect(&self.url("mysql"))
            .await
            .expect("the private MariaDB answers");
        sqlx::raw_sql(AssertSqlSafe(format!(
            "CREATE DATABASE {name} CHARACTER SET utf8mb4"
        )))
        .execute(&mut admin)
        .await
        .expect("root may create a database of a new name");
        TestDatabase {
            engine: Engine::MariaDb,
            url: self.url(&name),
            name,
            _directory: None,
        }
    }

    /// The administrator's URL of `database`.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("mysql://root@127.0.0.1:{}/{database}", self.port)
    }

    /// Kills it with SIGKILL; returns when it is gone.
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
            .stop(Signal::TERM);
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
            "--no-defaults".to_owned(),
            format!("--datadir={}", data(directory.path()).display()),
            "--auth-root-authentication-method=normal".into(),
            "--skip-name-resolve".into(),
            "--skip-test-db".into(),
        ];
        server::prepare(
            &server::find_program("mariadb-install-db", &[]),
            &arguments,
            user(),
        );
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

impl Drop for MariaDb {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            // The data is thrown away; nobody waits for it to be flushed.
            server.kill();
        }
    }
}

fn launch(directory: &Path, durability: Durability, port: u16) -> Result<Server, String> {
    let (flush, doublewrite) = match durability {
        Durability::Durable => (1, "ON"),
        Durability::Fast => (0, "OFF"),
    };
    let arguments = vec![
        "--no-defaults".to_owned(),
        format!("--datadir={}", data(directory).display()),
        format!("--tmpdir={}", directory.display()),
        format!("--socket={}", directory.join("socket").display()),
        format!("--pid-file={}", directory.join("pid").display()),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--port={port}"),
        format!("--innodb-flush-log-at-trx-commit={flush}"),
        format!("--innodb-doublewrite={doublewrite}"),
        "--innodb-buffer-pool-size=64M".to_owned(),
        "--max-connections=200".to_owned(),
        "--skip-name-resolve".to_owned(),
        "--skip-log-bin".to_owned(),
        "--default-time-zone=+00:00".to_owned(),
    ];
    Server::start(Launch {
        program: &server::find_program("mariadbd", &[]),
        arguments,
        user: user(),
        ready: "ready for connections",
        end: "KILL",
    })
}

fn data(directory: &Path) -> PathBuf {
    directory.join("data")
}

/// Who runs it when we are root.
fn user() -> Option<&'static str> {
    server::unprivileged(["mysql", "nobody"])
}
