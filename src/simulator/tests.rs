//! The simulator through its socket.

mod bench;
mod faults;

use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};

use self::bench::{Bench, INSTALLATION, TOKEN, json_of, path};
use super::*;

#[tokio::test]
async fn a_patch_is_applied_answered_and_recorded() {
    let bench = Bench::start().await;
    let body =
        json!({"status": "ready", "secrets": [{"name": "DATABASE_URL", "value": "hunter2"}]});
    let response = bench.client.patch(body).await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert!(
        response.headers()["x-vercel-id"]
            .to_str()
            .expect("ASCII")
            .starts_with("sim1::")
    );
    assert_eq!(json_of(response).await, json!({"name": "res_1"}));
    assert_eq!(bench.status_of_res_1(), Some(json!("ready")));
    let requests = bench.remote().requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].applied);
    let line = requests[0].to_string();
    assert!(
        line.starts_with("PATCH icfg_1/res_1  secrets[DATABASE_URL], status  → 200"),
        "{line}"
    );
    assert!(!format!("{:?} {:?}", requests, bench.remote()).contains("hunter2"));
    let shown = json_of(bench.client.get(&path("res_1")).await).await;
    assert_eq!(shown["status"], "ready");
    assert!(shown.get("secrets").is_none());
    assert!(bench.remote().violations().is_empty());
}

#[tokio::test]
async fn every_operation_answers_as_published() {
    let bench = Bench::start().await;
    let client = &bench.client;
    let import = json!({"productId": "prod_1", "name": "orders", "status": "pending"});
    let odd = path("a%2Fb%25%20%C3%BC");
    let imported = client
        .send(Method::PUT, &odd, import)
        .await
        .expect("an answer");
    assert_eq!(imported.status(), 200);
    assert!(bench.remote().resource(INSTALLATION, "a/b% ü").is_some());
    let secrets = json!({"secrets": [{"name": "A", "value": "1"}], "partial": true});
    let set = client
        .send(Method::PUT, &format!("{odd}/secrets"), secrets)
        .await
        .expect("an answer");
    assert_eq!(set.status(), 201);
    let list = format!("/v1/installations/{INSTALLATION}/resources");
    let listed = json_of(client.get(&list).await).await;
    assert_eq!(listed["resources"][0]["partnerId"], "a/b% ü");
    let deleted = client
        .request(Method::DELETE, &odd)
        .send()
        .await
        .expect("an answer");
    assert_eq!(deleted.status(), 204);
    let gone = client.get(&odd).await;
    assert_eq!(gone.status(), 404);
    assert_eq!(json_of(gone).await["error"]["code"], "not_found");
    assert!(bench.remote().violations().is_empty());
}

#[tokio::test]
async fn what_a_client_must_never_send_is_a_violation() {
    let bench = Bench::start().await;
    let client = &bench.client;
    let url = format!("{}{}", client.base, path("res_1"));
    let other = SecretString::from("token-of-icfg-2");
    bench.remote().install("icfg_2", &other);
    let json = ("content-type", "application/json");
    let raw = |agent: &'static str,
               token: &'static str,
               (name, value): (&'static str, &'static str),
               body: &'static str| {
        let request = client
            .http
            .patch(&url)
            .header("user-agent", agent)
            .header(name, value);
        let request = if token.is_empty() {
            request
        } else {
            request.bearer_auth(token)
        };
        request.body(body)
    };
    let good = "reconciled/1";
    for (request, status, kind) in [
        (raw(good, TOKEN, json, "{}"), 200, ViolationKind::EmptyPatch),
        (
            raw("curl/8", TOKEN, json, r#"{"name":"n"}"#),
            200,
            ViolationKind::UserAgent,
        ),
        (
            raw(
                good,
                TOKEN,
                ("content-type", "text/plain"),
                r#"{"name":"n"}"#,
            ),
            415,
            ViolationKind::ContentType,
        ),
        (
            raw(good, TOKEN, json, r#"{"state":"ready"}"#),
            400,
            ViolationKind::InvalidBody,
        ),
        (
            raw(good, TOKEN, json, r#"{"name":"a","name":"b"}"#),
            400,
            ViolationKind::InvalidBody,
        ),
        (raw(good, TOKEN, json, "{"), 400, ViolationKind::InvalidBody),
        (
            raw(good, "", json, r#"{"name":"n"}"#),
            401,
            ViolationKind::MissingToken,
        ),
        (
            raw(good, "token-of-icfg-2", json, r#"{"name":"n"}"#),
            403,
            ViolationKind::ForeignToken,
        ),
        (
            client.request(Method::POST, &path("res_1")),
            405,
            ViolationKind::UnknownRoute,
        ),
        (
            client.request(Method::GET, "/v2/elsewhere"),
            404,
            ViolationKind::UnknownRoute,
        ),
    ] {
        let before = bench.remote().violations().len();
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), status, "{kind}");
        assert_eq!(bench.kinds()[before..], [kind], "{kind}");
    }
    let unknown = raw(good, "token-of-nobody", json, r#"{"name":"n"}"#)
        .send()
        .await;
    assert_eq!(unknown.expect("an answer").status(), 401);
}

#[tokio::test]
async fn tokens_can_be_rotated_revoked_and_installations_uninstalled() {
    let bench = Bench::start().await;
    let status = || async {
        let response = bench.client.patch(json!({"status": "ready"})).await;
        response.expect("an answer").status().as_u16()
    };
    assert_eq!(status().await, 200);
    bench
        .remote()
        .rotate_token(INSTALLATION, &SecretString::from("another"));
    assert_eq!(status().await, 401);
    bench
        .remote()
        .install(INSTALLATION, &SecretString::from(TOKEN));
    assert_eq!(status().await, 200);
    bench.remote().revoke_tokens(INSTALLATION);
    assert_eq!(status().await, 401);
    for (absence, expected) in [
        (Absence::NotFound, 404),
        (Absence::Gone, 410),
        (Absence::Forbidden, 403),
    ] {
        bench.remote().uninstall(INSTALLATION, absence);
        assert_eq!(status().await, expected);
    }
    assert!(bench.remote().violations().is_empty());
}

#[tokio::test]
async fn the_token_endpoint_grants_to_its_client_only() {
    let bench = Bench::with(Options {
        oauth: Some(OauthClient {
            client_id: "oac_1".to_owned(),
            client_secret: SecretString::from("s&cret"),
        }),
        ..Options::default()
    })
    .await;
    let ask = async |form: &str| {
        bench
            .client
            .http
            .post(bench.simulator.token_url())
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.to_owned())
            .send()
            .await
            .expect("an answer")
    };
    let good = "grant_type=client_credentials&client_id=oac_1&client_secret=s%26cret&installation_id=icfg_1";
    let granted = ask(good).await;
    assert_eq!(granted.status(), 200);
    let granted = json_of(granted).await;
    assert_eq!(granted["expires_in"], 3600);
    let token = granted["access_token"].as_str().expect("a token");
    let list = format!("{}/v1/installations/icfg_1/resources", bench.client.base);
    let listed = bench.client.http.get(&list).bearer_auth(token).send().await;
    assert_eq!(listed.expect("an answer").status(), 200);
    for (form, status, error) in [
        (good.replace("s%26cret", "wrong"), 401, "invalid_client"),
        (good.replace("icfg_1", "icfg_9"), 400, "invalid_grant"),
        (
            good.replace("client_credentials", "password"),
            400,
            "unsupported_grant_type",
        ),
        (
            good.replace("&installation_id=icfg_1", ""),
            400,
            "invalid_request",
        ),
    ] {
        let refused = ask(&form).await;
        assert_eq!(refused.status(), status);
        assert_eq!(json_of(refused).await["error"], error);
    }
    assert!(!format!("{:?}", bench.remote().requests()).contains(token));
}

#[tokio::test]
async fn what_is_held_outlives_an_outage_in_which_connections_are_refused() {
    let bench = Bench::start().await;
    bench
        .client
        .patch(json!({"status": "ready"}))
        .await
        .expect("an answer");
    let Bench { simulator, client } = bench;
    let (remote, address) = (simulator.remote().clone(), simulator.address());
    simulator.shutdown().await;
    let refused = client
        .patch(json!({"status": "error"}))
        .await
        .expect_err("nobody listens");
    assert!(refused.is_connect());
    let simulator = Simulator::serve(remote, address)
        .await
        .expect("the port is free again");
    let shown = json_of(client.get(&path("res_1")).await).await;
    assert_eq!(shown["status"], "ready");
    assert_eq!(simulator.remote().requests().len(), 2);
}

#[tokio::test]
async fn the_remote_control_does_over_http_what_the_handle_does() {
    let bench = Bench::with(Options::default()).await;
    let client = &bench.client;
    let control = async |method: Method, path: &str, body: Value| {
        let response = client
            .send(method, &format!("/_simulator/{path}"), body)
            .await;
        let response = response.expect("an answer");
        let status = response.status().as_u16();
        let bytes = response.bytes().await.expect("a body");
        (
            status,
            serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        )
    };
    let seed = json!({"resources": [{"installation_id": INSTALLATION, "resource_id": "res_1",
        "fields": {"status": "pending", "secrets": [{"name": "A", "value": "hunter2"}]}}]});
    assert_eq!(
        control(Method::POST, "seed", seed).await,
        (201, json!({"seeded": 1}))
    );
    let wrong = json!({"resources": [{"installation_id": INSTALLATION, "resource_id": "res_2", "fields": {"status": "x"}}]});
    assert_eq!(control(Method::POST, "seed", wrong).await.0, 400);
    let rules = json!({"rules": [{"fault": {"status": {"code": 503}}, "match": {"method": "PATCH"}, "times": 2}]});
    assert_eq!(control(Method::POST, "faults", rules).await.0, 201);
    assert_eq!(
        client
            .patch(json!({"status": "ready"}))
            .await
            .expect("an answer")
            .status(),
        503
    );
    let (_, faults) = control(Method::GET, "faults", json!({})).await;
    assert_eq!(faults["faults"][0]["times"], 1);
    assert_eq!(control(Method::DELETE, "faults", json!({})).await.0, 204);
    assert_eq!(
        client
            .patch(json!({"status": "ready"}))
            .await
            .expect("an answer")
            .status(),
        200
    );
    let (_, requests) = control(Method::GET, "requests?after=1", json!({})).await;
    assert_eq!(requests["requests"].as_array().map(Vec::len), Some(1));
    assert_eq!(requests["requests"][0]["outcome"], json!({"answered": 200}));
    let (_, held) = control(Method::GET, "resources", json!({})).await;
    assert_eq!(held["resources"][0]["fields"]["status"], "ready");
    assert_eq!(
        held["resources"][0]["secrets"]["A"]["value"],
        bench.remote().fingerprint("hunter2")
    );
    assert!(!held.to_string().contains("hunter2"));
    let (_, history) = control(Method::GET, "resources/icfg_1/res_1/history", json!({})).await;
    assert_eq!(history["history"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        control(Method::PUT, "weather", json!({"seed": 1, "p_503": 1.5}))
            .await
            .0,
        400
    );
    assert_eq!(
        control(
            Method::PUT,
            "weather",
            json!({"seed": 1, "p_503": 1.0, "delay_max": "5ms"})
        )
        .await
        .0,
        204
    );
    assert_eq!(
        client
            .patch(json!({"name": "n"}))
            .await
            .expect("an answer")
            .status(),
        503
    );
    assert_eq!(control(Method::DELETE, "weather", json!({})).await.0, 204);
    let (status, rotated) = control(Method::POST, "installations/icfg_1/token", json!({})).await;
    assert!(status == 200 && rotated["token"].is_string());
    assert_eq!(
        client
            .patch(json!({"name": "n"}))
            .await
            .expect("an answer")
            .status(),
        401
    );
    let again = json!({"installation_id": INSTALLATION, "token": TOKEN});
    assert_eq!(control(Method::POST, "installations", again).await.0, 201);
    assert_eq!(
        control(
            Method::DELETE,
            "resources/icfg_1/res_1?answer=410",
            json!({})
        )
        .await
        .0,
        204
    );
    assert_eq!(
        client
            .patch(json!({"name": "n"}))
            .await
            .expect("an answer")
            .status(),
        410
    );
    assert_eq!(
        control(Method::DELETE, "installations/icfg_1?answer=403", json!({}))
            .await
            .0,
        204
    );
    assert_eq!(
        client
            .patch(json!({"name": "n"}))
            .await
            .expect("an answer")
            .status(),
        403
    );
    assert_eq!(
        control(Method::GET, "violations", json!({})).await,
        (200, json!({"violations": []}))
    );
    assert_eq!(control(Method::POST, "trap", json!({})).await.0, 200);
    assert_eq!(bench.kinds(), [ViolationKind::FollowedRedirect]);
}
