//! What is under way in the dispatcher's task: requests, and what was asked of the state.

use std::future::poll_fn;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};

/// Futures that are all driven by whoever asks for the next one that ends.
///
/// What was asked of the state has its turn before the requests: the state works on the next outcomes and the next claim while requests
/// are written and their answers read, instead of waiting until all of them have been.
pub(super) struct Running<'a, T> {
    of_state: FuturesUnordered<BoxFuture<'a, T>>,
    requests: FuturesUnordered<BoxFuture<'a, T>>,
}

impl<'a, T> Running<'a, T> {
    pub(super) fn new() -> Self {
        Self {
            of_state: FuturesUnordered::new(),
            requests: FuturesUnordered::new(),
        }
    }

    /// Asks something of the state; it is handed over when the next is waited for.
    pub(super) fn ask(&self, of_state: impl Future<Output = T> + Send + 'a) {
        self.of_state.push(Box::pin(of_state));
    }

    /// Starts a request, or whatever else may wait until the state has been asked.
    pub(super) fn push(&self, request: impl Future<Output = T> + Send + 'a) {
        self.requests.push(Box::pin(request));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.of_state.is_empty() && self.requests.is_empty()
    }

    /// What ends next; `None` when nothing is under way.
    pub(super) async fn next(&mut self) -> Option<T> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        for under_way in [&mut self.of_state, &mut self.requests] {
            if let Poll::Ready(Some(ended)) = under_way.poll_next_unpin(context) {
                return Poll::Ready(Some(ended));
            }
        }
        if self.is_empty() {
            Poll::Ready(None)
        } else {
            Poll::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::Mutex;

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn what_was_asked_of_the_state_has_its_turn_before_the_requests() {
        let turns = Mutex::new(Vec::new());
        let note = |name: &'static str| turns.lock().expect("no panic").push(name);
        let mut running = Running::new();
        running.push(async { note("request") });
        running.ask(async { note("claim") });
        assert_eq!(running.next().now_or_never(), Some(Some(())));
        running.ask(async { note("record") });
        while running.next().now_or_never().flatten().is_some() {}
        assert_eq!(
            *turns.lock().expect("no panic"),
            ["claim", "record", "request"]
        );
    }

    #[test]
    fn it_ends_when_both_kinds_have_ended() {
        let mut running: Running<'_, u32> = Running::new();
        assert_eq!(running.next().now_or_never(), Some(None));
        running.ask(pending());
        assert!(!running.is_empty());
        assert_eq!(running.next().now_or_never(), None);
        running.push(ready(7));
        assert_eq!(running.next().now_or_never(), Some(Some(7)));
        assert_eq!(running.next().now_or_never(), None);
    }
}
