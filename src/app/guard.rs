//! What the guard did, in one line each: a hold that was opened is an error, since a person has to decide.

use tracing::{error, info, warn};

use crate::plan::guard::Summary;
use crate::reconcile::Reconciler;
use crate::store::{GuardEvent, HoldReport, Store};
use crate::telemetry::JsonList;

/// Tells what the guard did since it was last asked.
pub(super) async fn tell_guard(reconciler: &Reconciler, store: &dyn Store) {
    for event in reconciler.take_guard_events() {
        match event {
            GuardEvent::Held { hold, .. } => match store.hold(hold).await {
                Ok(Some(report)) => tell_held(&report),
                // The state says more once it can be read again.
                Ok(None) | Err(_) => error!(
                    event = "guard.held",
                    hold,
                    "Held a pass that changes more than [guard] allows; see `reconciled plan --held`"
                ),
            },
            GuardEvent::Joined { hold, found } => warn!(
                event = "guard.joined",
                hold,
                destructive = found.destructive,
                changes = found.changes,
                "Held a further pass with hold {hold}: {} destructive changes, {} in all within ten minutes",
                found.destructive,
                found.changes
            ),
            GuardEvent::Dissolved { hold } => info!(
                event = "guard.dissolved",
                hold, "Hold {hold} dissolved: the source went back, nothing is left under it"
            ),
        }
    }
}

fn tell_held(report: &HoldReport) {
    let HoldReport {
        hold,
        entries,
        summary,
    } = report;
    let towards = towards(summary);
    let examples: Vec<String> = summary.examples.iter().map(ToString::to_string).collect();
    let looked_at = summary.entries;
    let sentence = sentence(&towards, looked_at, *entries);
    error!(
        event = "guard.held",
        hold = hold.id,
        origin = hold.origin.name(),
        entries,
        destructive = hold.found.destructive,
        changes = hold.found.changes,
        looked_at,
        towards = %JsonList::new(towards.iter().map(String::as_str)),
        examples = %JsonList::new(examples.iter().map(String::as_str)),
        "Held {entries} resources, more than [guard] allows: {sentence}; nothing of it is sent until a person decides: \
         `reconciled plan --held` shows all of it, `reconciled outbox release --state held` lets it go, `reconciled outbox discard --state held` drops it"
    );
}

/// What the entries would do, of those that were looked at.
fn sentence(towards: &[String], looked_at: u64, entries: u64) -> String {
    let towards = towards.join(", ");
    match looked_at < entries {
        true => format!("{towards}, of the first {looked_at}"),
        false => towards,
    }
}

/// `status → suspended (120)`, by field and value.
fn towards(summary: &Summary) -> Vec<String> {
    let line = |((field, value), count): (&(crate::model::Field, Option<String>), &u64)| match value
    {
        Some(value) => format!("{field} → {value} ({count})"),
        None => format!("{field} ({count})"),
    };
    summary.towards.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_that_was_not_looked_at_whole_says_of_how_much_it_speaks() {
        let towards = ["status → suspended (9)", "name (1)"].map(str::to_owned);
        let said = |entries| sentence(&towards, 10, entries);
        assert_eq!(said(10), "status → suspended (9), name (1)");
        assert_eq!(
            said(11),
            "status → suspended (9), name (1), of the first 10"
        );
    }
}
