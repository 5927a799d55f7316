//! Integration tests: one binary, so that its tests share the database servers that it starts.

mod cli;
mod crash;
mod delivery;
mod deploy;
mod docs;
mod garbage;
mod harness;
mod instant;
mod observe;
mod operate;
mod replicas;
mod secrets;
mod soak;
mod source;
mod store;
mod support;
mod vercel;
mod weather;
mod world;
