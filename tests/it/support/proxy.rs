//! A TCP proxy that does on command what networks do by themselves: cut, refuse, swallow, hold back, delay.
//!
//! A test puts it between the daemon and a database or the API. Its faults are commands, never chance.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{HUNG, port};

/// Bytes that are passed on at once.
const CHUNK: usize = 16 * 1024;

/// A listener on 127.0.0.1 in front of one address; gone, with its connections, when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    upstream: SocketAddr,
    shared: Arc<Shared>,
    /// `None` while connections are refused.
    acceptor: Option<Acceptor>,
}

/// What happens to bytes that arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They are passed on.
    Forward,
    /// They are passed on this much later, chunk by chunk.
    Delay(Duration),
    /// They wait until the mode changes.
    Hold,
    /// They vanish; nobody is told. A connection that lost bytes stays silent for good, as behind a dead router.
    Swallow,
}

impl Proxy {
    /// Listens in front of `upstream` and passes everything on.
    pub(crate) async fn in_front_of(upstream: SocketAddr) -> Self {
        let listener = listener(port::listen());
        let shared = Arc::new(Shared {
            mode: watch::Sender::new(Mode::Forward),
            open: Mutex::default(),
            accepted: watch::Sender::new(0),
            withheld: watch::Sender::new(0),
        });
        let mut proxy = Self {
            address: listener
                .local_addr()
                .expect("a bound socket has an address"),
            upstream,
            shared,
            acceptor: None,
        };
        proxy.accept_from(listener);
        proxy
    }

    /// Listens in front of the server that `url` names.
    pub(crate) async fn in_front_of_url(url: &str) -> Self {
        let authority = authority(url);
        Self::in_front_of(
            authority
                .parse()
                .expect("a test's URL names an IP address and a port"),
        )
        .await
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// `url` with the proxy's address for the server's own.
    pub(crate) fn url(&self, url: &str) -> String {
        url.replacen(authority(url), &self.address.to_string(), 1)
    }

    /// Sets what happens to bytes from now on, of open connections too.
    pub(crate) fn set(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// Resets every open connection and returns when that is done; new ones are accepted.
    pub(crate) async fn cut(&self) {
        self.shared.cut().await;
    }

    /// Resets every open connection and refuses new ones; returns when the port is closed.
    pub(crate) async fn refuse(&mut self) {
        if let Some(Acceptor { stop, task }) = self.acceptor.take() {
            // The task cannot have ended: it does so only at this word.
            let _ = stop.send(());
            task.await.expect("the acceptor does not panic");
            port::await_closed(self.address);
        }
    }

    /// Accepts connections again, on the same port.
    pub(crate) async fn accept(&mut self) {
        assert!(
            self.acceptor.is_none(),
            "a proxy that accepts again had refused"
        );
        let listener = TcpListener::bind(self.address)
            .await
            .expect("the proxy's own port is still free");
        self.accept_from(listener);
    }

    /// How many connections were accepted so far.
    pub(crate) fn accepted(&self) -> u64 {
        *self.shared.accepted.borrow()
    }

    /// Returns when `count` connections in all have been accepted.
    pub(crate) async fn await_accepted(&self, count: u64) {
        await_count(&self.shared.accepted, count, "accepted a connection").await;
    }

    /// Returns when bytes have been held or swallowed `count` times in all.
    pub(crate) async fn await_withheld(&self, count: u64) {
        await_count(&self.shared.withheld, count, "withheld bytes").await;
    }

    fn accept_from(&mut self, listener: TcpListener) {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept(
            listener,
            self.upstream,
            Arc::clone(&self.shared),
            stopped,
        ));
        self.acceptor = Some(Acceptor { stop, task });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(acceptor) = &self.acceptor {
            acceptor.task.abort();
        }
    }
}

#[derive(Debug)]
struct Acceptor {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Commands to the connections, and what they report.
#[derive(Debug)]
struct Shared {
    mode: watch::Sender<Mode>,
    open: Mutex<Open>,
    accepted: watch::Sender<u64>,
    withheld: watch::Sender<u64>,
}

/// The connections since the last cut.
#[derive(Debug, Default)]
struct Open {
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn cut(&self) {
        let Open { cut, tasks } = std::mem::take(&mut *self.open());
        cut.cancel();
        tasks.close();
        tasks.wait().await;
    }
}

/// The listener, for the runtime.
fn listener(listener: std::net::TcpListener) -> TcpListener {
    listener
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(listener))
        .expect("a listening socket is taken over")
}

async fn accept(
    listener: TcpListener,
    upstream: SocketAddr,
    shared: Arc<Shared>,
    mut stopped: oneshot::Receiver<()>,
) {
    // Dropped with this task, it ends the connections too.
    let mut connections = JoinSet::new();
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => accepted.expect("a listening socket accepts").0,
            _ = &mut stopped => break,
        };
        // From here on it hears of a cut, not from when its task comes to run.
        let (cut, tasks) = {
            let open = shared.open();
            (open.cut.clone(), open.tasks.clone())
        };
        connections.spawn(tasks.track_future(serve(client, upstream, Arc::clone(&shared), cut)));
        shared.accepted.send_modify(|count| *count += 1);
    }
    drop(listener);
    shared.cut().await;
    while connections.join_next().await.is_some() {}
}

/// Carries one connection to its end, or to a cut.
async fn serve(
    mut client: TcpStream,
    upstream: SocketAddr,
    shared: Arc<Shared>,
    cut: CancellationToken,
) {
    let is_swallowed = *shared.mode.borrow() == Mode::Swallow;
    let server = if is_swallowed {
        None
    } else {
        TcpStream::connect(upstream).await.ok()
    };
    match server {
        Some(mut server) => {
            let is_cut = {
                let (from_client, to_client) = client.split();
                let (from_server, to_server) = server.split();
                let both = async {
                    tokio::join!(
                        pass(from_client, to_server, &shared),
                        pass(from_server, to_client, &shared)
                    );
                };
                tokio::select! {
                    () = both => false,
                    () = cut.cancelled() => true,
                }
            };
            if is_cut {
                reset(&client);
                reset(&server);
            }
        }
        None if is_swallowed => {
            let (mut from_client, _keep_open) = client.split();
            tokio::select! {
                () = swallow(&mut from_client, &shared) => {}
                () = cut.cancelled() => {}
            }
            reset(&client);
        }
        None => reset(&client),
    }
}

/// Passes bytes one way until the sender closes or either side breaks.
async fn pass(mut from: tcp::ReadHalf<'_>, mut to: tcp::WriteHalf<'_>, shared: &Shared) {
    let mut mode = shared.mode.subscribe();
    let mut buffer = vec![0; CHUNK];
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        if *mode.borrow() == Mode::Hold {
            shared.withheld.send_modify(|count| *count += 1);
        }
        let now = *mode
            .wait_for(|mode| *mode != Mode::Hold)
            .await
            .expect("the proxy holds the sender");
        match now {
            Mode::Forward | Mode::Hold => {}
            Mode::Delay(delay) => sleep(delay).await,
            Mode::Swallow => {
                shared.withheld.send_modify(|count| *count += 1);
                swallow(&mut from, shared).await;
                // Not even the end of the connection is passed on.
                std::future::pending::<()>().await;
            }
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    // A side that is gone already needs no word of the end.
    let _ = to.shutdown().await;
}

/// Reads to the end and forgets it.
async fn swallow(from: &mut tcp::ReadHalf<'_>, shared: &Shared) {
    let mut buffer = vec![0; CHUNK];
    while matches!(from.read(&mut buffer).await, Ok(count) if count > 0) {
        shared.withheld.send_modify(|count| *count += 1);
    }
}

/// Makes the close that follows a reset, not an orderly end.
fn reset(stream: &TcpStream) {
    // A socket that is gone already cannot be reset.
    let _ = stream.set_zero_linger();
}

async fn await_count(counter: &watch::Sender<u64>, count: u64, what: &str) {
    let mut counter = counter.subscribe();
    let reached = timeout(HUNG, counter.wait_for(|now| *now >= count)).await;
    assert!(reached.is_ok(), "the proxy has not {what} {count} times");
}

/// The `host:port` of a URL.
fn authority(url: &str) -> &str {
    let (_, rest) = url.split_once("://").expect("a URL has a scheme");
    let rest = rest
        .split(['/', '?'])
        .next()
        .expect("a split yields at least one part");
    rest.rsplit('@')
        .next()
        .expect("a split yields at least one part")
}
