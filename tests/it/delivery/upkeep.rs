//! What keeps a fleet in order: the guard, drift checks, baselines, and secrets with an operation of their own.

use std::future::ready;

use reconciled::app::{Parts, drift};
use reconciled::dispatch::drift::{DriftEvent, DriftOrder, DriftReport, Finding, Skip};
use reconciled::model::{EntryId, Field, InstallationId, Timestamp};
use reconciled::plan::baseline::{Baseline, Way};
use reconciled::simulator::{Absence, Fault, Matcher};
use reconciled::store::console::{EntryFilter, Order};
use reconciled::store::{Pause, PauseKind, Person};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::fleet::Fleet;

/// Method, last part of the path and fields of each request for a resource.
fn requests(fleet: &Fleet, resource: &str) -> Vec<(String, String, Vec<String>)> {
    let requests = fleet.remote.requests_of("icfg_1", resource);
    requests
        .into_iter()
        .map(|request| {
            let last = request.path.rsplit('/').next().unwrap_or_default();
            (request.method, last.to_owned(), request.fields)
        })
        .collect()
}

async fn check(parts: &Parts, fix: bool) -> (DriftReport, Vec<Finding>) {
    let order = DriftOrder {
        fix,
        ..DriftOrder::default()
    };
    check_by(parts, order).await
}

async fn check_by(parts: &Parts, order: DriftOrder) -> (DriftReport, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut tell = |event: DriftEvent<'_>| {
        if let DriftEvent::Found(finding) = event {
            findings.push(finding.clone());
        }
    };
    let report = drift(parts, order, &CancellationToken::new(), &mut tell).await;
    (report.expect("the state works"), findings)
}

async fn fleet_of(resources: u32, settings: &str) -> Fleet {
    let fleet = Fleet::managing("status, name").await.with(settings);
    for number in 0..resources {
        let resource = format!("res_{number}");
        fleet
            .set("icfg_1", &resource, "status = 'ready', name = 'db'")
            .await;
    }
    assert!(fleet.once().await.is_complete());
    fleet
}

#[tokio::test]
async fn a_pass_beyond_the_blast_radius_waits_for_a_person() {
    let fleet = fleet_of(5, "\n[guard]\ndestructive_max = 2\n").await;
    for number in 0..4 {
        let resource = format!("res_{number}");
        fleet.set("icfg_1", &resource, "status = 'suspended'").await;
    }
    fleet.set("icfg_1", "res_4", "name = 'renamed'").await;
    let report = fleet.once().await;
    assert_eq!((report.counts.held, report.counts.waiting), (4, 0));
    assert_eq!(fleet.held("icfg_1", "res_0", "status"), "ready");
    assert_eq!(fleet.held("icfg_1", "res_4", "name"), "renamed");
    let parts = fleet.parts().await;
    let filter = EntryFilter {
        limit: 100,
        ..EntryFilter::default()
    };
    let page = parts.console.entries(&filter).await.expect("readable");
    let ids: Vec<EntryId> = page.entries.iter().map(|listed| listed.entry.id).collect();
    let now = parts.worlds.clock.now();
    let ana = Person {
        name: "ana".to_owned(),
        reason: None,
    };
    let released = parts.console.act(&ids, Order::Release, &ana, now).await;
    assert_eq!(released.expect("carried out").len(), 4);
    drop(parts);
    assert!(fleet.once().await.is_complete());
    assert_eq!(fleet.held("icfg_1", "res_3", "status"), "suspended");
}

#[tokio::test]
async fn secrets_with_an_operation_of_their_own_go_first() {
    let fleet = Fleet::new()
        .await
        .with("\n[vercel]\nsecrets_endpoint = \"put\"\n");
    // Secrets alone create nothing.
    let provisioned = json!({"status": "pending"});
    fleet
        .remote
        .seed("icfg_1", "res_1", &provisioned)
        .expect("within the schema");
    let row = "status = 'ready', name = 'db', secrets = '{\"URL\":\"one\"}'";
    fleet.set("icfg_1", "res_1", row).await;
    assert!(fleet.once().await.is_complete());
    let row = "status = 'suspended', secrets = '{\"URL\":\"two\"}'";
    fleet.set("icfg_1", "res_1", row).await;
    fleet
        .remote
        .fault(Fault::status(503), Matcher::method("PUT"));
    assert!(fleet.once().await.is_complete());
    assert_eq!(
        fleet.secret("icfg_1", "res_1", "URL").as_deref(),
        Some("two")
    );
    let put = || {
        (
            "PUT".to_owned(),
            "secrets".to_owned(),
            vec!["partial".to_owned(), "secrets".to_owned()],
        )
    };
    let patch = |fields: &[&str]| {
        let fields = fields.iter().map(ToString::to_string).collect();
        ("PATCH".to_owned(), "res_1".to_owned(), fields)
    };
    let sent = requests(&fleet, "res_1");
    assert_eq!(sent[0].0, "PUT", "{sent:?}");
    assert_eq!(sent[1], patch(&["name", "status"]));
    assert_eq!(
        sent[2..],
        [put(), put(), patch(&["status"])],
        "one was lost to a 503"
    );
}

#[tokio::test]
async fn drift_is_found_with_both_values_and_fixed_by_the_next_patch() {
    let fleet = fleet_of(3, "").await;
    let elsewhere = json!({"name": "renamed at Vercel"});
    fleet
        .remote
        .seed("icfg_1", "res_1", &elsewhere)
        .expect("within the schema");
    fleet
        .remote
        .remove_resource("icfg_1", "res_2", Absence::NotFound)
        .expect("it exists");
    let parts = fleet.parts().await;
    let (report, findings) = check(&parts, false).await;
    assert_eq!((report.resources, report.compared), (3, 3));
    assert_eq!((report.drifted, report.missing, report.fixed), (1, 1, 0));
    assert!(report.complete);
    let [differs, missing] = &findings[..] else {
        panic!("{findings:?}");
    };
    let Finding::Differs {
        field,
        acknowledged,
        shown,
        ..
    } = differs
    else {
        panic!("{differs:?}");
    };
    assert_eq!(*field, Field::Name);
    assert_eq!(acknowledged, "\"db\"");
    assert_eq!(shown.as_deref(), Some("\"renamed at Vercel\""));
    assert!(matches!(missing, Finding::Missing { key } if key.resource_id.as_str() == "res_2"));
    let listings = |request: &&reconciled::simulator::Entry| {
        request.method == "GET" && request.path.ends_with("/resources")
    };
    let asked = fleet.remote.requests();
    assert_eq!(
        asked.iter().filter(listings).count(),
        1,
        "one per installation"
    );
    assert_eq!(check(&parts, true).await.0.fixed, 1);
    let (again, _) = check(&parts, true).await;
    assert_eq!(
        (again.drifted, again.fixed),
        (0, 0),
        "it is in doubt already"
    );
    drop(parts);
    assert!(fleet.once().await.is_complete());
    assert_eq!(fleet.held("icfg_1", "res_1", "name"), "db");
    assert_eq!(
        fleet.patched_fields("icfg_1", "res_1"),
        [vec!["name", "status"], vec!["name"]]
    );
    assert_eq!(fleet.patched_fields("icfg_1", "res_0").len(), 1);
}

#[tokio::test]
async fn a_drift_check_leaves_alone_what_is_paused_ignored_or_under_way() {
    let fleet = fleet_of(2, "\n[reconcile]\nignore = [\"name\"]\n").await;
    for resource in ["res_0", "res_1"] {
        let elsewhere = json!({"name": "renamed", "status": "error"});
        fleet
            .remote
            .seed("icfg_1", resource, &elsewhere)
            .expect("within the schema");
    }
    fleet.set("icfg_1", "res_0", "status = 'suspended'").await;
    fleet
        .remote
        .fault_always(Fault::status(503), Matcher::patch());
    fleet.once_within(std::time::Duration::ZERO).await;
    let parts = fleet.parts().await;
    let (report, findings) = check(&parts, true).await;
    assert_eq!(report.skipped.get(&Skip::UnderWay), Some(&1));
    let fields: Vec<_> = report.by_field.keys().collect();
    assert_eq!((fields, findings.len()), (vec![&Field::Status], 1));
    let pause = Pause {
        installation_id: InstallationId::new("icfg_1").expect("an id"),
        kind: PauseKind::Manual,
        by: "ana".to_owned(),
        reason: "customer migration".to_owned(),
        since: Timestamp::EPOCH,
        until: None,
        probe_at: None,
        probes_failed: 0,
    };
    let key = reconciled::model::ResourceKey::new("icfg_1", "res_1").expect("ids");
    let marked = parts.worlds.store.records(std::slice::from_ref(&key)).await;
    assert!(!marked.expect("readable")[0].doubt.is_empty());
    parts.worlds.store.pause(&pause).await.expect("paused");
    let before = fleet.remote.requests().len();
    let (report, _) = check(&parts, false).await;
    assert_eq!(report.compared, 0);
    assert_eq!(fleet.remote.requests().len(), before, "nothing is asked");
}

#[tokio::test]
async fn adopting_a_fleet_sends_nothing() {
    let fleet = Fleet::new().await;
    for number in 0..3 {
        let row = "status = 'ready', name = 'db', secrets = '{\"URL\":\"one\"}'";
        fleet.set("icfg_1", &format!("res_{number}"), row).await;
    }
    fleet.set("icfg_1", "res_bad", "status = 'nonsense'").await;
    let parts = fleet.parts().await;
    let adopt = Baseline {
        way: Way::Adopt,
        all: false,
    };
    let mut pages = 0;
    let reconciler = parts.reconciler();
    let report = reconciler
        .baseline(adopt, None, ready(Ok(())), |_| pages += 1)
        .await;
    let report = report.expect("source and state work");
    assert_eq!((report.rows, report.adopted, report.quarantined), (4, 3, 1));
    assert_eq!((report.notices.len(), pages), (1, 1));
    let again = reconciler
        .baseline(adopt, None, ready(Ok(())), |_| ())
        .await;
    assert_eq!(again.expect("source and state work").left, 3);
    drop((parts, reconciler));
    fleet.once().await;
    assert!(fleet.remote.requests().is_empty());
    fleet.set("icfg_1", "res_1", "name = 'renamed'").await;
    fleet
        .remote
        .seed("icfg_1", "res_1", &json!({"status": "ready"}))
        .expect("seeded");
    fleet.once().await;
    assert_eq!(fleet.patched_fields("icfg_1", "res_1"), [["name"]]);
}

#[tokio::test]
async fn comparing_a_fleet_sends_only_what_vercel_shows_otherwise() {
    let fleet = Fleet::managing("status, name").await;
    for (resource, status) in [("res_same", "ready"), ("res_other", "pending")] {
        fleet
            .set("icfg_1", resource, "status = 'ready', name = 'db'")
            .await;
        let held = json!({"status": status, "name": "db"});
        fleet
            .remote
            .seed("icfg_1", resource, &held)
            .expect("within the schema");
    }
    let parts = fleet.parts().await;
    let compare = Baseline {
        way: Way::Compare,
        all: false,
    };
    let report = parts
        .reconciler()
        .baseline(compare, None, ready(Ok(())), |_| ())
        .await;
    assert_eq!(report.expect("source and state work").to_compare, 2);
    drop(parts);
    assert!(fleet.once().await.is_complete());
    assert_eq!(fleet.held("icfg_1", "res_other", "status"), "ready");
    assert!(fleet.patches("icfg_1", "res_same").is_empty());
    assert_eq!(fleet.patched_fields("icfg_1", "res_other"), [["status"]]);
}
