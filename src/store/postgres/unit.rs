//! What one transaction knows and what it will write: a unit of work.
//!
//! Records that were read stand here as the steps have changed them, so that a step sees what an earlier one did. Writes wait until a
//! statement needs them in the tables, or the transaction ends, and then go out in one statement per table.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Entry, EntryId, InFlight, Record, ResourceKey, Timestamp};
use crate::plan::guard::Impact;
use crate::store::codec::json;
use crate::store::fault::Fault;
use crate::store::steps::{AttemptRow, Change};
use crate::store::{AttemptRecord, codec::Cells as _};

use super::columns;
use super::pool::Transaction;

/// What a transaction knows and will write.
#[derive(Default)]
pub(super) struct Unit {
    known: BTreeMap<ResourceKey, Known>,
    /// Whether any resource was locked, still known or not.
    has_locked: bool,
    /// Resources whose own row is to be written.
    resources: BTreeSet<ResourceKey>,
    /// Entries to be written by number; a new one has a negative number until it is written.
    entries: BTreeMap<i64, EntryWrite>,
    new_entries: i64,
    /// The numbers that new entries were given.
    numbers: BTreeMap<i64, EntryId>,
    attempts: Vec<Attempt>,
    /// What the guard counts from when on, or no longer.
    guarded: BTreeMap<(ResourceKey, &'static str), Option<Timestamp>>,
    rechecks: BTreeSet<ResourceKey>,
}

/// A resource that this transaction has locked.
struct Known {
    record: Record,
    /// Whether its row is in the table.
    is_stored: bool,
}

struct EntryWrite {
    key: ResourceKey,
    entry: Entry,
    closed_at: Option<Timestamp>,
}

struct Attempt {
    entry_id: EntryId,
    number: u32,
    key: ResourceKey,
    outcome: &'static str,
    record: AttemptRecord,
}

impl Unit {
    /// Of these keys those that the transaction has not locked, in order and each once.
    pub(super) fn unknown(&self, keys: &[ResourceKey]) -> Vec<ResourceKey> {
        let unknown: BTreeSet<&ResourceKey> = keys
            .iter()
            .filter(|key| !self.known.contains_key(*key))
            .collect();
        unknown.into_iter().cloned().collect()
    }

    /// Takes over what was read of these resources; those without a record are in no table yet.
    pub(super) fn learn(
        &mut self,
        keys: Vec<ResourceKey>,
        mut records: BTreeMap<ResourceKey, Record>,
    ) {
        self.has_locked |= !keys.is_empty();
        for key in keys {
            let found = records.remove(&key);
            let known = Known {
                is_stored: found.is_some(),
                record: found.unwrap_or_else(|| Record::new(key.clone())),
            };
            self.known.insert(key, known);
        }
    }

    /// Whether the transaction has locked anything.
    pub(super) fn holds_any(&self) -> bool {
        self.has_locked
    }

    /// Forgets the records that were read, once nothing waits to be written: they stay locked, and are read again when they are asked
    /// for.
    pub(super) fn forget(&mut self) {
        debug_assert!(
            self.resources.is_empty() && self.entries.is_empty(),
            "what waits to be written is forgotten"
        );
        self.known.clear();
    }

    /// The record as it stands in this transaction.
    pub(super) fn record(&self, key: &ResourceKey) -> Record {
        self.known
            .get(key)
            .map_or_else(|| Record::new(key.clone()), |known| known.record.clone())
    }

    /// Takes a step's change.
    pub(super) fn save(&mut self, change: Change<'_>) {
        let changes_resource = change.changes_resource();
        let Change {
            before,
            after,
            closed,
            now,
        } = change;
        let key = after.key.clone();
        if let Some(entry) = closed {
            self.write_entry(&key, entry, Some(now));
        }
        if changes_resource {
            self.resources.insert(key.clone());
        }
        match &mut after.entry {
            Some(entry) if entry.id == EntryId(0) => {
                self.new_entries += 1;
                entry.id = EntryId(-self.new_entries);
                self.write_entry(&key, entry, None);
            }
            Some(entry) if before.entry.as_ref() != Some(&*entry) => {
                self.write_entry(&key, entry, None);
            }
            Some(_) | None => {}
        }
        let is_stored = self.known.get(&key).is_some_and(|known| known.is_stored);
        let mut record = after.clone();
        if let Some(entry) = &mut record.entry {
            entry.id = self.number(entry.id);
        }
        self.known.insert(key, Known { record, is_stored });
    }

    fn write_entry(&mut self, key: &ResourceKey, entry: &Entry, closed_at: Option<Timestamp>) {
        let id = self.number(entry.id);
        let write = EntryWrite {
            key: key.clone(),
            entry: Entry {
                id,
                ..entry.clone()
            },
            closed_at,
        };
        self.entries.insert(id.0, write);
    }

    /// The number that an entry has by now.
    fn number(&self, id: EntryId) -> EntryId {
        self.numbers.get(&id.0).copied().unwrap_or(id)
    }

    pub(super) fn add_attempt(&mut self, attempt: AttemptRow<'_>) {
        let AttemptRow {
            entry_id,
            number,
            key,
            outcome,
            record,
        } = attempt;
        self.attempts.push(Attempt {
            entry_id,
            number,
            key: key.clone(),
            outcome,
            record: record.clone(),
        });
    }

    pub(super) fn add_recheck(&mut self, key: &ResourceKey) {
        self.rechecks.insert(key.clone());
    }

    pub(super) fn guard(&mut self, key: &ResourceKey, impact: Impact, at: Option<Timestamp>) {
        for kind in kinds(impact) {
            self.guarded.insert((key.clone(), *kind), at);
        }
    }

    /// Sends everything that waits.
    pub(super) async fn flush(&mut self, transaction: &mut Transaction) -> Result<(), Fault> {
        // What is closed makes room for the next open entry of its resource; an entry refers to its resource.
        self.update_entries(transaction).await?;
        self.write_resources(transaction).await?;
        self.insert_entries(transaction).await?;
        self.insert_attempts(transaction).await?;
        self.write_guarded(transaction).await?;
        self.insert_rechecks(transaction).await
    }

    async fn update_entries(&mut self, transaction: &mut Transaction) -> Result<(), Fault> {
        let all = std::mem::take(&mut self.entries);
        let (new, old): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|(id, _)| *id < 0);
        self.entries = new;
        if old.is_empty() {
            return Ok(());
        }
        transaction.wrote_rows(old.len());
        let writes = old.values().collect::<Vec<_>>();
        let columns = EntryColumns::of(&writes);
        let ids: Vec<i64> = old.keys().copied().collect();
        let updated = transaction
            .query(
                "UPDATE entry
                 SET state = new.state,
                     desired = new.desired,
                     generation = new.generation,
                     mode = new.mode,
                     reason = new.reason,
                     due_at = new.due_at,
                     attempts = new.attempts,
                     failures = new.failures,
                     conflicts = new.conflicts,
                     rejected = new.rejected,
                     hold_id = new.hold_id,
                     lease_owner = new.lease_owner,
                     lease_token = new.lease_token,
                     lease_expires_at = new.lease_expires_at,
                     in_flight = new.in_flight,
                     closed_at = new.closed_at
                 FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
                             $8::bigint[], $9::bigint[], $10::text[], $11::bigint[], $12::text[], $13::bigint[],
                             $14::bigint[], $15::text[], $16::bigint[], $17::bigint[])
                      AS new (state, desired, generation, mode, reason, due_at, attempts, failures, conflicts, rejected,
                              hold_id, lease_owner, lease_token, lease_expires_at, in_flight, closed_at, id)
                 WHERE entry.id = new.id
                   -- In words that no index is about: where nothing is known of the table the planner takes the open entries for few, and
                   -- would go through all of them.
                   AND num_nulls(entry.closed_at) = 1",
            )
            .bind(columns.state)
            .bind(columns.desired)
            .bind(columns.generation)
            .bind(columns.mode)
            .bind(columns.reason)
            .bind(columns.due_at)
            .bind(columns.attempts)
            .bind(columns.failures)
            .bind(columns.conflicts)
            .bind(columns.rejected)
            .bind(columns.hold_id)
            .bind(columns.lease_owner)
            .bind(columns.lease_token)
            .bind(columns.lease_expires_at)
            .bind(columns.in_flight)
            .bind(columns.closed_at)
            .bind(ids)
            .execute(transaction.connection())
            .await?;
        affected("entries", old.len(), updated.rows_affected())
    }

    async fn insert_entries(&mut self, transaction: &mut Transaction) -> Result<(), Fault> {
        let new = std::mem::take(&mut self.entries);
        if new.is_empty() {
            return Ok(());
        }
        transaction.wrote_rows(new.len());
        // The first has the greatest of the negative numbers.
        let (made, writes): (Vec<i64>, Vec<&EntryWrite>) =
            new.iter().rev().map(|(id, write)| (*id, write)).unzip();
        let columns = EntryColumns::of(&writes);
        let (installations, resources) = columns::keys(writes.iter().map(|write| &write.key));
        let origins: Vec<&str> = writes.iter().map(|w| w.entry.origin.name()).collect();
        let created: Vec<i64> = writes
            .iter()
            .map(|write| write.entry.created_at.as_millis())
            .collect();
        let rows = transaction
            .query(
                "INSERT INTO entry
                     (state, desired, generation, mode, reason, due_at, attempts, failures, conflicts, rejected, hold_id,
                      lease_owner, lease_token, lease_expires_at, in_flight, closed_at, installation_id, resource_id, origin,
                      created_at)
                 SELECT state, desired, generation, mode, reason, due_at, attempts, failures, conflicts, rejected, hold_id,
                        lease_owner, lease_token, lease_expires_at, in_flight, closed_at, installation_id, resource_id, origin,
                        created_at
                 FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
                             $8::bigint[], $9::bigint[], $10::text[], $11::bigint[], $12::text[], $13::bigint[],
                             $14::bigint[], $15::text[], $16::bigint[], $17::text[], $18::text[], $19::text[], $20::bigint[])
                      WITH ORDINALITY
                      AS new (state, desired, generation, mode, reason, due_at, attempts, failures, conflicts, rejected,
                              hold_id, lease_owner, lease_token, lease_expires_at, in_flight, closed_at, installation_id,
                              resource_id, origin, created_at, position)
                 ORDER BY position
                 RETURNING id",
            )
            .bind(columns.state)
            .bind(columns.desired)
            .bind(columns.generation)
            .bind(columns.mode)
            .bind(columns.reason)
            .bind(columns.due_at)
            .bind(columns.attempts)
            .bind(columns.failures)
            .bind(columns.conflicts)
            .bind(columns.rejected)
            .bind(columns.hold_id)
            .bind(columns.lease_owner)
            .bind(columns.lease_token)
            .bind(columns.lease_expires_at)
            .bind(columns.in_flight)
            .bind(columns.closed_at)
            .bind(installations)
            .bind(resources)
            .bind(origins)
            .bind(created)
            .fetch_all(transaction.connection())
            .await?;
        affected("entries", writes.len(), rows.len() as u64)?;
        for ((made, write), row) in made.into_iter().zip(writes).zip(&rows) {
            let id = EntryId(row.integer("id")?);
            self.numbers.insert(made, id);
            let open = self.known.get_mut(&write.key);
            if let Some(entry) = open.and_then(|known| known.record.entry.as_mut())
                && entry.id == EntryId(made)
            {
                entry.id = id;
            }
        }
        Ok(())
    }

    async fn write_resources(&mut self, transaction: &mut Transaction) -> Result<(), Fault> {
        let changed = std::mem::take(&mut self.resources);
        let mut stored = Vec::new();
        let mut new = Vec::new();
        for key in changed {
            if let Some(known) = self.known.get_mut(&key) {
                let rows = if known.is_stored {
                    &mut stored
                } else {
                    &mut new
                };
                known.is_stored = true;
                rows.push(known.record.clone());
            }
        }
        transaction.wrote_rows(stored.len() + new.len());
        if !stored.is_empty() {
            let updated = bind_resources(transaction, UPDATE_RESOURCES, &stored).await?;
            affected("resources", stored.len(), updated)?;
        }
        if !new.is_empty() {
            // Without ON CONFLICT: a resource that another transaction was first to write has to be read and decided anew.
            let inserted = bind_resources(transaction, INSERT_RESOURCES, &new).await?;
            affected("resources", new.len(), inserted)?;
        }
        Ok(())
    }

    async fn insert_attempts(&mut self, transaction: &mut Transaction) -> Result<(), Fault> {
        let attempts = std::mem::take(&mut self.attempts);
        if attempts.is_empty() {
            return Ok(());
        }
        let (installations, resources) = columns::keys(attempts.iter().map(|a| &a.key));
        let integers = |of: fn(&Attempt) -> i64| attempts.iter().map(of).collect::<Vec<i64>>();
        let texts = |of: fn(&Attempt) -> Option<String>| {
            attempts.iter().map(of).collect::<Vec<Option<String>>>()
        };
        let safe = |text: &String| columns::text(text).into_owned();
        let messages: Vec<Option<String>> = attempts
            .iter()
            .map(|attempt| attempt.record.message.as_ref().map(safe))
            .collect();
        let statuses: Vec<Option<i64>> = attempts
            .iter()
            .map(|attempt| attempt.record.status.map(i64::from))
            .collect();
        transaction
            .query(
                "INSERT INTO attempt
                     (entry_id, number, installation_id, resource_id, started_at, ended_at, method, fields, secret_names,
                      outcome, status, error_code, message, vercel_id)
                 SELECT entry_id, number, installation_id, resource_id, started_at, ended_at, method, fields, secret_names,
                        outcome, status, error_code, message, vercel_id
                 FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[],
                             $8::text[], $9::text[], $10::text[], $11::bigint[], $12::text[], $13::text[], $14::text[])
                      WITH ORDINALITY
                      AS new (entry_id, number, installation_id, resource_id, started_at, ended_at, method, fields,
                              secret_names, outcome, status, error_code, message, vercel_id, position)
                 ORDER BY position",
            )
            .bind(integers(|attempt| attempt.entry_id.0))
            .bind(integers(|attempt| i64::from(attempt.number)))
            .bind(installations)
            .bind(resources)
            .bind(integers(|attempt| attempt.record.started_at.as_millis()))
            .bind(integers(|attempt| attempt.record.ended_at.as_millis()))
            .bind(texts(|attempt| Some(attempt.record.method.to_owned())))
            .bind(texts(|attempt| Some(json(&attempt.record.fields))))
            .bind(texts(|attempt| Some(json(&attempt.record.secret_names))))
            .bind(texts(|attempt| Some(attempt.outcome.to_owned())))
            .bind(statuses)
            .bind(texts(|attempt| attempt.record.error_code.clone()))
            .bind(messages)
            .bind(texts(|attempt| attempt.record.vercel_id.clone()))
            .execute(transaction.connection())
            .await?;
        Ok(())
    }

    async fn write_guarded(&mut self, transaction: &mut Transaction) -> Result<(), Fault> {
        let guarded = std::mem::take(&mut self.guarded);
        let (noted, forgotten): (Vec<_>, Vec<_>) =
            guarded.into_iter().partition(|(_, at)| at.is_some());
        if !noted.is_empty() {
            let (installations, resources) = columns::keys(noted.iter().map(|((key, _), _)| key));
            let kinds: Vec<&str> = noted.iter().map(|((_, kind), _)| *kind).collect();
            let at: Vec<i64> = noted
                .iter()
                .filter_map(|(_, at)| at.map(Timestamp::as_millis))
                .collect();
            transaction
                .query(
                    "INSERT INTO guarded (installation_id, resource_id, kind, at)
                     SELECT new.*
                     FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS new
                     ON CONFLICT (installation_id, resource_id, kind) DO UPDATE
                     SET at = excluded.at",
                )
                .bind(installations)
                .bind(resources)
                .bind(kinds)
                .bind(at)
                .execute(transaction.connection())
                .await?;
        }
        if !forgotten.is_empty() {
            let (installations, resources) =
                columns::keys(forgotten.iter().map(|((key, _), _)| key));
            let kinds: Vec<&str> = forgotten.iter().map(|((_, kind), _)| *kind).collect();
            transaction
                .query(
                    "DELETE FROM guarded
                     USING unnest($1::text[], $2::text[], $3::text[]) AS gone (installation_id, resource_id, kind)
                     WHERE guarded.installation_id = gone.installation_id
                       AND guarded.resource_id = gone.resource_id
                       AND guarded.kind = gone.kind",
                )
                .bind(installations)
                .bind(resources)
                .bind(kinds)
                .execute(transaction.connection())
                .await?;
        }
        Ok(())
    }

    async fn insert_rechecks(&mut self, transaction: &mut Transaction) -> Result<(), Fault> {
        let rechecks = std::mem::take(&mut self.rechecks);
        if rechecks.is_empty() {
            return Ok(());
        }
        let (installations, resources) = columns::keys(&rechecks);
        transaction
            .query(
                "INSERT INTO recheck (installation_id, resource_id)
                 SELECT new.*
                 FROM unnest($1::text[], $2::text[]) AS new
                 ON CONFLICT DO NOTHING",
            )
            .bind(installations)
            .bind(resources)
            .execute(transaction.connection())
            .await?;
        Ok(())
    }
}

/// The kinds that a change counts as.
const fn kinds(impact: Impact) -> &'static [&'static str] {
    match impact {
        Impact::None => &[],
        Impact::Change => &["change"],
        Impact::Destructive => &["change", "destructive"],
    }
}

/// Every statement here names the rows that it changes.
fn affected(what: &str, expected: usize, rows: u64) -> Result<(), Fault> {
    if rows == expected as u64 {
        return Ok(());
    }
    Err(Fault::Corrupt(format!(
        "writing {expected} {what} changed {rows}"
    )))
}

/// The columns of entries that change.
#[derive(Default)]
struct EntryColumns {
    state: Vec<&'static str>,
    desired: Vec<String>,
    generation: Vec<i64>,
    mode: Vec<&'static str>,
    reason: Vec<&'static str>,
    due_at: Vec<i64>,
    attempts: Vec<i64>,
    failures: Vec<i64>,
    conflicts: Vec<i64>,
    rejected: Vec<String>,
    hold_id: Vec<Option<i64>>,
    lease_owner: Vec<Option<String>>,
    lease_token: Vec<Option<i64>>,
    lease_expires_at: Vec<Option<i64>>,
    in_flight: Vec<Option<String>>,
    closed_at: Vec<Option<i64>>,
}

impl EntryColumns {
    fn of(writes: &[&EntryWrite]) -> Self {
        let mut columns = Self::default();
        for write in writes {
            let Entry {
                id: _,
                state,
                desired,
                generation,
                origin: _,
                mode,
                reason,
                created_at: _,
                due_at,
                attempts,
                failures,
                conflicts,
                rejected,
                hold,
                lease,
                in_flight,
            } = &write.entry;
            let lease = lease.as_ref();
            columns.state.push(state.name());
            columns.desired.push(json(desired));
            columns.generation.push(i64::from(*generation));
            columns.mode.push(mode.name());
            columns.reason.push(reason.code());
            columns.due_at.push(due_at.as_millis());
            columns.attempts.push(i64::from(*attempts));
            columns.failures.push(i64::from(*failures));
            columns.conflicts.push(i64::from(*conflicts));
            columns.rejected.push(json(rejected));
            columns.hold_id.push(*hold);
            columns
                .lease_owner
                .push(lease.map(|lease| lease.owner.clone()));
            columns.lease_token.push(lease.map(|lease| lease.token.0));
            let expires_at = lease.map(|lease| lease.expires_at.as_millis());
            columns.lease_expires_at.push(expires_at);
            columns
                .in_flight
                .push(in_flight.as_ref().map(json::<InFlight>));
            columns
                .closed_at
                .push(write.closed_at.map(Timestamp::as_millis));
        }
        columns
    }
}

const UPDATE_RESOURCES: &str = "
    UPDATE resource
    SET acknowledged = new.acknowledged,
        doubt = new.doubt,
        dismissed = new.dismissed,
        row_hash = new.row_hash,
        missing_since = new.missing_since,
        missing_sweeps = new.missing_sweeps,
        acknowledged_at = new.acknowledged_at
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::bigint[], $8::bigint[], $9::bigint[])
         AS new (installation_id, resource_id, acknowledged, doubt, dismissed, row_hash, missing_since, missing_sweeps,
                 acknowledged_at)
    WHERE resource.installation_id = new.installation_id
      AND resource.resource_id = new.resource_id";
const INSERT_RESOURCES: &str = "
    INSERT INTO resource
        (installation_id, resource_id, acknowledged, doubt, dismissed, row_hash, missing_since, missing_sweeps, acknowledged_at)
    SELECT new.*
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::bigint[], $8::bigint[], $9::bigint[])
         AS new";

async fn bind_resources(
    transaction: &mut Transaction,
    sql: &'static str,
    records: &[Record],
) -> Result<u64, Fault> {
    let (installations, resources) = columns::keys(records.iter().map(|record| &record.key));
    let mut acknowledged = Vec::with_capacity(records.len());
    let mut doubt = Vec::with_capacity(records.len());
    let mut dismissed = Vec::with_capacity(records.len());
    let mut row_hash = Vec::with_capacity(records.len());
    let mut missing_since = Vec::with_capacity(records.len());
    let mut missing_sweeps = Vec::with_capacity(records.len());
    let mut acknowledged_at = Vec::with_capacity(records.len());
    for record in records {
        let Record {
            key: _,
            acknowledged: accepted,
            doubt: doubted,
            dismissed: given_up,
            row_hash: hash,
            missing,
            acknowledged_at: accepted_at,
            entry: _,
        } = record;
        acknowledged.push(json(accepted));
        doubt.push(json(doubted));
        dismissed.push(json(given_up));
        row_hash.push(hash.map(|hash| hash.as_bytes().to_vec()));
        missing_since.push(missing.map(|missing| missing.since.as_millis()));
        missing_sweeps.push(missing.map(|missing| i64::from(missing.sweeps)));
        acknowledged_at.push(accepted_at.map(Timestamp::as_millis));
    }
    let done = transaction
        .query(sql)
        .bind(installations)
        .bind(resources)
        .bind(acknowledged)
        .bind(doubt)
        .bind(dismissed)
        .bind(row_hash)
        .bind(missing_since)
        .bind(missing_sweeps)
        .bind(acknowledged_at)
        .execute(transaction.connection())
        .await?;
    Ok(done.rows_affected())
}
