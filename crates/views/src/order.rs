use souk_event_sourcing::{UnixMillis, Version};
use souk_proto::{
    common::v1::Money,
    orders::v1::{CancelCause, Order, OrderState},
};
use souk_read_store::{Table, Value};

use crate::{
    ORDER,
    entity_view::{EntityView, Moment, millis, timestamp},
    payload::events,
};

events!(OrderEvent in orders {
    OrderPlaced, OrderReserved, OrderRejected, PaymentRecorded, OrderCancelled, OrderShipped, OrderDelivered,
});

impl EntityView for Order {
    const CATEGORY: &'static str = "order";
    const TABLE: &'static Table = &ORDER;
    const REVISION: u32 = 1;
    type Event = OrderEvent;

    fn apply(&mut self, event: &OrderEvent, at: &Moment) {
        match event {
            OrderEvent::OrderPlaced(placed) => {
                self.set_state(OrderState::Reserving);
                self.customer_id.clone_from(&placed.customer_id);
                self.lines.clone_from(&placed.lines);
                self.total.clone_from(&placed.total);
                self.payment_deadline = Some(timestamp(UnixMillis(placed.payment_deadline_ms)));
                self.create_time = Some(at.time);
            }
            OrderEvent::OrderReserved(_) => self.set_state(OrderState::AwaitingPayment),
            OrderEvent::OrderRejected(rejected) => {
                self.set_state(OrderState::Rejected);
                self.refusals.clone_from(&rejected.refusals);
            }
            OrderEvent::PaymentRecorded(paid) => {
                if paid.refund_due {
                    self.owe(paid.amount.as_ref());
                } else {
                    self.set_state(OrderState::Paid);
                }
                if self.payment_reference.is_empty() {
                    self.payment_reference.clone_from(&paid.payment_reference);
                }
            }
            OrderEvent::OrderCancelled(cancelled) => {
                self.set_state(OrderState::Cancelled);
                self.cancel_reason = match cancelled.cause() {
                    CancelCause::PaymentDeadline if cancelled.reason.is_empty() => "payment deadline passed".to_owned(),
                    _ => cancelled.reason.clone(),
                };
                if cancelled.refund_due {
                    self.owe(self.total.clone().as_ref());
                }
            }
            OrderEvent::OrderShipped(shipped) => {
                self.set_state(OrderState::Shipped);
                self.carrier.clone_from(&shipped.carrier);
                self.tracking_number.clone_from(&shipped.tracking_number);
            }
            OrderEvent::OrderDelivered(_) => self.set_state(OrderState::Delivered),
        }
    }

    fn stamp(&mut self, at: &Moment) {
        self.order_id.clone_from(&at.id);
        self.version = at.version.0;
        self.etag = at.etag();
        self.update_time = Some(at.time);
    }

    fn version(&self) -> Version {
        Version(self.version)
    }

    fn updated(&self) -> UnixMillis {
        millis(self.update_time.as_ref())
    }

    fn filters(&self) -> Vec<Value> {
        let placed = millis(self.create_time.as_ref());
        vec![Value::Text(self.customer_id.clone()), Value::Int(self.state.into()), Value::Int(placed.0)]
    }
}

/// Money that is owed back to the customer.
trait Owing {
    fn owe(&mut self, amount: Option<&Money>);
}

impl Owing for Order {
    fn owe(&mut self, amount: Option<&Money>) {
        let Some(amount) = amount else { return };
        let owed = self.refund_due.get_or_insert_with(|| Money { currency: amount.currency.clone(), minor_units: 0 });
        owed.minor_units = owed.minor_units.saturating_add(amount.minor_units);
    }
}
