//! Writes many records in a few statements of many rows each, which cost a fraction of a statement per row.
//!
//! What did not change is not written: a claim touches the lease and the doubt, and no index that says nothing of them.

use sqlx::SqliteConnection;

use crate::model::{Entry, EntryId, Record, Timestamp};
use crate::store::AttemptRecord;
use crate::store::steps::{AttemptRow, Change};

use crate::store::codec::{json, name_of};
use crate::store::fault::Fault;

use super::many::{Many, Statement};

/// Writes what changed of the records, their entries and the entries that were closed.
///
/// No two changes are of one resource.
pub(super) async fn save_all(
    connection: &mut SqliteConnection,
    changes: &mut [Change<'_>],
) -> Result<(), Fault> {
    let mut work = Work::default();
    for change in &*changes {
        work.sort(change);
    }
    // A closed entry makes room for the next one of its resource, and an entry needs its resource.
    work.updates.run(connection).await?;
    work.doubts.run(connection).await?;
    work.resources.run(connection).await?;
    work.leases.run(connection).await?;
    insert_entries(connection, changes).await
}

/// Keeps attempts in the history.
pub(super) async fn add_attempts(
    connection: &mut SqliteConnection,
    attempts: &[AttemptRow<'_>],
) -> Result<(), Fault> {
    let mut rows = Many::new(&ADD_ATTEMPTS);
    for attempt in attempts {
        let AttemptRow {
            entry_id,
            number,
            key,
            outcome,
            record,
        } = attempt;
        let AttemptRecord {
            started_at,
            ended_at,
            method,
            fields,
            secret_names,
            status,
            error_code,
            message,
            vercel_id,
        } = record;
        rows.row()
            .int(entry_id.0)
            .int(i64::from(*number))
            .text(key.installation_id.as_str())
            .text(key.resource_id.as_str())
            .int(started_at.as_millis())
            .int(ended_at.as_millis())
            .text(*method)
            .owned(json(fields))
            .owned(json(secret_names))
            .text(*outcome)
            .int(status.map(i64::from))
            .text(error_code.as_deref())
            .text(message.as_deref())
            .text(vercel_id.as_deref());
    }
    rows.run(connection).await
}

async fn insert_entries(
    connection: &mut SqliteConnection,
    changes: &mut [Change<'_>],
) -> Result<(), Fault> {
    let is_new = |change: &&mut Change<'_>| {
        let entry = change.after.entry.as_ref();
        entry.is_some_and(|entry| entry.id == EntryId(0))
    };
    let mut new: Vec<&mut Change<'_>> = changes.iter_mut().filter(is_new).collect();
    if new.is_empty() {
        return Ok(());
    }
    // Given here, in order, since RETURNING has none; SQLite goes on from the greatest number that was ever used.
    let last: Option<i64> = sqlx::query_scalar(
        "SELECT seq
         FROM sqlite_sequence
         WHERE name = 'entry'",
    )
    .fetch_optional(&mut *connection)
    .await?;
    let mut number = last.unwrap_or(0);
    let mut rows = Many::new(&INSERT_ENTRIES);
    for change in &mut new {
        let Record { key, entry, .. } = &mut *change.after;
        let Some(entry) = entry else { continue };
        number += 1;
        entry.id = EntryId(number);
        rows.row()
            .int(number)
            .text(key.installation_id.as_str())
            .text(key.resource_id.as_str())
            .text(entry.state.name())
            .owned(json(&entry.desired))
            .int(i64::from(entry.generation))
            .text(entry.origin.name())
            .owned(name_of(&entry.mode))
            .text(entry.reason.code())
            .int(entry.created_at.as_millis())
            .int(entry.due_at.as_millis())
            .int(i64::from(entry.attempts))
            .int(i64::from(entry.failures))
            .int(i64::from(entry.conflicts))
            .owned(json(&entry.rejected))
            .int(entry.hold);
    }
    rows.run(connection).await
}

/// The rows of each statement.
struct Work {
    updates: Many,
    leases: Many,
    resources: Many,
    doubts: Many,
}

impl Default for Work {
    fn default() -> Self {
        Self {
            updates: Many::new(&UPDATE_ENTRIES),
            leases: Many::new(&UPDATE_LEASES),
            resources: Many::new(&PUT_RESOURCES),
            doubts: Many::new(&UPDATE_DOUBTS),
        }
    }
}

impl Work {
    fn sort(&mut self, change: &Change<'_>) {
        let Change {
            before,
            after,
            closed,
            now,
        } = change;
        let before_entry = before.entry.as_ref();
        if let Some(entry) = closed {
            self.update(before_entry, entry, Some(*now));
        }
        if change.changes_resource() {
            self.resource(before, after);
        }
        if let Some(entry) = &after.entry
            && entry.id != EntryId(0)
            && before_entry != Some(entry)
        {
            match before_entry {
                Some(before) if is_lease_alone(before, entry) => self.lease(entry),
                _ => self.update(before_entry, entry, None),
            }
        }
    }

    fn update(&mut self, before: Option<&Entry>, entry: &Entry, closed_at: Option<Timestamp>) {
        let Entry {
            id,
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
            lease: _,
            in_flight: _,
        } = entry;
        let is_same = before.is_some_and(|before| before.id == *id && before.desired == *desired);
        let desired = (!is_same).then(|| json(desired));
        self.updates
            .row()
            .int(id.0)
            .text(state.name())
            .owned(desired)
            .int(i64::from(*generation))
            .owned(name_of(mode))
            .text(reason.code())
            .int(due_at.as_millis())
            .int(i64::from(*attempts))
            .int(i64::from(*failures))
            .int(i64::from(*conflicts))
            .owned(json(rejected))
            .int(*hold)
            .lease(entry)
            .int(closed_at.map(Timestamp::as_millis));
    }

    fn lease(&mut self, entry: &Entry) {
        self.leases.row().int(entry.id.0).lease(entry);
    }

    fn resource(&mut self, before: &Record, after: &Record) {
        let Record {
            key,
            acknowledged,
            doubt,
            dismissed,
            row_hash,
            missing,
            acknowledged_at,
            entry: _,
        } = after;
        let (installation_id, resource_id) =
            (key.installation_id.as_str(), key.resource_id.as_str());
        // Only a resource that is there has a hash.
        let is_doubt_alone = before.row_hash.is_some()
            && (acknowledged, dismissed, row_hash, missing, acknowledged_at)
                == (
                    &before.acknowledged,
                    &before.dismissed,
                    &before.row_hash,
                    &before.missing,
                    &before.acknowledged_at,
                );
        if is_doubt_alone {
            let row = self.doubts.row().text(installation_id).text(resource_id);
            row.owned(json(doubt));
            return;
        }
        self.resources
            .row()
            .text(installation_id)
            .text(resource_id)
            .owned(json(acknowledged))
            .owned(json(doubt))
            .owned(json(dismissed))
            .bytes(row_hash.map(|hash| hash.as_bytes().to_vec()))
            .int(missing.map(|missing| missing.since.as_millis()))
            .int(missing.map(|missing| i64::from(missing.sweeps)))
            .int(acknowledged_at.map(Timestamp::as_millis));
    }
}

/// Whether nothing but the lease and what is sent under it changed.
fn is_lease_alone(before: &Entry, after: &Entry) -> bool {
    let Entry {
        id,
        state,
        desired,
        generation,
        origin,
        mode,
        reason,
        created_at,
        due_at,
        attempts,
        failures,
        conflicts,
        rejected,
        hold,
        lease: _,
        in_flight: _,
    } = after;
    (
        id, state, generation, origin, mode, reason, created_at, due_at,
    ) == (
        &before.id,
        &before.state,
        &before.generation,
        &before.origin,
        &before.mode,
        &before.reason,
        &before.created_at,
        &before.due_at,
    ) && (attempts, failures, conflicts, rejected, hold, desired)
        == (
            &before.attempts,
            &before.failures,
            &before.conflicts,
            &before.rejected,
            &before.hold,
            &before.desired,
        )
}

const ADD_ATTEMPTS: Statement = Statement {
    what: "attempts",
    columns: 14,
    before: "INSERT INTO attempt
                 (entry_id, number, installation_id, resource_id, started_at, ended_at, method, fields, secret_names, outcome,
                  status, error_code, message, vercel_id)
             VALUES ",
    after: "",
};

const INSERT_ENTRIES: Statement = Statement {
    what: "new entries",
    columns: 16,
    before: "INSERT INTO entry
                 (id, installation_id, resource_id, state, desired, generation, origin, mode, reason, created_at, due_at,
                  attempts, failures, conflicts, rejected, hold_id)
             VALUES ",
    after: "",
};

const UPDATE_ENTRIES: Statement = Statement {
    what: "entries",
    columns: 17,
    before: "WITH new (id, state, desired, generation, mode, reason, due_at, attempts, failures, conflicts, rejected, hold_id,
                       lease_owner, lease_token, lease_expires_at, in_flight, closed_at)
             AS (VALUES ",
    after: ")
            UPDATE entry
            SET state = new.state,
                desired = coalesce(new.desired, entry.desired),
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
            FROM new
            WHERE entry.id = new.id
              AND entry.closed_at IS NULL",
};

const UPDATE_LEASES: Statement = Statement {
    what: "leases of entries",
    columns: 5,
    before: "WITH new (id, lease_owner, lease_token, lease_expires_at, in_flight)
             AS (VALUES ",
    after: ")
            UPDATE entry
            SET lease_owner = new.lease_owner,
                lease_token = new.lease_token,
                lease_expires_at = new.lease_expires_at,
                in_flight = new.in_flight
            FROM new
            WHERE entry.id = new.id
              AND entry.closed_at IS NULL",
};

const PUT_RESOURCES: Statement = Statement {
    what: "resources",
    columns: 9,
    before: "INSERT INTO resource
                 (installation_id, resource_id, acknowledged, doubt, dismissed, row_hash, missing_since, missing_sweeps,
                  acknowledged_at)
             VALUES ",
    after: "
            ON CONFLICT (installation_id, resource_id) DO UPDATE
            SET acknowledged = excluded.acknowledged,
                doubt = excluded.doubt,
                dismissed = excluded.dismissed,
                row_hash = excluded.row_hash,
                missing_since = excluded.missing_since,
                missing_sweeps = excluded.missing_sweeps,
                acknowledged_at = excluded.acknowledged_at",
};

const UPDATE_DOUBTS: Statement = Statement {
    what: "doubts of resources",
    columns: 3,
    before: "WITH new (installation_id, resource_id, doubt)
             AS (VALUES ",
    after: ")
            UPDATE resource
            SET doubt = new.doubt
            FROM new
            WHERE resource.installation_id = new.installation_id
              AND resource.resource_id = new.resource_id",
};
