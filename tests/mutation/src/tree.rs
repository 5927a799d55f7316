//! A copy of the package with mutants in it, and the compiler's verdict on each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::ledger::{Ledger, Outcome};
use crate::mutant::Mutant;
use crate::weave::weave;

/// The copy, and where the compiler puts what it makes of it.
pub struct Tree {
    source: PathBuf,
    copy: PathBuf,
    target: PathBuf,
}

/// A program that holds tests.
pub struct TestProgram {
    /// The name of its target.
    pub name: String,
    /// Its path.
    pub path: PathBuf,
}

impl Tree {
    /// Of the package at `source`, below `directory`.
    pub fn new(source: &Path, directory: &Path) -> Tree {
        Tree {
            source: source.to_owned(),
            copy: directory.join("tree"),
            target: directory.join("target"),
        }
    }

    /// Where the tests run.
    pub fn root(&self) -> &Path {
        &self.copy
    }

    /// Copies everything that is under version control but what is woven; what is as it was keeps its time.
    ///
    /// # Errors
    /// When git does not answer, or the disk does not take it.
    pub fn copy(&self, mutants: &[Mutant]) -> Result<()> {
        // A file that was woven would be compiled anew for having been as it was in between.
        let is_woven =
            |file: &str| file == "src/lib.rs" || mutants.iter().any(|mutant| mutant.file == file);
        let listed = Command::new("git")
            .arg("ls-files")
            .arg("-z")
            .current_dir(&self.source)
            .output()
            .context("git ls-files")?;
        if !listed.status.success() {
            bail!("git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
        }
        for file in String::from_utf8(listed.stdout)?
            .split('\0')
            .filter(|file| !file.is_empty() && !file.starts_with("tests/mutation/"))
            .filter(|file| !is_woven(file))
        {
            let from = self.source.join(file);
            if from.is_file() {
                let to = self.copy.join(file);
                write_changed(&to, &fs::read(&from)?)?;
                fs::set_permissions(&to, fs::metadata(&from)?.permissions())?;
            }
        }
        Ok(())
    }

    /// Weaves mutants into the copy, without those that do not compile: the ledger says which, and learns of more.
    ///
    /// # Errors
    /// When the compiler complains of something that is no mutant's.
    pub fn weave(&self, mutants: &[Mutant], ledger: &mut Ledger) -> Result<()> {
        let mut files: BTreeMap<&str, Vec<&Mutant>> = BTreeMap::new();
        for mutant in mutants {
            files.entry(&mutant.file).or_default().push(mutant);
        }
        let library = fs::read_to_string(self.source.join("src/lib.rs"))?;
        let library = format!("{library}\n#[allow(missing_docs)]\nmod mutation;\n");
        write_changed(&self.copy.join("src/lib.rs"), library.as_bytes())?;
        write_changed(
            &self.copy.join("src/mutation.rs"),
            include_bytes!("switch.rs"),
        )?;

        loop {
            let mut places: BTreeMap<String, Vec<(Range<usize>, usize)>> = BTreeMap::new();
            for (file, mutants) in &files {
                let fit = mutants.iter().filter(|mutant| !ledger.is_unfit(mutant.id));
                let fit: Vec<&Mutant> = fit.copied().collect();
                let woven = weave(&fs::read_to_string(self.source.join(file))?, &fit)
                    .with_context(|| (*file).to_owned())?;
                for id in woven.left_out {
                    ledger.record(id, Outcome::Unfit("no place was found for it".to_owned()))?;
                }
                write_changed(&self.copy.join(file), woven.text.as_bytes())?;
                places.insert((*file).to_owned(), woven.places);
            }
            let errors = self.check()?;
            if errors.is_empty() {
                return Ok(());
            }
            let mut blamed = BTreeMap::new();
            for error in &errors {
                let message = error["message"].as_str().unwrap_or_default();
                for id in blame(error, &places) {
                    blamed.entry(id).or_insert_with(|| message.to_owned());
                }
            }
            if blamed.is_empty() {
                let rendered = errors[0]["rendered"].as_str().unwrap_or_default();
                bail!("the compiler complains of no mutant:\n{rendered}");
            }
            println!("{} errors: {} do not compile", errors.len(), blamed.len());
            for (id, message) in blamed {
                ledger.record(id, Outcome::Unfit(message))?;
            }
        }
    }

    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("cargo");
        command
            .args(arguments)
            .args(["--locked", "--message-format=json"])
            .current_dir(&self.copy);
        command
            .env("CARGO_TARGET_DIR", &self.target)
            .env("RUSTFLAGS", "-Awarnings")
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command
    }

    /// What the compiler refuses.
    fn check(&self) -> Result<Vec<Value>> {
        let output = self
            .cargo(&["check", "--lib"])
            .output()
            .context("cargo check")?;
        let errors: Vec<Value> = messages(&output.stdout)
            .filter(|message| {
                message["reason"] == "compiler-message" && message["message"]["level"] == "error"
            })
            .map(|mut message| message["message"].take())
            .filter(|message| !message["spans"].as_array().is_none_or(Vec::is_empty))
            .collect();
        if errors.is_empty() && !output.status.success() {
            bail!("cargo check failed and does not say where");
        }
        Ok(errors)
    }

    /// Builds the unit tests, the integration tests and the daemon that these start.
    ///
    /// # Errors
    /// When something does not compile.
    pub fn build(&self) -> Result<Vec<TestProgram>> {
        let output = self
            .cargo(&["test", "--no-run", "--lib", "--bins", "--tests"])
            .output()
            .context("cargo test")?;
        if !output.status.success() {
            let error =
                messages(&output.stdout).find(|message| message["message"]["level"] == "error");
            bail!(
                "the tests do not compile:\n{}",
                error
                    .map(|error| error["message"]["rendered"].to_string())
                    .unwrap_or_default()
            );
        }
        Ok(messages(&output.stdout)
            .filter(|message| {
                message["reason"] == "compiler-artifact" && message["profile"]["test"] == true
            })
            .filter_map(|message| {
                let path = message["executable"].as_str()?.into();
                let main = message["target"]["kind"][0] == "bin";
                (!main).then(|| TestProgram {
                    name: message["target"]["name"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned(),
                    path,
                })
            })
            .collect())
    }
}

/// Writes what differs from what is there, so that nothing else is compiled anew.
fn write_changed(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    fs::create_dir_all(path.parent().context("a file without a directory")?)?;
    fs::write(path, content).with_context(|| path.display().to_string())
}

fn messages(output: &[u8]) -> impl Iterator<Item = Value> {
    output
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
}

/// The mutants that an error lies in: by its primary places, else by all that it names, else the last one that these enclose. So it is with an
/// arm that others need: the compiler names the `match` and where a further arm would stand.
fn blame(error: &Value, places: &BTreeMap<String, Vec<(Range<usize>, usize)>>) -> BTreeSet<usize> {
    let mut spans: Vec<&Value> = Vec::new();
    collect(error, &mut spans);
    let place = |span: &Value| {
        let at = usize::try_from(span["byte_start"].as_u64()?).ok()?;
        Some((at, places.get(span["file_name"].as_str()?)?))
    };
    let within = |primary: bool| {
        spans
            .iter()
            .filter(|span| !primary || span["is_primary"] == true)
            .filter_map(|span| {
                let (at, places) = place(span)?;
                let (_, id) = places.iter().find(|(place, _)| place.contains(&at))?;
                Some(*id)
            })
            .collect::<BTreeSet<usize>>()
    };
    let enclosed = || {
        let ends: Vec<_> = spans.iter().filter_map(|span| place(span)).collect();
        let (from, places) = *ends.iter().min_by_key(|(at, _)| at)?;
        let (to, _) = *ends.iter().max_by_key(|(at, _)| at)?;
        let (_, id) = places
            .iter()
            .rfind(|(place, _)| (from..to).contains(&place.start))?;
        Some(*id)
    };
    [
        within(true),
        within(false),
        enclosed().into_iter().collect(),
    ]
    .into_iter()
    .find(|blamed| !blamed.is_empty())
    .unwrap_or_default()
}

/// The places of a message and of what explains it.
fn collect<'a>(message: &'a Value, spans: &mut Vec<&'a Value>) {
    spans.extend(message["spans"].as_array().into_iter().flatten());
    for child in message["children"].as_array().into_iter().flatten() {
        collect(child, spans);
    }
}
