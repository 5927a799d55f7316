//! The daemon's log of what people did by hand: each act stands in the state, left by the command that did it, and is logged once.
//!
//! At a terminal a command answers the person and logs nothing; the log that is kept is the daemon's. An act is logged at least once:
//! also one from while no daemon ran, and twice if the daemon dies between the line and its mark.

use std::sync::Arc;
use std::time::Duration;

use tracing::info;

use crate::clock::Clock;
use crate::store::StoreError;
use crate::store::console::{Act, ActId, Console};

use super::lead::Leading;

/// How often it is looked for new acts.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// The most acts that are logged at once.
const ACTS_MAX: u32 = 500;

/// Logs what people do, for ever; of several daemons the one that reads the source does.
pub(super) async fn tell_acts(console: Arc<dyn Console>, clock: Arc<dyn Clock>, leading: Leading) {
    loop {
        if leading.leads() {
            // A state that cannot be used is on record elsewhere; the acts stay in it until they are told.
            let _ = tell_untold(&*console, &*clock).await;
        }
        clock.sleep(LOOK_AGAIN).await;
    }
}

async fn tell_untold(console: &dyn Console, clock: &dyn Clock) -> Result<(), StoreError> {
    loop {
        let acts = console.untold_acts(ACTS_MAX).await?;
        if acts.is_empty() {
            return Ok(());
        }
        acts.iter().for_each(|(_, act)| tell(act));
        let ids: Vec<ActId> = acts.iter().map(|(id, _)| *id).collect();
        console.acts_told(&ids, clock.now()).await?;
    }
}

fn tell(act: &Act) {
    let Act {
        at,
        actor,
        act,
        installation_id,
        resource_id,
        entry_id,
        reason,
    } = act;
    let installation_id = installation_id.as_ref().map(|id| id.as_str());
    let resource_id = resource_id.as_ref().map(|id| id.as_str());
    let what = match (entry_id, installation_id, resource_id) {
        (Some(entry), Some(installation), Some(resource)) => {
            format!("entry {entry} for {installation}/{resource}")
        }
        (None, Some(installation), Some(resource)) => format!("{installation}/{resource}"),
        (_, Some(installation), None) => installation.to_owned(),
        (_, None, _) => "every installation".to_owned(),
    };
    let why = reason.as_deref().unwrap_or("no reason was given");
    info!(
        event = "act.recorded",
        act,
        actor,
        reason,
        installation_id,
        resource_id,
        entry = entry_id.map(|id| id.0),
        done_at = %at,
        "{actor} did by hand: {act} {what} ({why})"
    );
}
