//! What becomes of one request: whether it arrives, takes effect, and what comes back when.

use std::time::Duration;

use crate::model::{Patch, ResourceKey, Timestamp};
use crate::plan::{AnswerKind, LostKind, UnsentKind};

use super::remote::Truth;
use super::world::World;

/// What is to happen to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is answered as it deserves.
    Processed,
    Unsent,
    /// The connection breaks before an answer.
    Dropped(Effect),
    /// No answer comes in time.
    Timeout(Effect),
    /// 502 or 504.
    Gateway(Effect),
    /// 500 or 503; never late.
    ServerError(Effect),
    RateLimited,
    /// 429 that asks for so long a wait.
    RateLimitedFor(Duration),
    Conflict,
    Rejected,
    Refused,
    Unauthorized,
}

/// Whether and when a request without a good answer takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Never,
    /// Before the client gives up.
    InTime,
    /// After that, at the last instant possible or somewhere before it.
    Late,
    /// At the last instant possible.
    Latest,
}

/// The answer to come.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    /// How long it takes.
    pub(super) after: Duration,
    pub(super) kind: AnswerKind,
    /// When the request takes effect.
    pub(super) applies: Option<Duration>,
    /// What is true when the answer is there.
    pub(super) truth: Truth,
}

impl World {
    /// The fate of a request that leaves now.
    pub(super) fn fate(&mut self) -> Fate {
        if let Some(fate) = self.script.pop_front() {
            return fate;
        }
        if self.now() < self.remote.down_until {
            let effect = self.effect();
            return *self.chance.pick(&[
                Fate::Unsent,
                Fate::Timeout(effect),
                Fate::ServerError(Effect::Never),
                Fate::Gateway(Effect::Never),
            ]);
        }
        if !self.stormy {
            return Fate::Processed;
        }
        let rates = self.climate.rates;
        let effect = self.effect();
        let fates = [
            (rates.unsent, Fate::Unsent),
            (rates.dropped, Fate::Dropped(effect)),
            (rates.timeout, Fate::Timeout(effect)),
            (rates.gateway, Fate::Gateway(effect)),
            (rates.server_error, Fate::ServerError(effect)),
            (rates.rate_limited, Fate::RateLimited),
            (rates.conflict, Fate::Conflict),
            (rates.rejected, Fate::Rejected),
            (rates.refused, Fate::Refused),
            (rates.unauthorized, Fate::Unauthorized),
        ];
        for (rate, fate) in fates {
            if self.chance.per_mille(rate) {
                return fate;
            }
        }
        Fate::Processed
    }

    fn effect(&mut self) -> Effect {
        *self
            .chance
            .pick(&[Effect::Never, Effect::InTime, Effect::Late])
    }

    /// The status that a request deserves: what is true of its token, its installation, its resource and its values.
    pub(super) fn deserved(&self, token: &str, key: &ResourceKey, patch: Option<&Patch>) -> u16 {
        let Some(installation) = self.remote.installations.get(&key.installation_id) else {
            return 404;
        };
        if installation.gone {
            return 404;
        }
        if installation.token != token {
            return 401;
        }
        let gone = self.remote.resources.get(key).is_none_or(|held| held.gone);
        match patch {
            _ if gone => 410,
            Some(patch)
                if patch
                    .values
                    .values()
                    .any(|v| v.as_str().contains("unacceptable")) =>
            {
                400
            }
            _ => 200,
        }
    }

    /// Turns a fate into what the client and Vercel see of it.
    pub(super) fn reply(&mut self, fate: Fate, deserved: u16) -> Reply {
        let timeout = self.climate.dispatch.request_timeout;
        let after = self.answer_time();
        let http = |status| http(status, None, None);
        let plain = |kind, truth| Reply {
            after,
            kind,
            applies: None,
            truth,
        };
        match fate {
            Fate::Processed if deserved == 200 => Reply {
                after,
                kind: http(200),
                applies: Some(self.chance.duration(Duration::ZERO, after)),
                truth: Truth::Acknowledged,
            },
            Fate::Processed => plain(http(deserved), Truth::Harmless),
            Fate::Unsent => {
                let kinds = [UnsentKind::Connect, UnsentKind::Dns, UnsentKind::Tls];
                plain(
                    AnswerKind::Unsent(*self.chance.pick(&kinds)),
                    Truth::Harmless,
                )
            }
            Fate::Dropped(effect) => {
                let kind = *self.chance.pick(&[LostKind::Closed, LostKind::NotHttp]);
                self.lost(AnswerKind::Lost(kind), after, effect, deserved)
            }
            Fate::Timeout(effect) => {
                let kind = AnswerKind::Lost(LostKind::Timeout);
                self.lost(kind, timeout, effect, deserved)
            }
            Fate::Gateway(effect) => {
                let kind = http(*self.chance.pick(&[502, 504]));
                self.lost(kind, after, effect, deserved)
            }
            Fate::ServerError(effect) => {
                let effect = match effect {
                    Effect::Late | Effect::Latest => Effect::InTime,
                    effect => effect,
                };
                let kind = http(*self.chance.pick(&[500, 503, 599]));
                let mut reply = self.lost(kind, after, effect, deserved);
                reply.truth = Truth::Failed;
                reply
            }
            Fate::RateLimited => {
                let (retry_after, reset) = self.waits();
                plain(self::http(429, retry_after, reset), Truth::Harmless)
            }
            Fate::RateLimitedFor(wait) => {
                let until = self.now().plus(wait);
                plain(self::http(429, Some(until), None), Truth::Harmless)
            }
            Fate::Conflict => plain(http(409), Truth::Harmless),
            Fate::Rejected => plain(http(*self.chance.pick(&[400, 422])), Truth::Harmless),
            Fate::Refused => plain(http(*self.chance.pick(&[301, 402, 418])), Truth::Harmless),
            Fate::Unauthorized => plain(http(*self.chance.pick(&[401, 403])), Truth::Harmless),
        }
    }

    fn lost(&mut self, kind: AnswerKind, after: Duration, effect: Effect, deserved: u16) -> Reply {
        let late_apply = self.climate.dispatch.retry.late_apply;
        let last = after + late_apply;
        let applies = match effect {
            _ if deserved != 200 => None,
            Effect::Never => None,
            Effect::InTime => Some(self.chance.duration(Duration::ZERO, after)),
            // The last instant is the one that a careless bound forgets.
            Effect::Latest => Some(last),
            Effect::Late if self.chance.one_in(3) => Some(last),
            Effect::Late => Some(self.chance.duration(after, last)),
        };
        let until = self.now().plus(last);
        Reply {
            after,
            kind,
            applies,
            truth: Truth::Unknown { until },
        }
    }

    /// How long a request takes to be answered.
    pub(super) fn answer_time(&mut self) -> Duration {
        let slow = self.climate.rates.slow_answer;
        let most = if self.strikes(slow) {
            self.climate.dispatch.request_timeout - Duration::from_millis(1)
        } else {
            Duration::from_millis(200)
        };
        self.chance.duration(Duration::from_millis(1), most)
    }

    /// What a 429 asks for, strange things included.
    fn waits(&mut self) -> (Option<Timestamp>, Option<Timestamp>) {
        let now = self.now();
        let short = now.plus(Duration::from_secs(self.chance.between(1, 20)));
        let ever = now.plus(Duration::from_secs(10 * 365 * 24 * 3600));
        let past = now.minus(Duration::from_secs(3600));
        if self.stormy && self.chance.one_in(20) {
            // Seldom: each takes a quarter of an hour, in which little else happens.
            let long = now.plus(Duration::from_secs(1000));
            return *self
                .chance
                .pick(&[(Some(long), None), (Some(ever), Some(short))]);
        }
        *self.chance.pick(&[
            (None, None),
            (Some(short), None),
            (Some(short), Some(past)),
            (None, Some(short)),
            (Some(now), None),
            (Some(past), None),
            (None, Some(Timestamp::EPOCH)),
        ])
    }
}

pub(super) fn http(
    status: u16,
    retry_after: Option<Timestamp>,
    rate_limit_reset: Option<Timestamp>,
) -> AnswerKind {
    AnswerKind::Http {
        status,
        code: None,
        message: None,
        retry_after,
        rate_limit_reset,
    }
}
