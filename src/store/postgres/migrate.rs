//! The state's schema: made, brought up to date or refused when a daemon starts.
//!
//! All of it happens in one transaction under an advisory lock that ends with it, so that any number of daemons may start at once,
//! also behind a pooler. The role needs no right but to its own schema, and to create that one only while there is none.

use sqlx::{AssertSqlSafe, Row as _};

use crate::model::FingerprintKey;
use crate::store::StoreError;
use crate::store::fault::Fault;
use crate::store::migrate::{POSTGRES, newest};

use super::locks;
use super::pool::{SCHEMA, Transaction};

/// What a process may do to the schema that it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    /// Make it, and bring it up to date.
    Migrate,
    /// Use it as it is.
    Use,
}

/// What became of a schema.
pub(super) enum Found {
    /// It can be used, with this key of its fingerprints.
    Ready(FingerprintKey),
    /// It cannot be used.
    Refused(Refused),
}

/// Why a schema cannot be used.
pub(super) enum Refused {
    /// There is none, and this process may not make it.
    Absent,
    /// It has this older version, and this process may not bring it up to date.
    Older(i64),
    /// A newer version of this program made it.
    Newer(i64),
    /// The database cannot hold every text.
    Encoding(String),
}

impl Refused {
    pub(super) fn of(self, target: &str) -> StoreError {
        let known = newest(POSTGRES);
        let problem = match self {
            Self::Newer(found) => return StoreError::Newer { found, known },
            Self::Absent => "there is none yet; `reconciled run` creates it".to_owned(),
            Self::Older(found) => format!(
                "it has schema {found}, this version needs {known}; `reconciled run` brings it up to date"
            ),
            Self::Encoding(encoding) => format!(
                "the database's encoding is {encoding}; ids and names need one with encoding UTF8"
            ),
        };
        StoreError::Open {
            target: target.to_owned(),
            problem,
        }
    }
}

/// Brings the schema to the newest version; commits nothing.
pub(super) async fn prepare(transaction: &mut Transaction, rights: Rights) -> Result<Found, Fault> {
    let encoding: String =
        sqlx::query_scalar("SELECT pg_catalog.current_setting('server_encoding')")
            .persistent(false)
            .fetch_one(transaction.connection())
            .await?;
    if encoding != "UTF8" {
        return Ok(Found::Refused(Refused::Encoding(encoding)));
    }
    let mut found = version(transaction).await?;
    let known = newest(POSTGRES);
    if found < known && rights == Rights::Migrate {
        locks::wait_for(transaction, locks::Lock::Schema).await?;
        // Another daemon may have been faster.
        found = version(transaction).await?;
        if found < known {
            migrate(transaction, found).await?;
            found = known;
        }
    }
    if found == 0 {
        return Ok(Found::Refused(Refused::Absent));
    }
    if found < known {
        return Ok(Found::Refused(Refused::Older(found)));
    }
    if found > known {
        return Ok(Found::Refused(Refused::Newer(found)));
    }
    let key: Vec<u8> = sqlx::query_scalar("SELECT value FROM meta WHERE name = 'fingerprint_key'")
        .persistent(false)
        .fetch_one(transaction.connection())
        .await?;
    let bytes = <[u8; 32]>::try_from(key)
        .map_err(|_| Fault::Corrupt("the fingerprint key is not 32 bytes long".to_owned()))?;
    Ok(Found::Ready(FingerprintKey::new(bytes)))
}

/// The version of the schema that is there; 0 when there is none.
async fn version(transaction: &mut Transaction) -> Result<i64, Fault> {
    // The catalogue itself, not a function that looks a name up: that one may answer from what it knew before the lock.
    let has_table: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1
                        FROM pg_catalog.pg_class
                        JOIN pg_catalog.pg_namespace
                          ON pg_namespace.oid = pg_class.relnamespace
                        WHERE pg_namespace.nspname = $1
                          AND pg_class.relname = 'migration')",
    )
    .persistent(false)
    .bind(SCHEMA)
    .fetch_one(transaction.connection())
    .await?;
    if !has_table {
        return Ok(0);
    }
    let row = sqlx::query("SELECT coalesce(max(version), 0) FROM migration")
        .persistent(false)
        .fetch_one(transaction.connection())
        .await?;
    Ok(row.try_get(0)?)
}

/// The version of the schema that is there, and whether the role could make it.
pub(super) async fn look(transaction: &mut Transaction) -> Result<(i64, bool), Fault> {
    let found = version(transaction).await?;
    let row = sqlx::query(
        "SELECT coalesce((SELECT pg_catalog.has_schema_privilege(oid, 'CREATE')
                          FROM pg_catalog.pg_namespace
                          WHERE nspname = $1),
                         pg_catalog.has_database_privilege(current_database(), 'CREATE'))",
    )
    .persistent(false)
    .bind(SCHEMA)
    .fetch_one(transaction.connection())
    .await?;
    Ok((found, row.try_get(0)?))
}

async fn migrate(transaction: &mut Transaction, from: i64) -> Result<(), Fault> {
    let has_schema: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1
                        FROM pg_catalog.pg_namespace
                        WHERE nspname = $1)",
    )
    .persistent(false)
    .bind(SCHEMA)
    .fetch_one(transaction.connection())
    .await?;
    let mut script = String::new();
    // `IF NOT EXISTS` would ask for the right to create schemas even where there is one.
    if !has_schema {
        script.push_str("CREATE SCHEMA reconciled;\n");
    }
    if from == 0 {
        script.push_str(
            "CREATE TABLE migration (
                 version     bigint NOT NULL PRIMARY KEY,
                 description text   NOT NULL,
                 applied_at  timestamptz NOT NULL DEFAULT now()
             );\n",
        );
    }
    sqlx::raw_sql(AssertSqlSafe(script))
        .execute(transaction.connection())
        .await?;
    for step in POSTGRES.iter().filter(|step| step.version > from) {
        sqlx::raw_sql(step.sql)
            .execute(transaction.connection())
            .await?;
        sqlx::query("INSERT INTO migration (version, description) VALUES ($1, $2)")
            .persistent(false)
            .bind(step.version)
            .bind(step.description)
            .execute(transaction.connection())
            .await?;
    }
    if from == 0 {
        draw_key(transaction).await?;
    }
    Ok(())
}

/// Draws the key of this state's fingerprints.
async fn draw_key(transaction: &mut Transaction) -> Result<(), Fault> {
    let mut drawn = [0; 32];
    getrandom::fill(&mut drawn).map_err(|_| Fault::Database {
        problem: "the operating system gives no randomness".to_owned(),
        transient: false,
    })?;
    sqlx::query("INSERT INTO meta (name, value) VALUES ('fingerprint_key', $1)")
        .persistent(false)
        .bind(&drawn[..])
        .execute(transaction.connection())
        .await?;
    Ok(())
}
