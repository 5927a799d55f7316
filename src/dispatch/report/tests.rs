//! The lines, totals and metrics of deliveries, probes and outages.

use crate::dispatch::deliver::Reached;
use crate::dispatch::fixture::{SECOND, START, key, lines_of};
use crate::model::{
    EntryId, Field, Fingerprint, Json, LeaseToken, Mode, Observed, Patch, Reason, ResourceKey,
    SecretName, SecretsPatch, SharedMap, Snapshot,
};
use crate::plan::Claimed;
use crate::store::AttemptRecord;

use super::*;

fn resource() -> ResourceKey {
    key("icfg_1", "res_1")
}

/// A status and a secret, found four seconds ago, sent two seconds ago and answered one second ago.
fn delivery(effect: Effect) -> Delivery {
    let url = SecretName::new("URL").expect("a name");
    let secrets = SharedMap::from([(url, Fingerprint::from_bytes([1; 16]))]);
    let patch = Patch {
        values: SharedMap::from([(Field::Status, Json::from_text("ready"))]),
        secrets: Some(SecretsPatch::Partial(secrets)),
    };
    let claimed = Claimed {
        entry_id: EntryId(7),
        key: resource(),
        patch,
        mode: Mode::Whole,
        desired: Snapshot::default(),
        token: LeaseToken(1),
        lease_expires_at: START.plus(SECOND * 60),
        attempt: 3,
        created_at: START,
    };
    let attempt = AttemptRecord {
        started_at: START.plus(SECOND * 2),
        ended_at: START.plus(SECOND * 3),
        method: "PATCH",
        fields: vec![Field::Status, Field::Secrets],
        secret_names: vec!["URL".to_owned()],
        status: Some(500),
        error_code: Some("server_error".to_owned()),
        message: Some("try later".to_owned()),
        vercel_id: Some("fra1::1".to_owned()),
    };
    Delivery {
        key: resource(),
        claimed: Some(Box::new(claimed)),
        attempt: Some(attempt),
        effect,
        problem: None,
        reached: Reached::Answered,
    }
}

fn probe(effect: Effect) -> Delivery {
    Delivery {
        claimed: None,
        attempt: None,
        ..delivery(effect)
    }
}

fn settled(outcome: Outcome, state: EntryState, reason: Reason) -> Effect {
    let advanced = Some(Advanced {
        state,
        reason,
        due_at: START.plus(SECOND * 6),
    });
    Effect::Settled { outcome, advanced }
}

fn acknowledged(state: EntryState) -> Effect {
    let sent_at = START.plus(SECOND * 2);
    settled(Outcome::Acknowledged { sent_at }, state, Reason::Due)
}

fn retrying(outcome: Outcome) -> Effect {
    settled(outcome, EntryState::Waiting, Reason::Backoff)
}

/// What is told of a delivery that ended four seconds after its change was found.
fn told(delivery: &Delivery, outage: bool) -> (Vec<String>, Totals, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::default());
    let report = Report::new(Arc::clone(&metrics));
    let now = START.plus(SECOND * 4);
    let lines = lines_of(|| report.delivery(delivery, outage, now));
    let totals = *report.shared().lock().expect("no test panics with it");
    (lines, totals, metrics)
}

const IDS: &str = "installation_id=icfg_1 resource_id=res_1";

#[test]
fn each_end_of_a_delivery_has_its_line_and_its_count() {
    let request = format!(
        "{IDS} entry=7 fields=[\"secrets\",\"status\"] secret_names=[\"URL\"] attempt=3 status=500"
    );
    let failed = format!(
        "{request} error_code=server_error error=try later vercel_id=fra1::1 duration_ms=1000"
    );
    let compared = Outcome::Compared {
        observed: Observed::default(),
    };
    let lease_lost = Effect::Settled {
        outcome: Outcome::Lost,
        advanced: None,
    };
    let paused = Effect::Paused {
        kind: PauseKind::Gone,
        reason: "it is gone".to_owned(),
        outcome: Outcome::InstallationGone,
    };
    let due = "reason=due";
    let cases = [
        (
            acknowledged(EntryState::Delivered),
            (1, 0, 0),
            format!(
                "INFO delivery.acknowledged {request} vercel_id=fra1::1 duration_ms=1000 \
                 lag_ms=4000 state=delivered: Delivered secrets, status for icfg_1/res_1"
            ),
        ),
        (
            retrying(Outcome::Failed),
            (0, 1, 0),
            format!(
                "WARN delivery.retrying {failed} outcome=failed reason=backoff retry_in_ms=2000: \
                 Will try icfg_1/res_1 again: {}",
                Reason::Backoff.sentence()
            ),
        ),
        (
            settled(Outcome::NotFound, EntryState::Dead, Reason::NotFound),
            (0, 1, 1),
            format!(
                "ERROR delivery.dead {failed} reason=not_found: Parked icfg_1/res_1: {}",
                Reason::NotFound.sentence()
            ),
        ),
        (
            settled(compared, EntryState::Waiting, Reason::Due),
            (0, 0, 0),
            format!("DEBUG delivery.compared {IDS} {due}: Compared icfg_1/res_1"),
        ),
        (
            settled(Outcome::Released, EntryState::Waiting, Reason::Due),
            (0, 0, 0),
            format!("DEBUG delivery.released {IDS} {due}: Sent nothing for icfg_1/res_1"),
        ),
        (
            settled(Outcome::SourceMoved, EntryState::Waiting, Reason::Due),
            (0, 0, 0),
            format!("DEBUG delivery.released {IDS} {due}: Sent nothing for icfg_1/res_1"),
        ),
        (
            lease_lost,
            (0, 0, 0),
            format!(
                "WARN delivery.lease_lost {IDS} outcome=lost: The claim of icfg_1/res_1 had been \
                 taken over; its outcome was not recorded"
            ),
        ),
        (
            Effect::Unrecorded,
            (0, 1, 0),
            format!(
                "ERROR delivery.unrecorded {IDS}: The outcome of a request for icfg_1/res_1 \
                 could not be recorded; it counts as lost"
            ),
        ),
        (
            paused,
            (0, 1, 0),
            "ERROR installation.paused installation_id=icfg_1 kind=gone reason=it is gone status=500 \
             error_code=server_error vercel_id=fra1::1: Paused icfg_1: it is gone; nothing is sent \
             for it until a probe succeeds"
                .to_owned(),
        ),
    ];
    for (effect, counts, line) in cases {
        let (lines, totals, _) = told(&delivery(effect), false);
        assert_eq!(lines, [line]);
        let Totals {
            acknowledged,
            failed,
            died,
            ..
        } = totals;
        assert_eq!((acknowledged, failed, died), counts, "{lines:?}");
    }
}

#[test]
fn the_end_of_a_probe_has_its_line_and_is_no_delivery() {
    let kind = PauseKind::Token;
    let cases = [
        (
            Effect::Resumed { kind },
            "resumed",
            "WARN installation.resumed installation_id=icfg_1 kind=token: Resumed icfg_1: \
             Vercel accepts its token again",
        ),
        (
            Effect::StillPaused,
            "still_paused",
            "DEBUG installation.probe_failed installation_id=icfg_1: Probed icfg_1: it stays \
             paused",
        ),
    ];
    for (effect, label, line) in cases {
        let (lines, totals, metrics) = told(&probe(effect), false);
        assert_eq!(lines, [line]);
        assert_eq!(totals, Totals::default());
        assert_eq!(metrics.probes.get()[label], 1);
        assert_eq!(metrics.deliveries.get().values().sum::<u64>(), 0);
        assert_eq!(metrics.attempts.get().values().sum::<u64>(), 0);
    }
}

#[test]
fn what_was_never_sent_is_shown_without_an_answer() {
    let mut unsent = delivery(retrying(Outcome::SourceUnavailable));
    unsent.attempt = None;
    unsent.problem = Some("it is away".to_owned());
    let (lines, _, metrics) = told(&unsent, false);
    let shown = " error_code=none error=it is away vercel_id= duration_ms=0 ";
    assert!(lines[0].contains(shown), "{}", lines[0]);
    assert_eq!(metrics.request_seconds.read().count, 0);
    assert_eq!(metrics.attempts.get().values().sum::<u64>(), 0);
}

#[test]
fn the_last_of_a_split_patch_that_is_accepted_parks_what_was_rejected_before() {
    let (lines, totals, _) = told(&delivery(acknowledged(EntryState::Dead)), false);
    assert_eq!(lines.len(), 2);
    assert!(
        lines[0].starts_with("INFO delivery.acknowledged"),
        "{lines:?}"
    );
    assert!(lines[1].starts_with("ERROR delivery.dead"), "{lines:?}");
    assert_eq!((totals.acknowledged, totals.failed, totals.died), (1, 0, 1));
}

#[test]
fn an_acknowledgement_whose_claim_was_taken_over_is_one() {
    let effect = Effect::Settled {
        outcome: Outcome::Acknowledged { sent_at: START },
        advanced: None,
    };
    let (lines, totals, _) = told(&delivery(effect), false);
    assert!(lines[0].contains(" state=lost: "), "{lines:?}");
    assert_eq!((lines.len(), totals.acknowledged), (1, 1));
}

#[test]
fn failures_that_are_part_of_an_outage_are_counted_and_not_told_as_warnings() {
    let part = [Outcome::Unreachable, Outcome::Lost, Outcome::Failed];
    for outcome in part {
        let (lines, totals, _) = told(&delivery(retrying(outcome.clone())), true);
        let line = format!("DEBUG delivery.retrying {IDS} reason=backoff: Will retry icfg_1/res_1");
        assert_eq!((lines, totals.failed), (vec![line], 1), "{outcome:?}");
        let (lines, _, _) = told(&delivery(retrying(outcome)), false);
        assert!(lines[0].starts_with("WARN"), "{lines:?}");
    }
    let (lines, _, _) = told(&delivery(retrying(Outcome::TokenRefused)), true);
    assert!(lines[0].starts_with("WARN"), "{lines:?}");
}

#[test]
fn what_waits_for_a_source_that_is_away_says_so_once_until_secrets_could_be_read() {
    let report = Report::new(Arc::default());
    let mut unsent = delivery(retrying(Outcome::SourceUnavailable));
    unsent.attempt = None;
    let mut without = delivery(retrying(Outcome::Failed));
    let claimed = without.claimed.as_mut().expect("it is claimed");
    claimed.patch.secrets = None;
    let with = delivery(retrying(Outcome::Failed));
    let lines = lines_of(|| {
        for delivery in [&unsent, &unsent, &without, &unsent, &with, &unsent] {
            report.delivery(delivery, false, START.plus(SECOND * 4));
        }
    });
    let levels: Vec<&str> = lines
        .iter()
        .map(|line| line.split(' ').next().expect("a level"))
        .collect();
    assert_eq!(levels, ["WARN", "DEBUG", "WARN", "DEBUG", "WARN", "WARN"]);
    assert!(lines.iter().all(|line| line.contains("delivery.retrying")));
    let totals = *report.shared().lock().expect("no test panics with it");
    assert_eq!(totals.failed, 6, "each is counted");
}

#[test]
fn that_the_state_fails_is_known_to_whoever_asks_until_it_works_again() {
    let report = Report::new(Arc::default());
    let full = StoreError::Failed {
        operation: "claim",
        problem: "the disk is full".to_owned(),
        transient: true,
    };
    report.state_failed(&full);
    assert_eq!(report.metrics.state_problem(), Some(full.to_string()));
    report.state_recovered();
    assert_eq!(report.metrics.state_problem(), None);
}

#[test]
fn requests_and_their_ends_are_measured() {
    let (_, _, metrics) = told(&delivery(retrying(Outcome::Failed)), false);
    assert_eq!(metrics.deliveries.get()["retrying"], 1);
    assert_eq!(metrics.attempts.get()["failed"], 1);
    assert_eq!(metrics.probes.get().values().sum::<u64>(), 0);
    let seconds = metrics.request_seconds.read();
    assert_eq!((seconds.count, seconds.sum), (1, 1.0));
    assert_eq!(metrics.lag_seconds.read().count, 0);
    assert_eq!(metrics.state_failures.get(), 0);
    let (_, _, metrics) = told(&delivery(Effect::Unrecorded), false);
    assert_eq!(metrics.state_failures.get(), 1);
}

#[test]
fn the_lag_of_acknowledgements_is_summed_up_and_its_longest_kept() {
    let report = Report::new(Arc::default());
    let delivery = delivery(acknowledged(EntryState::Delivered));
    for seconds in [4, 9, 5] {
        report.delivery(&delivery, false, START.plus(SECOND * seconds));
    }
    let totals = *report.shared().lock().expect("no test panics with it");
    assert_eq!(totals.acknowledged, 3);
    assert_eq!((totals.lag_sum, totals.lag_max), (SECOND * 18, SECOND * 9));
    let lag = report.metrics.lag_seconds.read();
    assert_eq!((lag.count, lag.sum), (3, 18.0));
    assert_eq!(report.metrics.commit_lag_seconds.read().count, 0);
}

#[test]
fn the_beginning_and_the_end_of_an_outage_are_told_and_nothing_between() {
    let report = Report::new(Arc::default());
    let since = |report: &Report| {
        let totals = *report.shared().lock().expect("no test panics with it");
        (totals.outage_since, report.metrics.outage_since())
    };
    let lasted = SECOND * 3;
    let mut seen = Vec::new();
    let lines = lines_of(|| {
        for (transition, now) in [
            (Some(Transition::Began), Some(START)),
            (None, Some(START)),
            (Some(Transition::Ended { lasted }), None),
        ] {
            report.transition(transition, now);
            seen.push(since(&report));
        }
    });
    assert_eq!(
        lines,
        [
            "ERROR vercel.outage_began: Vercel's API fails as a whole: single requests probe it \
             until it answers",
            "WARN vercel.outage_ended duration_ms=3000: Vercel's API answers again",
        ]
    );
    let during = (Some(START), Some(START));
    assert_eq!(seen, [during, during, (None, None)]);
}
