//! Keeps Vercel's view of a Marketplace provider's resources equal to the provider's own database.

pub mod allocator;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dispatch;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod handover;
pub mod hardening;
pub mod metrics;
pub mod model;
pub mod plan;
mod planted;
pub mod progress;
#[cfg(test)]
mod protocol;
pub mod reconcile;
pub mod reread;
pub mod shutdown;
#[cfg(test)]
mod simulation;
pub mod simulator;
pub mod source;
pub mod store;
pub mod telemetry;
pub mod vercel;
