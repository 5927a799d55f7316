//! The published schema of the Marketplace bodies, checked strictly and on its own.
//!
//! Written against the `update-resource`, `import-resource` and `update-resource-secrets` operations of
//! <https://openapi.vercel.sh/>; shares nothing with the code that builds those bodies. A refusal names the property
//! and what is accepted there, and never quotes a value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Reads the body of `PATCH …/resources/{id}`.
///
/// # Errors
/// The first property that the schema does not accept.
pub fn update(body: &Value, rules: Rules) -> Result<Update, Refusal> {
    let object = object("", body)?;
    let names: Vec<&str> = Field::ALL.iter().map(|field| field.as_str()).collect();
    known("", object, &names)?;
    fields(object, rules)
}

/// Reads the body of `PUT …/resources/{id}`, which imports a resource.
///
/// # Errors
/// The first property that the schema does not accept.
pub fn import(body: &Value, rules: Rules) -> Result<Import, Refusal> {
    let object = object("", body)?;
    let mut names: Vec<&str> = Field::ALL.iter().map(|field| field.as_str()).collect();
    names.push("productId");
    known("", object, &names)?;
    let product_id = text("productId", required("", object, "productId")?)?.to_owned();
    required("", object, "name")?;
    required("", object, "status")?;
    let update = fields(object, rules)?;
    if object.get("secrets").is_some_and(|value| !value.is_array()) {
        return Err(refusal("secrets", "must be an array"));
    }
    Ok(Import { product_id, update })
}

/// Reads the body of `PUT …/resources/{id}/secrets`.
///
/// # Errors
/// The first property that the schema does not accept.
pub fn secrets(body: &Value) -> Result<SecretsUpdate, Refusal> {
    let object = object("", body)?;
    known("", object, &["secrets", "partial"])?;
    secrets_object("", object)
}

/// What the published schema leaves open and a run of the simulator decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Accept `"notification": null` and take it to clear, as the documentation of installations says.
    pub null_clears_notification: bool,
}

/// One top-level property of a PATCH body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Field {
    /// `ownership`
    Ownership,
    /// `name`
    Name,
    /// `status`
    Status,
    /// `metadata`
    Metadata,
    /// `billingPlan`
    BillingPlan,
    /// `notification`
    Notification,
    /// `extras`
    Extras,
    /// `secrets`
    Secrets,
}

impl Field {
    /// Every field, in the order of the published schema.
    pub const ALL: [Self; 8] = [
        Self::Ownership,
        Self::Name,
        Self::Status,
        Self::Metadata,
        Self::BillingPlan,
        Self::Notification,
        Self::Extras,
        Self::Secrets,
    ];

    /// The property's name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ownership => "ownership",
            Self::Name => "name",
            Self::Status => "status",
            Self::Metadata => "metadata",
            Self::BillingPlan => "billingPlan",
            Self::Notification => "notification",
            Self::Extras => "extras",
            Self::Secrets => "secrets",
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// An accepted PATCH body.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// Every field in the body but `secrets`, as sent.
    pub fields: BTreeMap<Field, Value>,
    /// `secrets`, when the body has it.
    pub secrets: Option<SecretsUpdate>,
}

impl Update {
    /// Whether applying the body could change anything at all.
    pub fn is_empty(&self) -> bool {
        let Self { fields, secrets } = self;
        fields.is_empty()
            && secrets
                .as_ref()
                .is_none_or(|update| update.partial && update.secrets.is_empty())
    }
}

/// An accepted import.
#[derive(Clone, Debug)]
pub struct Import {
    /// `productId`
    pub product_id: String,
    /// Everything else in the body.
    pub update: Update,
}

/// Secrets to set: the whole set, or only those named.
#[derive(Clone, Debug)]
pub struct SecretsUpdate {
    /// In the order of the body; names are distinct.
    pub secrets: Vec<Secret>,
    /// Overwrite only those named, instead of replacing the set.
    pub partial: bool,
}

/// One secret as sent; its values do not show in `Debug`.
#[derive(Clone, Debug)]
pub struct Secret {
    /// `name`
    pub name: String,
    /// `value`
    pub value: SecretString,
    /// `prefix`
    pub prefix: Option<String>,
    /// `environmentOverrides`, by environment.
    pub environment_overrides: BTreeMap<String, SecretString>,
}

/// A property that the schema does not accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{property}` {problem}")]
pub struct Refusal {
    /// The property's path, such as `billingPlan.details[0].label`; `body` for the whole.
    pub property: String,
    /// What is wrong, in words that follow the property's name.
    pub problem: String,
}

const OWNERSHIPS: [&str; 3] = ["owned", "linked", "sandbox"];
const STATUSES: [&str; 7] = [
    "ready",
    "pending",
    "onboarding",
    "suspended",
    "resumed",
    "uninstalled",
    "error",
];
const PLAN_TYPES: [&str; 2] = ["prepayment", "subscription"];
const LEVELS: [&str; 3] = ["info", "warn", "error"];
const ENVIRONMENTS: [&str; 3] = ["development", "preview", "production"];

fn fields(object: &Map<String, Value>, rules: Rules) -> Result<Update, Refusal> {
    let mut update = Update::default();
    for field in Field::ALL {
        let Some(value) = object.get(field.as_str()) else {
            continue;
        };
        if field == Field::Secrets {
            update.secrets = Some(secrets_field(value)?);
        } else {
            check_field(field, value, rules)?;
            update.fields.insert(field, value.clone());
        }
    }
    Ok(update)
}

fn check_field(field: Field, value: &Value, rules: Rules) -> Result<(), Refusal> {
    let name = field.as_str();
    match field {
        Field::Ownership => one_of(name, value, &OWNERSHIPS),
        Field::Name => text(name, value).map(drop),
        Field::Status => one_of(name, value, &STATUSES),
        Field::Metadata | Field::Extras => object_value(name, value),
        Field::BillingPlan => billing_plan(value),
        Field::Notification => notification(value, rules),
        Field::Secrets => secrets_field(value).map(drop),
    }
}

/// Further properties are allowed in a plan, but not in its details.
fn billing_plan(value: &Value) -> Result<(), Refusal> {
    let path = "billingPlan";
    let plan = object(path, value)?;
    text("billingPlan.id", required(path, plan, "id")?)?;
    one_of(
        "billingPlan.type",
        required(path, plan, "type")?,
        &PLAN_TYPES,
    )?;
    text("billingPlan.name", required(path, plan, "name")?)?;
    for name in ["description", "cost", "effectiveDate"] {
        if let Some(value) = plan.get(name) {
            text(&join(path, name), value)?;
        }
    }
    if let Some(value) = plan.get("paymentMethodRequired")
        && !value.is_boolean()
    {
        return Err(refusal(
            "billingPlan.paymentMethodRequired",
            "must be a boolean",
        ));
    }
    for name in ["details", "highlightedDetails"] {
        if let Some(value) = plan.get(name) {
            details(&join(path, name), value)?;
        }
    }
    Ok(())
}

fn details(path: &str, value: &Value) -> Result<(), Refusal> {
    for (index, item) in array(path, value)?.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let detail = object(&path, item)?;
        known(&path, detail, &["label", "value"])?;
        text(&join(&path, "label"), required(&path, detail, "label")?)?;
        if let Some(value) = detail.get("value") {
            text(&join(&path, "value"), value)?;
        }
    }
    Ok(())
}

fn notification(value: &Value, rules: Rules) -> Result<(), Refusal> {
    let path = "notification";
    match value {
        Value::String(_) => Ok(()),
        Value::Null if rules.null_clears_notification => Ok(()),
        Value::Object(notification) => {
            one_of(
                "notification.level",
                required(path, notification, "level")?,
                &LEVELS,
            )?;
            text("notification.title", required(path, notification, "title")?)?;
            if let Some(value) = notification.get("message") {
                text("notification.message", value)?;
            }
            match notification.get("href") {
                Some(value) => href(value),
                None => Ok(()),
            }
        }
        _ => Err(refusal(path, "must be an object or a string")),
    }
}

/// A URI that begins with `http://`, `https://` or `sso:`, as the published pattern has it.
fn href(value: &Value) -> Result<(), Refusal> {
    let path = "notification.href";
    let uri = text(path, value)?;
    let begins = ["http://", "https://", "sso:"]
        .iter()
        .any(|scheme| uri.len() > scheme.len() && uri.starts_with(scheme));
    if !begins {
        return Err(refusal(
            path,
            "must be a URI that begins with https://, http:// or sso:",
        ));
    }
    if !is_uri_text(uri) {
        return Err(refusal(
            path,
            "must be a URI: a character in it must be percent-encoded",
        ));
    }
    Ok(())
}

/// RFC 3986, section 2: the characters a URI may hold, with complete percent escapes.
fn is_uri_text(uri: &str) -> bool {
    let bytes = uri.as_bytes();
    bytes.iter().enumerate().all(|(at, byte)| match byte {
        b'%' => bytes
            .get(at + 1..at + 3)
            .is_some_and(|escape| escape.iter().all(u8::is_ascii_hexdigit)),
        _ => byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=".contains(byte),
    })
}

fn secrets_field(value: &Value) -> Result<SecretsUpdate, Refusal> {
    match value {
        Value::Array(items) => Ok(SecretsUpdate {
            secrets: secret_list("secrets", items)?,
            partial: false,
        }),
        Value::Object(object) => {
            known("secrets", object, &["secrets", "partial"])?;
            secrets_object("secrets", object)
        }
        _ => Err(refusal("secrets", "must be an array or an object")),
    }
}

fn secrets_object(path: &str, object: &Map<String, Value>) -> Result<SecretsUpdate, Refusal> {
    let list = join(path, "secrets");
    let items = array(&list, required(path, object, "secrets")?)?;
    let partial = match object.get("partial") {
        None => false,
        Some(Value::Bool(partial)) => *partial,
        Some(_) => return Err(refusal(join(path, "partial"), "must be a boolean")),
    };
    Ok(SecretsUpdate {
        secrets: secret_list(&list, items)?,
        partial,
    })
}

fn secret_list(path: &str, items: &[Value]) -> Result<Vec<Secret>, Refusal> {
    let mut names = BTreeSet::new();
    let mut secrets = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let secret = secret(&path, item)?;
        if !names.insert(secret.name.clone()) {
            return Err(refusal(
                join(&path, "name"),
                "names the same secret as an earlier item",
            ));
        }
        secrets.push(secret);
    }
    Ok(secrets)
}

fn secret(path: &str, value: &Value) -> Result<Secret, Refusal> {
    let secret = object(path, value)?;
    known(
        path,
        secret,
        &["name", "value", "prefix", "environmentOverrides"],
    )?;
    let name = text(&join(path, "name"), required(path, secret, "name")?)?;
    let value = text(&join(path, "value"), required(path, secret, "value")?)?;
    let prefix = match secret.get("prefix") {
        Some(prefix) => Some(text(&join(path, "prefix"), prefix)?.to_owned()),
        None => None,
    };
    let mut environment_overrides = BTreeMap::new();
    if let Some(overrides) = secret.get("environmentOverrides") {
        let path = join(path, "environmentOverrides");
        let overrides = object(&path, overrides)?;
        known(&path, overrides, &ENVIRONMENTS)?;
        for (environment, value) in overrides {
            let value = text(&join(&path, environment), value)?;
            environment_overrides.insert(environment.clone(), SecretString::from(value));
        }
    }
    Ok(Secret {
        name: name.to_owned(),
        value: SecretString::from(value),
        prefix,
        environment_overrides,
    })
}

fn known(path: &str, object: &Map<String, Value>, names: &[&str]) -> Result<(), Refusal> {
    match object.keys().find(|key| !names.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(refusal(
            join(path, key),
            format!("is not a property here; accepted: {}", names.join(", ")),
        )),
    }
}

fn required<'a>(
    path: &str,
    object: &'a Map<String, Value>,
    name: &str,
) -> Result<&'a Value, Refusal> {
    object
        .get(name)
        .ok_or_else(|| refusal(join(path, name), "is required"))
}

fn object<'a>(path: &str, value: &'a Value) -> Result<&'a Map<String, Value>, Refusal> {
    value
        .as_object()
        .ok_or_else(|| refusal(path, "must be an object"))
}

fn object_value(path: &str, value: &Value) -> Result<(), Refusal> {
    object(path, value).map(drop)
}

fn array<'a>(path: &str, value: &'a Value) -> Result<&'a [Value], Refusal> {
    value
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| refusal(path, "must be an array"))
}

fn text<'a>(path: &str, value: &'a Value) -> Result<&'a str, Refusal> {
    value
        .as_str()
        .ok_or_else(|| refusal(path, "must be a string"))
}

fn one_of(path: &str, value: &Value, accepted: &[&str]) -> Result<(), Refusal> {
    if accepted.contains(&text(path, value)?) {
        Ok(())
    } else {
        Err(refusal(
            path,
            format!("must be one of {}", accepted.join(", ")),
        ))
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn refusal(property: impl Into<String>, problem: impl Into<String>) -> Refusal {
    let property = property.into();
    Refusal {
        property: if property.is_empty() {
            "body".to_owned()
        } else {
            property
        },
        problem: problem.into(),
    }
}

#[cfg(test)]
mod tests;
