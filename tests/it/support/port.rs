//! Finds ports for servers that must come back on the same one.
//!
//! The kernel hands out the ports of its ephemeral range to outgoing connections, so a server that was stopped could find
//! its own port taken by another test's client. The ports here lie below that range.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicU16, Ordering},
    time::Instant,
};

use super::HUNG;

const LOWEST: u16 = 12_000;
const HIGHEST: u16 = 32_000;

/// A port on 127.0.0.1 on which nothing listens now, and which no other call in this process is given.
pub(crate) fn free() -> u16 {
    let listener = listen();
    let address = listener.local_addr();
    let address = address.expect("a bound socket has an address");
    drop(listener);
    await_closed(address);
    address.port()
}

/// A listener on such a port.
pub(crate) fn listen() -> TcpListener {
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
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return listener;
        }
    }
    panic!("no port between {LOWEST} and {HIGHEST} is free");
}

/// Returns when nothing listens there any more: a process that is being started has a copy of each listener of this one until it runs its
/// own program, and the port is taken for so long.
pub(crate) fn await_closed(address: SocketAddr) {
    let begun = Instant::now();
    while TcpStream::connect_timeout(&address, HUNG).is_ok() {
        assert!(begun.elapsed() < HUNG, "{address} is still listened on");
        std::thread::yield_now();
    }
}
