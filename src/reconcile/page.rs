//! One page of rows: drop what is unchanged, decode the rest, have it decided and committed.

use std::collections::{BTreeMap, HashSet};

use crate::model::{EntryState, Origin, RawRow, ResourceKey, RowHash, Timestamp, Unusable};
use crate::plan::Decision;
use crate::planted::{Bug, is_planted};
use crate::source::{KEYS_IN_STATEMENT_MAX, SourceError, rows_of};
use crate::store::{Batch, Glance, Observation, PollProgress, Quarantined, SweepProgress};

use super::{PassError, Reconciler};

/// The most resources that are looked up in one statement together with one that is there.
pub(super) const KEYS_WITH_WITNESS_MAX: usize = KEYS_IN_STATEMENT_MAX - 1;

/// How many rows are read to find one with a usable key.
const WITNESSES_MAX: u32 = 10;

/// What a page held, by what became of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageCounts {
    /// Rows read.
    pub rows: u64,
    /// Rows that were not as they were last decided on.
    pub changed: u64,
    /// New entries.
    pub enqueued: u64,
    /// Open entries with a newer target.
    pub folded: u64,
    /// Entries closed since the source went back.
    pub withdrawn: u64,
    /// Rows taken as acknowledged.
    pub adopted: u64,
    /// Equal on both sides after the page. Here and in the next three a poll counts only what it looked up, and not what is as the poll
    /// before it had found it.
    pub equal: u64,
    /// With an entry that waits.
    pub waiting: u64,
    /// With an entry that is held.
    pub held: u64,
    /// With a dead letter.
    pub dead: u64,
    /// Unusable.
    pub quarantined: u64,
    /// Resources that the state knows now, be it by an unusable row alone, each once for its page.
    pub known: u64,
    /// Resources that are no longer quarantined.
    pub recovered: u64,
}

impl PageCounts {
    /// Adds another page.
    pub fn add(&mut self, other: &Self) {
        let Self {
            rows,
            changed,
            enqueued,
            folded,
            withdrawn,
            adopted,
            equal,
            waiting,
            held,
            dead,
            quarantined,
            known,
            recovered,
        } = other;
        self.rows += rows;
        self.changed += changed;
        self.enqueued += enqueued;
        self.folded += folded;
        self.withdrawn += withdrawn;
        self.adopted += adopted;
        self.equal += equal;
        self.waiting += waiting;
        self.held += held;
        self.dead += dead;
        self.quarantined += quarantined;
        self.known += known;
        self.recovered += recovered;
    }

    /// Counts rows of one resource that are as unusable as they were.
    fn still_unusable(&mut self, rows: usize, glance: Glance) {
        self.quarantined += rows as u64;
        self.known += u64::from(glance.row_hash.is_none());
    }

    pub(super) fn stands(&mut self, entry: Option<EntryState>) {
        match entry {
            Some(EntryState::Held) => self.held += 1,
            Some(EntryState::Dead) => self.dead += 1,
            Some(EntryState::Waiting) => self.waiting += 1,
            _ => self.equal += 1,
        }
    }
}

/// An unusable row to report: new, or changed since it was last reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineNotice {
    /// The row as it can be shown.
    pub row: Quarantined,
}

/// Where the pass stands after the page, to be committed with it.
#[derive(Debug, Clone, Default)]
pub(super) struct Position {
    pub(super) poll: Option<PollProgress>,
    pub(super) sweep: Option<SweepProgress>,
    /// Commit the position even when nothing else changed.
    pub(super) keep: bool,
    /// No page of the pass follows.
    pub(super) ends_pass: bool,
}

/// What a page did.
#[derive(Debug, Default)]
pub(super) struct PageReport {
    pub(super) counts: PageCounts,
    pub(super) notices: Vec<QuarantineNotice>,
}

/// How sure the reader is that no key of the page stands in another row too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Duplicates {
    /// Rows with equal keys are all in this page.
    InThisPage,
    /// They may be anywhere: resources with changed rows are looked up by key. How many rows those have that were already.
    Anywhere(BTreeMap<ResourceKey, usize>),
}

/// Rows that name one resource, as far as the page tells: others may name it too.
struct Suspect {
    key: ResourceKey,
    rows: Vec<RawRow>,
    hash: RowHash,
    glance: Glance,
}

/// The rows of a page, sorted by what they need.
#[derive(Default)]
pub(super) struct Sorted {
    pub(super) observations: Vec<(Observation, Option<EntryState>)>,
    pub(super) quarantined: Vec<Quarantined>,
    /// When known resources changed, as far as the cursors of their rows tell.
    committed: Vec<(ResourceKey, Timestamp)>,
    /// Unusable rows that were reported before.
    pub(super) counts: PageCounts,
}

fn identified(observation: &Observation) -> (ResourceKey, RowHash) {
    (observation.key.clone(), observation.row_hash)
}

impl Reconciler {
    /// Commits what a page of rows means.
    pub(super) async fn commit_page(
        &self,
        rows: Vec<RawRow>,
        origin: Origin,
        duplicates: Duplicates,
        position: Position,
    ) -> Result<PageReport, PassError> {
        self.mark.leave();
        let is_poll = matches!(duplicates, Duplicates::Anywhere(_));
        let mut sorted = self.sort(rows, duplicates).await?;
        if is_planted(Bug::PoisonTakesPage) && !sorted.quarantined.is_empty() {
            sorted.observations.clear();
        }
        let Sorted {
            observations,
            quarantined,
            committed,
            mut counts,
        } = sorted;
        // A sweep finds what changed without moving its cursor.
        if let Some(commits) = self.commits.as_ref().filter(|_| origin == Origin::Poll) {
            let now = self.clock.now();
            for (key, committed_at) in &committed {
                commits.found(key, *committed_at, now);
            }
        }
        let nothing_new = observations.is_empty() && quarantined.is_empty();
        if nothing_new && !position.keep {
            return Ok(PageReport {
                counts,
                notices: Vec::new(),
            });
        }
        let (observations, states): (Vec<_>, Vec<_>) = observations.into_iter().unzip();
        let decided: Vec<(ResourceKey, RowHash)> = match is_poll {
            true => observations.iter().map(identified).collect(),
            false => Vec::new(),
        };
        let batch = Batch {
            now: self.clock.now(),
            origin,
            policy: self.settings.policy,
            observations,
            quarantined: quarantined.clone(),
            missing: Vec::new(),
            poll: position.poll,
            sweep: position.sweep,
            guard: self.settings.guard,
            ends_pass: position.ends_pass,
            uninstall_missing_since: None,
            baseline: None,
            watch: self.watch,
            claim: None,
        };
        if is_planted(Bug::CursorCommittedFirst) {
            let position = Batch {
                observations: Vec::new(),
                quarantined: Vec::new(),
                ..batch.clone()
            };
            self.store.reconcile(position).await?;
        }
        let reconciled = self.commit(batch).await?;
        for (key, hash) in &decided {
            self.known().note(key, *hash);
        }
        for (decision, before) in reconciled.decisions.iter().zip(states) {
            tally(&mut counts, *decision, before);
        }
        counts.recovered += reconciled.recovered;
        let notice = |index: usize| {
            quarantined
                .get(index)
                .map(|row| QuarantineNotice { row: row.clone() })
        };
        let notices = reconciled
            .newly_quarantined
            .into_iter()
            .filter_map(notice)
            .collect();
        Ok(PageReport { counts, notices })
    }

    async fn sort(&self, rows: Vec<RawRow>, duplicates: Duplicates) -> Result<Sorted, PassError> {
        let mut sorted = Sorted::default();
        sorted.counts.rows = rows.len() as u64;
        let mut by_key: BTreeMap<ResourceKey, Vec<RawRow>> = BTreeMap::new();
        for row in rows {
            match row.key() {
                Ok(key) => by_key.entry(key).or_default().push(row),
                Err(unusable) => self.take_unusable(&mut sorted, &row, &unusable),
            }
        }
        let keys: Vec<ResourceKey> = by_key.keys().cloned().collect();
        let hashes: Vec<RowHash> = by_key.values().map(|rows| self.hash(rows)).collect();
        let glances = self.store.glance(&keys).await?;
        let (may_repeat, found) = match duplicates {
            Duplicates::Anywhere(found) => (true, found),
            Duplicates::InThisPage => (false, BTreeMap::new()),
        };
        let mut suspects = Vec::new();
        for (((key, rows), glance), hash) in by_key.into_iter().zip(glances).zip(hashes) {
            // A sweep compares them with how many there are.
            sorted.counts.known += u64::from(glance.row_hash.is_some());
            if glance.is_settled(hash) && rows.len() == 1 {
                if may_repeat {
                    self.known().note(&key, hash);
                }
                sorted.counts.stands(glance.entry);
            } else if glance.quarantined == Some(hash) {
                sorted.counts.still_unusable(rows.len(), glance);
            } else if may_repeat || glance.quarantined.is_some() {
                // A row that looks usable may be one of two: its key alone tells.
                suspects.push(Suspect {
                    key,
                    rows,
                    hash,
                    glance,
                });
            } else {
                self.take(&mut sorted, &key, &rows, hash, glance);
            }
        }
        let suspected: usize = suspects.iter().map(|suspect| suspect.rows.len()).sum();
        let taken = self.take_suspects(&mut sorted, suspects, found).await?;
        if !may_repeat {
            // A sweep accounts for each of them as it is now: it may be gone, or two.
            sorted.counts.rows = sorted.counts.rows - suspected as u64 + taken;
        }
        Ok(sorted)
    }

    /// Looks up the suspects by key, those that were not with the page, which shows rows that name the same resource; those rows are read
    /// again together. Returns how many rows were taken.
    async fn take_suspects(
        &self,
        sorted: &mut Sorted,
        suspects: Vec<Suspect>,
        mut found: BTreeMap<ResourceKey, usize>,
    ) -> Result<u64, PassError> {
        let mut taken = 0;
        if suspects.is_empty() {
            return Ok(taken);
        }
        let keys = suspects.iter().map(|suspect| &suspect.key);
        let unknown: Vec<ResourceKey> = keys
            .filter(|key| !found.contains_key(key))
            .cloned()
            .collect();
        if !unknown.is_empty() {
            let ids = self.source.fetch_ids(&unknown).await?;
            found.extend(rows_of(unknown, &ids));
        }
        // Law 5: the cursor must not pass rows that are neither decided on nor known to be gone.
        let gone = found.iter().filter(|(_, rows)| **rows == 0);
        let gone: Vec<ResourceKey> = gone.map(|(key, _)| key.clone()).collect();
        if !gone.is_empty() {
            // Beside a neighbour that is there, if there is one: to look for another row takes the beginning of a sweep.
            let neighbour = found.iter().find(|(_, rows)| **rows > 0);
            let beside = match neighbour.filter(|_| gone.len() <= KEYS_WITH_WITNESS_MAX) {
                Some((witness, _)) => self.fetch_beside(&gone, witness).await?,
                None => None,
            };
            let proof = match beside {
                Some(rows) => Some(rows),
                None => self.fetch_or_prove_absent(&gone).await?,
            };
            let Some(rows) = proof else {
                return Err(PassError::Source(SourceError::Query {
                    statement: "source query",
                    problem: "it shows no rows, though it did a moment ago".to_owned(),
                }));
            };
            let ids: Vec<ResourceKey> = rows.iter().filter_map(|row| row.key().ok()).collect();
            found.extend(rows_of(gone, &ids));
        }
        // One row in the page and one in all are the same row, perhaps changed meanwhile, which the next poll finds.
        let count = |key: &ResourceKey| found.get(key).copied().unwrap_or(0);
        let is_one = |key: &ResourceKey, rows: &[RawRow]| rows.len() == 1 && count(key) == 1;
        let several: Vec<ResourceKey> = suspects
            .iter()
            .filter(|suspect| count(&suspect.key) > 0 && !is_one(&suspect.key, &suspect.rows))
            .map(|suspect| suspect.key.clone())
            .collect();
        let mut fetched: BTreeMap<ResourceKey, Vec<RawRow>> = BTreeMap::new();
        if !several.is_empty() {
            for row in self.source.fetch(&several).await? {
                if let Ok(key) = row.key() {
                    fetched.entry(key).or_default().push(row);
                }
            }
        }
        for suspect in suspects {
            let Suspect { key, glance, .. } = suspect;
            let (rows, hash) = match is_one(&key, &suspect.rows) {
                true => (suspect.rows, suspect.hash),
                false => match fetched.remove(&key) {
                    Some(rows) => {
                        let hash = self.hash(&rows);
                        (rows, hash)
                    }
                    // A row that is gone meanwhile is for the sweep to find missing.
                    None => continue,
                },
            };
            taken += rows.len() as u64;
            if glance.quarantined == Some(hash) {
                sorted.counts.still_unusable(rows.len(), glance);
            } else {
                self.take(sorted, &key, &rows, hash, glance);
            }
        }
        Ok(taken)
    }

    /// Takes the rows that name one resource, whose hash that is.
    pub(super) fn take(
        &self,
        sorted: &mut Sorted,
        key: &ResourceKey,
        rows: &[RawRow],
        row_hash: RowHash,
        glance: Glance,
    ) {
        sorted.counts.known += u64::from(glance.row_hash.is_none());
        let decoded = match rows {
            [row] => row.decode(),
            _ => Err(Unusable::duplicate()),
        };
        match decoded {
            Ok(row) => {
                let desired = row.desired(&self.key, self.settings.ignored);
                let observation = Observation {
                    key: key.clone(),
                    desired,
                    row_hash,
                };
                let cursor = rows.first().and_then(|row| row.cursor.as_deref());
                // A resource that was never seen may have lain there for years.
                if glance.row_hash.is_some()
                    && let Some(at) = cursor.and_then(Timestamp::from_sql)
                {
                    sorted.committed.push((key.clone(), at));
                }
                sorted.counts.changed += 1;
                sorted.observations.push((observation, glance.entry));
            }
            Err(unusable) => {
                sorted.counts.quarantined += rows.len() as u64;
                sorted.quarantined.extend(
                    rows.first()
                        .map(|row| self.quarantine(row, &unusable, row_hash)),
                );
            }
        }
    }

    /// A row that names no resource.
    pub(super) fn take_unusable(&self, sorted: &mut Sorted, row: &RawRow, unusable: &Unusable) {
        let hash = row.hash(&self.key, self.settings.epoch());
        sorted
            .quarantined
            .push(self.quarantine(row, unusable, hash));
        sorted.counts.quarantined += 1;
    }

    fn quarantine(&self, row: &RawRow, unusable: &Unusable, row_hash: RowHash) -> Quarantined {
        Quarantined {
            key: row.key().ok(),
            installation_id: row.installation_id.shown_id(),
            resource_id: row.resource_id.shown_id(),
            column: unusable.column.to_owned(),
            problem: unusable.problem.clone(),
            accepted: unusable.accepted.to_owned(),
            row_hash,
            since: self.clock.now(),
        }
    }

    /// The hash of the rows that name one resource: of the row itself when there is one, as there should be.
    pub(super) fn hash(&self, rows: &[RawRow]) -> RowHash {
        let epoch = self.settings.epoch();
        let mut hashes: Vec<RowHash> = rows.iter().map(|row| row.hash(&self.key, epoch)).collect();
        if let [hash] = hashes[..] {
            return hash;
        }
        hashes.sort_unstable();
        let mut hasher = self.key.hasher("rows");
        hashes.iter().for_each(|hash| {
            hasher.update(hash.as_bytes());
        });
        RowHash::from_hasher(&hasher)
    }

    /// The rows of these resources, such that those without a row are truly absent; `None` when the source shows nothing.
    ///
    /// Law 9: an answer without any row proves nothing, unless a row that is there was asked for in the same statement.
    pub(super) async fn fetch_or_prove_absent(
        &self,
        keys: &[ResourceKey],
    ) -> Result<Option<Vec<RawRow>>, PassError> {
        let mut all = Vec::new();
        for keys in keys.chunks(KEYS_WITH_WITNESS_MAX) {
            match self.fetch_with_witness(keys).await? {
                Some(rows) => all.extend(rows),
                None => return Ok(None),
            }
        }
        Ok(Some(all))
    }

    /// The rows of these resources by a statement that asks for the witness too; `None` when that is not there.
    async fn fetch_beside(
        &self,
        keys: &[ResourceKey],
        witness: &ResourceKey,
    ) -> Result<Option<Vec<RawRow>>, PassError> {
        let asked: Vec<ResourceKey> = keys.iter().chain([witness]).cloned().collect();
        let mut rows = self.source.fetch(&asked).await?;
        let is_witness = |row: &RawRow| row.key().is_ok_and(|key| key == *witness);
        if !rows.iter().any(is_witness) {
            return Ok(None);
        }
        rows.retain(|row| !is_witness(row) || keys.contains(witness));
        Ok(Some(rows))
    }

    async fn fetch_with_witness(
        &self,
        keys: &[ResourceKey],
    ) -> Result<Option<Vec<RawRow>>, PassError> {
        let rows = self.source.fetch(keys).await?;
        if !rows.is_empty() || is_planted(Bug::EmptySourceDeletes) {
            return Ok(Some(rows));
        }
        let page = self.source.sweep_page(None, WITNESSES_MAX).await?;
        let Some(witness) = page.rows.iter().find_map(|row| row.key().ok()) else {
            return Ok(None);
        };
        self.fetch_beside(keys, &witness).await
    }

    /// Reads single resources again, on behalf of dispatch; returns how many there were.
    ///
    /// # Errors
    /// The source or the state failed; the wish stays.
    pub async fn recheck(&self, limit: u32) -> Result<usize, PassError> {
        let keys = self.store.rechecks(limit).await?;
        self.mark.leave();
        if keys.is_empty() {
            return Ok(0);
        }
        let Some(rows) = self.fetch_or_prove_absent(&keys).await? else {
            return Ok(0);
        };
        let found: HashSet<ResourceKey> = rows.iter().filter_map(|row| row.key().ok()).collect();
        let missing = keys
            .iter()
            .filter(|key| !found.contains(*key))
            .cloned()
            .collect();
        let mut by_key: BTreeMap<ResourceKey, Vec<RawRow>> = BTreeMap::new();
        for row in rows {
            if let Ok(key) = row.key() {
                by_key.entry(key).or_default().push(row);
            }
        }
        let mut sorted = Sorted::default();
        for (key, rows) in &by_key {
            self.take(&mut sorted, key, rows, self.hash(rows), Glance::default());
            if let [row] = &rows[..]
                && let Some(secrets) = row.decode().ok().and_then(|row| row.secrets)
            {
                // Before it is committed: whoever claims it then must find it.
                self.reread.keep(key, secrets);
            }
        }
        let batch = Batch {
            now: self.clock.now(),
            origin: Origin::Reread,
            policy: self.settings.policy,
            observations: sorted
                .observations
                .into_iter()
                .map(|(observation, _)| observation)
                .collect(),
            quarantined: sorted.quarantined,
            missing,
            poll: None,
            sweep: None,
            guard: self.settings.guard,
            ends_pass: true,
            uninstall_missing_since: None,
            baseline: None,
            watch: self.watch,
            claim: None,
        };
        self.commit(batch).await?;
        Ok(keys.len())
    }
}

fn tally(counts: &mut PageCounts, decision: Decision, before: Option<EntryState>) {
    match decision {
        Decision::InSync => counts.equal += 1,
        Decision::Adopted => {
            counts.adopted += 1;
            counts.equal += 1;
        }
        Decision::Withdrawn => {
            counts.withdrawn += 1;
            counts.equal += 1;
        }
        Decision::Enqueued => {
            counts.enqueued += 1;
            counts.waiting += 1;
        }
        Decision::Folded => {
            counts.folded += 1;
            counts.stands(before.map(|state| {
                if state == EntryState::Held {
                    state
                } else {
                    EntryState::Waiting
                }
            }));
        }
        Decision::Unchanged => counts.stands(before),
    }
}

#[cfg(test)]
mod tests;
