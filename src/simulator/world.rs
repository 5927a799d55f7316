//! What the simulated Vercel holds, and what each operation does to it.
//!
//! Pure: no clock, no randomness, no I/O; the time is an argument. Guarantees that every applied change is kept in the
//! resource's history, and that no secret value or token shows in `Debug` output or in a history.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, SystemTime};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::fingerprint::Fingerprints;
use super::history::{Applied, Regression, regressions};
use super::schema::{Field, Import, Secret, SecretsUpdate, Update};
use super::tokens::{Denial, Tokens};

/// The changes that one resource's history keeps; the oldest go first.
const HISTORY_LIMIT: usize = 10_000;

/// Installations, their tokens and their resources.
#[derive(Debug)]
pub struct World {
    behaviour: Behaviour,
    fingerprints: Fingerprints,
    installations: BTreeMap<String, Installation>,
    tokens: Tokens,
    resources: BTreeMap<ResourceKey, Holding>,
    created: u64,
}

/// What is not published, or differs between accounts, and a run of the simulator decides.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Create an unknown installation with the first token it is called with, and an unknown resource with its first
    /// PATCH.
    pub auto_create: bool,
    /// What a new value of `metadata`, `extras` or `billingPlan` does to the old one.
    pub objects: ObjectUpdate,
    /// Requests that one installation may make per window; `None` for no limit.
    pub requests_per_window: Option<u32>,
    /// The length of the rate limit's window.
    pub rate_window: Duration,
    /// How long a token from the token endpoint is valid.
    pub token_lifetime: Duration,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            auto_create: false,
            objects: ObjectUpdate::Replace,
            requests_per_window: None,
            rate_window: Duration::from_secs(60),
            token_lifetime: Duration::from_secs(3600),
        }
    }
}

/// What a new object does to the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectUpdate {
    /// The new object stands in its place.
    #[default]
    Replace,
    /// Its properties are laid over the old ones; what it does not name stays.
    Merge,
}

/// A resource's identity: the installation and the provider's own id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ResourceKey {
    /// integrationConfigurationId
    pub installation_id: String,
    /// The provider's id for the resource.
    pub resource_id: String,
}

impl ResourceKey {
    /// The key of a resource within an installation.
    pub fn new(installation_id: impl Into<String>, resource_id: impl Into<String>) -> Self {
        Self {
            installation_id: installation_id.into(),
            resource_id: resource_id.into(),
        }
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            installation_id,
            resource_id,
        } = self;
        write!(
            formatter,
            "{}/{}",
            installation_id.escape_debug(),
            resource_id.escape_debug()
        )
    }
}

/// Why something that was there is there no longer, as the API says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Absence {
    /// 404
    NotFound,
    /// 410
    Gone,
    /// 403
    Forbidden,
}

impl Absence {
    /// The status that says so.
    pub fn status(self) -> u16 {
        match self {
            Self::NotFound => 404,
            Self::Gone => 410,
            Self::Forbidden => 403,
        }
    }
}

/// A resource as Vercel holds it; secret values do not show in `Debug`.
#[derive(Clone, Debug)]
pub struct RemoteResource {
    /// The id that Vercel assigned.
    pub internal_id: String,
    /// The product it belongs to.
    pub product_id: String,
    /// Every field that has a value, but secrets.
    pub fields: BTreeMap<Field, Value>,
    /// The secrets by name.
    pub secrets: BTreeMap<String, Secret>,
}

impl RemoteResource {
    /// A field's value; `None` when it has none. Secrets are not shown here.
    pub fn field(&self, field: Field) -> Option<&Value> {
        self.fields.get(&field)
    }

    /// A secret's value.
    pub fn secret(&self, name: &str) -> Option<&str> {
        self.secrets
            .get(name)
            .map(|secret| secret.value.expose_secret())
    }
}

/// The use one installation has made of its rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Requests per window.
    pub limit: u32,
    /// Requests left in this window.
    pub remaining: u32,
    /// When the window ends.
    pub reset: SystemTime,
    /// Whether this request is beyond the limit.
    pub exceeded: bool,
}

impl World {
    /// An empty world.
    pub fn new(behaviour: Behaviour, fingerprints: Fingerprints) -> Self {
        Self {
            behaviour,
            fingerprints,
            installations: BTreeMap::new(),
            tokens: Tokens::default(),
            resources: BTreeMap::new(),
            created: 0,
        }
    }

    /// Creates an installation, or brings an uninstalled one back.
    pub fn install(&mut self, installation: &str) {
        self.installations
            .entry(installation.to_owned())
            .or_default()
            .absence = None;
    }

    /// Makes every later request for this installation answer that it is gone.
    pub fn uninstall(&mut self, installation: &str, absence: Absence) {
        self.installations
            .entry(installation.to_owned())
            .or_default()
            .absence = Some(absence);
    }

    /// Whether the installation exists and is not uninstalled.
    pub fn is_installed(&self, installation: &str) -> bool {
        self.installations
            .get(installation)
            .is_some_and(|installation| installation.absence.is_none())
    }

    /// The tokens, to grant and revoke.
    pub fn tokens_mut(&mut self) -> &mut Tokens {
        &mut self.tokens
    }

    /// How long a granted token is valid from `now` on.
    pub fn token_expiry(&self, now: SystemTime) -> (Duration, SystemTime) {
        let lifetime = self.behaviour.token_lifetime;
        (lifetime, now + lifetime)
    }

    /// Whether the token endpoint may answer for an installation; creates it when that is allowed.
    pub fn may_grant(&mut self, installation: &str) -> bool {
        if !self.installations.contains_key(installation) && self.behaviour.auto_create {
            self.install(installation);
        }
        self.is_installed(installation)
    }

    /// Decides whether a token opens an installation.
    ///
    /// # Errors
    /// Why not. Another installation's token is told apart even when the installation is gone.
    pub fn authorize(
        &mut self,
        installation: &str,
        token: Option<&SecretString>,
        now: SystemTime,
    ) -> Result<(), Denial> {
        let token = token.ok_or(Denial::MissingToken)?;
        let verdict = self.tokens.check(installation, token, now);
        if let Err(Denial::ForeignToken { .. }) = verdict {
            return verdict;
        }
        if let Some(absence) = self
            .installations
            .get(installation)
            .and_then(|installation| installation.absence)
        {
            return Err(Denial::Uninstalled(absence));
        }
        let first_token = self.behaviour.auto_create && !self.tokens.has_any(installation);
        if verdict == Err(Denial::UnknownToken) && first_token {
            self.install(installation);
            self.tokens.grant(installation, token, None);
            return Ok(());
        }
        verdict
    }

    /// Counts a request against the installation's rate limit; `None` when there is no limit.
    pub fn count_request(&mut self, installation: &str, now: SystemTime) -> Option<Quota> {
        let limit = self.behaviour.requests_per_window?;
        let length = self.behaviour.rate_window;
        let installation = self.installations.get_mut(installation)?;
        let window = match installation.window {
            Some(window) if now < window.ends => window,
            _ => Window {
                ends: now + length,
                used: 0,
            },
        };
        let exceeded = window.used >= limit;
        let used = window.used + u32::from(!exceeded);
        installation.window = Some(Window { used, ..window });
        Some(Quota {
            limit,
            remaining: limit - used,
            reset: window.ends,
            exceeded,
        })
    }

    /// Applies a PATCH and answers the resource's name.
    ///
    /// # Errors
    /// The resource does not exist, and may not be created by a PATCH.
    pub fn update(
        &mut self,
        key: &ResourceKey,
        update: &Update,
        request: Option<u64>,
        at: SystemTime,
    ) -> Result<Value, Absence> {
        if !self.resources.contains_key(key) && self.behaviour.auto_create {
            self.create(key, "prod_simulated");
        }
        let resource = self.present(key)?;
        Ok(self.apply(key, resource, update, request, at))
    }

    /// Imports a resource: creates or updates it.
    pub fn import(
        &mut self,
        key: &ResourceKey,
        import: &Import,
        request: Option<u64>,
        at: SystemTime,
    ) -> Value {
        let Import { product_id, update } = import;
        let mut resource = match self.present(key) {
            Ok(resource) => resource,
            Err(_) => self.create(key, product_id),
        };
        resource.product_id.clone_from(product_id);
        self.apply(key, resource, update, request, at)
    }

    /// Sets secrets as `PUT …/secrets` does.
    ///
    /// # Errors
    /// The resource does not exist.
    pub fn put_secrets(
        &mut self,
        key: &ResourceKey,
        secrets: &SecretsUpdate,
        request: Option<u64>,
        at: SystemTime,
    ) -> Result<(), Absence> {
        let resource = self.present(key)?;
        let update = Update {
            fields: BTreeMap::new(),
            secrets: Some(secrets.clone()),
        };
        self.apply(key, resource, &update, request, at);
        Ok(())
    }

    /// Removes a resource; it stays absent until it is imported or seeded again. Its history stays.
    ///
    /// # Errors
    /// It does not exist.
    pub fn remove(&mut self, key: &ResourceKey, absence: Absence) -> Result<(), Absence> {
        self.present(key)?;
        if let Some(holding) = self.resources.get_mut(key) {
            holding.state = Err(absence);
        }
        Ok(())
    }

    /// What `GET …/resources/{id}` shows: never secrets, extras, ownership or a plan's details.
    ///
    /// # Errors
    /// The resource does not exist.
    pub fn show(&self, key: &ResourceKey) -> Result<Value, Absence> {
        let resource = self.present(key)?;
        let mut shown = summary(&resource);
        shown.insert("id".to_owned(), json!(key.resource_id));
        Ok(Value::Object(shown))
    }

    /// What `GET …/resources` shows.
    pub fn list(&self, installation: &str) -> Value {
        let resources: Vec<Value> = self
            .resources()
            .filter(|(key, _)| key.installation_id == installation)
            .map(|(key, resource)| {
                let mut shown = summary(resource);
                shown.insert("partnerId".to_owned(), json!(key.resource_id));
                Value::Object(shown)
            })
            .collect();
        json!({ "resources": resources })
    }

    /// Every resource that exists, by key.
    pub fn resources(&self) -> impl Iterator<Item = (&ResourceKey, &RemoteResource)> {
        self.resources
            .iter()
            .filter_map(|(key, holding)| Some((key, holding.state.as_ref().ok()?)))
    }

    /// One resource, when it exists.
    pub fn resource(&self, key: &ResourceKey) -> Option<&RemoteResource> {
        self.resources.get(key)?.state.as_ref().ok()
    }

    /// Every change of a resource that took effect, oldest first.
    pub fn history(&self, key: &ResourceKey) -> Vec<Applied> {
        self.resources
            .get(key)
            .map(|holding| holding.history.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// The times a field of the resource went back to a value it had left before.
    pub fn regressions(&self, key: &ResourceKey) -> Vec<Regression> {
        regressions(&self.history(key))
    }

    fn present(&self, key: &ResourceKey) -> Result<RemoteResource, Absence> {
        match self.resources.get(key) {
            Some(holding) => holding.state.clone(),
            None => Err(Absence::NotFound),
        }
    }

    fn create(&mut self, key: &ResourceKey, product_id: &str) -> RemoteResource {
        self.created += 1;
        let resource = RemoteResource {
            internal_id: format!("ir_{:06}", self.created),
            product_id: product_id.to_owned(),
            fields: BTreeMap::from([(Field::Name, json!(key.resource_id))]),
            secrets: BTreeMap::new(),
        };
        self.installations
            .entry(key.installation_id.clone())
            .or_default();
        let holding = self.resources.entry(key.clone()).or_insert(Holding {
            state: Err(Absence::NotFound),
            history: VecDeque::new(),
        });
        holding.state = Ok(resource.clone());
        resource
    }

    /// Lays an update over a resource, keeps the result and its history, and answers as the API does.
    fn apply(
        &mut self,
        key: &ResourceKey,
        mut resource: RemoteResource,
        update: &Update,
        request: Option<u64>,
        at: SystemTime,
    ) -> Value {
        let Update { fields, secrets } = update;
        let mut written = BTreeMap::new();
        for (field, value) in fields {
            let value = self.merged(*field, resource.fields.get(field), value);
            written.insert(*field, value.clone());
            match value {
                Value::Null => resource.fields.remove(field),
                value => resource.fields.insert(*field, value),
            };
        }
        if let Some(SecretsUpdate { secrets, partial }) = secrets {
            if !partial {
                resource.secrets.clear();
            }
            for secret in secrets {
                resource.secrets.insert(secret.name.clone(), secret.clone());
            }
            written.insert(Field::Secrets, self.fingerprinted(&resource.secrets));
        }
        let answer = json!({ "name": resource.fields.get(&Field::Name) });
        let holding = self
            .resources
            .get_mut(key)
            .expect("only resources that exist or were just created are updated");
        holding.state = Ok(resource);
        if !written.is_empty() {
            if holding.history.len() == HISTORY_LIMIT {
                holding.history.pop_front();
            }
            holding.history.push_back(Applied {
                at,
                request,
                fields: written,
            });
        }
        answer
    }

    /// The value a field has after `new` was written over `old`; null for none.
    fn merged(&self, field: Field, old: Option<&Value>, new: &Value) -> Value {
        let merges = matches!(field, Field::Metadata | Field::Extras | Field::BillingPlan)
            && self.behaviour.objects == ObjectUpdate::Merge;
        match (old, new) {
            (_, Value::String(text)) if field == Field::Notification && text.is_empty() => {
                Value::Null
            }
            (Some(Value::Object(old)), Value::Object(new)) if merges => {
                let mut merged = old.clone();
                merged.extend(new.clone());
                Value::Object(merged)
            }
            (_, new) => new.clone(),
        }
    }

    /// Secrets by name, with a fingerprint for each value.
    pub fn fingerprinted(&self, secrets: &BTreeMap<String, Secret>) -> Value {
        let shown = secrets.iter().map(|(name, secret)| {
            let Secret {
                name: _,
                value,
                prefix,
                environment_overrides,
            } = secret;
            let mut shown = Map::new();
            let fingerprint = self.fingerprints.of(value.expose_secret());
            shown.insert("value".to_owned(), json!(fingerprint));
            if let Some(prefix) = prefix {
                shown.insert("prefix".to_owned(), json!(prefix));
            }
            if !environment_overrides.is_empty() {
                let overrides: BTreeMap<&String, String> = environment_overrides
                    .iter()
                    .map(|(name, value)| (name, self.fingerprints.of(value.expose_secret())))
                    .collect();
                shown.insert("environmentOverrides".to_owned(), json!(overrides));
            }
            (name.clone(), Value::Object(shown))
        });
        Value::Object(shown.collect())
    }
}

#[derive(Debug, Default)]
struct Installation {
    absence: Option<Absence>,
    window: Option<Window>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    ends: SystemTime,
    used: u32,
}

/// A resource that exists or existed, with its history.
#[derive(Debug)]
struct Holding {
    state: Result<RemoteResource, Absence>,
    history: VecDeque<Applied>,
}

/// What both GET operations show of a resource.
fn summary(resource: &RemoteResource) -> Map<String, Value> {
    let RemoteResource {
        internal_id,
        product_id,
        fields,
        secrets: _,
    } = resource;
    let mut shown = Map::new();
    shown.insert("internalId".to_owned(), json!(internal_id));
    shown.insert("productId".to_owned(), json!(product_id));
    for field in [
        Field::Name,
        Field::Status,
        Field::Metadata,
        Field::Notification,
    ] {
        if let Some(value) = fields.get(&field) {
            shown.insert(field.as_str().to_owned(), value.clone());
        }
    }
    if let Some(id) = fields
        .get(&Field::BillingPlan)
        .and_then(|plan| plan.get("id"))
    {
        shown.insert("billingPlanId".to_owned(), id.clone());
    }
    shown
}

#[cfg(test)]
mod tests;
