//! Vercel's Marketplace API, as the dispatcher sees it.

use async_trait::async_trait;

use crate::model::{AccessToken, InstallationId, Observed, Patch, ResourceKey, SecretSet};
use crate::plan::Answer;

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
}
