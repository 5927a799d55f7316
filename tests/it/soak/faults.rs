//! What befalls the daemon besides the weather of the API: its connections, its source, its tokens, its own process.

use std::time::{Duration, Instant};

use reconciled::simulator::Remote;
use rustix::process::{Pid, Signal, kill_process};

use super::{LEASE, TICK, load::Load};
use crate::support::{
    postgres::Postgres,
    proxy::{Mode, Proxy},
};

/// How long a database or the API stays away: longer than a statement may take, so that timeouts are reached.
const AWAY: Duration = Duration::from_secs(3);

/// What faults strike at.
pub(super) struct Bed {
    pub(super) postgres: Postgres,
    pub(super) source: Proxy,
    pub(super) vercel: Proxy,
    pub(super) remote: Remote,
    pub(super) daemon: Pid,
}

/// A fault, over when the next one begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// Every connection to the source is reset.
    SourceCut,
    /// A row cannot be used for a while.
    Poison,
    /// Every connection to the API is reset.
    ApiCut,
    /// The source answers nothing and closes nothing.
    SourceSwallowed,
    /// An installation's token is replaced.
    TokenRotated,
    /// The API refuses connections.
    ApiRefuses,
    /// The API answers nothing and closes nothing.
    ApiSwallowed,
    /// The source's server is killed and started again.
    SourceKilled,
    /// The daemon is frozen for three leases.
    Frozen,
}

impl Fault {
    /// Every fault, in the order in which they come.
    pub(super) const ALL: [Self; 9] = [
        Self::SourceCut,
        Self::Poison,
        Self::ApiCut,
        Self::SourceSwallowed,
        Self::TokenRotated,
        Self::ApiRefuses,
        Self::ApiSwallowed,
        Self::SourceKilled,
        Self::Frozen,
    ];

    /// Strikes, and returns when it is over; the provider's rows change meanwhile wherever they can.
    pub(super) async fn strike(self, bed: &mut Bed, load: &mut Load, begin: Instant) {
        match self {
            Self::SourceCut => bed.source.cut().await,
            Self::Poison => load.poison().await,
            Self::ApiCut => bed.vercel.cut().await,
            Self::SourceSwallowed => {
                bed.source.set(Mode::Swallow);
                meanwhile(load, begin, AWAY).await;
                bed.source.set(Mode::Forward);
            }
            Self::TokenRotated => load.rotate_token(&bed.remote).await,
            Self::ApiRefuses => {
                bed.vercel.refuse().await;
                meanwhile(load, begin, AWAY).await;
                bed.vercel.accept().await;
            }
            Self::ApiSwallowed => {
                bed.vercel.set(Mode::Swallow);
                meanwhile(load, begin, AWAY).await;
                bed.vercel.set(Mode::Forward);
            }
            Self::SourceKilled => {
                tokio::task::block_in_place(|| {
                    bed.postgres.kill();
                    bed.postgres.start();
                });
                load.reconnect().await;
            }
            Self::Frozen => {
                signal(bed.daemon, Signal::STOP);
                meanwhile(load, begin, 3 * LEASE).await;
                signal(bed.daemon, Signal::CONT);
            }
        }
    }
}

/// The provider goes on for so long.
async fn meanwhile(load: &mut Load, begin: Instant, span: Duration) {
    let end = Instant::now() + span;
    let mut ticks = tokio::time::interval(TICK);
    while Instant::now() < end {
        ticks.tick().await;
        load.go_on(begin.elapsed()).await;
    }
}

fn signal(pid: Pid, signal: Signal) {
    kill_process(pid, signal).expect("the daemon was not waited for");
}
