//! Vercel's Marketplace API, as the dispatcher sees it.
//!
//! One call is one HTTP request: nothing here retries, follows a redirect, or decides what an answer means. No token and no
//! secret's value leaves but in the request itself.

mod answer;
mod client;
mod exchange;
mod oauth;
mod scrub;
mod settings;
mod wire;

use async_trait::async_trait;

use crate::model::{
    AccessToken, InstallationId, Observed, Patch, ResourceId, ResourceKey, SecretSet,
};
use crate::plan::Answer;

#[cfg(any(test, fuzzing))]
pub(crate) use answer::fuzz::read_answer;
pub use client::{HttpMarketplace, RequestError};
pub use oauth::{Grant, GrantError, OauthSettings, TokenEndpoint};
pub use settings::{ClearNotification, ClientError, SecretsEndpoint, Settings, USER_AGENT};
pub use wire::BodyError;
#[cfg(any(test, fuzzing))]
pub(crate) use wire::fuzz::body_of;

/// Sends single requests; never retries, never follows a redirect, never decides what an answer means.
#[async_trait]
pub trait Marketplace: Send + Sync {
    /// `PATCH …/resources/{id}` with `patch`; `secrets` holds the values of the secrets that it names.
    async fn update(
        &self,
        token: &AccessToken,
        key: &ResourceKey,
        patch: &Patch,
        secrets: Option<&SecretSet>,
    ) -> Answer;

    /// `GET …/resources/{id}`; what it shows comes with a 200 whose body could be read.
    async fn observe(&self, token: &AccessToken, key: &ResourceKey) -> (Answer, Option<Observed>);

    /// `GET …/resources`: tells whether the installation exists and accepts the token.
    async fn probe(&self, token: &AccessToken, installation_id: &InstallationId) -> Answer;

    /// `GET …/resources` with what it lists; `None` when the answer is no 200 or its list could not be read whole.
    async fn list(
        &self,
        token: &AccessToken,
        installation_id: &InstallationId,
    ) -> (Answer, Option<Vec<Listed>>) {
        (self.probe(token, installation_id).await, None)
    }
}

/// A resource as the list of its installation shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The provider's id.
    pub resource_id: ResourceId,
    /// Its name at Vercel.
    pub name: Option<String>,
}
