//! What `check` tells of a source: who we are there, what the query is, what its polls guarantee.

use super::{CursorKind, Shape};

/// A source as a person wants it described before trusting it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The database without its password.
    pub target: String,
    /// The product and its version, for instance `PostgreSQL 15.8`.
    pub server: String,
    /// The role that we are logged in as; empty where there are none.
    pub role: String,
    /// Whether that role could change the provider's data; `None`: unknown.
    pub can_write: Option<bool>,
    /// The query's columns in its own order, with the database's names of their types.
    pub columns: Vec<(String, String)>,
    /// What the columns mean.
    pub shape: Shape,
    /// The cursor's type in the database's own words.
    pub cursor_type: Option<String>,
    /// The table of the change feed that polls follow.
    pub feed: Option<String>,
    /// How many rows the query has; `None`: counting took longer than the statement timeout.
    pub rows: Option<u64>,
    /// Whether an index serves a poll; `None`: there is no cursor, or the plan does not say.
    pub is_poll_indexed: Option<bool>,
    /// Whether an index serves a sweep; `None`: the plan does not say.
    pub is_sweep_indexed: Option<bool>,
    /// Whether an index serves the look-up of tokens by their installations; `None`: there are none here, or the plan does not say.
    pub is_token_indexed: Option<bool>,
    /// What change detection promises here.
    pub guarantee: Guarantee,
    /// How to get a better promise; `None` when there is none.
    pub improvement: Option<String>,
    /// How long a page took to begin, read and end, in milliseconds.
    pub latency_ms: u64,
}

/// What change detection promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarantee {
    /// Polls miss no committed row, however late it commits, if the database itself sets the cursor.
    Exact,
    /// Polls miss rows that commit later than the overlap after their cursor was set; sweeps find those.
    BoundedByOverlap,
    /// There is no cursor: changes are found by sweeps alone.
    SweepOnly,
}

/// What the server says of itself and of the role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Inspection {
    pub(super) server: String,
    pub(super) role: String,
    pub(super) can_write: Option<bool>,
}

/// The advice for a cursor that an open transaction may still undercut.
pub(super) fn bounded(kind: CursorKind) -> (Guarantee, Option<String>) {
    let advice = match kind {
        CursorKind::Timestamp => "keep `overlap` above the longest transaction that writes",
        CursorKind::Integer => {
            "set `overlap` above the span of numbers that open transactions hold"
        }
        CursorKind::Text => {
            "use a timestamp or integer as cursor, which can be read with an overlap"
        }
    };
    (Guarantee::BoundedByOverlap, Some(advice.to_owned()))
}
