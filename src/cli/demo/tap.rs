//! Listens to the daemon's log on its way into the file.

use std::fs::File;
use std::io::{self, Write};

use serde_json::Value;
use tokio::sync::mpsc;

/// Events that a person watching wants to see, in the daemon's own words.
const NOTABLE: [&str; 8] = [
    "vercel.outage_began",
    "vercel.outage_ended",
    "source.outage_began",
    "installation.paused",
    "installation.resumed",
    "delivery.dead",
    "row.quarantined",
    "guard.held",
];

/// One line of the daemon's log.
#[derive(Debug, Clone)]
pub(super) struct Event(Value);

impl Event {
    /// The stable name.
    pub(super) fn name(&self) -> &str {
        self.0["event"].as_str().unwrap_or_default()
    }

    /// The sentence, if a person watching wants to see it.
    pub(super) fn notable(&self) -> Option<&str> {
        let is_notable = NOTABLE.contains(&self.name()) || self.name() == "panic";
        self.0["message"].as_str().filter(|_| is_notable)
    }

    /// A number that it carries.
    pub(super) fn number(&self, field: &str) -> Option<u64> {
        self.0[field].as_u64()
    }

    /// Whether it is the account of a sweep that found both sides equal.
    pub(super) fn is_converged_sweep(&self) -> bool {
        self.name() == "sweep.completed" && self.0["converged"] == Value::Bool(true)
    }
}

/// Writes every line to the file and hands it on.
pub(super) struct Tap {
    file: File,
    events: mpsc::UnboundedSender<Event>,
}

impl Tap {
    pub(super) fn new(file: File) -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (events, receiver) = mpsc::unbounded_channel();
        (Self { file, events }, receiver)
    }
}

impl Write for Tap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Ok(event) = serde_json::from_slice(bytes) {
            // Nobody may be listening any more.
            let _ = self.events.send(Event(event));
        }
        self.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
