//! What polls cost and how soon they find a change.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::figure::{Bar, Figure, quantile};
use crate::mock::Mock;
use crate::process::Daemon;
use crate::provider::{PATIENCE, Provider, Setting};
use crate::support::database::Engine;

use super::Scale;

/// A daemon that polls each second: what it costs while nothing changes, in a small and a large fleet; what a change costs
/// by how many rows change; how soon a single change is on the wire.
pub(crate) async fn polls(scale: Scale, mock: &Mock) -> Vec<Figure> {
    let (few, many) = (scale.few, scale.many);
    let mut figures = Vec::new();
    let mut idle = Vec::new();
    let mut work = Vec::new();
    for resources in [few, many] {
        let provider = Provider::new(Engine::Postgres, resources).await;
        let config = provider.configure(&Setting {
            vercel: mock.url(),
            max_in_flight: 64,
            listens: false,
            summaries: "60s",
        });
        provider.adopt(&config).await;
        let mut daemon = Daemon::start(&config);
        daemon.event("sweep.completed", 0, PATIENCE).await;
        daemon.event("poll.completed", 0, PATIENCE).await;
        idle.push(idle_cost(&mut daemon, &provider, scale).await);
        // An equal number of rows changes in both fleets.
        let changes = few / 10;
        let mut round = 0;
        let mut seconds = Figure::plain(
            format!("  a poll that finds {changes} of {resources} changed"),
            "s",
        );
        for _ in 0..scale.rounds {
            round += 1;
            seconds.push(find(&mut daemon, &provider, mock, round, changes).await);
        }
        work.push(seconds);
        if resources == many {
            let mut seconds = Figure::plain(
                format!("  a poll that finds {few} of {resources} changed"),
                "s",
            );
            for _ in 0..scale.rounds {
                round += 1;
                seconds.push(find(&mut daemon, &provider, mock, round, few).await);
            }
            work.push(seconds);
            figures.extend(soon(&mut daemon, &provider, mock, scale).await);
            for rows in [few, 5 * few] {
                figures.push(read_again(&mut daemon, &provider, scale, rows).await);
            }
        }
        daemon.stop().await;
        super::assert_agrees(&config).await;
    }
    let mut growth = Figure::new(
        format!("processor time of an idle poll at {many} resources, of that at {few}"),
        "x",
        Bar::AtMost(1.25),
    );
    growth.push(idle[1].quantile(0.5) / idle[0].quantile(0.5).max(0.001));
    let mut by_fleet = Figure::new(
        format!(
            "a poll that finds {} changed, at {many} resources of {few}",
            few / 10
        ),
        "x",
        Bar::AtMost(1.5),
    );
    by_fleet.push(work[1].quantile(0.5) / work[0].quantile(0.5).max(0.001));
    idle.into_iter()
        .chain([growth, by_fleet])
        .chain(work)
        .chain(figures)
        .collect()
}

/// The part of a core that an idle daemon takes; it must not write.
async fn idle_cost(daemon: &mut Daemon, provider: &Provider, scale: Scale) -> Figure {
    let written = |path: &Path| -> Vec<(u64, SystemTime)> {
        ["state.db", "state.db-wal"]
            .iter()
            .filter_map(|name| std::fs::metadata(path.with_file_name(name)).ok())
            .map(|file| (file.len(), file.modified().expect("every file has a time")))
            .collect()
    };
    // What followed the start is over after a few polls.
    for _ in 0..3 {
        daemon
            .event("poll.completed", daemon.mark(), PATIENCE)
            .await;
    }
    let (before, state, started) = (daemon.usage(), written(&provider.state()), Instant::now());
    tokio::time::sleep(Duration::from_secs(scale.idle_seconds)).await;
    let (after, elapsed) = (daemon.usage(), started.elapsed());
    assert_eq!(
        written(&provider.state()),
        state,
        "an idle daemon does not write its state"
    );
    let mut figure = Figure::new(
        format!(
            "idle daemon, {} resources, a poll each second",
            provider.resources
        ),
        "% core",
        Bar::AtMost(0.5),
    );
    figure.push((after.cpu - before.cpu).as_secs_f64() / elapsed.as_secs_f64() * 100.0);
    figure
}

/// How long the poll takes that finds this many rows changed.
async fn find(
    daemon: &mut Daemon,
    provider: &Provider,
    mock: &Mock,
    round: u64,
    changes: u64,
) -> f64 {
    provider.vacuum().await;
    mock.expect(changes);
    let mark = daemon.mark();
    provider.change(round, changes).await;
    mock.arrived(PATIENCE).await;
    daemon
        .events("delivery.acknowledged", changes, mark, PATIENCE)
        .await;
    let poll = daemon
        .line(
            &[
                "\"event\":\"poll.completed\"",
                &format!("\"changed\":{changes},"),
            ],
            1,
            mark,
            PATIENCE,
        )
        .await;
    poll["duration_ms"].as_f64().expect("a number").max(1.0) / 1000.0
}

/// How long polls take that read so many rows of one cursor again, as all do until something newer comes.
async fn read_again(daemon: &mut Daemon, provider: &Provider, scale: Scale, rows: u64) -> Figure {
    let mut seconds = Figure::plain(
        format!("  a poll that reads {rows} rows of one cursor again"),
        "s",
    );
    let mark = daemon.mark();
    provider.touch(rows).await;
    // The first one may have begun before, the second finds them, and the third knows them.
    for polls in 1..=scale.rounds + 2 {
        let poll = daemon.events("poll.completed", polls, mark, PATIENCE).await;
        if polls > 2 {
            assert!(poll["rows"].as_u64() >= Some(rows), "{poll}");
            seconds.push(poll["duration_ms"].as_f64().expect("a number").max(1.0) / 1000.0);
        }
    }
    seconds
}

/// From the commit of a single change to its request, at moments spread over the interval of a second.
async fn soon(daemon: &mut Daemon, provider: &Provider, mock: &Mock, scale: Scale) -> [Figure; 2] {
    let mut millis = Vec::new();
    for n in 0..scale.singles {
        let mark = daemon.mark();
        // Evenly over the interval, in an order that is not its own.
        let part = (n * 617) % 1000;
        tokio::time::sleep(Duration::from_millis(200 + part)).await;
        mock.expect(1);
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
    }
    millis.sort_by(f64::total_cmp);
    let mut median = Figure::new(
        "commit to request, polling every 1000 ms, p50",
        "ms",
        Bar::AtMost(515.0),
    );
    median.push(quantile(&millis, 0.5));
    let mut most = Figure::new(
        "commit to request, polling every 1000 ms, most",
        "ms",
        Bar::AtMost(1030.0),
    );
    most.push(quantile(&millis, 1.0));
    [median, most]
}
