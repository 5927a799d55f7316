//! The `reconciled` binary.

fn main() {}
