//! A person's orders on entries: what becomes of each, and the rows that tell who gave them.

use std::collections::BTreeSet;
use std::future::Future;

use crate::model::{EntryId, EntryState, ResourceKey, Timestamp};
use crate::plan::guard::Impact;
use crate::plan::manual::Refusal;
use crate::store::console::{Act, Answer, Applied, Order, Person};
use crate::store::hold::HoldState;

use super::guard::{GuardRows, close_empty};
use super::{Step, save_steps};

/// The entries of one transaction by their numbers, and what people did.
pub(in crate::store) trait OrderRows: GuardRows {
    /// Of each of these entries its resource and whether it is open, in order; none for one that is not there. Nobody else changes
    /// them before the transaction has ended.
    fn find_entries(
        &mut self,
        ids: &[EntryId],
    ) -> impl Future<Output = Result<Vec<Option<(ResourceKey, bool)>>, Self::Error>> + Send;

    /// Leaves the rows of acts.
    fn note_acts(&mut self, acts: &[Act]) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// [`crate::store::console::Console::act`].
pub(in crate::store) async fn carry_out<R: OrderRows>(
    rows: &mut R,
    ids: &[EntryId],
    order: Order,
    by: &Person,
    now: Timestamp,
) -> Result<Vec<Answer>, R::Error> {
    let found = rows.find_entries(ids).await?;
    let open: Vec<ResourceKey> = found
        .iter()
        .flatten()
        .filter(|(_, is_open)| *is_open)
        .map(|(key, _)| key.clone())
        .collect();
    let mut outcomes = give(rows, &open, order, now).await?.into_iter();
    let mut acts = Vec::with_capacity(open.len());
    let mut answers = Vec::with_capacity(ids.len());
    for (id, found) in ids.iter().zip(found) {
        let Some((key, is_open)) = found else {
            answers.push(Answer::Unknown);
            continue;
        };
        let outcome = match is_open {
            true => outcomes.next().unwrap_or(Err(Refusal::Closed)),
            false => Err(Refusal::Closed),
        };
        answers.push(match outcome {
            Ok(state) => {
                acts.push(Act::ordered(&key, *id, order, by, now));
                Answer::Done { key, state }
            }
            Err(refusal) => Answer::Refused { key, refusal },
        });
    }
    rows.note_acts(&acts).await?;
    Ok(answers)
}

/// Gives an order for the open entries of these resources, no two of one; returns the state of each entry then, in order.
pub(in crate::store) async fn give<R: GuardRows>(
    rows: &mut R,
    keys: &[ResourceKey],
    order: Order,
    now: Timestamp,
) -> Result<Vec<Result<EntryState, Refusal>>, R::Error> {
    debug_assert_eq!(
        keys.iter().collect::<BTreeSet<_>>().len(),
        keys.len(),
        "an order meets a resource once"
    );
    let mut outcomes = Vec::with_capacity(keys.len());
    let mut steps = Vec::with_capacity(keys.len());
    let mut leaves_hold = false;
    for before in rows.records(keys).await? {
        let mut after = before.clone();
        let Applied { state, closed } = match order.apply(&mut after, now) {
            Ok(applied) => applied,
            Err(refusal) => {
                outcomes.push(Err(refusal));
                continue;
            }
        };
        outcomes.push(Ok(state));
        let hold = before.entry.as_ref().and_then(|entry| entry.hold);
        leaves_hold |= hold.is_some();
        steps.push(Step {
            before,
            after,
            closed,
            now,
        });
    }
    let done: Vec<ResourceKey> = steps.iter().map(|step| step.after.key.clone()).collect();
    save_steps(rows, &mut steps).await?;
    let ended = match order {
        Order::Retry => return Ok(outcomes),
        Order::Release => HoldState::Released,
        Order::Discard => HoldState::Discarded,
    };
    for key in &done {
        // A person has decided: the change does not count again.
        rows.forget_guarded(key, Impact::Destructive).await?;
    }
    if leaves_hold {
        close_empty(rows, ended, now).await?;
    }
    Ok(outcomes)
}
