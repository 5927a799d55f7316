//! Keeps `deploy/man` and `deploy/completions` true: they are what clap makes of the command line, file by file.
//!
//! After a change of an option or a help text write them anew:
//! `RECONCILED_WRITE_PAGES=1 cargo test --lib cli::pages`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_complete::Shell;
use tempfile::TempDir;

use super::Cli;

/// Set, the files are written instead of compared.
const WRITE: &str = "RECONCILED_WRITE_PAGES";

/// Contents by name.
type Files = BTreeMap<PathBuf, String>;

#[test]
fn the_manual_pages_are_those_of_the_command_line() {
    let made = TempDir::new().expect("a directory");
    clap_mangen::generate_to(Cli::command(), made.path()).expect("it is writable");
    let pages = files(made.path());
    assert!(
        pages.contains_key(Path::new("reconciled-outbox-list.1")),
        "every command has a page"
    );
    keep("man", &pages);
}

#[test]
fn the_completions_are_those_of_the_command_line() {
    let made = TempDir::new().expect("a directory");
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut command = Cli::command();
        clap_complete::generate_to(shell, &mut command, "reconciled", made.path())
            .expect("it is writable");
    }
    keep("completions", &files(made.path()));
}

/// Compares the folder of `deploy` with what was made, or writes it.
fn keep(folder: &str, made: &Files) {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(folder);
    if std::env::var_os(WRITE).is_some() {
        // What belongs to no command any more goes.
        let _ = std::fs::remove_dir_all(&kept);
        std::fs::create_dir_all(&kept).expect("the repository is writable");
        for (name, text) in made {
            std::fs::write(kept.join(name), text).expect("the repository is writable");
        }
    }
    let kept = files(&kept);
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    let how = format!("write deploy/{folder} anew: {WRITE}=1 cargo test --lib cli::pages");
    assert_eq!(names(&kept), names(made), "{how}");
    for (name, text) in made {
        assert!(kept[name] == *text, "{} differs; {how}", name.display());
    }
}

fn files(folder: &Path) -> Files {
    let entries = std::fs::read_dir(folder);
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("readable").path();
        let text = std::fs::read_to_string(&path).expect("it is text");
        (path.file_name().expect("a file").into(), text)
    };
    // A folder that is not there holds nothing.
    let entries = entries.into_iter().flatten();
    let is_file = |entry: &std::io::Result<std::fs::DirEntry>| {
        entry.as_ref().is_ok_and(|entry| entry.path().is_file())
    };
    entries.filter(is_file).map(read).collect()
}

#[test]
fn every_command_in_the_documentation_is_one() {
    let (mut seen, mut wrong) = (0, Vec::new());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = files(&root.join("docs"));
    let readme = std::fs::read_to_string(root.join("README.md"));
    pages.insert("README.md".into(), readme.expect("it is there"));
    for (page, text) in &pages {
        for words in commands(text) {
            let parsed = Cli::command().try_get_matches_from(&words);
            let is_sound = parsed.is_ok()
                || Cli::command()
                    .try_get_matches_from(words.iter().cloned().chain(["--help".to_owned()]))
                    .is_err_and(|error| {
                        error.kind() == clap::error::ErrorKind::DisplayHelp
                            && words.iter().all(|word| !word.starts_with('-'))
                    });
            if !is_sound {
                wrong.push(format!("{}: {}", page.display(), words.join(" ")));
            }
            seen += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 40, "only {seen} commands were found");
}

/// The program's commands in code spans and blocks, as words, with something in the place of placeholders.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut in_block = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            found.push(line.trim().trim_start_matches("$ "));
        } else {
            found.extend(line.split('`').skip(1).step_by(2));
        }
    }
    let is_command = |code: &&str| {
        let code = code.trim_start_matches("sudo ");
        // The first line of `check` begins with the version.
        code.strip_prefix("reconciled ")
            .is_some_and(|rest| !rest.starts_with(char::is_numeric))
            && !code.contains(" / ")
    };
    found
        .into_iter()
        .filter(is_command)
        .map(|code| words(code.trim_start_matches("sudo ")))
        .filter(|words| words.len() > 1)
        .collect()
}

/// The words of the first command of a line of shell.
fn words(code: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut in_quotes = false;
    for c in code.chars() {
        match c {
            '"' => in_quotes = !in_quotes,
            ' ' if !in_quotes => words.extend(Some(std::mem::take(&mut word))),
            '…' if in_quotes => word.push_str("text"),
            c => word.push(c),
        }
    }
    words.push(word);
    let ends = |word: &String| {
        matches!(word.as_str(), "#" | "|" | "&&" | "&" | ";" | "…" | "or") || word.starts_with('>')
    };
    let words = words.into_iter().filter(|word| !word.is_empty());
    words
        .take_while(|word| !ends(word))
        .map(|word| match word.as_str() {
            "ENTRY" | "ID" => "1".to_owned(),
            _ => word,
        })
        .collect()
}
