//! How outcomes are written down.

use crate::dispatch::fixture::{LEASE, START, Stand, answer, installation, key, settings};
use crate::model::EntryId;
use crate::store::Store as _;

use super::super::tests::{claim, deliver, resource, status};
use super::*;

fn record_all(stand: &Stand, batch: Vec<Answered>) -> (Vec<Delivery>, Vec<Answered>) {
    let worker = stand.worker(|_| {});
    stand.clock.run(worker.record_all(batch))
}

#[test]
fn outcomes_are_recorded_together_but_those_that_pause() {
    let stand = Stand::new();
    stand.desire("icfg_1", 1, "ready");
    let good = deliver(&stand, claim(&stand));
    stand.clock.pass(Duration::from_millis(1));
    stand.source.gives_token("icfg_2", None);
    stand.desire("icfg_2", 1, "ready");
    let paused = deliver(&stand, claim(&stand));
    let (deliveries, alone) = record_all(&stand, vec![paused, good]);
    let keys = |n| key(&format!("icfg_{n}"), "res_0");
    assert_eq!((deliveries.len(), alone.len()), (1, 1));
    assert_eq!((&deliveries[0].key, alone[0].key()), (&keys(1), &keys(2)));
    assert_eq!(deliveries[0].outcome(), "acknowledged");
    assert_eq!(stand.state.recorded(), [1]);
    let worker = stand.worker(|_| {});
    let delivery = stand
        .clock
        .run(worker.record_one(alone.into_iter().next().expect("one")));
    assert_eq!(delivery.outcome(), "paused");
    let id = installation("icfg_2");
    let blocked = stand.state.memory.is_blocked(&id, START);
    assert!(stand.clock.run(blocked).expect("does not fail"));
}

#[test]
fn what_could_not_be_recorded_together_is_given_back_whole() {
    let stand = Stand::new();
    stand.desire("icfg_1", 1, "ready");
    let good = deliver(&stand, claim(&stand));
    stand.state.fails("advance_all", 1);
    let (deliveries, alone) = record_all(&stand, vec![good]);
    assert_eq!((deliveries.len(), alone.len()), (0, 1));
}

#[test]
fn an_outcome_is_written_again_until_its_lease_ends() {
    for (failures, recorded) in [(120, true), (121, false)] {
        let stand = Stand::new();
        stand.desire("icfg_1", 1, "ready");
        let good = deliver(&stand, claim(&stand));
        stand.state.fails("advance", failures);
        let worker = stand.worker(|_| {});
        let delivery = stand.clock.run(worker.record_one(good));
        assert_eq!(
            delivery.outcome() == "acknowledged",
            recorded,
            "{}",
            delivery.outcome()
        );
        // Each half second, and for the last time when the lease has ended.
        assert_eq!(stand.clock.time(), START.plus(LEASE));
        assert_eq!(stand.state.calls("advance"), 121);
    }
}

#[test]
fn a_pause_that_cannot_be_written_does_not_keep_the_outcome_from_being_recorded() {
    let stand = Stand::new();
    stand.source.gives_token("icfg_1", None);
    stand.desire("icfg_1", 1, "ready");
    let paused = deliver(&stand, claim(&stand));
    stand.state.fails("pause", 1);
    let worker = stand.worker(|_| {});
    let delivery = stand.clock.run(worker.record_one(paused));
    assert_eq!(delivery.outcome(), "paused");
    assert!(
        stand
            .record(&key("icfg_1", "res_0"))
            .entry
            .expect("open")
            .lease
            .is_none()
    );
}

#[test]
fn what_is_recorded_is_what_the_attempt_came_to() {
    let stand = Stand::new();
    let claimed = status(&stand);
    let (entry_id, token) = (claimed.entry_id, claimed.token);
    stand.vercel.answers(&answer(429), 1);
    let answered = deliver(&stand, claimed);
    let worker = stand.worker(|_| {});
    let Answered { claimed, attempted } = &answered;
    let settlement = worker.settlement(claimed, attempted, 0.25);
    assert_eq!((settlement.entry_id, settlement.token), (entry_id, token));
    assert_ne!(settlement.entry_id, EntryId(0));
    assert_eq!(settlement.key, resource());
    assert_eq!(settlement.outcome, attempted.outcome);
    assert_eq!((settlement.now, settlement.jitter), (START, 0.25));
    assert_eq!(settlement.retry, settings().retry);
    assert_eq!(settlement.attempt, attempted.attempt);
    assert_eq!(settlement.limit_installation_until, attempted.limit_until);
    assert!(!settlement.recheck);
    let moved = Attempted::unsent(Outcome::SourceMoved, None);
    assert!(worker.settlement(claimed, &moved, 0.0).recheck);
}
