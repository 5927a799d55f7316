//! Pauses of installations, and the probes that end them.

use std::sync::Arc;
use std::time::Duration;

use crate::model::{InstallationId, ResourceId, ResourceKey};
use crate::plan::backoff::Backoff;
use crate::plan::{Verdict, classify};
use crate::store::{Pause, PauseKind};

use super::super::token::Renewed;
use super::{Delivery, Effect, Reached, Worker, reached};

/// The shortest and longest waits between probes of a paused installation.
const PROBES: Backoff = Backoff {
    initial: Duration::from_secs(5),
    multiplier: 2.0,
    max: Duration::from_secs(15 * 60),
};

impl Worker {
    /// A pause that begins now, and when it is probed.
    pub(super) fn pause(
        &self,
        installation_id: &InstallationId,
        kind: PauseKind,
        reason: &str,
        probes_failed: u32,
    ) -> Pause {
        let now = self.worlds.clock.now();
        let wait = PROBES.interval(probes_failed + 1, self.worlds.random.fraction());
        Pause {
            installation_id: installation_id.clone(),
            kind,
            by: "reconciled".to_owned(),
            reason: reason.to_owned(),
            since: now,
            until: None,
            probe_at: Some(now.plus(wait)),
            probes_failed,
        }
    }

    /// Asks whether a paused installation can be reached again.
    pub(in crate::dispatch) async fn probe(self: Arc<Self>, pause: Pause) -> Delivery {
        let (resumed, reached) = self.try_installation(&pause.installation_id).await;
        let recorded = if resumed {
            self.worlds
                .store
                .resume(&pause.installation_id, pause.kind, self.worlds.clock.now())
                .await
                .is_ok()
        } else {
            let next = self.pause(
                &pause.installation_id,
                pause.kind,
                &pause.reason,
                pause.probes_failed.saturating_add(1),
            );
            self.worlds
                .store
                .pause(&Pause {
                    since: pause.since,
                    ..next
                })
                .await
                .is_ok()
        };
        let effect = match (recorded, resumed) {
            (true, true) => Effect::Resumed { kind: pause.kind },
            (true, false) => Effect::StillPaused,
            (false, _) => Effect::Unrecorded,
        };
        let resource_id = ResourceId::new("-").expect("a dash is an id");
        let key = ResourceKey {
            installation_id: pause.installation_id,
            resource_id,
        };
        Delivery {
            key,
            claimed: None,
            attempt: None,
            effect,
            problem: None,
            reached,
        }
    }

    async fn try_installation(&self, installation_id: &InstallationId) -> (bool, Reached) {
        let Ok(Some(token)) = self.tokens.get(installation_id).await else {
            return (false, Reached::NotTried);
        };
        self.asks(installation_id);
        let answer = self.worlds.marketplace.probe(&token, installation_id).await;
        let mut verdict = classify(&answer, self.worlds.clock.now());
        if verdict == Verdict::TokenRefused
            && matches!(
                self.tokens.renew(installation_id, &token).await,
                Ok(Renewed::Changed)
            )
            && let Ok(Some(token)) = self.tokens.get(installation_id).await
        {
            self.asks(installation_id);
            let answer = self.worlds.marketplace.probe(&token, installation_id).await;
            verdict = classify(&answer, self.worlds.clock.now());
        }
        (verdict == Verdict::Acknowledged, reached(verdict))
    }
}

#[cfg(test)]
mod tests;
