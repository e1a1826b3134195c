//! The store against its law, on real Postgres.
//!
//! # Layout
//! - `world`: one server for all tests, a database for each
//! - `adapters`: both adapters against the conformance suite
//! - `fence`, `outcomes`, `tables`: single interleavings and failures, each of which broke an earlier append
//! - `replica`: copies of other regions' logs; `restored`: logs that went back; `topology`: the document of all regions
//! - `mutants`: wrong appends, each of which the suite must notice
//! - `attack`: owners in several processes against each other, with kills, while readers watch

mod adapters;
mod attack;
mod fence;
mod mutants;
mod outcomes;
mod replica;
mod restored;
mod tables;
mod topology;
mod world;
