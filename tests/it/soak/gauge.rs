//! What the process holds, over time: memory, file descriptors, files.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Pid;

/// The most descriptors that ever may be open: 32 requests in flight, as many idle connections, the source's 4, the state's
/// and the runtime's own.
const MOST_DESCRIPTORS: u64 = 96;
/// The most that the state's files may hold: 200 resources and a few minutes of attempts.
const MOST_STATE_BYTES: u64 = 64 * 1024 * 1024;
/// Growth of memory from the second tenth to the last, in percent.
const MOST_GROWTH_PERCENT: u64 = 5;

/// What is judged besides descriptors and files.
pub(super) struct Limits {
    /// Memory too.
    pub(super) memory: bool,
}

/// The samples of one process.
pub(super) struct Gauge {
    process: PathBuf,
    state: PathBuf,
    every: Duration,
    next: Duration,
    samples: Vec<Sample>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    resident_kib: u64,
    /// What of it is no page of a file, as the program's own text is.
    anonymous_kib: u64,
    descriptors: u64,
    state_bytes: u64,
}

impl Gauge {
    /// Will look at the process and the directory of its state this often.
    pub(super) fn of(pid: Pid, state: PathBuf, every: Duration) -> Self {
        Self {
            process: PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero())),
            state,
            every,
            next: Duration::ZERO,
            samples: Vec::new(),
        }
    }

    /// Takes a sample if one is due.
    #[expect(clippy::print_stdout, reason = "whoever waits for hours wants a sign")]
    pub(super) fn look(&mut self, now: Duration) {
        if now < self.next {
            return;
        }
        self.next = now + self.every;
        let sample = Sample {
            at: now,
            resident_kib: memory_kib(&self.process, "VmRSS:"),
            anonymous_kib: memory_kib(&self.process, "RssAnon:"),
            descriptors: descriptors_of(&self.process),
            state_bytes: bytes_under(&self.state),
        };
        if self.samples.len() % 60 == 59 {
            println!("{sample}");
        }
        self.samples.push(sample);
    }

    /// Fails when something grew that must not.
    pub(super) fn judge(&self, limits: &Limits) {
        let most = |of: fn(&Sample) -> u64| self.samples.iter().map(of).max().unwrap_or_default();
        let descriptors = most(|sample| sample.descriptors);
        assert!(descriptors <= MOST_DESCRIPTORS, "{descriptors} descriptors");
        let state = most(|sample| sample.state_bytes);
        assert!(state <= MOST_STATE_BYTES, "the state has {state} bytes");
        if limits.memory {
            let (before, after) = self.median_early_and_late(|sample| sample.resident_kib);
            assert!(
                after * 100 <= before * (100 + MOST_GROWTH_PERCENT),
                "memory grew from {before} KiB to {after} KiB"
            );
            let (before, after) = self.median_early_and_late(|sample| sample.state_bytes);
            assert!(
                after <= before * 2,
                "the state grew from {before} to {after} bytes, though all is pruned after minutes"
            );
            let (before, after) = self.median_early_and_late(|sample| sample.descriptors);
            assert!(
                after <= before + 4,
                "descriptors grew from {before} to {after}"
            );
        }
    }

    /// The medians of the second tenth and of the last.
    fn median_early_and_late(&self, of: fn(&Sample) -> u64) -> (u64, u64) {
        let tenth = self.samples.len() / 10;
        let median = |samples: &[Sample]| {
            let mut values: Vec<u64> = samples.iter().map(of).collect();
            values.sort_unstable();
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        (
            median(&self.samples[tenth..2 * tenth]),
            median(&self.samples[self.samples.len() - tenth..]),
        )
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            at,
            resident_kib,
            anonymous_kib,
            descriptors,
            state_bytes,
        } = self;
        write!(
            f,
            "{:6} s  {resident_kib} KiB resident ({anonymous_kib} anonymous)  {} descriptors  {} KiB of state",
            at.as_secs(),
            descriptors,
            state_bytes / 1024
        )
    }
}

impl fmt::Display for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        type Measure = fn(&Sample) -> u64;
        let measures: [(&str, Measure); 4] = [
            ("KiB resident", |sample| sample.resident_kib),
            ("KiB anonymous", |sample| sample.anonymous_kib),
            ("descriptors", |sample| sample.descriptors),
            ("KiB of state", |sample| sample.state_bytes / 1024),
        ];
        for (name, of) in measures {
            let (before, after) = self.median_early_and_late(of);
            let most = self.samples.iter().map(of).max().unwrap_or_default();
            writeln!(
                f,
                "{name}: median {before} in the second tenth, {after} in the last; {most} at most"
            )?;
        }
        Ok(())
    }
}

fn memory_kib(process: &Path, what: &str) -> u64 {
    let status = std::fs::read_to_string(process.join("status")).expect("the process lives");
    status
        .lines()
        .find_map(|line| line.strip_prefix(what)?.trim().strip_suffix(" kB"))
        .and_then(|text| text.trim().parse().ok())
        .expect("the kernel says what is resident")
}

/// How many descriptors are open.
///
/// # Panics
/// It may not look, which would make whatever grows look flat: the daemon hides them from other processes of its user, unless it runs in
/// sight.
fn descriptors_of(process: &Path) -> u64 {
    let entries = std::fs::read_dir(process.join("fd")).and_then(Iterator::collect);
    let entries: Vec<_> = entries.expect("the daemon's descriptors can be counted");
    entries.len().try_into().expect("it is a count")
}

fn bytes_under(directory: &Path) -> u64 {
    std::fs::read_dir(directory)
        .expect("the directory is readable")
        // A file may go between the listing and the look.
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .filter(std::fs::Metadata::is_file)
        .map(|metadata| metadata.len())
        .sum()
}
