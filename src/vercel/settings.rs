//! What the client must know: where to send, how long to wait, whom to trust.
//!
//! A plain-http address is accepted on loopback alone; there is no setting that switches certificate checks off.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

/// How the daemon names itself to Vercel.
pub const USER_AGENT: &str = concat!("reconciled/", env!("CARGO_PKG_VERSION"));

/// The settings of the connection to Vercel; `Debug` does not show the proxy, whose URL may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the API lives: https, or http on loopback; may have a path prefix.
    pub base_url: String,
    /// The longest that one request may take, from connecting to the last byte that is read.
    pub request_timeout: Duration,
    /// The longest that opening a connection may take, TLS included; to be shorter than `request_timeout`.
    pub connect_timeout: Duration,
    /// How many requests are ever in flight at once: as many idle connections are kept.
    pub max_in_flight: usize,
    /// A PEM file of certificate authorities that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The proxy for every request; the environment's proxies are never used.
    pub proxy: Option<String>,
    /// How "no notification" is sent.
    pub clear_notification: ClearNotification,
    /// Through which operation secrets are sent.
    pub secrets_endpoint: SecretsEndpoint,
    /// The `User-Agent` of every request.
    pub user_agent: String,
}

/// How "no notification" is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClearNotification {
    /// As the empty string, which the operation's schema accepts.
    #[default]
    Empty,
    /// As `null`, which the documentation of installations names.
    Null,
}

/// Through which operation secrets are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SecretsEndpoint {
    /// In the body of `PATCH …/resources/{id}`.
    #[default]
    Patch,
    /// Alone, through `PUT …/resources/{id}/secrets`, which completes a rotation that Vercel asked for.
    Put,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            base_url: "https://api.vercel.com".to_owned(),
            request_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            max_in_flight: 64,
            ca_file: None,
            proxy: None,
            clear_notification: ClearNotification::default(),
            secrets_endpoint: SecretsEndpoint::default(),
            user_agent: USER_AGENT.to_owned(),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("request_timeout", &self.request_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("max_in_flight", &self.max_in_flight)
            .field("ca_file", &self.ca_file)
            .field("clear_notification", &self.clear_notification)
            .field("secrets_endpoint", &self.secrets_endpoint)
            .finish_non_exhaustive()
    }
}

/// Why no client could be made of the settings; no variant holds an address, which may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// An address is unusable.
    #[error("the {subject} {problem}")]
    Address {
        /// Which address.
        subject: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The `User-Agent` holds characters that no header can carry.
    #[error("the user agent holds characters that no header can carry")]
    UserAgent,
    /// The file of certificate authorities could not be read.
    #[error("the file of certificate authorities {} could not be read", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file of certificate authorities holds none that can be used.
    #[error("the file of certificate authorities {} holds no usable certificate in PEM form", path.display())]
    CaFileUnusable {
        /// The file.
        path: PathBuf,
    },
    /// The system trusts nobody and no file says otherwise.
    #[error(
        "no certificate authority is trusted: neither the system nor a file of certificate authorities names one"
    )]
    NoCertificateAuthorities,
}

/// An address that secrets may be sent to: https, or http on loopback.
pub(super) fn trusted_url(subject: &'static str, text: &str) -> Result<Url, ClientError> {
    let refuse = |problem| Err(ClientError::Address { subject, problem });
    let Ok(url) = Url::parse(text) else {
        return refuse("is no URL");
    };
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(&url) => {}
        "http" => return refuse("uses plain http beyond loopback"),
        _ => return refuse("uses another scheme than https"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("holds a user name or password");
    }
    if url.fragment().is_some() {
        return refuse("holds a fragment");
    }
    Ok(url)
}

/// A proxy's address; what is sent in the clear never goes to a proxy beyond loopback.
pub(super) fn proxy_url(text: &str, target: &Url) -> Result<Url, ClientError> {
    let refuse = |problem| {
        let subject = "proxy";
        Err(ClientError::Address { subject, problem })
    };
    let Ok(url) = Url::parse(text) else {
        return refuse("is no URL");
    };
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return refuse("is neither an http nor an https URL");
    }
    if target.scheme() == "http" && !is_loopback(&url) {
        return refuse("is beyond loopback while requests are plain http");
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_accepted_on_loopback_alone() {
        let accepted = |text| trusted_url("base_url", text).is_ok();
        for text in [
            "https://api.vercel.com",
            "https://proxy.test/vercel/",
            "http://localhost:1",
            "http://127.8.0.1:80/x",
            "http://[::1]:9",
        ] {
            assert!(accepted(text), "{text}");
        }
        for text in [
            "",
            "api.vercel.com",
            "http://api.vercel.com",
            "http://localhost.evil.test",
            "http://0.0.0.0",
            "http://10.0.0.1",
            "ftp://127.0.0.1",
            "file:///etc/passwd",
            "https://user@api.vercel.com",
            "https://:p@api.vercel.com",
            "https://api.vercel.com/#x",
        ] {
            assert!(!accepted(text), "{text}");
        }
    }

    #[test]
    fn a_request_in_the_clear_goes_to_no_proxy_beyond_loopback() {
        let https = Url::parse("https://api.vercel.com").expect("a URL");
        let http = Url::parse("http://127.0.0.1:1").expect("a URL");
        assert!(proxy_url("http://proxy.test:3128", &https).is_ok());
        assert!(proxy_url("http://proxy.test:3128", &http).is_err());
        assert!(proxy_url("http://127.0.0.1:3128", &http).is_ok());
        assert!(proxy_url("socks5://proxy.test", &https).is_err());
    }

    #[test]
    fn the_proxy_s_password_is_not_printed() {
        let settings = Settings {
            proxy: Some("http://u:p4ssw0rd@proxy.test".to_owned()),
            ..Settings::default()
        };
        assert!(!format!("{settings:?}").contains("p4ssw0rd"));
    }
}
