//! What is read from the state, on the writing connection inside a transaction or on a reading one.

use rusqlite::params;

use crate::model::{InstallationId, Record, ResourceKey, Timestamp};
use crate::store::{Counts, Glance, Pause, Progress};

use crate::store::codec::{self, Cells as _, key_pairs, time};
use crate::store::fault::Fault;

use super::db::Db;

/// The whole records of these resources, in order.
pub(super) fn records(db: &Db, keys: &[ResourceKey]) -> Result<Vec<Record>, Fault> {
    let mut query = db.query(RECORD)?;
    let mut records = Vec::with_capacity(keys.len());
    for key in keys {
        let ids = [key.installation_id.as_str(), key.resource_id.as_str()];
        let found = query.find_row(ids, |row| codec::record(key, row))?;
        records.push(found.unwrap_or_else(|| Record::new(key.clone())));
    }
    Ok(records)
}

const RECORD: &str = concat!(
    "SELECT ",
    codec::resource_columns!(),
    ", ",
    codec::entry_columns!(),
    " FROM resource
      LEFT JOIN entry
        ON entry.installation_id = resource.installation_id
       AND entry.resource_id = resource.resource_id
       AND entry.closed_at IS NULL
      WHERE resource.installation_id = ?1
        AND resource.resource_id = ?2"
);

/// One glance per key, in order.
pub(super) fn glance(db: &Db, keys: &[ResourceKey]) -> Result<Vec<Glance>, Fault> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    db.rows(
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
        params![key_pairs(keys)],
        |row| codec::glance(row),
    )
}

/// Where polls and sweeps stand.
pub(super) fn progress(db: &Db) -> Result<Progress, Fault> {
    let mut progress = Progress::default();
    db.each(
        "SELECT name, value
         FROM progress
         ORDER BY name",
        params![],
        |row| codec::note_progress(&mut progress, row),
    )?;
    Ok(progress)
}

/// When the earliest entry can be claimed; see [`crate::store::Store::next_due`].
pub(super) fn next_due(db: &Db) -> Result<Option<Timestamp>, Fault> {
    let (mut due_at, lease, blocks) = db.row(
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
        params![],
        |row| {
            let due_at = time(row, "due_at")?;
            let lease = time(row, "lease_expires_at")?;
            Ok((due_at, lease, row.flag("blocks")?))
        },
    )?;
    if due_at.is_some() && blocks {
        let unblocked: Option<i64> = db.value(NEXT_DUE, params![])?;
        due_at = unblocked.map(Timestamp::from_millis);
    }
    Ok([due_at, lease].into_iter().flatten().min())
}

/// The automatic pauses to be probed.
pub(super) fn probes_due(db: &Db, now: Timestamp, limit: u32) -> Result<Vec<Pause>, Fault> {
    let horizon = now.plus(crate::plan::claim::DUE_HORIZON);
    db.rows(
        concat!(
            "SELECT ",
            codec::pause_columns!(),
            // Too far ahead: the clock was set back.
            " FROM pause
         WHERE probe_at <= ?1
            OR probe_at > ?2
         ORDER BY probe_at, installation_id, kind
         LIMIT 0 + ?3"
        ),
        params![now.as_millis(), horizon.as_millis(), i64::from(limit)],
        |row| codec::pause(row),
    )
}

/// A page of all keys, in byte order.
pub(super) fn keys_after(
    db: &Db,
    after: Option<&ResourceKey>,
    limit: u32,
) -> Result<Vec<ResourceKey>, Fault> {
    // Each side stops at the limit by itself, so that a page costs a page.
    db.rows(
        "SELECT installation_id, resource_id
         FROM (SELECT installation_id, resource_id
               FROM resource
               WHERE (installation_id, resource_id) > (?1, ?2)
               ORDER BY installation_id, resource_id
               LIMIT 0 + ?3)
         UNION
         SELECT installation_id, resource_id
         FROM (SELECT installation_id, resource_id
               FROM quarantine
               WHERE slot = x''
                 AND (installation_id, resource_id) > (?1, ?2)
               ORDER BY installation_id, resource_id
               LIMIT 0 + ?3)
         ORDER BY installation_id, resource_id
         LIMIT 0 + ?3",
        params![
            after.map_or("", |key| key.installation_id.as_str()),
            after.map_or("", |key| key.resource_id.as_str()),
            i64::from(limit)
        ],
        |row| codec::key(row),
    )
}

/// Whether an installation is paused, or limited by Vercel.
pub(super) fn is_blocked(
    db: &Db,
    installation_id: &InstallationId,
    now: Timestamp,
) -> Result<bool, Fault> {
    let horizon = now.plus(crate::plan::claim::DUE_HORIZON);
    let blocked: bool = db.value(
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
        params![
            installation_id.as_str(),
            now.as_millis(),
            horizon.as_millis()
        ],
    )?;
    Ok(blocked)
}

/// Resources whose row is to be read again.
pub(super) fn rechecks(db: &Db, limit: u32) -> Result<Vec<ResourceKey>, Fault> {
    db.rows(
        "SELECT installation_id, resource_id
         FROM recheck
         ORDER BY installation_id, resource_id
         LIMIT 0 + ?1",
        params![i64::from(limit)],
        |row| codec::key(row),
    )
}

/// How many resources there are.
pub(super) fn resources(db: &Db) -> Result<u64, Fault> {
    db.row(
        "SELECT count(*) AS resources FROM resource",
        params![],
        |row| codec::resources(row),
    )
}

/// How many resources it has nothing of but an unusable row.
pub(super) fn unusable_alone(db: &Db) -> Result<u64, Fault> {
    db.row(UNUSABLE_ALONE, params![], |row| codec::resources(row))
}

const UNUSABLE_ALONE: &str = "
    SELECT count(*) AS resources
    FROM quarantine
    WHERE slot = x''
      AND NOT EXISTS (SELECT 1
                      FROM resource
                      WHERE resource.installation_id = quarantine.installation_id
                        AND resource.resource_id = quarantine.resource_id)";

/// The counts of the summary line, all of one instant.
pub(super) fn counts(db: &Db, now: Timestamp) -> Result<Counts, Fault> {
    db.row(COUNTS, params![now.as_millis()], |row| codec::counts(row))
}

const COUNTS: &str = "
    WITH leased (entries, oldest) AS MATERIALIZED (
        SELECT count(*), min(created_at)
        FROM entry INDEXED BY entry_lease
        WHERE lease_token IS NOT NULL
    ),
    unleased (entries, oldest) AS MATERIALIZED (
        SELECT count(*), min(created_at)
        FROM entry INDEXED BY entry_due
        WHERE state = 'waiting'
          AND lease_token IS NULL
    )
    SELECT unleased.entries + leased.entries AS waiting,
           leased.entries AS in_flight,
           (SELECT count(*) FROM entry INDEXED BY entry_resting WHERE state = 'held') AS held,
           (SELECT count(*) FROM entry INDEXED BY entry_resting WHERE state = 'dead') AS dead,
           (SELECT count(*) FROM quarantine) AS quarantined,
           (SELECT count(DISTINCT installation_id)
            FROM pause
            WHERE ends_at IS NULL
               OR ends_at > ?1) AS paused,
           (SELECT count(*) FROM resource WHERE missing_since IS NOT NULL) AS missing,
           (SELECT min(oldest)
            FROM (SELECT oldest FROM unleased
                  UNION ALL
                  SELECT oldest FROM leased)) AS oldest_waiting,
           (SELECT max(acknowledged_at)
            FROM resource
            WHERE acknowledged_at IS NOT NULL) AS last_acknowledged
    FROM leased, unleased";

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_counted_without_reading_an_entry_of_it() {
        let db = Db::of_state().expect("a state");
        let plan = db
            .rows(&format!("EXPLAIN QUERY PLAN {COUNTS}"), params![0], |row| {
                Ok(row.text("detail")?.to_owned())
            })
            .expect("its plan");
        for index in ["entry_due", "entry_resting", "resource_missing"] {
            let is_it = |line: &&String| line.contains(index);
            let found: Vec<&String> = plan.iter().filter(is_it).collect();
            assert!(!found.is_empty(), "{index}: {plan:#?}");
            for line in found {
                assert!(line.contains("USING COVERING INDEX"), "{line}");
            }
        }
        // What is in flight is read, which is little.
        let scans: Vec<&String> = plan
            .iter()
            .filter(|line| line.contains("SCAN entry"))
            .collect();
        let expected = [
            "SCAN entry USING INDEX entry_lease",
            "SCAN entry USING COVERING INDEX entry_due",
        ];
        assert_eq!(scans, expected);
    }
}
