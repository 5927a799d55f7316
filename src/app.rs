//! Composition: builds the worlds from the configuration, runs the two loops on schedule, drains at the end.

mod acts;
mod build;
mod census;
mod counted;
mod drift;
mod guard;
mod health;
mod http;
mod lead;
mod listen;
mod oauth;
mod observe;
mod once;
mod reload;
mod run;
mod schedule;
mod summary;
mod watch;

pub use build::{
    AppError, Parts, StateProbe, listener, marketplace, open_state, probe_state,
    reconcile_settings, source, token_source,
};
pub use drift::{drift, tell_finding};
pub use health::Pulse;
pub use lead::Leadership;
pub use once::{OnceOptions, OnceReport, once};
pub use reload::Reload;
pub use run::{Controls, run};
