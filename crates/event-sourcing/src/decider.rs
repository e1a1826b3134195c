use std::fmt::Debug;

/// The rules of one aggregate, pure and synchronous: time, ids and look-ups come in with the command (law 7).
///
/// A command that is already satisfied yields no event. `evolve` is total: it accepts every event that was ever
/// stored, in the order it was stored.
pub trait Decider {
    type State: Clone + Debug + Default + PartialEq;
    type Command: Debug;
    type Event: Clone + Debug + PartialEq;
    /// A rule that refuses.
    type Rejection: Debug + PartialEq;

    /// The state after one more event.
    fn evolve(state: Self::State, event: &Self::Event) -> Self::State;

    /// What a command leads to from here.
    fn decide(state: &Self::State, command: &Self::Command) -> Result<Vec<Self::Event>, Self::Rejection>;

    /// The state after a whole history.
    fn fold<'a>(events: impl IntoIterator<Item = &'a Self::Event>) -> Self::State
    where
        Self::Event: 'a,
    {
        events.into_iter().fold(Self::State::default(), Self::evolve)
    }
}
