use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::Failure;

/// Share of what is known of the pace that one more measurement replaces.
const FRESH: f64 = 1.0 / 32.0;
/// What a refused caller is asked to wait at least and at most.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The door of a queue that judges by time: whoever would wait longer than the limit is refused at once, whatever the
/// number of those who wait.
///
/// The expected wait is the number of places ahead times the time per place, which everyone who leaves tells anew: time
/// inside over places passed (Little's law; batches and parallel servers are in it by themselves). When nobody leaves for
/// as long as the limit, nobody more is let in.
pub struct Queue {
    limit: Duration,
    at_once: usize,
    state: Mutex<State>,
    length: Gauge,
    waits: Histogram,
    refusals: Counter,
}

#[derive(Debug)]
struct State {
    inside: usize,
    /// Seconds spent inside and places passed by those who left, the older ones fading.
    seconds: f64,
    places: f64,
    /// When somebody last left, or came when nobody was inside.
    moved: Instant,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("limit", &self.limit).field("state", &self.state()).finish_non_exhaustive()
    }
}

/// A place in a queue, given up when it is dropped.
#[derive(Debug)]
pub struct Place {
    queue: Arc<Queue>,
    ahead: usize,
    entered: Instant,
}

/// Refused: the expected wait is beyond the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is longer than {} ms", expected.as_millis())]
pub struct TooLong {
    pub expected: Duration,
}

impl From<TooLong> for Failure {
    fn from(error: TooLong) -> Self {
        let retry_after = error.expected.clamp(RETRY_AFTER.0, RETRY_AFTER.1);
        Self::exhausted("OVERLOADED", "too many calls are waiting", retry_after).with("expected_wait_ms", error.expected.as_millis())
    }
}

impl Queue {
    /// `name` is for metrics; `at_once` are served side by side, hence always let in.
    pub fn new(name: &str, limit: Duration, at_once: usize) -> Arc<Self> {
        let state = Mutex::new(State { inside: 0, seconds: 0.0, places: 0.0, moved: Instant::now() });
        let labels = [("queue", name.to_owned())];
        let length = gauge!("souk_queue_length", &labels);
        let waits = histogram!("souk_queue_wait_seconds", &labels);
        let refusals = counter!("souk_queue_refused_total", &labels);
        Arc::new(Self { limit, at_once, state, length, waits, refusals })
    }

    /// Takes the last place.
    ///
    /// # Errors
    /// [`TooLong`] when it would take longer than the limit to get to the front.
    pub fn enter(self: &Arc<Self>) -> Result<Place, TooLong> {
        self.enter_at(Instant::now())
    }

    fn enter_at(self: &Arc<Self>, now: Instant) -> Result<Place, TooLong> {
        let mut state = self.state();
        self.judge(&state, now).inspect_err(|_| self.refusals.increment(1))?;
        let ahead = state.inside;
        if ahead == 0 {
            state.moved = now;
        }
        state.inside += 1;
        self.length.set(state.inside as f64);
        Ok(Place { queue: self.clone(), ahead, entered: now })
    }

    /// Refuses whoever would be refused by each of the queues, before it is known in which one he belongs. It counts for the
    /// shortest.
    ///
    /// # Errors
    /// [`TooLong`] when no queue would let anybody in.
    pub fn refuse_all(queues: &[Arc<Self>]) -> Result<(), TooLong> {
        let now = Instant::now();
        let mut shortest: Option<(&Self, TooLong)> = None;
        for queue in queues {
            let Err(error) = queue.judge(&queue.state(), now) else { return Ok(()) };
            if shortest.is_none_or(|(_, least)| error.expected < least.expected) {
                shortest = Some((queue, error));
            }
        }
        let Some((queue, error)) = shortest else { return Ok(()) };
        queue.refusals.increment(1);
        Err(error)
    }

    fn judge(&self, state: &State, now: Instant) -> Result<(), TooLong> {
        if state.inside < self.at_once {
            return Ok(());
        }
        let pace = if state.places > 0.0 { state.seconds / state.places } else { 0.0 };
        let standstill = now.saturating_duration_since(state.moved);
        let expected = Duration::from_secs_f64(pace * (state.inside + 1) as f64).max(standstill);
        if expected > self.limit { Err(TooLong { expected }) } else { Ok(()) }
    }

    fn leave_at(&self, ahead: usize, entered: Instant, now: Instant) {
        let waited = now.saturating_duration_since(entered);
        self.waits.record(waited);
        // A standstill that is over says little of the pace to come.
        let inside = waited.min(self.limit * 2);
        let mut state = self.state();
        state.inside -= 1;
        self.length.set(state.inside as f64);
        state.moved = now;
        state.seconds = state.seconds * (1.0 - FRESH) + inside.as_secs_f64();
        state.places = state.places * (1.0 - FRESH) + (ahead + 1) as f64;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.leave_at(self.ahead, self.entered, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);
    const MS: Duration = Duration::from_millis(1);

    fn leave(place: Place, now: Instant) {
        place.queue.leave_at(place.ahead, place.entered, now);
        std::mem::forget(place);
    }

    /// One arrives every half millisecond; every five milliseconds the first ten, at most, are served.
    fn twice_the_load(queue: &Arc<Queue>, start: Instant) -> (Vec<Duration>, u32) {
        let (mut line, mut waits, mut refused) = (VecDeque::new(), Vec::new(), 0);
        for step in 0..10_000_u32 {
            let now = start + MS / 2 * step;
            match queue.enter_at(now) {
                Ok(place) => line.push_back(place),
                Err(_) => refused += 1,
            }
            if step % 10 == 9 {
                for place in line.drain(..line.len().min(5)) {
                    waits.push(now - place.entered);
                    leave(place, now);
                }
            }
        }
        line.into_iter().for_each(|place| leave(place, start));
        (waits, refused)
    }

    #[test]
    fn twice_the_load_is_halved_and_the_rest_waits_no_longer_than_the_limit() {
        let queue = Queue::new("test", LIMIT, 1);
        let (mut waits, refused) = twice_the_load(&queue, Instant::now());
        assert!((4_700..=5_000).contains(&refused), "{refused}");
        assert_eq!(waits.len(), 5_000, "never idle");
        let settled = waits.split_off(500);
        let longest = settled.iter().max().unwrap();
        assert!(*longest <= LIMIT.mul_f64(1.2), "{longest:?}");
    }

    #[test]
    fn who_is_served_at_once_is_always_let_in() {
        let (queue, start) = (Queue::new("test", LIMIT, 2), Instant::now());
        for round in 0..100 {
            let now = start + LIMIT * 5 * round;
            let (first, second) = (queue.enter_at(now).unwrap(), queue.enter_at(now).unwrap());
            leave(first, now + LIMIT * 4);
            leave(second, now + LIMIT * 4);
        }
        let now = start + LIMIT * 1_000;
        let both = [queue.enter_at(now).unwrap(), queue.enter_at(now).unwrap()];
        let refused = queue.enter_at(now).unwrap_err();
        assert!(refused.expected > LIMIT);
        both.into_iter().for_each(|place| leave(place, now));
    }

    #[test]
    fn nobody_is_let_into_a_queue_that_stands_still() {
        let (queue, start) = (Queue::new("test", LIMIT, 1), Instant::now());
        let mut line = vec![queue.enter_at(start).unwrap(), queue.enter_at(start + LIMIT / 2).unwrap()];
        assert_eq!(queue.enter_at(start + LIMIT * 3).unwrap_err(), TooLong { expected: LIMIT * 3 });
        leave(line.remove(0), start + LIMIT * 4);
        leave(line.remove(0), start + LIMIT * 4);
        // What it was is forgotten within some ten that move on.
        for step in 0..50 {
            let now = start + LIMIT * 5 + MS * step;
            leave(queue.enter_at(now).unwrap(), now + MS);
        }
        let now = start + LIMIT * 6;
        let crowd: Vec<_> = (0..10).map(|_| queue.enter_at(now).unwrap()).collect();
        crowd.into_iter().for_each(|place| leave(place, now));
    }

    #[test]
    fn who_belongs_anywhere_is_refused_only_if_no_queue_has_room() {
        let queues = [Queue::new("one", LIMIT, 1), Queue::new("two", LIMIT, 1)];
        let start = Instant::now().checked_sub(LIMIT * 3).expect("some time after the start of the clock");
        assert_eq!(Queue::refuse_all(&queues), Ok(()));
        let first = queues[0].enter_at(start).unwrap();
        assert_eq!(Queue::refuse_all(&queues), Ok(()), "the other has room");
        let second = queues[1].enter_at(start + LIMIT).unwrap();
        let refused = Queue::refuse_all(&queues).unwrap_err();
        assert!((LIMIT * 2..LIMIT * 3).contains(&refused.expected), "the shorter one's: {refused:?}");
        assert_eq!(Queue::refuse_all(&[]), Ok(()));
        drop(second);
        assert_eq!(Queue::refuse_all(&queues), Ok(()));
        drop(first);
    }

    #[test]
    fn a_refusal_tells_when_to_come_back() {
        let failure = Failure::from(TooLong { expected: Duration::from_millis(700) });
        assert_eq!((failure.code, failure.reason.as_ref()), (tonic::Code::ResourceExhausted, "OVERLOADED"));
        assert_eq!(failure.retry_after, Some(Duration::from_millis(700)));
        assert_eq!(Failure::from(TooLong { expected: Duration::from_secs(60) }).retry_after, Some(RETRY_AFTER.1));
    }
}
