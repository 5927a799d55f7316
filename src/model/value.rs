//! From the text of a source column to a field's value, by the API's own schema.
//!
//! The schema is that of operation `update-resource` of <https://api.vercel.com>. A problem names what is wrong and what is
//! accepted; it never repeats the value, which may be secret or ten megabytes long.

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde_json::{Map, Value};

use super::secret::{MAX_SECRET_NAME_BYTES, Overrides};
use super::{Field, Json, Secret, SecretName, SecretSet};

/// The most text that one column may hold, in bytes.
pub const MAX_COLUMN_BYTES: usize = 1 << 20;
/// The longest name in bytes.
pub const MAX_NAME_BYTES: usize = 4096;
/// The most secrets that one resource may have.
pub const MAX_SECRETS: usize = 1000;

/// The resource's states, as the API names them.
pub const STATUSES: [&str; 7] = [
    "ready",
    "pending",
    "onboarding",
    "suspended",
    "resumed",
    "uninstalled",
    "error",
];
/// Who may own a resource, as the API names it.
pub const OWNERSHIPS: [&str; 3] = ["owned", "linked", "sandbox"];
const PLAN_TYPES: [&str; 2] = ["prepayment", "subscription"];
const NOTIFICATION_LEVELS: [&str; 3] = ["info", "warn", "error"];

/// Why a column's text is no value of its field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; accepted: {accepted}")]
pub struct InvalidValue {
    /// What is wrong, without the value itself.
    pub problem: String,
    /// What is accepted instead.
    pub accepted: &'static str,
}

fn invalid(problem: impl Into<String>, accepted: &'static str) -> InvalidValue {
    InvalidValue {
        problem: problem.into(),
        accepted,
    }
}

/// Reads a column other than `secrets`.
///
/// # Errors
/// The text does not fit the API's schema for the field.
pub fn parse_value(field: Field, text: &str) -> Result<Json, InvalidValue> {
    if text.len() > MAX_COLUMN_BYTES {
        return Err(too_long(text.len()));
    }
    match field {
        Field::Status => one_of(
            text,
            &STATUSES,
            "ready, pending, onboarding, suspended, resumed, uninstalled or error",
        ),
        Field::Ownership => one_of(text, &OWNERSHIPS, "owned, linked or sandbox"),
        Field::Name => name(text),
        Field::Metadata | Field::Extras => {
            Ok(Json::from_value(&Value::Object(object(parse_json(text)?)?)))
        }
        Field::BillingPlan => billing_plan(object(parse_json(text)?)?),
        Field::Notification => match parse_json(text)? {
            Value::Null => Ok(Json::null()),
            other => notification(object(other)?),
        },
        Field::Secrets => Err(invalid("secrets are no plain value", SECRETS_ACCEPTED)),
    }
}

/// Reads the column `secrets`: an array in the API's shape, or an object of names and values.
///
/// # Errors
/// The text does not fit either shape.
pub fn parse_secrets(text: &str) -> Result<SecretSet, InvalidValue> {
    if text.len() > MAX_COLUMN_BYTES {
        return Err(too_long(text.len()));
    }
    let secrets = match parse_json(text)? {
        Value::Array(items) => items
            .into_iter()
            .enumerate()
            .map(|(i, item)| secret(i, item))
            .collect::<Vec<_>>(),
        Value::Object(values) => values
            .into_iter()
            .enumerate()
            .map(|(index, (name, value))| match value {
                Value::String(value) => {
                    Ok((secret_name(index, &name)?, Secret::from_value(&value)))
                }
                other => Err(at(index, &format!("the value is {}", kind(&other)))),
            })
            .collect(),
        other => return Err(invalid(format!("is {}", kind(&other)), SECRETS_ACCEPTED)),
    };
    if secrets.len() > MAX_SECRETS {
        return Err(invalid(
            format!("holds {} secrets", secrets.len()),
            "at most 1000 secrets",
        ));
    }
    let mut set = BTreeMap::new();
    for secret in secrets {
        let (name, secret) = secret?;
        if set.insert(name.clone(), secret).is_some() {
            return Err(invalid(
                format!("names the secret `{name}` twice"),
                "each name once",
            ));
        }
    }
    Ok(SecretSet(set))
}

const SECRETS_ACCEPTED: &str = "a JSON array of {name, value, prefix?, environmentOverrides?} or a JSON object of names and string values";

fn too_long(bytes: usize) -> InvalidValue {
    invalid(format!("is {bytes} bytes long"), "at most 1 MiB")
}

fn one_of(text: &str, allowed: &[&str], accepted: &'static str) -> Result<Json, InvalidValue> {
    if allowed.contains(&text) {
        Ok(Json::from_text(text))
    } else {
        Err(invalid("is not a known value", accepted))
    }
}

fn name(text: &str) -> Result<Json, InvalidValue> {
    const ACCEPTED: &str = "1 to 4096 bytes of text without control characters";
    if text.trim().is_empty() {
        return Err(invalid("is empty", ACCEPTED));
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(invalid(format!("is {} bytes long", text.len()), ACCEPTED));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid("holds a control character", ACCEPTED));
    }
    Ok(Json::from_text(text))
}

fn parse_json(text: &str) -> Result<Value, InvalidValue> {
    // The error's own text may quote the input; its position does not.
    serde_json::from_str(text).map_err(|error| {
        invalid(
            format!(
                "is no JSON (line {}, column {})",
                error.line(),
                error.column()
            ),
            "JSON text",
        )
    })
}

fn object(value: Value) -> Result<Map<String, Value>, InvalidValue> {
    match value {
        Value::Object(object) => Ok(object),
        other => Err(invalid(format!("is {}", kind(&other)), "a JSON object")),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "JSON null",
        Value::Bool(_) => "a JSON boolean",
        Value::Number(_) => "a JSON number",
        Value::String(_) => "a JSON string",
        Value::Array(_) => "a JSON array",
        Value::Object(_) => "a JSON object",
    }
}

/// Removes properties that are null: an optional property that is null means the same as one that is absent.
fn drop_nulls(object: &mut Map<String, Value>, optional: &[&str]) {
    for name in optional {
        if object.get(*name).is_some_and(Value::is_null) {
            object.remove(*name);
        }
    }
}

fn required_text(
    object: &Map<String, Value>,
    name: &str,
    accepted: &'static str,
) -> Result<(), InvalidValue> {
    match object.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(()),
        Some(Value::String(_)) => Err(invalid(format!("has an empty `{name}`"), accepted)),
        Some(other) => Err(invalid(
            format!("has a `{name}` that is {}", kind(other)),
            accepted,
        )),
        None => Err(invalid(format!("has no `{name}`"), accepted)),
    }
}

fn optional(
    object: &Map<String, Value>,
    name: &str,
    fits: fn(&Value) -> bool,
    accepted: &'static str,
) -> Result<(), InvalidValue> {
    match object.get(name) {
        Some(value) if !fits(value) => Err(invalid(
            format!("has a `{name}` that is {}", kind(value)),
            accepted,
        )),
        _ => Ok(()),
    }
}

fn billing_plan(mut plan: Map<String, Value>) -> Result<Json, InvalidValue> {
    const ACCEPTED: &str = "id, type (prepayment or subscription) and name as text; description, cost and effectiveDate as \
                            text, paymentMethodRequired as true or false, details and highlightedDetails as arrays of \
                            {label, value?}";
    drop_nulls(
        &mut plan,
        &[
            "description",
            "paymentMethodRequired",
            "cost",
            "details",
            "highlightedDetails",
            "effectiveDate",
        ],
    );
    for name in ["id", "type", "name"] {
        required_text(&plan, name, ACCEPTED)?;
    }
    if !plan
        .get("type")
        .and_then(Value::as_str)
        .is_some_and(|plan_type| PLAN_TYPES.contains(&plan_type))
    {
        return Err(invalid("has an unknown `type`", ACCEPTED));
    }
    for name in ["description", "cost", "effectiveDate"] {
        optional(&plan, name, Value::is_string, ACCEPTED)?;
    }
    optional(&plan, "paymentMethodRequired", Value::is_boolean, ACCEPTED)?;
    for name in ["details", "highlightedDetails"] {
        optional(&plan, name, Value::is_array, ACCEPTED)?;
        let items = plan
            .get_mut(name)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten();
        for (index, item) in items.enumerate() {
            detail(item).map_err(|problem| {
                invalid(format!("has in `{name}` item {index} {problem}"), ACCEPTED)
            })?;
        }
    }
    Ok(Json::from_value(&Value::Object(plan)))
}

/// One line of a plan's details: `{label, value?}`, nothing else in it.
fn detail(item: &mut Value) -> Result<(), &'static str> {
    let Value::Object(detail) = item else {
        return Err("that is no object");
    };
    drop_nulls(detail, &["value"]);
    if !detail.get("label").is_some_and(Value::is_string) {
        return Err("without a `label` that is text");
    }
    if detail.get("value").is_some_and(|value| !value.is_string()) {
        return Err("with a `value` that is no text");
    }
    if detail.keys().any(|name| name != "label" && name != "value") {
        return Err("with a property other than `label` and `value`");
    }
    Ok(())
}

fn notification(mut notification: Map<String, Value>) -> Result<Json, InvalidValue> {
    const ACCEPTED: &str = "level (info, warn or error) and title as text; message as text and href as an http, https or sso link; NULL for none";
    drop_nulls(&mut notification, &["message", "href"]);
    for name in ["level", "title"] {
        required_text(&notification, name, ACCEPTED)?;
    }
    let level = notification.get("level").and_then(Value::as_str);
    if !level.is_some_and(|level| NOTIFICATION_LEVELS.contains(&level)) {
        return Err(invalid("has an unknown `level`", ACCEPTED));
    }
    optional(&notification, "message", Value::is_string, ACCEPTED)?;
    optional(&notification, "href", Value::is_string, ACCEPTED)?;
    let href = notification.get("href").and_then(Value::as_str);
    if href.is_some_and(|href| !is_link(href)) {
        return Err(invalid("has an `href` that is no link", ACCEPTED));
    }
    if href.is_some_and(|href| !is_uri_text(href)) {
        let problem = "has an `href` with a character that must be percent-encoded";
        return Err(invalid(problem, ACCEPTED));
    }
    Ok(Json::from_value(&Value::Object(notification)))
}

/// A URI of the schemes that the published schema takes (`^https?://|^sso:`).
fn is_link(text: &str) -> bool {
    let rest = ["https://", "http://", "sso:"]
        .into_iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    rest.is_some_and(|rest| {
        !rest.is_empty() && !rest.chars().any(|c| c.is_whitespace() || c.is_control())
    })
}

/// Whether every character may stand in a URI, and each `%` begins an escape (RFC 3986, section 2): Vercel refuses any other.
fn is_uri_text(text: &str) -> bool {
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let fits = match byte {
            b'%' => [rest.next(), rest.next()]
                .iter()
                .all(|digit| digit.is_some_and(|digit| digit.is_ascii_hexdigit())),
            _ => byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=".contains(&byte),
        };
        if !fits {
            return false;
        }
    }
    true
}

fn at(index: usize, problem: &str) -> InvalidValue {
    invalid(format!("item {index}: {problem}"), SECRETS_ACCEPTED)
}

fn secret_name(index: usize, name: &str) -> Result<SecretName, InvalidValue> {
    SecretName::new(name).ok_or_else(|| {
        at(index, &format!("the name is empty, longer than {MAX_SECRET_NAME_BYTES} bytes or holds a control character"))
    })
}

fn secret(index: usize, item: Value) -> Result<(SecretName, Secret), InvalidValue> {
    let Value::Object(mut item) = item else {
        return Err(at(index, "is no object"));
    };
    drop_nulls(&mut item, &["prefix", "environmentOverrides"]);
    let mut text = |name: &str| match item.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(at(index, &format!("`{name}` is {}", kind(&other)))),
    };
    let name = text("name")?.ok_or_else(|| at(index, "has no `name`"))?;
    let value = text("value")?.ok_or_else(|| at(index, "has no `value`"))?;
    let prefix = text("prefix")?;
    let overrides = item
        .remove("environmentOverrides")
        .map(|value| overrides(index, value))
        .transpose()?;
    if !item.is_empty() {
        // The stray property's name is not repeated: it may be a misplaced value.
        return Err(at(index, "has an unknown property"));
    }
    let secret = Secret {
        value: SecretString::from(value),
        prefix,
        overrides: overrides.unwrap_or_default(),
    };
    Ok((secret_name(index, &name)?, secret))
}

fn overrides(index: usize, value: Value) -> Result<Overrides, InvalidValue> {
    let Value::Object(mut values) = value else {
        return Err(at(index, "`environmentOverrides` is no object"));
    };
    let mut text = |name: &str| match values.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(SecretString::from(text))),
        Some(other) => Err(at(
            index,
            &format!("`environmentOverrides.{name}` is {}", kind(&other)),
        )),
    };
    let overrides = Overrides {
        development: text("development")?,
        preview: text("preview")?,
        production: text("production")?,
    };
    if values.is_empty() {
        Ok(overrides)
    } else {
        Err(at(
            index,
            "`environmentOverrides` has a property other than development, preview and production",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_the_published_schema_are_accepted() {
        let cases = [
            (Field::Status, "suspended"),
            (Field::Ownership, "sandbox"),
            (Field::Name, "orders-db 🗄"),
            (
                Field::Metadata,
                r#"{"region":"fra1","nested":{"a":[1,null]}}"#,
            ),
            (Field::Extras, "{}"),
            (
                Field::BillingPlan,
                r#"{"id":"pro","type":"subscription","name":"Pro"}"#,
            ),
            (
                Field::BillingPlan,
                r#"{"id":"p","type":"prepayment","name":"P","cost":"5","details":[{"label":"a"},{"label":"b","value":"c"}],
                    "paymentMethodRequired":false,"effectiveDate":"2026-01-01","preauthorizationAmount":5}"#,
            ),
            (
                Field::Notification,
                r#"{"level":"warn","title":"Low","href":"https://example.com/x"}"#,
            ),
            (
                Field::Notification,
                r#"{"level":"warn","title":"Low","href":"https://example.com/caf%C3%A9?a=[1]#b"}"#,
            ),
            (Field::Notification, "null"),
        ];
        for (field, text) in cases {
            assert!(parse_value(field, text).is_ok(), "{field} {text}");
        }
    }

    #[test]
    fn a_null_optional_property_means_the_same_as_an_absent_one() {
        let with_null = r#"{"id":"p","type":"subscription","name":"P","cost":null,"details":[{"label":"a","value":null}]}"#;
        let without = r#"{"id":"p","type":"subscription","name":"P","details":[{"label":"a"}]}"#;
        assert_eq!(
            parse_value(Field::BillingPlan, with_null),
            parse_value(Field::BillingPlan, without)
        );
        let with_null = r#"{"level":"info","title":"t","href":null,"message":null}"#;
        assert_eq!(
            parse_value(Field::Notification, with_null),
            parse_value(Field::Notification, r#"{"level":"info","title":"t"}"#)
        );
    }

    #[test]
    fn values_outside_the_schema_are_refused_with_the_reason() {
        let cases = [
            (Field::Status, "Ready", "is not a known value"),
            (Field::Ownership, "", "is not a known value"),
            (Field::Name, " ", "is empty"),
            (Field::Name, "a\nb", "holds a control character"),
            (Field::Metadata, "[]", "is a JSON array"),
            (Field::Metadata, "{", "is no JSON (line 1, column 1)"),
            (
                Field::Metadata,
                r#"{"a":NaN}"#,
                "is no JSON (line 1, column 6)",
            ),
            (Field::Extras, "null", "is JSON null"),
            (
                Field::BillingPlan,
                r#"{"type":"subscription","name":"P"}"#,
                "has no `id`",
            ),
            (
                Field::BillingPlan,
                r#"{"id":1,"type":"subscription","name":"P"}"#,
                "has a `id` that is a JSON number",
            ),
            (
                Field::BillingPlan,
                r#"{"id":"p","type":"monthly","name":"P"}"#,
                "has an unknown `type`",
            ),
            (
                Field::BillingPlan,
                r#"{"id":"p","type":"subscription","name":"P","cost":5}"#,
                "has a `cost` that is a JSON number",
            ),
            (
                Field::BillingPlan,
                r#"{"id":"p","type":"subscription","name":"P","details":[{"label":"a","x":1}]}"#,
                "has in `details` item 0 with a property other than `label` and `value`",
            ),
            (Field::Notification, r#"{"level":"warn"}"#, "has no `title`"),
            (
                Field::Notification,
                r#"{"level":"fatal","title":"t"}"#,
                "has an unknown `level`",
            ),
            (
                Field::Notification,
                r#"{"level":"info","title":"t","href":"not a uri"}"#,
                "has an `href` that is no link",
            ),
            (
                Field::Notification,
                r#"{"level":"info","title":"t","href":"https://example.com/50%"}"#,
                "has an `href` with a character that must be percent-encoded",
            ),
            (
                Field::Notification,
                r#"{"level":"info","title":"t","href":"https://example.com/%4g"}"#,
                "has an `href` with a character that must be percent-encoded",
            ),
            (
                Field::Notification,
                r#"{"level":"info","title":"t","href":"https://example.com/café"}"#,
                "has an `href` with a character that must be percent-encoded",
            ),
            (Field::Notification, "\"text\"", "is a JSON string"),
        ];
        for (field, text, problem) in cases {
            assert_eq!(
                parse_value(field, text).expect_err(text).problem,
                problem,
                "{field} {text}"
            );
        }
    }

    #[test]
    fn both_shapes_of_secrets_are_read() {
        let key = crate::model::FingerprintKey::new([3; 32]);
        let array =
            parse_secrets(r#"[{"name":"B","value":"2"},{"name":"A","value":"1","prefix":null}]"#)
                .expect("usable");
        let object = parse_secrets(r#"{"A":"1","B":"2"}"#).expect("usable");
        assert_eq!(array.fingerprints(&key), object.fingerprints(&key));
        let full =
            r#"[{"name":"A","value":"1","prefix":"X_","environmentOverrides":{"preview":"3"}}]"#;
        let full = parse_secrets(full).expect("usable");
        assert_ne!(
            full.fingerprints(&key).first_key_value(),
            object.fingerprints(&key).first_key_value()
        );
        assert!(parse_secrets("[]").expect("the empty set").0.is_empty());
    }

    #[test]
    fn unusable_secrets_are_refused_without_repeating_them() {
        let cases = [
            "null",
            "\"hunter2\"",
            "[\"hunter2\"]",
            r#"{"A":5}"#,
            r#"{"":"hunter2"}"#,
            r#"[{"name":"A"}]"#,
            r#"[{"value":"hunter2"}]"#,
            r#"[{"name":"A","value":"hunter2","hunter2":1}]"#,
            r#"[{"name":"A","value":"hunter2"},{"name":"A","value":"x"}]"#,
            r#"[{"name":"A","value":"hunter2","environmentOverrides":{"staging":"hunter2"}}]"#,
            r#"[{"name":"A","value":"hunter2""#,
        ];
        for text in cases {
            let problem = parse_secrets(text).expect_err(text).to_string();
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }
}
