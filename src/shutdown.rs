//! How the daemon is asked to stop, and to read its settings again.
//!
//! The first request to stop drains: nothing new begins, what is under way ends. The second aborts. Both stages are tokens
//! that can be set without a signal; signals merely set them.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The two stages of stopping; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    draining: CancellationToken,
    abort: CancellationToken,
}

/// What a request to stop led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The first request: draining began.
    Draining,
    /// A further request: what is still under way is abandoned.
    Abort,
}

impl Shutdown {
    /// Nothing has been asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks to stop, as a signal does: once to drain, again to abort.
    pub fn request(&self) -> Stage {
        if self.draining.is_cancelled() {
            self.abort.cancel();
            return Stage::Abort;
        }
        self.draining.cancel();
        Stage::Draining
    }

    /// Cancelled at the first request: begin nothing new.
    pub fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    /// Cancelled at the second request, or by [`Shutdown::abort_now`]: end at once.
    pub fn abort(&self) -> &CancellationToken {
        &self.abort
    }

    /// Sets both stages, for a grace period that has passed.
    pub fn abort_now(&self) {
        self.draining.cancel();
        self.abort.cancel();
    }

    /// Sets the stages at SIGTERM and SIGINT from now on, and reports SIGHUP through the receiver.
    ///
    /// The receiver's number grows with each SIGHUP; several close together may count as one. Must be called within a tokio
    /// runtime; the task it starts ends with the runtime.
    pub fn listen(&self) -> Result<watch::Receiver<u64>, ShutdownError> {
        let terminate = listen_for(SignalKind::terminate(), "SIGTERM")?;
        let interrupt = listen_for(SignalKind::interrupt(), "SIGINT")?;
        let hang_up = listen_for(SignalKind::hangup(), "SIGHUP")?;
        let (reload, receiver) = watch::channel(0);
        tokio::spawn(relay(self.clone(), terminate, interrupt, hang_up, reload));
        Ok(receiver)
    }
}

/// A signal cannot be listened for.
#[derive(Debug, thiserror::Error)]
#[error("{signal} cannot be listened for")]
pub struct ShutdownError {
    signal: &'static str,
    #[source]
    source: io::Error,
}

/// Turns signals into stages until the second request to stop.
async fn relay(
    shutdown: Shutdown,
    mut terminate: Signal,
    mut interrupt: Signal,
    mut hang_up: Signal,
    reload: watch::Sender<u64>,
) {
    loop {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            _ = hang_up.recv() => {
                reload.send_modify(|count| *count += 1);
                continue;
            }
        };
        match shutdown.request() {
            Stage::Draining => tracing::info!(
                event = "shutdown.requested",
                signal = name,
                "Received {name}: requests in flight may end; a second signal ends at once"
            ),
            Stage::Abort => {
                tracing::warn!(
                    event = "shutdown.aborted",
                    signal = name,
                    "Received {name} again: ending at once"
                );
                return;
            }
        }
    }
}

fn listen_for(kind: SignalKind, name: &'static str) -> Result<Signal, ShutdownError> {
    signal(kind).map_err(|source| ShutdownError {
        signal: name,
        source,
    })
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Kill, getpid, kill_process};

    use super::*;

    #[test]
    fn first_request_drains_and_second_aborts() {
        let shutdown = Shutdown::new();
        let held = shutdown.clone();
        assert!(!held.draining().is_cancelled());
        assert_eq!(shutdown.request(), Stage::Draining);
        assert!(held.draining().is_cancelled() && !held.abort().is_cancelled());
        assert_eq!(shutdown.request(), Stage::Abort);
        assert!(held.abort().is_cancelled());
    }

    #[test]
    fn abort_now_sets_both_stages() {
        let shutdown = Shutdown::new();
        shutdown.abort_now();
        assert!(shutdown.draining().is_cancelled() && shutdown.abort().is_cancelled());
    }

    #[tokio::test]
    async fn signals_reload_then_drain_then_abort() {
        let shutdown = Shutdown::new();
        let mut reload = shutdown.listen().expect("signals can be listened for");
        kill_process(getpid(), Kill::HUP).expect("a process may signal itself");
        reload.changed().await.expect("the relay is running");
        assert!(!shutdown.draining().is_cancelled());
        kill_process(getpid(), Kill::TERM).expect("a process may signal itself");
        shutdown.draining().cancelled().await;
        assert!(!shutdown.abort().is_cancelled());
        kill_process(getpid(), Kill::INT).expect("a process may signal itself");
        shutdown.abort().cancelled().await;
    }
}
