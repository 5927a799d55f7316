//! Which token opens which installation.
//!
//! Keeps hashes only: a token shows in no `Debug` output and cannot be read back.

use std::collections::HashMap;
use std::time::SystemTime;

use secrecy::{ExposeSecret, SecretString};

use super::world::Absence;

/// Every token ever granted, revoked ones included.
#[derive(Debug, Default)]
pub struct Tokens {
    grants: HashMap<blake3::Hash, Grant>,
}

/// Why a request was not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// No bearer token was sent.
    #[error("the request has no bearer token")]
    MissingToken,
    /// Nobody was granted this token.
    #[error("the token is not valid")]
    UnknownToken,
    /// It was granted and taken back.
    #[error("the token was revoked")]
    RevokedToken,
    /// Its lifetime is over.
    #[error("the token has expired")]
    ExpiredToken,
    /// It opens another installation.
    #[error("the token belongs to installation {owner}")]
    ForeignToken {
        /// The installation it opens.
        owner: String,
    },
    /// The installation is no longer there.
    #[error("the installation is no longer there")]
    Uninstalled(Absence),
}

impl Denial {
    /// The status that says so.
    pub fn status(&self) -> u16 {
        match self {
            Self::MissingToken | Self::UnknownToken | Self::RevokedToken | Self::ExpiredToken => {
                401
            }
            Self::ForeignToken { .. } => 403,
            Self::Uninstalled(absence) => absence.status(),
        }
    }
}

impl Tokens {
    /// Lets a token open an installation, until it expires or is revoked.
    pub fn grant(&mut self, installation: &str, token: &SecretString, expires: Option<SystemTime>) {
        self.grants.insert(
            digest(token),
            Grant {
                installation: installation.to_owned(),
                expires,
                revoked: false,
            },
        );
    }

    /// Takes back every token of an installation.
    pub fn revoke(&mut self, installation: &str) {
        for grant in self.grants.values_mut() {
            if grant.installation == installation {
                grant.revoked = true;
            }
        }
    }

    /// Whether the installation was ever granted a token.
    pub fn has_any(&self, installation: &str) -> bool {
        self.grants
            .values()
            .any(|grant| grant.installation == installation)
    }

    /// Decides whether a token opens an installation.
    ///
    /// # Errors
    /// Why not.
    pub fn check(
        &self,
        installation: &str,
        token: &SecretString,
        now: SystemTime,
    ) -> Result<(), Denial> {
        let grant = self
            .grants
            .get(&digest(token))
            .ok_or(Denial::UnknownToken)?;
        if grant.installation != installation {
            return Err(Denial::ForeignToken {
                owner: grant.installation.clone(),
            });
        }
        if grant.revoked {
            return Err(Denial::RevokedToken);
        }
        match grant.expires {
            Some(expires) if expires <= now => Err(Denial::ExpiredToken),
            _ => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Grant {
    installation: String,
    expires: Option<SystemTime>,
    revoked: bool,
}

fn digest(token: &SecretString) -> blake3::Hash {
    blake3::hash(token.expose_secret().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_token_is_valid_until_it_expires_or_is_revoked() {
        let start = SystemTime::UNIX_EPOCH;
        let later = start + Duration::from_secs(60);
        let token = SecretString::from("short-lived");
        let mut tokens = Tokens::default();
        tokens.grant("icfg_1", &token, Some(later));
        assert_eq!(tokens.check("icfg_1", &token, start), Ok(()));
        assert_eq!(
            tokens.check("icfg_1", &token, later),
            Err(Denial::ExpiredToken)
        );
        tokens.revoke("icfg_1");
        assert_eq!(
            tokens.check("icfg_1", &token, start),
            Err(Denial::RevokedToken)
        );
        assert!(!format!("{tokens:?}").contains("short-lived"));
    }
}
