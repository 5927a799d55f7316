//! Loading as a whole: layers, reports, and the agreement of reference, table and types.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::*;

mod rules;

/// The least a file must say.
const LEAST: &str = r#"
[source]
url = "sqlite:///provider.db"
query = "SELECT 1"
installations_query = "SELECT 2"
"#;

fn least(more: &str) -> String {
    format!("{LEAST}{more}")
}

fn report(text: &str) -> String {
    Config::from_toml(text)
        .expect_err("the text has a problem")
        .to_string()
}

/// The report on a configuration that is complete but for `more`.
fn report_on(more: &str) -> String {
    report(&least(more))
}

/// A directory with a configuration file, and options that name it.
struct Place {
    directory: tempfile::TempDir,
    options: LoadOptions,
}

impl Place {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut place = Self {
            directory,
            options: LoadOptions::default(),
        };
        place.options.path = Some(place.file("reconciled.toml", text, 0o640));
        place
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).expect("the directory is writable");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("the file is ours");
        path
    }

    fn with(mut self, variables: &[(&str, &str)], flags: &[&str]) -> Self {
        self.options.env = variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        self.options.overrides = flags.iter().map(|flag| (*flag).to_owned()).collect();
        self
    }

    fn load(&self) -> Loaded {
        Config::load(&self.options).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The report, the directory's name replaced by `DIR`.
    fn report(&self) -> String {
        self.plain(
            &Config::load(&self.options)
                .expect_err("there is a problem")
                .to_string(),
        )
    }

    fn warnings(&self) -> String {
        self.plain(&render(&self.load().warnings))
    }

    fn plain(&self, text: &str) -> String {
        text.replace(&*self.directory.path().to_string_lossy(), "DIR")
    }
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = Config::from_toml(LEAST).expect("the least suffices");
    let seconds = Duration::from_secs;
    assert_eq!(config.source.overlap, Overlap::Unset);
    assert_eq!(config.source.statement_timeout, seconds(30));
    assert_eq!(config.source.max_connections.get(), 4);
    assert_eq!(
        (
            config.source.listen,
            config.source.feed,
            config.source.allow_replica
        ),
        (None, None, false)
    );
    assert_eq!(
        config.state.url.expose(),
        "sqlite:///var/lib/reconciled/state.db"
    );
    assert_eq!(config.vercel.base_url.as_str(), "https://api.vercel.com");
    assert_eq!(
        (config.vercel.request_timeout, config.vercel.connect_timeout),
        (seconds(30), seconds(5))
    );
    assert_eq!(config.vercel.max_in_flight.get(), 64);
    assert_eq!(config.vercel.max_in_flight_per_installation.get(), 4);
    assert_eq!(config.vercel.requests_per_minute_per_installation, None);
    assert_eq!(config.vercel.secrets_endpoint, SecretsEndpoint::Patch);
    assert_eq!(config.vercel.clear_notification, ClearNotification::Empty);
    assert!(
        config.vercel.ca_file.is_none()
            && config.vercel.proxy.is_none()
            && config.vercel.oauth.is_none()
    );
    let reconcile = ReconcileConfig {
        first_sight: FirstSight::Push,
        on_missing: OnMissing::Ignore,
        on_drift: OnDrift::Log,
        sweep_rows_per_second: None,
        ignore: crate::model::FieldSet::EMPTY,
    };
    assert_eq!(config.reconcile, reconcile);
    assert_eq!(config.guard.destructive_max.map(|max| max.get()), Some(100));
    assert_eq!(config.guard.changes_max, None);
    let cron = |text: &str| Some(text.parse::<Cron>().expect("a cron expression"));
    let schedule = ScheduleConfig {
        poll: cron("*/5 * * * * *"),
        sweep: cron("0 0 * * * *"),
        drift: None,
        prune: cron("0 30 3 * * *"),
    };
    assert_eq!(config.schedule, schedule);
    assert_eq!(
        (config.retry.initial_interval, config.retry.max_interval),
        (seconds(1), seconds(600))
    );
    assert_eq!(
        (config.retry.multiplier, config.retry.max_elapsed),
        (2.0, None)
    );
    assert_eq!(config.retry.max_conflicts.get(), 8);
    assert_eq!(
        (config.retry.lease, config.retry.late_apply),
        (seconds(60), seconds(60))
    );
    assert_eq!(config.retention.delivered, seconds(7 * 86_400));
    assert_eq!(config.retention.attempts, seconds(30 * 86_400));
    assert_eq!(
        (config.log.format, config.log.filter.as_str()),
        (LogFormat::Json, "info")
    );
    assert_eq!(config.log.summary_interval, Some(seconds(60)));
    assert_eq!(config.http.listen, None);
}

#[test]
fn every_key_is_documented_read_and_nothing_else_is() {
    // Keys without a default are written `#name = …`, their section `#[name]`.
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(rest)
            if rest.starts_with(|first: char| first.is_ascii_lowercase() || first == '[') =>
        {
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    let uncommented: Vec<String> = Config::REFERENCE.lines().map(uncomment).collect();
    let parsed = file::parse(&uncommented.join("\n"), Path::new("reference"));
    assert_eq!(parsed.problems, []);
    let known: BTreeSet<String> = key::KEYS.iter().map(|key| key.path.to_owned()).collect();
    assert_eq!(known.len(), key::KEYS.len(), "no key is listed twice");
    let documented = format!("{:?}", parsed.layer);
    assert_eq!(documented, format!("{known:?}"));

    let layers =
        Layers::merge(vec![layer::Layer::default(), parsed.layer]).expect("known keys merge");
    let mut reader = Reader::new(&layers, &[], Origin::Nowhere, String::new());
    build::config(&mut reader);
    assert_eq!(reader.asked, known);
}

#[test]
fn every_key_of_the_reference_is_explained_just_above_it() {
    let lines: Vec<&str> = Config::REFERENCE.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let name = line
            .trim_start_matches('#')
            .split(" = ")
            .next()
            .unwrap_or_default();
        if key::KEYS
            .iter()
            .any(|key| key.path.rsplit('.').next() == Some(name))
        {
            assert!(lines[index - 1].starts_with("# "), "{line}");
        }
    }
}

#[test]
fn documented_overlap_is_the_default_overlap() {
    for unset in ["", "overlap = \"\"", "overlap = \" \""] {
        let config = Config::from_toml(&least(unset)).expect("nothing said");
        assert_eq!(config.source.overlap, Overlap::Unset, "{unset:?}");
    }
    let config = Config::from_toml(&least("overlap = \"30s\"")).expect("a duration");
    assert_eq!(config.source.overlap, Overlap::Duration(Overlap::DEFAULT));
    assert!(Config::REFERENCE.contains("\noverlap = \"30s\"\n"));
}

#[test]
fn whole_reference_is_a_valid_file_once_the_required_keys_are_set() {
    let required =
        "url = \"postgres://db/app\"\nquery = \"SELECT 1\"\ninstallations_query = \"SELECT 2\"";
    let text = Config::REFERENCE.replacen("[source]\n\n", &format!("[source]\n{required}\n"), 1);
    let place = Place::new(&text);
    let loaded = place.load();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.path, place.options.path);
    assert_eq!(
        (loaded.keys_total, loaded.keys_from_file),
        (key::KEYS.len(), key::KEYS.len() - 10 + 3)
    );
}

#[test]
fn report_shows_every_problem_in_the_documented_shape() {
    let place = Place::new(
        "[schedule]\npol = \"x\"\nsweep = \"hourly\"\n[source]\nquery = \"Q\"\ninstallations_query = \"I\"\n",
    );
    let url_file = place.file("url", "postgres://db/app", 0o644);
    let place = place.with(
        &[("RECONCILED__SOURCE__URL_FILE", &url_file.to_string_lossy())],
        &[],
    );
    insta::assert_snapshot!(place.report(), @r#"
    error[C003]: unknown key `schedule.pol`
      --> DIR/reconciled.toml:2
       = help: did you mean `schedule.poll`?

    error[C014]: `schedule.sweep` is no cron expression: "hourly"
      --> DIR/reconciled.toml:3
       = help: six fields, seconds first, UTC: "0 0 * * * *" is every hour

    error[C020]: `source.url_file` is readable by everyone (mode 0644)
      --> RECONCILED__SOURCE__URL_FILE=DIR/url
       = help: chmod 0640 DIR/url

    3 errors. Connections were not tried.
    "#);
}

#[test]
fn a_password_on_the_command_line_is_warned_of_and_not_repeated() {
    let url = "source.url=postgres://u:hunter2@db/app";
    let place = Place::new(&least("")).with(&[], &[url, "vercel.proxy=http://u:hunter2@proxy:1"]);
    insta::assert_snapshot!(place.warnings(), @r"
    warning[W026]: `source.url` holds a password on the command line, which everyone can read
      --> command line: source.url
       = help: source.url_file names a file instead

    warning[W026]: `vercel.proxy` holds a password on the command line, which everyone can read
      --> command line: vercel.proxy
       = help: write it into the configuration file, mode 0640

    2 warnings.
    ");
    let place = Place::new(&least("")).with(&[], &["source.url=postgres://u@db/app"]);
    assert!(place.load().warnings.is_empty());
}

#[test]
fn higher_layers_win_and_text_becomes_what_its_key_is() {
    let place = Place::new(&least(
        "max_connections = 5\n[log]\nfilter = \"warn\"\nformat = \"pretty\"\n",
    ))
    .with(
        &[
            ("RECONCILED__SOURCE__MAX_CONNECTIONS", "6"),
            ("RECONCILED__SOURCE__OVERLAP", "100"),
            ("RECONCILED__SOURCE__ALLOW_REPLICA", "true"),
            ("RECONCILED__RECONCILE__IGNORE", "name, status"),
            ("RECONCILED__RETRY__MULTIPLIER", "3"),
            ("RECONCILED__LOG__FILTER", "error"),
            (
                "RECONCILED__VERCEL__OAUTH__TOKEN_URL",
                "https://auth.example.com/token",
            ),
            ("RECONCILED__VERCEL__OAUTH__CLIENT_ID", "oac_1"),
            ("RECONCILED__VERCEL__OAUTH__CLIENT_SECRET", "hunter2"),
            (
                "RECONCILED__VERCEL__OAUTH__FORM",
                "{ installation_id = \"{installation_id}\" }",
            ),
            ("RECONCILED__VERCEL__OAUTH__FORM__SCOPE", "x"),
        ],
        &["log.filter=debug", "source.max_connections=7"],
    );
    let config = place.load().config;
    assert_eq!(config.source.max_connections.get(), 7);
    assert_eq!(config.source.overlap, Overlap::Units(100));
    assert!(config.source.allow_replica);
    let ignored: Vec<_> = config
        .reconcile
        .ignore
        .iter()
        .map(crate::model::Field::wire_name)
        .collect();
    assert_eq!(ignored.len(), 2);
    assert!(
        ignored.contains(&"name") && ignored.contains(&"status"),
        "{ignored:?}"
    );
    assert_eq!(config.retry.multiplier, 3.0);
    assert_eq!(
        (config.log.filter.as_str(), config.log.format),
        ("debug", LogFormat::Pretty)
    );
    let oauth = config.vercel.oauth.expect("the environment configures it");
    assert_eq!(oauth.client_secret.expose_secret(), "hunter2");
    let form: Vec<_> = oauth
        .form
        .iter()
        .map(|(name, value)| (name.as_str(), value.render("icfg_1")))
        .collect();
    assert_eq!(
        form,
        [
            ("installation_id", "icfg_1".to_owned()),
            ("scope", "x".to_owned())
        ]
    );
}

#[test]
fn environment_alone_is_enough() {
    let options = LoadOptions {
        search: vec!["/nowhere/reconciled.toml".into()],
        env: [
            ("URL", "mysql://db/app"),
            ("QUERY", "SELECT 1"),
            ("INSTALLATIONS_QUERY", "SELECT 2"),
        ]
        .map(|(name, value)| (format!("RECONCILED__SOURCE__{name}").into(), value.into()))
        .to_vec(),
        ..LoadOptions::default()
    };
    let loaded = Config::load(&options).expect("no file is needed");
    assert_eq!((loaded.path, loaded.keys_from_file), (None, 0));
    assert_eq!(loaded.config.source.url.scheme(), DatabaseScheme::MySql);
}

#[test]
fn missing_keys_name_the_files_that_were_looked_for() {
    let options = LoadOptions {
        search: vec![
            "/nowhere/reconciled.toml".into(),
            "/neither/reconciled.toml".into(),
        ],
        ..LoadOptions::default()
    };
    let report = Config::load(&options)
        .expect_err("nothing is configured")
        .to_string();
    insta::assert_snapshot!(report, @r#"
    error[C004]: `source.url` is required
       = help: [source] url = "postgres://reconciled@db/provider", or RECONCILED__SOURCE__URL
       = help: there is no /nowhere/reconciled.toml and no /neither/reconciled.toml; name a file with --config

    error[C004]: `source.query` is required
       = help: [source] query = "SELECT installation_id, resource_id, … FROM …", or RECONCILED__SOURCE__QUERY
       = help: there is no /nowhere/reconciled.toml and no /neither/reconciled.toml; name a file with --config

    error[C004]: `source.installations_query` is required
       = help: [source] installations_query = "SELECT installation_id, access_token FROM …", or RECONCILED__SOURCE__INSTALLATIONS_QUERY
       = help: there is no /nowhere/reconciled.toml and no /neither/reconciled.toml; name a file with --config

    3 errors. Connections were not tried.
    "#);
}

#[test]
fn file_that_cannot_be_read_is_one_problem() {
    let named = LoadOptions {
        path: Some("/nowhere/reconciled.toml".into()),
        ..LoadOptions::default()
    };
    insta::assert_snapshot!(Config::load(&named).expect_err("there is no file").to_string(), @r"
    error[C001]: configuration file /nowhere/reconciled.toml cannot be read: no such file
      --> /nowhere/reconciled.toml
       = help: name a TOML file that this process may read with --config

    1 error. Connections were not tried.
    ");
    insta::assert_snapshot!(report("[source]\nurl = postgres://u:hunter2@db\n"), @r#"
    error[C002]: this is not TOML: string values must be quoted, expected literal string
      --> reconciled.toml:2:7
       = help: keys are `name = value` under a `[section]`, text in quotes

    1 error. Connections were not tried.
    "#);
}

#[test]
fn first_file_found_is_the_one_that_is_read() {
    let place = Place::new(LEAST);
    let path = place.options.path.clone().expect("the place has a file");
    let options = LoadOptions {
        search: vec!["/nowhere/x.toml".into(), path.clone()],
        ..LoadOptions::default()
    };
    assert_eq!(
        Config::load(&options).expect("the second file exists").path,
        Some(path)
    );
}

#[test]
fn secret_comes_from_a_file_and_the_higher_layer_decides() {
    let place = Place::new(&LEAST.replace("url = \"sqlite:///provider.db\"", "url_file = \"URL\""));
    let url_file = place.file("url", "postgres://u:hunter2@db/app\n", 0o600);
    let state_file = place.file("state", "sqlite:other.db", 0o600);
    let text = LEAST.replace(
        "url = \"sqlite:///provider.db\"",
        &format!("url_file = {url_file:?}"),
    );
    let state = (
        "RECONCILED__STATE__URL_FILE",
        &*state_file.to_string_lossy(),
    );

    place.file("reconciled.toml", &text, 0o640);
    let place = place.with(&[state], &[]);
    let loaded = place.load();
    assert_eq!(
        loaded.config.source.url.expose(),
        "postgres://u:hunter2@db/app"
    );
    assert_eq!(loaded.config.state.url.expose(), "sqlite:other.db");
    assert_eq!(loaded.warnings, []);

    let place = place.with(&[("RECONCILED__SOURCE__URL", "sqlite:x.db")], &[]);
    assert_eq!(place.load().config.source.url.expose(), "sqlite:x.db");
}

#[test]
fn both_forms_of_a_secret_in_one_layer_are_refused() {
    insta::assert_snapshot!(report_on("url_file = \"/etc/reconciled/url\""), @r"
    error[C006]: `source.url` and `source.url_file` are both set
      --> reconciled.toml:3
       = help: keep one of the two

    1 error. Connections were not tried.
    ");
}

#[test]
fn no_secret_enters_a_report_or_a_debug() {
    let place = Place::new("[source]\nurl = \"postgress://u:hunter2@db\"\nurll = \"hunter2\"\n[vercel]\nbase_url = \"https://hunter2@x\"\nproxy = 7\n")
        .with(
            &[
                ("RECONCILED__STATE__URL", "mysql://u:hunter2@db"),
                ("RECONCILED__VERCEL__OAUTH__FORM", "hunter2"),
                ("RECONCILED__VERCEL__OAUTH__TOKEN_URL", "http://hunter2@x"),
                ("RECONCILED__VERCEL__OAUTH__SECRET", "hunter2"),
            ],
            &["source.url_fil=hunter2", "vercel.oauth.client_secret=hunter2"],
        );
    let error = Config::load(&place.options).expect_err("everything is wrong");
    assert!(error.problems.len() > 8, "{error}");
    assert!(!format!("{error}{error:?}").contains("hunter2"), "{error}");

    let text = least(
        "[vercel.oauth]\ntoken_url = \"https://x\"\nclient_id = \"i\"\nclient_secret = \"hunter2\"\nform = { a = \"hunter2\" }\n",
    );
    let text = text.replace(
        "sqlite:///provider.db",
        "postgres://u:hunter2@db/app?password=hunter2",
    );
    let config = Config::from_toml(&text).expect("it is valid");
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
}
