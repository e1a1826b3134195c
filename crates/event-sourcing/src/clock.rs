use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// A wall-clock time in milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub i64);

/// How far this process takes its clock to be set wrong, in milliseconds.
static SHIFT_MS: AtomicI64 = AtomicI64::new(0);

impl UnixMillis {
    /// Now, by this machine's clock. Not for `decide` and `evolve`: time comes to them with the command.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(since.as_millis() as i64).plus_ms(SHIFT_MS.load(Ordering::Relaxed))
    }

    /// From now on [`UnixMillis::now`] is this much later, in the whole process: a clock that is set wrong.
    pub fn shift_clock(ms: i64) {
        SHIFT_MS.store(ms, Ordering::Relaxed);
    }

    /// This many milliseconds later.
    pub const fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// Hybrid logical clock: Unix milliseconds in the upper 48 bits, a counter in the lower 16
/// (Kulkarni et al., "Logical Physical Clocks", 2014).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hlc(pub u64);

impl Hlc {
    pub const fn new(time: UnixMillis, counter: u16) -> Self {
        Self((time.0 as u64) << 16 | counter as u64)
    }

    pub const fn time(self) -> UnixMillis {
        UnixMillis((self.0 >> 16) as i64)
    }
}

/// Hands out times that only grow, even when the wall clock is set back.
#[derive(Debug, Default)]
pub struct HlcClock(AtomicU64);

impl HlcClock {
    /// The next time at or after `now`, greater than all before.
    pub fn tick(&self, now: UnixMillis) -> Hlc {
        let wall = Hlc::new(now, 0).0;
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(wall.max(last + 1)));
        Hlc(wall.max(before.unwrap_or_else(|last| last) + 1))
    }

    /// Never hand out a time at or before `seen`, as when taking over a log from another owner.
    pub fn observe(&self, seen: Hlc) {
        self.0.fetch_max(seen.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_grow_though_the_wall_clock_goes_back() {
        let clock = HlcClock::default();
        let first = clock.tick(UnixMillis(1_000));
        let second = clock.tick(UnixMillis(900));
        assert!(second > first && second.time() == UnixMillis(1_000));
        clock.observe(Hlc::new(UnixMillis(2_000), 7));
        assert!(clock.tick(UnixMillis(1_500)) > Hlc::new(UnixMillis(2_000), 7));
    }
}
