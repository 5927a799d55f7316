//! `baseline`: what Vercel already has of an existing fleet, taken or compared before anything is sent.

use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::json;
use tracing::info;

use super::beside::{self, Actor, Why, parse_installation};
use super::context::{Progress, Session};
use super::exit::Exit;
use super::fault::Fault;
use super::out::{GOOD, styled};
use super::text::{count, counted, visible};
use crate::app::Parts;
use crate::clock::{Clock as _, SystemClock};
use crate::model::InstallationId;
use crate::plan::baseline::{Baseline, Way};
use crate::reconcile::BaselineReport;
use crate::store::Access;
use crate::store::console::{Act, Person};

/// Takes what the source says now as what Vercel has, or compares the two first.
///
/// The first step of every installation whose resources Vercel already knows. Neither way sends anything by itself. It does not run
/// beside a daemon on the same state. Who did it, when and why is kept and shown by explain.
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
    /// Only resources of this installation.
    #[arg(long, value_name = "ID", value_parser = parse_installation)]
    installation: Option<InstallationId>,
    /// Also resources of which Vercel has acknowledged something.
    #[arg(long)]
    all: bool,
    /// The report as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    why: Why,
    #[command(flatten)]
    actor: Actor,
}

pub(crate) async fn execute(arguments: Arguments, session: &mut Session) -> Result<Exit, Fault> {
    let (way, options) = match arguments.way {
        Ways::Adopt(options) => (Way::Adopt, options),
        Ways::Compare(options) => (Way::Compare, options),
    };
    let Options {
        installation,
        all,
        json,
        why,
        actor,
    } = options;
    let loaded = session.load_with_warnings()?;
    beside::log_acts(session, &loaded.config.log)?;
    let parts = Parts::open(Arc::new(loaded.config), Access::Daemon).await?;
    let by = actor.person(why.reason);
    let act = Act {
        installation_id: installation.clone(),
        ..Act::new(way.name(), by.clone(), session.now())
    };
    let (reconciler, leadership) = parts
        .watching_reconciler()
        .await
        .map_err(crate::app::AppError::from)?;
    // Before the first row is taken, since a baseline that is broken off has been begun by somebody; not before one could be read.
    let begun = async {
        parts.console.note(&act).await?;
        log_begun(&act);
        Ok(())
    };
    let mut progress = Progress::new(session.now());
    let report = reconciler
        .baseline(
            Baseline { way, all },
            installation.as_ref(),
            begun,
            |report| {
                let done = report.adopted + report.to_compare;
                progress.rows(
                    report.rows,
                    Some((way.participle(), done)),
                    SystemClock.now(),
                );
            },
        )
        .await
        .map_err(crate::app::AppError::from);
    progress.done();
    leadership.end().await;
    let report = report?;
    log_done(way, &by, &report);
    if json {
        session.out.json(to_json(&report));
    } else {
        session.out.print(&render(way, &report));
    }
    Ok(Exit::Done)
}

fn log_begun(act: &Act) {
    let installation_id = act.installation_id.as_ref().map(InstallationId::as_str);
    info!(
        event = "baseline.by_hand",
        way = act.act,
        installation_id,
        actor = act.actor,
        reason = act.reason,
        "A baseline was begun by {}",
        act.actor
    );
}

fn log_done(way: Way, by: &Person, report: &BaselineReport) {
    info!(
        event = "baseline.by_hand",
        way = way.name(),
        actor = by.name,
        reason = by.reason,
        rows = report.rows,
        adopted = report.adopted,
        to_compare = report.to_compare,
        left = report.left,
        quarantined = report.quarantined,
        "A baseline over {} rows was ended by {}",
        report.rows,
        by.name
    );
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
