//! What happened, from the oldest to the newest, repeats folded. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::matrix::field_names;
use super::super::out::{Look, Table};
use super::super::standing::clock_seconds;
use super::super::text::{count, counted, duration, visible};
use crate::model::{Entry, EntryId, EntryState, Timestamp};
use crate::plan::diff;
use crate::store::PauseKind;
use crate::store::console::{Act, Attempt, Story};

/// Something that happened, once or several times in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// When it happened first.
    pub(super) at: Timestamp,
    /// When it happened last.
    pub(super) last_at: Timestamp,
    /// How many times in a row.
    pub(super) times: u64,
    /// What: one stable word.
    pub(super) kind: &'static str,
    /// More of it.
    pub(super) text: String,
    /// `X-Vercel-Id` of the last of them.
    pub(super) vercel_id: Option<String>,
    /// How long the request took, of the last of them; only attempts take time.
    pub(super) took: Option<Duration>,
    /// The entry that it belongs to.
    pub(super) entry: Option<EntryId>,
}

/// Everything that the story holds, folded.
pub(super) fn events(story: &Story) -> Vec<Event> {
    let mut events: Vec<Event> = story.attempts.iter().map(of_attempt).collect();
    events.extend(entries(story));
    events.extend(story.acts.iter().map(of_act));
    let automatic = story
        .pauses
        .iter()
        .filter(|pause| pause.kind != PauseKind::Manual);
    events.extend(automatic.map(|pause| {
        let text = format!("the installation: {}", visible(&pause.reason));
        one(pause.since, "paused", text, None)
    }));
    if let Some(row) = &story.quarantined {
        let text = format!(
            "column `{}` {}",
            visible(&row.column),
            visible(&row.problem)
        );
        events.push(one(row.since, "quarantined", text, None));
    }
    if let Some(missing) = story.record.missing {
        let sweeps = counted(missing.sweeps.into(), "sweep");
        events.push(one(
            missing.since,
            "missing",
            format!("the row is gone from the source, for {sweeps}"),
            None,
        ));
    }
    // What a change led to stands after it, also within one millisecond.
    events.sort_by_key(|event| (event.at, event.kind != "changed"));
    fold(events)
}

fn one(at: Timestamp, kind: &'static str, text: String, entry: Option<EntryId>) -> Event {
    Event {
        at,
        last_at: at,
        times: 1,
        kind,
        text,
        vercel_id: None,
        took: None,
        entry,
    }
}

/// When the changes were found, and how entries ended that no attempt ended.
fn entries(story: &Story) -> Vec<Event> {
    let mut events = Vec::new();
    for listed in &story.closed {
        let entry = &listed.entry;
        let mut sent: Vec<String> = Vec::new();
        for attempt in story
            .attempts
            .iter()
            .filter(|attempt| attempt.entry_id == entry.id)
        {
            sent.extend(
                attempt
                    .secret_names
                    .iter()
                    .filter(|name| !sent.contains(name))
                    .cloned()
                    .collect::<Vec<_>>(),
            );
        }
        let fields = field_names(listed.fields.iter(), &sent);
        events.push(one(
            entry.created_at,
            "changed",
            found(&fields, entry),
            Some(entry.id),
        ));
        if let (EntryState::Withdrawn, Some(at)) = (entry.state, listed.closed_at) {
            let text = "the source went back; nothing was left to send".to_owned();
            events.push(one(at, "withdrawn", text, Some(entry.id)));
        }
    }
    if let Some(entry) = &story.record.entry {
        let patch = diff(
            &entry.desired,
            &story.record.acknowledged,
            &story.record.doubt,
        );
        let secrets: Vec<String> = patch.secret_names().map(ToString::to_string).collect();
        let fields = field_names(patch.fields().iter(), &secrets);
        events.push(one(
            entry.created_at,
            "changed",
            found(&fields, entry),
            Some(entry.id),
        ));
    }
    events
}

/// What an entry was made for. When what was folded into it was found is not kept, so the time is said to be that of the first change.
fn found(fields: &str, entry: &Entry) -> String {
    let origin = entry.origin.name();
    let later = entry.generation;
    match (fields.is_empty(), later) {
        // Nothing of it was sent, and what it would have sent is not kept.
        (true, 0) => format!("found ({origin})"),
        (true, _) => format!("found ({origin}), the first of {}", changes(later)),
        (false, 0) => format!("{fields} ({origin})"),
        (false, _) => format!(
            "found ({origin}), the first of {}; together {fields}",
            changes(later)
        ),
    }
}

/// The first change and those that were folded into its entry.
fn changes(later: u32) -> String {
    counted(u64::from(later) + 1, "change")
}

fn of_attempt(attempt: &Attempt) -> Event {
    Event {
        at: attempt.started_at,
        last_at: attempt.ended_at,
        times: 1,
        kind: kind(&attempt.outcome),
        text: attempt_text(attempt),
        vercel_id: attempt.vercel_id.clone(),
        took: Some(attempt.ended_at.since(attempt.started_at)),
        entry: Some(attempt.entry_id),
    }
}

/// The outcome's name as one word of the story; an unknown one, of another version, stays what it is in effect: an attempt.
fn kind(outcome: &str) -> &'static str {
    match outcome {
        "acknowledged" => "acknowledged",
        "unreachable" => "unreachable",
        "lost" => "lost",
        "failed" => "failed",
        "rate_limited" => "rate limited",
        "conflict" => "conflict",
        "token_refused" => "token refused",
        "installation_gone" => "installation gone",
        "not_found" => "not found",
        "rejected" => "rejected",
        "refused" => "refused",
        "compared" => "compared",
        _ => "attempt",
    }
}

fn attempt_text(attempt: &Attempt) -> String {
    let Attempt {
        method,
        fields,
        secret_names,
        outcome,
        status,
        error_code,
        message,
        ..
    } = attempt;
    let mut text = Vec::new();
    if method != "PATCH" {
        text.push(visible(method));
    }
    // That an acknowledgement was a 200 is no news.
    if outcome != "acknowledged" {
        text.extend(status.map(|status| status.to_string()));
        text.extend(
            error_code
                .as_deref()
                .filter(|code| *code != outcome)
                .map(visible),
        );
    }
    let names = field_names(fields.iter().copied(), secret_names);
    if !names.is_empty() {
        text.push(names);
    }
    let said = message
        .as_deref()
        .map(|said| format!(": {}", visible(said)))
        .unwrap_or_default();
    format!("{}{said}", text.join(" "))
}

fn of_act(act: &Act) -> Event {
    let Act {
        at,
        actor,
        act,
        installation_id,
        resource_id,
        entry_id,
        reason,
    } = act;
    let kind = match act.as_str() {
        "retry" => "retried",
        "discard" => "discarded",
        "release" => "released",
        "pause" => "paused",
        "resume" => "resumed",
        "adopt" => "adopted",
        "compare" => "to compare",
        "fix" => "drift fixed",
        _ => "act",
    };
    let whole = match (installation_id, resource_id) {
        (None, _) => " the whole fleet",
        (Some(_), None) => " the whole installation",
        (Some(_), Some(_)) => "",
    };
    let reason = reason
        .as_deref()
        .map(|reason| format!(": \"{}\"", visible(reason)))
        .unwrap_or_default();
    one(
        *at,
        kind,
        format!("by {}{whole}{reason}", visible(actor)),
        *entry_id,
    )
}

/// Joins neighbours that say the same.
fn fold(events: Vec<Event>) -> Vec<Event> {
    let mut folded: Vec<Event> = Vec::with_capacity(events.len());
    for event in events {
        match folded.last_mut() {
            Some(last)
                if last.kind == event.kind && last.text == event.text && last.kind != "changed" =>
            {
                last.times += 1;
                last.last_at = last.last_at.max(event.last_at);
                last.vercel_id = event.vercel_id.or(last.vercel_id.take());
                last.took = event.took;
                last.entry = event.entry;
            }
            _ => folded.push(event),
        }
    }
    folded
}

/// The events as a table.
pub(super) fn table(events: &[Event], look: Look) -> Table {
    let mut table = Table::new(&["TIME", "EVENT", "WHAT", "TOOK", "X-VERCEL-ID"]);
    // The id is what support asks for: it is never cut, and the text gets what it leaves.
    let used = 10
        + 16
        + 10
        + events
            .iter()
            .filter_map(|event| event.vercel_id.as_ref())
            .map(String::len)
            .max()
            .unwrap_or(11);
    for event in events {
        let again = if event.times > 1 {
            format!(
                "×{} over {}  ",
                count(event.times),
                duration(event.last_at.since(event.at))
            )
        } else {
            String::new()
        };
        table.row(vec![
            clock_seconds(event.at, look),
            event.kind.to_owned(),
            look.fit(&format!("{again}{}", event.text), used),
            event.took.map(duration).unwrap_or_default(),
            event.vercel_id.as_deref().map(visible).unwrap_or_default(),
        ]);
    }
    table
}

/// Attempts alone, each for itself: for `outbox show`.
pub(crate) fn attempts_table(attempts: &[Attempt], look: Look) -> Table {
    let mut table = Table::new(&["TIME", "ATTEMPT", "OUTCOME", "WHAT", "TOOK", "X-VERCEL-ID"]);
    let used = 50
        + attempts
            .iter()
            .filter_map(|attempt| attempt.vercel_id.as_ref())
            .map(String::len)
            .max()
            .unwrap_or(11);
    for attempt in attempts {
        let took = attempt.ended_at.since(attempt.started_at);
        table.row(vec![
            clock_seconds(attempt.started_at, look),
            attempt.number.to_string(),
            kind(&attempt.outcome).to_owned(),
            look.fit(&attempt_text(attempt), used),
            duration(took),
            attempt
                .vercel_id
                .as_deref()
                .map(visible)
                .unwrap_or_default(),
        ]);
    }
    table
}

/// One attempt for machines.
pub(crate) fn attempt_json(attempt: &Attempt) -> Value {
    let Attempt {
        entry_id,
        number,
        started_at,
        ended_at,
        method,
        fields,
        secret_names,
        outcome,
        status,
        error_code,
        message,
        vercel_id,
    } = attempt;
    json!({
        "entry": entry_id.0,
        "attempt": number,
        "started_at": started_at.to_string(),
        "duration_ms": super::super::standing::age_ms(*started_at, *ended_at),
        "method": method,
        "fields": fields.iter().map(|field| field.wire_name()).collect::<Vec<_>>(),
        "secret_names": secret_names,
        "outcome": outcome,
        "status": status,
        "error_code": error_code,
        "error": message,
        "vercel_id": vercel_id,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::tests::{NOW, ago, in_sync, snapshot};
    use super::*;
    use crate::model::{Field, Mode, Origin, ResourceKey};
    use crate::store::console::ListedEntry;

    /// An attempt that was sent so many seconds ago and took 0.4 s.
    pub(crate) fn attempt(
        number: u32,
        seconds_ago: u64,
        outcome: &str,
        status: Option<u16>,
    ) -> Attempt {
        Attempt {
            entry_id: EntryId(58_213),
            number,
            started_at: ago(seconds_ago),
            ended_at: ago(seconds_ago).plus(Duration::from_millis(400)),
            method: "PATCH".into(),
            fields: vec![Field::Secrets],
            secret_names: vec!["DATABASE_URL".into()],
            outcome: outcome.into(),
            status,
            error_code: (outcome != "acknowledged").then(|| "server_error".into()),
            message: None,
            vercel_id: Some(format!("iad1::q{number}")),
        }
    }

    #[test]
    fn what_a_person_did_is_told_with_its_reach_and_reason() {
        let key = ResourceKey::new("icfg_7Hd", "res_0412").expect("ids");
        let done = |act: &str| Act {
            at: ago(60),
            actor: "ana".into(),
            act: act.into(),
            installation_id: Some(key.installation_id.clone()),
            resource_id: Some(key.resource_id.clone()),
            entry_id: None,
            reason: None,
        };
        for (act, kind) in [
            ("retry", "retried"),
            ("discard", "discarded"),
            ("release", "released"),
            ("pause", "paused"),
            ("resume", "resumed"),
            ("adopt", "adopted"),
            ("compare", "to compare"),
            ("fix", "drift fixed"),
        ] {
            let told = of_act(&done(act));
            assert_eq!((told.kind, &*told.text, told.at), (kind, "by ana", ago(60)));
        }
        let installation = Act {
            resource_id: None,
            reason: Some("a bad\nday".into()),
            ..done("pause")
        };
        let fleet = Act {
            installation_id: None,
            ..installation.clone()
        };
        let told = |act| of_act(&act).text;
        assert_eq!(
            told(installation),
            r#"by ana the whole installation: "a bad\u{a}day""#
        );
        assert_eq!(told(fleet), r#"by ana the whole fleet: "a bad\u{a}day""#);
    }

    #[test]
    fn events_are_told_in_order_with_repeats_folded() {
        let mut story = in_sync().story;
        let key = ResourceKey::new("icfg_7Hd", "res_0412").expect("ids");
        let earlier = Entry {
            id: EntryId(58_000),
            state: EntryState::Withdrawn,
            ..Entry::new(snapshot("ready", 1), Origin::Sweep, Mode::Whole, ago(400))
        };
        story.closed = vec![ListedEntry {
            key: key.clone(),
            entry: earlier,
            fields: crate::model::FieldSet::EMPTY,
            closed_at: Some(ago(390)),
        }];
        let open = Entry::new(snapshot("ready", 0xb0), Origin::Poll, Mode::Whole, ago(38));
        story.record.entry = Some(Entry {
            id: EntryId(58_213),
            ..open
        });
        story.attempts = vec![
            attempt(1, 37, "failed", Some(503)),
            attempt(2, 30, "failed", Some(503)),
            attempt(3, 20, "failed", Some(503)),
            attempt(3, 9, "acknowledged", Some(200)),
        ];
        story.acts = vec![Act {
            at: ago(10),
            actor: "ana".into(),
            act: "retry".into(),
            installation_id: Some(key.installation_id),
            resource_id: Some(key.resource_id),
            entry_id: Some(EntryId(58_213)),
            reason: None,
        }];
        let look = Look {
            terminal: true,
            width: 110,
            now: NOW,
        };
        let text =
            anstream::adapter::strip_str(&table(&events(&story), look).render(look)).to_string();
        insta::assert_snapshot!(text, @r"
        TIME      EVENT         WHAT                                                 TOOK    X-VERCEL-ID
        13:55:31  changed       found (sweep)
        13:55:41  withdrawn     the source went back; nothing was left to send
        14:01:33  changed       secrets.DATABASE_URL (poll)
        14:01:34  failed        ×3 over 17 s  503 server_error secrets.DATABASE_URL  400 ms  iad1::q3
        14:02:01  retried       by ana
        14:02:02  acknowledged  secrets.DATABASE_URL                                 400 ms  iad1::q3
        ");
    }

    #[test]
    fn the_time_of_a_change_is_that_of_the_first_where_later_ones_were_folded_in() {
        let mut story = in_sync().story;
        let open = Entry::new(snapshot("ready", 0xb0), Origin::Poll, Mode::Whole, ago(38));
        let told = |generation, desired: Option<&str>| {
            let mut story = story.clone();
            story.record.entry = Some(Entry {
                generation,
                desired: snapshot(desired.unwrap_or("ready"), 0xb0),
                ..open.clone()
            });
            let told = events(&story).remove(0);
            assert_eq!(told.at, ago(38));
            told.text
        };
        assert_eq!(told(0, None), "secrets.DATABASE_URL (poll)");
        assert_eq!(
            told(2, Some("suspended")),
            "found (poll), the first of 3 changes; together status, secrets.DATABASE_URL"
        );
        story.closed = vec![ListedEntry {
            key: story.record.key.clone(),
            entry: Entry {
                state: EntryState::Withdrawn,
                generation: 1,
                ..open.clone()
            },
            fields: crate::model::FieldSet::EMPTY,
            closed_at: Some(ago(30)),
        }];
        let told = events(&story).remove(0).text;
        assert_eq!(told, "found (poll), the first of 2 changes");
    }

    #[test]
    fn what_people_and_foreign_servers_wrote_cannot_forge_a_line() {
        let mut forged = attempt(1, 9, "rejected", Some(422));
        forged.message = Some("a\nb\u{1b}[31m".into());
        forged.vercel_id = Some("iad1\t::x".into());
        let look = Look {
            terminal: false,
            width: 80,
            now: NOW,
        };
        let text = table(&[of_attempt(&forged)], look).render(look);
        assert!(
            text.contains(
                "422 server_error secrets.DATABASE_URL: a\\u{a}b\\u{1b}[31m\t400 ms\tiad1\\u{9}::x\n"
            ),
            "{text}"
        );
    }
}
