//! Passes over the rows of a sweep's page that are as they were: both sides walked in one order, each row hashed where it lies.
//!
//! Only rows in the byte order of their keys are compared so. Such rows are no two of one resource, and what the state has
//! between the first and the last of them comes in one answer. All other rows are left to be looked at one by one.

use crate::model::{RawRow, RawRows, RowHasher};

use super::{PageCounts, PassError, Reconciler};

/// What a state may have between two rows of a page beyond the page's own resources; with more, the rows are looked up by key.
const STRANGERS_MAX: u32 = 500;

/// The rows of a page that are not as they were.
#[derive(Debug, Default)]
pub(super) struct Skimmed {
    pub(super) rest: Vec<RawRow>,
    /// The rows that were passed over.
    pub(super) counts: PageCounts,
}

impl Reconciler {
    /// Takes out of a page what needs no further look.
    pub(super) async fn skim(
        &self,
        rows: &RawRows,
        is_ordered: bool,
    ) -> Result<Skimmed, PassError> {
        let mut skimmed = Skimmed::default();
        let glances = match bounds(rows).filter(|_| is_ordered) {
            Some((first, last)) => {
                let most = u32::try_from(rows.len()).unwrap_or(u32::MAX);
                let limit = most.saturating_add(STRANGERS_MAX);
                self.store.glance_between(first, last, limit).await?
            }
            None => None,
        };
        let Some(glances) = glances else {
            skimmed.rest = rows.to_rows();
            return Ok(skimmed);
        };
        let hasher = RowHasher::new(&self.key, self.settings.epoch());
        let mut known = glances.iter().peekable();
        for row in rows.iter() {
            let key = row.ids();
            while known.next_if(|(other, _)| key > Some(*other)).is_some() {}
            let glance = known.next_if(|(other, _)| key == Some(*other));
            let is_settled = |hash| glance.is_some_and(|(_, glance)| glance.is_settled(hash));
            if glance.is_some() && is_settled(row.hash(&hasher)) {
                skimmed.counts.rows += 1;
                skimmed.counts.known += 1;
                skimmed
                    .counts
                    .stands(glance.and_then(|(_, glance)| glance.entry));
            } else {
                skimmed.rest.push(row.to_row());
            }
        }
        Ok(skimmed)
    }
}

/// Whether a page came in the byte order of its keys, all texts: then no two of its rows name one resource.
pub(super) fn is_ordered(rows: &RawRows) -> bool {
    let mut before = None;
    rows.iter().all(|row| {
        let key = row.ids();
        let rises = key.is_some() && key > before;
        before = key;
        rises
    })
}

/// Both ids of a row.
type Ids<'a> = (&'a str, &'a str);

/// The first and the last key.
fn bounds(rows: &RawRows) -> Option<(Ids<'_>, Ids<'_>)> {
    Some((rows.iter().next()?.ids()?, rows.last()?.ids()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RawText;

    fn page(keys: &[(&str, &str)]) -> RawRows {
        let row = |(installation, resource): &(&str, &str)| RawRow {
            installation_id: RawText::text(*installation),
            resource_id: RawText::text(*resource),
            cursor: None,
            columns: Vec::new(),
        };
        keys.iter().map(row).collect()
    }

    #[test]
    fn rows_are_in_order_only_if_no_key_stands_twice() {
        assert!(is_ordered(&page(&[])));
        assert!(is_ordered(&page(&[("a", "B"), ("a", "a"), ("b", "A")])));
        assert!(!is_ordered(&page(&[("a", "a"), ("a", "B")])));
        assert!(!is_ordered(&page(&[("a", "a"), ("a", "a")])));
        let mut with_null = page(&[("a", "a")]);
        with_null.push(&RawRow {
            installation_id: RawText::text("b"),
            resource_id: RawText::Null,
            cursor: None,
            columns: Vec::new(),
        });
        assert!(!is_ordered(&with_null));
    }
}
