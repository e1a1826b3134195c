//! What an event means to the process: pure, so that the log alone decides what is due.

use souk_domain::{
    Event, OrderId,
    order::{self, Placed},
    stock::{self, Reserved},
};
use souk_event_sourcing::{StreamId, UnixMillis};

use crate::step::{StepKind, Subject};

/// What follows from one event, in order; what may fail for want of a remembered order stands first.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    /// Keep the order's lines until it needs them no more.
    Remember(OrderId, Placed),
    Forget(OrderId),
    /// A step is due now.
    Due(StepKind, Subject),
    /// A step becomes due later; one timer per kind and subject.
    Set(StepKind, Subject, When),
    Clear(StepKind, Subject),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    At(UnixMillis),
    /// At the payment deadline of the order.
    PaymentDeadline,
}

/// Events of these kinds mean something here; all others only move the checkpoint.
const RELEVANT: [&str; 10] = [
    "OrderPlaced",
    "OrderReserved",
    "OrderRejected",
    "PaymentRecorded",
    "OrderCancelled",
    "OrderShipped",
    "StockReserved",
    "ReservationReleased",
    "ReservationCommitted",
    "ReservationExpired",
];

pub(crate) fn is_relevant(kind: &str) -> bool {
    RELEVANT.contains(&kind)
}

/// Effects of an event on `stream`; `None` when the stream's id is none.
pub(crate) fn effects(stream: &StreamId, event: &Event) -> Option<Vec<Effect>> {
    Some(match event {
        Event::Order(event) => of_order(stream.id().parse().ok()?, event),
        Event::Stock(event) => of_stock(stream, event)?,
        Event::Product(_) | Event::Cart(_) => vec![],
    })
}

fn of_order(order: OrderId, event: &order::Event) -> Vec<Effect> {
    let subject = Subject::Order(order);
    match event {
        order::Event::OrderPlaced(placed) => vec![Effect::Remember(order, placed.clone()), Effect::Due(StepKind::Reserve, subject)],
        order::Event::OrderReserved => vec![Effect::Set(StepKind::ExpirePayment, subject, When::PaymentDeadline)],
        order::Event::PaymentRecorded { refund_due: false, .. } => vec![Effect::Clear(StepKind::ExpirePayment, subject)],
        order::Event::OrderRejected { .. } | order::Event::OrderCancelled { .. } => {
            vec![Effect::Due(StepKind::Release, subject.clone()), Effect::Clear(StepKind::ExpirePayment, subject), Effect::Forget(order)]
        }
        order::Event::OrderShipped(_) => vec![Effect::Due(StepKind::Commit, subject), Effect::Forget(order)],
        order::Event::PaymentRecorded { refund_due: true, .. } | order::Event::OrderDelivered => vec![],
    }
}

fn of_stock(stream: &StreamId, event: &stock::Event) -> Option<Vec<Effect>> {
    let hold = |reservation: &souk_domain::ReservationId| Some(Subject::Hold(stream.id().parse().ok()?, reservation.clone()));
    let ended = |reservation| Some(vec![Effect::Clear(StepKind::ExpireReservation, hold(reservation)?)]);
    match event {
        stock::Event::StockReserved(Reserved { reservation, hold: held, .. }) => {
            Some(vec![Effect::Set(StepKind::ExpireReservation, hold(reservation)?, When::At(held.expires))])
        }
        stock::Event::ReservationReleased { reservation, quantity: Some(_), .. }
        | stock::Event::ReservationCommitted { reservation, .. }
        | stock::Event::ReservationExpired { reservation, .. } => ended(reservation),
        _ => Some(vec![]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{kinds_of_all_events, order_id, placed};

    fn react(event: order::Event) -> Vec<Effect> {
        effects(&order_id(1).stream(), &Event::Order(event)).unwrap()
    }

    fn subject() -> Subject {
        Subject::Order(order_id(1))
    }

    #[test]
    fn a_placed_order_is_remembered_and_its_lines_are_reserved() {
        let expected = vec![Effect::Remember(order_id(1), placed()), Effect::Due(StepKind::Reserve, subject())];
        assert_eq!(react(order::Event::OrderPlaced(placed())), expected);
    }

    #[test]
    fn payment_is_awaited_until_its_deadline() {
        let set = vec![Effect::Set(StepKind::ExpirePayment, subject(), When::PaymentDeadline)];
        assert_eq!(react(order::Event::OrderReserved), set);
        let paid = |refund_due| order::Event::PaymentRecorded {
            reference: souk_domain::PaymentReference::new("p").unwrap(),
            amount: placed().total,
            refund_due,
        };
        assert_eq!(react(paid(false)), vec![Effect::Clear(StepKind::ExpirePayment, subject())]);
        assert_eq!(react(paid(true)), vec![]);
    }

    #[test]
    fn every_end_without_shipment_releases_all_lines() {
        let expected =
            [Effect::Due(StepKind::Release, subject()), Effect::Clear(StepKind::ExpirePayment, subject()), Effect::Forget(order_id(1))];
        assert_eq!(react(order::Event::OrderRejected { refusals: vec![] }), expected);
        let cancelled = order::Event::OrderCancelled { cause: order::CancelCause::Caller, reason: Default::default(), refund_due: false };
        assert_eq!(react(cancelled), expected);
        let shipped = [Effect::Due(StepKind::Commit, subject()), Effect::Forget(order_id(1))];
        assert_eq!(react(order::Event::OrderShipped(Default::default())), shipped);
        assert_eq!(react(order::Event::OrderDelivered), []);
    }

    #[test]
    fn a_hold_is_watched_until_it_ends() {
        let stream: StreamId = "stock-p-1".parse().unwrap();
        let (reservation, quantity) = (order_id(1).into(), souk_domain::Quantity::new(2).unwrap());
        let hold = stock::Hold { quantity, valid_until: UnixMillis(5), expires: UnixMillis(9) };
        let subject = Subject::Hold("p-1".parse().unwrap(), order_id(1).into());
        let reserved = stock::Event::StockReserved(Reserved { reservation, hold, decided: UnixMillis(1) });
        let set = vec![Effect::Set(StepKind::ExpireReservation, subject.clone(), When::At(UnixMillis(9)))];
        assert_eq!(effects(&stream, &Event::Stock(reserved)), Some(set));
        let released = |quantity| {
            let (valid_until, decided) = (UnixMillis(5), UnixMillis(1));
            Event::Stock(stock::Event::ReservationReleased { reservation: order_id(1).into(), quantity, valid_until, decided })
        };
        assert_eq!(effects(&stream, &released(Some(quantity))), Some(vec![Effect::Clear(StepKind::ExpireReservation, subject)]));
        assert_eq!(effects(&stream, &released(None)), Some(vec![]));
    }

    #[test]
    fn an_event_that_means_something_is_relevant() {
        for (stream, event, kind) in kinds_of_all_events() {
            let means_something = !effects(&stream, &event).unwrap().is_empty();
            assert!(!means_something || is_relevant(kind), "{kind}");
        }
    }

    #[test]
    fn an_order_stream_without_an_order_id_is_damage() {
        assert_eq!(effects(&"order-x".parse().unwrap(), &Event::Order(order::Event::OrderReserved)), None);
    }
}
