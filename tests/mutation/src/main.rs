//! Tries a sample of the changes that `cargo mutants` lists, all of them built into one program.
//!
//! A build for each change would take weeks where the tests need the whole program. So every change of the sample is woven into one copy of the
//! source behind a switch (`weave`), what does not compile is taken out again (`tree`), each test says by itself which changes it comes by, and
//! each change is then tried by the tests that come by it, until one fails (`trial`).

mod ledger;
mod mutant;
mod tree;
mod trial;
mod weave;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::ledger::{Ledger, Outcome};
use crate::mutant::Mutant;
use crate::tree::Tree;
use crate::trial::{Known, Test, Trials};

const HELP: &str = "\
Usage: tests/mutants everywhere [--sample N] [--seed TEXT] [--jobs N] [--longest SECONDS] [--patience SECONDS] [--again]

  --sample N           how many changes to try, chosen by chance [300]; 0 tries all
  --seed TEXT          chooses others
  --jobs N             how many tests run at once [2]
  --longest SECONDS    a test that takes longer by itself is left out [30]
  --patience SECONDS   how long one change may be tried [240]
  --again              also those that were tried before and not noticed

What was said is kept below target/mutants/everywhere: outcomes-….txt, one line a change, from which a further run over the same source goes on,
and missed.txt. After new tests, --again tries what no test had noticed.
Ends with 0 when at least nine of ten were noticed.";

struct Options {
    list: PathBuf,
    sample: usize,
    seed: String,
    jobs: usize,
    longest: Duration,
    patience: Duration,
    again: bool,
}

fn options() -> Result<Option<Options>> {
    let mut arguments = std::env::args().skip(1);
    let list = arguments
        .next()
        .context("the list of changes is missing")?
        .into();
    let mut options = Options {
        list,
        sample: 300,
        seed: String::new(),
        jobs: 2,
        longest: Duration::from_secs(30),
        patience: Duration::from_secs(240),
        again: false,
    };
    while let Some(argument) = arguments.next() {
        if argument == "--help" || argument == "-h" {
            return Ok(None);
        }
        if argument == "--again" {
            options.again = true;
            continue;
        }
        let value = arguments
            .next()
            .with_context(|| format!("{argument} wants a value"))?;
        let number = || {
            value
                .parse::<usize>()
                .with_context(|| format!("{argument} wants a number, not {value:?}"))
        };
        match argument.as_str() {
            "--sample" => options.sample = number()?,
            "--seed" => options.seed = value,
            "--jobs" => options.jobs = number()?.max(1),
            "--longest" => options.longest = Duration::from_secs(number()? as u64),
            "--patience" => options.patience = Duration::from_secs(number()? as u64),
            _ => bail!("{argument} is unknown\n\n{HELP}"),
        }
    }
    Ok(Some(options))
}

fn main() -> Result<ExitCode> {
    let Some(options) = options()? else {
        println!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    };
    let source = std::env::current_dir()?;
    let directory = options
        .list
        .parent()
        .context("the list is nowhere")?
        .canonicalize()?;
    let read = |file: &str| fs::read_to_string(source.join(file)).with_context(|| file.to_owned());
    let list = fs::read_to_string(&options.list)?;
    let all = mutant::listed(&list, read)?;
    let count = all.len();
    let chosen = sample(all, options.sample, &options.seed);
    println!("{} of {count} changes", chosen.len());

    // What came of a change holds for the source that it was listed from.
    let of_source = fingerprint(&list, "");
    let outcomes = directory.join(format!("outcomes-{of_source:016x}.txt"));
    let mut ledger = Ledger::open(&outcomes, &chosen)?;
    let tree = Tree::new(&source, &directory);
    tree.copy(&chosen)?;
    let begin = Instant::now();
    tree.weave(&chosen, &mut ledger)?;
    let fit: Vec<&Mutant> = chosen
        .iter()
        .filter(|mutant| !ledger.is_unfit(mutant.id))
        .collect();
    println!(
        "{} of them compile; {} s",
        fit.len(),
        begin.elapsed().as_secs()
    );
    let programs = tree.build()?;
    println!("everything is built; {} s", begin.elapsed().as_secs());

    let trials = Trials {
        root: tree.root(),
        scratch: &directory,
        jobs: options.jobs,
        longest: options.longest,
        patience: options.patience,
    };
    // What a test comes by holds for the programs that it was seen with.
    let mut built = String::new();
    for program in &programs {
        let changed_at = fs::metadata(&program.path)?.modified()?;
        built.push_str(&format!("{} {changed_at:?}\n", program.path.display()));
    }
    let kept = directory.join(format!("tests-{:016x}.json", fingerprint(&built, "")));
    let known = trials.meet(&programs, Known::read(&kept)?)?;
    known.write(&kept)?;
    println!(
        "{} tests; {} s",
        known.tests.len(),
        begin.elapsed().as_secs()
    );

    let ledger = try_all(&trials, &known.tests, &fit, ledger, options.again)?;
    report(&chosen, &ledger, &directory.join("missed.txt"))
}

/// Some of them, the same ones for the same seed, in an order of chance.
fn sample(mut all: Vec<Mutant>, count: usize, seed: &str) -> Vec<Mutant> {
    if count == 0 || count >= all.len() {
        return all;
    }
    all.sort_by_cached_key(|mutant| fingerprint(&mutant.name, seed));
    all.truncate(count);
    all
}

/// FNV-1a, 64 bits.
fn fingerprint(text: &str, seed: &str) -> u64 {
    seed.bytes()
        .chain(text.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

/// Tries those of which nothing is known, or `again` all that were not noticed.
fn try_all(
    trials: &Trials<'_>,
    tests: &[Test],
    fit: &[&Mutant],
    ledger: Ledger,
    again: bool,
) -> Result<Ledger> {
    let is_left = |id: &usize| match ledger.of(*id) {
        None => true,
        Some(outcome) => again && !matches!(outcome, Outcome::Noticed(_)),
    };
    let left: Vec<usize> = fit.iter().map(|mutant| mutant.id).filter(is_left).collect();
    println!(
        "{} to try, {} were tried before",
        left.len(),
        fit.len() - left.len()
    );
    let names: BTreeMap<usize, &str> = fit
        .iter()
        .map(|mutant| (mutant.id, mutant.name.as_str()))
        .collect();
    let begin = Instant::now();
    let state = Mutex::new((ledger, 0_usize, Ok(())));
    trials.try_out(tests, &left, |id, outcome| {
        if !matches!(outcome, Outcome::Noticed(_)) {
            println!("{}: {}", outcome.word(), names[&id]);
        }
        let mut state = state.lock().expect("no worker panics");
        if let Err(error) = state.0.record(id, outcome) {
            state.2 = Err(error);
        }
        state.1 += 1;
        if state.1 % 25 == 0 {
            println!(
                "{} of {} tried in {} s",
                state.1,
                left.len(),
                begin.elapsed().as_secs()
            );
        }
    });
    let (ledger, _, recorded) = state.into_inner().expect("no worker panics");
    recorded.map(|()| ledger)
}

/// Prints how each part of the program fared, and writes what was missed.
fn report(chosen: &[Mutant], ledger: &Ledger, missed: &Path) -> Result<ExitCode> {
    const WORDS: [&str; 5] = ["noticed", "survived", "unmet", "undecided", "unfit"];
    let part = |file: &str| {
        file.split('/')
            .nth(1)
            .unwrap_or(file)
            .trim_end_matches(".rs")
            .to_owned()
    };
    let mut parts: BTreeMap<String, BTreeMap<&str, usize>> = BTreeMap::new();
    let mut list = String::new();
    for mutant in chosen {
        let Some(outcome) = ledger.of(mutant.id) else {
            continue;
        };
        for name in [part(&mutant.file), "~ all".to_owned()] {
            *parts
                .entry(name)
                .or_default()
                .entry(outcome.word())
                .or_default() += 1;
        }
        if !matches!(outcome, Outcome::Noticed(_) | Outcome::Unfit(_)) {
            list.push_str(&format!("{}: {}\n", outcome.word(), mutant.name));
        }
    }
    fs::write(missed, list)?;
    let line = |name: &str, values: [String; 5]| {
        println!(
            "{:<12}{}",
            name.trim_start_matches("~ "),
            values.map(|value| format!("{value:>11}")).concat()
        );
    };
    line("", WORDS.map(str::to_owned));
    for (name, fared) in &parts {
        line(
            name,
            WORDS.map(|word| fared.get(word).unwrap_or(&0).to_string()),
        );
    }
    let all = parts.get("~ all").cloned().unwrap_or_default();
    let noticed = all.get("noticed").copied().unwrap_or(0);
    let tried = all.values().sum::<usize>() - all.get("unfit").copied().unwrap_or(0);
    println!(
        "\n{noticed} of {tried} that compile were noticed, {} of a thousand.",
        noticed * 1000 / tried.max(1)
    );
    Ok(if noticed * 10 >= tried * 9 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    })
}
