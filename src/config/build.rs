//! From merged layers to typed sections.
//!
//! One function per section reads all its keys before it gives up, so that all problems are found; rules between keys come
//! last. A section is missing only when a problem was recorded.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::Config;
use super::cron::Cron;
use super::key::FORM;
use super::problem::code;
use super::read::{Fault, Reader, written};
use super::secret_file;
use super::section::{
    FormTemplate, GuardConfig, HttpConfig, LogConfig, OauthConfig, ReconcileConfig,
    RetentionConfig, RetryConfig, ScheduleConfig, SourceConfig, StateConfig, VercelConfig,
};
use super::url::{DatabaseScheme, DatabaseUrl};
use crate::model::{Field, FieldSet};

/// Reads every section; none when an error was recorded.
pub(crate) fn config(reader: &mut Reader<'_>) -> Option<Config> {
    let source = source(reader);
    let state = state(reader);
    // Read before their sections, so that the rule between them is checked also when something else there is wrong.
    let request_timeout = reader.duration("vercel.request_timeout", milliseconds(10)..=minutes(10));
    let lease = reader.duration("retry.lease", milliseconds(10)..=hours(1));
    let vercel = vercel(reader, request_timeout);
    let reconcile = reconcile(reader);
    let guard = guard(reader);
    let schedule = schedule(reader);
    let retry = retry(reader, lease);
    let retention = retention(reader);
    let log = log(reader);
    let http = http(reader);

    if let (Some(source), Some(state)) = (&source, &state) {
        apart(reader, source, state);
    }
    if let (Some(lease), Some(request_timeout)) = (lease, request_timeout) {
        lease_outlasts_requests(reader, lease, request_timeout);
    }
    Some(Config {
        source: source?,
        state: state?,
        vercel: vercel?,
        reconcile: reconcile?,
        guard: guard?,
        schedule: schedule?,
        retry: retry?,
        retention: retention?,
        log: log?,
        http: http?,
    })
}

/// What a source URL may begin with.
const SOURCE_URLS: &str = "postgres://user@host/database, mysql://…, mariadb://… or sqlite:///file; \
                           special characters of a password percent-encoded";

/// What a state URL may begin with.
const STATE_URLS: &str =
    "sqlite:///var/lib/reconciled/state.db, or postgres://… for several replicas";

fn source(reader: &mut Reader<'_>) -> Option<SourceConfig> {
    let secret = reader.secret("source.url");
    if matches!(secret, Some(None)) {
        reader.missing("source.url", "\"postgres://reconciled@db/provider\"");
    }
    let url = secret
        .flatten()
        .and_then(|secret| reader.parsed_secret::<DatabaseUrl>(&secret, SOURCE_URLS));
    let query = reader.required_text(
        "source.query",
        "\"SELECT installation_id, resource_id, … FROM …\"",
    );
    let installations_query = installations_query(reader);
    let overlap = reader.overlap("source.overlap", Duration::ZERO..=days(7));
    let statement_timeout =
        reader.duration("source.statement_timeout", milliseconds(10)..=hours(1));
    let max_connections = positive(reader, "source.max_connections", 100);
    let listen = reader.optional_parsed("source.listen", channel);
    let feed = reader.optional_parsed("source.feed", table);
    let allow_replica = reader.switch("source.allow_replica");
    if let (Some(url), Some(Some(_))) = (&url, &listen)
        && url.scheme() != DatabaseScheme::Postgres
    {
        let help = "listen = \"\": the schedule polls without it";
        reader.refuse(
            "source.listen",
            Fault::new(code::CONFLICT, "works with PostgreSQL only", help),
        );
    }
    Some(SourceConfig {
        url: url?,
        query: query?,
        installations_query: installations_query?,
        overlap: overlap?,
        statement_timeout: statement_timeout?,
        max_connections: max_connections?,
        listen: listen?,
        feed: feed?,
        allow_replica: allow_replica?,
    })
}

/// Required unless tokens come from an OAuth grant.
fn installations_query(reader: &mut Reader<'_>) -> Option<Option<String>> {
    if reader.layers().is_set(OAUTH) {
        return reader.optional_text("source.installations_query");
    }
    let example = "\"SELECT installation_id, access_token FROM …\"";
    reader
        .required_text("source.installations_query", example)
        .map(Some)
}

fn state(reader: &mut Reader<'_>) -> Option<StateConfig> {
    let secret = reader.secret("state.url");
    if matches!(secret, Some(None)) {
        reader.missing("state.url", "\"sqlite:///var/lib/reconciled/state.db\"");
    }
    let secret = secret.flatten()?;
    let url: DatabaseUrl = reader.parsed_secret(&secret, STATE_URLS)?;
    if url.scheme() == DatabaseScheme::MySql {
        let fault = Fault::new(
            code::URL,
            "is no usable URL: the state is kept in SQLite or PostgreSQL",
            STATE_URLS,
        );
        reader.refuse(&secret.key, fault);
        return None;
    }
    if url.is_memory() {
        let message = "[state] url keeps the state in memory: a restart pushes everything again";
        reader.warn(code::MEMORY_STATE, &secret.key, message, STATE_URLS);
    }
    Some(StateConfig { url })
}

/// The section whose presence switches from stored tokens to an OAuth grant.
const OAUTH: &str = "vercel.oauth";

/// What an address that secrets are sent to may look like.
const HTTP_URLS: &str =
    "https://host, or http:// on 127.0.0.1, ::1 and localhost; no user, query or fragment";

fn vercel(reader: &mut Reader<'_>, request_timeout: Option<Duration>) -> Option<VercelConfig> {
    let base_url = url(reader, "vercel.base_url", HTTP_URLS);
    let connect_timeout = reader.duration("vercel.connect_timeout", milliseconds(10)..=minutes(10));
    let max_in_flight = positive(reader, "vercel.max_in_flight", 10_000);
    let per_installation = positive(reader, "vercel.max_in_flight_per_installation", 10_000);
    let requests_per_minute =
        reader.count("vercel.requests_per_minute_per_installation", 0..=1_000_000);
    let secrets_endpoint = reader.choice("vercel.secrets_endpoint");
    let clear_notification = reader.choice("vercel.clear_notification");
    let ca_file = reader.optional_parsed("vercel.ca_file", certificates);
    let proxy = reader.optional_parsed("vercel.proxy", |text| {
        let help = "http://host:port or https://host:port, with user:password@ where needed";
        text.parse()
            .map_err(|error| Fault::new(code::URL, format!("is no usable URL: {error}"), help))
    });
    let oauth = if reader.layers().is_set(OAUTH) {
        oauth(reader).map(Some)
    } else {
        Some(None)
    };
    let per_installation = match (max_in_flight, per_installation) {
        (Some(all), Some(one)) => share(reader, all, one),
        _ => None,
    };
    Some(VercelConfig {
        base_url: base_url?,
        request_timeout: request_timeout?,
        connect_timeout: connect_timeout?,
        max_in_flight: size(max_in_flight?),
        max_in_flight_per_installation: size(per_installation?),
        requests_per_minute_per_installation: NonZeroU32::new(requests_per_minute?),
        secrets_endpoint: secrets_endpoint?,
        clear_notification: clear_notification?,
        ca_file: ca_file?,
        proxy: proxy?,
        oauth: oauth?,
    })
}

/// One installation's share of all requests: a default gives way to a smaller total, a configured one must fit.
fn share(reader: &mut Reader<'_>, all: NonZeroU32, one: NonZeroU32) -> Option<NonZeroU32> {
    let key = "vercel.max_in_flight_per_installation";
    if one > all && reader.layers().is_set(key) {
        let what = format!("{one} exceeds `vercel.max_in_flight` {all}");
        reader.refuse(
            key,
            Fault::new(code::CONFLICT, what, format!("at most {all}")),
        );
        return None;
    }
    Some(one.min(all))
}

fn oauth(reader: &mut Reader<'_>) -> Option<OauthConfig> {
    let token_url = match reader.required_text("vercel.oauth.token_url", "\"https://…\"") {
        Some(_) => url(reader, "vercel.oauth.token_url", HTTP_URLS),
        None => None,
    };
    let client_id = reader.required_text("vercel.oauth.client_id", "\"oac_…\"");
    let secret = reader.secret("vercel.oauth.client_secret");
    if matches!(secret, Some(None)) {
        reader.missing(
            "vercel.oauth.client_secret_file",
            "\"/run/credentials/reconciled.service/client_secret\"",
        );
    }
    let form = form(reader);
    Some(OauthConfig {
        token_url: token_url?,
        client_id: client_id?,
        client_secret: secret.flatten()?.value,
        form: form?,
    })
}

fn form(reader: &mut Reader<'_>) -> Option<std::collections::BTreeMap<String, FormTemplate>> {
    let mut form = Some(std::collections::BTreeMap::new());
    for (name, text) in reader.table(FORM)? {
        match FormTemplate::new(&text) {
            Ok(template) => {
                form.as_mut().map(|form| form.insert(name, template));
            }
            Err(_) => {
                let what = format!(
                    "has an unknown placeholder in the value of `{}`",
                    name.escape_debug()
                );
                let help = "the only placeholder is {installation_id}";
                reader.refuse(FORM, Fault::new(code::TEMPLATE, what, help));
                form = None;
                break;
            }
        }
    }
    form
}

fn reconcile(reader: &mut Reader<'_>) -> Option<ReconcileConfig> {
    let first_sight = reader.choice("reconcile.first_sight");
    let on_missing = reader.choice("reconcile.on_missing");
    let on_drift = reader.choice("reconcile.on_drift");
    let sweep_rows_per_second = reader.count("reconcile.sweep_rows_per_second", 0..=1_000_000);
    let ignore = ignore(reader);
    Some(ReconcileConfig {
        first_sight: first_sight?,
        on_missing: on_missing?,
        on_drift: on_drift?,
        sweep_rows_per_second: NonZeroU32::new(sweep_rows_per_second?),
        ignore: ignore?,
    })
}

fn ignore(reader: &mut Reader<'_>) -> Option<FieldSet> {
    let key = "reconcile.ignore";
    let mut fields = FieldSet::EMPTY;
    let mut usable = true;
    for name in reader.list(key)? {
        if let Some(field) = Field::from_wire_name(&name) {
            fields = fields.with(field);
            continue;
        }
        let what = format!(
            "names a field that does not exist: {}",
            super::problem::quoted(&name)
        );
        reader.refuse(key, Fault::new(code::FIELD, what, field_help(&name)));
        usable = false;
    }
    usable.then_some(fields)
}

fn field_help(name: &str) -> String {
    let names = Field::ALL.map(Field::wire_name);
    let plain = |text: &str| text.replace(['_', '-'], "").to_lowercase();
    let distance = |field: &&str| strsim::damerau_levenshtein(&plain(field), &plain(name));
    let near = names
        .into_iter()
        .min_by_key(distance)
        .filter(|field| distance(field) <= 2);
    let near = near
        .map(|field| format!("did you mean \"{field}\"? "))
        .unwrap_or_default();
    format!("{near}fields: {}", names.join(", "))
}

fn guard(reader: &mut Reader<'_>) -> Option<GuardConfig> {
    let destructive_max = reader.count("guard.destructive_max", 0..=u32::MAX);
    let changes_max = reader.count("guard.changes_max", 0..=u32::MAX);
    Some(GuardConfig {
        destructive_max: NonZeroU32::new(destructive_max?),
        changes_max: NonZeroU32::new(changes_max?),
    })
}

fn schedule(reader: &mut Reader<'_>) -> Option<ScheduleConfig> {
    let poll = reader.optional_parsed("schedule.poll", cron);
    let sweep = reader.optional_parsed("schedule.sweep", cron);
    let drift = reader.optional_parsed("schedule.drift", cron);
    let prune = reader.optional_parsed("schedule.prune", cron);
    let schedule = ScheduleConfig {
        poll: poll?,
        sweep: sweep?,
        drift: drift?,
        prune: prune?,
    };
    if schedule.poll.is_none() && schedule.sweep.is_none() {
        let message = "[schedule] poll and sweep are both off: changes are only seen at start";
        reader.warn(
            code::NO_SCHEDULE,
            "schedule.poll",
            message,
            "poll = \"*/5 * * * * *\"",
        );
    }
    Some(schedule)
}

/// Longest wait that may be configured. An attempt due further away than some minutes is taken for the trace of a clock that was
/// set back, and made at once (`plan::claim::DUE_HORIZON`); every wait stays well below.
const WAIT_MAX: Duration = minutes(15);

fn retry(reader: &mut Reader<'_>, lease: Option<Duration>) -> Option<RetryConfig> {
    let initial_interval = reader.duration("retry.initial_interval", milliseconds(1)..=WAIT_MAX);
    let multiplier = reader.number("retry.multiplier", 1.0..=100.0);
    let max_interval = reader.duration("retry.max_interval", milliseconds(1)..=WAIT_MAX);
    let max_elapsed = reader.duration_or_none("retry.max_elapsed", seconds(1)..=years(10));
    let max_conflicts = positive(reader, "retry.max_conflicts", 1_000);
    let late_apply = reader.duration("retry.late_apply", Duration::ZERO..=WAIT_MAX);
    if let (Some(initial), Some(max)) = (initial_interval, max_interval)
        && max < initial
    {
        let what = format!(
            "{} is below `retry.initial_interval` {}",
            written(max),
            written(initial)
        );
        let help = format!("at least max_interval = \"{}\"", written(initial));
        reader.refuse("retry.max_interval", Fault::new(code::CONFLICT, what, help));
    }
    Some(RetryConfig {
        initial_interval: initial_interval?,
        multiplier: multiplier?,
        max_interval: max_interval?,
        max_elapsed: max_elapsed?,
        max_conflicts: max_conflicts?,
        lease: lease?,
        late_apply: late_apply?,
    })
}

fn retention(reader: &mut Reader<'_>) -> Option<RetentionConfig> {
    let delivered = reader.duration("retention.delivered", Duration::ZERO..=years(10));
    let attempts = reader.duration("retention.attempts", Duration::ZERO..=years(10));
    Some(RetentionConfig {
        delivered: delivered?,
        attempts: attempts?,
    })
}

fn log(reader: &mut Reader<'_>) -> Option<LogConfig> {
    let format = reader.choice("log.format");
    let filter = reader.parsed("log.filter", filter);
    let summary_interval =
        reader.duration_or_none("log.summary_interval", milliseconds(10)..=days(1));
    Some(LogConfig {
        format: format?,
        filter: filter?,
        summary_interval: summary_interval?,
    })
}

fn http(reader: &mut Reader<'_>) -> Option<HttpConfig> {
    let listen = reader.optional_parsed("http.listen", |text| {
        let help = "an IP address and a port: \"127.0.0.1:9464\", \"[::]:9464\"; \"\" for none";
        text.trim()
            .parse()
            .map_err(|_| Fault::new(code::ADDRESS, "is no address with a port", help))
    });
    Some(HttpConfig { listen: listen? })
}

/// The source is only ever read, so the state cannot live in it.
fn apart(reader: &mut Reader<'_>, source: &SourceConfig, state: &StateConfig) {
    let same_file = source
        .url
        .sqlite_path()
        .is_some_and(|path| Some(path) == state.url.sqlite_path());
    if same_file {
        let help = "the source is only read; give the state a file of its own";
        reader.refuse(
            "state.url",
            Fault::new(code::CONFLICT, "is the same file as `source.url`", help),
        );
    }
}

/// A claim must hold longer than the request it covers, with room for the database around it.
fn lease_outlasts_requests(reader: &mut Reader<'_>, lease: Duration, timeout: Duration) {
    let help = format!("lease = \"{}\"", written(timeout * 2));
    if lease <= timeout {
        let what = format!(
            "{} does not exceed `vercel.request_timeout` {}",
            written(lease),
            written(timeout)
        );
        reader.refuse("retry.lease", Fault::new(code::CONFLICT, what, help));
        return;
    }
    let room = lease.saturating_sub(timeout);
    if room < timeout {
        let message = format!(
            "[retry] lease {} leaves {} beyond request_timeout {}",
            written(lease),
            written(room),
            written(timeout)
        );
        reader.warn(code::LEASE_ROOM, "retry.lease", message, help);
    }
}

fn positive(reader: &mut Reader<'_>, key: &str, max: u32) -> Option<NonZeroU32> {
    reader.count(key, 1..=max).and_then(NonZeroU32::new)
}

fn size(count: NonZeroU32) -> NonZeroUsize {
    NonZeroUsize::try_from(count).expect("a usize holds a u32 on every platform that runs this")
}

fn url<T>(reader: &mut Reader<'_>, key: &str, help: &str) -> Option<T>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    reader.parsed(key, |text| {
        text.parse()
            .map_err(|error| Fault::new(code::URL, format!("is no usable URL: {error}"), help))
    })
}

fn cron(text: &str) -> Result<Cron, Fault> {
    text.parse().map_err(|error: super::cron::CronError| {
        let what = match error.reason {
            Some(reason) => format!("is no cron expression ({reason})"),
            None => "is no cron expression".to_owned(),
        };
        let help = match error.suggestion {
            Some(suggestion) => {
                format!("six fields, seconds first, UTC: \"{suggestion}\" is the same with seconds")
            }
            None => "six fields, seconds first, UTC: \"0 0 * * * *\" is every hour".to_owned(),
        };
        Fault::new(code::CRON, what, help)
    })
}

/// A filter parses; a word alone must be a level, since a misspelt level would silence everything.
fn filter(text: &str) -> Result<String, Fault> {
    let help = "a level (error, warn, info, debug, trace, off), then exceptions: \"info,reconciled::dispatch=debug\"";
    let fault = |what: &str| Fault::new(code::FILTER, what, help);
    let directives = || {
        text.split(',')
            .map(str::trim)
            .filter(|directive| !directive.is_empty())
    };
    if directives().next().is_none() {
        return Err(fault("is empty"));
    }
    for directive in directives() {
        let alone = !directive.contains(['=', '[', ']', '{', '}']);
        if alone
            && directive
                .parse::<tracing_subscriber::filter::LevelFilter>()
                .is_err()
        {
            return Err(fault("names no level"));
        }
    }
    EnvFilter::try_new(text).map_err(|_| fault("is no log filter"))?;
    Ok(text.to_owned())
}

/// A PostgreSQL channel name (NAMEDATALEN - 1 bytes).
fn channel(text: &str) -> Result<String, Fault> {
    let usable =
        text.len() <= IDENTIFIER_BYTES_MAX && !text.contains(['"', '\0']) && text.trim() == text;
    let help = "the name given to NOTIFY, at most 63 bytes, without quotes";
    usable
        .then(|| text.to_owned())
        .ok_or_else(|| Fault::new(code::NAME, "is no channel name", help))
}

/// `table` or `schema.table`.
fn table(text: &str) -> Result<String, Fault> {
    let identifier = |part: &str| {
        let mut characters = part.chars();
        let first = characters
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic() || first == '_');
        let rest =
            characters.all(|character| character.is_ascii_alphanumeric() || character == '_');
        first && rest && part.len() <= IDENTIFIER_BYTES_MAX
    };
    let parts: Vec<&str> = text.split('.').collect();
    let usable = parts.len() <= 2 && parts.iter().all(|part| identifier(part));
    let help = "table or schema.table: ASCII letters, digits and underscores";
    usable
        .then(|| text.to_owned())
        .ok_or_else(|| Fault::new(code::NAME, "is no table name", help))
}

/// Longest identifier of PostgreSQL; MySQL allows 64 characters.
const IDENTIFIER_BYTES_MAX: usize = 63;

fn certificates(text: &str) -> Result<PathBuf, Fault> {
    let path = PathBuf::from(text);
    let help = "a readable PEM file of certificate authorities; \"\" for none beyond the system's";
    match secret_file::check_certificates(&path) {
        Ok(()) => Ok(path),
        Err(error) => {
            let error = error.to_string();
            let reason = error.strip_prefix(text).unwrap_or(&error).trim_start();
            Err(Fault::new(
                code::CA_FILE,
                format!("cannot be used ({reason})"),
                help,
            ))
        }
    }
}

const fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

const fn minutes(count: u64) -> Duration {
    seconds(60 * count)
}

const fn hours(count: u64) -> Duration {
    minutes(60 * count)
}

const fn days(count: u64) -> Duration {
    hours(24 * count)
}

/// Years as humantime writes them, of 365.25 days.
const fn years(count: u64) -> Duration {
    seconds(31_557_600 * count)
}
