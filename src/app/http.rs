//! The listener of `[http] listen`: `/healthz`, `/readyz` and `/metrics`, and nothing else.
//!
//! Everything is bounded: the connections, the size of a request's head, the time of a connection, the answers. A connection
//! carries one request; its body is never read. No loop waits for anything here.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::metrics::Exposition;

use super::build::AppError;
use super::observe::Observer;

/// The most connections at once; one more is closed unanswered.
const CONNECTIONS_MAX: usize = 32;
/// The largest head of a request, in bytes: the smallest that hyper takes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// How long a request's head may take to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last, the answer included.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// The pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";

/// Takes the address.
///
/// # Errors
/// It cannot be had.
pub(super) async fn bind(address: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| AppError::Listen { address, source })
}

/// Answers until the task is dropped.
pub(super) async fn serve(listener: TcpListener, observer: Arc<Observer>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, or a connection that was reset in the queue: others may still come.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            drop(stream);
            continue;
        };
        let observer = Arc::clone(&observer);
        tokio::spawn(async move {
            // Whatever a client does, it is its own affair.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection(stream, observer)).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, observer: Arc<Observer>) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let observer = Arc::clone(&observer);
        async move {
            let (head, _) = request.into_parts();
            Ok::<_, Infallible>(answer(&head.method, head.uri.path(), &observer).await)
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer(method: &Method, path: &str, observer: &Arc<Observer>) -> Response<Full<Bytes>> {
    if !matches!(path, "/healthz" | "/readyz" | "/metrics") {
        let text = "not found: there are /healthz, /readyz and /metrics\n";
        return respond(StatusCode::NOT_FOUND, TEXT, text.to_owned());
    }
    // hyper leaves the body out of an answer to HEAD.
    if method != Method::GET && method != Method::HEAD {
        let text = "only GET and HEAD are answered\n".to_owned();
        let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let verdict = match path {
        "/healthz" => observer.alive(),
        "/readyz" => observer.ready().await,
        _ => {
            return respond(
                StatusCode::OK,
                Exposition::MEDIA_TYPE,
                observer.metrics().await,
            );
        }
    };
    match verdict {
        Ok(text) => respond(StatusCode::OK, TEXT, format!("{text}\n")),
        Err(text) => respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{text}\n")),
    }
}

fn respond(status: StatusCode, media_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
