//! Processes that are measured: the daemon's own program, and this one in another role.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::program;

/// How often a log is looked at for a line that ends a wait; no measured time ends there.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Processor time in `/proc` comes in hundredths of a second on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// What a process has used since its start.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) peak_bytes: u64,
}

impl Usage {
    /// Reads it from `/proc`.
    pub(crate) fn of(pid: u32) -> Self {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        let (_, after_name) = stat.rsplit_once(')').expect("the name is in parentheses");
        let field = |index: usize| -> u64 {
            let text = after_name.split_whitespace().nth(index);
            text.and_then(|text| text.parse().ok()).expect("a number")
        };
        // utime and stime: fields 14 and 15, the first after the name being the third.
        let ticks = field(11) + field(12);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
            .expect("every process has a peak");
        Self {
            cpu: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND),
            peak_bytes: peak * 1024,
        }
    }
}

/// Runs this program in another role and reads the JSON that it prints.
pub(crate) async fn role<T: DeserializeOwned>(arguments: &[&str]) -> T {
    let output = tokio::process::Command::new(std::env::current_exe().expect("a path"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .expect("it runs");
    assert!(
        output.status.success(),
        "{arguments:?} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

/// Runs a command of the daemon's program to its end.
pub(crate) async fn command(config: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = tokio::process::Command::new(program())
        .arg("--config")
        .arg(config)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .expect("it runs");
    assert!(
        output.status.success(),
        "{arguments:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Nothing is left to send: what was measured is what a daemon is for.
pub(crate) async fn assert_agrees(config: &Path) {
    let status = command(config, &["status", "--json"]).await;
    let status: Value = serde_json::from_slice(&status).expect("it is JSON");
    for state in ["waiting", "held", "dead"] {
        assert_eq!(status["outbox"][state], 0, "{status}");
    }
}

/// A daemon, its log in a file; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
    pub(crate) started: Instant,
}

impl Daemon {
    /// Starts `run` with the log beside the configuration.
    pub(crate) fn start(config: &Path) -> Self {
        let log = config.with_extension("log");
        let file = File::create(&log).expect("the directory is writable");
        let started = Instant::now();
        let child = Command::new(program())
            .arg("--config")
            .arg(config)
            .arg("run")
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(Stdio::inherit())
            .spawn()
            .expect("it starts");
        Self {
            child,
            log,
            started,
        }
    }

    /// What it has used.
    pub(crate) fn usage(&self) -> Usage {
        Usage::of(self.child.id())
    }

    /// Where reading the log would go on from: its end.
    pub(crate) fn mark(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |metadata| metadata.len())
    }

    /// Waits for the first event of that name after a mark.
    pub(crate) async fn event(&mut self, name: &str, mark: u64, within: Duration) -> Value {
        self.events(name, 1, mark, within).await
    }

    /// Waits until the log has `count` events of that name after a mark; returns the last of them.
    pub(crate) async fn events(
        &mut self,
        name: &str,
        count: u64,
        mark: u64,
        within: Duration,
    ) -> Value {
        let event = format!("\"event\":\"{name}\"");
        self.line(&[&event], count, mark, within).await
    }

    /// Waits until the log has `count` lines with all of these texts after a mark; returns the last of them.
    ///
    /// # Panics
    /// They do not come within the time, or the daemon ends.
    pub(crate) async fn line(
        &mut self,
        texts: &[&str],
        count: u64,
        mark: u64,
        within: Duration,
    ) -> Value {
        let deadline = Instant::now() + within;
        let mut reader = BufReader::new(File::open(&self.log).expect("it was created"));
        reader.seek(SeekFrom::Start(mark)).expect("a file");
        let mut found = 0;
        let mut line = String::new();
        loop {
            while reader.read_line(&mut line).expect("text") > 0 && line.ends_with('\n') {
                found += u64::from(texts.iter().all(|text| line.contains(text)));
                if found == count {
                    return serde_json::from_str(&line).expect("log lines are JSON");
                }
                line.clear();
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the daemon ended, {status}:\n{}", self.tail());
            }
            assert!(
                Instant::now() < deadline,
                "{found} of {count} lines with {texts:?} came:\n{}",
                self.tail()
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn tail(&self) -> String {
        const BYTES: u64 = 3000;
        let mut file = File::open(&self.log).expect("it was created");
        let length = self.mark();
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))
            .and_then(|_| file.read_to_end(&mut bytes))
            .expect("a file");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Asks it to stop and waits for its orderly end.
    pub(crate) async fn stop(mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process id"), Signal::TERM).expect("it runs");
        let status = loop {
            match self.child.try_wait().expect("it is our child") {
                Some(status) => break status,
                None => tokio::time::sleep(LOOK_AGAIN).await,
            }
        };
        assert!(status.success(), "{status}:\n{}", self.tail());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that has ended needs no signal.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
