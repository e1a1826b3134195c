use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use nix::sys::resource::{UsageWho, getrusage};
use percent_encoding::percent_decode;
use tonic::Code;

use crate::{
    call::Answer,
    pacer::Turn,
    report::{CODES, DIGITS, ErrorCount, Histogram, Kind, Report, Second},
    source::Request,
};

/// Different messages kept; a server may put a number into each.
const MESSAGES: usize = 100;

/// Counts a run.
pub struct Recorder {
    began: Instant,
    /// The end of the window; until it is known, everything lies within.
    ends: Option<Instant>,
    last: Instant,
    kinds: Vec<Kind>,
    lag: Histogram,
    now: Running,
    seconds: Vec<Second>,
    answered_in_window: u64,
    ok_in_window: u64,
    resent: u64,
    errors: HashMap<(Code, Bytes), u64>,
    cpu: Duration,
}

/// The second under way.
struct Running {
    ok: Histogram,
    failed: u64,
}

impl Recorder {
    pub fn new(kinds: Vec<String>, began: Instant, ends: Option<Instant>) -> Self {
        let kind = |name| Kind {
            name,
            ok: Histogram::new(DIGITS),
            failed: Histogram::new(DIGITS),
            sent_bytes: 0,
            received_bytes: 0,
            codes: [0; CODES],
        };
        Self {
            began,
            ends,
            last: began,
            kinds: kinds.into_iter().map(kind).collect(),
            lag: Histogram::new(DIGITS),
            now: Running { ok: Histogram::new(2), failed: 0 },
            seconds: Vec::new(),
            answered_in_window: 0,
            ok_in_window: 0,
            resent: 0,
            errors: HashMap::new(),
            cpu: cpu(),
        }
    }

    pub fn record(&mut self, turn: Turn, request: &Request, answer: &Answer, sent: Instant, ended: Instant) {
        let latency = ended.saturating_duration_since(turn.due);
        let kind = &mut self.kinds[request.kind];
        kind.codes[answer.code as usize] += 1;
        kind.sent_bytes += request.message.len() as u64;
        kind.received_bytes += answer.received;
        self.lag.record(sent.saturating_duration_since(turn.due));
        self.last = self.last.max(ended);
        self.resent += u64::from(answer.resent);
        let in_window = u64::from(self.ends.is_none_or(|ends| ended <= ends));
        self.answered_in_window += in_window;
        if answer.code == Code::Ok {
            kind.ok.record(latency);
            self.now.ok.record(latency);
            self.ok_in_window += in_window;
        } else {
            kind.failed.record(latency);
            self.now.failed += 1;
            self.count_error(answer);
        }
    }

    fn count_error(&mut self, answer: &Answer) {
        let key = (answer.code, answer.message.clone());
        if let Some(count) = self.errors.get_mut(&key) {
            *count += 1;
        } else if self.errors.len() < MESSAGES {
            self.errors.insert(key, 1);
        } else {
            *self.errors.entry((answer.code, Bytes::from_static(b"(other messages)"))).or_default() += 1;
        }
    }

    /// Closes the second under way.
    pub fn turn_second(&mut self, now: Instant) -> Second {
        let ok = &mut self.now.ok;
        let second = Second {
            at: now.saturating_duration_since(self.began),
            ok: ok.len(),
            failed: self.now.failed,
            p50: ok.quantile(0.5),
            p99: ok.quantile(0.99),
            max: ok.max(),
        };
        ok.clear();
        self.now.failed = 0;
        self.seconds.push(second);
        second
    }

    pub fn finish(mut self, intended: Option<u64>, unsent: u64, connections_lost: u64) -> Report {
        if self.now.ok.len() + self.now.failed > 0 {
            self.turn_second(self.last);
        }
        let text = |message: Bytes| percent_decode(&message).decode_utf8_lossy().into_owned();
        let mut errors: Vec<_> = self.errors.into_iter().collect();
        errors.sort_unstable_by(|((_, left), less), ((_, right), more)| more.cmp(less).then_with(|| left.cmp(right)));
        let elapsed = self.last - self.began;
        Report {
            kinds: self.kinds,
            seconds: self.seconds,
            intended,
            unsent,
            lag: self.lag,
            window: self.ends.map_or(elapsed, |ends| ends - self.began),
            answered_in_window: self.answered_in_window,
            ok_in_window: self.ok_in_window,
            elapsed,
            cpu: cpu() - self.cpu,
            connections_lost,
            resent: self.resent,
            errors: errors.into_iter().map(|((code, message), count)| ErrorCount { code, message: text(message), count }).collect(),
        }
    }
}

/// User and system time of this process so far.
fn cpu() -> Duration {
    let time = |value: nix::sys::time::TimeVal| Duration::from_micros(value.tv_sec() as u64 * 1_000_000 + value.tv_usec() as u64);
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| time(usage.user_time()) + time(usage.system_time()))
}
