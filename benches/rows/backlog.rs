//! A backlog that waited while Vercel could not be reached: how soon it is taken up after a start, and in how much memory.

use std::time::Duration;

use crate::figure::{Bar, Figure};
use crate::mock::Mock;
use crate::process::Daemon;
use crate::provider::{PATIENCE, Provider, Setting};
use crate::support::database::Engine;

use super::Scale;

/// Makes a backlog of first pushes against a port where nothing listens, then starts a daemon that can send.
pub(crate) async fn drained(scale: Scale, mock: &Mock) -> Vec<Figure> {
    let backlog = scale.backlog;
    let provider = Provider::new(Engine::Postgres, backlog).await;
    let nobody = format!("http://127.0.0.1:{}", crate::support::port::free());
    let setting = |vercel| Setting {
        vercel,
        max_in_flight: 64,
        listens: false,
        summaries: "5s",
    };
    let config = provider.configure(&setting(nobody));
    let mut daemon = Daemon::start(&config);
    daemon.event("poll.completed", 0, PATIENCE).await;
    daemon.event("sweep.completed", 0, PATIENCE).await;
    daemon.stop().await;
    let config = provider.configure(&setting(mock.url()));
    let mut first = Figure::new(
        format!("start to first request, backlog of {backlog}"),
        "s",
        Bar::AtMost(1.0),
    );
    // Each start sends something: the last one is let drain.
    for round in 1..=scale.rounds {
        // Nothing that it sends is answered before it ends, so that the backlog stays.
        mock.answer_after(if round < scale.rounds {
            Duration::from_secs(3)
        } else {
            Duration::ZERO
        });
        mock.expect(1);
        let daemon = Daemon::start(&config);
        let arrivals = mock.arrived(PATIENCE).await;
        first.push(
            arrivals
                .first
                .saturating_duration_since(daemon.started)
                .as_secs_f64(),
        );
        if round < scale.rounds {
            daemon.stop().await;
            continue;
        }
        let (rate, memory) = drain(daemon, mock, backlog).await;
        super::assert_agrees(&config).await;
        return vec![first, memory, rate];
    }
    unreachable!("the last round drains")
}

async fn drain(mut daemon: Daemon, mock: &Mock, backlog: u64) -> (Figure, Figure) {
    let mut peak = 0;
    let mut left = u64::MAX;
    while left > 0 {
        let summary = daemon.event("summary", daemon.mark(), PATIENCE).await;
        left = summary["waiting"].as_u64().expect("a number");
        peak = daemon.usage().peak_bytes;
    }
    let mut rate = Figure::plain("  deliveries while it drains", "/s");
    rate.push(mock.arrivals().rate());
    let mut memory = Figure::new(
        format!("peak memory, backlog of {backlog} draining"),
        "MB",
        Bar::AtMost(64.0),
    );
    memory.push(super::megabytes(peak));
    daemon.stop().await;
    (rate, memory)
}
