//! The baseline: every row taken as acknowledged, or compared with what Vercel shows. A person asks for it.
//!
//! It reads like a sweep and decides like no pass does: neither the guard nor the cursor takes part.

use std::collections::BTreeMap;

use crate::model::{InstallationId, Origin, RawRow, ResourceKey};
use crate::plan::baseline::Baseline;
use crate::plan::{Decision, guard};
use crate::store::{Batch, Glance, StoreError};

use super::page::Sorted;
use super::{PassError, QuarantineNotice, Reconciler};

/// The most unusable rows that a report names.
const NOTICES_MAX: usize = 100;

/// What a baseline has done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BaselineReport {
    /// Rows read.
    pub rows: u64,
    /// Rows taken as acknowledged.
    pub adopted: u64,
    /// Rows that are compared with what Vercel shows before anything of them is sent.
    pub to_compare: u64,
    /// Rows left as they were: acknowledged before, or in flight.
    pub left: u64,
    /// Unusable rows.
    pub quarantined: u64,
    /// The first of them that are new or changed.
    pub notices: Vec<QuarantineNotice>,
}

impl Reconciler {
    /// Brings every row of the source to the baseline, or those of one installation; `progress` is called after each page, and `begun` is
    /// waited for once: when the first row was read, before anything of it is committed.
    ///
    /// # Errors
    /// The source or the state failed. What was committed stays; the same again goes through the rest.
    pub async fn baseline(
        &self,
        baseline: Baseline,
        only: Option<&InstallationId>,
        begun: impl Future<Output = Result<(), StoreError>>,
        mut progress: impl FnMut(&BaselineReport) + Send,
    ) -> Result<BaselineReport, PassError> {
        let mut report = BaselineReport::default();
        let mut begun = Some(begun);
        let mut after = None;
        loop {
            let page = self
                .source
                .sweep_page(after.as_ref(), self.settings.page_rows)
                .await?;
            let mut rows = page.rows;
            if let Some(only) = only {
                // A row without a usable id belongs to no installation that could be named.
                rows.retain(|row| row.key().is_ok_and(|key| key.installation_id == *only));
            }
            if !rows.is_empty()
                && let Some(begun) = begun.take()
            {
                begun.await?;
            }
            self.bring(rows, baseline, &mut report).await?;
            progress(&report);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(report),
            }
        }
    }

    async fn bring(
        &self,
        rows: Vec<RawRow>,
        baseline: Baseline,
        report: &mut BaselineReport,
    ) -> Result<(), PassError> {
        report.rows += rows.len() as u64;
        let mut sorted = Sorted::default();
        let mut by_key: BTreeMap<ResourceKey, Vec<RawRow>> = BTreeMap::new();
        for row in rows {
            match row.key() {
                Ok(key) => by_key.entry(key).or_default().push(row),
                Err(unusable) => self.take_unusable(&mut sorted, &row, &unusable),
            }
        }
        for (key, rows) in &by_key {
            let hash = self.hash(rows);
            self.take(&mut sorted, key, rows, hash, Glance::default());
        }
        let quarantined = sorted.quarantined.clone();
        let batch = Batch {
            now: self.clock.now(),
            origin: Origin::Baseline,
            policy: self.settings.policy,
            observations: sorted.observations.into_iter().map(|(o, _)| o).collect(),
            quarantined: sorted.quarantined,
            missing: Vec::new(),
            poll: None,
            sweep: None,
            // A person has decided already.
            guard: guard::Limits::default(),
            ends_pass: true,
            uninstall_missing_since: None,
            baseline: Some(baseline),
            watch: self.watch,
            claim: None,
        };
        let reconciled = self.commit(batch).await?;
        for decision in &reconciled.decisions {
            match decision {
                Decision::Adopted => report.adopted += 1,
                Decision::Enqueued | Decision::Folded => report.to_compare += 1,
                Decision::Unchanged | Decision::InSync | Decision::Withdrawn => report.left += 1,
            }
        }
        report.quarantined += sorted.counts.quarantined;
        let room = NOTICES_MAX.saturating_sub(report.notices.len());
        let new = reconciled.newly_quarantined.into_iter();
        let rows = new.filter_map(|index| quarantined.get(index).cloned());
        report
            .notices
            .extend(rows.take(room).map(|row| QuarantineNotice { row }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::ready;

    use super::*;
    use crate::model::RawText;
    use crate::plan::baseline::Way;
    use crate::reconcile::fixture::{Bench, Failure, row};

    fn of(way: Way, all: bool) -> Baseline {
        Baseline { way, all }
    }

    /// Five resources of two installations, one of them in two rows and one unusable.
    fn rows() -> Vec<RawRow> {
        let mut other = row("e", "1", 1);
        other.installation_id = RawText::text("icfg_2");
        let mut unusable = row("d", "1", 1);
        unusable.columns[1].1 = RawText::Unreadable("is no text");
        vec![
            row("a", "1", 1),
            row("b", "1", 1),
            row("c", "1", 1),
            row("c", "2", 1),
            unusable,
            other,
        ]
    }

    #[tokio::test]
    async fn a_baseline_tells_what_became_of_each_row() {
        let bench = Bench::new(rows());
        let reconciler = bench.reconciler(|_| {});
        let mut seen = Vec::new();
        let adopted = reconciler
            .baseline(of(Way::Adopt, false), None, ready(Ok(())), |report| {
                seen.push(report.rows);
            })
            .await
            .expect("it can be read");
        assert_eq!(seen, [2, 4, 6]);
        let notices = adopted.notices.clone();
        assert_eq!(notices.len(), 2);
        let expected = BaselineReport {
            rows: 6,
            adopted: 3,
            quarantined: 3,
            notices,
            ..BaselineReport::default()
        };
        assert_eq!(adopted, expected);
        // Once more it is left as it was, unless all is asked for.
        for (baseline, only, expected) in [
            (of(Way::Adopt, false), None, (6, 0, 0, 3)),
            (of(Way::Compare, false), None, (6, 0, 0, 3)),
            (of(Way::Compare, true), Some("icfg_2"), (1, 0, 1, 0)),
            (of(Way::Compare, true), None, (6, 0, 3, 0)),
            (of(Way::Adopt, true), Some("icfg_3"), (0, 0, 0, 0)),
        ] {
            let only = only.map(|id| InstallationId::new(id).expect("an id"));
            let report = reconciler
                .baseline(baseline, only.as_ref(), ready(Ok(())), |_| {})
                .await;
            let report = report.expect("it can be read");
            let found = (report.rows, report.adopted, report.to_compare, report.left);
            assert_eq!(found, expected, "{baseline:?} {only:?}");
            assert_eq!(report.notices.len(), 0);
        }
    }

    #[tokio::test]
    async fn a_baseline_has_begun_once_a_row_was_read_and_before_anything_is_committed() {
        let begun = Cell::new(0);
        let bench = Bench::new(rows());
        let reconciler = bench.reconciler(|_| {});
        let note = || async {
            begun.set(begun.get() + 1);
            Ok(())
        };
        let adopt = of(Way::Adopt, false);
        let nobody = InstallationId::new("icfg_3").expect("an id");
        let ended = reconciler.baseline(adopt, Some(&nobody), note(), |_| {});
        ended.await.expect("it can be read");
        bench.table.fails(Some(Failure::Away));
        let ended = reconciler.baseline(adopt, None, note(), |_| {}).await;
        assert!(ended.is_err() && begun.get() == 0, "{ended:?}");
        bench.table.fails(None);
        let refused = async { Err(StoreError::WatchLost) };
        let ended = reconciler.baseline(adopt, None, refused, |_| {}).await;
        assert!(ended.is_err(), "{ended:?}");
        let ended = reconciler.baseline(adopt, None, note(), |_| {}).await;
        let adopted = ended.expect("it can be read").adopted;
        assert_eq!((adopted, begun.get()), (3, 1), "nothing was before");
    }

    #[tokio::test]
    async fn a_report_names_the_first_hundred_unusable_rows() {
        let unusable = |id: u32| RawRow {
            resource_id: RawText::Null,
            ..row("", &id.to_string(), 1)
        };
        let bench = Bench::new((0..103).map(unusable));
        let reconciler = bench.reconciler(|settings| settings.page_rows = 10);
        let baseline = reconciler.baseline(of(Way::Adopt, false), None, ready(Ok(())), |_| {});
        let report = baseline.await.expect("it can be read");
        assert_eq!((report.quarantined, report.notices.len()), (103, 100));
    }
}
