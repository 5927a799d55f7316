//! How soon a single change is on the wire when the database notifies of it.

use std::time::{Duration, Instant};

use crate::figure::{Bar, Figure, quantile};
use crate::mock::Mock;
use crate::process::Daemon;
use crate::provider::{PATIENCE, Provider, Setting};
use crate::support::database::Engine;

use super::Scale;

/// From the commit of a single change to its request, by an idle daemon that listens.
pub(crate) async fn instant(scale: Scale, mock: &Mock) -> Vec<Figure> {
    let provider = Provider::new(Engine::Postgres, scale.few).await;
    let config = provider.configure(&Setting {
        vercel: mock.url(),
        max_in_flight: 64,
        listens: true,
        summaries: "60s",
    });
    provider.adopt(&config).await;
    let mut daemon = Daemon::start(&config);
    daemon.event("listen.began", 0, PATIENCE).await;
    daemon.event("sweep.completed", 0, PATIENCE).await;
    daemon.event("poll.completed", 0, PATIENCE).await;
    let mut millis = Vec::new();
    for n in 0..scale.singles * 5 {
        let mark = daemon.mark();
        mock.expect(1);
        // The moment before the statement is sent would be earlier than its commit, that of its answer is later.
        provider.change(1_000 + n, 1).await;
        let committed = Instant::now();
        let arrivals = mock.arrived(PATIENCE).await;
        millis.push(
            arrivals
                .first
                .saturating_duration_since(committed)
                .as_secs_f64()
                * 1000.0,
        );
        daemon
            .events("delivery.acknowledged", 1, mark, PATIENCE)
            .await;
        // Idle again, and beyond the time for which notifications count as one.
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    daemon.stop().await;
    super::assert_agrees(&config).await;
    millis.sort_by(f64::total_cmp);
    let of = |name: &str, part: f64, bar: f64| {
        let mut figure = Figure::new(name.to_owned(), "ms", Bar::AtMost(bar));
        figure.push(quantile(&millis, part));
        figure
    };
    vec![
        of("commit to request, listening, p50", 0.5, 1.5),
        of("commit to request, listening, p99", 0.99, 5.0),
    ]
}
