//! What an answer means: the table of verdicts.

use std::time::Duration;

use crate::model::Timestamp;
use crate::planted::{Bug, is_planted};

/// The outcome of one HTTP request as the client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What came back, or why nothing did.
    pub kind: AnswerKind,
    /// `X-Vercel-Id`: what Vercel's support asks for.
    pub vercel_id: Option<String>,
}

/// What came back, or why nothing did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerKind {
    /// An HTTP answer; its body may have been unreadable.
    Http {
        /// The status code.
        status: u16,
        /// `error.code` of the body, if there was one: only characters that are safe to print.
        code: Option<String>,
        /// `error.message` of the body, cut short and free of every secret that the request carried.
        message: Option<String>,
        /// `Retry-After`, as an instant.
        retry_after: Option<Timestamp>,
        /// `X-RateLimit-Reset`, as an instant.
        rate_limit_reset: Option<Timestamp>,
    },
    /// The request never left: no connection could be opened.
    Unsent(UnsentKind),
    /// The request may have arrived, but no HTTP answer came back.
    Lost(LostKind),
}

/// Why a request never left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnsentKind {
    /// The connection was refused, timed out or found no route.
    Connect,
    /// The name could not be resolved.
    Dns,
    /// TLS could not be established.
    Tls,
}

/// Why no answer came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostKind {
    /// No answer within `[vercel] request_timeout`.
    Timeout,
    /// The connection was closed or reset.
    Closed,
    /// What came back was no HTTP.
    NotHttp,
}

impl Answer {
    /// The status code, if an HTTP answer came.
    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        match self.kind {
            AnswerKind::Http { status, .. } => Some(status),
            _ => None,
        }
    }

    /// A short stable code of what went wrong, for logs and the attempt's history.
    #[must_use]
    pub fn error_code(&self) -> Option<&'static str> {
        Some(match self.kind {
            AnswerKind::Unsent(UnsentKind::Connect) => "connect",
            AnswerKind::Unsent(UnsentKind::Dns) => "dns",
            AnswerKind::Unsent(UnsentKind::Tls) => "tls",
            AnswerKind::Lost(LostKind::Timeout) => "timeout",
            AnswerKind::Lost(LostKind::Closed) => "closed",
            AnswerKind::Lost(LostKind::NotHttp) => "not_http",
            AnswerKind::Http { status, .. } => match status {
                200..=299 => return None,
                401 | 403 => "token_refused",
                404 | 410 => "not_found",
                409 => "conflict",
                400 | 422 => "rejected",
                429 => "rate_limited",
                500..=599 => "server_error",
                300..=399 => "redirect",
                _ => "refused",
            },
        })
    }
}

/// What an answer to a request means for the entry and its installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// 2xx: everything in the request is acknowledged.
    Acknowledged,
    /// The request never left; nothing is in doubt.
    Unsent,
    /// The answer was lost, or came from a gateway: in doubt, and it may still be applied late.
    Lost,
    /// Vercel failed by itself (500, 503, other 5xx): in doubt, but not late.
    Failed,
    /// 429: the installation waits until this instant.
    RateLimited {
        /// When to try again.
        until: Timestamp,
    },
    /// 409: look at the resource before trying again.
    Conflict,
    /// 401, 403: read the token again.
    TokenRefused,
    /// 404, 410: find out whether the installation or only the resource is gone.
    Missing,
    /// 400, 422: send field by field.
    Rejected,
    /// 3xx or another 4xx: no retry can change it.
    Refused,
}

/// The shortest wait after a 429 that says nothing usable.
pub const RATE_LIMIT_WAIT_DEFAULT: Duration = Duration::from_secs(5);
/// The longest wait that a 429 may ask for; what asks for more is taken for a mistake.
pub const RATE_LIMIT_WAIT_MAX: Duration = Duration::from_secs(15 * 60);
/// The shortest wait after any 429, so that `Retry-After: 0` is no busy loop.
pub const RATE_LIMIT_WAIT_MIN: Duration = Duration::from_secs(1);

/// The verdict on an answer to a PATCH, a PUT or a probe that ended at `now`.
#[must_use]
pub fn classify(answer: &Answer, now: Timestamp) -> Verdict {
    match answer.kind {
        AnswerKind::Unsent(_) => Verdict::Unsent,
        AnswerKind::Lost(_) => Verdict::Lost,
        AnswerKind::Http {
            status,
            retry_after,
            rate_limit_reset,
            ..
        } => match status {
            200..=299 => Verdict::Acknowledged,
            429 => Verdict::RateLimited {
                until: wait_until(retry_after.or(rate_limit_reset), now),
            },
            409 => Verdict::Conflict,
            401 | 403 => Verdict::TokenRefused,
            404 | 410 => Verdict::Missing,
            400 | 422 => Verdict::Rejected,
            300..=499 => Verdict::Refused,
            // A gateway answers for a server that may still be working on the request.
            502 | 504 if !is_planted(Bug::GatewayTakenForServer) => Verdict::Lost,
            500..=599 => Verdict::Failed,
            // No final answer of HTTP at all.
            _ => Verdict::Lost,
        },
    }
}

fn wait_until(asked: Option<Timestamp>, now: Timestamp) -> Timestamp {
    let asked = asked.unwrap_or(now.plus(RATE_LIMIT_WAIT_DEFAULT));
    if is_planted(Bug::RetryAfterUnclamped) {
        return asked;
    }
    asked.clamp(now.plus(RATE_LIMIT_WAIT_MIN), now.plus(RATE_LIMIT_WAIT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000_000);

    fn http(
        status: u16,
        retry_after: Option<Timestamp>,
        rate_limit_reset: Option<Timestamp>,
    ) -> Verdict {
        let kind = AnswerKind::Http {
            status,
            code: None,
            message: None,
            retry_after,
            rate_limit_reset,
        };
        classify(
            &Answer {
                kind,
                vercel_id: None,
            },
            NOW,
        )
    }

    #[test]
    fn every_status_has_the_verdict_of_the_table() {
        for status in 100..=599 {
            let expected = match status {
                100..=199 | 502 | 504 => Verdict::Lost,
                200..=299 => Verdict::Acknowledged,
                400 | 422 => Verdict::Rejected,
                401 | 403 => Verdict::TokenRefused,
                404 | 410 => Verdict::Missing,
                409 => Verdict::Conflict,
                429 => Verdict::RateLimited {
                    until: NOW.plus(RATE_LIMIT_WAIT_DEFAULT),
                },
                300..=499 => Verdict::Refused,
                _ => Verdict::Failed,
            };
            assert_eq!(http(status, None, None), expected, "{status}");
        }
    }

    #[test]
    fn every_answer_has_the_code_that_histories_show() {
        let answer = |kind| Answer {
            kind,
            vercel_id: None,
        };
        let of_status = |status| {
            let kind = AnswerKind::Http {
                status,
                code: None,
                message: None,
                retry_after: None,
                rate_limit_reset: None,
            };
            answer(kind)
        };
        for status in 100..=599 {
            let expected = match status {
                200..=299 => None,
                300..=399 => Some("redirect"),
                400 | 422 => Some("rejected"),
                401 | 403 => Some("token_refused"),
                404 | 410 => Some("not_found"),
                409 => Some("conflict"),
                429 => Some("rate_limited"),
                500..=599 => Some("server_error"),
                _ => Some("refused"),
            };
            assert_eq!(of_status(status).error_code(), expected, "{status}");
            assert_eq!(of_status(status).status(), Some(status));
        }
        let others = [
            (AnswerKind::Unsent(UnsentKind::Connect), "connect"),
            (AnswerKind::Unsent(UnsentKind::Dns), "dns"),
            (AnswerKind::Unsent(UnsentKind::Tls), "tls"),
            (AnswerKind::Lost(LostKind::Timeout), "timeout"),
            (AnswerKind::Lost(LostKind::Closed), "closed"),
            (AnswerKind::Lost(LostKind::NotHttp), "not_http"),
        ];
        for (kind, code) in others {
            assert_eq!(answer(kind.clone()).error_code(), Some(code));
            assert_eq!(answer(kind).status(), None);
        }
    }

    #[test]
    fn an_absurd_rate_limit_is_clamped() {
        let after = |seconds: i64| Some(Timestamp::from_millis(NOW.as_millis() + seconds * 1000));
        let cases = [
            (after(30), None, 30),
            (None, after(40), 40),
            (after(30), after(40), 30),
            (after(0), None, 1),
            (after(-86_400), None, 1),
            (after(86_400), None, 900),
            (None, after(i64::MAX / 2000), 900),
            (None, None, 5),
        ];
        for (retry_after, reset, seconds) in cases {
            let until = NOW.plus(Duration::from_secs(seconds));
            assert_eq!(
                http(429, retry_after, reset),
                Verdict::RateLimited { until }
            );
        }
    }

    #[test]
    fn a_request_that_never_left_is_told_from_one_whose_answer_was_lost() {
        let verdict = |kind| {
            classify(
                &Answer {
                    kind,
                    vercel_id: None,
                },
                NOW,
            )
        };
        for kind in [UnsentKind::Connect, UnsentKind::Dns, UnsentKind::Tls] {
            assert_eq!(verdict(AnswerKind::Unsent(kind)), Verdict::Unsent);
        }
        for kind in [LostKind::Timeout, LostKind::Closed, LostKind::NotHttp] {
            assert_eq!(verdict(AnswerKind::Lost(kind)), Verdict::Lost);
        }
    }
}
