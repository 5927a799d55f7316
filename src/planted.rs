//! Protocol bugs that tests plant to prove that they would be caught.
//!
//! Each is a switch in the code that it breaks. Outside `cfg(test)` every switch is the constant `false`, so that none can reach
//! a build that runs anywhere; within, at most one is on, for the thread that planted it.

/// A bug of the protocol, by what the code does wrong when it is planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Bug {
    /// A claim records no doubt.
    NoDoubtMark,
    /// Doubt is recorded with the outcome, not before the request leaves.
    DoubtMarkedAfterSending,
    /// A 4xx clears the doubt of earlier attempts.
    DoubtClearedBy4xx,
    /// A 2xx settles by when it was answered, not by when it was sent.
    UncertaintyJudgedAtAnswer,
    /// A lost answer is not taken to be applicable late.
    LostNotLate,
    /// A lease that ended by itself, or with its holder, is not taken to be applicable late.
    ExpiredLeaseNotLate,
    /// What may be applied late is taken to be so for ten minutes longer.
    LateForTooLong,
    /// A second lost answer leaves the item confirmed.
    ConfirmationOutlivesLoss,
    /// A 502 or 504 is not taken to be applicable late.
    GatewayTakenForServer,
    /// A 500 or 503 is taken to prove that nothing changed.
    ServerErrorProvesNothing,
    /// What the diff sends leaves doubt out.
    DoubtNotSent,
    /// An entry is withdrawn when the source goes back, doubt or not.
    WithdrawnInDoubt,
    /// An outcome is recorded whoever holds the lease.
    LeaseTokenNotChecked,
    /// Every claim is given the same token.
    LeaseTokenReused,
    /// A request is sent however little is left of its lease.
    LeaseMayRunOut,
    /// An entry is claimed although it is in flight.
    TwoInFlight,
    /// The cursor is committed before the rows that it passes.
    CursorCommittedFirst,
    /// The poll starts after its cursor, not the overlap before it.
    OverlapIgnored,
    /// A poll leaves the rows of its overlap unread as soon as nothing newer has come, although transactions may still be open.
    CalmAtOnce,
    /// What a poll found unchanged counts as unchanged also after something else was decided on it.
    KnownForGood,
    /// A row that the poll before knew passes, whatever it says now.
    PassesUnread,
    /// The poll forgets that open transactions hold its cursor back.
    HorizonIgnored,
    /// A change found while a request was in flight makes no next entry.
    FollowupForgotten,
    /// An acknowledgement counts for the newer target, not for what was sent.
    NewerTargetAcknowledged,
    /// Secrets are sent partially although one was removed.
    PartialAfterRemoval,
    /// A secret in doubt that is no longer desired is forgotten.
    DoubtfulSecretForgotten,
    /// An accepted complete array adds to the secrets acknowledged.
    CompleteArrayAdds,
    /// Secret values are sent although the row has moved on.
    MovedSecretsSent,
    /// A 409 acknowledges what GET cannot show.
    ConflictAcknowledgesUnseen,
    /// A patch with a rejected field is parked whole.
    RejectedFieldBlocksOthers,
    /// A rejected field stays parked after its value changed.
    RejectionOutlivesValue,
    /// A wait that Vercel asks for is taken as it is.
    RetryAfterUnclamped,
    /// A refused token is used again without being read again.
    RefusedTokenKept,
    /// The token in memory is any installation's.
    ForeignToken,
    /// A paused installation is never probed.
    PauseNeverProbed,
    /// A source without rows lets resources count as missing.
    EmptySourceDeletes,
    /// An unusable row takes its page with it.
    PoisonTakesPage,
    /// An entry with nothing left to send is sent.
    EmptyPatchSent,
    /// Every managed field is sent, changed or not.
    WholeRowSent,
    /// What was sent counts against no limit of requests a minute.
    RequestsNotCounted,
    /// A request leaves although others have used up its installation's allowance since its claim.
    AllowanceTakenForGranted,
    /// A claim does not count what is in flight for an installation already.
    InFlightForgotten,
    /// A 429 of one installation holds back all.
    LimitStopsAll,
    /// A pause of one installation holds back all.
    PauseStopsAll,
}

#[cfg(test)]
impl Bug {
    /// All bugs.
    pub(crate) const ALL: [Self; 44] = [
        Self::NoDoubtMark,
        Self::DoubtMarkedAfterSending,
        Self::DoubtClearedBy4xx,
        Self::UncertaintyJudgedAtAnswer,
        Self::LostNotLate,
        Self::ExpiredLeaseNotLate,
        Self::LateForTooLong,
        Self::ConfirmationOutlivesLoss,
        Self::GatewayTakenForServer,
        Self::ServerErrorProvesNothing,
        Self::DoubtNotSent,
        Self::WithdrawnInDoubt,
        Self::LeaseTokenNotChecked,
        Self::LeaseTokenReused,
        Self::LeaseMayRunOut,
        Self::TwoInFlight,
        Self::CursorCommittedFirst,
        Self::OverlapIgnored,
        Self::CalmAtOnce,
        Self::KnownForGood,
        Self::PassesUnread,
        Self::HorizonIgnored,
        Self::FollowupForgotten,
        Self::NewerTargetAcknowledged,
        Self::PartialAfterRemoval,
        Self::DoubtfulSecretForgotten,
        Self::CompleteArrayAdds,
        Self::MovedSecretsSent,
        Self::ConflictAcknowledgesUnseen,
        Self::RejectedFieldBlocksOthers,
        Self::RejectionOutlivesValue,
        Self::RetryAfterUnclamped,
        Self::RefusedTokenKept,
        Self::ForeignToken,
        Self::PauseNeverProbed,
        Self::EmptySourceDeletes,
        Self::PoisonTakesPage,
        Self::EmptyPatchSent,
        Self::WholeRowSent,
        Self::RequestsNotCounted,
        Self::AllowanceTakenForGranted,
        Self::InFlightForgotten,
        Self::LimitStopsAll,
        Self::PauseStopsAll,
    ];
}

#[cfg(test)]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Whether this bug is planted here and now.
#[cfg(test)]
pub(crate) fn is_planted(bug: Bug) -> bool {
    ACTIVE.get() == Some(bug)
}

/// Whether this bug is planted: never, outside tests.
#[cfg(not(test))]
pub(crate) const fn is_planted(_: Bug) -> bool {
    false
}

/// Runs `work` on this thread with a bug planted, or with none.
#[cfg(test)]
pub(crate) fn with_planted<T>(bug: Option<Bug>, work: impl FnOnce() -> T) -> T {
    /// Puts back what was planted before, also when `work` panics.
    struct Restore(Option<Bug>);
    impl Drop for Restore {
        fn drop(&mut self) {
            ACTIVE.set(self.0);
        }
    }
    let _restore = Restore(ACTIVE.replace(bug));
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_is_planted_for_its_scope_alone() {
        assert!(Bug::ALL.into_iter().all(|bug| !is_planted(bug)));
        with_planted(Some(Bug::NoDoubtMark), || {
            assert!(is_planted(Bug::NoDoubtMark));
            with_planted(None, || assert!(!is_planted(Bug::NoDoubtMark)));
            assert!(is_planted(Bug::NoDoubtMark));
        });
        assert!(!is_planted(Bug::NoDoubtMark));
    }
}
