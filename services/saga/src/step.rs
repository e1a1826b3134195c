use std::{fmt, str::FromStr};

use souk_domain::{OrderId, ProductId, ReservationId, order::Placed};
use souk_event_sourcing::{EventId, LogId, Position, RequestId, UnixMillis};
use uuid::{Builder, Variant, Version};

/// What a step is about. Steps about one subject are carried out one after the other, in the order they became due.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Subject {
    Order(OrderId),
    /// Units of a product held under a reservation.
    Hold(ProductId, ReservationId),
}

/// A stored subject that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no subject of a step")]
pub(crate) struct InvalidSubject(String);

impl fmt::Display for Subject {
    /// As it is stored: ids hold no '/'.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order(order) => write!(f, "{order}"),
            Self::Hold(product, reservation) => write!(f, "{product}/{reservation}"),
        }
    }
}

impl FromStr for Subject {
    type Err = InvalidSubject;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSubject(text.to_owned());
        match text.split_once('/') {
            None => Ok(Self::Order(text.parse().map_err(|_| invalid())?)),
            Some((product, reservation)) => {
                Ok(Self::Hold(product.parse().map_err(|_| invalid())?, reservation.parse().map_err(|_| invalid())?))
            }
        }
    }
}

/// What is to be done. Numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum StepKind {
    /// Reserve every line, then record the outcomes of all of them.
    Reserve = 1,
    /// Release every line, refused ones too.
    Release = 2,
    /// Ship every line's units.
    Commit = 3,
    /// The payment deadline has come.
    ExpirePayment = 4,
    /// A hold's far expiry has come.
    ExpireReservation = 5,
}

impl StepKind {
    pub const ALL: [Self; 5] = [Self::Reserve, Self::Release, Self::Commit, Self::ExpirePayment, Self::ExpireReservation];

    pub fn of_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as i16 == number)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::Release => "release",
            Self::Commit => "commit",
            Self::ExpirePayment => "expire-payment",
            Self::ExpireReservation => "expire-reservation",
        }
    }
}

/// Where a step or timer comes from: everything its request ids are a function of, and its trace.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Origin {
    pub log: LogId,
    /// The event that led to it.
    pub position: Position,
    pub cause: EventId,
    /// Time prefix of the request ids: when the event was decided, or when the timer was due.
    pub time: UnixMillis,
    /// Raised, and stored, before anything is sent under new ids.
    pub attempt: u32,
    pub traceparent: String,
}

/// Something due, as it stands in the outbox.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    pub kind: StepKind,
    pub subject: Subject,
    pub origin: Origin,
    /// The order as it was placed, for the steps over its lines.
    pub placed: Option<Placed>,
}

/// A step that becomes due later.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Timer {
    pub kind: StepKind,
    pub subject: Subject,
    pub due: UnixMillis,
    pub origin: Origin,
}

/// Key of a step in the outbox: an event leads to at most one step of a kind.
pub(crate) type StepId = (LogId, Position, StepKind);

impl Step {
    pub fn id(&self) -> StepId {
        (self.origin.log, self.origin.position, self.kind)
    }

    /// Request id of one command of this step: the same however often the step is carried out, another one per attempt.
    pub fn request_id(&self, command: &str, line: usize) -> RequestId {
        self.origin.base().derive(&format!("{command}/{line}/{}", self.origin.attempt))
    }

    /// The same step under new request ids.
    pub fn renewed(&self, now: UnixMillis) -> Self {
        let origin = Origin { time: now, attempt: self.origin.attempt.saturating_add(1), ..self.origin.clone() };
        Self { origin, ..self.clone() }
    }

    /// The timer that brings this step back at `due`.
    pub fn again(&self, due: UnixMillis) -> Timer {
        let origin = Origin { attempt: self.origin.attempt.saturating_add(1), ..self.origin.clone() };
        Timer { kind: self.kind, subject: self.subject.clone(), due, origin }
    }
}

impl From<Timer> for Step {
    fn from(timer: Timer) -> Self {
        Self { kind: timer.kind, subject: timer.subject, origin: Origin { time: timer.due, ..timer.origin }, placed: None }
    }
}

impl Origin {
    /// The cause's id with the time of the step in front: the ledger refuses ids older than it remembers, and a timer
    /// may fire long after the event that set it.
    fn base(&self) -> RequestId {
        let mut bytes = *self.cause.0.as_bytes();
        bytes[..6].copy_from_slice(&self.time.0.max(0).to_be_bytes()[2..]);
        RequestId(Builder::from_bytes(bytes).with_version(Version::SortRand).with_variant(Variant::RFC4122).into_uuid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{order_id, origin};

    #[test]
    fn request_ids_are_a_function_of_cause_command_line_and_attempt() {
        let step = Step { kind: StepKind::Reserve, subject: Subject::Order(order_id(1)), origin: origin(7), placed: None };
        let id = step.request_id("reserve", 0);
        assert_eq!(id, step.clone().request_id("reserve", 0));
        assert_eq!(id.time(), Some(step.origin.time));
        let other_cause = Step { origin: origin(8), ..step.clone() };
        let again = Step::from(step.again(UnixMillis(1_800_000_000_000)));
        for other in [
            step.request_id("reserve", 1),
            step.request_id("release", 0),
            other_cause.request_id("reserve", 0),
            step.renewed(step.origin.time).request_id("reserve", 0),
            again.request_id("reserve", 0),
        ] {
            assert_ne!(id, other);
        }
        assert_eq!(again.request_id("reserve", 0).time(), Some(UnixMillis(1_800_000_000_000)));
    }

    #[test]
    fn subjects_and_kinds_read_back() {
        for subject in [Subject::Order(order_id(3)), Subject::Hold("p-1".parse().unwrap(), "o_1".parse().unwrap())] {
            assert_eq!(subject.to_string().parse(), Ok(subject));
        }
        assert!("".parse::<Subject>().is_err() && "a/b/c".parse::<Subject>().is_err() && "short".parse::<Subject>().is_err());
        for kind in StepKind::ALL {
            assert_eq!(StepKind::of_number(kind as i16), Some(kind));
        }
        assert_eq!(StepKind::of_number(0), None);
    }
}
