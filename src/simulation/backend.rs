//! The two states that are tried: in memory, and in a real SQLite file.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use tokio::runtime::Runtime;

use crate::model::{
    FingerprintKey, InstallationId, Lease, LeaseToken, Record, ResourceKey, Timestamp,
};
use crate::plan::Claimed;
use crate::store::Access;
use crate::store::{
    Advanced, Batch, ClaimRequest, Counts, Cutoffs, Drifted, Glance, Glances, Heartbeat, Hold,
    HoldReport, MemoryStore, Pause, PauseKind, Person, Progress, Reconciled, Settlement,
    SqliteStore, Store, StoreError,
};

/// Where a trial's state is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Memory,
    File,
}

/// Where a trial's state is kept.
pub(super) enum Backend {
    /// In memory: what was committed survives the process.
    Memory(Arc<MemoryStore>),
    /// In a file: opened again whenever a process starts alone.
    Sqlite(Box<File>),
}

/// What is committed, as the judges beside the daemon see it.
#[derive(Clone)]
pub(super) struct Committed {
    store: Arc<dyn Store>,
    memory: Option<Arc<MemoryStore>>,
}

impl Committed {
    /// The resources whose records were changed since this was last asked; `None`: any may have been.
    pub(super) async fn changed(&self) -> Option<Vec<ResourceKey>> {
        match &self.memory {
            Some(memory) => Some(memory.take_changed().await),
            None => None,
        }
    }
}

impl Deref for Committed {
    type Target = dyn Store;

    fn deref(&self) -> &Self::Target {
        &*self.store
    }
}

/// A SQLite file and how it is open.
pub(super) struct File {
    directory: tempfile::TempDir,
    /// How often the state was moved, which is in its name.
    moved: u32,
    runtime: Arc<Runtime>,
    open: Arc<Blocking>,
}

impl Place {
    pub(super) fn open(self) -> Backend {
        match self {
            Self::Memory => Backend::memory(),
            Self::File => Backend::sqlite(),
        }
    }
}

impl Backend {
    fn memory() -> Self {
        Self::Memory(Arc::new(MemoryStore::new(FingerprintKey::new([7; 32]))))
    }

    fn sqlite() -> Self {
        // Memory-backed where there is such a place: what a disk keeps is not what is tried here.
        let shared = PathBuf::from("/dev/shm");
        let parent = if shared.is_dir() {
            shared
        } else {
            std::env::temp_dir()
        };
        let directory = tempfile::tempdir_in(parent).expect("a directory can be made");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let runtime = Arc::new(runtime);
        let open = Arc::new(open(&runtime, &path(&directory, 0)));
        Self::Sqlite(Box::new(File {
            directory,
            moved: 0,
            runtime,
            open,
        }))
    }

    pub(super) fn key(&self) -> FingerprintKey {
        match self {
            Self::Memory(_) => FingerprintKey::new([7; 32]),
            Self::Sqlite(file) => file
                .runtime
                .block_on(file.open.store.fingerprint_key())
                .expect("the key can be read"),
        }
    }

    pub(super) fn committed(&self) -> Committed {
        match self {
            Self::Memory(store) => Committed {
                store: Arc::clone(store) as Arc<dyn Store>,
                memory: Some(Arc::clone(store)),
            },
            Self::Sqlite(file) => Committed {
                store: Arc::clone(&file.open) as Arc<dyn Store>,
                memory: None,
            },
        }
    }

    /// Opens the state again, as a process that starts does; not while another has it open.
    ///
    /// After one that was `killed` it is opened as that left it: nobody has closed the file, and what was committed is in its journal.
    pub(super) fn reopen(&mut self, killed: bool) {
        if let Self::Sqlite(file) = self {
            if killed {
                file.leave();
            }
            file.runtime.block_on(file.open.store.close());
            file.open = Arc::new(open(&file.runtime, &path(&file.directory, file.moved)));
        }
    }
}

impl File {
    /// Copies the file and its journal as they are now to where the next process looks for them. The index of the journal (`-shm`) stays
    /// behind, so that it is made anew from the journal.
    fn leave(&mut self) {
        let old = path(&self.directory, self.moved);
        self.moved += 1;
        let new = path(&self.directory, self.moved);
        std::fs::copy(&old, &new).expect("the file can be copied");
        std::fs::copy(journal(&old), journal(&new)).expect("the journal can be copied");
    }
}

fn journal(path: &Path) -> PathBuf {
    path.with_extension("db-wal")
}

fn path(directory: &tempfile::TempDir, moved: u32) -> PathBuf {
    directory.path().join(format!("state-{moved}.db"))
}

fn open(runtime: &Arc<Runtime>, path: &Path) -> Blocking {
    let store = runtime
        .block_on(SqliteStore::open(path, Access::Daemon))
        .expect("the state can be opened");
    Blocking {
        store,
        runtime: Arc::clone(runtime),
    }
}

/// A state whose every operation ends within its first poll, so that no order depends on real time.
pub(super) struct Blocking {
    store: SqliteStore,
    runtime: Arc<Runtime>,
}

#[async_trait]
impl Store for Blocking {
    async fn fingerprint_key(&self) -> Result<FingerprintKey, StoreError> {
        self.runtime.block_on(self.store.fingerprint_key())
    }

    async fn glance(&self, keys: &[ResourceKey]) -> Result<Vec<Glance>, StoreError> {
        self.runtime.block_on(self.store.glance(keys))
    }

    async fn glance_between(
        &self,
        first: (&str, &str),
        last: (&str, &str),
        limit: u32,
    ) -> Result<Option<Glances>, StoreError> {
        self.runtime
            .block_on(self.store.glance_between(first, last, limit))
    }

    async fn records(&self, keys: &[ResourceKey]) -> Result<Vec<Record>, StoreError> {
        self.runtime.block_on(self.store.records(keys))
    }

    async fn reconcile(&self, batch: Batch) -> Result<Reconciled, StoreError> {
        self.runtime.block_on(self.store.reconcile(batch))
    }

    async fn progress(&self) -> Result<Progress, StoreError> {
        self.runtime.block_on(self.store.progress())
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Claimed>, StoreError> {
        self.runtime.block_on(self.store.claim(request))
    }

    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        self.runtime.block_on(self.store.next_due())
    }

    async fn advance(&self, settlement: Settlement) -> Result<Option<Advanced>, StoreError> {
        self.runtime.block_on(self.store.advance(settlement))
    }

    async fn recover(
        &self,
        now: Timestamp,
        late_apply: Duration,
        owner_gone: bool,
    ) -> Result<u64, StoreError> {
        self.runtime
            .block_on(self.store.recover(now, late_apply, owner_gone))
    }

    async fn pause(&self, pause: &Pause) -> Result<(), StoreError> {
        self.runtime.block_on(self.store.pause(pause))
    }

    async fn resume(
        &self,
        installation_id: &InstallationId,
        kind: PauseKind,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.runtime
            .block_on(self.store.resume(installation_id, kind, now))
    }

    async fn probes_due(&self, now: Timestamp, limit: u32) -> Result<Vec<Pause>, StoreError> {
        self.runtime.block_on(self.store.probes_due(now, limit))
    }

    async fn keys_after(
        &self,
        after: Option<&ResourceKey>,
        limit: u32,
    ) -> Result<Vec<ResourceKey>, StoreError> {
        self.runtime.block_on(self.store.keys_after(after, limit))
    }

    async fn resources(&self) -> Result<u64, StoreError> {
        self.runtime.block_on(self.store.resources())
    }

    async fn unusable_alone(&self) -> Result<u64, StoreError> {
        self.runtime.block_on(self.store.unusable_alone())
    }

    async fn counts(&self, now: Timestamp) -> Result<Counts, StoreError> {
        self.runtime.block_on(self.store.counts(now))
    }

    async fn rechecks(&self, limit: u32) -> Result<Vec<ResourceKey>, StoreError> {
        self.runtime.block_on(self.store.rechecks(limit))
    }

    async fn is_blocked(
        &self,
        installation_id: &InstallationId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.runtime
            .block_on(self.store.is_blocked(installation_id, now))
    }

    async fn mark_drifted(
        &self,
        drifted: &[Drifted],
        by: Option<&Person>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        self.runtime
            .block_on(self.store.mark_drifted(drifted, by, now))
    }

    async fn hold(&self, id: i64) -> Result<Option<HoldReport>, StoreError> {
        self.runtime.block_on(self.store.hold(id))
    }

    async fn open_holds(&self) -> Result<Vec<Hold>, StoreError> {
        self.runtime.block_on(self.store.open_holds())
    }

    async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError> {
        self.runtime.block_on(self.store.heartbeat(heartbeat))
    }

    async fn acquire_watch(&self, lease: &Lease, now: Timestamp) -> Result<bool, StoreError> {
        self.runtime.block_on(self.store.acquire_watch(lease, now))
    }

    async fn renew_watch(
        &self,
        token: LeaseToken,
        expires_at: Timestamp,
    ) -> Result<bool, StoreError> {
        self.runtime
            .block_on(self.store.renew_watch(token, expires_at))
    }

    async fn release_watch(&self, token: LeaseToken) -> Result<bool, StoreError> {
        self.runtime.block_on(self.store.release_watch(token))
    }

    async fn watch(&self) -> Result<Option<Lease>, StoreError> {
        self.runtime.block_on(self.store.watch())
    }

    async fn prune(&self, cutoffs: Cutoffs, limit: u32) -> Result<u64, StoreError> {
        self.runtime.block_on(self.store.prune(cutoffs, limit))
    }
}

/// What the trials over a file rely on: that a process which starts after a killed one finds what is in the journal alone.
#[test]
fn what_was_committed_before_a_kill_is_found_in_a_journal_that_nobody_closed() {
    let mut backend = Backend::sqlite();
    let id = InstallationId::new("i0").expect("an id");
    let now = Timestamp::from_millis(1_000_000);
    let pause = Pause {
        installation_id: id.clone(),
        kind: PauseKind::Gone,
        by: "reconciled".to_owned(),
        reason: "it is gone".to_owned(),
        since: now,
        until: None,
        probe_at: Some(now),
        probes_failed: 0,
    };
    let is_paused = |backend: &Backend| {
        let paused = backend.committed();
        let paused = paused.is_blocked(&id, now).now_or_never();
        paused.expect("it ends at once").expect("it can be read")
    };
    // Nothing is in the journal of a state that was closed.
    backend.reopen(false);
    let committed = backend.committed();
    let done = committed.pause(&pause).now_or_never();
    done.expect("it ends at once").expect("it can be committed");
    drop(committed);
    let Backend::Sqlite(file) = &backend else {
        unreachable!("it was made so")
    };
    let alone = file.directory.path().join("alone.db");
    std::fs::copy(path(&file.directory, 0), &alone).expect("the file can be copied");
    let alone = open(&file.runtime, &alone)
        .is_blocked(&id, now)
        .now_or_never();
    let in_file = alone.expect("it ends at once").expect("it can be read");
    assert!(!in_file, "the journal was written back already");
    backend.reopen(true);
    assert!(is_paused(&backend));
    backend.reopen(true);
    assert!(is_paused(&backend), "and again, though it was not touched");
    backend.reopen(false);
    assert!(is_paused(&backend));
}
