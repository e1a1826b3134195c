use std::{env, time::Duration};

const SEED: &str = "SOUK_SEED";
const SEEDS: &str = "SOUK_SEEDS";
const FAULT_SECONDS: &str = "SOUK_FAULT_SECONDS";
const DEFAULT_FAULT_SECONDS: u64 = 10;

/// The seed of a test's random choices: `SOUK_SEED`, or a new one. Prints how to make the same choices again.
///
/// # Panics
/// When `SOUK_SEED` is no number.
pub fn seed() -> u64 {
    let seed = number(SEED).unwrap_or_else(rand::random);
    println!("seed {seed}: {SEED}={seed} replays it");
    seed
}

/// Seeds of a test that goes through several: `SOUK_SEED` alone, or as many new ones as `SOUK_SEEDS` says, or the first `many`
/// numbers.
///
/// # Panics
/// When one of them is no number.
pub fn seeds(many: u64) -> Vec<u64> {
    match (number(SEED), number(SEEDS)) {
        (Some(seed), _) => vec![seed],
        (None, Some(new)) => (0..new).map(|_| rand::random()).collect(),
        (None, None) => (1..=many).collect(),
    }
}

/// How long a test stays with each fault: `SOUK_FAULT_SECONDS`, or 10 s.
///
/// # Panics
/// When `SOUK_FAULT_SECONDS` is no number.
pub fn fault_time() -> Duration {
    Duration::from_secs(number(FAULT_SECONDS).unwrap_or(DEFAULT_FAULT_SECONDS))
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}
