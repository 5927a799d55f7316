//! What happened, in words: hashed always, kept when asked for.

use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hasher as _};

use crate::model::Timestamp;

use super::executor::BEGINNING;

/// The event log of one trial.
#[derive(Default)]
pub(super) struct Log {
    hasher: DefaultHasher,
    buffer: String,
    kept: Option<Vec<String>>,
    events: u64,
}

impl Log {
    pub(super) fn new(keep: bool) -> Self {
        Self {
            kept: keep.then(Vec::new),
            ..Self::default()
        }
    }

    /// Writes down one event.
    pub(super) fn say(&mut self, now: Timestamp, event: fmt::Arguments<'_>) {
        self.buffer.clear();
        let since = now.since(BEGINNING).as_millis();
        let _ = write!(
            self.buffer,
            "{:>5}.{:03} s  {event}",
            since / 1000,
            since % 1000
        );
        self.hasher.write(self.buffer.as_bytes());
        self.hasher.write_u8(b'\n');
        self.events += 1;
        if let Some(kept) = &mut self.kept {
            kept.push(self.buffer.clone());
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    pub(super) const fn events(&self) -> u64 {
        self.events
    }

    /// The events that were kept, oldest first.
    pub(super) fn lines(&mut self) -> Vec<String> {
        self.kept.take().unwrap_or_default()
    }
}
