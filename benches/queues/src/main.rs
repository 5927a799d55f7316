//! Measures the daemon's deliveries against a job per change on Rust job queues (docs/performance.md).
//!
//! Whole processes, durable databases, each ratio within one round, all sides by turns; what is shared with `cargo bench` is the
//! same code.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its output is a table"
)]

mod apalis;
#[path = "../../client.rs"]
mod client;
mod compare;
#[path = "../../deliver.rs"]
mod deliver;
#[path = "../../figure.rs"]
#[expect(dead_code, reason = "made for more measurements")]
mod figure;
mod graphile;
mod job;
#[path = "../../mock.rs"]
#[expect(dead_code, reason = "made for more measurements")]
mod mock;
#[path = "../../process.rs"]
#[expect(dead_code, reason = "made for more measurements")]
mod process;
#[path = "../../provider.rs"]
#[expect(dead_code, reason = "made for more measurements")]
mod provider;
mod queue;
#[expect(dead_code, reason = "made for the tests, of which it serves more")]
mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

use figure::{Figure, heading};
use queue::Queue;

const USAGE: &str = "\
Usage: cargo run --locked --release --manifest-path benches/queues/Cargo.toml

Compares deliveries of the daemon with a job per change on graphile_worker and apalis-postgres, in rounds by turns, prints a
table of medians with the least and greatest round, and keeps every round as JSON in target/bars/.

The daemon is target/release/reconciled, built before with `cargo build --release`, or what BARS_PROGRAM names.
BARS_CHANGES=3000 sends fewer changes. Needs Debian's PostgreSQL, which tests/run --install installs.
";

/// The program that was built before, or the one that `BARS_PROGRAM` names, to compare two versions.
fn program() -> PathBuf {
    std::env::var_os("BARS_PROGRAM")
        .map_or_else(|| target().join("release/reconciled"), PathBuf::from)
}

/// Where the daemon's own package is built.
fn target() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let above = package.ancestors().nth(2);
    above.expect("it is benches/queues").join("target")
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().expect("a number");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    match words[..] {
        ["enqueue", queue, database, count] => {
            let queue = Queue::named(queue);
            print_json(&runtime.block_on(queue::enqueue(queue, database, number(count))));
        }
        ["work", queue, database, mock, count] => {
            let queue = Queue::named(queue);
            print_json(&runtime.block_on(queue::work(queue, database, mock, number(count))));
        }
        [] if program().is_file() => {
            println!("{}", heading());
            let figures = runtime.block_on(compare::rounds());
            for figure in &figures {
                println!("{}", figure.line());
            }
            println!("\nkept in {}", keep(&figures).display());
        }
        [] => {
            let program = program();
            eprintln!("There is no daemon at {}.\n\n{USAGE}", program.display());
            return ExitCode::FAILURE;
        }
        ["--help" | "-h"] => print!("{USAGE}"),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn print_json(report: &impl Serialize) {
    println!(
        "{}",
        serde_json::to_string(report).expect("numbers are JSON")
    );
}

/// Writes the figures beside those of `cargo bench`.
fn keep(figures: &[Figure]) -> PathBuf {
    let directory = target().join("bars");
    std::fs::create_dir_all(&directory).expect("the target directory is writable");
    let path = directory.join(format!("queues-{}.json", std::process::id()));
    let report = json!({
        "program": program(),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "figures": figures,
    });
    let text = serde_json::to_string_pretty(&report).expect("figures are JSON");
    std::fs::write(&path, text).expect("the directory is writable");
    path
}
