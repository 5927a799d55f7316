//! The Vercel client against servers that do whatever a network can do.
//!
//! The servers are sockets with hand-written answers, so that nothing between them and the client is polite.

mod late;
mod list;
mod oauth;
mod server;
mod tls;

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use reconciled::clock::SystemClock;
use reconciled::model::{
    AccessToken, Field, FingerprintKey, InstallationId, Json, Patch, ResourceKey, Secret,
    SecretName, SecretSet, SecretsPatch, Timestamp,
};
use reconciled::plan::{Answer, AnswerKind, LostKind, UnsentKind, Verdict, classify};
use reconciled::vercel::{
    ClearNotification, ClientError, HttpMarketplace, Marketplace as _, SecretsEndpoint, Settings,
    USER_AGENT,
};

use server::{Received, Reply, Server};

use crate::support::heard::heard_by;

const TOKEN: &str = "t0ken-of-installation-1";
const SECRET: &str = "s3cret/value+of=\"A\" & more";
const OVERRIDE: &str = "0verride-for-preview";

fn settings(base_url: &str) -> Settings {
    Settings {
        base_url: base_url.to_owned(),
        ..Settings::default()
    }
}

/// Settings for a server that is expected not to answer in time.
fn impatient(base_url: &str) -> Settings {
    Settings {
        request_timeout: Duration::from_millis(200),
        ..settings(base_url)
    }
}

fn client(settings: &Settings) -> HttpMarketplace {
    HttpMarketplace::new(settings, Arc::new(SystemClock)).expect("usable settings")
}

fn token() -> AccessToken {
    AccessToken::new(TOKEN)
}

fn key() -> ResourceKey {
    ResourceKey::new("icfg_1", "res_1").expect("usable ids")
}

fn secrets() -> SecretSet {
    let mut secret = Secret::from_value(SECRET);
    secret.overrides.preview = Some(OVERRIDE.into());
    let name = SecretName::new("A").expect("a name");
    SecretSet([(name, secret)].into())
}

/// A patch of a status and one secret.
fn patch() -> Patch {
    let named = secrets().fingerprints(&FingerprintKey::new([0; 32]));
    Patch {
        values: [(Field::Status, Json::from_text("ready"))].into(),
        secrets: Some(SecretsPatch::Partial(named)),
    }
}

async fn update(client: &HttpMarketplace) -> Answer {
    client
        .update(&token(), &key(), &patch(), Some(&secrets()))
        .await
}

/// Sends one update to a server that always replies the same.
async fn update_at(reply: Reply) -> (Answer, Vec<Received>) {
    let server = Server::start(move |_| reply.clone()).await;
    let answer = update(&client(&settings(&server.url()))).await;
    (answer, server.received())
}

fn assert_nothing_secret(text: &str) {
    for secret in [TOKEN, "s3cret", OVERRIDE] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn a_request_arrives_at_the_address_configured() {
    let (answer, received) = update_at(Reply::json(200, r#"{"name":"x"}"#)).await;
    assert_eq!(answer.status(), Some(200));
    assert_eq!(received.len(), 1);
}

#[tokio::test]
async fn an_update_carries_what_the_api_asks_for_and_nothing_else() {
    let server = Server::start(|_| {
        Reply::bytes("HTTP/1.1 200 OK\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n")
    })
    .await;
    let client = client(&settings(&format!("{}/prefix/", server.url())));
    for _ in 0..2 {
        assert_eq!(update(&client).await.status(), Some(200));
    }
    for request in server.received() {
        assert_eq!(
            request.line(),
            "PATCH /prefix/v1/installations/icfg_1/resources/res_1 HTTP/1.1"
        );
        assert_eq!(
            request.header("authorization"),
            Some(&*format!("Bearer {TOKEN}"))
        );
        assert_eq!(request.header("user-agent"), Some(USER_AGENT));
        assert_eq!(request.header("accept"), Some("application/json"));
        assert_eq!(request.header("content-type"), Some("application/json"));
        let mut names = request.header_names();
        names.sort();
        assert_eq!(
            names,
            [
                "accept",
                "authorization",
                "content-length",
                "content-type",
                "host",
                "user-agent"
            ]
        );
        assert_eq!(
            request.json(),
            serde_json::json!({
                "status": "ready",
                "secrets": {
                    "secrets": [{ "name": "A", "value": SECRET, "environmentOverrides": { "preview": OVERRIDE } }],
                    "partial": true,
                },
            })
        );
    }
}

#[tokio::test]
async fn secrets_alone_go_through_put_when_the_setting_says_so() {
    let server = Server::start(|_| Reply::json(201, "{}")).await;
    let client = client(&Settings {
        secrets_endpoint: SecretsEndpoint::Put,
        ..settings(&server.url())
    });
    let all = patch();
    for patch in [all.only(Field::Secrets), all.only(Field::Status)] {
        let answer = client
            .update(&token(), &key(), &patch, Some(&secrets()))
            .await;
        assert_eq!(answer.status(), Some(201));
    }
    let [put, patched] = &server.received()[..] else {
        panic!("two requests were sent");
    };
    assert_eq!(
        put.line(),
        "PUT /v1/installations/icfg_1/resources/res_1/secrets HTTP/1.1"
    );
    assert_eq!(put.json()["partial"], true);
    assert_eq!(put.json()["secrets"][0]["value"], SECRET);
    assert_eq!(
        patched.line(),
        "PATCH /v1/installations/icfg_1/resources/res_1 HTTP/1.1"
    );
    assert_eq!(patched.json(), serde_json::json!({ "status": "ready" }));
}

#[tokio::test]
async fn every_id_arrives_byte_for_byte() {
    let server = Server::start(|_| Reply::json(200, "{}")).await;
    let client = client(&settings(&server.url()));
    let cases = [
        ("a/b", "a%2Fb"),
        ("%2e", "%252e"),
        ("%2E%2e", "%252E%252e"),
        ("..%2f", "..%252f"),
        ("...", "..."),
        ("a?b=c", "a%3Fb%3Dc"),
        ("a#b", "a%23b"),
        (" a b ", "%20a%20b%20"),
        ("a\\b", "a%5Cb"),
        ("a;b:c@d", "a%3Bb%3Ac%40d"),
        ("a+b&c", "a%2Bb%26c"),
        ("ü…🦀", "%C3%BC%E2%80%A6%F0%9F%A6%80"),
        ("~-_.", "~-_."),
    ];
    for (id, encoded) in cases {
        let key = ResourceKey::new(id, id).expect("a usable id");
        client.observe(&token(), &key).await;
        client.probe(&token(), &key.installation_id).await;
        let received = server.received();
        let [.., observed, probed] = &received[..] else {
            panic!("two requests were sent");
        };
        assert_eq!(
            observed.line(),
            format!("GET /v1/installations/{encoded}/resources/{encoded} HTTP/1.1")
        );
        assert_eq!(
            probed.line(),
            format!("GET /v1/installations/{encoded}/resources HTTP/1.1")
        );
        assert_eq!(probed.header("content-type"), None);
    }
}

/// Bodies with their framing, as they follow the status line.
fn shapes() -> Vec<(&'static str, Vec<u8>)> {
    let sized = |head: &str, body: &[u8]| {
        let head = format!("{head}content-length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    let error = br#"{"error":{"code":"some_code","message":"Some message."}}"#;
    vec![
        ("none", sized("", b"")),
        ("error", sized("", error)),
        (
            "html",
            sized("content-type: text/html\r\n", b"<html>502</html>"),
        ),
        ("1 MiB", sized("", &vec![b'x'; 1024 * 1024])),
        (
            "no UTF-8",
            sized("", b"{\"error\":{\"code\":\"\xff\xfe\"}}"),
        ),
        ("deep", sized("", "[".repeat(10_000).as_bytes())),
        (
            "compressed",
            sized("content-encoding: gzip\r\n", b"\x1f\x8b\x08garbage"),
        ),
        (
            "truncated",
            b"content-length: 100\r\n\r\n{\"error\":".to_vec(),
        ),
        (
            "longer than said",
            [&b"content-length: 3\r\n\r\n"[..], error].concat(),
        ),
        (
            "until the end",
            [&b"connection: close\r\n\r\n"[..], error].concat(),
        ),
        (
            "broken chunks",
            b"transfer-encoding: chunked\r\n\r\nxyz\r\n{}".to_vec(),
        ),
        (
            "unfinished chunks",
            b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n".to_vec(),
        ),
    ]
}

#[tokio::test]
async fn every_status_is_told_whatever_the_body_looks_like() {
    let now = Timestamp::from_millis(0);
    let bodies = shapes();
    let server = Server::start(move |request| {
        let [status, shape] = request.query_numbers();
        let (_, body) = &bodies[usize::from(shape)];
        let head = format!("HTTP/1.1 {status} Reason\r\n");
        Reply::bytes([head.as_bytes(), body].concat())
    })
    .await;
    let client = client(&settings(&server.url()));
    for status in 100..=599_u16 {
        let answers = join_all((0..shapes().len()).map(async |shape| {
            let id = format!("{status}-{shape}");
            let key = ResourceKey::new("icfg_1", &id).expect("a usable id");
            client
                .update(&token(), &key, &patch(), Some(&secrets()))
                .await
        }));
        let expected = AnswerKind::Http {
            status,
            code: None,
            message: None,
            retry_after: None,
            rate_limit_reset: None,
        };
        let expected = classify(
            &Answer {
                kind: expected,
                vercel_id: None,
            },
            now,
        );
        for (answer, (shape, _)) in answers.await.iter().zip(shapes()) {
            assert_eq!(
                classify(answer, now),
                expected,
                "{status} {shape}: {answer:?}"
            );
            if status >= 200 {
                assert_eq!(answer.status(), Some(status), "{shape}");
            }
            if shape == "error" && (status >= 400 || status / 100 == 3 && status != 304) {
                let AnswerKind::Http { code, message, .. } = &answer.kind else {
                    panic!("{status} is an answer");
                };
                assert_eq!(code.as_deref(), Some("some_code"), "{status}");
                assert_eq!(message.as_deref(), Some("Some message."), "{status}");
            }
        }
    }
    let sent = (599 - 100 + 1) * shapes().len();
    assert_eq!(server.received().len(), sent, "no request was sent twice");
}

#[tokio::test]
async fn an_endless_or_stalled_body_changes_no_verdict() {
    for status in [200, 201, 302, 400, 404, 429, 500, 503] {
        let head = format!("HTTP/1.1 {status} R\r\ntransfer-encoding: chunked\r\n\r\n");
        let (answer, _) = update_at(Reply::Endless(head.into(), b"4\r\nabcd\r\n".to_vec())).await;
        assert_eq!(answer.status(), Some(status));

        let server = Server::start(move |_| {
            Reply::Hold(format!("HTTP/1.1 {status} R\r\ncontent-length: 9\r\n\r\n{{").into())
        })
        .await;
        let answer = update(&client(&impatient(&server.url()))).await;
        assert_eq!(answer.status(), Some(status));
    }
}

#[tokio::test]
async fn a_missing_answer_is_lost_in_time() {
    for head in ["", "HTTP/1.1 200 OK\r\nx-vercel-id: a"] {
        let server = Server::start(move |_| Reply::Hold(head.into())).await;
        let answer = update(&client(&impatient(&server.url()))).await;
        assert_eq!(answer.kind, AnswerKind::Lost(LostKind::Timeout), "{head}");
    }
}

#[tokio::test]
async fn a_closed_connection_is_a_lost_answer_and_is_not_tried_again() {
    let unread = Server::close_unread().await;
    let answer = update(&client(&settings(&unread.url()))).await;
    assert_eq!(answer.kind, AnswerKind::Lost(LostKind::Closed));
    assert_eq!(unread.connections(), 1);
    for reply in [
        Reply::bytes(""),
        Reply::bytes("HTTP/1.1 200 O"),
        Reply::bytes("HTTP/1.1 200 OK\r\nx-vercel-id: a"),
        Reply::bytes("HTTP/1.1 103 Early Hints\r\n\r\n"),
    ] {
        let (answer, received) = update_at(reply.clone()).await;
        assert_eq!(answer.kind, AnswerKind::Lost(LostKind::Closed), "{reply:?}");
        assert_eq!(received.len(), 1, "{reply:?}");
    }
}

#[tokio::test]
async fn a_request_on_a_reused_connection_is_not_repeated_when_that_closes() {
    let server = Server::start(|request| match request.number {
        0 => Reply::KeepOpen(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec()),
        _ => Reply::bytes(""),
    })
    .await;
    let client = client(&settings(&server.url()));
    assert_eq!(update(&client).await.status(), Some(200));
    assert_eq!(
        update(&client).await.kind,
        AnswerKind::Lost(LostKind::Closed)
    );
    assert_eq!(server.received().len(), 2);
}

#[tokio::test]
async fn what_is_no_http_is_a_lost_answer() {
    for garbage in [
        "SSH-2.0-OpenSSH_9.9\r\n\r\n",
        "<html>hello</html>\r\n\r\n",
        "HTTP/9.9 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: abc\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        "\0\u{1}\u{2}\u{3}\r\n\r\n",
    ] {
        let (answer, _) = update_at(Reply::bytes(garbage)).await;
        assert_eq!(
            answer.kind,
            AnswerKind::Lost(LostKind::NotHttp),
            "{garbage:?}"
        );
    }
    let (answer, _) = update_at(Reply::Endless(
        "HTTP/1.1 200 OK\r\n".into(),
        b"a: bcdefgh\r\n".to_vec(),
    ))
    .await;
    assert_eq!(
        answer.kind,
        AnswerKind::Lost(LostKind::NotHttp),
        "endless headers"
    );
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let other = Server::start(|_| Reply::json(200, "{}")).await;
    let other_port = other.address.port();
    let server = Server::start(move |request| {
        let [status, target] = request.query_numbers();
        let location = match target {
            0 => "/v1/elsewhere".to_owned(),
            1 => format!("http://127.0.0.1:{other_port}/v1/elsewhere"),
            2 => format!("http://localhost:{other_port}/v1/elsewhere"),
            3 => format!("https://127.0.0.1:{other_port}/v1/elsewhere"),
            _ => format!("//127.0.0.1:{other_port}/v1/elsewhere"),
        };
        Reply::bytes(format!(
            "HTTP/1.1 {status} R\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"
        ))
    })
    .await;
    let client = client(&settings(&server.url()));
    let mut sent = 0;
    for status in 301..=308_u16 {
        for target in 0..5 {
            let key = ResourceKey::new("icfg_1", &format!("{status}-{target}")).expect("an id");
            let answer = client
                .update(&token(), &key, &patch(), Some(&secrets()))
                .await;
            assert_eq!(answer.status(), Some(status));
            assert_eq!(
                classify(&answer, Timestamp::from_millis(0)),
                Verdict::Refused
            );
            let (answer, _) = client.observe(&token(), &key).await;
            assert_eq!(answer.status(), Some(status));
            sent += 2;
        }
    }
    assert_eq!(server.connections(), sent);
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn a_connection_that_was_never_opened_is_unsent() {
    let closed = Server::start(|_| Reply::bytes("")).await.stop().await;
    let answer = update(&client(&settings(&format!("http://{closed}")))).await;
    assert_eq!(answer.kind, AnswerKind::Unsent(UnsentKind::Connect));

    // RFC 6761 reserves the name; a resolver that is slow to say so is waited for.
    let patient = Settings {
        connect_timeout: Duration::from_secs(60),
        request_timeout: Duration::from_secs(90),
        ..settings("https://name.invalid")
    };
    let answer = update(&client(&patient)).await;
    assert_eq!(answer.kind, AnswerKind::Unsent(UnsentKind::Dns));
}

#[tokio::test]
async fn retry_after_and_the_ids_come_with_the_answer() {
    let head = "HTTP/1.1 429 R\r\nRetry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\nX-RateLimit-Reset: 784111777\r\n\
                X-Vercel-Id: fra1::abc\r\ncontent-length: 0\r\n\r\n";
    let (answer, _) = update_at(Reply::bytes(head)).await;
    let date = Some(Timestamp::from_millis(784_111_777_000));
    assert_eq!(answer.vercel_id.as_deref(), Some("fra1::abc"));
    assert_eq!(
        answer.kind,
        AnswerKind::Http {
            status: 429,
            code: None,
            message: None,
            retry_after: date,
            rate_limit_reset: date,
        }
    );
}

#[tokio::test]
async fn an_answer_that_repeats_the_request_gives_no_secret_away() {
    let server = Server::start(|request| {
        let whole = String::from_utf8_lossy(&request.bytes).into_owned();
        let hex: String = SECRET.bytes().map(|byte| format!("{byte:02X}")).collect();
        let message = format!("{hex} {whole} {SECRET} {OVERRIDE}");
        let body = serde_json::json!({ "error": { "code": OVERRIDE, "message": message } });
        let body = body.to_string();
        let length = body.len();
        Reply::bytes(format!(
            "HTTP/1.1 400 {TOKEN}\r\nx-vercel-id: {TOKEN}\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
    })
    .await;
    let answer = update(&client(&settings(&server.url()))).await;
    let printed = format!("{answer:?}");
    assert_nothing_secret(&printed);
    assert!(printed.contains("[removed]"), "{printed}");
    assert!(!printed.contains("73337"), "{printed}");
}

#[tokio::test]
async fn nothing_that_is_printed_or_traced_holds_a_secret() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = heard_by(subscriber);
    tracing::trace!("the log is on");
    let (answer, received) = update_at(Reply::json(500, "{}")).await;
    assert_eq!(answer.status(), Some(500));
    assert_eq!(received.len(), 1);
    for reply in [Reply::bytes("garbage\r\n\r\n"), Reply::bytes("")] {
        let (answer, _) = update_at(reply).await;
        assert_nothing_secret(&format!("{answer:?}"));
    }
    let client = client(&settings("http://127.0.0.1:1"));
    let answer = client.update(&token(), &key(), &patch(), None).await;
    assert_eq!(answer.kind, AnswerKind::Unsent(UnsentKind::Connect));
    let error = client
        .try_update(&token(), &key(), &patch(), None)
        .await
        .expect_err("the secret's value is missing");
    assert_nothing_secret(&format!("{client:?} {error:?} {error} {:?}", secrets()));
    let written = String::from_utf8_lossy(&log.0.lock().expect("no panic")).into_owned();
    assert!(written.contains("the log is on"));
    assert!(written.contains("vercel.request_not_built"));
    assert_nothing_secret(&written);
}

#[tokio::test]
async fn a_patch_without_its_secrets_or_a_token_without_a_header_sends_nothing() {
    let server = Server::start(|_| Reply::json(200, "{}")).await;
    let client = client(&settings(&server.url()));
    let answer = client
        .update(&token(), &key(), &patch(), Some(&SecretSet::default()))
        .await;
    assert_eq!(answer.kind, AnswerKind::Unsent(UnsentKind::Connect));
    let broken = AccessToken::new("a\r\nx-evil: b");
    let answer = client
        .update(&broken, &key(), &patch(), Some(&secrets()))
        .await;
    assert_eq!(answer.kind, AnswerKind::Unsent(UnsentKind::Connect));
    assert!(!broken.is_sendable(), "nobody who asks first gets here");
    assert!(!format!("{answer:?}").contains("x-evil"));
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn what_vercel_shows_is_read_up_to_a_limit() {
    let shown = r#"{"id":"x","name":"n","status":"ready","billingPlanId":"pro"}"#;
    let huge = format!(r#"{{"name":"{}"}}"#, "n".repeat(1024 * 1024));
    let server = Server::start(move |request| match request.number {
        0 => Reply::json(200, shown),
        1 => Reply::json(200, &huge),
        2 => Reply::json(200, "<html>"),
        3 => Reply::bytes(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{shown}"
        )),
        4 => Reply::json(203, shown),
        _ => Reply::json(404, r#"{"error":{"code":"not_found","message":"Gone."}}"#),
    })
    .await;
    let client = client(&settings(&server.url()));
    let (answer, observed) = client.observe(&token(), &key()).await;
    assert_eq!(answer.status(), Some(200));
    let observed = observed.expect("the body can be read");
    assert!(observed.shows(Field::Status, &Json::from_text("ready")));
    assert_eq!(observed.billing_plan_id.as_deref(), Some("pro"));
    for status in [200, 200, 200, 203, 404] {
        let (answer, observed) = client.observe(&token(), &key()).await;
        assert_eq!(answer.status(), Some(status));
        assert_eq!(observed, None);
    }
    let installation_id = InstallationId::new("icfg_1").expect("an id");
    let answer = client.probe(&token(), &installation_id).await;
    assert_eq!(answer.status(), Some(404));
}

#[tokio::test]
async fn the_environment_s_proxies_are_not_used() {
    let proxy = Server::start(|_| Reply::json(502, "{}")).await;
    let mut child = Command::new(std::env::current_exe().expect("the test has a file"));
    child.args([
        "--exact",
        "vercel::a_request_arrives_at_the_address_configured",
    ]);
    for name in [
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        child.env(name, proxy.url());
    }
    child.env_remove("NO_PROXY").env_remove("no_proxy");
    let output = tokio::task::spawn_blocking(move || child.output())
        .await
        .expect("no panic")
        .expect("the child ran");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && printed.contains("1 passed"),
        "{printed}"
    );
    assert_eq!(proxy.connections(), 0);
}

#[tokio::test]
async fn a_proxy_is_used_when_it_is_configured() {
    let proxy = Server::start(|_| Reply::json(200, "{}")).await;
    let client = client(&Settings {
        proxy: Some(proxy.url()),
        ..settings("http://127.0.0.1:1/prefix")
    });
    assert_eq!(update(&client).await.status(), Some(200));
    assert_eq!(
        proxy.received()[0].line(),
        "PATCH http://127.0.0.1:1/prefix/v1/installations/icfg_1/resources/res_1 HTTP/1.1"
    );
}

#[test]
fn unusable_settings_are_refused() {
    let refused = |settings: Settings| {
        HttpMarketplace::new(&settings, Arc::new(SystemClock)).expect_err("unusable settings")
    };
    for base_url in [
        "http://api.vercel.com",
        "https://api.vercel.com/?x=1",
        "nonsense",
    ] {
        let error = refused(settings(base_url));
        assert!(
            matches!(
                error,
                ClientError::Address {
                    subject: "base_url",
                    ..
                }
            ),
            "{error:?}"
        );
    }
    let error = refused(Settings {
        user_agent: "a\nb".to_owned(),
        ..Settings::default()
    });
    assert!(matches!(error, ClientError::UserAgent), "{error:?}");
    let error = refused(Settings {
        ca_file: Some(PathBuf::from("/nonexistent/authorities.pem")),
        ..Settings::default()
    });
    assert!(matches!(error, ClientError::CaFile { .. }), "{error:?}");
    let error = refused(Settings {
        ca_file: Some(PathBuf::from("/dev/null")),
        ..Settings::default()
    });
    assert!(
        matches!(error, ClientError::CaFileUnusable { .. }),
        "{error:?}"
    );
    let error = refused(Settings {
        proxy: Some("http://u:passw0rd@".to_owned()),
        ..Settings::default()
    });
    assert!(
        !format!("{error:?} {error}").contains("passw0rd"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_notification_is_cleared_as_the_setting_says() {
    let server = Server::start(|_| Reply::json(200, "{}")).await;
    let cleared = Patch {
        values: [(Field::Notification, Json::null())].into(),
        secrets: None,
    };
    for (clear_notification, body) in [
        (ClearNotification::Empty, r#"{"notification":""}"#),
        (ClearNotification::Null, r#"{"notification":null}"#),
    ] {
        let client = client(&Settings {
            clear_notification,
            ..settings(&server.url())
        });
        client.update(&token(), &key(), &cleared, None).await;
        let received = server.received();
        let last = received.last().expect("a request was sent");
        assert_eq!(last.body(), body.as_bytes());
    }
}

/// What has been logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
