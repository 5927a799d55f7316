//! Short-lived tokens from the authorization server, as dispatch wants them. Remembering them is dispatch's part.

use async_trait::async_trait;

use crate::dispatch::{TokenError, TokenSource};
use crate::model::{AccessToken, InstallationId};
use crate::vercel::TokenEndpoint;

/// Tokens of `[vercel.oauth]`.
pub(super) struct OauthTokens(pub(super) TokenEndpoint);

#[async_trait]
impl TokenSource for OauthTokens {
    async fn token(
        &self,
        installation_id: &InstallationId,
    ) -> Result<Option<AccessToken>, TokenError> {
        let granted = self.0.grant(installation_id).await;
        granted
            .map(|grant| Some(grant.token))
            .map_err(|error| TokenError::Unavailable {
                problem: error.to_string(),
            })
    }
}
