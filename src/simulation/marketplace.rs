//! Vercel as the daemon meets it: takes requests, checks how they left, lets them take effect and answers.

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::model::{
    AccessToken, Field, InstallationId, LeaseToken, Observed, Patch, Record, ResourceKey, SecretSet,
};
use crate::plan::classify::{RATE_LIMIT_WAIT_DEFAULT, RATE_LIMIT_WAIT_MAX};
use crate::plan::{Answer, AnswerKind};
use crate::vercel::Marketplace;

use super::backend::Committed;
use super::executor::Handle;
use super::fate::{Fate, Reply};
use super::laws::{Effect, Law};
use super::limits::Limits;
use super::provider::Item;
use super::remote::{Request, Truth, writes};
use super::trial::Happening;
use super::world::{Points, Shared, World};

/// The simulated Marketplace API, as one process sees it.
pub(super) struct SimMarketplace {
    pub(super) world: Shared,
    pub(super) handle: Handle,
    pub(super) points: Points,
    pub(super) limits: Limits,
    /// What is committed, to compare with what leaves.
    pub(super) committed: Committed,
}

#[async_trait]
impl Marketplace for SimMarketplace {
    async fn update(
        &self,
        token: &AccessToken,
        key: &ResourceKey,
        patch: &Patch,
        secrets: Option<&SecretSet>,
    ) -> Answer {
        // From here on the way to Vercel may take a while.
        let (_under_way, limits) = self.limits.patches(key, self.points.now());
        self.judge(limits);
        // Between the look at the lease and the request nothing can come.
        self.points.pass_at_once().await;
        let record = self.committed.records(std::slice::from_ref(key)).await;
        let record = record.ok().and_then(|mut records| records.pop());
        let record = record.expect("the committed state can be read beside the daemon");
        let (number, reply) =
            self.world
                .lock()
                .receive(token.expose(), key, patch, secrets, &record);
        let connection = Connection {
            world: self.world.clone(),
            number,
        };
        self.handle.sleep(reply.after).await;
        self.world.lock().answered(number);
        drop(connection);
        self.points.pass().await;
        if status_of(&reply.kind) == Some(409) {
            self.limits.conflicts(key);
        }
        answer(reply.kind)
    }

    async fn observe(&self, token: &AccessToken, key: &ResourceKey) -> (Answer, Option<Observed>) {
        let (_under_way, limits) = self.limits.asks(key, self.points.now());
        self.judge(limits);
        self.points.pass().await;
        let (reply, observed) = self.world.lock().asked(token.expose(), key);
        self.handle.sleep(reply.after).await;
        self.points.pass().await;
        (answer(reply.kind), observed)
    }

    async fn probe(&self, token: &AccessToken, installation_id: &InstallationId) -> Answer {
        self.limits.probes(installation_id, self.points.now());
        self.points.pass().await;
        let reply = self.world.lock().probed(token.expose(), installation_id);
        self.handle.sleep(reply.after).await;
        self.points.pass().await;
        answer(reply.kind)
    }
}

impl SimMarketplace {
    fn judge(&self, limits: Result<(), String>) {
        if let Err(what) = limits {
            self.world.lock().broken(Law::OwnLimits, what);
        }
    }
}

fn answer(kind: AnswerKind) -> Answer {
    Answer {
        kind,
        vercel_id: None,
    }
}

/// A request that no one waits for any more when this is dropped.
struct Connection {
    world: Shared,
    number: usize,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.world.lock().abandoned(self.number);
    }
}

impl World {
    /// A PATCH leaves the daemon.
    fn receive(
        &mut self,
        token: &str,
        key: &ResourceKey,
        patch: &Patch,
        secrets: Option<&SecretSet>,
        record: &Record,
    ) -> (usize, Reply) {
        let now = self.now();
        self.check_sender(token, &key.installation_id);
        let usable = self.provider.has_usable(key);
        let (laws, histories) = (&mut self.laws, &self.provider.history);
        laws.leaving(record, patch, secrets, &self.key, now);
        if usable {
            // Without a usable row the resource may be given back the status that it had.
            laws.no_regress(key, patch, histories, now);
        }
        if let Some((other, until)) = self.remote.in_flight.get(key)
            && *until > now
        {
            let what = format!("request {other} for {key} is still in flight");
            self.broken(Law::OneAtATime, what);
        }
        let deserved = self.deserved(token, key, Some(patch));
        let fate = self.fate();
        let reply = self.reply(fate, deserved);
        let number = self.remote.requests.len();
        self.say(format_args!(
            "request {number}: PATCH {key} {}; fate: {}",
            shown(patch, secrets),
            told(fate, &reply),
        ));
        self.remember_answer(key, patch, &reply);
        self.remember_obstacle(&key.installation_id, &reply);
        let until = now.plus(reply.after);
        self.remote.in_flight.insert(key.clone(), (number, until));
        let unsettled = self.remote.unsettled.entry(key.clone()).or_default();
        unsettled.push(number);
        self.remote.requests.push(Request {
            key: key.clone(),
            patch: patch.clone(),
            secrets: values(patch, secrets),
            sent_at: now,
            had_no_row: !usable,
            claim: holder(record),
            truth: Truth::Open,
            promised: reply.truth,
            ended_at: None,
            applied: false,
            applies_at: reply.applies.map(|applies| now.plus(applies)),
            doubtful: touched(patch, record),
        });
        self.check_doubt(record);
        self.handle.after(reply.after, Happening::Answer(number));
        if let Some(applies) = reply.applies {
            self.handle.after(applies, Happening::Apply(number));
        }
        (number, reply)
    }

    fn check_sender(&mut self, token: &str, installation_id: &InstallationId) {
        if !token.starts_with(&format!("token of {installation_id},")) {
            let what = format!("a request for {installation_id} carries the {token}");
            self.broken(Law::NothingSecretAstray, what);
        }
    }

    /// What the final checks must know of answers that let something rest.
    fn remember_answer(&mut self, key: &ResourceKey, patch: &Patch, reply: &Reply) {
        self.remote.not_shown.remove(key);
        // A client that was killed meanwhile never heard of an earlier one.
        self.remote.asked_to_wait.remove(key);
        let AnswerKind::Http {
            status,
            retry_after,
            rate_limit_reset,
            ..
        } = reply.kind
        else {
            self.remote.last_status.remove(key);
            return;
        };
        self.remote.last_status.insert(key.clone(), status);
        if status == 429 {
            let asked = (self.now(), retry_after.or(rate_limit_reset));
            self.remote.asked_to_wait.insert(key.clone(), asked);
        }
        let fields: Vec<Field> = patch.fields().iter().collect();
        if let ([field], 400 | 422) = (&fields[..], status) {
            let value = shown(patch, None);
            self.remote.rejected.insert((key.clone(), *field), value);
        }
    }

    /// What may keep an installation from being delivered to for a while, whether or not the client reads of it.
    fn remember_obstacle(&mut self, id: &InstallationId, reply: &Reply) {
        let now = self.now();
        self.remote.sent_at.insert(id.clone(), now);
        let AnswerKind::Http {
            status,
            retry_after,
            rate_limit_reset,
            ..
        } = reply.kind
        else {
            return;
        };
        match status {
            401 | 403 | 404 | 410 => drop(self.remote.refused.insert(id.clone())),
            429 => {
                let shortest = now.plus(reply.after + RATE_LIMIT_WAIT_DEFAULT);
                let longest = now.plus(reply.after + RATE_LIMIT_WAIT_MAX);
                let asked = retry_after.or(rate_limit_reset).unwrap_or(shortest);
                let until = asked.clamp(shortest, longest);
                let limits = &mut self.remote.limited_until;
                let limit = limits.entry(id.clone()).or_insert(until);
                *limit = until.max(*limit);
            }
            _ => {}
        }
    }

    /// The client has the answer, or has given up.
    pub(super) fn answered(&mut self, number: usize) {
        let now = self.now();
        let request = &self.remote.requests[number];
        if request.ended_at.is_some() {
            return;
        }
        let truth = request.promised;
        self.remote.end(number, truth, now);
        self.say(format_args!(
            "request {number}: its answer is there ({truth:?})"
        ));
    }

    /// The client was killed while it waited.
    fn abandoned(&mut self, number: usize) {
        let now = self.now();
        let request = &self.remote.requests[number];
        if request.ended_at.is_some() {
            return;
        }
        let until = now.plus(self.climate.dispatch.retry.late_apply);
        if !request.applied && request.applies_at.is_some_and(|at| at > until) {
            self.handle
                .after(until.since(now), Happening::Apply(number));
        }
        self.remote.end(number, Truth::Unknown { until }, now);
        self.say(format_args!("request {number}: its client is gone"));
    }

    /// A request takes effect.
    pub(super) fn apply(&mut self, number: usize) {
        let request = &self.remote.requests[number];
        if request.applied {
            return;
        }
        let late = request.ended_at.is_some();
        let had_no_row = request.had_no_row;
        let (key, patch) = (request.key.clone(), request.patch.clone());
        let now = self.now();
        let (laws, histories) = (&mut self.laws, &self.provider.history);
        let effect = Effect { late, had_no_row };
        laws.applied(&key, &patch, histories, effect, now);
        self.remote.apply(number);
        let late = if late { " late" } else { "" };
        self.say(format_args!("request {number}: takes effect{late}"));
    }

    /// A GET of one resource.
    fn asked(&mut self, token: &str, key: &ResourceKey) -> (Reply, Option<Observed>) {
        self.check_sender(token, &key.installation_id);
        let now = self.now();
        self.remote.asked_at.insert(key.clone(), now);
        let deserved = self.deserved(token, key, None);
        let reply = self.question(deserved);
        let held = self.remote.resources.get(key);
        let observed = held
            .filter(|_| status_of(&reply.kind) == Some(200))
            .map(super::remote::Held::observed);
        self.remember_obstacle(&key.installation_id, &reply);
        if status_of(&reply.kind) != Some(200) {
            let failed_at = now.plus(reply.after);
            self.remote.failed_at.insert(key.clone(), failed_at);
        }
        let what = status(&reply.kind);
        if let Some(404 | 410) = status_of(&reply.kind) {
            self.remote.not_shown.insert(key.clone());
        }
        self.say(format_args!("GET {key}: {what}"));
        (reply, observed)
    }

    /// A GET of an installation's resources.
    fn probed(&mut self, token: &str, installation_id: &InstallationId) -> Reply {
        self.check_sender(token, installation_id);
        let installation = self.remote.installations.get(installation_id);
        let deserved = match installation {
            Some(installation) if installation.gone => 404,
            Some(installation) if installation.token != token => 403,
            Some(_) => 200,
            None => 404,
        };
        let reply = self.question(deserved);
        self.remember_obstacle(installation_id, &reply);
        let what = status(&reply.kind);
        self.say(format_args!("probe of {installation_id}: {what}"));
        reply
    }

    /// The reply to something that changes nothing.
    fn question(&mut self, deserved: u16) -> Reply {
        let fate = match self.fate() {
            Fate::Conflict | Fate::Rejected | Fate::Refused => Fate::Processed,
            fate => fate,
        };
        self.reply(fate, deserved)
    }
}

/// The items that a request brings into doubt.
fn touched(patch: &Patch, record: &Record) -> Vec<Item> {
    let fields = patch.values.keys().map(|field| Item::Field(*field));
    let secret = |name: &crate::model::SecretName| Item::Secret(name.as_str().to_owned());
    let mut items: Vec<Item> = fields.chain(patch.secret_names().map(secret)).collect();
    let held = record
        .acknowledged
        .secrets
        .iter()
        .flat_map(|held| held.keys());
    let removed = held.chain(record.doubt.secrets.keys()).map(secret);
    items.extend(removed.filter(|item| writes(patch, item)));
    items.sort_unstable();
    items.dedup();
    items
}

fn holder(record: &Record) -> LeaseToken {
    let lease = record.entry.as_ref().and_then(|entry| entry.lease.as_ref());
    lease.map_or(LeaseToken(-1), |lease| lease.token)
}

fn values(patch: &Patch, secrets: Option<&SecretSet>) -> BTreeMap<String, String> {
    let value = |name: &crate::model::SecretName| {
        let value = secrets?.0.get(name)?.exposed().next()?.to_owned();
        Some((name.as_str().to_owned(), value))
    };
    patch.secret_names().filter_map(value).collect()
}

/// A patch in words; the values of secrets are the simulation's own.
fn shown(patch: &Patch, secrets: Option<&SecretSet>) -> String {
    let mut parts: Vec<String> = patch
        .values
        .iter()
        .map(|(field, value)| format!("{field}={value}"))
        .collect();
    if let Some(named) = &patch.secrets {
        let kind = match named {
            crate::model::SecretsPatch::Complete(_) => "all secrets",
            crate::model::SecretsPatch::Partial(_) => "secrets",
        };
        let values = values(patch, secrets);
        let named: Vec<String> = named
            .named()
            .keys()
            .map(|name| {
                let value = values.get(name.as_str()).map_or("?", String::as_str);
                format!("{name}={value}")
            })
            .collect();
        parts.push(format!("{kind} [{}]", named.join(" ")));
    }
    parts.join(", ")
}

fn told(fate: Fate, reply: &Reply) -> String {
    let effect = match reply.applies {
        Some(applies) => format!("takes effect after {} ms", applies.as_millis()),
        None => "no effect".to_owned(),
    };
    let after = reply.after.as_millis();
    format!(
        "{fate:?}, {} after {after} ms, {effect}",
        status(&reply.kind)
    )
}

const fn status_of(kind: &AnswerKind) -> Option<u16> {
    match kind {
        AnswerKind::Http { status, .. } => Some(*status),
        _ => None,
    }
}

fn status(kind: &AnswerKind) -> String {
    match kind {
        AnswerKind::Http { status, .. } => format!("answer {status}"),
        AnswerKind::Unsent(kind) => format!("no connection ({kind:?})"),
        AnswerKind::Lost(kind) => format!("no answer ({kind:?})"),
    }
}
