//! How many entries dispatch may claim: what fills the places, a little ahead of them, and no more than can be written down.

use crate::model::Timestamp;

use super::outage::Outage;

/// How many answers per place may wait to be recorded before nothing more is claimed.
const UNRECORDED_PER_PLACE_MAX: usize = 4;
/// How many entries per place may be claimed beyond the places, so that a commit that takes long does not leave them empty.
const AHEAD_PER_PLACE_MAX: usize = 3;

/// What dispatch has under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// How many requests may be out at once.
    pub places: usize,
    /// Entries that are claimed and not answered.
    pub claimed: usize,
    /// Requests that were answered while the last claim was made. As many are claimed beyond the places, so that a place is taken
    /// again while a claim is being committed.
    pub answered: usize,
    /// Answers that wait to be recorded.
    pub unrecorded: usize,
    /// Probes of paused installations that are out.
    pub probing: usize,
}

impl Load {
    /// How many entries are to be claimed at `now`.
    #[must_use]
    pub fn room(self, outage: &Outage, now: Timestamp) -> usize {
        let ahead = self.answered.min(self.places * AHEAD_PER_PLACE_MAX);
        let free = (self.places + ahead).saturating_sub(self.claimed);
        let recordable = (self.places * UNRECORDED_PER_PLACE_MAX).saturating_sub(self.unrecorded);
        // A claim for each single place would be a transaction for each delivery.
        let wanted = if free > ahead / 2 { free } else { 0 };
        outage.allowance(now, self.claimed + self.probing, wanted.min(recordable))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::model::ResourceKey;
    use crate::plan::outage::FAILURES_TO_BEGIN;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);
    /// Four places, and nothing under way.
    const IDLE: Load = Load {
        places: 4,
        claimed: 0,
        answered: 0,
        unrecorded: 0,
        probing: 0,
    };

    fn room(load: Load) -> usize {
        load.room(&Outage::new(Duration::from_secs(1)), NOW)
    }

    #[test]
    fn free_places_are_claimed_for_and_none_beyond_them_while_nothing_was_answered() {
        let rooms = [0, 1, 3, 4, 5].map(|claimed| room(Load { claimed, ..IDLE }));
        assert_eq!(rooms, [4, 3, 1, 0, 0]);
    }

    #[test]
    fn as_many_are_claimed_ahead_as_were_answered_during_a_claim_and_three_for_each_place_at_most()
    {
        let rooms = [0, 1, 3, 11, 12, 13, 1000].map(|answered| room(Load { answered, ..IDLE }));
        assert_eq!(rooms, [4, 5, 7, 15, 16, 16, 16]);
    }

    #[test]
    fn nothing_is_claimed_until_more_than_half_of_what_is_claimed_ahead_can_be() {
        // Four places and six ahead.
        let rooms = [5, 6, 7, 8, 9].map(|claimed| {
            room(Load {
                claimed,
                answered: 6,
                ..IDLE
            })
        });
        assert_eq!(rooms, [5, 4, 0, 0, 0]);
        // Of an odd number half is less: three are more than half of five.
        let rooms = [6, 7].map(|claimed| {
            room(Load {
                claimed,
                answered: 5,
                ..IDLE
            })
        });
        assert_eq!(rooms, [3, 0]);
    }

    #[test]
    fn no_more_is_claimed_than_four_answers_for_each_place_can_wait_to_be_recorded() {
        let rooms = [0, 12, 13, 15, 16, 17].map(|unrecorded| room(Load { unrecorded, ..IDLE }));
        assert_eq!(rooms, [4, 4, 3, 1, 0, 0]);
        // The little that can be recorded is claimed, also when it is less than half of what is claimed ahead.
        let ahead = Load {
            answered: 12,
            unrecorded: 15,
            ..IDLE
        };
        assert_eq!(room(ahead), 1);
    }

    #[test]
    fn probes_take_no_room_but_during_an_outage() {
        assert_eq!(room(Load { probing: 4, ..IDLE }), 4);
    }

    #[test]
    fn during_an_outage_one_is_claimed_when_a_probe_is_due_and_nothing_is_out() {
        let mut outage = Outage::new(Duration::from_secs(1));
        for n in 0..FAILURES_TO_BEGIN {
            let key = ResourceKey::new("icfg_1", &format!("res_{n}")).expect("two ids");
            outage.failed(&key, NOW, 1.0);
        }
        assert_eq!(IDLE.room(&outage, NOW), 0);
        let due = outage.next_probe_at().expect("an outage is on");
        let ahead = Load {
            answered: 9,
            ..IDLE
        };
        assert_eq!((IDLE.room(&outage, due), ahead.room(&outage, due)), (1, 1));
        let claimed = Load { claimed: 1, ..IDLE };
        let probing = Load { probing: 1, ..IDLE };
        assert_eq!(
            (claimed.room(&outage, due), probing.room(&outage, due)),
            (0, 0)
        );
        let as_many = Load {
            claimed: 1,
            probing: 1,
            ..IDLE
        };
        assert_eq!(as_many.room(&outage, due), 0);
    }
}
