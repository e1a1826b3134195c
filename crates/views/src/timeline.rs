use prost::Message;
use souk_event_sourcing::RecordedEvent;
use souk_proto::{
    common::v1::Money,
    orders::v1::{CancelCause, TimelineEntry},
};
use souk_read_store::{Row, RowKey, Value};

use crate::{entity_view::timestamp, order::OrderEvent};

/// Grows with every change of what a row says.
pub(crate) const REVISION: u32 = 1;

/// The row of one event of an order.
pub(crate) fn row(event: &RecordedEvent, decoded: &OrderEvent) -> Row {
    let entry = TimelineEntry {
        r#type: event.kind.clone(),
        version: event.version.0,
        position: event.position.0,
        summary: summary(decoded),
        event_time: Some(timestamp(event.hlc.time())),
        projected_time: None,
        request_id: event.request_id.map(|id| id.to_string()).unwrap_or_default(),
        actor: event.actor.clone(),
    };
    Row {
        key: RowKey { log: event.log, key: vec![Value::from(event.stream.id()), Value::Int(event.version.0 as i64)] },
        position: event.position,
        revision: REVISION,
        values: vec![Value::Bytes(entry.encode_to_vec().into())],
    }
}

/// One line for people.
fn summary(event: &OrderEvent) -> String {
    match event {
        OrderEvent::OrderPlaced(placed) => {
            let units: i64 = placed.lines.iter().map(|line| line.quantity).fold(0, i64::saturating_add);
            format!("placed: {} of {} products for {}", count(units, "unit"), placed.lines.len(), money(placed.total.as_ref()))
        }
        OrderEvent::OrderReserved(_) => "every line is reserved, payment is awaited".to_owned(),
        OrderEvent::OrderRejected(rejected) => {
            let refusals = rejected.refusals.iter().map(|refusal| format!("{} {}", refusal.product_id, refusal.reason));
            format!("rejected: {}", refusals.collect::<Vec<_>>().join(", "))
        }
        OrderEvent::PaymentRecorded(paid) if paid.refund_due => {
            format!("payment {} of {} came after the end: owed back", paid.payment_reference, money(paid.amount.as_ref()))
        }
        OrderEvent::PaymentRecorded(paid) => format!("paid {} with {}", money(paid.amount.as_ref()), paid.payment_reference),
        OrderEvent::OrderCancelled(cancelled) => {
            let cause = match cancelled.cause() {
                CancelCause::PaymentDeadline => "the payment deadline passed",
                CancelCause::Caller | CancelCause::Unspecified if cancelled.reason.is_empty() => "by the caller",
                CancelCause::Caller | CancelCause::Unspecified => &cancelled.reason,
            };
            format!("cancelled: {cause}{}", if cancelled.refund_due { "; the payment is owed back" } else { "" })
        }
        OrderEvent::OrderShipped(shipped) => format!("shipped with {} {}", shipped.carrier, shipped.tracking_number).trim_end().to_owned(),
        OrderEvent::OrderDelivered(_) => "delivered".to_owned(),
    }
}

fn count(number: i64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// In minor units, for how many of them make a unit is the currency's business.
fn money(money: Option<&Money>) -> String {
    money.map_or_else(|| "nothing".to_owned(), |money| format!("{} minor units {}", money.minor_units, money.currency))
}
