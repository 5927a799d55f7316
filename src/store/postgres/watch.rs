//! The watch's row of the PostgreSQL state.

use crate::model::{Lease, LeaseToken, Timestamp};
use crate::plan::claim::DUE_HORIZON;
use crate::store::fault::Fault;
use crate::store::steps::watch::WatchRows;

use super::read;
use super::rows::PgRows;

impl WatchRows for PgRows {
    async fn watch(&mut self) -> Result<Option<Lease>, Fault> {
        read::watch(&mut self.transaction).await
    }

    async fn take_watch(&mut self, lease: &Lease, now: Timestamp) -> Result<bool, Fault> {
        let taken = self
            .transaction
            .query(
                "INSERT INTO lease (name, owner, token, expires_at)
                 VALUES ('watch', $1, $2, $3)
                 ON CONFLICT (name) DO UPDATE
                 SET owner = excluded.owner,
                     token = excluded.token,
                     expires_at = excluded.expires_at
                 WHERE lease.expires_at <= $4
                    -- Too far ahead: the clock was set back.
                    OR lease.expires_at > $5",
            )
            .bind(&lease.owner)
            .bind(lease.token.0)
            .bind(lease.expires_at.as_millis())
            .bind(now.as_millis())
            .bind(now.plus(DUE_HORIZON).as_millis())
            .execute(self.transaction.connection())
            .await?;
        Ok(taken.rows_affected() == 1)
    }

    async fn renew_watch(
        &mut self,
        token: LeaseToken,
        expires_at: Timestamp,
    ) -> Result<bool, Fault> {
        let renewed = self
            .transaction
            .query(
                "UPDATE lease
                 SET expires_at = $2
                 WHERE name = 'watch'
                   AND token = $1",
            )
            .bind(token.0)
            .bind(expires_at.as_millis())
            .execute(self.transaction.connection())
            .await?;
        Ok(renewed.rows_affected() == 1)
    }

    async fn drop_watch(&mut self, token: Option<LeaseToken>) -> Result<bool, Fault> {
        let dropped = self
            .transaction
            .query(
                "DELETE FROM lease
                 WHERE name = 'watch'
                   AND ($1::bigint IS NULL OR token = $1)",
            )
            .bind(token.map(|token| token.0))
            .execute(self.transaction.connection())
            .await?;
        Ok(dropped.rows_affected() == 1)
    }

    async fn holds_watch(&mut self, token: LeaseToken) -> Result<bool, Fault> {
        // Locked against being taken, not against being looked at. When it ends does not matter: whoever takes it makes this fail,
        // and as long as nobody has, nothing newer was committed.
        let held = self
            .transaction
            .query(
                "SELECT 1 AS held
                 FROM lease
                 WHERE name = 'watch'
                   AND token = $1
                 FOR SHARE",
            )
            .bind(token.0)
            .fetch_optional(self.transaction.connection())
            .await?;
        Ok(held.is_some())
    }
}
