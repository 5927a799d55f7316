//! What the integration tests stand on: private database servers, a faulty network, the real process.
//!
//! Every server is the tests' own, on a port of its own and in a directory of its own, and ends with the process that
//! started it, however that ended. Nothing here touches a service that runs on the machine.

pub(crate) mod database;
pub(crate) mod directory;
pub(crate) mod heard;
pub(crate) mod mariadb;
pub(crate) mod pgbouncer;
pub(crate) mod port;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod server;
pub(crate) mod sqlite;
pub(crate) mod watchdog;

use std::time::Duration;

/// How long anything may take before a test is called hung. It is a guard, never something that a passing test waits for.
pub(crate) const HUNG: Duration = Duration::from_secs(60);
