//! Accepted and refused bodies, as tables.

use serde_json::json;

use super::*;

fn plan(extra: Value) -> Value {
    let mut plan = json!({"id": "pro", "type": "subscription", "name": "Pro"});
    let (Value::Object(plan_object), Value::Object(extra)) = (&mut plan, extra) else {
        panic!("a plan and its additions are objects");
    };
    plan_object.extend(extra);
    json!({ "billingPlan": plan })
}

#[test]
fn bodies_within_the_schema_are_accepted() {
    for body in [
        json!({}),
        json!({"status": "ready"}),
        json!({"ownership": "linked", "name": "", "status": "uninstalled"}),
        json!({"metadata": {}, "extras": {"any": [1, null, {"deep": true}]}}),
        plan(json!({})),
        plan(
            json!({"description": "d", "paymentMethodRequired": false, "cost": "$10", "effectiveDate": "2026-01-01"}),
        ),
        plan(
            json!({"details": [{"label": "l"}, {"label": "l", "value": "v"}], "highlightedDetails": []}),
        ),
        plan(json!({"disabled": true, "quota": {"further": null}})),
        json!({"notification": {"level": "warn", "title": "t"}}),
        json!({"notification": {"level": "info", "title": "t", "message": "m", "href": "https://example.com/a%20b?c=d#e"}}),
        json!({"notification": {"level": "info", "title": "t", "href": "sso://billing"}}),
        json!({"notification": ""}),
        json!({"secrets": []}),
        json!({"secrets": [{"name": "A", "value": ""}]}),
        json!({"secrets": {"secrets": [{"name": "A", "value": "v", "prefix": "P"}], "partial": true}}),
        json!({"secrets": {"secrets": []}}),
        json!({"secrets": [{"name": "A", "value": "v", "environmentOverrides": {"development": "d", "preview": "p", "production": "x"}}]}),
    ] {
        if let Err(refusal) = update(&body, Rules::default()) {
            panic!("{body} was refused: {refusal}");
        }
    }
}

#[test]
fn bodies_outside_the_schema_are_refused_with_the_property() {
    let notification =
        |href: &str| json!({"notification": {"level": "info", "title": "t", "href": href}});
    let secret = |secret: Value| json!({ "secrets": [secret] });
    for (body, property) in [
        (json!([]), "body"),
        (json!(null), "body"),
        (json!({"state": "ready"}), "state"),
        (json!({"billing_plan": {}}), "billing_plan"),
        (json!({"productId": "p"}), "productId"),
        (json!({"status": "paused"}), "status"),
        (json!({"status": 1}), "status"),
        (json!({"ownership": "rented"}), "ownership"),
        (json!({"name": 1}), "name"),
        (json!({"metadata": []}), "metadata"),
        (json!({"extras": "x"}), "extras"),
        (json!({"billingPlan": "pro"}), "billingPlan"),
        (
            json!({"billingPlan": {"type": "subscription", "name": "n"}}),
            "billingPlan.id",
        ),
        (
            json!({"billingPlan": {"id": "i", "name": "n"}}),
            "billingPlan.type",
        ),
        (
            json!({"billingPlan": {"id": "i", "type": "subscription"}}),
            "billingPlan.name",
        ),
        (plan(json!({"type": "gift"})), "billingPlan.type"),
        (plan(json!({"cost": 10})), "billingPlan.cost"),
        (
            plan(json!({"description": null})),
            "billingPlan.description",
        ),
        (
            plan(json!({"effectiveDate": 5})),
            "billingPlan.effectiveDate",
        ),
        (
            plan(json!({"paymentMethodRequired": "yes"})),
            "billingPlan.paymentMethodRequired",
        ),
        (plan(json!({"details": {}})), "billingPlan.details"),
        (
            plan(json!({"details": [{"value": "v"}]})),
            "billingPlan.details[0].label",
        ),
        (
            plan(json!({"details": [{"label": "l", "hint": "h"}]})),
            "billingPlan.details[0].hint",
        ),
        (
            plan(json!({"highlightedDetails": [{"label": "l"}, {"label": 1}]})),
            "billingPlan.highlightedDetails[1].label",
        ),
        (
            plan(json!({"highlightedDetails": [{"label": "l", "value": 1}]})),
            "billingPlan.highlightedDetails[0].value",
        ),
        (json!({"notification": 1}), "notification"),
        (
            json!({"notification": {"title": "t"}}),
            "notification.level",
        ),
        (
            json!({"notification": {"level": "fatal", "title": "t"}}),
            "notification.level",
        ),
        (
            json!({"notification": {"level": "info"}}),
            "notification.title",
        ),
        (
            json!({"notification": {"level": "info", "title": "t", "message": 1}}),
            "notification.message",
        ),
        (notification("/relative"), "notification.href"),
        (notification("https://"), "notification.href"),
        (notification("https://a/b c"), "notification.href"),
        (notification("https://a/%2"), "notification.href"),
        (notification("https://é.example"), "notification.href"),
        (notification("mailto:a@example.com"), "notification.href"),
        (json!({"secrets": "A=1"}), "secrets"),
        (json!({"secrets": {"partial": true}}), "secrets.secrets"),
        (
            json!({"secrets": {"secrets": [], "partial": "yes"}}),
            "secrets.partial",
        ),
        (
            json!({"secrets": {"secrets": [], "replace": true}}),
            "secrets.replace",
        ),
        (secret(json!("A")), "secrets[0]"),
        (secret(json!({"value": "v"})), "secrets[0].name"),
        (secret(json!({"name": "A"})), "secrets[0].value"),
        (secret(json!({"name": "A", "value": 1})), "secrets[0].value"),
        (
            secret(json!({"name": "A", "value": "v", "type": "x"})),
            "secrets[0].type",
        ),
        (
            secret(json!({"name": "A", "value": "v", "prefix": null})),
            "secrets[0].prefix",
        ),
        (
            secret(json!({"name": "A", "value": "v", "environmentOverrides": {"staging": "s"}})),
            "secrets[0].environmentOverrides.staging",
        ),
        (
            secret(json!({"name": "A", "value": "v", "environmentOverrides": {"preview": null}})),
            "secrets[0].environmentOverrides.preview",
        ),
        (
            json!({"secrets": {"secrets": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}], "partial": true}}),
            "secrets.secrets[1].name",
        ),
    ] {
        match update(&body, Rules::default()) {
            Ok(_) => panic!("{body} was accepted"),
            Err(refusal) => assert_eq!(refusal.property, property, "{body}"),
        }
    }
}

#[test]
fn null_is_refused_for_every_field_unless_it_clears_the_notification() {
    let clears = Rules {
        null_clears_notification: true,
    };
    for field in Field::ALL {
        let mut body = Map::new();
        body.insert(field.as_str().to_owned(), Value::Null);
        let body = Value::Object(body);
        let refused = update(&body, Rules::default()).expect_err("null is no value");
        assert_eq!(refused.property, field.as_str());
        assert_eq!(
            update(&body, clears).is_ok(),
            field == Field::Notification,
            "{field}"
        );
    }
}

#[test]
fn a_refusal_never_quotes_a_value() {
    let body = json!({"secrets": [{"name": "A", "value": "hunter2", "environmentOverrides": {"preview": ["hunter2"]}}]});
    let refusal = update(&body, Rules::default()).expect_err("an override is a string");
    assert!(!refusal.to_string().contains("hunter2"), "{refusal}");
}

#[test]
fn an_import_needs_product_name_and_status() {
    let complete = json!({"productId": "p", "name": "n", "status": "ready", "extras": {"a": 1}});
    let accepted = import(&complete, Rules::default()).expect("complete");
    assert_eq!(accepted.product_id, "p");
    for missing in ["productId", "name", "status"] {
        let mut body = complete.clone();
        body.as_object_mut().expect("an object").remove(missing);
        let refusal = import(&body, Rules::default()).expect_err("incomplete");
        assert_eq!(refusal.property, missing);
    }
}

#[test]
fn a_body_that_can_change_nothing_is_empty() {
    let empty = |body: Value| {
        update(&body, Rules::default())
            .expect("within the schema")
            .is_empty()
    };
    assert!(empty(json!({})));
    assert!(empty(json!({"secrets": {"secrets": [], "partial": true}})));
    assert!(!empty(json!({"secrets": []})));
    assert!(!empty(json!({"notification": ""})));
}
