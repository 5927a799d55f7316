//! A row of the source query.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| reconciled::fuzzing::row(bytes));
