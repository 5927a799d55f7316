//! What a test hears of its own thread, while others run.

use std::sync::LazyLock;

use tracing::{Dispatch, Subscriber};

/// Registered for as long as the tests run.
static ANOTHER: LazyLock<Dispatch> =
    LazyLock::new(|| Dispatch::new(tracing_subscriber::registry()));

/// Has `subscriber` hear what `work` traces in this thread.
///
/// While one subscriber alone is registered, a place of the program that is reached for the first time asks that of the thread which
/// reached it; if that thread has none, nobody hears of the place from then on (`Rebuilder::JustOne` of tracing-core). Tests run beside
/// each other: so there is always another one, which nothing is sent to.
pub(crate) fn heard_by(subscriber: impl Subscriber + Send + Sync, work: impl FnOnce()) {
    LazyLock::force(&ANOTHER);
    tracing::subscriber::with_default(subscriber, work);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};

    use tracing::Event;
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

    use super::*;

    struct Count(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let is_ours = event.metadata().target() == "heard";
            self.0.fetch_add(usize::from(is_ours), Ordering::Relaxed);
        }
    }

    #[test]
    fn a_place_that_another_thread_reaches_first_is_heard() {
        fn place() {
            tracing::warn!(target: "heard", "reached");
        }
        let heard = Arc::new(AtomicUsize::new(0));
        let subscriber = tracing_subscriber::registry().with(Count(Arc::clone(&heard)));
        let ready = Arc::new(Barrier::new(2));
        let first = {
            let ready = Arc::clone(&ready);
            std::thread::spawn(move || {
                ready.wait();
                place();
            })
        };
        heard_by(subscriber, || {
            ready.wait();
            first.join().expect("it does not panic");
            place();
        });
        assert_eq!(heard.load(Ordering::Relaxed), 1);
    }
}
