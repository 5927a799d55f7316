//! Temporary directories that go with the test process, however it ended.
//!
//! A value that is dropped removes its directory. A process that is killed drops nothing, so a small shell waits for the end
//! of a pipe that only this process holds, and removes the directory then.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

use tempfile::TempDir;

/// Argument: the directory. Servers in it may take some seconds to end, and write until they do.
const GUARD: &str = r#"
read -r word
[ "$word" = removed ] && exit
for _ in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf "$1"
    sleep 1
    [ -e "$1" ] || exit 0
done
"#;

/// A new directory under the system's temporary one.
#[derive(Debug)]
pub(crate) struct Directory {
    /// `None` only while it is being dropped.
    directory: Option<TempDir>,
    guard: Child,
    lifeline: ChildStdin,
}

impl Directory {
    /// Creates an empty directory that `owner` can write, or we ourselves.
    pub(crate) fn new(owner: Option<&str>) -> Self {
        // No test goes far without one.
        super::watchdog::watch();
        let directory = tempfile::Builder::new()
            .prefix("reconciled-test-")
            .tempdir()
            .expect("the temporary directory is writable");
        if let Some(owner) = owner {
            super::server::run(Command::new("chown").arg(owner).arg(directory.path()));
        }
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "guard"])
            .arg(directory.path())
            .current_dir("/")
            // A Ctrl-C at the terminal ends the tests; the guard stays to clean up after them.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("every Debian machine has sh");
        let lifeline = guard.stdin.take().expect("stdin is piped");
        Self {
            directory: Some(directory),
            guard,
            lifeline,
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory
            .as_ref()
            .expect("it is there until the drop")
            .path()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(self.directory.take());
        // A guard that somebody killed reads nothing, and has nothing left to do.
        let _ = self.lifeline.write_all(b"removed\n");
        let _ = self.guard.wait();
    }
}
