//! Of what the integration tests stand on, what private database servers need.

#[path = "../../../tests/it/support/database.rs"]
pub(crate) mod database;
#[path = "../../../tests/it/support/directory.rs"]
pub(crate) mod directory;
#[path = "../../../tests/it/support/mariadb.rs"]
pub(crate) mod mariadb;
#[path = "../../../tests/it/support/port.rs"]
pub(crate) mod port;
#[path = "../../../tests/it/support/postgres.rs"]
pub(crate) mod postgres;
#[path = "../../../tests/it/support/server.rs"]
pub(crate) mod server;
#[path = "../../../tests/it/support/sqlite.rs"]
pub(crate) mod sqlite;
#[path = "../../../tests/it/support/watchdog.rs"]
pub(crate) mod watchdog;

use std::time::Duration;

/// How long a server may take to start.
pub(crate) const HUNG: Duration = Duration::from_secs(60);
