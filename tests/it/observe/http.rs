//! The listener: what it answers, when, and how it defends itself.

use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{World, ask, get, listening};
use crate::support::HUNG;
use crate::support::postgres::Postgres;

#[tokio::test]
async fn a_daemon_at_work_is_alive_and_ready_and_answers_nothing_else() {
    let world = World::new().await;
    world.insert(1, "res_1", 1, "ready").await;
    world.configure("", "");
    let mut daemon = world.installation.run();
    let address = listening(&daemon).await;
    daemon.wait_for_event("sweep.completed").await;

    let alive = get(&address, "/healthz").await;
    assert_eq!(
        (alive.status, alive.body.as_str()),
        (200, "alive: both loops get on\n")
    );
    let ready = get(&address, "/readyz?verbose").await;
    assert_eq!(
        (ready.status, ready.body.as_str()),
        (200, "ready: the state is open, the source can be read\n")
    );
    let metrics = get(&address, "/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(
        metrics
            .head
            .contains("content-type: text/plain; version=0.0.4"),
        "{}",
        metrics.head
    );

    let head = ask(&address, "HEAD /healthz HTTP/1.1\r\nHost: test\r\n\r\n").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let post = ask(
        &address,
        "POST /metrics HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{}",
    )
    .await;
    assert_eq!(post.status, 405);
    assert!(post.head.contains("allow: get, head"), "{}", post.head);
    for path in ["/", "/healthz/", "/metrics/x", "/debug"] {
        assert_eq!(get(&address, path).await.status, 404, "{path}");
    }

    let set = format!("http.listen={address}");
    let asked = world.installation.output(&["--set", &set, "health"]).await;
    assert_eq!(asked.status.code(), Some(0), "{asked:?}");
    assert_eq!(asked.stdout, alive.body.as_bytes());
    let asked = world
        .installation
        .output(&["--set", &set, "health", "--ready"])
        .await;
    assert_eq!(
        (asked.status.code(), asked.stdout),
        (Some(0), ready.body.into_bytes())
    );

    assert!(daemon.end_with(Signal::TERM).await.success());
    let asked = world.installation.output(&["--set", &set, "health"]).await;
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert_eq!(asked.status.code(), Some(1), "{said}");
    assert!(said.contains("error[R045]"), "{said}");
    let asked = world
        .installation
        .output(&["--set", "http.listen=", "health"])
        .await;
    assert_eq!(asked.status.code(), Some(78), "{asked:?}");
}

#[tokio::test]
async fn an_outage_of_source_and_vercel_is_neither_unhealthy_nor_unready() {
    let mut server = Postgres::dedicated();
    let mut world = World::over(server.database().await).await;
    world.insert(1, "res_1", 1, "ready").await;
    world.insert(2, "res_2", 1, "ready").await;
    world.configure("", "");
    let mut daemon = world.installation.run();
    let address = listening(&daemon).await;
    daemon.wait_for_event("sweep.completed").await;

    let gone = reconciled::simulator::Simulator::start(reconciled::simulator::Options::creating())
        .await
        .expect("loopback has a free port");
    std::mem::replace(&mut world.simulator, gone)
        .shutdown()
        .await;
    world
        .provider
        .execute("UPDATE resource SET version = 2, status = 'suspended'")
        .await;
    daemon.wait_for_event("vercel.outage_began").await;
    let told = async {
        // The daemon leaves its signs of life every few seconds.
        while !world.status().await.starts_with("OUTAGE") {}
    };
    timeout(HUNG, told).await.expect("status hears of it");
    server.kill();
    daemon.wait_for_event("source.outage_began").await;

    let alive = get(&address, "/healthz").await;
    assert_eq!(alive.status, 200, "{alive:?}");
    let ready = get(&address, "/readyz").await;
    assert_eq!(
        (ready.status, ready.body.as_str()),
        (
            200,
            "ready: the state is open, the source cannot be read (unreachable) and is tried again\n"
        )
    );
    let metrics = get(&address, "/metrics").await.body;
    for line in [
        "reconciled_source_up 0",
        "reconciled_vercel_outage 1",
        "reconciled_state_up 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}: {metrics}");
    }
}

#[tokio::test]
async fn until_the_source_was_tried_it_is_alive_and_not_ready() {
    let world = World::over(Postgres::shared().database().await).await;
    world.configure("", "");
    let mut migration = world.provider.session().await;
    migration
        .execute("BEGIN; LOCK TABLE resource IN ACCESS EXCLUSIVE MODE")
        .await;
    // However long the rest of this test takes, its first statement waits.
    let patient = ["--set", "source.statement_timeout=1h", "run"];
    let mut daemon = world.installation.start(&patient);
    let address = listening(&daemon).await;
    let waiting =
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'resource'::regclass";
    let asked = async { while world.provider.integer(waiting).await == 0 {} };
    timeout(HUNG, asked).await.expect("it asks the source");
    let alive = get(&address, "/healthz").await;
    assert_eq!(alive.status, 200, "{alive:?}");
    let ready = get(&address, "/readyz").await;
    assert_eq!(
        (ready.status, ready.body.as_str()),
        (503, "not ready: the source was not tried yet\n")
    );
    daemon.end_with(Signal::KILL).await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_said_before_anything_begins() {
    let world = World::new().await;
    let taken = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("loopback has a free port");
    let address = taken.local_addr().expect("it is bound");
    world.configure("", "");
    let set = format!("http.listen={address}");
    let said = world.installation.output(&["--set", &set, "run"]).await;
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains(&format!(
            "error[R038]: cannot listen on {address} for health and metrics"
        )),
        "{errors}"
    );
    let log = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        log.contains("daemon.failed") && !log.contains("daemon.started"),
        "{log}"
    );
}

#[tokio::test]
async fn oversized_slow_and_too_many_requests_end_by_themselves() {
    let world = World::new().await;
    world.configure("", "");
    let mut daemon = world.installation.run();
    let address = listening(&daemon).await;

    let long = "x".repeat(20_000);
    let refused = ask(
        &address,
        &format!("GET /healthz HTTP/1.1\r\nHost: {long}\r\n\r\n"),
    )
    .await;
    assert!(
        [0, 431].contains(&refused.status),
        "a head beyond the limit is not answered: {refused:?}"
    );

    // 32 clients that say nothing take every place; the next one is turned away at once, the first are in the end.
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(TcpStream::connect(&address).await.expect("it listens"));
    }
    let turned_away = get(&address, "/healthz").await;
    assert_eq!(turned_away.status, 0, "{turned_away:?}");
    for mut client in silent {
        let mut said = Vec::new();
        timeout(HUNG, client.read_to_end(&mut said))
            .await
            .expect("it does not wait for ever")
            .unwrap_or_default();
        assert!(
            said.is_empty() || said.starts_with(b"HTTP/1.1 408"),
            "{:?}",
            String::from_utf8_lossy(&said)
        );
    }
    assert_eq!(get(&address, "/healthz").await.status, 200);
    assert!(daemon.end_with(Signal::TERM).await.success());
}
