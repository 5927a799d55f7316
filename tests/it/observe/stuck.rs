//! A loop that hangs while the port still listens: `/healthz` turns bad and the service manager's watchdog is fed no more.
//!
//! The daemon runs in this process, so that a request can hold up its dispatcher for good, as a bug would, and time can be moved.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use reconciled::app::{self, Controls, Parts, Pulse};
use reconciled::config::{Config, LoadOptions};
use reconciled::model::{AccessToken, InstallationId, Observed, Patch, ResourceKey, SecretSet};
use reconciled::plan::Answer;
use reconciled::shutdown::Shutdown;
use reconciled::store::Access;
use reconciled::vercel::Marketplace;
use tokio::sync::Notify;

use super::{World, get};
use crate::support::port;

/// A marketplace that does not let its caller go: it blocks the thread, and with it the whole dispatcher.
#[derive(Default)]
struct Trap {
    caught: Notify,
    open: Mutex<bool>,
    opened: Condvar,
}

impl Trap {
    fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }

    fn hold(&self) -> ! {
        self.caught.notify_one();
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let _open = self
            .opened
            .wait_while(open, |open| !*open)
            .unwrap_or_else(PoisonError::into_inner);
        panic!("the test is over");
    }
}

/// Opens the trap however the test ends: a thread that nobody lets go would keep it from ending at all.
struct Opening(Arc<Trap>);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.open();
    }
}

#[async_trait]
impl Marketplace for Trap {
    async fn update(
        &self,
        _: &AccessToken,
        _: &ResourceKey,
        _: &Patch,
        _: Option<&SecretSet>,
    ) -> Answer {
        self.hold()
    }

    async fn observe(&self, _: &AccessToken, _: &ResourceKey) -> (Answer, Option<Observed>) {
        self.hold()
    }

    async fn probe(&self, _: &AccessToken, _: &InstallationId) -> Answer {
        self.hold()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stuck_dispatcher_makes_it_unhealthy_and_starves_the_watchdog() {
    let world = World::new().await;
    world.configure("", "[schedule]\npoll = \"* * * * * *\"\n");
    let address = format!("127.0.0.1:{}", port::free());
    let options = LoadOptions::of_process(
        Some(world.installation.configuration()),
        vec![format!("http.listen={address}")],
    );
    let config = Arc::new(Config::load(&options).expect("it is valid").config);
    let source = app::source(&config).expect("it is valid");
    let trap = Arc::new(Trap::default());
    let opening = Opening(Arc::clone(&trap));
    let parts = Parts::assemble(
        Arc::clone(&config),
        source,
        Arc::clone(&trap) as Arc<dyn Marketplace>,
        Access::Daemon,
    )
    .await
    .expect("the state opens");
    let (moved, fed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (seconds, meals) = (Arc::clone(&moved), Arc::clone(&fed));
    let shutdown = Shutdown::new();
    let controls = Controls {
        pulse: Pulse {
            // It moves with the test alone, however long that takes.
            elapsed: Box::new(move || Duration::from_secs(seconds.load(Ordering::SeqCst))),
            feed: Box::new(move || {
                meals.fetch_add(1, Ordering::SeqCst);
            }),
        },
        ..Controls::fixed(shutdown.clone(), &config)
    };
    let daemon = tokio::spawn(app::run(parts, controls));

    // Both loops get on: the watchdog is fed, whatever the time.
    for _ in 0..3 {
        let before = fed.load(Ordering::SeqCst);
        while fed.load(Ordering::SeqCst) == before {
            tokio::task::yield_now().await;
        }
        moved.fetch_add(10, Ordering::SeqCst);
    }
    let alive = get(&address, "/healthz").await;
    assert_eq!(alive.status, 200, "{alive:?}");
    // Time stands still from here on, so the dispatcher's last mark is of now.
    let fresh = "reconciled_loop_progress_age_seconds{loop=\"dispatch\"} 0";
    let marked = async || {
        let page = get(&address, "/metrics").await.body;
        page.lines().any(|line| line == fresh)
    };
    while !marked().await {}

    world.insert(1, "res_1", 1, "ready").await;
    trap.caught.notified().await;
    moved.fetch_add(59, Ordering::SeqCst);
    let alive = get(&address, "/healthz").await;
    assert_eq!(alive.status, 200, "it has its time: {alive:?}");
    moved.fetch_add(2, Ordering::SeqCst);
    let stuck = get(&address, "/healthz").await;
    assert_eq!(stuck.status, 503, "{stuck:?}");
    assert!(
        stuck
            .body
            .starts_with("stuck: the dispatch loop has not got on for 6"),
        "{stuck:?}"
    );
    // The port listens, the state can be read and the source is polled: none of that feeds the watchdog.
    let before = fed.load(Ordering::SeqCst);
    let polls = async || {
        let page = get(&address, "/metrics").await.body;
        let polls = page
            .lines()
            .find_map(|line| line.strip_prefix("reconciled_polls_total{outcome=\"completed\"} "));
        polls
            .and_then(|n| n.parse::<u64>().ok())
            .unwrap_or_default()
    };
    let begun = polls().await;
    while polls().await < begun + 2 {
        moved.fetch_add(1, Ordering::SeqCst);
    }
    assert_eq!(fed.load(Ordering::SeqCst), before);
    let ready = get(&address, "/readyz").await;
    assert_eq!(ready.status, 200, "{ready:?}");

    drop(opening);
    shutdown.request();
    // The dispatcher died of its trap; the rest ends by itself.
    let _ = daemon.await.expect("the daemon itself does not panic");
}
