//! The watch: the right to read the source and to commit what was found, which one process of all those on a state has at a time.
//!
//! It is a lease with a token. A pass is committed only while its token is the one in the state, in the transaction that commits
//! it: a process that was frozen for longer than its lease finds out there, and nothing older is committed after something newer.

use std::future::Future;

use crate::model::{Lease, LeaseToken, Timestamp};
use crate::store::rules::is_due;

use super::Rows;

/// The watch's row of one transaction.
pub(in crate::store) trait WatchRows: Rows {
    /// Who has it, or had it last.
    fn watch(&mut self) -> impl Future<Output = Result<Option<Lease>, Self::Error>> + Send;

    /// Writes the lease unless one is there that has not ended at `now`; true if it was written.
    fn take_watch(
        &mut self,
        lease: &Lease,
        now: Timestamp,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Moves the end of the lease with this token; true if it is there.
    fn renew_watch(
        &mut self,
        token: LeaseToken,
        expires_at: Timestamp,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Removes the lease with this token, or any; true if there was one.
    fn drop_watch(
        &mut self,
        token: Option<LeaseToken>,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Whether the lease has this token; nobody takes it before the transaction has ended.
    fn holds_watch(
        &mut self,
        token: LeaseToken,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send;
}

/// [`crate::store::Store::acquire_watch`].
pub(in crate::store) async fn acquire<R: WatchRows>(
    rows: &mut R,
    lease: &Lease,
    now: Timestamp,
) -> Result<bool, R::Error> {
    // Whoever only waits for his turn is not to be in the holder's way.
    let is_held = rows
        .watch()
        .await?
        .is_some_and(|held| !is_due(held.expires_at, now));
    if is_held {
        return Ok(false);
    }
    rows.take_watch(lease, now).await
}
