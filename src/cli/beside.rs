//! What the commands for the person on call share: the state, opened beside a daemon that may be running, and who acts.

use std::ffi::OsString;
use std::sync::Arc;

use clap::Args;

use super::context::{Session, state_exists};
use super::fault::{Failure, Fault, code};
use crate::app;
use crate::config::{Config, LogConfig};
use crate::model::InstallationId;
use crate::store::Access;
use crate::store::console::{Console, Person};

/// There is no state yet.
pub(crate) const STATE_ABSENT: &str = "R015";

/// Loads the configuration and opens the state; the source and Vercel are not contacted.
pub(crate) async fn open(session: &Session) -> Result<(Config, Arc<dyn Console>), Fault> {
    let config = session.load_with_warnings()?.config;
    log_acts(session, &config.log)?;
    if !state_exists(&config) {
        let message = format!("there is no state yet at {}", config.state.url);
        return Err(Failure::new(STATE_ABSENT, message)
            .help("reconciled plan shows what would be sent; reconciled run, or reconciled once, begins")
            .help("if a daemon runs: is this its configuration, and may this user read its state?")
            .into());
    }
    let console = app::open_state(&config, Access::Beside).await?;
    Ok((config, console))
}

/// Sends the log to stderr, with the lines that tell what a person did: at a terminal the answer itself tells, elsewhere the log does
/// too.
pub(crate) fn log_acts(session: &Session, config: &LogConfig) -> Result<(), Fault> {
    let all = !std::io::IsTerminal::is_terminal(&std::io::stderr());
    session
        .log_to_stderr(config, all)
        .map_err(|error| Failure::of(code::START, &error))?;
    Ok(())
}

/// Who acts.
#[derive(Debug, Clone, Args)]
pub(crate) struct Actor {
    /// Who does this, for the history [default: $SUDO_USER, else $USER, else the user's number].
    #[arg(long = "as", value_name = "NAME", value_parser = parse_words)]
    name: Option<String>,
}

/// Why something is done, where that may be left open.
#[derive(Debug, Clone, Args)]
pub(crate) struct Why {
    /// Why; the history keeps it.
    #[arg(long, value_name = "TEXT", value_parser = parse_words)]
    pub(crate) reason: Option<String>,
}

impl Actor {
    /// Who acts, and why.
    pub(crate) fn person(self, reason: Option<String>) -> Person {
        Person {
            name: self.name(),
            reason,
        }
    }

    /// The name that the history keeps.
    pub(crate) fn name(self) -> String {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        who(
            self.name,
            variable("SUDO_USER"),
            variable("USER"),
            rustix::process::getuid().as_raw(),
        )
    }
}

fn who(
    given: Option<String>,
    sudo: Option<OsString>,
    user: Option<OsString>,
    number: u32,
) -> String {
    let variable = sudo
        .or(user)
        .map(|name| name.to_string_lossy().into_owned());
    given
        .or(variable)
        .unwrap_or_else(|| format!("uid {number}"))
}

/// Text for the history: not blank, and short enough for a table.
pub(crate) fn parse_words(text: &str) -> Result<String, String> {
    /// The longest reason or name.
    const CHARS_MAX: usize = 500;
    let words = text.trim();
    if words.is_empty() {
        return Err("it is blank; the history keeps it for whoever comes next".to_owned());
    }
    if words.chars().count() > CHARS_MAX {
        return Err(format!("it is longer than {CHARS_MAX} characters"));
    }
    Ok(words.to_owned())
}

/// An installation's id on the command line.
pub(crate) fn parse_installation(text: &str) -> Result<InstallationId, String> {
    InstallationId::new(text).map_err(|error| format!("it {error}"))
}

/// A word that a shell passes on as it is; quoted where it would not.
pub(crate) fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c);
    if !word.is_empty() && !word.starts_with('-') && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_person_behind_sudo_is_who_acts() {
        let name = |given: Option<&str>, sudo: Option<&str>, user: Option<&str>| {
            who(
                given.map(Into::into),
                sudo.map(Into::into),
                user.map(Into::into),
                7,
            )
        };
        assert_eq!(name(Some("pager"), Some("ana"), Some("root")), "pager");
        assert_eq!(name(None, Some("ana"), Some("root")), "ana");
        assert_eq!(name(None, None, Some("bo")), "bo");
        assert_eq!(name(None, None, None), "uid 7");
    }

    #[test]
    fn a_reason_is_never_blank() {
        assert!(parse_words("  ").is_err());
        assert!(parse_words(&"x".repeat(501)).is_err());
        assert_eq!(
            parse_words(" bad migration ").as_deref(),
            Ok("bad migration")
        );
    }

    #[test]
    fn a_suggested_command_survives_the_shell() {
        assert_eq!(shell("res_0412"), "res_0412");
        assert_eq!(shell("a b"), "'a b'");
        assert_eq!(shell("it's"), r"'it'\''s'");
        assert_eq!(shell("-x"), "'-x'");
    }

    #[test]
    fn the_absent_state_is_explained() {
        let page = include_str!("../../docs/errors.md");
        assert!(page.contains(&format!("### {STATE_ABSENT} ")));
    }
}
