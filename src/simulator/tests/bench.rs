//! A simulator that listens, and a client that knows nothing of it.

use reqwest::{Method, Response};
use secrecy::SecretString;
use serde_json::{Value, json};
use std::time::Duration;

use super::super::*;

pub(super) const INSTALLATION: &str = "icfg_1";
pub(super) const TOKEN: &str = "token-of-icfg-1";

pub(super) struct Bench {
    pub(super) simulator: Simulator,
    pub(super) client: Client,
}

impl Bench {
    pub(super) async fn start() -> Self {
        Self::with(Options::creating()).await
    }

    pub(super) async fn with(options: Options) -> Self {
        let simulator = Simulator::start(options).await.expect("a free port");
        let token = SecretString::from(TOKEN);
        simulator.remote().install(INSTALLATION, &token);
        let client = Client::new(simulator.base_url());
        Self { simulator, client }
    }

    pub(super) fn remote(&self) -> &Remote {
        self.simulator.remote()
    }

    pub(super) fn kinds(&self) -> Vec<ViolationKind> {
        let violations = self.remote().violations();
        violations.iter().map(|violation| violation.kind).collect()
    }

    /// A PATCH that is under way until it is aborted.
    pub(super) async fn hold_one(&self) -> tokio::task::JoinHandle<reqwest::Result<Response>> {
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

    pub(super) fn status_of_res_1(&self) -> Option<Value> {
        let resource = self.remote().resource(INSTALLATION, "res_1")?;
        resource.field(Field::Status).cloned()
    }
}

#[derive(Clone)]
pub(super) struct Client {
    pub(super) http: reqwest::Client,
    pub(super) base: String,
}

impl Client {
    pub(super) fn new(base: String) -> Self {
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

    pub(super) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(TOKEN)
    }

    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Value,
    ) -> reqwest::Result<Response> {
        self.request(method, path)
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await
    }

    pub(super) async fn patch(&self, body: Value) -> reqwest::Result<Response> {
        self.send(Method::PATCH, &path("res_1"), body).await
    }

    pub(super) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path)
            .send()
            .await
            .expect("an answer")
    }
}

pub(super) fn path(resource: &str) -> String {
    format!("/v1/installations/{INSTALLATION}/resources/{resource}")
}

pub(super) async fn json_of(response: Response) -> Value {
    let bytes = response.bytes().await.expect("a whole body");
    serde_json::from_slice(&bytes).expect("a JSON body")
}
