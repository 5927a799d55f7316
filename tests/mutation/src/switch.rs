//! Which mutant is on, and which were come by.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::{LazyLock, Mutex};

/// Also read by children: the variable is inherited.
static ON: LazyLock<Option<usize>> = LazyLock::new(|| std::env::var("MUTATION_ON").ok()?.parse().ok());

/// Where each that is come by is written, once for each process.
static MET: LazyLock<Option<Mutex<(HashSet<usize>, File)>>> = LazyLock::new(|| {
    let path = std::env::var_os("MUTATION_MET")?;
    let file = OpenOptions::new().append(true).create(true).open(path).ok()?;
    Some(Mutex::new((HashSet::new(), file)))
});

/// Whether this mutant is on.
pub(crate) fn on(id: usize) -> bool {
    if let Some(met) = &*MET
        && let Ok(mut met) = met.lock()
        && met.0.insert(id)
    {
        let _ = met.1.write_all(format!("{id}\n").as_bytes());
    }
    *ON == Some(id)
}
