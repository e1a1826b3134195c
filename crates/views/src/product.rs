use souk_event_sourcing::{UnixMillis, Version};
use souk_proto::catalog::v1::{Product, ProductState};
use souk_read_store::{Table, Value};

use crate::{
    PRODUCT,
    entity_view::{EntityView, Moment, millis},
    payload::events,
};

events!(ProductEvent in catalog { ProductCreated, ProductDetailsChanged, PriceSet, ProductPublished, ProductDiscontinued });

impl EntityView for Product {
    const CATEGORY: &'static str = "product";
    const TABLE: &'static Table = &PRODUCT;
    const REVISION: u32 = 1;
    type Event = ProductEvent;

    fn apply(&mut self, event: &ProductEvent, at: &Moment) {
        match event {
            ProductEvent::ProductCreated(created) => {
                self.set_state(ProductState::Draft);
                self.details = Some(created.details.clone().unwrap_or_default());
                self.price.clone_from(&created.price);
                self.create_time = Some(at.time);
            }
            ProductEvent::ProductDetailsChanged(changed) => {
                let details = self.details.get_or_insert_default();
                let replace = |text: &mut String, new: &Option<String>| new.iter().for_each(|new| text.clone_from(new));
                replace(&mut details.title, &changed.title);
                replace(&mut details.description, &changed.description);
                replace(&mut details.category, &changed.category);
                if let Some(tags) = &changed.tags {
                    details.tags.clone_from(&tags.values);
                }
            }
            ProductEvent::PriceSet(set) => self.price.clone_from(&set.price),
            ProductEvent::ProductPublished(_) => self.set_state(ProductState::Published),
            ProductEvent::ProductDiscontinued(_) => self.set_state(ProductState::Discontinued),
        }
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
        let (category, tags) = self.details.as_ref().map(|details| (details.category.clone(), details.tags.clone())).unwrap_or_default();
        vec![Value::Int(self.state.into()), Value::Text(category), Value::Texts(tags)]
    }
}
