//! The places for requests at once, whose number may change while some are taken.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// So many requests at once; the others wait in their order.
#[derive(Debug)]
pub(super) struct Places {
    free: Semaphore,
    /// Places too many, each to be given up once it is free.
    surplus: AtomicUsize,
}

impl Places {
    pub(super) fn new(count: u32) -> Self {
        Self {
            free: Semaphore::new(size(count)),
            surplus: AtomicUsize::new(0),
        }
    }

    /// Changes their number. Of fewer places those that are taken are given up when they become free and nobody waits for them.
    pub(super) fn resize(&self, from: u32, to: u32) {
        let (from, to) = (size(from), size(to));
        let more = to.saturating_sub(from);
        let kept = self.surplus.load(Ordering::Relaxed).min(more);
        self.surplus.fetch_sub(kept, Ordering::Relaxed);
        self.free.add_permits(more - kept);
        self.surplus
            .fetch_add(from.saturating_sub(to), Ordering::Relaxed);
        self.give_up();
    }

    /// A place, once there is one; it is free again when the permit is dropped.
    pub(super) async fn take(&self) -> Option<SemaphorePermit<'_>> {
        self.give_up();
        // It is never closed.
        self.free.acquire().await.ok()
    }

    fn give_up(&self) {
        let given_up = self
            .free
            .forget_permits(self.surplus.load(Ordering::Relaxed));
        self.surplus.fetch_sub(given_up, Ordering::Relaxed);
    }
}

fn size(count: u32) -> usize {
    usize::try_from(count)
        .unwrap_or(usize::MAX)
        .min(Semaphore::MAX_PERMITS)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn fewer_places_hold_at_once_for_whoever_comes_and_in_the_end_for_all() {
        let places = Places::new(3);
        let take = || places.take().now_or_never().flatten();
        let (first, second) = (take(), take());
        assert!(first.is_some() && second.is_some());
        places.resize(3, 1);
        assert!(take().is_none(), "two are taken, one is allowed");
        drop(first);
        assert!(take().is_none(), "one is taken, one is allowed");
        drop(second);
        let third = take();
        assert!(third.is_some() && take().is_none());
    }

    #[test]
    fn more_places_first_keep_those_that_were_to_be_given_up() {
        let places = Places::new(2);
        let take = || places.take().now_or_never().flatten();
        let taken = [take(), take()];
        places.resize(2, 1);
        places.resize(1, 3);
        let third = take();
        assert!(taken.iter().all(Option::is_some) && third.is_some());
        assert!(take().is_none(), "there are three");
    }
}
