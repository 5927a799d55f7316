//! What the service manager hears, on a real socket.

use rustix::process::Signal;
use sd_notify::NotifyState;
use tokio::net::UnixDatagram;
use tokio::time::timeout;

use super::World;
use crate::support::HUNG;

/// The service manager's end of `NOTIFY_SOCKET`.
struct Manager(UnixDatagram);

impl Manager {
    /// The next message that has a line which begins like this.
    async fn hear(&self, line: &str) -> String {
        let mut buffer = [0; 4096];
        let search = async {
            loop {
                let length = self.0.recv(&mut buffer).await.expect("the socket is open");
                let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if message.lines().any(|known| known.starts_with(line)) {
                    return message;
                }
            }
        };
        timeout(HUNG, search)
            .await
            .unwrap_or_else(|_| panic!("{line} was never said"))
    }
}

#[tokio::test]
async fn the_service_manager_hears_of_start_progress_reload_and_end() {
    let mut world = World::new().await;
    let path = world.installation.path("notify");
    let manager = Manager(UnixDatagram::bind(&path).expect("the directory is writable"));
    let socket = path.to_str().expect("the path is text").to_owned();
    world.installation.set_environment("NOTIFY_SOCKET", &socket);
    world.insert(1, "res_1", 1, "ready").await;
    world.configure("", "[log]\nsummary_interval = \"1s\"\n");
    let mut daemon = world.installation.run();

    manager.hear("READY=1").await;
    // Ready is not said before it has started: what is written down of that was written before, since it writes nothing now.
    daemon.signal(Signal::STOP);
    daemon.wait_for_event("daemon.started").await;
    daemon.signal(Signal::CONT);
    for _ in 0..3 {
        manager.hear("WATCHDOG=1").await;
    }
    let status = manager.hear("STATUS=0 waiting").await;
    assert!(
        status.contains("0 dead, 0 quarantined, 0 paused; "),
        "{status}"
    );

    let before = monotonic_micros();
    daemon.signal(Signal::HUP);
    let reloading = manager.hear("RELOADING=1").await;
    let said_at: i128 = reloading
        .lines()
        .find_map(|line| line.strip_prefix("MONOTONIC_USEC="))
        .expect("systemd wants to know when")
        .parse()
        .expect("a number");
    assert!(
        (before..=monotonic_micros()).contains(&said_at),
        "{before} {said_at}"
    );
    manager.hear("READY=1").await;
    daemon.wait_for_event("config.reloaded").await;
    manager.hear("WATCHDOG=1").await;

    daemon.signal(Signal::TERM);
    manager.hear("STOPPING=1").await;
    assert!(daemon.wait().await.success());
}

fn monotonic_micros() -> i128 {
    match NotifyState::monotonic_usec_now() {
        Ok(NotifyState::MonotonicUsec(now)) => now,
        other => panic!("the machine has no monotonic clock: {other:?}"),
    }
}
