//! What each operation does to the world.

use super::super::schema::{self, Rules};
use super::*;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn world(behaviour: Behaviour) -> World {
    World::new(behaviour, Fingerprints::new([7; 32]))
}

fn creating() -> World {
    world(Behaviour {
        auto_create: true,
        ..Behaviour::default()
    })
}

fn key() -> ResourceKey {
    ResourceKey::new("icfg_1", "res_1")
}

fn patch(world: &mut World, request: u64, body: Value) {
    let rules = Rules {
        null_clears_notification: true,
    };
    let update = schema::update(&body, rules).expect("within the schema");
    world
        .update(&key(), &update, Some(request), NOW)
        .expect("the resource exists");
}

fn held(world: &World) -> &RemoteResource {
    world.resource(&key()).expect("the resource exists")
}

#[test]
fn a_patch_changes_only_the_fields_it_names() {
    let mut world = creating();
    patch(
        &mut world,
        1,
        json!({"status": "ready", "name": "orders", "metadata": {"a": 1}}),
    );
    patch(&mut world, 2, json!({"status": "suspended"}));
    assert_eq!(held(&world).field(Field::Status), Some(&json!("suspended")));
    assert_eq!(held(&world).field(Field::Name), Some(&json!("orders")));
    assert_eq!(held(&world).field(Field::Metadata), Some(&json!({"a": 1})));
}

#[test]
fn a_secrets_array_replaces_the_set_and_partial_overwrites_by_name() {
    let mut world = creating();
    let secret = |name: &str, value: &str| json!({"name": name, "value": value});
    patch(
        &mut world,
        1,
        json!({"secrets": [secret("A", "1"), secret("B", "2")]}),
    );
    patch(
        &mut world,
        2,
        json!({"secrets": {"secrets": [secret("B", "3")], "partial": true}}),
    );
    assert_eq!(held(&world).secret("A"), Some("1"));
    assert_eq!(held(&world).secret("B"), Some("3"));
    patch(
        &mut world,
        3,
        json!({"secrets": {"secrets": [secret("B", "4")]}}),
    );
    assert_eq!(held(&world).secret("A"), None);
    assert_eq!(held(&world).secret("B"), Some("4"));
}

#[test]
fn an_empty_notification_or_null_clears() {
    for clear in [json!(""), json!(null)] {
        let mut world = creating();
        patch(
            &mut world,
            1,
            json!({"notification": {"level": "info", "title": "t"}}),
        );
        assert!(held(&world).field(Field::Notification).is_some());
        patch(&mut world, 2, json!({ "notification": clear }));
        assert!(held(&world).field(Field::Notification).is_none());
    }
}

#[test]
fn objects_are_replaced_or_merged_as_configured() {
    for (objects, expected) in [
        (ObjectUpdate::Replace, json!({"b": 2})),
        (ObjectUpdate::Merge, json!({"a": 1, "b": 2})),
    ] {
        let mut world = world(Behaviour {
            auto_create: true,
            objects,
            ..Behaviour::default()
        });
        patch(&mut world, 1, json!({"metadata": {"a": 1}}));
        patch(&mut world, 2, json!({"metadata": {"b": 2}}));
        assert_eq!(held(&world).field(Field::Metadata), Some(&expected));
    }
}

#[test]
fn get_shows_what_vercel_shows_and_nothing_else() {
    let mut world = creating();
    patch(
        &mut world,
        1,
        json!({
            "ownership": "owned", "name": "orders", "status": "ready", "metadata": {"a": 1},
            "extras": {"hidden": 1}, "secrets": [{"name": "A", "value": "hunter2"}],
            "billingPlan": {"id": "pro", "type": "subscription", "name": "Pro"},
            "notification": {"level": "info", "title": "t"},
        }),
    );
    assert_eq!(
        world.show(&key()),
        Ok(json!({
            "id": "res_1", "internalId": "ir_000001", "productId": "prod_simulated",
            "name": "orders", "status": "ready", "metadata": {"a": 1},
            "notification": {"level": "info", "title": "t"}, "billingPlanId": "pro",
        }))
    );
    let listed = world.list("icfg_1");
    assert_eq!(listed["resources"][0]["partnerId"], "res_1");
    assert_eq!(world.list("icfg_2"), json!({"resources": []}));
}

#[test]
fn history_tells_a_field_that_went_back_to_an_older_value() {
    let mut world = creating();
    for (request, body) in [
        (1, json!({"status": "ready", "metadata": {"n": 1}})),
        (2, json!({"status": "suspended", "metadata": {"n": 1.0}})),
        (3, json!({"metadata": {"n": 2}})),
        (4, json!({"status": "ready"})),
    ] {
        patch(&mut world, request, body);
    }
    let regressions = world.regressions(&key());
    assert_eq!(regressions.len(), 1);
    assert_eq!(regressions[0].field, Field::Status);
    assert_eq!(regressions[0].request, Some(4));
    assert_eq!(world.history(&key()).len(), 4);
}

#[test]
fn a_secret_that_went_back_is_a_regression_and_is_never_shown() {
    let mut world = creating();
    for (request, value) in [(1, "hunter2"), (2, "swordfish"), (3, "hunter2")] {
        patch(
            &mut world,
            request,
            json!({"secrets": [{"name": "A", "value": value}]}),
        );
    }
    assert_eq!(world.regressions(&key()).len(), 1);
    let text = format!("{world:?} {:?}", world.history(&key()));
    assert!(!text.contains("hunter2") && !text.contains("swordfish"));
}

#[test]
fn a_removed_resource_stays_absent_though_patches_create_resources() {
    let mut world = creating();
    patch(&mut world, 1, json!({"status": "ready"}));
    world.remove(&key(), Absence::Gone).expect("it exists");
    let refused = world.update(&key(), &Update::default(), Some(2), NOW);
    assert_eq!(refused, Err(Absence::Gone));
    assert_eq!(world.show(&key()), Err(Absence::Gone));
    assert_eq!(world.history(&key()).len(), 1);
}

#[test]
fn without_auto_create_an_unknown_resource_is_not_found() {
    let mut world = world(Behaviour::default());
    world.install("icfg_1");
    let refused = world.update(&key(), &Update::default(), Some(1), NOW);
    assert_eq!(refused, Err(Absence::NotFound));
}

#[test]
fn the_first_token_of_an_unknown_installation_is_accepted_and_no_second() {
    let mut world = creating();
    let (first, second) = (SecretString::from("t1"), SecretString::from("t2"));
    assert_eq!(world.authorize("icfg_1", Some(&first), NOW), Ok(()));
    assert_eq!(
        world.authorize("icfg_1", Some(&second), NOW),
        Err(Denial::UnknownToken)
    );
    assert_eq!(
        world.authorize("icfg_2", Some(&first), NOW),
        Err(Denial::ForeignToken {
            owner: "icfg_1".to_owned()
        })
    );
    assert_eq!(
        world.authorize("icfg_1", None, NOW),
        Err(Denial::MissingToken)
    );
}

#[test]
fn an_uninstalled_installation_says_so_whatever_the_token() {
    let mut world = creating();
    let token = SecretString::from("t1");
    assert_eq!(world.authorize("icfg_1", Some(&token), NOW), Ok(()));
    world.uninstall("icfg_1", Absence::Gone);
    assert_eq!(
        world.authorize("icfg_1", Some(&token), NOW),
        Err(Denial::Uninstalled(Absence::Gone))
    );
    world.install("icfg_1");
    assert_eq!(world.authorize("icfg_1", Some(&token), NOW), Ok(()));
}

#[test]
fn the_rate_limit_holds_for_one_window() {
    let mut world = world(Behaviour {
        requests_per_window: Some(2),
        ..Behaviour::default()
    });
    world.install("icfg_1");
    let mut remaining = |seconds| {
        let now = NOW + Duration::from_secs(seconds);
        let quota = world.count_request("icfg_1", now).expect("a limit is set");
        (quota.remaining, quota.exceeded)
    };
    assert_eq!(remaining(0), (1, false));
    assert_eq!(remaining(1), (0, false));
    assert_eq!(remaining(59), (0, true));
    assert_eq!(remaining(60), (1, false));
}
