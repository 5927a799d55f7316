//! Rows of the state as the types of the model, and back.

use std::fmt::Display;

use serde::de::value::{Error as NameError, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer as _};
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::model::record::Missing;
use crate::model::{
    Entry, EntryId, EntryState, Field, FieldSet, Fingerprint, InstallationId, Lease, LeaseToken,
    Mode, Origin, Record, ResourceId, ResourceKey, Snapshot, Timestamp,
};
use crate::plan::guard::Found;
use crate::plan::pending;
use crate::store::console::{Act, Attempt, InstallationSummary, ListedEntry};
use crate::store::hold::{Hold, HoldState};
use crate::store::{Counts, Glance, Glances, Pause, PauseKind, Progress, Quarantined};

use super::fault::Fault;

/// The cells of a row, by column name, in the few types that the state's tables have.
///
/// They are borrowed from the row: a decoder copies what it keeps, and nothing that it parses.
pub(super) trait Cells {
    fn text(&self, column: &str) -> Result<&str, Fault>;
    fn text_or_null(&self, column: &str) -> Result<Option<&str>, Fault>;
    fn integer(&self, column: &str) -> Result<i64, Fault>;
    fn integer_or_null(&self, column: &str) -> Result<Option<i64>, Fault>;
    fn bytes(&self, column: &str) -> Result<&[u8], Fault>;
    fn bytes_or_null(&self, column: &str) -> Result<Option<&[u8]>, Fault>;
    fn flag(&self, column: &str) -> Result<bool, Fault>;
}

impl Cells for PgRow {
    fn text(&self, column: &str) -> Result<&str, Fault> {
        Ok(self.try_get(column)?)
    }
    fn text_or_null(&self, column: &str) -> Result<Option<&str>, Fault> {
        Ok(self.try_get(column)?)
    }
    fn integer(&self, column: &str) -> Result<i64, Fault> {
        Ok(self.try_get(column)?)
    }
    fn integer_or_null(&self, column: &str) -> Result<Option<i64>, Fault> {
        Ok(self.try_get(column)?)
    }
    fn bytes(&self, column: &str) -> Result<&[u8], Fault> {
        Ok(self.try_get(column)?)
    }
    fn bytes_or_null(&self, column: &str) -> Result<Option<&[u8]>, Fault> {
        Ok(self.try_get(column)?)
    }
    fn flag(&self, column: &str) -> Result<bool, Fault> {
        Ok(self.try_get(column)?)
    }
}

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
pub(super) fn record(key: &ResourceKey, row: &impl Cells) -> Result<Record, Fault> {
    let Some(acknowledged) = row.text_or_null("acknowledged")? else {
        return Ok(Record::new(key.clone()));
    };
    Ok(Record {
        key: key.clone(),
        acknowledged: parsed::<Snapshot>(acknowledged, "acknowledged")?,
        doubt: parsed(row.text("doubt")?, "doubt")?,
        dismissed: parsed(row.text("dismissed")?, "dismissed")?,
        row_hash: row
            .bytes_or_null("row_hash")?
            .map(|bytes| fingerprint(bytes, "row_hash"))
            .transpose()?,
        missing: missing(row)?,
        acknowledged_at: time(row, "acknowledged_at")?,
        entry: match row.integer_or_null("id")? {
            Some(_) => Some(entry(row)?),
            None => None,
        },
    })
}

fn missing(row: &impl Cells) -> Result<Option<Missing>, Fault> {
    let missing = (
        time(row, "missing_since")?,
        row.integer_or_null("missing_sweeps")?,
    );
    Ok(match missing {
        (Some(since), Some(sweeps)) => Some(Missing {
            since,
            sweeps: number(sweeps, "missing_sweeps")?,
        }),
        _ => None,
    })
}

/// The entry in a row with all of its columns.
pub(super) fn entry(row: &impl Cells) -> Result<Entry, Fault> {
    let text = |column| row.text(column);
    let count = |column| number(row.integer(column)?, column);
    Ok(Entry {
        id: EntryId(row.integer("id")?),
        state: EntryState::from_name(text("state")?).ok_or_else(|| unknown("state"))?,
        desired: parsed(text("desired")?, "desired")?,
        generation: count("generation")?,
        origin: Origin::from_name(text("origin")?).ok_or_else(|| unknown("origin"))?,
        mode: named::<Mode>(text("mode")?, "mode")?,
        reason: named(text("reason")?, "reason")?,
        created_at: Timestamp::from_millis(row.integer("created_at")?),
        due_at: Timestamp::from_millis(row.integer("due_at")?),
        attempts: count("attempts")?,
        failures: count("failures")?,
        conflicts: count("conflicts")?,
        rejected: parsed(text("rejected")?, "rejected")?,
        hold: row.integer_or_null("hold_id")?,
        lease: lease(row)?,
        in_flight: row
            .text_or_null("in_flight")?
            .map(|text| parsed(text, "in_flight"))
            .transpose()?,
    })
}

fn lease(row: &impl Cells) -> Result<Option<Lease>, Fault> {
    let lease = (
        row.text_or_null("lease_owner")?,
        row.integer_or_null("lease_token")?,
        time(row, "lease_expires_at")?,
    );
    Ok(match lease {
        (Some(owner), Some(token), Some(expires_at)) => Some(Lease {
            owner: owner.to_owned(),
            token: LeaseToken(token),
            expires_at,
        }),
        _ => None,
    })
}

/// The pause in a row with all of its columns.
pub(super) fn pause(row: &impl Cells) -> Result<Pause, Fault> {
    Ok(Pause {
        installation_id: installation_id(row)?,
        kind: PauseKind::from_name(row.text("kind")?).ok_or_else(|| unknown("kind"))?,
        by: row.text("paused_by")?.to_owned(),
        reason: row.text("reason")?.to_owned(),
        since: Timestamp::from_millis(row.integer("since")?),
        until: time(row, "ends_at")?,
        probe_at: time(row, "probe_at")?,
        probes_failed: number(row.integer("probes_failed")?, "probes_failed")?,
    })
}

/// The unusable row in a row of the quarantine.
pub(super) fn quarantined(row: &impl Cells) -> Result<Quarantined, Fault> {
    let slot = row.bytes("slot")?;
    let row_hash = row.bytes("row_hash")?;
    Ok(Quarantined {
        key: if slot.is_empty() {
            Some(key(row)?)
        } else {
            None
        },
        installation_id: row.text("installation_id")?.to_owned(),
        resource_id: row.text("resource_id")?.to_owned(),
        column: row.text("column_name")?.to_owned(),
        problem: row.text("problem")?.to_owned(),
        accepted: row.text("accepted")?.to_owned(),
        row_hash: fingerprint(row_hash, "row_hash")?,
        since: Timestamp::from_millis(row.integer("since")?),
    })
}

/// The hold in a row with all of its columns.
pub(super) fn hold(row: &impl Cells) -> Result<Hold, Fault> {
    Ok(Hold {
        id: row.integer("id")?,
        state: HoldState::from_name(row.text("state")?).ok_or_else(|| unknown("state"))?,
        origin: Origin::from_name(row.text("origin")?).ok_or_else(|| unknown("origin"))?,
        opened_at: Timestamp::from_millis(row.integer("opened_at")?),
        closed_at: time(row, "closed_at")?,
        found: found(row)?,
    })
}

/// What the guard counted.
pub(super) fn found(row: &impl Cells) -> Result<Found, Fault> {
    Ok(Found {
        destructive: number(row.integer("destructive")?, "destructive")?,
        changes: number(row.integer("changes")?, "changes")?,
    })
}

/// An entry in a row with its resource and, in `sent`, the fields of its attempts.
pub(super) fn listed(row: &impl Cells) -> Result<ListedEntry, Fault> {
    let key = key(row)?;
    let closed_at = time(row, "closed_at")?;
    let entry = entry(row)?;
    let fields: FieldSet = if closed_at.is_some() {
        parsed::<Vec<Field>>(row.text("sent")?, "fields")?
            .into_iter()
            .collect()
    } else {
        let (patch, _) = pending(&record(&key, row)?, &entry.desired);
        let rejected = entry.rejected.keys().copied();
        patch.fields().iter().chain(rejected).collect()
    };
    Ok(ListedEntry {
        key,
        entry,
        fields,
        closed_at,
    })
}

/// The request in a row of the history.
pub(super) fn attempt(row: &impl Cells) -> Result<Attempt, Fault> {
    Ok(Attempt {
        entry_id: EntryId(row.integer("entry_id")?),
        number: number(row.integer("number")?, "number")?,
        started_at: Timestamp::from_millis(row.integer("started_at")?),
        ended_at: Timestamp::from_millis(row.integer("ended_at")?),
        method: row.text("method")?.to_owned(),
        fields: parsed(row.text("fields")?, "fields")?,
        secret_names: parsed(row.text("secret_names")?, "secret_names")?,
        outcome: row.text("outcome")?.to_owned(),
        status: row
            .integer_or_null("status")?
            .map(|status| number(status, "status"))
            .transpose()?,
        error_code: row.text_or_null("error_code")?.map(str::to_owned),
        message: row.text_or_null("message")?.map(str::to_owned),
        vercel_id: row.text_or_null("vercel_id")?.map(str::to_owned),
    })
}

/// What a person did.
pub(super) fn act(row: &impl Cells) -> Result<Act, Fault> {
    let installation_id = row
        .text_or_null("installation_id")?
        .map(InstallationId::new)
        .transpose()
        .map_err(|_| unknown("installation_id"))?;
    let resource_id = row
        .text_or_null("resource_id")?
        .map(ResourceId::new)
        .transpose()
        .map_err(|_| unknown("resource_id"))?;
    Ok(Act {
        at: Timestamp::from_millis(row.integer("at")?),
        actor: row.text("actor")?.to_owned(),
        act: row.text("act")?.to_owned(),
        installation_id,
        resource_id,
        entry_id: row.integer_or_null("entry_id")?.map(EntryId),
        reason: row.text_or_null("reason")?.map(str::to_owned),
    })
}

/// One installation at a glance, with its pauses.
pub(super) fn installation(
    row: &impl Cells,
    pauses: Vec<Pause>,
) -> Result<InstallationSummary, Fault> {
    let count = |column| number(row.integer(column)?, column);
    Ok(InstallationSummary {
        installation_id: installation_id(row)?,
        resources: count("resources")?,
        waiting: count("waiting")?,
        held: count("held")?,
        dead: count("dead")?,
        oldest: time(row, "oldest")?,
        pauses,
        limited_until: time(row, "limited_until")?,
    })
}

/// How many resources there are.
pub(super) fn resources(row: &impl Cells) -> Result<u64, Fault> {
    number(row.integer("resources")?, "resources")
}

/// The counts of the summary line.
pub(super) fn counts(row: &impl Cells) -> Result<Counts, Fault> {
    let count = |column| number(row.integer(column)?, column);
    Ok(Counts {
        waiting: count("waiting")?,
        in_flight: count("in_flight")?,
        held: count("held")?,
        dead: count("dead")?,
        quarantined: count("quarantined")?,
        paused: count("paused")?,
        missing: count("missing")?,
        oldest_waiting: time(row, "oldest_waiting")?,
        last_acknowledged: time(row, "last_acknowledged")?,
    })
}

/// What a pass needs to know of one resource to skip it.
pub(super) fn glance(row: &impl Cells) -> Result<Glance, Fault> {
    let hash = |column| {
        row.bytes_or_null(column)?
            .map(|bytes| fingerprint(bytes, column))
            .transpose()
    };
    Ok(Glance {
        row_hash: hash("row_hash")?,
        entry: row.text_or_null("state")?.and_then(EntryState::from_name),
        quarantined: hash("quarantined")?,
        missing: row.flag("missing")?,
    })
}

/// A range of resources from its lines: the ids, the row's hash in hexadecimal, `!` for a missing one, separated by tabs.
pub(super) fn glances(lines: &str) -> Result<Glances, Fault> {
    let mut glances = Glances::default();
    for line in lines.lines() {
        let mut parts = line.split('\t');
        let (Some(installation_id), Some(resource_id), Some(rest)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(unknown("resource"));
        };
        let digits = rest.trim_end_matches('!');
        let glance = Glance {
            row_hash: match digits {
                "" => None,
                digits => Some(Fingerprint::from_bytes(
                    unhex(digits).ok_or_else(|| unknown("row_hash"))?,
                )),
            },
            missing: digits.len() < rest.len(),
            ..Glance::default()
        };
        glances.push((installation_id, resource_id), glance);
    }
    Ok(glances)
}

fn unhex(digits: &str) -> Option<[u8; 16]> {
    let digits: &[u8; 32] = digits.as_bytes().try_into().ok()?;
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

/// Notes the next resource of a range.
pub(super) fn note_resource(glances: &mut Glances, row: &impl Cells) -> Result<(), Fault> {
    let key = (row.text("installation_id")?, row.text("resource_id")?);
    let hash = row.bytes_or_null("row_hash")?;
    let glance = Glance {
        row_hash: hash.map(|hash| fingerprint(hash, "row_hash")).transpose()?,
        missing: row.integer_or_null("missing_since")?.is_some(),
        ..Glance::default()
    };
    glances.push(key, glance);
    Ok(())
}

/// Notes an open entry of a range.
pub(super) fn note_entry(glances: &mut Glances, row: &impl Cells) -> Result<(), Fault> {
    let key = (row.text("installation_id")?, row.text("resource_id")?);
    let state = EntryState::from_name(row.text("state")?);
    glances.change(key, |glance| glance.entry = state);
    Ok(())
}

/// Notes an unusable row of a range.
pub(super) fn note_quarantined(glances: &mut Glances, row: &impl Cells) -> Result<(), Fault> {
    let key = (row.text("installation_id")?, row.text("resource_id")?);
    let hash = fingerprint(row.bytes("row_hash")?, "row_hash")?;
    glances.change(key, |glance| glance.quarantined = Some(hash));
    Ok(())
}

/// Notes where polls or sweeps stand.
pub(super) fn note_progress(progress: &mut Progress, row: &impl Cells) -> Result<(), Fault> {
    let name = row.text("name")?;
    let value = row.text("value")?;
    match name {
        "poll" => progress.poll = Some(parsed(value, "poll")?),
        _ => progress.sweep = Some(parsed(value, "sweep")?),
    }
    Ok(())
}

/// The lease of the watch in a row with all of its columns.
pub(super) fn watch_lease(row: &impl Cells) -> Result<Lease, Fault> {
    Ok(Lease {
        owner: row.text("owner")?.to_owned(),
        token: LeaseToken(row.integer("token")?),
        expires_at: Timestamp::from_millis(row.integer("expires_at")?),
    })
}

/// The installation that a row names.
pub(super) fn installation_id(row: &impl Cells) -> Result<InstallationId, Fault> {
    let id = row.text("installation_id")?;
    InstallationId::new(id).map_err(|_| unknown("installation_id"))
}

/// The resource that a row names.
pub(super) fn key(row: &impl Cells) -> Result<ResourceKey, Fault> {
    let installation_id = row.text("installation_id")?;
    let resource_id = row.text("resource_id")?;
    ResourceKey::new(installation_id, resource_id).map_err(|_| unknown("resource_id"))
}

/// An instant that may be absent.
pub(super) fn time(row: &impl Cells, column: &'static str) -> Result<Option<Timestamp>, Fault> {
    Ok(row.integer_or_null(column)?.map(Timestamp::from_millis))
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

/// How long the JSON of a column is at most as a rule: room for that much is made at once.
const JSON_BYTES_USUAL: usize = 512;

/// The JSON for a column.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> String {
    let mut text = Vec::with_capacity(JSON_BYTES_USUAL);
    serde_json::to_writer(&mut text, value).expect("the model's types are JSON by construction");
    String::from_utf8(text).expect("JSON is UTF-8")
}

/// Keys as a JSON array of pairs, for `json_each`.
pub(super) fn key_pairs<'a>(keys: impl IntoIterator<Item = &'a ResourceKey>) -> String {
    let pairs: Vec<[&str; 2]> = keys
        .into_iter()
        .map(|key| [key.installation_id.as_str(), key.resource_id.as_str()])
        .collect();
    json(&pairs)
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
