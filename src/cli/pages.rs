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
    entries.into_iter().flatten().map(read).collect()
}
