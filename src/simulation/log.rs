//! What happened, in words: hashed always, kept when asked for.

use std::fmt::{self, Write as _};

use crate::model::Timestamp;

use super::executor::BEGINNING;

/// How many bytes are gathered before they are hashed.
const HASHED_AT_ONCE: usize = 16 * 1024;

/// The event log of one trial.
pub(super) struct Log {
    hasher: blake3::Hasher,
    /// Events that are not hashed yet, a line each.
    buffer: String,
    kept: Option<Vec<String>>,
    events: u64,
}

impl Log {
    pub(super) fn new(keep: bool) -> Self {
        Self {
            hasher: blake3::Hasher::new(),
            buffer: String::with_capacity(HASHED_AT_ONCE * 2),
            kept: keep.then(Vec::new),
            events: 0,
        }
    }

    /// Writes down one event.
    pub(super) fn say(&mut self, now: Timestamp, event: fmt::Arguments<'_>) {
        let begin = self.buffer.len();
        let since = now.since(BEGINNING).as_millis();
        let _ = write!(
            self.buffer,
            "{:>5}.{:03} s  {event}",
            since / 1000,
            since % 1000
        );
        self.events += 1;
        if let Some(kept) = &mut self.kept {
            kept.push(self.buffer[begin..].to_owned());
        }
        self.buffer.push('\n');
        if self.buffer.len() >= HASHED_AT_ONCE {
            self.hash_buffer();
        }
    }

    fn hash_buffer(&mut self) {
        self.hasher.update(self.buffer.as_bytes());
        self.buffer.clear();
    }

    /// Stands for everything that was written down.
    pub(super) fn hash(&mut self) -> blake3::Hash {
        self.hash_buffer();
        self.hasher.finalize()
    }

    pub(super) const fn events(&self) -> u64 {
        self.events
    }

    /// The events that were kept, oldest first.
    pub(super) fn lines(&mut self) -> Vec<String> {
        self.kept.take().unwrap_or_default()
    }
}
