//! `status`: one screen on whether both sides agree, and what to do if they do not. Asks the state alone.

mod json;
mod render;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::beside::{self, parse_installation};
use super::context::Session;
use super::exit::Exit;
use super::fault::Fault;
use super::installation;
use crate::config::Config;
use crate::model::{InstallationId, Timestamp};
use crate::store::console::{Console, Daemon, InstallationSummary, Installations};
use crate::store::{Counts, Heartbeat, HoldReport, Progress, Quarantined, StoreError};

/// Retries are counted over this long.
const RETRIES: Duration = Duration::from_secs(3600);
/// Unusable rows that a terminal shows.
const QUARANTINED_SHOWN: u32 = 5;
/// Unusable rows that a pipe and JSON show.
const QUARANTINED_MAX: u32 = 1_000;

/// Do both sides agree? One screen, the verdict first, the most useful command last.
///
/// Verdicts, the gravest first: DOWN (the daemon stopped), STALLED (it runs but gives no sign of life), BLOCKED (the state cannot be
/// used, for instance on a full disk), BLIND (the source cannot be read), OUTAGE (Vercel's API fails), HELD (the guard waits for a
/// person), DEAD (dead letters), PAUSED (an installation gets no requests), BEHIND (something waits), UNUSABLE (rows that cannot be
/// used), UNPROVEN (no complete sweep yet), IN SYNC.
///
/// It asks the state alone and may run beside the daemon, also as a health check: it exits with 0 whenever it could answer,
/// whatever the verdict, and with 1 if the state cannot be read, does not exist yet, or knows nothing of the installation that was
/// asked for. Scripts read `verdict` in --json.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  reconciled status --json\n\nNext: reconciled outbox list")]
pub(crate) struct Arguments {
    /// Of installations and unusable rows only those of this one; the verdict stays that of the whole.
    #[arg(long, value_name = "ID", value_parser = parse_installation)]
    installation: Option<InstallationId>,
    /// The answer as JSON, with every installation.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn execute(arguments: Arguments, session: &mut Session) -> Result<Exit, Fault> {
    let (config, console) = beside::open(session).await?;
    let look = session.look();
    let is_whole = arguments.installation.is_none();
    let rows = if look.terminal && !arguments.json && is_whole {
        QUARANTINED_SHOWN
    } else {
        QUARANTINED_MAX
    };
    let which = match arguments.json && is_whole {
        true => Installations::All,
        false => Installations::Noteworthy,
    };
    let mut overview = Overview::gather(&config, &console, rows, which, look.now).await?;
    if let Some(only) = arguments.installation {
        overview.show_only(&*console, only).await?;
    }
    if arguments.json {
        let installations = overview.shown_installations();
        let items = installations.map(|one| installation::to_json(one, look.now));
        session
            .out
            .json_with(json::render(&overview), "installations", items);
    } else {
        session.out.print(&render::render(&overview, look));
    }
    Ok(match overview.unknown() {
        None => Exit::Done,
        Some(_) => Exit::Failed,
    })
}

/// Everything that the answer is made of.
#[derive(Debug, Clone)]
struct Overview {
    now: Timestamp,
    counts: Counts,
    /// Resources in the state.
    resources: u64,
    progress: Progress,
    daemon: Daemon,
    /// Attempts of the last hour that had to be repeated.
    retries: u64,
    /// Resources that differ since a person discarded the change.
    discarded: u64,
    /// Those of which there is something to say, and perhaps others.
    installations: Vec<InstallationSummary>,
    /// How many installations there are.
    installations_total: u64,
    /// Of installations and unusable rows only those of this one are shown.
    only: Option<InstallationId>,
    /// Unusable rows, the longest quarantined first, up to a limit.
    unusable: Vec<Quarantined>,
    unusable_total: u64,
    /// What the guard keeps back until a person decides.
    holds: Vec<HoldReport>,
    /// The expressions of `[schedule]`, if polls and sweeps are on.
    poll_schedule: Option<String>,
    sweep_schedule: Option<String>,
}

impl Overview {
    async fn gather(
        config: &Config,
        console: &Arc<dyn Console>,
        rows: u32,
        which: Installations,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let (unusable, unusable_total) = console.quarantined(rows).await?;
        let mut holds = Vec::new();
        for hold in console.open_holds().await? {
            holds.extend(console.hold(hold.id).await?);
        }
        Ok(Self {
            now,
            counts: console.counts(now).await?,
            resources: console.resources().await?,
            progress: console.progress().await?,
            daemon: console.daemon().await?,
            retries: console.retries_since(now.minus(RETRIES)).await?,
            discarded: console.discarded().await?,
            installations: console.installations(which).await?,
            installations_total: console.installation_count().await?,
            only: None,
            unusable,
            unusable_total,
            holds,
            poll_schedule: config.schedule.poll.as_ref().map(ToString::to_string),
            sweep_schedule: config.schedule.sweep.as_ref().map(ToString::to_string),
        })
    }

    /// Shows of installations and unusable rows only those of this one.
    async fn show_only(
        &mut self,
        console: &dyn Console,
        only: InstallationId,
    ) -> Result<(), StoreError> {
        let is_there = |one: &InstallationSummary| one.installation_id == only;
        if !self.installations.iter().any(is_there) {
            match installation::known(console, &only).await? {
                Some(known) => self.installations.push(known),
                // Which one was meant is perhaps among them.
                None => self.installations = console.installations(Installations::All).await?,
            }
        }
        self.only = Some(only);
        Ok(())
    }

    /// The installations that are shown.
    fn shown_installations(&self) -> impl Iterator<Item = &InstallationSummary> {
        let is_shown = |one: &&InstallationSummary| {
            let only = self.only.as_ref();
            only.is_none_or(|only| one.installation_id == *only)
        };
        self.installations.iter().filter(is_shown)
    }

    /// The unusable rows that are shown.
    fn shown_unusable(&self) -> impl Iterator<Item = &Quarantined> {
        let is_shown = |row: &&Quarantined| {
            let only = self.only.as_ref();
            only.is_none_or(|only| row.installation_id == only.as_str())
        };
        self.unusable.iter().filter(is_shown)
    }

    /// The installation that was asked for, if the state knows nothing of it.
    fn unknown(&self) -> Option<&InstallationId> {
        let only = self.only.as_ref()?;
        let is_known = self.shown_installations().next().is_some()
            || self.shown_unusable().next().is_some()
            // It may be among those that were not looked at.
            || self.unusable_cut() > 0;
        (!is_known).then_some(only)
    }

    /// How many unusable rows are not among those that were looked at.
    fn unusable_cut(&self) -> u64 {
        self.unusable_total
            .saturating_sub(self.unusable.len() as u64)
    }

    /// The sign of life of the daemon that runs now.
    fn alive(&self) -> Option<&Heartbeat> {
        self.daemon
            .heartbeat
            .as_ref()
            .filter(|_| self.daemon.running)
    }

    /// When the last poll ended and how many rows it read, as far as anything recorded it.
    fn last_poll(&self) -> Option<(Timestamp, u64)> {
        let told = self
            .daemon
            .heartbeat
            .as_ref()
            .and_then(|heartbeat| heartbeat.last_poll);
        let kept = self
            .progress
            .poll
            .as_ref()
            .and_then(|poll| Some((poll.completed_at?, poll.rows)));
        told.into_iter().chain(kept).max_by_key(|(at, _)| *at)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{Field, Origin, ResourceKey, RowHash};
    use crate::plan::guard::{Found, Summary};
    use crate::store::{
        Hold, HoldState, Pause, PauseKind, PollProgress, SweepAccount, SweepProgress,
    };

    /// 2026-05-04T14:02:11Z.
    pub(super) const NOW: Timestamp = Timestamp::from_millis(1_777_903_331_000);

    pub(super) fn ago(seconds: u64) -> Timestamp {
        NOW.minus(Duration::from_secs(seconds))
    }

    pub(super) fn installation(id: &str, waiting: u64, dead: u64) -> InstallationSummary {
        InstallationSummary {
            installation_id: InstallationId::new(id).expect("an id"),
            resources: 300,
            waiting,
            held: 0,
            dead,
            oldest: (waiting + dead > 0).then(|| ago(9)),
            pauses: Vec::new(),
            limited_until: None,
        }
    }

    pub(super) fn pause(of: &mut InstallationSummary, kind: PauseKind) {
        of.pauses.push(Pause {
            installation_id: of.installation_id.clone(),
            kind,
            by: "ana".into(),
            reason: "customer migration".into(),
            since: ago(120),
            until: None,
            probe_at: None,
            probes_failed: 0,
        });
    }

    /// A daemon that runs, a sweep that found both sides equal, nothing open.
    pub(super) fn in_sync() -> Overview {
        let heartbeat = Heartbeat {
            owner: "812-1".to_owned(),
            pid: 812,
            version: "0.1.0".into(),
            started_at: ago(6 * 86_400 + 2 * 3_600),
            at: ago(2),
            last_poll: Some((ago(3), 9)),
            source_problem: None,
            state_problem: None,
            outage_since: None,
        };
        let account = SweepAccount {
            rows: 41_207,
            equal: 41_207,
            ..SweepAccount::default()
        };
        Overview {
            now: NOW,
            resources: 41_207,
            counts: Counts {
                last_acknowledged: Some(ago(3)),
                ..Counts::default()
            },
            progress: Progress {
                poll: Some(PollProgress {
                    cursor: None,
                    identity: "one".into(),
                    completed_at: Some(ago(60)),
                    rows: 4,
                }),
                sweep: Some(SweepProgress {
                    number: 7,
                    started_at: ago(50),
                    after: None,
                    account,
                    complete: true,
                    owed: false,
                    last: Some((ago(40), account)),
                }),
            },
            daemon: Daemon {
                running: true,
                heartbeat: Some(heartbeat),
                replicas: Vec::new(),
            },
            retries: 3,
            discarded: 0,
            installations: vec![
                installation("icfg_7Hd", 0, 0),
                installation("icfg_9aQ", 0, 0),
            ],
            installations_total: 2,
            only: None,
            unusable: Vec::new(),
            unusable_total: 0,
            holds: Vec::new(),
            poll_schedule: Some("*/5 * * * * *".into()),
            sweep_schedule: Some("0 0 * * * *".into()),
        }
    }

    pub(super) fn behind() -> Overview {
        let mut overview = in_sync();
        overview.counts.waiting = 2;
        overview.counts.oldest_waiting = Some(ago(134));
        overview.installations[0] = installation("icfg_7Hd", 1, 0);
        overview.installations[1] = installation("icfg_9aQ", 1, 0);
        pause(&mut overview.installations[1], PauseKind::Manual);
        overview
    }

    /// A migration that suspends 118 resources and sets 2 to error.
    pub(super) fn hold() -> HoldReport {
        let towards = |status: &str| (Field::Status, Some(status.to_owned()));
        let example = |id: &str| ResourceKey::new("icfg_7Hd", id).expect("ids");
        HoldReport {
            hold: Hold {
                id: 3,
                state: HoldState::Open,
                origin: Origin::Poll,
                opened_at: ago(134),
                closed_at: None,
                found: Found {
                    destructive: 120,
                    changes: 125,
                },
            },
            entries: 120,
            summary: Summary {
                entries: 120,
                towards: [(towards("suspended"), 118), (towards("error"), 2)].into(),
                examples: vec![example("res_1"), example("res_2")],
            },
        }
    }

    pub(super) fn quarantined(resource: &str) -> Quarantined {
        Quarantined {
            key: ResourceKey::new("icfg_7Hd", resource).ok(),
            installation_id: "icfg_7Hd".into(),
            resource_id: resource.into(),
            column: "billing_plan".into(),
            problem: "has no `id`".into(),
            accepted: "an object with id, type and name".into(),
            row_hash: RowHash::from_bytes([1; 16]),
            since: ago(180),
        }
    }
}
