//! Short-lived tokens from an OAuth 2.0 authorization server: the `client_credentials` grant (RFC 6749, section 4.4).
//!
//! Asks once per call; caching, refreshing and waiting are the caller's. Neither the client's secret nor a token is printed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::utf8_percent_encode;
use reqwest::{Method, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::model::{AccessToken, InstallationId};
use crate::plan::{Answer, AnswerKind};

use super::exchange::{Content, Exchange, Wanted, request};
use super::scrub::{RESERVED, Scrubber};
use super::settings::{ClientError, Settings, trusted_url};
use super::wire::Body;

/// The most bytes of a grant that are read.
const GRANT_BYTES_MAX: usize = 64 * 1024;
/// What stands for the installation in the values of a form.
const INSTALLATION: &str = "{installation_id}";

/// The settings of the authorization server; `Debug` does not show the client's secret.
#[derive(Debug, Clone)]
pub struct OauthSettings {
    /// Where tokens are granted: https, or http on loopback.
    pub token_url: String,
    /// The integration's client id.
    pub client_id: String,
    /// The integration's client secret.
    pub client_secret: SecretString,
    /// Further entries of the form; `{installation_id}` in a value stands for the installation.
    pub form: BTreeMap<String, String>,
}

/// Grants one token per installation.
pub struct TokenEndpoint {
    exchange: Exchange,
    url: Url,
    client_id: String,
    client_secret: SecretString,
    form: BTreeMap<String, String>,
}

/// A token and how long it may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The token.
    pub token: AccessToken,
    /// How long it is valid from now; the server may not say.
    pub expires_in: Option<Duration>,
}

/// Why no token was granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The server refused: another try would be refused too.
    #[error("the authorization server refused a token with status {status}")]
    Refused {
        /// 400, 401, 403 or another 4xx but 408 and 429.
        status: u16,
        /// The server's own code, for instance `invalid_client`.
        code: Option<String>,
    },
    /// The server did not answer, or not for good.
    #[error("the authorization server gave no token{}", because(answer))]
    Unavailable {
        /// What came back, with how long to wait if the server said so.
        answer: Answer,
    },
    /// The server answered 2xx without a bearer token that could be used.
    #[error("the authorization server answered {status} without a usable bearer token")]
    Unusable {
        /// The status.
        status: u16,
    },
}

impl TokenEndpoint {
    /// An endpoint that is reached with the timeouts, the proxy and the certificate authorities of `settings`.
    ///
    /// # Errors
    /// A setting cannot be used.
    pub fn new(
        oauth: OauthSettings,
        settings: &Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ClientError> {
        let OauthSettings {
            token_url,
            client_id,
            client_secret,
            form,
        } = oauth;
        let url = trusted_url("token_url", &token_url)?;
        Ok(Self {
            exchange: Exchange::new(settings, &url, clock)?,
            url,
            client_id,
            client_secret,
            form,
        })
    }

    /// Asks for a token of one installation.
    ///
    /// # Errors
    /// The server refused, or gave no usable answer.
    pub async fn grant(&self, installation_id: &InstallationId) -> Result<Grant, GrantError> {
        let body = Content::Form(self.form_body(installation_id));
        let request = request(Method::POST, self.url.clone(), None, body);
        let scrubber = Scrubber::of([self.client_secret.expose_secret()]);
        let wanted = Wanted::Whole {
            bytes_max: GRANT_BYTES_MAX,
        };
        let (answer, body) = self.exchange.send(request, &scrubber, wanted).await;
        match answer.kind {
            AnswerKind::Http { status, .. } if (200..300).contains(&status) => body
                .and_then(|body| read_grant(&body))
                .ok_or(GrantError::Unusable { status }),
            AnswerKind::Http { status, code, .. }
                if (400..500).contains(&status) && !matches!(status, 408 | 429) =>
            {
                Err(GrantError::Refused { status, code })
            }
            kind => {
                let vercel_id = answer.vercel_id;
                let answer = Answer { kind, vercel_id };
                Err(GrantError::Unavailable { answer })
            }
        }
    }

    fn form_body(&self, installation_id: &InstallationId) -> Body {
        let secret = self.client_secret.expose_secret();
        let further = |(name, value): (&String, &String)| {
            (
                name.clone(),
                value.replace(INSTALLATION, installation_id.as_str()),
            )
        };
        let entries: Vec<(String, String)> = self.form.iter().map(further).collect();
        let own = [
            ("grant_type", "client_credentials"),
            ("client_id", self.client_id.as_str()),
            ("client_secret", secret),
        ];
        let all = || {
            let entries = entries
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()));
            own.into_iter().chain(entries)
        };
        let size = all()
            .map(|(name, value)| 3 * (name.len() + value.len()) + 2)
            .sum();
        // Large enough from the start, so that no copy of the secret stays behind.
        let mut body = Zeroizing::new(Vec::with_capacity(size));
        for (index, (name, value)) in all().enumerate() {
            if index > 0 {
                body.push(b'&');
            }
            push_encoded(&mut body, name);
            body.push(b'=');
            push_encoded(&mut body, value);
        }
        body
    }
}

impl fmt::Debug for TokenEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenEndpoint")
            .field("origin", &self.url.origin().ascii_serialization())
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

fn push_encoded(body: &mut Body, text: &str) {
    for part in utf8_percent_encode(text, RESERVED) {
        body.extend_from_slice(part.as_bytes());
    }
}

#[derive(Deserialize)]
struct GrantBody<'a> {
    #[serde(borrow)]
    access_token: Cow<'a, str>,
    #[serde(default)]
    token_type: Option<String>,
    #[serde(default)]
    expires_in: Option<Value>,
}

fn read_grant(body: &[u8]) -> Option<Grant> {
    let GrantBody {
        access_token,
        token_type,
        expires_in,
    } = serde_json::from_slice(body).ok()?;
    let is_bearer = token_type.is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"));
    let is_token =
        !access_token.is_empty() && access_token.bytes().all(|byte| byte.is_ascii_graphic());
    let token = AccessToken::new(&access_token);
    if let Cow::Owned(copy) = access_token {
        drop(Zeroizing::new(copy));
    }
    (is_bearer && is_token).then(|| Grant {
        token,
        expires_in: expires_in.as_ref().and_then(lifetime),
    })
}

/// Seconds as a number, or as text that holds one; a token that has expired already lives for zero.
fn lifetime(value: &Value) -> Option<Duration> {
    let seconds: f64 = match value {
        Value::Number(number) => number.to_string().parse().ok()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    if seconds.is_nan() {
        return None;
    }
    Some(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
}

fn because(answer: &Answer) -> String {
    match (answer.status(), answer.error_code()) {
        (Some(status), _) => format!(": status {status}"),
        (None, Some(code)) => format!(": {code}"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_read_with_or_without_its_lifetime() {
        let cases = [
            (
                r#"{"access_token":"t0k","expires_in":3600}"#,
                Some(Some(3600)),
            ),
            (
                r#"{"access_token":"t0k","token_type":"Bearer","expires_in":"60"}"#,
                Some(Some(60)),
            ),
            (
                r#"{"access_token":"t0k","token_type":"bearer","expires_in":null,"x":1}"#,
                Some(None),
            ),
            (r#"{"access_token":"t0k","expires_in":-5}"#, Some(Some(0))),
            (r#"{"access_token":"t\u0030k"}"#, Some(None)),
            (r#"{"access_token":"t0k","token_type":"mac"}"#, None),
            (r#"{"access_token":""}"#, None),
            (r#"{"access_token":"a b"}"#, None),
            (r#"{"access_token":7}"#, None),
            (r"{}", None),
            ("", None),
            ("[]", None),
        ];
        for (body, expected) in cases {
            let expected = expected.map(|seconds| Grant {
                token: AccessToken::new("t0k"),
                expires_in: seconds.map(Duration::from_secs),
            });
            assert_eq!(read_grant(body.as_bytes()), expected, "{body}");
        }
        let endless = read_grant(br#"{"access_token":"t0k","expires_in":1e400}"#);
        assert_eq!(endless.expect("a grant").expires_in, Some(Duration::MAX));
    }
}
