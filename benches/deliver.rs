//! The daemon's side of a comparison of deliveries.

use std::path::Path;

use crate::figure::float;
use crate::mock::Mock;
use crate::process::{self, Daemon};
use crate::provider::{PATIENCE, Provider};

/// What one side did.
pub(crate) struct Side {
    pub(crate) per_second: f64,
    pub(crate) cpu_micros_each: f64,
    pub(crate) peak_bytes: u64,
}

/// From a running, idle daemon: the change of every resource in one transaction, until the last answer is recorded.
pub(crate) async fn daemon(
    mock: &Mock,
    provider: &Provider,
    config: &Path,
    round: u64,
    rotates: bool,
) -> Side {
    let changes = provider.resources;
    provider.vacuum().await;
    let mut daemon = Daemon::start(config);
    daemon.event("sweep.completed", 0, PATIENCE).await;
    daemon.event("poll.completed", 0, PATIENCE).await;
    mock.expect(changes);
    let (before, mark) = (daemon.usage(), daemon.mark());
    if rotates {
        provider.rotate(round, changes).await;
    } else {
        provider.change(round, changes).await;
    }
    let arrivals = mock.arrived(PATIENCE).await;
    daemon
        .events("delivery.acknowledged", changes, mark, PATIENCE)
        .await;
    let after = daemon.usage();
    daemon.stop().await;
    process::assert_agrees(config).await;
    assert_eq!(mock.arrivals().count, changes, "each was sent once");
    Side {
        per_second: arrivals.rate(),
        cpu_micros_each: (after.cpu - before.cpu).as_secs_f64() * 1e6 / float(changes),
        peak_bytes: after.peak_bytes,
    }
}
