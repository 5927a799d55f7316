//! `baseline`: what Vercel already has of an existing fleet, taken or compared before anything is sent.

use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::json;

use super::context::{Progress, Session};
use super::exit::Exit;
use super::fault::{Failure, Fault, code};
use super::out::{GOOD, styled};
use super::text::{count, counted, visible};
use crate::app::Parts;
use crate::clock::{Clock as _, SystemClock};
use crate::plan::baseline::{Baseline, Way};
use crate::reconcile::BaselineReport;
use crate::store::Access;

/// Takes what the source says now as what Vercel has, or compares the two first.
///
/// The first step for a fleet that Vercel already knows. Neither way sends anything by itself. It does not run beside a daemon
/// on the same state.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled baseline compare\n\nNext: reconciled plan, then reconciled run"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    way: Ways,
}

#[derive(Debug, Subcommand)]
enum Ways {
    /// Take every row as acknowledged: nothing of it is sent until it changes. Right only if you know that Vercel has it.
    Adopt(Options),
    /// Ask Vercel about each resource before its first push: only what differs or cannot be seen is sent by the next run.
    Compare(Options),
}

#[derive(Debug, Args)]
struct Options {
    /// Also resources of which Vercel has acknowledged something.
    #[arg(long)]
    all: bool,
    /// The report as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn execute(arguments: Arguments, session: &mut Session) -> Result<Exit, Fault> {
    let (way, Options { all, json }) = match arguments.way {
        Ways::Adopt(options) => (Way::Adopt, options),
        Ways::Compare(options) => (Way::Compare, options),
    };
    let loaded = session.load_with_warnings()?;
    session
        .log_to_stderr(&loaded.config.log, false)
        .map_err(|error| Failure::of(code::START, &error))?;
    let parts = Parts::open(Arc::new(loaded.config), Access::Daemon).await?;
    let mut progress = Progress::new(session.now());
    let report = parts
        .reconciler()
        .baseline(Baseline { way, all }, |report| {
            progress.rows(report.rows, SystemClock.now());
        })
        .await
        .map_err(crate::app::AppError::from)?;
    progress.done();
    if json {
        session.out.json(&to_json(&report));
    } else {
        session.out.print(&render(way, &report));
    }
    Ok(Exit::Done)
}

fn to_json(report: &BaselineReport) -> serde_json::Value {
    let BaselineReport {
        rows,
        adopted,
        to_compare,
        left,
        quarantined,
        notices: _,
    } = report;
    json!({
        "schema": 1,
        "rows": rows,
        "adopted": adopted,
        "to_compare": to_compare,
        "left": left,
        "quarantined": quarantined,
    })
}

fn render(way: Way, report: &BaselineReport) -> String {
    let rows = counted(report.rows, "row");
    let left = match report.left {
        0 => String::new(),
        left => format!(
            "; {} left as they were, since Vercel acknowledged something of them before (--all takes them too)",
            count(left)
        ),
    };
    let unusable = match report.quarantined {
        0 => String::new(),
        unusable => format!("; {} cannot be used", count(unusable)),
    };
    let (verdict, next) = match way {
        Way::Adopt => (
            format!(
                "{}   {} of {rows} taken as acknowledged{left}{unusable}. Nothing was sent.",
                styled(GOOD, "ADOPTED"),
                count(report.adopted)
            ),
            "reconciled plan",
        ),
        Way::Compare => (
            format!(
                "{}   {} of {rows} will be compared with what Vercel shows before anything of them is sent{left}{unusable}. \
                 Nothing was sent.",
                styled(GOOD, "PREPARED"),
                count(report.to_compare)
            ),
            "reconciled once, or reconciled run",
        ),
    };
    let mut text = format!("{verdict}\n");
    for notice in &report.notices {
        let row = &notice.row;
        text.push_str(&format!(
            "  {} / {}  column `{}` {}\n",
            visible(&row.installation_id),
            visible(&row.resource_id),
            row.column,
            row.problem
        ));
    }
    text.push_str(&format!("Next: {next}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_says_what_was_done_and_that_nothing_was_sent() {
        let report = BaselineReport {
            rows: 1200,
            adopted: 1190,
            left: 10,
            ..BaselineReport::default()
        };
        let text = anstream::adapter::strip_str(&render(Way::Adopt, &report)).to_string();
        assert_eq!(
            text,
            "ADOPTED   1,190 of 1,200 rows taken as acknowledged; 10 left as they were, since Vercel acknowledged something of them \
             before (--all takes them too). Nothing was sent.\nNext: reconciled plan\n"
        );
    }
}
