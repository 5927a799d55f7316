//! The size of the program.

use std::process::Command;

use crate::figure::{Bar, Figure};
use crate::support::directory::Directory;

/// The program of this run without its symbols. Only a release build's says something of a release.
pub(crate) fn program() -> Vec<Figure> {
    let directory = Directory::new(None);
    let stripped = directory.path().join("reconciled");
    let done = Command::new("strip")
        .arg("-o")
        .arg(&stripped)
        .arg(crate::program())
        .status()
        .expect("binutils comes with the linker");
    assert!(done.success());
    let bytes = std::fs::metadata(&stripped).expect("strip wrote it").len();
    let mut figure = Figure::new("program, stripped", "MB", Bar::AtMost(20.0));
    figure.push(super::megabytes(bytes));
    vec![figure]
}
