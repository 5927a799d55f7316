//! One process at a time reads the source, and the limits of an installation hold across all.

use std::time::Duration;

use reconciled::model::{Lease, LeaseToken, Timestamp};
use reconciled::store::{Batch, Store, StoreError};

use super::fixture::*;

fn watch_by(owner: &str, token: i64, expires_at: Timestamp) -> Lease {
    Lease {
        owner: owner.to_owned(),
        token: LeaseToken(token),
        expires_at,
    }
}

pub(super) async fn watch_belongs_to_one_at_a_time(store: &dyn Store) {
    let (ana, bo) = (
        watch_by("ana", 1, seconds(10)),
        watch_by("bo", 2, seconds(20)),
    );
    assert_eq!(store.watch().await.expect("readable"), None);
    assert!(store.acquire_watch(&ana, START).await.expect("answered"));
    assert_eq!(store.watch().await.expect("readable"), Some(ana.clone()));
    assert!(
        !store
            .acquire_watch(&bo, seconds(9))
            .await
            .expect("answered")
    );
    // Prolonged by its holder, and by nobody else.
    let renew = |token, at| store.renew_watch(LeaseToken(token), seconds(at));
    assert!(renew(1, 12).await.expect("answered"));
    assert!(!renew(2, 99).await.expect("answered"));
    assert!(
        !store
            .acquire_watch(&bo, seconds(11))
            .await
            .expect("answered")
    );
    // Its time has run out: it is the next one's, and the first can neither prolong nor give it back.
    assert!(
        store
            .acquire_watch(&bo, seconds(12))
            .await
            .expect("answered")
    );
    assert!(!renew(1, 99).await.expect("answered"));
    assert!(!store.release_watch(LeaseToken(1)).await.expect("answered"));
    assert_eq!(store.watch().await.expect("readable"), Some(bo));
    // Given back, it can be taken at once.
    assert!(store.release_watch(LeaseToken(2)).await.expect("answered"));
    let again = watch_by("ana", 3, seconds(30));
    assert!(
        store
            .acquire_watch(&again, seconds(13))
            .await
            .expect("answered")
    );
    // An end that is too far ahead is the trace of a clock that was set back.
    let early = watch_by("bo", 4, START);
    let before = START.minus(Duration::from_secs(7_200));
    assert!(store.acquire_watch(&early, before).await.expect("answered"));
    // Whoever has the state to himself knows that its holder is gone.
    store.recover(before, LATE, true).await.expect("recovered");
    assert_eq!(store.watch().await.expect("readable"), None);
}

pub(super) async fn pass_under_a_lost_watch_commits_nothing(store: &dyn Store) {
    let key = key("icfg_1", "res_1");
    let pass = |now, token: i64, desired: &str| Batch {
        watch: Some(LeaseToken(token)),
        ..batch(now, vec![row(&key, &status(desired))])
    };
    let never = store.reconcile(pass(START, 1, "ready")).await;
    assert!(matches!(never, Err(StoreError::WatchLost)), "{never:?}");
    let ana = watch_by("ana", 1, seconds(10));
    assert!(store.acquire_watch(&ana, START).await.expect("answered"));
    store
        .reconcile(pass(seconds(1), 1, "pending"))
        .await
        .expect("committed");
    // Frozen past its lease, but nobody has taken over: nothing newer can have been committed.
    store
        .reconcile(pass(seconds(11), 1, "ready"))
        .await
        .expect("committed");
    let bo = watch_by("bo", 2, seconds(22));
    assert!(
        store
            .acquire_watch(&bo, seconds(12))
            .await
            .expect("answered")
    );
    store
        .reconcile(pass(seconds(13), 2, "suspended"))
        .await
        .expect("committed");
    let before = record(store, &key).await;
    let stale = store.reconcile(pass(seconds(14), 1, "ready")).await;
    assert!(matches!(stale, Err(StoreError::WatchLost)), "{stale:?}");
    assert_eq!(record(store, &key).await, before);
    assert_eq!(
        claim_one(store, seconds(15)).await.desired,
        status("suspended")
    );
}

pub(super) async fn requests_of_other_owners_count_against_their_installation(store: &dyn Store) {
    let rows = (0..6).map(|n| row(&key("icfg_1", &format!("res_{n}")), &status("ready")));
    read(store, START, rows.collect()).await;
    let by = |owner: &str, limit| {
        let mut request = request(START, limit);
        request.owner = owner.to_owned();
        request
    };
    assert_eq!(claim_by(store, &by("ana", 3)).await.len(), 3);
    // Four at once for an installation, whoever sends them.
    assert_eq!(claim_by(store, &by("bo", 64)).await.len(), 1);
    assert_eq!(claim_by(store, &by("cy", 64)).await.len(), 0);
}
