//! The watch among daemons that share a state: one of them reads the source, all deliver.
//!
//! Whoever has the watch prolongs it at a third of its lease and gives it back at the end, so that another takes over at once; after
//! a kill another takes over when the lease has run out. That nothing is committed under a watch that was lost is the state's to
//! see to, in the transaction that commits; this decides who begins to read. A state that cannot be shared needs none of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::clock::{Clock, Random};
use crate::model::{Lease, LeaseToken, Timestamp};
use crate::reconcile::Reconciler;
use crate::store::{Store, StoreError};

use super::build::Parts;

/// How long the watch lasts without being prolonged: the longest that nobody reads the source after a kill.
const LEASE: Duration = Duration::from_secs(6);
/// How often it is prolonged.
const RENEWAL: Duration = Duration::from_secs(2);
/// How often a daemon without it looks whether it can be taken.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Whether this process may read the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nobody else works on the state.
    Alone,
    /// Under the watch with this token.
    Held(LeaseToken),
    /// Another process has the watch, or nobody yet.
    Waiting,
}

impl Turn {
    fn token(self) -> Option<LeaseToken> {
        match self {
            Self::Held(token) => Some(token),
            Self::Alone | Self::Waiting => None,
        }
    }
}

/// What the loops of a process know of its watch.
#[derive(Debug, Clone)]
pub(super) struct Leading {
    turn: watch::Receiver<Turn>,
    /// The watch under which the source was read last.
    last: Option<LeaseToken>,
    /// The watch that the state no longer knew.
    lost: Option<LeaseToken>,
}

impl Leading {
    /// Whether the source may be read now.
    pub(super) fn leads(&self) -> bool {
        match *self.turn.borrow() {
            Turn::Alone => true,
            Turn::Held(token) => self.lost != Some(token),
            Turn::Waiting => false,
        }
    }

    /// The token when the watch has become this process's anew: what was under way before is not to be gone on with.
    pub(super) fn begun(&mut self) -> Option<LeaseToken> {
        let token = self.turn.borrow().token()?;
        (self.last.replace(token) != Some(token)).then_some(token)
    }

    /// The state no longer knows the watch.
    pub(super) fn lose(&mut self) {
        self.lost = self.turn.borrow().token();
    }

    /// Returns when it may have become this process's turn.
    pub(super) async fn changed(&mut self) {
        if self.turn.changed().await.is_err() {
            // Nobody keeps the watch any more: the process is ending.
            std::future::pending::<()>().await;
        }
    }
}

/// Keeps the watch of one process, or tries to get it, until it ends.
pub struct Leadership {
    leading: Leading,
    keeping: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Leadership {
    /// Starts to try; `elsewhere` says from then on whether another process has the watch.
    pub(super) fn start(parts: &Parts, elsewhere: Arc<AtomicBool>) -> Self {
        let store = Arc::clone(&parts.worlds.store);
        let (turn, receiver) = watch::channel(match store.is_shared() {
            true => Turn::Waiting,
            false => Turn::Alone,
        });
        let keeping = store.is_shared().then(|| {
            elsewhere.store(true, Ordering::Relaxed);
            let keeper = Keeper {
                store,
                clock: Arc::clone(&parts.worlds.clock),
                random: Arc::clone(&parts.worlds.random),
                owner: parts.owner.clone(),
                turn,
                elsewhere,
            };
            let (end, ended) = oneshot::channel();
            (end, tokio::spawn(keeper.keep(ended)))
        });
        Self {
            leading: Leading {
                turn: receiver,
                last: None,
                lost: None,
            },
            keeping,
        }
    }

    /// The watch of a command that reads the source once, and a reconciler under it.
    ///
    /// # Errors
    /// A daemon, or another command, has the watch ([`StoreError::WatchLost`]).
    pub(super) async fn take(parts: &Parts) -> Result<(Reconciler, Self), StoreError> {
        let mut leadership = Self::start(parts, Arc::default());
        let mut reconciler = parts.reconciler();
        // A process that was killed just now has it for no longer than this.
        let patience = LEASE + 2 * LOOK_AGAIN;
        let waiting = async {
            while !leadership.leading.leads() {
                leadership.leading.changed().await;
            }
        };
        if tokio::time::timeout(patience, waiting).await.is_err() {
            leadership.end().await;
            return Err(StoreError::WatchLost);
        }
        if let Some(token) = leadership.leading.begun() {
            reconciler.hold_watch(token);
        }
        Ok((reconciler, leadership))
    }

    /// What the loops are to know.
    pub(super) fn leading(&self) -> Leading {
        self.leading.clone()
    }

    /// Gives the watch back. Nothing may be read under it any more.
    pub async fn end(self) {
        if let Some((end, keeping)) = self.keeping {
            drop(end);
            // A panic of the task was reported where it happened.
            let _ = keeping.await;
        }
    }
}

struct Keeper {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    owner: String,
    turn: watch::Sender<Turn>,
    elsewhere: Arc<AtomicBool>,
}

impl Keeper {
    async fn keep(self, mut ended: oneshot::Receiver<()>) {
        let mut held: Option<Lease> = None;
        loop {
            held = match held {
                Some(lease) => self.renew(lease).await,
                None => self.acquire().await,
            };
            let wait = match held {
                Some(_) => RENEWAL,
                // Not all at the same instant.
                None => LOOK_AGAIN.mul_f64(0.5 + self.random.fraction() / 2.0),
            };
            tokio::select! {
                _ = &mut ended => break,
                () = self.clock.sleep(wait) => {}
            }
        }
        if let Some(lease) = held {
            // If the state cannot be reached the lease runs out by itself, and what another has taken over is not this one's to give.
            if let Ok(true) = self.store.release_watch(lease.token).await {
                let owner = lease.owner;
                info!(event = "watch.released", owner, "Gave the watch back");
            }
        }
    }

    async fn acquire(&self) -> Option<Lease> {
        let now = self.clock.now();
        let lease = Lease {
            owner: self.owner.clone(),
            token: LeaseToken(self.random.unique()),
            expires_at: now.plus(LEASE),
        };
        // A state that cannot be reached is on record elsewhere; here it only means that it is not this process's turn.
        let taken = self.store.acquire_watch(&lease, now).await.unwrap_or(false);
        if !taken {
            return None;
        }
        self.elsewhere.store(false, Ordering::Relaxed);
        self.turn.send_replace(Turn::Held(lease.token));
        let owner = lease.owner.as_str();
        info!(
            event = "watch.gained",
            owner, "This process reads the source now"
        );
        Some(lease)
    }

    async fn renew(&self, lease: Lease) -> Option<Lease> {
        let now = self.clock.now();
        let expires_at = now.plus(LEASE);
        let reason = match self.store.renew_watch(lease.token, expires_at).await {
            Ok(true) => {
                return Some(Lease {
                    expires_at,
                    ..lease
                });
            }
            Ok(false) => "another process has taken it over",
            Err(_) if still_holds(&lease, now, self.clock.now()) => return Some(lease),
            Err(_) => "the state could not be reached in time",
        };
        self.elsewhere.store(true, Ordering::Relaxed);
        self.turn.send_replace(Turn::Waiting);
        let owner = lease.owner;
        warn!(
            event = "watch.lost",
            owner, reason, "This process no longer reads the source: {reason}"
        );
        None
    }
}

/// Whether the lease has not run out while it could not be prolonged.
fn still_holds(lease: &Lease, asked_at: Timestamp, now: Timestamp) -> bool {
    // A clock that was set back says nothing.
    now >= asked_at && now < lease.expires_at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_could_not_be_prolonged_holds_until_its_end_by_a_clock_that_went_on() {
        let lease = Lease {
            owner: "one".to_owned(),
            token: LeaseToken(1),
            expires_at: Timestamp::from_millis(6_000),
        };
        for (asked_at, now, holds) in [
            (2_000, 2_000, true),
            (2_000, 5_999, true),
            (2_000, 6_000, false),
            (2_000, 9_000, false),
            (2_000, 1_999, false),
        ] {
            let (asked_at, now) = (
                Timestamp::from_millis(asked_at),
                Timestamp::from_millis(now),
            );
            assert_eq!(still_holds(&lease, asked_at, now), holds, "{now:?}");
        }
    }
}
