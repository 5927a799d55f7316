//! The record of requests and of what the client must never do.
//!
//! Guarantees that no secret value and no token is kept: bodies are stored with fingerprints in the values' places.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::fingerprint::Fingerprints;
use super::route::Operation;
use super::world::ResourceKey;

/// One request, as far as it got.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// 1 for the first request.
    pub number: u64,
    /// When its head arrived.
    #[serde(skip)]
    pub at: SystemTime,
    /// What `X-Vercel-Id` says, had it an answer or not.
    pub vercel_id: String,
    /// The method.
    pub method: String,
    /// The raw path, without its query.
    pub path: String,
    /// The operation, when method and path name one.
    pub operation: Option<Operation>,
    /// The installation in the path, decoded.
    pub installation_id: Option<String>,
    /// The resource in the path, decoded.
    pub resource_id: Option<String>,
    /// The top-level properties of the body, in the order of the names.
    pub fields: Vec<String>,
    /// The names of the secrets in the body, in its order.
    pub secret_names: Vec<String>,
    /// The body with fingerprints for secret values; `None` when it was no JSON.
    pub body: Option<Value>,
    /// The fault that struck it.
    pub fault: Option<&'static str>,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether it took effect, at once or later.
    pub applied: bool,
    /// Whether it took effect after its connection was closed.
    pub late: bool,
    /// From its head's arrival to its end.
    #[serde(rename = "duration_ms", serialize_with = "milliseconds")]
    pub duration: Duration,
    /// What the client did wrong with it.
    pub violations: Vec<ViolationKind>,
}

impl Entry {
    /// The resource in the path.
    pub fn key(&self) -> Option<ResourceKey> {
        Some(ResourceKey {
            installation_id: self.installation_id.clone()?,
            resource_id: self.resource_id.clone()?,
        })
    }

    /// The status answered; `None` when there was no answer.
    pub fn status(&self) -> Option<u16> {
        match self.outcome {
            Outcome::Answered(status) => Some(status),
            Outcome::Closed | Outcome::Abandoned => None,
        }
    }
}

/// One readable line: `PATCH icfg_7Hd/res_0412  status, secrets[DATABASE_URL]  → 200  3 ms`.
impl fmt::Display for Entry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ", self.method)?;
        match (&self.installation_id, self.key()) {
            (_, Some(key)) => write!(formatter, "{key}")?,
            (Some(installation), None) => write!(formatter, "{}", installation.escape_debug())?,
            (None, None) => write!(formatter, "{}", self.path.escape_debug())?,
        }
        if self.operation == Some(Operation::PutSecrets) {
            formatter.write_str("/secrets")?;
        }
        let fields = self.described_fields();
        if !fields.is_empty() {
            write!(formatter, "  {fields}")?;
        }
        write!(formatter, "  → {}", self.outcome)?;
        if let Some(fault) = self.fault {
            write!(formatter, " ({fault})")?;
        }
        if self.late {
            formatter.write_str(", applied late")?;
        }
        write!(formatter, "  {} ms", self.duration.as_millis())?;
        for violation in &self.violations {
            write!(formatter, "  VIOLATION {violation}")?;
        }
        Ok(())
    }
}

impl Entry {
    fn described_fields(&self) -> String {
        let described: Vec<String> = self
            .fields
            .iter()
            .filter(|field| field.as_str() != "partial")
            .map(|field| {
                if field == "secrets" && !self.secret_names.is_empty() {
                    let names = self.secret_names.join(", ");
                    format!("secrets[{}]", names.escape_debug())
                } else {
                    field.escape_debug().to_string()
                }
            })
            .collect();
        described.join(", ")
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// With this status (its body may have been cut or slow).
    Answered(u16),
    /// The simulator closed the connection without an answer.
    Closed,
    /// The client went away before there was an answer.
    Abandoned,
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(status) => write!(formatter, "{status}"),
            Self::Closed => formatter.write_str("closed"),
            Self::Abandoned => formatter.write_str("client left"),
        }
    }
}

/// Something that the client must never do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The number of the request.
    pub request: u64,
    /// What it is.
    pub kind: ViolationKind,
    /// The particulars; never a secret value or a token.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            request,
            kind,
            detail,
        } = self;
        write!(formatter, "request {request}: {kind}: {detail}")
    }
}

/// The kinds of violations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ViolationKind {
    /// A body that can change nothing.
    EmptyPatch,
    /// A body outside the published schema, not JSON, or with a property named twice.
    InvalidBody,
    /// Another installation's token.
    ForeignToken,
    /// No bearer token at all.
    MissingToken,
    /// A body that is not declared as what it is.
    ContentType,
    /// A User-Agent that does not begin with `reconciled/`.
    UserAgent,
    /// Two requests that write one resource at the same time.
    ConcurrentWrites,
    /// A method and path that the API does not have.
    UnknownRoute,
    /// A redirect was followed to the simulator's trap.
    FollowedRedirect,
}

impl fmt::Display for ViolationKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::EmptyPatch => "empty_patch",
            Self::InvalidBody => "invalid_body",
            Self::ForeignToken => "foreign_token",
            Self::MissingToken => "missing_token",
            Self::ContentType => "content_type",
            Self::UserAgent => "user_agent",
            Self::ConcurrentWrites => "concurrent_writes",
            Self::UnknownRoute => "unknown_route",
            Self::FollowedRedirect => "followed_redirect",
        })
    }
}

/// A body as the journal keeps it: every string under `secrets` but names and prefixes is a fingerprint.
pub(super) fn redacted(body: &Value, fingerprints: &Fingerprints) -> Value {
    match body {
        Value::Object(object) => Value::Object(
            object
                .iter()
                .map(|(name, value)| {
                    let value = if name == "secrets" {
                        hidden(None, value, fingerprints)
                    } else {
                        value.clone()
                    };
                    (name.clone(), value)
                })
                .collect::<Map<_, _>>(),
        ),
        // No body of the API is anything else, so nothing says that it holds no secret.
        _ => Value::Null,
    }
}

/// The names of the secrets in a body, accepted or not.
pub(super) fn secret_names(body: &Value) -> Vec<String> {
    let secrets = match body.get("secrets") {
        Some(Value::Object(object)) => object.get("secrets"),
        other => other,
    };
    secrets
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|secret| secret.get("name")?.as_str())
        .map(str::to_owned)
        .collect()
}

fn hidden(property: Option<&str>, value: &Value, fingerprints: &Fingerprints) -> Value {
    match value {
        Value::String(text) if matches!(property, Some("name" | "prefix")) => json!(text),
        Value::String(text) => json!(fingerprints.of(text)),
        Value::Number(number) => json!(fingerprints.of(&number.to_string())),
        Value::Array(items) => items
            .iter()
            .map(|item| hidden(None, item, fingerprints))
            .collect(),
        Value::Object(object) => Value::Object(
            object
                .iter()
                .map(|(name, value)| (name.clone(), hidden(Some(name), value, fingerprints)))
                .collect(),
        ),
        Value::Bool(_) | Value::Null => value.clone(),
    }
}

fn milliseconds<S: serde::Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            number: 1,
            at: SystemTime::UNIX_EPOCH,
            vercel_id: "sim1::a-1".to_owned(),
            method: "PATCH".to_owned(),
            path: "/v1/installations/icfg_7Hd/resources/res_0412".to_owned(),
            operation: Some(Operation::Update),
            installation_id: Some("icfg_7Hd".to_owned()),
            resource_id: Some("res_0412".to_owned()),
            fields: vec!["secrets".to_owned(), "status".to_owned()],
            secret_names: vec!["DATABASE_URL".to_owned()],
            body: None,
            fault: None,
            outcome: Outcome::Answered(200),
            applied: true,
            late: false,
            duration: Duration::from_millis(3),
            violations: Vec::new(),
        }
    }

    #[test]
    fn an_entry_is_one_readable_line() {
        let mut entry = entry();
        assert_eq!(
            entry.to_string(),
            "PATCH icfg_7Hd/res_0412  secrets[DATABASE_URL], status  → 200  3 ms"
        );
        entry.resource_id = Some("a\nb".to_owned());
        entry.fault = Some("apply_late");
        entry.outcome = Outcome::Closed;
        entry.late = true;
        entry.violations = vec![ViolationKind::EmptyPatch];
        assert_eq!(
            entry.to_string(),
            "PATCH icfg_7Hd/a\\nb  secrets[DATABASE_URL], status  → closed (apply_late), applied late  3 ms  VIOLATION empty_patch"
        );
    }

    #[test]
    fn no_value_of_a_secret_stays_in_a_kept_body_however_wrong_the_body() {
        let fingerprints = Fingerprints::new([1; 32]);
        for body in [
            json!({"secrets": [{"name": "A", "value": "hunter2"}]}),
            json!({"secrets": {"secrets": [{"name": "A", "environmentOverrides": {"preview": "hunter2"}}]}}),
            json!({"secrets": [{"name": "A", "val": ["hunter2"]}]}),
            json!({"secrets": {"A": "hunter2"}}),
            json!({"secrets": "hunter2"}),
            json!(["hunter2"]),
            json!("hunter2"),
        ] {
            let kept = redacted(&body, &fingerprints).to_string();
            assert!(!kept.contains("hunter2"), "{kept}");
        }
        let kept = redacted(
            &json!({"status": "ready", "secrets": [{"name": "A", "value": "hunter2", "prefix": "P"}]}),
            &fingerprints,
        );
        let expected = fingerprints.of("hunter2");
        assert_eq!(
            kept,
            json!({"status": "ready", "secrets": [{"name": "A", "value": expected, "prefix": "P"}]})
        );
    }
}
