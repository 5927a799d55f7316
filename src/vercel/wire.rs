//! The bodies of `update-resource` and of the secrets operation.
//!
//! Values are spliced in as the JSON they are; a secret's value is written once, into memory that is overwritten afterwards.

use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use crate::model::{Field, Json, Patch, Secret, SecretName, SecretSet, SecretsPatch};

use super::settings::ClearNotification;

/// Why a patch has no body; a fault of the caller's, found before anything is sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The patch holds nothing.
    #[error("the patch is empty")]
    Empty,
    /// The patch names a secret whose value is not there.
    #[error("the value of the secret {name} is missing")]
    SecretMissing {
        /// The secret's name.
        name: SecretName,
    },
    /// Secrets stand among the plain values.
    #[error("secrets stand among the plain values of the patch")]
    SecretsAmongValues,
}

/// A request body, overwritten when dropped.
pub(super) type Body = Zeroizing<Vec<u8>>;

/// The body of `PATCH …/resources/{id}`.
///
/// # Errors
/// The patch is no patch, or a secret's value is missing.
pub(super) fn patch_body(
    patch: &Patch,
    secrets: Option<&SecretSet>,
    clear: ClearNotification,
) -> Result<Body, BodyError> {
    if patch.is_empty() {
        return Err(BodyError::Empty);
    }
    if patch.values.contains_key(&Field::Secrets) {
        return Err(BodyError::SecretsAmongValues);
    }
    let found = find(patch.secrets.as_ref(), secrets)?;
    let values: usize = patch
        .values
        .values()
        .map(|json| json.as_str().len() + 32)
        .sum();
    let mut writer = Writer::with_capacity(64 + values + size(&found));
    writer.raw("{");
    for (index, (field, value)) in patch.values.iter().enumerate() {
        writer.comma_unless_first(index);
        writer.property(field.wire_name());
        writer.raw(value_text(*field, value, clear));
    }
    if let Some(kind) = &patch.secrets {
        writer.comma_unless_first(patch.values.len());
        writer.property("secrets");
        match kind {
            SecretsPatch::Complete(_) => writer.secrets(&found),
            SecretsPatch::Partial(_) => {
                writer.raw("{");
                writer.property("secrets");
                writer.secrets(&found);
                writer.raw(r#","partial":true}"#);
            }
        }
    }
    writer.raw("}");
    Ok(writer.0)
}

/// The body of `PUT …/resources/{id}/secrets`.
///
/// # Errors
/// A secret's value is missing.
pub(super) fn secrets_body(
    patch: &SecretsPatch,
    secrets: Option<&SecretSet>,
) -> Result<Body, BodyError> {
    let found = find(Some(patch), secrets)?;
    let mut writer = Writer::with_capacity(64 + size(&found));
    writer.raw("{");
    writer.property("secrets");
    writer.secrets(&found);
    if matches!(patch, SecretsPatch::Partial(_)) {
        writer.raw(r#","partial":true"#);
    }
    writer.raw("}");
    Ok(writer.0)
}

fn value_text(field: Field, value: &Json, clear: ClearNotification) -> &str {
    match clear {
        ClearNotification::Empty if field == Field::Notification && value.is_null() => r#""""#,
        _ => value.as_str(),
    }
}

type Found<'a> = Vec<(&'a SecretName, &'a Secret)>;

fn find<'a>(
    patch: Option<&'a SecretsPatch>,
    secrets: Option<&'a SecretSet>,
) -> Result<Found<'a>, BodyError> {
    let mut found = Vec::new();
    for name in patch.into_iter().flat_map(|patch| patch.named().keys()) {
        let secret = secrets
            .and_then(|set| set.0.get(name))
            .ok_or_else(|| BodyError::SecretMissing { name: name.clone() })?;
        found.push((name, secret));
    }
    Ok(found)
}

/// The most bytes that the secrets can take: every byte escaped as `\u00xx`.
fn size(found: &Found<'_>) -> usize {
    let text = |secret: &Secret| -> usize {
        secret.exposed().map(str::len).sum::<usize>()
            + secret.prefix.as_ref().map_or(0, String::len)
    };
    found
        .iter()
        .map(|(name, secret)| 6 * (name.as_str().len() + text(secret)) + 128)
        .sum()
}

/// Writes JSON into a buffer that is large enough from the start, so that no copy of a secret stays behind.
struct Writer(Body);

impl Writer {
    fn with_capacity(bytes: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(bytes)))
    }

    fn raw(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn comma_unless_first(&mut self, index: usize) {
        if index > 0 {
            self.raw(",");
        }
    }

    fn string(&mut self, text: &str) {
        serde_json::to_writer(&mut *self.0, text)
            .expect("writing a string into memory cannot fail");
    }

    fn property(&mut self, name: &str) {
        self.string(name);
        self.raw(":");
    }

    fn text_property(&mut self, name: &str, text: &str) {
        self.property(name);
        self.string(text);
    }

    fn secrets(&mut self, found: &Found<'_>) {
        self.raw("[");
        for (index, (name, secret)) in found.iter().enumerate() {
            self.comma_unless_first(index);
            self.secret(name, secret);
        }
        self.raw("]");
    }

    fn secret(&mut self, name: &SecretName, secret: &Secret) {
        let Secret {
            value,
            prefix,
            overrides,
        } = secret;
        self.raw("{");
        self.text_property("name", name.as_str());
        self.raw(",");
        self.text_property("value", value.expose_secret());
        if let Some(prefix) = prefix {
            self.raw(",");
            self.text_property("prefix", prefix);
        }
        if !overrides.is_empty() {
            self.raw(",");
            self.property("environmentOverrides");
            self.raw("{");
            let given = overrides
                .by_environment()
                .into_iter()
                .filter_map(|(environment, value)| value.map(|value| (environment, value)));
            for (index, (environment, value)) in given.enumerate() {
                self.comma_unless_first(index);
                self.text_property(environment, value.expose_secret());
            }
            self.raw("}");
        }
        self.raw("}");
    }
}

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz {
    use crate::model::{Patch, SecretSet};
    use crate::vercel::settings::ClearNotification;

    /// The body of a PATCH, for `crate::fuzzing`.
    pub(crate) fn body_of(patch: &Patch, secrets: Option<&SecretSet>) -> Option<Vec<u8>> {
        let body = super::patch_body(patch, secrets, ClearNotification::Empty);
        body.ok().map(|body| body.to_vec())
    }
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::secret::Overrides;
    use crate::model::{FingerprintKey, SharedMap};

    fn set(secrets: &[(&str, Secret)]) -> SecretSet {
        let named = |(name, secret): &(&str, Secret)| {
            (SecretName::new(name).expect("a name"), secret.clone())
        };
        SecretSet(secrets.iter().map(named).collect())
    }

    fn complete(set: &SecretSet) -> SecretsPatch {
        SecretsPatch::Complete(set.fingerprints(&FingerprintKey::new([0; 32])))
    }

    fn partial(set: &SecretSet) -> SecretsPatch {
        SecretsPatch::Partial(set.fingerprints(&FingerprintKey::new([0; 32])))
    }

    fn read(body: &Body) -> Value {
        serde_json::from_slice(body).expect("the body is JSON")
    }

    #[test]
    fn fields_go_by_their_names_and_values_keep_their_digits() {
        let plan = r#"{"cost":"9","id":"pro","n":123456789012345678901234567890.5}"#;
        let patch = Patch {
            values: [
                (Field::Status, Json::from_text("ready")),
                (
                    Field::BillingPlan,
                    Json::from_value(&serde_json::from_str(plan).expect("JSON")),
                ),
            ]
            .into(),
            secrets: None,
        };
        let body = patch_body(&patch, None, ClearNotification::Empty).expect("a body");
        let expected = format!(r#"{{"status":"ready","billingPlan":{plan}}}"#);
        assert_eq!(std::str::from_utf8(&body), Ok(expected.as_str()));
    }

    #[test]
    fn a_notification_is_cleared_as_the_setting_says() {
        let patch = Patch {
            values: [
                (Field::Notification, Json::null()),
                (Field::Metadata, Json::from_value(&json!({}))),
            ]
            .into(),
            secrets: None,
        };
        let body = |clear| read(&patch_body(&patch, None, clear).expect("a body"));
        assert_eq!(
            body(ClearNotification::Empty),
            json!({ "notification": "", "metadata": {} })
        );
        assert_eq!(
            body(ClearNotification::Null),
            json!({ "notification": null, "metadata": {} })
        );
    }

    #[test]
    fn secrets_have_the_shape_of_the_api() {
        let secrets = set(&[
            (
                "A",
                Secret {
                    value: "a\"\n".into(),
                    prefix: Some("PRE".to_owned()),
                    overrides: Overrides {
                        development: Some("dev".into()),
                        preview: None,
                        production: Some("prod".into()),
                    },
                },
            ),
            ("B", Secret::from_value("b")),
        ]);
        let listed = json!([
            { "name": "A", "value": "a\"\n", "prefix": "PRE",
              "environmentOverrides": { "development": "dev", "production": "prod" } },
            { "name": "B", "value": "b" },
        ]);
        let of = |kind| {
            let patch = Patch {
                values: SharedMap::new(),
                secrets: Some(kind),
            };
            read(&patch_body(&patch, Some(&secrets), ClearNotification::Empty).expect("a body"))
        };
        assert_eq!(of(complete(&secrets)), json!({ "secrets": listed }));
        assert_eq!(
            of(partial(&secrets)),
            json!({ "secrets": { "secrets": listed, "partial": true } })
        );
        let put = |kind| read(&secrets_body(&kind, Some(&secrets)).expect("a body"));
        assert_eq!(put(complete(&secrets)), json!({ "secrets": listed }));
        assert_eq!(
            put(partial(&secrets)),
            json!({ "secrets": listed, "partial": true })
        );
    }

    #[test]
    fn only_the_secrets_that_the_patch_names_are_in_the_body() {
        let named = set(&[("A", Secret::from_value("a"))]);
        let all = set(&[
            ("A", Secret::from_value("a")),
            ("B", Secret::from_value("b")),
        ]);
        let body = secrets_body(&partial(&named), Some(&all)).expect("a body");
        assert_eq!(
            read(&body),
            json!({ "secrets": [{ "name": "A", "value": "a" }], "partial": true })
        );
        let none = secrets_body(&SecretsPatch::Complete(SharedMap::new()), None).expect("a body");
        assert_eq!(read(&none), json!({ "secrets": [] }));
    }

    #[test]
    fn a_secret_without_a_value_is_an_error_and_no_request() {
        let named = set(&[("A", Secret::from_value("a"))]);
        let name = SecretName::new("A").expect("a name");
        let missing = Err(BodyError::SecretMissing { name });
        assert_eq!(secrets_body(&complete(&named), None), missing);
        assert_eq!(
            secrets_body(&complete(&named), Some(&SecretSet::default())),
            missing
        );
        assert_eq!(
            patch_body(&Patch::default(), None, ClearNotification::Empty),
            Err(BodyError::Empty)
        );
    }

    proptest! {
        #[test]
        fn the_buffer_never_grows_and_every_value_arrives(name in "[^\\x00-\\x1f\\x7f-\\u{9f}]{1,20}", value in any::<String>(), prefix in any::<Option<String>>(), preview in any::<Option<String>>()) {
            let secret = Secret {
                value: value.as_str().into(),
                prefix: prefix.clone(),
                overrides: Overrides { preview: preview.as_deref().map(Into::into), ..Overrides::default() },
            };
            let secrets = set(&[(&name, secret)]);
            let found = find(Some(&complete(&secrets)), Some(&secrets)).expect("all there").len();
            prop_assert_eq!(found, 1);
            let patch = Patch { values: [(Field::Name, Json::from_text(&name))].into(), secrets: Some(partial(&secrets)) };
            let body = patch_body(&patch, Some(&secrets), ClearNotification::Null).expect("a body");
            let estimate = 64 + Json::from_text(&name).as_str().len() + 32
                + size(&find(patch.secrets.as_ref(), Some(&secrets)).expect("all there"));
            prop_assert!(body.len() <= estimate);
            let sent = read(&body)["secrets"]["secrets"][0].clone();
            prop_assert_eq!(sent["name"].as_str(), Some(name.as_str()));
            prop_assert_eq!(sent["value"].as_str(), Some(value.as_str()));
            prop_assert_eq!(sent.get("prefix").and_then(Value::as_str), prefix.as_deref());
            prop_assert_eq!(sent["environmentOverrides"].get("preview").and_then(Value::as_str), preview.as_deref());
        }
    }
}
