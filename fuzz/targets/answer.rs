//! An answer of Vercel's: status, headers, body.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| reconciled::fuzzing::answer(bytes));
