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
    use crate::plan::decide::FirstSight;
    use crate::reconcile::Settings;
    use crate::reconcile::fixture::{Bench, key, row, swept};

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

    #[tokio::test]
    async fn rows_that_are_as_they_were_are_passed_over_by_where_they_stand() {
        let bench = Bench::new(["a", "b", "d"].map(|id| row(id, "1", 1)));
        let push = |settings: &mut Settings| settings.policy.first_sight = FirstSight::Push;
        swept(&bench.reconciler(push)).await;
        bench.table.puts(row("e", "1", 1));
        let reconciler = bench.reconciler(|_| {});
        swept(&reconciler).await;
        // The state has `b`, which the page has not.
        let page = ["a", "c", "d", "e"].map(|id| match id {
            "d" => row(id, "2", 1),
            _ => row(id, "1", 1),
        });
        let page: RawRows = page.into_iter().collect();
        let skimmed = reconciler.skim(&page, true).await.expect("in memory");
        let expected = PageCounts {
            rows: 2,
            known: 2,
            equal: 1,
            waiting: 1,
            ..PageCounts::default()
        };
        assert_eq!(skimmed.counts, expected);
        let rest = skimmed.rest.iter().map(|row| row.key().expect("ids"));
        assert_eq!(rest.collect::<Vec<_>>(), [key("c"), key("d")]);
    }

    #[tokio::test]
    async fn a_page_is_looked_up_row_by_row_where_the_state_has_very_many_more_between() {
        let most = STRANGERS_MAX as usize;
        for (strangers, passed) in [(most, 2), (most + 1, 0)] {
            let between = (0..strangers).map(|id| format!("m{id:04}"));
            let ids = ["a".to_owned()]
                .into_iter()
                .chain(between)
                .chain(["z".to_owned()]);
            let bench = Bench::new(ids.map(|id| row(&id, "1", 1)));
            let reconciler = bench.reconciler(|settings| settings.page_rows = 500);
            swept(&reconciler).await;
            let page: RawRows = ["a", "z"].map(|id| row(id, "1", 1)).into_iter().collect();
            let skimmed = reconciler.skim(&page, true).await.expect("in memory");
            assert_eq!(skimmed.counts.rows, passed, "{strangers}");
            assert_eq!(skimmed.rest.len() as u64, 2 - passed, "{strangers}");
        }
    }
}
