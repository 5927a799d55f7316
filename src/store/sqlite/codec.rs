//! Rows of the state as the types of the model, and back.

use std::fmt::Display;

use serde::de::value::{Error as NameError, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer as _};
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::model::record::Missing;
use crate::model::{
    Entry, EntryId, EntryState, Fingerprint, InstallationId, Lease, LeaseToken, Mode, Origin,
    Record, ResourceKey, Snapshot, Timestamp,
};
use crate::store::{Pause, PauseKind, Quarantined};

use super::fault::Fault;

/// The columns of an entry, in the names that [`entry`] reads.
macro_rules! entry_columns {
    () => {
        "entry.id, entry.state, entry.desired, entry.generation, entry.origin, entry.mode, entry.reason, \
         entry.created_at, entry.due_at, entry.attempts, entry.failures, entry.conflicts, entry.rejected, \
         entry.hold_id, entry.lease_owner, entry.lease_token, entry.lease_expires_at, entry.in_flight"
    };
}
/// The columns of a resource, in the names that [`record`] reads.
macro_rules! resource_columns {
    () => {
        "resource.acknowledged, resource.doubt, resource.dismissed, resource.row_hash, \
         resource.missing_since, resource.missing_sweeps, resource.acknowledged_at"
    };
}
/// The columns of a pause, in the names that [`pause`] reads.
macro_rules! pause_columns {
    () => {
        "pause.installation_id, pause.kind, pause.paused_by, pause.reason, pause.since, pause.ends_at, \
         pause.probe_at, pause.probes_failed"
    };
}
pub(super) use {entry_columns, pause_columns, resource_columns};

/// The record in a row that joins a resource with its open entry; both may be absent.
pub(super) fn record(key: &ResourceKey, row: &SqliteRow) -> Result<Record, Fault> {
    let Some(acknowledged) = row.try_get::<Option<String>, _>("acknowledged")? else {
        return Ok(Record::new(key.clone()));
    };
    let missing = match (
        time(row, "missing_since")?,
        row.try_get::<Option<i64>, _>("missing_sweeps")?,
    ) {
        (Some(since), Some(sweeps)) => Some(Missing {
            since,
            sweeps: number(sweeps, "missing_sweeps")?,
        }),
        _ => None,
    };
    Ok(Record {
        key: key.clone(),
        acknowledged: parsed::<Snapshot>(&acknowledged, "acknowledged")?,
        doubt: parsed(&row.try_get::<String, _>("doubt")?, "doubt")?,
        dismissed: parsed(&row.try_get::<String, _>("dismissed")?, "dismissed")?,
        row_hash: row
            .try_get::<Option<Vec<u8>>, _>("row_hash")?
            .map(|bytes| fingerprint(&bytes, "row_hash"))
            .transpose()?,
        missing,
        acknowledged_at: time(row, "acknowledged_at")?,
        entry: match row.try_get::<Option<i64>, _>("id")? {
            Some(_) => Some(entry(row)?),
            None => None,
        },
    })
}

/// The entry in a row with all of its columns.
pub(super) fn entry(row: &SqliteRow) -> Result<Entry, Fault> {
    let text = |column| row.try_get::<String, _>(column).map_err(Fault::from);
    let count = |column| number(row.try_get::<i64, _>(column)?, column);
    let lease = match (
        row.try_get::<Option<String>, _>("lease_owner")?,
        row.try_get::<Option<i64>, _>("lease_token")?,
        time(row, "lease_expires_at")?,
    ) {
        (Some(owner), Some(token), Some(expires_at)) => Some(Lease {
            owner,
            token: LeaseToken(token),
            expires_at,
        }),
        _ => None,
    };
    let state = text("state")?;
    Ok(Entry {
        id: EntryId(row.try_get("id")?),
        state: EntryState::from_name(&state).ok_or_else(|| unknown("state"))?,
        desired: parsed(&text("desired")?, "desired")?,
        generation: count("generation")?,
        origin: Origin::from_name(&text("origin")?).ok_or_else(|| unknown("origin"))?,
        mode: named::<Mode>(&text("mode")?, "mode")?,
        reason: named(&text("reason")?, "reason")?,
        created_at: Timestamp::from_millis(row.try_get("created_at")?),
        due_at: Timestamp::from_millis(row.try_get("due_at")?),
        attempts: count("attempts")?,
        failures: count("failures")?,
        conflicts: count("conflicts")?,
        rejected: parsed(&text("rejected")?, "rejected")?,
        hold: row.try_get("hold_id")?,
        lease,
        in_flight: row
            .try_get::<Option<String>, _>("in_flight")?
            .map(|text| parsed(&text, "in_flight"))
            .transpose()?,
    })
}

/// The pause in a row with all of its columns.
pub(super) fn pause(row: &SqliteRow) -> Result<Pause, Fault> {
    let kind: String = row.try_get("kind")?;
    Ok(Pause {
        installation_id: installation_id(row)?,
        kind: PauseKind::from_name(&kind).ok_or_else(|| unknown("kind"))?,
        by: row.try_get("paused_by")?,
        reason: row.try_get("reason")?,
        since: Timestamp::from_millis(row.try_get("since")?),
        until: time(row, "ends_at")?,
        probe_at: time(row, "probe_at")?,
        probes_failed: number(row.try_get("probes_failed")?, "probes_failed")?,
    })
}

/// The unusable row in a row of the quarantine.
pub(super) fn quarantined(row: &SqliteRow) -> Result<Quarantined, Fault> {
    let slot: Vec<u8> = row.try_get("slot")?;
    let row_hash: Vec<u8> = row.try_get("row_hash")?;
    Ok(Quarantined {
        key: if slot.is_empty() {
            Some(key(row)?)
        } else {
            None
        },
        installation_id: row.try_get("installation_id")?,
        resource_id: row.try_get("resource_id")?,
        column: row.try_get("column_name")?,
        problem: row.try_get("problem")?,
        accepted: row.try_get("accepted")?,
        row_hash: fingerprint(&row_hash, "row_hash")?,
        since: Timestamp::from_millis(row.try_get("since")?),
    })
}

/// The installation that a row names.
pub(super) fn installation_id(row: &SqliteRow) -> Result<InstallationId, Fault> {
    let id: String = row.try_get("installation_id")?;
    InstallationId::new(&id).map_err(|_| unknown("installation_id"))
}

/// The resource that a row names.
pub(super) fn key(row: &SqliteRow) -> Result<ResourceKey, Fault> {
    let installation_id: String = row.try_get("installation_id")?;
    let resource_id: String = row.try_get("resource_id")?;
    ResourceKey::new(&installation_id, &resource_id).map_err(|_| unknown("resource_id"))
}

/// An instant that may be absent.
pub(super) fn time(row: &SqliteRow, column: &'static str) -> Result<Option<Timestamp>, Fault> {
    Ok(row
        .try_get::<Option<i64>, _>(column)?
        .map(Timestamp::from_millis))
}

/// A count.
pub(super) fn number<T: TryFrom<i64>>(value: i64, column: &'static str) -> Result<T, Fault> {
    T::try_from(value).map_err(|_| unknown(column))
}

/// A fingerprint's 16 bytes.
pub(super) fn fingerprint(bytes: &[u8], column: &'static str) -> Result<Fingerprint, Fault> {
    let bytes = <[u8; 16]>::try_from(bytes).map_err(|_| unknown(column))?;
    Ok(Fingerprint::from_bytes(bytes))
}

/// What a JSON column holds.
pub(super) fn parsed<T: DeserializeOwned>(text: &str, column: &'static str) -> Result<T, Fault> {
    serde_json::from_str(text).map_err(|_| unknown(column))
}

/// The JSON for a column.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("the model's types are JSON by construction")
}

/// Keys as a JSON array of pairs, for `json_each`.
pub(super) fn key_pairs<'a>(keys: impl IntoIterator<Item = &'a ResourceKey>) -> String {
    let pairs: Vec<[&str; 2]> = keys
        .into_iter()
        .map(|key| [key.installation_id.as_str(), key.resource_id.as_str()])
        .collect();
    json(&pairs)
}

/// The stable name that a type of the model has in JSON.
pub(super) fn name_of<T: Serialize>(value: &T) -> String {
    let quoted = json(value);
    quoted.trim_matches('"').to_owned()
}

/// The value of that name.
fn named<T: for<'a> Deserialize<'a>>(name: &str, column: &'static str) -> Result<T, Fault> {
    let name: StrDeserializer<'_, NameError> = name.into_deserializer();
    T::deserialize(name).map_err(|_| unknown(column))
}

fn unknown(column: impl Display) -> Fault {
    Fault::Corrupt(format!(
        "the column {column} holds what this version does not know"
    ))
}
