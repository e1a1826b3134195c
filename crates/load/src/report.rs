use std::time::Duration;

use tonic::Code;

/// Latencies in nanoseconds.
#[derive(Clone, Debug)]
pub struct Histogram(hdrhistogram::Histogram<u64>);

impl Histogram {
    /// Longer ones count as this long.
    const LONGEST: Duration = Duration::from_secs(3600);

    /// With so many digits of each value kept.
    pub(crate) fn new(digits: u8) -> Self {
        let longest = Self::LONGEST.as_nanos() as u64;
        Self(hdrhistogram::Histogram::new_with_bounds(100, longest, digits).expect("the bounds are in order"))
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn clear(&mut self) {
        self.0.reset();
    }

    pub(crate) fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.0.add(&other.0);
    }

    pub fn len(&self) -> u64 {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What this share of the calls took at most: 0.99 for p99. Zero when there were none.
    pub fn quantile(&self, share: f64) -> Duration {
        // A bucket's upper end may lie beyond the longest call.
        Duration::from_nanos(self.0.value_at_quantile(share).min(self.0.max()))
    }

    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.0.mean() as u64)
    }

    pub fn min(&self) -> Duration {
        Duration::from_nanos(if self.is_empty() { 0 } else { self.0.min() })
    }

    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }

    /// How many calls took more than `latency`.
    pub fn above(&self, latency: Duration) -> u64 {
        let latency = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.len() - self.0.count_between(0, latency)
    }

    /// Each recorded latency, rounded down to the digits kept, and how many calls had it.
    pub fn values(&self) -> impl Iterator<Item = (Duration, u64)> {
        self.0.iter_recorded().map(|value| {
            let latency = self.0.lowest_equivalent(value.value_iterated_to());
            (Duration::from_nanos(latency), value.count_since_last_iteration())
        })
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// By kind of call, as the source names them.
    pub kinds: Vec<Kind>,
    pub seconds: Vec<Second>,
    /// Calls of the schedule; `None` under a closed loop, which intends nothing.
    pub intended: Option<u64>,
    /// Calls that were due and never sent: nobody was free to send them in time, or the run was stopped.
    pub unsent: u64,
    /// How much later than meant calls were sent. The latencies contain it; a loader that is itself too slow shows here.
    pub lag: Histogram,
    /// The time of which rates are told: that of the schedule, or until the run was to end.
    pub window: Duration,
    /// Calls answered within the window.
    pub answered_in_window: u64,
    /// Those of them answered with OK.
    pub ok_in_window: u64,
    /// From the start to the last answer.
    pub elapsed: Duration,
    /// CPU time of this process meanwhile, user and system.
    pub cpu: Duration,
    /// Connections lost, each of which was opened anew.
    pub connections_lost: u64,
    /// Calls begun again because the server closed a connection without looking at them.
    pub resent: u64,
    /// Failures by code and message, the most frequent first.
    pub errors: Vec<ErrorCount>,
}

/// The calls of one kind.
#[derive(Clone, Debug)]
pub struct Kind {
    pub name: String,
    /// Latencies of calls answered with OK, from when they were meant to be sent.
    pub ok: Histogram,
    /// Latencies of all others.
    pub failed: Histogram,
    /// Bytes of messages, with their prefixes of five.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub(crate) codes: [u64; CODES],
}

pub(crate) const CODES: usize = 17;

impl Kind {
    pub fn count(&self, code: Code) -> u64 {
        self.codes[code as usize]
    }

    /// All calls that ended.
    pub fn answered(&self) -> u64 {
        self.codes.iter().sum()
    }
}

/// One second of a run, by the time of answers.
#[derive(Clone, Copy, Debug)]
pub struct Second {
    /// The end of it, from the start.
    pub at: Duration,
    pub ok: u64,
    pub failed: u64,
    /// Latencies of the OK ones, to two digits.
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

#[derive(Clone, Debug)]
pub struct ErrorCount {
    pub code: Code,
    pub message: String,
    pub count: u64,
}

impl Report {
    /// Calls that ended with this code.
    pub fn count(&self, code: Code) -> u64 {
        self.kinds.iter().map(|kind| kind.count(code)).sum()
    }

    /// The codes seen, with their counts.
    pub fn codes(&self) -> impl Iterator<Item = (Code, u64)> {
        (0..CODES as i32).map(|code| (Code::from_i32(code), self.count(Code::from_i32(code)))).filter(|(_, count)| *count > 0)
    }

    /// All calls that ended, late ones included.
    pub fn answered(&self) -> u64 {
        self.kinds.iter().map(Kind::answered).sum()
    }

    pub fn failed(&self) -> u64 {
        self.answered() - self.count(Code::Ok)
    }

    /// Answers per second within the window.
    pub fn rate(&self) -> f64 {
        per_second(self.answered_in_window, self.window)
    }

    /// OK answers per second within the window.
    pub fn goodput(&self) -> f64 {
        per_second(self.ok_in_window, self.window)
    }

    pub fn intended_rate(&self) -> Option<f64> {
        self.intended.map(|calls| per_second(calls, self.window))
    }

    /// Latencies of all OK calls.
    pub fn latency(&self) -> Histogram {
        let mut all = Histogram::new(DIGITS);
        self.kinds.iter().for_each(|kind| all.add(&kind.ok));
        all
    }

    /// This process's CPU time per call.
    pub fn cpu_per_call(&self) -> Duration {
        Duration::from_secs_f64(self.cpu.as_secs_f64() / self.answered().max(1) as f64)
    }
}

/// Kept of each latency.
pub(crate) const DIGITS: u8 = 3;

fn per_second(calls: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { calls as f64 / time.as_secs_f64() }
}
