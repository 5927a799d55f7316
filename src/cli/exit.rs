//! The exit codes: an interface that scripts and service managers rely on.

use std::process::ExitCode;

/// How a command ended. `docs/errors.md` lists the codes; their numbers never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: done.
    Done,
    /// 1: failed; worth another try later.
    Failed,
    /// 2: `plan --exit-code` found changes.
    Changes,
    /// 64: the command line cannot be understood (`EX_USAGE` of sysexits.h).
    Usage,
    /// 78: the configuration has to change first (`EX_CONFIG` of sysexits.h).
    Configuration,
}

impl Exit {
    /// The number.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Changes => 2,
            Self::Usage => 64,
            Self::Configuration => 78,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
