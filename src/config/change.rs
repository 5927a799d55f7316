//! What a reload changes: the table of which settings can be taken over while the daemon runs.
//!
//! Every section is destructured, so that a new key does not compile until it was decided on. Values are compared, never shown.

use secrecy::ExposeSecret as _;

use super::Config;
use super::section::{
    GuardConfig, HttpConfig, LogConfig, OauthConfig, ReconcileConfig, RetentionConfig, RetryConfig,
    ScheduleConfig, SourceConfig, StateConfig, VercelConfig,
};
use super::url::ProxyUrl;

/// What another configuration changes in the one that is in force.
#[derive(Debug, Clone)]
pub struct Change {
    /// The configuration in force from now on: the old one with all that can be taken over from the new one.
    pub config: Config,
    /// The keys that differ and are taken over.
    pub taken: Vec<&'static str>,
    /// The keys that differ and need a restart.
    pub pending: Vec<&'static str>,
    /// Every key with what a reload does with it, in the order of the reference.
    decisions: Vec<(&'static str, Reload)>,
}

/// What a reload does with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// It is taken over.
    Taken,
    /// It waits for a restart: a part of the daemon was built from it.
    Pending,
}

impl Change {
    /// Compares a configuration with the one in force.
    #[must_use]
    pub fn between(running: &Config, new: &Config) -> Self {
        let mut change = Self {
            config: running.clone(),
            taken: Vec::new(),
            pending: Vec::new(),
            decisions: Vec::new(),
        };
        let Config {
            source,
            state,
            vercel,
            reconcile,
            guard,
            schedule,
            retry,
            retention,
            log,
            http,
        } = new;
        change.source(&running.source, source);
        change.state(&running.state, state);
        change.vercel(&running.vercel, vercel);
        change.reconcile(reconcile);
        change.guard(guard);
        change.schedule(schedule);
        change.retry(&running.retry, retry);
        change.retention(retention);
        change.log(&running.log, log);
        change.http(&running.http, http);
        change
    }

    /// What a reload does with each key; a key that may be given as a file stands for both forms.
    #[must_use]
    pub fn decisions(&self) -> &[(&'static str, Reload)] {
        &self.decisions
    }

    fn take<T: Clone + PartialEq>(
        &mut self,
        key: &'static str,
        place: fn(&mut Config) -> &mut T,
        value: &T,
    ) {
        self.decisions.push((key, Reload::Taken));
        let place = place(&mut self.config);
        if place != value {
            *place = value.clone();
            self.taken.push(key);
        }
    }

    fn wait(&mut self, key: &'static str, is_same: bool) {
        self.decisions.push((key, Reload::Pending));
        if !is_same {
            self.pending.push(key);
        }
    }

    /// The connections and the shape of the query were made from these.
    fn source(&mut self, running: &SourceConfig, new: &SourceConfig) {
        let SourceConfig {
            url,
            query,
            installations_query,
            overlap,
            statement_timeout,
            max_connections,
            listen,
            feed,
            allow_replica,
        } = new;
        self.wait("source.url", running.url.expose() == url.expose());
        self.wait("source.query", running.query == *query);
        self.wait(
            "source.installations_query",
            running.installations_query == *installations_query,
        );
        self.wait("source.overlap", running.overlap == *overlap);
        self.wait(
            "source.statement_timeout",
            running.statement_timeout == *statement_timeout,
        );
        self.wait(
            "source.max_connections",
            running.max_connections == *max_connections,
        );
        self.wait("source.listen", running.listen == *listen);
        self.wait("source.feed", running.feed == *feed);
        self.wait(
            "source.allow_replica",
            running.allow_replica == *allow_replica,
        );
    }

    fn state(&mut self, running: &StateConfig, new: &StateConfig) {
        let StateConfig {
            url,
            max_connections,
        } = new;
        self.wait("state.url", running.url.expose() == url.expose());
        self.wait(
            "state.max_connections",
            running.max_connections == *max_connections,
        );
    }

    /// The client was built from most of these; how hard it is pressed may change.
    fn vercel(&mut self, running: &VercelConfig, new: &VercelConfig) {
        let VercelConfig {
            base_url,
            request_timeout,
            connect_timeout,
            max_in_flight,
            max_in_flight_per_installation,
            requests_per_minute_per_installation,
            secrets_endpoint,
            clear_notification,
            ca_file,
            proxy,
            oauth,
        } = new;
        self.wait("vercel.base_url", running.base_url == *base_url);
        self.wait(
            "vercel.request_timeout",
            running.request_timeout == *request_timeout,
        );
        self.wait(
            "vercel.connect_timeout",
            running.connect_timeout == *connect_timeout,
        );
        self.take(
            "vercel.max_in_flight",
            |config| &mut config.vercel.max_in_flight,
            max_in_flight,
        );
        self.take(
            "vercel.max_in_flight_per_installation",
            |config| &mut config.vercel.max_in_flight_per_installation,
            max_in_flight_per_installation,
        );
        self.take(
            "vercel.requests_per_minute_per_installation",
            |config| &mut config.vercel.requests_per_minute_per_installation,
            requests_per_minute_per_installation,
        );
        self.wait(
            "vercel.secrets_endpoint",
            running.secrets_endpoint == *secrets_endpoint,
        );
        self.wait(
            "vercel.clear_notification",
            running.clear_notification == *clear_notification,
        );
        self.wait("vercel.ca_file", running.ca_file == *ca_file);
        self.wait(
            "vercel.proxy",
            running.proxy.as_ref().map(ProxyUrl::expose) == proxy.as_ref().map(ProxyUrl::expose),
        );
        self.oauth(running.oauth.as_ref(), oauth.as_ref());
    }

    fn oauth(&mut self, running: Option<&OauthConfig>, new: Option<&OauthConfig>) {
        // Tells when a key is added; each is then compared as one that may be absent.
        if let Some(OauthConfig {
            token_url: _,
            client_id: _,
            client_secret: _,
            form: _,
        }) = new
        {}
        self.wait(
            "vercel.oauth.token_url",
            running.map(|oauth| &oauth.token_url) == new.map(|oauth| &oauth.token_url),
        );
        self.wait(
            "vercel.oauth.client_id",
            running.map(|oauth| &oauth.client_id) == new.map(|oauth| &oauth.client_id),
        );
        self.wait(
            "vercel.oauth.client_secret",
            running.map(|oauth| oauth.client_secret.expose_secret())
                == new.map(|oauth| oauth.client_secret.expose_secret()),
        );
        self.wait(
            "vercel.oauth.form",
            running.map(|oauth| &oauth.form) == new.map(|oauth| &oauth.form),
        );
    }

    fn reconcile(&mut self, new: &ReconcileConfig) {
        let ReconcileConfig {
            first_sight,
            on_missing,
            on_drift,
            sweep_rows_per_second,
            ignore,
        } = new;
        self.take(
            "reconcile.first_sight",
            |config| &mut config.reconcile.first_sight,
            first_sight,
        );
        self.take(
            "reconcile.on_missing",
            |config| &mut config.reconcile.on_missing,
            on_missing,
        );
        self.take(
            "reconcile.on_drift",
            |config| &mut config.reconcile.on_drift,
            on_drift,
        );
        self.take(
            "reconcile.sweep_rows_per_second",
            |config| &mut config.reconcile.sweep_rows_per_second,
            sweep_rows_per_second,
        );
        self.take(
            "reconcile.ignore",
            |config| &mut config.reconcile.ignore,
            ignore,
        );
    }

    fn guard(&mut self, new: &GuardConfig) {
        let GuardConfig {
            destructive_max,
            changes_max,
        } = new;
        self.take(
            "guard.destructive_max",
            |config| &mut config.guard.destructive_max,
            destructive_max,
        );
        self.take(
            "guard.changes_max",
            |config| &mut config.guard.changes_max,
            changes_max,
        );
    }

    fn schedule(&mut self, new: &ScheduleConfig) {
        let ScheduleConfig {
            poll,
            sweep,
            drift,
            prune,
        } = new;
        self.take("schedule.poll", |config| &mut config.schedule.poll, poll);
        self.take("schedule.sweep", |config| &mut config.schedule.sweep, sweep);
        self.take("schedule.drift", |config| &mut config.schedule.drift, drift);
        self.take("schedule.prune", |config| &mut config.schedule.prune, prune);
    }

    /// The lease has to outlast `vercel.request_timeout`, which waits for a restart: so it waits with it.
    fn retry(&mut self, running: &RetryConfig, new: &RetryConfig) {
        let RetryConfig {
            initial_interval,
            multiplier,
            max_interval,
            max_elapsed,
            max_conflicts,
            lease,
            late_apply,
        } = new;
        self.take(
            "retry.initial_interval",
            |config| &mut config.retry.initial_interval,
            initial_interval,
        );
        self.take(
            "retry.multiplier",
            |config| &mut config.retry.multiplier,
            multiplier,
        );
        self.take(
            "retry.max_interval",
            |config| &mut config.retry.max_interval,
            max_interval,
        );
        self.take(
            "retry.max_elapsed",
            |config| &mut config.retry.max_elapsed,
            max_elapsed,
        );
        self.take(
            "retry.max_conflicts",
            |config| &mut config.retry.max_conflicts,
            max_conflicts,
        );
        self.wait("retry.lease", running.lease == *lease);
        self.take(
            "retry.late_apply",
            |config| &mut config.retry.late_apply,
            late_apply,
        );
    }

    fn retention(&mut self, new: &RetentionConfig) {
        let RetentionConfig {
            delivered,
            attempts,
        } = new;
        self.take(
            "retention.delivered",
            |config| &mut config.retention.delivered,
            delivered,
        );
        self.take(
            "retention.attempts",
            |config| &mut config.retention.attempts,
            attempts,
        );
    }

    fn log(&mut self, running: &LogConfig, new: &LogConfig) {
        let LogConfig {
            format,
            filter,
            summary_interval,
        } = new;
        self.wait("log.format", running.format == *format);
        self.take("log.filter", |config| &mut config.log.filter, filter);
        self.take(
            "log.summary_interval",
            |config| &mut config.log.summary_interval,
            summary_interval,
        );
    }

    fn http(&mut self, running: &HttpConfig, new: &HttpConfig) {
        let HttpConfig { listen } = new;
        self.wait("http.listen", running.listen == *listen);
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::KEYS;
    use super::*;

    const BASE: &str =
        "[source]\nurl = \"postgres://u:old-password@db/provider\"\nquery = \"SELECT 1\"\n";

    fn config(rest: &str) -> Config {
        Config::from_toml(&format!("{BASE}{rest}")).expect("it is valid")
    }

    fn oauth(rest: &str) -> Config {
        config(&format!(
            "[vercel.oauth]\ntoken_url = \"https://auth.example.com/t\"\nclient_id = \"oac_1\"\n{rest}"
        ))
    }

    #[test]
    fn every_key_is_decided_on_once_in_the_order_of_the_reference() {
        let config = oauth("client_secret = \"x\"\n");
        let change = Change::between(&config, &config);
        let decided: Vec<&str> = change.decisions().iter().map(|(key, _)| *key).collect();
        let keys: Vec<&str> = KEYS
            .iter()
            .map(|key| key.path)
            .filter(|path| !path.ends_with("_file") || *path == "vercel.ca_file")
            .collect();
        assert_eq!(decided, keys);
        assert_eq!((change.taken.len(), change.pending.len()), (0, 0));
    }

    #[test]
    fn what_can_be_taken_over_is_and_the_rest_stays_as_it_was() {
        let running = oauth("client_secret = \"x\"\n");
        let new = oauth(
            "client_secret = \"y\"\n[vercel]\nmax_in_flight = 8\nrequest_timeout = \"5s\"\n[retry]\nlease = \"10s\"\nmultiplier = 3.0\n\
             [guard]\ndestructive_max = 0\n[schedule]\nsweep = \"\"\n[log]\nfilter = \"debug\"\n[http]\nlisten = \"127.0.0.1:9464\"\n",
        );
        let change = Change::between(&running, &new);
        assert_eq!(
            change.taken,
            [
                "vercel.max_in_flight",
                "guard.destructive_max",
                "schedule.sweep",
                "retry.multiplier",
                "log.filter"
            ]
        );
        assert_eq!(
            change.pending,
            [
                "vercel.request_timeout",
                "vercel.oauth.client_secret",
                "retry.lease",
                "http.listen"
            ]
        );
        let Change { config, .. } = change;
        assert_eq!(config.vercel.max_in_flight.get(), 8);
        assert_eq!(
            config.vercel.request_timeout,
            running.vercel.request_timeout
        );
        assert_eq!(config.retry.lease, running.retry.lease);
        assert_eq!(config.schedule.sweep, None);
        let again = Change::between(&config, &new);
        assert_eq!(again.taken.len(), 0, "once is enough");
        assert_eq!(again.pending.len(), 4, "it still waits");
    }

    #[test]
    fn a_secret_that_changed_is_named_and_never_shown() {
        let running = config("installations_query = \"SELECT 2\"\n");
        let new = format!("{BASE}installations_query = \"SELECT 2\"\n")
            .replace("old-password", "new-password");
        let new = Config::from_toml(&new).expect("it is valid");
        let change = Change::between(&running, &new);
        assert_eq!(change.pending, ["source.url"]);
        assert!(!format!("{change:?}").contains("password"), "{change:?}");
    }

    /// Every key whose change is taken over, and every other, as `docs/running.md` lists them.
    #[test]
    fn the_documentation_lists_what_each_key_needs() {
        let page = include_str!("../../docs/running.md");
        let config = oauth("client_secret = \"x\"\n");
        let change = Change::between(&config, &config);
        let section = page
            .split_once("## Reload")
            .map(|(_, rest)| rest.split("\n## ").next().unwrap_or(rest))
            .expect("the page has the section");
        for (key, decision) in change.decisions() {
            let (section_name, name) = key.rsplit_once('.').expect("a key has a section");
            let start = match decision {
                Reload::Taken => format!("| `[{section_name}]` |"),
                Reload::Pending => continue,
            };
            let line = section
                .lines()
                .find(|line| line.starts_with(&start))
                .unwrap_or_else(|| panic!("{start} is missing"));
            assert!(line.contains(&format!("`{name}`")), "{key} in: {line}");
        }
        for line in section.lines().filter(|line| line.starts_with("| `[")) {
            let mut words = line.split('`').skip(1).step_by(2);
            let section_name = words.next().expect("the section").trim_matches(['[', ']']);
            for name in words {
                let key = format!("{section_name}.{name}");
                let known = change.decisions().iter().find(|(known, _)| *known == key);
                assert_eq!(
                    known.map(|(_, decision)| *decision),
                    Some(Reload::Taken),
                    "{key}"
                );
            }
        }
    }
}
