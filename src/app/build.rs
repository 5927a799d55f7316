//! From the configuration to the parts: source, state, client and the settings of both loops.

use std::sync::Arc;

use crate::app::lead::Leadership;
use crate::app::oauth::OauthTokens;
use crate::clock::{Clock, Random, SeededRandom, SystemClock};
use crate::config::{self, Config, DatabaseScheme};
use crate::dispatch::{self, InstallationsQuery, TokenSource, Tokens, Worlds};
use crate::model::{FingerprintKey, Timestamp};
use crate::plan::backoff::Backoff;
use crate::plan::decide::FirstSight;
use crate::plan::{Policy, RetryPolicy, SecretsWay, guard};
use crate::reconcile::{
    self, CROWD_ROWS, OnMissing, PAGE_ROWS, PassError, REST_PER_ROW, Reconciler,
};
use crate::source::{self, Inspect, Source, SourceError};
use crate::store::console::Console;
use crate::store::{Access, PostgresStore, SqliteStore, postgres};
use crate::store::{Store, StoreError};
use crate::vercel::{
    self, ClientError, HttpMarketplace, Marketplace, OauthSettings, TokenEndpoint,
};

/// Why the daemon could not be built or had to end.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The source cannot serve as it is configured.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The state cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The client cannot be built.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A pass failed for good.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// The schedule could not be started.
    #[error("the schedule could not be started: {0}")]
    Schedule(String),
    /// Signals could not be listened for.
    #[error(transparent)]
    Signals(#[from] crate::shutdown::ShutdownError),
    /// A part ended by a panic; the process has to start again.
    #[error("the {part} ended unexpectedly")]
    Ended {
        /// Which part.
        part: &'static str,
    },
    /// Health and metrics cannot be served where they are configured.
    #[error("cannot listen on {address} for health and metrics")]
    Listen {
        /// `[http] listen`.
        address: std::net::SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// What is configured is not there yet.
    #[error("{what} is not supported by this version")]
    Unsupported {
        /// The setting.
        what: &'static str,
    },
}

impl AppError {
    /// Whether the configuration has to change: exit code 78.
    #[must_use]
    pub const fn is_configuration(&self) -> bool {
        match self {
            Self::Source(error) | Self::Pass(PassError::Source(error)) => error.is_configuration(),
            Self::Unsupported { .. } => true,
            _ => false,
        }
    }
}

/// Everything that is built from the configuration.
#[derive(Clone)]
pub struct Parts {
    /// The configuration.
    pub config: Arc<Config>,
    /// The outside worlds.
    pub worlds: Worlds,
    /// The state as commands see it.
    pub console: Arc<dyn Console>,
    /// The key of all fingerprints.
    pub key: FingerprintKey,
    /// Unique to this process.
    pub owner: String,
    /// Where access tokens come from.
    token_source: Arc<dyn TokenSource>,
    /// Whether this process alone works on the state.
    access: Access,
}

impl Parts {
    /// Opens the state and prepares the rest; neither the source nor Vercel is contacted.
    ///
    /// # Errors
    /// The state cannot be opened, or a part cannot be built from its settings.
    pub async fn open(config: Arc<Config>, access: Access) -> Result<Self, AppError> {
        let source = source(&config)?;
        let marketplace = marketplace(&config)?;
        Self::assemble(config, source, marketplace, access).await
    }

    /// Opens the state for parts that were built elsewhere.
    ///
    /// # Errors
    /// The state cannot be opened.
    pub async fn assemble(
        config: Arc<Config>,
        source: Arc<dyn Source>,
        marketplace: Arc<dyn Marketplace>,
        access: Access,
    ) -> Result<Self, AppError> {
        let random: Arc<dyn Random> = Arc::new(SeededRandom::from_system());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let token_source = token_source(&config, &source, &clock)?;
        let store = open_state(&config, access).await?;
        let key = store.fingerprint_key().await?;
        let owner = owner(random.unique());
        let worlds = Worlds {
            source,
            store: Arc::clone(&store) as Arc<dyn Store>,
            marketplace,
            clock,
            random,
        };
        Ok(Self {
            config,
            worlds,
            console: store,
            key,
            owner,
            token_source,
            access,
        })
    }

    /// A reconciler that alone reads the source for this state, and the watch that sees to that: to be ended after the last read.
    ///
    /// # Errors
    /// A daemon, or another command, reads the source for this state.
    pub async fn watching_reconciler(&self) -> Result<(Reconciler, Leadership), StoreError> {
        Leadership::take(self).await
    }

    /// The same parts under another configuration; what was built from the old one stays as it is.
    #[must_use]
    pub fn with_config(&self, config: Arc<Config>) -> Self {
        Self {
            config,
            ..self.clone()
        }
    }

    /// A reconciler over these parts.
    #[must_use]
    pub fn reconciler(&self) -> Reconciler {
        let Worlds {
            source,
            store,
            clock,
            ..
        } = &self.worlds;
        let settings = reconcile_settings(&self.config);
        Reconciler::new(
            Arc::clone(source),
            Arc::clone(store),
            Arc::clone(clock),
            self.key.clone(),
            settings,
        )
    }

    /// Where access tokens come from.
    #[must_use]
    pub fn token_source(&self) -> Arc<dyn TokenSource> {
        Arc::clone(&self.token_source)
    }

    /// An empty memory of tokens.
    #[must_use]
    pub fn tokens(&self) -> Tokens {
        Tokens::new(self.token_source())
    }

    /// Ends the leases of a process that is gone.
    ///
    /// # Errors
    /// The state cannot be written.
    pub async fn recover(&self, now: Timestamp) -> Result<u64, StoreError> {
        // Whoever has the state to himself knows that every other holder is gone.
        let alone = self.access == Access::Daemon && !self.worlds.store.is_shared();
        self.worlds
            .store
            .recover(now, self.config.retry.late_apply, alone)
            .await
    }

    /// The settings of dispatch.
    #[must_use]
    pub fn dispatch_settings(&self) -> dispatch::Settings {
        let Config {
            vercel,
            retry,
            reconcile,
            ..
        } = &*self.config;
        let count = |n: std::num::NonZeroUsize| u32::try_from(n.get()).unwrap_or(u32::MAX);
        dispatch::Settings {
            owner: self.owner.clone(),
            max_in_flight: count(vercel.max_in_flight),
            max_in_flight_per_installation: count(vercel.max_in_flight_per_installation),
            requests_per_minute_per_installation: vercel
                .requests_per_minute_per_installation
                .map(Into::into),
            lease: retry.lease,
            request_timeout: vercel.request_timeout,
            retry: RetryPolicy {
                backoff: Backoff {
                    initial: retry.initial_interval,
                    multiplier: retry.multiplier,
                    max: retry.max_interval,
                },
                max_elapsed: retry.max_elapsed.unwrap_or_default(),
                max_conflicts: retry.max_conflicts.get(),
                late_apply: retry.late_apply,
            },
            ignored: reconcile.ignore,
            secrets: match vercel.secrets_endpoint {
                config::SecretsEndpoint::Patch => SecretsWay::Together,
                config::SecretsEndpoint::Put => SecretsWay::Alone,
            },
        }
    }
}

/// Names this process among all that share a state, for people too: its machine, its number there, and something of its own.
fn owner(unique: i64) -> String {
    let machine = rustix::system::uname();
    let machine = machine.nodename().to_string_lossy();
    format!("{machine}-{}-{unique:x}", std::process::id())
}

/// The settings of passes.
#[must_use]
pub fn reconcile_settings(config: &Config) -> reconcile::Settings {
    let first_sight = match config.reconcile.first_sight {
        config::FirstSight::Push => FirstSight::Push,
        config::FirstSight::Compare => FirstSight::Compare,
        config::FirstSight::Adopt => FirstSight::Adopt,
    };
    let config::GuardConfig {
        destructive_max,
        changes_max,
    } = config.guard;
    let guard = guard::Limits {
        destructive_max: destructive_max.map(Into::into),
        changes_max: changes_max.map(Into::into),
    };
    let on_missing = match config.reconcile.on_missing {
        config::OnMissing::Ignore => OnMissing::Ignore,
        config::OnMissing::Uninstall => OnMissing::Uninstall,
    };
    reconcile::Settings {
        policy: Policy { first_sight },
        ignored: config.reconcile.ignore,
        guard,
        on_missing,
        page_rows: PAGE_ROWS,
        sweep_rows_per_second: config.reconcile.sweep_rows_per_second,
        crowd_rows: CROWD_ROWS,
        rest_per_row: REST_PER_ROW,
    }
}

/// The source of this configuration; nothing is connected yet.
///
/// # Errors
/// A query is not one statement.
pub fn source(config: &Config) -> Result<Arc<dyn Inspect>, AppError> {
    Ok(source::connect(&source_settings(config))?)
}

/// What tells of changes at once, if `[source] listen` names a channel; nothing is connected yet.
///
/// # Errors
/// The source has no notifications.
pub fn listener(
    config: &Config,
    random: &dyn Random,
) -> Result<Option<Box<dyn source::Listen>>, AppError> {
    let Some(channel) = &config.source.listen else {
        return Ok(None);
    };
    let settings = source_settings(config);
    let keepalive = source::Keepalive::default();
    Ok(Some(source::listen(
        &settings,
        channel,
        random.unique(),
        keepalive,
    )?))
}

fn source_settings(config: &Config) -> source::Settings {
    let config::SourceConfig {
        url,
        query,
        installations_query,
        overlap,
        statement_timeout,
        max_connections,
        listen: _,
        feed,
        allow_replica,
    } = &config.source;
    let overlap = match *overlap {
        config::Overlap::Unset => source::Overlap::Unset,
        config::Overlap::Duration(duration) => source::Overlap::Duration(duration),
        config::Overlap::Units(units) => source::Overlap::Units(units),
    };
    source::Settings {
        url: url.expose().into(),
        query: query.clone(),
        installations_query: installations_query.clone(),
        feed: feed.clone(),
        overlap,
        statement_timeout: *statement_timeout,
        max_connections: max_connections.get(),
        allow_replica: *allow_replica,
        application_name: "reconciled".to_owned(),
    }
}

/// The client of this configuration; nothing is connected yet.
///
/// # Errors
/// A setting cannot be used.
pub fn marketplace(config: &Config) -> Result<Arc<dyn Marketplace>, AppError> {
    Ok(Arc::new(HttpMarketplace::new(
        &client_settings(config),
        Arc::new(SystemClock),
    )?))
}

/// Where access tokens come from: the authorization server if one is configured, else the installations query.
///
/// # Errors
/// A setting cannot be used.
pub fn token_source(
    config: &Config,
    source: &Arc<dyn Source>,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<dyn TokenSource>, AppError> {
    let Some(oauth) = &config.vercel.oauth else {
        return Ok(Arc::new(InstallationsQuery(Arc::clone(source))));
    };
    let config::OauthConfig {
        token_url,
        client_id,
        client_secret,
        form,
    } = oauth;
    let settings = OauthSettings {
        token_url: token_url.as_str().to_owned(),
        client_id: client_id.clone(),
        client_secret: client_secret.clone(),
        form: form
            .iter()
            .map(|(name, template)| (name.clone(), template.as_str().to_owned()))
            .collect(),
    };
    let endpoint = TokenEndpoint::new(settings, &client_settings(config), Arc::clone(clock))?;
    let random = Arc::new(SeededRandom::from_system());
    Ok(Arc::new(OauthTokens::new(
        endpoint,
        Arc::clone(clock),
        random,
    )))
}

fn client_settings(config: &Config) -> vercel::Settings {
    let config::VercelConfig {
        base_url,
        request_timeout,
        connect_timeout,
        max_in_flight,
        max_in_flight_per_installation: _,
        requests_per_minute_per_installation: _,
        secrets_endpoint,
        clear_notification,
        ca_file,
        proxy,
        oauth: _,
    } = &config.vercel;
    vercel::Settings {
        base_url: base_url.as_str().to_owned(),
        request_timeout: *request_timeout,
        connect_timeout: *connect_timeout,
        max_in_flight: max_in_flight.get(),
        ca_file: ca_file.clone(),
        proxy: proxy.as_ref().map(|proxy| proxy.expose().to_owned()),
        clear_notification: match clear_notification {
            config::ClearNotification::Empty => vercel::ClearNotification::Empty,
            config::ClearNotification::Null => vercel::ClearNotification::Null,
        },
        secrets_endpoint: match secrets_endpoint {
            config::SecretsEndpoint::Patch => vercel::SecretsEndpoint::Patch,
            config::SecretsEndpoint::Put => vercel::SecretsEndpoint::Put,
        },
        user_agent: vercel::USER_AGENT.to_owned(),
    }
}

/// Opens the state of this configuration.
///
/// # Errors
/// It cannot be opened, or its kind is not supported.
pub async fn open_state(config: &Config, access: Access) -> Result<Arc<dyn Console>, AppError> {
    match (config.state.url.scheme(), config.state.url.sqlite_path()) {
        (DatabaseScheme::Sqlite, Some(path)) => {
            Ok(Arc::new(SqliteStore::open(&path, access).await?))
        }
        (DatabaseScheme::Sqlite, None) => Err(AppError::Unsupported {
            what: "a [state] url in memory",
        }),
        (DatabaseScheme::Postgres, _) => {
            let settings = state_settings(config);
            Ok(Arc::new(PostgresStore::open(&settings, access).await?))
        }
        // Refused as configuration.
        (DatabaseScheme::MySql, _) => Err(AppError::Unsupported {
            what: "a [state] url on MySQL",
        }),
    }
}

/// What a look at a state on PostgreSQL found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateProbe {
    /// The server answers; there is no schema yet, and the role may make it.
    Absent {
        /// Whether a pooler stands between.
        pooled: bool,
    },
    /// It is there.
    Ready {
        /// The version of its schema.
        schema: i64,
        /// Whether a pooler stands between.
        pooled: bool,
        /// Whether the role may write to it.
        writable: bool,
        /// How many resources it has.
        resources: u64,
        /// How many daemons work on it.
        daemons: usize,
    },
}

/// Looks at a state on PostgreSQL and changes nothing.
///
/// # Errors
/// The server cannot be reached, or what is there cannot be used.
pub async fn probe_state(config: &Config) -> Result<StateProbe, AppError> {
    let settings = state_settings(config);
    let look = PostgresStore::look(&settings).await?;
    let pooled = look.is_pooled;
    if !look.exists {
        return Ok(StateProbe::Absent { pooled });
    }
    let store = PostgresStore::open(&settings, Access::Beside).await?;
    Ok(StateProbe::Ready {
        schema: PostgresStore::SCHEMA_VERSION,
        pooled,
        writable: store.can_write().await?,
        resources: store.resources().await?,
        daemons: store.daemon().await?.replicas.len(),
    })
}

fn state_settings(config: &Config) -> postgres::Settings {
    postgres::Settings {
        url: config.state.url.expose().into(),
        target: config.state.url.to_string(),
        max_connections: config.state.max_connections.get(),
    }
}
