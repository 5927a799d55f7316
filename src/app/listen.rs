//! Turns notifications of the source into polls.
//!
//! A notification is a hint: a lost one costs the time until the next scheduled poll. The connection is opened again with backoff for as
//! long as the daemon runs; that it was lost and that it works again is said once each.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{debug, info, warn};

use crate::clock::{Clock, Random};
use crate::model::Timestamp;
use crate::plan::backoff::Backoff;
use crate::source::{Listen, ListenError};

/// The shortest time between two polls that notifications start; those in between count as one.
const SPACING: Duration = Duration::from_millis(25);
/// Waits while there is no connection.
const RECONNECTS: Backoff = Backoff {
    initial: Duration::from_millis(250),
    multiplier: 2.0,
    max: Duration::from_secs(15),
};
/// The wait while the connection works and nothing arrives on it, or the server refuses: a person has to change something.
const REFUSED_RETRY: Duration = Duration::from_secs(300);

/// What a listener works with.
pub(super) struct Hearing {
    pub(super) channel: String,
    /// Wakes a poll; wakes that come while one runs are one.
    pub(super) poll: Arc<Notify>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: Arc<dyn Random>,
}

/// How it stands with the connection.
enum Standing {
    /// Never tried, or tried without a word yet.
    New,
    Works,
    Lost {
        since: Timestamp,
        /// Whether it was said that a person has to change something.
        refused: bool,
    },
}

/// Listens until dropped.
pub(super) async fn hear(mut ear: Box<dyn Listen>, hearing: Hearing) {
    let Hearing {
        channel,
        poll,
        clock,
        random,
    } = hearing;
    let mut standing = Standing::New;
    let mut failures = 0_u32;
    loop {
        let problem = match ear.open().await {
            Ok(()) => {
                failures = 0;
                tell_works(&mut standing, &channel, clock.now());
                // What changed while nobody listened.
                poll.notify_one();
                loop {
                    match ear.heard().await {
                        Ok(()) => {
                            debug!(event = "listen.heard", channel, "Notified of a change");
                            poll.notify_one();
                            clock.sleep(SPACING).await;
                        }
                        Err(problem) => break problem,
                    }
                }
            }
            Err(problem) => problem,
        };
        tell_lost(&mut standing, &channel, &problem, clock.now());
        failures = failures.saturating_add(1);
        let wait = if is_refusal(&problem) {
            REFUSED_RETRY
        } else {
            RECONNECTS.interval(failures, random.fraction())
        };
        clock.sleep(wait).await;
    }
}

/// Whether another try would most likely end the same way.
fn is_refusal(problem: &ListenError) -> bool {
    match problem {
        ListenError::Deaf { .. } => true,
        ListenError::Source(problem) => matches!(problem.code(), "query" | "shape"),
    }
}

fn tell_works(standing: &mut Standing, channel: &str, now: Timestamp) {
    match std::mem::replace(standing, Standing::Works) {
        Standing::Works => {}
        Standing::New => info!(
            event = "listen.began",
            channel, "Listening on channel {channel}: a notification starts a poll at once"
        ),
        Standing::Lost { since, .. } => {
            let duration_ms = u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
            warn!(
                event = "listen.restored",
                channel, duration_ms, "Listening on channel {channel} again"
            );
        }
    }
}

impl Standing {
    /// Takes note that there is no connection; returns whether that is to be said.
    fn lost(&mut self, refused: bool, now: Timestamp) -> bool {
        let since = match *self {
            // An outage that turns out to be a refusal is said again: waiting alone does not end it.
            Self::Lost { refused: said, .. } if said || !refused => return false,
            Self::Lost { since, .. } => since,
            Self::New | Self::Works => now,
        };
        *self = Self::Lost { since, refused };
        true
    }
}

fn tell_lost(standing: &mut Standing, channel: &str, problem: &ListenError, now: Timestamp) {
    if !standing.lost(is_refusal(problem), now) {
        return;
    }
    warn!(
        event = "listen.lost",
        channel,
        error_code = problem.code(),
        error = %problem,
        "Cannot listen on channel {channel}: changes are found by scheduled polls alone"
    );
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use futures_util::FutureExt as _;
    use tokio::sync::mpsc;

    use super::*;
    use crate::clock::SeededRandom;
    use crate::source::SourceError;

    /// Says when it waits, and goes on when told.
    struct Steps {
        slept: mpsc::UnboundedSender<Duration>,
        go: tokio::sync::Mutex<mpsc::UnboundedReceiver<()>>,
    }

    #[async_trait]
    impl Clock for Steps {
        fn now(&self) -> Timestamp {
            Timestamp::EPOCH
        }

        async fn sleep(&self, duration: Duration) {
            self.slept.send(duration).expect("the test listens");
            self.go.lock().await.recv().await;
        }
    }

    /// Answers in order; afterwards nothing is heard any more.
    struct Script {
        opens: VecDeque<Result<(), ListenError>>,
        hears: Arc<Mutex<VecDeque<Result<(), ListenError>>>>,
    }

    #[async_trait]
    impl Listen for Script {
        async fn open(&mut self) -> Result<(), ListenError> {
            self.opens.pop_front().unwrap_or(Ok(()))
        }

        async fn heard(&mut self) -> Result<(), ListenError> {
            let next = self.hears.lock().expect("nobody panicked").pop_front();
            match next {
                Some(next) => next,
                None => std::future::pending().await,
            }
        }
    }

    fn unreachable() -> ListenError {
        ListenError::Source(SourceError::Unreachable {
            target: "db".to_owned(),
            problem: "gone".to_owned(),
        })
    }

    fn deaf() -> ListenError {
        ListenError::Deaf {
            target: "db".to_owned(),
        }
    }

    struct Setting {
        poll: Arc<Notify>,
        slept: mpsc::UnboundedReceiver<Duration>,
        go: mpsc::UnboundedSender<()>,
    }

    fn start(
        opens: Vec<Result<(), ListenError>>,
        hears: Vec<Result<(), ListenError>>,
    ) -> (Setting, impl Future<Output = ()>) {
        let (slept_tx, slept) = mpsc::unbounded_channel();
        let (go, go_rx) = mpsc::unbounded_channel();
        let poll = Arc::new(Notify::new());
        let script = Script {
            opens: opens.into(),
            hears: Arc::new(Mutex::new(hears.into())),
        };
        let clock = Arc::new(Steps {
            slept: slept_tx,
            go: tokio::sync::Mutex::new(go_rx),
        });
        let hearing = Hearing {
            channel: "c".to_owned(),
            poll: Arc::clone(&poll),
            clock,
            random: Arc::new(SeededRandom::new(1)),
        };
        let running = hear(Box::new(script), hearing);
        (Setting { poll, slept, go }, running)
    }

    fn is_woken(poll: &Notify) -> bool {
        poll.notified().now_or_never().is_some()
    }

    #[test]
    fn one_poll_follows_every_connection_and_every_notification_is_spaced() {
        let (mut setting, running) = start(vec![], vec![Ok(()), Ok(()), Ok(())]);
        let mut running = Box::pin(running);
        // The poll after the connection and that of the first notification are one: nobody polled in between.
        assert!(running.as_mut().now_or_never().is_none());
        assert_eq!(setting.slept.try_recv(), Ok(SPACING));
        assert!(is_woken(&setting.poll));
        assert!(!is_woken(&setting.poll), "a burst is one poll");
        for _ in 0..2 {
            setting.go.send(()).expect("it waits");
            assert!(running.as_mut().now_or_never().is_none());
            assert!(is_woken(&setting.poll));
        }
        setting.go.send(()).expect("it waits");
        assert!(running.as_mut().now_or_never().is_none());
        assert!(!is_woken(&setting.poll), "nothing more was heard");
    }

    #[test]
    fn a_lost_connection_is_opened_again_with_backoff_and_followed_by_a_poll() {
        let opens = vec![Ok(()), Err(unreachable()), Err(unreachable()), Ok(())];
        let (mut setting, running) = start(opens, vec![Err(unreachable())]);
        let mut running = Box::pin(running);
        assert!(running.as_mut().now_or_never().is_none());
        assert!(is_woken(&setting.poll));
        let mut waits = vec![setting.slept.try_recv().expect("it waits")];
        for _ in 0..2 {
            setting.go.send(()).expect("it waits");
            assert!(running.as_mut().now_or_never().is_none());
            waits.push(setting.slept.try_recv().expect("it waits"));
            assert!(!is_woken(&setting.poll));
        }
        assert!(waits.iter().all(|wait| *wait <= RECONNECTS.max));
        setting.go.send(()).expect("it waits");
        assert!(running.as_mut().now_or_never().is_none());
        assert!(
            is_woken(&setting.poll),
            "what changed meanwhile is looked for"
        );
    }

    #[test]
    fn a_connection_on_which_nothing_arrives_is_left_alone_for_minutes() {
        let (mut setting, running) = start(vec![Err(deaf())], vec![]);
        let mut running = Box::pin(running);
        assert!(running.as_mut().now_or_never().is_none());
        assert_eq!(setting.slept.try_recv(), Ok(REFUSED_RETRY));
        assert!(!is_woken(&setting.poll));
    }

    #[test]
    fn a_loss_is_said_once_and_once_more_when_waiting_does_not_end_it() {
        let (lost, refused) = (is_refusal(&unreachable()), is_refusal(&deaf()));
        let (began, later) = (Timestamp::EPOCH, Timestamp::from_millis(1));
        for mut standing in [Standing::New, Standing::Works] {
            let said = [lost, lost, refused, refused, lost].map(|refused| {
                let now = match standing {
                    Standing::Lost { .. } => later,
                    Standing::New | Standing::Works => began,
                };
                standing.lost(refused, now)
            });
            assert_eq!(said, [true, false, true, false, false]);
            assert!(matches!(standing, Standing::Lost { since, refused: true } if since == began));
            tell_works(&mut standing, "c", later);
            assert!(matches!(standing, Standing::Works));
            assert!(standing.lost(lost, later), "a further one");
        }
    }
}
