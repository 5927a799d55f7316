//! What the simulator sends back: an answer, or the end of the connection.

use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::fault::RetryAfter;
use super::flight::Flight;
use super::remote::{Hold, Remote};
use super::world::Quota;

/// A body of any kind; it cannot fail.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The bytes of one piece of a huge body.
const PIECE: usize = 16 * 1024;

/// Ends the connection instead of answering.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the connection is closed on purpose")]
pub(super) struct Cut {
    /// Raw bytes to write before the end.
    pub(super) last_words: Vec<u8>,
}

impl Cut {
    pub(super) fn silent() -> Self {
        Self {
            last_words: Vec::new(),
        }
    }

    pub(super) fn not_http() -> Self {
        Self {
            last_words: b"\x16\x03\x01 220 mail.example.com ESMTP\r\n\r\n".to_vec(),
        }
    }
}

/// A status, headers and a JSON body.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Option<Value>,
}

impl Answer {
    pub(super) fn new(status: u16, body: Value) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Some(body),
        }
    }

    pub(super) fn no_content() -> Self {
        Self {
            status: 204,
            headers: Vec::new(),
            body: None,
        }
    }

    /// An error in the API's shape.
    pub(super) fn error(status: u16, message: impl Into<String>) -> Self {
        let code = match status {
            400 => "bad_request",
            401 => "unauthorized",
            403 => "forbidden",
            404 => "not_found",
            405 => "method_not_allowed",
            409 => "conflict",
            410 => "gone",
            413 => "payload_too_large",
            415 => "unsupported_media_type",
            422 => "unprocessable_entity",
            429 => "rate_limited",
            500 => "internal_server_error",
            502 => "bad_gateway",
            503 => "service_unavailable",
            504 => "gateway_timeout",
            _ => "error",
        };
        let message = message.into();
        Self::new(status, json!({"error": {"code": code, "message": message}}))
    }

    pub(super) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// A 429 that says this much of when to come back.
    pub(super) fn rate_limited(retry_after: RetryAfter, now: SystemTime) -> Self {
        let answer = Self::error(429, "Too many requests");
        let ahead = |seconds| now + Duration::from_secs(seconds);
        match retry_after {
            RetryAfter::Seconds(seconds) => answer.header("retry-after", seconds),
            RetryAfter::HttpDate(seconds) => {
                answer.header("retry-after", httpdate::fmt_http_date(ahead(seconds)))
            }
            RetryAfter::Reset(seconds) => answer
                .header("x-ratelimit-limit", 100)
                .header("x-ratelimit-remaining", 0)
                .header("x-ratelimit-reset", epoch_seconds(ahead(seconds))),
            // An instant where a span belongs: some 130 years.
            RetryAfter::Absurd => answer.header("retry-after", 4_102_444_800_u64),
            RetryAfter::None => answer,
        }
    }

    /// Adds what the API says of the rate limit.
    pub(super) fn with_quota(self, quota: Option<Quota>) -> Self {
        let Some(quota) = quota else {
            return self;
        };
        self.header("x-ratelimit-limit", quota.limit)
            .header("x-ratelimit-remaining", quota.remaining)
            .header("x-ratelimit-reset", epoch_seconds(quota.reset))
    }

    /// The whole answer at once.
    pub(super) fn into_response(self, vercel_id: &str) -> Response<Body> {
        let bytes = self.bytes();
        self.head(vercel_id, Full::new(bytes).boxed_unsync())
    }

    /// The answer with its body in single bytes; the flight lasts until the last one.
    pub(super) fn into_slow_response(
        self,
        vercel_id: &str,
        remote: &Remote,
        pause: Duration,
        flight: Option<Flight>,
    ) -> Response<Body> {
        let bytes = self.bytes();
        let pieces = Slow {
            bytes,
            hold: remote.hold(),
            flight,
        };
        let body = stream::unfold(pieces, move |mut slow| async move {
            if slow.bytes.is_empty() {
                if let Some(flight) = slow.flight.take() {
                    flight.land();
                }
                return None;
            }
            slow.hold.wait(Some(pause)).await;
            let piece = slow.bytes.split_to(1);
            Some((Ok(Frame::data(piece)), slow))
        });
        self.head(vercel_id, StreamBody::new(body).boxed_unsync())
    }

    /// The answer with a body of about this many bytes.
    pub(super) fn into_huge_response(self, vercel_id: &str, bytes: u64) -> Response<Body> {
        let opening = Bytes::from_static(b"{\"name\":\"");
        let pieces = bytes / PIECE as u64;
        let filling = Bytes::from(vec![b'x'; PIECE]);
        let body = std::iter::once(opening)
            .chain((0..pieces).map(move |_| filling.clone()))
            .chain(std::iter::once(Bytes::from_static(b"\"}")))
            .map(|piece| Ok(Frame::data(piece)));
        self.head(
            vercel_id,
            StreamBody::new(stream::iter(body)).boxed_unsync(),
        )
    }

    /// The answer's head and the first half of its body.
    pub(super) fn truncated(&self, vercel_id: &str) -> Cut {
        let bytes = self.bytes();
        let mut last_words = format!(
            "HTTP/1.1 {} Answer\r\ncontent-type: application/json\r\nx-vercel-id: {vercel_id}\r\n\
             content-length: {}\r\n\r\n",
            self.status,
            bytes.len()
        )
        .into_bytes();
        last_words.extend_from_slice(&bytes[..bytes.len() / 2]);
        Cut { last_words }
    }

    fn bytes(&self) -> Bytes {
        self.body
            .as_ref()
            .map(|body| Bytes::from(body.to_string()))
            .unwrap_or_default()
    }

    fn head(self, vercel_id: &str, body: Body) -> Response<Body> {
        let mut response = Response::new(body);
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        if self.body.is_some() {
            headers.insert(
                hyper::header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
        }
        let id = ("x-vercel-id".to_owned(), vercel_id.to_owned());
        for (name, value) in self.headers.into_iter().chain([id]) {
            // A header that HTTP cannot carry is one that nobody can be sent.
            if let (Ok(name), Ok(value)) = (
                HeaderName::try_from(name.as_str()),
                HeaderValue::try_from(value.as_str()),
            ) {
                headers.insert(name, value);
            }
        }
        response
    }
}

struct Slow {
    bytes: Bytes,
    hold: Hold,
    flight: Option<Flight>,
}

/// Epoch seconds, rounded up: at that second the window is over.
fn epoch_seconds(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() + u64::from(since.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_code_of_its_status_in_the_shape_of_the_api() {
        for (status, code) in [
            (400, "bad_request"),
            (401, "unauthorized"),
            (403, "forbidden"),
            (404, "not_found"),
            (405, "method_not_allowed"),
            (409, "conflict"),
            (410, "gone"),
            (413, "payload_too_large"),
            (415, "unsupported_media_type"),
            (422, "unprocessable_entity"),
            (429, "rate_limited"),
            (500, "internal_server_error"),
            (502, "bad_gateway"),
            (503, "service_unavailable"),
            (504, "gateway_timeout"),
            (418, "error"),
        ] {
            let answer = Answer::error(status, "why");
            assert_eq!(answer.status, status);
            let body = answer.body.expect("a body");
            assert_eq!(
                body,
                json!({"error": {"code": code, "message": "why"}}),
                "{status}"
            );
        }
    }
}
