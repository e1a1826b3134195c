use prost::Message;
use souk_domain::{
    CancelReason, Carrier, PaymentReference, TrackingNumber,
    order::{CancelCause, Event, Placed, Shipment, State},
};
use souk_event_sourcing::UnixMillis;
use souk_proto::orders::v1::{
    CancelCause as CancelCausePb, OrderCancelled, OrderDelivered, OrderPlaced, OrderRejected, OrderReserved, OrderShipped, OrderSnapshot,
    PaymentRecorded,
};

use crate::{
    convert::{money, order_line, order_state, refusal, stored_money, stored_order_line, stored_order_state, stored_refusal},
    event::message,
};

pub(crate) fn encode(event: &Event) -> (&'static str, Vec<u8>) {
    match event {
        Event::OrderPlaced(placed) => ("OrderPlaced", encode_placed(placed).encode_to_vec()),
        Event::OrderReserved => ("OrderReserved", OrderReserved {}.encode_to_vec()),
        Event::OrderRejected { refusals } => {
            ("OrderRejected", OrderRejected { refusals: refusals.iter().map(refusal).collect() }.encode_to_vec())
        }
        Event::PaymentRecorded { reference, amount, refund_due } => {
            let recorded =
                PaymentRecorded { payment_reference: reference.to_string(), amount: Some(money(*amount)), refund_due: *refund_due };
            ("PaymentRecorded", recorded.encode_to_vec())
        }
        Event::OrderCancelled { cause, reason, refund_due } => {
            let cause = match cause {
                CancelCause::Caller => CancelCausePb::Caller,
                CancelCause::PaymentDeadline => CancelCausePb::PaymentDeadline,
            };
            let cancelled = OrderCancelled { cause: cause.into(), reason: reason.to_string(), refund_due: *refund_due };
            ("OrderCancelled", cancelled.encode_to_vec())
        }
        Event::OrderShipped(Shipment { carrier, tracking_number }) => {
            let shipped = OrderShipped { carrier: carrier.to_string(), tracking_number: tracking_number.to_string() };
            ("OrderShipped", shipped.encode_to_vec())
        }
        Event::OrderDelivered => ("OrderDelivered", OrderDelivered {}.encode_to_vec()),
    }
}

fn encode_placed(placed: &Placed) -> OrderPlaced {
    OrderPlaced {
        customer_id: placed.customer.to_string(),
        lines: placed.lines.iter().map(order_line).collect(),
        total: Some(money(placed.total)),
        payment_deadline_ms: placed.payment_deadline.0,
    }
}

fn decode_placed(placed: OrderPlaced) -> Option<Placed> {
    Some(Placed {
        customer: placed.customer_id.parse().ok()?,
        lines: placed.lines.iter().map(stored_order_line).collect::<Option<_>>()?,
        total: stored_money(&placed.total?)?,
        payment_deadline: UnixMillis(placed.payment_deadline_ms),
    })
}

/// Outer `None`: unknown name; inner: damaged payload.
pub(crate) fn decode(kind: &str, payload: &[u8]) -> Option<Option<Event>> {
    Some(match kind {
        "OrderPlaced" => message(payload).and_then(decode_placed).map(Event::OrderPlaced),
        "OrderReserved" => message(payload).map(|OrderReserved {}| Event::OrderReserved),
        "OrderRejected" => message(payload).and_then(|OrderRejected { refusals }| {
            Some(Event::OrderRejected { refusals: refusals.iter().map(stored_refusal).collect::<Option<_>>()? })
        }),
        "PaymentRecorded" => message(payload).and_then(|PaymentRecorded { payment_reference, amount, refund_due }| {
            let reference = PaymentReference::stored(payment_reference);
            Some(Event::PaymentRecorded { reference, amount: stored_money(&amount?)?, refund_due })
        }),
        "OrderCancelled" => message(payload).and_then(|OrderCancelled { cause, reason, refund_due }| {
            let cause = match CancelCausePb::try_from(cause).ok()? {
                CancelCausePb::Unspecified => return None,
                CancelCausePb::Caller => CancelCause::Caller,
                CancelCausePb::PaymentDeadline => CancelCause::PaymentDeadline,
            };
            Some(Event::OrderCancelled { cause, reason: CancelReason::stored(reason), refund_due })
        }),
        "OrderShipped" => {
            message(payload).map(|OrderShipped { carrier, tracking_number }| Event::OrderShipped(shipment(carrier, tracking_number)))
        }
        "OrderDelivered" => message(payload).map(|OrderDelivered {}| Event::OrderDelivered),
        _ => return None,
    })
}

fn shipment(carrier: String, tracking_number: String) -> Shipment {
    Shipment { carrier: Carrier::stored(carrier), tracking_number: TrackingNumber::stored(tracking_number) }
}

pub(crate) fn encode_state(state: &State) -> Vec<u8> {
    let placed = state.placed.as_ref().map(encode_placed).unwrap_or_default();
    let shipment = state.shipment.clone();
    OrderSnapshot {
        state: order_state(state.status).into(),
        customer_id: placed.customer_id,
        lines: placed.lines,
        total: placed.total,
        payment_deadline_ms: placed.payment_deadline_ms,
        payment_references: state.payments.iter().map(ToString::to_string).collect(),
        shipment: shipment.map(|Shipment { carrier, tracking_number }| OrderShipped {
            carrier: carrier.to_string(),
            tracking_number: tracking_number.to_string(),
        }),
    }
    .encode_to_vec()
}

pub(crate) fn decode_state(bytes: &[u8]) -> Option<State> {
    let snapshot: OrderSnapshot = message(bytes)?;
    let OrderSnapshot { state, customer_id, lines, total, payment_deadline_ms, payment_references, shipment: shipped } = snapshot;
    // An order that was never placed has no customer.
    let placed = match customer_id.is_empty() {
        true => None,
        false => Some(decode_placed(OrderPlaced { customer_id, lines, total, payment_deadline_ms })?),
    };
    Some(State {
        status: stored_order_state(state)?,
        placed,
        payments: payment_references.into_iter().map(PaymentReference::stored).collect(),
        shipment: shipped.map(|OrderShipped { carrier, tracking_number }| shipment(carrier, tracking_number)),
    })
}
