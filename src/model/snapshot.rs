//! One side's view of a resource, field by field, without a secret's value.

use serde::{Deserialize, Serialize};

use super::{Field, FieldSet, Fingerprint, FingerprintKey, Json, SecretName, SharedMap};

/// The managed fields of a resource as one side holds them: what the source desires or what Vercel acknowledged.
///
/// A field that is absent is not managed (desired) or was never accepted (acknowledged).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Every field but the secrets; `null` stands for "no notification".
    #[serde(default, skip_serializing_if = "SharedMap::is_empty")]
    pub values: SharedMap<Field, Json>,
    /// The complete set of secrets as fingerprints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<SharedMap<SecretName, Fingerprint>>,
}

impl Snapshot {
    /// Which fields are in the snapshot.
    #[must_use]
    pub fn fields(&self) -> FieldSet {
        let values: FieldSet = self.values.keys().copied().collect();
        if self.secrets.is_some() {
            values.with(Field::Secrets)
        } else {
            values
        }
    }

    /// Whether no field is in the snapshot.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.secrets.is_none()
    }

    /// The snapshot without the fields in `ignored`.
    #[must_use]
    pub fn without(mut self, ignored: FieldSet) -> Self {
        if self.values.keys().any(|field| ignored.contains(*field)) {
            self.values.retain(|field, _| !ignored.contains(*field));
        }
        if ignored.contains(Field::Secrets) {
            self.secrets = None;
        }
        self
    }

    /// A digest of one field's value, to recognise later whether it is still the same; `None` when the field is absent.
    #[must_use]
    pub fn digest(&self, field: Field) -> Option<Fingerprint> {
        // Fingerprints are keyed already and the other values are stored beside the digest: a fixed key hides nothing less.
        let mut hasher = FingerprintKey::new([0; 32]).hasher(field.wire_name());
        if field == Field::Secrets {
            for (name, fingerprint) in self.secrets.as_ref()? {
                hasher.update(&(name.as_str().len() as u64).to_le_bytes());
                hasher.update(name.as_str().as_bytes());
                hasher.update(fingerprint.as_bytes());
            }
        } else {
            hasher.update(self.values.get(&field)?.as_str().as_bytes());
        }
        Some(Fingerprint::from_hasher(&hasher))
    }
}
