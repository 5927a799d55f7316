//! Vercel's side: what it holds, which requests it was sent, what may still take effect.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{
    Field, InstallationId, Json, LeaseToken, Observed, Patch, ResourceKey, SecretsPatch, Timestamp,
};

use super::provider::Item;

/// One resource at Vercel.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    pub(super) values: BTreeMap<Field, Json>,
    pub(super) secrets: BTreeMap<String, String>,
    /// Whether Vercel no longer knows it.
    pub(super) gone: bool,
}

impl Held {
    fn apply(&mut self, request: &Request) {
        for (field, value) in &request.patch.values {
            self.values.insert(*field, value.clone());
        }
        match &request.patch.secrets {
            Some(SecretsPatch::Complete(_)) => self.secrets = request.secrets.clone(),
            Some(SecretsPatch::Partial(_)) => self.secrets.extend(request.secrets.clone()),
            None => {}
        }
    }

    pub(super) fn observed(&self) -> Observed {
        let shown = |field: &Field| field.is_observable();
        let mut values: BTreeMap<Field, Json> = self
            .values
            .iter()
            .filter(|(field, _)| shown(field))
            .map(|(field, value)| (*field, value.clone()))
            .collect();
        values.entry(Field::Notification).or_insert_with(Json::null);
        Observed {
            values: values.into(),
            billing_plan_id: None,
        }
    }
}

/// One customer at Vercel.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    /// The token that is accepted.
    pub(super) token: String,
    /// Whether the integration was uninstalled.
    pub(super) gone: bool,
}

/// What is true of a request, whatever the client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truth {
    /// Under way.
    Open,
    /// Answered 2xx.
    Acknowledged,
    /// Answered, or never sent, in a way that proves that it changed nothing.
    Harmless,
    /// Answered by a server that failed: it was applied before that, or never.
    Failed,
    /// No one told the client; it may be applied until then.
    Unknown {
        /// The last instant at which it may take effect.
        until: Timestamp,
    },
}

/// One PATCH.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) key: ResourceKey,
    pub(super) patch: Patch,
    /// The values that came with it.
    pub(super) secrets: BTreeMap<String, String>,
    pub(super) sent_at: Timestamp,
    /// Whether its resource had no usable row then.
    pub(super) had_no_row: bool,
    /// The claim that it was sent under.
    pub(super) claim: LeaseToken,
    pub(super) truth: Truth,
    /// What will be true when it is answered.
    pub(super) promised: Truth,
    /// When the client was done with it.
    pub(super) ended_at: Option<Timestamp>,
    pub(super) applied: bool,
    /// When it takes effect, if it does.
    pub(super) applies_at: Option<Timestamp>,
    /// What it touches that the daemon must hold to be in doubt.
    pub(super) doubtful: Vec<Item>,
}

impl Request {
    /// Until when it may take effect, for all that is true.
    fn effective_until(&self) -> Timestamp {
        match self.truth {
            Truth::Unknown { until } => until,
            _ => self.ended_at.unwrap_or(Timestamp::from_millis(i64::MAX)),
        }
    }
}

/// Everything at Vercel.
#[derive(Default)]
pub(super) struct Remote {
    pub(super) resources: BTreeMap<ResourceKey, Held>,
    pub(super) installations: BTreeMap<InstallationId, Installation>,
    pub(super) requests: Vec<Request>,
    /// Requests whose items are not all settled, by resource.
    pub(super) unsettled: BTreeMap<ResourceKey, Vec<usize>>,
    /// The request in flight and when it ends at the latest.
    pub(super) in_flight: BTreeMap<ResourceKey, (usize, Timestamp)>,
    /// The status of the last answer to a PATCH for the resource.
    pub(super) last_status: BTreeMap<ResourceKey, u16>,
    /// Those that a GET did not find (404, 410), if no PATCH was answered since.
    pub(super) not_shown: BTreeSet<ResourceKey>,
    /// Single fields that were answered 400, with the value.
    pub(super) rejected: BTreeMap<(ResourceKey, Field), String>,
    /// When the last GET for the resource was sent.
    pub(super) asked_at: BTreeMap<ResourceKey, Timestamp>,
    /// What the last 429 for each resource asked for: when it came, and until when to wait.
    pub(super) asked_to_wait: BTreeMap<ResourceKey, (Timestamp, Option<Timestamp>)>,
    /// Until when each installation must wait after a 429 that was recorded.
    pub(super) waits: BTreeMap<InstallationId, Timestamp>,
    pub(super) down_until: Timestamp,
    /// What Vercel holds since a late application put it there.
    pub(super) taken_back: BTreeSet<(ResourceKey, Field)>,
    /// When Vercel last failed each resource, or refused it, by whatever answer or silence.
    pub(super) failed_at: BTreeMap<ResourceKey, Timestamp>,
    /// When the last request of any kind was sent for each installation.
    pub(super) sent_at: BTreeMap<InstallationId, Timestamp>,
    /// Until when the 429s that each installation was answered may hold it back.
    pub(super) limited_until: BTreeMap<InstallationId, Timestamp>,
    /// The installations of which a request was answered in a way that may pause them.
    pub(super) refused: BTreeSet<InstallationId>,
}

impl Remote {
    /// Lets a request take effect.
    pub(super) fn apply(&mut self, number: usize) {
        let request = &mut self.requests[number];
        request.applied = true;
        let is_late = request.ended_at.is_some();
        let held = self.resources.entry(request.key.clone()).or_default();
        let before = held.clone();
        held.apply(request);
        for field in request.patch.fields().iter() {
            let id = (request.key.clone(), field);
            if !is_late {
                self.taken_back.remove(&id);
            } else if before.values.get(&field) != held.values.get(&field)
                || (field == Field::Secrets && before.secrets != held.secrets)
            {
                self.taken_back.insert(id);
            }
        }
    }

    /// The client is done with a request, at `now`.
    pub(super) fn end(&mut self, number: usize, truth: Truth, now: Timestamp) {
        let request = &mut self.requests[number];
        if request.ended_at.is_some() {
            return;
        }
        request.ended_at = Some(now);
        request.truth = truth;
        if truth == Truth::Harmless {
            request.doubtful.clear();
        }
        let key = request.key.clone();
        if truth != Truth::Acknowledged {
            self.failed_at.insert(key.clone(), now);
        }
        if self
            .in_flight
            .get(&key)
            .is_some_and(|(current, _)| *current == number)
        {
            self.in_flight.remove(&key);
        }
    }

    /// An acknowledgement of `items`, by something sent at `sent_at`, was recorded: earlier requests are settled by it if they
    /// can no longer take effect after it.
    pub(super) fn settle(
        &mut self,
        key: &ResourceKey,
        by: Option<usize>,
        sent_at: Timestamp,
        touches: impl Fn(&Item) -> bool,
    ) {
        let Some(numbers) = self.unsettled.get_mut(key) else {
            return;
        };
        numbers.retain(|number| {
            let request = &mut self.requests[*number];
            if Some(*number) == by {
                request.doubtful.clear();
            } else {
                let until = request.effective_until();
                let over = match request.truth {
                    Truth::Unknown { .. } => sent_at > until,
                    _ => sent_at >= until,
                };
                request.doubtful.retain(|item| !(over && touches(item)));
            }
            !request.doubtful.is_empty()
        });
        if numbers.is_empty() {
            self.unsettled.remove(key);
        }
    }

    /// What must be in doubt of this resource.
    pub(super) fn doubtful(&self, key: &ResourceKey) -> impl Iterator<Item = (usize, &Item)> {
        let numbers = self.unsettled.get(key).into_iter().flatten();
        numbers.flat_map(|number| {
            let items = &self.requests[*number].doubtful;
            items.iter().map(|item| (*number, item))
        })
    }
}

/// Whether a patch writes this item.
pub(super) fn writes(patch: &Patch, item: &Item) -> bool {
    match item {
        Item::Field(field) => patch.values.contains_key(field),
        Item::Secret(name) => match &patch.secrets {
            Some(SecretsPatch::Complete(_)) => true,
            Some(SecretsPatch::Partial(named)) => named.keys().any(|n| n.as_str() == name),
            None => false,
        },
    }
}
