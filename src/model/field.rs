//! The eight fields of the PATCH body, and sets of them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One top-level property of the body of `update-resource`.
///
/// The order is the order in which a rejected patch is sent field by field: what a customer's production hangs on first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Field {
    /// The credentials that connected projects receive.
    Secrets,
    /// Where the resource is in its life.
    Status,
    /// The plan that the customer pays for.
    BillingPlan,
    /// The name shown to the customer.
    Name,
    /// The message shown on the resource.
    Notification,
    /// The provider's metadata, by the integration's own schema.
    Metadata,
    /// Who owns the resource.
    Ownership,
    /// What else the provider keeps with the resource.
    Extras,
}

impl Field {
    /// All fields, in the order in which they are sent one by one.
    pub const ALL: [Self; 8] = [
        Self::Secrets,
        Self::Status,
        Self::BillingPlan,
        Self::Name,
        Self::Notification,
        Self::Metadata,
        Self::Ownership,
        Self::Extras,
    ];

    /// The property's name in the API.
    #[must_use]
    pub const fn wire_name(self) -> &'static str {
        match self {
            Self::Secrets => "secrets",
            Self::Status => "status",
            Self::BillingPlan => "billingPlan",
            Self::Name => "name",
            Self::Notification => "notification",
            Self::Metadata => "metadata",
            Self::Ownership => "ownership",
            Self::Extras => "extras",
        }
    }

    /// The column of the source query that manages this field.
    #[must_use]
    pub const fn column(self) -> &'static str {
        match self {
            Self::BillingPlan => "billing_plan",
            other => other.wire_name(),
        }
    }

    /// The field of that API name.
    #[must_use]
    pub fn from_wire_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|field| field.wire_name() == name)
    }

    /// The field that this column of the source query manages.
    #[must_use]
    pub fn from_column(column: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.column() == column)
    }

    /// Whether `GET …/resources/{id}` shows the whole value.
    ///
    /// Secrets, extras and ownership are never shown, and of a plan only its id.
    #[must_use]
    pub const fn is_observable(self) -> bool {
        matches!(
            self,
            Self::Status | Self::Name | Self::Notification | Self::Metadata
        )
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.wire_name())
    }
}

/// A set of fields.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FieldSet(u8);

impl FieldSet {
    /// No field.
    pub const EMPTY: Self = Self(0);

    /// This set with `field` in it.
    #[must_use]
    pub const fn with(self, field: Field) -> Self {
        Self(self.0 | (1 << field as u8))
    }

    /// Whether `field` is in the set.
    #[must_use]
    pub const fn contains(self, field: Field) -> bool {
        self.0 & (1 << field as u8) != 0
    }

    /// Whether no field is in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many fields are in the set.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The fields, in sending order.
    pub fn iter(self) -> impl Iterator<Item = Field> {
        Field::ALL
            .into_iter()
            .filter(move |field| self.contains(*field))
    }
}

impl FromIterator<Field> for FieldSet {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> Self {
        fields.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Debug for FieldSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The API names, separated by `, `.
impl fmt::Display for FieldSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, field) in self.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            f.write_str(field.wire_name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_columns_lead_back_to_the_field() {
        for field in Field::ALL {
            assert_eq!(Field::from_wire_name(field.wire_name()), Some(field));
            assert_eq!(Field::from_column(field.column()), Some(field));
            assert_eq!(
                serde_json::to_value(field).expect("a field is JSON"),
                field.wire_name()
            );
        }
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let set: FieldSet = [Field::Extras, Field::Secrets].into_iter().collect();
        assert_eq!(set.to_string(), "secrets, extras");
        assert_eq!(set.len(), 2);
        assert!(!set.contains(Field::Name));
    }
}
