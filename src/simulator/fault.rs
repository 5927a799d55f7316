//! Faults on command: what goes wrong, for which requests, how often.
//!
//! Pure. Rules are tried in the order they were given and the first that applies is used up first, so a list of rules
//! with the same matcher is a script. Durations in JSON are humantime strings.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::route::Operation;
use super::schema::Field;

/// What goes wrong with a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// Nothing: the request is treated as usual. Counts in a script ("the third one fails").
    Pass,
    /// An answer with this status; nothing is applied.
    Status {
        /// 200 to 599.
        code: u16,
        /// The answer's body; an error body of the API's shape when absent.
        #[serde(default)]
        body: Option<Value>,
        /// Further headers.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// 429, with or without a word on when to come back; nothing is applied.
    RateLimited {
        /// What the answer says of it.
        retry_after: RetryAfter,
    },
    /// 409; nothing is applied.
    Conflict,
    /// The connection is closed without an answer; nothing is applied.
    DropBefore,
    /// The request takes effect, then the connection is closed without an answer.
    DropAfter,
    /// No answer ever comes; nothing is applied. `Remote::release` closes the connection.
    Hang,
    /// The request waits, then is treated as usual; a client that leaves meanwhile leaves it undone. `Remote::release`
    /// ends the wait.
    Delay(#[serde(with = "span")] Duration),
    /// The connection is closed at once, and the request takes effect later. `Remote::release` ends the wait.
    ApplyLate(#[serde(with = "span")] Duration),
    /// 400 whenever the body has this field; other requests are not touched.
    RejectField(Field),
    /// Bytes that are no HTTP, then the end of the connection; nothing is applied.
    NotHttp,
    /// The request takes effect; the answer is 200 with a body of about this many bytes.
    HugeBody {
        /// The body's length.
        bytes: u64,
    },
    /// The request takes effect; the answer ends in the middle of its body.
    Truncated,
    /// An answer with this 3xx status and location; nothing is applied.
    Redirect {
        /// 300 to 399.
        code: u16,
        /// The Location header.
        location: String,
    },
    /// The request takes effect; the answer's body comes byte by byte with this pause. `Remote::release` ends the pauses.
    SlowBody(#[serde(with = "span")] Duration),
}

impl Fault {
    /// A plain answer with a status and an error body.
    pub fn status(code: u16) -> Self {
        Self::Status {
            code,
            body: None,
            headers: Vec::new(),
        }
    }

    /// The fault's name, as in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Status { .. } => "status",
            Self::RateLimited { .. } => "rate_limited",
            Self::Conflict => "conflict",
            Self::DropBefore => "drop_before",
            Self::DropAfter => "drop_after",
            Self::Hang => "hang",
            Self::Delay(_) => "delay",
            Self::ApplyLate(_) => "apply_late",
            Self::RejectField(_) => "reject_field",
            Self::NotHttp => "not_http",
            Self::HugeBody { .. } => "huge_body",
            Self::Truncated => "truncated",
            Self::Redirect { .. } => "redirect",
            Self::SlowBody(_) => "slow_body",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What a 429 says of when to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryAfter {
    /// `Retry-After` in seconds.
    Seconds(u64),
    /// `Retry-After` as an HTTP date, this many seconds ahead.
    HttpDate(u64),
    /// Only `X-RateLimit-Reset`, this many seconds ahead.
    Reset(u64),
    /// `Retry-After` of more than a century.
    Absurd,
    /// Nothing.
    None,
}

/// The requests that a rule is for; an absent condition accepts every request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Matcher {
    /// The method, such as `PATCH`.
    pub method: Option<String>,
    /// The operation.
    pub operation: Option<Operation>,
    /// The installation in the path.
    pub installation: Option<String>,
    /// The resource in the path.
    pub resource: Option<String>,
    /// A field that the body has.
    pub field: Option<Field>,
}

impl Matcher {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests of one method.
    pub fn method(method: &str) -> Self {
        Self {
            method: Some(method.to_owned()),
            ..Self::default()
        }
    }

    /// PATCH requests.
    pub fn patch() -> Self {
        Self::method("PATCH")
    }

    /// Requests for one resource.
    pub fn resource(installation: &str, resource: &str) -> Self {
        Self {
            installation: Some(installation.to_owned()),
            resource: Some(resource.to_owned()),
            ..Self::default()
        }
    }

    /// Requests for one installation.
    pub fn installation(installation: &str) -> Self {
        Self {
            installation: Some(installation.to_owned()),
            ..Self::default()
        }
    }

    /// Requests whose body has a field.
    pub fn field(field: Field) -> Self {
        Self {
            field: Some(field),
            ..Self::default()
        }
    }

    fn accepts(&self, subject: &Subject<'_>) -> bool {
        let Self {
            method,
            operation,
            installation,
            resource,
            field,
        } = self;
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == found)
        };
        is(method, Some(subject.method))
            && operation.is_none_or(|operation| Some(operation) == subject.operation)
            && is(installation, subject.installation)
            && is(resource, subject.resource)
            && field.is_none_or(|field| subject.has(field))
    }
}

/// A fault, for whom, and how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What goes wrong.
    pub fault: Fault,
    /// For which requests.
    #[serde(default, rename = "match")]
    pub matcher: Matcher,
    /// For how many of them; 0 until the rule is removed. Once when absent.
    #[serde(default = "once")]
    pub times: u32,
}

/// What a rule may look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    pub(super) method: &'a str,
    pub(super) operation: Option<Operation>,
    pub(super) installation: Option<&'a str>,
    pub(super) resource: Option<&'a str>,
    /// The top-level properties of the body.
    pub(super) fields: &'a [String],
}

impl Subject<'_> {
    fn has(&self, field: Field) -> bool {
        self.fields.iter().any(|name| name == field.as_str())
    }
}

/// The rules in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    rules: Vec<Rule>,
}

impl Script {
    pub(super) fn push(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(super) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The fault for a request, counted against its rule.
    pub(super) fn choose(&mut self, subject: &Subject<'_>) -> Option<Fault> {
        let at = self.rules.iter().position(|rule| {
            rule.matcher.accepts(subject)
                && match rule.fault {
                    Fault::RejectField(field) => subject.has(field),
                    _ => true,
                }
        })?;
        let rule = &mut self.rules[at];
        let fault = rule.fault.clone();
        match rule.times {
            0 => {}
            1 => drop(self.rules.remove(at)),
            _ => rule.times -= 1,
        }
        Some(fault)
    }
}

fn once() -> u32 {
    1
}

/// Durations as humantime strings.
pub(super) mod span {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        span: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*span))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn subject<'a>(resource: &'a str, fields: &'a [String]) -> Subject<'a> {
        Subject {
            method: "PATCH",
            operation: Some(Operation::Update),
            installation: Some("icfg_1"),
            resource: Some(resource),
            fields,
        }
    }

    fn rule(fault: Fault, matcher: Matcher, times: u32) -> Rule {
        Rule {
            fault,
            matcher,
            times,
        }
    }

    #[test]
    fn a_rule_meets_what_it_names_and_nothing_else() {
        let fields = ["status".to_owned()];
        let asked = subject("res_1", &fields);
        let meets = |matcher: Matcher| {
            let mut script = Script::default();
            script.push(rule(Fault::Conflict, matcher, 0));
            script.choose(&asked).is_some()
        };
        assert!(meets(Matcher::any()));
        assert!(meets(Matcher::patch()));
        assert!(!meets(Matcher::method("GET")));
        assert!(meets(Matcher::installation("icfg_1")));
        assert!(!meets(Matcher::installation("icfg_2")));
        assert!(meets(Matcher::resource("icfg_1", "res_1")));
        assert!(!meets(Matcher::resource("icfg_1", "res_2")));
        assert!(!meets(Matcher::resource("icfg_2", "res_1")));
        assert!(meets(Matcher::field(Field::Status)));
        assert!(!meets(Matcher::field(Field::Name)));
    }

    #[test]
    fn rules_are_used_up_in_order() {
        let mut script = Script::default();
        script.push(rule(Fault::Pass, Matcher::any(), 2));
        script.push(rule(Fault::Conflict, Matcher::patch(), 1));
        script.push(rule(Fault::status(503), Matcher::any(), 0));
        let subject = subject("res_1", &[]);
        let names: Vec<_> = (0..5)
            .filter_map(|_| script.choose(&subject))
            .map(|fault| fault.name())
            .collect();
        assert_eq!(names, ["pass", "pass", "conflict", "status", "status"]);
        script.clear();
        assert_eq!(script.choose(&subject), None);
    }

    #[test]
    fn a_rule_is_only_for_the_requests_it_matches() {
        let fields = ["billingPlan".to_owned()];
        let plain = subject("res_1", &[]);
        let with_plan = subject("res_1", &fields);
        for (matcher, plain_matches, plan_matches) in [
            (Matcher::any(), true, true),
            (Matcher::method("GET"), false, false),
            (Matcher::field(Field::BillingPlan), false, true),
            (Matcher::resource("icfg_1", "res_1"), true, true),
            (Matcher::resource("icfg_1", "res_2"), false, false),
            (Matcher::installation("icfg_2"), false, false),
        ] {
            assert_eq!(matcher.accepts(&plain), plain_matches, "{matcher:?}");
            assert_eq!(matcher.accepts(&with_plan), plan_matches, "{matcher:?}");
        }
    }

    #[test]
    fn a_rejected_field_leaves_other_requests_alone() {
        let mut script = Script::default();
        script.push(rule(
            Fault::RejectField(Field::BillingPlan),
            Matcher::any(),
            1,
        ));
        assert_eq!(script.choose(&subject("res_1", &[])), None);
        let fields = ["status".to_owned(), "billingPlan".to_owned()];
        assert!(script.choose(&subject("res_1", &fields)).is_some());
    }

    #[test]
    fn every_fault_can_be_written_in_json() {
        for (text, fault) in [
            (json!("conflict"), Fault::Conflict),
            (json!({"status": {"code": 503}}), Fault::status(503)),
            (
                json!({"rate_limited": {"retry_after": {"seconds": 3}}}),
                Fault::RateLimited {
                    retry_after: RetryAfter::Seconds(3),
                },
            ),
            (
                json!({"rate_limited": {"retry_after": "none"}}),
                Fault::RateLimited {
                    retry_after: RetryAfter::None,
                },
            ),
            (
                json!({"delay": "1s 500ms"}),
                Fault::Delay(Duration::from_millis(1500)),
            ),
            (
                json!({"apply_late": "2s"}),
                Fault::ApplyLate(Duration::from_secs(2)),
            ),
            (
                json!({"reject_field": "billingPlan"}),
                Fault::RejectField(Field::BillingPlan),
            ),
            (
                json!({"huge_body": {"bytes": 1_000_000}}),
                Fault::HugeBody { bytes: 1_000_000 },
            ),
            (
                json!({"redirect": {"code": 307, "location": "/x"}}),
                Fault::Redirect {
                    code: 307,
                    location: "/x".to_owned(),
                },
            ),
        ] {
            let read: Fault = serde_json::from_str(&text.to_string()).expect("a fault");
            assert_eq!(read, fault);
            let written = serde_json::to_value(&read).expect("plain data");
            let again: Fault = serde_json::from_value(written).expect("what was written");
            assert_eq!(again, fault);
        }
        let rule: Rule = serde_json::from_str(
            r#"{"fault": "hang", "match": {"operation": "get", "field": null}, "times": 0}"#,
        )
        .expect("a rule");
        assert_eq!(rule.matcher.operation, Some(Operation::Get));
        assert!(serde_json::from_str::<Rule>(r#"{"fault": "hang", "matches": {}}"#).is_err());
    }
}
