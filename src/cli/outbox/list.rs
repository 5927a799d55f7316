//! `outbox list`: a line per entry.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::super::beside;
use super::super::context::Session;
use super::super::exit::Exit;
use super::super::fault::Fault;
use super::super::matrix::field_names;
use super::super::out::{Look, Table};
use super::super::standing::{Standing, age_ms, span, standing};
use super::super::text::{count, cut, visible};
use super::ListArguments;
use crate::model::{EntryState, Field, InstallationId, ResourceKey, Timestamp};
use crate::plan::pending;
use crate::store::StoreError;
use crate::store::console::{Console, EntryPage, InstallationSummary, Installations, ListedEntry};

/// Attempts of a closed entry that are asked for the names of its secrets.
const ATTEMPTS_MAX: u32 = 100;

pub(super) async fn execute(
    arguments: ListArguments,
    session: &mut Session,
) -> Result<Exit, Fault> {
    let ListArguments {
        filter,
        limit,
        json,
    } = arguments;
    let (_, console) = beside::open(session).await?;
    let look = session.look();
    let page = console.entries(&filter.to_store(limit, look.now)).await?;
    let rows = rows(&*console, &page, look.now).await?;
    if json {
        session.out.json(to_json(&rows, &page, look.now));
    } else {
        let closed = filter.states.iter().any(|state| !state.is_open());
        session.out.print(&render(&rows, &page, closed, look));
    }
    Ok(Exit::Done)
}

/// An entry with what the table says of it.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) listed: ListedEntry,
    pub(super) secret_names: Vec<String>,
    pub(super) standing: Standing,
}

/// Looks up what a page does not hold: the names of the secrets, pauses and rate limits.
pub(super) async fn rows(
    console: &dyn Console,
    page: &EntryPage,
    now: Timestamp,
) -> Result<Vec<Row>, StoreError> {
    let ids = page
        .entries
        .iter()
        .map(|listed| &listed.key.installation_id);
    let ids: BTreeSet<InstallationId> = ids.cloned().collect();
    let these = Installations::These(ids.into_iter().collect());
    let installations: BTreeMap<InstallationId, InstallationSummary> = console
        .installations(these)
        .await?
        .into_iter()
        .map(|one| (one.installation_id.clone(), one))
        .collect();
    let keys: Vec<ResourceKey> = page
        .entries
        .iter()
        .map(|listed| listed.key.clone())
        .collect();
    let records = console.records(&keys).await?;
    let mut rows = Vec::with_capacity(page.entries.len());
    for (listed, record) in page.entries.iter().zip(records) {
        let secret_names = if !listed.fields.contains(Field::Secrets) {
            Vec::new()
        } else if listed.entry.state.is_open() {
            pending(&record, &listed.entry.desired)
                .0
                .secret_names()
                .map(ToString::to_string)
                .collect()
        } else {
            sent_secrets(console, listed).await?
        };
        let one = installations.get(&listed.key.installation_id);
        let pauses = one.map_or(&[][..], |one| &one.pauses);
        let limited_until = one.and_then(|one| one.limited_until);
        let standing = standing(&listed.entry, pauses, limited_until, now);
        rows.push(Row {
            listed: listed.clone(),
            secret_names,
            standing,
        });
    }
    Ok(rows)
}

async fn sent_secrets(
    console: &dyn Console,
    listed: &ListedEntry,
) -> Result<Vec<String>, StoreError> {
    let detail = console.entry(listed.entry.id, ATTEMPTS_MAX).await?;
    let attempts = detail.map(|detail| detail.attempts).unwrap_or_default();
    let names: BTreeSet<String> = attempts
        .into_iter()
        .flat_map(|attempt| attempt.secret_names)
        .collect();
    Ok(names.into_iter().collect())
}

fn render(rows: &[Row], page: &EntryPage, closed: bool, look: Look) -> String {
    /// Longer lists of fields are cut at a terminal.
    const FIELDS_COLUMNS: usize = 40;
    if rows.is_empty() {
        return "No such entry.\nNext: reconciled status\n".to_owned();
    }
    let mut text = String::new();
    if look.terminal {
        text.push_str(&format!("{}.\n\n", verdict(rows, page)));
    }
    let (age, next) = if look.terminal {
        ("AGE", "NEXT")
    } else {
        ("FOUND", "NEXT")
    };
    let mut headings = vec![
        "ID",
        "STATE",
        "INSTALLATION",
        "RESOURCE",
        "FIELDS",
        "ATTEMPTS",
        age,
    ];
    headings.push(if closed { "CLOSED OR NEXT" } else { next });
    let mut table = Table::new(&headings);
    for Row {
        listed,
        secret_names,
        standing,
    } in rows
    {
        let ListedEntry {
            key,
            entry,
            fields,
            closed_at,
        } = listed;
        let fields = field_names(fields.iter(), secret_names);
        table.row(vec![
            entry.id.to_string(),
            entry.state.to_string(),
            visible(key.installation_id.as_str()),
            visible(key.resource_id.as_str()),
            if look.terminal {
                cut(&fields, FIELDS_COLUMNS)
            } else {
                fields
            },
            entry.attempts.to_string(),
            span(entry.created_at, look),
            match closed_at {
                Some(at) => look.when(*at),
                None => standing.when(entry.reason, look),
            },
        ]);
    }
    text.push_str(&table.render(look));
    if page.cut() > 0 {
        text.push_str(&format!(
            "… and {} more; --limit 0 shows all\n",
            count(page.cut())
        ));
    }
    if look.terminal {
        text.push_str(&format!("\nNext: {}\n", next_command(rows)));
    }
    text
}

fn verdict(rows: &[Row], page: &EntryPage) -> String {
    let total = if page.total == 1 {
        "1 entry".to_owned()
    } else {
        format!("{} entries", count(page.total))
    };
    let in_state = |state| {
        rows.iter()
            .filter(|row| row.listed.entry.state == state)
            .count() as u64
    };
    let states: Vec<String> = EntryState::ALL
        .into_iter()
        .filter(|state| in_state(*state) > 0)
        .map(|state| format!("{} {state}", count(in_state(state))))
        .collect();
    if page.cut() > 0 {
        format!(
            "{total}; the oldest {}: {}",
            count(rows.len() as u64),
            states.join(", ")
        )
    } else {
        format!("{total}: {}", states.join(", "))
    }
}

fn next_command(rows: &[Row]) -> String {
    let first = |state| {
        rows.iter()
            .find(|row| row.listed.entry.state == state)
            .map(|row| row.listed.entry.id)
    };
    if let Some(id) = first(EntryState::Held) {
        format!(
            "reconciled outbox show {id}, then reconciled outbox release --state held, or reconciled outbox discard --state held --reason TEXT"
        )
    } else if let Some(id) = first(EntryState::Dead) {
        format!("reconciled outbox show {id}")
    } else if let Some(row) = rows.first() {
        format!("reconciled outbox show {}", row.listed.entry.id)
    } else {
        "reconciled status".to_owned()
    }
}

fn to_json(rows: &[Row], page: &EntryPage, now: Timestamp) -> Value {
    json!({
        "schema": 1,
        "at": now.to_string(),
        "total": page.total,
        "cut": page.cut(),
        "entries": rows.iter().map(|row| row_json(row, now)).collect::<Vec<_>>(),
    })
}

/// One entry for machines, also in `outbox show` and `explain`.
pub(crate) fn row_json(row: &Row, now: Timestamp) -> Value {
    let Row {
        listed:
            ListedEntry {
                key,
                entry,
                fields,
                closed_at,
            },
        secret_names,
        standing,
    } = row;
    json!({
        "entry": entry.id.0,
        "state": entry.state.name(),
        "installation_id": key.installation_id.as_str(),
        "resource_id": key.resource_id.as_str(),
        "fields": fields.iter().map(Field::wire_name).collect::<Vec<_>>(),
        "secret_names": secret_names,
        "origin": entry.origin.name(),
        "reason": entry.reason.code(),
        "standing": standing.name(),
        "attempts": entry.attempts,
        "found_at": entry.created_at.to_string(),
        "age_ms": age_ms(entry.created_at, now),
        "next_at": standing.until().map(|at| at.to_string()),
        "next_in_ms": standing.until().map(|at| age_ms(now, at)),
        "closed_at": closed_at.map(|at| at.to_string()),
    })
}

#[cfg(test)]
pub(in super::super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Entry, EntryId, FieldSet, Mode, Origin, Reason, Snapshot};
    use crate::store::{Pause, PauseKind};

    pub(in super::super) const NOW: Timestamp = Timestamp::from_millis(1_777_903_331_000);
    pub(in super::super) const LOOK: Look = Look {
        terminal: true,
        width: 120,
        now: NOW,
    };

    pub(in super::super) fn row(id: i64, state: EntryState, reason: Reason, resource: &str) -> Row {
        let entry = Entry {
            id: EntryId(id),
            state,
            reason,
            attempts: 3,
            due_at: NOW.plus(Duration::from_secs(12)),
            ..Entry::new(
                Snapshot::default(),
                Origin::Poll,
                Mode::Whole,
                NOW.minus(Duration::from_secs(38)),
            )
        };
        let standing = standing(&entry, &[], None, NOW);
        let fields: FieldSet = [Field::Secrets, Field::Status].into_iter().collect();
        let key = ResourceKey::new("icfg_7Hd", resource).expect("ids");
        let closed_at = (!state.is_open()).then(|| NOW.minus(Duration::from_secs(3)));
        Row {
            listed: ListedEntry {
                key,
                entry,
                fields,
                closed_at,
            },
            secret_names: vec!["DATABASE_URL".into()],
            standing,
        }
    }

    fn page(rows: &[Row], total: u64) -> EntryPage {
        EntryPage {
            entries: rows.iter().map(|row| row.listed.clone()).collect(),
            total,
        }
    }

    fn plain(rows: &[Row], total: u64, look: Look) -> String {
        anstream::adapter::strip_str(&render(rows, &page(rows, total), false, look)).to_string()
    }

    #[test]
    fn each_entry_says_what_it_waits_for_and_the_rest_is_counted() {
        let mut paused = row(58_215, EntryState::Waiting, Reason::Due, "res_3");
        paused.standing = Standing::Paused(Pause {
            installation_id: InstallationId::new("icfg_7Hd").expect("an id"),
            kind: PauseKind::Manual,
            by: "ana".into(),
            reason: "migration".into(),
            since: NOW,
            until: None,
            probe_at: None,
            probes_failed: 0,
        });
        let rows = [
            row(58_213, EntryState::Waiting, Reason::Backoff, "res_0412"),
            row(58_214, EntryState::Dead, Reason::Rejected, "res_2"),
            paused,
        ];
        insta::assert_snapshot!(plain(&rows, 15, LOOK), @r"
        15 entries; the oldest 3: 2 waiting, 1 dead.

        ID     STATE    INSTALLATION  RESOURCE  FIELDS                        ATTEMPTS  AGE   NEXT
        58213  waiting  icfg_7Hd      res_0412  status, secrets.DATABASE_URL  3         38 s  in 12 s, backoff
        58214  dead     icfg_7Hd      res_2     status, secrets.DATABASE_URL  3         38 s  dead: rejected
        58215  waiting  icfg_7Hd      res_3     status, secrets.DATABASE_URL  3         38 s  paused by ana
        … and 12 more; --limit 0 shows all

        Next: reconciled outbox show 58214
        ");
    }

    #[test]
    fn a_pipe_gets_the_table_alone() {
        let rows = [row(
            58_213,
            EntryState::Waiting,
            Reason::Backoff,
            "res_0412",
        )];
        let expected = [
            "ID\tSTATE\tINSTALLATION\tRESOURCE\tFIELDS\tATTEMPTS\tFOUND\tNEXT\n",
            "58213\twaiting\ticfg_7Hd\tres_0412\tstatus, secrets.DATABASE_URL\t3\t2026-05-04T14:01:33.000Z\tat 2026-05-04T14:02:23.000Z, backoff\n",
        ];
        assert_eq!(
            plain(
                &rows,
                1,
                Look {
                    terminal: false,
                    ..LOOK
                }
            ),
            expected.concat()
        );
    }

    #[test]
    fn machines_get_names_of_secrets_and_what_was_cut() {
        let rows = [row(
            58_213,
            EntryState::Waiting,
            Reason::Backoff,
            "res_0412",
        )];
        let shown = to_json(&rows, &page(&rows, 15), NOW);
        assert_eq!(shown["cut"], 14);
        let entry = &shown["entries"][0];
        assert_eq!(entry["fields"], json!(["secrets", "status"]));
        assert_eq!(entry["secret_names"], json!(["DATABASE_URL"]));
        assert_eq!(
            (&entry["age_ms"], &entry["next_in_ms"]),
            (&json!(38_000), &json!(12_000))
        );
        assert_eq!(to_json(&[], &page(&[], 0), NOW)["entries"], json!([]));
    }
}
