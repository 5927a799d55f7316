//! The real process: killed at random under a stream of changes, stopped politely, its source taken away; over real databases.
//!
//! Nothing here waits for time to pass: each step waits for a log line or for what the simulated Vercel was sent. Only the moment of a
//! kill is drawn, to the millisecond.

use std::time::{Duration, Instant};

use reconciled::clock::{Random as _, SeededRandom};
use reconciled::simulator::{Fault, Matcher, Options, Remote, Simulator};
use rustix::process::Signal;
use sqlx::Connection as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    support::{
        database::TestDatabase, mariadb::MariaDb, postgres::Postgres, process::Process, sqlite,
    },
    world::{World, rotation},
};

/// How often the daemon is killed on each database in the ordinary run; `RECONCILED_KILLS` sets another number.
const KILLS: usize = 5;
/// Of so many kills one strikes while the daemon starts.
const KILLS_PER_START: usize = 5;
/// How soon after its start a daemon sends again.
const FIRST_REQUEST: Duration = Duration::from_secs(5);
/// What a long run's provider must reach of a thousand changes a second, or the run says nothing of kills under load.
const CHANGES_PER_SECOND_MIN: f64 = 800.0;
/// Resources under the stream of changes.
const RESOURCES: usize = 400;
/// Resources that change at once, and how often some do: a thousand rows change in a second.
const CHANGED: usize = 40;
/// Rounds with the same secrets: one that changes faster than it can be read and sent is never sent.
const ROUNDS_PER_SECRET: usize = 5;
const CHANGES_EVERY: Duration = Duration::from_millis(40);

/// The provider, changing all its rows again and again until it is told to stop.
struct Stream {
    stop: CancellationToken,
    rounds: JoinHandle<usize>,
}

impl Stream {
    /// Begins with round 1.
    async fn start(provider: &TestDatabase) -> Self {
        let stop = CancellationToken::new();
        let mut session = provider.session().await;
        let told = stop.clone();
        let rounds = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(CHANGES_EVERY);
            let mut round = 0;
            while !told.is_cancelled() {
                round += 1;
                for first in (0..RESOURCES).step_by(CHANGED) {
                    ticks.tick().await;
                    session
                        .execute(&rotation(
                            round,
                            round / ROUNDS_PER_SECRET,
                            first..first + CHANGED,
                        ))
                        .await;
                }
            }
            round
        });
        Self { stop, rounds }
    }

    /// The last round.
    async fn end(self) -> usize {
        self.stop.cancel();
        self.rounds.await.expect("the provider does not panic")
    }
}

/// Counts requests as they end, at the simulated Vercel itself: a channel that lags would lose some.
pub(crate) struct Requests<'a> {
    remote: &'a Remote,
    counted: u64,
}

impl<'a> Requests<'a> {
    /// Counts from now on.
    pub(crate) fn of(remote: &'a Remote) -> Self {
        let counted = remote.ended();
        Self { remote, counted }
    }

    /// Waits for so many more than were waited for before.
    pub(crate) async fn more(&mut self, count: usize) {
        self.counted += u64::try_from(count).expect("it is small");
        let counted = self.counted;
        let sent = self
            .remote
            .wait_until(|remote| remote.ended() >= counted)
            .await;
        let ended = self.remote.ended();
        assert!(
            sent.is_ok(),
            "the daemon sent {ended} of {counted} requests"
        );
    }
}

/// Where the daemon is when it is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So long after its start, whatever it does then.
    AtTheStart(Duration),
    /// So many requests after the first since its start, and so long after the last of them.
    AtWork(usize, Duration),
}

/// The moments of all kills, as a seed has them.
struct Moments {
    random: SeededRandom,
    drawn: usize,
    /// Which of the next [`KILLS_PER_START`] kills strikes at the start.
    at_start: usize,
}

impl Moments {
    /// Those of `RECONCILED_KILLS_SEED`, or others each time; says which, so that a failure can be tried again.
    #[expect(clippy::print_stdout, reason = "a failure is tried again by its seed")]
    fn chosen() -> Self {
        let seed = match std::env::var("RECONCILED_KILLS_SEED") {
            Ok(seed) => seed
                .parse()
                .expect("RECONCILED_KILLS_SEED is a whole number"),
            Err(_) => SeededRandom::from_system().unique().unsigned_abs(),
        };
        println!("RECONCILED_KILLS_SEED={seed}");
        Self {
            random: SeededRandom::new(seed),
            drawn: 0,
            at_start: 0,
        }
    }

    fn draw(&mut self) -> Moment {
        let nth = self.drawn % KILLS_PER_START;
        if nth == 0 {
            // The first daemon of all was waited for until it had sent everything: it is not starting.
            let first = usize::from(self.drawn == 0);
            self.at_start = first + self.below(KILLS_PER_START - first);
        }
        self.drawn += 1;
        if nth == self.at_start {
            return Moment::AtTheStart(self.within(Duration::from_millis(300)));
        }
        Moment::AtWork(self.below(40), self.within(Duration::from_millis(50)))
    }

    fn below(&self, end: usize) -> usize {
        let end = i64::try_from(end).expect("it is small");
        usize::try_from(self.random.unique() % end).expect("it is never negative")
    }

    fn within(&self, most: Duration) -> Duration {
        most.mul_f64(self.random.fraction())
    }
}

#[test]
fn of_five_kills_one_strikes_while_the_daemon_starts() {
    for seed in 0..100 {
        let mut moments = Moments {
            random: SeededRandom::new(seed),
            drawn: 0,
            at_start: 0,
        };
        for five in 0..4 {
            let at_start = (0..KILLS_PER_START)
                .map(|_| moments.draw())
                .enumerate()
                .filter(|(_, moment)| matches!(moment, Moment::AtTheStart(_)));
            let at_start: Vec<_> = at_start.collect();
            assert_eq!(at_start.len(), 1, "seed {seed}: {at_start:?}");
            assert!(five > 0 || at_start[0].0 > 0, "the first kill is none");
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the figures are what a long run is for"
)]
async fn killed_at_random(provider: TestDatabase) {
    let long: Option<usize> = std::env::var("RECONCILED_KILLS")
        .ok()
        .map(|kills| kills.parse().expect("RECONCILED_KILLS is a whole number"));
    let kills = long.unwrap_or(KILLS);
    let mut moments = Moments::chosen();
    let world = World::of(provider, RESOURCES).await;
    world.create().await;
    let mut daemon: Process = world.installation.run();
    world.agreed(0).await;
    let mut seen = Requests::of(world.remote());
    let begin = Instant::now();
    let stream = Stream::start(&world.provider).await;
    let mut started = None;
    let mut until_first_request = Vec::new();
    for _ in 0..kills {
        // Answers are lost as well, so that doubt and crashes meet.
        world
            .remote()
            .fault_times(3, Fault::DropAfter, Matcher::patch());
        match moments.draw() {
            Moment::AtTheStart(after) => tokio::time::sleep(after).await,
            Moment::AtWork(requests, after) => {
                first_request(&mut seen, &daemon, started, &mut until_first_request).await;
                seen.more(requests).await;
                tokio::time::sleep(after).await;
            }
        }
        daemon.end_with(Signal::KILL).await;
        world.assert_killed_state_is_sound().await;
        seen = Requests::of(world.remote());
        started = Some(Instant::now());
        daemon = world.installation.run();
    }
    first_request(&mut seen, &daemon, started, &mut until_first_request).await;
    let rounds = stream.end().await;
    let elapsed = begin.elapsed();
    world.agreed_on(rounds, rounds / ROUNDS_PER_SECRET).await;
    assert!(daemon.end_with(Signal::TERM).await.success());
    world.assert_clean();
    world.assert_sound().await;
    until_first_request.sort_unstable();
    let changes = u32::try_from(rounds * RESOURCES).expect("it is no endless run");
    let changes_per_second = f64::from(changes) / elapsed.as_secs_f64();
    println!(
        "{kills} kills in {elapsed:.0?} under {changes_per_second:.0} changes/s; from start to first request {:.0?} (median), {:.0?} (longest)",
        until_first_request[until_first_request.len() / 2],
        until_first_request[until_first_request.len() - 1],
    );
    // A short run ends in the midst of its first second.
    assert!(
        long.is_none() || changes_per_second >= CHANGES_PER_SECOND_MIN,
        "{changes_per_second:.0} changes/s are no load; the machine was too slow for this run to say anything"
    );
}

/// Waits for the first request of the daemon that was started then, which comes in time: the time for which its threads stood in line
/// for a processor is that of whatever else the machine does.
async fn first_request(
    seen: &mut Requests<'_>,
    daemon: &Process,
    started: Option<Instant>,
    until_first_request: &mut Vec<Duration>,
) {
    seen.more(1).await;
    let Some(started) = started else {
        return;
    };
    let elapsed = started.elapsed();
    let in_line = daemon.in_line();
    assert!(
        elapsed <= FIRST_REQUEST + in_line,
        "the first request came {elapsed:.1?} after the start, of which it stood in line for {in_line:.1?}"
    );
    until_first_request.push(elapsed);
}

#[tokio::test]
async fn killed_at_random_over_sqlite_nothing_is_lost_and_nothing_goes_back() {
    killed_at_random(sqlite::database()).await;
}

#[tokio::test]
async fn killed_at_random_over_postgres_nothing_is_lost_and_nothing_goes_back() {
    killed_at_random(Postgres::shared().database().await).await;
}

#[tokio::test]
async fn killed_at_random_over_mariadb_nothing_is_lost_and_nothing_goes_back() {
    killed_at_random(MariaDb::shared().database().await).await;
}

#[tokio::test]
async fn sigterm_lets_the_request_in_flight_end_and_records_it() {
    let world = World::new(sqlite::database()).await;
    world
        .remote()
        .fault(Fault::Delay(Duration::from_secs(600)), Matcher::patch());
    world
        .provider
        .execute("INSERT INTO resource VALUES (0, 'icfg_0', 'res_0', 1, 'ready', NULL, NULL)")
        .await;
    let mut daemon = world.installation.run();
    world
        .remote()
        .wait_until(|remote| remote.held() == 1)
        .await
        .expect("a request is in flight");
    daemon.signal(Signal::TERM);
    daemon.wait_for_event("shutdown.requested").await;
    world.remote().release();
    assert!(daemon.wait().await.success());
    assert_eq!(daemon.events("delivery.acknowledged").len(), 1);
    // It was recorded: the next process has nothing to send.
    let said = world.installation.output(&["plan", "--exit-code"]).await;
    assert_eq!(said.status.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_the_request_is_in_doubt() {
    let world = World::new(sqlite::database()).await;
    world
        .remote()
        .fault(Fault::Delay(Duration::from_secs(600)), Matcher::patch());
    world
        .provider
        .execute("INSERT INTO resource VALUES (0, 'icfg_0', 'res_0', 1, 'ready', NULL, NULL)")
        .await;
    let mut daemon = world.installation.run();
    world
        .remote()
        .wait_until(|remote| remote.held() == 1)
        .await
        .expect("a request is in flight");
    daemon.signal(Signal::TERM);
    daemon.wait_for_event("shutdown.requested").await;
    daemon.end_with(Signal::INT).await;
    world.remote().release();
    let mut again = world.installation.run();
    again.wait_for_event("delivery.acknowledged").await;
    assert!(again.end_with(Signal::TERM).await.success());
    assert_eq!(world.remote().violations(), []);
}

#[tokio::test]
async fn a_source_that_goes_away_is_said_once_and_found_again_by_itself() {
    let mut server = Postgres::dedicated();
    let world = World::new(server.database().await).await;
    world.create().await;
    let mut daemon = world.installation.run();
    world.agreed(0).await;
    server.kill();
    daemon.wait_for_event("source.outage_began").await;
    // A summary later it has tried again in vain and has not repeated itself.
    daemon.wait_for_event("summary").await;
    server.start();
    daemon.wait_for_event("source.outage_ended").await;
    assert_eq!(daemon.events("source.outage_began").len(), 1);
    world.rotate(1).await;
    world.agreed(1).await;
    assert!(daemon.end_with(Signal::TERM).await.success());
    world.assert_clean();
}

#[tokio::test]
async fn an_outage_of_the_api_is_two_lines() {
    let mut world = World::new(sqlite::database()).await;
    world.create().await;
    let (address, remote) = (world.simulator.address(), world.remote().clone());
    let idle = Simulator::start(Options::creating())
        .await
        .expect("a free port");
    std::mem::replace(&mut world.simulator, idle)
        .shutdown()
        .await;
    let mut daemon = world.installation.run();
    daemon.wait_for_event("vercel.outage_began").await;
    daemon.wait_for_event("summary").await;
    let again = Simulator::serve(remote, address)
        .await
        .expect("the port is free again");
    std::mem::replace(&mut world.simulator, again)
        .shutdown()
        .await;
    daemon.wait_for_event("vercel.outage_ended").await;
    world.agreed(0).await;
    assert!(daemon.end_with(Signal::TERM).await.success());
    assert_eq!(daemon.events("vercel.outage_began").len(), 1);
    assert_eq!(daemon.events("vercel.outage_ended").len(), 1);
    world.assert_clean();
}

#[tokio::test]
async fn a_sweep_that_was_killed_goes_on_where_it_stopped() {
    const ROWS: u64 = 2_000;
    const PAGE: u64 = 10;
    let world = World::new(sqlite::database()).await;
    let rows = format!(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO resource (installation_id, id, version, status) SELECT 'icfg_0', 'res_' || i, 1, 'ready' FROM n"
    );
    world.provider.execute(&rows).await;
    let state = world.installation.path("state.db");
    let configure = |rows_per_second: u64| {
        world.installation.configure(&format!(
            "[source]\nurl = \"{}\"\n\
             query = \"SELECT installation_id, id AS resource_id, status FROM resource\"\n\
             installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
             [state]\nurl = \"sqlite://{}\"\n[vercel]\nbase_url = \"{}\"\n\
             [reconcile]\nfirst_sight = \"adopt\"\nsweep_rows_per_second = {rows_per_second}\n",
            world.provider.url,
            state.display(),
            world.simulator.base_url(),
        ));
    };
    configure(PAGE);
    let mut daemon = world.installation.run();
    daemon.wait_for_event("daemon.started").await;
    let adopted = async || -> i64 {
        let mut connection =
            sqlx::SqliteConnection::connect(&format!("sqlite://{}?mode=ro", state.display()))
                .await
                .expect("the state is there");
        sqlx::query_scalar("SELECT COUNT(*) FROM resource")
            .fetch_one(&mut connection)
            .await
            .expect("the state is readable")
    };
    while adopted().await < 2 * i64::try_from(PAGE).expect("small") {
        tokio::task::yield_now().await;
    }
    daemon.end_with(Signal::KILL).await;
    let before = adopted().await;
    assert!(
        before < i64::try_from(ROWS / 2).expect("small"),
        "{before} rows were read"
    );
    configure(0);
    let mut daemon = world.installation.run();
    let account = daemon.wait_for_event("sweep.completed").await;
    // What is written down with a page is the account before it: a sweep that went on counts that page short.
    assert_eq!(account["rows"], ROWS - PAGE, "{account}");
    assert_eq!(adopted().await, i64::try_from(ROWS).expect("small"));
    assert!(daemon.end_with(Signal::TERM).await.success());
}

#[tokio::test]
async fn a_restore_beside_a_sweep_that_was_killed_is_followed_by_a_whole_sweep() {
    const ROWS: u64 = 300;
    const PAGE: u64 = 10;
    let world = World::new(sqlite::database()).await;
    // Without a cursor: only sweeps see these rows, but for one that polls have to stand by.
    let rows = format!(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO resource (installation_id, id, version, status)
         SELECT 'icfg_0', printf('res_%04d', i), CASE i WHEN {ROWS} THEN 1 END, 'ready' FROM n"
    );
    world.provider.execute(&rows).await;
    let state = world.installation.path("state.db");
    let configure = |rows_per_second: u64| {
        world.installation.configure(&format!(
            "[source]\nurl = \"{}\"\noverlap = 0\n\
             query = \"SELECT installation_id, id AS resource_id, version AS cursor, status FROM resource\"\n\
             installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
             [state]\nurl = \"sqlite://{}\"\n[vercel]\nbase_url = \"{}\"\n\
             [reconcile]\nfirst_sight = \"adopt\"\nsweep_rows_per_second = {rows_per_second}\n\
             [schedule]\npoll = \"* * * * * *\"\n",
            world.provider.url,
            state.display(),
            world.simulator.base_url(),
        ));
    };
    configure(PAGE);
    let mut daemon = world.installation.run();
    daemon.wait_for_event("daemon.started").await;
    let adopted = async || -> i64 {
        let url = format!("sqlite://{}?mode=ro", state.display());
        let connection = sqlx::SqliteConnection::connect(&url).await;
        let mut connection = connection.expect("the state is there");
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM resource");
        let count = count.fetch_one(&mut connection).await;
        count.expect("the state is readable")
    };
    while adopted().await < 2 * i64::try_from(PAGE).expect("small") {
        tokio::task::yield_now().await;
    }
    daemon.end_with(Signal::KILL).await;
    assert_eq!(daemon.events("sweep.completed").len(), 0);

    // Another file under the same name, in which a row differs that the sweep has passed.
    let (file, restored) = (
        &world.provider.name,
        format!("{}.restored", world.provider.name),
    );
    std::fs::copy(file, &restored).expect("the directory is writable");
    std::fs::rename(&restored, file).expect("the directory is writable");
    world
        .provider
        .execute("UPDATE resource SET status = 'suspended' WHERE id = 'res_0001'")
        .await;
    configure(0);
    let mut daemon = world.installation.run();
    let why = daemon.wait_for_event("poll.needs_sweep").await;
    assert_eq!(why["reason"], "the source is another database than before");
    // Polls go first, so that the sweep that was killed is not gone on with.
    let whole = daemon.wait_for_event("sweep.completed").await;
    assert_eq!(whole["rows"], ROWS, "{whole}");
    let reached = world.remote().wait_until(|remote| {
        let resource = remote.resource("icfg_0", "res_0001");
        resource.is_some_and(|resource| {
            resource.field(reconciled::simulator::Field::Status) == Some(&"suspended".into())
        })
    });
    reached.await.expect("the whole sweep finds it");
    assert!(daemon.end_with(Signal::TERM).await.success());
}
