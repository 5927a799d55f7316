//! The horizon: before which time no transaction that is still open can put a row.
//!
//! A row whose cursor is `now()` carries the time at which its transaction began, and becomes visible only when that commits.
//! What a pass has not seen was written by a transaction that was open when the pass began, or that began later. So the time
//! taken **before the first page is read**: the start of the oldest open transaction, or that moment itself. The next pass starts
//! there or at the last cursor read, whichever is earlier; no row is missed, however late it commits.
//!
//! Conditions: the database itself sets the cursor, from its own clock, in a `timestamptz`; the role sees every session of the
//! database. Without them there is no horizon and the overlap has to do. A pass needs to see those that are there when it begins,
//! whoever may see them; a promise for every pass takes the right to see all that may come ([`Sight`]).

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use super::columns::CursorColumn;

/// What is open in a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Open {
    /// Whether some session's transaction is hidden from us.
    has_hidden: bool,
    /// The start of the oldest open transaction, or the moment before this was asked.
    oldest: String,
    /// Whether the database held a prepared transaction after the sessions had been asked.
    has_prepared: bool,
}

/// The question whose answers [`Open::read`] reads, as statements without parameters: every poll begins with it, in one exchange.
///
/// Prepared transactions are asked for after the sessions, in a statement of their own: one that is prepared in between is in the
/// first answer or in the second.
pub(super) const OPEN: &str = "SELECT
            -- Without the right to see it a session has no state; a server process has no user either.
            COALESCE(bool_or(
                a.usesysid IS NOT NULL AND (a.state IS NULL AND a.backend_type IS NULL OR a.state = 'disabled')
            ), FALSE) AS has_hidden,
            -- A transaction takes its time a moment before it is shown: hence the second, and query_start.
            least(
                statement_timestamp() - interval '1 second',
                min(COALESCE(a.xact_start, CASE WHEN a.state = 'active' THEN a.query_start END))
            )::text AS oldest
         -- What pg_stat_activity is a view of, without the names that it looks up.
         FROM pg_catalog.pg_stat_get_activity(NULL) AS a
         WHERE a.datid = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
            AND a.pid <> pg_backend_pid()
            AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
            AND a.backend_type IS DISTINCT FROM 'walsender';
         SELECT EXISTS (
            SELECT
            FROM pg_catalog.pg_prepared_xact() AS p
            WHERE p.dbid = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
         ) AS has_prepared";

impl Open {
    /// Reads the answers to [`OPEN`].
    pub(super) fn read(answers: &[PgRow]) -> Result<Self, sqlx::Error> {
        let [sessions, prepared] = answers else {
            return Err(sqlx::Error::RowNotFound);
        };
        Ok(Self {
            has_hidden: sessions.try_get("has_hidden")?,
            oldest: sessions.try_get("oldest")?,
            has_prepared: prepared.try_get("has_prepared")?,
        })
    }

    async fn ask(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        Self::read(&sqlx::raw_sql(OPEN).fetch_all(connection).await?)
    }
}

/// Whether transactions that are open can hold a cursor of this type back.
pub(super) fn holds_back(type_name: &str) -> bool {
    type_name == "TIMESTAMPTZ"
}

/// The horizon of a pass that starts at `from`, by what was `open` when it began, or is now.
pub(super) async fn horizon(
    connection: &mut PgConnection,
    open: Option<Open>,
    cursor: &CursorColumn,
    from: Option<&str>,
) -> Result<Option<String>, sqlx::Error> {
    if !holds_back(&cursor.type_name) {
        return Ok(None);
    }
    let open = match open {
        Some(open) => open,
        None => Open::ask(connection).await?,
    };
    if open.has_hidden {
        return Ok(None);
    }
    if !open.has_prepared {
        return Ok(Some(open.oldest));
    }
    with_prepared(connection, &open.oldest, from)
        .await
        .map(Some)
}

/// What a role can see of the transactions that are open, or may be later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// All of them, whoever comes.
    Whole,
    /// Only its own: others are hidden as soon as they are there.
    Own,
    /// It has the right to see all of them, and yet some session does not show its own: `track_activities` is off in it.
    Hidden,
}

/// What this role can see: by its rights, as long as nobody hides.
pub(super) async fn sight(connection: &mut PgConnection) -> Result<Sight, sqlx::Error> {
    // A superuser has the rights of every role; pg_monitor is a member of this one.
    let (may_see,): (bool,) =
        sqlx::query_as("SELECT pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')")
            .persistent(false)
            .fetch_one(&mut *connection)
            .await?;
    Ok(if !may_see {
        Sight::Own
    } else if Open::ask(connection).await?.has_hidden {
        Sight::Hidden
    } else {
        Sight::Whole
    })
}

/// Lowers the horizon for prepared transactions, which do not say when they began.
///
/// One that is there now was open during the last pass, which held the cursor at or before its start, or began later: the
/// cursor that this pass starts from is early enough. Before the first pass there is no such cursor; then it is assumed that
/// no transaction was open for more than an hour before it was prepared.
async fn with_prepared(
    connection: &mut PgConnection,
    oldest: &str,
    from: Option<&str>,
) -> Result<String, sqlx::Error> {
    let (horizon,): (String,) = sqlx::query_as(
        "SELECT least(
            $1::text::timestamptz,
            (
                SELECT COALESCE($2::text::timestamptz, min(p.prepared) - interval '1 hour')
                FROM pg_catalog.pg_prepared_xacts AS p
                WHERE p.database = current_database()
                HAVING count(*) > 0
            )
         )::text",
    )
    .bind(oldest)
    .bind(from)
    .persistent(false)
    .fetch_one(connection)
    .await?;
    Ok(horizon)
}
