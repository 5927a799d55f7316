//! The Marketplace API over HTTP: one request per call, addressed so that every id arrives byte for byte.
//!
//! Holds no token and no secret between calls; never logs what it sends.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use percent_encoding::utf8_percent_encode;
use reqwest::{Method, Url};
use tracing::error;

use crate::clock::Clock;
use crate::model::{
    AccessToken, InstallationId, Observed, Patch, ResourceId, ResourceKey, SecretSet,
};
use crate::plan::{Answer, AnswerKind, UnsentKind};

use super::exchange::{Content, Exchange, Wanted, bearer, request};
use super::scrub::{RESERVED, Scrubber};
use super::settings::{ClearNotification, ClientError, SecretsEndpoint, Settings, trusted_url};
use super::wire::{BodyError, patch_body, secrets_body};
use super::{Listed, Marketplace};

/// The most bytes of a resource that are read.
const RESOURCE_BYTES_MAX: usize = 1024 * 1024;
/// The most bytes of an installation's list that are read.
const LIST_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Vercel's Marketplace API.
pub struct HttpMarketplace {
    exchange: Exchange,
    base: Url,
    clear_notification: ClearNotification,
    secrets_endpoint: SecretsEndpoint,
}

/// Why a request could not even be built; nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The patch has no body.
    #[error("the body of the request could not be built")]
    Body(#[from] BodyError),
    /// The ids cannot be carried by a URL.
    #[error("the ids of {key} cannot be carried by a URL")]
    Path {
        /// The installation, or the resource in it.
        key: String,
    },
    /// The token cannot be carried by a header.
    #[error("the access token holds characters that no HTTP header can carry")]
    Token,
}

impl HttpMarketplace {
    /// A client of these settings; `clock` turns "in n seconds" into an instant.
    ///
    /// # Errors
    /// A setting cannot be used.
    pub fn new(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Self, ClientError> {
        let base = trusted_url("base_url", &settings.base_url)?;
        if base.query().is_some() {
            return Err(ClientError::Address {
                subject: "base_url",
                problem: "holds a query",
            });
        }
        Ok(Self {
            exchange: Exchange::new(settings, &base, clock)?,
            base,
            clear_notification: settings.clear_notification,
            secrets_endpoint: settings.secrets_endpoint,
        })
    }

    /// Like [`Marketplace::update`], with the faults of the caller's apart.
    ///
    /// # Errors
    /// The request could not be built; nothing was sent.
    pub async fn try_update(
        &self,
        token: &AccessToken,
        key: &ResourceKey,
        patch: &Patch,
        secrets: Option<&SecretSet>,
    ) -> Result<Answer, RequestError> {
        let url = self.url(&key.installation_id, Some(&key.resource_id))?;
        let (method, url, body) = match (&patch.secrets, self.secrets_endpoint) {
            (Some(secrets_patch), SecretsEndpoint::Put) if patch.values.is_empty() => {
                let mut url = url;
                url.set_path(&format!("{}/secrets", url.path()));
                (Method::PUT, url, secrets_body(secrets_patch, secrets)?)
            }
            _ => {
                let body = patch_body(patch, secrets, self.clear_notification)?;
                (Method::PATCH, url, body)
            }
        };
        let authorization = bearer(token).map_err(|_| RequestError::Token)?;
        let request = request(method, url, Some(authorization), Content::Json(body));
        let scrubber = Scrubber::new(token, secrets);
        let (answer, _) = self
            .exchange
            .send(request, &scrubber, Wanted::Nothing)
            .await;
        Ok(answer)
    }

    async fn get(
        &self,
        token: &AccessToken,
        installation_id: &InstallationId,
        resource_id: Option<&ResourceId>,
        wanted: Wanted,
    ) -> Result<(Answer, Option<super::wire::Body>), RequestError> {
        let url = self.url(installation_id, resource_id)?;
        let authorization = bearer(token).map_err(|_| RequestError::Token)?;
        let request = request(Method::GET, url, Some(authorization), Content::None);
        let scrubber = Scrubber::new(token, None);
        Ok(self.exchange.send(request, &scrubber, wanted).await)
    }

    fn url(
        &self,
        installation_id: &InstallationId,
        resource_id: Option<&ResourceId>,
    ) -> Result<Url, RequestError> {
        let encode = |id| utf8_percent_encode(id, RESERVED).to_string();
        let mut path = format!(
            "{}/v1/installations/{}/resources",
            self.base.path().trim_end_matches('/'),
            encode(installation_id.as_str())
        );
        if let Some(resource_id) = resource_id {
            path.push('/');
            path.push_str(&encode(resource_id.as_str()));
        }
        let mut url = self.base.clone();
        url.set_path(&path);
        if url.path() == path {
            return Ok(url);
        }
        // Ids that a URL parser would change were refused long ago; this is what stands behind that.
        let resource = resource_id.map_or("", ResourceId::as_str);
        let key = format!("{installation_id}/{resource}");
        Err(RequestError::Path { key })
    }
}

#[async_trait]
impl Marketplace for HttpMarketplace {
    async fn update(
        &self,
        token: &AccessToken,
        key: &ResourceKey,
        patch: &Patch,
        secrets: Option<&SecretSet>,
    ) -> Answer {
        self.try_update(token, key, patch, secrets)
            .await
            .unwrap_or_else(|error| unbuilt(&key.installation_id, &error))
    }

    async fn observe(&self, token: &AccessToken, key: &ResourceKey) -> (Answer, Option<Observed>) {
        let wanted = Wanted::Whole {
            bytes_max: RESOURCE_BYTES_MAX,
        };
        let (installation_id, resource_id) = (&key.installation_id, &key.resource_id);
        match self
            .get(token, installation_id, Some(resource_id), wanted)
            .await
        {
            Ok((answer, body)) => {
                let observed = body
                    .filter(|_| answer.status() == Some(200))
                    .and_then(|body| serde_json::from_slice(&body).ok())
                    .and_then(|body| Observed::from_body(&body));
                (answer, observed)
            }
            Err(error) => (unbuilt(installation_id, &error), None),
        }
    }

    async fn probe(&self, token: &AccessToken, installation_id: &InstallationId) -> Answer {
        match self
            .get(token, installation_id, None, Wanted::Nothing)
            .await
        {
            Ok((answer, _)) => answer,
            Err(error) => unbuilt(installation_id, &error),
        }
    }

    async fn list(
        &self,
        token: &AccessToken,
        installation_id: &InstallationId,
    ) -> (Answer, Option<Vec<Listed>>) {
        let wanted = Wanted::Whole {
            bytes_max: LIST_BYTES_MAX,
        };
        match self.get(token, installation_id, None, wanted).await {
            Ok((answer, body)) => {
                let listed = body
                    .filter(|_| answer.status() == Some(200))
                    .and_then(|body| read_list(&body));
                (answer, listed)
            }
            Err(error) => (unbuilt(installation_id, &error), None),
        }
    }
}

/// What `GET …/resources` lists; `None` when an entry cannot be told.
fn read_list(body: &[u8]) -> Option<Vec<Listed>> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let resources = body.get("resources")?.as_array()?;
    let listed = |resource: &serde_json::Value| {
        let name = resource.get("name").and_then(|name| name.as_str());
        Some(Listed {
            resource_id: ResourceId::new(resource.get("partnerId")?.as_str()?).ok()?,
            name: name.map(str::to_owned),
        })
    };
    resources.iter().map(listed).collect()
}

impl fmt::Debug for HttpMarketplace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpMarketplace")
            .field("origin", &self.base.origin().ascii_serialization())
            .field("clear_notification", &self.clear_notification)
            .field("secrets_endpoint", &self.secrets_endpoint)
            .finish_non_exhaustive()
    }
}

/// The answer to a request that could not be built.
///
/// A fault of this program, reported here because an answer has no place for it: what cannot be sent is told apart before.
fn unbuilt(installation_id: &InstallationId, error: &RequestError) -> Answer {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    error!(
        event = "vercel.request_not_built",
        %installation_id,
        %error,
        cause,
        "A request could not be built; nothing was sent"
    );
    Answer {
        kind: AnswerKind::Unsent(UnsentKind::Connect),
        vercel_id: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::clock::SystemClock;
    use crate::model::ResourceKey;

    fn marketplace(base_url: &str) -> HttpMarketplace {
        let settings = Settings {
            base_url: base_url.to_owned(),
            ..Settings::default()
        };
        HttpMarketplace::new(&settings, Arc::new(SystemClock)).expect("usable settings")
    }

    fn url(marketplace: &HttpMarketplace, installation: &str, resource: &str) -> String {
        let key = ResourceKey::new(installation, resource).expect("usable ids");
        marketplace
            .url(&key.installation_id, Some(&key.resource_id))
            .expect("a URL")
            .to_string()
    }

    #[test]
    fn ids_become_single_path_parts_behind_the_prefix() {
        let cases = [
            ("http://127.0.0.1:9", "http://127.0.0.1:9"),
            ("http://127.0.0.1:9/", "http://127.0.0.1:9"),
            ("http://127.0.0.1:9/a/b/", "http://127.0.0.1:9/a/b"),
        ];
        for (base, prefix) in cases {
            assert_eq!(
                url(&marketplace(base), "icfg_1", "../x?y#z %2e"),
                format!("{prefix}/v1/installations/icfg_1/resources/..%2Fx%3Fy%23z%20%252e")
            );
        }
    }

    #[test]
    fn neither_client_nor_error_prints_more_than_the_origin() {
        let marketplace = marketplace("http://127.0.0.1:9/s3cret-path");
        assert!(!format!("{marketplace:?}").contains("s3cret-path"));
        let refused = trusted_url("base_url", "http://user:passw0rd@host.test");
        let printed = format!("{refused:?} {}", refused.as_ref().expect_err("refused"));
        assert!(!printed.contains("passw0rd"), "{printed}");
    }

    static PREFIXED: LazyLock<HttpMarketplace> =
        LazyLock::new(|| marketplace("http://localhost:9/prefix"));

    proptest! {
        #[test]
        fn every_usable_id_is_carried_byte_for_byte(installation in "\\PC{1,20}", resource in "[./%\\\\a ?#]{1,6}") {
            let Ok(key) = ResourceKey::new(&installation, &resource) else {
                return Ok(());
            };
            let url = url(&PREFIXED, &installation, &resource);
            let parts: Vec<String> = url["http://localhost:9".len()..]
                .split('/')
                .map(|part| percent_encoding::percent_decode_str(part).decode_utf8().expect("UTF-8").into_owned())
                .collect();
            let expected = ["", "prefix", "v1", "installations", key.installation_id.as_str(), "resources", key.resource_id.as_str()];
            prop_assert_eq!(parts, expected);
        }
    }
}
