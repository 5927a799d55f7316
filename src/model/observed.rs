//! What `GET …/resources/{id}` shows of a resource.

use serde_json::Value;

use super::{Field, Json, SharedMap};

/// The observable fields as Vercel holds them now; never secrets, extras, ownership or plan details.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Name, status, metadata and notification; a notification that is not shown is `null`, any other field is absent.
    pub values: SharedMap<Field, Json>,
    /// The id of the billing plan, if one is shown.
    pub billing_plan_id: Option<String>,
}

impl Observed {
    /// Reads the body of a GET answer; `None` when it is no object.
    #[must_use]
    pub fn from_body(body: &Value) -> Option<Self> {
        let shown = body.as_object()?;
        let mut values = SharedMap::new();
        for field in Field::ALL.into_iter().filter(|field| field.is_observable()) {
            let value = shown
                .get(field.wire_name())
                .filter(|value| !value.is_null() && value.as_str() != Some(""));
            match (field, value) {
                (Field::Notification, None) => values.insert(field, Json::null()),
                (_, Some(value)) => values.insert(field, Json::from_value(value)),
                (_, None) => None,
            };
        }
        let billing_plan_id = shown
            .get("billingPlanId")
            .and_then(Value::as_str)
            .map(str::to_owned);
        Some(Self {
            values,
            billing_plan_id,
        })
    }

    /// Whether Vercel shows exactly `desired` for this field; false for a field that cannot be seen.
    ///
    /// An object that Vercel does not show equals an empty one.
    #[must_use]
    pub fn shows(&self, field: Field, desired: &Json) -> bool {
        match self.values.get(&field) {
            Some(shown) => shown == desired,
            None => field == Field::Metadata && desired.as_str() == "{}",
        }
    }
}
