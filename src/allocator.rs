//! How much memory the process keeps for later.

/// How many pools of free memory there are. The thread that writes the state works beside those that send, and with one pool they wait for
/// each other at every eighth piece; a third brings nothing.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const POOLS: libc::c_int = 2;
/// Pieces from this many bytes on, a page of rows for instance, come from the system by themselves and go back at once; as much free
/// memory at the end of a pool goes back as well. What the C library begins with, and would otherwise raise to twice the largest piece
/// that ever was freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BYTES: libc::c_int = 128 * 1024;

/// Has all threads share two pools of free memory, and large pieces kept in neither.
///
/// Call it first in `main`, before there is a second thread. The C library would give each thread a pool of its own, up to eight for a
/// processor, each as large as the most that ever was needed at once there, and what one frees the others cannot use (mallopt(3),
/// `M_ARENA_MAX`, `M_MMAP_THRESHOLD`, `M_TRIM_THRESHOLD`). With another C library it does nothing.
pub fn keep_little_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (setting, value) in [
        (libc::M_ARENA_MAX, POOLS),
        (libc::M_MMAP_THRESHOLD, LARGE_BYTES),
        (libc::M_TRIM_THRESHOLD, LARGE_BYTES),
    ] {
        #[expect(unsafe_code, reason = "the C library has no other way to be told")]
        // SAFETY: it takes two numbers and reads no memory of the caller.
        let _refused = unsafe { libc::mallopt(setting, value) } == 0;
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use std::collections::BTreeSet;
    use std::process::Command;
    use std::sync::Barrier;

    use super::*;
    use crate::metrics::process::Process;

    /// Set in the child that keeps little memory, so that the tests beside it are left as they are.
    const CHILD: &str = "RECONCILED_TEST_ALLOCATOR_CHILD";
    /// The C library's pools, but the first, begin at multiples of this and end within it (malloc's `HEAP_MAX_SIZE`).
    const POOL_BYTES: usize = 64 * 1024 * 1024;

    #[test]
    fn threads_share_two_pools_of_free_memory() {
        in_a_process_of_its_own("threads_share_two_pools_of_free_memory", || {
            keep_little_free_memory();
            assert!(pools_of(6).len() <= 2);
        });
    }

    #[test]
    fn large_pieces_go_back_to_the_system_at_once() {
        const LARGE: usize = 8 * 1024 * 1024;
        in_a_process_of_its_own("large_pieces_go_back_to_the_system_at_once", || {
            keep_little_free_memory();
            let before = resident_bytes();
            for _ in 0..3 {
                // The C library takes the first that is freed for a sign that more of its size will follow, and would keep them.
                let piece = std::hint::black_box(vec![1_u8; LARGE]);
                assert!(resident_bytes() >= before + LARGE / 2);
                drop(piece);
                assert!(resident_bytes() < before + LARGE / 2);
            }
        });
    }

    /// Runs the test of that name again in a child, where alone it does `work`.
    fn in_a_process_of_its_own(test: &str, work: fn()) {
        if std::env::var_os(CHILD).is_some() {
            return work();
        }
        let output = Command::new(std::env::current_exe().expect("this test's own path"))
            .args([
                "--exact",
                &format!("allocator::tests::{test}"),
                "--nocapture",
            ])
            .env(CHILD, "1")
            .env_remove("MALLOC_ARENA_MAX")
            .output()
            .expect("this test runs again");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
    }

    /// The pools that pieces come from which live at the same time in so many new threads. The runner of tests has two before: its own
    /// thread's and that of the thread which asks.
    fn pools_of(threads: usize) -> BTreeSet<usize> {
        let together = Barrier::new(threads);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        let piece = vec![1_u8; 4_000];
                        together.wait();
                        piece.as_ptr().addr() / POOL_BYTES
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|pool| pool.expect("no panic")).collect()
        })
    }

    fn resident_bytes() -> usize {
        let resident = Process::read().resident.expect("Linux says so");
        usize::try_from(resident).expect("no more than there are addresses")
    }
}
