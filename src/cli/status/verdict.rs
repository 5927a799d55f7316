//! The verdict: one word, the number that makes it so, and the command that helps most. Pure.

use std::time::Duration;

use super::super::beside::shell;
use super::super::installation::{is_paused, manual};
use super::super::out::{BAD, GOOD, Look, WARN};
use super::super::standing::span;
use super::super::text::{count, counted, visible};
use super::Overview;
use crate::store::{Counts, PauseKind};

/// A running daemon that gave no sign of life for this long does nothing any more: it leaves one every few seconds, later only
/// while a single read of the source takes long.
const STALLED_AFTER: Duration = Duration::from_secs(120);

/// The gravest thing that is true, gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// There was a daemon and it does not run.
    Down,
    /// The daemon runs and gives no sign of life.
    Stalled,
    /// The state cannot be used: nothing is recorded, so nothing is sent.
    Blocked,
    /// The source cannot be read: changes are not seen.
    Blind,
    /// Vercel's API as a whole fails.
    Outage,
    /// The guard keeps changes back.
    Held,
    /// Dead letters.
    Dead,
    /// Installations get no requests, and something waits for it or a token is refused.
    Paused,
    /// Something waits.
    Behind,
    /// Rows cannot be used.
    Unusable,
    /// Nothing is open, but no sweep has compared every row yet.
    Unproven,
    /// Both sides agree, as far as polls and the last sweep tell.
    InSync,
}

impl Verdict {
    /// The verdict on an overview.
    pub(super) fn of(overview: &Overview) -> Self {
        let Overview {
            counts,
            daemon,
            now,
            ..
        } = overview;
        let alive = overview.alive();
        let swept = overview
            .progress
            .sweep
            .as_ref()
            .and_then(|sweep| sweep.last);
        let conditions = [
            (!daemon.running && daemon.heartbeat.is_some(), Self::Down),
            (
                alive.is_some_and(|heartbeat| now.since(heartbeat.at) > STALLED_AFTER),
                Self::Stalled,
            ),
            (
                alive.is_some_and(|heartbeat| heartbeat.state_problem.is_some()),
                Self::Blocked,
            ),
            (
                alive.is_some_and(|heartbeat| heartbeat.source_problem.is_some()),
                Self::Blind,
            ),
            (
                alive.is_some_and(|heartbeat| heartbeat.outage_since.is_some()),
                Self::Outage,
            ),
            (!overview.holds.is_empty(), Self::Held),
            (counts.dead > 0, Self::Dead),
            (is_held_up_by_pauses(overview), Self::Paused),
            (counts.waiting + counts.held > 0, Self::Behind),
            (overview.unusable_total > 0, Self::Unusable),
            (swept.is_none(), Self::Unproven),
        ];
        let first = conditions.into_iter().find(|(holds, _)| *holds);
        first.map_or(Self::InSync, |(_, verdict)| verdict)
    }

    /// The word.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Down => "DOWN",
            Self::Stalled => "STALLED",
            Self::Blocked => "BLOCKED",
            Self::Blind => "BLIND",
            Self::Outage => "OUTAGE",
            Self::Held => "HELD",
            Self::Dead => "DEAD",
            Self::Paused => "PAUSED",
            Self::Behind => "BEHIND",
            Self::Unusable => "UNUSABLE",
            Self::Unproven => "UNPROVEN",
            Self::InSync => "IN SYNC",
        }
    }

    /// How it is coloured: red needs a person, yellow may pass by itself.
    pub(super) const fn style(self) -> anstyle::Style {
        match self {
            Self::Down
            | Self::Stalled
            | Self::Blocked
            | Self::Blind
            | Self::Outage
            | Self::Held
            | Self::Dead => BAD,
            Self::Paused | Self::Behind | Self::Unusable | Self::Unproven => WARN,
            Self::InSync => GOOD,
        }
    }

    /// What makes it so.
    pub(super) fn because(self, overview: &Overview, look: Look) -> String {
        let Overview {
            counts,
            installations,
            now,
            ..
        } = overview;
        let heartbeat = overview.daemon.heartbeat.as_ref();
        let last_sign = || {
            heartbeat
                .map(|heartbeat| span(heartbeat.at, look))
                .unwrap_or_default()
        };
        let first = match self {
            Self::Down => format!(
                "the daemon does not run; last sign of life {}",
                since_words(&last_sign(), look)
            ),
            Self::Stalled => format!(
                "the daemon runs, but gave its last sign of life {}",
                since_words(&last_sign(), look)
            ),
            Self::Blocked => {
                "the state cannot be used; nothing is found or sent until it can".to_owned()
            }
            Self::Blind => "the source cannot be read; changes are not seen".to_owned(),
            Self::Outage => {
                let since = heartbeat.and_then(|heartbeat| heartbeat.outage_since);
                let since = since.map(|at| {
                    if look.terminal {
                        format!("for {}", span(at, look))
                    } else {
                        format!("since {at}")
                    }
                });
                format!("Vercel's API fails {}", since.unwrap_or_default())
            }
            Self::Held | Self::Dead | Self::Behind => return open(counts, look),
            Self::Paused => {
                let paused = installations
                    .iter()
                    .filter(|one| is_paused(one, *now))
                    .count() as u64;
                format!(
                    "{} {} no requests",
                    counted(paused, "installation"),
                    if paused == 1 { "gets" } else { "get" }
                )
            }
            Self::Unusable => {
                let resources = counted(overview.unusable_total, "resource");
                return format!(
                    "rows of {resources} in the source cannot be used; nothing else is open"
                );
            }
            Self::Unproven => {
                return "nothing is open, but no sweep has compared every row yet".to_owned();
            }
            Self::InSync => {
                let swept = overview
                    .progress
                    .sweep
                    .as_ref()
                    .and_then(|sweep| sweep.last);
                let swept = swept.map(|(at, _)| format!("; every row compared {}", look.when(at)));
                let open = match overview.discarded {
                    0 => "nothing is open".to_owned(),
                    discarded => format!("nothing is open, {} discarded", count(discarded)),
                };
                return format!("{open}{}", swept.unwrap_or_default());
            }
        };
        if counts.waiting + counts.held + counts.dead == 0 {
            let tense = if matches!(self, Self::Down | Self::Stalled | Self::Blocked) {
                "was"
            } else {
                "is"
            };
            return format!("{first}; nothing {tense} open");
        }
        format!("{first}; {}", open(counts, look))
    }

    /// What to do next.
    pub(super) fn next(self, overview: &Overview) -> String {
        match self {
            Self::Down => "systemctl start reconciled, or reconciled run".to_owned(),
            Self::Stalled => {
                "read its log for the last ERROR, then systemctl restart reconciled".to_owned()
            }
            Self::Blocked => {
                "free space on the state's disk, or bring its server back; it goes on by itself"
                    .to_owned()
            }
            Self::Blind => "reconciled check".to_owned(),
            Self::Outage => {
                "wait: it goes on by itself; reconciled outbox list shows what waits".to_owned()
            }
            Self::Held => "reconciled plan --held".to_owned(),
            Self::Dead => "reconciled outbox list --state dead".to_owned(),
            Self::Paused => next_for_pauses(overview),
            Self::Behind if !overview.daemon.running => {
                "reconciled run, or reconciled once: no daemon runs".to_owned()
            }
            Self::Behind => "reconciled outbox list".to_owned(),
            Self::Unusable => match overview.unusable.iter().find_map(|row| row.key.as_ref()) {
                Some(key) => format!(
                    "correct the row; reconciled explain {} {} tells more",
                    shell(key.installation_id.as_str()),
                    shell(key.resource_id.as_str())
                ),
                None => "correct the rows named above; the next sweep takes them up".to_owned(),
            },
            Self::Unproven if overview.daemon.running => {
                "wait for the sweep; reconciled plan compares every row now".to_owned()
            }
            Self::Unproven => "reconciled run, or reconciled once --sweep".to_owned(),
            Self::InSync => "nothing to do; reconciled plan compares every row now".to_owned(),
        }
    }
}

/// An automatic pause needs a person; a manual one matters here when all that waits waits for it.
fn is_held_up_by_pauses(overview: &Overview) -> bool {
    let Overview {
        installations,
        counts,
        now,
        ..
    } = overview;
    let paused = || installations.iter().filter(|one| is_paused(one, *now));
    let automatic = paused().any(|one| {
        one.pauses
            .iter()
            .any(|pause| pause.kind != PauseKind::Manual)
    });
    let waiting: u64 = paused().map(|one| one.waiting).sum();
    automatic || (waiting > 0 && waiting == counts.waiting)
}

fn next_for_pauses(overview: &Overview) -> String {
    let Overview {
        installations, now, ..
    } = overview;
    let by_hand = installations
        .iter()
        .find(|one| one.waiting > 0 && manual(one, *now).is_some());
    match by_hand {
        Some(one) => format!(
            "reconciled installation resume {}",
            shell(one.installation_id.as_str())
        ),
        None => "reconciled installation list".to_owned(),
    }
}

/// What is open, in numbers.
fn open(counts: &Counts, look: Look) -> String {
    let numbers = [
        (counts.waiting, "waiting"),
        (counts.held, "held"),
        (counts.dead, "dead"),
    ];
    let numbers: Vec<String> = numbers
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, word)| format!("{} {word}", count(number)))
        .collect();
    let oldest = counts
        .oldest_waiting
        .map(|at| format!("; oldest {}", visible(&span(at, look))));
    format!("{}{}", numbers.join(", "), oldest.unwrap_or_default())
}

fn since_words(span: &str, look: Look) -> String {
    if look.terminal {
        format!("{span} ago")
    } else {
        format!("at {span}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NOW, ago, behind, hold, in_sync, pause, quarantined};
    use super::*;

    const LOOK: Look = Look {
        terminal: true,
        width: 100,
        now: NOW,
    };

    fn told(change: impl FnOnce(&mut Overview)) -> (Verdict, String, String) {
        let mut overview = in_sync();
        change(&mut overview);
        let verdict = Verdict::of(&overview);
        (
            verdict,
            format!("{}   {}", verdict.word(), verdict.because(&overview, LOOK)),
            verdict.next(&overview),
        )
    }

    #[test]
    fn the_gravest_truth_is_the_verdict_and_names_its_number() {
        let heartbeat = |o: &mut Overview, change: fn(&mut crate::store::Heartbeat)| {
            change(o.daemon.heartbeat.as_mut().expect("there is one"));
        };
        type Case<'a> = (Box<dyn FnOnce(&mut Overview) + 'a>, &'a str, &'a str);
        let cases: Vec<Case<'_>> = vec![
            (
                Box::new(|_| {}),
                "IN SYNC   nothing is open; every row compared 40 s ago",
                "nothing to do; reconciled plan compares every row now",
            ),
            (
                Box::new(|o| o.daemon.running = false),
                "DOWN   the daemon does not run; last sign of life 2 s ago; nothing was open",
                "systemctl start reconciled, or reconciled run",
            ),
            (
                Box::new(|o| heartbeat(o, |h| h.at = ago(180))),
                "STALLED   the daemon runs, but gave its last sign of life 3 min ago; nothing was open",
                "read its log for the last ERROR, then systemctl restart reconciled",
            ),
            (
                Box::new(|o| {
                    heartbeat(o, |h| {
                        h.state_problem = Some("the disk is full".into());
                        h.source_problem = Some("unreachable".into());
                    });
                }),
                "BLOCKED   the state cannot be used; nothing is found or sent until it can; nothing was open",
                "free space on the state's disk, or bring its server back; it goes on by itself",
            ),
            (
                Box::new(|o| {
                    heartbeat(o, |h| h.source_problem = Some("unreachable".into()));
                    o.counts.dead = 1;
                }),
                "BLIND   the source cannot be read; changes are not seen; 1 dead",
                "reconciled check",
            ),
            (
                Box::new(|o| {
                    heartbeat(o, |h| h.outage_since = Some(ago(134)));
                    o.counts.waiting = 1_200;
                    o.counts.oldest_waiting = Some(ago(134));
                }),
                "OUTAGE   Vercel's API fails for 2 min 14 s; 1,200 waiting; oldest 2 min 14 s",
                "wait: it goes on by itself; reconciled outbox list shows what waits",
            ),
            (
                Box::new(|o| {
                    o.counts.held = 41_207;
                    o.holds = vec![hold()];
                    o.counts.dead = 1;
                }),
                "HELD   41,207 held, 1 dead",
                "reconciled plan --held",
            ),
            (
                Box::new(|o| o.counts.dead = 1),
                "DEAD   1 dead",
                "reconciled outbox list --state dead",
            ),
            (
                Box::new(|o| {
                    o.unusable = vec![quarantined("res 1")];
                    o.unusable_total = 2;
                }),
                "UNUSABLE   rows of 2 resources in the source cannot be used; nothing else is open",
                "correct the row; reconciled explain icfg_7Hd 'res 1' tells more",
            ),
            (
                Box::new(|o| o.progress.sweep = None),
                "UNPROVEN   nothing is open, but no sweep has compared every row yet",
                "wait for the sweep; reconciled plan compares every row now",
            ),
        ];
        for (change, sentence, next) in cases {
            let (_, told, then) = told(change);
            assert_eq!((told.as_str(), then.as_str()), (sentence, next));
        }
    }

    #[test]
    fn a_pause_is_the_verdict_when_all_that_waits_waits_for_it() {
        let mut overview = behind();
        assert_eq!(Verdict::of(&overview), Verdict::Behind);
        overview.installations[0].waiting = 0;
        overview.counts.waiting = 1;
        assert_eq!(Verdict::of(&overview), Verdict::Paused);
        assert_eq!(
            Verdict::Paused.because(&overview, LOOK),
            "1 installation gets no requests; 1 waiting; oldest 2 min 14 s"
        );
        assert_eq!(
            Verdict::Paused.next(&overview),
            "reconciled installation resume icfg_9aQ"
        );
    }

    #[test]
    fn a_refused_token_needs_a_person_also_while_nothing_waits() {
        let (verdict, _, next) = told(|o| pause(&mut o.installations[1], PauseKind::Token));
        assert_eq!(
            (verdict, next.as_str()),
            (Verdict::Paused, "reconciled installation list")
        );
        let (verdict, ..) = told(|o| pause(&mut o.installations[1], PauseKind::Manual));
        assert_eq!(verdict, Verdict::InSync);
    }

    #[test]
    fn what_a_pass_still_weighs_is_behind_not_held() {
        let (verdict, told, _) = told(|o| o.counts.held = 3);
        assert_eq!(
            (verdict, told.as_str()),
            (Verdict::Behind, "BEHIND   3 held")
        );
    }

    #[test]
    fn a_state_that_only_jobs_work_on_is_not_down() {
        let (verdict, ..) = told(|o| {
            o.daemon.running = false;
            o.daemon.heartbeat = None;
        });
        assert_eq!(verdict, Verdict::InSync);
        let (verdict, _, next) = told(|o| {
            o.daemon.running = false;
            o.daemon.heartbeat = None;
            o.counts.waiting = 1;
        });
        assert_eq!(
            (verdict, next.as_str()),
            (
                Verdict::Behind,
                "reconciled run, or reconciled once: no daemon runs"
            )
        );
    }
}
