//! The outbox entry: the persisted intention to deliver one resource's patch, and its life.
//!
//! ```text
//!                       claim                 2xx, nothing left
//!   (change) ─► Waiting ◄────► in flight ───────────────────────► Delivered
//!                │  ▲  retry, 429, 5xx        source went back
//!                │  │  ────────────────────────────────────────► Withdrawn
//!                │  └─ desired changed, retry ── Dead ── discard ► Discarded
//!                └─ guard ─► Held ── release ─► Waiting
//! ```

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Doubt, Field, Fingerprint, Patch, Snapshot, Timestamp};

/// The number of an entry, given by the state database, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntryId(pub i64);

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where an entry is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryState {
    /// To be sent when it is due. Entered by a change, a release or a retry; left by an outcome.
    Waiting,
    /// Kept back by the guard. Entered when a pass is beyond the blast radius; left by release, discard, or the source going
    /// back.
    Held,
    /// A dead letter: needs a person. Left by retry, discard, or a change of the desired value that was refused.
    Dead,
    /// Closed: Vercel acknowledged everything.
    Delivered,
    /// Closed: nothing was left to send, since the source went back to what Vercel has.
    Withdrawn,
    /// Closed by a person, with a reason.
    Discarded,
}

impl EntryState {
    /// All states, in the order of an entry's life.
    pub const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Held,
        Self::Dead,
        Self::Delivered,
        Self::Withdrawn,
        Self::Discarded,
    ];

    /// The state's name in the state database, in JSON and in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Held => "held",
            Self::Dead => "dead",
            Self::Delivered => "delivered",
            Self::Withdrawn => "withdrawn",
            Self::Discarded => "discarded",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether the entry is still to be dealt with.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Held | Self::Dead)
    }
}

impl fmt::Display for EntryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What made an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A poll found the change.
    Poll,
    /// A sweep found the change.
    Sweep,
    /// The row was read again when a request was about to be built.
    Reread,
    /// The row changed while an earlier request was in flight.
    Followup,
    /// Vercel showed a value other than the acknowledged one.
    Drift,
    /// A person asked for a comparison with what Vercel shows.
    Baseline,
    /// The row disappeared from the source.
    Missing,
}

impl Origin {
    /// All origins.
    pub const ALL: [Self; 7] = [
        Self::Poll,
        Self::Sweep,
        Self::Reread,
        Self::Followup,
        Self::Drift,
        Self::Baseline,
        Self::Missing,
    ];

    /// The origin's name in the state database and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Sweep => "sweep",
            Self::Reread => "reread",
            Self::Followup => "followup",
            Self::Drift => "drift",
            Self::Baseline => "baseline",
            Self::Missing => "missing",
        }
    }

    /// The origin of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|origin| origin.name() == name)
    }
}

/// How an entry's next request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One request with the whole patch.
    #[default]
    Whole,
    /// One request per field, since Vercel rejected the whole patch.
    Split,
    /// First a GET: what Vercel already shows as desired counts as acknowledged.
    Compare,
}

impl Mode {
    /// The mode's name in the state database and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Split => "split",
            Self::Compare => "compare",
        }
    }
}

/// Why an entry waits or died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It has not been tried yet, or may be tried at once.
    Due,
    /// A temporary error; it is tried again with backoff.
    Backoff,
    /// Vercel asked to wait (429).
    RateLimited,
    /// Vercel answered 409 and shows something else than desired.
    Conflict,
    /// A request whose answer was lost may still be applied; the value is sent once more after that.
    LateApply,
    /// The installation's token was refused; the installation is paused.
    TokenRefused,
    /// The installation is gone at Vercel; it is paused.
    InstallationGone,
    /// The source could not be read when the request was built.
    SourceUnavailable,
    /// The row changed or disappeared after the entry was made; it is read again first.
    SourceMoved,
    /// The connection to Vercel could not be opened.
    Unreachable,
    /// A person asked to try it again.
    Retried,
    /// Dead: Vercel rejected at least one field (400, 422).
    Rejected,
    /// Dead: Vercel does not know the resource (404, 410).
    NotFound,
    /// Dead: too many conflicts in a row.
    ConflictLimit,
    /// Dead: an answer that no retry can change (3xx, other 4xx).
    Refused,
    /// Dead: `[retry] max_elapsed` passed.
    Expired,
    /// Dead: its row is gone from the source, and without it the secrets in doubt cannot be sent again. Opens when the row returns.
    RowGone,
    /// Held: the pass that found it was beyond the blast radius.
    Guard,
}

impl Reason {
    /// The stable code in the state database, in JSON and in logs.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::Backoff => "backoff",
            Self::RateLimited => "rate_limited",
            Self::Conflict => "conflict",
            Self::LateApply => "late_apply",
            Self::TokenRefused => "token_refused",
            Self::InstallationGone => "installation_gone",
            Self::SourceUnavailable => "source_unavailable",
            Self::SourceMoved => "source_moved",
            Self::Unreachable => "unreachable",
            Self::Retried => "retried",
            Self::Rejected => "rejected",
            Self::NotFound => "not_found",
            Self::ConflictLimit => "conflict_limit",
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::RowGone => "row_gone",
            Self::Guard => "guard",
        }
    }

    /// The reason in a sentence that ends a line of `explain`.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Due => "it is due and waits for a free place",
            Self::Backoff => {
                "a temporary error at Vercel; its outcome is in doubt, so the value is sent until it is acknowledged"
            }
            Self::RateLimited => "Vercel limits the rate of this installation",
            Self::Conflict => "Vercel answered 409 and shows another value",
            Self::LateApply => {
                "an answer was lost; the value is sent once more when that request can no longer take effect"
            }
            Self::TokenRefused => {
                "Vercel refuses the installation's token; the installation is paused and probed"
            }
            Self::InstallationGone => {
                "Vercel no longer knows the installation; it is paused and probed"
            }
            Self::SourceUnavailable => "the source could not be read when the request was built",
            Self::SourceMoved => {
                "the source's row has changed or disappeared since; it is read again first"
            }
            Self::Unreachable => "no connection to Vercel could be opened",
            Self::Retried => "a person asked for a retry",
            Self::Rejected => {
                "Vercel rejects the value; it is tried again when the source changes it"
            }
            Self::NotFound => "Vercel does not know the resource",
            Self::ConflictLimit => "Vercel answered 409 too often in a row",
            Self::Refused => "Vercel gave an answer that no retry can change",
            Self::Expired => "the time that [retry] max_elapsed allows has passed",
            Self::RowGone => {
                "the source's row is gone, and with it the values of the secrets in doubt; they are sent when it returns"
            }
            Self::Guard => "the pass that found it changes more than [guard] allows",
        }
    }
}

/// Proof of a claim: an outcome is recorded only while it still matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseToken(pub i64);

/// Who may send for an entry, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// The process that holds it.
    pub owner: String,
    /// Unique to the claim.
    pub token: LeaseToken,
    /// When another process may take over.
    pub expires_at: Timestamp,
}

/// The attempt that a claim announced: recorded before its request leaves.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InFlight {
    /// What the request carries; empty for a comparison.
    pub patch: Patch,
    /// The digests of the desired values that the patch was made from, to recognise them when Vercel rejects one.
    pub digests: BTreeMap<Field, Fingerprint>,
    /// The entry's generation when the claim was made.
    pub generation: u32,
    /// What was in doubt before it, for an answer that proves that it changed nothing.
    pub doubt_before: Doubt,
    /// When the claim was made.
    pub claimed_at: Timestamp,
}

/// A field that Vercel rejected by itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rejection {
    /// The digest of the value that was rejected.
    pub digest: Fingerprint,
    /// The status of the answer.
    pub status: u16,
    /// The answer's error code, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// The persisted intention to bring one resource to what the source desires. At most one is open per resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Its number.
    pub id: EntryId,
    /// Where it is in its life.
    pub state: EntryState,
    /// What the source desires.
    pub desired: Snapshot,
    /// Counts the changes of `desired` since the entry was made.
    pub generation: u32,
    /// What made it.
    pub origin: Origin,
    /// How the next request is made.
    pub mode: Mode,
    /// Why it waits or died.
    pub reason: Reason,
    /// When the change was found.
    pub created_at: Timestamp,
    /// When it is to be tried next, while it waits.
    pub due_at: Timestamp,
    /// Requests sent for it.
    pub attempts: u32,
    /// Failures in a row, for the backoff.
    pub failures: u32,
    /// 409s in a row.
    pub conflicts: u32,
    /// Fields that Vercel rejected by themselves.
    pub rejected: BTreeMap<Field, Rejection>,
    /// The guard's hold that keeps it back.
    pub hold: Option<i64>,
    /// Who sends for it now.
    pub lease: Option<Lease>,
    /// What is being sent, exactly while there is a lease.
    pub in_flight: Option<InFlight>,
}

impl Entry {
    /// A new entry that is due at once; the store gives the number.
    #[must_use]
    pub fn new(desired: Snapshot, origin: Origin, mode: Mode, now: Timestamp) -> Self {
        Self {
            id: EntryId(0),
            state: EntryState::Waiting,
            desired,
            generation: 0,
            origin,
            mode,
            reason: Reason::Due,
            created_at: now,
            due_at: now,
            attempts: 0,
            failures: 0,
            conflicts: 0,
            rejected: BTreeMap::new(),
            hold: None,
            lease: None,
            in_flight: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_has_one_name_in_the_state_and_in_json() {
        for mode in [Mode::Whole, Mode::Split, Mode::Compare] {
            let name = serde_json::to_value(mode).expect("a name");
            assert_eq!(name, mode.name());
        }
    }
}
