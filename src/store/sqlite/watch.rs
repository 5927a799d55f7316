//! The watch's row of the SQLite state.

use crate::model::{Lease, LeaseToken, Timestamp};
use crate::plan::claim::DUE_HORIZON;
use crate::store::codec;
use crate::store::fault::Fault;
use crate::store::steps::watch::WatchRows;

use super::session::SqliteRows;

impl WatchRows for SqliteRows {
    async fn watch(&mut self) -> Result<Option<Lease>, Fault> {
        let row = sqlx::query(
            "SELECT owner, token, expires_at
             FROM lease
             WHERE name = 'watch'",
        )
        .fetch_optional(self.connection())
        .await?;
        row.as_ref().map(codec::watch_lease).transpose()
    }

    async fn take_watch(&mut self, lease: &Lease, now: Timestamp) -> Result<bool, Fault> {
        let taken = sqlx::query(
            "INSERT INTO lease (name, owner, token, expires_at)
             VALUES ('watch', ?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE
             SET owner = excluded.owner,
                 token = excluded.token,
                 expires_at = excluded.expires_at
             WHERE lease.expires_at <= ?4
                -- Too far ahead: the clock was set back.
                OR lease.expires_at > ?5",
        )
        .bind(&lease.owner)
        .bind(lease.token.0)
        .bind(lease.expires_at.as_millis())
        .bind(now.as_millis())
        .bind(now.plus(DUE_HORIZON).as_millis())
        .execute(self.connection())
        .await?;
        Ok(taken.rows_affected() == 1)
    }

    async fn renew_watch(
        &mut self,
        token: LeaseToken,
        expires_at: Timestamp,
    ) -> Result<bool, Fault> {
        let renewed = sqlx::query(
            "UPDATE lease
             SET expires_at = ?2
             WHERE name = 'watch'
               AND token = ?1",
        )
        .bind(token.0)
        .bind(expires_at.as_millis())
        .execute(self.connection())
        .await?;
        Ok(renewed.rows_affected() == 1)
    }

    async fn drop_watch(&mut self, token: Option<LeaseToken>) -> Result<bool, Fault> {
        let dropped = sqlx::query(
            "DELETE FROM lease
             WHERE name = 'watch'
               AND (?1 IS NULL OR token = ?1)",
        )
        .bind(token.map(|token| token.0))
        .execute(self.connection())
        .await?;
        Ok(dropped.rows_affected() == 1)
    }

    async fn holds_watch(&mut self, token: LeaseToken) -> Result<bool, Fault> {
        Ok(self.watch().await?.is_some_and(|held| held.token == token))
    }
}
