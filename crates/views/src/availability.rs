use souk_event_sourcing::{UnixMillis, Version};
use souk_proto::stock::v1::Availability;
use souk_read_store::{Table, Value};

use crate::{
    AVAILABILITY,
    entity_view::{EntityView, Moment, millis},
    payload::events,
};

events!(StockEvent in stock {
    StockOpened, SaleOpened, SaleClosed, StockReceived, StockAdjusted, StockReserved, ReservationReleased, ReservationCommitted,
    ReservationExpired,
});

/// The figures follow from quantities alone: a released or expired hold carries its units, a tombstone none.
impl EntityView for Availability {
    const CATEGORY: &'static str = "stock";
    const TABLE: &'static Table = &AVAILABILITY;
    const REVISION: u32 = 1;
    type Event = StockEvent;

    fn apply(&mut self, event: &StockEvent, _: &Moment) {
        let add = |figure: &mut i64, units: i64| *figure = figure.saturating_add(units);
        match event {
            StockEvent::StockOpened(_) => {}
            StockEvent::SaleOpened(_) => self.for_sale = true,
            StockEvent::SaleClosed(_) => self.for_sale = false,
            StockEvent::StockReceived(received) => {
                add(&mut self.on_hand, received.quantity);
                add(&mut self.received, received.quantity);
            }
            StockEvent::StockAdjusted(adjusted) => {
                add(&mut self.on_hand, adjusted.delta);
                add(&mut self.adjusted, adjusted.delta);
            }
            StockEvent::StockReserved(reserved) => add(&mut self.reserved, reserved.quantity),
            StockEvent::ReservationReleased(released) => add(&mut self.reserved, released.quantity.saturating_neg()),
            StockEvent::ReservationExpired(expired) => add(&mut self.reserved, expired.quantity.saturating_neg()),
            StockEvent::ReservationCommitted(committed) => {
                add(&mut self.on_hand, committed.quantity.saturating_neg());
                add(&mut self.reserved, committed.quantity.saturating_neg());
                add(&mut self.shipped, committed.quantity);
            }
        }
        self.available = self.on_hand.saturating_sub(self.reserved);
    }

    fn stamp(&mut self, at: &Moment) {
        self.product_id.clone_from(&at.id);
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
        Vec::new()
    }
}
