//! The configuration: layered, typed, checked as a whole.
//!
//! Defaults (`config/reconciled.toml`), one file, the environment and flags are merged in this order; every problem is found
//! in one pass and reported with its key and origin. Loading reads files but never connects anywhere, and no secret enters
//! a problem, a `Debug` or a `Display`.

mod build;
mod change;
mod cron;
mod file;
mod key;
mod layer;
mod problem;
mod read;
mod secret_file;
mod section;
mod text;
mod url;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use change::{Change, Reload};
pub use cron::{Cron, CronError};
pub use problem::{ConfigError, Origin, Problem, Severity, code, render};
pub use section::{
    ClearNotification, FirstSight, FormTemplate, GuardConfig, HttpConfig, LogConfig, LogFormat,
    OauthConfig, OnDrift, OnMissing, Overlap, ReconcileConfig, RetentionConfig, RetryConfig,
    ScheduleConfig, SecretsEndpoint, SourceConfig, StateConfig, VercelConfig,
};
pub use url::{DatabaseScheme, DatabaseUrl, HttpUrl, ProxyUrl, UrlError};

use layer::Layers;
use read::Reader;
use secret_file::{READABLE_BY_OTHERS, SecretFileError};

/// A complete and valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The provider's database.
    pub source: SourceConfig,
    /// The daemon's database.
    pub state: StateConfig,
    /// Vercel's API.
    pub vercel: VercelConfig,
    /// What follows from what the source says.
    pub reconcile: ReconcileConfig,
    /// The limits of one pass.
    pub guard: GuardConfig,
    /// When passes begin.
    pub schedule: ScheduleConfig,
    /// Backoff and leases.
    pub retry: RetryConfig,
    /// How long finished work is kept.
    pub retention: RetentionConfig,
    /// Log lines.
    pub log: LogConfig,
    /// Health and metrics.
    pub http: HttpConfig,
}

impl Config {
    /// The annotated reference, which is also the defaults.
    pub const REFERENCE: &str = include_str!("../config/reconciled.toml");

    /// Loads a configuration; reads nothing of the process but what the options hold.
    ///
    /// Fails with every problem at once.
    pub fn load(options: &LoadOptions) -> Result<Loaded, ConfigError> {
        let found = FoundFile::look(options);
        load(found, options)
    }

    /// Loads a configuration from the text of a file alone.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let found = FoundFile {
            path: Some("reconciled.toml".into()),
            text: text.to_owned(),
            ..FoundFile::default()
        };
        load(found, &LoadOptions::default()).map(|loaded| loaded.config)
    }
}

/// Where a configuration comes from.
///
/// The default options hold nothing: no file, no variables, no flags.
#[derive(Clone, Default)]
pub struct LoadOptions {
    /// The file named by the operator; it must exist.
    pub path: Option<PathBuf>,
    /// Files that are looked for when none is named; the first that exists is read.
    pub search: Vec<PathBuf>,
    /// Environment variables; only those named `RECONCILED__…` are read.
    pub env: Vec<(OsString, OsString)>,
    /// Flags: `key=value` with dotted keys; a later one replaces an earlier one.
    pub overrides: Vec<String>,
}

impl LoadOptions {
    /// Files that are looked for when none is named.
    pub const SEARCH: [&str; 2] = ["/etc/reconciled/reconciled.toml", "./reconciled.toml"];

    /// Options of this process: its environment and the usual files.
    pub fn of_process(path: Option<PathBuf>, overrides: Vec<String>) -> Self {
        Self {
            path,
            search: Self::SEARCH.map(PathBuf::from).to_vec(),
            env: std::env::vars_os().collect(),
            overrides,
        }
    }
}

/// A configuration with what is worth knowing about how it was found.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Risks that it can be used with.
    pub warnings: Vec<Problem>,
    /// The file that was read, if any.
    pub path: Option<PathBuf>,
    /// How many keys there are.
    pub keys_total: usize,
    /// How many of them the file sets.
    pub keys_from_file: usize,
}

/// The file that was found, or why none was.
#[derive(Default)]
struct FoundFile {
    path: Option<PathBuf>,
    text: String,
    readable_by_others: bool,
    problem: Option<Problem>,
    /// Files that were looked for in vain.
    tried: Vec<PathBuf>,
}

impl FoundFile {
    fn look(options: &LoadOptions) -> Self {
        if let Some(path) = &options.path {
            return Self::read(path);
        }
        match options
            .search
            .iter()
            .find(|path| path.try_exists().unwrap_or(true))
        {
            Some(path) => Self::read(path),
            None => Self {
                tried: options.search.clone(),
                ..Self::default()
            },
        }
    }

    fn read(path: &Path) -> Self {
        let found = Self {
            path: Some(path.to_owned()),
            ..Self::default()
        };
        match secret_file::read_text(path) {
            Ok((text, mode)) => Self {
                text,
                readable_by_others: mode & READABLE_BY_OTHERS != 0,
                ..found
            },
            Err(error) => Self {
                problem: Some(unreadable(path, &error)),
                ..found
            },
        }
    }

    /// Where a missing key would be added.
    fn home(&self) -> Origin {
        match &self.path {
            Some(path) => Origin::File {
                path: path.clone(),
                line: None,
                column: None,
            },
            None => Origin::Nowhere,
        }
    }

    fn missing_help(&self) -> String {
        let tried: Vec<_> = self
            .tried
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        if tried.is_empty() {
            return String::new();
        }
        format!(
            "there is no {}; name a file with --config",
            tried.join(" and no ")
        )
    }
}

fn unreadable(path: &Path, error: &SecretFileError) -> Problem {
    let origin = Origin::File {
        path: path.to_owned(),
        line: None,
        column: None,
    };
    let help = "name a TOML file that this process may read with --config";
    Problem::error(
        code::FILE,
        "",
        origin,
        format!("configuration file {error}"),
        help,
    )
}

fn load(found: FoundFile, options: &LoadOptions) -> Result<Loaded, ConfigError> {
    let defaults = file::parse(Config::REFERENCE, Path::new("config/reconciled.toml"));
    let mut file = match &found.path {
        Some(path) => file::parse(&found.text, path),
        None => file::Parsed::default(),
    };
    let environment = text::environment(&options.env);
    let flags = text::flags(&options.overrides);

    let mut problems: Vec<Problem> = found.problem.iter().cloned().collect();
    if !problems.is_empty() {
        // An unreadable file hides every key: what is missing is then no news.
        file.unreadable.push(String::new());
    }
    problems.append(&mut file.problems);
    problems.extend(environment.problems);
    problems.extend(flags.problems);

    let layers = Layers::merge(vec![
        defaults.layer.into_defaults(),
        file.layer,
        environment.layer,
        flags.layer,
    ])
    .expect("layers hold only known keys, which are paths");
    let mut reader = Reader::new(
        &layers,
        &file.unreadable,
        found.home(),
        found.missing_help(),
    );
    let config = build::config(&mut reader);
    if let Some(config) = &config {
        warn_of_passwords(&mut reader, config, found.readable_by_others);
    }
    problems.append(&mut reader.problems);
    problems.sort_by_key(place);

    let usable = problems
        .iter()
        .all(|problem| problem.severity == Severity::Warning);
    match config {
        Some(config) if usable => Ok(Loaded {
            config,
            warnings: problems,
            path: found.path,
            keys_total: key::KEYS.len(),
            keys_from_file: file.keys,
        }),
        _ => Err(ConfigError { problems }),
    }
}

/// A password written into a file that everyone can read, or onto the command line, deserves a word, once per key.
fn warn_of_passwords(reader: &mut Reader<'_>, config: &Config, readable_by_others: bool) {
    let proxy = config.vercel.proxy.as_ref();
    let passwords = [
        ("source.url", config.source.url.has_password()),
        ("state.url", config.state.url.has_password()),
        ("vercel.proxy", proxy.is_some_and(ProxyUrl::has_password)),
        ("vercel.oauth.client_secret", config.vercel.oauth.is_some()),
    ];
    for (key, has_password) in passwords {
        if !has_password {
            continue;
        }
        match reader.origin(key) {
            Origin::File { path, .. }
                if readable_by_others && reader.layers().rank(key) == Some(1) =>
            {
                let message = format!("`{key}` holds a password in a file that everyone can read");
                let help = format!("chmod 0640 {}", path.display());
                reader.warn(code::PASSWORD_MODE, key, message, help);
            }
            Origin::Flag { .. } => {
                let message = format!(
                    "`{key}` holds a password on the command line, which everyone can read"
                );
                let help = if key == "vercel.proxy" {
                    "write it into the configuration file, mode 0640".to_owned()
                } else {
                    format!("{key}_file names a file instead")
                };
                reader.warn(code::PASSWORD_IN_SIGHT, key, message, help);
            }
            _ => {}
        }
    }
}

/// The order of a report: the file's lines, then the environment, then flags, then defaults, then what is missing.
fn place(problem: &Problem) -> (u8, usize) {
    match &problem.origin {
        _ if problem.code == code::MISSING => (4, 0),
        Origin::File { line, .. } => (0, line.unwrap_or(0)),
        Origin::Environment { .. } => (1, 0),
        Origin::Flag { .. } => (2, 0),
        Origin::Default | Origin::Nowhere => (3, 0),
    }
}

#[cfg(test)]
mod tests;
