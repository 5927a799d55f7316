//! What differs in one resource, down to the property. Pure.
//!
//! A patch carries metadata, extras and plans whole; people are shown the properties in them that change.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::model::{Field, Fingerprint, Patch, Record, SecretsPatch, SharedMap, Snapshot};

/// One line of the diff.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    /// The field.
    pub(crate) field: Field,
    /// The field, the property in it or the secret: `billingPlan.cost`, `secrets.DATABASE_URL`.
    pub(crate) path: String,
    /// What Vercel last acknowledged.
    pub(crate) old: Side,
    /// What the source says.
    pub(crate) new: Side,
    /// Vercel may hold another value than the acknowledged one: an earlier request's outcome is unknown.
    pub(crate) in_doubt: bool,
}

/// One side of a change.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Side {
    /// Nothing there.
    Absent,
    /// A value.
    Value(Value),
    /// A secret, as far as it may be shown.
    Secret(Fingerprint),
}

/// The differences that `patch` closes, in the order of the fields.
pub(crate) fn changes(record: &Record, patch: &Patch) -> Vec<Change> {
    let Record {
        acknowledged,
        doubt,
        ..
    } = record;
    let mut changes = Vec::new();
    for field in patch.fields().iter() {
        if field == Field::Secrets {
            let secrets = patch.secrets.as_ref().expect("the patch has the field");
            changes.extend(secret_changes(record, secrets));
            continue;
        }
        let new = patch
            .values
            .get(&field)
            .expect("the patch has the field")
            .to_value();
        let old = acknowledged
            .values
            .get(&field)
            .map(crate::model::Json::to_value);
        let in_doubt = doubt.fields.contains_key(&field);
        let before = changes.len();
        differ(
            field.wire_name(),
            old.as_ref(),
            Some(&new),
            &mut |path, old, new| {
                changes.push(Change {
                    field,
                    path,
                    old,
                    new,
                    in_doubt,
                });
            },
        );
        if changes.len() == before {
            // Equal to what was acknowledged, and sent again because of the doubt alone.
            let value = Side::Value(new);
            let path = field.wire_name().to_owned();
            changes.push(Change {
                field,
                path,
                old: value.clone(),
                new: value,
                in_doubt,
            });
        }
    }
    changes
}

fn secret_changes(record: &Record, secrets: &SecretsPatch) -> Vec<Change> {
    let empty = SharedMap::new();
    let held = record.acknowledged.secrets.as_ref().unwrap_or(&empty);
    let desired = secrets.named();
    let doubt = &record.doubt.secrets;
    let removed = held
        .keys()
        .chain(doubt.keys())
        .filter(|name| !desired.contains_key(*name));
    let names: std::collections::BTreeSet<_> = match secrets {
        SecretsPatch::Partial(named) => named.keys().collect(),
        SecretsPatch::Complete(named) => named.keys().chain(removed).collect(),
    };
    let side = |set: &BTreeMap<_, Fingerprint>, name| {
        set.get(name).map_or(Side::Absent, |f| Side::Secret(*f))
    };
    let mut changes: Vec<Change> = names
        .into_iter()
        .map(|name| Change {
            field: Field::Secrets,
            path: format!("secrets.{name}"),
            old: side(held, name),
            new: side(desired, name),
            in_doubt: doubt.contains_key(name),
        })
        // A complete array repeats what is equal; that is no change.
        .filter(|change| change.old != change.new || change.in_doubt)
        .collect();
    if changes.is_empty() {
        // The set itself is what differs: empty now, and never acknowledged.
        changes.push(Change {
            field: Field::Secrets,
            path: "secrets".to_owned(),
            old: Side::Absent,
            new: Side::Value(Value::Array(Vec::new())),
            in_doubt: false,
        });
    }
    changes
}

/// Calls `found` for the innermost properties that differ; arrays of different lengths are shown whole.
fn differ(
    path: &str,
    old: Option<&Value>,
    new: Option<&Value>,
    found: &mut impl FnMut(String, Side, Side),
) {
    match (old, new) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let names: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
            for name in names {
                differ(
                    &format!("{path}.{}", property(name)),
                    old.get(name),
                    new.get(name),
                    found,
                );
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                differ(&format!("{path}[{index}]"), Some(old), Some(new), found);
            }
        }
        (old, new) if old == new => {}
        (old, new) => {
            let side = |value: Option<&Value>| {
                value.map_or(Side::Absent, |value| Side::Value(value.clone()))
            };
            found(path.to_owned(), side(old), side(new));
        }
    }
}

/// A property's name in a path; quoted when its own characters would mislead.
fn property(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '$');
    if !name.is_empty() && name.chars().all(plain) {
        name.to_owned()
    } else {
        super::super::text::visible(&Value::from(name).to_string())
    }
}

/// What `desired` has besides the changes: names of fields, and how many secrets.
pub(crate) fn unchanged(desired: &Snapshot, changes: &[Change]) -> (Vec<Field>, usize) {
    let changed = |field| changes.iter().any(|change| change.field == field);
    let fields = desired
        .values
        .keys()
        .copied()
        .filter(|field| !changed(*field))
        .collect();
    let secrets = desired.secrets.iter().flatten().filter(|(name, _)| {
        !changes
            .iter()
            .any(|change| change.path.strip_prefix("secrets.") == Some(name.as_str()))
    });
    (fields, secrets.count())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{Doubt, Json, Mark, ResourceKey, SecretName};
    use crate::plan::diff;

    fn snapshot(values: Value, secrets: &[(&str, u8)]) -> Snapshot {
        let values = values.as_object().expect("an object").iter();
        Snapshot {
            values: values
                .map(|(name, value)| {
                    (
                        Field::from_wire_name(name).expect("a field"),
                        Json::from_value(value),
                    )
                })
                .collect(),
            secrets: Some(
                secrets
                    .iter()
                    .map(|(name, byte)| {
                        (
                            SecretName::new(name).expect("a name"),
                            Fingerprint::from_bytes([*byte; 16]),
                        )
                    })
                    .collect(),
            ),
        }
    }

    fn shown(acknowledged: Snapshot, desired: &Snapshot, doubt: Doubt) -> Vec<String> {
        let key = ResourceKey::new("icfg_1", "res_1").expect("ids");
        let record = Record {
            acknowledged,
            doubt,
            ..Record::new(key)
        };
        let patch = diff(desired, &record.acknowledged, &record.doubt);
        let side = |side: &Side| match side {
            Side::Absent => "-".to_owned(),
            Side::Value(value) => value.to_string(),
            Side::Secret(fingerprint) => fingerprint.short(),
        };
        let line = |c: &Change| {
            let doubt = if c.in_doubt { " ?" } else { "" };
            format!("{} {} > {}{doubt}", c.path, side(&c.old), side(&c.new))
        };
        changes(&record, &patch).iter().map(line).collect()
    }

    #[test]
    fn plans_and_metadata_show_the_properties_that_differ() {
        let old = snapshot(
            json!({"billingPlan": {"id": "pro", "type": "prepayment", "name": "Pro", "cost": "$9",
                    "details": [{"label": "RAM", "value": "1 GB"}]},
                   "metadata": {"region": "fra", "a.b": 1}}),
            &[],
        );
        let new = snapshot(
            json!({"billingPlan": {"id": "max", "type": "prepayment", "name": "Max",
                    "details": [{"label": "RAM", "value": "4 GB"}]},
                   "metadata": {"region": "fra", "a.b": 2, "tags": []}}),
            &[],
        );
        assert_eq!(
            shown(old, &new, Doubt::default()),
            [
                r#"billingPlan.cost "$9" > -"#,
                r#"billingPlan.details[0].value "1 GB" > "4 GB""#,
                r#"billingPlan.id "pro" > "max""#,
                r#"billingPlan.name "Pro" > "Max""#,
                r#"metadata."a.b" 1 > 2"#,
                "metadata.tags - > []",
            ]
        );
    }

    #[test]
    fn a_complete_array_of_secrets_shows_only_what_changes_in_it() {
        let old = snapshot(json!({}), &[("A", 1), ("B", 2), ("C", 3)]);
        let new = snapshot(json!({}), &[("A", 1), ("B", 9)]);
        assert_eq!(
            shown(old, &new, Doubt::default()),
            ["secrets.B 020202 > 090909", "secrets.C 030303 > -"]
        );
    }

    #[test]
    fn what_is_equal_but_in_doubt_is_shown_once_as_such() {
        let both = snapshot(json!({"status": "ready"}), &[("A", 1)]);
        let doubt = Doubt {
            fields: [(Field::Status, Mark::default())].into(),
            secrets: [(SecretName::new("A").expect("a name"), Mark::default())].into(),
        };
        assert_eq!(
            shown(both.clone(), &both, doubt),
            [
                "secrets.A 010101 > 010101 ?",
                r#"status "ready" > "ready" ?"#
            ]
        );
    }
}
