//! The advisory locks of a state. All of them end with their transaction, so that they work behind a pooler.
//!
//! Advisory locks belong to the whole database: the first of their two numbers tells these from another program's.

use std::collections::BTreeSet;

use sqlx::Row as _;

use crate::model::InstallationId;
use crate::store::fault::Fault;

use super::pool::Transaction;

/// The first number of every lock here.
const SPACE: i32 = 0x7263_6e64;

/// A lock of the whole state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// Making or changing the schema.
    Schema = 1,
    /// The guard's holds: passes and a person's orders decide on them one after another.
    Guard = 2,
}

/// Takes a lock, after whoever has it.
pub(super) async fn wait_for(transaction: &mut Transaction, lock: Lock) -> Result<(), Fault> {
    transaction
        .query("SELECT pg_catalog.pg_advisory_xact_lock($1, $2)")
        .bind(SPACE)
        .bind(lock as i32)
        .execute(transaction.connection())
        .await?;
    Ok(())
}

/// Takes the locks of these installations as far as nobody has them; returns which were taken.
///
/// Different installations may share a lock, with a chance of one in billions: the one that comes second waits a turn.
pub(super) async fn try_installations(
    transaction: &mut Transaction,
    installations: &[InstallationId],
) -> Result<BTreeSet<String>, Fault> {
    let names: Vec<&str> = installations.iter().map(InstallationId::as_str).collect();
    let rows = transaction
        .query(
            // The sign bit keeps them apart from the locks of the whole state.
            "SELECT wanted.installation_id
             FROM unnest($2::text[]) AS wanted (installation_id)
             WHERE pg_catalog.pg_try_advisory_xact_lock(
                       $1, pg_catalog.hashtext(wanted.installation_id) | (1 << 31))",
        )
        .bind(SPACE)
        .bind(names)
        .fetch_all(transaction.connection())
        .await?;
    let mut taken = BTreeSet::new();
    for row in &rows {
        taken.insert(row.try_get(0)?);
    }
    Ok(taken)
}
