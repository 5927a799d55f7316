//! The real daemon, in a runtime of its own, so that it can crash without taking the process with it.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::app::{self, AppError, Controls, Parts};
use crate::config::Config;
use crate::shutdown::Shutdown;
use crate::store::Access;

/// How long a crash may take to drop every task.
const CRASH: Duration = Duration::from_secs(5);

/// A running daemon.
pub(super) struct Daemon {
    /// `None` only while it ends.
    runtime: Option<Runtime>,
    shutdown: Shutdown,
    ended: JoinHandle<Result<(), AppError>>,
}

impl Daemon {
    /// Starts it on its state, exactly as `run` does.
    pub(super) fn start(config: &Arc<Config>) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("daemon")
            .enable_all()
            .build()?;
        let shutdown = Shutdown::new();
        let (config, asked) = (Arc::clone(config), shutdown.clone());
        let ended = runtime.spawn(async move {
            let parts = Parts::open(config, Access::Daemon).await?;
            let controls = Controls::fixed(asked, &parts.config);
            app::run(parts, controls).await
        });
        Ok(Self {
            runtime: Some(runtime),
            shutdown,
            ended,
        })
    }

    /// Drops everything that it was doing, wherever it was: nothing is finished, recorded or said.
    pub(super) async fn crash(mut self) {
        if let Some(runtime) = self.runtime.take() {
            // It waits for the tasks to be gone, which only a thread of its own may do.
            let _ = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(CRASH)).await;
        }
    }

    /// Asks it to stop and waits until it has, as after SIGTERM.
    pub(super) async fn stop(mut self) -> Result<(), AppError> {
        self.shutdown.request();
        let ended = (&mut self.ended).await;
        self.crash().await;
        ended.unwrap_or(Err(AppError::Ended { part: "daemon" }))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
