use std::time::Duration;

/// When each call of an open loop is due, whatever became of those before it.
///
/// A list of pieces, in each of which the rate grows or falls steadily, or stays.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    pieces: Vec<Piece>,
    limit: Option<u64>,
}

/// Times in seconds, rates in calls per second.
#[derive(Clone, Copy, Debug)]
struct Piece {
    begins: f64,
    lasts: f64,
    rate: f64,
    /// By how much the rate grows in each second.
    slope: f64,
    /// Calls of the pieces before; a part of a call carries over.
    before: f64,
}

impl Piece {
    /// Calls due in the first `seconds` of it.
    fn calls(&self, seconds: f64) -> f64 {
        self.rate * seconds + self.slope * seconds * seconds / 2.0
    }

    /// Seconds after which so many calls were due: the inverse of `calls`, in the form that is exact for a slope near zero.
    fn time(&self, calls: f64) -> f64 {
        let root = (self.rate * self.rate + 2.0 * self.slope * calls).max(0.0).sqrt();
        if calls == 0.0 { 0.0 } else { 2.0 * calls / (self.rate + root) }
    }

    fn end(&self) -> f64 {
        self.before + self.calls(self.lasts)
    }
}

impl Schedule {
    /// The same rate all the time.
    pub fn constant(rate: f64, lasts: Duration) -> Self {
        Self::default().then(rate, rate, lasts)
    }

    /// From `start` by `step` to `end`, `each` long per step, and at `end` until `lasts` is over.
    pub fn steps(start: f64, end: f64, step: f64, each: Duration, lasts: Duration) -> Self {
        let (mut schedule, mut rate) = (Self::default(), start);
        let reached = |rate: f64| step == 0.0 || (step > 0.0 && rate >= end) || (step < 0.0 && rate <= end);
        while !reached(rate) && schedule.duration() < lasts {
            let left = lasts - schedule.duration();
            schedule = schedule.then(rate, rate, each.min(left));
            rate += step;
        }
        let left = lasts - schedule.duration();
        let rate = if reached(rate) { end } else { rate };
        schedule.then(rate, rate, left)
    }

    /// From `start` to `end`, by `slope` in each second, and at `end` until `lasts` is over.
    pub fn line(start: f64, end: f64, slope: f64, lasts: Duration) -> Self {
        let climb = (end - start) / slope;
        if !climb.is_finite() || climb < 0.0 {
            return Self::constant(start, lasts);
        }
        let climb = Duration::try_from_secs_f64(climb).unwrap_or(lasts).min(lasts);
        let top = start + slope * climb.as_secs_f64();
        Self::default().then(start, top, climb).then(top, top, lasts - climb)
    }

    /// Goes on with another piece.
    ///
    /// # Panics
    /// When a rate is negative or no number.
    #[must_use]
    pub fn then(mut self, from: f64, to: f64, lasts: Duration) -> Self {
        assert!(from >= 0.0 && to >= 0.0 && (from + to).is_finite(), "a rate is at least 0, not {from} or {to}");
        let lasts = lasts.as_secs_f64();
        if lasts > 0.0 {
            let (begins, before) = self.pieces.last().map_or((0.0, 0.0), |last| (last.begins + last.lasts, last.end()));
            self.pieces.push(Piece { begins, lasts, rate: from, slope: (to - from) / lasts, before });
        }
        self
    }

    /// Ends after so many calls.
    #[must_use]
    pub fn limit(self, calls: u64) -> Self {
        Self { limit: Some(self.limit.map_or(calls, |limit| limit.min(calls))), ..self }
    }

    /// Until the last piece ends, or the limit is reached.
    pub fn duration(&self) -> Duration {
        let lasts = self.pieces.last().map_or(Duration::ZERO, |last| Duration::from_secs_f64(last.begins + last.lasts));
        self.limit.map_or(lasts, |calls| self.time(calls).min(lasts))
    }

    /// How many calls it has.
    pub fn calls(&self) -> u64 {
        // Sums of fractions miss whole numbers by a hair.
        let calls = self.pieces.last().map_or(0, |last| (last.end() + 1e-6) as u64);
        self.limit.map_or(calls, |limit| limit.min(calls))
    }

    /// When the call of this number is due, counted from the start; `None` after the last.
    pub fn due(&self, number: u64) -> Option<Duration> {
        (number < self.calls()).then(|| self.time(number))
    }

    /// When so many calls have been due.
    fn time(&self, calls: u64) -> Duration {
        let calls = calls as f64;
        let index = self.pieces.partition_point(|piece| piece.end() <= calls).min(self.pieces.len().saturating_sub(1));
        self.pieces
            .get(index)
            .map_or(Duration::ZERO, |piece| Duration::from_secs_f64(piece.begins + piece.time(calls - piece.before).min(piece.lasts)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Calls due in each second.
    fn per_second(schedule: &Schedule) -> Vec<u64> {
        let mut counts = vec![0; schedule.duration().as_secs_f64().ceil() as usize];
        (0..schedule.calls()).filter_map(|number| schedule.due(number)).for_each(|due| counts[due.as_secs() as usize] += 1);
        counts
    }

    #[test]
    fn a_constant_rate_is_even() {
        let schedule = Schedule::constant(1000.0, seconds(3));
        assert_eq!(schedule.calls(), 3000);
        assert_eq!(schedule.due(1), Some(Duration::from_millis(1)));
        assert_eq!(schedule.due(2999), Some(Duration::from_millis(2999)));
        assert_eq!(schedule.due(3000), None);
        assert_eq!(Schedule::constant(0.5, seconds(4)).due(1), Some(seconds(2)));
    }

    #[test]
    fn steps_reach_their_end_and_stay() {
        assert_eq!(per_second(&Schedule::steps(10.0, 30.0, 10.0, seconds(2), seconds(7))), [10, 10, 20, 20, 30, 30, 30]);
        assert_eq!(per_second(&Schedule::steps(30.0, 10.0, -10.0, seconds(1), seconds(4))), [30, 20, 10, 10]);
        assert_eq!(per_second(&Schedule::steps(10.0, 100.0, 10.0, seconds(1), seconds(3))), [10, 20, 30]);
        assert_eq!(per_second(&Schedule::steps(10.0, 25.0, 10.0, seconds(1), seconds(3))), [10, 20, 25]);
    }

    #[test]
    fn a_line_climbs_within_each_second() {
        let line = Schedule::line(0.0, 100.0, 20.0, seconds(6));
        assert_eq!(per_second(&line), [10, 30, 50, 70, 90, 100]);
        assert_eq!(per_second(&Schedule::line(50.0, 10.0, -20.0, seconds(3))), [40, 20, 10]);
        assert!((0..line.calls()).map(|number| line.due(number)).is_sorted(), "in order");
    }

    #[test]
    fn a_limit_ends_early() {
        let schedule = Schedule::constant(100.0, seconds(10)).limit(5);
        assert_eq!((schedule.calls(), schedule.due(4), schedule.due(5)), (5, Some(Duration::from_millis(40)), None));
        assert_eq!(schedule.duration(), Duration::from_millis(50));
        assert_eq!(Schedule::constant(100.0, seconds(1)).limit(1000).duration(), seconds(1));
    }

    #[test]
    fn a_pause_has_no_calls() {
        let schedule = Schedule::constant(10.0, seconds(1)).then(0.0, 0.0, seconds(2)).then(10.0, 10.0, seconds(1));
        assert_eq!(per_second(&schedule), [10, 0, 0, 10]);
        assert_eq!(Schedule::default().calls(), 0);
    }
}
