use std::{
    io::{IsTerminal, Write, stdout},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::paint::{say, thousands, yellow};

/// Without a terminal a line is printed every so many seconds.
const EVERY: u64 = 5;

/// What was measured since the last line, shared by all customers.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures(Arc<Mutex<Second>>);

#[derive(Debug, Default)]
struct Second {
    orders: Vec<Duration>,
    queries: Vec<Duration>,
    visible: Vec<Duration>,
    /// Seconds in it.
    length: u64,
}

impl Figures {
    pub fn new() -> Self {
        Self::default()
    }

    /// An order was answered.
    pub fn order(&self, took: Duration) {
        self.lock().orders.push(took);
    }

    pub fn query(&self, took: Duration) {
        self.lock().queries.push(took);
    }

    /// A view showed what had just been written.
    pub fn visible(&self, after: Duration) {
        self.lock().visible.push(after);
    }

    /// The line of figures: in its place on a terminal, else every few seconds.
    pub fn show(&self, since: Duration, sold: usize) {
        let mut second = self.lock();
        second.length += 1;
        if !stdout().is_terminal() && second.length < EVERY {
            return;
        }
        let mut second = std::mem::take(&mut *second);
        let line = format!(
            "{:>5}s {:>10} {:>10} {:>10} {:>10} {:>13} {:>7}",
            since.as_secs(),
            rate(&second.orders, second.length),
            rate(&second.queries, second.length),
            p99(&mut second.orders),
            p99(&mut second.queries),
            p99(&mut second.visible),
            thousands(sold as u64),
        );
        if stdout().is_terminal() {
            print!("\r\x1b[K{line}");
            let _ = stdout().flush();
        } else {
            say(line);
        }
    }

    /// A line that stays.
    pub fn tell(&self, since: Duration, what: &str) {
        if stdout().is_terminal() {
            say("");
        }
        say(format_args!("{:>5}s  {}", since.as_secs(), yellow(format!("✗ {what}"))));
    }

    fn lock(&self) -> MutexGuard<'_, Second> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rate(times: &[Duration], seconds: u64) -> String {
    thousands(times.len() as u64 / seconds.max(1))
}

fn p99(times: &mut [Duration]) -> String {
    times.sort_unstable();
    match times.get((times.len() * 99 / 100).min(times.len().saturating_sub(1))) {
        Some(time) => format!("{:.0} ms", time.as_secs_f64() * 1e3),
        None => "–".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_of_a_hundred_counts() {
        let mut times: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(p99(&mut times), "100 ms");
        assert_eq!(p99(&mut times[..1]), "1 ms");
        assert_eq!((p99(&mut []), rate(&times, 5)), ("–".to_owned(), "20".to_owned()));
    }
}
