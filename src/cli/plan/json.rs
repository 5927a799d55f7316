//! The plan for machines.

use serde_json::{Value, json};

use super::change::{Change, Side};
use super::survey::{Item, Known, Since, Standing, Survey, Totals, UnusableRow};
use crate::model::{Field, Timestamp};

/// The version of this shape; it grows when a property changes its meaning or goes.
const SCHEMA: u32 = 1;

/// One object; lists are `[]` when empty, never null.
pub(super) fn render(survey: &Survey, now: Timestamp) -> Value {
    let Survey {
        has_state,
        items,
        unusable,
        totals,
        only,
        guard,
    } = survey;
    let Totals {
        rows,
        resources,
        fields,
        secrets,
        now: at_once,
        compared_first,
        in_flight,
        waiting,
        held,
        parked,
        discarded,
        unchanged,
        prepared,
        adopted,
        unusable: unusable_rows,
        unusable_resources,
    } = totals;
    json!({
        "schema": SCHEMA,
        "at": now.to_string(),
        "has_state": has_state,
        "installation_known": only.as_ref().map(|known| !matches!(known, Known::Nowhere(_))),
        "resources": items.iter().map(item).collect::<Vec<_>>(),
        "hidden": resources - items.len() as u64,
        "quarantined": unusable.iter().map(unusable_row).collect::<Vec<_>>(),
        "beyond_guard": guard.map(|found| json!({"destructive": found.destructive, "changes": found.changes})),
        "totals": {
            "rows": rows, "resources": resources, "fields": fields, "secrets": secrets, "now": at_once,
            "compared_first": compared_first, "in_flight": in_flight, "waiting": waiting, "held": held,
            "parked": parked, "discarded": discarded, "unchanged": unchanged, "prepared": prepared, "adopted": adopted, "quarantined": unusable_rows,
            "quarantined_resources": unusable_resources,
        },
    })
}

pub(super) fn item(item: &Item) -> Value {
    let Item {
        key,
        name,
        is_new,
        since,
        changes,
        unchanged_fields,
        unchanged_secrets,
        standing,
        left_out,
    } = item;
    let (changed_at, found_at) = match since {
        Some(Since::Changed(at)) => (Some(at.to_string()), None),
        Some(Since::Found(at)) => (None, Some(at.to_string())),
        None => (None, None),
    };
    let (standing, why, until) = match standing {
        Standing::Now => ("now", None, None),
        Standing::ComparedFirst => ("compared_first", None, None),
        Standing::InFlight => ("in_flight", None, None),
        Standing::Waits { why, until } => ("waiting", Some(why), *until),
        Standing::Held => ("held", None, None),
        Standing::Parked { why } => ("parked", Some(why), None),
        Standing::Discarded => ("discarded", None, None),
    };
    json!({
        "installation_id": key.installation_id.as_str(),
        "resource_id": key.resource_id.as_str(),
        "name": name,
        "new": is_new,
        "changed_at": changed_at,
        "found_at": found_at,
        "standing": standing,
        "why": why,
        "until": until.map(|until| until.to_string()),
        "changes": changes.iter().map(change).collect::<Vec<_>>(),
        "unchanged_fields": unchanged_fields.iter().map(|field| field.wire_name()).collect::<Vec<_>>(),
        "unchanged_secrets": unchanged_secrets,
        "left_out": left_out
            .iter()
            .map(|(field, why)| json!({"field": field.wire_name(), "why": why.why()}))
            .collect::<Vec<_>>(),
    })
}

fn change(change: &Change) -> Value {
    let Change {
        field,
        path,
        old,
        new,
        in_doubt,
    } = change;
    if *field == Field::Secrets {
        let fingerprint = |side: &Side| match side {
            Side::Secret(fingerprint) => Some(fingerprint.short()),
            Side::Absent | Side::Value(_) => None,
        };
        return json!({
            "field": "secrets",
            "path": path,
            "secret_name": path.strip_prefix("secrets."),
            "old_fingerprint": fingerprint(old),
            "new_fingerprint": fingerprint(new),
            "in_doubt": in_doubt,
        });
    }
    let mut shown = json!({ "field": field.wire_name(), "path": path, "in_doubt": in_doubt });
    // Absent is not null: the property is left out.
    for (name, side) in [("old", old), ("new", new)] {
        if let Side::Value(value) = side {
            shown[name] = value.clone();
        }
    }
    shown
}

fn unusable_row(row: &UnusableRow) -> Value {
    let UnusableRow {
        installation_id,
        resource_id,
        problem,
    } = row;
    json!({
        "installation_id": installation_id,
        "resource_id": resource_id,
        "column": problem.column,
        "problem": problem.problem,
        "accepted": problem.accepted,
    })
}
