//! The simulator through its socket, with a client that knows nothing of it.

use std::time::Duration;

use reqwest::{Method, Response};
use secrecy::SecretString;
use serde_json::{Value, json};

use super::*;

const INSTALLATION: &str = "icfg_1";
const TOKEN: &str = "token-of-icfg-1";

struct Bench {
    simulator: Simulator,
    client: Client,
}

impl Bench {
    async fn start() -> Self {
        Self::with(Options::creating()).await
    }

    async fn with(options: Options) -> Self {
        let simulator = Simulator::start(options).await.expect("a free port");
        let token = SecretString::from(TOKEN);
        simulator.remote().install(INSTALLATION, &token);
        let client = Client::new(simulator.base_url());
        Self { simulator, client }
    }

    fn remote(&self) -> &Remote {
        self.simulator.remote()
    }

    fn kinds(&self) -> Vec<ViolationKind> {
        let violations = self.remote().violations();
        violations.iter().map(|violation| violation.kind).collect()
    }

    /// A PATCH that is under way until it is aborted.
    async fn hold_one(&self) -> tokio::task::JoinHandle<reqwest::Result<Response>> {
        let hour = Duration::from_secs(3600);
        self.remote().fault(Fault::Delay(hour), Matcher::patch());
        let client = self.client.clone();
        let request = tokio::spawn(async move { client.patch(json!({"name": "first"})).await });
        self.remote()
            .wait_until(|remote| remote.held() == 1)
            .await
            .expect("it is held");
        request
    }

    fn status_of_res_1(&self) -> Option<Value> {
        let resource = self.remote().resource(INSTALLATION, "res_1")?;
        resource.field(Field::Status).cloned()
    }
}

#[derive(Clone)]
struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    fn new(base: String) -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent("reconciled/0.0.0")
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .expect("a client without files");
        Self { http, base }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(TOKEN)
    }

    async fn send(&self, method: Method, path: &str, body: Value) -> reqwest::Result<Response> {
        self.request(method, path)
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await
    }

    async fn patch(&self, body: Value) -> reqwest::Result<Response> {
        self.send(Method::PATCH, &path("res_1"), body).await
    }

    async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path)
            .send()
            .await
            .expect("an answer")
    }
}

fn path(resource: &str) -> String {
    format!("/v1/installations/{INSTALLATION}/resources/{resource}")
}

async fn json_of(response: Response) -> Value {
    let bytes = response.bytes().await.expect("a whole body");
    serde_json::from_slice(&bytes).expect("a JSON body")
}

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
async fn faults_that_answer_do_not_apply() {
    let bench = Bench::start().await;
    let header = |response: &Response, name: &str| {
        let value = response.headers().get(name)?;
        Some(value.to_str().expect("ASCII").to_owned())
    };
    let limited = |retry_after| Fault::RateLimited { retry_after };
    for (fault, status) in [
        (Fault::status(503), 503),
        (Fault::Conflict, 409),
        (Fault::RejectField(Field::Status), 400),
        (limited(RetryAfter::Seconds(7)), 429),
        (limited(RetryAfter::HttpDate(60)), 429),
        (limited(RetryAfter::Reset(60)), 429),
        (limited(RetryAfter::Absurd), 429),
        (limited(RetryAfter::None), 429),
        (
            Fault::Redirect {
                code: 307,
                location: "/_simulator/trap".to_owned(),
            },
            307,
        ),
    ] {
        bench.remote().fault(fault.clone(), Matcher::patch());
        let response = bench
            .client
            .patch(json!({"status": "ready"}))
            .await
            .expect("an answer");
        assert_eq!(response.status(), status, "{fault:?}");
        let retry_after = header(&response, "retry-after");
        match fault {
            Fault::RateLimited {
                retry_after: RetryAfter::Seconds(_),
            } => assert_eq!(retry_after.as_deref(), Some("7")),
            Fault::RateLimited {
                retry_after: RetryAfter::HttpDate(_),
            } => {
                assert!(httpdate::parse_http_date(&retry_after.expect("a date")).is_ok());
            }
            Fault::RateLimited {
                retry_after: RetryAfter::Absurd,
            } => assert_eq!(retry_after.as_deref(), Some("4102444800")),
            Fault::RateLimited {
                retry_after: RetryAfter::Reset(_),
            } => {
                assert!(header(&response, "x-ratelimit-reset").is_some() && retry_after.is_none());
            }
            _ => assert_eq!(retry_after, None),
        }
        assert_eq!(bench.status_of_res_1(), None, "{fault:?}");
    }
    bench
        .client
        .patch(json!({"status": "ready"}))
        .await
        .expect("no rule is left");
    assert_eq!(bench.status_of_res_1(), Some(json!("ready")));
    assert!(bench.remote().violations().is_empty());
}

#[tokio::test]
async fn faults_that_cut_the_connection_apply_or_not_as_named() {
    for (fault, applied) in [
        (Fault::DropBefore, false),
        (Fault::DropAfter, true),
        (Fault::NotHttp, false),
    ] {
        let bench = Bench::start().await;
        bench.remote().fault(fault.clone(), Matcher::any());
        let outcome = bench.client.patch(json!({"status": "ready"})).await;
        assert!(outcome.is_err(), "{fault:?}");
        assert_eq!(bench.status_of_res_1().is_some(), applied, "{fault:?}");
        let requests = bench.remote().requests();
        assert_eq!(requests.len(), 1, "the client does not repeat by itself");
        assert_eq!(requests[0].outcome, Outcome::Closed);
        assert_eq!(requests[0].applied, applied);
        assert_eq!(requests[0].fault, Some(fault.name()));
    }
}

#[tokio::test]
async fn answers_may_be_truncated_huge_or_slow_though_the_patch_is_applied() {
    let bench = Bench::start().await;
    let patch = || bench.client.patch(json!({"status": "ready"}));
    bench.remote().fault(Fault::Truncated, Matcher::any());
    let truncated = patch().await.expect("a head");
    assert_eq!(truncated.status(), 200);
    assert!(truncated.bytes().await.is_err());
    bench
        .remote()
        .fault(Fault::HugeBody { bytes: 1 << 20 }, Matcher::any());
    let huge = patch()
        .await
        .expect("a head")
        .bytes()
        .await
        .expect("all of it");
    assert!(huge.len() >= 1 << 20);
    bench
        .remote()
        .fault(Fault::SlowBody(Duration::from_secs(3600)), Matcher::any());
    let slow = patch().await.expect("a head");
    bench
        .remote()
        .wait_until(|remote| remote.held() == 1)
        .await
        .expect("it is held");
    bench.remote().release();
    assert_eq!(json_of(slow).await, json!({"name": "res_1"}));
    assert!(bench.remote().requests().iter().all(|entry| entry.applied));
}

#[tokio::test]
async fn a_delayed_request_goes_on_and_a_hung_one_is_closed_on_release() {
    let bench = Bench::start().await;
    for (fault, answered) in [
        (Fault::Delay(Duration::from_secs(3600)), true),
        (Fault::Hang, false),
    ] {
        bench.remote().fault(fault, Matcher::any());
        let client = bench.client.clone();
        let request = tokio::spawn(async move { client.patch(json!({"status": "ready"})).await });
        bench
            .remote()
            .wait_until(|remote| remote.held() == 1)
            .await
            .expect("it is held");
        bench.remote().release();
        let outcome = request.await.expect("no panic");
        assert_eq!(outcome.is_ok(), answered);
    }
}

#[tokio::test]
async fn a_late_application_may_undo_a_newer_one_and_history_shows_it() {
    let bench = Bench::start().await;
    let patch = |status: &'static str| bench.client.patch(json!({ "status": status }));
    patch("pending").await.expect("an answer");
    let late = Fault::ApplyLate(Duration::from_secs(3600));
    bench.remote().fault(late, Matcher::any());
    assert!(patch("ready").await.is_err());
    assert!(!bench.remote().requests()[1].applied);
    patch("ready").await.expect("an answer");
    patch("suspended").await.expect("an answer");
    let mut observed = bench.remote().observe();
    bench.remote().release();
    bench
        .remote()
        .wait_until(|remote| remote.requests()[1].late)
        .await
        .expect("it takes effect");
    assert!(
        observed
            .recv()
            .await
            .expect("an entry")
            .to_string()
            .contains("applied late")
    );
    assert_eq!(bench.status_of_res_1(), Some(json!("ready")));
    let regressions = bench.remote().regressions(INSTALLATION, "res_1");
    assert_eq!(regressions.len(), 1);
    assert_eq!(regressions[0].request, Some(2));
    assert!(
        bench.remote().violations().is_empty(),
        "the client had its answer, an error, before it asked again"
    );
}

#[tokio::test]
async fn two_writes_at_once_are_a_violation() {
    let bench = Bench::with(patient(Duration::ZERO)).await;
    let waited_for = bench.hold_one().await;
    bench
        .client
        .patch(json!({"name": "second"}))
        .await
        .expect("an answer");
    assert_eq!(bench.kinds(), [ViolationKind::ConcurrentWrites]);
    waited_for.abort();
}

#[tokio::test]
async fn a_repeat_after_giving_up_is_no_violation() {
    let bench = Bench::with(patient(Duration::from_secs(3600))).await;
    let given_up = bench.hold_one().await;
    given_up.abort();
    bench
        .client
        .patch(json!({"name": "second"}))
        .await
        .expect("an answer");
    assert_eq!(bench.kinds(), []);
    let outcomes: Vec<_> = bench
        .remote()
        .requests()
        .iter()
        .map(|entry| (entry.outcome, entry.applied))
        .collect();
    assert_eq!(
        outcomes,
        [(Outcome::Abandoned, false), (Outcome::Answered(200), true)]
    );
}

fn patient(overlap_grace: Duration) -> Options {
    Options {
        overlap_grace,
        ..Options::creating()
    }
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
async fn the_rate_limit_is_per_installation_and_says_when_it_ends() {
    let mut options = Options::creating();
    options.behaviour.requests_per_window = Some(1);
    let bench = Bench::with(options).await;
    let first = bench
        .client
        .patch(json!({"name": "a"}))
        .await
        .expect("an answer");
    assert_eq!(first.status(), 200);
    assert_eq!(first.headers()["x-ratelimit-remaining"], "0");
    let second = bench
        .client
        .patch(json!({"name": "b"}))
        .await
        .expect("an answer");
    assert_eq!(second.status(), 429);
    assert!(
        second.headers().contains_key("retry-after")
            && second.headers().contains_key("x-ratelimit-reset")
    );
    let elsewhere = bench
        .client
        .http
        .get(format!(
            "{}/v1/installations/icfg_2/resources",
            bench.client.base
        ))
        .bearer_auth("token-of-icfg-2")
        .send()
        .await
        .expect("an answer");
    assert_eq!(elsewhere.status(), 200);
}

#[tokio::test]
async fn weather_strikes_the_same_requests_for_the_same_seed() {
    let mut seen = Vec::new();
    for _ in 0..2 {
        let bench = Bench::with(Options {
            weather: Some(Weather {
                seed: 11,
                p_503: 0.3,
                p_409: 0.3,
                ..Weather::default()
            }),
            ..Options::creating()
        })
        .await;
        let mut statuses = Vec::new();
        for _ in 0..20 {
            let response = bench
                .client
                .patch(json!({"name": "a"}))
                .await
                .expect("an answer");
            statuses.push(response.status().as_u16());
        }
        assert!(statuses.contains(&503) && statuses.contains(&409) && statuses.contains(&200));
        seen.push(statuses);
    }
    assert_eq!(seen[0], seen[1]);
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
