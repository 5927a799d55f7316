//! `outbox show`: one entry with both sides of its resource and its attempts.

use serde_json::{Value, json};

use super::super::beside::{self, shell};
use super::super::context::Session;
use super::super::exit::Exit;
use super::super::explain::events::{attempt_json, attempts_table};
use super::super::fault::Fault;
use super::super::installation::known;
use super::super::matrix;
use super::super::out::{BAD, GOOD, HEAD, Look, WARN, styled};
use super::super::standing::{Standing, clock_seconds, standing};
use super::super::text::{pad, visible};
use super::ShowArguments;
use super::list::{Row, row_json};
use crate::model::{EntryId, EntryState, Field, Reason, Timestamp};
use crate::plan::pending;
use crate::store::console::{Console, EntryDetail, ListedEntry};

/// The newest attempts that are shown.
const ATTEMPTS_MAX: u32 = 100;

pub(super) async fn execute(
    arguments: ShowArguments,
    session: &mut Session,
) -> Result<Exit, Fault> {
    let ShowArguments { id, json } = arguments;
    let (_, console) = beside::open(session).await?;
    let look = session.look();
    let Some(detail) = console.entry(id, ATTEMPTS_MAX).await? else {
        if json {
            session
                .out
                .json(json!({ "schema": 1, "at": look.now.to_string(), "entry": null }));
        } else {
            session.out.print(&unknown(id));
        }
        return Ok(Exit::Failed);
    };
    let standing = standing_of(&*console, &detail, look.now).await?;
    if json {
        session.out.json(to_json(&detail, standing, look.now));
    } else {
        session.out.print(&render(&detail, &standing, look));
    }
    Ok(Exit::Done)
}

async fn standing_of(
    console: &dyn Console,
    detail: &EntryDetail,
    now: Timestamp,
) -> Result<Standing, Fault> {
    let one = known(console, &detail.listed.key.installation_id).await?;
    let pauses = one.as_ref().map_or(&[][..], |one| &one.pauses);
    let limited_until = one.as_ref().and_then(|one| one.limited_until);
    Ok(standing(&detail.listed.entry, pauses, limited_until, now))
}

fn unknown(id: EntryId) -> String {
    format!(
        "{}   there is no entry {id}; closed ones are kept as long as [retention] says\nNext: reconciled outbox list\n",
        styled(BAD, "UNKNOWN")
    )
}

fn render(detail: &EntryDetail, standing: &Standing, look: Look) -> String {
    let ListedEntry {
        key,
        entry,
        closed_at,
        ..
    } = &detail.listed;
    let word = entry.state.name().to_uppercase();
    let style = match entry.state {
        EntryState::Dead | EntryState::Held => BAD,
        EntryState::Waiting => WARN,
        EntryState::Delivered | EntryState::Withdrawn | EntryState::Discarded => GOOD,
    };
    let mut text = format!(
        "{}   entry {} for {} / {}\n\n",
        styled(style, word),
        entry.id,
        visible(key.installation_id.as_str()),
        visible(key.resource_id.as_str())
    );
    let mut fact = |label: &str, value: String| {
        let label = if look.terminal {
            pad(label, 10)
        } else {
            format!("{label}\t")
        };
        text.push_str(&format!("{}{value}\n", styled(HEAD, label)));
    };
    fact(
        "found",
        format!("{} ({})", look.when(entry.created_at), entry.origin.name()),
    );
    let failures = if entry.failures > 0 {
        format!("; {} failures in a row", entry.failures)
    } else {
        String::new()
    };
    fact("attempts", format!("{}{failures}", entry.attempts));
    if let Some(at) = closed_at {
        fact("closed", look.when(*at));
    }
    if let Some(at) = standing.until() {
        fact("next", super::super::standing::ahead(at, look));
    }
    text.push('\n');
    // Of a closed entry it is history what it wanted; the sides stand elsewhere by now.
    if entry.state.is_open() {
        let lines = matrix::lines(&detail.record, Some(&entry.desired));
        text.push_str(&matrix::render(&lines, "DESIRED", look));
        text.push('\n');
    }
    if !detail.attempts.is_empty() {
        text.push_str(&attempts_table(&detail.attempts, look).render(look));
        text.push('\n');
    }
    text.push_str(&format!("Why: {}.\n", why(detail, standing, look)));
    text.push_str(&format!("Next: {}\n", next(detail, standing)));
    text
}

fn why(detail: &EntryDetail, standing: &Standing, look: Look) -> String {
    let ListedEntry {
        entry, closed_at, ..
    } = &detail.listed;
    let at = closed_at
        .map(|at| clock_seconds(at, look))
        .unwrap_or_default();
    match entry.state {
        EntryState::Delivered => format!("Vercel acknowledged everything at {at}"),
        EntryState::Withdrawn => format!("nothing was left to send at {at}: the source went back"),
        EntryState::Discarded => format!("a person discarded it at {at}; explain says who and why"),
        EntryState::Waiting | EntryState::Held => standing.why(entry.reason, look),
        EntryState::Dead => {
            let said = detail
                .attempts
                .iter()
                .rev()
                .find_map(|attempt| attempt.message.as_deref());
            let said = said
                .map(|said| format!("; Vercel said: {}", visible(said)))
                .unwrap_or_default();
            format!("{}{said}", entry.reason.sentence())
        }
    }
}

fn next(detail: &EntryDetail, standing: &Standing) -> String {
    let ListedEntry { key, entry, .. } = &detail.listed;
    advice(
        standing,
        entry.reason,
        entry.id,
        key.installation_id.as_str(),
    )
    .unwrap_or_else(|| {
        format!(
            "reconciled explain {} {}",
            shell(key.installation_id.as_str()),
            shell(key.resource_id.as_str())
        )
    })
}

/// What to do about an open entry; also for `explain`.
pub(crate) fn advice(
    standing: &Standing,
    reason: Reason,
    id: EntryId,
    installation: &str,
) -> Option<String> {
    use crate::store::PauseKind;
    Some(match standing {
        Standing::Closed => return None,
        Standing::InFlight { .. } => "wait for the answer".to_owned(),
        Standing::Held => format!("reconciled outbox release {id}, or reconciled outbox discard {id} --reason TEXT"),
        Standing::Dead if reason == Reason::Rejected => {
            format!("correct the value in the source, or reconciled outbox discard {id} --reason TEXT")
        }
        Standing::Dead => format!("reconciled outbox retry {id}, or reconciled outbox discard {id} --reason TEXT"),
        Standing::Paused(pause) => match pause.kind {
            PauseKind::Manual => format!("reconciled installation resume {}", shell(installation)),
            PauseKind::Token => {
                "give the installation a valid token; it goes on by itself when a probe succeeds".to_owned()
            }
            PauseKind::Gone => {
                "if the customer uninstalled, remove its rows from the source; else wait for a probe".to_owned()
            }
        },
        Standing::Limited { .. } => "wait".to_owned(),
        Standing::Later { .. } => format!("wait, or reconciled outbox retry {id}"),
        Standing::Due => "wait a moment; if nothing happens, reconciled status".to_owned(),
    })
}

fn to_json(detail: &EntryDetail, standing: Standing, now: Timestamp) -> Value {
    let EntryDetail {
        listed,
        record,
        attempts,
    } = detail;
    let is_open = listed.entry.state.is_open();
    let lines = if is_open {
        matrix::lines(record, Some(&listed.entry.desired))
    } else {
        Vec::new()
    };
    let secret_names: Vec<String> = if is_open {
        pending(record, &listed.entry.desired)
            .0
            .secret_names()
            .map(ToString::to_string)
            .collect()
    } else {
        let sent: std::collections::BTreeSet<&String> =
            attempts.iter().flat_map(|one| &one.secret_names).collect();
        sent.into_iter().cloned().collect()
    };
    let rejected: Vec<Value> = listed
        .entry
        .rejected
        .iter()
        .map(|(field, rejection)| json!({ "field": Field::wire_name(*field), "status": rejection.status, "code": rejection.code }))
        .collect();
    json!({
        "schema": 1,
        "at": now.to_string(),
        "entry": row_json(&Row { listed: listed.clone(), secret_names, standing }, now),
        "lines": matrix::to_json(&lines),
        "rejected": rejected,
        "attempts": attempts.iter().map(attempt_json).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::explain::events::tests::attempt;
    use super::super::list::tests::{LOOK, NOW, row};
    use super::*;
    use crate::model::{Fingerprint, Json, Record, SecretName, Snapshot};

    fn snapshot(status: &str, secret: u8) -> Snapshot {
        Snapshot {
            values: [(Field::Status, Json::from_text(status))].into(),
            secrets: Some(
                [(
                    SecretName::new("DATABASE_URL").expect("a name"),
                    Fingerprint::from_bytes([secret; 16]),
                )]
                .into(),
            ),
        }
    }

    fn detail(state: EntryState, reason: Reason) -> EntryDetail {
        let mut listed = row(58_213, state, reason, "res_0412").listed;
        listed.entry.desired = snapshot("ready", 0xb0);
        let mut record = Record::new(listed.key.clone());
        record.acknowledged = snapshot("ready", 0x9f);
        record.entry = state.is_open().then(|| listed.entry.clone());
        let attempts = vec![
            attempt(1, 21, "failed", Some(503)),
            attempt(2, 15, "failed", Some(503)),
        ];
        EntryDetail {
            listed,
            record,
            attempts,
        }
    }

    fn plain(detail: &EntryDetail) -> String {
        let standing = standing(&detail.listed.entry, &[], None, NOW);
        anstream::adapter::strip_str(&render(detail, &standing, LOOK)).to_string()
    }

    #[test]
    fn an_open_entry_shows_both_sides_its_attempts_and_what_to_do() {
        insta::assert_snapshot!(plain(&detail(EntryState::Waiting, Reason::Backoff)), @r"
        WAITING   entry 58213 for icfg_7Hd / res_0412

        found     38 s ago (poll)
        attempts  3
        next      in 12 s

        FIELD                 DESIRED  ACKNOWLEDGED  IN DOUBT  TO SEND
        status                ready    ready
        secrets.DATABASE_URL  b0b0b0   9f9f9f                  b0b0b0

        TIME      ATTEMPT  OUTCOME  WHAT                                   TOOK    X-VERCEL-ID
        14:01:50  1        failed   503 server_error secrets.DATABASE_URL  400 ms  iad1::q1
        14:01:56  2        failed   503 server_error secrets.DATABASE_URL  400 ms  iad1::q2

        Why: a temporary error at Vercel; its outcome is in doubt, so the value is sent until it is acknowledged.
        Next: wait, or reconciled outbox retry 58213
        ");
    }

    #[test]
    fn a_dead_letter_says_what_vercel_said() {
        let mut dead = detail(EntryState::Dead, Reason::Rejected);
        dead.attempts[1].message = Some("status: must be one of …".into());
        let text = plain(&dead);
        assert!(text.ends_with(
            "Why: Vercel rejects the value; it is tried again when the source changes it; Vercel said: status: must be one of ….\n\
             Next: correct the value in the source, or reconciled outbox discard 58213 --reason TEXT\n"
        ), "{text}");
    }

    #[test]
    fn a_closed_entry_claims_nothing_of_today() {
        let text = plain(&detail(EntryState::Delivered, Reason::Due));
        assert!(!text.contains("TO SEND"), "{text}");
        assert!(
            text.contains("Why: Vercel acknowledged everything at 14:02:08."),
            "{text}"
        );
    }

    #[test]
    fn machines_get_fingerprints_and_never_values() {
        let shown = to_json(
            &detail(EntryState::Waiting, Reason::Backoff),
            Standing::Due,
            NOW,
        );
        assert_eq!(shown["lines"][1]["to_send_fingerprint"], "b0b0b0");
        assert_eq!(shown["entry"]["secret_names"], json!(["DATABASE_URL"]));
        assert_eq!(shown["attempts"][0]["status"], 503);
        assert_eq!(shown["rejected"], json!([]));
    }
}
