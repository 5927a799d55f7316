//! Secrets in memory and what may be known of them at rest.
//!
//! A value lives in a [`Secret`] or an [`AccessToken`], which neither print nor serialize it. What is stored, compared and
//! shown is its [`Fingerprint`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::SharedMap;

/// The longest secret name in bytes.
pub const MAX_SECRET_NAME_BYTES: usize = 256;

/// The name of one secret: not secret itself. A copy shares the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretName(Arc<str>);

impl SecretName {
    /// Accepts 1 to 256 bytes of text without control characters.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let usable = !name.is_empty()
            && name.len() <= MAX_SECRET_NAME_BYTES
            && !name.chars().any(char::is_control);
        usable.then(|| Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for SecretName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SecretName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Whatever was written as a name is one, without a second look.
        deserializer.deserialize_str(Text("a name", |name| Some(Self(name.into()))))
    }
}

/// What one secret holds besides its name; `Debug` shows none of the values.
#[derive(Debug, Clone)]
pub struct Secret {
    /// The value.
    pub value: SecretString,
    /// The prefix of the environment variable, if the provider sets one.
    pub prefix: Option<String>,
    /// Values that replace `value` in single environments.
    pub overrides: Overrides,
}

/// The `environmentOverrides` of a secret: each replaces the value in one environment.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// In development.
    pub development: Option<SecretString>,
    /// In preview deployments.
    pub preview: Option<SecretString>,
    /// In production.
    pub production: Option<SecretString>,
}

impl Overrides {
    /// The overrides by their names in the API.
    #[must_use]
    pub fn by_environment(&self) -> [(&'static str, Option<&SecretString>); 3] {
        let Self {
            development,
            preview,
            production,
        } = self;
        [
            ("development", development.as_ref()),
            ("preview", preview.as_ref()),
            ("production", production.as_ref()),
        ]
    }

    /// Whether no environment has a value of its own.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_environment()
            .iter()
            .all(|(_, value)| value.is_none())
    }
}

impl Secret {
    /// A secret that is just a value.
    #[must_use]
    pub fn from_value(value: &str) -> Self {
        Self {
            value: SecretString::from(value),
            prefix: None,
            overrides: Overrides::default(),
        }
    }

    /// Every secret text in here, for whoever must make sure that none of them is repeated elsewhere.
    pub fn exposed(&self) -> impl Iterator<Item = &str> {
        let overrides = self
            .overrides
            .by_environment()
            .into_iter()
            .filter_map(|(_, value)| value);
        std::iter::once(&self.value)
            .chain(overrides)
            .map(ExposeSecret::expose_secret)
    }

    /// The keyed fingerprint of everything in here.
    #[must_use]
    pub fn fingerprint(&self, key: &FingerprintKey) -> Fingerprint {
        let mut hasher = key.hasher("secret");
        let mut part = |present: bool, text: &str| {
            hasher.update(&[u8::from(present)]);
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        part(true, self.value.expose_secret());
        part(
            self.prefix.is_some(),
            self.prefix.as_deref().unwrap_or_default(),
        );
        for (_, value) in self.overrides.by_environment() {
            part(
                value.is_some(),
                value.map_or("", ExposeSecret::expose_secret),
            );
        }
        Fingerprint::from_hasher(&hasher)
    }
}

/// The complete set of a resource's secrets, by name.
#[derive(Debug, Clone, Default)]
pub struct SecretSet(pub BTreeMap<SecretName, Secret>);

impl SecretSet {
    /// The set with each value replaced by its fingerprint.
    #[must_use]
    pub fn fingerprints(&self, key: &FingerprintKey) -> SharedMap<SecretName, Fingerprint> {
        self.0
            .iter()
            .map(|(name, secret)| (name.clone(), secret.fingerprint(key)))
            .collect()
    }
}

/// The key of all fingerprints of one state database: without it a fingerprint cannot be recomputed from a guess.
#[derive(Clone)]
pub struct FingerprintKey(Zeroizing<[u8; 32]>);

impl FingerprintKey {
    /// A key from 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key's bytes, for the state database that keeps them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A keyed hasher for one purpose; different purposes never give equal hashes.
    #[must_use]
    pub fn hasher(&self, purpose: &str) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&(purpose.len() as u64).to_le_bytes());
        hasher.update(purpose.as_bytes());
        hasher
    }
}

impl fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FingerprintKey(…)")
    }
}

/// Keyed BLAKE3 (128 bits) of a secret: equality without the value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// A fingerprint from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The first 16 bytes of what was hashed.
    #[must_use]
    pub fn from_hasher(hasher: &blake3::Hasher) -> Self {
        let hash = hasher.finalize();
        let first = hash.as_bytes().first_chunk();
        Self(*first.expect("a hash has 32 bytes"))
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The first six hexadecimal digits: what people see.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..6].to_owned()
    }

    /// The fingerprint written by its `Display`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        if text.len() != 32 || !text.is_ascii() {
            return None;
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text("a fingerprint", Self::parse))
    }
}

/// What is read from text where it lies, without a copy of it: what it is, and how.
struct Text<T>(&'static str, fn(&str) -> Option<T>);

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        // The error must not repeat the text.
        (self.1)(text).ok_or_else(|| E::custom(format_args!("no text of {}", self.0)))
    }
}

/// A bearer token of one installation; `Debug` does not show it.
#[derive(Debug, Clone)]
pub struct AccessToken(SecretString);

impl AccessToken {
    /// A token as the source or the authorization server gave it.
    #[must_use]
    pub fn new(token: &str) -> Self {
        Self(SecretString::from(token))
    }

    /// Whether a header can carry it: no line breaks and other control characters
    /// (<https://www.rfc-editor.org/rfc/rfc9110#name-field-values>).
    #[must_use]
    pub fn is_sendable(&self) -> bool {
        !self.expose().bytes().any(|byte| byte.is_ascii_control())
    }

    /// The token itself, for the Authorization header alone.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// Compares the tokens; both stay in memory.
impl PartialEq for AccessToken {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for AccessToken {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_sent_unless_it_holds_a_control_character() {
        for (token, expected) in [
            ("t0k-~.é", true),
            ("t0k t0k", true),
            ("t0k\n", false),
            ("\rt0k", false),
            ("t0\0k", false),
            ("t0k\t", false),
            ("t0k\u{7f}", false),
        ] {
            assert_eq!(AccessToken::new(token).is_sendable(), expected, "{token:?}");
        }
    }

    #[test]
    fn a_fingerprint_depends_on_every_part_and_on_the_key() {
        let key = FingerprintKey::new([1; 32]);
        let plain = Secret::from_value("s3cret");
        let prefixed = Secret {
            prefix: Some(String::new()),
            ..plain.clone()
        };
        let overridden = Secret {
            overrides: Overrides {
                preview: Some("s3cret".into()),
                ..Overrides::default()
            },
            ..plain.clone()
        };
        let all = [
            plain.fingerprint(&key),
            prefixed.fingerprint(&key),
            overridden.fingerprint(&key),
            plain.fingerprint(&FingerprintKey::new([2; 32])),
            Secret::from_value("s3creT").fingerprint(&key),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(all[index + 1..].iter().all(|other| other != one));
        }
        assert_eq!(Fingerprint::parse(&all[0].to_string()), Some(all[0]));
    }

    #[test]
    fn nothing_here_prints_a_value() {
        let secret = Secret {
            overrides: Overrides {
                production: Some("pr0d-value".into()),
                ..Overrides::default()
            },
            ..Secret::from_value("s3cret-value")
        };
        let printed = format!(
            "{secret:?} {:?} {:?}",
            AccessToken::new("t0ken"),
            FingerprintKey::new([7; 32])
        );
        for value in ["s3cret-value", "pr0d-value", "t0ken", "7, 7"] {
            assert!(!printed.contains(value), "{printed}");
        }
    }

    #[test]
    fn only_thirty_two_hexadecimal_digits_are_a_fingerprint() {
        let digits = "00112233445566778899aabbccddeeff";
        let parsed = Fingerprint::parse(digits).expect("as it is written");
        assert_eq!(parsed.to_string(), digits);
        let no_hexadecimal = digits.replace('f', "g");
        // As many bytes, of which two are one letter.
        let no_ascii = digits.replace("ff", "é");
        for text in [
            "",
            &digits[..31],
            &format!("{digits}0"),
            &no_hexadecimal,
            &no_ascii,
        ] {
            assert_eq!(Fingerprint::parse(text), None, "{text}");
        }
    }
}
