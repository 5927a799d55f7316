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
        PauseKind::Token | PauseKind::Gone => format!(
            "installation paused {since}: {}{}",
            visible(reason),
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

    fn held_by(kind: PauseKind, until: Option<u64>, probe: Option<u64>) -> Pause {
        let after = |seconds| NOW.plus(Duration::from_secs(seconds));
        Pause {
            kind,
            until: until.map(after),
            probe_at: probe.map(after),
            ..pause(None)
        }
    }

    #[test]
    fn each_standing_says_when_for_people_and_for_machines() {
        let after = |seconds| NOW.plus(Duration::from_secs(seconds));
        let paused = |kind, until, probe| Standing::Paused(held_by(kind, until, probe));
        let cases = [
            (Standing::Closed, "", "closed", None),
            (
                Standing::InFlight { since: NOW },
                "on its way",
                "in_flight",
                None,
            ),
            (Standing::Held, "held by the guard", "held", None),
            (Standing::Dead, "dead: backoff", "dead", None),
            (
                paused(PauseKind::Manual, Some(60), None),
                "paused by ana",
                "paused",
                Some(60),
            ),
            (
                paused(PauseKind::Manual, None, None),
                "paused by ana",
                "paused",
                None,
            ),
            (
                paused(PauseKind::Token, None, Some(30)),
                "paused: token refused",
                "paused",
                Some(30),
            ),
            (
                paused(PauseKind::Gone, None, Some(40)),
                "paused: installation gone",
                "paused",
                Some(40),
            ),
            (
                Standing::Limited { until: after(5) },
                "in 5 s, rate limited",
                "rate_limited",
                Some(5),
            ),
            (
                Standing::Later { due_at: after(7) },
                "in 7 s, backoff",
                "later",
                Some(7),
            ),
            (Standing::Due, "now, backoff", "due", None),
        ];
        for (standing, when, name, until) in cases {
            assert_eq!(standing.when(Reason::Backoff, LOOK), when, "{standing:?}");
            assert_eq!(standing.name(), name);
            assert_eq!(standing.until(), until.map(after), "{standing:?}");
        }
    }

    #[test]
    fn a_pause_says_who_made_it_and_what_ends_it() {
        let cases = [
            (
                held_by(PauseKind::Manual, None, Some(30)),
                "installation paused by ana 14:00: \"customer migration\"",
            ),
            (
                held_by(PauseKind::Token, None, Some(30)),
                "installation paused 14:00: customer migration; probed again in 30 s",
            ),
            (
                held_by(PauseKind::Gone, None, None),
                "installation paused 14:00: customer migration",
            ),
        ];
        for (pause, expected) in cases {
            assert_eq!(paused(&pause, LOOK), expected);
        }
    }

    #[test]
    fn what_an_entry_is_in_outweighs_what_its_installation_is_in() {
        let stopped = [pause(None)];
        let stands = |state| {
            let entry = Entry { state, ..entry(12) };
            standing(&entry, &stopped, None, NOW).name()
        };
        assert_eq!(stands(EntryState::Waiting), "paused");
        assert_eq!(stands(EntryState::Held), "held");
        assert_eq!(stands(EntryState::Dead), "dead");
        assert_eq!(stands(EntryState::Delivered), "closed");
        assert_eq!(stands(EntryState::Withdrawn), "closed");
        assert_eq!(stands(EntryState::Discarded), "closed");
    }

    #[test]
    fn what_ends_now_has_ended_and_what_is_due_now_is_due() {
        let (now, later) = (Some(NOW), Some(NOW.plus(Duration::from_millis(1))));
        assert!(in_effect(&pause(None), NOW));
        assert!(in_effect(&pause(later), NOW));
        assert!(!in_effect(&pause(now), NOW));
        let name = |due_in, limit| standing(&entry(due_in), &[], limit, NOW).name();
        let overdue = Entry {
            due_at: NOW.minus(Duration::from_secs(1)),
            ..entry(0)
        };
        assert_eq!(standing(&overdue, &[], now, NOW).name(), "due");
        assert_eq!(name(0, now), "due");
        assert_eq!(name(0, later), "rate_limited");
        assert_eq!(name(1, None), "later");
        // Due when the limit ends: the schedule says so by itself.
        assert_eq!(name(1, Some(NOW.plus(Duration::from_secs(1)))), "later");
    }

    #[test]
    fn a_person_reads_the_second_of_today_and_the_date_of_another_day() {
        let pipe = Look {
            terminal: false,
            ..LOOK
        };
        let yesterday = NOW.minus(Duration::from_secs(86_400));
        assert_eq!(clock_seconds(NOW, LOOK), "14:02:11");
        assert_eq!(clock_seconds(yesterday, LOOK), "2026-05-03 14:02:11");
        assert_eq!(clock_seconds(NOW, pipe), "2026-05-04T14:02:11.000Z");
        let earlier = NOW.minus(Duration::from_secs(134));
        assert_eq!(span(earlier, LOOK), "2 min 14 s");
        assert_eq!(span(NOW, pipe), "2026-05-04T14:02:11.000Z");
        assert_eq!(ahead(earlier, LOOK), "now");
        assert_eq!(age_ms(earlier, NOW), 134_000);
        assert_eq!(age_ms(NOW, earlier), 0);
    }

    #[test]
    fn a_machine_is_told_whether_a_pause_still_keeps_requests_back() {
        let over = pause_json(&pause(Some(NOW)), NOW);
        assert_eq!(over["in_effect"], false);
        assert_eq!(over["until"], "2026-05-04T14:02:11.000Z");
        let probed = pause_json(&held_by(PauseKind::Gone, None, Some(1)), NOW);
        assert_eq!(probed["in_effect"], true);
        assert_eq!(probed["kind"], "gone");
        assert_eq!(probed["probe_at"], "2026-05-04T14:02:12.000Z");
        assert_eq!(probed["until"], Value::Null);
    }
}
