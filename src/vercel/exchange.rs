//! One HTTP request and its answer, whatever happens in between.
//!
//! A request is never repeated, a redirect never followed, a foreign error never kept or printed. What may have left counts as
//! sent: only a connection that was never opened proves the contrary. Nothing leaves after a request's time is over.

use std::error::Error as StdError;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, InvalidHeaderValue};
use reqwest::{Certificate, Client, ClientBuilder, Method, Proxy, Request, Response, Url};
use tokio::time::{Instant, sleep_until, timeout_at};
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::model::AccessToken;
use crate::plan::{Answer, AnswerKind, LostKind, UnsentKind};

use super::answer::{ERROR_BODY_BYTES_MAX, Headers};
use super::scrub::Scrubber;
use super::settings::{ClientError, Settings, proxy_url};
use super::wire::Body;

/// How long an idle connection is kept: shorter than servers do, so that few requests meet one that was just closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a silent connection is trusted before it is asked for a sign of life.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long the rest of an answer that nobody needs may take; it is read only to use the connection again.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends requests to one origin.
#[derive(Clone)]
pub(super) struct Exchange {
    client: Client,
    request_timeout: Duration,
    clock: Arc<dyn Clock>,
}

/// What a request carries besides its address.
pub(super) enum Content {
    /// No body.
    None,
    /// JSON.
    Json(Body),
    /// A form.
    Form(Body),
}

/// What is to become of the body of a 2xx.
#[derive(Clone, Copy)]
pub(super) enum Wanted {
    /// Nothing.
    Nothing,
    /// It is wanted whole, up to this many bytes.
    Whole {
        /// The most bytes that are read.
        bytes_max: usize,
    },
}

impl Exchange {
    /// A client for requests to `target`, which has been found fit for secrets.
    ///
    /// # Errors
    /// A setting cannot be used.
    pub(super) fn new(
        settings: &Settings,
        target: &Url,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ClientError> {
        // Another part of the process may have installed it before; there is only one to install.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let user_agent =
            HeaderValue::from_str(&settings.user_agent).map_err(|_| ClientError::UserAgent)?;
        let builder = Client::builder()
            .user_agent(user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .https_only(target.scheme() == "https")
            .connect_timeout(settings.connect_timeout.min(settings.request_timeout))
            .pool_max_idle_per_host(settings.max_in_flight)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(KEEP_ALIVE_INTERVAL)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .http2_keep_alive_timeout(KEEP_ALIVE_INTERVAL);
        let builder = with_proxy(builder, settings.proxy.as_deref(), target)?;
        let builder = with_authorities(builder, settings.ca_file.as_deref(), target)?;
        let client = builder.build().map_err(|_| match &settings.ca_file {
            Some(path) => ClientError::CaFileUnusable { path: path.clone() },
            None => ClientError::NoCertificateAuthorities,
        })?;
        Ok(Self {
            client,
            request_timeout: settings.request_timeout,
            clock,
        })
    }

    /// Sends one request; the body comes with a 2xx that was to be read and could be, whole.
    ///
    /// A process that stood still while it connected, or before its connection came to write, does not send when it goes on after the
    /// request's time: by then its lease may be another's. What is left is a process that stops in the few instructions before its time
    /// begins to count here, or between the connection's look at the clock and its write, which follow one another.
    pub(super) async fn send(
        &self,
        mut request: Request,
        scrubber: &Scrubber<'_>,
        wanted: Wanted,
    ) -> (Answer, Option<Body>) {
        let over_tls = request.url().scheme() == "https";
        let deadline = Instant::now() + self.request_timeout;
        if let Some(body) = request.body_mut().take() {
            *request.body_mut() = Some(reqwest::Body::wrap(Timely { body, deadline }));
        }
        let response = match before(deadline, self.client.execute(request)).await {
            Some(Ok(response)) => response,
            Some(Err(error)) => return (silence(failure(&error, over_tls)), None),
            None => return (silence(AnswerKind::Lost(LostKind::Timeout)), None),
        };
        self.read(response, deadline, scrubber, wanted).await
    }

    async fn read(
        &self,
        response: Response,
        deadline: Instant,
        scrubber: &Scrubber<'_>,
        wanted: Wanted,
    ) -> (Answer, Option<Body>) {
        let status = response.status();
        let headers = Headers::read(response.headers(), self.clock.now(), scrubber);
        let mut error = None;
        let mut body = None;
        match (status.is_success(), wanted) {
            (true, Wanted::Nothing) => {
                let deadline = deadline.min(Instant::now() + DRAIN_TIMEOUT);
                let _ = receive(response, ERROR_BODY_BYTES_MAX, deadline).await;
            }
            (true, Wanted::Whole { bytes_max }) => {
                body = receive(response, bytes_max, deadline).await;
            }
            (false, _) => {
                error = receive(response, ERROR_BODY_BYTES_MAX, deadline).await;
            }
        }
        let error = error.as_ref().map(|body| body.as_slice());
        (headers.answer(status.as_u16(), error, scrubber), body)
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}

/// A request with everything that it carries.
pub(super) fn request(
    method: Method,
    url: Url,
    authorization: Option<HeaderValue>,
    content: Content,
) -> Request {
    let mut request = Request::new(method, url);
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    if let Some(authorization) = authorization {
        headers.insert(AUTHORIZATION, authorization);
    }
    let (content_type, body) = match content {
        Content::None => return request,
        Content::Json(body) => ("application/json", body),
        Content::Form(body) => ("application/x-www-form-urlencoded", body),
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    *request.body_mut() = Some(Bytes::from_owner(body).into());
    request
}

/// The `Authorization` header of a bearer token, marked so that nothing prints it.
///
/// # Errors
/// The token holds characters that no header can carry.
pub(super) fn bearer(token: &AccessToken) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut text = Zeroizing::new(Vec::with_capacity(7 + token.expose().len()));
    text.extend_from_slice(b"Bearer ");
    text.extend_from_slice(token.expose().as_bytes());
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(text))?;
    value.set_sensitive(true);
    Ok(value)
}

fn with_proxy(
    builder: ClientBuilder,
    proxy: Option<&str>,
    target: &Url,
) -> Result<ClientBuilder, ClientError> {
    let Some(text) = proxy else {
        return Ok(builder.no_proxy());
    };
    let unusable = |_| ClientError::Address {
        subject: "proxy",
        problem: "cannot be used",
    };
    let proxy = Proxy::all(proxy_url(text, target)?).map_err(unusable)?;
    Ok(builder.no_proxy().proxy(proxy))
}

fn with_authorities(
    builder: ClientBuilder,
    ca_file: Option<&Path>,
    target: &Url,
) -> Result<ClientBuilder, ClientError> {
    let mut authorities = Vec::new();
    if let Some(path) = ca_file {
        let pem = std::fs::read(path).map_err(|source| ClientError::CaFile {
            path: path.to_owned(),
            source,
        })?;
        authorities = Certificate::from_pem_bundle(&pem).unwrap_or_default();
        if authorities.is_empty() {
            return Err(ClientError::CaFileUnusable {
                path: path.to_owned(),
            });
        }
    }
    if target.scheme() == "https" {
        Ok(builder.tls_certs_merge(authorities))
    } else {
        // Nothing goes through TLS: a system without certificates is no obstacle.
        Ok(builder.tls_certs_only(authorities))
    }
}

const fn silence(kind: AnswerKind) -> Answer {
    Answer {
        kind,
        vercel_id: None,
    }
}

/// A body that is not given away after the deadline.
///
/// The connection, a task of its own, asks for it after it has put the head together and before it writes anything; an error ends it.
struct Timely {
    body: reqwest::Body,
    deadline: Instant,
}

impl HttpBody for Timely {
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if Instant::now() >= self.deadline {
            return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())));
        }
        let frame = Pin::new(&mut self.body).poll_frame(context);
        frame.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What comes of `work` before the deadline; it is not gone on with after that, not even by one step.
///
/// A timer alone does not see to that: of a process that stood still the connection may be woken before the timers are looked at.
async fn before<T>(deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut end = pin!(sleep_until(deadline));
    poll_fn(|context| {
        if Instant::now() >= deadline || end.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        work.as_mut().poll(context).map(Some)
    })
    .await
}

/// The whole body; `None` when it is longer, late or broken. Reading stops there.
async fn receive(mut response: Response, bytes_max: usize, deadline: Instant) -> Option<Body> {
    let mut body = Zeroizing::new(Vec::new());
    loop {
        let chunk = timeout_at(deadline, response.chunk()).await.ok()?.ok()?;
        let Some(chunk) = chunk else {
            return Some(body);
        };
        if body.len() + chunk.len() > bytes_max {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
}

/// What a failed request proves.
fn failure(error: &reqwest::Error, over_tls: bool) -> AnswerKind {
    if error.is_connect() {
        AnswerKind::Unsent(unsent_kind(error, over_tls))
    } else if error.is_builder() {
        // The address was refused before a connection was looked for.
        AnswerKind::Unsent(UnsentKind::Connect)
    } else if error.is_timeout() {
        AnswerKind::Lost(LostKind::Timeout)
    } else if is_no_http(error) {
        AnswerKind::Lost(LostKind::NotHttp)
    } else {
        AnswerKind::Lost(LostKind::Closed)
    }
}

fn unsent_kind(error: &reqwest::Error, over_tls: bool) -> UnsentKind {
    let in_handshake = |error: &(dyn StdError + 'static)| {
        error.is::<rustls::Error>()
            || over_tls
                && error.downcast_ref::<io::Error>().is_some_and(|error| {
                    matches!(
                        error.kind(),
                        io::ErrorKind::UnexpectedEof
                            | io::ErrorKind::ConnectionReset
                            | io::ErrorKind::BrokenPipe
                    )
                })
    };
    if error.is_dns() {
        UnsentKind::Dns
    } else if causes(error).any(in_handshake) {
        UnsentKind::Tls
    } else {
        UnsentKind::Connect
    }
}

fn is_no_http(error: &reqwest::Error) -> bool {
    causes(error).any(|cause| {
        cause
            .downcast_ref::<hyper::Error>()
            .is_some_and(hyper::Error::is_parse)
    })
}

/// The error and its causes, those inside an I/O error too, which its `source` passes over.
fn causes<'e>(
    error: &'e (dyn StdError + 'static),
) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'e (dyn StdError + 'static)| {
        let error: &'e (dyn StdError + 'static) = *error;
        let inside = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .map(|inside| inside as &(dyn StdError + 'static));
        inside.or_else(|| error.source())
    })
}
