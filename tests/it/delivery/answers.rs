//! Section "Answers and what follows", a row each.

use std::time::Duration;

use reconciled::model::EntryState;
use reconciled::simulator::{Absence, Fault, Field, Matcher, RetryAfter};
use reconciled::store::PauseKind;
use secrecy::SecretString;
use serde_json::json;

use super::fleet::{Fleet, LATE_APPLY};

const SHORT: Duration = Duration::from_millis(300);
/// The daemon's clock counts whole milliseconds.
const CLOCK_STEP: Duration = Duration::from_millis(1);

#[tokio::test]
async fn a_2xx_acknowledges_and_nothing_is_sent_again() {
    let fleet = Fleet::new().await;
    fleet
        .set(
            "icfg_1",
            "res_1",
            "name = 'a', status = 'ready', secrets = '{\"K\":\"v1\"}'",
        )
        .await;
    assert!(fleet.once().await.is_complete());
    assert!(fleet.once().await.is_complete());
    assert_eq!(fleet.patches("icfg_1", "res_1").len(), 1);
    assert_eq!(fleet.held("icfg_1", "res_1", "status"), "ready");
    assert_eq!(fleet.secret("icfg_1", "res_1", "K").as_deref(), Some("v1"));
}

#[tokio::test]
async fn a_refused_connection_is_no_attempt_and_heals() {
    let mut fleet = Fleet::new().await;
    fleet.set("icfg_1", "res_1", "status = 'ready'").await;
    let simulator = fleet.simulator.take().expect("it runs");
    let address = simulator.address();
    simulator.shutdown().await;
    let report = fleet.once_within(SHORT).await;
    assert_eq!(report.counts.waiting, 1);
    assert!(!report.is_complete());
    let again = reconciled::simulator::Simulator::serve(fleet.remote.clone(), address)
        .await
        .expect("the port is free");
    fleet.simulator = Some(again);
    assert!(fleet.once().await.is_complete());
    assert_eq!(
        fleet.patches("icfg_1", "res_1").len(),
        1,
        "nothing was in doubt: one request was enough"
    );
}

#[tokio::test]
async fn a_lost_answer_is_repeated_and_once_more_when_it_can_no_longer_be_applied_late() {
    for fault in [
        Fault::DropAfter,
        Fault::DropBefore,
        Fault::NotHttp,
        Fault::status(502),
        Fault::status(504),
    ] {
        let fleet = Fleet::new().await;
        fleet.set("icfg_1", "res_1", "status = 'ready'").await;
        let name = fault.name();
        fleet.remote.fault(fault, Matcher::patch());
        assert!(fleet.once().await.is_complete());
        // The lost one, its repetition, and one after `late_apply`, which the repetition is itself where it took that long.
        let arrived = fleet.arrivals("icfg_1", "res_1");
        assert!(matches!(arrived.len(), 2 | 3), "{name}: {arrived:?}");
        let waited = arrived[arrived.len() - 1].duration_since(arrived[0]);
        assert!(
            waited.is_ok_and(|waited| waited >= LATE_APPLY - CLOCK_STEP),
            "{name}: {arrived:?}"
        );
        assert_eq!(fleet.held("icfg_1", "res_1", "status"), "ready");
    }
}

#[tokio::test]
async fn a_500_leaves_doubt_but_needs_no_extra_request() {
    for status in [500, 503] {
        let fleet = Fleet::new().await;
        fleet.set("icfg_1", "res_1", "status = 'ready'").await;
        fleet.remote.fault(Fault::status(status), Matcher::patch());
        assert!(fleet.once().await.is_complete());
        assert_eq!(fleet.patches("icfg_1", "res_1").len(), 2, "{status}");
    }
}

#[tokio::test]
async fn a_429_delays_its_installation_alone() {
    let fleet = Fleet::new().await;
    for installation in ["icfg_1", "icfg_2"] {
        fleet.set(installation, "res_1", "status = 'ready'").await;
    }
    let limited = Fault::RateLimited {
        retry_after: RetryAfter::Seconds(600),
    };
    fleet
        .remote
        .fault_always(limited, Matcher::installation("icfg_1"));
    let report = fleet.once_within(SHORT).await;
    assert_eq!(report.counts.waiting, 1);
    assert_eq!(fleet.held("icfg_2", "res_1", "status"), "ready");
    assert_eq!(
        fleet.patches("icfg_1", "res_1").len(),
        1,
        "it waits as it was told"
    );
}

#[tokio::test]
async fn a_409_whose_resource_already_agrees_is_acknowledged() {
    let fleet = Fleet::managing("status, name").await;
    fleet
        .set("icfg_1", "res_1", "name = 'a', status = 'ready'")
        .await;
    fleet
        .remote
        .seed("icfg_1", "res_1", &json!({"name": "a", "status": "ready"}))
        .expect("a valid resource");
    fleet.remote.fault_always(Fault::Conflict, Matcher::patch());
    assert!(fleet.once().await.is_complete());
    assert_eq!(fleet.patches("icfg_1", "res_1").len(), 1);
}

#[tokio::test]
async fn conflicts_in_a_row_end_in_a_dead_letter_that_a_new_value_opens_again() {
    let fleet = Fleet::managing("status, name").await;
    fleet
        .set("icfg_1", "res_1", "name = 'a', status = 'ready'")
        .await;
    fleet
        .remote
        .seed(
            "icfg_1",
            "res_1",
            &json!({"name": "a", "status": "pending"}),
        )
        .expect("a valid resource");
    fleet.remote.fault_always(Fault::Conflict, Matcher::patch());
    let report = fleet.once().await;
    assert_eq!((report.counts.dead, report.counts.waiting), (1, 0));
    assert_eq!(fleet.patches("icfg_1", "res_1").len(), 3, "max_conflicts");
    fleet.remote.clear_faults();
    fleet.set("icfg_1", "res_1", "status = 'suspended'").await;
    assert_eq!(fleet.once().await.counts.dead, 0);
    assert_eq!(fleet.held("icfg_1", "res_1", "status"), "suspended");
}

#[tokio::test]
async fn a_rotated_token_is_read_again_and_costs_no_attempt() {
    let fleet = Fleet::new().await;
    fleet.set("icfg_1", "res_1", "status = 'ready'").await;
    assert!(fleet.once().await.is_complete());
    let parts = fleet.parts().await;
    fleet
        .remote
        .rotate_token("icfg_1", &SecretString::from("rotated"));
    fleet
        .provider
        .execute("UPDATE installation SET token = 'rotated' WHERE id = 'icfg_1'")
        .await;
    drop(parts);
    fleet.set("icfg_1", "res_1", "status = 'suspended'").await;
    assert!(fleet.once().await.is_complete());
    assert_eq!(fleet.held("icfg_1", "res_1", "status"), "suspended");
}

#[tokio::test]
async fn a_token_that_stays_refused_pauses_its_installation_alone() {
    let fleet = Fleet::new().await;
    fleet.remote.revoke_tokens("icfg_1");
    for installation in ["icfg_1", "icfg_2"] {
        fleet.set(installation, "res_1", "status = 'ready'").await;
        fleet.set(installation, "res_2", "status = 'ready'").await;
    }
    let report = fleet.once_within(SHORT).await;
    assert_eq!(
        (
            report.counts.paused,
            report.counts.waiting,
            report.counts.dead
        ),
        (1, 2, 0)
    );
    assert_eq!(fleet.held("icfg_2", "res_2", "status"), "ready");
    let pauses = fleet
        .parts()
        .await
        .console
        .pauses()
        .await
        .expect("the state is readable");
    assert_eq!(pauses[0].kind, PauseKind::Token);
}

#[tokio::test]
async fn a_resource_that_vercel_does_not_know_is_a_dead_letter() {
    let fleet = Fleet::new().await;
    fleet.set("icfg_1", "res_1", "status = 'ready'").await;
    assert!(fleet.once().await.is_complete());
    fleet
        .remote
        .remove_resource("icfg_1", "res_1", Absence::NotFound)
        .expect("it is there");
    fleet.set("icfg_1", "res_1", "status = 'suspended'").await;
    let report = fleet.once().await;
    assert_eq!((report.counts.dead, report.counts.paused), (1, 0));
}

#[tokio::test]
async fn an_installation_that_is_gone_is_paused_not_parked() {
    for absence in [Absence::NotFound, Absence::Gone] {
        let fleet = Fleet::new().await;
        fleet.remote.uninstall("icfg_1", absence);
        fleet.set("icfg_1", "res_1", "status = 'ready'").await;
        fleet.set("icfg_2", "res_1", "status = 'ready'").await;
        let report = fleet.once_within(SHORT).await;
        assert_eq!(
            (
                report.counts.dead,
                report.counts.paused,
                report.counts.waiting
            ),
            (0, 1, 1)
        );
        assert_eq!(fleet.held("icfg_2", "res_1", "status"), "ready");
    }
}

#[tokio::test]
async fn a_rejected_patch_is_split_and_only_the_rejected_field_is_parked() {
    let fleet = Fleet::managing("status, name, billing_plan, secrets").await;
    let plan = r#"{"id":"p","type":"subscription","name":"P"}"#;
    let columns = format!(
        "name = 'a', status = 'ready', billing_plan = '{plan}', secrets = '{{\"K\":\"v1\"}}'"
    );
    fleet.set("icfg_1", "res_1", &columns).await;
    fleet
        .remote
        .fault_always(Fault::RejectField(Field::BillingPlan), Matcher::patch());
    let report = fleet.once().await;
    assert_eq!(report.counts.dead, 1);
    assert_eq!(
        report.totals.died, 1,
        "also when the last field of the split was accepted"
    );
    assert!(!report.is_complete());
    assert_eq!(fleet.secret("icfg_1", "res_1", "K").as_deref(), Some("v1"));
    assert_eq!(fleet.held("icfg_1", "res_1", "name"), "a");
    let order: Vec<String> = fleet.patched_fields("icfg_1", "res_1")[1..]
        .iter()
        .map(|fields| fields.join("+"))
        .collect();
    assert_eq!(order, ["secrets", "status", "billingPlan", "name"]);
    // A new plan is tried again; an unchanged one is not.
    fleet.remote.clear_faults();
    assert_eq!(fleet.once().await.counts.dead, 1);
    fleet
        .set(
            "icfg_1",
            "res_1",
            "billing_plan = '{\"id\":\"q\",\"type\":\"subscription\",\"name\":\"Q\"}'",
        )
        .await;
    assert_eq!(fleet.once().await.counts.dead, 0);
    assert_eq!(fleet.held("icfg_1", "res_1", "billingPlan")["id"], "q");
}

#[tokio::test]
async fn a_redirect_and_other_4xx_are_parked_and_never_followed() {
    let redirect = Fault::Redirect {
        code: 308,
        location: "/_simulator/trap".to_owned(),
    };
    for fault in [
        redirect,
        Fault::status(402),
        Fault::status(405),
        Fault::status(451),
    ] {
        let fleet = Fleet::new().await;
        fleet.set("icfg_1", "res_1", "status = 'ready'").await;
        fleet.remote.fault(fault, Matcher::patch());
        let report = fleet.once().await;
        assert_eq!(report.counts.dead, 1);
        assert_eq!(fleet.patches("icfg_1", "res_1").len(), 1);
        let console = fleet.parts().await.console;
        let counts = console
            .counts(reconciled::model::Timestamp::EPOCH)
            .await
            .expect("readable");
        assert_eq!(counts.dead, 1, "{}", EntryState::Dead);
    }
}
