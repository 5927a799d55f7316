//! What the kernel says of this process, from `/proc/self` (proc(5)).

use std::fs;

/// Clock ticks per second in `/proc/self/stat`: 100 on every Linux (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// What the kernel says of this process; what it does not say is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Process {
    /// Bytes in RAM.
    pub resident: Option<u64>,
    /// Seconds on processors.
    pub cpu: Option<f64>,
    /// Open file descriptors.
    pub open_fds: Option<u64>,
    /// The most of them; `None` also where there is no limit.
    pub max_fds: Option<u64>,
}

impl Process {
    /// Reads it now.
    #[must_use]
    pub fn read() -> Self {
        let text = |path| fs::read_to_string(path).ok();
        Self {
            resident: text("/proc/self/status").as_deref().and_then(resident),
            cpu: text("/proc/self/stat").as_deref().and_then(cpu_seconds),
            open_fds: fs::read_dir("/proc/self/fd")
                .ok()
                // The descriptor of this look is one of them.
                .map(|entries| (entries.count() as u64).saturating_sub(1)),
            max_fds: text("/proc/self/limits")
                .as_deref()
                .and_then(max_open_files),
        }
    }
}

/// Fields are counted behind the name, which may hold anything, parentheses and spaces included.
fn cpu_seconds(text: &str) -> Option<f64> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    // utime and stime are fields 14 and 15; `state`, the first behind the name, is 3.
    Some((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

fn resident(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn max_open_files(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_shifts_no_field() {
        let text =
            "812 (re (c) d) S 1 812 812 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 9 0 12345 1 2 3";
        assert_eq!(cpu_seconds(text), Some(3.0));
        assert_eq!(cpu_seconds("812 (x"), None);
    }

    #[test]
    fn limits_and_memory_are_read_from_their_lines() {
        assert_eq!(
            max_open_files(
                "Limit Soft Hard Units\nMax open files            1024       4096       files\n"
            ),
            Some(1024)
        );
        assert_eq!(
            max_open_files("Max open files  unlimited unlimited files\n"),
            None
        );
        assert_eq!(
            resident("Name:\tx\nVmRSS:\t    2048 kB\n"),
            Some(2048 * 1024)
        );
    }

    #[test]
    fn this_process_has_memory_files_and_a_start() {
        let Process {
            resident,
            cpu,
            open_fds,
            max_fds,
        } = Process::read();
        assert!(
            resident.is_some_and(|bytes| bytes > 100_000),
            "{resident:?}"
        );
        assert!(open_fds.is_some_and(|count| count > 0), "{open_fds:?}");
        assert!(
            max_fds.is_none_or(|max| Some(max) >= open_fds),
            "{max_fds:?}"
        );
        assert!(cpu.is_some_and(|seconds| seconds >= 0.0), "{cpu:?}");
    }
}
