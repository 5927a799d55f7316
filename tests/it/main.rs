//! Integration tests: one binary, so that its tests share the database servers that it starts.

mod cli;
mod deploy;
mod harness;
mod support;
mod vercel;
