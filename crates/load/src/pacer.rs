use std::{
    collections::VecDeque,
    future::poll_fn,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{Schedule, timer::Timer};

/// Calls due within this time are sent together: a timer and a write for each would cost more than the calls.
const TICK: Duration = Duration::from_micros(50);

/// The next call of a worker.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    pub number: u64,
    /// When it was meant to be sent.
    pub due: Instant,
}

/// What decides when the next call is due.
#[derive(Debug)]
pub enum Pace {
    /// At its time. Calls that could not be sent within `patience` from then are given up.
    Open { schedule: Schedule, patience: Duration },
    /// At once, up to so many calls and until that time.
    Closed { calls: u64, until: Option<Instant> },
}

/// Hands calls out to workers: each takes the next number and waits until it is due, in the order of numbers.
#[derive(Debug)]
pub struct Pacer {
    pace: Pace,
    began: Instant,
    line: Mutex<Line>,
    /// Told when the line is no longer empty.
    waits: Notify,
}

#[derive(Debug, Default)]
struct Line {
    next: u64,
    unsent: u64,
    stopped: bool,
    /// Workers whose calls are not due yet, the earliest first.
    waiting: VecDeque<(Instant, Waker)>,
}

impl Pacer {
    pub fn new(pace: Pace, began: Instant) -> Self {
        Self { pace, began, line: Mutex::default(), waits: Notify::new() }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next call, once it is due; `None` when there are no more.
    pub async fn next(&self) -> Option<Turn> {
        let mut turn = None;
        poll_fn(|context| self.poll_next(context, &mut turn)).await
    }

    fn poll_next(&self, context: &Context<'_>, held: &mut Option<Turn>) -> Poll<Option<Turn>> {
        let mut line = self.line();
        let now = Instant::now();
        if held.is_none() {
            *held = self.take(&mut line, now);
        }
        let Some(turn) = *held else { return Poll::Ready(None) };
        if line.stopped {
            line.unsent += u64::from(matches!(self.pace, Pace::Open { .. }));
            return Poll::Ready(None);
        }
        if turn.due <= now {
            return Poll::Ready(Some(turn));
        }
        if line.waiting.is_empty() {
            self.waits.notify_one();
        }
        // Numbers are taken under the same lock; only a worker woken for nothing comes back out of order.
        let place = line.waiting.iter().rposition(|(due, _)| *due <= turn.due).map_or(0, |before| before + 1);
        line.waiting.insert(place, (turn.due, context.waker().clone()));
        Poll::Pending
    }

    fn take(&self, line: &mut Line, now: Instant) -> Option<Turn> {
        match &self.pace {
            Pace::Open { schedule, patience } => loop {
                let number = line.next;
                let due = self.began + schedule.due(number)?;
                line.next += 1;
                if now.saturating_duration_since(due) <= *patience {
                    return Some(Turn { number, due });
                }
                line.unsent += 1;
            },
            Pace::Closed { calls, until } => {
                let number = line.next;
                let goes_on = !line.stopped && number < *calls && until.is_none_or(|until| now < until);
                line.next += u64::from(goes_on);
                goes_on.then_some(Turn { number, due: now })
            }
        }
    }

    /// Wakes workers when their calls are due; never ends.
    pub async fn run(&self, timer: Timer) {
        let mut woke = self.began;
        loop {
            let first = self.line().waiting.front().map(|(due, _)| *due);
            match first {
                Some(due) => timer.until(due.max(woke + TICK)).await,
                None => self.waits.notified().await,
            }
            woke = Instant::now();
            self.wake(woke);
        }
    }

    fn wake(&self, now: Instant) {
        let mut line = self.line();
        while let Some((_, waker)) = line.waiting.pop_front_if(|(due, _)| *due <= now) {
            waker.wake();
        }
    }

    /// No more calls; those that wait for their time are not sent.
    pub fn stop(&self) {
        let waiting = {
            let mut line = self.line();
            line.stopped = true;
            mem::take(&mut line.waiting)
        };
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Calls that were due, or taken, and never sent.
    pub fn unsent(&self) -> u64 {
        self.line().unsent
    }
}
