//! How many entries dispatch may claim: what fills the places, a little ahead of them, and no more than can be written down.

use crate::model::Timestamp;

use super::outage::Outage;

/// How many answers per place may wait to be recorded before nothing more is claimed.
const UNRECORDED_PER_PLACE_MAX: usize = 4;
/// How many entries per place may be claimed beyond the places, so that a commit that takes long does not leave them empty.
const AHEAD_PER_PLACE_MAX: usize = 3;

/// How many claims back the answers are remembered.
const CLAIMS_REMEMBERED: usize = 8;

/// How many requests are answered while a claim is made.
///
/// Requests that left together are answered together, and nothing is for a while then: the most that came during one of the last claims
/// counts, not the last one alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answers {
    /// Since the last claim began.
    since: usize,
    /// During the last claims, each in the place of the oldest.
    during: [usize; CLAIMS_REMEMBERED],
    next: usize,
}

impl Answers {
    /// A request was answered.
    pub fn add(&mut self) {
        self.since = self.since.saturating_add(1);
    }

    /// A claim begins.
    pub fn claim_begins(&mut self) {
        self.since = 0;
    }

    /// The claim has ended.
    pub fn claim_ends(&mut self) {
        self.during[self.next] = self.since;
        self.next = (self.next + 1) % CLAIMS_REMEMBERED;
    }

    /// The most during one of the last claims.
    #[must_use]
    pub fn during_a_claim(&self) -> usize {
        self.during.into_iter().max().unwrap_or_default()
    }
}

/// What dispatch has under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// How many requests may be out at once.
    pub places: usize,
    /// Entries that are claimed and not answered.
    pub claimed: usize,
    /// Requests that are answered while a claim is made ([`Answers::during_a_claim`]). As many are claimed beyond the places, so that a
    /// place is taken again while a claim is being committed.
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
    fn the_most_that_were_answered_during_one_of_the_last_eight_claims_count() {
        let mut answers = Answers::default();
        let mut claim = |count: usize| {
            // What comes between two claims is of neither.
            answers.add();
            answers.claim_begins();
            (0..count).for_each(|_| answers.add());
            answers.claim_ends();
            answers.during_a_claim()
        };
        assert_eq!([3, 0, 1].map(&mut claim), [3, 3, 3]);
        assert_eq!([9, 0, 0, 0, 2, 0, 0, 0].map(&mut claim), [9; 8]);
        assert_eq!([0, 0, 0, 0, 0].map(claim), [2, 2, 2, 2, 0]);
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
            outage.failed(&key, 0, NOW, 1.0);
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
