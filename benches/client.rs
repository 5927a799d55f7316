//! The request that everything but the daemon sends: the same client, place and headers on every side.

use reqwest::Client;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};

/// A client that keeps as many connections as requests are in flight; one for each process.
pub(crate) fn client(in_flight: u64) -> Client {
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing else did");
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .pool_max_idle_per_host(usize::try_from(in_flight).expect("a small number"))
        .tcp_nodelay(true)
        .build()
        .expect("a client without files")
}

/// Sends one PATCH and reads the answer to its end.
pub(crate) async fn patch(
    client: &Client,
    base: &str,
    installation: &str,
    resource: &str,
    body: String,
) {
    let answer = client
        .patch(format!(
            "{base}/v1/installations/{installation}/resources/{resource}"
        ))
        .header(AUTHORIZATION, format!("Bearer token-of-{installation}"))
        .header(CONTENT_TYPE, "application/json")
        .body(body)
        .send()
        .await
        .expect("the mock answers");
    assert!(answer.status().is_success());
    answer.bytes().await.expect("a whole answer");
}
