//! The laws that single runs can show; the simulation tries them all at once.

use std::time::Duration;

use reconciled::simulator::{Fault, Matcher};
use serde_json::{Value, json};

use super::fleet::Fleet;

#[tokio::test]
async fn law_1_both_sides_agree_on_all_eight_fields() {
    let fleet = Fleet::managing(
        "ownership, name, status, metadata, extras, billing_plan, notification, secrets",
    )
    .await;
    fleet
        .set(
            "icfg_1",
            "res/1 %2e é",
            r#"ownership = 'owned', name = 'db', status = 'ready', metadata = '{"region":"fra1","n":1.50}', extras = '{"x":[1]}',
               billing_plan = '{"id":"pro","type":"subscription","name":"Pro","details":[{"label":"RAM","value":"1"}]}',
               notification = '{"level":"warn","title":"Low","href":"https://example.com"}',
               secrets = '[{"name":"URL","value":"v","prefix":"P_","environmentOverrides":{"preview":"w"}}]'"#,
        )
        .await;
    assert!(fleet.once().await.is_complete());
    let held = |field| fleet.held("icfg_1", "res/1 %2e é", field);
    assert_eq!(held("ownership"), "owned");
    assert_eq!(
        held("metadata"),
        json!({"region": "fra1", "n": serde_json::from_str::<Value>("1.5").expect("a number")})
    );
    assert_eq!(
        held("billingPlan")["details"],
        json!([{"label": "RAM", "value": "1"}])
    );
    assert_eq!(held("notification")["title"], "Low");
    assert_eq!(
        fleet.secret("icfg_1", "res/1 %2e é", "URL").as_deref(),
        Some("v")
    );
    fleet
        .set("icfg_1", "res/1 %2e é", "notification = NULL")
        .await;
    assert!(fleet.once().await.is_complete());
    assert_eq!(
        fleet.patches("icfg_1", "res/1 %2e é")[1],
        json!({"notification": ""})
    );
}

#[tokio::test]
async fn law_2_a_value_that_went_back_after_a_lost_answer_is_sent_all_the_same() {
    let fleet = Fleet::managing("status").await;
    fleet.set("icfg_1", "res_1", "status = 'ready'").await;
    assert!(fleet.once().await.is_complete());
    fleet.set("icfg_1", "res_1", "status = 'suspended'").await;
    fleet.remote.fault(Fault::DropAfter, Matcher::patch());
    // The process ends before it could repeat the request.
    fleet.once_within(Duration::ZERO).await;
    assert_eq!(fleet.held("icfg_1", "res_1", "status"), "suspended");
    fleet.set("icfg_1", "res_1", "status = 'ready'").await;
    assert!(fleet.once().await.is_complete());
    assert_eq!(fleet.held("icfg_1", "res_1", "status"), "ready");
}

#[tokio::test]
async fn law_3_a_patch_holds_what_differs_and_nothing_else() {
    let fleet = Fleet::managing("name, status, metadata, secrets").await;
    let columns = r#"name = 'a', status = 'ready', metadata = '{"a":1,"b":2}', secrets = '{"A":"1","B":"2"}'"#;
    fleet.set("icfg_1", "res_1", columns).await;
    assert!(fleet.once().await.is_complete());
    fleet
        .set("icfg_1", "res_1", r#"metadata = '{"b":2.0,"a":1e0}'"#)
        .await;
    assert!(fleet.once().await.is_complete());
    assert_eq!(
        fleet.patches("icfg_1", "res_1").len(),
        1,
        "another spelling is no change"
    );
    fleet
        .set("icfg_1", "res_1", r#"secrets = '{"A":"1","B":"3"}'"#)
        .await;
    assert!(fleet.once().await.is_complete());
    let partial = &fleet.patches("icfg_1", "res_1")[1];
    assert_eq!(partial["secrets"]["partial"], true);
    assert_eq!(
        partial["secrets"]["secrets"]
            .as_array()
            .expect("an array")
            .len(),
        1
    );
    fleet
        .set("icfg_1", "res_1", r#"secrets = '{"A":"1"}', name = 'b'"#)
        .await;
    assert!(fleet.once().await.is_complete());
    let complete = &fleet.patches("icfg_1", "res_1")[2];
    assert_eq!(
        complete["secrets"]
            .as_array()
            .expect("the complete array")
            .len(),
        1
    );
    assert_eq!(complete["name"], "b");
    assert_eq!(complete.as_object().expect("a body").len(), 2);
    assert_eq!(fleet.secret("icfg_1", "res_1", "B"), None);
}

#[tokio::test]
async fn law_4_a_change_that_went_back_before_it_was_sent_leaves_nothing_to_send() {
    let fleet = Fleet::managing("status").await;
    fleet.set("icfg_1", "res_1", "status = 'ready'").await;
    assert!(fleet.once().await.is_complete());
    let stop = tokio_util::sync::CancellationToken::new();
    stop.cancel();
    fleet.set("icfg_1", "res_1", "status = 'suspended'").await;
    let parts = fleet.parts().await;
    let options = reconciled::app::OnceOptions {
        sweep: false,
        timeout: Duration::ZERO,
    };
    let report = reconciled::app::once(&parts, options, &stop)
        .await
        .expect("it polls");
    assert_eq!(report.counts.waiting, 1);
    drop(parts);
    fleet.set("icfg_1", "res_1", "status = 'ready'").await;
    assert!(fleet.once().await.is_complete());
    assert_eq!(fleet.patches("icfg_1", "res_1").len(), 1);
}

#[tokio::test]
async fn law_6_no_secret_is_in_any_file_of_the_state() {
    let fleet = Fleet::new().await;
    fleet
        .set(
            "icfg_1",
            "res_1",
            "status = 'ready', secrets = '{\"K\":\"very-secret-value-1\"}'",
        )
        .await;
    fleet.remote.fault(Fault::status(503), Matcher::patch());
    assert!(fleet.once().await.is_complete());
    let directory = std::path::Path::new(&fleet.provider.name)
        .parent()
        .expect("a directory")
        .to_owned();
    for file in std::fs::read_dir(directory)
        .expect("readable")
        .map(|file| file.expect("an entry").path())
    {
        let name = file
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if !name.starts_with("state.db") {
            continue;
        }
        let bytes = std::fs::read(&file).expect("readable");
        for secret in ["very-secret-value-1", "token-of-icfg_1"] {
            assert!(
                !bytes
                    .windows(secret.len())
                    .any(|window| window == secret.as_bytes()),
                "{name} holds {secret}"
            );
        }
    }
}

#[tokio::test]
async fn law_7_a_poison_row_delays_nobody() {
    let fleet = Fleet::new().await;
    fleet
        .set("icfg_1", "res_1", "status = 'no such status'")
        .await;
    fleet.set("icfg_1", "res_2", "status = 'ready'").await;
    fleet.set("icfg_1", "..", "status = 'ready'").await;
    let report = fleet.once().await;
    assert_eq!((report.counts.quarantined, report.counts.waiting), (2, 0));
    assert_eq!(fleet.held("icfg_1", "res_2", "status"), "ready");
    fleet.set("icfg_1", "res_1", "status = 'ready'").await;
    assert_eq!(fleet.once().await.counts.quarantined, 1);
    assert_eq!(fleet.held("icfg_1", "res_1", "status"), "ready");
}

#[tokio::test]
async fn law_9_an_empty_source_changes_nothing() {
    let uninstalls = "\n[reconcile]\non_missing = \"uninstall\"\n";
    let fleet = Fleet::new().await.with(uninstalls);
    fleet.set("icfg_1", "res_1", "status = 'ready'").await;
    assert!(fleet.once().await.is_complete());
    fleet.provider.execute("DELETE FROM resource").await;
    let mut reports = vec![fleet.once().await];
    // Two sweeps without its row would be enough to uninstall a resource, did the source show any other.
    for _ in 0..3 {
        reports.push(fleet.sweep().await);
    }
    for report in reports {
        assert_eq!((report.counts.waiting, report.counts.missing), (0, 0));
    }
    assert_eq!(fleet.held("icfg_1", "res_1", "status"), "ready");
    assert_eq!(fleet.patches("icfg_1", "res_1").len(), 1);
}

#[tokio::test]
async fn law_9_while_the_source_shows_no_rows_what_waits_for_its_secrets_waits_on() {
    let fleet = Fleet::new().await;
    let both = "status = 'ready', secrets = '{\"K\":\"1\"}'";
    fleet.set("icfg_1", "res_1", both).await;
    // Found, and not sent yet.
    let stop = tokio_util::sync::CancellationToken::new();
    stop.cancel();
    let parts = fleet.parts().await;
    let options = reconciled::app::OnceOptions {
        sweep: false,
        timeout: Duration::ZERO,
    };
    let report = reconciled::app::once(&parts, options, &stop).await;
    assert_eq!(report.expect("it polls").counts.waiting, 1);
    drop(parts);
    fleet.provider.execute("DELETE FROM resource").await;
    // However often every row is looked for, it is not taken to be gone, and its secrets are not given up.
    for _ in 0..3 {
        let parts = fleet.parts().await;
        let options = reconciled::app::OnceOptions {
            sweep: true,
            timeout: Duration::from_millis(100),
        };
        let report = reconciled::app::once(&parts, options, &Default::default()).await;
        let counts = report.expect("it sweeps").counts;
        assert_eq!((counts.waiting, counts.missing, counts.dead), (1, 0, 0));
    }
    assert_eq!(fleet.waits_because().await, ["source_moved"]);
    assert_eq!(fleet.patches("icfg_1", "res_1").len(), 0);
    fleet.set("icfg_1", "res_1", both).await;
    assert!(fleet.once().await.is_complete());
    assert_eq!(fleet.secret("icfg_1", "res_1", "K").as_deref(), Some("1"));
}
