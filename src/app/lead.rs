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
    /// What is known of a watch before it was ever looked at.
    pub(super) const fn new(turn: watch::Receiver<Turn>) -> Self {
        Self {
            turn,
            last: None,
            lost: None,
        }
    }

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

    /// The state no longer knows the watch under which the source was read last. It may be another one that is held by now.
    pub(super) const fn lose(&mut self) {
        self.lost = self.last;
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
            leading: Leading::new(receiver),
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
                None => look_again_in(self.random.fraction()),
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
        let owner = lease.owner.clone();
        let answer = self.store.renew_watch(lease.token, now.plus(LEASE)).await;
        let reason = match renewed(&answer, lease, now, self.clock.now()) {
            Ok(lease) => return Some(lease),
            Err(reason) => reason,
        };
        self.elsewhere.store(true, Ordering::Relaxed);
        self.turn.send_replace(Turn::Waiting);
        warn!(
            event = "watch.lost",
            owner, reason, "This process no longer reads the source: {reason}"
        );
        None
    }
}

/// How long a daemon without the watch waits: between a half and the whole of the interval, so that not all look at the same instant.
fn look_again_in(chance: f64) -> Duration {
    LOOK_AGAIN.mul_f64(0.5 + chance / 2.0)
}

/// The lease after it was asked for longer, or why it is lost.
fn renewed(
    answer: &Result<bool, StoreError>,
    lease: Lease,
    asked_at: Timestamp,
    now: Timestamp,
) -> Result<Lease, &'static str> {
    match answer {
        Ok(true) => Ok(Lease {
            expires_at: asked_at.plus(LEASE),
            ..lease
        }),
        Ok(false) => Err("another process has taken it over"),
        Err(_) if still_holds(&lease, asked_at, now) => Ok(lease),
        Err(_) => Err("the state could not be reached in time"),
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
    use crate::clock::{SeededRandom, SystemClock};
    use crate::model::FingerprintKey;
    use crate::store::MemoryStore;

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

    #[test]
    fn who_waits_looks_again_after_half_the_interval_to_the_whole() {
        for (chance, ms) in [(0.0, 250), (0.5, 375), (0.9, 475)] {
            assert_eq!(look_again_in(chance), Duration::from_millis(ms), "{chance}");
        }
    }

    #[test]
    fn the_source_is_read_by_who_is_alone_or_has_a_watch_that_is_not_lost() {
        let (turn, receiver) = watch::channel(Turn::Alone);
        let mut leading = Leading::new(receiver);
        assert_eq!((leading.leads(), leading.begun()), (true, None));
        turn.send_replace(Turn::Waiting);
        assert_eq!((leading.leads(), leading.begun()), (false, None));
        turn.send_replace(Turn::Held(LeaseToken(1)));
        assert_eq!(
            (leading.leads(), leading.begun()),
            (true, Some(LeaseToken(1)))
        );
        assert_eq!(leading.begun(), None, "once for each watch");
        leading.lose();
        assert!(!leading.leads());
        turn.send_replace(Turn::Held(LeaseToken(2)));
        assert_eq!(
            (leading.leads(), leading.begun()),
            (true, Some(LeaseToken(2)))
        );
    }

    fn keeper(store: &Arc<MemoryStore>, owner: &str) -> (Keeper, watch::Receiver<Turn>) {
        let (turn, receiver) = watch::channel(Turn::Waiting);
        let keeper = Keeper {
            store: Arc::clone(store) as Arc<dyn Store>,
            clock: Arc::new(SystemClock),
            random: Arc::new(SeededRandom::from_system()),
            owner: owner.to_owned(),
            turn,
            elsewhere: Arc::new(AtomicBool::new(true)),
        };
        (keeper, receiver)
    }

    #[tokio::test]
    async fn one_has_the_watch_until_the_state_knows_it_no_more() {
        let store = Arc::new(MemoryStore::new(FingerprintKey::new([7; 32])));
        let (one, turn) = keeper(&store, "one");
        let (other, others) = keeper(&store, "other");
        let lease = one.acquire().await.expect("nobody has it");
        assert_eq!(*turn.borrow(), Turn::Held(lease.token));
        assert!(!one.elsewhere.load(Ordering::Relaxed));
        assert_eq!(other.acquire().await, None);
        assert_eq!(*others.borrow(), Turn::Waiting);
        assert!(other.elsewhere.load(Ordering::Relaxed));
        let lease = one.renew(lease).await.expect("it has it still");
        assert_eq!(*turn.borrow(), Turn::Held(lease.token));
        assert!(store.release_watch(lease.token).await.expect("in memory"));
        assert_eq!(one.renew(lease).await, None);
        assert_eq!(*turn.borrow(), Turn::Waiting);
        assert!(one.elsewhere.load(Ordering::Relaxed));
        assert!(other.acquire().await.is_some());
    }

    #[test]
    fn a_lease_is_lost_to_another_process_at_once_and_for_want_of_an_answer_at_its_end() {
        let at = Timestamp::from_millis;
        let lease = |expires_at| Lease {
            owner: "one".to_owned(),
            token: LeaseToken(1),
            expires_at: at(expires_at),
        };
        let unreachable = || {
            Err(StoreError::Failed {
                operation: "renew the watch",
                problem: "gone".to_owned(),
                transient: true,
            })
        };
        let (taken, late) = (
            Err("another process has taken it over"),
            Err("the state could not be reached in time"),
        );
        for (answer, now, expected) in [
            (Ok(true), 2_001, Ok(lease(8_000))),
            (Ok(false), 2_001, taken),
            (unreachable(), 5_999, Ok(lease(6_000))),
            (unreachable(), 6_000, late),
        ] {
            let found = renewed(&answer, lease(6_000), at(2_000), at(now));
            assert_eq!(found, expected, "{answer:?} {now}");
        }
    }

    #[tokio::test]
    async fn who_ends_gives_the_watch_back_so_that_another_has_it_at_once() {
        let store = Arc::new(MemoryStore::new(FingerprintKey::new([7; 32])));
        let (one, turn) = keeper(&store, "one");
        let (end, ended) = oneshot::channel();
        drop(end);
        one.keep(ended).await;
        assert!(matches!(*turn.borrow(), Turn::Held(_)), "it had it");
        let (other, _turn) = keeper(&store, "other");
        assert!(other.acquire().await.is_some());
    }
}
