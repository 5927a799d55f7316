//! What a probe asks, and what becomes of its pause.

use crate::dispatch::fixture::{SECOND, START, Stand, answer, installation, lost};
use crate::store::Store as _;

use super::super::tests::remember;
use super::*;

fn pause(stand: &Stand, kind: PauseKind, probes_failed: u32) -> Pause {
    let pause = Pause {
        installation_id: installation("icfg_1"),
        kind,
        by: "reconciled".to_owned(),
        reason: "a test".to_owned(),
        since: START,
        until: None,
        probe_at: Some(START),
        probes_failed,
    };
    // A failed probe prolongs a pause that is there.
    for probes_failed in [0, probes_failed] {
        let pause = Pause {
            probes_failed,
            ..pause.clone()
        };
        let paused = stand.clock.run(stand.state.memory.pause(&pause));
        paused.expect("a state in memory does not fail");
    }
    pause
}

/// The pauses whose probe is due within an hour, by when it is.
fn pauses(stand: &Stand) -> Vec<Pause> {
    let later = stand.clock.time().plus(SECOND * 1000);
    let due = stand.clock.run(stand.state.memory.probes_due(later, 9));
    due.expect("a state in memory does not fail")
}

fn probe(stand: &Stand, pause: Pause) -> Delivery {
    stand.clock.run(stand.worker(|_| {}).probe(pause))
}

#[test]
fn a_probe_that_is_answered_ends_the_pause() {
    let stand = Stand::new();
    let pause = pause(&stand, PauseKind::Gone, 3);
    let delivery = probe(&stand, pause);
    assert_eq!(delivery.outcome(), "resumed");
    assert_eq!(delivery.key.installation_id, installation("icfg_1"));
    assert!(delivery.is_probe() && delivery.reached == Reached::Answered);
    assert_eq!(pauses(&stand), []);
    assert_eq!(stand.vercel.said(), ["PROBE icfg_1"]);
}

#[test]
fn a_probe_that_fails_is_made_again_after_twice_the_wait() {
    let cases = [
        (answer(404), Reached::Answered),
        (answer(401), Reached::Answered),
        (answer(500), Reached::Failed),
        (lost(), Reached::Failed),
    ];
    for (reply, reached) in cases {
        let stand = Stand::new();
        let paused = pause(&stand, PauseKind::Token, 1);
        stand.vercel.answers(&reply, 1);
        stand.clock.pass(SECOND);
        let delivery = probe(&stand, paused);
        assert_eq!(delivery.outcome(), "still_paused", "{reply:?}");
        assert_eq!(delivery.reached, reached, "{reply:?}");
        let expected = Pause {
            probe_at: Some(START.plus(SECOND).plus(SECOND * 20)),
            probes_failed: 2,
            ..pause(&Stand::new(), PauseKind::Token, 1)
        };
        assert_eq!(pauses(&stand), [expected]);
    }
}

#[test]
fn a_pause_is_first_probed_after_five_seconds() {
    let stand = Stand::new();
    let worker = stand.worker(|_| {});
    let pause = worker.pause(&installation("icfg_1"), PauseKind::Gone, "gone", 0);
    assert_eq!(pause.probe_at, Some(START.plus(SECOND * 5)));
    assert_eq!(
        (pause.by.as_str(), pause.reason.as_str()),
        ("reconciled", "gone")
    );
    assert_eq!(
        (pause.kind, pause.since, pause.until),
        (PauseKind::Gone, START, None)
    );
    assert_eq!(pause.probes_failed, 0);
    let longest = worker.pause(&installation("icfg_1"), PauseKind::Gone, "gone", 40);
    assert_eq!(longest.probe_at, Some(START.plus(SECOND * 900)));
}

#[test]
fn a_probe_reads_a_refused_token_again_and_asks_once_more_if_it_has_changed() {
    let stand = Stand::new();
    let paused = pause(&stand, PauseKind::Token, 0);
    let worker = stand.worker(|settings| {
        settings.requests_per_minute_per_installation = Some(60);
    });
    // The old token is in memory.
    remember(&stand, &worker);
    stand.source.gives_token("icfg_1", Some("fresh"));
    stand.vercel.answers(&answer(401), 1);
    let delivery = stand.clock.run(Arc::clone(&worker).probe(paused));
    assert_eq!(delivery.outcome(), "resumed");
    let tokens: Vec<_> = stand
        .vercel
        .sent()
        .into_iter()
        .map(|sent| sent.token)
        .collect();
    assert_eq!(tokens, ["token", "fresh"]);
    let used = worker.pace.used(START);
    assert_eq!(
        used,
        [(installation("icfg_1"), START.plus(SECOND * 2))].into()
    );
}

#[test]
fn a_probe_reads_no_token_again_that_was_not_refused() {
    let stand = Stand::new();
    let paused = pause(&stand, PauseKind::Token, 0);
    let worker = stand.worker(|_| {});
    remember(&stand, &worker);
    stand.source.gives_token("icfg_1", Some("fresh"));
    stand.vercel.answers(&answer(500), 1);
    let delivery = stand.clock.run(worker.probe(paused));
    assert_eq!(delivery.outcome(), "still_paused");
    assert_eq!(
        (stand.vercel.said().len(), stand.source.tokens_read()),
        (1, 1)
    );
}

#[test]
fn a_probe_without_a_token_asks_nothing() {
    let stand = Stand::new();
    let paused = pause(&stand, PauseKind::Token, 0);
    stand.source.gives_token("icfg_1", None);
    let delivery = probe(&stand, paused);
    assert_eq!(delivery.outcome(), "still_paused");
    assert_eq!(delivery.reached, Reached::NotTried);
    assert_eq!(stand.vercel.said(), [] as [&str; 0]);
}

#[test]
fn a_probe_whose_end_cannot_be_written_says_so() {
    for (operation, reply) in [("resume", 200), ("pause", 500)] {
        let stand = Stand::new();
        let paused = pause(&stand, PauseKind::Token, 0);
        stand.vercel.answers(&answer(reply), 1);
        stand.state.fails(operation, 1);
        assert_eq!(probe(&stand, paused).outcome(), "unrecorded");
    }
}

#[test]
fn a_probe_that_fails_says_nothing_of_a_pause_that_began_after_the_one_it_was_made_for() {
    let stand = Stand::new();
    let first = pause(&stand, PauseKind::Token, 0);
    let resumed = stand
        .state
        .memory
        .resume(&first.installation_id, PauseKind::Token, START);
    assert!(stand.clock.run(resumed).expect("does not fail"));
    let second = Pause {
        since: START.plus(SECOND),
        probe_at: Some(START.plus(SECOND * 6)),
        ..first.clone()
    };
    let paused = stand.clock.run(stand.state.memory.pause(&second));
    paused.expect("a state in memory does not fail");
    stand.clock.pass(SECOND * 2);
    stand.vercel.answers(&answer(401), 1);
    probe(&stand, first);
    assert_eq!(pauses(&stand), [second]);
}
