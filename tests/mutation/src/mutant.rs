//! What `cargo mutants --list --json` would change.

use std::ops::Range;

use anyhow::{Context, Result};
use serde::Deserialize;

/// One change of the source: another value, another operator, an arm less.
#[derive(Debug, Clone)]
pub struct Mutant {
    /// What the woven program knows it by: its place in the list.
    pub id: usize,
    /// What it changes, where and to what, as `cargo mutants` says it.
    pub name: String,
    /// The file, from the root of the package.
    pub file: String,
    /// What kind of change it is.
    pub genre: Genre,
    /// The bytes of the file that it replaces.
    pub span: Range<usize>,
    /// What it puts there.
    pub replacement: String,
    /// What the function that it lies in returns, with an arrow before it.
    pub returns: String,
}

/// The kinds of changes, by the names that `cargo mutants` gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Genre {
    /// A function returns something else at once.
    FnValue,
    /// Another operator between the same operands.
    BinaryOperator,
    /// No `!` or `-`.
    UnaryOperator,
    /// An arm is missing from a match that has a `_`.
    MatchArm,
    /// The guard of an arm is `true` or `false`.
    MatchArmGuard,
    /// A field comes from the struct's base.
    StructField,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    file: String,
    span: Span,
    replacement: String,
    genre: Genre,
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    return_type: String,
}

#[derive(Deserialize)]
struct Span {
    start: Place,
    end: Place,
}

/// Both count from one; the column counts characters.
#[derive(Deserialize)]
struct Place {
    line: usize,
    column: usize,
}

impl Place {
    fn offset(&self, text: &str) -> Option<usize> {
        let line: usize = text
            .split_inclusive('\n')
            .take(self.line - 1)
            .map(str::len)
            .sum();
        let column = text
            .get(line..)?
            .char_indices()
            .nth(self.column - 1)
            .map_or(text.len() - line, |(at, _)| at);
        Some(line + column)
    }
}

/// The mutants of a list, with the bytes that they replace in the files that `read` gives.
pub fn listed(json: &str, mut read: impl FnMut(&str) -> Result<String>) -> Result<Vec<Mutant>> {
    let list: Vec<Listed> = serde_json::from_str(json).context("the list of mutants")?;
    let mut mutants = Vec::with_capacity(list.len());
    for (id, one) in list.into_iter().enumerate() {
        let text = read(&one.file)?;
        let start = one
            .span
            .start
            .offset(&text)
            .context("a mutant beyond the end of its file")?;
        let end = one
            .span
            .end
            .offset(&text)
            .context("a mutant beyond the end of its file")?;
        mutants.push(Mutant {
            id,
            name: one.name,
            file: one.file,
            genre: one.genre,
            span: start..end,
            replacement: one.replacement,
            returns: one
                .function
                .map(|function| function.return_type)
                .unwrap_or_default(),
        });
    }
    Ok(mutants)
}
