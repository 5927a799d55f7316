//! The small predicates that every store answers alike: what is due, limited, paused, as the guard weighed it, and how an unusable row is
//! known again.

use crate::model::Timestamp;
use crate::plan::claim::DUE_HORIZON;

use super::{Pause, PauseKind, Quarantined};

/// Whether an entry was never claimed since the guard weighed it, as SQL: made by that change, with no newer target since
/// ([`look_under`](super::steps::guard::GuardRows::look_under)).
macro_rules! as_weighed {
    () => {
        "entry.state = 'held'
             AND entry.generation = 0
             AND entry.origin <> 'followup'"
    };
}

/// What the guard noted of an entry, of both kinds, as SQL that joins it.
macro_rules! noted {
    () => {
        "LEFT JOIN guarded AS change
           ON change.installation_id = entry.installation_id
          AND change.resource_id = entry.resource_id
          AND change.kind = 'change'
         LEFT JOIN guarded AS destructive
           ON destructive.installation_id = entry.installation_id
          AND destructive.resource_id = entry.resource_id
          AND destructive.kind = 'destructive'
          -- Of an earlier change that was sent the time is another.
          AND destructive.at = change.at"
    };
}

pub(super) use {as_weighed, noted};

/// Whether something that was to happen at `at` may happen now.
///
/// An instant too far ahead is the trace of a clock that was set back.
pub(super) fn is_due(at: Timestamp, now: Timestamp) -> bool {
    at <= now || at > now.plus(DUE_HORIZON)
}

/// Whether a rate limit until `limited_until` still holds.
pub(super) fn limit_holds(limited_until: Timestamp, now: Timestamp) -> bool {
    !is_due(limited_until, now)
}

/// The rate limit after a further one was announced: the later of the two, unless the old one cannot be believed.
pub(super) fn later_limit(
    old: Option<Timestamp>,
    announced: Timestamp,
    now: Timestamp,
) -> Timestamp {
    match old {
        Some(old) if limit_holds(old, now) => old.max(announced),
        _ => announced,
    }
}

/// Whether a pause is in effect.
pub(super) fn pause_holds(pause: &Pause, now: Timestamp) -> bool {
    pause.kind != PauseKind::Manual || pause.until.is_none_or(|until| until > now)
}

/// Whether a failed probe speaks of a pause that is over: ended meanwhile, and perhaps begun anew by somebody else.
pub(super) fn is_outdated_probe(old: Option<&Pause>, new: &Pause) -> bool {
    new.probes_failed > 0 && old.is_none_or(|old| old.since > new.since)
}

/// What a pause becomes when one of its kind is there already: it keeps its beginning, unless the old one had ended.
pub(super) fn merge_pause(old: Option<&Pause>, new: &Pause) -> Pause {
    let since = old
        .filter(|old| pause_holds(old, new.since))
        .map_or(new.since, |old| old.since.min(new.since));
    Pause {
        since,
        ..new.clone()
    }
}

/// What tells unusable rows with equal shown ids apart: nothing for a resource's row, the hash for those without a key.
pub(super) fn quarantine_slot(row: &Quarantined) -> Vec<u8> {
    match &row.key {
        Some(_) => Vec::new(),
        None => row.row_hash.as_bytes().to_vec(),
    }
}
