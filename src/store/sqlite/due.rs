//! The statements that find what can be claimed, by installation and by index alone.

/// Installations with something to claim, from ?1 (excluded) to ?2 (included).
///
/// Steps from one installation to the next by index, whatever their backlogs, and stops at the limit: an ORDER BY would make it
/// visit all of them first. The steps are taken first in, first out, so they come in byte order.
pub(super) const DUE_INSTALLATIONS: &str = "
    WITH RECURSIVE turn (installation_id) AS (
        SELECT (SELECT installation_id
                FROM entry INDEXED BY entry_due_by_installation
                WHERE state = 'waiting'
                  AND lease_token IS NULL
                  AND installation_id > ?1
                ORDER BY installation_id
                LIMIT 1)
        -- Nothing is due anywhere: no step at all.
        WHERE EXISTS (SELECT 1
                      FROM entry INDEXED BY entry_due
                      WHERE state = 'waiting'
                        AND lease_token IS NULL
                        AND due_at <= ?3)
           OR EXISTS (SELECT 1
                      FROM entry INDEXED BY entry_due
                      WHERE state = 'waiting'
                        AND lease_token IS NULL
                        AND due_at > ?4)
        UNION ALL
        SELECT (SELECT entry.installation_id
                FROM entry INDEXED BY entry_due_by_installation
                WHERE entry.state = 'waiting'
                  AND entry.lease_token IS NULL
                  AND entry.installation_id > turn.installation_id
                ORDER BY entry.installation_id
                LIMIT 1)
        FROM turn
        WHERE turn.installation_id IS NOT NULL
          AND (?2 IS NULL OR turn.installation_id < ?2)
    )
    SELECT turn.installation_id
    FROM turn
    WHERE turn.installation_id IS NOT NULL
      AND (?2 IS NULL OR turn.installation_id <= ?2)
      AND (EXISTS (SELECT 1
                   FROM entry INDEXED BY entry_due_by_installation
                   WHERE entry.state = 'waiting'
                     AND entry.lease_token IS NULL
                     AND entry.installation_id = turn.installation_id
                     AND entry.due_at <= ?3)
           -- Too far ahead: the clock was set back.
           OR EXISTS (SELECT 1
                      FROM entry INDEXED BY entry_due_by_installation
                      WHERE entry.state = 'waiting'
                        AND entry.lease_token IS NULL
                        AND entry.installation_id = turn.installation_id
                        AND entry.due_at > ?4))
      -- A manual pause may have ended by itself.
      AND NOT EXISTS (SELECT 1
                      FROM pause
                      WHERE pause.installation_id = turn.installation_id
                        AND (pause.ends_at IS NULL OR pause.ends_at > ?3))
      -- A limit too far ahead is not believed.
      AND NOT EXISTS (SELECT 1
                      FROM installation
                      WHERE installation.installation_id = turn.installation_id
                        AND installation.limited_until > ?3
                        AND installation.limited_until <= ?4)
      AND turn.installation_id NOT IN (SELECT value FROM json_each(?5))
    LIMIT 0 + ?6";

/// The first entries of each installation in ?1 that are due from ?2 to ?3.
pub(super) const DUE_RESOURCES: &str = "
    SELECT turn.key AS turn, entry.installation_id, entry.resource_id
    FROM json_each(?1) AS turn
    CROSS JOIN entry
    WHERE entry.id IN (SELECT due.id
                       FROM entry AS due INDEXED BY entry_due_by_installation
                       WHERE due.state = 'waiting'
                         AND due.lease_token IS NULL
                         AND due.installation_id = turn.value
                         AND due.due_at BETWEEN ?2 AND ?3
                       ORDER BY due.due_at, due.id
                       LIMIT 0 + ?4)
    ORDER BY turn.key, entry.due_at, entry.id";
