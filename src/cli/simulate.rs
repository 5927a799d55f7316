//! `simulate`: a stand-in for Vercel's Marketplace API on this machine.

use std::net::SocketAddr;

use clap::{Args, ValueEnum};
use tokio::sync::broadcast::error::RecvError;

use super::context::Session;
use super::exit::Exit;
use super::fault::{Failure, Fault, code};
use super::out::{BAD, GOOD, HEAD, WARN, styled};
use super::text::counted;
use crate::app::AppError;
use crate::shutdown::Shutdown;
use crate::simulator::{Behaviour, Entry, Options, Remote, Simulator, Weather};

/// A local stand-in for Vercel's Marketplace API, with faults on command; for tests and CI without an account.
///
/// Checks every request strictly against the published schema, remembers what was applied, and prints one line per request.
/// Unknown installations and resources come into being by the first request for them. It fails when it is told to, over HTTP
/// (see docs/simulator.md), or by chance with --weather.
///
/// It never calls anybody, and never shows a secret value or a token. What it holds ends with it.
///
/// It is a judge: whatever a client must never do (a body outside the schema, another installation's token, two writes to one
/// resource at once) is a violation. With any of them it exits with 1.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled simulate --weather rough --seed 7\n\n\
    Next: reconciled --set vercel.base_url=http://127.0.0.1:8787 once --sweep"
)]
pub(crate) struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8787")]
    listen: SocketAddr,
    /// The seed of the weather: equal seeds give equal faults.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Faults by chance.
    #[arg(long, value_enum, default_value_t = Sky::Calm)]
    weather: Sky,
    /// Answer 404 for installations and resources that were not created through /_simulator.
    #[arg(long)]
    require_known: bool,
}

/// How often requests fail by chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sky {
    /// Every request is served.
    Calm,
    /// About one request in six fails.
    Rough,
    /// About every second request fails, some answers are lost, some are applied late.
    Storm,
}

impl Sky {
    fn weather(self, seed: u64) -> Option<Weather> {
        match self {
            Self::Calm => None,
            Self::Rough => Some(Weather {
                seed,
                p_500: 0.02,
                p_503: 0.05,
                p_429: 0.04,
                p_409: 0.02,
                p_drop_after: 0.02,
                p_delay: 0.05,
                ..Weather::default()
            }),
            Self::Storm => Some(Weather {
                seed,
                p_500: 0.05,
                p_502: 0.05,
                p_503: 0.12,
                p_429: 0.08,
                p_409: 0.05,
                p_drop_before: 0.04,
                p_drop_after: 0.05,
                p_apply_late: 0.03,
                p_not_http: 0.01,
                p_delay: 0.05,
                ..Weather::default()
            }),
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Calm => "calm: every request is served",
            Self::Rough => "rough: about one request in six fails or is late",
            Self::Storm => "storm: about half of the requests fail, some take effect late",
        }
    }
}

pub(crate) async fn execute(arguments: Arguments, session: &mut Session) -> Result<Exit, Fault> {
    let Arguments {
        listen,
        seed,
        weather,
        require_known,
    } = arguments;
    let options = Options {
        address: listen,
        weather: weather.weather(seed),
        behaviour: Behaviour {
            auto_create: !require_known,
            ..Behaviour::default()
        },
        ..Options::creating()
    };
    let shutdown = Shutdown::new();
    shutdown.listen().map_err(AppError::from)?;
    let simulator = Simulator::start(options).await.map_err(|error| {
        Failure::of(code::SIMULATOR, &error).help("--listen 127.0.0.1:0 takes a free port")
    })?;
    let mut requests = simulator.remote().observe();
    session
        .out
        .print(&greeting(&simulator, weather, require_known));
    loop {
        let request = tokio::select! {
            () = shutdown.draining().cancelled() => break,
            request = requests.recv() => request,
        };
        match request {
            Ok(entry) => session.out.line(line(&entry)),
            Err(RecvError::Lagged(missed)) => session
                .out
                .line(format_args!("({missed} requests not shown)")),
            Err(RecvError::Closed) => break,
        }
        if session.out.is_closed() {
            break;
        }
    }
    let remote = simulator.remote().clone();
    simulator.shutdown().await;
    session.out.print(&summary(&remote));
    Ok(if remote.violations().is_empty() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn greeting(simulator: &Simulator, weather: Sky, require_known: bool) -> String {
    let url = simulator.base_url();
    let post = format!("curl -sS -X POST -H 'Content-Type: application/json' {url}/_simulator");
    let beyond = if simulator.address().ip().is_loopback() {
        String::new()
    } else {
        format!(
            "{} it listens beyond this machine, and lets everyone in\n",
            styled(WARN, "warn")
        )
    };
    let unknown = if require_known {
        "only what was created"
    } else {
        "every installation and resource"
    };
    format!(
        "{} {url}\n{beyond}It knows {unknown}. Weather {}.\n\n\
         Point the daemon at it:\n  \
         reconciled --set vercel.base_url={url} once --sweep\n\n\
         Make the next three PATCH requests answer 503, and the one after them 409:\n  \
         {post}/faults -d '{{\"rules\": [{{\"fault\": {{\"status\": {{\"code\": 503}}}}, \"match\": {{\"method\": \"PATCH\"}}, \
         \"times\": 3}}, {{\"fault\": \"conflict\", \"match\": {{\"method\": \"PATCH\"}}}}]}}'\n\n\
         What it holds, and what a client did that it must never do:\n  \
         curl -sS {url}/_simulator/resources\n  \
         curl -sS {url}/_simulator/violations\n\n\
         One line per request follows. Ctrl-C ends it. More: docs/simulator.md\n\n",
        styled(HEAD, "Vercel's Marketplace API, simulated, on"),
        weather.words(),
    )
}

fn line(entry: &Entry) -> String {
    if entry.violations.is_empty() {
        entry.to_string()
    } else {
        styled(BAD, entry)
    }
}

fn summary(remote: &Remote) -> String {
    let requests = remote.requests();
    let number =
        |wanted: fn(&Entry) -> bool| requests.iter().filter(|entry| wanted(entry)).count() as u64;
    let violations = remote.violations();
    let mut text = format!(
        "\n{}, {} applied, {} struck by a fault; {} held.\n",
        counted(requests.len() as u64, "request"),
        number(|entry| entry.applied),
        number(|entry| entry.fault.is_some()),
        counted(remote.resources().len() as u64, "resource"),
    );
    for violation in &violations {
        text.push_str(&format!("{} {violation}\n", styled(BAD, "violation")));
    }
    let verdict = if violations.is_empty() {
        styled(GOOD, "No violation.")
    } else {
        styled(
            BAD,
            format_args!("{}.", counted(violations.len() as u64, "violation")),
        )
    };
    text.push_str(&format!("{verdict}\nNext: reconciled demo\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_calm_sky_has_no_weather_and_a_storm_is_worse_than_a_rough_one() {
        assert!(Sky::Calm.weather(1).is_none());
        let faults = |sky: Sky| {
            let weather = sky.weather(7).expect("a weather");
            assert_eq!(weather.seed, 7);
            weather.p_500 + weather.p_503 + weather.p_429 + weather.p_409 + weather.p_drop_after
        };
        assert!(faults(Sky::Rough) > 0.0);
        assert!(faults(Sky::Storm) > faults(Sky::Rough));
    }

    #[test]
    fn every_weather_can_be() {
        for sky in [Sky::Calm, Sky::Rough, Sky::Storm] {
            assert!(
                sky.weather(1).is_none_or(|weather| weather.check().is_ok()),
                "{sky:?}"
            );
        }
    }

    #[test]
    fn in_every_weather_some_answers_are_late_and_in_a_storm_some_requests_take_effect_late() {
        let rough = Sky::Rough.weather(1).expect("a weather");
        let storm = Sky::Storm.weather(1).expect("a weather");
        assert!(rough.p_delay > 0.0 && storm.p_delay > 0.0);
        assert!(rough.p_drop_after > 0.0 && storm.p_drop_after > 0.0);
        assert!(storm.p_not_http > 0.0, "and some answers are no HTTP");
        assert!(rough.p_apply_late.abs() < f64::EPSILON && storm.p_apply_late > 0.0);
    }
}
