//! What the modelled world consists of: its settings, its states and its steps.

use crate::model::Snapshot;
use crate::planted::Bug;

use super::book::{HeldId, PatchId, RecordId, Said, Terms};

/// What may still go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    /// Changes of the source.
    pub(super) changes: u8,
    /// Processes that die while they work on the resource.
    pub(super) crashes: u8,
    /// Answers that are lost.
    pub(super) lost: u8,
    /// Answers of Vercel that accept nothing: 500, 429, 400, 409.
    pub(super) refusals: u8,
}

/// What is checked.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    /// The values that the source goes through.
    pub(super) values: Vec<Snapshot>,
    /// The values differ in nothing but being different: new ones are taken in order.
    pub(super) interchangeable: bool,
    /// The resource was never seen before, and Vercel holds value 0 by chance.
    pub(super) first_sight: bool,
    /// One process holds the state alone, and ends every lease when it starts again; otherwise there are two.
    pub(super) alone: bool,
    /// Workers whose token no longer matches are kept as such. Otherwise one of them is what it amounts to: idle, and a
    /// request of its own one without a sender. This is exact while the store checks tokens and dispatch its leases.
    pub(super) explicit: bool,
    pub(super) budget: Budget,
    pub(super) terms: Terms,
    /// The bug that is planted.
    pub(super) bug: Option<Bug>,
}

/// The modelled world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    /// The state database.
    pub(super) record: RecordId,
    /// The value of the source's row.
    pub(super) source: u8,
    /// How many of the values have been used so far.
    pub(super) used: u8,
    /// What Vercel holds.
    pub(super) held: HeldId,
    pub(super) workers: [Worker; 2],
    /// Requests without a sender that Vercel may still apply, sorted.
    pub(super) late: Vec<Late>,
    pub(super) budget: Budget,
    /// An outcome without a valid token has changed something.
    pub(super) intruded: bool,
}

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Worker {
    /// Nothing.
    Idle,
    /// There is no such process.
    Absent,
    /// Nothing: the process is gone and has not started again.
    Down,
    /// It has claimed and sent nothing yet.
    Claimed(Claim),
    /// Its request is out.
    Waiting(Claim, Sent),
    /// It knows how the attempt ended and has not recorded it.
    Answered(Claim, Answer),
}

impl Worker {
    /// What it has claimed.
    pub(super) const fn claim(&self) -> Option<&Claim> {
        match self {
            Self::Idle | Self::Absent | Self::Down => None,
            Self::Claimed(claim) | Self::Waiting(claim, _) | Self::Answered(claim, _) => {
                Some(claim)
            }
        }
    }
}

/// What a worker keeps in memory of its claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Claim {
    pub(super) patch: PatchId,
    /// The value that the patch leads to.
    pub(super) desired: u8,
    /// Whether its token is the one in the record.
    pub(super) token_matches: bool,
    /// How long ago it was made, at most [`Terms::oldest`].
    pub(super) age: u8,
}

/// A request with a sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Sent {
    /// How long after the claim it left.
    pub(super) after: u8,
    pub(super) at_vercel: AtVercel,
}

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum AtVercel {
    /// It may be applied for so many more ticks.
    Pending(u8),
    /// It was applied.
    Applied,
    /// It can no longer be applied.
    Gone,
}

/// What a worker is about to record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Answer {
    /// 2xx, to a request that left so long after the claim.
    Acknowledged {
        /// In ticks.
        sent_after: u8,
    },
    /// Anything else.
    Other(Said),
}

/// A request whose sender is gone or has given it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Late {
    pub(super) patch: PatchId,
    /// For how many more ticks it may be applied.
    pub(super) left: u8,
}

/// What Vercel or the network answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reply {
    /// 2xx, after it was applied.
    Accepted,
    /// Nothing, and the request may still be applied.
    Lost,
    /// Nothing, long after it could have been applied.
    TimedOut,
    /// 500.
    Failed,
    /// 429.
    RateLimited,
    /// 400.
    Rejected,
    /// 409.
    Conflict,
}

/// A step of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Change(u8),
    Poll,
    Tick,
    Expire,
    Claim(usize),
    Send(usize),
    Apply(usize),
    Answer(usize, Reply),
    Record(usize),
    Crash(usize),
    Restart(usize),
    ApplyLate(usize),
}
