//! Recording how attempts ended, as many together as have ended.

use std::collections::BTreeSet;

use crate::model::{Record, ResourceKey};
use crate::plan::{self, Advance, Outcome};
use crate::planted::{Bug, is_planted};
use crate::store::rules::later_limit;
use crate::store::{Advanced, HoldState, Settlement};

use super::guard::{GuardRows, close_empty};
use super::{AttemptRow, Step, save_steps};

/// [`crate::store::Store::advance_all`]: one answer per settlement, in order.
pub(in crate::store) async fn advance<R: GuardRows>(
    rows: &mut R,
    settlements: &[Settlement],
) -> Result<Vec<Option<Advanced>>, R::Error> {
    let mut answers = Vec::with_capacity(settlements.len());
    let mut rest = settlements;
    while !rest.is_empty() {
        // A claim that was taken over may end together with its successor: each finds what the other left.
        let mut seen = BTreeSet::new();
        let repeated = rest.iter().position(|next| !seen.insert(&next.key));
        let (together, later) = rest.split_at(repeated.unwrap_or(rest.len()));
        answers.extend(advance_together(rows, together).await?);
        rest = later;
    }
    Ok(answers)
}

/// A settlement whose claim still holds.
struct Settled<'a> {
    settlement: &'a Settlement,
    /// The number of the attempt within its entry.
    number: u32,
}

/// The same for settlements of different resources.
async fn advance_together<R: GuardRows>(
    rows: &mut R,
    settlements: &[Settlement],
) -> Result<Vec<Option<Advanced>>, R::Error> {
    let keys: Vec<ResourceKey> = settlements.iter().map(|one| one.key.clone()).collect();
    let mut answers = Vec::with_capacity(settlements.len());
    let mut settled = Vec::with_capacity(settlements.len());
    let mut steps = Vec::with_capacity(settlements.len());
    let mut left_hold_at = None;
    let records = rows.records(&keys).await?;
    for (settlement, before) in settlements.iter().zip(records) {
        let Some((step, number, answer)) = settle(settlement, before) else {
            answers.push(None);
            continue;
        };
        let hold = |record: &Record| record.entry.as_ref().and_then(|entry| entry.hold);
        if hold(&step.before).is_some() && hold(&step.after).is_none() {
            left_hold_at = left_hold_at.max(Some(step.now));
        }
        steps.push(step);
        settled.push(Settled { settlement, number });
        answers.push(Some(answer));
    }
    save_steps(rows, &mut steps).await?;
    if let Some(now) = left_hold_at {
        close_empty(rows, HoldState::Dissolved, now).await?;
    }
    let attempts: Vec<AttemptRow<'_>> = settled.iter().filter_map(attempt).collect();
    rows.add_attempts(&attempts).await?;
    for Settled { settlement, .. } in &settled {
        let key = &settlement.key;
        if let Some(until) = settlement.limit_installation_until {
            let old = rows.limited_until(&key.installation_id).await?;
            let until = later_limit(old, until, settlement.now);
            rows.set_limited_until(&key.installation_id, until).await?;
        }
        if settlement.recheck {
            rows.add_recheck(key).await?;
        }
    }
    Ok(answers)
}

/// What the outcome does to the record; `None` when the claim no longer holds.
fn settle(settlement: &Settlement, before: Record) -> Option<(Step, u32, Advanced)> {
    let entry = before.entry.as_ref()?;
    let holds = entry
        .lease
        .as_ref()
        .is_some_and(|lease| lease.token == settlement.token);
    if entry.id != settlement.entry_id || !(holds || is_planted(Bug::LeaseTokenNotChecked)) {
        return None;
    }
    let number = entry.attempts.saturating_add(1);
    let mut after = before.clone();
    let Settlement {
        outcome,
        retry,
        now,
        jitter,
        ..
    } = settlement;
    let Advance {
        state,
        reason,
        due_at,
        closed,
    } = plan::advance(&mut after, outcome, retry, *now, *jitter)?;
    let answer = Advanced {
        state,
        reason,
        due_at,
    };
    let step = Step {
        before,
        after,
        closed,
        now: *now,
    };
    Some((step, number, answer))
}

fn attempt<'a>(settled: &Settled<'a>) -> Option<AttemptRow<'a>> {
    let Settled { settlement, number } = settled;
    Some(AttemptRow {
        entry_id: settlement.entry_id,
        number: *number,
        key: &settlement.key,
        outcome: Outcome::name(&settlement.outcome),
        record: settlement.attempt.as_ref()?,
    })
}
