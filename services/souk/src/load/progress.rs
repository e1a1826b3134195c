use std::{
    io::{IsTerminal, Write, stderr},
    time::Duration,
};

use souk_load::Second;

use crate::paint;

/// A line on stderr that tells of the second just passed: on a terminal always the same one, elsewhere a new one now and then.
pub struct Progress {
    terminal: bool,
    lasts: Option<Duration>,
    ok: u64,
    failed: u64,
}

impl Progress {
    const ELSEWHERE_EVERY: u64 = 10;

    pub fn new(lasts: Option<Duration>) -> Self {
        Self { terminal: stderr().is_terminal(), lasts, ok: 0, failed: 0 }
    }

    pub fn tell(&mut self, second: &Second) {
        self.ok += second.ok;
        self.failed += second.failed;
        if !self.terminal && !second.at.as_secs().is_multiple_of(Self::ELSEWHERE_EVERY) {
            return;
        }
        let of = self.lasts.map(|lasts| format!(" of {}", paint::duration(lasts))).unwrap_or_default();
        let line = format!(
            "{}{of}: {} ok, {} failed; this second {}/s, p50 {:.1?}, p99 {:.1?}, max {:.1?}",
            paint::duration(second.at),
            paint::thousands(self.ok),
            paint::thousands(self.failed),
            paint::thousands(second.ok + second.failed),
            second.p50,
            second.p99,
            second.max,
        );
        // Nobody may be watching any more.
        let _ = if self.terminal { write!(stderr(), "\r{line}\x1b[K") } else { writeln!(stderr(), "{line}") };
    }

    pub fn finish(&self) {
        if self.terminal {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
