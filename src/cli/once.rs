//! `once`: one poll or sweep, and deliveries until nothing is left to send.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::context::{Session, parse_duration};
use super::exit::Exit;
use super::fault::{Failure, Fault, code};
use super::out::{BAD, GOOD, HEAD, Look, styled};
use super::text::{count, counted, duration};
use crate::app::{self, AppError, OnceOptions, OnceReport, Parts};
use crate::shutdown::Shutdown;
use crate::store::Access;
use crate::store::SweepAccount;

/// Reads the source once and delivers until nothing is left to send; for cron and Kubernetes jobs.
///
/// Polls what changed since the last run (or reads every row, with --sweep), then sends until the outbox is idle or the
/// timeout has passed. What waits beyond the timeout stays in the state for the next run.
///
/// It never runs beside a daemon on the same state. It exits with 1 if anything still waits, is held or died, or the source
/// failed.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled once --sweep --timeout 10m\n\nNext: reconciled status"
)]
pub(crate) struct Arguments {
    /// Read every row, not only what changed since the last run.
    #[arg(long)]
    sweep: bool,
    /// Deliver for at most this long, counted from when the source was read.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    timeout: Duration,
    /// The report as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn execute(arguments: Arguments, session: &mut Session) -> Result<Exit, Fault> {
    let Arguments {
        sweep,
        timeout,
        json,
    } = arguments;
    let loaded = session.load_with_warnings()?;
    session
        .log_to_stderr(&loaded.config.log, true)
        .map_err(|error| Failure::of(code::START, &error))?;
    let shutdown = Shutdown::new();
    shutdown.listen().map_err(AppError::from)?;
    let parts = Parts::open(Arc::new(loaded.config), Access::Daemon).await?;
    let report = tokio::select! {
        report = app::once(&parts, OnceOptions { sweep, timeout }, shutdown.draining()) => report?,
        () = shutdown.abort().cancelled() => return Ok(Exit::Failed),
    };
    if json {
        session.out.json(to_json(&report, session.look()));
    } else {
        session.out.print(&render(&report, session.look()));
    }
    Ok(if is_complete(&report) {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// Whether nothing that this run could have delivered is left. Dead letters of earlier runs wait for a person, not for a run.
const fn is_complete(report: &OnceReport) -> bool {
    report.is_complete() && report.counts.held == 0
}

fn render(report: &OnceReport, look: Look) -> String {
    let OnceReport {
        rows,
        totals,
        counts,
        resources: _,
        sweep,
    } = report;
    let mut text = String::new();
    let left = counts.waiting + counts.held;
    let verdict = if is_complete(report) {
        let what = if totals.acknowledged == 0 {
            "nothing was to be sent"
        } else {
            "nothing is left to send"
        };
        format!("{}   {what}", styled(GOOD, "DELIVERED"))
    } else {
        let oldest = counts
            .oldest_waiting
            .map(|at| format!("; oldest {}", duration(look.now.since(at))));
        let died = if totals.died > 0 {
            format!("{} new dead, ", count(totals.died))
        } else {
            String::new()
        };
        format!(
            "{}   {died}{} undelivered{}",
            styled(BAD, "BEHIND"),
            count(left),
            oldest.unwrap_or_default()
        )
    };
    let mut line = |name: &str, value: String| {
        let _ = writeln!(
            text,
            "{}  {value}",
            styled(HEAD, format_args!("{name:<10}"))
        );
    };
    line(
        "read",
        format!(
            "{} ({})",
            counted(*rows, "row"),
            if sweep.is_some() { "sweep" } else { "poll" }
        ),
    );
    line(
        "sent",
        format!(
            "{} acknowledged, {} failed",
            counted(totals.acknowledged, "request"),
            count(totals.failed)
        ),
    );
    line(
        "outbox",
        format!(
            "{} waiting, {} held, {} dead",
            count(counts.waiting),
            count(counts.held),
            count(counts.dead)
        ),
    );
    if counts.quarantined + counts.paused + counts.missing > 0 {
        line(
            "besides",
            format!(
                "{} quarantined, {} paused, {} missing",
                counted(counts.quarantined, "resource"),
                counted(counts.paused, "installation"),
                count(counts.missing)
            ),
        );
    }
    let next = match counts {
        counts if left + counts.dead > 0 => "reconciled outbox list",
        counts if counts.quarantined + counts.paused > 0 => "reconciled status",
        _ => "reconciled run",
    };
    format!("{verdict}\n{text}Next: {next}\n")
}

fn to_json(report: &OnceReport, look: Look) -> Value {
    let OnceReport {
        rows,
        totals,
        counts,
        resources,
        sweep,
    } = report;
    let account = sweep.as_ref().map(|sweep| {
        let SweepAccount { rows, equal, waiting, held, dead, quarantined, missing } = sweep.account;
        json!({
            "rows": rows, "equal": equal, "waiting": waiting, "held": held, "dead": dead, "quarantined": quarantined,
            "missing": missing, "unaccounted": sweep.unaccounted, "converged": sweep.converged(),
            "duration_ms": millis(sweep.duration),
        })
    });
    json!({
        "schema": 1,
        "complete": is_complete(report),
        "rows": rows,
        "acknowledged": totals.acknowledged,
        "failed": totals.failed,
        "died": totals.died,
        "resources": resources,
        "waiting": counts.waiting,
        "held": counts.held,
        "dead": counts.dead,
        "quarantined": counts.quarantined,
        "paused": counts.paused,
        "missing": counts.missing,
        "oldest_waiting_age_ms": counts.oldest_waiting.map(|at| millis(look.now.since(at))),
        "sweep": account,
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Totals;
    use crate::model::Timestamp;
    use crate::store::Counts;

    const LOOK: Look = Look {
        terminal: true,
        width: 80,
        now: Timestamp::from_millis(200_000),
    };

    fn report() -> OnceReport {
        OnceReport {
            rows: 412,
            totals: Totals {
                acknowledged: 12,
                failed: 1,
                ..Totals::default()
            },
            counts: Counts::default(),
            resources: 412,
            sweep: None,
        }
    }

    fn shown(report: &OnceReport) -> String {
        anstream::adapter::strip_str(&render(report, LOOK)).to_string()
    }

    #[test]
    fn the_verdict_comes_first_and_the_next_command_last() {
        insta::assert_snapshot!(shown(&report()), @r"
        DELIVERED   nothing is left to send
        read        412 rows (poll)
        sent        12 requests acknowledged, 1 failed
        outbox      0 waiting, 0 held, 0 dead
        Next: reconciled run
        ");
    }

    #[test]
    fn what_stays_undelivered_is_a_failure() {
        let mut behind = report();
        behind.counts = Counts {
            waiting: 2,
            held: 1,
            paused: 1,
            oldest_waiting: Some(Timestamp::from_millis(66_000)),
            ..behind.counts
        };
        assert!(!is_complete(&behind));
        insta::assert_snapshot!(shown(&behind), @r"
        BEHIND   3 undelivered; oldest 2 min 14 s
        read        412 rows (poll)
        sent        12 requests acknowledged, 1 failed
        outbox      2 waiting, 1 held, 0 dead
        besides     0 resources quarantined, 1 installation paused, 0 missing
        Next: reconciled outbox list
        ");
        assert_eq!(to_json(&behind, LOOK)["oldest_waiting_age_ms"], 134_000);
        assert_eq!(to_json(&behind, LOOK)["sweep"], Value::Null);
    }
}
