//! The dispatcher's loop as a whole, on a virtual clock.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::model::Field;
use crate::plan::outage::FAILURES_TO_BEGIN;

use super::fixture::{
    LEASE, Reply, SECOND, START, Stand, answer, installation, key, settings, unreachable_answer,
};
use super::*;

fn until(seconds: u32) -> Until {
    Until::Idle {
        deadline: START.plus(SECOND * seconds),
    }
}

fn work(stand: &Stand, change: impl FnOnce(&mut Settings)) -> Totals {
    let mut dispatcher = stand.dispatcher(change);
    stand.clock.run(dispatcher.run(until(60)))
}

fn limits(stand: &Stand) -> Vec<u32> {
    let claims = stand.state.claims();
    claims.iter().map(|request| request.limit).collect()
}

/// Counts the marks that a dispatcher leaves.
fn marked(stand: &mut Stand) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    stand.signals.progressed = Mark::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    count
}

#[test]
fn everything_that_is_due_is_sent_at_once_and_counted() {
    let stand = Stand::new();
    stand.desire("icfg_1", 20, "ready");
    let mut dispatcher = stand.dispatcher(|_| {});
    let shared = dispatcher.totals();
    let totals = stand.clock.run(dispatcher.run(until(60)));
    assert_eq!((totals.acknowledged, totals.failed), (20, 0));
    assert_eq!(*shared.lock().expect("no test panics with it"), totals);
    assert!(stand.vercel.sent().iter().all(|sent| sent.at == START));
    assert!((0..20).all(|n| stand.is_settled(&key("icfg_1", &format!("res_{n}")))));
}

#[test]
fn a_claim_that_got_all_that_it_asked_for_is_followed_by_another_at_once() {
    let stand = Stand::new();
    stand.desire("icfg_1", 8, "ready");
    stand
        .vercel
        .replies((0..8).map(|_| Reply::status(200).after(SECOND)));
    work(&stand, |_| {});
    let sent = stand.vercel.sent();
    let after = |n: u32| {
        sent.iter()
            .filter(move |sent| sent.at == START.plus(SECOND * n))
    };
    assert_eq!((after(0).count(), after(1).count()), (4, 4));
    assert_eq!(stand.vercel.out_max(), 4);
    assert_eq!(limits(&stand)[..2], [4, 4]);
}

#[test]
fn as_many_are_claimed_ahead_as_were_answered_while_the_last_claim_was_made() {
    let stand = Stand::new();
    stand.desire("icfg_1", 30, "ready");
    stand.state.takes("claim", SECOND * 2);
    let reply = |millis| Reply::status(200).after(Duration::from_millis(millis));
    stand
        .vercel
        .replies([1000, 1500, 1500, 1500, 1000].map(reply));
    work(&stand, |_| {});
    // The first of four frees its place, which is claimed for; meanwhile the three others are answered.
    assert_eq!(limits(&stand)[..3], [4, 1, 6]);
    let third = &stand.state.claims()[2];
    assert_eq!(third.in_flight, [(installation("icfg_1"), 1)].into());
    assert_eq!(third.after, Some(installation("icfg_1")));
    assert_eq!(stand.vercel.out_max(), 4);
}

#[test]
fn what_is_answered_is_no_longer_counted_as_in_flight() {
    let stand = Stand::new();
    stand.desire("icfg_1", 2, "ready");
    stand.desire("icfg_2", 1, "ready");
    stand.vercel.replies([
        Reply::status(200),
        Reply::status(200).after(SECOND * 5),
        Reply::status(200).after(SECOND * 5),
    ]);
    let mut dispatcher = stand.dispatcher(|_| {});
    let mut run = Box::pin(dispatcher.run(until(60)));
    assert!(stand.clock.run_for(SECOND * 3, run.as_mut()).is_none());
    let claims = stand.state.claims();
    let in_flight = &claims.last().expect("it looks again").in_flight;
    let expected = [(installation("icfg_1"), 1), (installation("icfg_2"), 1)];
    assert_eq!(*in_flight, expected.into());
    assert!(stand.clock.run_for(SECOND * 60, run.as_mut()).is_some());
    drop(run);
    assert!(dispatcher.in_flight.is_empty() && dispatcher.leases.is_empty());
}

#[test]
fn outcomes_that_come_while_others_are_recorded_are_recorded_together() {
    let stand = Stand::new();
    stand.desire("icfg_1", 4, "ready");
    stand.state.takes("advance_all", SECOND * 5);
    let millis = |n| Reply::status(200).after(Duration::from_millis(n));
    stand.vercel.replies([1, 100, 200, 300].map(millis));
    work(&stand, |_| {});
    assert_eq!(stand.state.recorded(), [1, 3]);
}

#[test]
fn what_cannot_be_recorded_together_is_recorded_one_by_one() {
    let stand = Stand::new();
    stand.desire("icfg_1", 3, "ready");
    stand.state.fails("advance_all", 1);
    let totals = work(&stand, |_| {});
    assert_eq!(stand.state.calls("advance"), 3);
    assert_eq!(totals.acknowledged, 3);
}

#[test]
fn no_more_answers_wait_to_be_recorded_than_four_for_each_place() {
    let stand = Stand::new();
    stand.desire("icfg_1", 40, "ready");
    stand.state.takes("advance_all", SECOND * 600);
    let mut dispatcher = stand.dispatcher(|settings| settings.lease = LEASE * 60);
    let mut run = Box::pin(dispatcher.run(Until::Stopped));
    assert!(stand.clock.run_for(SECOND * 30, run.as_mut()).is_none());
    // Four are being recorded, and sixteen wait.
    assert_eq!(stand.vercel.sent().len(), 20);
}

#[test]
fn what_is_due_exactly_at_the_deadline_is_sent_and_what_is_due_later_is_not() {
    for (deadline, sent) in [(999, 1), (1000, 2), (2999, 2), (3000, 3)] {
        let stand = Stand::new();
        stand.desire("icfg_1", 1, "ready");
        // Due again after one second, and then after two.
        stand.vercel.answers(&answer(500), 2);
        let deadline = START.plus(Duration::from_millis(deadline));
        let mut dispatcher = stand.dispatcher(|_| {});
        stand.clock.run(dispatcher.run(Until::Idle { deadline }));
        assert_eq!(stand.vercel.sent().len(), sent, "until {deadline:?}");
    }
}

#[test]
fn a_run_ends_at_its_deadline_however_much_is_due() {
    let stand = Stand::new();
    stand.desire("icfg_1", 100, "ready");
    stand
        .vercel
        .replies((0..100).map(|_| Reply::status(200).after(SECOND)));
    let mut dispatcher = stand.dispatcher(|_| {});
    let totals = stand.clock.run(dispatcher.run(until(5)));
    // Four at a time, the last at the deadline itself, and what was claimed for these places while they were out.
    let sent = stand.vercel.sent();
    assert_eq!(totals.acknowledged, sent.len() as u64);
    assert!((20..=36).contains(&sent.len()), "{}", sent.len());
    assert!(stand.clock.time() <= START.plus(SECOND * 10));
    let left = (0..100).filter(|n| !stand.is_settled(&key("icfg_1", &format!("res_{n}"))));
    assert_eq!(left.count(), 100 - sent.len());
}

#[test]
fn a_run_ends_at_its_deadline_though_every_claim_outlasts_its_lease() {
    let stand = Stand::new();
    stand.desire("icfg_1", 1, "ready");
    stand.state.takes("claim", LEASE + SECOND);
    let mut dispatcher = stand.dispatcher(|_| {});
    stand.clock.run(dispatcher.run(until(90)));
    assert!(stand.clock.time() <= START.plus(SECOND * 90 + LEASE * 2));
    assert!(stand.vercel.sent().is_empty());
}

#[test]
fn a_run_ends_at_its_deadline_though_the_state_fails() {
    let stand = Stand::new();
    stand.desire("icfg_1", 1, "ready");
    stand.state.fails("claim", 1000);
    let mut dispatcher = stand.dispatcher(|_| {});
    stand.clock.run(dispatcher.run(until(3)));
    assert_eq!(stand.clock.time(), START.plus(SECOND * 3));
    // And it does not end before because the state cannot tell what is due.
    let stand = Stand::new();
    stand.desire("icfg_1", 1, "ready");
    stand.vercel.answers(&answer(500), 1);
    stand.state.fails("next_due", 1000);
    let mut dispatcher = stand.dispatcher(|_| {});
    stand.clock.run(dispatcher.run(until(3)));
    assert_eq!(stand.vercel.sent().len(), 2);
}

#[test]
fn who_is_told_to_stop_claims_nothing_more_and_lets_what_is_out_end() {
    let stand = Stand::new();
    stand.desire("icfg_1", 6, "ready");
    stand
        .vercel
        .replies((0..6).map(|_| Reply::status(200).after(SECOND * 5)));
    let mut dispatcher = stand.dispatcher(|_| {});
    let mut run = Box::pin(dispatcher.run(Until::Stopped));
    assert!(stand.clock.run_for(SECOND, run.as_mut()).is_none());
    stand.signals.stop.cancel();
    assert!(stand.clock.run_for(SECOND * 3, run.as_mut()).is_none());
    let totals = stand.clock.run(run);
    assert_eq!((totals.acknowledged, stand.vercel.sent().len()), (4, 4));
    assert_eq!(stand.clock.time(), START.plus(SECOND * 5));
    let left = (0..6).filter(|n| !stand.is_settled(&key("icfg_1", &format!("res_{n}"))));
    assert_eq!(left.count(), 2);
}

#[test]
fn who_is_told_to_stop_waits_for_a_pass_that_claims_for_it() {
    let stand = Stand::new();
    let mut dispatcher = stand.dispatcher(|_| {});
    let mut run = Box::pin(dispatcher.run(Until::Stopped));
    assert!(stand.clock.turn(run.as_mut()).is_none());
    let claiming = stand.signals.handover.take_up(START).expect("laid out");
    stand.signals.stop.cancel();
    assert!(stand.clock.run_for(SECOND * 5, run.as_mut()).is_none());
    stand.desire("icfg_1", 1, "ready");
    let claimed = stand.clock.run(stand.state.memory.claim(&claiming.request));
    claiming.answer(claimed.expect("a state in memory does not fail"));
    stand.clock.run(run);
    // It was given back without having been sent.
    let record = stand.record(&key("icfg_1", "res_0"));
    let entry = record.entry.expect("open");
    assert!(entry.lease.is_none() && entry.attempts == 0);
    assert_eq!(stand.vercel.said(), [] as [&str; 0]);
}

#[test]
fn a_pass_that_claimed_nothing_for_it_sets_dispatch_free() {
    let stand = Stand::new();
    let mut dispatcher = stand.dispatcher(|_| {});
    let mut run = Box::pin(dispatcher.run(Until::Stopped));
    assert!(stand.clock.turn(run.as_mut()).is_none());
    drop(stand.signals.handover.take_up(START).expect("laid out"));
    stand.desire("icfg_1", 1, "ready");
    assert!(stand.clock.turn(run.as_mut()).is_none());
    assert_eq!(stand.vercel.said(), ["PATCH icfg_1/res_0"]);
}

#[test]
fn during_an_outage_requests_come_singly_until_one_is_answered() {
    let stand = Stand::new();
    stand.desire("icfg_1", 12, "ready");
    stand.vercel.answers(&unreachable_answer(), 11);
    let totals = work(&stand, |settings| settings.max_in_flight = 8);
    let mut by_time: BTreeMap<Timestamp, usize> = BTreeMap::new();
    for sent in stand.vercel.sent() {
        *by_time.entry(sent.at).or_default() += 1;
    }
    let by_time: Vec<(u64, usize)> = by_time
        .into_iter()
        .map(|(at, count)| (at.since(START).as_secs(), count))
        .collect();
    // Eight fail at once, which is one try, and each probe that fails doubles the wait for the next.
    assert_eq!(by_time[0], (0, 8));
    assert_eq!(by_time[1..4], [(1, 1), (3, 1), (7, 1)]);
    assert_eq!(by_time[4].0, 15);
    assert!(by_time[4].1 > 1, "{by_time:?}");
    assert_eq!((totals.acknowledged, totals.outage_since), (12, None));
}

#[test]
fn an_outage_is_told_while_it_lasts() {
    let stand = Stand::new();
    stand.desire("icfg_1", 8, "ready");
    stand.vercel.answers(&answer(503), 100);
    let mut dispatcher = stand.dispatcher(|_| {});
    let totals = stand.clock.run(dispatcher.run(until(5)));
    assert_eq!(totals.outage_since, Some(START));
    assert_eq!(stand.signals.metrics.outage_since(), Some(START));
    assert!(dispatcher.outage.since().is_some());
}

#[test]
fn what_was_never_sent_says_nothing_of_the_api() {
    let stand = Stand::new();
    stand.desire("icfg_1", 8, "ready");
    stand.source.fails(true);
    let mut dispatcher = stand.dispatcher(|_| {});
    stand.clock.run(dispatcher.run(until(5)));
    assert_eq!(dispatcher.outage.since(), None);
    assert_eq!(stand.vercel.said(), [] as [&str; 0]);
}

#[test]
fn one_that_is_answered_ends_the_count_of_failures() {
    let stand = Stand::new();
    for n in 0..2 * FAILURES_TO_BEGIN {
        let resource = key("icfg_1", &format!("res_{n}"));
        stand.desires(&resource, &[(Field::Status, "ready")]);
    }
    stand.vercel.answers(&answer(503), 4);
    stand.vercel.answers(&answer(422), 1);
    stand.vercel.answers(&answer(503), 4);
    let mut dispatcher = stand.dispatcher(|settings| settings.max_in_flight = 1);
    stand.clock.run(dispatcher.run(until(0)));
    assert_eq!(dispatcher.outage.since(), None);
}

#[test]
fn settings_that_change_hold_from_the_next_claim_on() {
    let stand = Stand::new();
    let (tell, followed) = watch::channel(settings());
    let mut dispatcher = stand.dispatcher(|_| {});
    dispatcher.follow(followed);
    let mut run = Box::pin(dispatcher.run(Until::Stopped));
    assert!(stand.clock.turn(run.as_mut()).is_none());
    tell.send_modify(|settings| {
        settings.max_in_flight = 2;
        settings.max_in_flight_per_installation = 1;
        settings.requests_per_minute_per_installation = Some(60);
        settings.retry.late_apply = SECOND * 7;
    });
    stand.desire("icfg_1", 2, "ready");
    stand.desire("icfg_2", 2, "ready");
    stand.desire("icfg_3", 2, "ready");
    stand
        .vercel
        .replies((0..6).map(|_| Reply::status(200).after(SECOND)));
    stand.signals.work.notify_one();
    assert!(stand.clock.turn(run.as_mut()).is_none());
    let claims = stand.state.claims();
    let request = claims.last().expect("it claims");
    assert_eq!((request.limit, request.per_installation), (2, 1));
    assert!(request.rate.is_some());
    assert_eq!(request.late_apply, SECOND * 7);
    assert!(stand.clock.run_for(SECOND * 9, run.as_mut()).is_none());
    assert_eq!(stand.vercel.sent().len(), 6);
    assert_eq!(stand.vercel.out_max(), 2, "there are two places now");
}

#[test]
fn the_interval_of_an_outages_probes_changes_with_the_settings() {
    let stand = Stand::new();
    let (tell, followed) = watch::channel(settings());
    let mut dispatcher = stand.dispatcher(|_| {});
    dispatcher.follow(followed);
    tell.send_modify(|settings| settings.retry.backoff.initial = SECOND * 9);
    stand.clock.run(dispatcher.run(until(0)));
    for n in 0..FAILURES_TO_BEGIN {
        let key = key("icfg_1", &format!("res_{n}"));
        dispatcher.outage.failed(&key, 0, START, 1.0);
    }
    assert_eq!(
        dispatcher.outage.next_probe_at(),
        Some(START.plus(SECOND * 9))
    );
}

#[test]
fn settings_that_nobody_can_change_any_more_stay_as_they_are() {
    let stand = Stand::new();
    stand.desire("icfg_1", 1, "ready");
    let (tell, followed) = watch::channel(settings());
    drop(tell);
    let mut dispatcher = stand.dispatcher(|_| {});
    dispatcher.follow(followed);
    stand.clock.run(dispatcher.run(until(1)));
    assert_eq!(stand.vercel.sent().len(), 1);
}

#[test]
fn a_mark_is_left_while_claims_and_records_get_on() {
    let mut stand = Stand::new();
    let marks = marked(&mut stand);
    let mut dispatcher = stand.dispatcher(|_| {});
    let mut run = Box::pin(dispatcher.run(Until::Stopped));
    assert!(stand.clock.run_for(SECOND * 10, run.as_mut()).is_none());
    let idle = marks.load(Ordering::Relaxed);
    assert!((10..=40).contains(&idle), "{idle} marks");
}

#[test]
fn marks_are_left_while_every_place_is_taken_by_a_request_that_takes_long() {
    let mut stand = Stand::new();
    let marks = marked(&mut stand);
    stand.desire("icfg_1", 4, "ready");
    stand
        .vercel
        .replies((0..4).map(|_| Reply::status(200).after(SECOND * 30)));
    let mut dispatcher = stand.dispatcher(|_| {});
    let mut run = Box::pin(dispatcher.run(Until::Stopped));
    assert!(stand.clock.run_for(SECOND, run.as_mut()).is_none());
    let (before, claims) = (marks.load(Ordering::Relaxed), stand.state.claims().len());
    assert!(stand.clock.run_for(SECOND * 10, run.as_mut()).is_none());
    assert_eq!(stand.state.claims().len(), claims);
    assert!(marks.load(Ordering::Relaxed) >= before + 10);
}

#[test]
fn no_mark_is_left_while_a_claim_hangs() {
    let mut stand = Stand::new();
    let marks = marked(&mut stand);
    stand.state.takes("claim", SECOND * 600);
    let mut dispatcher = stand.dispatcher(|_| {});
    let mut run = Box::pin(dispatcher.run(Until::Stopped));
    assert!(stand.clock.run_for(SECOND * 10, run.as_mut()).is_none());
    assert_eq!(marks.load(Ordering::Relaxed), 0);
    assert!(stand.clock.run_for(SECOND * 600, run.as_mut()).is_none());
    assert_eq!(marks.load(Ordering::Relaxed), 1, "one has got on");
}

#[test]
fn no_mark_is_left_while_outcomes_hang() {
    let mut stand = Stand::new();
    let marks = marked(&mut stand);
    stand.desire("icfg_1", 1, "ready");
    stand.state.takes("advance_all", SECOND * 600);
    let mut dispatcher = stand.dispatcher(|settings| settings.lease = LEASE * 60);
    let mut run = Box::pin(dispatcher.run(Until::Stopped));
    assert!(stand.clock.turn(run.as_mut()).is_none());
    let before = marks.load(Ordering::Relaxed);
    for _ in 0..5 {
        stand.signals.work.notify_one();
        assert!(stand.clock.run_for(SECOND * 2, run.as_mut()).is_none());
    }
    assert_eq!(marks.load(Ordering::Relaxed), before);
    assert!(stand.clock.run_for(SECOND * 600, run.as_mut()).is_none());
    assert!(marks.load(Ordering::Relaxed) > before);
}

#[test]
fn no_mark_is_left_while_a_pass_that_claims_for_dispatch_hangs() {
    let mut stand = Stand::new();
    let marks = marked(&mut stand);
    let mut dispatcher = stand.dispatcher(|_| {});
    let mut run = Box::pin(dispatcher.run(Until::Stopped));
    assert!(stand.clock.turn(run.as_mut()).is_none());
    let claiming = stand.signals.handover.take_up(START).expect("laid out");
    let before = marks.load(Ordering::Relaxed);
    assert!(stand.clock.run_for(SECOND * 10, run.as_mut()).is_none());
    assert_eq!(marks.load(Ordering::Relaxed), before);
    claiming.answer(Vec::new());
    assert!(stand.clock.run_for(SECOND * 2, run.as_mut()).is_none());
    assert!(marks.load(Ordering::Relaxed) > before);
}

#[test]
fn rows_of_several_claims_with_secrets_are_read_together_and_others_not_at_all() {
    let stand = Stand::new();
    for n in 0..3 {
        let secrets = format!(r#"{{"URL":"value {n}"}}"#);
        let resource = key("icfg_1", &format!("res_{n}"));
        stand.desires(&resource, &[(Field::Secrets, &secrets)]);
    }
    stand.desires(&key("icfg_1", "res_3"), &[(Field::Status, "ready")]);
    work(&stand, |_| {});
    assert_eq!(stand.source.fetched(), [3]);
    let secrets: Vec<_> = stand
        .vercel
        .sent()
        .into_iter()
        .flat_map(|sent| sent.secrets)
        .collect();
    assert_eq!(secrets, ["value 0", "value 1", "value 2"]);
}

#[test]
fn tokens_of_several_installations_are_read_together_and_each_once() {
    let stand = Stand::new();
    let ids = ["icfg_1", "icfg_2", "icfg_3"];
    for id in ids {
        stand
            .source
            .gives_token(id, Some(&format!("token of {id}")));
        stand.desire(id, 2, "ready");
    }
    work(&stand, |_| {});
    assert_eq!(stand.source.tokens_read_together(), [3]);
    assert_eq!(stand.source.tokens_read(), 0);
    let sent = stand.vercel.sent();
    assert_eq!(sent.len(), 6);
    for request in &sent {
        let id = request.token.trim_start_matches("token of ");
        assert!(
            request.what.starts_with(&format!("PATCH {id}/")),
            "{request:?}"
        );
    }
    // What is known needs nothing from the source.
    for id in ids {
        stand.desire(id, 2, "suspended");
    }
    work(&stand, |_| {});
    assert_eq!(stand.vercel.sent().len(), 12);
}

#[test]
fn one_installation_without_a_token_delays_none_that_is_claimed_with_it() {
    let stand = Stand::new();
    for (id, token) in [
        ("icfg_1", Some("token")),
        ("icfg_2", None),
        ("icfg_3", Some("broken\n")),
        ("icfg_4", Some("token")),
    ] {
        stand.source.gives_token(id, token);
        stand.desire(id, 1, "ready");
    }
    let mut dispatcher = stand.dispatcher(|_| {});
    stand.clock.run(dispatcher.run(until(0)));
    assert_eq!(stand.source.tokens_read_together(), [4]);
    // Those two are read by themselves, to say why they cannot be sent.
    assert_eq!(stand.source.tokens_read(), 2);
    let said = stand.vercel.said();
    assert_eq!(said, ["PATCH icfg_1/res_0", "PATCH icfg_4/res_0"]);
}

#[test]
fn tokens_that_could_not_be_read_together_are_read_by_themselves() {
    let stand = Stand::new();
    for id in ["icfg_1", "icfg_2"] {
        stand.desire(id, 1, "ready");
    }
    stand.source.fails(true);
    let mut dispatcher = stand.dispatcher(|_| {});
    stand.clock.run(dispatcher.run(until(0)));
    assert_eq!(stand.source.tokens_read_together(), [2]);
    assert_eq!(stand.source.tokens_read(), 2);
    assert_eq!(stand.vercel.said(), [] as [&str; 0]);
}

#[test]
fn a_token_whose_reading_fails_delays_none_that_is_read_with_it() {
    let stand = Stand::new();
    for id in ["icfg_1", "icfg_2", "icfg_3"] {
        stand.desire(id, 1, "ready");
    }
    stand.source.poisons_token("icfg_2");
    let mut dispatcher = stand.dispatcher(|_| {});
    stand.clock.run(dispatcher.run(until(0)));
    assert_eq!(stand.source.tokens_read_together(), [3]);
    let said = stand.vercel.said();
    assert_eq!(said, ["PATCH icfg_1/res_0", "PATCH icfg_3/res_0"]);
}

#[test]
fn the_row_of_a_single_claim_is_read_only_once_it_can_be_sent() {
    let stand = Stand::new();
    stand.source.gives_token("icfg_1", None);
    stand.desires(
        &key("icfg_1", "res_0"),
        &[(Field::Secrets, r#"{"URL":"a"}"#)],
    );
    let mut dispatcher = stand.dispatcher(|_| {});
    stand.clock.run(dispatcher.run(until(0)));
    assert_eq!(stand.source.tokens_read(), 1);
    assert_eq!(stand.source.fetched(), [] as [usize; 0]);
}

#[test]
fn a_row_that_has_moved_on_is_wished_to_be_read_again() {
    let stand = Stand::new();
    let resource = key("icfg_1", "res_0");
    stand.desires(&resource, &[(Field::Secrets, r#"{"URL":"old"}"#)]);
    stand
        .source
        .puts(&resource, &[(Field::Secrets, r#"{"URL":"new"}"#)]);
    let mut dispatcher = stand.dispatcher(|_| {});
    stand.clock.run(dispatcher.run(until(0)));
    let mut told = Box::pin(stand.signals.recheck.notified());
    assert!(stand.clock.turn(told.as_mut()).is_some());
    assert_eq!(stand.vercel.said(), [] as [&str; 0]);
    let wished = stand.clock.run(stand.state.memory.rechecks(9));
    assert_eq!(wished.expect("does not fail"), [resource]);
}

#[test]
fn what_is_delivered_wishes_no_row_to_be_read_again() {
    let stand = Stand::new();
    stand.desire("icfg_1", 1, "ready");
    work(&stand, |_| {});
    let mut told = Box::pin(stand.signals.recheck.notified());
    assert!(stand.clock.turn(told.as_mut()).is_none());
}

#[test]
fn a_pause_ends_with_the_probe_that_is_answered() {
    let stand = Stand::new();
    stand.desire("icfg_1", 1, "ready");
    stand.source.gives_token("icfg_1", None);
    let mut dispatcher = stand.dispatcher(|_| {});
    let mut run = Box::pin(dispatcher.run(Until::Stopped));
    assert!(stand.clock.run_for(SECOND, run.as_mut()).is_none());
    assert_eq!(stand.vercel.said(), [] as [&str; 0]);
    stand.source.gives_token("icfg_1", Some("fresh"));
    assert!(stand.clock.run_for(SECOND * 10, run.as_mut()).is_none());
    assert_eq!(stand.vercel.said(), ["PROBE icfg_1", "PATCH icfg_1/res_0"]);
    drop(run);
    assert!(dispatcher.probing.is_empty());
}

#[test]
fn probes_that_fail_are_part_of_an_outage() {
    let stand = Stand::new();
    for n in 0..8 {
        let id = format!("icfg_{n}");
        stand.source.gives_token(&id, None);
        stand.desire(&id, 1, "ready");
    }
    let mut dispatcher = stand.dispatcher(|_| {});
    stand.clock.run(dispatcher.run(until(1)));
    for n in 0..8 {
        stand
            .source
            .gives_token(&format!("icfg_{n}"), Some("fresh"));
    }
    stand.vercel.answers(&unreachable_answer(), 100);
    let mut run = Box::pin(dispatcher.run(Until::Stopped));
    assert!(stand.clock.run_for(SECOND * 9, run.as_mut()).is_none());
    drop(run);
    assert!(dispatcher.outage.since().is_some());
}
