//! What Vercel lists of an installation: the whole of it, or nothing.

use reconciled::model::InstallationId;
use reconciled::vercel::{Listed, Marketplace as _};

use super::server::{Reply, Server};
use super::{client, settings, token};

const LISTED: &str = r#"{"resources":[
    {"id":"ires_1","partnerId":"res_1","name":"orders-db","status":"ready"},
    {"id":"ires_2","partnerId":"res_2","status":"error"}
]}"#;

/// What a client makes of this answer.
async fn listed(status: u16, body: &str) -> Option<Vec<(String, Option<String>)>> {
    let body = body.to_owned();
    let server = Server::start(move |_| Reply::json(status, &body)).await;
    let installation_id = InstallationId::new("icfg_1").expect("an id");
    let (answer, listed) = client(&settings(&server.url()))
        .list(&token(), &installation_id)
        .await;
    assert_eq!(answer.status(), Some(status));
    let line = server.received()[0].line();
    assert!(
        line.starts_with("GET /v1/installations/icfg_1/resources "),
        "{line}"
    );
    let shown = |one: Listed| (one.resource_id.to_string(), one.name);
    Some(listed?.into_iter().map(shown).collect())
}

#[tokio::test]
async fn a_list_gives_the_partner_s_ids_and_names() {
    let expected = vec![
        ("res_1".to_owned(), Some("orders-db".to_owned())),
        ("res_2".to_owned(), None),
    ];
    assert_eq!(listed(200, LISTED).await, Some(expected));
    assert_eq!(listed(200, r#"{"resources":[]}"#).await, Some(Vec::new()));
}

#[tokio::test]
async fn what_is_no_whole_list_is_none() {
    for (status, body) in [
        (203, LISTED),
        (404, LISTED),
        (500, LISTED),
        (200, "<html>"),
        (200, "[]"),
        (200, r#"{"resources":{}}"#),
        // One resource that cannot be told makes the rest no whole.
        (200, r#"{"resources":[{"partnerId":"res_1"},{"name":"x"}]}"#),
        (200, r#"{"resources":[{"partnerId":7}]}"#),
        (200, r#"{"resources":[{"partnerId":""}]}"#),
    ] {
        assert_eq!(listed(status, body).await, None, "{status} {body}");
    }
}
