//! What is read from the state, in a transaction that writes or in one of its own.

use std::collections::BTreeMap;

use crate::model::{InstallationId, Lease, Record, ResourceKey, Timestamp};
use crate::plan::claim::DUE_HORIZON;
use crate::store::codec::{self, Cells as _, time};
use crate::store::fault::Fault;
use crate::store::{Counts, Glance, Pause, Progress};

use super::columns;
use super::pool::Transaction;

/// The records of these resources, in order.
pub(super) async fn records(
    transaction: &mut Transaction,
    keys: &[ResourceKey],
) -> Result<Vec<Record>, Fault> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let (installations, resources) = columns::keys(keys);
    let rows = transaction
        .query(concat!(
            "SELECT ",
            codec::resource_columns!(),
            ", ",
            codec::entry_columns!(),
            " FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (installation_id, resource_id, position)
             LEFT JOIN resource
               ON resource.installation_id = wanted.installation_id
              AND resource.resource_id = wanted.resource_id
             LEFT JOIN entry
               ON entry.installation_id = resource.installation_id
              AND entry.resource_id = resource.resource_id
              AND entry.closed_at IS NULL
             ORDER BY wanted.position"
        ))
        .bind(installations)
        .bind(resources)
        .fetch_all(transaction.connection())
        .await?;
    keys.iter()
        .zip(&rows)
        .map(|(key, row)| codec::record(key, row))
        .collect()
}

/// Locks these resources, in the order of their keys, and reads them as they are then.
pub(super) async fn locked(
    transaction: &mut Transaction,
    keys: &[ResourceKey],
) -> Result<BTreeMap<ResourceKey, Record>, Fault> {
    let (installations, resources) = columns::keys(keys);
    let rows = transaction
        .query(concat!(
            "SELECT resource.installation_id, resource.resource_id, ",
            codec::resource_columns!(),
            ", NULL::bigint AS id
             FROM unnest($1::text[], $2::text[]) AS wanted (installation_id, resource_id)
             JOIN resource USING (installation_id, resource_id)
             ORDER BY resource.installation_id, resource.resource_id
             FOR NO KEY UPDATE OF resource"
        ))
        .bind(installations)
        .bind(resources)
        .fetch_all(transaction.connection())
        .await?;
    let mut records = BTreeMap::new();
    for row in &rows {
        let key = codec::key(row)?;
        records.insert(key.clone(), codec::record(&key, row)?);
    }
    if records.is_empty() {
        return Ok(records);
    }
    // A statement of its own: only what is asked for after the locks were taken sees what their last holders committed.
    let (installations, resources) = columns::keys(records.keys());
    let entries = transaction
        .query(concat!(
            "SELECT entry.installation_id, entry.resource_id, ",
            codec::entry_columns!(),
            " FROM unnest($1::text[], $2::text[]) AS wanted (installation_id, resource_id)
             -- One look at the index for each of them, whatever the planner knows of the table.
             CROSS JOIN LATERAL (SELECT *
                                 FROM entry
                                 WHERE entry.installation_id = wanted.installation_id
                                   AND entry.resource_id = wanted.resource_id
                                   AND entry.closed_at IS NULL
                                 OFFSET 0) AS entry"
        ))
        .bind(installations)
        .bind(resources)
        .fetch_all(transaction.connection())
        .await?;
    for row in &entries {
        if let Some(record) = records.get_mut(&codec::key(row)?) {
            record.entry = Some(codec::entry(row)?);
        }
    }
    Ok(records)
}

/// One glance per key, in order: from indexes alone.
pub(super) async fn glance(
    transaction: &mut Transaction,
    keys: &[ResourceKey],
) -> Result<Vec<Glance>, Fault> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let (installations, resources) = columns::keys(keys);
    let rows = transaction
        .query(
            "SELECT resource.row_hash,
                    resource.missing_since IS NOT NULL AS missing,
                    entry.state,
                    quarantine.row_hash AS quarantined
             FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (installation_id, resource_id, position)
             LEFT JOIN resource
               ON resource.installation_id = wanted.installation_id
              AND resource.resource_id = wanted.resource_id
             LEFT JOIN entry
               ON entry.installation_id = wanted.installation_id
              AND entry.resource_id = wanted.resource_id
              AND entry.closed_at IS NULL
             LEFT JOIN quarantine
               ON quarantine.installation_id = wanted.installation_id
              AND quarantine.resource_id = wanted.resource_id
              AND quarantine.slot = ''::bytea
             ORDER BY wanted.position",
        )
        .bind(installations)
        .bind(resources)
        .fetch_all(transaction.connection())
        .await?;
    rows.iter().map(codec::glance).collect()
}

/// Where polls and sweeps stand.
pub(super) async fn progress(transaction: &mut Transaction) -> Result<Progress, Fault> {
    let rows = transaction
        .query(
            "SELECT name, value
             FROM progress
             ORDER BY name",
        )
        .fetch_all(transaction.connection())
        .await?;
    let mut progress = Progress::default();
    for row in &rows {
        codec::note_progress(&mut progress, row)?;
    }
    Ok(progress)
}

/// When the earliest entry can be claimed; see [`crate::store::Store::next_due`].
pub(super) async fn next_due(transaction: &mut Transaction) -> Result<Option<Timestamp>, Fault> {
    let row = transaction
        .query(
            // The first of an order is taken from its index; the least of all may be looked for among all.
            "SELECT (SELECT due_at
                     FROM entry
                     WHERE state = 'waiting'
                       AND lease_token IS NULL
                     ORDER BY due_at
                     LIMIT 1) AS due_at,
                    (SELECT lease_expires_at
                     FROM entry
                     WHERE lease_token IS NOT NULL
                     ORDER BY lease_expires_at
                     LIMIT 1) AS lease_expires_at,
                    EXISTS (SELECT 1 FROM pause)
                    -- A limit that ends before anything is due keeps nothing back.
                    OR EXISTS (SELECT 1
                               FROM installation
                               WHERE limited_until > (SELECT due_at
                                                      FROM entry
                                                      WHERE state = 'waiting'
                                                        AND lease_token IS NULL
                                                      ORDER BY due_at
                                                      LIMIT 1)) AS blocks",
        )
        .fetch_one(transaction.connection())
        .await?;
    let mut due_at = time(&row, "due_at")?;
    if due_at.is_some() && row.flag("blocks")? {
        let unblocked = transaction
            .query(NEXT_DUE)
            .fetch_one(transaction.connection())
            .await?;
        due_at = time(&unblocked, "due_at")?;
    }
    let lease = time(&row, "lease_expires_at")?;
    Ok([due_at, lease].into_iter().flatten().min())
}

/// The automatic pauses to be probed.
pub(super) async fn probes_due(
    transaction: &mut Transaction,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Pause>, Fault> {
    let rows = transaction
        .query(concat!(
            "SELECT ",
            codec::pause_columns!(),
            // Too far ahead: the clock was set back.
            " FROM pause
             WHERE probe_at <= $1
                OR probe_at > $2
             ORDER BY probe_at, installation_id, kind
             LIMIT $3"
        ))
        .bind(now.as_millis())
        .bind(now.plus(DUE_HORIZON).as_millis())
        .bind(i64::from(limit))
        .fetch_all(transaction.connection())
        .await?;
    rows.iter().map(codec::pause).collect()
}

/// A page of all keys, in byte order.
pub(super) async fn keys_after(
    transaction: &mut Transaction,
    after: Option<&ResourceKey>,
    limit: u32,
) -> Result<Vec<ResourceKey>, Fault> {
    // Each side stops at the limit by itself, so that a page costs a page.
    let rows = transaction
        .query(
            "(SELECT installation_id, resource_id
              FROM resource
              WHERE (installation_id, resource_id) > ($1, $2)
              ORDER BY installation_id, resource_id
              LIMIT $3)
             UNION
             (SELECT installation_id, resource_id
              FROM quarantine
              WHERE slot = ''::bytea
                AND (installation_id, resource_id) > ($1, $2)
              ORDER BY installation_id, resource_id
              LIMIT $3)
             ORDER BY installation_id, resource_id
             LIMIT $3",
        )
        .bind(after.map_or("", |key| key.installation_id.as_str()))
        .bind(after.map_or("", |key| key.resource_id.as_str()))
        .bind(i64::from(limit))
        .fetch_all(transaction.connection())
        .await?;
    rows.iter().map(codec::key).collect()
}

/// Whether an installation is paused, or limited by Vercel.
pub(super) async fn is_blocked(
    transaction: &mut Transaction,
    installation_id: &InstallationId,
    now: Timestamp,
) -> Result<bool, Fault> {
    let row = transaction
        .query(
            "SELECT EXISTS (SELECT 1
                            FROM pause
                            WHERE installation_id = $1
                              AND (ends_at IS NULL OR ends_at > $2))
                 -- A limit too far ahead is not believed.
                 OR EXISTS (SELECT 1
                            FROM installation
                            WHERE installation_id = $1
                              AND limited_until > $2
                              AND limited_until <= $3) AS blocked",
        )
        .bind(installation_id.as_str())
        .bind(now.as_millis())
        .bind(now.plus(DUE_HORIZON).as_millis())
        .fetch_one(transaction.connection())
        .await?;
    row.flag("blocked")
}

/// Resources whose row is to be read again.
pub(super) async fn rechecks(
    transaction: &mut Transaction,
    limit: u32,
) -> Result<Vec<ResourceKey>, Fault> {
    let rows = transaction
        .query(
            "SELECT installation_id, resource_id
             FROM recheck
             ORDER BY installation_id, resource_id
             LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(transaction.connection())
        .await?;
    rows.iter().map(codec::key).collect()
}

/// How many resources there are.
pub(super) async fn resources(transaction: &mut Transaction) -> Result<u64, Fault> {
    let row = transaction
        .query("SELECT count(*) AS resources FROM resource")
        .fetch_one(transaction.connection())
        .await?;
    codec::resources(&row)
}

/// How many resources it has nothing of but an unusable row.
pub(super) async fn unusable_alone(transaction: &mut Transaction) -> Result<u64, Fault> {
    let row = transaction
        .query(
            "SELECT count(*) AS resources
             FROM quarantine
             WHERE slot = ''::bytea
               AND NOT EXISTS (SELECT 1
                               FROM resource
                               WHERE resource.installation_id = quarantine.installation_id
                                 AND resource.resource_id = quarantine.resource_id)",
        )
        .fetch_one(transaction.connection())
        .await?;
    codec::resources(&row)
}

/// The counts of the summary line, all of one instant.
pub(super) async fn counts(transaction: &mut Transaction, now: Timestamp) -> Result<Counts, Fault> {
    let row = transaction
        .query(
            "WITH leased (entries, oldest) AS (
                 SELECT count(*), min(created_at)
                 FROM entry
                 WHERE lease_token IS NOT NULL
             ),
             unleased (entries, oldest) AS (
                 SELECT count(*), min(created_at)
                 FROM entry
                 WHERE state = 'waiting'
                   AND lease_token IS NULL
             )
             SELECT unleased.entries + leased.entries AS waiting,
                    leased.entries AS in_flight,
                    (SELECT count(*) FROM entry WHERE state = 'held') AS held,
                    (SELECT count(*) FROM entry WHERE state = 'dead') AS dead,
                    (SELECT count(*) FROM quarantine) AS quarantined,
                    (SELECT count(DISTINCT installation_id)
                     FROM pause
                     WHERE ends_at IS NULL
                        OR ends_at > $1) AS paused,
                    (SELECT count(*) FROM resource WHERE missing_since IS NOT NULL) AS missing,
                    least(leased.oldest, unleased.oldest) AS oldest_waiting,
                    (SELECT max(acknowledged_at)
                     FROM resource
                     WHERE acknowledged_at IS NOT NULL) AS last_acknowledged
             FROM leased, unleased",
        )
        .bind(now.as_millis())
        .fetch_one(transaction.connection())
        .await?;
    codec::counts(&row)
}

/// Who has the watch.
pub(super) async fn watch(transaction: &mut Transaction) -> Result<Option<Lease>, Fault> {
    let row = transaction
        .query(
            "SELECT owner, token, expires_at
             FROM lease
             WHERE name = 'watch'",
        )
        .fetch_optional(transaction.connection())
        .await?;
    row.as_ref().map(codec::watch_lease).transpose()
}

/// When the first entry of any installation can be claimed: not before its rate limit has passed and a pause that ends by itself
/// has ended, never while another pause is there. Steps from one installation to the next by index.
const NEXT_DUE: &str = "
    WITH RECURSIVE turn (installation_id) AS (
        SELECT (SELECT entry.installation_id
                FROM entry
                WHERE entry.state = 'waiting'
                  AND entry.lease_token IS NULL
                ORDER BY entry.installation_id
                LIMIT 1)
        UNION ALL
        SELECT (SELECT entry.installation_id
                FROM entry
                WHERE entry.state = 'waiting'
                  AND entry.lease_token IS NULL
                  AND entry.installation_id > turn.installation_id
                ORDER BY entry.installation_id
                LIMIT 1)
        FROM turn
        WHERE turn.installation_id IS NOT NULL
    )
    -- greatest() passes over what is not there.
    SELECT min(greatest((SELECT entry.due_at
                         FROM entry
                         WHERE entry.state = 'waiting'
                           AND entry.lease_token IS NULL
                           AND entry.installation_id = turn.installation_id
                         -- By number too: that order only the index by installation has.
                         ORDER BY entry.due_at, entry.id
                         LIMIT 1),
                        (SELECT limited_until
                         FROM installation
                         WHERE installation.installation_id = turn.installation_id),
                        (SELECT max(ends_at)
                         FROM pause
                         WHERE pause.installation_id = turn.installation_id))) AS due_at
    FROM turn
    WHERE turn.installation_id IS NOT NULL
      AND NOT EXISTS (SELECT 1
                      FROM pause
                      WHERE pause.installation_id = turn.installation_id
                        AND pause.ends_at IS NULL)";
