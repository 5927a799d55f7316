//! The daemon of a soak: its lines are judged as they come, since nobody can keep the log of hours.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::Child,
    task::JoinHandle,
    time::timeout,
};

use super::load::{SECRET_MARK, TOKEN_MARK};
use crate::support::{HUNG, process::Installation};

/// Lines and errors that are kept.
const KEPT: usize = 50;

/// A running daemon.
pub(super) struct Daemon {
    child: Child,
    heard: Arc<Mutex<Heard>>,
    readers: [JoinHandle<()>; 2],
}

/// What it said so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard {
    /// How often each event came.
    pub(super) events: BTreeMap<String, u64>,
    /// The lines of level ERROR, the first of each event.
    pub(super) errors: Vec<Error>,
    /// Defects.
    pub(super) panics: u64,
    /// Whether a line held a secret's value or a token.
    pub(super) secret: bool,
    last: VecDeque<String>,
}

/// A line of level ERROR.
#[derive(Debug, Clone)]
pub(super) struct Error {
    pub(super) event: String,
    #[expect(dead_code, reason = "shown when the soak fails")]
    line: String,
}

impl Daemon {
    /// Starts it.
    pub(super) fn start(installation: &Installation) -> Self {
        let mut child = installation
            .command_in_sight(&["run"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program can be started");
        let heard = Arc::new(Mutex::new(Heard::default()));
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let readers = [
            tokio::spawn(listen(stdout, Arc::clone(&heard))),
            tokio::spawn(listen(stderr, Arc::clone(&heard))),
        ];
        Self {
            child,
            heard,
            readers,
        }
    }

    /// Its process id.
    pub(super) fn pid(&self) -> Pid {
        let id = self.child.id().expect("it was not waited for");
        i32::try_from(id)
            .ok()
            .and_then(Pid::from_raw)
            .expect("a process id is a positive i32")
    }

    /// Sends a signal and waits for the end.
    pub(super) async fn end_with(&mut self, signal: Signal) -> ExitStatus {
        kill_process(self.pid(), signal).expect("it was not waited for");
        let status = timeout(HUNG, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("it did not end: {}", self.last_lines()))
            .expect("a child can be waited for");
        for reader in &mut self.readers {
            reader.await.expect("the readers do not panic");
        }
        status
    }

    /// What it said so far.
    pub(super) fn heard(&self) -> Heard {
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Its last lines.
    pub(super) fn last_lines(&self) -> String {
        Vec::from(self.heard().last).join("\n")
    }
}

impl Heard {
    fn take(&mut self, line: String) {
        self.secret |= line.contains(SECRET_MARK) || line.contains(TOKEN_MARK);
        let parsed: Option<Value> = serde_json::from_str(&line).ok();
        let text = |name: &str| {
            let value = parsed.as_ref()?.get(name)?.as_str()?;
            Some(value.to_owned())
        };
        // What is no line of the log was written by something that died.
        let event = text("event").unwrap_or_else(|| "no event".to_owned());
        self.panics += u64::from(event == "panic" || event == "no event");
        let is_first = !self.errors.iter().any(|error| error.event == event);
        if text("level").as_deref() == Some("ERROR") && is_first {
            self.errors.push(Error {
                event: event.clone(),
                line: line.clone(),
            });
        }
        *self.events.entry(event).or_default() += 1;
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("events:")?;
        for (event, count) in &self.events {
            write!(f, " {event} {count},")?;
        }
        Ok(())
    }
}

async fn listen(output: impl AsyncRead + Unpin, heard: Arc<Mutex<Heard>>) {
    let mut lines = BufReader::new(output).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line).into_owned();
        heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(line);
    }
}
