//! Many rows as parameters of one statement: a column is an array.

use std::borrow::Cow;

use crate::model::ResourceKey;

/// Keys as two columns.
pub(super) fn keys<'a>(
    keys: impl IntoIterator<Item = &'a ResourceKey>,
) -> (Vec<&'a str>, Vec<&'a str>) {
    keys.into_iter()
        .map(|key| (key.installation_id.as_str(), key.resource_id.as_str()))
        .unzip()
}

/// Free text as PostgreSQL can hold it: it has no NUL.
pub(super) fn text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// A limit.
pub(super) fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
