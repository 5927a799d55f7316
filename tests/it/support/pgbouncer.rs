//! PgBouncer from Debian's packages, in transaction mode, in front of a test's PostgreSQL.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use super::{
    directory::Directory,
    postgres::Postgres,
    server::{self, Launch, Server},
};

/// A pooler on 127.0.0.1 that passes on every database of one server.
#[derive(Debug)]
pub(crate) struct PgBouncer {
    server: Option<Server>,
    _directory: Directory,
    port: u16,
}

impl PgBouncer {
    /// Starts a pooler in transaction mode in front of `postgres`, for `roles`. What else clients set as they connect it passes over.
    pub(crate) fn in_front_of(postgres: &Postgres, roles: &[&str]) -> Self {
        Self::launched(
            postgres,
            roles,
            "ignore_startup_parameters = extra_float_digits,options",
        )
    }

    /// The same as it comes out of the package: it refuses a client that sets what it does not know.
    pub(crate) fn stock_in_front_of(postgres: &Postgres, roles: &[&str]) -> Self {
        Self::launched(postgres, roles, "")
    }

    fn launched(postgres: &Postgres, roles: &[&str], further: &str) -> Self {
        let directory = Directory::new(user());
        let (server, port) = server::start_on_free_port(|port| {
            launch(directory.path(), postgres.port(), roles, further, port)
        });
        Self {
            server: Some(server),
            _directory: directory,
            port,
        }
    }

    /// `role`'s URL of `database` through the pooler.
    pub(crate) fn url(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
    }
}

fn launch(
    directory: &Path,
    upstream: u16,
    roles: &[&str],
    further: &str,
    port: u16,
) -> Result<Server, String> {
    let mut users = String::new();
    for role in roles {
        writeln!(users, "\"{role}\" \"\"").expect("writing to a string");
    }
    let users_file = directory.join("users.txt");
    fs::write(&users_file, users).expect("the directory is writable");
    let settings = format!(
        "[databases]
* = host=127.0.0.1 port={upstream}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {}
pool_mode = transaction
default_pool_size = 10
max_client_conn = 200
{further}
",
        users_file.display()
    );
    let file = directory.join("pgbouncer.ini");
    fs::write(&file, settings).expect("the directory is writable");
    if let Some(user) = user() {
        let owned = Command::new("chown")
            .arg(user)
            .arg(&file)
            .arg(&users_file)
            .status();
        assert!(
            owned.is_ok_and(|status| status.success()),
            "root may give its files to {user}"
        );
    }
    Server::start(Launch {
        program: &server::find_program("pgbouncer", &[]),
        arguments: vec![file.display().to_string()],
        user: user(),
        ready: "process up",
        end: "KILL",
    })
}

/// Who runs it when we are root, which PgBouncer refuses.
fn user() -> Option<&'static str> {
    server::unprivileged(["postgres", "nobody"])
}
