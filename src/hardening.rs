//! What the process gives up before it touches a secret.
//!
//! Files it creates are its owner's alone, it leaves no core dump, and no other process of its user may read its memory.
//! It never raises a limit.

use std::io;

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// Sets the umask to 0077, forbids core dumps and marks the process as not dumpable.
///
/// Call it first in `main`, before threads and files exist. Not being dumpable also keeps other processes of the same user
/// from attaching to this one (prctl(2), `PR_SET_DUMPABLE`).
pub fn harden_process() -> Result<(), HardeningError> {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let no_core = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, no_core)
        .map_err(|source| HardeningError::CoreLimit(source.into()))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|source| HardeningError::Dumpable(source.into()))
}

/// Which protection the system refused.
#[derive(Debug, thiserror::Error)]
pub enum HardeningError {
    /// The limit on core dumps.
    #[error("core dumps could not be switched off")]
    CoreLimit(#[source] io::Error),
    /// The mark that keeps the memory from being dumped or read.
    #[error("the process could not be marked as not dumpable")]
    Dumpable(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Set in the child that hardens itself, so that the tests beside it keep their own umask and limits.
    const CHILD: &str = "RECONCILED_TEST_HARDENING_CHILD";

    #[test]
    fn hardened_process_leaves_nothing_behind() {
        if std::env::var_os(CHILD).is_some() {
            return assert_hardened();
        }
        let output = Command::new(std::env::current_exe().expect("this test's own path"))
            .args([
                "--exact",
                "hardening::tests::hardened_process_leaves_nothing_behind",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .output()
            .expect("this test runs again");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
    }

    fn assert_hardened() {
        harden_process().expect("an ordinary user may give these up");
        assert_eq!(
            rustix::process::umask(Mode::empty()),
            Mode::RWXG | Mode::RWXO
        );
        let limit = rustix::process::getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
        let dumpable = rustix::process::dumpable_behavior().expect("the kernel answers");
        assert_eq!(dumpable, DumpableBehavior::NotDumpable);
    }
}
