//! Finds ports for servers that must come back on the same one.
//!
//! The kernel hands out the ports of its ephemeral range to outgoing connections, so a server that was stopped could find
//! its own port taken by another test's client. The ports here lie below that range.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::atomic::{AtomicU16, Ordering},
};

const LOWEST: u16 = 12_000;
const HIGHEST: u16 = 32_000;

/// A port on 127.0.0.1 on which nothing listens now, and which no other call in this process is given.
pub(crate) fn free() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = HIGHEST - LOWEST;
    // Processes that run side by side begin in different places.
    let begin = std::process::id().wrapping_mul(197) % u32::from(span);
    let begin = u16::try_from(begin).expect("it is below the span, which is a u16");
    for _ in 0..span {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % span;
        let port = LOWEST
            + u16::try_from((u32::from(begin) + u32::from(step)) % u32::from(span))
                .expect("as above");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port between {LOWEST} and {HIGHEST} is free");
}
