//! A sweep of rows that have not changed, against one statement that reads the same columns in the same order.

use std::time::Instant;

use crate::bare;
use crate::figure::{Bar, Figure};
use crate::mock::Mock;
use crate::process::{self, Daemon};
use crate::provider::{PATIENCE, Provider, Setting};
use crate::support::database::Engine;

use super::Scale;

/// From one database.
pub(crate) async fn unchanged(scale: Scale, mock: &Mock, engine: Engine) -> Vec<Figure> {
    let rows = scale.many;
    let provider = Provider::new(engine, rows).await;
    let config = provider.configure(&Setting {
        vercel: mock.url(),
        max_in_flight: 64,
        listens: false,
        summaries: "60s",
    });
    let started = Instant::now();
    provider.adopt(&config).await;
    let adopted = started.elapsed();
    // The first poll reads everything once; what is measured is a sweep after it.
    run(&config, rows).await;
    let name = format!("{rows} unchanged rows, {engine:?}");
    let mut ratio = Figure::new(
        format!("sweep of {name}, of a bare scan's time"),
        "x",
        Bar::AtMost(1.05),
    );
    // The driver hands every row from thread to thread, which is most of what its scan costs.
    let mut of_direct = (engine == Engine::Sqlite).then(|| {
        Figure::new(
            "  of a bare scan's time without the driver".to_owned(),
            "x",
            Bar::AtMost(2.0),
        )
    });
    let mut memory = Figure::new(
        format!("peak memory of that sweep, {engine:?}"),
        "MB",
        Bar::AtMost(24.0),
    );
    let mut cpu = Figure::plain("  processor time of the sweep, of the bare scan's", "x");
    let mut absolute = [
        Figure::plain("  bare scan", "s"),
        Figure::plain("  sweep", "s"),
        Figure::plain("  from the start of the process to the sweep's end", "s"),
    ];
    let mut baseline = Figure::plain("  taking a baseline of them once", "s");
    baseline.push(adopted.as_secs_f64());
    for _ in 0..scale.rounds {
        let scan: bare::Report = process::role(&["bare-scan", &provider.database.url]).await;
        assert_eq!(scan.items, rows);
        let sweep = run(&config, rows).await;
        ratio.push(sweep.seconds / scan.seconds);
        if let Some(of_direct) = &mut of_direct {
            let direct: bare::Report =
                process::role(&["bare-scan-in-thread", &provider.database.url]).await;
            assert_eq!(direct.items, rows);
            of_direct.push(sweep.seconds / direct.seconds);
        }
        memory.push(super::megabytes(sweep.peak_bytes));
        cpu.push(sweep.cpu_seconds / scan.cpu_seconds.max(0.01));
        absolute
            .iter_mut()
            .zip([scan.seconds, sweep.seconds, sweep.since_start])
            .for_each(|(figure, value)| figure.push(value));
    }
    std::iter::once(ratio)
        .chain(of_direct)
        .chain([memory, cpu])
        .chain(absolute)
        .chain([baseline])
        .collect()
}

struct Swept {
    seconds: f64,
    since_start: f64,
    cpu_seconds: f64,
    peak_bytes: u64,
}

/// The sweep that a daemon begins with.
async fn run(config: &std::path::Path, rows: u64) -> Swept {
    let mut daemon = Daemon::start(config);
    let swept = daemon.event("sweep.completed", 0, PATIENCE).await;
    let since_start = daemon.started.elapsed().as_secs_f64();
    let usage = daemon.usage();
    assert_eq!(swept["rows"], rows);
    assert_eq!(swept["converged"], true, "{swept}");
    daemon.event("poll.completed", 0, PATIENCE).await;
    daemon.stop().await;
    Swept {
        seconds: swept["duration_ms"].as_f64().expect("a number").max(1.0) / 1000.0,
        since_start,
        cpu_seconds: usage.cpu.as_secs_f64(),
        peak_bytes: usage.peak_bytes,
    }
}
