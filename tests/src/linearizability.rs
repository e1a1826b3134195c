//! Whether what concurrent callers saw of an object can be explained by one operation after the other.
//!
//! The search is Wing and Gong's ("Testing and Verifying Concurrent Objects", 1993) with Lowe's memory of configurations
//! ("Testing for Linearizability", 2017), as Porcupine has it: a configuration is the set of operations that have taken effect
//! and the state they led to, and none is searched twice.

use std::{collections::HashSet, fmt::Debug, hash::Hash, vec};

/// What an object does when its operations come one after the other.
pub trait Model {
    type State: Clone + Eq + Hash + Debug;
    type Input: Debug;
    type Output: PartialEq + Debug;

    /// What `input` does to `state`, and what it is answered.
    fn apply(state: &Self::State, input: &Self::Input) -> (Self::State, Self::Output);

    /// Whether `output` can be answered neither in `state` nor in any state after it. Only cuts the search short: `false` is
    /// never wrong.
    fn is_past(_state: &Self::State, _output: &Self::Output) -> bool {
        false
    }
}

/// One operation as its caller saw it.
#[derive(Debug, Clone)]
pub struct Operation<I, O> {
    pub input: I,
    /// When it was sent, by the clock all callers share.
    pub sent: u64,
    /// When it was answered, and what. `None`: the outcome is unknown; it may have taken effect at any time since it was sent, and
    /// it may never.
    pub answer: Option<(u64, O)>,
}

/// The history has no explanation.
#[derive(Debug, thiserror::Error)]
#[error("no order explains the history: after {explained} of {answered} answers, in state {state}, none of these fits: {stuck:#?}")]
pub struct NotLinearizable {
    /// Answers explained by the longest order found.
    pub explained: usize,
    pub answered: usize,
    /// State in which that order ends.
    pub state: String,
    /// What could have come next.
    pub stuck: Vec<String>,
}

/// Fails unless there is an order of the operations in which each was answered as the model says, and which keeps the order of
/// those that did not overlap. Returns how many configurations were looked at.
///
/// # Errors
/// [`NotLinearizable`] with the place where the longest order breaks off.
pub fn check<M: Model>(begin: M::State, mut history: Vec<Operation<M::Input, M::Output>>) -> Result<usize, NotLinearizable> {
    history.sort_by_key(|operation| operation.sent);
    let search = Search::<M> { history: &history, answered: history.iter().filter(|operation| operation.answer.is_some()).count() };
    search.run(begin)
}

struct Search<'a, M: Model> {
    /// In the order they were sent.
    history: &'a [Operation<M::Input, M::Output>],
    answered: usize,
}

/// Operations that have taken effect: all before `end` but those `left`, in order. Small, since only what overlaps is left.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Done {
    end: usize,
    left: Vec<usize>,
}

impl Done {
    fn with(&self, index: usize) -> Self {
        let mut done = self.clone();
        if index < done.end {
            done.left.retain(|left| *left != index);
        } else {
            done.left.extend(done.end..index);
            done.end = index + 1;
        }
        done
    }

    /// The others of `count`, in order.
    fn others(&self, count: usize) -> impl Iterator<Item = usize> {
        self.left.iter().copied().chain(self.end..count)
    }
}

/// A configuration on the way, with what may come next.
struct Step<M: Model> {
    done: Done,
    state: M::State,
    explained: usize,
    next: vec::IntoIter<usize>,
}

impl<M: Model> Search<'_, M> {
    fn run(&self, begin: M::State) -> Result<usize, NotLinearizable> {
        let mut seen = HashSet::new();
        let mut longest = (0, Done::default(), begin.clone());
        let mut way = vec![self.step(Done::default(), begin, 0)];
        while let Some(last) = way.last_mut() {
            if last.explained == self.answered {
                return Ok(seen.len());
            }
            let Some(index) = last.next.next() else {
                way.pop();
                continue;
            };
            let operation = &self.history[index];
            let (state, output) = M::apply(&last.state, &operation.input);
            let fits = match &operation.answer {
                Some((_, answer)) => *answer == output,
                // One that would change nothing need not have happened.
                None => state != last.state,
            };
            let (done, explained) = (last.done.with(index), last.explained + usize::from(operation.answer.is_some()));
            if !fits || self.is_hopeless(&done, &state) || !seen.insert((done.clone(), state.clone())) {
                continue;
            }
            if explained > longest.0 {
                longest = (explained, done.clone(), state.clone());
            }
            way.push(self.step(done, state, explained));
        }
        let (explained, done, state) = longest;
        let stuck = self.candidates(&done).into_iter().map(|index| format!("{:?}", self.history[index])).collect();
        Err(NotLinearizable { explained, answered: self.answered, state: format!("{state:?}"), stuck })
    }

    fn step(&self, done: Done, state: M::State, explained: usize) -> Step<M> {
        let next = self.candidates(&done).into_iter();
        Step { done, state, explained, next }
    }

    /// Operations that may come next: those sent before any other was answered. Those with an answer first, since what is
    /// unknown is only needed where they alone explain nothing; and of that the latest first.
    fn candidates(&self, done: &Done) -> Vec<usize> {
        let (mut answered, mut open, mut first_answer) = (Vec::new(), Vec::new(), u64::MAX);
        for index in done.others(self.history.len()) {
            let operation = &self.history[index];
            if operation.sent > first_answer {
                break;
            }
            match &operation.answer {
                Some((at, _)) => {
                    first_answer = first_answer.min(*at);
                    answered.push(index);
                }
                None => open.push(index),
            }
        }
        answered.extend(open.into_iter().rev());
        answered.retain(|index| self.history[*index].sent <= first_answer);
        answered
    }

    /// Whether an answer that is still to be explained, among the next ones, has become impossible.
    fn is_hopeless(&self, done: &Done, state: &M::State) -> bool {
        const AHEAD: usize = 64;
        let next = done.others(self.history.len()).filter_map(|index| self.history[index].answer.as_ref());
        next.take(AHEAD).any(|(_, output)| M::is_past(state, output))
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};

    use super::*;

    /// A number that counts its changes.
    struct Counter;

    #[derive(Debug, Clone, PartialEq)]
    enum Ask {
        Add(i64),
        Read,
    }
    use Ask::{Add, Read};

    #[derive(Debug, Clone, PartialEq)]
    enum Told {
        Version(u64),
        Sum(i64),
    }
    use Told::{Sum, Version};

    impl Model for Counter {
        type State = (u64, i64);
        type Input = Ask;
        type Output = Told;

        fn apply(&(version, sum): &(u64, i64), input: &Ask) -> ((u64, i64), Told) {
            match input {
                Add(number) => ((version + 1, sum + number), Version(version + 1)),
                Read => ((version, sum), Sum(sum)),
            }
        }

        fn is_past(&(version, _): &(u64, i64), output: &Told) -> bool {
            matches!(output, Version(told) if *told <= version)
        }
    }

    fn answered(input: Ask, sent: u64, at: u64, output: Told) -> Operation<Ask, Told> {
        Operation { input, sent, answer: Some((at, output)) }
    }

    fn unknown(input: Ask, sent: u64) -> Operation<Ask, Told> {
        Operation { input, sent, answer: None }
    }

    fn is_fine(history: &[Operation<Ask, Told>]) -> bool {
        check::<Counter>((0, 0), history.to_vec()).is_ok()
    }

    #[test]
    fn one_after_the_other_is_fine() {
        assert!(is_fine(&[]));
        assert!(is_fine(&[answered(Add(5), 0, 1, Version(1)), answered(Read, 2, 3, Sum(5)), answered(Add(2), 4, 5, Version(2))]));
    }

    #[test]
    fn what_overlaps_may_come_in_any_order() {
        assert!(is_fine(&[answered(Add(5), 0, 9, Version(2)), answered(Add(2), 1, 8, Version(1)), answered(Read, 2, 7, Sum(2))]));
        assert!(is_fine(&[answered(Add(5), 0, 9, Version(1)), answered(Read, 1, 2, Sum(0)), answered(Read, 3, 4, Sum(5))]));
    }

    #[test]
    fn a_lost_update_is_found() {
        assert!(!is_fine(&[answered(Add(5), 0, 1, Version(1)), answered(Add(2), 2, 3, Version(2)), answered(Read, 4, 5, Sum(2))]));
        assert!(!is_fine(&[answered(Add(5), 0, 9, Version(1)), answered(Add(2), 1, 8, Version(1))]), "two changes, one version");
    }

    #[test]
    fn a_stale_read_is_found() {
        assert!(!is_fine(&[answered(Add(5), 0, 1, Version(1)), answered(Read, 2, 3, Sum(0))]));
        let backwards = [answered(Add(5), 0, 9, Version(1)), answered(Read, 1, 2, Sum(5)), answered(Read, 3, 4, Sum(0))];
        assert!(!is_fine(&backwards), "a read after another one went back");
    }

    #[test]
    fn a_doubled_effect_is_found() {
        assert!(!is_fine(&[answered(Add(5), 0, 1, Version(1)), answered(Read, 2, 3, Sum(10))]));
        assert!(!is_fine(&[unknown(Add(5), 0), answered(Read, 2, 3, Sum(10))]));
        assert!(!is_fine(&[answered(Add(5), 0, 1, Version(1)), answered(Add(2), 2, 3, Version(3))]), "a version nobody made");
    }

    #[test]
    fn an_acknowledged_operation_that_is_missing_is_found() {
        assert!(!is_fine(&[answered(Add(5), 0, 1, Version(1)), answered(Add(2), 2, 3, Version(1))]));
        assert!(!is_fine(&[answered(Add(5), 0, 1, Version(2)), answered(Read, 2, 3, Sum(5))]), "the version before it is missing");
    }

    #[test]
    fn the_order_of_what_did_not_overlap_is_kept() {
        assert!(!is_fine(&[answered(Add(5), 0, 1, Version(2)), answered(Add(2), 2, 3, Version(1))]));
        assert!(is_fine(&[answered(Add(5), 0, 2, Version(2)), answered(Add(2), 2, 3, Version(1))]), "at the same time is no order");
    }

    #[test]
    fn an_unknown_outcome_may_be_an_effect_at_any_later_time_or_none() {
        let rest = |sums: [i64; 2]| {
            let late = answered(Read, 20, 21, Sum(sums[1]));
            [unknown(Add(5), 0), answered(Read, 10, 11, Sum(sums[0])), late]
        };
        for sums in [[0, 0], [0, 5], [5, 5]] {
            assert!(is_fine(&rest(sums)), "{sums:?}");
        }
        for sums in [[5, 0], [0, 10]] {
            assert!(!is_fine(&rest(sums)), "{sums:?}");
        }
        assert!(!is_fine(&[answered(Read, 0, 1, Sum(5)), unknown(Add(5), 2)]), "before it was sent");
        assert!(is_fine(&[unknown(Add(5), 0), unknown(Add(7), 0), answered(Add(1), 5, 6, Version(2)), answered(Read, 7, 8, Sum(8))]));
    }

    #[test]
    fn the_failure_tells_where_the_longest_order_breaks_off() {
        let history = vec![answered(Add(5), 0, 1, Version(1)), answered(Read, 2, 3, Sum(4)), answered(Read, 4, 5, Sum(5))];
        let wrong = check::<Counter>((0, 0), history).unwrap_err();
        assert_eq!((wrong.explained, wrong.answered, wrong.state.as_str()), (1, 3, "(1, 5)"));
        assert!(wrong.stuck.len() == 1 && wrong.stuck[0].contains("Sum(4)"), "{wrong}");
    }

    /// Every order of every choice of operations, without any cleverness.
    fn is_fine_by_force(state: (u64, i64), history: &[Operation<Ask, Told>]) -> bool {
        if history.iter().all(|operation| operation.answer.is_none()) {
            return true;
        }
        let first_answer = history.iter().filter_map(|operation| operation.answer.as_ref()).map(|(at, _)| *at).min();
        (0..history.len()).any(|index| {
            let operation = &history[index];
            let (next, output) = Counter::apply(&state, &operation.input);
            let fits = operation.answer.as_ref().is_none_or(|(_, answer)| *answer == output);
            let mut rest = history.to_vec();
            rest.remove(index);
            fits && first_answer.is_none_or(|at| operation.sent <= at) && is_fine_by_force(next, &rest)
        })
    }

    /// A history of some callers at a real counter, some of whose answers are lost.
    fn recorded(random: &mut SmallRng, operations: u64, lost: f64) -> Vec<Operation<Ask, Told>> {
        let mut effects: Vec<(u64, u64, u64)> = (0..operations)
            .map(|_| {
                let sent = random.random_range(0..operations * 4);
                let effect = sent + random.random_range(0..8);
                (effect, sent, effect + random.random_range(0..8))
            })
            .collect();
        effects.sort_unstable();
        let mut state = (0, 0);
        let mut history = Vec::new();
        for (_, sent, at) in effects {
            let input = if random.random_bool(0.3) { Read } else { Add(random.random_range(1..4)) };
            let (is_lost, is_void) = (random.random_bool(lost), random.random_bool(0.5));
            let (next, output) = Counter::apply(&state, &input);
            if !(is_lost && is_void) {
                state = next;
            }
            history.push(Operation { input, sent, answer: (!is_lost).then_some((at, output)) });
        }
        history.shuffle(random);
        history
    }

    #[test]
    fn the_search_agrees_with_brute_force() {
        const HISTORIES: usize = 3_000;
        let mut random = SmallRng::seed_from_u64(1);
        let mut wrong = 0;
        for _ in 0..HISTORIES {
            let mut history = recorded(&mut random, 6, 0.3);
            assert!(is_fine(&history), "{history:#?}");
            // Somebody was told something else.
            if let Some((_, output)) = history.iter_mut().filter_map(|operation| operation.answer.as_mut()).next() {
                *output = match output {
                    Version(version) => Version(*version + random.random_range(0..3) - 1),
                    Sum(sum) => Sum(*sum + random.random_range(0..3)),
                };
            }
            let fine = is_fine_by_force((0, 0), &history);
            assert_eq!(is_fine(&history), fine, "{history:#?}");
            wrong += usize::from(!fine);
        }
        assert!((HISTORIES / 10..HISTORIES * 9 / 10).contains(&wrong), "{wrong} wrong histories of {HISTORIES}");
    }

    #[test]
    fn a_long_history_with_many_unknown_outcomes_is_searched_in_little_more_than_its_length() {
        const OPERATIONS: u64 = 20_000;
        let history = recorded(&mut SmallRng::seed_from_u64(2), OPERATIONS, 0.01);
        let unknown = history.iter().filter(|operation| operation.answer.is_none()).count();
        let looked_at = check::<Counter>((0, 0), history).unwrap();
        assert!(unknown > 100 && looked_at < 10 * OPERATIONS as usize, "{looked_at} configurations, {unknown} unknown");
    }
}
