//! Names for secret values that can be shown.

use std::fmt;

/// Turns secret values into short names that are equal when the values are, and tell nothing else.
#[derive(Clone)]
pub struct Fingerprints {
    key: [u8; 32],
}

impl Fingerprints {
    /// Fingerprints under a key; another key gives others.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// Twelve hexadecimal digits for a value.
    pub fn of(&self, value: &str) -> String {
        let mut hex = blake3::keyed_hash(&self.key, value.as_bytes())
            .to_hex()
            .to_string();
        hex.truncate(12);
        hex
    }
}

impl fmt::Debug for Fingerprints {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Fingerprints")
    }
}
