use crate::Decider;

/// A history to test a decider from: `given::<Cart>(events).when(command).then(events)`.
pub struct Given<D: Decider>(D::State);

/// A history and what a command made of it.
pub struct When<D: Decider>(Result<Vec<D::Event>, D::Rejection>);

/// Starts from the fold of `events`.
pub fn given<D: Decider>(events: impl IntoIterator<Item = D::Event>) -> Given<D> {
    Given(D::fold(&events.into_iter().collect::<Vec<_>>()))
}

impl<D: Decider> Given<D> {
    pub fn when(self, command: D::Command) -> When<D> {
        When(D::decide(&self.0, &command))
    }
}

impl<D: Decider> When<D> {
    /// # Panics
    /// When the command led to anything else.
    #[track_caller]
    pub fn then(self, events: impl IntoIterator<Item = D::Event>) {
        assert_eq!(self.0, Ok(events.into_iter().collect()));
    }

    /// # Panics
    /// When the command led to an event or a rejection.
    #[track_caller]
    pub fn then_nothing(self) {
        assert_eq!(self.0, Ok(Vec::new()));
    }

    /// # Panics
    /// When the command was not refused for exactly this.
    #[track_caller]
    pub fn then_refused(self, rejection: D::Rejection) {
        assert_eq!(self.0, Err(rejection));
    }
}
