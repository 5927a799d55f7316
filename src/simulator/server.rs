//! The listening side: accepts connections and serves HTTP/1 on them, down to cutting them off.
//!
//! Guarantees that a connection is closed where a fault says so, not where a framework finds it polite.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::answer::{Body, Cut};
use super::remote::Remote;
use super::{api, control};

/// The pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Listens on an address and serves until stopped.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    stopped: CancellationToken,
    accepting: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(remote: Remote, address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let stopped = CancellationToken::new();
        let accepting = tokio::spawn(accept(remote, listener, stopped.clone()));
        Ok(Self {
            address,
            stopped,
            accepting,
        })
    }

    /// Closes the listener and every connection, and waits until they are closed.
    pub(super) async fn stop(mut self) {
        self.stopped.cancel();
        // It only ends by being stopped; a panic in it was already reported by the runtime.
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.cancel();
    }
}

async fn accept(remote: Remote, listener: TcpListener, stopped: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = stopped.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(serve(remote.clone(), stream, stopped.clone()));
            }
            // Out of file descriptors or a connection reset in the queue: others may still come.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn serve(remote: Remote, stream: TcpStream, stopped: CancellationToken) {
    // Without it a slow body's bytes would be gathered into one packet.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| dispatch(remote.clone(), stopped.clone(), request));
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let Err(error) = Pin::new(&mut connection).await else {
        return;
    };
    if let Some(cut) = error.source().and_then(|cause| cause.downcast_ref::<Cut>())
        && !cut.last_words.is_empty()
    {
        let mut stream = connection.into_parts().io.into_inner();
        // The client may be gone already; either way this is the end.
        let _ = stream.write_all(&cut.last_words).await;
        let _ = stream.shutdown().await;
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Cut>> + Send>>;

fn dispatch(remote: Remote, stopped: CancellationToken, request: Request<Incoming>) -> Answering {
    if request.uri().path().starts_with(control::PREFIX) {
        Box::pin(async move {
            let response: Result<_, Infallible> = Ok(control::answer(remote, request).await);
            response.map_err(|never| match never {})
        })
    } else {
        Box::pin(api::exchange(remote, stopped, request))
    }
}
