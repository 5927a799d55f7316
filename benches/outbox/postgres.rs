//! The same in the state's tables on PostgreSQL, each statement for all changes of its transaction.

use std::time::Instant;

use sqlx::{Connection as _, PgConnection};

use super::{ANNOUNCED, AT, Change, DOUBT, HASH, HELD, TOGETHER, change};
use crate::bare::{self, Report};
use crate::process::Usage;

/// The state's tables, in a database that has none yet.
const SCHEMA: &str = concat!(
    "CREATE SCHEMA reconciled;
     SET search_path TO reconciled;",
    include_str!("../../migrations/postgres/0001_state.sql"),
    // Nothing is known of the tables yet: every row is to be found by its key all the same.
    "SET enable_seqscan = off;
     SET enable_hashjoin = off;
     SET enable_mergejoin = off"
);

/// The changes of a transaction, column by column.
struct Columns {
    ids: Vec<i64>,
    installations: Vec<String>,
    resources: Vec<String>,
}

impl Columns {
    fn of(changes: &[Change]) -> Self {
        Self {
            ids: changes.iter().map(|change| change.0).collect(),
            installations: changes.iter().map(|change| change.1.clone()).collect(),
            resources: changes.iter().map(|change| change.2.clone()).collect(),
        }
    }

    async fn put_resources(&self, db: &mut PgConnection) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO resource (installation_id, resource_id, acknowledged, doubt, dismissed, row_hash, acknowledged_at)
             SELECT i, r, $3, '{}', '{}', decode(repeat('00', 16), 'hex'), 0
             FROM unnest($1::text[], $2::text[]) AS changed (i, r)",
        )
        .bind(&self.installations)
        .bind(&self.resources)
        .bind(HELD)
        .execute(db)
        .await
        .map(drop)
    }

    /// Writes that the changes are about to be sent: found, enqueued, claimed and in doubt.
    async fn announce(&self, db: &mut PgConnection) -> Result<(), sqlx::Error> {
        let mut transaction = db.begin().await?;
        sqlx::query(
            "UPDATE resource
             SET row_hash = $3, doubt = $4
             FROM unnest($1::text[], $2::text[]) AS changed (i, r)
             WHERE installation_id = i AND resource_id = r",
        )
        .bind(&self.installations)
        .bind(&self.resources)
        .bind(&HASH[..])
        .bind(DOUBT)
        .execute(&mut *transaction)
        .await?;
        sqlx::query(
            "INSERT INTO entry (id, installation_id, resource_id, state, desired, generation, origin, mode, reason, created_at, due_at,
                                attempts, failures, conflicts, rejected, lease_owner, lease_token, lease_expires_at, in_flight)
             SELECT n, i, r, 'waiting', $4, 0, 'poll', 'whole', 'due', $6, $6, 0, 0, 0, '{}', 'owner', n, $6, $5
             FROM unnest($1::bigint[], $2::text[], $3::text[]) AS changed (n, i, r)",
        )
        .bind(&self.ids)
        .bind(&self.installations)
        .bind(&self.resources)
        .bind(HELD)
        .bind(ANNOUNCED)
        .bind(AT)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await
    }

    /// Writes that the changes were acknowledged.
    async fn settle(&self, db: &mut PgConnection) -> Result<(), sqlx::Error> {
        let mut transaction = db.begin().await?;
        sqlx::query(
            "UPDATE entry
             SET state = 'delivered', attempts = 1, lease_owner = NULL, lease_token = NULL, lease_expires_at = NULL,
                 in_flight = NULL, closed_at = $2
             FROM unnest($1::bigint[]) AS changed (n)
             WHERE id = n",
        )
        .bind(&self.ids)
        .bind(AT)
        .execute(&mut *transaction)
        .await?;
        sqlx::query(
            "UPDATE resource
             SET acknowledged = $3, doubt = '{}', acknowledged_at = $4
             FROM unnest($1::text[], $2::text[]) AS changed (i, r)
             WHERE installation_id = i AND resource_id = r",
        )
        .bind(&self.installations)
        .bind(&self.resources)
        .bind(HELD)
        .bind(AT)
        .execute(&mut *transaction)
        .await?;
        sqlx::query(
            r#"INSERT INTO attempt (entry_id, number, installation_id, resource_id, started_at, ended_at, method, fields, secret_names,
                                    outcome, status)
               SELECT n, 1, i, r, $4, $4, 'PATCH', '["metadata","name"]', '[]', 'acknowledged', 200
               FROM unnest($1::bigint[], $2::text[], $3::text[]) AS changed (n, i, r)"#,
        )
        .bind(&self.ids)
        .bind(&self.installations)
        .bind(&self.resources)
        .bind(AT)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await
    }
}

/// Writes `changes` changes from beginning to end, each in two transactions that the server flushes. The processor time is this
/// process's, which is not the server's.
pub(crate) async fn write(url: &str, changes: u64) -> Report {
    let mut db = PgConnection::connect(url).await.expect("it answers");
    sqlx::raw_sql(SCHEMA)
        .execute(&mut db)
        .await
        .expect("tables");
    let changes: Vec<Change> = (0..changes).map(|n| change(n, changes)).collect();
    let all = Columns::of(&changes);
    all.put_resources(&mut db).await.expect("rows");
    sqlx::raw_sql("VACUUM ANALYZE resource")
        .execute(&mut db)
        .await
        .expect("tidied");
    let before = Usage::of(std::process::id()).cpu;
    let started = Instant::now();
    for together in changes.chunks(TOGETHER) {
        let columns = Columns::of(together);
        columns.announce(&mut db).await.expect("rows");
        columns.settle(&mut db).await.expect("rows");
    }
    bare::report_since(before, changes.len() as u64, started.elapsed())
}
