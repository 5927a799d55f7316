//! A cursor, or a place in a change feed, out of the state.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| reconciled::fuzzing::cursor(bytes));
