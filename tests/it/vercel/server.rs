//! A server made of a socket: it reads one request per connection and replies with bytes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What happens to a connection.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// These bytes, then closed.
    Bytes(Vec<u8>),
    /// These bytes, then silence until the client gives up.
    Hold(Vec<u8>),
    /// These bytes, then the next request is awaited.
    KeepOpen(Vec<u8>),
    /// The first bytes once, the second for as long as the client reads.
    Endless(Vec<u8>, Vec<u8>),
}

impl Reply {
    pub(crate) fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Bytes(bytes.into())
    }

    pub(crate) fn json(status: u16, body: &str) -> Self {
        let length = body.len();
        Self::bytes(format!(
            "HTTP/1.1 {status} Reason\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    /// How many came before it.
    pub(crate) number: usize,
    /// All of it.
    pub(crate) bytes: Vec<u8>,
}

impl Received {
    fn head(&self) -> String {
        let end = end_of_head(&self.bytes).expect("the head is whole");
        String::from_utf8(self.bytes[..end].to_vec()).expect("the head is text")
    }

    pub(crate) fn line(&self) -> String {
        self.head()
            .lines()
            .next()
            .expect("a request has a line")
            .to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let end = end_of_head(&self.bytes)?;
        let head = std::str::from_utf8(&self.bytes[..end]).ok()?;
        head.lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(other, value)| other.eq_ignore_ascii_case(name).then_some(value))
    }

    pub(crate) fn header_names(&self) -> Vec<String> {
        let head = self.head();
        head.lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .map(|(name, _)| name.to_ascii_lowercase())
            .collect()
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.bytes[end_of_head(&self.bytes).expect("the head is whole")..]
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.body()).expect("the body is JSON")
    }

    /// The two numbers of a resource id like `404-2`.
    pub(crate) fn query_numbers(&self) -> [u16; 2] {
        let line = self.line();
        let path = line.split(' ').nth(1).expect("a request has a path");
        let id = path.rsplit('/').next().expect("a path has an end");
        let (first, second) = id.split_once('-').expect("two numbers");
        [first, second].map(|number| number.parse().expect("a number"))
    }
}

type Script = dyn Fn(&Received) -> Reply + Send + Sync;

struct Shared {
    closes_unread: bool,
    script: Box<Script>,
    connections: AtomicUsize,
    received: Mutex<Vec<Received>>,
}

/// A running server; stops when dropped.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

impl Server {
    /// Replies to each request by the script.
    pub(crate) async fn start(script: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(false, Box::new(script)).await
    }

    /// Closes each connection before anything was read.
    pub(crate) async fn close_unread() -> Self {
        Self::listen(true, Box::new(|_| Reply::bytes(""))).await
    }

    async fn listen(closes_unread: bool, script: Box<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("loopback is there");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            closes_unread,
            script,
            connections: AtomicUsize::new(0),
            received: Mutex::new(Vec::new()),
        });
        let accepting = Arc::clone(&shared);
        let listening = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.expect("a listener accepts");
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(socket, Arc::clone(&accepting)));
            }
        });
        Self {
            address,
            shared,
            listening,
        }
    }

    /// Stops listening; returns the address where now nobody is.
    pub(crate) async fn stop(mut self) -> SocketAddr {
        self.listening.abort();
        let _ = (&mut self.listening).await;
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().expect("no panic").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Shared {
    fn record(&self, bytes: Vec<u8>) -> Received {
        let mut received = self.received.lock().expect("no panic");
        let number = received.len();
        received.push(Received { number, bytes });
        received[number].clone()
    }
}

async fn serve(mut socket: TcpStream, shared: Arc<Shared>) {
    if shared.closes_unread {
        return;
    }
    while let Some(bytes) = read_request(&mut socket).await {
        let request = shared.record(bytes);
        match (shared.script)(&request) {
            Reply::Bytes(bytes) => {
                let _ = socket.write_all(&bytes).await;
                let _ = socket.shutdown().await;
                return;
            }
            Reply::Hold(bytes) => {
                let _ = socket.write_all(&bytes).await;
                let _ = socket.read(&mut [0; 1]).await;
                return;
            }
            Reply::KeepOpen(bytes) => {
                let _ = socket.write_all(&bytes).await;
            }
            Reply::Endless(first, again) => {
                let _ = socket.write_all(&first).await;
                let again = again.repeat(100);
                while socket.write_all(&again).await.is_ok() {}
                return;
            }
        }
    }
}

async fn read_request(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = end_of_head(&bytes) {
            let request = Received {
                number: 0,
                bytes: bytes.clone(),
            };
            let length = request.header("content-length").map_or(0, |length| {
                length.parse::<usize>().expect("a length is a number")
            });
            if bytes.len() >= end + length {
                return Some(bytes);
            }
        }
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}
