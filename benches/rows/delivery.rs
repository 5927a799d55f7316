//! Deliveries per second and what one costs, against the same requests sent by the bare client.

use std::time::Duration;

use crate::bare;
use crate::deliver::{Side, daemon};
use crate::figure::{Bar, Figure};
use crate::mock::Mock;
use crate::process;
use crate::provider::{PATIENCE, Provider, Setting};
use crate::support::database::Engine;

use super::Scale;

/// How requests are sent and answered.
#[derive(Debug, Clone, Copy)]
struct Load {
    in_flight: u64,
    answer: Duration,
    changes: u64,
    rotates: bool,
    /// Whether the state is on PostgreSQL.
    is_shared: bool,
    /// Whether each resource has an installation of its own.
    is_apart: bool,
    /// Where the resources are.
    engine: Engine,
}

impl Load {
    /// Answers at once, 64 in flight.
    fn at_once(scale: Scale) -> Self {
        Self {
            in_flight: 64,
            answer: Duration::ZERO,
            changes: scale.changes,
            rotates: false,
            is_shared: false,
            is_apart: false,
            engine: Engine::Postgres,
        }
    }
}

/// Answers at once, 64 in flight.
pub(crate) async fn at_once(scale: Scale, mock: &Mock) -> Vec<Figure> {
    let load = Load::at_once(scale);
    compare(scale, mock, load, "0 ms, 64 in flight", (0.60, Some(2.0))).await
}

/// The same with the state on PostgreSQL.
pub(crate) async fn shared(scale: Scale, mock: &Mock) -> Vec<Figure> {
    let load = Load {
        is_shared: true,
        ..Load::at_once(scale)
    };
    let name = "0 ms, 64 in flight, PostgreSQL state";
    compare(scale, mock, load, name, (0.50, None)).await
}

/// The same where each resource has an installation of its own, whose token has to be read first.
pub(crate) async fn apart(scale: Scale, mock: &Mock) -> Vec<Figure> {
    let load = Load {
        is_apart: true,
        ..Load::at_once(scale)
    };
    let name = "0 ms, 64 in flight, an installation each";
    compare(scale, mock, load, name, (0.60, None)).await
}

/// The same with the resources in MariaDB.
pub(crate) async fn from_mariadb(scale: Scale, mock: &Mock) -> Vec<Figure> {
    let load = Load {
        engine: Engine::MariaDb,
        ..Load::at_once(scale)
    };
    let name = "0 ms, 64 in flight, MariaDB source";
    compare(scale, mock, load, name, (0.60, None)).await
}

/// The same where every change is a rotated secret, whose value has to come from the source.
pub(crate) async fn secrets(scale: Scale, mock: &Mock) -> Vec<Figure> {
    let load = Load {
        rotates: true,
        ..Load::at_once(scale)
    };
    let name = "0 ms, 64 in flight, rotated secrets";
    compare(scale, mock, load, name, (0.60, None)).await
}

/// Answers after 50 ms.
pub(crate) async fn answered_late(scale: Scale, mock: &Mock) -> Vec<Figure> {
    let mut figures = Vec::new();
    for in_flight in [64, 256] {
        let load = Load {
            in_flight,
            answer: Duration::from_millis(50),
            changes: in_flight * scale.slow_changes_each,
            ..Load::at_once(scale)
        };
        let name = format!("50 ms, {in_flight} in flight");
        figures.extend(compare(scale, mock, load, &name, (0.97, None)).await);
    }
    figures
}

async fn compare(
    scale: Scale,
    mock: &Mock,
    load: Load,
    name: &str,
    (rate_bar, cpu_bar): (f64, Option<f64>),
) -> Vec<Figure> {
    let mut provider = match load.is_apart {
        true => Provider::spread(load.engine, load.changes, load.changes).await,
        false => Provider::new(load.engine, load.changes).await,
    };
    if load.is_shared {
        provider = provider.with_shared_state().await;
    }
    let config = provider.configure(&Setting {
        vercel: mock.url(),
        max_in_flight: load.in_flight,
        listens: false,
        summaries: "60s",
    });
    provider.adopt(&config).await;
    let cpu_bar = cpu_bar.map_or(Bar::None, Bar::AtMost);
    let mut rate = Figure::new(
        format!("deliveries/s of the bare client's, {name}"),
        "x",
        Bar::AtLeast(rate_bar),
    );
    let mut cpu = Figure::new(
        format!("processor time each, of the bare client's, {name}"),
        "x",
        cpu_bar,
    );
    let mut absolute = [
        Figure::plain(format!("  bare client, {name}"), "/s"),
        Figure::plain(format!("  daemon, {name}"), "/s"),
        Figure::plain("  processor time of the bare client", "us"),
        Figure::plain("  processor time of the daemon", "us"),
        Figure::plain("  peak memory of the daemon", "MB"),
    ];
    mock.answer_after(load.answer);
    for round in 1..=scale.rounds {
        let bare = bare(mock, load.in_flight, load.changes).await;
        let daemon = daemon(mock, &provider, &config, round, load.rotates).await;
        rate.push(daemon.per_second / bare.per_second);
        cpu.push(daemon.cpu_micros_each / bare.cpu_micros_each);
        let values = [
            bare.per_second,
            daemon.per_second,
            bare.cpu_micros_each,
            daemon.cpu_micros_each,
            super::megabytes(daemon.peak_bytes),
        ];
        absolute
            .iter_mut()
            .zip(values)
            .for_each(|(figure, value)| figure.push(value));
    }
    mock.answer_after(Duration::ZERO);
    [rate, cpu].into_iter().chain(absolute).collect()
}

/// The bare client's side.
pub(super) async fn bare(mock: &Mock, in_flight: u64, changes: u64) -> Side {
    mock.expect(changes);
    let (asked_at_once, asked) = (in_flight.to_string(), changes.to_string());
    let report: bare::Report =
        process::role(&["bare-send", &mock.url(), &asked_at_once, &asked]).await;
    assert_eq!(report.items, changes);
    Side {
        per_second: mock.arrived(PATIENCE).await.rate(),
        cpu_micros_each: report.cpu_seconds.max(0.01) * 1e6 / super::float(changes),
        peak_bytes: report.peak_bytes,
    }
}
