//! `plan`: what would be sent now, as a diff. Reads the whole source, sends nothing, changes nothing.

mod change;
mod held;
mod json;
mod render;
mod survey;

use std::ops::ControlFlow;
use std::sync::Arc;

use clap::Args;

use super::context::{Progress, Session, parse_duration, state_exists};
use super::exit::Exit;
use super::fault::{Failure, Fault, code};
use super::installation::{known, unknown};
use crate::app;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::model::{Field, FingerprintKey, InstallationId};
use crate::source::Source;
use crate::store::Access;
use crate::store::console::{Console, Installations};
use held::Held;
use survey::{Item, Survey, Surveyor};

/// How many resources a terminal is shown unless told otherwise.
const LIMIT_DEFAULT: usize = 100;

/// What would be sent now, per resource and field, as a diff.
///
/// Reads every row of the source, compares it with what Vercel last acknowledged, and shows what differs: what would be sent
/// at once, what waits and why, what was parked. Of a secret it shows the name and a short keyed fingerprint.
///
/// It sends nothing, changes nothing, and may run beside the daemon. Without a state every resource counts as never seen.
///
/// With --held it shows all of what the guard keeps back, from the state alone: the source is not read.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled plan --installation icfg_7Hd --field secrets\n  reconciled plan --held\n\n\
    Exit codes: 0 whether or not there are changes; with --exit-code 2 if there are; 1 if nobody knows the installation.\n\n\
    Next: reconciled once --sweep, or reconciled explain INSTALLATION RESOURCE"
)]
pub(crate) struct Arguments {
    /// The plan as JSON, whole unless --limit says otherwise.
    #[arg(long)]
    json: bool,
    /// Exit with 2 if anything differs.
    #[arg(long)]
    exit_code: bool,
    /// All that the guard keeps back, instead of what the source says now.
    #[arg(long, conflicts_with = "states")]
    held: bool,
    /// Resources to show; the rest is counted. 0: all [default: 100; with --json or --held all].
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Only resources of this installation.
    #[arg(long, value_name = "ID", value_parser = parse_installation)]
    installation: Option<InstallationId>,
    /// Only this field, by its name on the wire: secrets, status, billingPlan, name, notification, metadata, ownership or
    /// extras.
    #[arg(long, value_name = "FIELD", value_parser = parse_field)]
    field: Option<Field>,
    /// Only what would be sent now, is waiting, held, dead or discarded; may be repeated.
    #[arg(long = "state", value_name = "STATE", value_parser = parse_state)]
    states: Vec<survey::State>,
    /// Only what was changed (by its cursor) or found within this time: 1h.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<std::time::Duration>,
}

fn parse_state(text: &str) -> Result<survey::State, String> {
    let all = survey::State::ALL;
    all.into_iter()
        .find(|state| state.name() == text)
        .ok_or_else(|| format!("states are {}", all.map(survey::State::name).join(", ")))
}

fn parse_installation(text: &str) -> Result<InstallationId, String> {
    InstallationId::new(text).map_err(|error| format!("it {error}"))
}

pub(crate) fn parse_field(text: &str) -> Result<Field, String> {
    let named = Field::from_wire_name(text).or_else(|| Field::from_column(text));
    named.ok_or_else(|| {
        let names: Vec<&str> = Field::ALL.iter().map(|field| field.wire_name()).collect();
        format!("fields are {}", names.join(", "))
    })
}

pub(crate) async fn execute(arguments: Arguments, session: &mut Session) -> Result<Exit, Fault> {
    let Arguments {
        json,
        exit_code,
        held,
        limit,
        installation,
        field,
        states,
        since,
    } = arguments;
    let config = session.load_with_warnings()?.config;
    session
        .log_to_stderr(&config.log, false)
        .map_err(|error| Failure::of(code::START, &error))?;
    let limit = match limit {
        Some(0) => usize::MAX,
        Some(limit) => limit,
        None if json || held => usize::MAX,
        None => LIMIT_DEFAULT,
    };
    let filter = survey::Filter {
        installation,
        field,
        states,
        since: since.map(|since| session.now().minus(since)),
        limit,
    };
    if held {
        return show_held(&config, filter, json, exit_code, session).await;
    }
    let survey = survey(&config, filter).await?;
    let look = session.look();
    if json {
        session.out.json(json::render(&survey, look.now));
    } else {
        session.out.print(&render::render(&survey, look));
    }
    if matches!(survey.only, Some(survey::Known::Nowhere(_))) {
        return Ok(Exit::Failed);
    }
    Ok(if exit_code && survey.totals.resources > 0 {
        Exit::Changes
    } else {
        Exit::Done
    })
}

async fn show_held(
    config: &Config,
    filter: survey::Filter,
    is_json: bool,
    exit_code: bool,
    session: &mut Session,
) -> Result<Exit, Fault> {
    let look = session.look();
    let mut held = Held::default();
    let mut items = Vec::new();
    if state_exists(config) {
        let console = app::open_state(config, Access::Beside).await?;
        if let Some(only) = &filter.installation
            && known(&*console, only).await?.is_none()
        {
            let installations = console.installations(Installations::All).await?;
            return Err(
                Failure::new(code::UNKNOWN_INSTALLATION, unknown(only, &installations))
                    .help("reconciled installation list names those that it knows")
                    .into(),
            );
        }
        held = Held::find(&*console, &filter).await?;
        let out = &mut session.out;
        if !is_json {
            out.print(&held.head(look));
        }
        let give = |some: Vec<Item>| {
            if is_json {
                items.extend(some);
            } else {
                out.print(&Held::body(some, look));
            }
            match out.is_closed() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        held.read(&*console, &filter, give).await?;
    } else if !is_json {
        session.out.print(&held.head(look));
    }
    if is_json {
        let items = items.iter().map(json::item);
        session
            .out
            .json_with(held.to_json(look.now), "resources", items);
    } else {
        session.out.print(&held.tail());
    }
    Ok(if exit_code && !held.is_empty() {
        Exit::Changes
    } else {
        Exit::Done
    })
}

async fn survey(config: &Config, filter: survey::Filter) -> Result<Survey, Fault> {
    let source: Arc<dyn Source> = app::source(config)?;
    let console: Option<Arc<dyn Console>> = if state_exists(config) {
        Some(app::open_state(config, Access::Beside).await?)
    } else {
        None
    };
    let key = match &console {
        Some(console) => console.fingerprint_key().await?,
        None => throwaway_key(),
    };
    let settings = app::reconcile_settings(config);
    let now = SystemClock.now();
    let surveyor = Surveyor {
        source,
        console,
        key,
        settings,
        filter,
        now,
    };
    let mut progress = Progress::new(now);
    let survey = surveyor
        .run(|rows| progress.rows(rows, None, SystemClock.now()))
        .await;
    progress.done();
    survey
}

/// Without a state there is nothing to compare with: a key of this process alone will do, and nobody can guess by it.
fn throwaway_key() -> FingerprintKey {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the operating system gives randomness");
    FingerprintKey::new(bytes)
}
