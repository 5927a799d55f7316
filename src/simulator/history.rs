//! What took effect on a resource, in order, and whether a field ever went back.
//!
//! Pure. Holds fingerprints in the place of secret values.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use serde::Serialize;
use serde_json::Value;

use super::json::same;
use super::schema::Field;

/// One change that took effect.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Applied {
    /// When it took effect.
    #[serde(skip)]
    pub at: SystemTime,
    /// The number of the request that brought it; `None` for seeded state.
    pub request: Option<u64>,
    /// The fields written and the values they had afterwards, null for none; secrets as fingerprints by name.
    pub fields: BTreeMap<Field, Value>,
}

/// A field that took a value again which it had left before.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Regression {
    /// The field.
    pub field: Field,
    /// The request that brought the older value back; `None` for seeded state.
    pub request: Option<u64>,
    /// The value it had until then.
    pub from: Value,
    /// The older value.
    pub to: Value,
}

/// The times a field took a value again which it had left before; values are compared by meaning.
pub(super) fn regressions(history: &[Applied]) -> Vec<Regression> {
    let mut held: HashMap<Field, Vec<&Value>> = HashMap::new();
    let mut found = Vec::new();
    for applied in history {
        for (field, value) in &applied.fields {
            let values = held.entry(*field).or_default();
            match values.last() {
                Some(current) if same(current, value) => continue,
                Some(current) if values.iter().any(|older| same(older, value)) => {
                    found.push(Regression {
                        field: *field,
                        request: applied.request,
                        from: (*current).clone(),
                        to: value.clone(),
                    });
                }
                _ => {}
            }
            values.push(value);
        }
    }
    found
}
