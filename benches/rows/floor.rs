//! What durability costs before a daemon does anything: the same changes written by SQLite's own interface or by plain statements on
//! PostgreSQL, beside the bare client.

use crate::bare::Report;
use crate::figure::{Bar, Figure};
use crate::mock::Mock;
use crate::process;
use crate::support::directory::Directory;
use crate::support::postgres::Postgres;

use super::{Scale, delivery, float};

/// How many requests the bare client has in flight.
const IN_FLIGHT: u64 = 64;

/// What is written each second, of the bare client's requests.
fn rate_of(name: &str) -> Figure {
    let what = format!("written/s of the bare client's requests, {name}");
    Figure::new(what, "x", Bar::None)
}

/// Both sets of tables, in turns with the bare client.
pub(crate) async fn written(scale: Scale, mock: &Mock) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (tables, name) in [
        ("least", "an outbox without history"),
        ("state", "the state's tables"),
    ] {
        let mut rate = rate_of(name);
        let mut cpu = Figure::new(
            format!("  processor time each, of a bare request's, {name}"),
            "x",
            Bar::None,
        );
        let mut absolute = Figure::plain(format!("  processor time each, {name}"), "us");
        for _ in 0..scale.rounds {
            let bare = delivery::bare(mock, IN_FLIGHT, scale.changes).await;
            let directory = Directory::new(None);
            let path = directory.path().join("outbox.db");
            let path = path.to_str().expect("a path of this test");
            let changes = scale.changes.to_string();
            let report: Report = process::role(&["bare-outbox", path, tables, &changes]).await;
            assert_eq!(report.items, scale.changes);
            let micros = report.cpu_seconds * 1e6 / float(report.items);
            rate.push(float(report.items) / report.seconds / bare.per_second);
            cpu.push(micros / bare.cpu_micros_each);
            absolute.push(micros);
        }
        figures.extend([rate, cpu, absolute]);
    }
    figures.extend(written_to_postgres(scale, mock).await);
    figures
}

/// The state's tables on a server that flushes each commit, a fresh one for each round. What it costs is mostly the server's time.
async fn written_to_postgres(scale: Scale, mock: &Mock) -> [Figure; 2] {
    let name = "the state's tables on PostgreSQL";
    let mut rate = rate_of(name);
    let mut absolute = Figure::plain(format!("  written, {name}"), "/s");
    for _ in 0..scale.rounds {
        let bare = delivery::bare(mock, IN_FLIGHT, scale.changes).await;
        let server = Postgres::dedicated();
        let database = server.database().await;
        let changes = scale.changes.to_string();
        let report: Report =
            process::role(&["bare-outbox-postgres", &database.url, &changes]).await;
        assert_eq!(report.items, scale.changes);
        let per_second = float(report.items) / report.seconds;
        rate.push(per_second / bare.per_second);
        absolute.push(per_second);
    }
    [rate, absolute]
}
