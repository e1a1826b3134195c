use souk_event_sourcing::{Epoch, LogHash, Position, RecordedEvent};
use souk_read_store::Checkpoint;

/// Where a reader stands in a log: after the event at `position`, whose running hash proves the whole prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tail {
    pub epoch: Epoch,
    pub position: Position,
    pub hash: LogHash,
}

/// What an event is to a reader at a [`Tail`] (law 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The one that follows, with a hash that proves it.
    Next,
    /// Known already.
    Old,
    /// Events are missing in between.
    Hole,
    /// It does not continue the prefix that was read: transport and reader hold different histories.
    Foreign,
}

impl Tail {
    /// Before the first event.
    pub(crate) const START: Self = Self { epoch: Epoch(0), position: Position(0), hash: LogHash::EMPTY };

    pub(crate) fn judge(&self, event: &RecordedEvent) -> Verdict {
        let wanted = self.position.next();
        if event.position > wanted {
            return Verdict::Hole;
        }
        if event.position == wanted {
            let follows = event.continues(self.position, self.hash) && event.epoch >= self.epoch;
            return if follows { Verdict::Next } else { Verdict::Foreign };
        }
        if event.position == self.position && event.hash != self.hash { Verdict::Foreign } else { Verdict::Old }
    }

    pub(crate) fn after(event: &RecordedEvent) -> Self {
        Self { epoch: event.epoch, position: event.position, hash: event.hash }
    }
}

impl From<&Checkpoint> for Tail {
    fn from(checkpoint: &Checkpoint) -> Self {
        Self { epoch: checkpoint.epoch, position: checkpoint.position, hash: checkpoint.hash }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{history, rewritten};

    #[test]
    fn only_the_proven_next_event_is_taken() {
        let events = history(5);
        let tail = Tail::after(&events[1]);
        let verdicts: Vec<_> = events.iter().map(|event| tail.judge(event)).collect();
        assert_eq!(verdicts, [Verdict::Old, Verdict::Old, Verdict::Next, Verdict::Hole, Verdict::Hole]);
        assert_eq!(Tail::START.judge(&events[0]), Verdict::Next);
    }

    #[test]
    fn another_history_is_told_apart_at_the_fork_and_right_after_it() {
        let (events, other) = (history(5), rewritten(5, 2));
        assert_eq!(Tail::after(&events[1]).judge(&other[2]), Verdict::Next, "both histories begin alike");
        assert_eq!(Tail::after(&events[2]).judge(&other[2]), Verdict::Foreign);
        assert_eq!(Tail::after(&events[2]).judge(&other[3]), Verdict::Foreign);
        let changed = RecordedEvent { actor: "another".to_owned(), ..events[2].clone() };
        assert_eq!(Tail::after(&events[1]).judge(&changed), Verdict::Foreign);
    }
}
