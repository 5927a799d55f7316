//! The smallest body that turns acknowledged into desired, with each secret as name and fingerprint.

use serde::{Deserialize, Serialize};

use crate::planted::{Bug, is_planted};

use super::{Field, FieldSet, Fingerprint, Json, SecretName, SharedMap, Snapshot};

/// A partial update of one resource, without a secret's value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Patch {
    /// Every field but the secrets, whole.
    #[serde(default, skip_serializing_if = "SharedMap::is_empty")]
    pub values: SharedMap<Field, Json>,
    /// The secrets, if any of them is to be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<SecretsPatch>,
}

/// The two ways in which the API takes secrets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretsPatch {
    /// Replaces the whole set: needed as soon as a secret was removed.
    Complete(SharedMap<SecretName, Fingerprint>),
    /// Overwrites only the secrets named.
    Partial(SharedMap<SecretName, Fingerprint>),
}

impl SecretsPatch {
    /// The secrets that are sent.
    #[must_use]
    pub const fn named(&self) -> &SharedMap<SecretName, Fingerprint> {
        match self {
            Self::Complete(named) | Self::Partial(named) => named,
        }
    }
}

impl Patch {
    /// Whether nothing is in the patch; an empty patch is never sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.secrets.is_none()
    }

    /// The fields in the patch.
    #[must_use]
    pub fn fields(&self) -> FieldSet {
        let values: FieldSet = self.values.keys().copied().collect();
        if self.secrets.is_some() {
            values.with(Field::Secrets)
        } else {
            values
        }
    }

    /// The names of the secrets that are sent.
    pub fn secret_names(&self) -> impl Iterator<Item = &SecretName> {
        self.secrets
            .iter()
            .flat_map(|secrets| secrets.named().keys())
    }

    /// The part of the patch that concerns one field.
    #[must_use]
    pub fn only(&self, field: Field) -> Self {
        if field == Field::Secrets {
            Self {
                values: SharedMap::new(),
                secrets: self.secrets.clone(),
            }
        } else {
            let values = self
                .values
                .get(&field)
                .map(|value| (field, value.clone()))
                .into_iter()
                .collect();
            Self {
                values,
                secrets: None,
            }
        }
    }

    /// The patch without the fields in `left_out`.
    #[must_use]
    pub fn without(mut self, left_out: FieldSet) -> Self {
        if self.values.keys().any(|field| left_out.contains(*field)) {
            self.values.retain(|field, _| !left_out.contains(*field));
        }
        if left_out.contains(Field::Secrets) {
            self.secrets = None;
        }
        self
    }

    /// What Vercel holds once it has accepted the patch.
    pub fn apply_to(&self, acknowledged: &mut Snapshot) {
        acknowledged.values.extend(
            self.values
                .iter()
                .map(|(field, value)| (*field, value.clone())),
        );
        match &self.secrets {
            Some(SecretsPatch::Complete(named)) if !is_planted(Bug::CompleteArrayAdds) => {
                acknowledged.secrets = Some(named.clone());
            }
            Some(SecretsPatch::Complete(named) | SecretsPatch::Partial(named)) => {
                let held = acknowledged.secrets.get_or_insert_default();
                held.extend(
                    named
                        .iter()
                        .map(|(name, fingerprint)| (name.clone(), *fingerprint)),
                );
            }
            None => {}
        }
    }
}
