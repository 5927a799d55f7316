//! From a URL and the queries to a source. Nothing is connected here: a database that is down is an error of the first call.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::mysql::MySqlConnectOptions;
use sqlx::postgres::PgConnectOptions;

use super::columns::{DEFAULT_OVERLAP, INSTALLATIONS_QUERY, Overlap, SOURCE_QUERY};
use super::connections::Connections;
use super::dialect::Dialect;
use super::feed::{CHANGE_FEED, Feed};
use super::listen::{Keepalive, Listen, PostgresListener};
use super::mysql::MySqlDialect;
use super::postgres::PostgresDialect;
use super::query::Query;
use super::reader::Reader;
use super::sqlite::SqliteDialect;
use super::{Inspect, SourceError};

/// What a source is made of. `Debug` shows neither the URL nor the queries.
#[derive(Clone)]
pub struct Settings {
    /// Where the database is: `postgres://`, `postgresql://`, `mysql://`, `mariadb://` or `sqlite://`.
    pub url: SecretString,
    /// The source query.
    pub query: String,
    /// The query for access tokens, if they come from the source.
    pub installations_query: Option<String>,
    /// The change feed that polls follow instead of the cursor: `table` or `schema.table`.
    pub feed: Option<String>,
    /// How far behind the cursor a poll reads.
    pub overlap: Overlap,
    /// How long one statement may take.
    pub statement_timeout: Duration,
    /// How many connections may be open at once; at least one is.
    pub max_connections: u32,
    /// Whether a PostgreSQL replica in recovery may be read.
    pub allow_replica: bool,
    /// What the database shows as the name of this client.
    pub application_name: String,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("overlap", &self.overlap)
            .field("statement_timeout", &self.statement_timeout)
            .field("max_connections", &self.max_connections)
            .field("allow_replica", &self.allow_replica)
            .finish_non_exhaustive()
    }
}

/// Makes the source that the URL names. An `Arc<dyn Source>` is what this becomes where one is expected.
///
/// # Errors
/// [`SourceError::Shape`] when the URL cannot be used, or a query is not one statement.
pub fn connect(settings: &Settings) -> Result<Arc<dyn Inspect>, SourceError> {
    let url = settings.url.expose_secret();
    let scheme = url.split(':').next().unwrap_or_default();
    let target = target(url);
    let timeout = settings.statement_timeout;
    match scheme {
        "postgres" | "postgresql" => {
            let options = PgConnectOptions::from_str(url).map_err(|_| unusable())?;
            let name = &settings.application_name;
            reader(
                settings,
                PostgresDialect::new(options, target, timeout, name),
            )
        }
        "mysql" | "mariadb" => {
            let options = MySqlConnectOptions::from_str(url).map_err(|_| unusable())?;
            reader(settings, MySqlDialect::new(options, target, timeout))
        }
        "sqlite" => {
            let dialect = SqliteDialect::new(url, target, timeout).ok_or_else(unusable)?;
            reader(settings, dialect)
        }
        _ => Err(unusable()),
    }
}

/// Makes what listens on a channel of the source; nothing is connected yet.
///
/// `unique` names a channel of its own, on which it proves to itself that notifications arrive.
///
/// # Errors
/// [`SourceError::Shape`] when the URL cannot be used or names a database without notifications.
pub fn listen(
    settings: &Settings,
    channel: &str,
    unique: i64,
    keepalive: Keepalive,
) -> Result<Box<dyn Listen>, SourceError> {
    let url = settings.url.expose_secret();
    let scheme = url.split(':').next().unwrap_or_default();
    if !matches!(scheme, "postgres" | "postgresql") {
        return Err(SourceError::Shape {
            statement: "source URL",
            problem: "names a database without notifications, and `listen` is set".to_owned(),
            help: "listen = \"\": the schedule polls without it".to_owned(),
        });
    }
    let options = PgConnectOptions::from_str(url).map_err(|_| unusable())?;
    let (target, name) = (target(url), &settings.application_name);
    let dialect = PostgresDialect::new(options, target, settings.statement_timeout, name);
    Ok(Box::new(PostgresListener::new(
        dialect.options,
        dialect.target,
        channel.to_owned(),
        unique,
        keepalive,
    )))
}

fn reader<D: Dialect>(settings: &Settings, dialect: D) -> Result<Arc<dyn Inspect>, SourceError> {
    let query = Query::new(SOURCE_QUERY, &settings.query, D::LEXIS)?;
    let installations_query = settings
        .installations_query
        .as_deref()
        .map(|text| Query::new(INSTALLATIONS_QUERY, text, D::LEXIS))
        .transpose()?;
    let feed = settings
        .feed
        .as_deref()
        .map(|name| Feed::new(name, patience(settings.overlap)?))
        .transpose()?;
    // Along a feed the cursor is not followed, and needs no overlap.
    let overlap = match feed {
        Some(_) => Overlap::Unset,
        None => settings.overlap,
    };
    let connections = Connections::new(
        dialect,
        settings.statement_timeout,
        settings.max_connections,
    );
    Ok(Arc::new(Reader::new(
        connections,
        query,
        installations_query,
        feed,
        overlap,
        settings.allow_replica,
    )))
}

/// How long a change feed waits for what is left out.
fn patience(overlap: Overlap) -> Result<Duration, SourceError> {
    match overlap {
        Overlap::Unset => Ok(DEFAULT_OVERLAP),
        Overlap::Duration(duration) => Ok(duration),
        Overlap::Units(_) => Err(SourceError::Shape {
            statement: CHANGE_FEED,
            problem: "is read, and the overlap is a plain number".to_owned(),
            help: "overlap = a duration, for instance \"30s\"".to_owned(),
        }),
    }
}

/// The driver's own words may quote the URL, password included: they are not repeated.
fn unusable() -> SourceError {
    SourceError::Shape {
        statement: "source URL",
        problem: "cannot be used".to_owned(),
        help: "postgres://user:password@host:5432/database, mysql://… or sqlite:///path; percent-encode special characters in user and password"
            .to_owned(),
    }
}

/// The URL without its password and without its settings, which may hold secrets too.
fn target(url: &str) -> String {
    let place = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = place.split_once("://") else {
        return place.split(':').next().unwrap_or_default().to_owned();
    };
    // The last @ ends the login: a password that was not encoded may hold others.
    match rest.rsplit_once('@') {
        Some((login, place)) => {
            let user = login.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}@{place}")
        }
        None => format!("{scheme}://{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_never_shows_a_password() {
        let cases = [
            (
                "postgres://ro:hunter2@db:5432/app?sslmode=require&password=hunter2",
                "postgres://ro@db:5432/app",
            ),
            ("mysql://root:hunt@er2@db/app", "mysql://root@db/app"),
            ("postgres://db/app", "postgres://db/app"),
            (
                "sqlite:///var/lib/app.db?mode=ro",
                "sqlite:///var/lib/app.db",
            ),
            ("sqlite:hunter2.db", "sqlite"),
        ];
        for (url, expected) in cases {
            assert_eq!(target(url), expected);
        }
    }

    #[test]
    fn an_unusable_url_is_refused_without_repeating_it() {
        for url in [
            "hunter2",
            "http://u:hunter2@h/",
            "postgres://u:hunter2@[/x",
            "sqlite:///x?mode=hunter2",
        ] {
            let settings = Settings {
                url: url.into(),
                query: "SELECT 1".into(),
                installations_query: None,
                feed: None,
                overlap: Overlap::Unset,
                statement_timeout: Duration::from_secs(1),
                max_connections: 1,
                allow_replica: false,
                application_name: "reconciled".into(),
            };
            let Err(error) = connect(&settings) else {
                panic!("{url} was accepted");
            };
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
            assert!(!format!("{settings:?}").contains("hunter2"));
        }
    }
}
