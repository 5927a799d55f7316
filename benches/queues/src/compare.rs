//! The rounds: the daemon, then each queue, all over one durable server.

use crate::deliver::{self, Side};
use crate::figure::{Bar, Figure, float, megabytes};
use crate::mock::Mock;
use crate::process;
use crate::provider::{self, PATIENCE, Provider, Setting};
use crate::queue::{Enqueued, IN_FLIGHT, Queue, Worked};
use crate::support::postgres::Postgres;

/// How often each side is measured.
const ROUNDS: u64 = 3;
/// Resources that change, and jobs, in each round.
const CHANGES: u64 = 20_000;

/// Measures all sides by turns.
pub(crate) async fn rounds() -> Vec<Figure> {
    let changes = std::env::var("BARS_CHANGES").map_or(CHANGES, |text| {
        text.parse().expect("BARS_CHANGES is a number")
    });
    let mock = Mock::start();
    // A queue is its database, so what that acknowledges must be on disk, as what the daemon's state acknowledges is.
    let server = Postgres::dedicated();
    let provider = Provider::over(server.database().await, changes, provider::INSTALLATIONS).await;
    let config = provider.configure(&Setting {
        vercel: mock.url(),
        max_in_flight: IN_FLIGHT.into(),
        listens: false,
        summaries: "60s",
    });
    provider.adopt(&config).await;
    let mut daemon = Absolute::of("reconciled");
    let mut against = [
        Against::new(Queue::GRAPHILE, Bar::AtLeast(2.5)),
        Against::new(Queue::GRAPHILE_PLAIN, Bar::None),
        Against::new(Queue::APALIS, Bar::AtLeast(4.0)),
        Against::new(Queue::APALIS_PLAIN, Bar::None),
    ];
    for round in 1..=ROUNDS {
        let side = deliver::daemon(&mock, &provider, &config, round, false).await;
        daemon.push(&side);
        for against in &mut against {
            against.round(&mock, &server, changes, &side).await;
        }
    }
    let mut figures = Vec::new();
    let mut absolute = Vec::from(daemon.0);
    for Against {
        queue: _,
        ratio,
        absolute: of_queue,
        enqueuing,
    } in against
    {
        figures.push(ratio);
        absolute.extend(of_queue.0);
        absolute.push(enqueuing);
    }
    figures.extend(absolute);
    figures
}

/// What is known of one queue.
struct Against {
    queue: Queue,
    ratio: Figure,
    absolute: Absolute,
    enqueuing: Figure,
}

impl Against {
    fn new(queue: Queue, bar: Bar) -> Self {
        let name = queue.name;
        Self {
            queue,
            ratio: Figure::new(format!("deliveries/s, of the jobs/s of {name}"), "x", bar),
            absolute: Absolute::of(name),
            enqueuing: Figure::plain(format!("  putting a job into {name}"), "us"),
        }
    }

    async fn round(&mut self, mock: &Mock, server: &Postgres, changes: u64, daemon: &Side) {
        let (side, enqueued) = work_off(self.queue, mock, server, changes).await;
        self.ratio.push(daemon.per_second / side.per_second);
        self.absolute.push(&side);
        self.enqueuing.push(enqueued.seconds * 1e6 / float(changes));
    }
}

/// The numbers behind a ratio. Processor time is that of the daemon or of the workers; a queue's server has its own on top of that.
struct Absolute([Figure; 3]);

impl Absolute {
    fn of(side: &str) -> Self {
        Self([
            Figure::plain(format!("  {side}"), "/s"),
            Figure::plain(format!("  processor time of {side}"), "us"),
            Figure::plain(format!("  peak memory of {side}"), "MB"),
        ])
    }

    fn push(&mut self, side: &Side) {
        let Self([rate, cpu, memory]) = self;
        rate.push(side.per_second);
        cpu.push(side.cpu_micros_each);
        memory.push(megabytes(side.peak_bytes));
    }
}

/// From a full queue in a database of its own, its statistics taken and written back: until every job is recorded as done.
async fn work_off(queue: Queue, mock: &Mock, server: &Postgres, changes: u64) -> (Side, Enqueued) {
    let database = server.database().await;
    let count = changes.to_string();
    let enqueued = process::role(&["enqueue", queue.name, &database.url, &count]).await;
    database.execute("VACUUM ANALYZE").await;
    database.execute("CHECKPOINT").await;
    mock.expect(changes);
    let worked: Worked =
        process::role(&["work", queue.name, &database.url, &mock.url(), &count]).await;
    let arrivals = mock.arrived(PATIENCE).await;
    assert_eq!(database.integer(queue.left()).await, 0, "every job is done");
    assert_eq!(mock.arrivals().count, changes, "each was sent once");
    let side = Side {
        per_second: arrivals.rate(),
        cpu_micros_each: worked.cpu_seconds * 1e6 / float(changes),
        peak_bytes: worked.peak_bytes,
    };
    (side, enqueued)
}
