//! The authorization server's side of short-lived tokens.

use std::sync::Arc;
use std::time::Duration;

use reconciled::clock::SystemClock;
use reconciled::model::{AccessToken, InstallationId};
use reconciled::plan::{AnswerKind, LostKind, UnsentKind};
use reconciled::vercel::{Grant, GrantError, OauthSettings, TokenEndpoint};

use super::server::{Received, Reply, Server};
use super::{impatient, settings};

const CLIENT_SECRET: &str = "cl1ent+secret/of&the=integration";

fn endpoint(url: &str) -> TokenEndpoint {
    let oauth = OauthSettings {
        token_url: format!("{url}/oauth/token"),
        client_id: "oac_1".to_owned(),
        client_secret: CLIENT_SECRET.into(),
        form: [("installation_id".to_owned(), "{installation_id}".to_owned())].into(),
    };
    assert!(!format!("{oauth:?}").contains("cl1ent"));
    TokenEndpoint::new(oauth, &settings(url), Arc::new(SystemClock)).expect("usable settings")
}

async fn grant(reply: Reply) -> (Result<Grant, GrantError>, Vec<Received>) {
    let server = Server::start(move |_| reply.clone()).await;
    let endpoint = endpoint(&server.url());
    assert!(!format!("{endpoint:?}").contains("cl1ent"));
    let granted = endpoint.grant(&installation()).await;
    (granted, server.received())
}

fn installation() -> InstallationId {
    InstallationId::new("icfg 1&x").expect("a usable id")
}

#[tokio::test]
async fn a_token_is_granted_for_client_credentials() {
    let body = r#"{"access_token":"t0k","token_type":"Bearer","expires_in":3600}"#;
    let (granted, received) = grant(Reply::json(200, body)).await;
    assert_eq!(
        granted,
        Ok(Grant {
            token: AccessToken::new("t0k"),
            expires_in: Some(Duration::from_secs(3600)),
        })
    );
    let [request] = &received[..] else {
        panic!("one request was sent");
    };
    assert_eq!(request.line(), "POST /oauth/token HTTP/1.1");
    assert_eq!(
        request.header("content-type"),
        Some("application/x-www-form-urlencoded")
    );
    assert_eq!(request.header("authorization"), None);
    assert_eq!(
        String::from_utf8_lossy(request.body()),
        "grant_type=client_credentials&client_id=oac_1\
         &client_secret=cl1ent%2Bsecret%2Fof%26the%3Dintegration&installation_id=icfg%201%26x"
    );
}

#[tokio::test]
async fn a_refusal_is_told_from_a_server_that_is_away() {
    for (status, code) in [
        (400, "invalid_grant"),
        (401, "invalid_client"),
        (403, "denied"),
    ] {
        let body = format!(r#"{{"error":"{code}","error_description":"{CLIENT_SECRET}"}}"#);
        let (granted, _) = grant(Reply::json(status, &body)).await;
        let code = Some(code.to_owned());
        assert_eq!(granted, Err(GrantError::Refused { status, code }));
    }
    for status in [302, 307, 408, 429, 500, 503] {
        let (granted, received) = grant(Reply::bytes(format!(
            "HTTP/1.1 {status} R\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n"
        )))
        .await;
        let Err(GrantError::Unavailable { answer }) = granted else {
            panic!("{status}: {granted:?}");
        };
        assert_eq!(answer.status(), Some(status));
        assert_eq!(received.len(), 1, "no redirect is followed");
    }
    for body in [
        "",
        "{}",
        "<html>",
        r#"{"access_token":"t","token_type":"mac"}"#,
    ] {
        let (granted, _) = grant(Reply::json(200, body)).await;
        assert_eq!(granted, Err(GrantError::Unusable { status: 200 }), "{body}");
    }
}

#[tokio::test]
async fn silence_is_unavailable() {
    let (granted, _) = grant(Reply::bytes("")).await;
    let Err(GrantError::Unavailable { answer }) = granted else {
        panic!("{granted:?}");
    };
    assert_eq!(answer.kind, AnswerKind::Lost(LostKind::Closed));

    let server = Server::start(|_| Reply::bytes("")).await;
    let endpoint = endpoint(&server.url());
    server.stop().await;
    let Err(GrantError::Unavailable { answer }) = endpoint.grant(&installation()).await else {
        panic!("nobody is there");
    };
    assert_eq!(answer.kind, AnswerKind::Unsent(UnsentKind::Connect));
}

#[tokio::test]
async fn no_refusal_prints_the_client_s_secret() {
    let body = serde_json::json!({ "error": { "code": "cl1ent", "message": CLIENT_SECRET } });
    for status in [400, 500] {
        let (granted, _) = grant(Reply::json(status, &body.to_string())).await;
        let error = granted.expect_err("no token");
        let printed = format!("{error:?} {error}");
        assert!(!printed.contains("cl1ent+secret"), "{printed}");
    }
}

#[test]
fn a_token_is_not_fetched_in_the_clear() {
    let oauth = OauthSettings {
        token_url: "http://authorization.test/token".to_owned(),
        client_id: String::new(),
        client_secret: "".into(),
        form: [].into(),
    };
    let settings = impatient("https://api.vercel.com");
    let refused = TokenEndpoint::new(oauth, &settings, Arc::new(SystemClock));
    assert!(refused.is_err());
}
