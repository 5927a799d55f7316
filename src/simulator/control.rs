//! Remote control over HTTP, under `/_simulator/`: faults, tokens, seeds, and what happened.
//!
//! Not part of the simulated API and never in the journal. Shows secret values as fingerprints, unless the simulator was
//! started to reveal them. `docs/simulator.md` has an example of each request.

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Request, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::answer::{Answer, Body};
use super::api::BODY_LIMIT;
use super::fault::Rule;
use super::journal::ViolationKind;
use super::remote::{Remote, random_token};
use super::route::{Route, decode};
use super::weather::Weather;
use super::world::{Absence, RemoteResource, ResourceKey};

/// Where the remote control's paths begin.
pub(super) const PREFIX: &str = "/_simulator/";

/// Answers one request of the remote control.
pub(super) async fn answer(remote: Remote, request: Request<Incoming>) -> Response<Body> {
    let (head, incoming) = request.into_parts();
    let body = match Limited::new(incoming, BODY_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return Answer::error(413, "The body is too long").into_response("sim1::control"),
    };
    let call = Call {
        remote: &remote,
        method: head.method.as_str(),
        query: head.uri.query().unwrap_or(""),
        headers: &head.headers,
        body: &body,
    };
    let path = head.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let parts: Option<Vec<String>> = path.split('/').map(decode).collect();
    let answer = match parts {
        Some(parts) => {
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            call.answer(&parts).unwrap_or_else(|refusal| refusal)
        }
        None => Answer::error(404, "There is nothing at this path"),
    };
    answer.into_response("sim1::control")
}

struct Call<'a> {
    remote: &'a Remote,
    method: &'a str,
    query: &'a str,
    headers: &'a HeaderMap,
    body: &'a [u8],
}

impl Call<'_> {
    fn answer(&self, parts: &[&str]) -> Result<Answer, Answer> {
        let remote = self.remote;
        match (self.method, parts) {
            (method, ["trap", ..]) => Ok(self.trap(method)),
            ("GET", ["faults"]) => Ok(shown("faults", &remote.rules())),
            ("POST", ["faults"]) => self.add_faults(),
            ("DELETE", ["faults"]) => {
                remote.clear_faults();
                Ok(Answer::no_content())
            }
            ("PUT", ["weather"]) => self.set_weather(Some(self.read()?)),
            ("DELETE", ["weather"]) => self.set_weather(None),
            ("POST", ["release"]) => {
                remote.release();
                Ok(Answer::no_content())
            }
            ("GET", ["resources"]) => Ok(self.resources()),
            ("GET", ["resources", installation, resource, "history"]) => {
                let history = remote.history(installation, resource);
                Ok(shown("history", &history))
            }
            ("DELETE", ["resources", installation, resource]) => {
                let absence = self.absence()?;
                remote
                    .remove_resource(installation, resource, absence)
                    .map(|()| Answer::no_content())
                    .map_err(|_| Answer::error(404, "There is no such resource"))
            }
            ("GET", ["requests"]) => self.requests(),
            ("GET", ["violations"]) => Ok(shown("violations", &remote.violations())),
            ("POST", ["installations"]) => self.install(),
            ("POST", ["installations", installation, "token"]) => self.token(installation),
            ("DELETE", ["installations", installation]) => {
                remote.uninstall(installation, self.absence()?);
                Ok(Answer::no_content())
            }
            ("POST", ["seed"]) => self.seed(),
            _ => Err(Answer::error(404, "The remote control has no such request")),
        }
    }

    fn add_faults(&self) -> Result<Answer, Answer> {
        let FaultsBody { rules } = self.read()?;
        for rule in rules {
            self.remote.add_rule(rule);
        }
        let mut answer = shown("faults", &self.remote.rules());
        answer.status = 201;
        Ok(answer)
    }

    fn set_weather(&self, weather: Option<Weather>) -> Result<Answer, Answer> {
        self.remote
            .set_weather(weather)
            .map(|()| Answer::no_content())
            .map_err(|error| Answer::error(400, error.to_string()))
    }

    fn resources(&self) -> Answer {
        let resources: Vec<Value> = self
            .remote
            .resources()
            .iter()
            .map(|(key, resource)| self.resource(key, resource))
            .collect();
        Answer::new(200, json!({ "resources": resources }))
    }

    fn resource(&self, key: &ResourceKey, resource: &RemoteResource) -> Value {
        let RemoteResource {
            internal_id,
            product_id,
            fields,
            secrets,
        } = resource;
        let secrets = if self.remote.settings().reveal_secrets {
            secrets
                .iter()
                .map(|(name, secret)| (name.clone(), json!(secret.value.expose_secret())))
                .collect::<Map<_, _>>()
                .into()
        } else {
            self.remote.with_world(|world| world.fingerprinted(secrets))
        };
        json!({
            "installation_id": key.installation_id,
            "resource_id": key.resource_id,
            "internal_id": internal_id,
            "product_id": product_id,
            "fields": fields,
            "secrets": secrets,
        })
    }

    fn requests(&self) -> Result<Answer, Answer> {
        let after = match self.parameter("after") {
            Some(text) => text
                .parse::<u64>()
                .map_err(|_| Answer::error(400, "`after` must be the number of a request"))?,
            None => 0,
        };
        let mut requests = self.remote.requests();
        requests.retain(|entry| entry.number > after);
        Ok(shown("requests", &requests))
    }

    fn install(&self) -> Result<Answer, Answer> {
        let InstallBody {
            installation_id,
            token,
        } = self.read()?;
        let token = token.map_or_else(random_token, SecretString::from);
        self.remote.install(&installation_id, &token);
        Ok(Answer::new(
            201,
            json!({"installation_id": installation_id, "token": token.expose_secret()}),
        ))
    }

    fn token(&self, installation: &str) -> Result<Answer, Answer> {
        let TokenBody { token, revoke } = self.read()?;
        if revoke {
            self.remote.revoke_tokens(installation);
            return Ok(Answer::no_content());
        }
        let token = token.map_or_else(random_token, SecretString::from);
        self.remote.rotate_token(installation, &token);
        Ok(Answer::new(200, json!({"token": token.expose_secret()})))
    }

    fn seed(&self) -> Result<Answer, Answer> {
        let SeedBody { resources } = self.read()?;
        for (index, seed) in resources.iter().enumerate() {
            let SeedResource {
                installation_id,
                resource_id,
                fields,
            } = seed;
            self.remote
                .seed(installation_id, resource_id, fields)
                .map_err(|refusal| Answer::error(400, format!("resources[{index}]: {refusal}")))?;
        }
        Ok(Answer::new(201, json!({"seeded": resources.len()})))
    }

    /// Where tests let redirects point: whoever comes here followed one.
    fn trap(&self, method: &str) -> Answer {
        let path = format!("{PREFIX}trap");
        let mut record = self.remote.begin(method, &path, &Route::Unknown);
        let mut detail = "a redirect was followed".to_owned();
        if self.headers.contains_key(hyper::header::AUTHORIZATION) {
            detail.push_str(", with the token");
        }
        if !self.body.is_empty() {
            detail.push_str(", with the body");
        }
        record.violation(ViolationKind::FollowedRedirect, detail);
        record.finish(super::journal::Outcome::Answered(200));
        Answer::new(200, json!({"name": "trap"}))
    }

    fn absence(&self) -> Result<Absence, Answer> {
        match self.parameter("answer") {
            None | Some("404") => Ok(Absence::NotFound),
            Some("410") => Ok(Absence::Gone),
            Some("403") => Ok(Absence::Forbidden),
            Some(_) => Err(Answer::error(400, "`answer` must be 404, 410 or 403")),
        }
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(found, _)| *found == name)
            .map(|(_, value)| value)
    }

    /// Reads a JSON body; the declaration is required so that no web page can send one unasked.
    fn read<T: DeserializeOwned>(&self) -> Result<T, Answer> {
        let declared = self
            .headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with("application/json"));
        if !declared {
            return Err(Answer::error(415, "Content-Type must be application/json"));
        }
        serde_json::from_slice(self.body).map_err(|error| Answer::error(400, error.to_string()))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultsBody {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InstallBody {
    installation_id: String,
    token: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenBody {
    token: Option<String>,
    #[serde(default)]
    revoke: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SeedBody {
    resources: Vec<SeedResource>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SeedResource {
    installation_id: String,
    resource_id: String,
    fields: Value,
}

fn shown<T: serde::Serialize>(name: &str, items: &[T]) -> Answer {
    let items: Vec<Value> = items
        .iter()
        .map(|item| serde_json::to_value(item).expect("the journal and the rules are plain data"))
        .collect();
    let mut body = Map::new();
    body.insert(name.to_owned(), Value::Array(items));
    Answer::new(200, Value::Object(body))
}
