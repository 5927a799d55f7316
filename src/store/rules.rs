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

/// The summaries of those installations whose ids this query gives, as SQL.
macro_rules! summaries {
    ($known:expr) => {
        concat!(
            "SELECT known.installation_id,
                (SELECT count(*)
                 FROM resource
                 WHERE resource.installation_id = known.installation_id) AS resources,
                coalesce(entries.waiting, 0) AS waiting,
                coalesce(entries.held, 0) AS held,
                coalesce(entries.dead, 0) AS dead,
                entries.oldest,
                installation.limited_until
         FROM (",
            $known,
            ") AS known
         LEFT JOIN (SELECT installation_id,
                           count(*) FILTER (WHERE state = 'waiting') AS waiting,
                           count(*) FILTER (WHERE state = 'held') AS held,
                           count(*) FILTER (WHERE state = 'dead') AS dead,
                           min(created_at) AS oldest
                    FROM entry
                    WHERE closed_at IS NULL
                    GROUP BY installation_id) AS entries
           ON entries.installation_id = known.installation_id
         LEFT JOIN installation
           ON installation.installation_id = known.installation_id
         ORDER BY known.installation_id"
        )
    };
}

/// The ids of the installations that a state knows, as SQL.
macro_rules! known_installations {
    () => {
        "SELECT installation_id FROM resource
         UNION
         SELECT installation_id FROM pause"
    };
}

/// [`Installations::All`](super::console::Installations::All).
pub(super) const ALL_INSTALLATIONS: &str = summaries!(known_installations!());

/// [`Installations::Noteworthy`](super::console::Installations::Noteworthy).
pub(super) const NOTEWORTHY_INSTALLATIONS: &str = summaries!(
    "SELECT installation_id FROM entry WHERE closed_at IS NULL
     UNION
     SELECT installation_id FROM pause
     UNION
     SELECT installation_id
     FROM installation AS limited
     WHERE limited_until IS NOT NULL
       AND EXISTS (SELECT 1 FROM resource WHERE resource.installation_id = limited.installation_id)"
);

/// How many installations a state knows.
pub(super) const COUNT_INSTALLATIONS: &str = concat!(
    "SELECT count(*) AS installations FROM (",
    known_installations!(),
    ") AS known"
);

pub(super) use {as_weighed, noted, summaries};

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
