//! Unusable rows of the source, a page at a time.

use std::collections::BTreeMap;

use crate::model::RowHash;
use crate::store::Quarantined;
use crate::store::codec::{self, Cells as _};
use crate::store::fault::Fault;
use crate::store::rules::quarantine_slot;

use super::columns;
use super::pool::Transaction;

/// The shown ids and the slot: what tells unusable rows apart.
type Id = (String, String, Vec<u8>);

/// Keeps unusable rows; returns which of them are new or changed, by index.
pub(super) async fn keep(
    transaction: &mut Transaction,
    unusable: &[Quarantined],
    sweep: Option<u64>,
) -> Result<Vec<usize>, Fault> {
    if unusable.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Id> = unusable.iter().map(id).collect();
    let mut hashes = known(transaction, &ids).await?;
    let mut new = Vec::new();
    // A page may hold rows of one id: the last of them stays.
    let mut put: BTreeMap<&Id, &Quarantined> = BTreeMap::new();
    for (index, (id, row)) in ids.iter().zip(unusable).enumerate() {
        if hashes.insert(id.clone(), row.row_hash) != Some(row.row_hash) {
            new.push(index);
            put.insert(id, row);
        }
    }
    let met: Vec<&Id> = ids.iter().filter(|id| !put.contains_key(id)).collect();
    let sweep = sweep.map(|number| i64::try_from(number).unwrap_or(i64::MAX));
    if sweep.is_some() && !met.is_empty() {
        meet(transaction, &met, sweep).await?;
    }
    if !put.is_empty() {
        write(transaction, &put, sweep).await?;
    }
    Ok(new)
}

fn id(row: &Quarantined) -> Id {
    let shown = |text: &str| columns::text(text).into_owned();
    (
        shown(&row.installation_id),
        shown(&row.resource_id),
        quarantine_slot(row),
    )
}

type IdColumns<'a> = (Vec<&'a str>, Vec<&'a str>, Vec<&'a [u8]>);

fn id_columns<'a>(ids: impl Iterator<Item = &'a Id>) -> IdColumns<'a> {
    let mut columns: IdColumns<'a> = Default::default();
    for (installation_id, resource_id, slot) in ids {
        columns.0.push(installation_id);
        columns.1.push(resource_id);
        columns.2.push(slot);
    }
    columns
}

async fn known(transaction: &mut Transaction, ids: &[Id]) -> Result<BTreeMap<Id, RowHash>, Fault> {
    let (installations, resources, slots) = id_columns(ids.iter());
    let rows = transaction
        .query(
            "SELECT quarantine.installation_id, quarantine.resource_id, quarantine.slot, quarantine.row_hash
             FROM unnest($1::text[], $2::text[], $3::bytea[]) AS wanted (installation_id, resource_id, slot)
             JOIN quarantine USING (installation_id, resource_id, slot)",
        )
        .bind(installations)
        .bind(resources)
        .bind(slots)
        .fetch_all(transaction.connection())
        .await?;
    let mut known = BTreeMap::new();
    for row in &rows {
        let id = (
            row.text("installation_id")?.to_owned(),
            row.text("resource_id")?.to_owned(),
            row.bytes("slot")?.to_owned(),
        );
        known.insert(id, codec::fingerprint(row.bytes("row_hash")?, "row_hash")?);
    }
    Ok(known)
}

/// Marks rows that are as they were as met by this sweep.
async fn meet(transaction: &mut Transaction, ids: &[&Id], sweep: Option<i64>) -> Result<(), Fault> {
    let (installations, resources, slots) = id_columns(ids.iter().copied());
    transaction
        .query(
            "UPDATE quarantine
             SET sweep = $4
             FROM unnest($1::text[], $2::text[], $3::bytea[]) AS met (installation_id, resource_id, slot)
             WHERE quarantine.installation_id = met.installation_id
               AND quarantine.resource_id = met.resource_id
               AND quarantine.slot = met.slot",
        )
        .bind(installations)
        .bind(resources)
        .bind(slots)
        .bind(sweep)
        .execute(transaction.connection())
        .await?;
    Ok(())
}

async fn write(
    transaction: &mut Transaction,
    rows: &BTreeMap<&Id, &Quarantined>,
    sweep: Option<i64>,
) -> Result<(), Fault> {
    let (installations, resources, slots) = id_columns(rows.keys().copied());
    let column = |of: fn(&Quarantined) -> &str| -> Vec<String> {
        rows.values()
            .map(|row| columns::text(of(row)).into_owned())
            .collect()
    };
    let hashes: Vec<Vec<u8>> = rows
        .values()
        .map(|row| row.row_hash.as_bytes().to_vec())
        .collect();
    let since: Vec<i64> = rows.values().map(|row| row.since.as_millis()).collect();
    transaction
        .query(
            "INSERT INTO quarantine
                 (installation_id, resource_id, slot, column_name, problem, accepted, row_hash, since, sweep)
             SELECT new.*, $9::bigint
             FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::text[], $6::text[], $7::bytea[], $8::bigint[])
                  AS new
             ON CONFLICT (installation_id, resource_id, slot) DO UPDATE
             SET column_name = excluded.column_name,
                 problem = excluded.problem,
                 accepted = excluded.accepted,
                 row_hash = excluded.row_hash,
                 since = excluded.since,
                 sweep = excluded.sweep",
        )
        .bind(installations)
        .bind(resources)
        .bind(slots)
        .bind(column(|row| &row.column))
        .bind(column(|row| &row.problem))
        .bind(column(|row| &row.accepted))
        .bind(hashes)
        .bind(since)
        .bind(sweep)
        .execute(transaction.connection())
        .await?;
    Ok(())
}
