use souk_event_sourcing::{Epoch, Position};
use souk_event_store::Head;

/// Looks for the last position that two histories have in common. Equal running hashes mean equal prefixes, so what is the same
/// at a position is the same before it.
#[derive(Debug)]
pub struct Search {
    common: u64,
    beyond: u64,
}

impl Search {
    /// Among positions up to `last`.
    pub const fn until(last: Position) -> Self {
        Self { common: 0, beyond: last.0 + 1 }
    }

    /// Where to look next; `None` when [`Self::fork`] is known.
    pub const fn next(&self) -> Option<Position> {
        let middle = self.common + (self.beyond - self.common) / 2;
        if middle > self.common { Some(Position(middle)) } else { None }
    }

    /// Whether both are the same at `at`.
    pub const fn learn(&mut self, at: Position, same: bool) {
        if same {
            self.common = at.0;
        } else {
            self.beyond = at.0;
        }
    }

    /// The last position both have.
    pub const fn fork(&self) -> Position {
        Position(self.common)
    }
}

/// Whether an origin says that it went on from `fork` under an epoch that a copy has no events of: `last` is that of the copy's
/// last event. Until an owner has taken the log anew it may be another thing than a restore that makes it look shorter.
pub fn went_back(origin: &Head, fork: Position, last: Epoch) -> bool {
    origin.epochs.iter().any(|start| start.epoch > last && start.first <= fork.next())
}

/// Whether an origin that has none of a copy's events is the one they came from all the same, restored to a time before them:
/// then it still knows the epoch that the `first` of them was written under. An installation made anew does not.
pub fn knows(origin: &Head, first: Epoch) -> bool {
    origin.epochs.iter().any(|start| start.epoch == first)
}

#[cfg(test)]
mod tests {
    use souk_event_sourcing::LogHash;
    use souk_event_store::EpochStart;

    use super::*;

    #[test]
    fn the_last_common_position_is_found_wherever_it_is() {
        for last in 0..20 {
            for fork in 0..=last {
                let mut search = Search::until(Position(last));
                while let Some(at) = search.next() {
                    search.learn(at, at.0 <= fork);
                }
                assert_eq!(search.fork(), Position(fork), "of {last}");
            }
        }
    }

    #[test]
    fn a_log_went_back_when_a_later_epoch_begins_at_the_fork_or_before() {
        let start = |epoch, first| EpochStart { epoch: Epoch(epoch), first: Position(first) };
        let origin = |epochs| Head { epoch: Epoch(9), position: Position(9), hash: LogHash::EMPTY, epochs };
        assert!(went_back(&origin(vec![start(1, 1), start(5, 4)]), Position(3), Epoch(4)));
        assert!(!went_back(&origin(vec![start(1, 1), start(4, 4)]), Position(3), Epoch(4)), "the epoch the copy has events of");
        assert!(!went_back(&origin(vec![start(1, 1), start(5, 6)]), Position(3), Epoch(4)), "a takeover behind the fork");
    }

    #[test]
    fn an_origin_without_common_events_is_known_by_the_epoch_of_the_first() {
        let start = |epoch| EpochStart { epoch: Epoch(epoch), first: Position(1) };
        let origin = Head { epoch: Epoch(9), position: Position(0), hash: LogHash::EMPTY, epochs: vec![start(7), start(9)] };
        assert!(knows(&origin, Epoch(7)));
        assert!(!knows(&origin, Epoch(8)), "a later one than it was restored to, or another installation's");
    }
}
