//! The poll of a change feed: reads the resources that it names, as they are now.

use std::sync::atomic::Ordering;

use crate::model::Origin;
use crate::store::PollProgress;

use super::page::{Duplicates, Position};
use super::{PassError, PollReport, Reconciler};

impl Reconciler {
    /// Reads the rows of all resources that were added to the feed since the last poll.
    pub(super) async fn poll_feed(&self) -> Result<PollReport, PassError> {
        let started_at = self.clock.now();
        let identity = self.source.identity().await?.id;
        let progress = self.store.progress().await?;
        let (previous, swept) = (progress.poll, progress.sweep);
        let mut report = PollReport::default();
        if previous
            .as_ref()
            .is_some_and(|previous| previous.identity != identity && previous.cursor.is_some())
        {
            self.call_for_sweep(
                "the source is another database than before, or another change feed",
            );
        }
        let mut from = previous
            .filter(|previous| previous.identity == identity)
            .and_then(|previous| previous.cursor);
        loop {
            let page = self
                .source
                .feed_page(from.as_deref(), self.settings.page_rows)
                .await?;
            if let Some(why) = page.lost {
                self.call_for_sweep(why);
            }
            let has_moved = from.as_ref() != Some(&page.position);
            let is_last = !page.more;
            let progress = PollProgress {
                cursor: Some(page.position.clone()),
                identity: identity.clone(),
                completed_at: is_last.then_some(started_at),
                rows: report.counts.rows + page.rows.len() as u64,
            };
            let undecided = is_last && self.poll_undecided.load(Ordering::Relaxed);
            let position = Position {
                poll: Some(progress),
                sweep: self.owed(swept.as_ref(), started_at),
                keep: has_moved || undecided,
                ends_pass: is_last,
            };
            // All rows of a resource are read together.
            let done = self
                .commit_page(page.rows, Origin::Poll, Duplicates::InThisPage, position)
                .await?;
            report.counts.add(&done.counts);
            report.notices.extend(done.notices);
            from = Some(page.position);
            if is_last {
                report.duration = self.clock.now().since(started_at);
                return Ok(report);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::fixture::{Bench, START, row};

    async fn polled(reconciler: &Reconciler) -> PollReport {
        let report = reconciler.poll().await.expect("it can be read");
        report.expect("there is a feed")
    }

    #[tokio::test]
    async fn a_feed_is_read_to_its_end_and_from_there_the_next_time() {
        let bench = Bench::new(["a", "b", "c"].map(|id| row(id, "1", 1)));
        let reconciler = bench.reconciler(|_| {});
        bench.table.feeds(&["a", "b", "a", "c", "gone"], None);
        let report = polled(&reconciler).await;
        assert_eq!(
            bench.table.asked(),
            [
                "identity",
                "feed 2 from None",
                "feed 2 from Some(\"2\")",
                "feed 2 from Some(\"4\")"
            ]
        );
        assert_eq!((report.counts.rows, report.counts.adopted), (4, 3));
        assert_eq!(report.needs_sweep, None);
        let progress = bench.progress().await.poll.expect("there was one");
        assert_eq!(progress.cursor.as_deref(), Some("5"));
        assert_eq!((progress.rows, progress.completed_at), (4, Some(START)));
        let before = reconciler.overtakes.load(Ordering::Relaxed);
        assert_eq!(polled(&reconciler).await.counts.rows, 0);
        assert_eq!(bench.table.asked(), ["identity", "feed 2 from Some(\"5\")"]);
        let after = reconciler.overtakes.load(Ordering::Relaxed);
        assert_eq!(after, before, "nothing has moved");
        // As after a restart: what was left undecided is decided on.
        let restarted = bench.reconciler(|_| {});
        polled(&restarted).await;
        assert_eq!(restarted.overtakes.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn the_feed_of_another_database_is_read_from_its_beginning_and_so_is_every_row() {
        let bench = Bench::new([row("a", "1", 1)]);
        let reconciler = bench.reconciler(|_| {});
        bench.table.feeds(&["a"], None);
        assert_eq!(polled(&reconciler).await.needs_sweep, None);
        bench.table.becomes("restored");
        bench.table.asked();
        let why = "the source is another database than before, or another change feed";
        assert_eq!(polled(&reconciler).await.needs_sweep, Some(why));
        assert_eq!(bench.table.asked(), ["identity", "feed 2 from None"]);
        bench.table.feeds(&["a"], Some("entries were deleted"));
        let why = polled(&reconciler).await.needs_sweep;
        assert_eq!(why, Some("entries were deleted"));
    }
}
