//! URLs of databases, of Vercel and of a proxy.
//!
//! They parse once and hold what must not be shown in secrecy: `Debug` and `Display` of every type here show scheme, user,
//! host, port and path only, never a password nor the query. Errors describe a URL without repeating it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

/// The address of a database, its password held in secrecy.
#[derive(Clone)]
pub struct DatabaseUrl {
    scheme: DatabaseScheme,
    secret: SecretString,
    shown: String,
    has_password: bool,
}

/// Which database a [`DatabaseUrl`] speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DatabaseScheme {
    /// `postgres://` or `postgresql://`.
    Postgres,
    /// `mysql://` or `mariadb://`.
    MySql,
    /// `sqlite:`.
    Sqlite,
}

impl DatabaseUrl {
    /// Which database it is.
    pub fn scheme(&self) -> DatabaseScheme {
        self.scheme
    }

    /// The URL as given, password included: for the connector, never for a message.
    pub fn expose(&self) -> &str {
        self.secret.expose_secret()
    }

    /// Whether it holds a password, in the authority or as a parameter.
    pub fn has_password(&self) -> bool {
        self.has_password
    }

    /// The file of an SQLite database, percent-decoded; none for servers and databases in memory.
    pub fn sqlite_path(&self) -> Option<std::path::PathBuf> {
        let path = match self.scheme {
            DatabaseScheme::Sqlite if !self.is_memory() => sqlite_parts(self.expose()).0,
            _ => return None,
        };
        Some(
            percent_decode_str(path)
                .decode_utf8_lossy()
                .into_owned()
                .into(),
        )
    }

    /// Whether it is an SQLite database that ends with its last connection.
    pub fn is_memory(&self) -> bool {
        if self.scheme != DatabaseScheme::Sqlite {
            return false;
        }
        let (path, parameters) = sqlite_parts(self.expose());
        path == ":memory:"
            || parameters
                .split('&')
                .any(|parameter| parameter == "mode=memory")
    }
}

impl FromStr for DatabaseUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        reject_whitespace(text)?;
        let scheme = database_scheme(text)?;
        let (shown, has_password) = match scheme {
            DatabaseScheme::Sqlite => {
                let (path, _) = sqlite_parts(text);
                if path.is_empty() {
                    return Err(UrlError::NoPath);
                }
                (format!("sqlite:{path}"), false)
            }
            DatabaseScheme::Postgres | DatabaseScheme::MySql => {
                let url = parse_authority_url(text)?;
                reject_unknown_parameters(&url, scheme)?;
                let in_parameter = url.query_pairs().any(|(name, _)| name == "password");
                (shown(&url), url.password().is_some() || in_parameter)
            }
        };
        Ok(Self {
            scheme,
            secret: text.into(),
            shown,
            has_password,
        })
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DatabaseUrl").field(&self.shown).finish()
    }
}

/// An address that secrets are sent to: https, or plain http on this machine.
///
/// It has no user, query or fragment.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpUrl(Url);

impl HttpUrl {
    /// The parsed URL.
    pub fn as_url(&self) -> &Url {
        &self.0
    }

    /// The URL as text without a slash at its end, so that a path can be appended.
    pub fn as_str(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }
}

impl FromStr for HttpUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        reject_whitespace(text)?;
        let url = Url::parse(text).map_err(UrlError::syntax)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlError::Credentials);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(UrlError::Parameters);
        }
        match url.scheme() {
            "https" => Ok(Self(url)),
            "http" if is_loopback(&url) => Ok(Self(url)),
            "http" => Err(UrlError::PlainHttp {
                host: url.host_str().unwrap_or_default().to_owned(),
            }),
            _ => Err(UrlError::Scheme { found: None }),
        }
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpUrl").field(&self.as_str()).finish()
    }
}

/// The address of a proxy, which may hold a password.
#[derive(Clone)]
pub struct ProxyUrl {
    secret: SecretString,
    shown: String,
    has_password: bool,
}

impl ProxyUrl {
    /// The URL as given, password included: for the client, never for a message.
    pub fn expose(&self) -> &str {
        self.secret.expose_secret()
    }

    /// Whether it holds a password.
    pub fn has_password(&self) -> bool {
        self.has_password
    }
}

impl FromStr for ProxyUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        reject_whitespace(text)?;
        let url = parse_authority_url(text)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(UrlError::Scheme { found: None });
        }
        Ok(Self {
            secret: text.into(),
            shown: shown(&url),
            has_password: url.password().is_some(),
        })
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProxyUrl").field(&self.shown).finish()
    }
}

/// Why text is no usable URL; never repeats the text, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// There is no `scheme://`.
    #[error("it does not begin with a scheme")]
    NoScheme,
    /// The scheme is not accepted here.
    #[error("its scheme{} is not accepted", .found.as_ref().map(|found| format!(" {found}://")).unwrap_or_default())]
    Scheme {
        /// The scheme, where it is certain to be one.
        found: Option<String>,
    },
    /// Blanks or control characters, which parsers drop silently.
    #[error("it holds a blank or a control character")]
    Whitespace,
    /// A `#`, `/`, `?` or `@` of a password was not encoded, so that the password ended up elsewhere.
    #[error("a special character in it is not percent-encoded")]
    Unencoded,
    /// An SQLite URL without a file.
    #[error("it names no file")]
    NoPath,
    /// A user or password where none belongs.
    #[error("it holds a user name or password")]
    Credentials,
    /// A query or fragment where none belongs.
    #[error("it holds a query or fragment")]
    Parameters,
    /// A parameter that would be passed over; it is not repeated, since its value may be a secret and its name a part of one.
    #[error(
        "a parameter in it is not known{}",
        .nearest.map(|nearest| format!(" (did you mean {nearest}?)")).unwrap_or_default()
    )]
    Unknown {
        /// The known one that is most like it.
        nearest: Option<&'static str>,
    },
    /// Plain http to another machine.
    #[error("plain http to {host} would show secrets to the network")]
    PlainHttp {
        /// The host named.
        host: String,
    },
    /// The URL parser's own reason, which holds nothing of the URL.
    #[error("{reason}")]
    Syntax {
        /// What is wrong in the parser's words.
        reason: String,
    },
}

impl UrlError {
    fn syntax(reason: impl fmt::Display) -> Self {
        Self::Syntax {
            reason: reason.to_string(),
        }
    }
}

/// Longest scheme that is repeated in a message.
const SCHEME_SHOWN_MAX: usize = 16;

fn database_scheme(text: &str) -> Result<DatabaseScheme, UrlError> {
    let (scheme, rest) = text.split_once(':').ok_or(UrlError::NoScheme)?;
    match scheme {
        "sqlite" => Ok(DatabaseScheme::Sqlite),
        _ if !rest.starts_with("//") => Err(UrlError::NoScheme),
        "postgres" | "postgresql" => Ok(DatabaseScheme::Postgres),
        "mysql" | "mariadb" => Ok(DatabaseScheme::MySql),
        other => {
            let certain = other.len() <= SCHEME_SHOWN_MAX
                && other.bytes().all(|byte| byte.is_ascii_alphabetic());
            Err(UrlError::Scheme {
                found: certain.then(|| other.to_owned()),
            })
        }
    }
}

/// Parses `scheme://user:password@host:port/path?query` and refuses what shows a password that was cut in two.
fn parse_authority_url(text: &str) -> Result<Url, UrlError> {
    let (_, rest) = text.split_once("://").ok_or(UrlError::NoScheme)?;
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(authority_end);
    if tail.contains(['@', '#']) || authority.contains('\\') {
        return Err(UrlError::Unencoded);
    }
    Url::parse(text).map_err(UrlError::syntax)
}

/// The parameters of a PostgreSQL URL: what sqlx takes, and the other names of libpq that people copy with a URL, of which sqlx says
/// that it passes them over. (`sslpassword` is none of them: what it protects could not be read.)
const POSTGRES_PARAMETERS: [&str; 38] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "fallback_application_name",
    "gssencmode",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "passfile",
    "requirepeer",
    "service",
    "sslcompression",
    "sslnegotiation",
    "sslsni",
    "target_session_attrs",
    "tcp_user_timeout",
];

/// The parameters of a MySQL URL: what sqlx takes, which passes over any other without a word.
const MYSQL_PARAMETERS: [&str; 14] = [
    "sslmode",
    "ssl-mode",
    "sslca",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "charset",
    "collation",
    "statement-cache-capacity",
    "socket",
    "timezone",
    "time-zone",
];

/// Refuses a parameter that the driver would pass over: `sslmdoe=verify-full` would leave the server unverified.
fn reject_unknown_parameters(url: &Url, scheme: DatabaseScheme) -> Result<(), UrlError> {
    const NEAR: usize = 2;
    let known: &[&'static str] = match scheme {
        DatabaseScheme::Postgres => &POSTGRES_PARAMETERS,
        DatabaseScheme::MySql => &MYSQL_PARAMETERS,
        DatabaseScheme::Sqlite => return Ok(()),
    };
    let is_session_option = |name: &str| {
        scheme == DatabaseScheme::Postgres && name.starts_with("options[") && name.ends_with(']')
    };
    for (name, _) in url.query_pairs() {
        if known.contains(&&*name) || is_session_option(&name) {
            continue;
        }
        let distance = |known: &str| strsim::damerau_levenshtein(known, &name);
        let nearest = known.iter().min_by_key(|known| distance(known));
        return Err(UrlError::Unknown {
            nearest: nearest.copied().filter(|known| distance(known) <= NEAR),
        });
    }
    Ok(())
}

/// Path and parameters of an SQLite URL, as sqlx splits them.
fn sqlite_parts(text: &str) -> (&str, &str) {
    let rest = text.strip_prefix("sqlite:").unwrap_or(text);
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    rest.split_once('?').unwrap_or((rest, ""))
}

/// Scheme, user, host, port and path.
fn shown(url: &Url) -> String {
    let user = match url.username() {
        "" => String::new(),
        user => format!("{user}@"),
    };
    let port = url
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    format!(
        "{}://{user}{}{port}{}",
        url.scheme(),
        url.host_str().unwrap_or_default(),
        url.path()
    )
}

fn reject_whitespace(text: &str) -> Result<(), UrlError> {
    if text
        .chars()
        .any(|character| character.is_whitespace() || character.is_control())
    {
        return Err(UrlError::Whitespace);
    }
    Ok(())
}

/// Whether the host is this machine: `localhost`, 127.0.0.0/8 or ::1.
fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else {
        return false;
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn database(text: &str) -> DatabaseUrl {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn database_url_shows_no_password_and_no_parameters() {
        let cases = [
            (
                "postgres://ro:hunter2@db:5432/app?sslmode=require",
                "postgres://ro@db:5432/app",
            ),
            ("postgresql://db/app", "postgresql://db/app"),
            (
                "postgres:///app?host=/run/postgresql&password=hunter2",
                "postgres:///app",
            ),
            ("postgres://u:p@ss@db/app", "postgres://u@db/app"),
            (
                "mariadb://root:hunter2@127.0.0.1/app",
                "mariadb://root@127.0.0.1/app",
            ),
            ("sqlite:///var/lib/x.db?mode=ro", "sqlite:/var/lib/x.db"),
            ("sqlite::memory:", "sqlite::memory:"),
        ];
        for (url, expected) in cases {
            let parsed = database(url);
            assert_eq!(parsed.to_string(), expected, "{url}");
            assert_eq!(format!("{parsed:?}"), format!("DatabaseUrl({expected:?})"));
            assert_eq!(parsed.expose(), url);
        }
    }

    #[test]
    fn database_url_knows_its_scheme_password_and_file() {
        assert_eq!(database("mysql://db/app").scheme(), DatabaseScheme::MySql);
        assert!(database("postgres://u:p@db/app").has_password());
        assert!(database("postgres://db/app?password=p").has_password());
        assert!(!database("postgres://u@db/app").has_password());
        assert_eq!(
            database("sqlite:///a%20b.db").sqlite_path(),
            Some("/a b.db".into())
        );
        assert_eq!(
            database("sqlite:state.db").sqlite_path(),
            Some("state.db".into())
        );
        assert_eq!(database("postgres://db/app").sqlite_path(), None);
        assert!(database("sqlite::memory:").is_memory());
        assert!(database("sqlite:x?mode=memory").is_memory());
        assert!(!database("sqlite:x").is_memory());
    }

    #[test]
    fn a_parameter_that_the_driver_would_pass_over_is_refused_without_its_value() {
        for (url, nearest) in [
            ("postgres://db/app?sslmdoe=verify-full", Some("sslmode")),
            ("postgres://db/app?passwrod=hunter2", Some("password")),
            ("postgres://db/app?sslmode=require&hunter2", None),
            ("postgres://db/app?option[app.key]=hunter2", None),
            ("postgres://db/app?sslpassword=hunter2", None),
            ("mysql://db/app?ssl-mdoe=VERIFY_IDENTITY", Some("ssl-mode")),
            ("mysql://db/app?password=hunter2", None),
        ] {
            let error = url.parse::<DatabaseUrl>().expect_err(url);
            assert_eq!(error, UrlError::Unknown { nearest }, "{url}");
            assert!(!error.to_string().contains("hunter2"));
        }
        for url in [
            "postgres://db/app?sslmode=require&channel_binding=require",
            "postgres://db/app?options[app.key]=hunter2&connect_timeout=5",
            "mariadb://db/app?ssl-mode=REQUIRED&charset=utf8mb4",
        ] {
            assert!(url.parse::<DatabaseUrl>().is_ok(), "{url}");
        }
    }

    #[test]
    fn database_url_that_would_cut_its_password_in_two_is_refused() {
        for url in [
            "postgres://u:12#ss@db/app",
            "postgres://u:12/ss@db/app",
            "postgres://u:12?ss@db/app",
        ] {
            let error = url
                .parse::<DatabaseUrl>()
                .expect_err("password is cut in two");
            assert_eq!(error, UrlError::Unencoded, "{url}");
        }
    }

    #[test]
    fn refusal_of_a_database_url_never_repeats_it() {
        let cases = [
            ("hunter2", "it does not begin with a scheme"),
            ("postgres:hunter2", "it does not begin with a scheme"),
            (
                "postgress://u:hunter2@db/app",
                "its scheme postgress:// is not accepted",
            ),
            ("hunter2-hunter2://db", "its scheme is not accepted"),
            ("postgres://u:hunter2@db:99999/app", "invalid port number"),
            (
                "postgres://u:hunter2@db /app",
                "it holds a blank or a control character",
            ),
            ("sqlite://", "it names no file"),
        ];
        for (url, expected) in cases {
            let error = url.parse::<DatabaseUrl>().expect_err(url);
            assert_eq!(error.to_string(), expected, "{url}");
            assert!(!format!("{error:?}{error}").contains("hunter2"), "{url}");
        }
    }

    #[test]
    fn secrets_go_over_https_or_stay_on_this_machine() {
        for url in [
            "https://api.vercel.com",
            "http://127.9.9.9:80/x/",
            "http://[::1]:8080",
            "http://localhost:1",
        ] {
            let parsed: HttpUrl = url.parse().unwrap_or_else(|error| panic!("{url}: {error}"));
            assert!(!parsed.as_str().ends_with('/'), "{url}");
        }
        let cases = [
            (
                "http://api.vercel.com",
                "plain http to api.vercel.com would show secrets to the network",
            ),
            (
                "http://localhost.example.com",
                "plain http to localhost.example.com would show secrets to the network",
            ),
            (
                "http://[::2]",
                "plain http to [::2] would show secrets to the network",
            ),
            (
                "https://user@api.vercel.com",
                "it holds a user name or password",
            ),
            ("https://api.vercel.com?a=b", "it holds a query or fragment"),
            ("ftp://api.vercel.com", "its scheme is not accepted"),
            ("api.vercel.com", "relative URL without a base"),
        ];
        for (url, expected) in cases {
            assert_eq!(
                url.parse::<HttpUrl>().expect_err(url).to_string(),
                expected,
                "{url}"
            );
        }
    }

    #[test]
    fn proxy_shows_no_password() {
        let proxy: ProxyUrl = "http://me:hunter2@proxy:3128".parse().expect("a proxy URL");
        assert_eq!(
            format!("{proxy} {proxy:?}"),
            "http://me@proxy:3128/ ProxyUrl(\"http://me@proxy:3128/\")"
        );
        assert!(proxy.has_password());
        assert!("socks5://proxy".parse::<ProxyUrl>().is_err());
    }

    proptest! {
        #[test]
        fn no_password_is_ever_shown(password in "[ -~]{1,12}", user in "[a-z]{1,6}") {
            let secret = format!("hunter2{password}");
            let url = format!("postgres://{user}:{secret}@db.internal/app");
            let said = match url.parse::<DatabaseUrl>() {
                Ok(parsed) => format!("{parsed}{parsed:?}"),
                Err(error) => format!("{error}{error:?}"),
            };
            prop_assert!(!said.contains("hunter2"), "{}", said);
        }
    }
}
