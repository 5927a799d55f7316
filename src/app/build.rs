//! From the configuration to the parts: source, state, client and the settings of both loops.

use std::sync::Arc;

use crate::clock::{Clock, Random, SeededRandom, SystemClock};
use crate::config::{self, Config, DatabaseScheme};
use crate::dispatch::{self, InstallationsQuery, TokenSource, Tokens, Worlds};
use crate::model::{FingerprintKey, Timestamp};
use crate::plan::backoff::Backoff;
use crate::plan::decide::FirstSight;
use crate::plan::{Policy, RetryPolicy};
use crate::reconcile::{self, PAGE_ROWS, PassError, Reconciler};
use crate::source::{self, Source, SourceError};
use crate::store::sqlite::{Access, SqliteStore};
use crate::store::{Console, Store, StoreError};
use crate::vercel::{self, ClientError, HttpMarketplace, Marketplace};

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
        let store = open_state(&config, access, clock.now()).await?;
        let key = store.fingerprint_key().await?;
        let owner = format!("{}-{:x}", std::process::id(), random.unique());
        let worlds = Worlds { source, store: Arc::clone(&store) as Arc<dyn Store>, marketplace, clock, random };
        Ok(Self { config, worlds, console: store, key, owner, access })
    }

    /// A reconciler over these parts.
    #[must_use]
    pub fn reconciler(&self) -> Reconciler {
        let Worlds { source, store, clock, .. } = &self.worlds;
        let settings = reconcile_settings(&self.config);
        Reconciler::new(Arc::clone(source), Arc::clone(store), Arc::clone(clock), self.key.clone(), settings)
    }

    /// Where access tokens come from.
    #[must_use]
    pub fn token_source(&self) -> Arc<dyn TokenSource> {
        Arc::new(InstallationsQuery(Arc::clone(&self.worlds.source)))
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
        let alone = self.access == Access::Daemon;
        self.worlds.store.recover(now, self.config.retry.late_apply, alone).await
    }

    /// The settings of dispatch.
    #[must_use]
    pub fn dispatch_settings(&self) -> dispatch::Settings {
        let Config { vercel, retry, reconcile, .. } = &*self.config;
        let count = |n: std::num::NonZeroUsize| u32::try_from(n.get()).unwrap_or(u32::MAX);
        dispatch::Settings {
            owner: self.owner.clone(),
            max_in_flight: count(vercel.max_in_flight),
            max_in_flight_per_installation: count(vercel.max_in_flight_per_installation),
            requests_per_minute_per_installation: vercel.requests_per_minute_per_installation.map(Into::into),
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
        }
    }
}

/// The settings of passes.
#[must_use]
pub fn reconcile_settings(config: &Config) -> reconcile::Settings {
    let first_sight = match config.reconcile.first_sight {
        config::FirstSight::Push => FirstSight::Push,
        config::FirstSight::Compare => FirstSight::Compare,
        config::FirstSight::Adopt => FirstSight::Adopt,
    };
    reconcile::Settings { policy: Policy { first_sight }, ignored: config.reconcile.ignore, page_rows: PAGE_ROWS }
}
