//! The drift check over a state in memory and a Vercel that shows what it is told.

use crate::dispatch::fixture::{Reply, SECOND, START, Stand, answer, installation, key, lost};
use crate::model::{Doubt, Mark, SharedMap};
use crate::store::{Pause, PauseKind};
use crate::vercel::Listed;

use super::*;

mod asking;

/// What was acknowledged of a resource.
const ACKNOWLEDGED: [(Field, &str); 3] = [
    (Field::Name, "one"),
    (Field::Status, "ready"),
    (
        Field::BillingPlan,
        r#"{"id":"pro","type":"subscription","name":"Pro"}"#,
    ),
];

fn managed() -> FieldSet {
    [
        Field::Name,
        Field::Status,
        Field::BillingPlan,
        Field::Metadata,
    ]
    .into_iter()
    .collect()
}

fn settings() -> DriftSettings {
    DriftSettings {
        managed: managed(),
        concurrency: 4,
        interval: None,
        order: DriftOrder::default(),
    }
}

/// Resources of which Vercel has acknowledged all that they desire.
fn stand(resources: &[(&str, usize)]) -> Stand {
    let stand = Stand::new();
    for (id, count) in resources {
        for n in 0..*count {
            acknowledge(&stand, &key(id, &format!("res_{n}")), &ACKNOWLEDGED);
        }
    }
    stand
}

fn acknowledge(stand: &Stand, key: &ResourceKey, columns: &[(Field, &str)]) {
    stand.desires(key, columns);
    let edit = stand.state.memory.edit(key, START, |record| {
        let entry = record.entry.take().expect("an open entry");
        record.acknowledged = entry.desired.clone();
        record.acknowledged_at = Some(START);
        ((), Some(entry))
    });
    stand.clock.run(edit);
}

fn edit(stand: &Stand, key: &ResourceKey, change: impl FnOnce(&mut Record) + Send) {
    let now = stand.clock.time();
    let edit = stand.state.memory.edit(key, now, |record| {
        change(record);
        ((), None)
    });
    stand.clock.run(edit);
}

fn observed(name: &str, status: &str, plan: Option<&str>) -> Observed {
    let text = |text| Json::from_text(text);
    Observed {
        values: SharedMap::from([(Field::Name, text(name)), (Field::Status, text(status))]),
        billing_plan_id: plan.map(str::to_owned),
    }
}

/// What agrees with what was acknowledged.
fn agreeing() -> Reply {
    Reply::status(200).showing(observed("one", "ready", Some("pro")))
}

fn list() -> Reply {
    Reply::status(200).listing(Vec::new())
}

fn check(stand: &Stand, settings: DriftSettings) -> DriftCheck {
    let worlds = stand.worlds();
    DriftCheck::new(
        worlds.store,
        worlds.marketplace,
        worlds.clock,
        stand.tokens(),
        settings,
    )
}

struct Told {
    report: DriftReport,
    findings: Vec<Finding>,
    pages: Vec<u64>,
}

fn run_until(stand: &Stand, settings: DriftSettings, stop: &CancellationToken) -> Told {
    let (mut findings, mut pages) = (Vec::new(), Vec::new());
    let check = check(stand, settings);
    let mut tell = |event: DriftEvent<'_>| match event {
        DriftEvent::Found(finding) => findings.push(finding.clone()),
        DriftEvent::Progress(report) => pages.push(report.resources),
    };
    let report = stand.clock.run(check.run(stop, &mut tell));
    let report = report.expect("a state in memory does not fail");
    Told {
        report,
        findings,
        pages,
    }
}

fn run(stand: &Stand, settings: DriftSettings) -> Told {
    run_until(stand, settings, &CancellationToken::new())
}

fn skipped(report: &DriftReport) -> Vec<(&'static str, u64)> {
    let skipped = report.skipped.iter();
    skipped.map(|(skip, count)| (skip.name(), *count)).collect()
}

#[test]
fn what_vercel_shows_as_it_was_acknowledged_is_no_drift() {
    let stand = stand(&[("icfg_1", 2)]);
    stand.vercel.replies([list(), agreeing(), agreeing()]);
    let told = run(&stand, settings());
    let expected = DriftReport {
        resources: 2,
        compared: 2,
        complete: true,
        ..DriftReport::default()
    };
    assert_eq!(told.report, expected);
    assert_eq!((told.findings, told.pages), (vec![], vec![2]));
    let said = ["LIST icfg_1", "GET icfg_1/res_0", "GET icfg_1/res_1"];
    assert_eq!(stand.vercel.said(), said);
}

#[test]
fn every_field_that_vercel_shows_otherwise_is_told() {
    let stand = stand(&[("icfg_1", 2)]);
    let other = observed("two", "error", Some("free"));
    stand
        .vercel
        .replies([list(), Reply::status(200).showing(other), agreeing()]);
    let told = run(&stand, settings());
    let differs = |field, acknowledged: &str, shown: &str| Finding::Differs {
        key: key("icfg_1", "res_0"),
        field,
        acknowledged: acknowledged.to_owned(),
        shown: Some(shown.to_owned()),
    };
    let expected = [
        differs(Field::Status, r#""ready""#, r#""error""#),
        differs(Field::BillingPlan, "pro", "free"),
        differs(Field::Name, r#""one""#, r#""two""#),
    ];
    assert_eq!(told.findings, expected);
    assert_eq!((told.report.compared, told.report.drifted), (2, 1));
    let one_each = expected.iter().map(|finding| match finding {
        Finding::Differs { field, .. } => (*field, 1),
        Finding::Missing { .. } => unreachable!("Vercel knows it"),
    });
    assert_eq!(told.report.by_field, one_each.collect());
    assert!(
        expected
            .iter()
            .all(|finding| *finding.key() == key("icfg_1", "res_0"))
    );
    assert_eq!(told.report.fixed, 0);
    assert!(stand.is_settled(&key("icfg_1", "res_0")));
    assert_eq!(stand.state.calls("mark_drifted"), 0);
}

#[test]
fn a_plan_is_compared_by_its_id_and_only_if_both_sides_have_one() {
    let resource = key("icfg_1", "res_1");
    let mut record = Record::new(resource);
    let plan = FieldSet::EMPTY.with(Field::BillingPlan);
    for (acknowledged, shown, agrees) in [
        (r#"{"id":"pro"}"#, Some("pro"), true),
        (r#"{"id":"pro"}"#, Some("free"), false),
        (r#"{"id":"pro"}"#, None, true),
        (r#"{"name":"Pro"}"#, Some("free"), true),
    ] {
        let value: serde_json::Value = serde_json::from_str(acknowledged).expect("JSON");
        let values = [(Field::BillingPlan, Json::from_value(&value))];
        record.acknowledged.values = values.into();
        let found = differences(&record, plan, &observed("one", "ready", shown));
        assert_eq!(found.is_empty(), agrees, "{acknowledged} {shown:?}");
    }
}

#[test]
fn what_is_not_shown_is_a_difference_and_what_is_not_to_be_compared_is_none() {
    let mut record = Record::new(key("icfg_1", "res_1"));
    record.acknowledged.values = [
        (Field::Name, Json::from_text("one")),
        (Field::Status, Json::from_text("ready")),
    ]
    .into();
    let fields = FieldSet::EMPTY.with(Field::Status);
    let found = differences(&record, fields, &Observed::default());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].field, Field::Status);
    assert_eq!(
        (found[0].acknowledged.as_str(), &found[0].shown),
        (r#""ready""#, &None)
    );
}

#[test]
fn of_a_long_value_the_beginning_is_shown() {
    let exact = "é".repeat(SHOWN_CHARS_MAX);
    assert_eq!(cut(&exact), exact);
    assert_eq!(cut(&format!("{exact}x")), format!("{exact}…"));
    assert_eq!(cut(""), "");
}

#[test]
fn a_resource_that_vercel_does_not_know_is_told() {
    let stand = stand(&[("icfg_1", 1)]);
    stand.vercel.replies([list(), Reply::status(404)]);
    let told = run(&stand, settings());
    let key = key("icfg_1", "res_0");
    assert_eq!(told.findings, [Finding::Missing { key: key.clone() }]);
    assert_eq!(*told.findings[0].key(), key);
    assert_eq!((told.report.compared, told.report.missing), (1, 1));
    assert_eq!(told.report.drifted, 0);
}

#[test]
fn what_differs_is_put_in_doubt_when_it_is_to_be_fixed() {
    let stand = stand(&[("icfg_1", 3)]);
    let other = |status| Reply::status(200).showing(observed("one", status, Some("pro")));
    stand
        .vercel
        .replies([list(), other("error"), agreeing(), other("error")]);
    let mut settings = settings();
    settings.order.fix = true;
    let told = run(&stand, settings);
    assert_eq!((told.report.drifted, told.report.fixed), (2, 2));
    let doubtful = |n: usize| {
        let record = stand.record(&key("icfg_1", &format!("res_{n}")));
        record.doubt.fields.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(doubtful(0), [Field::Status]);
    assert_eq!(doubtful(1), []);
    assert_eq!(doubtful(2), [Field::Status]);
    assert_eq!(stand.state.calls("mark_drifted"), 1);
}

#[test]
fn nothing_is_marked_where_nothing_differs() {
    let stand = stand(&[("icfg_1", 1)]);
    stand.vercel.replies([list(), agreeing()]);
    let mut settings = settings();
    settings.order.fix = true;
    run(&stand, settings);
    assert_eq!(stand.state.calls("mark_drifted"), 0);
}

#[test]
fn the_name_alone_is_read_from_the_list_as_far_as_that_has_it() {
    let stand = stand(&[("icfg_1", 4)]);
    let listed = |n: usize, name: Option<&str>| Listed {
        resource_id: ResourceId::new(&format!("res_{n}")).expect("an id"),
        name: name.map(str::to_owned),
    };
    let list = vec![
        listed(0, Some("one")),
        listed(1, Some("two")),
        listed(2, None),
    ];
    let shown = observed("three", "ready", None);
    stand.vercel.replies([
        Reply::status(200).listing(list),
        Reply::status(200).showing(shown),
    ]);
    let mut settings = settings();
    settings.order.field = Some(Field::Name);
    let told = run(&stand, settings);
    assert_eq!(stand.vercel.said(), ["LIST icfg_1", "GET icfg_1/res_3"]);
    let shown: Vec<_> = told
        .findings
        .into_iter()
        .map(|finding| match finding {
            Finding::Differs { key, shown, .. } => (key.resource_id.to_string(), shown),
            Finding::Missing { .. } => unreachable!("Vercel knows them"),
        })
        .collect();
    let one = |id: &str, name: Option<&str>| (id.to_owned(), name.map(str::to_owned));
    let expected = [
        one("res_1", Some(r#""two""#)),
        one("res_2", None),
        one("res_3", Some(r#""three""#)),
    ];
    assert_eq!(shown, expected);
}

#[test]
fn more_than_the_name_is_asked_for_though_it_is_listed() {
    let stand = stand(&[("icfg_1", 1)]);
    let listed = Listed {
        resource_id: ResourceId::new("res_0").expect("an id"),
        name: Some("one".to_owned()),
    };
    let list = Reply::status(200).listing(vec![listed]);
    stand.vercel.replies([list, agreeing()]);
    run(&stand, settings());
    assert_eq!(stand.vercel.said().len(), 2);
}

#[test]
fn what_is_compared_is_acknowledged_visible_managed_ordered_and_not_in_doubt() {
    let stand = Stand::new();
    let text = Json::from_text;
    let mut record = Record::new(key("icfg_1", "res_1"));
    record.acknowledged.values = [
        (Field::Name, text("one")),
        (Field::Status, text("ready")),
        (Field::BillingPlan, text("plan")),
        (Field::Metadata, text("{}")),
        (Field::Ownership, text("owned")),
        (Field::Notification, text("note")),
    ]
    .into();
    let of = |record: &Record, change: fn(&mut DriftSettings)| {
        let mut settings = settings();
        change(&mut settings);
        let fields = check(&stand, settings).comparable(record);
        fields.map(|fields| fields.iter().collect::<Vec<_>>())
    };
    use Field::{BillingPlan, Metadata, Name, Notification, Ownership, Status};
    let all = of(&record, |_| {});
    assert_eq!(all, Ok(vec![Status, BillingPlan, Name, Metadata]));
    let everything = |settings: &mut DriftSettings| {
        settings.managed = settings.managed.with(Ownership).with(Notification);
    };
    let visible = of(&record, everything);
    assert_eq!(
        visible,
        Ok(vec![Status, BillingPlan, Name, Notification, Metadata])
    );
    let one = |settings: &mut DriftSettings| settings.order.field = Some(Status);
    assert_eq!(of(&record, one), Ok(vec![Status]));
    record.doubt = Doubt {
        fields: [(Status, Mark::default())].into(),
        ..Doubt::default()
    };
    assert_eq!(of(&record, |_| {}), Ok(vec![BillingPlan, Name, Metadata]));
    assert_eq!(of(&record, one), Err(Skip::NothingToSee));
}

#[test]
fn what_is_under_way_or_not_to_be_seen_is_left_alone() {
    let stand = stand(&[("icfg_1", 2)]);
    stand.desires(&key("icfg_1", "res_0"), &[(Field::Status, "error")]);
    edit(&stand, &key("icfg_1", "res_1"), |record| {
        record.acknowledged.values.clear();
    });
    let told = run(&stand, settings());
    assert_eq!(
        skipped(&told.report),
        [("under_way", 1), ("nothing_to_see", 1)]
    );
    assert_eq!((told.report.resources, told.report.compared), (2, 0));
    assert_eq!(stand.vercel.said(), [] as [&str; 0], "nobody is asked");
}

#[test]
fn what_changed_while_vercel_was_asked_is_not_judged() {
    for acknowledged in [true, false] {
        let stand = stand(&[("icfg_1", 1)]);
        let resource = key("icfg_1", "res_0");
        let other = observed("two", "ready", Some("pro"));
        let shown = Reply::status(200).showing(other).after(SECOND);
        stand.vercel.replies([list(), shown]);
        let check = check(&stand, settings());
        let stop = CancellationToken::new();
        let mut findings = 0;
        let mut tell = |event: DriftEvent<'_>| {
            findings += u32::from(matches!(event, DriftEvent::Found(_)));
        };
        let mut run = Box::pin(check.run(&stop, &mut tell));
        assert!(stand.clock.turn(run.as_mut()).is_none());
        match acknowledged {
            true => edit(&stand, &resource, |record| {
                let two = Json::from_text("two");
                record.acknowledged.values.insert(Field::Name, two);
            }),
            false => stand.desires(&resource, &[(Field::Name, "two")]),
        }
        let report = stand.clock.run(run).expect("does not fail");
        assert_eq!(skipped(&report), [("under_way", 1)], "{acknowledged}");
        assert_eq!((report.compared, findings), (0, 0));
    }
}

fn pauses(stand: &Stand, id: &str) {
    let pause = Pause {
        installation_id: installation(id),
        kind: PauseKind::Manual,
        by: "ada".to_owned(),
        reason: "a test".to_owned(),
        since: START,
        until: None,
        probe_at: None,
        probes_failed: 0,
    };
    let paused = stand.clock.run(stand.state.memory.pause(&pause));
    paused.expect("a state in memory does not fail");
}

#[test]
fn a_paused_installation_is_left_alone_and_the_next_one_is_not() {
    let stand = stand(&[("icfg_1", 2), ("icfg_2", 1)]);
    pauses(&stand, "icfg_1");
    stand.vercel.replies([list(), agreeing()]);
    let told = run(&stand, settings());
    assert_eq!(skipped(&told.report), [("paused", 2)]);
    assert_eq!(stand.vercel.said(), ["LIST icfg_2", "GET icfg_2/res_0"]);
}

#[test]
fn only_the_installation_that_was_ordered_is_looked_at() {
    let stand = stand(&[("icfg_1", 1), ("icfg_2", 1), ("icfg_3", 1)]);
    stand.vercel.replies([list(), agreeing()]);
    let mut settings = settings();
    settings.order.installation_id = Some(installation("icfg_2"));
    let told = run(&stand, settings);
    assert_eq!(stand.vercel.said(), ["LIST icfg_2", "GET icfg_2/res_0"]);
    assert_eq!((told.report.resources, told.report.complete), (1, true));
}

#[test]
fn a_check_that_is_stopped_says_that_it_is_not_complete() {
    let stand = stand(&[("icfg_1", 1)]);
    let stop = CancellationToken::new();
    stop.cancel();
    let told = run_until(&stand, settings(), &stop);
    assert_eq!(told.report, DriftReport::default());
    assert_eq!(stand.vercel.said(), [] as [&str; 0]);
}

#[test]
fn every_reason_has_a_name_of_its_own() {
    let skips = [
        (Skip::UnderWay, "under_way"),
        (Skip::NothingToSee, "nothing_to_see"),
        (Skip::Paused, "paused"),
        (Skip::Token, "token"),
        (Skip::InstallationGone, "installation_gone"),
        (Skip::RateLimited, "rate_limited"),
        (Skip::Unavailable, "unavailable"),
    ];
    assert!(skips.iter().all(|(skip, name)| skip.name() == *name));
}
