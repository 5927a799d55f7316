//! `outbox retry`, `discard` and `release`: one act on many entries, answered one by one.
//!
//! A filter is resolved once: the act touches exactly the entries that were counted, whatever changes meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, IsTerminal as _};

use serde_json::{Value, json};
use tracing::info;

use super::super::beside;
use super::super::context::{Progress, Session};
use super::super::exit::Exit;
use super::super::fault::{Failure, Fault};
use super::super::out::{BAD, GOOD, Look, Out, Table, WARN, complain, styled};
use super::super::standing::in_effect;
use super::super::text::{count, counted, visible};
use super::{Selection, Which};
use crate::clock::{Clock as _, SystemClock};
use crate::model::{EntryId, EntryState, InstallationId, Record, ResourceKey, Timestamp};
use crate::plan::manual::Refusal;
use crate::store::StoreError;
use crate::store::console::{Answer, Applied, Console, EntryFilter, Order, Person};

/// Nobody could be asked whether to act on many.
pub(crate) const UNCONFIRMED: &str = "R042";
/// Entries of one transaction: the daemon waits no longer than these take.
const BATCH: usize = 500;
/// Lines of a table at a terminal; refusals are always shown.
const SHOWN_MAX: usize = 50;
/// Lines of a table in a pipe that are printed together.
const ROWS_PER_PIECE: usize = 1_000;

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
    let ids = targets(&*console, order, selection, look.now).await?;
    if by_filter && !dry_run && !yes && ids.len() > 1 && !ask(order, ids.len() as u64) {
        session.out.line("Nothing was changed.");
        return Ok(Exit::Failed);
    }
    let act = Act {
        console: &*console,
        order,
        by: actor.person(reason),
        dry_run,
        now: look.now,
    };
    let shown_max = (look.terminal && !json).then_some(SHOWN_MAX);
    let mut results = Results::new(order, dry_run, shown_max);
    let ended = act.on_all(&ids, &mut results).await;
    // What was done before something went wrong is told first.
    if ended.is_ok() || !results.is_empty() {
        results.print(&mut session.out, look, json);
    }
    ended?;
    Ok(if results.refused == 0 {
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

/// The numbers of the entries to act on, in order and each once.
async fn targets(
    console: &dyn Console,
    order: Order,
    selection: Selection,
    now: Timestamp,
) -> Result<Vec<EntryId>, StoreError> {
    let Selection {
        mut ids,
        states,
        installation,
        field,
        since,
    } = selection;
    if !ids.is_empty() {
        ids.sort_unstable();
        ids.dedup();
        return Ok(ids);
    }
    let filter = EntryFilter {
        states: match states.is_empty() {
            true => self::states(order),
            false => states,
        },
        installation_id: installation,
        field,
        since: since.map(|since| now.minus(since)),
        limit: u32::MAX,
    };
    console.entry_ids(&filter).await
}

/// An order and who gives it.
struct Act<'a> {
    console: &'a dyn Console,
    order: Order,
    by: Person,
    dry_run: bool,
    now: Timestamp,
}

impl Act<'_> {
    /// Does it to all of these entries, some at a time; the results are those that were answered.
    async fn on_all(&self, ids: &[EntryId], results: &mut Results) -> Result<(), StoreError> {
        let pauses = self.console.pauses().await?;
        let paused: BTreeSet<InstallationId> = pauses
            .into_iter()
            .filter(|pause| in_effect(pause, self.now))
            .map(|pause| pause.installation_id)
            .collect();
        let word = match self.dry_run {
            true => "looked at",
            false => participle(self.order),
        };
        let mut progress = Progress::new(SystemClock.now());
        results.unanswered = ids.len() as u64;
        let mut ended = Ok(());
        for batch in ids.chunks(BATCH) {
            let answers = match self.dry_run {
                true => self.rehearse(batch).await,
                false => self.carry_out(batch).await,
            };
            match answers {
                Ok(answers) => results.add(batch, answers, &paused),
                Err(error) => {
                    ended = Err(error);
                    break;
                }
            }
            let (answered, all) = (results.answered(), ids.len() as u64);
            progress.entries(answered, all, word, SystemClock.now());
        }
        progress.done();
        ended
    }

    async fn carry_out(&self, ids: &[EntryId]) -> Result<Vec<Answer>, StoreError> {
        let Self { order, by, .. } = self;
        let answers = self.console.act(ids, *order, by, self.now).await?;
        for (id, answer) in ids.iter().zip(&answers) {
            if let Answer::Done { key, state } = answer {
                log(*order, *id, key, *state, by);
            }
        }
        Ok(answers)
    }

    async fn rehearse(&self, ids: &[EntryId]) -> Result<Vec<Answer>, StoreError> {
        let found = self.console.keys_of(ids).await?;
        let keys: Vec<ResourceKey> = found.iter().flatten().cloned().collect();
        let records = self.console.records(&keys).await?;
        let mut records: BTreeMap<ResourceKey, Record> = records
            .into_iter()
            .map(|record| (record.key.clone(), record))
            .collect();
        let answer = |(id, key): (&EntryId, Option<ResourceKey>)| {
            let Some(key) = key else {
                return Answer::Unknown;
            };
            let record = records.get_mut(&key);
            let is_open = |record: &&mut Record| {
                let entry = record.entry.as_ref();
                entry.is_some_and(|entry| entry.id == *id)
            };
            let outcome = match record.filter(is_open) {
                Some(record) => self.order.apply(record, self.now),
                None => Err(Refusal::Closed),
            };
            match outcome {
                Ok(Applied { state, .. }) => Answer::Done { key, state },
                Err(refusal) => Answer::Refused { key, refusal },
            }
        };
        Ok(ids.iter().zip(found).map(answer).collect())
    }
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

/// What became of one entry.
#[derive(Debug, Clone)]
struct Row {
    id: EntryId,
    key: Option<ResourceKey>,
    became: Became,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Became {
    Done {
        state: EntryState,
        /// It may go, but its installation is paused.
        is_paused: bool,
    },
    Refused(Refusal),
    Unknown,
}

impl Row {
    fn new(id: EntryId, answer: Answer, paused: &BTreeSet<InstallationId>) -> Self {
        let (key, became) = match answer {
            Answer::Done { key, state } => {
                let is_paused =
                    state == EntryState::Waiting && paused.contains(&key.installation_id);
                (Some(key), Became::Done { state, is_paused })
            }
            Answer::Refused { key, refusal } => (Some(key), Became::Refused(refusal)),
            Answer::Unknown => (None, Became::Unknown),
        };
        Self { id, key, became }
    }

    fn cells(&self) -> Vec<String> {
        let result = match self.became {
            Became::Done { state, is_paused } => match is_paused {
                true => format!("{state}; its installation is paused"),
                false => state.to_string(),
            },
            Became::Refused(refusal) => format!("refused: {refusal}"),
            Became::Unknown => "refused: there is no such entry".to_owned(),
        };
        let key = self.key.as_ref().map(|key| visible(&key.to_string()));
        vec![self.id.to_string(), key.unwrap_or_default(), result]
    }
}

/// What became of all of them.
#[derive(Debug, Clone)]
struct Results {
    order: Order,
    dry_run: bool,
    /// The rows that are shown.
    rows: Vec<Row>,
    /// How many rows are shown unless they are refusals, where not all are.
    shown_max: Option<usize>,
    done: u64,
    refused: u64,
    /// How many rows are not shown.
    hidden: u64,
    /// Of how many entries there is no answer: something went wrong before.
    unanswered: u64,
}

impl Results {
    const fn new(order: Order, dry_run: bool, shown_max: Option<usize>) -> Self {
        Self {
            order,
            dry_run,
            rows: Vec::new(),
            shown_max,
            done: 0,
            refused: 0,
            hidden: 0,
            unanswered: 0,
        }
    }

    fn add(&mut self, ids: &[EntryId], answers: Vec<Answer>, paused: &BTreeSet<InstallationId>) {
        for (id, answer) in ids.iter().zip(answers) {
            let is_done = matches!(answer, Answer::Done { .. });
            let is_far = self.shown_max.is_some_and(|most| self.rows.len() >= most);
            if is_done && is_far {
                self.hidden += 1;
            } else {
                self.rows.push(Row::new(*id, answer, paused));
            }
            self.done += u64::from(is_done);
            self.refused += u64::from(!is_done);
        }
        self.unanswered = self.unanswered.saturating_sub(ids.len() as u64);
    }

    const fn answered(&self) -> u64 {
        self.done + self.refused
    }

    const fn is_empty(&self) -> bool {
        self.answered() == 0
    }

    fn print(&self, out: &mut Out, look: Look, json: bool) {
        if json {
            let entries = self.rows.iter().map(row_json);
            return out.json_with(self.to_json(look.now), "entries", entries);
        }
        for part in self.parts(look) {
            out.print(&part);
        }
    }

    /// The answer for a person, piece by piece: in a pipe there may be very many lines.
    fn parts(&self, look: Look) -> impl Iterator<Item = String> {
        let next = match (self.order, self.dry_run) {
            (_, true) if self.done > 0 => "the same without --dry-run",
            (Order::Discard, false) => "reconciled status",
            _ => "reconciled outbox list",
        };
        let gap = if self.is_empty() { "" } else { "\n" };
        let head = format!("{}\n{gap}", self.verdict());
        let more = match self.hidden {
            0 => String::new(),
            hidden => format!("… and {} more\n", counted(hidden, "line")),
        };
        let end = format!("{more}{gap}Next: {next}\n");
        let most = match look.terminal {
            true => self.rows.len().max(1),
            false => ROWS_PER_PIECE,
        };
        let pieces = self.rows.chunks(most);
        let tables = pieces.enumerate().map(move |(index, rows)| {
            let mut table = match index {
                0 => Table::new(&["ID", "RESOURCE", "RESULT"]),
                _ => Table::further(),
            };
            for row in rows {
                table.row(row.cells());
            }
            table.render(look)
        });
        std::iter::once(head).chain(tables).chain([end])
    }

    fn verdict(&self) -> String {
        let Self {
            done,
            refused,
            unanswered,
            ..
        } = self;
        if self.is_empty() {
            return "No entry matches; nothing was changed.".to_owned();
        }
        let word = participle(self.order).to_uppercase();
        let style = if refused + unanswered == 0 { GOOD } else { BAD };
        let head = if self.dry_run {
            styled(WARN, format_args!("WOULD BE {word}"))
        } else if *done == 0 {
            styled(style, format_args!("NOT {word}"))
        } else {
            styled(style, word)
        };
        let mut text = format!("{head}   {}", counted_entries(*done));
        if *refused > 0 {
            text.push_str(&format!(", {} refused", count(*refused)));
        }
        if *unanswered > 0 {
            text.push_str(&format!(", {} without an answer", count(*unanswered)));
        }
        if self.dry_run {
            text.push_str("; nothing was changed");
        }
        text
    }

    /// The answer for machines, without its rows.
    fn to_json(&self, now: Timestamp) -> Value {
        json!({
            "schema": 1,
            "at": now.to_string(),
            "act": self.order.name(),
            "dry_run": self.dry_run,
            "done": self.done,
            "refused": self.refused,
            "unanswered": self.unanswered,
        })
    }
}

fn row_json(row: &Row) -> Value {
    let Row { id, key, became } = row;
    let is_paused = matches!(
        became,
        Became::Done {
            is_paused: true,
            ..
        }
    );
    let (done, state, refusal) = match became {
        Became::Done { state, .. } => (true, Some(state.name()), None),
        Became::Refused(refusal) => (false, None, Some(refusal_code(*refusal))),
        Became::Unknown => (false, None, Some("unknown")),
    };
    json!({
        "entry": id.0,
        "installation_id": key.as_ref().map(|key| key.installation_id.as_str()),
        "resource_id": key.as_ref().map(|key| key.resource_id.as_str()),
        "done": done,
        "state": state,
        "refusal": refusal,
        "installation_paused": is_paused,
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
