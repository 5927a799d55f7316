//! What befalls a running daemon from outside: its source's server, its connections, its disk, its clock, its own processor
//! time. Each heals without a restart, and as soon as its timeouts and waits allow.
//!
//! Nothing here waits for time to pass, but for the freeze: its length is what is tried.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use reconciled::simulator::{Fault, Matcher};
use rustix::process::Signal;
use tokio::process::Command;

use crate::{
    support::{
        database::TestDatabase,
        directory::Directory,
        mariadb::MariaDb,
        postgres::Postgres,
        process::Process,
        proxy::{Mode, Proxy},
        sqlite,
    },
    world::World,
};

/// The longest wait between two tries of the source or of the API, however long they were away.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// The longest wait after the two or three tries that fail in an outage of a moment.
const SHORT_WAIT: Duration = Duration::from_secs(2);
/// What a try takes to find out that the connection it had is silent, and then that a new one is.
const SILENT: Duration = Duration::from_secs(2 * 5);
/// `[source] statement_timeout` and `[vercel] request_timeout` where connections fall silent.
const TIMEOUT: Duration = Duration::from_secs(1);
/// From one poll to the next.
const POLL: Duration = Duration::from_secs(1);
/// For everything that takes no time on an idle machine, forty deliveries included.
const SLACK: Duration = Duration::from_secs(8);

#[tokio::test]
async fn a_killed_postgres_is_found_again() {
    let mut server = Postgres::dedicated();
    let world = World::new(server.database().await).await;
    let mut daemon = at_rest(&world).await;
    server.kill();
    daemon.wait_for_event("source.outage_began").await;
    server.start();
    let healed = heals(&world, &mut daemon, 1);
    within(LONGEST_WAIT + SILENT + POLL + SLACK, healed).await;
    assert_eq!(daemon.events("source.outage_began").len(), 1);
    ends(&world, daemon).await;
}

#[tokio::test]
async fn a_killed_mariadb_is_found_again() {
    let mut server = MariaDb::dedicated();
    let world = World::new(server.database().await).await;
    let mut daemon = at_rest(&world).await;
    server.kill();
    daemon.wait_for_event("source.outage_began").await;
    server.start();
    let healed = heals(&world, &mut daemon, 1);
    within(LONGEST_WAIT + SILENT + POLL + SLACK, healed).await;
    assert_eq!(daemon.events("source.outage_began").len(), 1);
    ends(&world, daemon).await;
}

#[tokio::test]
async fn connections_to_postgres_that_are_cut_or_swallowed_heal() {
    connections_heal(Postgres::shared().database().await).await;
}

#[tokio::test]
async fn connections_to_mariadb_that_are_cut_or_swallowed_heal() {
    connections_heal(MariaDb::shared().database().await).await;
}

async fn connections_heal(provider: TestDatabase) {
    let proxy = Proxy::in_front_of_url(&provider.url).await;
    let mut world = World::new(provider).await;
    let through = proxy.url(&world.provider.url);
    world
        .installation
        .set_environment("RECONCILED__SOURCE__URL", &through);
    world.installation.set_environment(
        "RECONCILED__SOURCE__STATEMENT_TIMEOUT",
        &seconds_of(TIMEOUT),
    );
    let mut daemon = at_rest(&world).await;
    proxy.cut().await;
    let healed = heals(&world, &mut daemon, 1);
    within(POLL + SHORT_WAIT + SLACK, healed).await;
    // Whatever is sent vanishes, and connections that lost something stay silent for good.
    proxy.set(Mode::Swallow);
    world.rotate(2).await;
    daemon.wait_for_event("source.outage_began").await;
    proxy.set(Mode::Forward);
    // A try that is under way has lost something for good; the one after it succeeds.
    let agreed = async {
        daemon.wait_for_event("source.outage_ended").await;
        world.agreed(2).await;
    };
    within(SILENT + TIMEOUT + SHORT_WAIT + POLL + SLACK, agreed).await;
    let healed = heals(&world, &mut daemon, 3);
    within(POLL + SLACK, healed).await;
    ends(&world, daemon).await;
}

#[tokio::test]
async fn connections_to_the_api_that_are_cut_refused_or_swallowed_heal() {
    let mut world = World::new(sqlite::database()).await;
    let mut proxy = Proxy::in_front_of(world.simulator.address()).await;
    let through = format!("http://{}", proxy.address());
    world
        .installation
        .set_environment("RECONCILED__VERCEL__BASE_URL", &through);
    world
        .installation
        .set_environment("RECONCILED__VERCEL__REQUEST_TIMEOUT", &seconds_of(TIMEOUT));
    let mut daemon = at_rest(&world).await;
    proxy.cut().await;
    let healed = heals(&world, &mut daemon, 1);
    within(POLL + SHORT_WAIT + SLACK, healed).await;
    proxy.set(Mode::Swallow);
    world.rotate(2).await;
    daemon.wait_for_event("vercel.outage_began").await;
    proxy.set(Mode::Forward);
    let agreed = async {
        daemon.wait_for_event("vercel.outage_ended").await;
        world.agreed(2).await;
    };
    within(TIMEOUT + SHORT_WAIT + POLL + SLACK, agreed).await;
    proxy.refuse().await;
    world.rotate(3).await;
    daemon.wait_for_event("vercel.outage_began").await;
    proxy.accept().await;
    within(SHORT_WAIT + POLL + SLACK, world.agreed(3)).await;
    ends(&world, daemon).await;
}

#[tokio::test]
async fn frozen_for_three_leases_with_requests_out_it_goes_on() {
    const LEASE: Duration = Duration::from_secs(1);
    let mut world = World::new(sqlite::database()).await;
    for (name, value) in [
        ("RECONCILED__RETRY__LEASE", "1s"),
        ("RECONCILED__VERCEL__REQUEST_TIMEOUT", "500ms"),
    ] {
        world.installation.set_environment(name, value);
    }
    let mut daemon = at_rest(&world).await;
    let remote = world.remote();
    for round in 1..=2 {
        remote.fault_times(5, Fault::Hang, Matcher::patch());
        world.rotate(round).await;
        remote
            .wait_until(|remote| remote.held() > 0)
            .await
            .expect("requests are out");
        daemon.signal(Signal::STOP);
        tokio::time::sleep(3 * LEASE).await;
        // Requests that are out when it freezes are answered meanwhile, those of the second round are not.
        if round == 1 {
            remote.release();
        }
        daemon.signal(Signal::CONT);
        world.agreed(round).await;
    }
    remote.clear_faults();
    heals(&world, &mut daemon, 3).await;
    ends(&world, daemon).await;
}

#[tokio::test]
async fn a_clock_stepped_by_an_hour_and_a_day_both_ways_changes_nothing() {
    let mut world = World::new(sqlite::database()).await;
    let clock = FakeClock::new(&mut world);
    let mut daemon = at_rest(&world).await;
    let remote = world.remote().clone();
    let mut round = 0;
    for offset in [3_600, 0, 86_400, 0, -86_400, 0, -3_600, 0] {
        // When it steps, requests are out, others wait for their next attempt, and an answer was just lost.
        round += 1;
        remote.fault_times(1, Fault::DropAfter, Matcher::patch());
        remote.fault_times(2, Fault::status(503), Matcher::patch());
        remote.fault_times(2, Fault::Delay(Duration::from_secs(600)), Matcher::patch());
        world.rotate(round).await;
        remote
            .wait_until(|remote| remote.held() == 2)
            .await
            .expect("two requests are out");
        clock.set(offset);
        daemon
            .wait_for_event_where("summary", |event| {
                let shown = event["timestamp"].as_str().expect("each line has a time");
                (seconds(shown) - now_seconds() - offset).abs() < 1_000
            })
            .await;
        remote.release();
        world.agreed(round).await;
        round += 1;
        heals(&world, &mut daemon, round).await;
    }
    ends(&world, daemon).await;
}

#[tokio::test]
async fn a_state_on_a_full_disk_heals_once_there_is_room() {
    let mut world = World::new(sqlite::database()).await;
    let disk = SmallDisk::new(&mut world);
    world
        .installation
        .set_environment("RECONCILED__HTTP__LISTEN", "127.0.0.1:0");
    world.create().await;
    let mut daemon = Process::start(disk.command(&world));
    let listening = daemon.wait_for_event("http.listening").await;
    let address = listening["address"]
        .as_str()
        .expect("it has one")
        .to_owned();
    world.agreed(0).await;
    let pid = daemon.pid().as_raw_nonzero().to_string();
    let said = async |command: &[&str], part: &str| loop {
        let set = format!("http.listen={address}");
        let arguments = [&["--set", &set], command].concat();
        let mut asked = SmallDisk::beside(&pid, &world, &arguments);
        let output = asked.output().await.expect("util-linux is there");
        if String::from_utf8_lossy(&output.stdout).contains(part) {
            break;
        }
    };
    // On a full disk a sign of life takes the place of the one before.
    within(SLACK, said(&["status"], "\ndaemon\trunning since ")).await;
    disk.order("fill");
    daemon.wait_for_event("disk.filled").await;
    // The state finds room in its own files for a while, so it has to grow.
    let mut round = 0;
    loop {
        round += 1;
        assert!(round < 30, "the disk does not get full");
        world.rotate(round).await;
        world
            .provider
            .execute(&format!(
                "UPDATE resource SET version = version + 1000, metadata = '{{\"filler\":\"{}\"}}'",
                "x".repeat(2_000 * round)
            ))
            .await;
        let polled = daemon.wait_for_line("a poll or an outage", |line| {
            ["poll.completed", "state.outage_began"]
                .iter()
                .any(|event| line.text.contains(event))
        });
        if polled.await.text.contains("state.outage_began") {
            break;
        }
    }
    // What was told a moment before counts for that moment.
    within(SLACK, said(&["status"], "BLOCKED\t")).await;
    within(SLACK, said(&["health", "--ready"], "not ready: cannot ")).await;
    disk.order("clear");
    let healed = async {
        daemon.wait_for_event("state.outage_ended").await;
        heals(&world, &mut daemon, round + 1).await;
    };
    within(LONGEST_WAIT + POLL + SLACK, healed).await;
    within(
        SLACK,
        said(&["health", "--ready"], "ready: the state is open"),
    )
    .await;
    within(SLACK, said(&["status"], "IN SYNC\t")).await;
    assert!(daemon.events("panic").is_empty());
    disk.order("end");
    ends(&world, daemon).await;
}

/// The daemon, with both sides in agreement.
async fn at_rest(world: &World) -> Process {
    world.create().await;
    let daemon = world.installation.run();
    world.agreed(0).await;
    daemon
}

/// Waits for what follows from the moment at which the way is free again, which has to come to an end in time.
async fn within(most: Duration, recovery: impl Future<Output = ()>) {
    let begin = Instant::now();
    recovery.await;
    let elapsed = begin.elapsed();
    assert!(
        elapsed <= most,
        "it took {elapsed:.1?}, more than {most:.0?}"
    );
}

/// As a setting has it.
fn seconds_of(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}

/// The next change arrives.
async fn heals(world: &World, daemon: &mut Process, round: usize) {
    world.rotate(round).await;
    world.agreed(round).await;
    assert!(daemon.events("panic").is_empty());
}

/// Nothing was broken on the way, and the same process still ends in order.
async fn ends(world: &World, mut daemon: Process) {
    assert!(daemon.end_with(Signal::TERM).await.success());
    assert_eq!(daemon.events("daemon.started").len(), 1);
    world.assert_clean();
}

/// The wall clock of the daemon, set by libfaketime; the clock for durations stays, as it does when a clock is stepped.
struct FakeClock {
    file: PathBuf,
}

impl FakeClock {
    fn new(world: &mut World) -> Self {
        let file = world.installation.path("clock");
        let clock = Self { file };
        clock.set(0);
        let library = std::fs::read_dir("/usr/lib")
            .expect("every Debian machine has /usr/lib")
            .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketimeMT.so.1")))
            .find(|path| path.exists())
            .expect("tests/run installs libfaketime");
        let file = clock.file.display().to_string();
        for (name, value) in [
            (
                "LD_PRELOAD",
                library.to_str().expect("Debian's paths are UTF-8"),
            ),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ] {
            world.installation.set_environment(name, value);
        }
        clock
    }

    /// Steps to so many seconds from the true time.
    fn set(&self, offset: i64) {
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{offset:+}")).expect("the directory is writable");
        std::fs::rename(new, &self.file).expect("the directory is writable");
    }
}

/// Seconds since the epoch of a timestamp in RFC 3339.
fn seconds(timestamp: &str) -> i64 {
    humantime::parse_rfc3339(timestamp)
        .expect("a log line's time is RFC 3339")
        .duration_since(std::time::UNIX_EPOCH)
        .expect("it is after 1970")
        .as_secs()
        .try_into()
        .expect("it is before the end of time")
}

#[expect(
    clippy::disallowed_methods,
    reason = "the true time is what the daemon's is compared with"
)]
fn now_seconds() -> i64 {
    let now = humantime::format_rfc3339(std::time::SystemTime::now()).to_string();
    seconds(&now)
}

/// A file system of 8 MiB for the state, in a mount namespace of the daemon's own.
///
/// A helper inside the namespace fills and clears it on command.
struct SmallDisk {
    /// Of its own: whoever looks for secrets in the daemon's files would wait for the pipe's end.
    directory: Directory,
    /// Open for both, so that it waits for no reader and the reader sees no end.
    pipe: File,
}

/// Arguments: the mount point, the pipe of orders, the daemon's command.
const IN_NAMESPACE: &str = r#"
mount -t tmpfs -o size=8m none "$1" || exit 99
disk=$1 orders=$2
shift 2
while read -r order; do
    case $order in
    fill)
        dd if=/dev/zero of="$disk/filler" bs=64k status=none 2>/dev/null
        dd if=/dev/zero of="$disk/filler" bs=1 oflag=append conv=notrunc status=none 2>/dev/null
        echo '{"event":"disk.filled"}'
        ;;
    clear) rm "$disk/filler" ;;
    end) exit ;;
    esac
done <"$orders" &
exec "$@"
"#;

impl SmallDisk {
    fn new(world: &mut World) -> Self {
        let directory = Directory::new(None);
        let [disk, orders] = ["disk", "orders"].map(|name| directory.path().join(name));
        std::fs::create_dir(&disk).expect("the directory is writable");
        let made = std::process::Command::new("mkfifo").arg(&orders).status();
        assert!(made.expect("coreutils are there").success());
        let state = format!("sqlite://{}/state.db", disk.display());
        world
            .installation
            .set_environment("RECONCILED__STATE__URL", &state);
        let pipe = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&orders)
            .expect("the pipe is there");
        Self { directory, pipe }
    }

    /// The daemon, with the disk in its place. Root may mount; others become root of a namespace of users first.
    fn command(&self, world: &World) -> Command {
        let daemon = world.installation.command(&["run"]);
        let daemon = daemon.as_std();
        let mut command = Command::new("unshare");
        command.arg("--mount");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command
            .args(["sh", "-c", IN_NAMESPACE, "sh"])
            .args(["disk", "orders"].map(|name| self.directory.path().join(name)));
        run_as(&mut command, daemon);
        command
    }

    /// A command in the namespace of the daemon with this number.
    fn beside(daemon: &str, world: &World, arguments: &[&str]) -> Command {
        let asked = world.installation.command(arguments);
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", daemon]);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        run_as(&mut command, asked.as_std());
        command
    }

    fn order(&self, order: &str) {
        writeln!(&self.pipe, "{order}").expect("a pipe takes a word");
    }
}

/// Lets `command` end in running `wanted`, in its directory and environment.
fn run_as(command: &mut Command, wanted: &std::process::Command) {
    command
        .arg(wanted.get_program())
        .args(wanted.get_args())
        .current_dir(wanted.get_current_dir().expect("it has one"));
    for (name, value) in wanted.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
}
