//! Which operation a request line asks for; path parts are decoded exactly once.
//!
//! Guarantees that an identifier holding `/`, `%`, spaces or any Unicode arrives as the client meant it.

use std::fmt;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::world::ResourceKey;

/// The operations that the simulator knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// `PATCH …/resources/{id}`
    Update,
    /// `PUT …/resources/{id}`
    Import,
    /// `DELETE …/resources/{id}`
    Delete,
    /// `GET …/resources/{id}`
    Get,
    /// `GET …/resources`
    List,
    /// `PUT …/resources/{id}/secrets`
    PutSecrets,
    /// `POST /oauth/token`
    Token,
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Update => "update",
            Self::Import => "import",
            Self::Delete => "delete",
            Self::Get => "get",
            Self::List => "list",
            Self::PutSecrets => "put_secrets",
            Self::Token => "token",
        })
    }
}

/// A request line understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// An operation on one resource.
    Resource(Operation, ResourceKey),
    /// The list of one installation's resources.
    List(String),
    /// The token endpoint.
    Token,
    /// A path that the API has, with a method it has not.
    WrongMethod,
    /// Anything else.
    Unknown,
}

impl Route {
    /// Reads method and path; the path is the raw one, without its query.
    pub(super) fn parse(method: &str, path: &str) -> Self {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match parts.as_slice() {
            ["oauth", "token"] if method == "POST" => Self::Token,
            ["v1", "installations", installation, "resources"] if method == "GET" => {
                decode(installation).map_or(Self::Unknown, Self::List)
            }
            ["v1", "installations", installation, "resources", resource] => {
                let operation = match method {
                    "PATCH" => Operation::Update,
                    "PUT" => Operation::Import,
                    "DELETE" => Operation::Delete,
                    "GET" => Operation::Get,
                    _ => return Self::WrongMethod,
                };
                Self::resource(operation, installation, resource)
            }
            [
                "v1",
                "installations",
                installation,
                "resources",
                resource,
                "secrets",
            ] if method == "PUT" => Self::resource(Operation::PutSecrets, installation, resource),
            ["oauth", "token"]
            | ["v1", "installations", _, "resources"]
            | ["v1", "installations", _, "resources", _, "secrets"] => Self::WrongMethod,
            _ => Self::Unknown,
        }
    }

    /// The operation, where there is one.
    pub(super) fn operation(&self) -> Option<Operation> {
        match self {
            Self::Resource(operation, _) => Some(*operation),
            Self::List(_) => Some(Operation::List),
            Self::Token => Some(Operation::Token),
            Self::WrongMethod | Self::Unknown => None,
        }
    }

    /// The installation in the path, where there is one.
    pub(super) fn installation(&self) -> Option<&str> {
        match self {
            Self::Resource(_, key) => Some(&key.installation_id),
            Self::List(installation) => Some(installation),
            Self::Token | Self::WrongMethod | Self::Unknown => None,
        }
    }

    /// The resource in the path, where there is one.
    pub(super) fn key(&self) -> Option<&ResourceKey> {
        match self {
            Self::Resource(_, key) => Some(key),
            _ => None,
        }
    }

    /// The resource that this request would change.
    pub(super) fn written(&self) -> Option<&ResourceKey> {
        match self {
            Self::Resource(Operation::Get, _) => None,
            Self::Resource(_, key) => Some(key),
            _ => None,
        }
    }

    fn resource(operation: Operation, installation: &str, resource: &str) -> Self {
        match (decode(installation), decode(resource)) {
            (Some(installation_id), Some(resource_id)) => Self::Resource(
                operation,
                ResourceKey {
                    installation_id,
                    resource_id,
                },
            ),
            _ => Self::Unknown,
        }
    }
}

/// One path part decoded; `None` when it is empty, badly escaped or not UTF-8.
pub(super) fn decode(part: &str) -> Option<String> {
    let bytes = part.as_bytes();
    let escapes_complete = bytes.iter().enumerate().all(|(at, byte)| {
        *byte != b'%'
            || bytes
                .get(at + 1..at + 3)
                .is_some_and(|escape| escape.iter().all(u8::is_ascii_hexdigit))
    });
    if part.is_empty() || !escapes_complete {
        return None;
    }
    Some(percent_decode_str(part).decode_utf8().ok()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_parts_are_decoded_exactly_once() {
        for (encoded, id) in [
            ("res_1", "res_1"),
            ("a%2Fb", "a/b"),
            ("100%25", "100%"),
            ("%2525", "%25"),
            ("a%20b", "a b"),
            ("a+b", "a+b"),
            ("%C3%BC", "ü"),
        ] {
            let path = format!("/v1/installations/icfg/resources/{encoded}");
            let route = Route::parse("PATCH", &path);
            assert_eq!(route.key().map(|key| key.resource_id.as_str()), Some(id));
        }
    }

    #[test]
    fn paths_that_name_nothing_are_unknown() {
        for path in [
            "/",
            "/v1/installations//resources/r",
            "/v1/installations/i/resources/",
            "/v1/installations/i/resources/%zz",
            "/v1/installations/i/resources/%2",
            "/v1/installations/i/resources/%ff",
            "/v1/installations/i/resources/a/b",
            "/v2/installations/i/resources/a",
        ] {
            assert_eq!(Route::parse("PATCH", path), Route::Unknown, "{path}");
        }
        let path = "/v1/installations/i/resources/r";
        assert_eq!(Route::parse("POST", path), Route::WrongMethod);
    }
}
