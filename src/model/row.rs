//! One row of the source query: as it was read, and decoded.
//!
//! Decoding is pure and total: every row is either a [`Row`] or an [`Unusable`] that names the column, the problem and what is
//! accepted. Neither prints a column's text.

use std::fmt;

use zeroize::Zeroizing;

use super::id::InvalidId;
use super::value::{InvalidValue, parse_secrets, parse_value};
use super::{
    Field, FieldSet, FingerprintKey, InstallationId, Json, ResourceId, ResourceKey, RowHash,
    RowHasher, SecretSet, SharedMap, Snapshot,
};

/// One column's text as the source gave it.
#[derive(Clone, PartialEq, Eq)]
pub enum RawText {
    /// SQL NULL.
    Null,
    /// The text; zeroed when dropped, since it may be a secret.
    Text(Zeroizing<String>),
    /// The source could not give the value as text: why, without the value.
    Unreadable(&'static str),
}

impl RawText {
    /// A column's text.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(Zeroizing::new(text.into()))
    }

    /// An id as far as it can be shown: cut short, control characters replaced; empty for NULL and unreadable text.
    ///
    /// Meant for the two id columns alone: any other column may hold a secret.
    #[must_use]
    pub fn shown_id(&self) -> String {
        const SHOWN_CHARS_MAX: usize = 512;
        match self {
            Self::Null | Self::Unreadable(_) => String::new(),
            Self::Text(text) => {
                let printable = text
                    .chars()
                    .map(|c| if c.is_control() { '\u{fffd}' } else { c });
                printable.take(SHOWN_CHARS_MAX).collect()
            }
        }
    }

    fn as_text(&self) -> Result<Option<&str>, InvalidValue> {
        match self {
            Self::Null => Ok(None),
            Self::Text(text) => Ok(Some(text)),
            Self::Unreadable(problem) => Err(InvalidValue {
                problem: (*problem).to_owned(),
                accepted: "UTF-8 text of at most 1 MiB",
            }),
        }
    }
}

/// Says only which kind it is.
impl fmt::Debug for RawText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "NULL",
            Self::Text(_) => "text",
            Self::Unreadable(problem) => problem,
        })
    }
}

/// A row as it was read, every column as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRow {
    /// The column `installation_id`.
    pub installation_id: RawText,
    /// The column `resource_id`.
    pub resource_id: RawText,
    /// The column `cursor` in the database's own text form; `None` when it is NULL or not in the query.
    pub cursor: Option<String>,
    /// The managed columns that the query has, in a fixed order.
    pub columns: Vec<(Field, RawText)>,
}

impl RawRow {
    /// A keyed hash of everything that decides what the row means; the cursor is not part of it.
    ///
    /// `epoch` stands for the settings that change what a row means, for instance the fields left to Vercel.
    #[must_use]
    pub fn hash(&self, key: &FingerprintKey, epoch: u64) -> RowHash {
        RowHasher::new(key, epoch).hash_row(self)
    }

    /// The row's key, if both of its texts are ids.
    ///
    /// # Errors
    /// The first of the two columns that is no id.
    pub fn key(&self) -> Result<ResourceKey, Unusable> {
        Ok(ResourceKey {
            installation_id: id(
                &self.installation_id,
                "installation_id",
                InstallationId::new,
            )?,
            resource_id: id(&self.resource_id, "resource_id", ResourceId::new)?,
        })
    }

    /// Decodes the row.
    ///
    /// # Errors
    /// The first column that cannot be used.
    pub fn decode(&self) -> Result<Row, Unusable> {
        let mut row = Row {
            key: self.key()?,
            values: SharedMap::new(),
            secrets: None,
        };
        for (field, text) in &self.columns {
            let unusable = |invalid: InvalidValue| Unusable::value(field.column(), invalid);
            match (field, text.as_text().map_err(unusable)?) {
                // NULL manages nothing, but for the notification it means "none".
                (Field::Notification, None) => {
                    row.values.insert(Field::Notification, Json::null());
                }
                (_, None) => {}
                (Field::Secrets, Some(text)) => {
                    row.secrets = Some(parse_secrets(text).map_err(unusable)?)
                }
                (_, Some(text)) => {
                    row.values
                        .insert(*field, parse_value(*field, text).map_err(unusable)?);
                }
            }
        }
        Ok(row)
    }
}

fn id<T>(
    text: &RawText,
    column: &'static str,
    new: fn(&str) -> Result<T, InvalidId>,
) -> Result<T, Unusable> {
    let text = text
        .as_text()
        .map_err(|invalid| Unusable::value(column, invalid))?;
    let unusable = |problem: String| Unusable {
        column,
        problem,
        accepted: InvalidId::accepted(),
    };
    new(text.ok_or_else(|| unusable("is NULL".to_owned()))?)
        .map_err(|invalid| unusable(invalid.to_string()))
}

/// A usable row: one resource as the source has it now, secret values included.
#[derive(Debug, Clone)]
pub struct Row {
    /// The resource.
    pub key: ResourceKey,
    /// Every managed field but the secrets.
    pub values: SharedMap<Field, Json>,
    /// The complete set of secrets; `None`: not managed for this row.
    pub secrets: Option<SecretSet>,
}

impl Row {
    /// What the row desires, secrets as fingerprints, without the fields left to Vercel.
    #[must_use]
    pub fn desired(&self, key: &FingerprintKey, ignored: FieldSet) -> Snapshot {
        let secrets = self
            .secrets
            .as_ref()
            .map(|secrets| secrets.fingerprints(key));
        Snapshot {
            values: self.values.clone(),
            secrets,
        }
        .without(ignored)
    }
}

/// Why a row cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column `{column}` {problem}; accepted: {accepted}")]
pub struct Unusable {
    /// The column of the source query.
    pub column: &'static str,
    /// What is wrong, without the value.
    pub problem: String,
    /// What is accepted instead.
    pub accepted: &'static str,
}

impl Unusable {
    fn value(column: &'static str, InvalidValue { problem, accepted }: InvalidValue) -> Self {
        Self {
            column,
            problem,
            accepted,
        }
    }

    /// The same resource stands in more than one row.
    #[must_use]
    pub fn duplicate() -> Self {
        Self {
            column: "resource_id",
            problem: "names a resource that another row names too".to_owned(),
            accepted: "one row per installation_id and resource_id",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: Vec<(Field, RawText)>) -> RawRow {
        RawRow {
            installation_id: RawText::text("icfg_1"),
            resource_id: RawText::text("res_1"),
            cursor: Some("1".to_owned()),
            columns,
        }
    }

    #[test]
    fn null_leaves_a_field_unmanaged_but_clears_the_notification() {
        let decoded = row(vec![
            (Field::Status, RawText::Null),
            (Field::Secrets, RawText::Null),
            (Field::Notification, RawText::Null),
        ])
        .decode()
        .expect("usable");
        assert_eq!(decoded.values, [(Field::Notification, Json::null())].into());
        assert!(decoded.secrets.is_none());
    }

    #[test]
    fn an_unusable_row_names_its_column() {
        let mut null_key = row(vec![]);
        null_key.resource_id = RawText::Null;
        let cases = [
            (null_key, "column `resource_id` is NULL"),
            (
                row(vec![(Field::Name, RawText::Unreadable("is no UTF-8"))]),
                "column `name` is no UTF-8",
            ),
            (
                row(vec![(Field::BillingPlan, RawText::text("{}"))]),
                "column `billing_plan` has no `id`",
            ),
        ];
        for (row, problem) in cases {
            let message = row.decode().expect_err("unusable").to_string();
            assert!(message.starts_with(problem), "{message}");
        }
    }

    #[test]
    fn the_hash_tells_null_from_empty_and_columns_apart_but_ignores_the_cursor() {
        let key = FingerprintKey::new([5; 32]);
        let hash = |columns| row(columns).hash(&key, 0);
        let base = hash(vec![(Field::Name, RawText::text(""))]);
        assert_ne!(base, hash(vec![(Field::Name, RawText::Null)]));
        assert_ne!(base, hash(vec![(Field::Status, RawText::text(""))]));
        assert_ne!(
            base,
            row(vec![(Field::Name, RawText::text(""))]).hash(&key, 1)
        );
        let mut moved = row(vec![(Field::Name, RawText::text(""))]);
        moved.cursor = Some("2".to_owned());
        assert_eq!(base, moved.hash(&key, 0));
    }
}
