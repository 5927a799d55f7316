//! What a job carries and what it does: one change of a resource, one PATCH.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::Client;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::client;
use crate::provider;

/// The payload of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Change {
    installation: String,
    resource: String,
    body: String,
}

impl Change {
    /// The change of the resource with this number.
    pub(crate) fn of(n: u64) -> Self {
        let (installation, resource) = provider::ids(n, provider::INSTALLATIONS);
        Self {
            installation,
            resource,
            body: provider::body(n),
        }
    }
}

/// What the jobs of a worker share: the client, and how many of them have not been answered.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    client: Client,
    base: Arc<str>,
    left: Arc<AtomicU64>,
    finished: Arc<Notify>,
}

impl Sender {
    /// Sends to `base` until `count` changes were answered.
    pub(crate) fn new(base: &str, in_flight: u64, count: u64) -> Self {
        Self {
            client: client::client(in_flight),
            base: base.into(),
            left: Arc::new(AtomicU64::new(count)),
            finished: Arc::new(Notify::new()),
        }
    }

    /// Does one job.
    pub(crate) async fn send(&self, change: Change) {
        let Change {
            installation,
            resource,
            body,
        } = change;
        client::patch(&self.client, &self.base, &installation, &resource, body).await;
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.finished.notify_one();
        }
    }

    /// Waits for the last answer.
    pub(crate) async fn finished(&self) {
        self.finished.notified().await;
    }
}
