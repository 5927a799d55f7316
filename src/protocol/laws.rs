//! What must hold in every state of the model, and what must occur in some so that the laws say anything.

use stateright::Property;

use crate::model::{EntryState, Reason};

use super::book::{PatchId, Question};
use super::model::Protocol;
use super::world::{AtVercel, Claim, Sent, State, Worker};

/// Law 2: what a request may change is in doubt in the state before it leaves and for as long as it may be applied.
pub(super) const DOUBT_FIRST: &str =
    "what a request may change is in doubt before it leaves and while it may be applied";
/// Law 2: acknowledged is never wrong, doubt apart.
pub(super) const ACKNOWLEDGED_IS_HELD: &str =
    "Vercel holds what was acknowledged, or it is in doubt";
/// Law 2: what is settled stays settled.
const SETTLED_STAYS: &str = "no request that may still be applied changes what is not in doubt";
/// Law 4.
pub(super) const ONE_AT_A_TIME: &str =
    "under leases that have not expired at most one request is out";
/// Section 9.
pub(super) const STALE_TOKEN: &str = "an outcome whose token does not match changes nothing";
/// Law 2.
const NO_WITHDRAWAL_IN_DOUBT: &str = "what is in doubt has an open entry";
/// Law 1, at rest.
const REST_IS_EQUALITY: &str = "with nothing left to do Vercel holds what the source says";
/// Law 1.
pub(super) const CONVERGENCE: &str = "calm weather brings both sides together";

/// All laws, and the signs that the model is not trivial.
pub(super) fn properties() -> Vec<Property<Protocol>> {
    /// A property of a law; a macro, since a property holds a function that captures nothing.
    macro_rules! law {
        ($name:ident, $law:path) => {
            Property::always($name, |model: &Protocol, state: &State| {
                model.holds_or_was_broken($law(model, state))
            })
        };
    }
    vec![
        law!(DOUBT_FIRST, doubt_first),
        law!(ACKNOWLEDGED_IS_HELD, acknowledged_is_held),
        law!(SETTLED_STAYS, settled_stays),
        law!(ONE_AT_A_TIME, one_at_a_time),
        law!(STALE_TOKEN, stale_token),
        law!(NO_WITHDRAWAL_IN_DOUBT, no_withdrawal_in_doubt),
        law!(REST_IS_EQUALITY, rest_is_equality),
        law!(CONVERGENCE, Protocol::converges),
        Property::sometimes(
            "an earlier request may be applied while the next is out",
            overtaken,
        ),
        Property::sometimes("two requests may be applied late", |_, state: &State| {
            state.late.len() > 1
        }),
        Property::sometimes(
            "an entry waits until a lost request cannot be applied",
            waits_for_late,
        ),
        Property::sometimes(
            "a change is found while a request is in flight",
            found_in_flight,
        ),
        Property::sometimes(
            "everything that may go wrong has, and both sides are equal",
            all_spent,
        ),
    ]
}

/// The patches of requests that Vercel may still apply.
fn may_be_applied(state: &State) -> impl Iterator<Item = PatchId> {
    let sent = state.workers.iter().filter_map(|worker| match worker {
        Worker::Waiting(
            Claim { patch, .. },
            Sent {
                at_vercel: AtVercel::Pending(_),
                ..
            },
        ) => Some(*patch),
        _ => None,
    });
    sent.chain(state.late.iter().map(|late| late.patch))
}

fn doubt_first(model: &Protocol, state: &State) -> bool {
    may_be_applied(state).all(|patch| model.book.ask(Question::Covered(state.record, patch)))
}

fn acknowledged_is_held(model: &Protocol, state: &State) -> bool {
    model.book.ask(Question::Agrees(state.record, state.held))
}

fn settled_stays(model: &Protocol, state: &State) -> bool {
    may_be_applied(state).all(|patch| {
        model
            .book
            .ask(Question::Harmless(state.record, state.held, patch))
    })
}

fn one_at_a_time(model: &Protocol, state: &State) -> bool {
    let out = state.workers.iter().filter(|worker| match worker {
        Worker::Waiting(claim, _) => claim.age < model.setting.terms.lease,
        _ => false,
    });
    out.count() <= 1
}

fn stale_token(_: &Protocol, state: &State) -> bool {
    !state.intruded
}

fn no_withdrawal_in_doubt(model: &Protocol, state: &State) -> bool {
    let record = model.book.record(state.record);
    record.entry.is_some() || record.doubt.is_empty()
}

fn rest_is_equality(model: &Protocol, state: &State) -> bool {
    !model.is_at_rest(state) || model.is_settled(state)
}

fn overtaken(model: &Protocol, state: &State) -> bool {
    let waits = state
        .workers
        .iter()
        .any(|worker| matches!(worker, Worker::Waiting(claim, _) if claim.token_matches));
    waits && may_be_applied(state).count() > 1 && model.book.is_leased(state.record)
}

fn waits_for_late(model: &Protocol, state: &State) -> bool {
    let record = model.book.record(state.record);
    record.entry.as_ref().is_some_and(|entry| {
        entry.state == EntryState::Waiting && entry.reason == Reason::LateApply
    })
}

fn found_in_flight(model: &Protocol, state: &State) -> bool {
    let record = model.book.record(state.record);
    record.entry.as_ref().is_some_and(|entry| {
        entry
            .in_flight
            .as_ref()
            .is_some_and(|in_flight| in_flight.generation != entry.generation)
    })
}

fn all_spent(model: &Protocol, state: &State) -> bool {
    let budget = state.budget;
    budget.changes + budget.crashes + budget.lost + budget.refusals == 0
        && model.book.record(state.record).entry.is_none()
        && model.is_settled(state)
}
