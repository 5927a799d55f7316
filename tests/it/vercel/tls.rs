//! The Vercel client over TLS: whom it trusts, and what a failed handshake proves.
//!
//! `authority.pem` signed `server.der` for localhost and 127.0.0.1, valid until 2120; its key is gone. `server.key.der` is
//! known to everyone and good for nothing but these tests.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use reconciled::plan::{Answer, AnswerKind, LostKind, UnsentKind};
use reconciled::vercel::Settings;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::server::Server;
use super::{client, settings, update};

type Stream = StreamOwned<ServerConnection, TcpStream>;

/// Accepts one connection, offers these protocols and serves what comes out of the handshake.
///
/// The receiver gets what `serve` returns, or nothing when the handshake failed.
fn serve_once<T: Send + 'static>(
    protocols: &[&[u8]],
    serve: impl FnOnce(&mut Stream) -> std::io::Result<T> + Send + 'static,
) -> (SocketAddr, Receiver<T>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = CertificateDer::from(include_bytes!("server.der").to_vec());
    let key = PrivatePkcs8KeyDer::from(include_bytes!("server.key.der").to_vec());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .expect("the key fits the certificate");
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let listener = TcpListener::bind("0.0.0.0:0").expect("the loopback is there");
    let port = listener
        .local_addr()
        .expect("a bound socket has an address")
        .port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let (socket, _) = listener.accept().expect("a listener accepts");
        let connection = ServerConnection::new(Arc::new(config)).expect("the config is usable");
        let mut stream = StreamOwned::new(connection, socket);
        if let Ok(result) = serve(&mut stream) {
            let _ = sender.send(result);
        }
        stream.conn.send_close_notify();
        let _ = stream.flush();
    });
    (address, receiver)
}

/// What the server returned, unless it failed or never ends.
fn heard<T>(receiver: &Receiver<T>) -> Option<T> {
    receiver.recv_timeout(Duration::from_secs(60)).ok()
}

fn read_until(stream: &mut Stream, end: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while !bytes.windows(end.len()).any(|window| window == end) {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        bytes.push(byte[0]);
    }
    Ok(bytes)
}

fn answer_http1(stream: &mut Stream) -> std::io::Result<String> {
    let head = read_until(stream, b"\r\n\r\n")?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    stream.flush()?;
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Reads the client's preface and answers its first stream with a 200 without a body (RFC 9113).
fn answer_http2(stream: &mut Stream) -> std::io::Result<String> {
    let preface = read_until(stream, b"SM\r\n\r\n")?;
    stream.write_all(&SETTINGS)?;
    read_request_frames(stream)?;
    // HEADERS with END_STREAM and END_HEADERS; 0x88 is `:status: 200`.
    stream.write_all(&[0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88])?;
    stream.flush()?;
    Ok(String::from_utf8_lossy(&preface).into_owned())
}

/// Refuses every stream unprocessed and returns how many there were.
fn refuse_http2(stream: &mut Stream) -> std::io::Result<usize> {
    read_until(stream, b"SM\r\n\r\n")?;
    stream.write_all(&SETTINGS)?;
    let mut refused = 0;
    while let Ok(id) = read_request_frames(stream) {
        refused += 1;
        // RST_STREAM with the code REFUSED_STREAM.
        stream.write_all(&[0, 0, 4, 3, 0])?;
        stream.write_all(&id)?;
        stream.write_all(&[0, 0, 0, 7])?;
        stream.flush()?;
    }
    Ok(refused)
}

/// An empty SETTINGS frame.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Reads up to the end of the next request; returns its stream.
fn read_request_frames(stream: &mut Stream) -> std::io::Result<[u8; 4]> {
    stream.flush()?;
    loop {
        let mut frame = [0; 9];
        stream.read_exact(&mut frame)?;
        let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload)?;
        let (kind, flags, end_of_stream) = (frame[3], frame[4], 1);
        if matches!(kind, 0 | 1) && flags & end_of_stream != 0 {
            return Ok([frame[5], frame[6], frame[7], frame[8]]);
        }
    }
}

fn trusting(address: &str) -> Settings {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    Settings {
        ca_file: Some(directory.join("tests/it/vercel/authority.pem")),
        ..settings(&format!("https://{address}"))
    }
}

async fn update_with(settings: Settings) -> Answer {
    update(&client(&settings)).await
}

const TLS: AnswerKind = AnswerKind::Unsent(UnsentKind::Tls);

#[tokio::test]
async fn an_unknown_authority_is_not_trusted_and_nothing_is_sent() {
    let (address, received) = serve_once(&[], answer_http1);
    let answer = update_with(settings(&format!("https://{address}"))).await;
    assert_eq!(answer.kind, TLS);
    assert!(heard(&received).is_none(), "no request was read");
}

#[tokio::test]
async fn an_authority_from_the_file_is_trusted() {
    let (address, received) = serve_once(&[], answer_http1);
    let answer = update_with(trusting(&format!("localhost:{}", address.port()))).await;
    assert_eq!(answer.status(), Some(200));
    let head = heard(&received).expect("a request was read");
    assert!(
        head.starts_with("PATCH /v1/installations/icfg_1/"),
        "{head}"
    );
}

#[tokio::test]
async fn http2_is_spoken_where_the_server_offers_it() {
    let (address, received) = serve_once(&[b"h2", b"http/1.1"], answer_http2);
    let answer = update_with(trusting(&address.to_string())).await;
    assert_eq!(answer.status(), Some(200), "{answer:?}");
    let preface = heard(&received).expect("a preface was read");
    assert!(preface.starts_with("PRI * HTTP/2.0"), "{preface}");
}

// Two threads: the connection closes in the background while the test waits for the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_stream_is_not_tried_again() {
    let (address, refused) = serve_once(&[b"h2"], refuse_http2);
    let answer = update_with(trusting(&address.to_string())).await;
    assert_eq!(answer.kind, AnswerKind::Lost(LostKind::Closed));
    assert_eq!(heard(&refused), Some(1));
}

#[tokio::test]
async fn a_certificate_for_another_name_is_not_trusted() {
    let (address, received) = serve_once(&[], answer_http1);
    // The whole of 127.0.0.0/8 is loopback; the certificate names its first address only.
    let (other, port) = ("127.0.0.2", address.port());
    let answer = update_with(trusting(&format!("{other}:{port}"))).await;
    assert_eq!(answer.kind, TLS);
    assert!(heard(&received).is_none(), "no request was read");
}

#[tokio::test]
async fn a_server_without_tls_gets_nothing() {
    let garbage = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
    let address = garbage.local_addr().expect("a bound socket has an address");
    let speaking = thread::spawn(move || {
        let (mut socket, _) = garbage.accept().expect("a listener accepts");
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    assert_eq!(update_with(trusting(&address.to_string())).await.kind, TLS);
    speaking.join().expect("no panic");

    let closing = Server::close_unread().await;
    assert_eq!(
        update_with(trusting(&closing.address.to_string()))
            .await
            .kind,
        TLS
    );
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_unsent() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
    let address = silent.local_addr().expect("a bound socket has an address");
    let answer = update_with(Settings {
        connect_timeout: Duration::from_millis(100),
        ..trusting(&address.to_string())
    })
    .await;
    assert_eq!(answer.kind, AnswerKind::Unsent(UnsentKind::Connect));
    drop(silent);
}
