use std::time::{Duration, Instant};

use super::freshness::Mark;

/// Where the views of a log were seen of late. A snapshot that contains a sighting is no older than that; so a replica can be
/// told to be recent without trusting its clock.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sightings {
    older: Option<Sighting>,
    newer: Option<Sighting>,
}

#[derive(Debug, Clone, Copy)]
struct Sighting {
    mark: Mark,
    at: Instant,
}

impl Sightings {
    /// The views were at `mark` at `at`. Two sightings are kept, half of `bound` apart, so that what a replica must contain
    /// does not move along with every change.
    pub fn see(&mut self, mark: Mark, at: Instant, bound: Duration) {
        if self.newer.is_some_and(|newer| mark < newer.mark) {
            // The log or its views went back: nothing will ever contain what was seen before.
            *self = Self::default();
        }
        if self.newer.is_none_or(|newer| at.saturating_duration_since(newer.at) >= bound / 2) {
            self.older = self.newer.replace(Sighting { mark, at });
        }
    }

    /// What a snapshot must contain to be no older than `bound`; `None` when nothing was seen for that long.
    pub fn within(&self, bound: Duration, now: Instant) -> Option<Mark> {
        let recent = |sighting: &Sighting| now.saturating_duration_since(sighting.at) < bound;
        self.older.filter(recent).or(self.newer.filter(recent)).map(|sighting| sighting.mark)
    }

    /// What a snapshot must contain to have been no older than `bound` when the views were last seen anew, however long ago.
    pub fn last(&self, bound: Duration) -> Option<Mark> {
        self.newer.and_then(|newer| self.within(bound, newer.at))
    }

    /// When a snapshot that contains `contained` was certainly no older than the views.
    pub fn held(&self, contained: Mark) -> Option<Instant> {
        [self.newer, self.older].into_iter().flatten().find(|sighting| contained >= sighting.mark).map(|sighting| sighting.at)
    }
}

#[cfg(test)]
mod tests {
    use souk_event_sourcing::{Epoch, Position};

    use super::*;

    const BOUND: Duration = Duration::from_secs(2);

    fn mark(epoch: u64, position: u64) -> Mark {
        Mark { epoch: Epoch(epoch), position: Position(position) }
    }

    #[test]
    fn what_a_snapshot_must_contain_was_seen_within_the_bound() {
        let (begin, step) = (Instant::now(), Duration::from_millis(100));
        let mut sightings = Sightings::default();
        assert_eq!(sightings.within(BOUND, begin), None);
        for number in 0..100 {
            let now = begin + step * number;
            sightings.see(mark(1, number.into()), now, BOUND);
            let seen = sightings.within(BOUND, now).unwrap().position.0;
            let age = step * (number - seen as u32);
            assert!(age < BOUND, "{age:?} old");
            assert!(number < 20 || age >= BOUND / 2 - step, "it leaves a replica time to follow, not {age:?}");
        }
        let end = begin + step * 99;
        assert!(sightings.within(BOUND, end + BOUND / 2).is_some());
        assert_eq!(sightings.within(BOUND, end + BOUND), None);
        let last = sightings.last(BOUND).unwrap();
        assert!((mark(1, 79)..=mark(1, 90)).contains(&last), "{last:?}");
        assert_eq!(sightings.held(last), Some(begin + step * last.position.0 as u32));
        assert_eq!((sightings.held(mark(1, 1)), sightings.held(mark(2, 1))), (None, Some(begin + step * 90)));
    }

    #[test]
    fn after_a_silence_what_was_seen_before_it_says_little() {
        let (begin, mut sightings) = (Instant::now(), Sightings::default());
        sightings.see(mark(1, 1), begin, BOUND);
        sightings.see(mark(1, 2), begin + BOUND * 2, BOUND);
        assert_eq!(sightings.last(BOUND), Some(mark(1, 2)));
    }

    #[test]
    fn what_was_seen_of_a_log_that_went_back_is_not_asked_for() {
        let now = Instant::now();
        let mut sightings = Sightings::default();
        sightings.see(mark(1, 105), now, BOUND);
        sightings.see(mark(1, 100), now, BOUND);
        assert_eq!(sightings.within(BOUND, now), Some(mark(1, 100)));
        sightings.see(mark(2, 50), now + BOUND / 2, BOUND);
        assert_eq!(sightings.within(BOUND, now + BOUND), Some(mark(2, 50)), "a later epoch is a later place");
    }
}
