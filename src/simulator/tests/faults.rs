//! Every fault, as a client meets it.

use std::time::Duration;

use reqwest::Response;
use serde_json::json;

use super::super::*;
use super::bench::{Bench, INSTALLATION, json_of};

#[tokio::test]
async fn faults_that_answer_do_not_apply() {
    let bench = Bench::start().await;
    let header = |response: &Response, name: &str| {
        let value = response.headers().get(name)?;
        Some(value.to_str().expect("ASCII").to_owned())
    };
    let limited = |retry_after| Fault::RateLimited { retry_after };
    for (fault, status) in [
        (Fault::status(503), 503),
        (Fault::Conflict, 409),
        (Fault::RejectField(Field::Status), 400),
        (limited(RetryAfter::Seconds(7)), 429),
        (limited(RetryAfter::HttpDate(60)), 429),
        (limited(RetryAfter::Reset(60)), 429),
        (limited(RetryAfter::Absurd), 429),
        (limited(RetryAfter::None), 429),
        (
            Fault::Redirect {
                code: 307,
                location: "/_simulator/trap".to_owned(),
            },
            307,
        ),
    ] {
        bench.remote().fault(fault.clone(), Matcher::patch());
        let response = bench
            .client
            .patch(json!({"status": "ready"}))
            .await
            .expect("an answer");
        assert_eq!(response.status(), status, "{fault:?}");
        let retry_after = header(&response, "retry-after");
        match fault {
            Fault::RateLimited {
                retry_after: RetryAfter::Seconds(_),
            } => assert_eq!(retry_after.as_deref(), Some("7")),
            Fault::RateLimited {
                retry_after: RetryAfter::HttpDate(_),
            } => {
                assert!(httpdate::parse_http_date(&retry_after.expect("a date")).is_ok());
            }
            Fault::RateLimited {
                retry_after: RetryAfter::Absurd,
            } => assert_eq!(retry_after.as_deref(), Some("4102444800")),
            Fault::RateLimited {
                retry_after: RetryAfter::Reset(_),
            } => {
                assert!(header(&response, "x-ratelimit-reset").is_some() && retry_after.is_none());
            }
            _ => assert_eq!(retry_after, None),
        }
        assert_eq!(bench.status_of_res_1(), None, "{fault:?}");
    }
    bench
        .client
        .patch(json!({"status": "ready"}))
        .await
        .expect("no rule is left");
    assert_eq!(bench.status_of_res_1(), Some(json!("ready")));
    assert!(bench.remote().violations().is_empty());
}

#[tokio::test]
async fn faults_that_cut_the_connection_apply_or_not_as_named() {
    for (fault, applied) in [
        (Fault::DropBefore, false),
        (Fault::DropAfter, true),
        (Fault::NotHttp, false),
    ] {
        let bench = Bench::start().await;
        bench.remote().fault(fault.clone(), Matcher::any());
        let outcome = bench.client.patch(json!({"status": "ready"})).await;
        assert!(outcome.is_err(), "{fault:?}");
        assert_eq!(bench.status_of_res_1().is_some(), applied, "{fault:?}");
        let requests = bench.remote().requests();
        assert_eq!(requests.len(), 1, "the client does not repeat by itself");
        assert_eq!(requests[0].outcome, Outcome::Closed);
        assert_eq!(requests[0].applied, applied);
        assert_eq!(requests[0].fault, Some(fault.name()));
    }
}

#[tokio::test]
async fn answers_may_be_truncated_huge_or_slow_though_the_patch_is_applied() {
    let bench = Bench::start().await;
    let patch = || bench.client.patch(json!({"status": "ready"}));
    bench.remote().fault(Fault::Truncated, Matcher::any());
    let truncated = patch().await.expect("a head");
    assert_eq!(truncated.status(), 200);
    assert!(truncated.bytes().await.is_err());
    bench
        .remote()
        .fault(Fault::HugeBody { bytes: 1 << 20 }, Matcher::any());
    let huge = patch()
        .await
        .expect("a head")
        .bytes()
        .await
        .expect("all of it");
    assert!(huge.len() >= 1 << 20);
    bench
        .remote()
        .fault(Fault::SlowBody(Duration::from_secs(3600)), Matcher::any());
    let slow = patch().await.expect("a head");
    bench
        .remote()
        .wait_until(|remote| remote.held() == 1)
        .await
        .expect("it is held");
    bench.remote().release();
    assert_eq!(json_of(slow).await, json!({"name": "res_1"}));
    assert!(bench.remote().requests().iter().all(|entry| entry.applied));
}

#[tokio::test]
async fn a_delayed_request_goes_on_and_a_hung_one_is_closed_on_release() {
    let bench = Bench::start().await;
    for (fault, answered) in [
        (Fault::Delay(Duration::from_secs(3600)), true),
        (Fault::Hang, false),
    ] {
        bench.remote().fault(fault, Matcher::any());
        let client = bench.client.clone();
        let request = tokio::spawn(async move { client.patch(json!({"status": "ready"})).await });
        bench
            .remote()
            .wait_until(|remote| remote.held() == 1)
            .await
            .expect("it is held");
        bench.remote().release();
        let outcome = request.await.expect("no panic");
        assert_eq!(outcome.is_ok(), answered);
    }
}

#[tokio::test]
async fn a_late_application_may_undo_a_newer_one_and_history_shows_it() {
    let bench = Bench::start().await;
    let patch = |status: &'static str| bench.client.patch(json!({ "status": status }));
    patch("pending").await.expect("an answer");
    let late = Fault::ApplyLate(Duration::from_secs(3600));
    bench.remote().fault(late, Matcher::any());
    assert!(patch("ready").await.is_err());
    assert!(!bench.remote().requests()[1].applied);
    patch("ready").await.expect("an answer");
    patch("suspended").await.expect("an answer");
    let mut observed = bench.remote().observe();
    bench.remote().release();
    bench
        .remote()
        .wait_until(|remote| remote.requests()[1].late)
        .await
        .expect("it takes effect");
    assert!(
        observed
            .recv()
            .await
            .expect("an entry")
            .to_string()
            .contains("applied late")
    );
    assert_eq!(bench.status_of_res_1(), Some(json!("ready")));
    let regressions = bench.remote().regressions(INSTALLATION, "res_1");
    assert_eq!(regressions.len(), 1);
    assert_eq!(regressions[0].request, Some(2));
    assert!(
        bench.remote().violations().is_empty(),
        "the client had its answer, an error, before it asked again"
    );
}

#[tokio::test]
async fn two_writes_at_once_are_a_violation() {
    let bench = Bench::with(patient(Duration::ZERO)).await;
    let waited_for = bench.hold_one().await;
    bench
        .client
        .patch(json!({"name": "second"}))
        .await
        .expect("an answer");
    assert_eq!(bench.kinds(), [ViolationKind::ConcurrentWrites]);
    waited_for.abort();
}

#[tokio::test]
async fn a_repeat_after_giving_up_is_no_violation() {
    let bench = Bench::with(patient(Duration::from_secs(3600))).await;
    let given_up = bench.hold_one().await;
    given_up.abort();
    bench
        .client
        .patch(json!({"name": "second"}))
        .await
        .expect("an answer");
    assert_eq!(bench.kinds(), []);
    let outcomes: Vec<_> = bench
        .remote()
        .requests()
        .iter()
        .map(|entry| (entry.outcome, entry.applied))
        .collect();
    assert_eq!(
        outcomes,
        [(Outcome::Abandoned, false), (Outcome::Answered(200), true)]
    );
}

fn patient(overlap_grace: Duration) -> Options {
    Options {
        overlap_grace,
        ..Options::creating()
    }
}

#[tokio::test]
async fn the_rate_limit_is_per_installation_and_says_when_it_ends() {
    let mut options = Options::creating();
    options.behaviour.requests_per_window = Some(1);
    let bench = Bench::with(options).await;
    let first = bench
        .client
        .patch(json!({"name": "a"}))
        .await
        .expect("an answer");
    assert_eq!(first.status(), 200);
    assert_eq!(first.headers()["x-ratelimit-remaining"], "0");
    let second = bench
        .client
        .patch(json!({"name": "b"}))
        .await
        .expect("an answer");
    assert_eq!(second.status(), 429);
    assert!(
        second.headers().contains_key("retry-after")
            && second.headers().contains_key("x-ratelimit-reset")
    );
    let elsewhere = bench
        .client
        .http
        .get(format!(
            "{}/v1/installations/icfg_2/resources",
            bench.client.base
        ))
        .bearer_auth("token-of-icfg-2")
        .send()
        .await
        .expect("an answer");
    assert_eq!(elsewhere.status(), 200);
}

#[tokio::test]
async fn weather_strikes_the_same_requests_for_the_same_seed() {
    let mut seen = Vec::new();
    for _ in 0..2 {
        let bench = Bench::with(Options {
            weather: Some(Weather {
                seed: 11,
                p_503: 0.3,
                p_409: 0.3,
                ..Weather::default()
            }),
            ..Options::creating()
        })
        .await;
        let mut statuses = Vec::new();
        for _ in 0..20 {
            let response = bench
                .client
                .patch(json!({"name": "a"}))
                .await
                .expect("an answer");
            statuses.push(response.status().as_u16());
        }
        assert!(statuses.contains(&503) && statuses.contains(&409) && statuses.contains(&200));
        seen.push(statuses);
    }
    assert_eq!(seen[0], seen[1]);
}
