//! The free places of dispatch, laid out where passes find them: what is due after a page is claimed in the page's own transaction, so that
//! a change is on its way one commit sooner.
//!
//! Without it everything works, only later: dispatch claims by itself whenever nothing is laid out.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::model::Timestamp;
use crate::plan::Claimed;
use crate::store::ClaimRequest;

/// Where dispatch lays out what it would claim; its clones are one place.
#[derive(Clone, Default)]
pub struct Handover(Arc<Mutex<Option<Offer>>>);

struct Offer {
    request: ClaimRequest,
    /// How long a claim lasts from when it is made.
    lease: Duration,
    reply: oneshot::Sender<Vec<Claimed>>,
}

/// An offer that was taken up. Dropped without having been answered it claimed nothing.
pub(crate) struct Claiming {
    /// What to claim.
    pub(crate) request: ClaimRequest,
    reply: oneshot::Sender<Vec<Claimed>>,
}

impl Claiming {
    /// Hands over what was claimed, after its commit.
    pub(crate) fn answer(self, claimed: Vec<Claimed>) {
        // Whoever made the offer may be gone: the leases end by themselves then, as after a crash.
        let _ = self.reply.send(claimed);
    }
}

impl Handover {
    /// Lays out a request, in place of one that nobody has taken up. The receiver gets what was claimed, or fails when nothing is.
    pub(crate) fn offer(
        &self,
        request: ClaimRequest,
        lease: Duration,
    ) -> oneshot::Receiver<Vec<Claimed>> {
        let (reply, claimed) = oneshot::channel();
        *self.slot() = Some(Offer {
            request,
            lease,
            reply,
        });
        claimed
    }

    /// Takes the offer back; false when it is being taken up.
    pub(crate) fn withdraw(&self) -> bool {
        self.slot().take().is_some()
    }

    /// Takes up the offer, if there is one that somebody waits for: to be claimed at `now`, under leases that begin then.
    pub(crate) fn take_up(&self, now: Timestamp) -> Option<Claiming> {
        let Offer {
            mut request,
            lease,
            reply,
        } = self.slot().take_if(|offer| !offer.reply.is_closed())?;
        request.now = now;
        request.lease_expires_at = now.plus(lease);
        Some(Claiming { request, reply })
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Offer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handover").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::plan::SecretsWay;

    use super::*;

    const LEASE: Duration = Duration::from_secs(60);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn request() -> ClaimRequest {
        ClaimRequest {
            now: at(1),
            owner: "test".to_owned(),
            lease_expires_at: at(61),
            tokens: Vec::new(),
            limit: 1,
            per_installation: 1,
            in_flight: BTreeMap::new(),
            after: None,
            excluded: Vec::new(),
            rate: None,
            used: BTreeMap::new(),
            late_apply: Duration::ZERO,
            secrets: SecretsWay::Together,
        }
    }

    #[tokio::test]
    async fn an_offer_is_taken_up_once_and_its_leases_begin_then() {
        let handover = Handover::default();
        assert!(handover.take_up(at(1)).is_none());
        let claimed = handover.offer(request(), LEASE);
        let claiming = handover.clone().take_up(at(9)).expect("laid out");
        assert_eq!(
            (claiming.request.now, claiming.request.lease_expires_at),
            (at(9), at(69))
        );
        assert!(handover.take_up(at(9)).is_none());
        assert!(!handover.withdraw(), "it is being taken up");
        claiming.answer(Vec::new());
        assert_eq!(claimed.await.map(|claimed| claimed.len()), Ok(0));
    }

    #[tokio::test]
    async fn who_takes_up_an_offer_and_fails_sets_the_places_free() {
        let handover = Handover::default();
        let claimed = handover.offer(request(), LEASE);
        drop(handover.take_up(at(1)));
        assert!(claimed.await.is_err());
    }

    #[test]
    fn an_offer_that_was_taken_back_or_forgotten_is_not_taken_up() {
        let handover = Handover::default();
        let _waits = handover.offer(request(), LEASE);
        assert!(handover.withdraw());
        assert!(handover.take_up(at(1)).is_none());
        drop(handover.offer(request(), LEASE));
        assert!(handover.take_up(at(1)).is_none());
    }
}
