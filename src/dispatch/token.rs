//! Access tokens: read when needed, kept in memory only, read again when Vercel refuses one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use crate::model::{AccessToken, InstallationId};
use crate::planted::{Bug, is_planted};
use crate::source::{Source, SourceError};

/// The most tokens kept; past it the memory is emptied and filled again as needed.
const KEPT_MAX: usize = 50_000;
/// The most tokens that are read together.
const TOGETHER_MAX: usize = 256;

/// Where tokens come from.
#[async_trait]
pub trait TokenSource: Send + Sync {
    /// The installation's token now; `None` when there is none.
    ///
    /// # Errors
    /// It could not be read; worth another try later.
    async fn token(
        &self,
        installation_id: &InstallationId,
    ) -> Result<Option<AccessToken>, TokenError>;

    /// The installation's token after Vercel refused `refused`; equal to it when no other one will do.
    ///
    /// # Errors
    /// It could not be read; worth another try later.
    async fn renew(
        &self,
        installation_id: &InstallationId,
        _refused: &AccessToken,
    ) -> Result<Option<AccessToken>, TokenError> {
        self.token(installation_id).await
    }

    /// Those tokens of these installations that can be read together, as [`TokenSource::token`] would give them; where each has to be
    /// asked for by itself, none.
    ///
    /// # Errors
    /// They could not be read, not together.
    async fn tokens(
        &self,
        _installation_ids: &[InstallationId],
    ) -> Result<Vec<(InstallationId, AccessToken)>, TokenError> {
        Ok(Vec::new())
    }

    /// Whether it remembers tokens by itself, for as long as they last.
    fn remembers(&self) -> bool {
        false
    }
}

/// Why a token could not be read. Never holds one.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The source could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The authorization server gave none, and may give one later.
    #[error("the authorization server gave no token: {problem}")]
    Unavailable {
        /// What it said, in safe words.
        problem: String,
    },
    /// The authorization server refuses the installation a token.
    #[error("{problem}")]
    Refused {
        /// What it said, in safe words, as the reason of a pause.
        problem: String,
    },
    /// The source has one that cannot be sent ([`AccessToken::is_sendable`]).
    #[error(
        "its access token holds a line break or another character that no HTTP header can carry"
    )]
    Unusable,
}

/// Tokens from `[source] installations_query`.
pub struct InstallationsQuery(pub Arc<dyn Source>);

#[async_trait]
impl TokenSource for InstallationsQuery {
    async fn token(
        &self,
        installation_id: &InstallationId,
    ) -> Result<Option<AccessToken>, TokenError> {
        match self.0.token(installation_id).await? {
            Some(token) if !token.is_sendable() => Err(TokenError::Unusable),
            token => Ok(token),
        }
    }

    async fn tokens(
        &self,
        installation_ids: &[InstallationId],
    ) -> Result<Vec<(InstallationId, AccessToken)>, TokenError> {
        let mut tokens = self.0.tokens(installation_ids).await?;
        tokens.retain(|(_, token)| token.is_sendable());
        Ok(tokens)
    }
}

/// What reading a refused token again gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Renewed {
    /// Another token: worth a request.
    Changed,
    /// The same one, or none.
    Same,
}

/// The tokens in memory.
pub struct Tokens {
    origin: Arc<dyn TokenSource>,
    kept: Mutex<HashMap<InstallationId, AccessToken>>,
    /// How many are read together: no more than there was time for.
    together_max: AtomicUsize,
}

impl Tokens {
    /// Tokens from this origin; none is read yet.
    #[must_use]
    pub fn new(origin: Arc<dyn TokenSource>) -> Self {
        Self {
            origin,
            kept: Mutex::new(HashMap::new()),
            together_max: AtomicUsize::new(TOGETHER_MAX),
        }
    }

    /// Whether the installation's token is to be read first.
    pub(super) fn lacks(&self, installation_id: &InstallationId) -> bool {
        !self.origin.remembers() && self.kept(|kept| !kept.contains_key(installation_id))
    }

    /// Reads those tokens of these installations together that are not kept. One that is not among them then is read by itself once it is
    /// needed, which also tells why.
    pub(super) async fn read_together(&self, installation_ids: &[InstallationId]) {
        let lacking = installation_ids.iter().filter(|id| self.lacks(id));
        let lacking: Vec<InstallationId> = lacking.cloned().collect();
        let mut rest = &lacking[..];
        while !rest.is_empty() {
            let most = self.together_max.load(Ordering::Relaxed);
            let (asked, later) = rest.split_at(rest.len().min(most));
            rest = later;
            match self.origin.tokens(asked).await {
                Ok(read) => self.keep(read),
                Err(error) => {
                    if let TokenError::Source(SourceError::Timeout { .. }) = error {
                        // There is time enough for fewer.
                        let fewer = (asked.len() / 2).max(1);
                        self.together_max.fetch_min(fewer, Ordering::Relaxed);
                    }
                    return;
                }
            }
        }
    }

    fn keep(&self, read: Vec<(InstallationId, AccessToken)>) {
        self.kept(|kept| {
            if kept.len() + read.len() > KEPT_MAX {
                kept.clear();
            }
            for (installation_id, token) in read {
                // One that was read again meanwhile is newer.
                kept.entry(installation_id).or_insert(token);
            }
        });
    }

    pub(super) async fn get(
        &self,
        installation_id: &InstallationId,
    ) -> Result<Option<AccessToken>, TokenError> {
        if is_planted(Bug::ForeignToken)
            && let Some(token) = self.kept(|kept| kept.values().next().cloned())
        {
            return Ok(Some(token));
        }
        if let Some(token) = self.kept(|kept| kept.get(installation_id).cloned()) {
            return Ok(Some(token));
        }
        self.read(installation_id).await
    }

    /// Reads the token again after Vercel refused `refused`.
    pub(super) async fn renew(
        &self,
        id: &InstallationId,
        refused: &AccessToken,
    ) -> Result<Renewed, TokenError> {
        if self.kept(|kept| kept.get(id).is_some_and(|token| token != refused)) {
            // Another delivery has read it again already.
            return Ok(Renewed::Changed);
        }
        if is_planted(Bug::RefusedTokenKept) {
            return Ok(Renewed::Same);
        }
        let read = if self.origin.remembers() {
            self.origin.renew(id, refused).await?
        } else {
            self.read(id).await?
        };
        Ok(if read.is_some_and(|token| token != *refused) {
            Renewed::Changed
        } else {
            Renewed::Same
        })
    }

    async fn read(
        &self,
        installation_id: &InstallationId,
    ) -> Result<Option<AccessToken>, TokenError> {
        let token = self.origin.token(installation_id).await?;
        if self.origin.remembers() {
            return Ok(token);
        }
        self.kept(|kept| {
            if kept.len() >= KEPT_MAX {
                kept.clear();
            }
            match &token {
                Some(token) => kept.insert(installation_id.clone(), token.clone()),
                None => kept.remove(installation_id),
            }
        });
        Ok(token)
    }

    fn kept<T>(&self, work: impl FnOnce(&mut HashMap<InstallationId, AccessToken>) -> T) -> T {
        work(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests;
