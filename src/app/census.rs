//! How many resources there are, counted no more often than the state can bear.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use crate::store::{Store, StoreError};

/// How many times as long as the last count took passes until the next: counting takes a hundredth of the time, of a few resources as
/// of a hundred million.
const REST: u32 = 99;

/// Counts the resources, once for all who ask.
pub(super) struct Census {
    count: Box<dyn Fn() -> BoxFuture<'static, Result<u64, StoreError>> + Send + Sync>,
    last: Arc<Mutex<Option<Counted>>>,
    /// Held by whoever counts.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    resources: u64,
    /// When they may be counted again.
    stale_at: Instant,
}

impl Counted {
    fn new(resources: u64, began: Instant, ended: Instant) -> Self {
        let took = ended.saturating_duration_since(began);
        Self {
            resources,
            stale_at: ended + took.saturating_mul(REST),
        }
    }
}

impl Census {
    /// Of the resources of this state.
    pub(super) fn of(store: Arc<dyn Store>) -> Self {
        Self::by(move || {
            let store = Arc::clone(&store);
            Box::pin(async move { store.resources().await })
        })
    }

    fn by(
        count: impl Fn() -> BoxFuture<'static, Result<u64, StoreError>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            count: Box::new(count),
            last: Arc::default(),
            turn: Arc::default(),
        }
    }

    /// How many there were when they were last counted, which is now if it is time for that and takes no longer than `patience`; `None`
    /// before the first count has ended.
    pub(super) async fn resources(&self, patience: Duration) -> Option<u64> {
        if self.is_time()
            && let Ok(turn) = Arc::clone(&self.turn).try_lock_owned()
        {
            let (count, last) = ((self.count)(), Arc::clone(&self.last));
            // A task of its own goes on when nobody waits any more: calls of a database must not be dropped half-way.
            let counting = tokio::spawn(async move {
                let began = Instant::now();
                // A state that cannot be read is told elsewhere.
                if let Ok(resources) = count.await {
                    let counted = Counted::new(resources, began, Instant::now());
                    *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(counted);
                }
                drop(turn);
            });
            let _in_time = tokio::time::timeout(patience, counting).await;
        }
        self.last().map(|counted| counted.resources)
    }

    fn is_time(&self) -> bool {
        self.last()
            .is_none_or(|counted| Instant::now() >= counted.stale_at)
    }

    fn last(&self) -> Option<Counted> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::sync::oneshot;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    type Answer = Result<u64, StoreError>;

    /// A state that is counted as often as there are answers, each of which comes when the test gives it.
    fn census(counts: usize) -> (Census, Vec<oneshot::Sender<Answer>>) {
        let (senders, answers): (Vec<_>, VecDeque<_>) =
            (0..counts).map(|_| oneshot::channel()).unzip();
        let answers = Mutex::new(answers);
        let census = Census::by(move || {
            let answer = answers.lock().expect("no panic").pop_front();
            let answer = answer.expect("it is counted no more often");
            Box::pin(async move { answer.await.expect("the test answers") })
        });
        (census, senders)
    }

    fn unreadable() -> StoreError {
        StoreError::Failed {
            operation: "count resources",
            problem: "gone".to_owned(),
            transient: true,
        }
    }

    #[test]
    fn counting_takes_a_hundredth_of_the_time() {
        let began = Instant::now();
        for took in [Duration::ZERO, Duration::from_secs(1), LONG] {
            let counted = Counted::new(1, began, began + took);
            assert_eq!(counted.stale_at, began + took * 100);
        }
    }

    #[tokio::test]
    async fn what_was_just_counted_at_length_is_not_counted_again() {
        let (census, _) = census(0);
        let now = Instant::now();
        *census.last.lock().expect("no panic") = Some(Counted::new(5, now - LONG, now));
        assert_eq!(census.resources(LONG).await, Some(5));
    }

    #[tokio::test]
    async fn one_counts_for_all_and_nobody_waits_for_another() {
        let (census, mut answers) = census(2);
        assert_eq!(census.resources(Duration::ZERO).await, None);
        // The first count is under way: who asks now starts no other and waits for nothing.
        assert_eq!(census.resources(LONG).await, None);
        let mut answer = || answers.remove(0);
        answer().send(Ok(1)).expect("it waits");
        // Whoever counted has told when he gives back his turn.
        drop(census.turn.lock().await);
        let now = Instant::now();
        *census.last.lock().expect("no panic") = Some(Counted::new(1, now, now));
        // The last number serves while the next is being found.
        assert_eq!(census.resources(Duration::ZERO).await, Some(1));
        answer().send(Ok(2)).expect("it waits");
        drop(census.turn.lock().await);
        assert_eq!(census.last().map(|counted| counted.resources), Some(2));
    }

    #[tokio::test]
    async fn a_state_that_cannot_be_read_is_asked_again() {
        let (census, mut answers) = census(2);
        answers.remove(0).send(Err(unreadable())).expect("it waits");
        answers.remove(0).send(Ok(7)).expect("it waits");
        assert_eq!(census.resources(LONG).await, None);
        assert_eq!(census.resources(LONG).await, Some(7));
    }
}
