//! Which tests come by a mutant, and whether one of them notices it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::ledger::Outcome;
use crate::tree::TestProgram;

/// A test, run alone in a process of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Test {
    /// The program that holds it.
    pub program: PathBuf,
    /// The target of that program.
    pub target: String,
    /// Its name there.
    pub name: String,
    /// How long it takes with no mutant on.
    pub takes: Duration,
    /// The mutants that it comes by, itself or in a process that it starts.
    pub meets: BTreeSet<usize>,
}

/// How a run of a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    Late,
}

/// How tests are run.
pub struct Trials<'a> {
    /// The package's root.
    pub root: &'a Path,
    /// For what a test says.
    pub scratch: &'a Path,
    /// How many run at once.
    pub jobs: usize,
    /// A test that takes longer by itself is left out.
    pub longest: Duration,
    /// How long one mutant may be tried.
    pub patience: Duration,
}

impl Trials<'_> {
    /// Runs every test by itself, of those that are known already only the ones that there is more time for now. Those that
    /// fail, or take too long, are told and left out.
    ///
    /// # Errors
    /// When a program does not list its tests.
    pub fn meet(&self, programs: &[TestProgram], known: Option<Known>) -> Result<Known> {
        let is_new = known.is_none();
        let mut known = known.unwrap_or_default();
        let late = known
            .late
            .iter()
            .filter(|(_, _, limit)| *limit < self.longest);
        let again: BTreeSet<(PathBuf, String)> = late
            .map(|(program, name, _)| (program.clone(), name.clone()))
            .collect();
        known.late.retain(|(_, _, limit)| *limit >= self.longest);
        let mut names = Vec::new();
        for program in programs {
            let listed = Command::new(&program.path)
                .args(["--list", "--format", "terse"])
                .current_dir(self.root)
                .output()?;
            for line in String::from_utf8(listed.stdout)?.lines() {
                if let Some(name) = line.strip_suffix(": test")
                    && (is_new || again.contains(&(program.path.clone(), name.to_owned())))
                {
                    names.push((program, name.to_owned()));
                }
            }
        }
        let met = Mutex::new(known);
        let count = names.len();
        self.each(&names, |index, worker, (program, name)| {
            let path = self.scratch.join(format!("met-{worker}"));
            let _ = fs::remove_file(&path);
            let begin = Instant::now();
            let end = self.run(
                &program.path,
                name,
                (
                    "MUTATION_MET",
                    path.as_os_str().to_str().unwrap_or_default(),
                ),
                self.longest,
                worker,
            );
            let takes = begin.elapsed();
            let mut known = met.lock().expect("no worker panics");
            if end == End::Passed {
                let meets = fs::read_to_string(&path)
                    .unwrap_or_default()
                    .lines()
                    .filter_map(|line| line.parse().ok())
                    .collect();
                let test = Test {
                    program: program.path.clone(),
                    target: program.name.clone(),
                    name: name.clone(),
                    takes,
                    meets,
                };
                known.tests.push(test);
            } else if end == End::Late {
                println!("left out: {} {name}: takes too long", program.name);
                let late = (program.path.clone(), name.clone(), self.longest);
                known.late.push(late);
            } else {
                println!("left out: {} {name}: fails", program.name);
            }
            drop(known);
            if index % 100 == 99 {
                println!("{} of {count} tests run", index + 1);
            }
        });
        Ok(met.into_inner().expect("no worker panics"))
    }

    /// Tries mutants, and gives each outcome to `told` as it comes.
    pub fn try_out(&self, tests: &[Test], mutants: &[usize], told: impl Fn(usize, Outcome) + Sync) {
        self.each(mutants, |_, worker, mutant| {
            told(*mutant, self.try_one(tests, *mutant, worker))
        });
    }

    /// The tests that come by it, one after another: first the unit tests, and of these and the others the ones that come by
    /// the fewest mutants in the shortest time.
    fn try_one(&self, tests: &[Test], mutant: usize, worker: usize) -> Outcome {
        let mut meeting: Vec<&Test> = tests
            .iter()
            .filter(|test| test.meets.contains(&mutant))
            .collect();
        if meeting.is_empty() {
            return Outcome::Unmet;
        }
        let weight = |test: &Test| test.meets.len() as u128 * (test.takes.as_millis() + 20);
        meeting.sort_by_key(|test| weight(test));
        let begin = Instant::now();
        let mut passed = 0;
        for test in meeting {
            if begin.elapsed() > self.patience {
                return Outcome::Undecided(passed);
            }
            let limit = test.takes * 4 + Duration::from_secs(20);
            let id = mutant.to_string();
            match self.run(
                &test.program,
                &test.name,
                ("MUTATION_ON", &id),
                limit,
                worker,
            ) {
                End::Passed => passed += 1,
                // A test that fails without the mutant as well says nothing of it.
                _ if self.run(
                    &test.program,
                    &test.name,
                    ("MUTATION_ON", "none"),
                    limit,
                    worker,
                ) != End::Passed => {}
                _ => return Outcome::Noticed(format!("{} {}", test.target, test.name)),
            }
        }
        Outcome::Survived(passed)
    }

    /// Runs a test in a process group of its own, all of which ends with it.
    fn run(
        &self,
        program: &Path,
        name: &str,
        variable: (&str, &str),
        limit: Duration,
        worker: usize,
    ) -> End {
        let said = || {
            File::create(self.scratch.join(format!("said-{worker}")))
                .map_or_else(|_| Stdio::null(), Stdio::from)
        };
        let child = Command::new(program)
            .args(["--exact", name, "--test-threads=1"])
            .current_dir(self.root)
            .env(variable.0, variable.1)
            .env("CARGO_MANIFEST_DIR", self.root)
            .env("INSTA_WORKSPACE_ROOT", self.root)
            .env("INSTA_UPDATE", "no")
            .env("PROPTEST_MAX_SHRINK_ITERS", "64")
            .stdin(Stdio::null())
            .stdout(said())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        let Ok(mut child) = child else {
            return End::Failed;
        };
        let group = child.id();
        let begin = Instant::now();
        let mut pause = Duration::from_millis(2);
        let end = loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => break End::Passed,
                Ok(Some(_)) | Err(_) => break End::Failed,
                Ok(None) if begin.elapsed() > limit => break End::Late,
                Ok(None) => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        };
        let _ = Command::new("kill")
            .args(["-KILL", "--", &format!("-{group}")])
            .stderr(Stdio::null())
            .status();
        let _ = child.wait();
        end
    }

    fn each<T: Sync>(&self, items: &[T], work: impl Fn(usize, usize, &T) + Sync) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for worker in 0..self.jobs {
                let (next, work) = (&next, &work);
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(item) = items.get(index) else { break };
                        work(index, worker, item);
                    }
                });
            }
        });
    }
}

/// What is known of the tests from an earlier run over the same programs.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Known {
    /// Those that can try mutants.
    pub tests: Vec<Test>,
    /// Those that took longer than this.
    late: Vec<(PathBuf, String, Duration)>,
}

impl Known {
    /// What is kept, or nothing.
    ///
    /// # Errors
    /// When what is kept cannot be understood.
    pub fn read(path: &Path) -> Result<Option<Known>> {
        let Ok(kept) = fs::read(path) else {
            return Ok(None);
        };
        let known = serde_json::from_slice(&kept).with_context(|| path.display().to_string())?;
        Ok(Some(known))
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, serde_json::to_vec(self)?).with_context(|| path.display().to_string())
    }
}
