//! Requests under way that write, so that two at once on one resource are noticed.
//!
//! A client that gave up (a timeout) and asks again is not at fault, but its old connection may close a moment after the
//! new request arrived: an overlap therefore counts only if the earlier request does not turn out to be abandoned
//! within a grace period.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::world::ResourceKey;

/// Every writing request under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Airspace {
    flights: Arc<Mutex<HashMap<ResourceKey, Vec<InFlight>>>>,
}

impl Airspace {
    /// Registers a request; it ends when the flight is landed, or dropped because its client left.
    pub(super) fn take_off(&self, key: &ResourceKey, request: u64) -> Flight {
        let (ended, watched) = watch::channel(false);
        let mut flights = self.lock();
        let others = flights.entry(key.clone()).or_default();
        let earlier = others.clone();
        others.push(InFlight {
            request,
            ended: watched,
        });
        Flight {
            airspace: self.clone(),
            key: key.clone(),
            request,
            earlier,
            ended,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ResourceKey, Vec<InFlight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One writing request under way.
#[derive(Debug)]
pub(super) struct Flight {
    airspace: Airspace,
    key: ResourceKey,
    request: u64,
    earlier: Vec<InFlight>,
    ended: watch::Sender<bool>,
}

impl Flight {
    /// The earlier requests that were still waited for when this one arrived.
    pub(super) async fn overlaps(&mut self, grace: Duration) -> Vec<u64> {
        let mut overlapped = Vec::new();
        for mut other in std::mem::take(&mut self.earlier) {
            let landed = other.ended.wait_for(|landed| *landed);
            match tokio::time::timeout(grace, landed).await {
                // The sender is gone without having landed: the client had left.
                Ok(Err(_)) => {}
                Ok(Ok(_)) | Err(_) => overlapped.push(other.request),
            }
        }
        overlapped
    }

    /// The request is answered, or its connection is closed by the simulator.
    pub(super) fn land(self) {
        self.ended.send_replace(true);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut flights = self.airspace.lock();
        if let Some(others) = flights.get_mut(&self.key) {
            others.retain(|other| other.request != self.request);
            if others.is_empty() {
                flights.remove(&self.key);
            }
        }
    }
}

#[derive(Clone, Debug)]
struct InFlight {
    request: u64,
    /// True once landed; closed without it when abandoned.
    ended: watch::Receiver<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ResourceKey {
        ResourceKey::new("icfg_1", "res_1")
    }

    #[tokio::test]
    async fn a_second_write_before_the_first_is_answered_overlaps() {
        let airspace = Airspace::default();
        let first = airspace.take_off(&key(), 1);
        let mut second = airspace.take_off(&key(), 2);
        let mut elsewhere = airspace.take_off(&ResourceKey::new("icfg_1", "res_2"), 3);
        first.land();
        assert_eq!(second.overlaps(Duration::MAX).await, [1]);
        assert!(elsewhere.overlaps(Duration::MAX).await.is_empty());
    }

    #[tokio::test]
    async fn a_second_write_while_the_first_is_waited_for_overlaps() {
        let airspace = Airspace::default();
        let _first = airspace.take_off(&key(), 1);
        let mut second = airspace.take_off(&key(), 2);
        assert_eq!(second.overlaps(Duration::ZERO).await, [1]);
    }

    #[tokio::test]
    async fn a_write_after_the_client_gave_up_does_not_overlap() {
        let airspace = Airspace::default();
        let first = airspace.take_off(&key(), 1);
        let mut second = airspace.take_off(&key(), 2);
        drop(first);
        assert!(second.overlaps(Duration::MAX).await.is_empty());
        drop(second);
        assert!(airspace.lock().is_empty());
    }
}
