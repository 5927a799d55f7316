//! The typed sections of the configuration.
//!
//! Values of these types are valid; code that receives them does not check again. What each key means, its unit, range and
//! default is in `config/reconciled.toml`; the types repeat only what they add.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::cron::Cron;
use super::url::{DatabaseUrl, HttpUrl, ProxyUrl};
use crate::model::FieldSet;

/// `[source]`: the provider's own database, only ever read.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Where it is; from `url` or `url_file`.
    pub url: DatabaseUrl,
    /// The SELECT that yields resources, as written.
    pub query: String,
    /// The SELECT that yields access tokens; always present without `[vercel.oauth]`.
    pub installations_query: Option<String>,
    /// How far behind the cursor a poll reads again.
    pub overlap: Overlap,
    /// Longest time of one statement.
    pub statement_timeout: Duration,
    /// Most connections open at once.
    pub max_connections: NonZeroU32,
    /// PostgreSQL channel whose notifications trigger a poll.
    pub listen: Option<String>,
    /// Change-feed table, `table` or `schema.table`, plain identifiers.
    pub feed: Option<String>,
    /// Whether a read replica may be polled.
    pub allow_replica: bool,
}

/// How far behind the cursor a poll reads again, in the cursor's own terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// Nothing was configured: [`Overlap::DEFAULT`] for a timestamp cursor, 0 for an integer.
    Unset,
    /// Time, for a timestamp cursor.
    Duration(Duration),
    /// The cursor's own unit, for an integer cursor; never negative.
    Units(i64),
}

impl Overlap {
    /// What a timestamp cursor overlaps by when nothing is configured.
    pub const DEFAULT: Duration = Duration::from_secs(30);

    /// The overlap of a timestamp cursor; none when a plain number was configured.
    pub fn as_duration(self) -> Option<Duration> {
        match self {
            Self::Unset => Some(Self::DEFAULT),
            Self::Duration(duration) => Some(duration),
            Self::Units(_) => None,
        }
    }

    /// The overlap of an integer cursor; none when a duration was configured.
    pub fn as_units(self) -> Option<i64> {
        match self {
            Self::Unset => Some(0),
            Self::Duration(_) => None,
            Self::Units(units) => Some(units),
        }
    }
}

/// `[state]`: the daemon's own database.
#[derive(Debug, Clone)]
pub struct StateConfig {
    /// Where it is; SQLite or PostgreSQL; from `url` or `url_file`.
    pub url: DatabaseUrl,
}

/// `[vercel]`: the API and how hard to press it.
#[derive(Debug, Clone)]
pub struct VercelConfig {
    /// Origin, and path prefix if any, of the API.
    pub base_url: HttpUrl,
    /// Longest time from the start of a request to the end of its answer.
    pub request_timeout: Duration,
    /// Longest time to open a connection.
    pub connect_timeout: Duration,
    /// Most requests in flight over all installations.
    pub max_in_flight: NonZeroUsize,
    /// Most requests in flight for one installation; at most `max_in_flight`.
    pub max_in_flight_per_installation: NonZeroUsize,
    /// Client-side rate limit of one installation; none until Vercel announces one.
    pub requests_per_minute_per_installation: Option<NonZeroU32>,
    /// Which endpoint takes secrets.
    pub secrets_endpoint: SecretsEndpoint,
    /// How "no notification" is sent.
    pub clear_notification: ClearNotification,
    /// PEM file of further certificate authorities; it was readable and held one.
    pub ca_file: Option<PathBuf>,
    /// Proxy; never taken from the environment's proxy variables.
    pub proxy: Option<ProxyUrl>,
    /// Short-lived tokens from an OAuth grant, where configured.
    pub oauth: Option<OauthConfig>,
}

/// `[vercel.oauth]`: tokens from a `client_credentials` grant.
#[derive(Debug, Clone)]
pub struct OauthConfig {
    /// Token endpoint.
    pub token_url: HttpUrl,
    /// Client identifier.
    pub client_id: String,
    /// Client secret; from `client_secret` or `client_secret_file`.
    pub client_secret: SecretString,
    /// Further form fields, sorted by name.
    pub form: BTreeMap<String, FormTemplate>,
}

/// A form value in which `{installation_id}` stands for the installation.
///
/// Its `Debug` shows nothing, because form values may hold secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct FormTemplate(String);

impl FormTemplate {
    /// Takes a value whose only placeholder is `{installation_id}`; else returns the unknown one.
    pub fn new(text: &str) -> Result<Self, String> {
        let mut rest = text;
        while let Some((_, from_brace)) = rest.split_once('{') {
            let Some((name, after)) = from_brace.split_once('}') else {
                break;
            };
            if name != "installation_id" {
                return Err(name.to_owned());
            }
            rest = after;
        }
        Ok(Self(text.to_owned()))
    }

    /// The value with its placeholder.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The value for one installation.
    pub fn render(&self, installation_id: &str) -> String {
        self.0.replace("{installation_id}", installation_id)
    }
}

impl fmt::Debug for FormTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FormTemplate(…)")
    }
}

/// `[reconcile]`: what follows from what the source says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReconcileConfig {
    /// What happens to a resource never seen before.
    pub first_sight: FirstSight,
    /// What happens when a row disappears.
    pub on_missing: OnMissing,
    /// What happens when Vercel shows a field otherwise.
    pub on_drift: OnDrift,
    /// Most rows that a sweep reads in a second; none: as many as it can.
    pub sweep_rows_per_second: Option<NonZeroU32>,
    /// Fields left to Vercel.
    pub ignore: FieldSet,
}

/// `[guard]`: how much one pass may change before a person must agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardConfig {
    /// Most resources that one pass may suspend, uninstall, set to error or strip of all secrets; none: no limit.
    pub destructive_max: Option<NonZeroU32>,
    /// Most resources that one pass may change in any way; none: no limit.
    pub changes_max: Option<NonZeroU32>,
}

/// `[schedule]`: when passes begin; none switches one off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleConfig {
    /// Reading what changed since the cursor.
    pub poll: Option<Cron>,
    /// Reading every row.
    pub sweep: Option<Cron>,
    /// Comparing with what Vercel shows.
    pub drift: Option<Cron>,
    /// Deleting what retention no longer keeps.
    pub prune: Option<Cron>,
}

/// `[retry]`: backoff, leases and how long a lost request may still act.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryConfig {
    /// Wait after the first failure.
    pub initial_interval: Duration,
    /// Growth from one wait to the next, at least 1.
    pub multiplier: f64,
    /// Longest wait; at least `initial_interval`.
    pub max_interval: Duration,
    /// Age at which an entry that still fails becomes a dead letter; none: never.
    pub max_elapsed: Option<Duration>,
    /// Consecutive 409s after which an entry becomes a dead letter.
    pub max_conflicts: NonZeroU32,
    /// How long a claim holds; longer than a request may take.
    pub lease: Duration,
    /// How long a request whose answer was lost may still take effect.
    pub late_apply: Duration,
}

/// `[retention]`: how long finished work stays visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionConfig {
    /// Delivered entries, and their attempts with them.
    pub delivered: Duration,
    /// The history of attempts.
    pub attempts: Duration,
}

/// `[log]`: what is written, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Shape of a line.
    pub format: LogFormat,
    /// Directives of `tracing_subscriber::EnvFilter`; they parse.
    pub filter: String,
    /// Time between summary lines; none: no summary.
    pub summary_interval: Option<Duration>,
}

/// `[http]`: health, readiness and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Address to listen on; none: no listener.
    pub listen: Option<SocketAddr>,
}

/// A set of words that a key accepts.
pub(crate) trait Choice: Copy + 'static {
    /// The words with their meanings, in the order of the reference.
    const WORDS: &'static [(&'static str, Self)];
}

/// Defines an enum whose variants are the words a key accepts.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// The word in the configuration.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl Choice for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant),)+];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

choice! {
    /// What happens to a resource never seen before.
    FirstSight {
        /// Everything desired is sent.
        Push = "push",
        /// Vercel is asked first; only what differs is sent.
        Compare = "compare",
        /// What is desired is taken as acknowledged; nothing is sent.
        Adopt = "adopt",
    }
}

choice! {
    /// What happens when a row disappears from the source.
    OnMissing {
        /// Nothing; the sweep counts it.
        Ignore = "ignore",
        /// `status: uninstalled` is sent, within the guard.
        Uninstall = "uninstall",
    }
}

choice! {
    /// What happens when Vercel shows a field otherwise.
    OnDrift {
        /// It is logged.
        Log = "log",
        /// The desired value is sent again.
        Fix = "fix",
    }
}

choice! {
    /// Which endpoint takes secrets.
    SecretsEndpoint {
        /// `PATCH …/resources/{id}`, with the other fields.
        Patch = "patch",
        /// `PUT …/resources/{id}/secrets`, which completes a rotation.
        Put = "put",
    }
}

choice! {
    /// How "no notification" is sent.
    ClearNotification {
        /// The empty string.
        Empty = "empty",
        /// `null`.
        Null = "null",
    }
}

choice! {
    /// Shape of a log line.
    LogFormat {
        /// One JSON object per line.
        Json = "json",
        /// For a person's terminal.
        Pretty = "pretty",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_template_fills_in_the_installation_and_nothing_else() {
        let template = FormTemplate::new("id={installation_id}").expect("the known placeholder");
        assert_eq!(template.render("icfg_1"), "id=icfg_1");
        assert_eq!(format!("{template:?}"), "FormTemplate(…)");
        assert_eq!(
            FormTemplate::new("{installation}"),
            Err("installation".to_owned())
        );
        assert_eq!(
            FormTemplate::new("{installation_id}{x}"),
            Err("x".to_owned())
        );
        assert!(FormTemplate::new("a { b").is_ok());
    }

    #[test]
    fn unset_overlap_suits_either_cursor_and_a_set_one_only_its_own() {
        assert_eq!(Overlap::Unset.as_duration(), Some(Overlap::DEFAULT));
        assert_eq!(Overlap::Unset.as_units(), Some(0));
        assert_eq!(Overlap::Units(5).as_duration(), None);
        assert_eq!(Overlap::Duration(Overlap::DEFAULT).as_units(), None);
    }
}
