use souk_event_sourcing::{Epoch, LogHash, Position, RecordedEvent};
use souk_proto::log::v1::EpochStart;
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

    /// Whether a log has this tail's prefix, by what it holds at the tail's position.
    pub(crate) fn is_held_by(&self, there: Option<&RecordedEvent>) -> bool {
        *self == Self::START || there.is_some_and(|event| Self::after(event) == *self)
    }

    /// Whether an announced head makes it likely that the log went back: it lies before what was read already when the
    /// last one was announced, or is another history's.
    pub(crate) fn is_doubted_by(&self, head: Position, hash: Option<LogHash>, at_announcement: Position) -> bool {
        let other_hash = head == self.position && hash.is_some_and(|hash| hash != self.hash);
        head < at_announcement || other_hash
    }

    pub(crate) fn after(event: &RecordedEvent) -> Self {
        Self { epoch: event.epoch, position: event.position, hash: event.hash }
    }
}

/// Whether a log that went through `epochs` has, or will have, another event in the place of this one, which a restore took
/// back: a later epoch began there or before it. Its hash does not tell, for it continues what both histories have in common.
pub(crate) fn is_taken_back(event: &RecordedEvent, epochs: &[EpochStart]) -> bool {
    epochs.iter().any(|start| start.epoch > event.epoch.0 && start.first_position <= event.position.0)
}

impl From<&Checkpoint> for Tail {
    fn from(checkpoint: &Checkpoint) -> Self {
        Self { epoch: checkpoint.epoch, position: checkpoint.position, hash: checkpoint.hash }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::Index, test_runner::TestRunner};

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

    type Judge = fn(&Tail, &RecordedEvent) -> Verdict;

    /// What a reader applies that goes by `judge` and fills holes from the log.
    fn applied(judge: Judge, log: &[RecordedEvent], delivered: &[RecordedEvent]) -> Vec<RecordedEvent> {
        let (mut tail, mut applied) = (Tail::START, Vec::new());
        for event in delivered {
            let missing = (tail.position.0 as usize..event.position.0 as usize - 1).map(|index| &log[index]);
            let hole = judge(&tail, event) == Verdict::Hole;
            for event in missing.filter(|_| hole).chain([event]) {
                if judge(&tail, event) == Verdict::Next {
                    tail = Tail::after(event);
                    applied.push(event.clone());
                }
            }
        }
        applied
    }

    /// Whether what is applied is the log's beginning, whatever of two histories arrives in whatever order.
    fn keeps_the_law(judge: Judge) -> bool {
        let (log, other) = (history(8), rewritten(8, 3));
        let config = ProptestConfig { failure_persistence: None, max_shrink_iters: 0, ..Default::default() };
        let deliveries = prop::collection::vec((any::<bool>(), any::<Index>()), 0..40);
        let outcome = TestRunner::new(config).run(&deliveries, |picks| {
            let pick = |(ours, index): &(bool, Index)| index.get(if *ours { &log } else { &other }).clone();
            let delivered: Vec<_> = picks.iter().map(pick).collect();
            let applied = applied(judge, &log, &delivered);
            // The first event that differs settles which history is followed.
            let whole = [&log, &other].iter().any(|history| history.starts_with(&applied));
            prop_assert!(whole, "{:?}", applied.iter().map(|event| event.position).collect::<Vec<_>>());
            Ok(())
        });
        outcome.is_ok()
    }

    #[test]
    fn checkpoint_plus_one_is_applied_and_nothing_else() {
        assert!(keeps_the_law(Tail::judge));
        let skips: Judge = |tail, event| if event.position.0 == tail.position.0 + 2 { Verdict::Next } else { tail.judge(event) };
        let repeats: Judge = |tail, event| if event.position == tail.position { Verdict::Next } else { tail.judge(event) };
        let trusts: Judge = |tail, event| if event.position == tail.position.next() { Verdict::Next } else { tail.judge(event) };
        for (wrong, what) in [(skips, "checkpoint + 2"), (repeats, "the checkpoint again"), (trusts, "another history's next")] {
            assert!(!keeps_the_law(wrong), "{what} is applied and nobody noticed");
        }
    }
}
