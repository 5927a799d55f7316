//! Starts, kills and stops one server process under a guard.
//!
//! The guard is a small shell that waits for the end of a pipe which only the test process holds. When that process is
//! gone, by whatever way, the guard ends the server: none outlives its tests.
//! Readiness and the end of all of a server's processes are read from its log pipe; nothing here polls.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader, Write},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
};

use super::{HUNG, port};
use rustix::process::{Pid, Signal, kill_process};

/// Lines of a server's log that are kept for the message of a failed test.
const LOG_LINES: usize = 200;

/// Attempts to start a server whose port another process took first.
const START_ATTEMPTS: usize = 8;

/// Arguments: the signal that ends the server, the server's command line.
///
/// It keeps no end of the log pipe open, so that the log ends when the last of the server's own processes does. The word
/// `ended` says that this happened; it still has to be waited for, or its process id would stay taken. A server that was
/// only just starting may miss the signal: it is killed a little later.
const GUARD: &str = r#"
signal=$1
shift
"$@" >&2 </dev/null &
server=$!
exec 2>/dev/null
echo "$server"
read -r word
if [ "$word" != ended ]; then
    kill -s "$signal" "$server"
    { sleep 5; kill -s KILL "$server"; } &
fi
wait "$server"
"#;

/// A running server process and the guard over it.
#[derive(Debug)]
pub(crate) struct Server {
    guard: Child,
    lifeline: ChildStdin,
    pid: Pid,
    log: Log,
    /// The log pipe's name in /proc: every process of the server holds an end of it.
    pipe: PathBuf,
    reader: JoinHandle<()>,
}

/// What to run and how to tell that it is up.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Path,
    pub(crate) arguments: Vec<String>,
    /// Who runs it when the tests run as root, which none of these servers likes.
    pub(crate) user: Option<&'a str>,
    /// A part of the log line that says the server answers.
    pub(crate) ready: &'static str,
    /// What the guard sends: it need not leave usable data behind.
    pub(crate) end: &'static str,
}

/// What a database server does with a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Written to disk before it is acknowledged, as in production.
    Durable,
    /// Lost with the machine, and several times faster.
    Fast,
}

impl Server {
    /// Starts the server and returns when it answers.
    ///
    /// # Errors
    ///
    /// The log, when the server ended before it was ready.
    pub(crate) fn start(launch: Launch<'_>) -> Result<Self, String> {
        let Launch {
            program,
            arguments,
            user,
            ready,
            end,
        } = launch;
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "guard", end])
            .args(as_user(user))
            .arg(program)
            .args(arguments)
            .current_dir("/")
            // A Ctrl-C at the terminal ends the tests; the guard stays to clean up after them.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("every Debian machine has sh");
        let lifeline = guard.stdin.take().expect("stdin is piped");
        let pid = read_pid(&mut guard);
        let log = Log::default();
        let (announce, announced) = mpsc::channel();
        let stderr = guard.stderr.take().expect("stderr is piped");
        let pipe = pipe_of(&stderr);
        let reader = std::thread::spawn({
            let log = log.clone();
            move || {
                for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    let is_ready = line.contains(ready);
                    log.push(line);
                    if is_ready {
                        // Nobody listens any more after the first announcement.
                        let _ = announce.send(());
                    }
                }
            }
        });
        let mut server = Self {
            guard,
            lifeline,
            pid,
            log,
            pipe,
            reader,
        };
        match announced.recv_timeout(HUNG) {
            Ok(()) => Ok(server),
            Err(_) => {
                server.signal(Signal::KILL);
                let log = server.log.clone();
                server.await_end();
                Err(format!("{} did not start:\n{log}", program.display()))
            }
        }
    }

    /// Kills every process of the server at once, as a power cut would, and returns when all are gone.
    pub(crate) fn kill(mut self) {
        // Stopped, the parent can neither start another child nor notice that one has died.
        self.signal(Signal::STOP);
        for child in children(self.pid) {
            // A child may have ended on its own since it was listed.
            let _ = kill_process(child, Signal::KILL);
        }
        self.signal(Signal::KILL);
        // The kernel may leave out of a list what begins or ends meanwhile, and the signal to stop takes a moment. Such
        // a child could wait for ever for a lock that a killed one held.
        while !self.reader.is_finished() {
            for process in writers(&self.pipe) {
                let _ = kill_process(process, Signal::KILL);
            }
            std::thread::yield_now();
        }
        self.await_end();
    }

    /// Asks the server to stop with `signal` and returns when all of its processes are gone.
    pub(crate) fn stop(mut self, signal: Signal) {
        self.signal(signal);
        self.await_end();
    }

    /// Sends `signal` to the server's main process.
    pub(crate) fn signal(&mut self, signal: Signal) {
        // A server that already ended needs no signal; the caller notices by its log.
        let _ = kill_process(self.pid, signal);
    }

    /// Waits for the end of the log, which is the end of every process of the server, and keeps the directory.
    fn await_end(self) {
        let Self {
            mut guard,
            mut lifeline,
            pid: _,
            log: _,
            pipe: _,
            reader,
        } = self;
        // The reader panics in no case of its own; a poisoned log is read all the same.
        let _ = reader.join();
        // A guard that somebody killed reads nothing.
        let _ = lifeline.write_all(b"ended\n");
        drop(lifeline);
        guard.wait().expect("the guard is this process's child");
    }
}

/// The last lines a server wrote, shared with the thread that reads them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<VecDeque<String>>>);

impl Log {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

impl std::fmt::Display for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// Starts a server on a free port, on another one when that was taken in between.
pub(crate) fn start_on_free_port(
    mut start: impl FnMut(u16) -> Result<Server, String>,
) -> (Server, u16) {
    let mut last = String::new();
    for _ in 0..START_ATTEMPTS {
        let port = port::free();
        match start(port) {
            Ok(server) => return (server, port),
            Err(log) if log.to_ascii_lowercase().contains("in use") => last = log,
            Err(log) => panic!("{log}"),
        }
    }
    panic!("{START_ATTEMPTS} ports in a row were taken: {last}");
}

/// The first of `candidates` that exists, when the tests run as root; otherwise nobody but ourselves.
pub(crate) fn unprivileged(candidates: [&'static str; 2]) -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").expect("every Debian machine has /etc/passwd");
    let known = |user: &&str| {
        passwd
            .lines()
            .any(|line| line.split(':').next() == Some(user))
    };
    Some(
        candidates
            .into_iter()
            .find(known)
            .expect("every Debian machine has the user nobody"),
    )
}

/// Runs a preparing command as `user` to its end; it is killed if this process ends first.
pub(crate) fn prepare(program: &Path, arguments: &[String], user: Option<&str>) {
    let mut command = Command::new("setpriv");
    // With the change of user, not before it: that would clear the setting.
    command.args(["--pdeathsig", "KILL"]);
    if let Some(user) = user {
        command.args(credentials(user));
    }
    run(command
        .arg("--")
        .arg(program)
        .args(arguments)
        .current_dir("/"));
}

/// The program called `name` in one of `directories` or on the PATH.
pub(crate) fn find_program(name: &str, directories: &[PathBuf]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = [PathBuf::from("/usr/sbin"), PathBuf::from("/usr/bin")];
    directories
        .iter()
        .cloned()
        .chain(std::env::split_paths(&path))
        .chain(sbin)
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| {
            panic!("{name} is not installed: tests/run installs what the tests need")
        })
}

/// Runs `command` to its end, which must be a success.
pub(super) fn run(command: &mut Command) {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?} could not be run: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed, {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}

/// The words before a command line that make it run as `user`.
fn as_user(user: Option<&str>) -> Vec<&str> {
    user.map(|user| [&["setpriv"], &credentials(user)[..], &["--"]].concat())
        .unwrap_or_default()
}

fn credentials(user: &str) -> [&str; 5] {
    ["--reuid", user, "--regid", group_of(user), "--clear-groups"]
}

/// Debian's name for the group of `user`.
fn group_of(user: &str) -> &str {
    if user == "nobody" { "nogroup" } else { user }
}

fn read_pid(guard: &mut Child) -> Pid {
    let mut line = String::new();
    let stdout = guard.stdout.take().expect("stdout is piped");
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("the guard says the server's pid");
    line.trim()
        .parse()
        .ok()
        .and_then(Pid::from_raw)
        .expect("the guard says a positive number")
}

/// What /proc calls the pipe of which this is an end.
fn pipe_of(end: &impl AsRawFd) -> PathBuf {
    fs::read_link(format!("/proc/self/fd/{}", end.as_raw_fd()))
        .expect("an open descriptor is listed")
}

/// The processes whose standard error is `pipe`.
fn writers(pipe: &Path) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").expect("every Debian machine has /proc");
    processes
        .filter_map(|process| process.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|link| link == pipe)
        })
        .filter_map(Pid::from_raw)
        .collect()
}

/// The direct children of `pid`: all that PostgreSQL has. Empty where the kernel does not list them.
fn children(pid: Pid) -> Vec<Pid> {
    let pid = pid.as_raw_nonzero();
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok().and_then(Pid::from_raw))
        .collect()
}
