//! The story for machines: every attempt by itself.

use serde_json::{Value, json};

use super::super::matrix;
use super::super::out::Look;
use super::super::standing::pause_json;
use super::events::attempt_json;
use super::verdict::Verdict;
use super::{SourceRow, Told};
use crate::store::console::{Act, ListedEntry};

/// The version of this shape; it grows when a property changes its meaning or goes.
const SCHEMA: u32 = 1;

pub(super) fn render(told: &Told, look: Look) -> Value {
    let verdict = Verdict::of(told);
    let record = &told.story.record;
    // Machines get exact times, as a pipe does.
    let look = Look {
        terminal: false,
        ..look
    };
    let (row, problem) = match &told.source {
        SourceRow::Usable(_) => ("usable", None),
        SourceRow::Unusable(unusable) => ("unusable", Some(unusable.to_string())),
        SourceRow::Absent => ("absent", None),
        SourceRow::Unreachable(problem) => ("unreachable", Some(problem.clone())),
    };
    let entry = record.entry.as_ref().map(|entry| {
        json!({
            "entry": entry.id.0,
            "state": entry.state.name(),
            "origin": entry.origin.name(),
            "reason": entry.reason.code(),
            "attempts": entry.attempts,
            "in_flight": entry.in_flight.is_some(),
            "found_at": entry.created_at.to_string(),
            "due_at": entry.due_at.to_string(),
        })
    });
    json!({
        "schema": SCHEMA,
        "at": told.now.to_string(),
        "installation_id": record.key.installation_id.as_str(),
        "resource_id": record.key.resource_id.as_str(),
        "verdict": verdict.word().to_lowercase().replace(' ', "_"),
        "why": verdict.why(told, look),
        "next": verdict.next(told),
        "source": { "row": row, "problem": problem },
        "acknowledged_at": record.acknowledged_at.map(|at| at.to_string()),
        "missing_since": record.missing.map(|missing| missing.since.to_string()),
        "lines": matrix::to_json(&matrix::lines(record, told.desired())),
        "entry": entry,
        "closed": told.story.closed.iter().map(closed).collect::<Vec<_>>(),
        "attempts": told.story.attempts.iter().map(attempt_json).collect::<Vec<_>>(),
        "acts": told.story.acts.iter().map(act).collect::<Vec<_>>(),
        "pauses": told.story.pauses.iter().map(|pause| pause_json(pause, told.now)).collect::<Vec<_>>(),
        "cut": told.is_cut,
    })
}

fn closed(listed: &ListedEntry) -> Value {
    let ListedEntry {
        key: _,
        entry,
        fields,
        closed_at,
    } = listed;
    json!({
        "entry": entry.id.0,
        "state": entry.state.name(),
        "origin": entry.origin.name(),
        "fields": fields.iter().map(|field| field.wire_name()).collect::<Vec<_>>(),
        "attempts": entry.attempts,
        "found_at": entry.created_at.to_string(),
        "closed_at": closed_at.map(|at| at.to_string()),
    })
}

fn act(act: &Act) -> Value {
    let Act {
        at,
        actor,
        act,
        installation_id,
        resource_id,
        entry_id,
        reason,
    } = act;
    json!({
        "at": at.to_string(),
        "actor": actor,
        "act": act,
        "scope": match (installation_id, resource_id) {
            (None, _) => "fleet",
            (Some(_), None) => "installation",
            (Some(_), Some(_)) => "resource",
        },
        "entry": entry_id.map(|id| id.0),
        "reason": reason,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NOW, in_sync, snapshot};
    use super::*;

    #[test]
    fn machines_get_fingerprints_exact_times_and_no_null_lists() {
        let mut told = in_sync();
        told.source = SourceRow::Usable(snapshot("ready", 0xb0));
        let shown = render(
            &told,
            Look {
                terminal: true,
                width: 80,
                now: NOW,
            },
        );
        assert_eq!(shown["schema"], 1);
        assert_eq!(shown["verdict"], "changed");
        assert_eq!(shown["attempts"], json!([]));
        assert_eq!(shown["lines"][1]["to_send_fingerprint"], "b0b0b0");
        assert_eq!(shown["entry"], Value::Null);
        assert_eq!(shown["source"], json!({"row": "usable", "problem": null}));
    }
}
