//! Composition: builds the worlds from the configuration, runs the two loops on schedule, drains at the end.

mod build;
mod once;
mod run;
mod schedule;
mod summary;
mod watch;

pub use build::{AppError, Parts};
pub use once::{OnceOptions, OnceReport, once};
pub use run::run;
