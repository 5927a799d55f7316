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
        let previous = self.store.progress().await?.poll;
        let mut report = PollReport::default();
        if previous
            .as_ref()
            .is_some_and(|previous| previous.identity != identity && previous.cursor.is_some())
        {
            report.needs_sweep =
                Some("the source is another database than before, or another change feed");
        }
        let mut from = previous
            .filter(|previous| previous.identity == identity)
            .and_then(|previous| previous.cursor);
        loop {
            let page = self
                .source
                .feed_page(from.as_deref(), self.settings.page_rows)
                .await?;
            report.needs_sweep = report.needs_sweep.or(page.lost);
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
                sweep: None,
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
