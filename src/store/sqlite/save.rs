//! Writes many records, each by statements that are prepared once.
//!
//! What did not change is not written: a claim touches the lease and the doubt, and no index that says nothing of them.

use rusqlite::{CachedStatement, Params, params};

use crate::model::{Entry, EntryId, InFlight, Record, Timestamp};
use crate::store::AttemptRecord;
use crate::store::steps::{AttemptRow, Change};

use crate::store::codec::json;
use crate::store::fault::Fault;

use super::db::Db;

/// Writes what changed of the records, their entries and the entries that were closed.
///
/// No two changes are of one resource.
pub(super) fn save_all(db: &Db, changes: &mut [Change<'_>]) -> Result<(), Fault> {
    // A closed entry makes room for the next one of its resource, and an entry needs its resource.
    let mut entries = Entries::new(db)?;
    for change in &*changes {
        if let Some(entry) = change.closed {
            entries.update(change.before.entry.as_ref(), entry, Some(change.now))?;
        }
    }
    save_resources(db, changes)?;
    for change in &*changes {
        let before = change.before.entry.as_ref();
        if let Some(entry) = &change.after.entry
            && entry.id != EntryId(0)
            && before != Some(entry)
        {
            entries.update(before, entry, None)?;
        }
    }
    insert_entries(db, changes)
}

/// A statement that writes one row each time.
struct One<'c> {
    /// What it writes, for whoever reads that it failed.
    what: &'static str,
    statement: CachedStatement<'c>,
}

impl<'c> One<'c> {
    fn new(db: &'c Db, what: &'static str, sql: &str) -> Result<Self, Fault> {
        let statement = db.prepare(sql)?;
        Ok(Self { what, statement })
    }

    fn run(&mut self, params: impl Params) -> Result<(), Fault> {
        match self.statement.execute(params)? {
            1 => Ok(()),
            rows => Err(Fault::affected(
                self.what,
                u64::try_from(rows).unwrap_or(u64::MAX),
            )),
        }
    }
}

/// Keeps attempts in the history.
pub(super) fn add_attempts(db: &Db, attempts: &[AttemptRow<'_>]) -> Result<(), Fault> {
    let mut add = One::new(db, "an attempt", ADD_ATTEMPT)?;
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
        add.run(params![
            entry_id.0,
            number,
            key.installation_id.as_str(),
            key.resource_id.as_str(),
            started_at.as_millis(),
            ended_at.as_millis(),
            method,
            json(fields),
            json(secret_names),
            outcome,
            status,
            error_code,
            message,
            vercel_id,
        ])?;
    }
    Ok(())
}

fn insert_entries(db: &Db, changes: &mut [Change<'_>]) -> Result<(), Fault> {
    let mut insert = One::new(db, "a new entry", INSERT_ENTRY)?;
    for change in changes {
        let Record { key, entry, .. } = &mut *change.after;
        let Some(entry) = entry.as_mut().filter(|entry| entry.id == EntryId(0)) else {
            continue;
        };
        insert.run(params![
            key.installation_id.as_str(),
            key.resource_id.as_str(),
            entry.state.name(),
            json(&entry.desired),
            entry.generation,
            entry.origin.name(),
            entry.mode.name(),
            entry.reason.code(),
            entry.created_at.as_millis(),
            entry.due_at.as_millis(),
            entry.attempts,
            entry.failures,
            entry.conflicts,
            json(&entry.rejected),
            entry.hold,
        ])?;
        // One that was never used before, also by an entry that was pruned.
        entry.id = EntryId(db.last_number());
    }
    Ok(())
}

/// The statements that change an entry, from the one that writes the least.
struct Entries<'c> {
    lease: One<'c>,
    course: One<'c>,
    whole: One<'c>,
}

impl<'c> Entries<'c> {
    fn new(db: &'c Db) -> Result<Self, Fault> {
        let what = "an entry";
        Ok(Self {
            lease: One::new(db, what, UPDATE_LEASE)?,
            course: One::new(db, what, UPDATE_COURSE)?,
            whole: One::new(db, what, UPDATE_ENTRY)?,
        })
    }

    fn update(
        &mut self,
        before: Option<&Entry>,
        entry: &Entry,
        closed_at: Option<Timestamp>,
    ) -> Result<(), Fault> {
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
            lease,
            in_flight,
        } = entry;
        let owner = lease.as_ref().map(|lease| lease.owner.as_str());
        let token = lease.as_ref().map(|lease| lease.token.0);
        let expires_at = lease.as_ref().map(|lease| lease.expires_at.as_millis());
        let in_flight = in_flight.as_ref().map(json::<InFlight>);
        let before = before.filter(|before| before.id == *id);
        if closed_at.is_none() && before.is_some_and(|before| is_lease_alone(before, entry)) {
            return self
                .lease
                .run(params![id.0, owner, token, expires_at, in_flight]);
        }
        let is_same = before.is_some_and(|before| before.desired == *desired);
        let is_course_alone = is_same
            && before.is_some_and(|before| {
                (generation, rejected, hold) == (&before.generation, &before.rejected, &before.hold)
            });
        let course = params![
            id.0,
            owner,
            token,
            expires_at,
            in_flight,
            state.name(),
            mode.name(),
            reason.code(),
            due_at.as_millis(),
            attempts,
            failures,
            conflicts,
            closed_at.map(Timestamp::as_millis),
        ];
        if is_course_alone {
            return self.course.run(course);
        }
        let desired = (!is_same).then(|| json(desired));
        let rejected = json(rejected);
        let whole = params![desired, generation, rejected, hold];
        self.whole.run(&*[course, whole].concat())
    }
}

fn save_resources(db: &Db, changes: &[Change<'_>]) -> Result<(), Fault> {
    let what = "a resource";
    let mut update_doubt = One::new(db, what, UPDATE_DOUBT)?;
    let mut update_seen = One::new(db, what, UPDATE_SEEN)?;
    let mut put = One::new(db, what, PUT_RESOURCE)?;
    for change in changes.iter().filter(|change| change.changes_resource()) {
        let (before, after) = (change.before, &*change.after);
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
        let row_hash = row_hash.as_ref();
        let since = missing.map(|missing| missing.since.as_millis());
        let sweeps = missing.map(|missing| missing.sweeps);
        // Only a resource that is there has a hash.
        let is_held_alike = before.row_hash.is_some()
            && (acknowledged, dismissed, acknowledged_at)
                == (
                    &before.acknowledged,
                    &before.dismissed,
                    &before.acknowledged_at,
                );
        let is_seen_alike = (row_hash, missing) == (before.row_hash.as_ref(), &before.missing);
        let row_hash = row_hash.map(|hash| &hash.as_bytes()[..]);
        if is_held_alike && is_seen_alike {
            update_doubt.run(params![installation_id, resource_id, json(doubt)])?;
        } else if is_held_alike && *doubt == before.doubt {
            update_seen.run(params![
                installation_id,
                resource_id,
                row_hash,
                since,
                sweeps
            ])?;
        } else {
            put.run(params![
                installation_id,
                resource_id,
                json(acknowledged),
                json(doubt),
                json(dismissed),
                row_hash,
                since,
                sweeps,
                acknowledged_at.map(Timestamp::as_millis),
            ])?;
        }
    }
    Ok(())
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

const ADD_ATTEMPT: &str = "
    INSERT INTO attempt
        (entry_id, number, installation_id, resource_id, started_at, ended_at, method, fields, secret_names, outcome, status,
         error_code, message, vercel_id)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";

const INSERT_ENTRY: &str = "
    INSERT INTO entry
        (installation_id, resource_id, state, desired, generation, origin, mode, reason, created_at, due_at, attempts, failures,
         conflicts, rejected, hold_id)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)";

/// The columns that are set exactly while a request is under way.
macro_rules! set_lease {
    () => {
        "UPDATE entry
    SET lease_owner = ?2,
        lease_token = ?3,
        lease_expires_at = ?4,
        in_flight = ?5"
    };
}

/// What an attempt changes: no column of a constraint that looks into another table, so that there is nothing to undo by itself.
macro_rules! set_course {
    () => {
        concat!(
            set_lease!(),
            ",
        state = ?6,
        mode = ?7,
        reason = ?8,
        due_at = ?9,
        attempts = ?10,
        failures = ?11,
        conflicts = ?12,
        closed_at = ?13"
        )
    };
}

macro_rules! of_open_entry {
    () => {
        "
    WHERE id = ?1
      AND closed_at IS NULL"
    };
}

const UPDATE_LEASE: &str = concat!(set_lease!(), of_open_entry!());

const UPDATE_COURSE: &str = concat!(set_course!(), of_open_entry!());

const UPDATE_ENTRY: &str = concat!(
    set_course!(),
    ",
        desired = coalesce(?14, desired),
        generation = ?15,
        rejected = ?16,
        hold_id = ?17",
    of_open_entry!()
);

const PUT_RESOURCE: &str = "
    INSERT INTO resource
        (installation_id, resource_id, acknowledged, doubt, dismissed, row_hash, missing_since, missing_sweeps, acknowledged_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
    ON CONFLICT (installation_id, resource_id) DO UPDATE
    SET acknowledged = excluded.acknowledged,
        doubt = excluded.doubt,
        dismissed = excluded.dismissed,
        row_hash = excluded.row_hash,
        missing_since = excluded.missing_since,
        missing_sweeps = excluded.missing_sweeps,
        acknowledged_at = excluded.acknowledged_at";

const UPDATE_DOUBT: &str = "
    UPDATE resource
    SET doubt = ?3
    WHERE installation_id = ?1
      AND resource_id = ?2";

const UPDATE_SEEN: &str = "
    UPDATE resource
    SET row_hash = ?3,
        missing_since = ?4,
        missing_sweeps = ?5
    WHERE installation_id = ?1
      AND resource_id = ?2";

#[cfg(test)]
mod tests;
