//! From rows to entries: polls, sweeps and single re-reads of the source.
//!
//! A pass reads pages, drops what is unchanged by hash, decodes the rest and has the store decide and advance the cursor in
//! one transaction per page. It never sends. All passes of one [`Reconciler`] run one after another in its owner's task, so
//! that an older reading is never committed after a newer one.

mod page;
mod poll;
mod sweep;

use std::sync::Arc;

use crate::clock::Clock;
use crate::model::{Field, FieldSet, FingerprintKey};
use crate::plan::Policy;
use crate::source::{Source, SourceError};
use crate::store::{Store, StoreError};

pub use page::{PageCounts, QuarantineNotice};
pub use poll::PollReport;
pub use sweep::{Sweep, SweepReport, SweepStep};

/// The most rows in a page: one transaction on each side.
pub const PAGE_ROWS: u32 = 500;

/// What passes depend on.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// What a row means for its resource.
    pub policy: Policy,
    /// The fields left to Vercel.
    pub ignored: FieldSet,
    /// Rows per page, from 1 to [`PAGE_ROWS`] or more.
    pub page_rows: u32,
}

impl Settings {
    /// Stands for everything here that changes what an unchanged row means.
    pub(crate) fn epoch(&self) -> u64 {
        Field::ALL
            .into_iter()
            .filter(|field| self.ignored.contains(*field))
            .fold(1, |epoch, f| epoch | (2 << f as u64))
    }
}

/// Why a pass ended early. What it had committed stays; the next pass goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The source could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Runs passes over the source.
pub struct Reconciler {
    source: Arc<dyn Source>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    key: FingerprintKey,
    settings: Settings,
}

impl Reconciler {
    /// A reconciler between a source and a state.
    #[must_use]
    pub fn new(
        source: Arc<dyn Source>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        key: FingerprintKey,
        settings: Settings,
    ) -> Self {
        Self {
            source,
            store,
            clock,
            key,
            settings,
        }
    }

    /// Changes what rows mean from the next pass on.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }
}
