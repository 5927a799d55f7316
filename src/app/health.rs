//! Whether the daemon lives: both loops got on lately, by the monotonic clock.
//!
//! A loop leaves a mark each time it did something or found nothing to do. An outage of the source, of Vercel or of the state is
//! no illness: the loops turn through it. The service manager's watchdog is fed by the marks themselves, and only while both
//! loops leave them: a timer would feed it for a daemon that is stuck, and so would the other loop.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long dispatch may leave no mark: it looks again every second, and what it waits for in between is the state.
const DISPATCH_PATIENCE: Duration = Duration::from_secs(60);
/// How long the watch loop may leave none besides the statements that it waits for.
const WATCH_PATIENCE: Duration = Duration::from_secs(60);
/// So many statements of the source may follow each other between two marks, each up to its timeout: the columns, the identity,
/// the oldest transaction and the page itself.
const STATEMENTS_BETWEEN_MARKS: u32 = 4;
/// The watchdog is fed at most this often.
const FEEDING: Duration = Duration::from_secs(1);

/// A loop of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loop {
    /// It reads the source.
    Watch,
    /// It sends.
    Dispatch,
}

impl Loop {
    pub(super) const ALL: [Self; 2] = [Self::Watch, Self::Dispatch];

    /// Its name in answers and labels.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Dispatch => "dispatch",
        }
    }
}

/// A loop that has left no mark for longer than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stuck {
    pub(super) which: Loop,
    /// For how long.
    pub(super) age: Duration,
    /// How long it may.
    pub(super) patience: Duration,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, age) = (self.which.name(), self.age.as_secs());
        let patience = self.patience.as_secs();
        write!(
            f,
            "the {name} loop has not got on for {age} s; it may take {patience} s"
        )
    }
}

/// What the daemon's health is measured by, and whom it is told to.
pub struct Pulse {
    /// Time since some beginning by a clock that nobody sets.
    pub elapsed: Box<dyn Fn() -> Duration + Send + Sync>,
    /// Feeds the service manager's watchdog.
    pub feed: Box<dyn Fn() + Send + Sync>,
}

impl Pulse {
    /// The machine's monotonic clock and the service manager, if there is one.
    #[must_use]
    pub fn system() -> Self {
        let start = std::time::Instant::now();
        Self {
            elapsed: Box::new(move || start.elapsed()),
            // It may not listen.
            feed: Box::new(|| {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            }),
        }
    }
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulse").finish_non_exhaustive()
    }
}

/// The marks of both loops.
pub(super) struct Health {
    pulse: Pulse,
    watch_patience: Duration,
    marks: Mutex<Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    watch: Duration,
    dispatch: Duration,
    fed: Option<Duration>,
}

impl Health {
    /// Both loops count as having got on now.
    pub(super) fn new(statement_timeout: Duration, pulse: Pulse) -> Self {
        let now = (pulse.elapsed)();
        Self {
            pulse,
            watch_patience: WATCH_PATIENCE + statement_timeout * STATEMENTS_BETWEEN_MARKS,
            marks: Mutex::new(Marks {
                watch: now,
                dispatch: now,
                fed: None,
            }),
        }
    }

    /// Takes note that a loop got on.
    pub(super) fn mark(&self, which: Loop) {
        let now = (self.pulse.elapsed)();
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        match which {
            Loop::Watch => marks.watch = now,
            Loop::Dispatch => marks.dispatch = now,
        }
        let is_hungry = marks
            .fed
            .is_none_or(|fed| now.saturating_sub(fed) >= FEEDING);
        let is_well = Loop::ALL
            .into_iter()
            .all(|which| marks.age(which, now) <= self.patience(which));
        if is_hungry && is_well {
            marks.fed = Some(now);
            drop(marks);
            (self.pulse.feed)();
        }
    }

    /// Since when a loop has left no mark.
    pub(super) fn age(&self, which: Loop) -> Duration {
        let now = (self.pulse.elapsed)();
        self.marks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .age(which, now)
    }

    /// The loops that have left no mark for longer than they may.
    pub(super) fn stuck(&self) -> Vec<Stuck> {
        let of = |which| Stuck {
            which,
            age: self.age(which),
            patience: self.patience(which),
        };
        Loop::ALL
            .into_iter()
            .map(of)
            .filter(|stuck| stuck.age > stuck.patience)
            .collect()
    }

    const fn patience(&self, which: Loop) -> Duration {
        match which {
            Loop::Watch => self.watch_patience,
            Loop::Dispatch => DISPATCH_PATIENCE,
        }
    }
}

impl Marks {
    fn age(&self, which: Loop, now: Duration) -> Duration {
        now.saturating_sub(match which {
            Loop::Watch => self.watch,
            Loop::Dispatch => self.dispatch,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A clock that a test moves, and how often the watchdog was fed.
    struct Bench {
        seconds: Arc<AtomicU64>,
        fed: Arc<AtomicU64>,
        health: Health,
    }

    impl Bench {
        fn new() -> Self {
            let (seconds, fed) = (Arc::new(AtomicU64::new(5)), Arc::<AtomicU64>::default());
            let (clock, meals) = (Arc::clone(&seconds), Arc::clone(&fed));
            let pulse = Pulse {
                elapsed: Box::new(move || Duration::from_secs(clock.load(Ordering::Relaxed))),
                feed: Box::new(move || {
                    meals.fetch_add(1, Ordering::Relaxed);
                }),
            };
            let health = Health::new(Duration::from_secs(30), pulse);
            Self {
                seconds,
                fed,
                health,
            }
        }

        fn pass(&self, seconds: u64) {
            self.seconds.fetch_add(seconds, Ordering::Relaxed);
        }

        fn fed(&self) -> u64 {
            self.fed.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn loops_that_leave_marks_are_well_and_feed_the_watchdog_once_a_second() {
        let bench = Bench::new();
        for _ in 0..10 {
            bench.health.mark(Loop::Dispatch);
            bench.health.mark(Loop::Watch);
        }
        assert_eq!(bench.fed(), 1);
        bench.pass(1);
        bench.health.mark(Loop::Watch);
        assert_eq!(bench.fed(), 2);
        assert_eq!(bench.health.stuck(), []);
    }

    #[test]
    fn a_stuck_dispatcher_is_noticed_although_the_watch_loop_goes_on() {
        let bench = Bench::new();
        for _ in 0..60 {
            bench.pass(1);
            bench.health.mark(Loop::Watch);
        }
        assert_eq!(bench.fed(), 60);
        for _ in 0..600 {
            bench.pass(1);
            bench.health.mark(Loop::Watch);
        }
        assert_eq!(
            bench.fed(),
            60,
            "nothing feeds it for a daemon that is stuck"
        );
        let stuck = bench.health.stuck();
        assert_eq!(
            stuck.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["the dispatch loop has not got on for 660 s; it may take 60 s"]
        );
        bench.health.mark(Loop::Dispatch);
        assert_eq!((bench.fed(), bench.health.stuck().len()), (61, 0));
    }

    #[test]
    fn a_stuck_watch_loop_is_noticed_once_its_statements_must_have_ended() {
        let bench = Bench::new();
        bench.pass(180);
        bench.health.mark(Loop::Dispatch);
        assert_eq!((bench.fed(), bench.health.stuck().len()), (1, 0));
        bench.pass(1);
        bench.health.mark(Loop::Dispatch);
        assert_eq!(
            (bench.fed(), bench.health.stuck()[0].which),
            (1, Loop::Watch)
        );
        assert_eq!(bench.health.age(Loop::Watch), Duration::from_secs(181));
    }

    #[test]
    fn nothing_feeds_the_watchdog_when_both_loops_are_silent() {
        let bench = Bench::new();
        bench.pass(1000);
        assert_eq!((bench.fed(), bench.health.stuck().len()), (0, 2));
    }

    #[test]
    fn a_pulse_shows_nothing_but_its_name() {
        let pulse = Pulse {
            elapsed: Box::new(Duration::default),
            feed: Box::new(|| {}),
        };
        assert_eq!(format!("{pulse:?}"), "Pulse { .. }");
    }
}
