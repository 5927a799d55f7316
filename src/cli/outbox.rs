//! `outbox`: what is to be delivered, what waits for a person, and a person's word on it.

mod act;
mod list;
mod show;

pub(crate) use show::advice;

use clap::{Args, Subcommand};

use super::beside::{Actor, Why, parse_installation, parse_words};
use super::context::{Session, parse_duration};
use super::exit::Exit;
use super::fault::Fault;
use super::plan::parse_field;
use crate::model::{EntryId, EntryState, Field, InstallationId, Timestamp};
use crate::store::console::{EntryFilter, Order};

/// Entries to list unless told otherwise.
const LIMIT_DEFAULT: u32 = 50;

/// Lists entries, shows one, tries again, lets go what the guard holds, gives up.
///
/// An entry is the intention to bring one resource to what the source says; at most one is open per resource. It is waiting, held
/// by the guard, or dead; or closed: delivered, withdrawn or discarded.
///
/// Everything here works beside the daemon, which takes notice within a second. Every act is kept with who did it, when and why.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled outbox list --state dead --since 1h\n\nNext: reconciled outbox show ID"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(ListArguments),
    Show(ShowArguments),
    Retry(RetryArguments),
    Discard(DiscardArguments),
    Release(ReleaseArguments),
}

/// Entries by number, the oldest first: what each would send, and what it waits for.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled outbox list --state dead --installation icfg_7Hd\n\nNext: reconciled outbox show ID"
)]
struct ListArguments {
    #[command(flatten)]
    filter: Filter,
    /// Entries to show; the rest is counted. 0: all.
    #[arg(long, value_name = "N", default_value_t = LIMIT_DEFAULT)]
    limit: u32,
    /// The list as JSON.
    #[arg(long)]
    json: bool,
}

/// One entry: both sides field by field, its attempts, why it is where it is.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled outbox show 58213\n\nNext: reconciled explain INSTALLATION RESOURCE"
)]
struct ShowArguments {
    /// The entry's number.
    #[arg(value_name = "ID", value_parser = parse_entry)]
    id: EntryId,
    /// The entry as JSON.
    #[arg(long)]
    json: bool,
}

/// Tries entries again at once, dead ones too, and forgets what made them wait or die.
///
/// What Vercel rejected is sent once more as it is: correct the source first if the value is wrong.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled outbox retry --state dead --installation icfg_7Hd --dry-run\n\n\
    Exit codes: 0 all was done, 1 something was refused.\n\nNext: reconciled outbox list"
)]
struct RetryArguments {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    why: Why,
}

/// Closes entries for good: what they wanted is not sent until the source changes it.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled outbox discard --state held --reason \"bad migration, rolled back\"\n\n\
    Exit codes: 0 all was done, 1 something was refused.\n\nNext: reconciled status"
)]
struct DiscardArguments {
    #[command(flatten)]
    which: Which,
    /// Why; the history keeps it.
    #[arg(long, value_name = "TEXT", value_parser = parse_words)]
    reason: String,
}

/// Lets entries go that the guard holds; they are sent at once.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled outbox release --installation icfg_7Hd\n\n\
    Exit codes: 0 all was done, 1 something was refused.\n\nNext: reconciled status"
)]
struct ReleaseArguments {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    why: Why,
}

/// Which entries to list.
#[derive(Debug, Clone, Args)]
struct Filter {
    /// In this state: waiting, held, dead, delivered, withdrawn or discarded; may be repeated [default: the open ones].
    #[arg(long = "state", value_name = "STATE", value_parser = parse_state)]
    states: Vec<EntryState>,
    /// Of this installation.
    #[arg(long, value_name = "ID", value_parser = parse_installation)]
    installation: Option<InstallationId>,
    /// With this field to send, sent or rejected: secrets, status, billingPlan, name, notification, metadata, ownership or extras.
    #[arg(long, value_name = "FIELD", value_parser = parse_field)]
    field: Option<Field>,
    /// Found within this time: 1h.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<std::time::Duration>,
}

/// On which entries to act: by number, or by filter.
#[derive(Debug, Clone, Args)]
struct Which {
    #[command(flatten)]
    selection: Selection,
    /// Show what would be done; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask; needed with filters where nobody can be asked.
    #[arg(long)]
    yes: bool,
    /// The answer as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    actor: Actor,
}

/// Numbers or filters; one of the two, and not none.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = true)]
struct Selection {
    /// The entries' numbers.
    #[arg(value_name = "ID", value_parser = parse_entry, conflicts_with_all = ["states", "installation", "field", "since"])]
    ids: Vec<EntryId>,
    /// Those in this state: waiting, held or dead; may be repeated.
    #[arg(long = "state", value_name = "STATE", value_parser = parse_open_state)]
    states: Vec<EntryState>,
    /// Those of this installation.
    #[arg(long, value_name = "ID", value_parser = parse_installation)]
    installation: Option<InstallationId>,
    /// Those with this field to send or rejected.
    #[arg(long, value_name = "FIELD", value_parser = parse_field)]
    field: Option<Field>,
    /// Those found within this time: 1h.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<std::time::Duration>,
}

fn parse_entry(text: &str) -> Result<EntryId, String> {
    let number = text.parse::<i64>().ok().filter(|number| *number > 0);
    number.map(EntryId).ok_or_else(|| {
        "an entry's number is a positive integer, as outbox list shows it".to_owned()
    })
}

fn parse_state(text: &str) -> Result<EntryState, String> {
    EntryState::from_name(text).ok_or_else(|| {
        let names: Vec<&str> = EntryState::ALL.into_iter().map(EntryState::name).collect();
        format!("states are {}", names.join(", "))
    })
}

fn parse_open_state(text: &str) -> Result<EntryState, String> {
    let state = parse_state(text)?;
    if state.is_open() {
        Ok(state)
    } else {
        Err("a closed entry cannot be changed; open states are waiting, held and dead".to_owned())
    }
}

pub(crate) async fn execute(arguments: Arguments, session: &mut Session) -> Result<Exit, Fault> {
    match arguments.command {
        Command::List(arguments) => list::execute(arguments, session).await,
        Command::Show(arguments) => show::execute(arguments, session).await,
        Command::Retry(RetryArguments { which, why }) => {
            act::execute(Order::Retry, which, why.reason, session).await
        }
        Command::Discard(DiscardArguments { which, reason }) => {
            act::execute(Order::Discard, which, Some(reason), session).await
        }
        Command::Release(ReleaseArguments { which, why }) => {
            act::execute(Order::Release, which, why.reason, session).await
        }
    }
}

impl Filter {
    fn to_store(&self, limit: u32, now: Timestamp) -> EntryFilter {
        let Self {
            states,
            installation,
            field,
            since,
        } = self;
        EntryFilter {
            states: states.clone(),
            installation_id: installation.clone(),
            field: *field,
            since: since.map(|since| now.minus(since)),
            limit: if limit == 0 { u32::MAX } else { limit },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_limit_is_the_largest_and_a_time_is_counted_from_now() {
        let now = Timestamp::from_millis(1_777_903_331_000);
        let filter = Filter {
            states: vec![EntryState::Dead],
            installation: None,
            field: Some(Field::Name),
            since: Some(Duration::from_secs(60)),
        };
        let EntryFilter {
            states,
            field,
            since,
            limit,
            ..
        } = filter.to_store(0, now);
        assert_eq!((states, field), (vec![EntryState::Dead], Some(Field::Name)));
        assert_eq!(since, Some(now.minus(Duration::from_secs(60))));
        assert_eq!(limit, u32::MAX);
        assert_eq!(filter.to_store(7, now).limit, 7);
    }
}
