//! What is read from the state, on the writing connection inside a transaction or on a reading one.

use sqlx::{Row as _, SqliteConnection};

use crate::model::{InstallationId, Record, ResourceKey, Timestamp};
use crate::store::{Counts, Glance, Pause, Progress};

use crate::store::codec::{self, key_pairs, time};
use crate::store::fault::Fault;

use super::many::{Many, Statement};
use super::packed::{self, names, packed};

/// The columns of a record, in the names that [`codec::record`] reads.
macro_rules! record_columns {
    ($with:ident) => {
        $with! {
            "acknowledged" = "resource.acknowledged",
            "doubt" = "resource.doubt",
            "dismissed" = "resource.dismissed",
            "row_hash" = "iif(resource.row_hash IS NULL, NULL, hex(resource.row_hash))",
            "missing_since" = "resource.missing_since",
            "missing_sweeps" = "resource.missing_sweeps",
            "acknowledged_at" = "resource.acknowledged_at",
            "id" = "entry.id",
            "state" = "entry.state",
            "desired" = "entry.desired",
            "generation" = "entry.generation",
            "origin" = "entry.origin",
            "mode" = "entry.mode",
            "reason" = "entry.reason",
            "created_at" = "entry.created_at",
            "due_at" = "entry.due_at",
            "attempts" = "entry.attempts",
            "failures" = "entry.failures",
            "conflicts" = "entry.conflicts",
            "rejected" = "entry.rejected",
            "hold_id" = "entry.hold_id",
            "lease_owner" = "entry.lease_owner",
            "lease_token" = "entry.lease_token",
            "lease_expires_at" = "entry.lease_expires_at",
            "in_flight" = "entry.in_flight",
        }
    };
}

/// The whole records of these resources, in order.
pub(super) async fn records(
    connection: &mut SqliteConnection,
    keys: &[ResourceKey],
) -> Result<Vec<Record>, Fault> {
    let mut wanted = Many::new(&RECORDS);
    for (turn, key) in keys.iter().enumerate() {
        wanted
            .row()
            .int(i64::try_from(turn).unwrap_or(i64::MAX))
            .text(key.installation_id.as_str())
            .text(key.resource_id.as_str());
    }
    let rows = packed::fetch(wanted, record_columns!(names), connection).await?;
    keys.iter()
        .zip(rows.rows()?)
        .map(|(key, row)| codec::record(key, &row))
        .collect()
}

const RECORDS: Statement = Statement {
    what: "records",
    columns: 3,
    before: "WITH wanted (turn, installation_id, resource_id)
             AS (VALUES ",
    after: concat!(
        ") SELECT group_concat(packed, '' ORDER BY turn)
           FROM (SELECT wanted.turn, ",
        record_columns!(packed),
        " AS packed
                 FROM wanted
                 LEFT JOIN resource
                   ON resource.installation_id = wanted.installation_id
                  AND resource.resource_id = wanted.resource_id
                 LEFT JOIN entry
                   ON entry.installation_id = resource.installation_id
                  AND entry.resource_id = resource.resource_id
                  AND entry.closed_at IS NULL)"
    ),
};

/// One glance per key, in order.
pub(super) async fn glance(
    connection: &mut SqliteConnection,
    keys: &[ResourceKey],
) -> Result<Vec<Glance>, Fault> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "SELECT resource.row_hash,
                resource.missing_since IS NOT NULL AS missing,
                entry.state,
                quarantine.row_hash AS quarantined
         FROM json_each(?1) AS wanted
         LEFT JOIN resource
           ON resource.installation_id = wanted.value ->> 0
          AND resource.resource_id = wanted.value ->> 1
         LEFT JOIN entry
           ON entry.installation_id = resource.installation_id
          AND entry.resource_id = resource.resource_id
          AND entry.closed_at IS NULL
         LEFT JOIN quarantine
           ON quarantine.installation_id = wanted.value ->> 0
          AND quarantine.resource_id = wanted.value ->> 1
          AND quarantine.slot = x''
         ORDER BY wanted.key",
    )
    .bind(key_pairs(keys))
    .fetch_all(connection)
    .await?;
    rows.iter().map(codec::glance).collect()
}

/// Where polls and sweeps stand.
pub(super) async fn progress(connection: &mut SqliteConnection) -> Result<Progress, Fault> {
    let rows = sqlx::query(
        "SELECT name, value
         FROM progress
         ORDER BY name",
    )
    .fetch_all(connection)
    .await?;
    codec::progress(&rows)
}

/// When the earliest entry can be claimed; see [`crate::store::Store::next_due`].
pub(super) async fn next_due(
    connection: &mut SqliteConnection,
) -> Result<Option<Timestamp>, Fault> {
    let row = sqlx::query(
        "SELECT (SELECT min(due_at)
                 FROM entry INDEXED BY entry_due
                 WHERE state = 'waiting'
                   AND lease_token IS NULL) AS due_at,
                (SELECT min(lease_expires_at)
                 FROM entry INDEXED BY entry_lease
                 WHERE lease_token IS NOT NULL) AS lease_expires_at,
                EXISTS (SELECT 1 FROM pause)
                -- A limit that ends before anything is due keeps nothing back.
                OR EXISTS (SELECT 1
                           FROM installation
                           WHERE limited_until > (SELECT min(due_at)
                                                  FROM entry INDEXED BY entry_due
                                                  WHERE state = 'waiting'
                                                    AND lease_token IS NULL)) AS blocks",
    )
    .fetch_one(&mut *connection)
    .await?;
    let mut due_at = time(&row, "due_at")?;
    if due_at.is_some() && row.try_get("blocks")? {
        let unblocked: Option<i64> = sqlx::query_scalar(NEXT_DUE).fetch_one(connection).await?;
        due_at = unblocked.map(Timestamp::from_millis);
    }
    let lease = time(&row, "lease_expires_at")?;
    Ok([due_at, lease].into_iter().flatten().min())
}

/// The automatic pauses to be probed.
pub(super) async fn probes_due(
    connection: &mut SqliteConnection,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Pause>, Fault> {
    let horizon = now.plus(crate::plan::claim::DUE_HORIZON);
    let rows = sqlx::query(concat!(
        "SELECT ",
        codec::pause_columns!(),
        // Too far ahead: the clock was set back.
        " FROM pause
         WHERE probe_at <= ?1
            OR probe_at > ?2
         ORDER BY probe_at, installation_id, kind
         LIMIT ?3"
    ))
    .bind(now.as_millis())
    .bind(horizon.as_millis())
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    rows.iter().map(codec::pause).collect()
}

/// A page of all keys, in byte order.
pub(super) async fn keys_after(
    connection: &mut SqliteConnection,
    after: Option<&ResourceKey>,
    limit: u32,
) -> Result<Vec<ResourceKey>, Fault> {
    // Each side stops at the limit by itself, so that a page costs a page.
    let rows = sqlx::query(
        "SELECT installation_id, resource_id
         FROM (SELECT installation_id, resource_id
               FROM resource
               WHERE (installation_id, resource_id) > (?1, ?2)
               ORDER BY installation_id, resource_id
               LIMIT ?3)
         UNION
         SELECT installation_id, resource_id
         FROM (SELECT installation_id, resource_id
               FROM quarantine
               WHERE slot = x''
                 AND (installation_id, resource_id) > (?1, ?2)
               ORDER BY installation_id, resource_id
               LIMIT ?3)
         ORDER BY installation_id, resource_id
         LIMIT ?3",
    )
    .bind(after.map_or("", |key| key.installation_id.as_str()))
    .bind(after.map_or("", |key| key.resource_id.as_str()))
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    rows.iter().map(codec::key).collect()
}

/// Whether an installation is paused, or limited by Vercel.
pub(super) async fn is_blocked(
    connection: &mut SqliteConnection,
    installation_id: &InstallationId,
    now: Timestamp,
) -> Result<bool, Fault> {
    let horizon = now.plus(crate::plan::claim::DUE_HORIZON);
    let blocked: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1
                        FROM pause
                        WHERE installation_id = ?1
                          AND (ends_at IS NULL OR ends_at > ?2))
             -- A limit too far ahead is not believed.
             OR EXISTS (SELECT 1
                        FROM installation
                        WHERE installation_id = ?1
                          AND limited_until > ?2
                          AND limited_until <= ?3)",
    )
    .bind(installation_id.as_str())
    .bind(now.as_millis())
    .bind(horizon.as_millis())
    .fetch_one(connection)
    .await?;
    Ok(blocked)
}

/// Resources whose row is to be read again.
pub(super) async fn rechecks(
    connection: &mut SqliteConnection,
    limit: u32,
) -> Result<Vec<ResourceKey>, Fault> {
    let rows = sqlx::query(
        "SELECT installation_id, resource_id
         FROM recheck
         ORDER BY installation_id, resource_id
         LIMIT ?1",
    )
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    rows.iter().map(codec::key).collect()
}

/// The counts of the summary line, all of one instant.
pub(super) async fn counts(
    connection: &mut SqliteConnection,
    now: Timestamp,
) -> Result<Counts, Fault> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM resource) AS resources,
                (SELECT count(*) FROM entry WHERE closed_at IS NULL AND state = 'waiting') AS waiting,
                (SELECT count(*) FROM entry WHERE lease_token IS NOT NULL) AS in_flight,
                (SELECT count(*) FROM entry WHERE closed_at IS NULL AND state = 'held') AS held,
                (SELECT count(*) FROM entry WHERE closed_at IS NULL AND state = 'dead') AS dead,
                (SELECT count(*) FROM quarantine) AS quarantined,
                (SELECT count(DISTINCT installation_id)
                 FROM pause
                 WHERE ends_at IS NULL
                    OR ends_at > ?1) AS paused,
                (SELECT count(*) FROM resource WHERE missing_since IS NOT NULL) AS missing,
                (SELECT min(created_at)
                 FROM entry
                 WHERE closed_at IS NULL
                   AND state = 'waiting') AS oldest_waiting,
                (SELECT max(acknowledged_at)
                 FROM resource
                 WHERE acknowledged_at IS NOT NULL) AS last_acknowledged",
    )
    .bind(now.as_millis())
    .fetch_one(connection)
    .await?;
    codec::counts(&row)
}

/// When the first entry of any installation can be claimed: not before its rate limit has passed and a pause that ends by itself
/// has ended, never while another pause is there. The smallest integer stands for no such instant. Steps from one installation to the next by index.
const NEXT_DUE: &str = "
    WITH RECURSIVE turn (installation_id) AS (
        SELECT (SELECT min(installation_id)
                FROM entry INDEXED BY entry_due_by_installation
                WHERE state = 'waiting'
                  AND lease_token IS NULL)
        UNION ALL
        SELECT (SELECT min(entry.installation_id)
                FROM entry INDEXED BY entry_due_by_installation
                WHERE entry.state = 'waiting'
                  AND entry.lease_token IS NULL
                  AND entry.installation_id > turn.installation_id)
        FROM turn
        WHERE turn.installation_id IS NOT NULL
    )
    SELECT min(max((SELECT min(entry.due_at)
                    FROM entry INDEXED BY entry_due_by_installation
                    WHERE entry.state = 'waiting'
                      AND entry.lease_token IS NULL
                      AND entry.installation_id = turn.installation_id),
                   coalesce((SELECT limited_until
                             FROM installation
                             WHERE installation.installation_id = turn.installation_id), -9223372036854775808),
                   coalesce((SELECT max(ends_at)
                             FROM pause
                             WHERE pause.installation_id = turn.installation_id), -9223372036854775808)))
    FROM turn
    WHERE turn.installation_id IS NOT NULL
      AND NOT EXISTS (SELECT 1
                      FROM pause
                      WHERE pause.installation_id = turn.installation_id
                        AND pause.ends_at IS NULL)";
