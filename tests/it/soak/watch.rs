//! Follows the requests as they end, and remembers how far each resource had come, since no journal holds hours.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use reconciled::simulator::{Entry, Remote};
use tokio::{sync::broadcast::error::RecvError, task::JoinHandle};

/// Follows until it is dropped.
pub(super) struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// What Vercel saw.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    requests: u64,
    applied: u64,
    late: u64,
    faults: u64,
    /// Requests that passed unseen.
    pub(super) missed: u64,
    /// Requests that took effect when they were sent, and brought an older version than one before them.
    pub(super) went_back: Vec<String>,
    newest: HashMap<String, u64>,
}

impl Watch {
    /// Follows from now on.
    pub(super) fn over(remote: &Remote) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (mut entries, into) = (remote.observe(), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            loop {
                let entry = entries.recv().await;
                let mut seen = into.lock().unwrap_or_else(PoisonError::into_inner);
                match entry {
                    Ok(entry) => seen.take(&entry),
                    Err(RecvError::Lagged(missed)) => seen.missed += missed,
                    Err(RecvError::Closed) => return,
                }
            }
        });
        Self { seen, task }
    }

    /// What it saw so far.
    pub(super) fn seen(&self) -> Seen {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    fn take(&mut self, entry: &Entry) {
        if entry.late {
            // Its request was counted when its connection was closed. That it may go back is what late means.
            self.late += 1;
            return;
        }
        self.requests += 1;
        self.applied += u64::from(entry.applied);
        self.faults += u64::from(entry.fault.is_some());
        let version = entry
            .body
            .as_ref()
            .and_then(|body| body.get("metadata")?.get("version")?.as_u64());
        let (Some(version), Some(key), true) = (version, entry.key(), entry.applied) else {
            return;
        };
        let newest = self.newest.entry(key.to_string()).or_default();
        if version < *newest {
            self.went_back
                .push(format!("{key}: {version} after {newest}: {entry}"));
        }
        *newest = version.max(*newest);
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            requests,
            applied,
            late,
            faults,
            ..
        } = self;
        write!(
            f,
            "{requests} requests, {applied} of them applied, {late} late, {faults} struck by a fault"
        )
    }
}
