//! Models of the log, checked state by state with the code's own steps.
//!
//! # Layout
//! - `owners`: owners that believe what they like of a log, against the fence

mod owners;
