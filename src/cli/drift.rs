//! `drift`: what Vercel shows, compared with what it acknowledged.

use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};
use tracing::info;

use super::beside::{self, Actor, Why, parse_installation};
use super::context::{Session, state_exists};
use super::exit::Exit;
use super::fault::Fault;
use super::out::{GOOD, WARN, styled};
use super::plan::parse_field;
use super::text::{count, counted, visible};
use crate::app::{self, AppError, Parts};
use crate::dispatch::drift::{DriftEvent, DriftOrder, DriftReport, Finding};
use crate::model::{Field, InstallationId};
use crate::shutdown::Shutdown;
use crate::store::Access;

/// Compares what Vercel shows with what it last acknowledged; sends nothing but GET requests.
///
/// Vercel shows name, status, metadata and notification; secrets, extras, ownership and plan details cannot be compared. With
/// --fix the provider's side of what differs is sent again, by the daemon or the next `once`. It works beside a running daemon.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled drift --fix\n\nNext: reconciled explain INSTALLATION RESOURCE"
)]
pub(crate) struct Arguments {
    /// Send the provider's side of what differs again.
    #[arg(long)]
    fix: bool,
    /// Only resources of this installation.
    #[arg(long, value_name = "ID", value_parser = parse_installation)]
    installation: Option<InstallationId>,
    /// Only this field: name, status, metadata, notification or billingPlan.
    #[arg(long, value_name = "FIELD", value_parser = parse_field)]
    field: Option<Field>,
    /// The findings as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    why: Why,
    #[command(flatten)]
    actor: Actor,
}

pub(crate) async fn execute(arguments: Arguments, session: &mut Session) -> Result<Exit, Fault> {
    let Arguments {
        fix,
        installation,
        field,
        json,
        why,
        actor,
    } = arguments;
    let loaded = session.load_with_warnings()?;
    beside::log_acts(session, &loaded.config.log)?;
    if !state_exists(&loaded.config) {
        if json {
            let nothing = DriftReport {
                complete: true,
                ..DriftReport::default()
            };
            session.out.json(to_json(&nothing, &[]));
        } else {
            session
                .out
                .print("There is no state yet, so nothing was acknowledged.\nNext: reconciled baseline compare\n");
        }
        return Ok(Exit::Done);
    }
    let shutdown = Shutdown::new();
    shutdown.listen().map_err(AppError::from)?;
    let parts = Parts::open(Arc::new(loaded.config), Access::Beside).await?;
    let mut findings = Vec::new();
    let mut tell = |event: DriftEvent<'_>| {
        if let DriftEvent::Found(finding) = event {
            findings.push(finding.clone());
        }
    };
    let by = actor.person(why.reason);
    let order = DriftOrder {
        fix,
        by: fix.then(|| by.clone()),
        installation_id: installation,
        field,
    };
    let report = app::drift(&parts, order, shutdown.draining(), &mut tell).await?;
    if fix {
        info!(
            event = "drift.fixed_by_hand",
            fixed = report.fixed,
            actor = by.name,
            reason = by.reason,
            "{} ordered what drifted to be sent again: {} resources",
            by.name,
            report.fixed
        );
    }
    if json {
        session.out.json(to_json(&report, &findings));
    } else {
        session.out.print(&render(&report, &findings));
    }
    Ok(if report.complete {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn to_json(report: &DriftReport, findings: &[Finding]) -> Value {
    let finding = |finding: &Finding| match finding {
        Finding::Differs {
            key,
            field,
            acknowledged,
            shown,
        } => json!({
            "installation_id": key.installation_id.as_str(),
            "resource_id": key.resource_id.as_str(),
            "field": field.wire_name(),
            "acknowledged": acknowledged,
            "shown": shown,
        }),
        Finding::Missing { key } => json!({
            "installation_id": key.installation_id.as_str(),
            "resource_id": key.resource_id.as_str(),
            "missing": true,
        }),
    };
    let skipped: serde_json::Map<String, Value> = report
        .skipped
        .iter()
        .map(|(skip, number)| (skip.name().to_owned(), json!(number)))
        .collect();
    json!({
        "schema": 1,
        "findings": findings.iter().map(finding).collect::<Vec<_>>(),
        "resources": report.resources,
        "compared": report.compared,
        "drifted": report.drifted,
        "missing": report.missing,
        "fixed": report.fixed,
        "skipped": skipped,
        "complete": report.complete,
    })
}

fn render(report: &DriftReport, findings: &[Finding]) -> String {
    let mut text = String::new();
    let differing = report.drifted + report.missing;
    let compared = counted(report.compared, "resource");
    text.push_str(&if differing == 0 {
        format!(
            "{}   {compared} compared, none differs\n",
            styled(GOOD, "NO DRIFT")
        )
    } else {
        format!(
            "{}   {} of {compared} differ\n",
            styled(WARN, "DRIFT"),
            count(differing)
        )
    });
    for finding in findings {
        let key = finding.key();
        let name = visible(&format!("{} / {}", key.installation_id, key.resource_id));
        text.push_str(&match finding {
            Finding::Differs {
                field,
                acknowledged,
                shown,
                ..
            } => format!(
                "  {name}  {field}  acknowledged {}, Vercel shows {}\n",
                visible(acknowledged),
                shown.as_deref().map_or("nothing".to_owned(), visible)
            ),
            Finding::Missing { .. } => format!("  {name}  Vercel does not know it\n"),
        });
    }
    let skipped: u64 = report.skipped.values().sum();
    if skipped > 0 {
        let reasons: Vec<String> = report
            .skipped
            .iter()
            .map(|(skip, number)| format!("{} {}", count(*number), skip.name().replace('_', " ")))
            .collect();
        text.push_str(&format!(
            "{} not compared: {}\n",
            count(skipped),
            reasons.join(", ")
        ));
    }
    if !report.complete {
        text.push_str("The check was stopped before it had seen everything.\n");
    }
    text.push_str(match (report.drifted, report.fixed) {
        (0, _) => "Next: nothing\n",
        (_, 0) => "Next: reconciled drift --fix sends the provider's side again\n",
        _ => "Next: reconciled status; what differs is sent again by the daemon, or by reconciled once\n",
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Field, ResourceKey};

    #[test]
    fn a_difference_is_shown_with_both_values_and_the_next_command() {
        let report = DriftReport {
            resources: 3,
            compared: 2,
            drifted: 1,
            skipped: [(crate::dispatch::drift::Skip::Paused, 1)].into(),
            complete: true,
            ..DriftReport::default()
        };
        let finding = Finding::Differs {
            key: ResourceKey::new("icfg_1", "res_1").expect("two ids"),
            field: Field::Status,
            acknowledged: "ready".to_owned(),
            shown: None,
        };
        let text = anstream::adapter::strip_str(&render(&report, &[finding])).to_string();
        assert_eq!(
            text,
            "DRIFT   1 of 2 resources differ\n  icfg_1 / res_1  status  acknowledged ready, Vercel shows nothing\n\
             1 not compared: 1 paused\nNext: reconciled drift --fix sends the provider's side again\n"
        );
    }
}
