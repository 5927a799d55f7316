//! Runs the real `reconciled` binary and reads what it says, line by line, as it says it.
//!
//! A process is killed when its value is dropped. A test waits for a line, an event or the end, never for time to pass.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::{ExitStatus, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{HUNG, directory::Directory};

/// One installation of the binary: a directory with a configuration file, in which its state may live too.
#[derive(Debug)]
pub(crate) struct Installation {
    directory: Directory,
    environment: Vec<(String, String)>,
    program: PathBuf,
}

impl Installation {
    /// Writes `configuration` as the file that every command of this installation reads.
    pub(crate) fn new(configuration: &str) -> Self {
        let installation = Self {
            directory: Directory::new(None),
            environment: Vec::new(),
            program: env!("CARGO_BIN_EXE_reconciled").into(),
        };
        installation.configure(configuration);
        installation
    }

    /// Replaces the configuration file.
    pub(crate) fn configure(&self, configuration: &str) {
        std::fs::write(self.configuration(), configuration).expect("the directory is writable");
    }

    /// Sets an environment variable for every process started from now on.
    pub(crate) fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Runs another build than the one that the tests were built with.
    pub(crate) fn set_program(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// A command of this installation as it is suggested: with the configuration file that was named.
    pub(crate) fn suggested(&self, command: &str) -> String {
        let file = self.configuration();
        format!("reconciled --config {} {command}", file.display())
    }

    /// The configuration file.
    pub(crate) fn configuration(&self) -> PathBuf {
        self.path("reconciled.toml")
    }

    /// A path in this installation's directory, for state files and secrets.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts the daemon.
    pub(crate) fn run(&self) -> Process {
        self.start(&["run"])
    }

    /// Starts the daemon so that all of `/proc/PID` can be read, which it hides from other processes of its user: only root may look, or
    /// who made the namespace of users in which it runs.
    pub(crate) fn run_in_sight(&self) -> Process {
        Process::start(self.command_in_sight(&["run"]))
    }

    /// The command for that, not started yet.
    pub(crate) fn command_in_sight(&self, arguments: &[&str]) -> Command {
        let command = self.command(arguments);
        if rustix::process::geteuid().is_root() {
            return command;
        }
        let command = command.as_std();
        let mut namespace = Command::new("unshare");
        namespace
            .args(["--user", "--map-root-user"])
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(command.get_current_dir().expect("it has one"));
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => namespace.env(name, value),
                None => namespace.env_remove(name),
            };
        }
        namespace
    }

    /// Starts a command and leaves it running.
    pub(crate) fn start(&self, arguments: &[&str]) -> Process {
        Process::start(self.command(arguments))
    }

    /// Runs a command to its end.
    pub(crate) async fn output(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command.kill_on_drop(true);
        timeout(HUNG, command.stdin(Stdio::null()).output())
            .await
            .unwrap_or_else(|_| panic!("reconciled {arguments:?} did not end"))
            .expect("the binary under test can be run")
    }

    /// A command of this installation, not started yet.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // What the developer's shell says about this daemon or proxies must not decide a test.
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy().to_ascii_uppercase();
            if name_text.starts_with("RECONCILED")
                || name_text.ends_with("_PROXY")
                || name_text == "NOTIFY_SOCKET"
            {
                command.env_remove(name);
            }
        }
        command
            .arg("--config")
            .arg(self.configuration())
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.directory.path());
        command
    }
}

/// A process under test.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    lines: mpsc::UnboundedReceiver<Line>,
    transcript: Transcript,
    readers: [JoinHandle<()>; 2],
}

/// A line that a process wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) stream: Stream,
    pub(crate) text: String,
}

/// Where a process wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Process {
    /// Starts any command with its output captured.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} could not be started: {error}"));
        let (sender, lines) = mpsc::unbounded_channel();
        let transcript = Transcript::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let readers = [
            tokio::spawn(read(
                Stream::Stdout,
                stdout,
                sender.clone(),
                transcript.clone(),
            )),
            tokio::spawn(read(Stream::Stderr, stderr, sender, transcript.clone())),
        ];
        Self {
            child,
            lines,
            transcript,
            readers,
        }
    }

    /// The next line that `wanted` accepts; lines before it are passed over for good. Lines of one stream come in their
    /// order; between the two streams there is none.
    ///
    /// # Panics
    ///
    /// With all that the process said, when it ends first.
    pub(crate) async fn wait_for_line(
        &mut self,
        what: &str,
        wanted: impl Fn(&Line) -> bool,
    ) -> Line {
        let search = async {
            while let Some(line) = self.lines.recv().await {
                if wanted(&line) {
                    return Some(line);
                }
            }
            None
        };
        match timeout(HUNG, search).await {
            Ok(Some(line)) => line,
            Ok(None) => panic!(
                "the process closed its output without {what}. It said:\n{}",
                self.transcript
            ),
            Err(_) => panic!(
                "the process did not say {what}. It said:\n{}",
                self.transcript
            ),
        }
    }

    /// The next JSON log line whose `event` is `name`.
    pub(crate) async fn wait_for_event(&mut self, name: &str) -> Value {
        self.wait_for_event_where(name, |_| true).await
    }

    /// The next JSON log line whose `event` is `name` and whose fields `wanted` accepts.
    pub(crate) async fn wait_for_event_where(
        &mut self,
        name: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let matches =
            |line: &Line| event(line).is_some_and(|event| event["event"] == name && wanted(&event));
        let line = self
            .wait_for_line(&format!("the event {name}"), matches)
            .await;
        event(&line).expect("it was an event a moment ago")
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        // Until it was waited for, even a process that has ended can be signalled.
        kill_process(self.pid(), signal).expect("a child that was not waited for can be signalled");
    }

    /// The process's id.
    ///
    /// # Panics
    ///
    /// When it was waited for already.
    pub(crate) fn pid(&self) -> Pid {
        let id = self.child.id().expect("the process was not waited for");
        i32::try_from(id)
            .ok()
            .and_then(Pid::from_raw)
            .expect("a process id is a positive i32")
    }

    /// For how long its threads, taken together, could have run and got no processor.
    pub(crate) fn in_line(&self) -> Duration {
        let tasks = format!("/proc/{}/task", self.pid().as_raw_nonzero());
        let tasks = std::fs::read_dir(tasks).expect("it was not waited for");
        // A thread may end between the listing and the look.
        let waits = tasks.filter_map(|task| {
            let said = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            said.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        Duration::from_nanos(waits.sum())
    }

    /// Waits for the end and for all that was said until then.
    pub(crate) async fn wait(&mut self) -> ExitStatus {
        let status = timeout(HUNG, self.child.wait()).await;
        let status = status
            .unwrap_or_else(|_| panic!("the process did not end. It said:\n{}", self.transcript));
        for reader in &mut self.readers {
            if !reader.is_finished() {
                reader.await.expect("the readers do not panic");
            }
        }
        status.expect("a child can be waited for")
    }

    /// Sends `signal` and waits for the end.
    pub(crate) async fn end_with(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait().await
    }

    /// All that the process has written so far, to both streams, whether waited for or not.
    pub(crate) fn said(&self) -> Vec<Line> {
        self.transcript.lines()
    }

    /// The first JSON log line whose `event` is `name`, be it waited for before or not; passes over none. Of what happens side by side
    /// either may come first.
    pub(crate) async fn has_said(&self, name: &str) -> Value {
        let first = |lines: &[Line]| {
            let mut events = lines.iter().filter_map(event);
            events.find(|event| event["event"] == name)
        };
        let mut lines = self.transcript.0.subscribe();
        let said = timeout(HUNG, lines.wait_for(|lines| first(lines).is_some())).await;
        let found = said
            .ok()
            .and_then(Result::ok)
            .and_then(|lines| first(&lines));
        found.unwrap_or_else(|| {
            panic!(
                "the process did not say {name}. It said:\n{}",
                self.transcript
            )
        })
    }

    /// All JSON log lines named `name` so far, whether waited for or not.
    pub(crate) fn events(&self, name: &str) -> Vec<Value> {
        self.said()
            .iter()
            .filter_map(event)
            .filter(|event| event["event"] == name)
            .collect()
    }
}

/// Whether any file under `directory` holds `bytes`: how a test proves that a secret is not at rest.
pub(crate) fn holds(directory: &Path, bytes: &[u8]) -> bool {
    let entries = std::fs::read_dir(directory).expect("the directory is readable");
    entries
        .map(|entry| entry.expect("the directory is readable").path())
        .any(|path| {
            if path.is_dir() {
                return holds(&path, bytes);
            }
            let content = std::fs::read(&path).expect("the file is readable");
            content.windows(bytes.len()).any(|window| window == bytes)
        })
}

/// Everything a process wrote, in the order of its arrival.
#[derive(Debug, Clone)]
struct Transcript(Arc<watch::Sender<Vec<Line>>>);

impl Transcript {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Vec::new())))
    }

    fn push(&self, line: Line) {
        self.0.send_modify(|lines| lines.push(line));
    }

    fn lines(&self) -> Vec<Line> {
        self.0.borrow().clone()
    }
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines()
            .iter()
            .try_for_each(|line| writeln!(f, "  {:?}: {}", line.stream, line.text))
    }
}

async fn read(
    stream: Stream,
    output: impl AsyncRead + Unpin,
    sender: mpsc::UnboundedSender<Line>,
    transcript: Transcript,
) {
    let mut lines = BufReader::new(output).split(b'\n');
    while let Ok(Some(bytes)) = lines.next_segment().await {
        let line = Line {
            stream,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        };
        transcript.push(line.clone());
        // The test may have stopped listening; the transcript goes on.
        let _ = sender.send(line);
    }
}

/// The line as a JSON log line, if it is one.
fn event(line: &Line) -> Option<Value> {
    serde_json::from_str(&line.text)
        .ok()
        .filter(Value::is_object)
}
