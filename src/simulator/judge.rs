//! What a request asks for, and what is wrong with it.
//!
//! Every violation is recorded before any fault strikes: what the client did wrong does not depend on the answer.

use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, USER_AGENT};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::answer::Answer;
use super::journal::{ViolationKind, redacted, secret_names};
use super::json::{self, ParseError};
use super::remote::{Record, Remote, wall_clock};
use super::route::{Operation, Route};
use super::schema::{self, Import, Refusal, SecretsUpdate, Update};
use super::tokens::Denial;
use super::world::ResourceKey;

/// A request that may be carried out.
#[derive(Clone, Debug)]
pub(super) enum Command {
    Update(ResourceKey, Update),
    Import(ResourceKey, Import),
    PutSecrets(ResourceKey, SecretsUpdate),
    Delete(ResourceKey),
    Get(ResourceKey),
    List(String),
    Grant { installation: String },
}

/// Decides what a request asks for, and records what is wrong with it.
///
/// # Errors
/// The answer to a request that is not let in or not understood.
pub(super) fn judge(
    remote: &Remote,
    route: &Route,
    headers: &HeaderMap,
    body: &[u8],
    record: &mut Record,
) -> Result<Command, Answer> {
    check_user_agent(remote, headers, record);
    match route {
        Route::Unknown | Route::WrongMethod => {
            let entry = record.entry();
            let detail = format!("{} {}", entry.method, entry.path);
            record.violation(ViolationKind::UnknownRoute, detail);
            Err(match route {
                Route::WrongMethod => Answer::error(405, "The path has no such method"),
                _ => Answer::error(404, "There is nothing at this path"),
            })
        }
        Route::Token => token_request(remote, headers, body, record),
        Route::List(installation) => {
            let admitted = admit(remote, installation, headers, record);
            admitted.map(|()| Command::List(installation.clone()))
        }
        Route::Resource(operation, key) => {
            // The body is read and judged first, so that its violations are found whoever sent it.
            let command = command(remote, *operation, key, headers, body, record);
            admit(remote, &key.installation_id, headers, record)?;
            command
        }
    }
}

fn check_user_agent(remote: &Remote, headers: &HeaderMap, record: &mut Record) {
    let expected = &remote.settings().user_agent;
    let accepted = headers
        .get(USER_AGENT)
        .and_then(|agent| agent.to_str().ok())
        .is_some_and(|agent| agent.starts_with(expected.as_str()));
    if !accepted {
        record.violation(
            ViolationKind::UserAgent,
            format!("User-Agent does not begin with {expected}"),
        );
    }
}

fn admit(
    remote: &Remote,
    installation: &str,
    headers: &HeaderMap,
    record: &mut Record,
) -> Result<(), Answer> {
    let token = bearer(headers);
    let now = wall_clock();
    let verdict = remote.with_world(|world| world.authorize(installation, token.as_ref(), now));
    let Err(denial) = verdict else {
        return Ok(());
    };
    let violation = match denial {
        Denial::ForeignToken { .. } => Some(ViolationKind::ForeignToken),
        Denial::MissingToken => Some(ViolationKind::MissingToken),
        _ => None,
    };
    if let Some(kind) = violation {
        record.violation(kind, denial.to_string());
    }
    Err(Answer::error(denial.status(), denial.to_string()))
}

fn bearer(headers: &HeaderMap) -> Option<SecretString> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| SecretString::from(token))
}

fn command(
    remote: &Remote,
    operation: Operation,
    key: &ResourceKey,
    headers: &HeaderMap,
    body: &[u8],
    record: &mut Record,
) -> Result<Command, Answer> {
    let key = key.clone();
    match operation {
        Operation::Get => return Ok(Command::Get(key)),
        Operation::Delete => return Ok(Command::Delete(key)),
        _ => {}
    }
    let body = json_body(remote, headers, body, record)?;
    let rules = remote.settings().rules;
    let command = match operation {
        Operation::Import => {
            schema::import(&body, rules).map(|import| Command::Import(key, import))
        }
        Operation::PutSecrets => {
            schema::secrets(&body).map(|secrets| Command::PutSecrets(key, secrets))
        }
        _ => schema::update(&body, rules).map(|update| Command::Update(key, update)),
    };
    let command = command.map_err(|refusal| refused(&refusal, record))?;
    let changes_nothing = match &command {
        Command::Update(_, update) => update.is_empty(),
        Command::PutSecrets(_, secrets) => secrets.partial && secrets.secrets.is_empty(),
        _ => false,
    };
    if changes_nothing {
        record.violation(
            ViolationKind::EmptyPatch,
            "the body can change nothing; it should not have been sent",
        );
    }
    Ok(command)
}

/// Reads the body, with its declaration, into the record and for the schema.
fn json_body(
    remote: &Remote,
    headers: &HeaderMap,
    body: &[u8],
    record: &mut Record,
) -> Result<Value, Answer> {
    let parsed = json::parse(body);
    // A body that is refused for a repeated property is still JSON, and its fields tell the reader what it was.
    if let Ok(value) = serde_json::from_slice::<Value>(body) {
        let kept = redacted(&value, remote.fingerprints());
        let entry = record.entry_mut();
        entry.fields = value
            .as_object()
            .map(|object| object.keys().cloned().collect())
            .unwrap_or_default();
        entry.secret_names = secret_names(&value);
        entry.body = Some(kept);
    }
    declared(headers, "application/json", record)?;
    parsed.map_err(|error: ParseError| {
        record.violation(ViolationKind::InvalidBody, error.to_string());
        Answer::error(400, format!("Invalid request: {error}"))
    })
}

fn declared(headers: &HeaderMap, media_type: &str, record: &mut Record) -> Result<(), Answer> {
    let matches = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|value| value.trim().eq_ignore_ascii_case(media_type));
    if matches {
        return Ok(());
    }
    let problem = format!("Content-Type must be {media_type}");
    record.violation(ViolationKind::ContentType, problem.clone());
    Err(Answer::error(415, problem))
}

fn refused(refusal: &Refusal, record: &mut Record) -> Answer {
    record.violation(ViolationKind::InvalidBody, refusal.to_string());
    Answer::error(400, format!("Invalid request: {refusal}"))
}

/// A `client_credentials` grant, RFC 6749 section 4.4, for the installation that the form names.
fn token_request(
    remote: &Remote,
    headers: &HeaderMap,
    body: &[u8],
    record: &mut Record,
) -> Result<Command, Answer> {
    let refuse = |status: u16, error: &str, description: &str| {
        Answer::new(
            status,
            serde_json::json!({"error": error, "error_description": description}),
        )
    };
    declared(headers, "application/x-www-form-urlencoded", record)?;
    let form = Form::parse(body);
    if form.get("grant_type") != Some("client_credentials") {
        return Err(refuse(
            400,
            "unsupported_grant_type",
            "grant_type must be client_credentials",
        ));
    }
    let (Some(id), Some(secret), Some(installation)) = (
        form.get("client_id"),
        form.get("client_secret"),
        form.get("installation_id"),
    ) else {
        return Err(refuse(
            400,
            "invalid_request",
            "client_id, client_secret and installation_id are required",
        ));
    };
    record.entry_mut().installation_id = Some(installation.to_owned());
    if !remote
        .settings()
        .accepts_client(id, &SecretString::from(secret))
    {
        return Err(refuse(401, "invalid_client", "the client is not known"));
    }
    if !remote.with_world(|world| world.may_grant(installation)) {
        return Err(refuse(
            400,
            "invalid_grant",
            "the installation is not there",
        ));
    }
    Ok(Command::Grant {
        installation: installation.to_owned(),
    })
}

/// A decoded form; its values may be secrets, so it has no `Debug`.
struct Form(Vec<(String, SecretString)>);

impl Form {
    fn parse(body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        Self(
            text.split('&')
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (decode(name), SecretString::from(decode(value))))
                .collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.expose_secret())
            .filter(|value| !value.is_empty())
    }
}

fn decode(text: &str) -> String {
    let text = text.replace('+', " ");
    percent_encoding::percent_decode_str(&text)
        .decode_utf8_lossy()
        .into_owned()
}
