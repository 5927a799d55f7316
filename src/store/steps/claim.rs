//! The claim: what is due, taken fairly between installations and within their limits, its doubt recorded before it is returned.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::model::{InstallationId, Lease, LeaseToken, Record, Timestamp};
use crate::plan::claim::Claim;
use crate::plan::{self, Claimed};
use crate::store::ClaimRequest;

use super::{DueRequest, Rows, Step, end_leases, save_steps};

/// How many expired leases one claim takes over at most.
const LEASES_PER_CLAIM: u32 = 100;
/// How often one claim looks for further candidates when some turned out to have nothing to send.
const CLAIM_ROUNDS: usize = 16;
/// How many entries each installation may get of a large claim. Those of one installation lie side by side in the state, so that a claim
/// for few installations writes fewer pages than one for many.
const ENTRIES_EACH: usize = 4;
/// How many installations a claim looks for all the same: small claims serve as many as they can.
const INSTALLATIONS_MIN: usize = 16;

/// [`crate::store::Store::claim`].
pub(in crate::store) async fn claim<R: Rows>(
    rows: &mut R,
    request: &ClaimRequest,
) -> Result<Vec<Claimed>, R::Error> {
    let expired = rows.leased(Some(request.now), LEASES_PER_CLAIM).await?;
    end_leases(rows, &expired, request.now, request.late_apply).await?;
    let mut round = Round {
        request,
        tokens: request.tokens.iter().copied(),
        in_flight: request.in_flight.clone(),
        reserved: BTreeSet::new(),
        full_at: request.used.clone(),
        spent: BTreeSet::new(),
        passed_over: BTreeSet::new(),
        last: request.after.clone(),
        claimed: Vec::new(),
    };
    for _ in 0..CLAIM_ROUNDS {
        if !round.go(rows).await? {
            break;
        }
    }
    if !round.spent.is_empty() {
        let spent: Vec<_> = round
            .spent
            .iter()
            .filter_map(|id| Some((id.clone(), *round.full_at.get(id)?)))
            .collect();
        rows.set_paces(&spent).await?;
    }
    Ok(round.claimed)
}

/// A claim under way.
struct Round<'a> {
    request: &'a ClaimRequest,
    tokens: std::iter::Copied<std::slice::Iter<'a, LeaseToken>>,
    /// By installation, what was claimed just now and what other owners have in flight included.
    in_flight: BTreeMap<InstallationId, u32>,
    /// The installations for which this claim alone is under way.
    reserved: BTreeSet<InstallationId>,
    /// When the allowance of each installation is whole again, as far as any of it is used: by the caller, and of those reserved by
    /// all who share the state.
    full_at: BTreeMap<InstallationId, Timestamp>,
    /// Those for which this claim has used some.
    spent: BTreeSet<InstallationId>,
    /// Those for which another claim is under way: their turn comes with the next claim.
    passed_over: BTreeSet<InstallationId>,
    /// The installation that had the last turn.
    last: Option<InstallationId>,
    claimed: Vec<Claimed>,
}

impl Round<'_> {
    /// How many entries may still be claimed.
    fn room(&self) -> usize {
        let limit = usize::try_from(self.request.limit).unwrap_or(usize::MAX);
        limit
            .saturating_sub(self.claimed.len())
            .min(self.tokens.len())
    }

    fn capacity(&self, installation_id: &InstallationId) -> usize {
        let busy = self.in_flight.get(installation_id).copied().unwrap_or(0);
        if self.is_used_up(installation_id) {
            return 0;
        }
        usize::try_from(self.request.per_installation.saturating_sub(busy)).unwrap_or(usize::MAX)
    }

    /// Whether the installation has had its requests for now.
    fn is_used_up(&self, installation_id: &InstallationId) -> bool {
        let full_at = self.full_at.get(installation_id);
        self.request
            .rate
            .zip(full_at)
            .is_some_and(|(rate, full_at)| rate.is_used_up(*full_at, self.request.now))
    }

    /// Gives each installation with something due its turns; false when there is no point in another round.
    async fn go<R: Rows>(&mut self, rows: &mut R) -> Result<bool, R::Error> {
        let room = self.room();
        if room == 0 || self.request.per_installation == 0 {
            return Ok(false);
        }
        // When these have less to send than there is room for, the next round looks for all that have anything.
        let wanted = match self.claimed.is_empty() {
            true => room.div_ceil(ENTRIES_EACH).max(INSTALLATIONS_MIN).min(room),
            false => room,
        };
        let installations = self.next_installations(rows, wanted).await?;
        if installations.is_empty() {
            return Ok(false);
        }
        let installations = self.reserve(rows, installations).await?;
        if installations.is_empty() {
            return Ok(true);
        }
        // With a full page each has one turn; otherwise the turns go round until the places are taken.
        let each = room.div_ceil(installations.len());
        let keys = rows
            .due_resources(&installations, each, self.request.now)
            .await?;
        let mut turns = turns(&installations, rows.records(&keys).await?);
        let mut steps = Vec::with_capacity(room.min(keys.len()));
        while let Some((installation_id, mut records)) = turns.pop_front() {
            if self.room() == 0 {
                break;
            }
            let Some(record) = records.pop_front() else {
                continue;
            };
            if self.capacity(&installation_id) == 0 {
                continue;
            }
            self.last = Some(installation_id.clone());
            steps.extend(self.take(record));
            turns.push_back((installation_id, records));
        }
        save_steps(rows, &mut steps).await?;
        Ok(self.room() > 0)
    }

    /// Leaves out the installations that another claim works on and those that have as much in flight as they may.
    async fn reserve<R: Rows>(
        &mut self,
        rows: &mut R,
        installations: Vec<InstallationId>,
    ) -> Result<Vec<InstallationId>, R::Error> {
        let new: Vec<InstallationId> = installations
            .iter()
            .filter(|installation_id| !self.reserved.contains(*installation_id))
            .cloned()
            .collect();
        if !new.is_empty() {
            let mut reserved = rows.reserve(&new, &self.request.owner).await?;
            let mut new_reserved = Vec::with_capacity(new.len());
            for installation_id in new {
                match reserved.remove(&installation_id) {
                    Some(elsewhere) => {
                        *self.in_flight.entry(installation_id.clone()).or_default() += elsewhere;
                        new_reserved.push(installation_id.clone());
                        self.reserved.insert(installation_id);
                    }
                    None => {
                        self.passed_over.insert(installation_id);
                    }
                }
            }
            if let Some(rate) = self.request.rate {
                for (installation_id, full_at) in rows.paces(&new_reserved).await? {
                    let known = self.full_at.entry(installation_id).or_default();
                    *known = rate.believe(full_at, self.request.now).max(*known);
                }
            }
        }
        let is_free = |installation_id: &InstallationId| {
            self.reserved.contains(installation_id) && self.capacity(installation_id) > 0
        };
        Ok(installations.into_iter().filter(is_free).collect())
    }

    /// The next installations in turn, from after the last one around to it.
    async fn next_installations<R: Rows>(
        &self,
        rows: &mut R,
        limit: usize,
    ) -> Result<Vec<InstallationId>, R::Error> {
        let full = self
            .in_flight
            .keys()
            .filter(|installation_id| self.capacity(installation_id) == 0);
        let excluded: BTreeSet<InstallationId> = self
            .request
            .excluded
            .iter()
            .chain(full)
            .chain(&self.passed_over)
            .cloned()
            .collect();
        let mut found = rows
            .due_installations(DueRequest {
                now: self.request.now,
                after: self.last.as_ref(),
                up_to: None,
                excluded: &excluded,
                limit,
            })
            .await?;
        if found.len() < limit
            && let Some(last) = &self.last
        {
            let before = DueRequest {
                now: self.request.now,
                after: None,
                up_to: Some(last),
                excluded: &excluded,
                limit: limit - found.len(),
            };
            found.extend(rows.due_installations(before).await?);
        }
        Ok(found)
    }

    /// Claims one record; `None` when there is no place left for it.
    fn take(&mut self, before: Record) -> Option<Step> {
        let ClaimRequest {
            now,
            owner,
            lease_expires_at,
            late_apply,
            secrets,
            ..
        } = self.request;
        let token = self.tokens.clone().next()?;
        let lease = Lease {
            owner: owner.clone(),
            token,
            expires_at: *lease_expires_at,
        };
        let mut after = before.clone();
        let claim = plan::claim_with(&mut after, *now, &lease, *late_apply, *secrets);
        let mut closed = None;
        match claim {
            Claim::Claimed(claimed) => {
                self.tokens.next();
                let installation_id = claimed.key.installation_id.clone();
                if let Some(rate) = self.request.rate {
                    let full_at = self.full_at.entry(installation_id.clone()).or_default();
                    *full_at = rate.spend(*full_at, *now);
                    self.spent.insert(installation_id.clone());
                }
                *self.in_flight.entry(installation_id).or_default() += 1;
                self.claimed.push(*claimed);
            }
            Claim::Closed(entry) => closed = Some(*entry),
            Claim::NotNow => {}
        }
        Some(Step {
            before,
            after,
            closed,
            now: *now,
        })
    }
}

fn turns(
    installations: &[InstallationId],
    records: Vec<Record>,
) -> VecDeque<(InstallationId, VecDeque<Record>)> {
    let mut by_installation: BTreeMap<InstallationId, VecDeque<Record>> = BTreeMap::new();
    for record in records {
        by_installation
            .entry(record.key.installation_id.clone())
            .or_default()
            .push_back(record);
    }
    installations
        .iter()
        .filter_map(|installation_id| by_installation.remove_entry(installation_id))
        .collect()
}
