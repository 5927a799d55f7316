//! `health`: asks the running daemon's listener whether it lives. For a container without a shell.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::context::Session;
use super::exit::Exit;
use super::fault::{Failure, Fault, code};

/// How long the whole question may take: shorter than the timeouts of those who ask through it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 4 * 1024;

/// Does the daemon live? Asks /healthz at http.listen; exits with 0 if it does, with 1 if not.
///
/// A daemon lives when both of its loops got on lately; an outage of the database or of Vercel is no illness. With --ready it
/// asks /readyz: whether the state is open, and the source was tried or is another daemon's. For health checks of containers,
/// which have no shell and no curl; for a person `status` says more.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled --set http.listen=127.0.0.1:9464 health\n\nNext: reconciled status"
)]
pub(crate) struct Arguments {
    /// Asks /readyz instead of /healthz.
    #[arg(long)]
    ready: bool,
}

pub(crate) async fn execute(arguments: Arguments, session: &mut Session) -> Result<Exit, Fault> {
    let config = session.load_with_warnings()?.config;
    let Some(address) = config.http.listen else {
        return Err(
            Failure::new(code::NO_LISTENER, "[http] listen is not set: the daemon answers no health checks")
                .help("listen = \"127.0.0.1:9464\" under [http], or --set http.listen=…; it needs a restart of the daemon")
                .exit(Exit::Configuration)
                .into(),
        );
    };
    let path = if arguments.ready {
        "/readyz"
    } else {
        "/healthz"
    };
    let address = reachable(address);
    let answer = match tokio::time::timeout(PATIENCE, ask(address, path)).await {
        Ok(answer) => answer,
        Err(elapsed) => Err(elapsed.into()),
    };
    let answer = answer.map_err(|error| {
        Failure::new(
            code::NOT_ALIVE,
            format!("nothing answers at {address}: {error}"),
        )
        .help("the daemon does not run, or not with this [http] listen")
    })?;
    let (head, text) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    session.out.print(text);
    let status = head.split(' ').nth(1).unwrap_or_default();
    Ok(if status == "200" {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// The address at which a listener can be reached from its own machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// The answer as it came, head and body.
async fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_every_address_is_asked_on_loopback() {
        let of = |listen: &str| reachable(listen.parse().expect("an address")).to_string();
        assert_eq!(of("0.0.0.0:9464"), "127.0.0.1:9464");
        assert_eq!(of("[::]:9464"), "[::1]:9464");
        assert_eq!(of("192.0.2.1:80"), "192.0.2.1:80");
    }
}
