//! How much memory the process keeps for later.

/// Has all threads share one pool of free memory.
///
/// Call it first in `main`, before there is a second thread. The C library would give each thread a pool of its own, up to eight for a
/// processor, each as large as the most that ever was needed at once there, and what one frees the others cannot use (mallopt(3),
/// `M_ARENA_MAX`). Small pieces are kept for each thread all the same, so that threads rarely wait for each other. With another C library
/// it does nothing.
pub fn share_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "the C library has no other way to be told")]
        // SAFETY: it takes two numbers and reads no memory of the caller.
        let _refused = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 0;
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use std::collections::BTreeSet;
    use std::process::Command;
    use std::sync::Barrier;

    use super::*;

    /// Set in the child that shares its memory, so that the tests beside it are left as they are.
    const CHILD: &str = "RECONCILED_TEST_ALLOCATOR_CHILD";
    /// The C library's pools, but the first, begin at multiples of this and end within it (malloc's `HEAP_MAX_SIZE`).
    const POOL_BYTES: usize = 64 * 1024 * 1024;

    #[test]
    fn threads_share_one_pool_of_free_memory() {
        if std::env::var_os(CHILD).is_some() {
            return assert_shared();
        }
        let output = Command::new(std::env::current_exe().expect("this test's own path"))
            .args([
                "--exact",
                "allocator::tests::threads_share_one_pool_of_free_memory",
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

    /// Pieces that live at the same time in new threads come from the pools that were there before, of which the runner of tests
    /// has two: its own thread's and this one's.
    fn assert_shared() {
        const THREADS: usize = 6;
        share_free_memory();
        let together = Barrier::new(THREADS);
        let pools: BTreeSet<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
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
        });
        assert!(pools.len() <= 2, "{pools:x?}");
    }
}
