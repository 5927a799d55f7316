//! The command line: arguments in, an answer and an exit code out.
//!
//! One file per command. Answers go to stdout, faults and the logs of commands to stderr; `run` logs to stdout. No command
//! but `run`, `once` and those that say so sends anything or changes a state.

mod baseline;
mod beside;
mod check;
mod context;
mod demo;
mod drift;
mod exit;
mod explain;
mod fault;
mod health;
mod hold;
mod installation;
mod matrix;
mod once;
mod out;
mod outbox;
#[cfg(test)]
mod pages;
mod plan;
mod run;
mod simulate;
mod standing;
mod status;
mod text;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use context::Session;
use exit::Exit;
use fault::{Failure, Fault, code};
use out::{Out, complain};

/// Keeps Vercel's view of a Marketplace provider's resources equal to the provider's own database.
#[derive(Debug, Parser)]
#[command(
    name = "reconciled",
    version,
    disable_help_subcommand = true,
    max_term_width = 100,
    long_about = "Keeps Vercel's view of a Marketplace provider's resources equal to the provider's own database.\n\n\
        It reads one SQL query, compares each row with what Vercel last acknowledged, and sends the smallest PATCH that \
        closes the difference, until nothing differs. It never writes to your database.",
    after_help = "Start here:\n  \
        reconciled demo     watch it work, without an account or a database\n  \
        reconciled check    is this configuration ready? Sends nothing\n  \
        reconciled plan     what would be sent now? Sends nothing\n\n\
        Exit codes: 0 done, 1 failed, 2 `plan --exit-code` found changes, 64 usage, 78 configuration."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes, before or after its name.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Global {
    /// Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml].
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Global options"
    )]
    config: Option<PathBuf>,

    /// Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone
    /// on the machine could read.
    #[arg(
        long,
        global = true,
        value_name = "KEY=VALUE",
        help_heading = "Global options"
    )]
    set: Vec<String>,

    /// No colour, also at a terminal; NO_COLOR and TERM=dumb do the same.
    #[arg(long, global = true, help_heading = "Global options")]
    no_color: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Arguments),
    Once(once::Arguments),
    Check(check::Arguments),
    Plan(plan::Arguments),
    Status(status::Arguments),
    Health(health::Arguments),
    Explain(explain::Arguments),
    Outbox(outbox::Arguments),
    Installation(installation::Arguments),
    Baseline(baseline::Arguments),
    Drift(drift::Arguments),
    Simulate(simulate::Arguments),
    Demo(demo::Arguments),
}

impl Command {
    async fn execute(self, session: &mut Session) -> Result<Exit, Fault> {
        match self {
            Self::Run(arguments) => run::execute(arguments, session).await,
            Self::Once(arguments) => once::execute(arguments, session).await,
            Self::Check(arguments) => check::execute(arguments, session).await,
            Self::Plan(arguments) => plan::execute(arguments, session).await,
            Self::Status(arguments) => status::execute(arguments, session).await,
            Self::Health(arguments) => health::execute(arguments, session).await,
            Self::Explain(arguments) => explain::execute(arguments, session).await,
            Self::Outbox(arguments) => outbox::execute(arguments, session).await,
            Self::Installation(arguments) => installation::execute(arguments, session).await,
            Self::Baseline(arguments) => baseline::execute(arguments, session).await,
            Self::Drift(arguments) => drift::execute(arguments, session).await,
            Self::Simulate(arguments) => simulate::execute(arguments, session).await,
            Self::Demo(arguments) => demo::execute(arguments, session).await,
        }
    }
}

/// Runs the process: parses the command line, does what it asks, and says what happened.
#[must_use]
pub fn main() -> ExitCode {
    crate::allocator::keep_little_free_memory();
    // Before threads and files exist, and before any secret is read.
    let hardened = crate::hardening::harden_process();
    say_panics_in_words();
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(exit) => return exit.into(),
    };
    if arguments.global.no_color {
        anstream::ColorChoice::Never.write_global();
    }
    let mut session = Session::new(arguments.global);
    let ended = match hardened {
        Ok(()) => block_on(arguments.command.execute(&mut session)),
        Err(error) => Err(Failure::of(code::HARDENING, &error)
            .help("the kernel or a sandbox forbids prctl or setrlimit; allow them")
            .into()),
    };
    let exit = ended.unwrap_or_else(|fault| {
        complain(&session.out.advice().complete(&fault.render()));
        fault.exit()
    });
    finish(session.out, exit).into()
}

/// The names of the commands that read the configuration.
fn commands() -> Vec<String> {
    const WITHOUT: [&str; 2] = ["simulate", "demo"];
    let names = Cli::command();
    let names = names.get_subcommands().map(clap::Command::get_name);
    names
        .filter(|name| !WITHOUT.contains(name))
        .map(str::to_owned)
        .collect()
}

/// Parses the command line; what cannot be parsed is answered here.
fn parse() -> Result<Cli, Exit> {
    Cli::try_parse_from(context::merge_globals(std::env::args_os())).map_err(|error| {
        let text = error.render().to_string();
        if error.use_stderr() {
            complain(&text);
            Exit::Usage
        } else {
            let mut out = Out::stdout();
            out.print(&text);
            finish(out, Exit::Done)
        }
    })
}

/// Runs a command to its end; a panic in it is a fault like others.
fn block_on(command: impl Future<Output = Result<Exit, Fault>>) -> Result<Exit, Fault> {
    // The error says that another provider was installed first, which nothing here does.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::of(code::START, &error).help("threads or file descriptors may have run out")
        })?;
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(command)));
    // Whatever still blocks (a name being resolved, a reader of stdin) must not keep the process.
    runtime.shutdown_background();
    ended.unwrap_or_else(|_| {
        let failure = Failure::new(code::BUG, "a bug in reconciled ended the command");
        Err(failure
            .help("please report the place named above; nothing that was committed is lost")
            .into())
    })
}

/// A panic before logging is set up is one line, not a backtrace; its text may hold a value and is left out.
fn say_panics_in_words() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        complain(&format!("panicked at {place}\n"));
    }));
}

/// An answer that could not be printed is no answer; one that nobody wanted to read to its end is.
fn finish(out: Out, exit: Exit) -> Exit {
    match out.failure() {
        Some(error) => {
            let failure = Failure::of(code::OUTPUT, &error)
                .help("the answer is incomplete: is the disk full?");
            complain(&failure.render());
            Exit::Failed
        }
        None => exit,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_teaches_with_an_example_and_a_next_command() {
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let long = command.clone().render_long_help().to_string();
            assert!(long.contains("Example"), "{name}: {long}");
            assert!(long.contains("Next:"), "{name}: {long}");
        }
    }

    #[test]
    fn globals_are_accepted_before_and_after_the_command() {
        let arguments = [
            "reconciled",
            "--set",
            "a.b=1",
            "--config",
            "x.toml",
            "check",
            "--set",
            "c.d=2",
            "--no-color",
        ];
        let merged = context::merge_globals(arguments.map(Into::into));
        let cli = Cli::try_parse_from(merged).expect("they parse");
        assert_eq!(cli.global.set, ["a.b=1", "c.d=2"]);
        assert_eq!(cli.global.config, Some("x.toml".into()));
        assert!(cli.global.no_color);
    }

    #[test]
    fn a_mistyped_command_is_met_with_the_nearest() {
        let error = Cli::try_parse_from(["reconciled", "chek"]).expect_err("no such command");
        assert!(error.render().to_string().contains("check"));
    }
}
