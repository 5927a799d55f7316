//! The decisions: what differs, what to send, what an answer means, what follows from it.
//!
//! Everything here is a pure function of its arguments: no I/O, no clock, no randomness. A store runs these steps inside its
//! transactions, so that each of them sees a record as it is and no step can lose another's work.

pub mod advance;
pub mod backoff;
pub mod baseline;
pub mod claim;
pub mod classify;
pub mod decide;
pub mod diff;
pub mod guard;
pub mod look;
pub mod manual;
pub mod outage;
pub mod pace;
pub mod room;

#[cfg(test)]
mod cases;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod laws;

pub use advance::{Advance, Outcome, RetryPolicy, advance};
pub use claim::{Claim, Claimed, SecretsWay, claim, claim_with, expire};
pub use classify::{Answer, AnswerKind, LostKind, UnsentKind, Verdict, classify};
pub use decide::{Decision, Policy, decide};
pub use diff::{diff, pending};
