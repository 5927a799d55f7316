//! Asks Vercel about a few installations: a GET of their lists, nothing else.

use std::sync::Arc;

use super::report::{Level, Line, Report};
use crate::app;
use crate::cli::fault::{Failure, code};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::dispatch::TokenError;
use crate::model::InstallationId;
use crate::plan::{Answer, AnswerKind, UnsentKind};
use crate::source::{Inspect, Source};

/// How many installations are asked.
const SAMPLE: usize = 3;

/// Asks about a few of these installations and reports what came back.
pub(super) async fn ask(
    config: &Config,
    source: Arc<dyn Inspect>,
    installations: &[InstallationId],
    report: &mut Report,
) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let source: Arc<dyn Source> = source;
    let parts = app::marketplace(config)
        .and_then(|client| Ok((client, app::token_source(config, &source, &clock)?)));
    let (marketplace, tokens) = match parts {
        Ok(parts) => parts,
        Err(error) => return report.failed("vercel", &Failure::from(&error)),
    };
    let sample = spread(installations);
    let mut refused = None;
    for installation_id in &sample {
        report.sampled.0 += 1;
        let token = match tokens.token(installation_id).await {
            Ok(Some(token)) => token,
            Ok(None) => {
                let text = format!("{installation_id} has no access token in installations_query");
                report.add(
                    Line::warning(code::NOT_ASKED, text)
                        .help("a row without a token, or no row: its resources will wait"),
                );
                continue;
            }
            Err(error @ TokenError::Unusable) => {
                report.add(
                    Line::warning(code::NOT_ASKED, format!("{installation_id}: {error}")).help(
                        "correct it where the source keeps it: until then its resources wait",
                    ),
                );
                continue;
            }
            Err(TokenError::Source(error)) => {
                return report.failed("tokens", &Failure::from(&error));
            }
            Err(error @ (TokenError::Unavailable { .. } | TokenError::Refused { .. })) => {
                let failure = Failure::of(code::TOKEN_REFUSED, &error);
                return report.failed(
                    "tokens",
                    &failure
                        .help("check [vercel.oauth]: token_url, client_id, client_secret and form"),
                );
            }
        };
        let answer = marketplace.probe(&token, installation_id).await;
        match &answer.kind {
            AnswerKind::Http {
                status: 200..=299, ..
            } => report.sampled.1 += 1,
            AnswerKind::Http { status, .. } => {
                refused = Some((installation_id, *status, described(&answer)))
            }
            AnswerKind::Unsent(_) | AnswerKind::Lost(_) => {
                return report.failed("vercel", &unreachable(config, &answer));
            }
        }
    }
    let (asked, accepted) = report.sampled;
    match refused {
        // Nobody was let in: that is no single customer's doing.
        Some((installation_id, status, words)) if accepted == 0 => {
            let message = format!(
                "{installation_id} was answered {status}{words}; none of {asked} was let in"
            );
            let help = match status {
                401 | 403 => "are these the tokens that the installations were given?",
                404 | 410 => {
                    "are these integrationConfigurationIds, and is [vercel] base_url right?"
                }
                _ => "Vercel may be failing; try again in a moment",
            };
            report.failed(
                "vercel",
                &Failure::new(code::TOKEN_REFUSED, message).help(help),
            );
        }
        Some((installation_id, status, words)) => {
            let text = format!("{installation_id} was answered {status}{words}");
            report.add(
                Line::warning(code::NOT_ASKED, text)
                    .help("it will be paused and probed until it is let in"),
            );
            report.add(summary(asked, accepted));
        }
        None => report.add(summary(asked, accepted)),
    }
}

fn summary(asked: usize, accepted: usize) -> Line {
    if asked == 0 {
        return Line::new(
            Level::Ok,
            "vercel",
            "nobody to ask about: the source has no rows yet",
        );
    }
    if accepted == 0 {
        let text = format!("none of {asked} sampled installations could be asked");
        return Line::warning(code::NOT_ASKED, text)
            .help("nothing shows yet that Vercel can be reached and takes their tokens");
    }
    Line::new(
        Level::Ok,
        "vercel",
        format!("{accepted} of {asked} sampled installations accepted their token"),
    )
}

/// The first, the last and one between: customers of different ages.
fn spread(installations: &[InstallationId]) -> Vec<InstallationId> {
    if installations.len() <= SAMPLE {
        return installations.to_vec();
    }
    let last = installations.len() - 1;
    [0, last / 2, last]
        .map(|index| installations[index].clone())
        .to_vec()
}

fn described(answer: &Answer) -> String {
    match &answer.kind {
        AnswerKind::Http { code, message, .. } => {
            let words: Vec<&str> = code.iter().chain(message).map(String::as_str).collect();
            if words.is_empty() {
                String::new()
            } else {
                format!(" ({})", words.join(": "))
            }
        }
        AnswerKind::Unsent(_) | AnswerKind::Lost(_) => String::new(),
    }
}

fn unreachable(config: &Config, answer: &Answer) -> Failure {
    let base_url = &config.vercel.base_url;
    let (what, help) = match answer.kind {
        AnswerKind::Unsent(UnsentKind::Dns) => (
            "its name cannot be resolved",
            "check [vercel] base_url and this machine's DNS",
        ),
        AnswerKind::Unsent(UnsentKind::Tls) => (
            "no TLS connection could be made",
            "a gateway with its own authority needs [vercel] ca_file",
        ),
        AnswerKind::Unsent(UnsentKind::Connect) => (
            "no connection could be opened",
            "may this machine reach it? Proxies are set with [vercel] proxy alone",
        ),
        AnswerKind::Lost(_) | AnswerKind::Http { .. } => (
            "no HTTP answer came back",
            "is something else listening there?",
        ),
    };
    Failure::new(
        code::VERCEL_UNREACHABLE,
        format!("{base_url} cannot be reached: {what}"),
    )
    .help(help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::LostKind;

    #[test]
    fn the_sample_is_spread_over_the_installations() {
        let ids = |numbers: &[u32]| -> Vec<InstallationId> {
            numbers
                .iter()
                .map(|n| InstallationId::new(&format!("icfg_{n}")).expect("an id"))
                .collect()
        };
        assert_eq!(spread(&ids(&[1, 2])), ids(&[1, 2]));
        assert_eq!(spread(&ids(&[1, 2, 3, 4, 5, 6, 7])), ids(&[1, 4, 7]));
    }

    #[test]
    fn an_answer_is_described_by_what_vercel_said_of_it() {
        let http = |code: Option<&str>, message: Option<&str>| AnswerKind::Http {
            status: 403,
            code: code.map(str::to_owned),
            message: message.map(str::to_owned),
            retry_after: None,
            rate_limit_reset: None,
        };
        for (kind, expected) in [
            (http(None, None), ""),
            (http(Some("forbidden"), None), " (forbidden)"),
            (http(None, Some("Not allowed")), " (Not allowed)"),
            (
                http(Some("forbidden"), Some("Not allowed")),
                " (forbidden: Not allowed)",
            ),
            (AnswerKind::Unsent(UnsentKind::Tls), ""),
            (AnswerKind::Lost(LostKind::Closed), ""),
        ] {
            let answer = Answer {
                kind,
                vercel_id: None,
            };
            assert_eq!(described(&answer), expected, "{answer:?}");
        }
    }

    #[test]
    fn the_summary_says_how_many_were_let_in_of_how_many_were_asked() {
        let said = |asked, accepted| format!("{:?}", summary(asked, accepted));
        assert!(said(0, 0).contains("nobody to ask about"));
        assert!(said(2, 0).contains("none of 2"));
        assert!(said(3, 2).contains("2 of 3 sampled installations accepted their token"));
    }
}
