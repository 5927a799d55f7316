//! What keeps an open entry from being sent now, in words. Pure.

use serde_json::{Value, json};

use super::out::Look;
use super::text::{duration, moment, visible};
use crate::model::{Entry, EntryState, Reason, Timestamp};
use crate::store::{Pause, PauseKind};

/// How an entry stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is closed.
    Closed,
    /// A request for it is on its way.
    InFlight {
        /// Since when.
        since: Timestamp,
    },
    /// The guard keeps it back until a person decides.
    Held,
    /// It needs a person.
    Dead,
    /// Its installation gets no requests.
    Paused(Pause),
    /// Vercel limits its installation's rate.
    Limited {
        /// Until when.
        until: Timestamp,
    },
    /// It waits for its time.
    Later {
        /// When it is due.
        due_at: Timestamp,
    },
    /// It is due.
    Due,
}

/// How an entry stands, given everything that is known of its installation.
pub(crate) fn standing(
    entry: &Entry,
    pauses: &[Pause],
    limited_until: Option<Timestamp>,
    now: Timestamp,
) -> Standing {
    match entry.state {
        EntryState::Held => return Standing::Held,
        EntryState::Dead => return Standing::Dead,
        EntryState::Delivered | EntryState::Withdrawn | EntryState::Discarded => {
            return Standing::Closed;
        }
        EntryState::Waiting => {}
    }
    if let Some(in_flight) = &entry.in_flight {
        return Standing::InFlight {
            since: in_flight.claimed_at,
        };
    }
    if let Some(pause) = pauses.iter().find(|pause| in_effect(pause, now)) {
        return Standing::Paused(pause.clone());
    }
    let limited = limited_until.filter(|until| *until > now);
    match limited {
        Some(until) if until > entry.due_at => Standing::Limited { until },
        _ if entry.due_at > now => Standing::Later {
            due_at: entry.due_at,
        },
        _ => Standing::Due,
    }
}

/// Whether a pause keeps requests back now: manual ones may end by themselves.
pub(crate) fn in_effect(pause: &Pause, now: Timestamp) -> bool {
    pause.until.is_none_or(|until| until > now)
}

impl Standing {
    /// Why the entry is where it is, in words that end a line.
    pub(crate) fn why(&self, reason: Reason, look: Look) -> String {
        match self {
            Self::Closed => "closed".to_owned(),
            Self::InFlight { .. } => "a request is on its way; its answer decides".to_owned(),
            Self::Held | Self::Dead | Self::Due | Self::Later { .. } => {
                reason.sentence().to_owned()
            }
            Self::Paused(pause) => paused(pause, look),
            Self::Limited { .. } => Reason::RateLimited.sentence().to_owned(),
        }
    }

    /// The shortest answer to "when", for a column of a table.
    pub(crate) fn when(&self, reason: Reason, look: Look) -> String {
        match self {
            Self::Closed => String::new(),
            Self::InFlight { .. } => "on its way".to_owned(),
            Self::Held => "held by the guard".to_owned(),
            Self::Dead => format!("dead: {}", reason.code()),
            Self::Paused(pause) => match pause.kind {
                PauseKind::Manual => format!("paused by {}", visible(&pause.by)),
                PauseKind::Token => "paused: token refused".to_owned(),
                PauseKind::Gone => "paused: installation gone".to_owned(),
            },
            Self::Limited { until } => format!("{}, rate limited", ahead(*until, look)),
            Self::Later { due_at } => format!("{}, {}", ahead(*due_at, look), reason.code()),
            Self::Due => format!("now, {}", reason.code()),
        }
    }

    /// When it may be sent at the earliest, if that is known and ahead.
    pub(crate) fn until(&self) -> Option<Timestamp> {
        match self {
            Self::Limited { until: at } | Self::Later { due_at: at } => Some(*at),
            Self::Paused(pause) => pause.until.or(pause.probe_at),
            Self::Closed | Self::InFlight { .. } | Self::Held | Self::Dead | Self::Due => None,
        }
    }

    /// The stable word for machines.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::InFlight { .. } => "in_flight",
            Self::Held => "held",
            Self::Dead => "dead",
            Self::Paused(_) => "paused",
            Self::Limited { .. } => "rate_limited",
            Self::Later { .. } => "later",
            Self::Due => "due",
        }
    }
}

/// A pause in a sentence: who, when, why, and when it ends.
pub(crate) fn paused(pause: &Pause, look: Look) -> String {
    let Pause {
        kind,
        by,
        reason,
        since,
        until,
        probe_at,
        ..
    } = pause;
    let since = clock(*since, look);
    let probe = || {
        probe_at
            .map(|at| format!("; probed again {}", ahead(at, look)))
            .unwrap_or_default()
    };
    match kind {
        PauseKind::Manual => {
            let until = until
                .map(|at| format!(", ends {}", ahead(at, look)))
                .unwrap_or_default();
            format!(
                "installation paused by {} {since}: \"{}\"{until}",
                visible(by),
                visible(reason)
            )
        }
        PauseKind::Token => format!(
            "installation paused {since}: Vercel refuses its token{}",
            probe()
        ),
        PauseKind::Gone => format!(
            "installation paused {since}: Vercel no longer knows it{}",
            probe()
        ),
    }
}

/// A pause for machines.
pub(crate) fn pause_json(pause: &Pause, now: Timestamp) -> Value {
    let Pause {
        installation_id: _,
        kind,
        by,
        reason,
        since,
        until,
        probe_at,
        probes_failed,
    } = pause;
    json!({
        "kind": kind.name(),
        "in_effect": in_effect(pause, now),
        "by": by,
        "reason": reason,
        "since": since.to_string(),
        "until": until.map(|at| at.to_string()),
        "probe_at": probe_at.map(|at| at.to_string()),
        "probes_failed": probes_failed,
    })
}

/// `in 12 s`, or `now` for what is past; the exact time for a pipe.
pub(crate) fn ahead(at: Timestamp, look: Look) -> String {
    if !look.terminal {
        return format!("at {at}");
    }
    let left = at.since(look.now);
    if left.is_zero() {
        "now".to_owned()
    } else {
        format!("in {}", duration(left))
    }
}

/// The hour and minute for a person, the exact time for a pipe.
pub(crate) fn clock(at: Timestamp, look: Look) -> String {
    if look.terminal {
        moment(at, look.now)
    } else {
        at.to_string()
    }
}

/// The hour, minute and second for a person, with the date when it is another day's; the exact time for a pipe.
pub(crate) fn clock_seconds(at: Timestamp, look: Look) -> String {
    let (at, now) = (at.to_string(), look.now.to_string());
    let range = if at.get(..10) == now.get(..10) {
        11..19
    } else {
        0..19
    };
    match at.get(range) {
        Some(short) if look.terminal => short.replace('T', " "),
        _ => at,
    }
}

/// How long ago as a bare duration for a person, the exact time for a pipe.
pub(crate) fn span(at: Timestamp, look: Look) -> String {
    if look.terminal {
        duration(look.now.since(at))
    } else {
        at.to_string()
    }
}

/// Milliseconds for a `_ms` property; zero for what is ahead.
pub(crate) fn age_ms(at: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{InstallationId, Mode, Origin, Snapshot};

    const NOW: Timestamp = Timestamp::from_millis(1_777_903_331_000);
    const LOOK: Look = Look {
        terminal: true,
        width: 100,
        now: NOW,
    };

    fn entry(due_in: u64) -> Entry {
        let due_at = NOW.plus(Duration::from_secs(due_in));
        Entry {
            due_at,
            reason: Reason::Backoff,
            ..Entry::new(Snapshot::default(), Origin::Poll, Mode::Whole, NOW)
        }
    }

    fn pause(until: Option<Timestamp>) -> Pause {
        Pause {
            installation_id: InstallationId::new("icfg_1").expect("an id"),
            kind: PauseKind::Manual,
            by: "ana".into(),
            reason: "customer migration".into(),
            since: NOW.minus(Duration::from_secs(120)),
            until,
            probe_at: None,
            probes_failed: 0,
        }
    }

    #[test]
    fn a_pause_outweighs_the_schedule_until_it_ends() {
        let running = pause(Some(NOW.plus(Duration::from_secs(60))));
        let over = pause(Some(NOW));
        let stands = standing(&entry(12), std::slice::from_ref(&running), None, NOW);
        assert_eq!(
            stands.why(Reason::Backoff, LOOK),
            "installation paused by ana 14:00: \"customer migration\", ends in 1 min"
        );
        assert_eq!(
            standing(&entry(12), &[over], None, NOW).when(Reason::Backoff, LOOK),
            "in 12 s, backoff"
        );
    }

    #[test]
    fn the_later_of_due_time_and_rate_limit_counts() {
        let limit = |seconds| Some(NOW.plus(Duration::from_secs(seconds)));
        let when = |entry: &Entry, limit| standing(entry, &[], limit, NOW).when(entry.reason, LOOK);
        assert_eq!(when(&entry(12), limit(30)), "in 30 s, rate limited");
        assert_eq!(when(&entry(12), limit(5)), "in 12 s, backoff");
        assert_eq!(when(&entry(0), None), "now, backoff");
    }

    #[test]
    fn a_pipe_gets_exact_times() {
        let pipe = Look {
            terminal: false,
            ..LOOK
        };
        assert_eq!(ahead(NOW, pipe), "at 2026-05-04T14:02:11.000Z");
        assert_eq!(clock(NOW, pipe), "2026-05-04T14:02:11.000Z");
    }
}
