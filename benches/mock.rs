//! The other side of every measurement: an HTTP server that does as little as a server can, in a thread of its own.
//!
//! It accepts everything, answers after a set time, and knows how many PATCHes came and when the first and the last did. The
//! clients that are measured are other processes, so that their processor time can be told from this server's.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::timeout;

/// A server on 127.0.0.1 that lives as long as the process.
#[derive(Clone)]
pub(crate) struct Mock {
    port: u16,
    seen: Arc<Seen>,
}

/// What came since the last [`Mock::expect`].
struct Seen {
    origin: Instant,
    answer_after_millis: AtomicU64,
    expected: AtomicU64,
    count: AtomicU64,
    /// Nanoseconds since `origin`.
    first: AtomicU64,
    last: AtomicU64,
    complete: Notify,
}

/// Requests, from the first to the last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrivals {
    pub(crate) count: u64,
    pub(crate) first: Instant,
    pub(crate) last: Instant,
}

impl Arrivals {
    /// Requests per second between the first and the last.
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    pub(crate) fn rate(&self) -> f64 {
        (self.count.saturating_sub(1)) as f64 / (self.last - self.first).as_secs_f64()
    }
}

impl Mock {
    /// Starts the server.
    pub(crate) fn start() -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let port = listener.local_addr().expect("it is bound").port();
        let seen = Arc::new(Seen {
            origin: Instant::now(),
            answer_after_millis: AtomicU64::new(0),
            expected: AtomicU64::new(u64::MAX),
            count: AtomicU64::new(0),
            first: AtomicU64::new(0),
            last: AtomicU64::new(0),
            complete: Notify::new(),
        });
        let served = Arc::clone(&seen);
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(serve(listener, served));
        });
        Self { port, seen }
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Answers this long after a request has come.
    pub(crate) fn answer_after(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).expect("a short time");
        self.seen
            .answer_after_millis
            .store(millis, Ordering::Relaxed);
    }

    /// Forgets what came, and waits for this many from now on.
    pub(crate) fn expect(&self, count: u64) {
        self.seen.count.store(0, Ordering::Relaxed);
        self.seen.expected.store(count, Ordering::Relaxed);
    }

    /// Waits until all that were expected have come.
    ///
    /// # Panics
    /// They do not come within the time.
    pub(crate) async fn arrived(&self, within: Duration) -> Arrivals {
        let expected = self.seen.expected.load(Ordering::Relaxed);
        while self.arrivals().count < expected {
            let complete = timeout(within, self.seen.complete.notified()).await;
            assert!(
                complete.is_ok(),
                "only {} of {expected} requests came",
                self.arrivals().count
            );
        }
        self.arrivals()
    }

    /// What came so far.
    pub(crate) fn arrivals(&self) -> Arrivals {
        let at = |nanos: &AtomicU64| {
            self.seen.origin + Duration::from_nanos(nanos.load(Ordering::Acquire))
        };
        Arrivals {
            count: self.seen.count.load(Ordering::Acquire),
            first: at(&self.seen.first),
            last: at(&self.seen.last),
        }
    }
}

impl Seen {
    fn note(&self) {
        let now = u64::try_from(self.origin.elapsed().as_nanos()).expect("within centuries");
        let before = self.count.load(Ordering::Relaxed);
        if before == 0 {
            self.first.store(now, Ordering::Release);
        }
        self.last.store(now, Ordering::Release);
        // One thread writes.
        self.count.store(before + 1, Ordering::Release);
        if before + 1 == self.expected.load(Ordering::Relaxed) {
            self.complete.notify_one();
        }
    }
}

async fn serve(listener: std::net::TcpListener, seen: Arc<Seen>) {
    let listener = TcpListener::from_std(listener).expect("a socket");
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&seen)));
            // A client that goes away has its reasons.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Seen>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_patch = request.method() == Method::PATCH;
    let _ = request.into_body().collect().await;
    if is_patch {
        seen.note();
    }
    let delay = seen.answer_after_millis.load(Ordering::Relaxed);
    if delay > 0 {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let mut response = Response::new(Full::new(Bytes::from_static(br#"{"name":"x"}"#)));
    if !is_patch {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    Ok(response)
}
