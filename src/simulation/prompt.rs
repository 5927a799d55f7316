//! How soon: a row that was read is at Vercel within what the settings promise, whatever happens to others.
//!
//! Convergence alone allows for the longest wait that Vercel may ask for. Here only those wait whom the worlds hold back: while an
//! installation is limited or paused, a process is down, or Vercel fails a resource by itself, that resource's time begins anew.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{InstallationId, Record, ResourceKey, Timestamp};
use crate::plan::outage::PROBE_INTERVAL_MAX;

use super::climate::{Climate, Latency, Rates};
use super::laws::Law;
use super::process::SOURCE_BACKOFF;
use super::trial::LOOK_EVERY;
use super::world::World;

/// The longest that a request takes to be answered when nothing is wrong.
const ANSWER_MAX: Duration = Duration::from_millis(200);
/// How much longer it may take, from its claim to its record, where some calls to the state take up to three seconds.
const SLOW: Duration = Duration::from_secs(2);

/// What differs, and since when without an excuse.
#[derive(Default)]
pub(super) struct Prompt {
    since: BTreeMap<ResourceKey, Difference>,
}

struct Difference {
    since: Timestamp,
    /// Another installation was held back meanwhile.
    beside: bool,
}

impl Prompt {
    /// Nobody is there to send, or whoever was has to find out what became of its requests: time begins anew.
    pub(super) fn disturbed(&mut self) {
        self.since.clear();
    }

    /// Looks at all rows; the law that is broken, and how.
    pub(super) fn look(
        &mut self,
        world: &World,
        records: &BTreeMap<ResourceKey, Record>,
        paused: &[InstallationId],
    ) -> Option<(Law, String)> {
        let now = world.now();
        let bound = within(&world.climate, world.provider.rows.len());
        let held_back: Vec<InstallationId> = world
            .remote
            .installations
            .keys()
            .filter(|id| world.is_held_back(id, paused))
            .cloned()
            .collect();
        for (row, stored) in world.provider.rows.iter().enumerate() {
            let key = stored.key.clone();
            let is_judged = !stored.unread && !held_back.contains(&key.installation_id);
            let unequal = world.unequal(row, &records[&key]);
            let Some((field, what)) = unequal.filter(|_| is_judged) else {
                self.since.remove(&key);
                continue;
            };
            let excused = world.excused_at(&key);
            let waits = records[&key].entry.is_some();
            let difference = self.since.entry(key.clone()).or_insert(Difference {
                since: now,
                beside: false,
            });
            difference.since = difference.since.max(excused);
            difference.beside |= !held_back.is_empty();
            let waited = now.since(difference.since);
            if waited > bound {
                let late = (key.clone(), field);
                let law = if world.remote.taken_back.contains(&late) {
                    Law::LateApplicationHeals
                } else if difference.beside && waits {
                    Law::FailureStays
                } else {
                    Law::Convergence
                };
                return Some((law, format!("{key} for {waited:?}: {what}")));
            }
        }
        None
    }
}

/// How soon a row that was read is at Vercel when nothing holds it back.
///
/// A lost request may take effect for `late_apply`, and what follows it waits for that or for its backoff; a poll finds what a claim
/// found moved on; a request takes its time, and so do those before it where there are few places.
fn within(climate: &Climate, rows: usize) -> Duration {
    let dispatch = &climate.dispatch;
    let retry = dispatch.retry;
    let mut bound = retry.late_apply
        + retry.backoff.max
        + climate.poll_every
        + dispatch.request_timeout
        + LOOK_EVERY;
    if climate.processes > 1 {
        // What a process that is gone has claimed waits for its lease, and can take effect late from then on.
        bound += dispatch.lease;
    }
    if climate.rates != Rates::default() {
        // A storm may leave an outage to be probed and a source to be tried again.
        bound += PROBE_INTERVAL_MAX + SOURCE_BACKOFF.max;
    }
    if let Some(per_minute) = dispatch.requests_per_minute_per_installation {
        bound += Duration::from_secs(60) / per_minute;
    }
    let answer = match climate.latency {
        Latency::None | Latency::Yields => ANSWER_MAX,
        Latency::Slow => ANSWER_MAX + SLOW,
    };
    let places = dispatch
        .max_in_flight
        .min(dispatch.max_in_flight_per_installation);
    let rounds = u32::try_from(rows).unwrap_or(u32::MAX).div_ceil(places);
    bound + answer * 2 * rounds
}

impl World {
    /// Whether Vercel or the source holds an installation back: a 429 that it was answered, or a pause that it gave cause for.
    fn is_held_back(&self, id: &InstallationId, paused: &[InstallationId]) -> bool {
        let limited = self.remote.limited_until.get(id);
        limited.is_some_and(|until| *until >= self.now())
            || (paused.contains(id) && self.remote.refused.contains(id))
    }

    /// The last instant at which something other than the daemon kept the resource from being delivered.
    fn excused_at(&self, key: &ResourceKey) -> Timestamp {
        let failed = self.remote.failed_at.get(key).copied();
        // Its allowance goes to others.
        let is_limited = self
            .climate
            .dispatch
            .requests_per_minute_per_installation
            .is_some();
        let sent = self.remote.sent_at.get(&key.installation_id).copied();
        failed
            .max(sent.filter(|_| is_limited))
            .unwrap_or(Timestamp::EPOCH)
    }
}
