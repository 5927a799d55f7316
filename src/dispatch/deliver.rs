//! One claimed entry, from its claim to its recorded outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

#[cfg(doc)]
use crate::metrics::family;
use crate::model::{
    AccessToken, EntryState, FingerprintKey, InstallationId, Mode, Observed, Patch, RawRow,
    ResourceKey, Row, SecretSet, SecretsPatch, Timestamp,
};
use crate::plan::decide::is_uninstallation;
use crate::plan::{Answer, AnswerKind, Claimed, Outcome, SecretsWay, Verdict, classify};
use crate::planted::{Bug, is_planted};
use crate::reread::Reread;
use crate::store::{Advanced, AttemptRecord, PauseKind};

use super::pace::{Allowance, Pace};
use super::places::Places;
use super::token::{Renewed, TokenError, Tokens};
use super::{Settings, Signals, Worlds};

mod probe;
mod record;

/// How much time a request may need besides its timeout until its outcome is recorded, where the lease has that much.
const RECORDING_TIME: Duration = Duration::from_secs(1);

/// Whether a delivery says something about the API as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// Vercel answered by itself.
    Answered,
    /// It could not be reached, the answer was lost, or it failed.
    Failed,
    /// Nothing was sent.
    NotTried,
}

/// What a delivery did, for the log and the totals.
#[derive(Debug, Clone)]
pub enum Effect {
    /// The outcome was recorded and led to this.
    Settled {
        /// How the attempt ended.
        outcome: Outcome,
        /// Where the entry stands now; `None` when the lease had been taken over.
        advanced: Option<Advanced>,
    },
    /// The outcome could not be recorded before the lease ended; it counts as lost.
    Unrecorded,
    /// An installation was paused.
    Paused {
        /// What ends the pause.
        kind: PauseKind,
        /// Why, in words.
        reason: String,
        /// How the attempt ended.
        outcome: Outcome,
    },
    /// A paused installation answers again.
    Resumed {
        /// Why it was paused.
        kind: PauseKind,
    },
    /// A probe failed; the installation stays paused.
    StillPaused,
}

/// A delivery or probe that ended.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The resource; of a probe only the installation means something.
    pub key: ResourceKey,
    /// What was claimed; `None` for a probe.
    pub claimed: Option<Box<Claimed>>,
    /// The last request of it.
    pub attempt: Option<AttemptRecord>,
    /// What it did.
    pub effect: Effect,
    /// Why nothing could be sent, in safe words.
    pub problem: Option<String>,
    pub(super) reached: Reached,
}

impl Delivery {
    pub(super) const fn is_probe(&self) -> bool {
        self.claimed.is_none()
    }

    /// What came of it: a value of the label of [`family::DELIVERIES`] or, for a probe, of [`family::PROBES`].
    pub(super) fn outcome(&self) -> &'static str {
        match &self.effect {
            Effect::Settled { outcome, advanced } => match (outcome, advanced) {
                (Outcome::Acknowledged { .. }, _) => "acknowledged",
                (_, None) => "lease_lost",
                (Outcome::Compared { .. }, _) => "compared",
                (Outcome::Released | Outcome::SourceMoved, _) => "released",
                (_, Some(advanced)) if advanced.state == EntryState::Dead => "dead",
                _ => "retrying",
            },
            Effect::Unrecorded => "unrecorded",
            Effect::Paused { .. } => "paused",
            Effect::Resumed { .. } => "resumed",
            Effect::StillPaused => "still_paused",
        }
    }

    /// How its request ended: a value of the label of [`family::ATTEMPTS`].
    pub(super) fn verdict(&self) -> &'static str {
        match &self.effect {
            Effect::Settled { outcome, .. } | Effect::Paused { outcome, .. } => outcome.name(),
            Effect::Unrecorded | Effect::Resumed { .. } | Effect::StillPaused => "unrecorded",
        }
    }

    pub(super) const fn wants_recheck(&self) -> bool {
        matches!(
            &self.effect,
            Effect::Settled {
                outcome: Outcome::SourceMoved,
                ..
            }
        )
    }
}

/// A claim and what came of it, before it is recorded.
pub(super) struct Answered {
    claimed: Claimed,
    attempted: Attempted,
}

impl Answered {
    pub(super) const fn key(&self) -> &ResourceKey {
        &self.claimed.key
    }

    pub(super) const fn reached(&self) -> Reached {
        self.attempted.reached
    }
}

/// What a delivery needs from the source, as far as it was read beforehand; in memory only.
pub(super) enum Supply {
    /// Nothing was read.
    None,
    /// The resource's row as it was when the claim had been made.
    Row(Box<RawRow>),
}

/// What an attempt came to, before it is recorded.
struct Attempted {
    outcome: Outcome,
    attempt: Option<AttemptRecord>,
    pause: Option<(PauseKind, String)>,
    limit_until: Option<Timestamp>,
    problem: Option<String>,
    reached: Reached,
}

impl Settings {
    /// What must be left of a lease when a request is sent.
    fn time_to_deliver(&self) -> Duration {
        let spare = self.lease.saturating_sub(self.request_timeout);
        self.request_timeout + RECORDING_TIME.min(spare / 2)
    }
}

impl Attempted {
    fn unsent(outcome: Outcome, problem: Option<String>) -> Self {
        Self {
            outcome,
            attempt: None,
            pause: None,
            limit_until: None,
            problem,
            reached: Reached::NotTried,
        }
    }
}

/// Delivers single entries.
pub(super) struct Worker {
    worlds: Worlds,
    key: FingerprintKey,
    tokens: Arc<Tokens>,
    pace: Pace,
    settings: Settings,
    /// One for each request at once.
    places: Arc<Places>,
    reread: Reread,
    stop: CancellationToken,
}

impl Worker {
    pub(super) fn new(
        worlds: Worlds,
        key: FingerprintKey,
        tokens: Tokens,
        pace: Pace,
        settings: Settings,
        signals: &Signals,
    ) -> Self {
        let places = Arc::new(Places::new(settings.max_in_flight));
        Self {
            worlds,
            key,
            tokens: Arc::new(tokens),
            pace,
            settings,
            places,
            reread: signals.reread.clone(),
            stop: signals.stop.clone(),
        }
    }

    /// The same worker under other settings; both know the same tokens and share the places.
    pub(super) fn configured(&self, settings: Settings) -> Self {
        self.places
            .resize(self.settings.max_in_flight, settings.max_in_flight);
        Self {
            worlds: self.worlds.clone(),
            key: self.key.clone(),
            tokens: Arc::clone(&self.tokens),
            pace: self.pace.clone(),
            settings,
            places: Arc::clone(&self.places),
            reread: self.reread.clone(),
            stop: self.stop.clone(),
        }
    }

    /// Sends a claim once there is a place for it, until its lease is said to be over: a request that is still out then counts
    /// as lost.
    pub(super) async fn deliver(
        self: Arc<Self>,
        claimed: Claimed,
        supply: Supply,
        allowance: Allowance,
        over: CancellationToken,
    ) -> Answered {
        let place = tokio::select! {
            biased;
            place = self.places.take() => place,
            () = self.stop.cancelled() => None,
            () = over.cancelled() => None,
        };
        let attempted = match place {
            Some(_place) => tokio::select! {
                biased;
                attempted = self.attempt(&claimed, supply, allowance) => attempted,
                () = over.cancelled() => {
                    let problem = "its claim ended while it was out: the clock was set forward, or the process stood still";
                    Attempted::unsent(Outcome::Lost, Some(problem.to_owned()))
                }
            },
            // Claimed ahead, and not to be sent any more.
            None => Attempted::unsent(Outcome::Released, None),
        };
        Answered { claimed, attempted }
    }

    /// Whether something has to be read from the source before this can be sent.
    pub(super) fn needs_source(&self, claimed: &Claimed) -> bool {
        claimed.patch.secrets.is_some() || self.tokens.lacks(&claimed.key.installation_id)
    }

    /// Reads what several claims need from the source at once: the rows of those with secrets, and tokens; a claim whose row or token did
    /// not come reads it again by itself.
    pub(super) async fn supply(self: Arc<Self>, claims: Vec<Claimed>) -> Vec<(Claimed, Supply)> {
        let has_secrets = |claimed: &&Claimed| claimed.patch.secrets.is_some();
        let secret = claims.iter().filter(has_secrets);
        let keys: Vec<ResourceKey> = secret.map(|claimed| claimed.key.clone()).collect();
        let installations = claims.iter().map(|claimed| &claimed.key.installation_id);
        let installations: BTreeSet<InstallationId> = installations.cloned().collect();
        let installations: Vec<InstallationId> = installations.into_iter().collect();
        let reading = async {
            match keys.is_empty() {
                true => Vec::new(),
                false => self.worlds.source.fetch(&keys).await.unwrap_or_default(),
            }
        };
        let reading_tokens = self.tokens.read_together(&installations);
        let (read, ()) = futures_util::future::join(reading, reading_tokens).await;
        let mut rows: BTreeMap<ResourceKey, Vec<RawRow>> = BTreeMap::new();
        for row in read {
            if let Ok(key) = row.key() {
                rows.entry(key).or_default().push(row);
            }
        }
        let supply = |claimed: Claimed| {
            let mut of_claim = rows.remove(&claimed.key).unwrap_or_default();
            let supply = match (of_claim.pop(), of_claim.is_empty()) {
                (Some(row), true) => Supply::Row(Box::new(row)),
                _ => Supply::None,
            };
            (claimed, supply)
        };
        claims.into_iter().map(supply).collect()
    }

    async fn attempt(&self, claimed: &Claimed, supply: Supply, allowance: Allowance) -> Attempted {
        let token = match self.tokens.get(&claimed.key.installation_id).await {
            Ok(Some(token)) => token,
            Ok(None) => {
                let mut attempted = Attempted::unsent(Outcome::TokenRefused, None);
                attempted.pause = Some((
                    PauseKind::Token,
                    "the source has no access token for it".to_owned(),
                ));
                return attempted;
            }
            Err(error @ (TokenError::Refused { .. } | TokenError::Unusable)) => {
                let mut attempted = Attempted::unsent(Outcome::TokenRefused, None);
                attempted.pause = Some((PauseKind::Token, error.to_string()));
                return attempted;
            }
            Err(error) => return source_unavailable(&error),
        };
        let secrets = match self.secrets(claimed, supply).await {
            Ok(secrets) => secrets,
            Err(attempted) => return attempted,
        };
        let sent_at = self.worlds.clock.now();
        let is_short = sent_at.plus(self.settings.time_to_deliver()) >= claimed.lease_expires_at;
        if is_short && !is_planted(Bug::LeaseMayRunOut) {
            return Attempted::unsent(Outcome::Released, None);
        }
        if !allowance.leave(sent_at) {
            return Attempted::unsent(Outcome::Released, None);
        }
        if claimed.mode == Mode::Compare {
            let (answer, observed) = self.worlds.marketplace.observe(&token, &claimed.key).await;
            return self
                .judge(claimed, &token, "GET", sent_at, &answer, observed)
                .await;
        }
        let answer = self
            .worlds
            .marketplace
            .update(&token, &claimed.key, &claimed.patch, secrets.as_ref())
            .await;
        self.judge(
            claimed,
            &token,
            self.method(&claimed.patch),
            sent_at,
            &answer,
            None,
        )
        .await
    }

    /// The method that the client sends this patch with.
    fn method(&self, patch: &Patch) -> &'static str {
        if self.settings.secrets == SecretsWay::Alone && patch.values.is_empty() {
            "PUT"
        } else {
            "PATCH"
        }
    }

    /// The values of the patch's secrets, read since it was claimed or by the re-read that it was claimed for; an outcome instead if
    /// the row is no longer what the claim was made from.
    async fn secrets(
        &self,
        claimed: &Claimed,
        supply: Supply,
    ) -> Result<Option<SecretSet>, Attempted> {
        let Some(wanted) = &claimed.patch.secrets else {
            return Ok(None);
        };
        if let Supply::Row(row) = supply
            && let Some(held) = row.decode().ok().and_then(|row| row.secrets)
            && self.are_held(wanted, &held)
        {
            return Ok(Some(held));
        }
        // The row may change with every reading: what the claim was made from is as good as what would be read now.
        if let Some(held) = self.reread.take(&claimed.key)
            && self.are_held(wanted, &held)
        {
            return Ok(Some(held));
        }
        let row = self.read_row(&claimed.key).await?;
        let held = row.and_then(|row| row.secrets).unwrap_or_default();
        if self.are_held(wanted, &held) || is_planted(Bug::MovedSecretsSent) {
            Ok(Some(held))
        } else {
            Err(Attempted::unsent(Outcome::SourceMoved, None))
        }
    }

    /// Whether the values that a patch names are these.
    fn are_held(&self, wanted: &SecretsPatch, held: &SecretSet) -> bool {
        let fingerprints = held.fingerprints(&self.key);
        let named = wanted.named();
        match wanted {
            SecretsPatch::Complete(_) => fingerprints == *named,
            SecretsPatch::Partial(_) => named
                .iter()
                .all(|(name, print)| fingerprints.get(name) == Some(print)),
        }
    }

    /// The resource's row as it is now; `None` when there is none, or none that can be used.
    async fn read_row(&self, key: &ResourceKey) -> Result<Option<Row>, Attempted> {
        let rows = self.worlds.source.fetch(std::slice::from_ref(key)).await;
        let rows = rows.map_err(|error| source_unavailable(&error.into()))?;
        match &rows[..] {
            [row] => Ok(row.decode().ok()),
            _ => Ok(None),
        }
    }

    /// What an answer comes to, further questions to Vercel included.
    async fn judge(
        &self,
        claimed: &Claimed,
        token: &AccessToken,
        method: &'static str,
        sent_at: Timestamp,
        answer: &Answer,
        observed: Option<Observed>,
    ) -> Attempted {
        let now = self.worlds.clock.now();
        let verdict = classify(answer, now);
        let mut attempted = Attempted {
            outcome: Outcome::Released,
            attempt: Some(attempt_record(method, &claimed.patch, sent_at, now, answer)),
            pause: None,
            limit_until: None,
            problem: None,
            reached: reached(verdict),
        };
        attempted.outcome = match verdict {
            Verdict::Acknowledged if claimed.mode == Mode::Compare => match observed {
                Some(observed) => Outcome::Compared { observed },
                None => Outcome::Failed,
            },
            Verdict::Acknowledged => Outcome::Acknowledged { sent_at },
            Verdict::Unsent => Outcome::Unreachable,
            Verdict::Lost => Outcome::Lost,
            Verdict::Failed => Outcome::Failed,
            Verdict::RateLimited { until } => {
                attempted.limit_until = Some(until);
                Outcome::RateLimited { until }
            }
            Verdict::Rejected => Outcome::Rejected {
                status: answer.status().unwrap_or_default(),
                code: answer_code(answer),
            },
            Verdict::Refused => Outcome::Refused {
                status: answer.status().unwrap_or_default(),
            },
            Verdict::TokenRefused => return self.token_refused(claimed, token, attempted).await,
            Verdict::Missing => return self.missing(claimed, token, attempted).await,
            Verdict::Conflict => return self.conflict(claimed, token, attempted).await,
        };
        attempted
    }

    async fn token_refused(
        &self,
        claimed: &Claimed,
        token: &AccessToken,
        mut attempted: Attempted,
    ) -> Attempted {
        match self.tokens.renew(&claimed.key.installation_id, token).await {
            Ok(Renewed::Changed) => attempted.outcome = Outcome::TokenRefused,
            Ok(Renewed::Same) => {
                attempted.outcome = Outcome::TokenRefused;
                attempted.pause = Some((
                    PauseKind::Token,
                    "Vercel refuses its access token".to_owned(),
                ));
            }
            Err(error @ (TokenError::Refused { .. } | TokenError::Unusable)) => {
                attempted.outcome = Outcome::TokenRefused;
                attempted.pause = Some((PauseKind::Token, error.to_string()));
            }
            Err(error) => {
                attempted.outcome = Outcome::SourceUnavailable;
                attempted.problem = Some(error.to_string());
            }
        }
        attempted
    }

    /// Counts a request that is no delivery and leaves now.
    fn asks(&self, installation_id: &InstallationId) {
        self.pace.asks(installation_id, self.worlds.clock.now());
    }

    /// 404 or 410: the installation tells whether it is gone, or the resource alone.
    async fn missing(
        &self,
        claimed: &Claimed,
        token: &AccessToken,
        mut attempted: Attempted,
    ) -> Attempted {
        self.asks(&claimed.key.installation_id);
        let answer = self
            .worlds
            .marketplace
            .probe(token, &claimed.key.installation_id)
            .await;
        attempted.outcome = match classify(&answer, self.worlds.clock.now()) {
            Verdict::Acknowledged => Outcome::NotFound,
            Verdict::Missing => {
                attempted.pause = Some((
                    PauseKind::Gone,
                    "Vercel no longer knows the installation".to_owned(),
                ));
                Outcome::InstallationGone
            }
            Verdict::TokenRefused => return self.token_refused(claimed, token, attempted).await,
            Verdict::RateLimited { until } => {
                attempted.limit_until = Some(until);
                Outcome::RateLimited { until }
            }
            // The 404 changed nothing; what it means is found out later.
            _ => Outcome::Unreachable,
        };
        attempted
    }

    /// 409: what Vercel shows and what the source says now, before anything is concluded.
    async fn conflict(
        &self,
        claimed: &Claimed,
        token: &AccessToken,
        mut attempted: Attempted,
    ) -> Attempted {
        self.asks(&claimed.key.installation_id);
        let (answer, observed) = self.worlds.marketplace.observe(token, &claimed.key).await;
        let row = match self.read_row(&claimed.key).await {
            Ok(row) => row,
            Err(unavailable) => {
                attempted.outcome = unavailable.outcome;
                attempted.problem = unavailable.problem;
                return attempted;
            }
        };
        let unchanged = match row {
            Some(row) => row.desired(&self.key, self.settings.ignored) == claimed.desired,
            None => is_uninstallation(&claimed.desired),
        };
        let observed = observed.filter(|_| answer.status() == Some(200));
        attempted.outcome = if unchanged {
            Outcome::Conflict { observed }
        } else {
            Outcome::SourceMoved
        };
        attempted
    }
}

const fn reached(verdict: Verdict) -> Reached {
    match verdict {
        Verdict::Unsent | Verdict::Lost | Verdict::Failed => Reached::Failed,
        _ => Reached::Answered,
    }
}

fn source_unavailable(error: &TokenError) -> Attempted {
    Attempted::unsent(Outcome::SourceUnavailable, Some(error.to_string()))
}

fn answer_code(answer: &Answer) -> Option<String> {
    match &answer.kind {
        AnswerKind::Http { code, .. } => code.clone(),
        _ => None,
    }
}

fn attempt_record(
    method: &'static str,
    patch: &Patch,
    started_at: Timestamp,
    ended_at: Timestamp,
    answer: &Answer,
) -> AttemptRecord {
    let (code, message) = match &answer.kind {
        AnswerKind::Http { code, message, .. } => (code.clone(), message.clone()),
        _ => (None, None),
    };
    AttemptRecord {
        started_at,
        ended_at,
        method,
        fields: patch.fields().iter().collect(),
        secret_names: patch.secret_names().map(ToString::to_string).collect(),
        status: answer.status(),
        error_code: code
            .filter(|_| answer.error_code().is_some())
            .or(answer.error_code().map(str::to_owned)),
        message,
        vercel_id: answer.vercel_id.clone(),
    }
}

#[cfg(test)]
mod tests;
