//! The statements that find what can be claimed, by installation and by index alone, and lock it without waiting for anybody.

/// Installations with something to claim, from $1 (excluded) to $2 (included).
///
/// Steps from one installation to the next by index, whatever their backlogs, and stops at the limit: the steps are computed as they
/// are asked for, in byte order, and an ORDER BY would make it visit all of them first. Whether one has something due is asked of its
/// first and its last entry, not with EXISTS: that the server may answer from a list of everything that is due, which it makes first.
/// They are the first and the last by number too: that order only the index by installation has, while a server that knows nothing of the
/// table yet may look for the least due time of an installation among those of all.
pub(super) const DUE_INSTALLATIONS: &str = "
    WITH RECURSIVE turn (installation_id) AS (
        SELECT (SELECT entry.installation_id
                FROM entry
                WHERE entry.state = 'waiting'
                  AND entry.lease_token IS NULL
                  AND entry.installation_id > $1
                ORDER BY entry.installation_id
                LIMIT 1)
        -- Nothing is due anywhere: no step at all.
        WHERE EXISTS (SELECT 1
                      FROM entry
                      WHERE entry.state = 'waiting'
                        AND entry.lease_token IS NULL
                        AND entry.due_at <= $3)
           OR EXISTS (SELECT 1
                      FROM entry
                      WHERE entry.state = 'waiting'
                        AND entry.lease_token IS NULL
                        AND entry.due_at > $4)
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
          AND ($2::text IS NULL OR turn.installation_id < $2 COLLATE \"C\")
    )
    SELECT turn.installation_id
    FROM turn
    WHERE turn.installation_id IS NOT NULL
      AND ($2::text IS NULL OR turn.installation_id <= $2 COLLATE \"C\")
      AND ((SELECT entry.due_at
            FROM entry
            WHERE entry.state = 'waiting'
              AND entry.lease_token IS NULL
              AND entry.installation_id = turn.installation_id
            ORDER BY entry.due_at, entry.id
            LIMIT 1) <= $3
           -- Too far ahead: the clock was set back.
           OR (SELECT entry.due_at
               FROM entry
               WHERE entry.state = 'waiting'
                 AND entry.lease_token IS NULL
                 AND entry.installation_id = turn.installation_id
               ORDER BY entry.due_at DESC, entry.id DESC
               LIMIT 1) > $4)
      -- A manual pause may have ended by itself.
      AND NOT EXISTS (SELECT 1
                      FROM pause
                      WHERE pause.installation_id = turn.installation_id
                        AND (pause.ends_at IS NULL OR pause.ends_at > $3))
      -- A limit too far ahead is not believed.
      AND NOT EXISTS (SELECT 1
                      FROM installation
                      WHERE installation.installation_id = turn.installation_id
                        AND installation.limited_until > $3
                        AND installation.limited_until <= $4)
      AND turn.installation_id <> ALL ($5::text[])
    LIMIT $6";

/// The first entries of each installation in $1 that are due by $2 or after $3, locked with their resources; those that another
/// transaction works on are passed over.
pub(super) const DUE_RESOURCES: &str = "
    SELECT turn.position AS turn,
           due.installation_id,
           due.resource_id
    FROM unnest($1::text[]) WITH ORDINALITY AS turn (installation_id, position)
    CROSS JOIN LATERAL (
        SELECT *
        FROM (SELECT entry.installation_id, entry.resource_id, entry.due_at, entry.id
              FROM entry
              JOIN resource USING (installation_id, resource_id)
              WHERE entry.state = 'waiting'
                AND entry.lease_token IS NULL
                AND entry.installation_id = turn.installation_id
                AND entry.due_at <= $2
              ORDER BY entry.due_at, entry.id
              LIMIT $4
              FOR NO KEY UPDATE OF entry, resource SKIP LOCKED) AS now
        UNION ALL
        -- Too far ahead: the clock was set back.
        SELECT *
        FROM (SELECT entry.installation_id, entry.resource_id, entry.due_at, entry.id
              FROM entry
              JOIN resource USING (installation_id, resource_id)
              WHERE entry.state = 'waiting'
                AND entry.lease_token IS NULL
                AND entry.installation_id = turn.installation_id
                AND entry.due_at > $3
              ORDER BY entry.due_at, entry.id
              LIMIT $4
              FOR NO KEY UPDATE OF entry, resource SKIP LOCKED) AS stranded
    ) AS due
    ORDER BY turn.position, due.due_at, due.id";

/// Resources whose lease has ended by $1, locked; those that another transaction works on are passed over.
pub(super) const LEASED: &str = "
    SELECT entry.installation_id, entry.resource_id
    FROM entry
    JOIN resource USING (installation_id, resource_id)
    WHERE entry.lease_token IS NOT NULL
      AND entry.lease_expires_at <= $1
    ORDER BY entry.lease_expires_at, entry.id
    LIMIT $2
    FOR NO KEY UPDATE OF entry, resource SKIP LOCKED";
