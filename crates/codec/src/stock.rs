use prost::Message;
use souk_domain::{
    Correction, Note, Quantity, Receipt, ReservationId,
    stock::{Event, Figures, Hold, Reserved, State, Tombstone},
};
use souk_event_sourcing::UnixMillis;
use souk_proto::stock::v1::{
    ReservationCommitted, ReservationExpired, ReservationReleased, SaleClosed, SaleOpened, StockAdjusted, StockOpened, StockReceived,
    StockReserved, StockSnapshot, stock_snapshot,
};

use crate::event::message;

pub(crate) fn encode(event: &Event) -> (&'static str, Vec<u8>) {
    match event {
        Event::StockOpened => ("StockOpened", StockOpened {}.encode_to_vec()),
        Event::SaleOpened => ("SaleOpened", SaleOpened {}.encode_to_vec()),
        Event::SaleClosed => ("SaleClosed", SaleClosed {}.encode_to_vec()),
        Event::StockReceived { quantity } => ("StockReceived", StockReceived { quantity: quantity.get() }.encode_to_vec()),
        Event::StockAdjusted { delta, note } => {
            ("StockAdjusted", StockAdjusted { delta: delta.get(), note: note.to_string() }.encode_to_vec())
        }
        Event::StockReserved(Reserved { reservation, hold, decided }) => {
            let reserved = StockReserved {
                order_id: reservation.to_string(),
                quantity: hold.quantity.get(),
                valid_until_ms: hold.valid_until.0,
                expires_ms: hold.expires.0,
                decided_ms: decided.0,
            };
            ("StockReserved", reserved.encode_to_vec())
        }
        Event::ReservationReleased { reservation, quantity, valid_until, decided } => {
            let released = ReservationReleased {
                order_id: reservation.to_string(),
                quantity: quantity.map_or(0, Quantity::get),
                valid_until_ms: valid_until.0,
                decided_ms: decided.0,
            };
            ("ReservationReleased", released.encode_to_vec())
        }
        Event::ReservationCommitted { reservation, quantity, decided } => {
            let committed = ReservationCommitted { order_id: reservation.to_string(), quantity: quantity.get(), decided_ms: decided.0 };
            ("ReservationCommitted", committed.encode_to_vec())
        }
        Event::ReservationExpired { reservation, quantity, decided } => {
            let expired = ReservationExpired { order_id: reservation.to_string(), quantity: quantity.get(), decided_ms: decided.0 };
            ("ReservationExpired", expired.encode_to_vec())
        }
    }
}

/// Outer `None`: unknown name; inner: damaged payload.
pub(crate) fn decode(kind: &str, payload: &[u8]) -> Option<Option<Event>> {
    Some(match kind {
        "StockOpened" => message(payload).map(|StockOpened {}| Event::StockOpened),
        "SaleOpened" => message(payload).map(|SaleOpened {}| Event::SaleOpened),
        "SaleClosed" => message(payload).map(|SaleClosed {}| Event::SaleClosed),
        "StockReceived" => message(payload).map(|StockReceived { quantity }| Event::StockReceived { quantity: Receipt::stored(quantity) }),
        "StockAdjusted" => message(payload)
            .map(|StockAdjusted { delta, note }| Event::StockAdjusted { delta: Correction::stored(delta), note: Note::stored(note) }),
        "StockReserved" => message(payload).and_then(reserved),
        "ReservationReleased" => message(payload).and_then(released),
        "ReservationCommitted" => message(payload).and_then(|ReservationCommitted { order_id, quantity, decided_ms }| {
            let (reservation, quantity) = (reservation(&order_id)?, Quantity::stored(quantity));
            Some(Event::ReservationCommitted { reservation, quantity, decided: UnixMillis(decided_ms) })
        }),
        "ReservationExpired" => message(payload).and_then(|ReservationExpired { order_id, quantity, decided_ms }| {
            let (reservation, quantity) = (reservation(&order_id)?, Quantity::stored(quantity));
            Some(Event::ReservationExpired { reservation, quantity, decided: UnixMillis(decided_ms) })
        }),
        _ => return None,
    })
}

fn reservation(order_id: &str) -> Option<ReservationId> {
    order_id.parse().ok()
}

fn reserved(event: StockReserved) -> Option<Event> {
    let hold = Hold {
        quantity: Quantity::stored(event.quantity),
        valid_until: UnixMillis(event.valid_until_ms),
        expires: UnixMillis(event.expires_ms),
    };
    Some(Event::StockReserved(Reserved { reservation: reservation(&event.order_id)?, hold, decided: UnixMillis(event.decided_ms) }))
}

fn released(event: ReservationReleased) -> Option<Event> {
    Some(Event::ReservationReleased {
        reservation: reservation(&event.order_id)?,
        quantity: (event.quantity != 0).then_some(Quantity::stored(event.quantity)),
        valid_until: UnixMillis(event.valid_until_ms),
        decided: UnixMillis(event.decided_ms),
    })
}

pub(crate) fn encode_state(state: &State) -> Vec<u8> {
    let Figures { opened, for_sale, on_hand, received, adjusted, shipped } = state.figures();
    let hold = |(reservation, hold): (&ReservationId, &Hold)| stock_snapshot::Hold {
        order_id: reservation.to_string(),
        quantity: hold.quantity.get(),
        valid_until_ms: hold.valid_until.0,
        expires_ms: hold.expires.0,
    };
    let tombstone = |(reservation, tombstone): (&ReservationId, &Tombstone)| stock_snapshot::Tombstone {
        order_id: reservation.to_string(),
        valid_until_ms: tombstone.valid_until.0,
        committed: tombstone.committed,
    };
    StockSnapshot {
        opened,
        for_sale,
        on_hand,
        received,
        adjusted,
        shipped,
        holds: state.holds().map(hold).collect(),
        tombstones: state.tombstones().map(tombstone).collect(),
        forgotten_until_ms: state.forgotten_until().0,
    }
    .encode_to_vec()
}

pub(crate) fn decode_state(bytes: &[u8]) -> Option<State> {
    let snapshot: StockSnapshot = message(bytes)?;
    let StockSnapshot { opened, for_sale, on_hand, received, adjusted, shipped, .. } = snapshot;
    let figures = Figures { opened, for_sale, on_hand, received, adjusted, shipped };
    let hold = |hold: &stock_snapshot::Hold| {
        let (valid_until, expires) = (UnixMillis(hold.valid_until_ms), UnixMillis(hold.expires_ms));
        Some((reservation(&hold.order_id)?, Hold { quantity: Quantity::stored(hold.quantity), valid_until, expires }))
    };
    let tombstone = |tombstone: &stock_snapshot::Tombstone| {
        let valid_until = UnixMillis(tombstone.valid_until_ms);
        Some((reservation(&tombstone.order_id)?, Tombstone { valid_until, committed: tombstone.committed }))
    };
    let holds: Vec<_> = snapshot.holds.iter().map(hold).collect::<Option<_>>()?;
    let tombstones: Vec<_> = snapshot.tombstones.iter().map(tombstone).collect::<Option<_>>()?;
    Some(State::restore(figures, holds, tombstones, UnixMillis(snapshot.forgotten_until_ms)))
}
