use souk_event_sourcing::RecordedEvent;
use souk_proto::orders::v1::{Order, OrderLine};
use souk_read_store::{Row, RowKey, Value};

use crate::{Day, order::OrderEvent};

/// Grows with every change of what is counted.
pub(crate) const REVISION: u32 = 1;

/// What an event adds to the sales: the lines of `order`, as it is with the event, when it was paid.
pub(crate) fn additions<'a>(event: &'a RecordedEvent, decoded: &OrderEvent, order: &'a Order) -> impl Iterator<Item = Row> + 'a {
    let counts = matches!(decoded, OrderEvent::PaymentRecorded(paid) if !paid.refund_due);
    order.lines.iter().filter(move |_| counts).map(|line| addition(event, line))
}

fn addition(event: &RecordedEvent, line: &OrderLine) -> Row {
    let day = Day::of(event.hlc.time());
    let price = line.unit_price.clone().unwrap_or_default();
    Row {
        key: RowKey {
            log: event.log,
            key: vec![Value::Int(day.0.into()), Value::from(line.product_id.as_str()), Value::Text(price.currency)],
        },
        position: event.position,
        revision: REVISION,
        values: vec![Value::Int(line.quantity), Value::Int(price.minor_units.saturating_mul(line.quantity))],
    }
}

/// Adds `more` to the row of the same key.
pub(crate) fn add(row: &mut Row, more: &Row) {
    row.position = row.position.max(more.position);
    for (sum, more) in row.values.iter_mut().zip(&more.values) {
        if let (Value::Int(sum), Value::Int(more)) = (sum, more) {
            *sum = sum.saturating_add(*more);
        }
    }
}
