//! What a person may do to an entry.

use crate::model::{Entry, EntryState, Mode, Reason, Record, Timestamp};

use super::decide::wait;
use super::diff::pending;

/// Why a manual act was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The resource has no open entry.
    #[error("the entry is closed")]
    Closed,
    /// A request for the entry is under way.
    #[error("a request for the entry is in flight; its outcome is known in a moment")]
    InFlight,
    /// The entry is not held.
    #[error("the entry is not held")]
    NotHeld,
    /// The entry is held.
    #[error("the entry is held; release or discard it")]
    Held,
}

/// Makes an entry due at once and forgets what made it wait or die.
///
/// # Errors
/// The entry is closed, held or in flight.
pub fn retry(record: &mut Record, now: Timestamp) -> Result<(), Refusal> {
    let entry = idle(record)?;
    if entry.state == EntryState::Held {
        return Err(Refusal::Held);
    }
    make_due(entry, now);
    Ok(())
}

/// Lets a held entry go.
///
/// # Errors
/// The entry is closed, not held or in flight.
pub fn release(record: &mut Record, now: Timestamp) -> Result<(), Refusal> {
    let entry = idle(record)?;
    if entry.state != EntryState::Held {
        return Err(Refusal::NotHeld);
    }
    make_due(entry, now);
    Ok(())
}

/// Closes an entry for good: what it wanted is not sent until the source changes it. Returns the closed entry.
///
/// # Errors
/// The entry is closed or in flight.
pub fn discard(record: &mut Record) -> Result<Entry, Refusal> {
    let desired = idle(record)?.desired.clone();
    let (patch, _) = pending(record, &desired);
    let rejected = record
        .entry
        .iter()
        .flat_map(|entry| entry.rejected.keys().copied());
    let fields: Vec<_> = patch.fields().iter().chain(rejected).collect();
    for field in fields {
        if let Some(digest) = desired.digest(field) {
            record.dismissed.insert(field, digest);
        }
    }
    let mut entry = record.entry.take().ok_or(Refusal::Closed)?;
    entry.state = EntryState::Discarded;
    Ok(entry)
}

fn idle(record: &mut Record) -> Result<&mut Entry, Refusal> {
    let entry = record.entry.as_mut().ok_or(Refusal::Closed)?;
    if entry.lease.is_some() {
        Err(Refusal::InFlight)
    } else {
        Ok(entry)
    }
}

fn make_due(entry: &mut Entry, now: Timestamp) {
    entry.state = EntryState::Waiting;
    entry.failures = 0;
    entry.conflicts = 0;
    entry.rejected.clear();
    entry.hold = None;
    if entry.mode == Mode::Split {
        entry.mode = Mode::Whole;
    }
    wait(entry, now, Reason::Retried);
}
