//! What a look at what is due starts, and what it does not.

use std::pin::pin;

use crate::dispatch::fixture::{
    LEASE, Reply, SECOND, START, Stand, installation, key, lines_of, lost,
};
use crate::dispatch::{Settings, Until};
use crate::model::LeaseToken;
use crate::plan::outage::FAILURES_TO_BEGIN;
use crate::store::{PauseKind, Store as _};

use super::*;

/// Something that is told to look once; what it started has not been looked at.
struct Look<'a> {
    stand: &'a Stand,
    dispatcher: Dispatcher,
    running: Running<'static>,
}

impl<'a> Look<'a> {
    fn new(stand: &'a Stand, change: impl FnOnce(&mut Settings)) -> Self {
        Self {
            stand,
            dispatcher: stand.dispatcher(change),
            running: Running::new(),
        }
    }

    fn once(&mut self) -> Duration {
        self.stand
            .clock
            .run(self.dispatcher.fill(&mut self.running))
    }

    /// The API as a whole fails, and its next probe is due.
    fn outage(&mut self) {
        let stand = self.stand;
        for n in 0..FAILURES_TO_BEGIN {
            let key = key("icfg_o", &format!("res_{n}"));
            self.dispatcher
                .outage
                .failed(&key, 0, stand.clock.time(), 1.0);
        }
        stand.clock.pass(SECOND);
    }

    /// So many requests are out for an installation.
    fn in_flight(&mut self, installation_id: &str, count: u32) {
        let id = installation(installation_id);
        self.dispatcher.in_flight.insert(id, count);
    }

    fn lease(&mut self, token: i64, expires_at: Timestamp) -> tokio_util::sync::CancellationToken {
        let over = tokio_util::sync::CancellationToken::new();
        let lease = super::super::Lease {
            expires_at,
            over: over.clone(),
            allowance: None,
        };
        self.dispatcher.leases.insert(LeaseToken(token), lease);
        over
    }

    /// What was asked of the state so far.
    fn limits(&self) -> Vec<u32> {
        let claims = self.stand.state.claims();
        claims.iter().map(|request| request.limit).collect()
    }

    /// Lets what was started run on until nothing in it gets on by itself.
    fn turn(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        while let Some(Some(one)) = self.stand.clock.turn(pin!(self.running.next())) {
            ended.push(one);
        }
        ended
    }
}

fn pause(stand: &Stand, installation_id: &str) {
    let pause = Pause {
        installation_id: installation(installation_id),
        kind: PauseKind::Token,
        by: "reconciled".to_owned(),
        reason: "a test".to_owned(),
        since: stand.clock.time(),
        until: None,
        probe_at: Some(stand.clock.time()),
        probes_failed: 0,
    };
    let paused = stand.clock.run(stand.state.memory.pause(&pause));
    paused.expect("a state in memory does not fail");
}

fn work_on(dispatcher: &mut Dispatcher, stand: &Stand, seconds: u32) {
    let deadline = START.plus(SECOND * seconds);
    stand.clock.run(dispatcher.run(Until::Idle { deadline }));
}

#[test]
fn a_state_that_fails_is_told_once_and_so_is_its_end_and_it_is_tried_every_second() {
    let stand = Stand::new();
    stand.desire("icfg_1", 1, "ready");
    stand.state.fails("claim", 3);
    let lines = lines_of(|| work_on(&mut stand.dispatcher(|_| {}), &stand, 10));
    let told: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("state."))
        .collect();
    assert_eq!(
        told,
        [
            "ERROR state.outage_began error=cannot claim in the state: the disk is full: \
             Cannot use the state: nothing is sent until it works again",
            "WARN state.outage_ended: The state works again",
        ]
    );
    assert_eq!(stand.signals.metrics.state_failures.get(), 3);
    let sent = stand.vercel.sent();
    assert_eq!((sent.len(), sent[0].at), (1, START.plus(SECOND * 3)));
}

#[test]
fn probes_are_looked_for_once_a_second_however_often_there_is_a_look() {
    let stand = Stand::new();
    let mut look = Look::new(&stand, |_| {});
    for _ in 0..3 {
        look.once();
    }
    assert_eq!(stand.state.calls("probes_due"), 1);
    stand.clock.pass(SECOND);
    look.once();
    assert_eq!(stand.state.calls("probes_due"), 2);
}

#[test]
fn during_an_outage_probes_of_pauses_wait_until_nothing_else_can_find_out_whether_it_is_over() {
    let stand = Stand::new();
    let mut look = Look::new(&stand, |_| {});
    look.outage();
    pause(&stand, "icfg_1");
    pause(&stand, "icfg_2");
    look.once();
    let found = look.turn();
    assert_eq!(stand.state.calls("probes_due"), 0, "a claim comes first");
    assert_eq!(look.limits(), [1], "requests come singly");
    // It finds nothing but what is paused.
    for ended in found {
        let running = &look.running;
        look.dispatcher.take(running, ended);
    }
    look.once();
    assert_eq!(look.turn().len(), 1);
    assert_eq!(stand.vercel.said(), ["PROBE icfg_1"]);
}

#[test]
fn what_a_claim_found_before_an_outage_starts_no_probe() {
    let stand = Stand::new();
    pause(&stand, "icfg_1");
    let mut look = Look::new(&stand, |_| {});
    look.outage();
    look.dispatcher.claims.found = Some((START, Ok(2)));
    look.once();
    assert_eq!(stand.state.calls("probes_due"), 0);
}

#[test]
fn a_claim_that_found_nothing_starts_no_probe_while_the_api_answers() {
    let stand = Stand::new();
    let mut look = Look::new(&stand, |_| {});
    look.dispatcher.probes_looked_for = Some(START);
    look.dispatcher.claims.found = Some((START, Ok(0)));
    look.once();
    assert_eq!(stand.state.calls("probes_due"), 0);
}

#[test]
fn at_most_four_probes_are_out_and_none_twice_for_an_installation() {
    let stand = Stand::new();
    for n in 0..3 {
        pause(&stand, &format!("icfg_{n}"));
    }
    let mut look = Look::new(&stand, |_| {});
    look.once();
    look.turn();
    assert_eq!(stand.vercel.said().len(), 3);
    // They are out still, and due still; three more installations are paused.
    for n in 3..6 {
        pause(&stand, &format!("icfg_{n}"));
    }
    stand.clock.pass(SECOND);
    look.once();
    look.turn();
    let said = stand.vercel.said().split_off(3);
    assert_eq!(said, ["PROBE icfg_3"], "there is one place more");
    stand.clock.pass(SECOND);
    look.once();
    assert_eq!(stand.state.calls("probes_due"), 2, "and then there is none");
}

#[test]
fn a_probe_that_another_process_makes_is_not_made_here() {
    let stand = Stand::new();
    pause(&stand, "icfg_1");
    stand
        .signals
        .probes_elsewhere
        .store(true, Ordering::Relaxed);
    let mut look = Look::new(&stand, |_| {});
    look.once();
    look.turn();
    assert_eq!(stand.vercel.said(), [] as [&str; 0]);
}

#[test]
fn a_delivery_is_ended_when_its_lease_is_over_and_not_a_moment_before() {
    let stand = Stand::new();
    let mut look = Look::new(&stand, |_| {});
    let moment = Duration::from_millis(1);
    let first = look.lease(1, START.plus(LEASE));
    let second = look.lease(2, START.plus(LEASE).plus(moment));
    stand.clock.pass(LEASE - moment);
    look.once();
    look.turn();
    assert!(!first.is_cancelled() && !second.is_cancelled());
    assert_eq!(look.limits(), [4], "meanwhile more is claimed");
    look.dispatcher.claims.asked = None;
    stand.clock.pass(moment);
    assert_eq!(look.once(), LOOK_AGAIN);
    look.turn();
    assert!(first.is_cancelled() && !second.is_cancelled());
    assert_eq!(look.limits(), [4], "nothing is claimed before it has ended");
}

#[test]
fn a_delivery_whose_lease_is_over_is_ended_before_its_entry_is_claimed_again() {
    let stand = Stand::new();
    stand.desire("icfg_1", 1, "ready");
    stand
        .vercel
        .replies([Reply::status(200).after(SECOND * 86_400)]);
    let mut dispatcher = stand.dispatcher(|_| {});
    let deadline = START.plus(SECOND * 7200);
    let mut run = pin!(dispatcher.run(Until::Idle { deadline }));
    assert!(stand.clock.turn(run.as_mut()).is_none());
    stand.clock.set(START.plus(SECOND * 3600));
    assert!(stand.clock.run_for(SECOND * 200, run.as_mut()).is_some());
    assert_eq!(stand.vercel.out_max(), 1, "two were out at once");
    let outcomes = stand.clock.run(stand.state.memory.attempts());
    assert!(stand.is_settled(&key("icfg_1", "res_0")), "{outcomes:?}");
    assert!(stand.vercel.said().len() > 1);
}

#[test]
fn one_claim_is_made_at_a_time() {
    let stand = Stand::new();
    stand.desire("icfg_1", 9, "ready");
    let mut look = Look::new(&stand, |_| {});
    look.once();
    assert_eq!(look.dispatcher.claims.asked, Some((4, START)));
    assert_eq!(look.once(), LOOK_AGAIN);
    assert_eq!(look.turn().len(), 1);
    assert_eq!(look.limits(), [4]);
}

/// What is asked for at once after a claim for four places, during which nine requests were answered.
fn claims_on(desired: usize, change: impl FnOnce(&mut Look<'_>)) -> Vec<u32> {
    let stand = Stand::new();
    stand.desire("icfg_1", desired, "ready");
    let mut look = Look::new(&stand, |_| {});
    look.once();
    (0..9).for_each(|_| look.dispatcher.claims.answers.add());
    let found = look.turn();
    change(&mut look);
    for ended in found {
        look.dispatcher.take(&look.running, ended);
    }
    look.turn();
    look.limits()
}

#[test]
fn claiming_goes_on_at_once_after_a_claim_that_found_all_that_it_asked_for() {
    assert_eq!(claims_on(20, |_| {}), [4, 9]);
    assert_eq!(claims_on(3, |_| {}), [4], "it found three");
}

#[test]
fn claiming_does_not_go_on_when_nothing_more_is_to_be_sent() {
    let stopped = claims_on(20, |look| look.dispatcher.signals.stop.cancel());
    let over = claims_on(20, |look| look.dispatcher.is_over = true);
    assert_eq!((stopped, over), (vec![4], vec![4]));
}

#[test]
fn claiming_does_not_go_on_before_deliveries_whose_lease_is_over_have_ended() {
    let claimed = claims_on(20, |look| {
        look.lease(99, START);
    });
    assert_eq!(claimed, [4]);
}

#[test]
fn what_was_answered_meanwhile_is_recorded_as_soon_as_the_batch_before_is() {
    let stand = Stand::new();
    stand.desire("icfg_1", 2, "ready");
    let mut look = Look::new(&stand, |_| {});
    look.once();
    // A batch is being recorded while these are claimed, their token is read, and they are sent and answered.
    look.dispatcher.is_recording = true;
    for _ in 0..3 {
        for ended in look.turn() {
            look.dispatcher.take(&look.running, ended);
        }
    }
    assert_eq!(look.dispatcher.unrecorded.len(), 2);
    look.dispatcher.record(&look.running);
    assert!(look.turn().is_empty(), "one batch at a time");
    let ended = Ended::Record(Vec::new(), Vec::new());
    look.dispatcher.take(&look.running, ended);
    let ended = look.turn();
    assert!(matches!(&ended[..], [Ended::Record(both, _)] if both.len() == 2));
}

#[test]
fn nothing_is_claimed_while_every_place_is_taken() {
    let stand = Stand::new();
    stand.desire("icfg_1", 9, "ready");
    let mut look = Look::new(&stand, |_| {});
    look.in_flight("icfg_1", 4);
    assert_eq!(look.once(), LOOK_AGAIN);
    assert!(look.running.is_empty());
    look.in_flight("icfg_1", 1);
    look.in_flight("icfg_2", 2);
    look.once();
    look.turn();
    assert_eq!(look.limits(), [1]);
}

#[test]
fn what_waits_to_be_recorded_and_what_was_answered_meanwhile_count() {
    let stand = Stand::new();
    let mut look = Look::new(&stand, |_| {});
    (0..3).for_each(|_| look.dispatcher.claims.answers.add());
    look.dispatcher.claims.answers.claim_ends();
    look.once();
    look.turn();
    assert_eq!(look.limits(), [7]);
    assert_eq!(look.dispatcher.room(START), 7);
    look.dispatcher.probing.insert(installation("icfg_1"), ());
    assert_eq!(look.dispatcher.room(START), 7);
    look.outage();
    let due = stand.clock.time();
    assert_eq!(look.dispatcher.room(due), 0, "the probe is the one request");
    look.dispatcher.probing.clear();
    assert_eq!(look.dispatcher.room(due), 1);
    look.in_flight("icfg_1", 1);
    assert_eq!(look.dispatcher.room(due), 0, "requests come singly");
}

#[test]
fn while_an_outage_lasts_its_next_probe_is_waited_for() {
    let stand = Stand::new();
    let mut look = Look::new(&stand, |_| {});
    look.outage();
    look.in_flight("icfg_1", 1);
    // Due already, it would be looked for at once.
    stand.desire("icfg_1", 1, "ready");
    look.dispatcher
        .outage
        .failed(&key("icfg_o", "res_0"), 0, stand.clock.time(), 1.0);
    assert_eq!(look.once(), SECOND);
    assert_eq!(stand.state.calls("next_due"), 1);
}

#[test]
fn what_becomes_due_is_sent_when_it_is() {
    let stand = Stand::new();
    stand.desire("icfg_1", 1, "ready");
    stand.vercel.answers(&lost(), 1);
    let mut dispatcher = stand.dispatcher(|settings| {
        settings.retry.backoff.initial = Duration::from_millis(700);
    });
    work_on(&mut dispatcher, &stand, 2);
    let at: Vec<_> = stand.vercel.sent().iter().map(|sent| sent.at).collect();
    assert_eq!(at, [START, START.plus(Duration::from_millis(700))]);
}

#[test]
fn what_a_claim_is_to_go_by_is_what_this_process_has_and_may() {
    let stand = Stand::new();
    let mut look = Look::new(&stand, |settings| {
        settings.max_in_flight_per_installation = 3;
        settings.requests_per_minute_per_installation = Some(24);
    });
    look.in_flight("icfg_1", 2);
    look.dispatcher.last_served = Some(installation("icfg_1"));
    // Two at once are allowed: the first installation has used them up, the second one of them.
    for id in ["icfg_1", "icfg_1", "icfg_2"] {
        look.dispatcher.pace.asks(&installation(id), START);
    }
    let request = look.dispatcher.request(START, 2);
    assert_eq!(
        (request.now, request.lease_expires_at),
        (START, START.plus(LEASE))
    );
    assert_eq!((request.owner.as_str(), request.limit), ("test", 2));
    assert_eq!(request.tokens.len(), 2);
    assert_ne!(request.tokens[0], request.tokens[1]);
    assert_eq!(request.per_installation, 2, "as many as may leave at once");
    assert_eq!(request.in_flight, look.dispatcher.in_flight);
    assert_eq!(request.after, Some(installation("icfg_1")));
    assert_eq!(request.excluded, [installation("icfg_1")]);
    assert_eq!(request.rate, look.dispatcher.pace.rate());
    assert_eq!(request.used, look.dispatcher.pace.used(START));
    assert_eq!(request.used.len(), 2);
    assert_eq!(request.late_apply, SECOND * 60);
}

#[test]
fn free_places_are_laid_out_once_nothing_is_due() {
    let stand = Stand::new();
    let mut look = Look::new(&stand, |_| {});
    look.in_flight("icfg_1", 1);
    look.dispatcher.claims.found = Some((START, Ok(0)));
    look.once();
    let claiming = stand.signals.handover.take_up(START.plus(SECOND));
    let request = claiming.expect("places are laid out").request;
    assert_eq!((request.limit, request.tokens.len()), (3, 3));
    assert_eq!(request.lease_expires_at, START.plus(SECOND).plus(LEASE));
    assert_eq!(request.excluded, [], "without a rate all may be claimed");
    assert!(!look.dispatcher.withdraw(), "a pass is claiming for it");
    assert_eq!(look.once(), LOOK_AGAIN);
    assert_eq!(
        stand.state.claims().len(),
        0,
        "nor is anything else claimed"
    );
}

#[test]
fn what_is_laid_out_leaves_out_those_whose_allowance_may_be_used_up_by_then() {
    let stand = Stand::new();
    let mut look = Look::new(&stand, |settings| {
        settings.requests_per_minute_per_installation = Some(600);
    });
    look.in_flight("icfg_1", 1);
    look.dispatcher.lay_out();
    let claiming = stand.signals.handover.take_up(START);
    let request = claiming.expect("places are laid out").request;
    assert_eq!(request.excluded, [installation("icfg_1")]);
}

#[test]
fn nothing_is_laid_out_without_a_place_nor_during_an_outage() {
    let stand = Stand::new();
    let mut look = Look::new(&stand, |_| {});
    look.in_flight("icfg_1", 4);
    look.dispatcher.lay_out();
    assert!(look.dispatcher.offered.is_none());
    look.dispatcher.in_flight.clear();
    look.outage();
    assert_eq!(look.dispatcher.room(stand.clock.time()), 1);
    look.dispatcher.lay_out();
    assert!(look.dispatcher.offered.is_none());
    assert!(stand.signals.handover.take_up(START).is_none());
}

#[test]
fn what_is_laid_out_can_be_taken_back_until_a_pass_takes_it_up() {
    let stand = Stand::new();
    let mut look = Look::new(&stand, |_| {});
    assert!(look.dispatcher.withdraw(), "nothing is laid out");
    look.dispatcher.lay_out();
    assert!(look.dispatcher.withdraw());
    assert!(look.dispatcher.offered.is_none());
    assert!(stand.signals.handover.take_up(START).is_none());
    look.dispatcher.lay_out();
    let claiming = stand.signals.handover.take_up(START);
    assert!(claiming.is_some() && !look.dispatcher.withdraw());
    assert!(
        look.dispatcher.offered.is_some(),
        "what it claims is awaited"
    );
}

#[test]
fn what_a_pass_has_claimed_for_dispatch_leaves_before_the_state_is_asked_for_anything() {
    let stand = Stand::new();
    let mut dispatcher = stand.dispatcher(|_| {});
    let mut run = pin!(dispatcher.run(Until::Stopped));
    assert!(stand.clock.turn(run.as_mut()).is_none());
    let claiming = stand.signals.handover.take_up(START).expect("laid out");
    stand.desire("icfg_1", 1, "ready");
    let claimed = stand.clock.run(stand.state.memory.claim(&claiming.request));
    claiming.answer(claimed.expect("a state in memory does not fail"));
    // It is time to look for probes, and the state does not answer soon.
    stand.clock.set(START.plus(SECOND));
    stand.state.takes("probes_due", SECOND * 5);
    assert!(stand.clock.turn(run.as_mut()).is_none());
    assert_eq!(stand.vercel.said(), ["PATCH icfg_1/res_0"]);
}

#[test]
fn what_a_pass_has_claimed_for_dispatch_is_sent_at_once() {
    let stand = Stand::new();
    let mut dispatcher = stand.dispatcher(|_| {});
    let stop = stand.signals.stop.clone();
    let mut run = pin!(dispatcher.run(Until::Stopped));
    assert!(stand.clock.turn(run.as_mut()).is_none());
    let claims = stand.state.claims().len();
    let claiming = stand.signals.handover.take_up(START).expect("laid out");
    stand.desire("icfg_1", 1, "ready");
    let claimed = stand.clock.run(stand.state.memory.claim(&claiming.request));
    claiming.answer(claimed.expect("a state in memory does not fail"));
    assert!(stand.clock.turn(run.as_mut()).is_none());
    assert_eq!(stand.vercel.said(), ["PATCH icfg_1/res_0"]);
    assert!(stand.is_settled(&key("icfg_1", "res_0")));
    assert!(
        stand.state.claims().len() > claims,
        "the next are looked for"
    );
    stop.cancel();
    assert!(stand.clock.turn(run.as_mut()).is_some());
}
