//! A range of resources at a glance: from the index alone, in one text.

use crate::store::Glances;
use crate::store::codec;
use crate::store::codec::Cells as _;
use crate::store::fault::Fault;

use super::pool::Transaction;

/// See [`crate::store::Store::glance_between`].
pub(super) async fn between(
    transaction: &mut Transaction,
    first: (&str, &str),
    last: (&str, &str),
    limit: u32,
) -> Result<Option<Glances>, Fault> {
    // Ids hold no control characters.
    let row = transaction
        .query(
            "SELECT count(*) AS found,
                    string_agg(concat(installation_id, E'\\t', resource_id, E'\\t', encode(row_hash, 'hex'),
                                      CASE WHEN missing_since IS NOT NULL THEN '!' END, E'\\n'), '') AS lines
             FROM (SELECT installation_id, resource_id, row_hash, missing_since
                   FROM resource
                   WHERE (installation_id, resource_id) >= ($1, $2)
                     AND (installation_id, resource_id) <= ($3, $4)
                   ORDER BY installation_id, resource_id
                   LIMIT $5) AS known",
        )
        .bind(first.0.to_owned())
        .bind(first.1.to_owned())
        .bind(last.0.to_owned())
        .bind(last.1.to_owned())
        .bind(i64::from(limit) + 1)
        .fetch_one(transaction.connection())
        .await?;
    if row.integer("found")? > i64::from(limit) {
        return Ok(None);
    }
    let lines = row.text_or_null("lines")?;
    let mut glances = codec::glances(lines.unwrap_or_default())?;
    let entries = transaction
        .query(
            "SELECT installation_id, resource_id, state
             FROM entry
             WHERE closed_at IS NULL
               AND (installation_id, resource_id) >= ($1, $2)
               AND (installation_id, resource_id) <= ($3, $4)",
        )
        .bind(first.0.to_owned())
        .bind(first.1.to_owned())
        .bind(last.0.to_owned())
        .bind(last.1.to_owned())
        .fetch_all(transaction.connection())
        .await?;
    for row in &entries {
        codec::note_entry(&mut glances, row)?;
    }
    let quarantined = transaction
        .query(
            "SELECT installation_id, resource_id, row_hash
             FROM quarantine
             WHERE slot = ''::bytea
               AND (installation_id, resource_id) >= ($1, $2)
               AND (installation_id, resource_id) <= ($3, $4)",
        )
        .bind(first.0.to_owned())
        .bind(first.1.to_owned())
        .bind(last.0.to_owned())
        .bind(last.1.to_owned())
        .fetch_all(transaction.connection())
        .await?;
    for row in &quarantined {
        codec::note_quarantined(&mut glances, row)?;
    }
    Ok(Some(glances))
}
