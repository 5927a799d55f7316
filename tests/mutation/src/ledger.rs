//! What came of each mutant, kept in a file from which a further run goes on.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::mutant::Mutant;

/// What came of a mutant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is no program: this is what the compiler says.
    Unfit(String),
    /// This test failed.
    Noticed(String),
    /// None of this many tests did.
    Survived(usize),
    /// No test comes by it.
    Unmet,
    /// There was no time for all of them: this many passed.
    Undecided(usize),
}

impl Outcome {
    /// One word.
    pub fn word(&self) -> &'static str {
        match self {
            Outcome::Unfit(_) => "unfit",
            Outcome::Noticed(_) => "noticed",
            Outcome::Survived(_) => "survived",
            Outcome::Unmet => "unmet",
            Outcome::Undecided(_) => "undecided",
        }
    }

    fn detail(&self) -> String {
        match self {
            Outcome::Unfit(text) | Outcome::Noticed(text) => text.replace(['\t', '\n'], " "),
            Outcome::Survived(tests) | Outcome::Undecided(tests) => tests.to_string(),
            Outcome::Unmet => String::new(),
        }
    }

    fn parse(word: &str, detail: &str) -> Option<Outcome> {
        Some(match word {
            "unfit" => Outcome::Unfit(detail.to_owned()),
            "noticed" => Outcome::Noticed(detail.to_owned()),
            "survived" => Outcome::Survived(detail.parse().ok()?),
            "unmet" => Outcome::Unmet,
            "undecided" => Outcome::Undecided(detail.parse().ok()?),
            _ => return None,
        })
    }
}

/// The outcomes of some mutants: a line each of word, detail and name, with tabs between.
pub struct Ledger {
    file: File,
    names: BTreeMap<usize, String>,
    outcomes: BTreeMap<usize, Outcome>,
}

impl Ledger {
    /// What the file says of these mutants; of others it may say more.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, mutants: &[Mutant]) -> Result<Ledger> {
        let ids: BTreeMap<&str, usize> = mutants
            .iter()
            .map(|mutant| (mutant.name.as_str(), mutant.id))
            .collect();
        let outcomes = fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| {
                let mut parts = line.splitn(3, '\t');
                let outcome = Outcome::parse(parts.next()?, parts.next()?)?;
                Some((*ids.get(parts.next()?)?, outcome))
            })
            .collect();
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| path.display().to_string())?;
        let names = mutants
            .iter()
            .map(|mutant| (mutant.id, mutant.name.clone()))
            .collect();
        Ok(Ledger {
            file,
            names,
            outcomes,
        })
    }

    /// Keeps an outcome.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn record(&mut self, id: usize, outcome: Outcome) -> Result<()> {
        let name = &self.names[&id];
        writeln!(
            self.file,
            "{}\t{}\t{name}",
            outcome.word(),
            outcome.detail()
        )?;
        self.outcomes.insert(id, outcome);
        Ok(())
    }

    /// What is known of a mutant.
    pub fn of(&self, id: usize) -> Option<&Outcome> {
        self.outcomes.get(&id)
    }

    /// Whether a mutant is known to be no program.
    pub fn is_unfit(&self, id: usize) -> bool {
        matches!(self.of(id), Some(Outcome::Unfit(_)))
    }
}
