//! The stage: the provider, the daemon and the simulated Vercel, the clock on the wall, and whoever tells the audience.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::daemon::Daemon;
use super::proof::differences;
use super::provider::{Edit, Provider};
use super::tap::Event;
use crate::cli::fault::{Failure, code};
use crate::cli::out::{DIM, HEAD, Out, styled};
use crate::cli::text::{seconds, visible};
use crate::config::Config;
use crate::simulator::{Remote, Simulator};

/// How long anything that is waited for may take; far more than it does.
const PATIENCE: Duration = Duration::from_secs(30);

/// Everything on the stage.
pub(super) struct Stage<'a> {
    pub(super) provider: Provider,
    pub(super) remote: Remote,
    /// `None` while Vercel cannot be reached.
    pub(super) simulator: Option<Simulator>,
    pub(super) address: SocketAddr,
    pub(super) config: Arc<Config>,
    /// `None` between a crash and the next start.
    pub(super) daemon: Option<Daemon>,
    pub(super) events: UnboundedReceiver<Event>,
    pub(super) teller: Teller<'a>,
    /// Pauses between changes, so that a person can follow.
    pub(super) unhurried: bool,
    pub(super) heard: Heard,
}

/// What the daemon's log said so far.
#[derive(Debug, Default)]
pub(super) struct Heard {
    names: HashSet<String>,
    /// The longest time from a change to its acknowledgement, in a chapter without faults.
    pub(super) lag_ms_max: u64,
    pub(super) panics: u64,
    acknowledged: u64,
    converged: bool,
}

impl Stage<'_> {
    /// Starts the daemon.
    pub(super) fn start_daemon(&mut self) -> Result<(), Failure> {
        let daemon =
            Daemon::start(&self.config).map_err(|error| Failure::of(code::START, &error))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Changes a database of the provider.
    pub(super) async fn edit(&mut self, index: usize, edits: &[Edit]) -> Result<(), Failure> {
        let (_, id) = self.provider.databases()[index].clone();
        self.provider
            .edit(&id, edits)
            .await
            .map_err(|error| provider_failed(&error))
    }

    /// A database's name on the stage.
    pub(super) fn name(&self, index: usize) -> String {
        let (installation, id) = &self.provider.databases()[index];
        format!("{installation} / {id}")
    }

    /// Waits until Vercel holds exactly what the provider has; how long that took.
    pub(super) async fn settle(&mut self) -> Result<Duration, Failure> {
        self.settle_besides(None).await
    }

    /// Like [`Stage::settle`], leaving out one installation.
    pub(super) async fn settle_besides(
        &mut self,
        installation: Option<&str>,
    ) -> Result<Duration, Failure> {
        let left_out = installation.map(|installation| format!("{installation}/"));
        let counts = |difference: &String| {
            left_out
                .as_ref()
                .is_none_or(|prefix| !difference.starts_with(prefix))
        };
        let fleet = self
            .provider
            .fleet()
            .await
            .map_err(|error| provider_failed(&error))?;
        let began = Instant::now();
        let remote = self.remote.clone();
        let agree = remote.wait_until(|remote| !differences(&fleet, remote).iter().any(counts));
        match self.until("both sides to agree", agree).await {
            Ok(Ok(())) => Ok(began.elapsed()),
            Ok(Err(_)) => Err(in_vain("both sides to agree")),
            Err(failure) => Err(Failure {
                causes: differences(&fleet, &self.remote),
                ..failure
            }),
        }
    }

    /// Waits until a part of the simulated Vercel looks as expected.
    pub(super) async fn until_vercel(
        &mut self,
        what: &str,
        is_so: impl FnMut(&Remote) -> bool,
    ) -> Result<(), Failure> {
        let remote = self.remote.clone();
        self.until(what, remote.wait_until(is_so))
            .await?
            .map_err(|_| in_vain(what))
    }

    /// Waits until the daemon has logged an event of this name since [`Stage::forget`].
    pub(super) async fn until_heard(&mut self, name: &str) -> Result<(), Failure> {
        self.until_log(&format!("the event {name}"), |heard| {
            heard.names.contains(name)
        })
        .await
    }

    /// Waits until the daemon has recorded so many acknowledgements.
    pub(super) async fn until_acknowledged(&mut self, count: u64) -> Result<(), Failure> {
        self.until_log("acknowledgements", |heard| heard.acknowledged >= count)
            .await
    }

    /// Waits until a sweep has found both sides equal since [`Stage::forget`].
    pub(super) async fn until_converged(&mut self) -> Result<(), Failure> {
        self.until_log("a sweep that finds both sides equal", |heard| {
            heard.converged
        })
        .await
    }

    /// Forgets what was heard, to wait for it anew.
    pub(super) fn forget(&mut self) {
        self.listen();
        self.heard.names.clear();
        self.heard.converged = false;
    }

    /// A moment for the audience; none when in a hurry.
    pub(super) async fn pause(&mut self, millis: u64) {
        if self.unhurried {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        self.listen();
    }

    async fn until<T>(
        &mut self,
        what: &str,
        wanted: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + PATIENCE;
        let mut wanted = std::pin::pin!(wanted);
        loop {
            tokio::select! {
                reached = &mut wanted => return Ok(reached),
                Some(event) = self.events.recv() => self.hear(&event),
                () = tokio::time::sleep_until(deadline) => return Err(in_vain(what)),
            }
        }
    }

    async fn until_log(
        &mut self,
        what: &str,
        is_so: impl Fn(&Heard) -> bool,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(&self.heard) {
            match tokio::time::timeout_at(deadline, self.events.recv()).await {
                Ok(Some(event)) => self.hear(&event),
                Ok(None) | Err(_) => return Err(in_vain(what)),
            }
        }
        Ok(())
    }

    /// Takes in what was logged meanwhile.
    fn listen(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.hear(&event);
        }
    }

    fn hear(&mut self, event: &Event) {
        self.heard.names.insert(event.name().to_owned());
        self.heard.panics += u64::from(event.name() == "panic");
        self.heard.converged |= event.is_converged_sweep();
        if event.name() == "delivery.acknowledged" {
            self.heard.acknowledged += 1;
            self.heard.lag_ms_max = self
                .heard
                .lag_ms_max
                .max(event.number("lag_ms").unwrap_or(0));
        }
        if let Some(sentence) = event.notable() {
            self.teller.daemon(sentence);
        }
    }
}

/// Tells the audience what happens.
pub(super) struct Teller<'a> {
    out: &'a mut Out,
    began: Instant,
    /// Everything that was told: no secret may be in it either.
    pub(super) transcript: String,
    last: String,
}

impl<'a> Teller<'a> {
    pub(super) fn new(out: &'a mut Out) -> Self {
        Self {
            out,
            began: Instant::now(),
            transcript: String::new(),
            last: String::new(),
        }
    }

    /// How long the show has lasted.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// A new chapter.
    pub(super) fn chapter(&mut self, title: &str) {
        let at = seconds(self.elapsed());
        self.tell(&format!(
            "\n{}  {}",
            styled(DIM, format_args!("{at:>7}")),
            styled(HEAD, title)
        ));
    }

    /// One line of it.
    pub(super) fn say(&mut self, text: &str) {
        self.tell(&format!("         {text}"));
    }

    /// The daemon's own words.
    fn daemon(&mut self, sentence: &str) {
        let line = format!("         {} {}", styled(DIM, "daemon:"), visible(sentence));
        // Several requests may meet the same fate at once.
        if line != self.last {
            self.tell(&line);
        }
        self.last = line;
    }

    /// A line as it is.
    pub(super) fn tell(&mut self, line: &str) {
        self.transcript.push_str(line);
        self.transcript.push('\n');
        self.out.line(line);
    }
}

fn in_vain(what: &str) -> Failure {
    let limit = crate::cli::text::duration(PATIENCE);
    Failure::new(code::DEMO, format!("waited {limit} in vain for {what}"))
}

pub(super) fn provider_failed(error: &sqlx::Error) -> Failure {
    Failure::of(code::DEMO, error)
}
