//! When the place that polls go on from can be trusted no more: every row is read.

use std::time::Duration;

use reconciled::app::{OnceOptions, once};
use reconciled::simulator::{OauthClient, Options};
use reconciled::store::{PauseKind, SweepAccount};
use secrecy::SecretString;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::fleet::Fleet;

async fn fleet() -> Fleet {
    let fleet = Fleet::new().await;
    for n in 0..4 {
        let resource = format!("res_{n}");
        fleet.set("icfg_1", &resource, "status = 'ready'").await;
    }
    assert!(fleet.once().await.sweep.is_none());
    assert!(
        fleet.once().await.sweep.is_none(),
        "nothing is wrong with it"
    );
    fleet
}

#[tokio::test]
async fn a_restored_database_is_read_whole() {
    let fleet = fleet().await;
    // Another file under the old name, as a restore leaves it; a change in it lies before the cursor.
    let path = std::path::Path::new(&fleet.provider.name);
    let copy = path.with_extension("copy");
    std::fs::copy(path, &copy).expect("the file is there");
    std::fs::rename(&copy, path).expect("the directory is writable");
    fleet
        .provider
        .execute("UPDATE resource SET status = 'suspended' WHERE id = 'res_0'")
        .await;
    let report = fleet.once().await;
    assert!(report.sweep.is_some());
    assert_eq!(fleet.held("icfg_1", "res_0", "status"), "suspended");
    assert!(fleet.once().await.sweep.is_none(), "once is enough");
}

#[tokio::test]
async fn a_source_whose_newest_row_is_older_than_before_is_read_whole() {
    let fleet = fleet().await;
    // The clock, or what stands for it, went back: new changes get cursors that were passed long ago.
    fleet
        .provider
        .execute("UPDATE resource SET version = version - 100; UPDATE resource SET status = 'suspended' WHERE id = 'res_0'")
        .await;
    let report = fleet.once().await;
    assert!(report.sweep.is_some());
    assert_eq!(fleet.held("icfg_1", "res_0", "status"), "suspended");
    assert!(fleet.once().await.sweep.is_none(), "once is enough");
}

#[tokio::test]
async fn a_row_that_changed_without_its_cursor_is_found_by_the_next_sweep_and_by_no_poll() {
    let fleet = fleet().await;
    // Behind the cursor: the newest row is read by every poll.
    fleet
        .provider
        .execute("UPDATE resource SET status = 'suspended' WHERE id = 'res_0'")
        .await;
    for _ in 0..2 {
        assert!(fleet.once().await.sweep.is_none());
        assert_eq!(fleet.held("icfg_1", "res_0", "status"), "ready");
    }
    assert!(fleet.sweep().await.is_complete());
    assert_eq!(fleet.held("icfg_1", "res_0", "status"), "suspended");
}

#[tokio::test]
async fn a_refused_grant_pauses_its_installation_alone_and_a_granted_one_serves_all_its_resources()
{
    let options = Options {
        oauth: Some(OauthClient {
            client_id: "oac_1".to_owned(),
            client_secret: SecretString::from("right"),
        }),
        ..Options::default()
    };
    let fleet = Fleet::new().await;
    let simulator = reconciled::simulator::Simulator::start(options)
        .await
        .expect("a free port");
    // Only one of the two has installed the integration: the other is refused a grant.
    simulator
        .remote()
        .install("icfg_1", &SecretString::from("unused"));
    for n in 0..5 {
        let provisioned = json!({"status": "pending"});
        simulator
            .remote()
            .seed("icfg_1", &format!("res_{n}"), &provisioned)
            .expect("within the schema");
    }
    let oauth = format!(
        "\n[vercel]\n[vercel.oauth]\ntoken_url = \"{}\"\nclient_id = \"oac_1\"\nclient_secret = \"right\"\n\
         form = {{ installation_id = \"{{installation_id}}\" }}\n",
        simulator.token_url()
    );
    let fleet = fleet.against(simulator).with(&oauth);
    for n in 0..5 {
        for installation in ["icfg_1", "icfg_2"] {
            fleet
                .set(installation, &format!("res_{n}"), "status = 'ready'")
                .await;
        }
    }
    let parts = fleet.parts().await;
    let options = OnceOptions {
        sweep: false,
        timeout: Duration::from_secs(5),
    };
    let report = once(&parts, options, &CancellationToken::new())
        .await
        .expect("source and state work");
    assert_eq!((report.counts.paused, report.counts.waiting), (1, 5));
    assert_eq!(report.counts.dead, 0);
    for n in 0..5 {
        assert_eq!(fleet.held("icfg_1", &format!("res_{n}"), "status"), "ready");
    }
    let pauses = parts.console.pauses().await.expect("the state is readable");
    assert_eq!(pauses[0].kind, PauseKind::Token);
    assert_eq!(pauses[0].installation_id.as_str(), "icfg_2");
    let granted = fleet
        .remote
        .requests()
        .into_iter()
        .filter(|request| request.path.ends_with("/oauth/token") && request.status() == Some(200))
        .count();
    assert_eq!(
        granted, 1,
        "one grant serves all requests of its installation"
    );
}

#[tokio::test]
async fn a_sweep_says_where_every_row_stands_and_how_many_are_missing() {
    let fleet = Fleet::new().await;
    for n in 0..9 {
        let resource = format!("res_{n}");
        fleet.set("icfg_1", &resource, "status = 'ready'").await;
    }
    assert!(fleet.sweep().await.is_complete());
    fleet.set("icfg_1", "res_0", "status = 'unknown'").await;
    let execute = |sql| fleet.provider.execute(sql);
    execute("DELETE FROM resource WHERE id IN ('res_6', 'res_7', 'res_8')").await;
    for newly_missing in [3, 0] {
        let report = fleet.sweep().await.sweep.expect("it was asked for");
        let account = SweepAccount {
            rows: 6,
            equal: 5,
            quarantined: 1,
            missing: 3,
            ..SweepAccount::default()
        };
        assert_eq!(report.account, account);
        assert_eq!(report.newly_missing, newly_missing);
        assert_eq!((report.unaccounted, report.uninstalled), (0, 0));
        assert!(!report.converged());
    }
    fleet.set("icfg_1", "res_0", "status = 'ready'").await;
    for n in 6..9 {
        let resource = format!("res_{n}");
        fleet.set("icfg_1", &resource, "status = 'ready'").await;
    }
    let report = fleet.sweep().await.sweep.expect("it was asked for");
    assert_eq!((report.account.rows, report.account.equal), (9, 9));
    assert!(report.converged());
}
