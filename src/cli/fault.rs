//! What a command says when it cannot do its work: the fault, its causes, the cure.
//!
//! Each kind has a stable code with a paragraph in `docs/errors.md`. The message states the fault, only `help:` the cure.

use std::error::Error;

use super::exit::Exit;
use super::out::{BAD, styled};
use crate::app::AppError;
use crate::config::ConfigError;
use crate::reconcile::PassError;
use crate::source::SourceError;
use crate::store::StoreError;
use crate::vercel::ClientError;

/// Why a command ended without doing its work.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The configuration cannot be used; nothing was connected to.
    Configuration(ConfigError),
    /// Anything else.
    Failure(Box<Failure>),
}

/// A fault with its causes and its cure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Stable code, one of those in `code`.
    pub(crate) code: &'static str,
    /// What failed.
    pub(crate) message: String,
    /// Why, from the nearest cause to the last.
    pub(crate) causes: Vec<String>,
    /// What to do; one `help:` line for each.
    pub(crate) help: Vec<String>,
    /// How the process ends.
    pub(crate) exit: Exit,
}

impl Failure {
    /// A fault without causes or help.
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            causes: Vec::new(),
            help: Vec::new(),
            exit: Exit::Failed,
        }
    }

    /// The fault that an error states, with the chain of its sources.
    pub(crate) fn of(code: &'static str, error: &(dyn Error + 'static)) -> Self {
        let mut failure = Self::new(code, error.to_string());
        let mut source = error.source();
        while let Some(cause) = source {
            failure.causes.push(cause.to_string());
            source = cause.source();
        }
        failure
    }

    /// With one more line of help.
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// With another end of the process than 1.
    pub(crate) const fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// The paragraph that a person reads.
    pub(crate) fn render(&self) -> String {
        let Self {
            code,
            message,
            causes,
            help,
            exit: _,
        } = self;
        let mut text = format!(
            "{}: {message}\n",
            styled(BAD, format_args!("error[{code}]"))
        );
        for cause in causes {
            text.push_str(&format!("  caused by: {cause}\n"));
        }
        for help in help {
            text.push_str(&format!("   = help: {help}\n"));
        }
        text
    }
}

impl Fault {
    /// How the process ends.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Configuration(_) => Exit::Configuration,
            Self::Failure(failure) => failure.exit,
        }
    }

    /// What a person reads on stderr.
    pub(crate) fn render(&self) -> String {
        match self {
            Self::Configuration(error) => format!("{error}\n"),
            Self::Failure(failure) => failure.render(),
        }
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self::Failure(Box::new(failure))
    }
}

impl From<ConfigError> for Fault {
    fn from(error: ConfigError) -> Self {
        Self::Configuration(error)
    }
}

impl From<&SourceError> for Failure {
    fn from(error: &SourceError) -> Self {
        let (code, help) = match error {
            SourceError::Unreachable { .. } => (
                code::SOURCE_UNREACHABLE,
                "is the database running, and may this machine reach it? [source] url names it".to_owned(),
            ),
            SourceError::Login { .. } => (
                code::SOURCE_LOGIN,
                "check the user, the password and the database in [source] url; special characters of a password are \
                 percent-encoded"
                    .to_owned(),
            ),
            SourceError::Timeout { .. } => (
                code::SOURCE_TIMEOUT,
                "give the query an index, or raise [source] statement_timeout".to_owned(),
            ),
            SourceError::Query { .. } => (
                code::SOURCE_QUERY,
                "run the query by hand as the role that [source] url names; it needs SELECT on what it reads".to_owned(),
            ),
            SourceError::Shape { help, .. } => (code::SOURCE_SHAPE, help.clone()),
            SourceError::Replica { .. } => (
                code::SOURCE_REPLICA,
                "name the primary in [source] url, or set allow_replica = true and rely on sweeps".to_owned(),
            ),
        };
        let failure = Self::of(code, error).help(help);
        if error.is_configuration() {
            failure.exit(Exit::Configuration)
        } else {
            failure
        }
    }
}

impl From<&StoreError> for Failure {
    fn from(error: &StoreError) -> Self {
        let (code, help) = match error {
            StoreError::Open { .. } => (
                code::STATE_OPEN,
                "[state] url names it; its directory has to exist and belong to the user that runs the daemon",
            ),
            StoreError::WatchLost => (
                code::STATE_IN_USE,
                "another daemon or command reads the source for this state; try again when it has ended",
            ),
            StoreError::InUse { .. } => (
                code::STATE_IN_USE,
                "stop that daemon first; commands that only look may run beside it",
            ),
            StoreError::Newer { .. } => (
                code::STATE_NEWER,
                "run the version that made it, or a newer one; a state is never taken back",
            ),
            StoreError::Failed {
                transient: true, ..
            } => (
                code::STATE_FAILED,
                "nothing of it was kept; the same may succeed in a moment",
            ),
            StoreError::Failed {
                transient: false, ..
            } => (
                code::STATE_FAILED,
                "look for a full disk, a missing permission or a failing device",
            ),
            StoreError::Corrupt { .. } => (
                code::STATE_CORRUPT,
                "keep a copy, then restore a backup or start with a new state: everything is then pushed once",
            ),
        };
        Self::of(code, error).help(help)
    }
}

impl From<&ClientError> for Failure {
    fn from(error: &ClientError) -> Self {
        Self::of(code::CLIENT, error)
            .help("see [vercel] in the configuration")
            .exit(Exit::Configuration)
    }
}

impl From<&AppError> for Failure {
    fn from(error: &AppError) -> Self {
        let failure = match error {
            AppError::Source(error) | AppError::Pass(PassError::Source(error)) => {
                return error.into();
            }
            AppError::Store(error) | AppError::Pass(PassError::Store(error)) => {
                return error.into();
            }
            AppError::Client(error) => return error.into(),
            AppError::Schedule(_) => Self::of(code::SCHEDULE, error),
            AppError::Signals(_) => Self::of(code::SIGNALS, error),
            AppError::Ended { .. } => Self::of(code::ENDED, error)
                .help("the log has the place; starting again loses nothing"),
            AppError::Listen { .. } => Self::of(code::LISTEN, error)
                .help("[http] listen has to be a free address of this machine"),
            AppError::Unsupported { .. } => Self::of(code::UNSUPPORTED, error)
                .help("remove the setting, or use a version that knows it"),
        };
        if error.is_configuration() {
            failure.exit(Exit::Configuration)
        } else {
            failure
        }
    }
}

macro_rules! fault_of {
    ($($error:ty),+) => {
        $(impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                Failure::from(&error).into()
            }
        })+
    };
}

fault_of!(SourceError, StoreError, ClientError, AppError);

impl From<PassError> for Fault {
    fn from(error: PassError) -> Self {
        match error {
            PassError::Source(error) => error.into(),
            PassError::Store(error) => error.into(),
        }
    }
}

/// The codes, each explained in `docs/errors.md`.
pub(crate) mod code {
    /// The source cannot be reached.
    pub(crate) const SOURCE_UNREACHABLE: &str = "R001";
    /// The source refuses the login.
    pub(crate) const SOURCE_LOGIN: &str = "R002";
    /// A statement took too long.
    pub(crate) const SOURCE_TIMEOUT: &str = "R003";
    /// The source refuses a statement.
    pub(crate) const SOURCE_QUERY: &str = "R004";
    /// The columns of a query cannot serve.
    pub(crate) const SOURCE_SHAPE: &str = "R005";
    /// The source is a replica.
    pub(crate) const SOURCE_REPLICA: &str = "R006";
    /// The state cannot be opened.
    pub(crate) const STATE_OPEN: &str = "R010";
    /// Another daemon has the state.
    pub(crate) const STATE_IN_USE: &str = "R011";
    /// The state was made by a newer version.
    pub(crate) const STATE_NEWER: &str = "R012";
    /// The state could not be read or written.
    pub(crate) const STATE_FAILED: &str = "R013";
    /// The state is damaged.
    pub(crate) const STATE_CORRUPT: &str = "R014";
    /// No client for Vercel can be built.
    pub(crate) const CLIENT: &str = "R020";
    /// Vercel refuses a token.
    pub(crate) const TOKEN_REFUSED: &str = "R021";
    /// Vercel cannot be reached.
    pub(crate) const VERCEL_UNREACHABLE: &str = "R022";
    /// The schedule cannot be started.
    pub(crate) const SCHEDULE: &str = "R030";
    /// Signals cannot be listened for.
    pub(crate) const SIGNALS: &str = "R031";
    /// A part ended unexpectedly.
    pub(crate) const ENDED: &str = "R032";
    /// A setting that this version does not know how to serve.
    pub(crate) const UNSUPPORTED: &str = "R033";
    /// The process could not be hardened.
    pub(crate) const HARDENING: &str = "R034";
    /// The process could not be set up.
    pub(crate) const START: &str = "R035";
    /// The answer could not be printed.
    pub(crate) const OUTPUT: &str = "R036";
    /// A bug.
    pub(crate) const BUG: &str = "R037";
    /// Health and metrics cannot be served.
    pub(crate) const LISTEN: &str = "R038";
    /// The daemon serves no health checks.
    pub(crate) const NO_LISTENER: &str = "R044";
    /// The daemon does not answer.
    pub(crate) const NOT_ALIVE: &str = "R045";
    /// An installation that the state does not know.
    pub(crate) const UNKNOWN_INSTALLATION: &str = "R046";
    /// The simulator cannot start.
    pub(crate) const SIMULATOR: &str = "R040";
    /// The demo could not go on.
    pub(crate) const DEMO: &str = "R041";
    /// The role could write to the source.
    pub(crate) const WRITABLE_SOURCE: &str = "W031";
    /// No index serves the polls or the sweeps.
    pub(crate) const NO_INDEX: &str = "W032";
    /// Polls may miss rows that commit late.
    pub(crate) const BOUNDED_DETECTION: &str = "W033";
    /// An installation cannot be asked.
    pub(crate) const NOT_ASKED: &str = "W034";
    /// Rows that cannot be used.
    pub(crate) const UNUSABLE_ROWS: &str = "W035";
    /// Notifications do not arrive.
    pub(crate) const DEAF: &str = "W036";

    /// Every code, in order.
    #[cfg(test)]
    pub(crate) const ALL: &[&str] = &[
        SOURCE_UNREACHABLE,
        SOURCE_LOGIN,
        SOURCE_TIMEOUT,
        SOURCE_QUERY,
        SOURCE_SHAPE,
        SOURCE_REPLICA,
        STATE_OPEN,
        STATE_IN_USE,
        STATE_NEWER,
        STATE_FAILED,
        STATE_CORRUPT,
        CLIENT,
        TOKEN_REFUSED,
        VERCEL_UNREACHABLE,
        SCHEDULE,
        SIGNALS,
        ENDED,
        UNSUPPORTED,
        HARDENING,
        START,
        OUTPUT,
        BUG,
        LISTEN,
        NO_LISTENER,
        NOT_ALIVE,
        UNKNOWN_INSTALLATION,
        SIMULATOR,
        DEMO,
        WRITABLE_SOURCE,
        NO_INDEX,
        BOUNDED_DETECTION,
        NOT_ASKED,
        UNUSABLE_ROWS,
        DEAF,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_states_the_fault_then_its_causes_then_the_cure() {
        let io = std::io::Error::other("permission denied");
        let error = ClientError::CaFile {
            path: "/etc/ca.pem".into(),
            source: io,
        };
        let text = anstream::adapter::strip_str(&Failure::from(&error).render()).to_string();
        assert_eq!(
            text,
            "error[R020]: the file of certificate authorities /etc/ca.pem could not be read\n  \
             caused by: permission denied\n   = help: see [vercel] in the configuration\n"
        );
    }

    #[test]
    fn what_only_the_operator_can_change_ends_with_78() {
        let shape = SourceError::Shape {
            statement: "source query",
            problem: "has no column".into(),
            help: "one".into(),
        };
        assert_eq!(Fault::from(shape).exit(), Exit::Configuration);
        let login = SourceError::Login {
            target: "db".into(),
            problem: "no".into(),
        };
        assert_eq!(Fault::from(AppError::Source(login)).exit(), Exit::Failed);
    }

    #[test]
    fn every_code_is_explained_once() {
        let page = include_str!("../../docs/errors.md");
        for code in code::ALL {
            let headings = page
                .lines()
                .filter(|line| line.starts_with(&format!("### {code} ")))
                .count();
            assert_eq!(headings, 1, "{code} in docs/errors.md");
        }
    }
}
