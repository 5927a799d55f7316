//! `outbox retry`, `discard` and `release`: one act on many entries, answered one by one.
//!
//! A filter is resolved once: the act touches exactly the entries that were counted, whatever changes meanwhile.

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _};

use serde_json::{Value, json};
use tracing::info;

use super::super::beside;
use super::super::context::Session;
use super::super::exit::Exit;
use super::super::fault::{Failure, Fault};
use super::super::out::{BAD, GOOD, Look, Table, WARN, complain, styled};
use super::super::standing::in_effect;
use super::super::text::{count, counted, visible};
use super::{Selection, Which};
use crate::model::{EntryId, EntryState, InstallationId, ResourceKey, Timestamp};
use crate::plan::manual::{self, Refusal};
use crate::store::StoreError;
use crate::store::console::{Answer, Console, EntryFilter, ListedEntry, Order, Person};

/// Nobody could be asked whether to act on many.
pub(crate) const UNCONFIRMED: &str = "R042";
/// Entries of one transaction: the daemon waits no longer than these take.
const BATCH: usize = 500;
/// Lines of a table at a terminal; refusals are always shown.
const SHOWN_MAX: usize = 50;

/// What was done, as the verdict says it.
const fn participle(order: Order) -> &'static str {
    match order {
        Order::Retry => "retried",
        Order::Discard => "discarded",
        Order::Release => "released",
    }
}

/// The states that a filter without any means: those in which the order makes sense.
fn states(order: Order) -> Vec<EntryState> {
    match order {
        Order::Retry => vec![EntryState::Waiting, EntryState::Dead],
        Order::Discard => vec![EntryState::Waiting, EntryState::Held, EntryState::Dead],
        Order::Release => vec![EntryState::Held],
    }
}

/// What would become of an entry, decided as the store decides it.
fn outcome(
    order: Order,
    record: &mut crate::model::Record,
    now: Timestamp,
) -> Result<EntryState, Refusal> {
    match order {
        Order::Retry => manual::retry(record, now).map(|()| EntryState::Waiting),
        Order::Release => manual::release(record, now).map(|()| EntryState::Waiting),
        Order::Discard => manual::discard(record).map(|entry| entry.state),
    }
}

pub(super) async fn execute(
    order: Order,
    which: Which,
    reason: Option<String>,
    session: &mut Session,
) -> Result<Exit, Fault> {
    let Which {
        selection,
        dry_run,
        yes,
        json,
        actor,
    } = which;
    let by_filter = selection.ids.is_empty();
    let can_ask = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if by_filter && !dry_run && !yes && !can_ask {
        return Err(unconfirmed().into());
    }
    let (_, console) = beside::open(session).await?;
    let look = session.look();
    let targets = resolve(&*console, order, selection, look.now).await?;
    if by_filter && !dry_run && !yes && targets.len() > 1 && !ask(order, targets.len() as u64) {
        session.out.line("Nothing was changed.");
        return Ok(Exit::Failed);
    }
    let by = actor.person(reason);
    let answers = if dry_run {
        rehearse(&*console, order, &targets, look.now).await?
    } else {
        carry_out(&*console, order, &targets, &by, look.now).await?
    };
    let results = Results {
        order,
        dry_run,
        rows: rows(&*console, targets, answers, look.now).await?,
    };
    if json {
        session.out.json(results.to_json(look.now));
    } else {
        session.out.print(&results.render(look));
    }
    Ok(if results.refused() == 0 {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn unconfirmed() -> Failure {
    Failure::new(
        UNCONFIRMED,
        "filters may match many entries, and nobody can be asked here",
    )
    .help("see what it means with --dry-run, then confirm with --yes")
    .help("or name the entries by their numbers")
    .exit(Exit::Usage)
}

fn ask(order: Order, number: u64) -> bool {
    let entries = counted_entries(number);
    let what = match order {
        Order::Retry => format!("Send {entries} again at once?"),
        Order::Discard => {
            format!("Discard {entries}? What they wanted is not sent until the source changes it.")
        }
        Order::Release => format!("Release {entries}? They are sent at once."),
    };
    complain(&format!("{what} [y/N] "));
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// An entry to act on; without a listing there is none of that number.
#[derive(Debug, Clone)]
struct Target {
    id: EntryId,
    listed: Option<ListedEntry>,
}

async fn resolve(
    console: &dyn Console,
    order: Order,
    selection: Selection,
    now: Timestamp,
) -> Result<Vec<Target>, StoreError> {
    let Selection {
        mut ids,
        states,
        installation,
        field,
        since,
    } = selection;
    let by_filter = ids.is_empty();
    let states = match (by_filter, states.is_empty()) {
        (false, _) => EntryState::ALL.to_vec(),
        (true, true) => self::states(order),
        (true, false) => states,
    };
    let filter = EntryFilter {
        states,
        installation_id: installation,
        field,
        since: since.map(|since| now.minus(since)),
        ids: (!by_filter).then(|| ids.clone()),
        limit: u32::MAX,
    };
    let found = console.entries(&filter).await?.entries;
    if by_filter {
        return Ok(found
            .into_iter()
            .map(|listed| Target {
                id: listed.entry.id,
                listed: Some(listed),
            })
            .collect());
    }
    let mut found: BTreeMap<EntryId, ListedEntry> = found
        .into_iter()
        .map(|listed| (listed.entry.id, listed))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    Ok(ids
        .into_iter()
        .map(|id| Target {
            id,
            listed: found.remove(&id),
        })
        .collect())
}

async fn carry_out(
    console: &dyn Console,
    order: Order,
    targets: &[Target],
    by: &Person,
    now: Timestamp,
) -> Result<Vec<Answer>, StoreError> {
    let mut answers = Vec::with_capacity(targets.len());
    for batch in targets.chunks(BATCH) {
        let ids: Vec<EntryId> = batch.iter().map(|target| target.id).collect();
        let done = console.act(&ids, order, by, now).await?;
        for (id, answer) in ids.iter().zip(&done) {
            if let Answer::Done { key, state } = answer {
                log(order, *id, key, *state, by);
            }
        }
        answers.extend(done);
    }
    Ok(answers)
}

fn log(order: Order, id: EntryId, key: &ResourceKey, state: EntryState, by: &Person) {
    let Person { name, reason } = by;
    info!(
        event = "entry.changed_by_hand",
        installation_id = key.installation_id.as_str(),
        resource_id = key.resource_id.as_str(),
        entry = id.0,
        act = order.name(),
        state = state.name(),
        actor = name,
        reason,
        "Entry {id} for {key} was {} by {name}",
        participle(order)
    );
}

async fn rehearse(
    console: &dyn Console,
    order: Order,
    targets: &[Target],
    now: Timestamp,
) -> Result<Vec<Answer>, StoreError> {
    let mut answers = Vec::with_capacity(targets.len());
    for batch in targets.chunks(BATCH) {
        let keys: Vec<ResourceKey> = batch
            .iter()
            .filter_map(|target| Some(target.listed.as_ref()?.key.clone()))
            .collect();
        let records = console.records(&keys).await?;
        let mut records: BTreeMap<ResourceKey, _> = keys.into_iter().zip(records).collect();
        answers.extend(batch.iter().map(|target| {
            let Some(listed) = &target.listed else {
                return Answer::Unknown;
            };
            let record = records.get_mut(&listed.key).filter(|record| {
                record
                    .entry
                    .as_ref()
                    .is_some_and(|entry| entry.id == target.id)
            });
            let Some(record) = record else {
                return Answer::Refused(Refusal::Closed);
            };
            match outcome(order, &mut record.clone(), now) {
                Ok(state) => Answer::Done {
                    key: listed.key.clone(),
                    state,
                },
                Err(refusal) => Answer::Refused(refusal),
            }
        }));
    }
    Ok(answers)
}

/// What became of one entry.
#[derive(Debug, Clone)]
struct Row {
    id: EntryId,
    key: Option<ResourceKey>,
    answer: Answer,
    /// It may go, but its installation is paused.
    paused: bool,
}

async fn rows(
    console: &dyn Console,
    targets: Vec<Target>,
    answers: Vec<Answer>,
    now: Timestamp,
) -> Result<Vec<Row>, StoreError> {
    let pauses = console.pauses().await?;
    let paused: std::collections::BTreeSet<InstallationId> = pauses
        .into_iter()
        .filter(|pause| in_effect(pause, now))
        .map(|pause| pause.installation_id)
        .collect();
    let row = |(target, answer): (Target, Answer)| {
        let key = target.listed.map(|listed| listed.key);
        let waits = matches!(
            &answer,
            Answer::Done {
                state: EntryState::Waiting,
                ..
            }
        );
        let paused = waits
            && key
                .as_ref()
                .is_some_and(|key| paused.contains(&key.installation_id));
        Row {
            id: target.id,
            key,
            answer,
            paused,
        }
    };
    Ok(targets.into_iter().zip(answers).map(row).collect())
}

/// What became of all of them.
#[derive(Debug, Clone)]
struct Results {
    order: Order,
    dry_run: bool,
    rows: Vec<Row>,
}

impl Results {
    fn done(&self) -> u64 {
        self.rows
            .iter()
            .filter(|row| matches!(row.answer, Answer::Done { .. }))
            .count() as u64
    }

    fn refused(&self) -> u64 {
        self.rows.len() as u64 - self.done()
    }

    fn render(&self, look: Look) -> String {
        let mut text = format!("{}\n", self.verdict());
        if !self.rows.is_empty() {
            text.push('\n');
            text.push_str(&self.table(look));
        }
        let next = match (self.order, self.dry_run) {
            (_, true) if self.done() > 0 => "the same without --dry-run",
            (Order::Discard, false) => "reconciled status",
            _ => "reconciled outbox list",
        };
        text.push_str(&format!(
            "{}Next: {next}\n",
            if self.rows.is_empty() { "" } else { "\n" }
        ));
        text
    }

    fn verdict(&self) -> String {
        let (done, refused) = (self.done(), self.refused());
        if self.rows.is_empty() {
            return "No entry matches; nothing was changed.".to_owned();
        }
        let word = participle(self.order).to_uppercase();
        let style = if refused == 0 { GOOD } else { BAD };
        let head = if self.dry_run {
            styled(WARN, format_args!("WOULD BE {word}"))
        } else if done == 0 {
            styled(style, format_args!("NOT {word}"))
        } else {
            styled(style, word)
        };
        let refused = if refused > 0 {
            format!(", {} refused", count(refused))
        } else {
            String::new()
        };
        let nothing = if self.dry_run {
            "; nothing was changed"
        } else {
            ""
        };
        format!("{head}   {}{refused}{nothing}", counted_entries(done))
    }

    fn table(&self, look: Look) -> String {
        let mut table = Table::new(&["ID", "RESOURCE", "RESULT"]);
        let mut hidden = 0;
        for (
            index,
            Row {
                id,
                key,
                answer,
                paused,
            },
        ) in self.rows.iter().enumerate()
        {
            let is_done = matches!(answer, Answer::Done { .. });
            if look.terminal && is_done && index >= SHOWN_MAX {
                hidden += 1;
                continue;
            }
            let note = if *paused {
                "; its installation is paused"
            } else {
                ""
            };
            let result = match answer {
                Answer::Done { state, .. } => format!("{state}{note}"),
                Answer::Refused(refusal) => format!("refused: {refusal}"),
                Answer::Unknown => "refused: there is no such entry".to_owned(),
            };
            let key = key
                .as_ref()
                .map(|key| visible(&key.to_string()))
                .unwrap_or_default();
            table.row(vec![id.to_string(), key, result]);
        }
        let more = if hidden > 0 {
            format!("… and {} more\n", counted(hidden, "line"))
        } else {
            String::new()
        };
        format!("{}{more}", table.render(look))
    }

    fn to_json(&self, now: Timestamp) -> Value {
        json!({
            "schema": 1,
            "at": now.to_string(),
            "act": self.order.name(),
            "dry_run": self.dry_run,
            "done": self.done(),
            "refused": self.refused(),
            "entries": self.rows.iter().map(row_json).collect::<Vec<_>>(),
        })
    }
}

fn row_json(row: &Row) -> Value {
    let Row {
        id,
        key,
        answer,
        paused,
    } = row;
    let (done, state, refusal) = match answer {
        Answer::Done { state, .. } => (true, Some(state.name()), None),
        Answer::Refused(refusal) => (false, None, Some(refusal_code(*refusal))),
        Answer::Unknown => (false, None, Some("unknown")),
    };
    json!({
        "entry": id.0,
        "installation_id": key.as_ref().map(|key| key.installation_id.as_str()),
        "resource_id": key.as_ref().map(|key| key.resource_id.as_str()),
        "done": done,
        "state": state,
        "refusal": refusal,
        "installation_paused": paused,
    })
}

const fn refusal_code(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Closed => "closed",
        Refusal::InFlight => "in_flight",
        Refusal::NotHeld => "not_held",
        Refusal::Held => "held",
    }
}

fn counted_entries(number: u64) -> String {
    if number == 1 {
        "1 entry".to_owned()
    } else {
        format!("{} entries", count(number))
    }
}

#[cfg(test)]
mod tests;
