//! Deliveries that wait for a place, and those that are to end.

use super::*;

#[test]
fn a_claim_without_a_place_waits_for_one() {
    let stand = Stand::new();
    let claimed = status(&stand);
    let worker = stand.worker(|settings| settings.max_in_flight = 1);
    let place = stand.clock.run(worker.places.take());
    let allowance = worker.pace.hold(&claimed.key.installation_id);
    let over = CancellationToken::new();
    let delivery = Arc::clone(&worker).deliver(claimed, Supply::None, allowance, over);
    let mut delivery = pin!(delivery);
    assert!(stand.clock.turn(delivery.as_mut()).is_none());
    assert_eq!(stand.vercel.said(), [] as [&str; 0]);
    drop(place);
    assert!(stand.clock.turn(delivery.as_mut()).is_some());
    assert_eq!(stand.vercel.said().len(), 1);
}

#[test]
fn a_claim_without_a_place_is_given_back_when_it_is_to_end() {
    for stops in [true, false] {
        let stand = Stand::new();
        let claimed = status(&stand);
        let worker = stand.worker(|settings| settings.max_in_flight = 1);
        let _place = stand.clock.run(worker.places.take());
        let allowance = worker.pace.hold(&claimed.key.installation_id);
        let over = CancellationToken::new();
        let ends = over.clone();
        let delivery = Arc::clone(&worker).deliver(claimed, Supply::None, allowance, over);
        let mut delivery = pin!(delivery);
        assert!(stand.clock.turn(delivery.as_mut()).is_none());
        match stops {
            true => stand.signals.stop.cancel(),
            false => ends.cancel(),
        }
        let answered = stand.clock.turn(delivery.as_mut()).expect("it ends");
        assert_eq!(*outcome(&answered), Outcome::Released);
    }
}

#[test]
fn a_request_that_is_out_when_its_lease_is_over_counts_as_lost() {
    let stand = Stand::new();
    let claimed = status(&stand);
    stand
        .vercel
        .replies([Reply::status(200).after(SECOND * 600)]);
    let worker = stand.worker(|_| {});
    let allowance = worker.pace.hold(&claimed.key.installation_id);
    let over = CancellationToken::new();
    let ends = over.clone();
    let mut delivery = pin!(worker.deliver(claimed, Supply::None, allowance, over));
    assert!(stand.clock.turn(delivery.as_mut()).is_none());
    // To stop is not to break off.
    stand.signals.stop.cancel();
    assert!(stand.clock.turn(delivery.as_mut()).is_none());
    ends.cancel();
    let answered = stand.clock.turn(delivery.as_mut()).expect("it ends");
    assert_eq!(*outcome(&answered), Outcome::Lost);
    assert!(answered.attempted.problem.is_some());
}

#[test]
fn other_settings_leave_the_places_that_are_taken() {
    let stand = Stand::new();
    let worker = stand.worker(|settings| settings.max_in_flight = 1);
    let place = stand.clock.run(worker.places.take());
    let mut two = settings();
    two.max_in_flight = 2;
    let later = worker.configured(two);
    let other = stand.clock.run(later.places.take());
    assert!(place.is_some() && other.is_some());
    let mut third = pin!(later.places.take());
    assert!(stand.clock.turn(third.as_mut()).is_none());
}
