use std::collections::{BTreeMap, BTreeSet};

use souk_domain::{OrderId, order::Placed};
use souk_event_sourcing::{Epoch, LogHash, LogId, Position, RecordedEvent};

use crate::{
    fold::{Effect, When},
    step::{Origin, Step, StepId, StepKind, Subject, Timer},
};

/// A place in a log: the event last read, whose running hash proves the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tail {
    pub epoch: Epoch,
    pub position: Position,
    pub hash: LogHash,
}

impl Tail {
    pub fn after(event: &RecordedEvent) -> Self {
        Self { epoch: event.epoch, position: event.position, hash: event.hash }
    }
}

/// How far one log's checkpoint moves, under the epoch this process holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Advance {
    pub epoch: Epoch,
    pub from: Position,
    pub to: Tail,
}

/// Identity of a remembered order or of a timer: its row's key.
pub(crate) type OrderKey = (LogId, OrderId);
pub(crate) type TimerKey = (LogId, StepKind, Subject);

/// Everything one transaction writes, net: no row is named twice, since one statement carries all of it out.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub advances: BTreeMap<LogId, Advance>,
    pub remembered: BTreeMap<OrderKey, Placed>,
    pub forgotten: BTreeSet<OrderKey>,
    pub set: BTreeMap<TimerKey, Timer>,
    pub cleared: BTreeSet<TimerKey>,
    pub due: Vec<Step>,
    pub done: BTreeSet<StepId>,
    /// Steps to go out again under new request ids.
    pub renewed: Vec<Step>,
}

/// An event about an order nobody remembers: the log and the fold do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("order {0} was never placed as far as the fold knows")]
pub(crate) struct UnknownOrder(pub OrderId);

impl Changes {
    /// Whether nothing comes of the events read: checkpoints move, if anything does.
    pub fn is_idle(&self) -> bool {
        self.remembered.is_empty()
            && self.forgotten.is_empty()
            && self.set.is_empty()
            && self.cleared.is_empty()
            && self.due.is_empty()
            && self.done.is_empty()
            && self.renewed.is_empty()
    }

    /// Takes in the effects of `event`. `stored` are the orders of this batch that were remembered before it.
    ///
    /// # Errors
    /// When the order is unknown; nothing was taken in then.
    pub fn apply(&mut self, event: &RecordedEvent, effects: Vec<Effect>, stored: &BTreeMap<OrderKey, Placed>) -> Result<(), UnknownOrder> {
        let log = event.log;
        let placed = |changes: &Self, order: OrderId| {
            let known = changes.remembered.get(&(log, order)).or_else(|| stored.get(&(log, order))).cloned();
            known.filter(|_| !changes.forgotten.contains(&(log, order))).ok_or(UnknownOrder(order))
        };
        for effect in effects {
            match effect {
                Effect::Remember(order, placed) => {
                    self.remembered.insert((log, order), placed);
                }
                Effect::Forget(order) => {
                    self.remembered.remove(&(log, order));
                    self.forgotten.insert((log, order));
                }
                Effect::Due(kind, subject) => {
                    let placed = match subject {
                        Subject::Order(order) => Some(placed(self, order)?),
                        Subject::Hold(..) => None,
                    };
                    self.due.push(Step { kind, subject, origin: origin(event), placed });
                }
                Effect::Set(kind, subject, when) => {
                    let due = match (when, &subject) {
                        (When::PaymentDeadline, Subject::Order(order)) => placed(self, *order)?.payment_deadline,
                        (When::PaymentDeadline, Subject::Hold(..)) => continue,
                        (When::At(time), _) => time,
                    };
                    self.set_timer(Timer { kind, subject, due, origin: origin(event) });
                }
                Effect::Clear(kind, subject) => {
                    let key = (log, kind, subject);
                    self.set.remove(&key);
                    self.cleared.insert(key);
                }
            }
        }
        Ok(())
    }

    pub fn set_timer(&mut self, timer: Timer) {
        let key = (timer.origin.log, timer.kind, timer.subject.clone());
        self.cleared.remove(&key);
        self.set.insert(key, timer);
    }

    /// A timer has fired: it becomes a step.
    pub fn fire(&mut self, timer: Timer) {
        let key = (timer.origin.log, timer.kind, timer.subject.clone());
        // Set or cleared anew by an event of this batch: that is newer.
        if self.set.contains_key(&key) || !self.cleared.insert(key) {
            return;
        }
        self.due.push(timer.into());
    }
}

fn origin(event: &RecordedEvent) -> Origin {
    Origin {
        log: event.log,
        position: event.position,
        cause: event.event_id,
        time: event.hlc.time(),
        attempt: 1,
        traceparent: event.traceparent.clone(),
    }
}

#[cfg(test)]
mod tests {
    use souk_domain::Event;
    use souk_event_sourcing::{Hlc, UnixMillis, Version};

    use super::*;
    use crate::testing::{LOG, order_id, origin, placed};

    fn recorded(position: u64) -> RecordedEvent {
        let origin = origin(position);
        RecordedEvent {
            log: LOG,
            position: Position(position),
            epoch: Epoch(1),
            hash: LogHash::EMPTY,
            stream: order_id(1).stream(),
            version: Version(position),
            kind: String::new(),
            schema_version: 1,
            payload: Default::default(),
            event_id: origin.cause,
            request_id: None,
            causation_id: None,
            correlation_id: None,
            actor: String::new(),
            hlc: Hlc::new(origin.time, 0),
            traceparent: String::new(),
            home_epoch: Epoch(0),
            key_id: None,
        }
    }

    fn apply(changes: &mut Changes, position: u64, event: souk_domain::order::Event) -> Result<(), UnknownOrder> {
        let recorded = recorded(position);
        let effects = crate::fold::effects(&recorded.stream, &Event::Order(event)).unwrap();
        changes.apply(&recorded, effects, &BTreeMap::new())
    }

    #[test]
    fn an_order_that_came_and_went_within_a_batch_leaves_only_its_steps() {
        use souk_domain::order::Event::{OrderPlaced, OrderRejected, OrderReserved};
        let mut changes = Changes::default();
        apply(&mut changes, 1, OrderPlaced(placed())).unwrap();
        apply(&mut changes, 2, OrderReserved).unwrap();
        let key = (LOG, StepKind::ExpirePayment, Subject::Order(order_id(1)));
        assert_eq!(changes.set[&key].due, placed().payment_deadline);
        apply(&mut changes, 3, OrderRejected { refusals: vec![] }).unwrap();
        assert!(changes.remembered.is_empty() && changes.set.is_empty());
        assert!(changes.forgotten.contains(&(LOG, order_id(1))) && changes.cleared.contains(&key));
        let due: Vec<_> = changes.due.iter().map(|step| (step.kind, step.origin.position.0, step.placed.is_some())).collect();
        assert_eq!(due, [(StepKind::Reserve, 1, true), (StepKind::Release, 3, true)]);
        assert_eq!(apply(&mut changes, 4, OrderReserved), Err(UnknownOrder(order_id(1))));
    }

    #[test]
    fn a_timer_that_fires_while_an_event_ends_it_does_not_fire() {
        let timer = |due| {
            let (kind, subject) = (StepKind::ExpirePayment, Subject::Order(order_id(1)));
            Timer { kind, subject, due: UnixMillis(due), origin: origin(2) }
        };
        let mut changes = Changes::default();
        changes.fire(timer(5));
        assert_eq!((changes.due.len(), changes.due[0].origin.time, changes.cleared.len()), (1, UnixMillis(5), 1));
        let mut changes = Changes::default();
        let payment = souk_domain::order::Event::PaymentRecorded {
            reference: souk_domain::PaymentReference::new("p").unwrap(),
            amount: placed().total,
            refund_due: false,
        };
        apply(&mut changes, 3, payment).unwrap();
        changes.fire(timer(5));
        assert!(changes.due.is_empty());
        changes.set_timer(timer(9));
        assert!(changes.cleared.is_empty() && changes.set.len() == 1);
    }
}
