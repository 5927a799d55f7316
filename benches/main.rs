//! Measures the daemon against its bars (docs/performance.md): whole processes, real databases, each ratio within one run.
//!
//! `cargo bench` measures everything and prints the table; words after `--` choose groups. Under `cargo test` the same runs on a
//! small scale: it must end with both sides agreeing and numbers for every row, and no time is judged.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its output is a table"
)]

mod bare;
mod client;
mod deliver;
mod figure;
mod mock;
mod outbox;
mod process;
mod provider;
mod rows;
#[path = "../tests/it/support/mod.rs"]
#[expect(dead_code, reason = "made for the tests, of which it serves more")]
mod support;

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use figure::{Figure, heading};
use mock::Mock;
use rows::{Scale, backlog, delivery, floor, listen, poll, size, sweep};
use support::database::Engine;

/// The groups of rows, in the order of the table.
const GROUPS: &[&str] = &[
    "delivery",
    "delivery-postgres",
    "delivery-apart",
    "delivery-mariadb",
    "secrets",
    "late",
    "sweep-postgres",
    "sweep-sqlite",
    "sweep-mariadb",
    "poll",
    "listen",
    "backlog",
    "floor",
    "size",
];

/// The program as this run built it, or the one that `BARS_PROGRAM` names, to compare two versions.
fn program() -> PathBuf {
    std::env::var_os("BARS_PROGRAM")
        .map_or_else(|| env!("CARGO_BIN_EXE_reconciled").into(), PathBuf::from)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        match words[..] {
            ["bare-send", url, in_flight, count] => {
                let number = |text: &str| text.parse().expect("a number");
                print_json(&bare::send(url, number(in_flight), number(count)).await);
            }
            ["mock"] => {
                println!("{}", Mock::start().url());
                std::future::pending().await
            }
            ["bare-scan", url] => print_json(&bare::scan(url).await),
            ["bare-outbox", path, tables, count] => {
                let count = count.parse().expect("a number");
                print_json(&outbox::write(path, outbox::Tables::of(tables), count));
            }
            ["bare-outbox-postgres", url, count] => {
                let count = count.parse().expect("a number");
                print_json(&outbox::postgres::write(url, count).await);
            }
            ["bare-scan-in-thread", url] => print_json(&bare::scan_in_thread(url)),
            _ => measure(&words).await,
        }
    });
}

fn print_json(report: &bare::Report) {
    println!(
        "{}",
        serde_json::to_string(report).expect("numbers are JSON")
    );
}

async fn measure(words: &[&str]) {
    // `cargo bench` says so; `cargo test` does not.
    let is_full = words.contains(&"--bench");
    let scale = if is_full { Scale::FULL } else { Scale::SHORT };
    let scale = scale.or_asked_for();
    let chosen: Vec<&str> = words
        .iter()
        .copied()
        .filter(|word| !word.starts_with('-'))
        .collect();
    for word in &chosen {
        assert!(GROUPS.contains(word), "{word} is none of {GROUPS:?}");
    }
    let mock = Mock::start();
    let mut figures: Vec<Figure> = Vec::new();
    println!("{}", heading());
    for group in GROUPS {
        if !chosen.is_empty() && !chosen.contains(group) {
            continue;
        }
        let started = Instant::now();
        let measured = match *group {
            "delivery" => delivery::at_once(scale, &mock).await,
            "delivery-postgres" => delivery::shared(scale, &mock).await,
            "delivery-apart" => delivery::apart(scale, &mock).await,
            "delivery-mariadb" => delivery::from_mariadb(scale, &mock).await,
            "secrets" => delivery::secrets(scale, &mock).await,
            "late" => delivery::answered_late(scale, &mock).await,
            "sweep-postgres" => sweep::unchanged(scale, &mock, Engine::Postgres).await,
            "sweep-sqlite" => sweep::unchanged(scale, &mock, Engine::Sqlite).await,
            "sweep-mariadb" => sweep::unchanged(scale, &mock, Engine::MariaDb).await,
            "poll" => poll::polls(scale, &mock).await,
            "listen" => listen::instant(scale, &mock).await,
            "backlog" => backlog::drained(scale, &mock).await,
            "floor" => floor::written(scale, &mock).await,
            "size" => size::program(),
            other => unreachable!("{other} is no group"),
        };
        assert!(!measured.is_empty());
        for figure in &measured {
            println!("{}", figure.line());
        }
        eprintln!("({group}: {:.0} s)", started.elapsed().as_secs_f64());
        figures.extend(measured);
    }
    if is_full {
        println!("\nkept in {}", keep(&figures).display());
    }
}

/// Writes the figures beside the other results of the build.
fn keep(figures: &[Figure]) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bars");
    std::fs::create_dir_all(&directory).expect("the target directory is writable");
    let path = directory.join(format!("{}.json", std::process::id()));
    let report = json!({
        "program": program(),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "figures": figures,
    });
    let text = serde_json::to_string_pretty(&report).expect("figures are JSON");
    std::fs::write(&path, text).expect("the directory is writable");
    path
}
