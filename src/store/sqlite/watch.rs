//! The watch's row of the SQLite state.

use rusqlite::params;

use crate::model::{Lease, LeaseToken, Timestamp};
use crate::plan::claim::DUE_HORIZON;
use crate::store::codec;
use crate::store::fault::Fault;
use crate::store::steps::watch::WatchRows;

use super::session::SqliteRows;

impl WatchRows for SqliteRows {
    async fn watch(&mut self) -> Result<Option<Lease>, Fault> {
        self.db().find_row(
            "SELECT owner, token, expires_at
             FROM lease
             WHERE name = 'watch'",
            params![],
            |row| codec::watch_lease(row),
        )
    }

    async fn take_watch(&mut self, lease: &Lease, now: Timestamp) -> Result<bool, Fault> {
        let taken = self.db().run(
            "INSERT INTO lease (name, owner, token, expires_at)
             VALUES ('watch', ?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE
             SET owner = excluded.owner,
                 token = excluded.token,
                 expires_at = excluded.expires_at
             WHERE lease.expires_at <= ?4
                -- Too far ahead: the clock was set back.
                OR lease.expires_at > ?5",
            params![
                &lease.owner,
                lease.token.0,
                lease.expires_at.as_millis(),
                now.as_millis(),
                now.plus(DUE_HORIZON).as_millis()
            ],
        )?;
        Ok(taken == 1)
    }

    async fn renew_watch(
        &mut self,
        token: LeaseToken,
        expires_at: Timestamp,
    ) -> Result<bool, Fault> {
        let renewed = self.db().run(
            "UPDATE lease
             SET expires_at = ?2
             WHERE name = 'watch'
               AND token = ?1",
            params![token.0, expires_at.as_millis()],
        )?;
        Ok(renewed == 1)
    }

    async fn drop_watch(&mut self, token: Option<LeaseToken>) -> Result<bool, Fault> {
        let dropped = self.db().run(
            "DELETE FROM lease
             WHERE name = 'watch'
               AND (?1 IS NULL OR token = ?1)",
            params![token.map(|token| token.0)],
        )?;
        Ok(dropped == 1)
    }

    async fn holds_watch(&mut self, token: LeaseToken) -> Result<bool, Fault> {
        Ok(self.watch().await?.is_some_and(|held| held.token == token))
    }
}
