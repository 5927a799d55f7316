//! Writes many records in a few statements: each takes its rows as one JSON array, which costs a fraction of a statement per row.
//!
//! What did not change is not written: a claim touches the lease and the doubt, and no index that says nothing of them.

use sqlx::SqliteConnection;

use crate::model::{Entry, EntryId, InFlight, Lease, Record, Timestamp};
use crate::store::AttemptRecord;
use crate::store::steps::{AttemptRow, Change};

use super::codec::{json, name_of};
use super::fault::Fault;

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
    let mut rows = Statement::new("attempts", ADD_ATTEMPTS);
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
            .text(method)
            .text(&json(fields))
            .text(&json(secret_names))
            .text(outcome)
            .int(status.map(i64::from))
            .optional(error_code.as_deref())
            .optional(message.as_deref())
            .optional(vercel_id.as_deref())
            .end();
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
    let mut rows = Statement::new("new entries", INSERT_ENTRIES);
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
            .text(&json(&entry.desired))
            .int(i64::from(entry.generation))
            .text(entry.origin.name())
            .text(&name_of(&entry.mode))
            .text(entry.reason.code())
            .int(entry.created_at.as_millis())
            .int(entry.due_at.as_millis())
            .int(i64::from(entry.attempts))
            .int(i64::from(entry.failures))
            .int(i64::from(entry.conflicts))
            .text(&json(&entry.rejected))
            .int(entry.hold)
            .end();
    }
    rows.run(connection).await
}

/// The rows of each statement.
struct Work {
    updates: Statement,
    leases: Statement,
    resources: Statement,
    doubts: Statement,
}

impl Default for Work {
    fn default() -> Self {
        Self {
            updates: Statement::new("entries", UPDATE_ENTRIES),
            leases: Statement::new("leases of entries", UPDATE_LEASES),
            resources: Statement::new("resources", PUT_RESOURCES),
            doubts: Statement::new("doubts of resources", UPDATE_DOUBTS),
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
            .optional(desired.as_deref())
            .int(i64::from(*generation))
            .text(&name_of(mode))
            .text(reason.code())
            .int(due_at.as_millis())
            .int(i64::from(*attempts))
            .int(i64::from(*failures))
            .int(i64::from(*conflicts))
            .text(&json(rejected))
            .int(*hold)
            .lease(entry)
            .int(closed_at.map(Timestamp::as_millis))
            .end();
    }

    fn lease(&mut self, entry: &Entry) {
        self.leases.row().int(entry.id.0).lease(entry).end();
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
            row.text(&json(doubt)).end();
            return;
        }
        self.resources
            .row()
            .text(installation_id)
            .text(resource_id)
            .text(&json(acknowledged))
            .text(&json(doubt))
            .text(&json(dismissed))
            .raw(row_hash.map(|hash| json(&hash)).as_deref())
            .int(missing.map(|missing| missing.since.as_millis()))
            .int(missing.map(|missing| i64::from(missing.sweeps)))
            .int(acknowledged_at.map(Timestamp::as_millis))
            .end();
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

/// A statement and its rows, as one JSON array of arrays.
struct Statement {
    what: &'static str,
    sql: &'static str,
    rows: u64,
    array: String,
}

impl Statement {
    const fn new(what: &'static str, sql: &'static str) -> Self {
        Self {
            what,
            sql,
            rows: 0,
            array: String::new(),
        }
    }

    fn row(&mut self) -> Row<'_> {
        self.array.push(if self.rows == 0 { '[' } else { ',' });
        self.array.push('[');
        self.rows += 1;
        Row {
            array: &mut self.array,
            is_first: true,
        }
    }

    /// Runs the statement, which must write one row for each that was given.
    async fn run(mut self, connection: &mut SqliteConnection) -> Result<(), Fault> {
        if self.rows == 0 {
            return Ok(());
        }
        self.array.push(']');
        let written = sqlx::query(self.sql)
            .bind(self.array)
            .execute(connection)
            .await?
            .rows_affected();
        if written == self.rows {
            Ok(())
        } else {
            let Self { what, rows, .. } = self;
            Err(Fault::Corrupt(format!(
                "writing {rows} {what} changed {written} rows"
            )))
        }
    }
}

/// One row of a statement under construction.
struct Row<'a> {
    array: &'a mut String,
    is_first: bool,
}

impl Row<'_> {
    /// JSON as it is; null for none.
    fn raw<'t>(mut self, json: impl Into<Option<&'t str>>) -> Self {
        if !std::mem::replace(&mut self.is_first, false) {
            self.array.push(',');
        }
        self.array.push_str(json.into().unwrap_or("null"));
        self
    }

    fn int(self, integer: impl Into<Option<i64>>) -> Self {
        match integer.into() {
            Some(integer) => self.raw(integer.to_string().as_str()),
            None => self.raw(None),
        }
    }

    fn text(self, text: &str) -> Self {
        self.raw(json(text).as_str())
    }

    fn optional(self, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.text(text),
            None => self.raw(None),
        }
    }

    /// The four columns that are set exactly while a request is under way.
    fn lease(self, entry: &Entry) -> Self {
        let lease = entry.lease.as_ref();
        let in_flight = entry.in_flight.as_ref().map(json::<InFlight>);
        self.optional(lease.map(|lease| lease.owner.as_str()))
            .int(lease.map(|lease: &Lease| lease.token.0))
            .int(lease.map(|lease| lease.expires_at.as_millis()))
            .optional(in_flight.as_deref())
    }

    fn end(self) {
        self.array.push(']');
    }
}

const ADD_ATTEMPTS: &str = "
    INSERT INTO attempt
        (entry_id, number, installation_id, resource_id, started_at, ended_at, method, fields, secret_names, outcome, status,
         error_code, message, vercel_id)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8,
           value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13
    FROM json_each(?1)
    ORDER BY key";

const INSERT_ENTRIES: &str = "
    INSERT INTO entry
        (id, installation_id, resource_id, state, desired, generation, origin, mode, reason, created_at, due_at, attempts,
         failures, conflicts, rejected, hold_id)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8,
           value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13, value ->> 14, value ->> 15
    FROM json_each(?1)
    ORDER BY key";

const UPDATE_ENTRIES: &str = "
    UPDATE entry
    SET state = value ->> 1,
        desired = coalesce(value ->> 2, desired),
        generation = value ->> 3,
        mode = value ->> 4,
        reason = value ->> 5,
        due_at = value ->> 6,
        attempts = value ->> 7,
        failures = value ->> 8,
        conflicts = value ->> 9,
        rejected = value ->> 10,
        hold_id = value ->> 11,
        lease_owner = value ->> 12,
        lease_token = value ->> 13,
        lease_expires_at = value ->> 14,
        in_flight = value ->> 15,
        closed_at = value ->> 16
    FROM json_each(?1)
    WHERE entry.id = value ->> 0
      AND entry.closed_at IS NULL";

const UPDATE_LEASES: &str = "
    UPDATE entry
    SET lease_owner = value ->> 1,
        lease_token = value ->> 2,
        lease_expires_at = value ->> 3,
        in_flight = value ->> 4
    FROM json_each(?1)
    WHERE entry.id = value ->> 0
      AND entry.closed_at IS NULL";

const PUT_RESOURCES: &str = "
    INSERT INTO resource
        (installation_id, resource_id, acknowledged, doubt, dismissed, row_hash, missing_since, missing_sweeps, acknowledged_at)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, unhex(value ->> 5), value ->> 6, value ->> 7,
           value ->> 8
    FROM json_each(?1)
    -- Without it the ON of the conflict would be taken for one of a join.
    WHERE true
    ORDER BY key
    ON CONFLICT (installation_id, resource_id) DO UPDATE
    SET acknowledged = excluded.acknowledged,
        doubt = excluded.doubt,
        dismissed = excluded.dismissed,
        row_hash = excluded.row_hash,
        missing_since = excluded.missing_since,
        missing_sweeps = excluded.missing_sweeps,
        acknowledged_at = excluded.acknowledged_at";

const UPDATE_DOUBTS: &str = "
    UPDATE resource
    SET doubt = value ->> 2
    FROM json_each(?1)
    WHERE resource.installation_id = value ->> 0
      AND resource.resource_id = value ->> 1";
