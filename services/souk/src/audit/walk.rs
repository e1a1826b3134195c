use std::collections::{BTreeMap, HashMap};

use souk_codec as codec;
use souk_domain::Entity;
use souk_event_sourcing::{Epoch, LogHash, LogId, Position, RecordedEvent, RequestId, StreamId, UnixMillis, Version};
use souk_views::Reference;

use super::findings::Findings;

/// Entities of a log that stand still in its views, and from which position on.
#[derive(Debug, Default)]
pub struct Parked {
    pub streams: HashMap<StreamId, Position>,
    /// When that was last mended, as the checkpoint says.
    pub repaired: UnixMillis,
}

/// One log walked event by event from some position on: what must hold of each event, and what all of them lead to.
pub struct Walk {
    pub log: LogId,
    pub position: Position,
    pub hash: LogHash,
    epoch: Epoch,
    /// Walked from the first event: folds and stream versions are complete.
    whole: bool,
    pub streams: BTreeMap<StreamId, Version>,
    pub reference: Reference,
    /// What stands still in the views.
    pub parked: Parked,
    entities: HashMap<StreamId, Entity>,
    /// The last event of each request that the ledger was not asked for yet: where it lies, and when it was recorded.
    pub requests: HashMap<RequestId, (Position, UnixMillis)>,
}

impl Walk {
    /// Begins behind `position`, whose running hash is `hash`.
    pub fn new(log: LogId, position: Position, hash: LogHash, parked: Parked) -> Self {
        Self {
            log,
            position,
            hash,
            epoch: Epoch(0),
            whole: position == Position(0),
            streams: BTreeMap::new(),
            reference: Reference::default(),
            parked,
            entities: HashMap::new(),
            requests: HashMap::new(),
        }
    }

    pub const fn is_whole(&self) -> bool {
        self.whole
    }

    /// Takes the next event as it is stored.
    pub fn step(&mut self, event: &RecordedEvent, found: &mut Findings) {
        let at = event.position;
        found.count("events", 1);
        if at != self.position.next() {
            found.differ(self.log, "position", format!("{at} follows {}", self.position));
        }
        if event.hash != self.hash.after(event) {
            found.differ(self.log, "hash", format!("event {at} does not continue the log"));
        }
        if event.epoch < self.epoch {
            found.differ(self.log, "epoch", format!("event {at} has epoch {} behind {}", event.epoch, self.epoch));
        }
        (self.position, self.hash, self.epoch) = (at, event.hash, event.epoch);
        if let Some(request) = event.request_id {
            self.requests.insert(request, (at, event.hlc.time()));
        }
        if self.whole {
            self.fold(event, found);
        }
    }

    fn fold(&mut self, event: &RecordedEvent, found: &mut Findings) {
        let at = event.position;
        let before = self.streams.insert(event.stream.clone(), event.version).unwrap_or_default();
        if event.version != before.next() {
            found.differ(self.log, "stream version", format!("{} goes from {before} to {} at {at}", event.stream, event.version));
        }
        if self.parked.streams.get(&event.stream).is_some_and(|parked| at >= *parked) {
            found.count("parked events", 1);
            return;
        }
        if let Err(poison) = self.reference.apply(event) {
            found.differ(self.log, "view fold", format!("event {at} of {}: {poison}", event.stream));
        }
        let decoded = match codec::decode(&event.stream, &event.kind, event.schema_version, &event.payload) {
            Ok(decoded) => decoded,
            Err(error) => return found.differ(self.log, "payload", format!("event {at} of {}: {error}", event.stream)),
        };
        let Some(initial) = Entity::of(&event.stream) else {
            return found.differ(self.log, "stream name", format!("{} at {at}", event.stream));
        };
        let entity = self.entities.entry(event.stream.clone()).or_insert(initial);
        if entity.evolve(&decoded).is_err() {
            found.differ(self.log, "payload", format!("event {at} is not of the kind of {}", event.stream));
        }
        if let Some(stock) = entity.as_stock() {
            let figures = stock.figures();
            found.count("stock states", 1);
            let held: i64 = stock.holds().map(|(_, hold)| hold.quantity.get()).sum();
            if figures.received + figures.adjusted != figures.on_hand + figures.shipped {
                found.differ(
                    self.log,
                    "stock",
                    format!(
                        "{} at {at}: received {} + adjusted {} is not on hand {} + shipped {}",
                        event.stream, figures.received, figures.adjusted, figures.on_hand, figures.shipped
                    ),
                );
            }
            if stock.reserved() > figures.on_hand || stock.reserved() < 0 || held != stock.reserved() {
                found.differ(
                    self.log,
                    "stock",
                    format!("{} at {at}: {} reserved ({held} in holds) of {} on hand", event.stream, stock.reserved(), figures.on_hand),
                );
            }
        }
    }
}
