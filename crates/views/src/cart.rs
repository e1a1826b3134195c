use souk_event_sourcing::{UnixMillis, Version};
use souk_proto::cart::v1::{Cart, CartLine};
use souk_read_store::{Table, Value};

use crate::{
    CART,
    entity_view::{EntityView, Moment, millis},
    payload::events,
};

events!(CartEvent in cart { ItemAdded, ItemQuantitySet, ItemRemoved, CartCleared, CartCheckedOut });

impl EntityView for Cart {
    const CATEGORY: &'static str = "cart";
    const TABLE: &'static Table = &CART;
    const REVISION: u32 = 1;
    type Event = CartEvent;

    fn apply(&mut self, event: &CartEvent, _: &Moment) {
        match event {
            CartEvent::ItemAdded(added) => {
                let line = line(&mut self.lines, &added.product_id);
                line.quantity = line.quantity.saturating_add(added.quantity);
            }
            CartEvent::ItemQuantitySet(set) => line(&mut self.lines, &set.product_id).quantity = set.quantity,
            CartEvent::ItemRemoved(removed) => self.lines.retain(|line| line.product_id != removed.product_id),
            CartEvent::CartCleared(_) => self.lines.clear(),
            CartEvent::CartCheckedOut(checked_out) => self.lines.retain(|line| !checked_out.lines.contains(line)),
        }
    }

    fn stamp(&mut self, at: &Moment) {
        self.customer_id.clone_from(&at.id);
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

/// The line of a product, a new one at the end if there was none.
fn line<'a>(lines: &'a mut Vec<CartLine>, product: &str) -> &'a mut CartLine {
    let index = lines.iter().position(|line| line.product_id == product).unwrap_or_else(|| {
        lines.push(CartLine { product_id: product.to_owned(), quantity: 0 });
        lines.len() - 1
    });
    &mut lines[index]
}
