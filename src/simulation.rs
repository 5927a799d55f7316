//! A seeded, deterministic simulation of the whole pipeline, in one thread, on a virtual clock.
//!
//! The real plan, reconcile and dispatch run over an in-memory store or a real SQLite file, between a simulated provider and a
//! simulated Vercel that do what a seed says: late commits, lost answers, crashes at any await point. When the weather clears the
//! laws of the design must hold. One command replays a seed and tells its timeline in words; see `docs/testing.md`.

mod backend;
mod chance;
mod climate;
mod executor;
mod fate;
mod laws;
mod limits;
mod log;
mod marketplace;
mod planted;
mod process;
mod prompt;
mod provider;
mod remote;
mod scenarios;
mod seeds;
mod source;
mod state;
mod trial;
mod turns;
mod world;
