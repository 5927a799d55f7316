//! `demo`: a provider, the daemon and a simulated Vercel in one process, through an hour's bad luck in half a minute.
//!
//! Ends by proving that both sides agree and that no secret is where none may be. No number is made up: each was counted.

mod daemon;
mod proof;
mod provider;
mod stage;
mod story;
mod tap;

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use tempfile::TempDir;

use super::context::Session;
use super::exit::Exit;
use super::fault::{Failure, Fault, code};
use super::out::{BAD, GOOD, HEAD, styled};
use super::text::{count, counted, duration, seconds};
use crate::app::AppError;
use crate::clock::{Random as _, SeededRandom};
use crate::config::Config;
use crate::shutdown::Shutdown;
use crate::simulator::{Options, Simulator};
use crate::telemetry;
use proof::{Search, Tally, differences};
use provider::{INSTALLATIONS_QUERY, Provider, QUERY};
use stage::{Heard, Stage, Teller, provider_failed};
use story::Plot;

/// Watch it work: an embedded provider database, the daemon and a simulated Vercel in one process.
///
/// About half a minute of ordinary changes, refused connections, 503s, 429s, 409s, lost answers, a revoked token, a rejected
/// plan and a crash of the daemon. It ends by comparing both sides field by field, secrets included, and by looking for every
/// secret in the daemon's state and logs. Exit code 1 if anything differs or any secret is found.
///
/// It needs no configuration, no account and no database; it listens on loopback only, and removes what it made.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  reconciled demo --seed 7\n\n\
    Next: edit config/reconciled.toml, then reconciled --config config/reconciled.toml check")]
pub(crate) struct Arguments {
    /// Decides names, secrets and which rows change [default: another one each time].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Without the pauses that let a person follow.
    #[arg(long)]
    fast: bool,
}

pub(crate) async fn execute(arguments: Arguments, session: &mut Session) -> Result<Exit, Fault> {
    let Arguments { seed, fast } = arguments;
    let seed = seed.unwrap_or_else(|| SeededRandom::from_system().unique().unsigned_abs() % 10_000);
    let shutdown = Shutdown::new();
    shutdown.listen().map_err(AppError::from)?;
    let directory = tempfile::Builder::new()
        .prefix("reconciled-demo-")
        .tempdir();
    let directory = directory.map_err(|error| {
        Failure::of(code::DEMO, &error).help("the temporary directory has to be writable")
    })?;
    let mut teller = Teller::new(&mut session.out);
    teller.tell(&format!(
        "{} Seed {seed}. Nothing leaves this machine.",
        styled(
            HEAD,
            "A provider's database, reconciled, and a Vercel that misbehaves."
        )
    ));
    let stage = set(directory.path(), seed, fast, teller).await?;
    let ended = tokio::select! {
        ended = show(stage, directory.path()) => ended,
        () = shutdown.draining().cancelled() => return Ok(Exit::Failed),
    };
    match ended {
        Ok(true) => Ok(Exit::Done),
        Ok(false) => {
            keep(directory, session);
            Ok(Exit::Failed)
        }
        Err(failure) => Err(failure.help(keep(directory, session)).into()),
    }
}

/// What went wrong can be looked into: nothing in there is anybody's secret.
fn keep(directory: TempDir, session: &mut Session) -> String {
    let kept = format!(
        "the provider, the state and the log are kept in {}",
        directory.keep().display()
    );
    session.out.line(&kept);
    kept
}

/// Sets the stage: everything is there, and the daemon is not running yet.
async fn set<'a>(
    directory: &Path,
    seed: u64,
    fast: bool,
    teller: Teller<'a>,
) -> Result<Stage<'a>, Fault> {
    let failed = |error: std::io::Error| Failure::of(code::DEMO, &error);
    for part in ["provider", "state", "log"] {
        std::fs::create_dir(directory.join(part)).map_err(failed)?;
    }
    let mut provider = Provider::create(&directory.join("provider/provider.db"), seed)
        .await
        .map_err(|error| provider_failed(&error))?;
    let simulator = Simulator::start(Options::creating())
        .await
        .map_err(|error| Failure::of(code::SIMULATOR, &error))?;
    let remote = simulator.remote().clone();
    for (installation, token) in provider
        .tokens()
        .await
        .map_err(|error| provider_failed(&error))?
    {
        remote.install(&installation, &token);
    }
    let config = Arc::new(Config::from_toml(&configuration(directory, &simulator))?);
    let file = std::fs::File::create(directory.join("log/daemon.log")).map_err(failed)?;
    let (tap, events) = tap::Tap::new(file);
    telemetry::init_with_writer(&config.log, Box::new(tap))
        .map_err(|error| Failure::of(code::START, &error))?;
    Ok(Stage {
        provider,
        remote,
        address: simulator.address(),
        simulator: Some(simulator),
        config,
        daemon: None,
        events,
        teller,
        unhurried: !fast,
        heard: Heard::default(),
    })
}

/// A configuration like any other, only faster.
fn configuration(directory: &Path, simulator: &Simulator) -> String {
    let directory = directory.display();
    let base_url = simulator.base_url();
    format!(
        r#"
[source]
url = "sqlite://{directory}/provider/provider.db"
query = """{QUERY}"""
installations_query = "{INSTALLATIONS_QUERY}"

[state]
url = "sqlite://{directory}/state/state.db"

[vercel]
base_url = "{base_url}"
request_timeout = "2s"
connect_timeout = "1s"

[schedule]
poll = "* * * * * *"
sweep = "*/3 * * * * *"
prune = ""

[retry]
initial_interval = "200ms"
max_interval = "1s"
lease = "6s"
late_apply = "2s"

[log]
summary_interval = "0s"
"#
    )
}

/// Plays the story and proves its end; whether everything is as it should be.
async fn show(mut stage: Stage<'_>, directory: &Path) -> Result<bool, Failure> {
    let plot = story::play(&mut stage).await?;
    stage.teller.chapter("Proof");
    // Lost answers are settled only by a request that was sent after they can no longer take effect.
    stage.forget();
    stage.until_converged().await?;
    stage
        .teller
        .say("a sweep of the daemon's own finds both sides equal; now independently of it");
    let read = |error: std::io::Error| Failure::of(code::DEMO, &error);
    let mut search = Search::new(&stage.provider.confidential);
    let mut control = Search::new(&control(&stage));
    // Once while the daemon runs, with its write-ahead log, and once after it has stopped.
    for is_running in [true, false] {
        if !is_running && let Some(daemon) = stage.daemon.take() {
            daemon.stop().await.map_err(|error| Failure::from(&error))?;
        }
        for part in ["state", "log"] {
            search.directory(&directory.join(part)).map_err(read)?;
            control.directory(&directory.join(part)).map_err(read)?;
        }
    }
    search.text(stage.teller.transcript.as_bytes());
    conclude(&mut stage, &plot, &search, &control).await
}

/// Texts that have to be in the state and in the log: a search that does not find them proves nothing.
fn control(stage: &Stage<'_>) -> Vec<String> {
    let mut texts: Vec<String> = provider::CREDENTIALS.map(str::to_owned).to_vec();
    texts.extend(stage.provider.databases().iter().map(|(_, id)| id.clone()));
    texts
}

async fn conclude(
    stage: &mut Stage<'_>,
    plot: &Plot,
    search: &Search,
    control: &Search,
) -> Result<bool, Failure> {
    let fleet = stage
        .provider
        .fleet()
        .await
        .map_err(|error| provider_failed(&error))?;
    let differ = differences(&fleet, &stage.remote);
    let violations = stage.remote.violations();
    let expected_control = stage.provider.databases().len() + provider::CREDENTIALS.len();
    let tally = Tally::of(&stage.remote.requests());
    let differing: std::collections::BTreeSet<&str> = differ
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    let agreeing = fleet.len().saturating_sub(differing.len()) as u64;
    let confidential = stage.provider.confidential.len() as u64;
    let Tally {
        unavailable,
        rate_limited,
        conflicts,
        rejected,
        unauthorized,
        lost,
        writes,
        repeated,
    } = tally;
    let lines = [
        (
            "weather",
            format!(
                "{unavailable} × 503, {rate_limited} × 429, {conflicts} × 409, {rejected} × 400, {unauthorized} × 401, \
                 {lost} lost answers, {} of refused connections, {} revoked token, {} crash of the daemon",
                seconds(plot.refused),
                plot.revoked,
                plot.crashes
            ),
        ),
        (
            "changes",
            format!(
                "{} in the provider's database, {} rotated secrets",
                count(stage.provider.changes),
                count(stage.provider.rotations)
            ),
        ),
        (
            "requests",
            format!(
                "{}: {} first, {} repeated safely",
                count(writes),
                count(writes - repeated),
                count(repeated)
            ),
        ),
        (
            "violations",
            format!(
                "{} of the API's rules, by the simulator's judgement",
                count(violations.len() as u64)
            ),
        ),
        (
            "agreement",
            format!(
                "{} of {} resources, field by field, secrets included",
                count(agreeing),
                count(fleet.len() as u64)
            ),
        ),
        (
            "secrets",
            format!(
                "{} of {} values and tokens found in logs and state files ({}, {} KiB; {} control texts found)",
                count(search.found() as u64),
                count(confidential),
                counted(search.files, "file"),
                count(search.bytes / 1024),
                count(control.found() as u64)
            ),
        ),
    ];
    stage.teller.tell("");
    for (label, text) in &lines {
        stage.teller.tell(&format!(
            "{}  {text}",
            styled(HEAD, format_args!("{label:<16}"))
        ));
    }
    let mut faults = differ;
    faults.extend(violations.iter().map(ToString::to_string));
    if search.found() > 0 {
        faults.push(format!(
            "{} found where none may be",
            counted(search.found() as u64, "secret")
        ));
    }
    if control.found() != expected_control {
        faults.push(
            "the search for secrets did not find what has to be there: it proves nothing"
                .to_owned(),
        );
    }
    if stage.heard.panics > 0 {
        faults.push("the daemon panicked".to_owned());
    }
    for fault in &faults {
        stage
            .teller
            .tell(&format!("{}  {fault}", styled(BAD, "wrong           ")));
    }
    let took = duration(stage.teller.elapsed());
    let is_proven = faults.is_empty();
    stage.teller.tell(&if is_proven {
        format!(
            "{} {took}. Nothing left this machine.",
            styled(GOOD, "Both sides agree.")
        )
    } else {
        format!(
            "{} {took}.",
            styled(
                BAD,
                format_args!(
                    "Not as it should be: {}.",
                    counted(faults.len() as u64, "fault")
                )
            )
        )
    });
    stage.teller.tell(
        "Next: edit config/reconciled.toml, then reconciled --config config/reconciled.toml check",
    );
    Ok(is_proven)
}
