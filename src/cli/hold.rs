//! A hold of the guard in words and for machines: how many resources, which fields, towards which values. Pure.

use serde_json::{Value, json};

use super::standing::age_ms;
use super::text::{count, visible};
use crate::model::{Field, ResourceKey, Timestamp};
use crate::plan::guard::Summary;
use crate::store::HoldReport;

/// `status → suspended (118), secrets → none (2)`, of so many entries.
pub(crate) fn towards(summary: &Summary, entries: u64) -> String {
    let line = |((field, value), number): (&(Field, Option<String>), &u64)| match value {
        Some(value) => format!("{field} → {} ({})", visible(value), count(*number)),
        None => format!("{field} ({})", count(*number)),
    };
    let lines: Vec<String> = summary.towards.iter().map(line).collect();
    let towards = lines.join(", ");
    match summary.entries < entries {
        true => format!("{towards}, of the first {}", count(summary.entries)),
        false => towards,
    }
}

/// The hold and what its entries would do.
pub(crate) fn to_json(report: &HoldReport, now: Timestamp) -> Value {
    let HoldReport {
        hold,
        entries,
        summary,
    } = report;
    let towards = |((field, value), number): (&(Field, Option<String>), &u64)| json!({ "field": field.wire_name(), "value": value, "resources": number });
    let example = |key: &ResourceKey| {
        json!({
            "installation_id": key.installation_id.as_str(),
            "resource_id": key.resource_id.as_str(),
        })
    };
    json!({
        "hold": hold.id,
        "origin": hold.origin.name(),
        "opened_at": hold.opened_at.to_string(),
        "age_ms": age_ms(hold.opened_at, now),
        "resources": entries,
        "destructive": hold.found.destructive,
        "changes": hold.found.changes,
        "looked_at": summary.entries,
        "towards": summary.towards.iter().map(towards).collect::<Vec<_>>(),
        "examples": summary.examples.iter().map(example).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_that_did_not_look_at_all_says_so() {
        let mut summary = Summary {
            entries: 10_000,
            ..Summary::default()
        };
        let suspended = (Field::Status, Some("suspended".to_owned()));
        summary.towards.insert(suspended, 10_000);
        let said = |entries| towards(&summary, entries);
        assert_eq!(said(10_000), "status → suspended (10,000)");
        assert_eq!(
            said(10_001),
            "status → suspended (10,000), of the first 10,000"
        );
    }
}
