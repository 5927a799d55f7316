//! The ids that name a resource on both sides.
//!
//! Both ids become parts of a request path, so an id that no URL can carry is refused here, once.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest id in bytes; Vercel publishes no limit, and a longer one would not fit a request line everywhere.
pub const MAX_ID_BYTES: usize = 512;

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// The text is empty or only white space.
    #[error("is empty")]
    Empty,
    /// The text is longer than [`MAX_ID_BYTES`].
    #[error("is {bytes} bytes long")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The text holds a control character, for instance a line break or NUL.
    #[error("holds the control character U+{code:04X}")]
    ControlCharacter {
        /// The character's code point.
        code: u32,
    },
    /// The text is `.` or `..`, which every URL parser removes from a path, percent-encoded or not.
    #[error("is a path segment that no URL can carry")]
    DotSegment,
}

impl InvalidId {
    /// What would have been accepted, for a `help:` line.
    #[must_use]
    pub const fn accepted() -> &'static str {
        "1 to 512 bytes of text without control characters, other than \".\" and \"..\""
    }
}

fn validate(text: &str) -> Result<(), InvalidId> {
    if text.trim().is_empty() {
        return Err(InvalidId::Empty);
    }
    if text.len() > MAX_ID_BYTES {
        return Err(InvalidId::TooLong { bytes: text.len() });
    }
    if let Some(control) = text.chars().find(|character| character.is_control()) {
        return Err(InvalidId::ControlCharacter {
            code: control.into(),
        });
    }
    if text == "." || text == ".." {
        return Err(InvalidId::DotSegment);
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Accepts 1 to 512 bytes of text without control characters that is not a dot segment.
            ///
            /// # Errors
            /// Says what is wrong with the text; never repeats it.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                validate(text)?;
                Ok(Self(text.into()))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().to_owned()
            }
        }
    };
}

id! {
    /// Vercel's id of one customer's installation of the integration (`integrationConfigurationId`).
    InstallationId
}

id! {
    /// The provider's own id of a resource, which is what the API's path takes.
    ResourceId
}

/// What identifies one resource: its installation and its id there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ResourceKey {
    /// The installation that the resource belongs to.
    pub installation_id: InstallationId,
    /// The provider's id for the resource.
    pub resource_id: ResourceId,
}

impl ResourceKey {
    /// A key from its two texts.
    ///
    /// # Errors
    /// The first of the two that is no id.
    pub fn new(installation_id: &str, resource_id: &str) -> Result<Self, InvalidId> {
        Ok(Self {
            installation_id: InstallationId::new(installation_id)?,
            resource_id: ResourceId::new(resource_id)?,
        })
    }
}

/// `installation/resource`, as log lines and tables show it.
impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.installation_id, self.resource_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_no_url_can_carry_is_refused() {
        let cases: [(&str, InvalidId); 7] = [
            ("", InvalidId::Empty),
            ("  ", InvalidId::Empty),
            (".", InvalidId::DotSegment),
            ("..", InvalidId::DotSegment),
            ("a\r\nb", InvalidId::ControlCharacter { code: 13 }),
            ("a\0", InvalidId::ControlCharacter { code: 0 }),
            ("\u{85}", InvalidId::Empty),
        ];
        for (text, problem) in cases {
            assert_eq!(ResourceId::new(text), Err(problem), "{text:?}");
        }
        assert_eq!(
            ResourceId::new(&"x".repeat(513)),
            Err(InvalidId::TooLong { bytes: 513 })
        );
    }

    #[test]
    fn an_id_may_hold_what_percent_encoding_carries() {
        for text in ["res_1", "a/b", "a b", "100%", "…", "...", "a..b", "?q#f"] {
            assert_eq!(ResourceId::new(text).expect("a usable id").as_str(), text);
        }
    }
}
