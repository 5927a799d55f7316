//! The two states that are tried: in memory, and in a real SQLite file.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
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

/// Where a trial's state is kept.
pub(super) enum Backend {
    /// In memory: what was committed survives the process.
    Memory(Arc<MemoryStore>),
    /// In a file: opened again whenever a process starts.
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
    runtime: Arc<Runtime>,
    open: Arc<Blocking>,
}

impl Backend {
    pub(super) fn memory() -> Self {
        Self::Memory(Arc::new(MemoryStore::new(FingerprintKey::new([7; 32]))))
    }

    pub(super) fn sqlite() -> Self {
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
        let open = Arc::new(open(&runtime, &directory));
        Self::Sqlite(Box::new(File {
            directory,
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
    pub(super) fn reopen(&mut self, alone: bool) {
        if let Self::Sqlite(file) = self
            && alone
        {
            file.runtime.block_on(file.open.store.close());
            file.open = Arc::new(open(&file.runtime, &file.directory));
        }
    }
}

fn open(runtime: &Arc<Runtime>, directory: &tempfile::TempDir) -> Blocking {
    let path = directory.path().join("state.db");
    let store = runtime
        .block_on(SqliteStore::open(&path, Access::Daemon))
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
