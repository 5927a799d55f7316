//! A local stand-in for Vercel's Marketplace API: a judge, not an echo.
//!
//! Serves the resource operations and a token endpoint over HTTP on a port of its own, checks every request strictly against
//! the published schema, keeps what was applied and in which order, and fails on command. Guarantees that what a client
//! must never do is recorded as a violation, whatever it was answered. Never reads or calls any other part of this crate, and
//! never shows a secret value or a token.
//!
//! Remote control over HTTP, for the command line and for tests of the binary (`docs/simulator.md` has examples):
//!
//! | request | does |
//! |---|---|
//! | `POST /_simulator/faults`, `GET`, `DELETE` | adds rules, shows them, removes them |
//! | `PUT /_simulator/weather`, `DELETE` | faults by chance from a seed; none |
//! | `POST /_simulator/release` | ends every hang, delay, slow body and wait for a late application |
//! | `GET /_simulator/resources` | everything held; secret values as fingerprints |
//! | `GET /_simulator/resources/{icfg}/{id}/history` | every change that took effect |
//! | `DELETE /_simulator/resources/{icfg}/{id}?answer=404` | removes one resource |
//! | `GET /_simulator/requests?after=0` | the journal |
//! | `GET /_simulator/violations` | what the client must never do |
//! | `POST /_simulator/installations` | creates an installation with a token |
//! | `POST /_simulator/installations/{icfg}/token` | rotates or revokes its tokens |
//! | `DELETE /_simulator/installations/{icfg}?answer=404` | uninstalls it: 404, 410 or 403 from now on |
//! | `POST /_simulator/seed` | creates resources |
//! | `/_simulator/trap` | where a redirect may point; whoever comes is recorded |

mod answer;
mod api;
mod control;
pub mod fault;
pub mod fingerprint;
mod flight;
pub mod history;
pub mod journal;
mod json;
mod judge;
mod remote;
mod route;
pub mod schema;
mod server;
pub mod tokens;
pub mod weather;
pub mod world;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use secrecy::SecretString;

pub use self::fault::{Fault, Matcher, RetryAfter, Rule};
pub use self::history::{Applied, Regression};
pub use self::journal::{Entry, Outcome, Violation, ViolationKind};
pub use self::remote::{NotReached, Remote, WAIT_LIMIT};
pub use self::route::Operation;
pub use self::schema::{Field, Refusal, Rules};
pub use self::weather::{Weather, WeatherError};
pub use self::world::{Absence, Behaviour, ObjectUpdate, RemoteResource, ResourceKey};

/// A simulator that listens, until it is shut down or dropped.
#[derive(Debug)]
pub struct Simulator {
    remote: Remote,
    server: server::Server,
}

impl Simulator {
    /// Starts an empty simulator.
    ///
    /// # Errors
    /// The address cannot be listened on, or the weather cannot be.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let remote = Remote::new(&options)?;
        Self::serve(remote, options.address).await
    }

    /// Listens for a world that exists already: after a shutdown, on the same address, it is the end of an outage in
    /// which connections were refused.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn serve(remote: Remote, address: SocketAddr) -> Result<Self, StartError> {
        let server = server::Server::start(remote.clone(), address)
            .await
            .map_err(|source| StartError::Listen { address, source })?;
        Ok(Self { remote, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// The base URL of the API, without a slash at its end.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// The URL of the token endpoint.
    pub fn token_url(&self) -> String {
        format!("{}/oauth/token", self.base_url())
    }

    /// The handle to look, judge and change.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Closes the listener and every connection. The handle stays usable, and so does what it holds.
    pub async fn shutdown(self) {
        let Self { remote: _, server } = self;
        server.stop().await;
    }
}

/// How a simulator behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub address: SocketAddr,
    /// What the schema leaves open.
    pub rules: Rules,
    /// What installations and resources do.
    pub behaviour: Behaviour,
    /// The only client that the token endpoint knows; `None` accepts every client.
    pub oauth: Option<OauthClient>,
    /// Faults by chance.
    pub weather: Option<Weather>,
    /// Show secret values through the remote control.
    pub reveal_secrets: bool,
    /// The requests that the journal keeps; the oldest go first.
    pub journal_limit: usize,
    /// How long an overlapping earlier request may take to turn out abandoned by its client.
    pub overlap_grace: Duration,
    /// What the User-Agent must begin with.
    pub user_agent: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            rules: Rules::default(),
            behaviour: Behaviour::default(),
            oauth: None,
            weather: None,
            reveal_secrets: false,
            journal_limit: 100_000,
            overlap_grace: Duration::from_secs(2),
            user_agent: "reconciled/".to_owned(),
        }
    }
}

impl Options {
    /// The default, but installations and resources come into being by the first request for them.
    pub fn creating() -> Self {
        Self {
            behaviour: Behaviour {
                auto_create: true,
                ..Behaviour::default()
            },
            ..Self::default()
        }
    }
}

/// A client of the token endpoint.
#[derive(Clone, Debug)]
pub struct OauthClient {
    /// `client_id`
    pub client_id: String,
    /// `client_secret`
    pub client_secret: SecretString,
}

/// Why a simulator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken or not this machine's.
    #[error("the simulator cannot listen on {address}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The weather's probabilities cannot be.
    #[error("the simulator's weather is refused")]
    Weather(#[from] WeatherError),
}
