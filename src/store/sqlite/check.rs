//! Whether the file is sound: asked at every start, and waited for as long as that takes no longer than a moment.
//!
//! The check reads the whole file, seconds for each gigabyte, during which nothing would be sent. A large file is therefore checked
//! beside the work; what is found then ends all work on the state, as any failure of it does.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rusqlite::params;
use tokio::sync::oneshot;

use crate::store::StoreError;
use crate::store::fault::Fault;

use super::db::Db;
use super::file::cannot_open;

/// How long a start waits for the check.
pub(super) const PATIENCE: Duration = Duration::from_millis(300);

/// What a check has found, if anything: shared by all who work on the file.
#[derive(Debug, Clone, Default)]
pub(super) struct Damage(Arc<OnceLock<String>>);

impl Damage {
    pub(super) fn found(&self, problem: String) {
        // The first problem is as good as any.
        let _ = self.0.set(problem);
    }

    /// Fails once the file was found damaged.
    pub(super) fn none(&self) -> Result<(), Fault> {
        match self.0.get() {
            None => Ok(()),
            Some(problem) => Err(Fault::Corrupt(problem.clone())),
        }
    }
}

/// Has SQLite look at every page of the file, on a connection and in a thread of its own: an end of the process does not wait for it.
pub(super) async fn check(path: PathBuf) -> Result<(), StoreError> {
    let (tell, told) = oneshot::channel();
    let started = std::thread::Builder::new()
        .name("state check".to_owned())
        .spawn(move || {
            // Nobody may be waiting any more.
            let _ = tell.send(look(&path));
        });
    let none = || StoreError::Corrupt {
        problem: "the check of the file ended without a verdict".to_owned(),
    };
    started.map_err(|_| none())?;
    told.await.map_err(|_| none())?
}

fn look(path: &Path) -> Result<(), StoreError> {
    let ask = || {
        let db = Db::open(path)?;
        db.only_read()?;
        db.value("PRAGMA quick_check(1)", params![])
    };
    let verdict: String = ask().map_err(|fault: Fault| cannot_open(path, &fault.problem()))?;
    if verdict == "ok" {
        return Ok(());
    }
    Err(StoreError::Corrupt {
        problem: format!("SQLite finds in {}: {verdict}", path.display()),
    })
}

/// Waits for a check, no longer than `patience` if there is one; what it finds after that is left in `damage`.
pub(super) async fn wait_for<F>(
    check: F,
    patience: Option<Duration>,
    damage: Damage,
) -> Result<(), StoreError>
where
    F: Future<Output = Result<(), StoreError>> + Send + 'static,
{
    let checking = tokio::spawn(async move {
        let verdict = check.await;
        if let Err(error) = &verdict {
            let problem = match error {
                StoreError::Corrupt { problem } => problem.clone(),
                other => other.to_string(),
            };
            damage.found(problem);
        }
        verdict
    });
    let ended = match patience {
        None => checking.await,
        Some(patience) => match tokio::time::timeout(patience, checking).await {
            Ok(ended) => ended,
            Err(_) => return Ok(()),
        },
    };
    ended.unwrap_or_else(|_| {
        Err(StoreError::Corrupt {
            problem: "the check of the file ended without a verdict".to_owned(),
        })
    })
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn damaged() -> StoreError {
        StoreError::Corrupt {
            problem: "page 7 is not what it was".to_owned(),
        }
    }

    /// A check that finds damage once it is told to.
    fn slow() -> (
        oneshot::Sender<()>,
        impl Future<Output = Result<(), StoreError>> + Send,
    ) {
        let (tell, told) = oneshot::channel();
        let check = async move {
            let _ = told.await;
            Err(damaged())
        };
        (tell, check)
    }

    #[tokio::test]
    async fn a_verdict_that_comes_soon_decides_the_start() {
        for patience in [None, Some(Duration::from_secs(3600))] {
            let damage = Damage::default();
            let sound = wait_for(async { Ok(()) }, patience, damage.clone()).await;
            assert!(sound.is_ok() && damage.none().is_ok());
            let refused = wait_for(async { Err(damaged()) }, patience, damage.clone()).await;
            assert!(matches!(refused, Err(StoreError::Corrupt { .. })));
        }
    }

    #[tokio::test]
    async fn a_check_that_takes_long_goes_on_beside_the_work_and_ends_it_when_it_finds_damage() {
        let (tell, check) = slow();
        let damage = Damage::default();
        let started = wait_for(check, Some(Duration::ZERO), damage.clone()).await;
        assert!(started.is_ok() && damage.none().is_ok());
        tell.send(()).expect("it goes on");
        while damage.none().is_ok() {
            tokio::task::yield_now().await;
        }
        let Err(Fault::Corrupt(problem)) = damage.none() else {
            panic!("it is damaged");
        };
        assert_eq!(problem, "page 7 is not what it was");
    }

    #[tokio::test]
    async fn without_patience_the_verdict_is_waited_for() {
        let (tell, check) = slow();
        let mut started = Box::pin(wait_for(check, None, Damage::default()));
        assert!(futures_util::poll!(&mut started).is_pending());
        tell.send(()).expect("it is waited for");
        assert!(started.await.is_err());
    }
}
