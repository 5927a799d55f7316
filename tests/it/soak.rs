//! The real daemon for as long as is asked, under changes and faults that never pause: it must neither err nor grow.
//!
//! The ordinary run is one round of every fault. `tests/soak` runs an optimised daemon for an hour or more by the same
//! code, and only then judges memory: a minute says nothing about it.

mod faults;
mod gauge;
mod heard;
mod load;
mod watch;

use std::time::{Duration, Instant};

use reconciled::simulator::{Options, Simulator, Weather};
use rustix::process::Signal;

use self::{
    faults::{Bed, Fault},
    gauge::{Gauge, Limits},
    heard::Daemon,
    load::Load,
    watch::Watch,
};
use crate::support::{
    postgres::Postgres,
    process::{Installation, holds},
    proxy::Proxy,
};

/// Changes of the provider's rows per second.
const CHANGES_PER_SECOND: u64 = 100;
/// Changes come this often, several at once.
const TICK: Duration = Duration::from_millis(100);
/// The daemon's `[retry] lease`.
const LEASE: Duration = Duration::from_secs(2);
/// Errors that faults of this kind make the daemon report, and that a person would want to hear of.
const EXPECTED_ERRORS: [&str; 3] = [
    "source.outage_began",
    "vercel.outage_began",
    "installation.paused",
];

/// How long, and how closely.
struct Plan {
    /// Time under load, a whole round of faults at least.
    duration: Duration,
    /// From the end of one fault to the next.
    pause: Duration,
    /// From one look at the process to the next.
    sample: Duration,
}

impl Plan {
    /// One round of every fault, or `RECONCILED_SOAK_MINUTES`.
    fn chosen() -> Self {
        let minutes = std::env::var("RECONCILED_SOAK_MINUTES")
            .ok()
            .map(|minutes| {
                minutes
                    .parse::<u64>()
                    .expect("RECONCILED_SOAK_MINUTES is a whole number")
            });
        match minutes {
            None => Self {
                duration: Duration::ZERO,
                pause: Duration::from_millis(500),
                sample: Duration::from_millis(500),
            },
            Some(minutes) => Self {
                duration: Duration::from_secs(60 * minutes),
                pause: Duration::from_secs(5),
                sample: Duration::from_secs(5),
            },
        }
    }

    /// Whether it is long enough to say something about memory.
    fn is_long(&self) -> bool {
        self.duration >= Duration::from_secs(600)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures are what a soak is for")]
async fn under_changes_and_faults_without_pause_it_neither_errs_nor_grows() {
    let plan = Plan::chosen();
    let postgres = Postgres::dedicated();
    let provider = postgres.database().await;
    let mut load = Load::create(&provider).await;
    let options = Options {
        weather: Some(weather()),
        journal_limit: 10_000,
        ..Options::creating()
    };
    let simulator = Simulator::start(options).await.expect("a free port");
    let remote = simulator.remote().clone();
    load.install(&remote);
    let watch = Watch::over(&remote);
    let source = Proxy::in_front_of_url(&provider.url).await;
    let vercel = Proxy::in_front_of(simulator.address()).await;
    let mut installation = Installation::new("");
    if let Some(program) = std::env::var_os("RECONCILED_SOAK_BINARY") {
        installation.set_program(program.into());
    }
    installation.configure(&configuration(
        &source.url(&provider.url),
        &installation.path("state.db"),
        &format!("http://{}", vercel.address()),
    ));
    let mut daemon = Daemon::start(&installation);
    let mut gauge = Gauge::of(daemon.pid(), installation.path(""), plan.sample);
    let mut bed = Bed {
        postgres,
        source,
        vercel,
        remote: remote.clone(),
        daemon: daemon.pid(),
    };

    let begin = Instant::now();
    let mut next_fault = begin + plan.pause;
    let mut faults = Fault::ALL.into_iter().cycle();
    let mut struck = 0;
    let mut ticks = tokio::time::interval(TICK);
    while begin.elapsed() < plan.duration || struck < Fault::ALL.len() {
        ticks.tick().await;
        load.go_on(begin.elapsed()).await;
        gauge.look(begin.elapsed());
        if Instant::now() >= next_fault {
            let fault = faults.next().expect("a cycle does not end");
            fault.strike(&mut bed, &mut load, begin).await;
            next_fault = Instant::now() + plan.pause;
            struck += 1;
        }
    }

    remote.set_weather(None).expect("clear skies can be");
    load.settle().await;
    remote
        .wait_until(|remote| load.disagreement(remote).is_none())
        .await
        .unwrap_or_else(|error| {
            panic!(
                "{error}: {:?}. The daemon said last:\n{}",
                load.disagreement(&remote),
                daemon.last_lines()
            )
        });
    let elapsed = begin.elapsed();
    gauge.look(elapsed);
    let status = daemon.end_with(Signal::TERM).await;
    assert!(status.success(), "{status}: {}", daemon.last_lines());

    // What was in doubt when it ended is sent once more; then the daemon too sees nothing that differs.
    for command in [&["once", "--sweep"][..], &["plan", "--exit-code"]] {
        let said = installation.output(command).await;
        assert_eq!(said.status.code(), Some(0), "{command:?}: {said:?}");
    }
    let heard = daemon.heard();
    let seen = watch.seen();
    println!(
        "{struck} faults of the network, the databases and the process in {elapsed:.0?}, and the API's weather\n\
         {} changes, {seen}\n{heard}\n{gauge}",
        load.changes(),
    );
    assert_eq!(heard.panics, 0);
    let unexpected: Vec<_> = heard
        .errors
        .iter()
        .filter(|error| !EXPECTED_ERRORS.contains(&error.event.as_str()))
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    assert_eq!(remote.violations(), []);
    assert_eq!(seen.went_back, Vec::<String>::new());
    assert_eq!(seen.missed, 0, "the watch saw every request");
    assert!(!heard.secret, "a line of the log holds a secret or a token");
    for mark in [load::SECRET_MARK, load::TOKEN_MARK] {
        let found = holds(&installation.path(""), mark.as_bytes());
        assert!(!found, "a file of the daemon holds {mark}");
    }
    gauge.judge(&Limits {
        memory: plan.is_long(),
    });
}

/// Every fault by chance that the simulated Vercel has, each rare enough that work goes on.
fn weather() -> Weather {
    Weather {
        seed: 1,
        p_500: 0.01,
        p_502: 0.01,
        p_503: 0.02,
        p_429: 0.01,
        p_409: 0.01,
        p_drop_before: 0.01,
        p_drop_after: 0.02,
        p_apply_late: 0.01,
        p_delay: 0.05,
        p_hang: 0.002,
        p_not_http: 0.005,
        delay_max: Duration::from_millis(300),
        late_max: Duration::from_millis(800),
    }
}

/// Retention is short, so that whatever is to be bounded by pruning reaches its bound within minutes.
fn configuration(source: &str, state: &std::path::Path, vercel: &str) -> String {
    format!(
        r#"
[source]
url = "{source}"
query = """
SELECT installation_id, id AS resource_id, version AS cursor, name, status, metadata, billing_plan, secrets
FROM resource"""
installations_query = "SELECT id AS installation_id, token AS access_token FROM installation"
overlap = 0
statement_timeout = "2s"
[state]
url = "sqlite://{}"
[vercel]
base_url = "{vercel}"
request_timeout = "1s"
connect_timeout = "500ms"
max_in_flight = 32
[guard]
destructive_max = 0
[schedule]
poll = "* * * * * *"
sweep = "30 * * * * *"
drift = "15 * * * * *"
prune = "*/20 * * * * *"
[retry]
initial_interval = "50ms"
max_interval = "1s"
lease = "{lease}s"
late_apply = "2s"
[retention]
delivered = "1m"
attempts = "2m"
[log]
summary_interval = "10s"
"#,
        state.display(),
        lease = LEASE.as_secs(),
    )
}
