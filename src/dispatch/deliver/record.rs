//! Writing down what attempts came to: together while the state takes it, one by one when it does not.

use std::sync::Arc;
use std::time::Duration;

use crate::plan::{Claimed, Outcome};
use crate::store::{Advanced, Settlement, StoreError};

use super::{Answered, Attempted, Delivery, Effect, Worker};

/// How long to wait before an outcome is written again after the state could not be written.
const SETTLE_RETRY: Duration = Duration::from_millis(500);

impl Worker {
    /// Records outcomes in one transaction; returns what could not be recorded so, which is to be tried one by one.
    pub(in crate::dispatch) async fn record_all(
        self: Arc<Self>,
        batch: Vec<Answered>,
    ) -> (Vec<Delivery>, Vec<Answered>) {
        // A pause is another transaction, and comes before its outcome.
        let (mut alone, together): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .partition(|answered| answered.attempted.pause.is_some());
        let settlements = together
            .iter()
            .map(|Answered { claimed, attempted }| {
                self.settlement(claimed, attempted, self.worlds.random.fraction())
            })
            .collect();
        match self.worlds.store.advance_all(settlements).await {
            Ok(advanced) => {
                let deliveries = together.into_iter().zip(advanced);
                let deliveries = deliveries.map(|(answered, advanced)| {
                    let outcome = answered.attempted.outcome.clone();
                    answered.ended(Effect::Settled { outcome, advanced })
                });
                (deliveries.collect(), alone)
            }
            Err(_) => {
                alone.extend(together);
                (Vec::new(), alone)
            }
        }
    }

    /// Records one outcome.
    pub(in crate::dispatch) async fn record_one(self: Arc<Self>, answered: Answered) -> Delivery {
        let effect = self.record(&answered.claimed, &answered.attempted).await;
        answered.ended(effect)
    }

    async fn record(&self, claimed: &Claimed, attempted: &Attempted) -> Effect {
        if let Some((kind, reason)) = &attempted.pause {
            let pause = self.pause(&claimed.key.installation_id, *kind, reason, 0);
            // If it cannot be written the next attempt finds the same out again.
            let _ = self.worlds.store.pause(&pause).await;
        }
        let Ok(advanced) = self.settle(claimed, attempted).await else {
            return Effect::Unrecorded;
        };
        match &attempted.pause {
            Some((kind, reason)) => Effect::Paused {
                kind: *kind,
                reason: reason.clone(),
                outcome: attempted.outcome.clone(),
            },
            None => Effect::Settled {
                outcome: attempted.outcome.clone(),
                advanced,
            },
        }
    }

    /// Records an outcome, again and again while the claim lasts: an answer that is not written down is one that was lost.
    async fn settle(
        &self,
        claimed: &Claimed,
        attempted: &Attempted,
    ) -> Result<Option<Advanced>, StoreError> {
        let jitter = self.worlds.random.fraction();
        loop {
            let settlement = self.settlement(claimed, attempted, jitter);
            let now = settlement.now;
            match self.worlds.store.advance(settlement).await {
                Ok(advanced) => return Ok(advanced),
                Err(error) if now >= claimed.lease_expires_at => return Err(error),
                Err(_) => self.worlds.clock.sleep(SETTLE_RETRY).await,
            }
        }
    }

    fn settlement(&self, claimed: &Claimed, attempted: &Attempted, jitter: f64) -> Settlement {
        Settlement {
            entry_id: claimed.entry_id,
            key: claimed.key.clone(),
            token: claimed.token,
            outcome: attempted.outcome.clone(),
            now: self.worlds.clock.now(),
            jitter,
            retry: self.settings.retry,
            attempt: attempted.attempt.clone(),
            limit_installation_until: attempted.limit_until,
            recheck: attempted.outcome == Outcome::SourceMoved,
        }
    }
}

impl Answered {
    /// The delivery that ended so.
    fn ended(self, effect: Effect) -> Delivery {
        let Self { claimed, attempted } = self;
        let Attempted {
            attempt,
            problem,
            reached,
            ..
        } = attempted;
        Delivery {
            key: claimed.key.clone(),
            claimed: Some(Box::new(claimed)),
            attempt,
            effect,
            problem,
            reached,
        }
    }
}

#[cfg(test)]
mod tests;
