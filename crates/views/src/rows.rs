use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use souk_event_sourcing::{LogId, Position, RecordedEvent, StreamId, UnixMillis, Version};
use souk_proto::{cart::v1::Cart, catalog::v1::Product, orders::v1::Order, stock::v1::Availability};
use souk_read_store::{Parked, ReadStoreError, Row, RowKey, Table, Value};

use crate::{
    ORDER_TIMELINE, Poison, PoisonReason, SALES_DAY,
    entity_view::{BODY, EntityView, Moment, mark},
    generations::Generations,
    order::OrderEvent,
    sales, timeline,
};

/// Names an entity's row before it is known in which table it lies.
pub(crate) type EntityKey = (LogId, StreamId);

/// The row of one entity in its decoded form.
#[derive(Debug)]
pub(crate) enum Entity {
    Product(Product),
    Availability(Availability),
    Cart(Cart),
    Order(Box<Order>),
}

/// A row that is held in memory.
#[derive(Debug)]
pub(crate) struct Held {
    pub entity: Entity,
    /// Of the last event in it; 0 when there is none.
    pub position: Position,
    pub parked: Option<Parked>,
    pub changed: bool,
}

/// Rows that events are folded into. Applying is the same for one batch over cached rows and for a whole log from nothing;
/// only what was there before differs.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub entities: Generations<EntityKey, Held>,
    /// Keys of the entities whose `changed` is set.
    changed: Vec<EntityKey>,
    pub timeline: Vec<Row>,
    pub sales: BTreeMap<RowKey, Row>,
}

impl Entity {
    /// The row before the first event of a stream; `None` for a category without a view.
    pub(crate) fn empty(category: &str) -> Option<Self> {
        Some(match category {
            Product::CATEGORY => Self::Product(Product::default()),
            Availability::CATEGORY => Self::Availability(Availability::default()),
            Cart::CATEGORY => Self::Cart(Cart::default()),
            Order::CATEGORY => Self::Order(Box::default()),
            _ => return None,
        })
    }

    /// The row as it is stored.
    fn decode(category: &str, row: &Row) -> Result<Self, ReadStoreError> {
        let body = row.values[BODY].as_bytes().cloned().unwrap_or_else(Bytes::new);
        let decoded = match category {
            Product::CATEGORY => Product::decode(body).map(Self::Product),
            Availability::CATEGORY => Availability::decode(body).map(Self::Availability),
            Cart::CATEGORY => Cart::decode(body).map(Self::Cart),
            _ => Order::decode(body).map(|order| Self::Order(Box::new(order))),
        };
        decoded.map_err(|error| ReadStoreError::Corrupt { table: category.to_owned(), reason: error.to_string() })
    }

    pub(crate) fn table(&self) -> &'static Table {
        match self {
            Self::Product(_) => Product::TABLE,
            Self::Availability(_) => Availability::TABLE,
            Self::Cart(_) => Cart::TABLE,
            Self::Order(_) => Order::TABLE,
        }
    }

    fn version(&self) -> Version {
        match self {
            Self::Product(product) => product.version(),
            Self::Availability(availability) => availability.version(),
            Self::Cart(cart) => cart.version(),
            Self::Order(order) => order.version(),
        }
    }

    /// Takes over version and time of an event without what it says.
    fn stamp(&mut self, at: &Moment) {
        match self {
            Self::Product(product) => product.stamp(at),
            Self::Availability(availability) => availability.stamp(at),
            Self::Cart(cart) => cart.stamp(at),
            Self::Order(order) => order.stamp(at),
        }
    }
}

impl Held {
    /// Before the first event of a stream; `None` for a category without a view.
    pub(crate) fn empty(category: &str) -> Option<Self> {
        Entity::empty(category).map(|entity| Self { entity, position: Position(0), parked: None, changed: false })
    }

    /// As it is stored.
    pub(crate) fn stored(category: &str, row: &Row) -> Result<Self, ReadStoreError> {
        Ok(Self { entity: Entity::decode(category, row)?, position: row.position, parked: mark(row), changed: false })
    }

    /// Has its row written with the next ones.
    fn change(&mut self, key: EntityKey, changed: &mut Vec<EntityKey>) {
        if !std::mem::replace(&mut self.changed, true) {
            changed.push(key);
        }
    }

    pub(crate) fn to_row(&self, (log, stream): &EntityKey) -> Row {
        let key = RowKey { log: *log, key: vec![Value::from(stream.id())] };
        match &self.entity {
            Entity::Product(product) => product.to_row(key, self.position, self.parked),
            Entity::Availability(availability) => availability.to_row(key, self.position, self.parked),
            Entity::Cart(cart) => cart.to_row(key, self.position, self.parked),
            Entity::Order(order) => order.to_row(key, self.position, self.parked),
        }
    }
}

impl Rows {
    /// Folds one event in. An event that cannot be applied leaves the rows as they were.
    pub(crate) fn apply(&mut self, event: &RecordedEvent) -> Result<(), Poison> {
        let key = (event.log, event.stream.clone());
        let held = held(&mut self.entities, &key).ok_or_else(|| Poison::new(event, PoisonReason::UnknownCategory))?;
        if let Some(parked) = held.parked {
            return Err(Poison::new(event, PoisonReason::Behind(parked.at)));
        }
        let row = held.entity.version();
        if event.version != row.next() {
            return Err(Poison::new(event, PoisonReason::RowAstray { row, event: event.version }));
        }
        let at = Moment::of(event);
        match &mut held.entity {
            Entity::Product(product) => step(product, &crate::product::ProductEvent::decode(event)?, &at),
            Entity::Availability(availability) => step(availability, &crate::availability::StockEvent::decode(event)?, &at),
            Entity::Cart(cart) => step(cart, &crate::cart::CartEvent::decode(event)?, &at),
            Entity::Order(order) => {
                let decoded = OrderEvent::decode(event)?;
                step(order.as_mut(), &decoded, &at);
                self.timeline.push(timeline::row(event, &decoded));
                for more in sales::additions(event, &decoded, order) {
                    match self.sales.get_mut(&more.key) {
                        Some(row) => sales::add(row, &more),
                        None => drop(self.sales.insert(more.key.clone(), more)),
                    }
                }
            }
        }
        held.position = event.position;
        held.change(key, &mut self.changed);
        Ok(())
    }

    /// Sets an event aside: its entity stands still from here on. An entity of no view has nothing that could say so.
    pub(crate) fn park(&mut self, event: &RecordedEvent, since: UnixMillis) {
        let key = (event.log, event.stream.clone());
        if let Some(held) = held(&mut self.entities, &key)
            && held.parked.is_none()
        {
            held.parked = Some(Parked { at: event.position, since });
            held.change(key, &mut self.changed);
        }
    }

    /// Lets an entity go on.
    pub(crate) fn release(&mut self, log: LogId, stream: &StreamId) {
        let key = (log, stream.clone());
        if let Some(held) = held(&mut self.entities, &key)
            && held.parked.take().is_some()
        {
            held.change(key, &mut self.changed);
        }
    }

    /// Counts an event as one that changes nothing.
    pub(crate) fn skip(&mut self, event: &RecordedEvent) {
        let key = (event.log, event.stream.clone());
        if let Some(held) = held(&mut self.entities, &key) {
            held.entity.stamp(&Moment::of(event));
            held.position = event.position;
            held.change(key, &mut self.changed);
        }
    }

    /// Drops everything of a log.
    pub(crate) fn forget(&mut self, log: LogId) {
        self.entities.retain(|(of, _)| *of != log);
        self.changed.retain(|(of, _)| *of != log);
        self.timeline.retain(|row| row.key.log != log);
        self.sales.retain(|key, _| key.log != log);
    }

    /// Takes the rows that changed since the last call, by table.
    pub(crate) fn take_changed(&mut self) -> BTreeMap<&'static str, Vec<Row>> {
        let mut changed: BTreeMap<&'static str, Vec<Row>> = BTreeMap::new();
        for key in std::mem::take(&mut self.changed) {
            if let Some(held) = self.entities.get_mut(&key)
                && std::mem::take(&mut held.changed)
            {
                changed.entry(held.entity.table().name).or_default().push(held.to_row(&key));
            }
        }
        let timeline = std::mem::take(&mut self.timeline);
        let sales: Vec<_> = std::mem::take(&mut self.sales).into_values().collect();
        for (table, rows) in [(&ORDER_TIMELINE, timeline), (&SALES_DAY, sales)] {
            if !rows.is_empty() {
                changed.insert(table.name, rows);
            }
        }
        changed
    }
}

/// What is held of an entity, made if it must be; `None` for a category without a view.
fn held<'a>(entities: &'a mut Generations<EntityKey, Held>, key: &EntityKey) -> Option<&'a mut Held> {
    entities.get_or_insert(key, || Held::empty(key.1.category()))
}

fn step<V: EntityView>(view: &mut V, event: &V::Event, at: &Moment) {
    view.apply(event, at);
    view.stamp(at);
}
