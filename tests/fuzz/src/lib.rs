//! What comes from outside, under a fuzzer: `just fuzz`. The corpus is also run by `just test`.

mod checks;

pub use checks::*;
