//! What is told of installations, and of which, as SQL that every database understands.

/// The summaries of those installations whose ids this query gives, as SQL.
macro_rules! summaries {
    ($known:expr) => {
        concat!(
            "SELECT known.installation_id,
                (SELECT count(*)
                 FROM resource
                 WHERE resource.installation_id = known.installation_id) AS resources,
                coalesce(entries.waiting, 0) AS waiting,
                coalesce(entries.held, 0) AS held,
                coalesce(entries.dead, 0) AS dead,
                entries.oldest,
                installation.limited_until
         FROM (",
            $known,
            ") AS known
         LEFT JOIN (SELECT installation_id,
                           count(*) FILTER (WHERE state = 'waiting') AS waiting,
                           count(*) FILTER (WHERE state = 'held') AS held,
                           count(*) FILTER (WHERE state = 'dead') AS dead,
                           min(created_at) AS oldest
                    FROM entry
                    WHERE closed_at IS NULL
                    GROUP BY installation_id) AS entries
           ON entries.installation_id = known.installation_id
         LEFT JOIN installation
           ON installation.installation_id = known.installation_id
         ORDER BY known.installation_id"
        )
    };
}

/// The ids of the installations that a state knows, as SQL.
macro_rules! known_installations {
    () => {
        "SELECT installation_id FROM resource
         UNION
         SELECT installation_id FROM pause"
    };
}

/// [`Installations::All`](super::console::Installations::All).
pub(super) const ALL_INSTALLATIONS: &str = summaries!(known_installations!());

/// [`Installations::Noteworthy`](super::console::Installations::Noteworthy).
pub(super) const NOTEWORTHY_INSTALLATIONS: &str = summaries!(
    "SELECT installation_id FROM entry WHERE closed_at IS NULL
     UNION
     SELECT installation_id FROM pause
     UNION
     SELECT installation_id
     FROM installation AS limited
     WHERE limited_until IS NOT NULL
       AND EXISTS (SELECT 1 FROM resource WHERE resource.installation_id = limited.installation_id)"
);

/// How many installations a state knows.
pub(super) const COUNT_INSTALLATIONS: &str = concat!(
    "SELECT count(*) AS installations FROM (",
    known_installations!(),
    ") AS known"
);

pub(super) use summaries;
