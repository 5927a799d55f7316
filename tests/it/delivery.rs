//! From a row to Vercel and back: the real source, state and client against the simulator, one test per row of the table of
//! answers and per law that a single run can show.

mod answers;
mod detection;
mod fleet;
mod late;
mod laws;
mod polls;
mod quarantine;
mod upkeep;
