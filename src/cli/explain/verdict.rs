//! The verdict on one resource: a word, why, and what to do. Pure.

use super::super::beside::shell;
use super::super::matrix::{Line, counted_differences, is_doubt_alone};
use super::super::out::{BAD, GOOD, Look, WARN};
use super::super::outbox::advice;
use super::super::standing::{Standing, ahead, clock_seconds, standing};
use super::super::text::visible;
use super::{SourceRow, Told};
use crate::model::{Entry, EntryState, Field};
use crate::plan::diff;
use crate::plan::diff::left_out;

/// How a resource stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Neither the source nor the state knows it.
    Unknown,
    /// Its row cannot be used.
    Unusable,
    /// It has an open entry.
    Open(Standing),
    /// Its row is gone from the source.
    Missing,
    /// The source could not be asked, and nothing is open.
    Unasked,
    /// The row differs and the daemon has not seen it yet.
    Unseen,
    /// The row differs, and a person said not to send it.
    Discarded,
    /// Both sides agree.
    InSync,
}

impl Verdict {
    /// The verdict on what was told.
    pub(super) fn of(told: &Told) -> Self {
        let record = &told.story.record;
        if matches!(told.source, SourceRow::Unusable(_)) {
            return Self::Unusable;
        }
        if let Some(entry) = &record.entry {
            return Self::Open(standing(
                entry,
                &told.story.pauses,
                told.story.limited_until,
                told.now,
            ));
        }
        let is_known = record.row_hash.is_some() || !record.acknowledged.is_empty();
        match &told.source {
            SourceRow::Absent if is_known || told.story.quarantined.is_some() => Self::Missing,
            SourceRow::Absent => Self::Unknown,
            SourceRow::Unreachable(_) | SourceRow::Unusable(_) => Self::Unasked,
            SourceRow::Usable(desired) => {
                let patch = diff(desired, &record.acknowledged, &record.doubt);
                if patch.is_empty() {
                    Self::InSync
                } else if patch.without(left_out(record, desired)).is_empty() {
                    Self::Discarded
                } else {
                    Self::Unseen
                }
            }
        }
    }

    /// The word.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Unusable => "UNUSABLE",
            Self::Open(Standing::InFlight { .. }) => "ON ITS WAY",
            Self::Open(Standing::Held) => "HELD",
            Self::Open(Standing::Dead) => "DEAD",
            Self::Open(Standing::Paused(_)) => "PAUSED",
            Self::Open(_) => "WAITING",
            Self::Missing => "MISSING",
            Self::Unasked => "UNPROVEN",
            Self::Unseen => "CHANGED",
            Self::Discarded => "DISCARDED",
            Self::InSync => "IN SYNC",
        }
    }

    /// How it is coloured.
    pub(super) const fn style(&self) -> anstyle::Style {
        match self {
            Self::Unknown | Self::Unusable | Self::Open(Standing::Held | Standing::Dead) => BAD,
            Self::Open(_) | Self::Missing | Self::Unasked | Self::Unseen | Self::Discarded => WARN,
            Self::InSync => GOOD,
        }
    }

    /// The facts in half a line.
    pub(super) fn because(&self, told: &Told, lines: &[Line], look: Look) -> String {
        let differences = || counted_differences(lines);
        match self {
            Self::Unknown => "neither the source nor the state knows this resource".to_owned(),
            Self::Unusable => {
                "the row in the source cannot be used; nothing of it is sent".to_owned()
            }
            Self::Open(standing) => open(told, standing, lines, look),
            Self::Missing => {
                "the row is gone from the source; Vercel still has the resource".to_owned()
            }
            Self::Unasked => {
                "the source could not be asked; nothing is open in the state".to_owned()
            }
            Self::Unseen => {
                format!(
                    "{} in the source not yet seen by the daemon",
                    differences().unwrap_or_else(|| "a change".into())
                )
            }
            Self::Discarded => "the sides differ, and a person said not to send it".to_owned(),
            Self::InSync if lines.is_empty() => "the row manages no field".to_owned(),
            Self::InSync => "Vercel acknowledged every managed field".to_owned(),
        }
    }

    /// Why, in a sentence without its full stop.
    pub(super) fn why(&self, told: &Told, look: Look) -> String {
        let record = &told.story.record;
        match self {
            Self::Unknown => "check both ids; letters count as they are written".to_owned(),
            Self::Unusable => match &told.source {
                SourceRow::Unusable(unusable) => visible(&unusable.to_string()),
                _ => String::new(),
            },
            Self::Open(standing) => {
                let entry = record.entry.as_ref();
                let why = entry.map(|entry| standing.why(entry.reason, look)).unwrap_or_default();
                format!("{why}{}", said(told, entry))
            }
            Self::Missing => "a row that disappears changes nothing at Vercel unless [reconcile] on_missing says so".to_owned(),
            Self::Unasked => match &told.source {
                SourceRow::Unreachable(problem) => visible(problem),
                _ => String::new(),
            },
            Self::Unseen if told.daemon_runs => "the row changed after the last poll, or its cursor did not grow".to_owned(),
            Self::Unseen => "the row changed, and no daemon runs".to_owned(),
            Self::Discarded => {
                let act = told.story.acts.iter().rev().find(|act| act.act == "discard");
                act.map_or_else(
                    || "a person discarded this value".to_owned(),
                    |act| {
                        let reason = act.reason.as_deref().map(|reason| format!(": \"{}\"", visible(reason)));
                        format!(
                            "{} discarded it at {}{}",
                            visible(&act.actor),
                            clock_seconds(act.at, look),
                            reason.unwrap_or_default()
                        )
                    },
                )
            }
            Self::InSync => match record.acknowledged_at {
                Some(at) => format!("nothing differs; the last acknowledgement came {}", look.when(at)),
                None => "nothing differs; it was taken as acknowledged without sending".to_owned(),
            },
        }
    }

    /// What to do next.
    pub(super) fn next(&self, told: &Told) -> String {
        let key = &told.story.record.key;
        match self {
            Self::Unknown => format!(
                "reconciled plan --installation {}",
                shell(key.installation_id.as_str())
            ),
            Self::Unusable => {
                "correct the row in the source; the next poll or sweep takes it up".to_owned()
            }
            Self::Open(standing) => {
                let entry = told.story.record.entry.as_ref();
                let advice = entry.and_then(|entry| {
                    advice(
                        standing,
                        entry.reason,
                        entry.id,
                        key.installation_id.as_str(),
                    )
                });
                advice.unwrap_or_else(|| "reconciled status".to_owned())
            }
            Self::Missing => {
                "nothing, or remove the resource at Vercel if it is meant to be gone".to_owned()
            }
            Self::Unasked => "reconciled check".to_owned(),
            Self::Unseen if told.daemon_runs => {
                "wait for the next poll or sweep; reconciled status tells when".to_owned()
            }
            Self::Unseen => "reconciled run, or reconciled once".to_owned(),
            Self::Discarded => "change the value in the source to have it sent".to_owned(),
            Self::InSync
                if told
                    .story
                    .record
                    .acknowledged
                    .secrets
                    .as_ref()
                    .is_some_and(|secrets| !secrets.is_empty()) =>
            {
                "nothing; connected projects may keep an older secret until they are redeployed"
                    .to_owned()
            }
            Self::InSync => "nothing to do".to_owned(),
        }
    }
}

fn open(told: &Told, standing: &Standing, lines: &[Line], look: Look) -> String {
    let Some(entry) = &told.story.record.entry else {
        return String::new();
    };
    let what = match counted_differences(lines) {
        Some(_) if is_doubt_alone(lines, &told.story.record.doubt) => {
            "equal, but in doubt until Vercel confirms it".to_owned()
        }
        Some(differences) => format!("{differences} not yet acknowledged"),
        None if !entry.rejected.is_empty() => {
            let fields: Vec<&str> = entry
                .rejected
                .keys()
                .map(|field| Field::wire_name(*field))
                .collect();
            format!("{} rejected", fields.join(", "))
        }
        None => "nothing left to send".to_owned(),
    };
    match standing {
        Standing::Later { due_at } | Standing::Limited { until: due_at } => {
            format!(
                "{what}; attempt {} {}",
                entry.attempts + 1,
                ahead(*due_at, look)
            )
        }
        Standing::Due => format!("{what}; attempt {} is due", entry.attempts + 1),
        _ => what,
    }
}

/// What Vercel said last, where a person has to know it.
fn said(told: &Told, entry: Option<&Entry>) -> String {
    let Some(entry) = entry.filter(|entry| entry.state == EntryState::Dead) else {
        return String::new();
    };
    let of_entry = told
        .story
        .attempts
        .iter()
        .rev()
        .filter(|attempt| attempt.entry_id == entry.id);
    let said = of_entry
        .filter_map(|attempt| attempt.message.as_deref())
        .next();
    said.map(|said| format!("; Vercel said: {}", visible(said)))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::super::matrix;
    use super::super::tests::{NOW, ago, in_sync, snapshot};
    use super::*;
    use crate::model::{EntryId, Mode, Origin, Reason, Unusable};
    use crate::store::console::Act;

    const LOOK: Look = Look {
        terminal: true,
        width: 100,
        now: NOW,
    };

    fn told(change: impl FnOnce(&mut Told)) -> String {
        let mut told = in_sync();
        change(&mut told);
        let verdict = Verdict::of(&told);
        let lines = matrix::lines(&told.story.record, told.desired());
        let because = verdict.because(&told, &lines, LOOK);
        format!(
            "{}: {because} | {} | {}",
            verdict.word(),
            verdict.why(&told, LOOK),
            verdict.next(&told)
        )
    }

    fn open(told: &mut Told, change: impl FnOnce(&mut Entry)) {
        let mut entry = Entry::new(snapshot("ready", 0xb0), Origin::Poll, Mode::Whole, ago(38));
        entry.id = EntryId(58_213);
        change(&mut entry);
        told.story.record.entry = Some(entry);
        told.source = SourceRow::Usable(snapshot("ready", 0xb0));
    }

    #[test]
    fn a_row_without_managed_fields_is_in_sync_for_that_reason() {
        let because = Verdict::InSync.because(&in_sync(), &[], LOOK);
        assert_eq!(because, "the row manages no field");
    }

    #[test]
    fn each_standing_has_its_word_its_reason_and_its_cure() {
        let cases: Vec<(String, &str)> = vec![
            (
                told(|_| {}),
                "IN SYNC: Vercel acknowledged every managed field | nothing differs; the last acknowledgement came 2 min 51 s ago | \
                 nothing; connected projects may keep an older secret until they are redeployed",
            ),
            (
                told(|t| {
                    open(t, |entry| {
                        entry.reason = Reason::Backoff;
                        entry.attempts = 2;
                        entry.due_at = NOW.plus(std::time::Duration::from_secs(12));
                    })
                }),
                "WAITING: 1 secret not yet acknowledged; attempt 3 in 12 s | a temporary error at Vercel; its outcome is in doubt, so \
                 the value is sent until it is acknowledged | wait, or reconciled outbox retry 58213",
            ),
            (
                told(|t| open(t, |entry| entry.state = EntryState::Held)),
                "HELD: 1 secret not yet acknowledged | it is due and waits for a free place | \
                 reconciled outbox release 58213, or reconciled outbox discard 58213 --reason TEXT",
            ),
            (
                told(|t| t.source = SourceRow::Usable(snapshot("suspended", 0x9f))),
                "CHANGED: 1 field in the source not yet seen by the daemon | the row changed after the last poll, or its cursor did \
                 not grow | wait for the next poll or sweep; reconciled status tells when",
            ),
            (
                told(|t| t.source = SourceRow::Absent),
                "MISSING: the row is gone from the source; Vercel still has the resource | a row that disappears changes nothing at \
                 Vercel unless [reconcile] on_missing says so | nothing, or remove the resource at Vercel if it is meant to be gone",
            ),
            (
                told(|t| t.source = SourceRow::Unusable(Unusable::duplicate())),
                "UNUSABLE: the row in the source cannot be used; nothing of it is sent | column `resource_id` names a resource that \
                 another row names too; accepted: one row per installation_id and resource_id | \
                 correct the row in the source; the next poll or sweep takes it up",
            ),
            (
                told(|t| {
                    t.source =
                        SourceRow::Unreachable("cannot reach the source at db/app: refused".into())
                }),
                "UNPROVEN: the source could not be asked; nothing is open in the state | cannot reach the source at db/app: refused | \
                 reconciled check",
            ),
        ];
        for (told, expected) in cases {
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn a_discarded_value_says_who_and_why() {
        let text = told(|t| {
            let desired = snapshot("suspended", 0x9f);
            let digest = desired.digest(Field::Status).expect("managed");
            t.story.record.dismissed.insert(Field::Status, digest);
            t.source = SourceRow::Usable(desired);
            t.story.acts.push(Act {
                at: ago(60),
                actor: "ana".into(),
                act: "discard".into(),
                installation_id: Some(t.story.record.key.installation_id.clone()),
                resource_id: Some(t.story.record.key.resource_id.clone()),
                entry_id: Some(EntryId(1)),
                reason: Some("bad migration".into()),
            });
        });
        assert!(
            text.contains("| ana discarded it at 14:01:11: \"bad migration\" |"),
            "{text}"
        );
    }

    #[test]
    fn what_nobody_knows_is_unknown() {
        let text = told(|t| {
            t.story.record = crate::model::Record::new(t.story.record.key.clone());
            t.source = SourceRow::Absent;
        });
        assert!(
            text.starts_with("UNKNOWN: neither the source nor the state knows this resource"),
            "{text}"
        );
    }
}
