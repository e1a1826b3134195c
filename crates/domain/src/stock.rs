use std::collections::{BTreeMap, BTreeSet};

use souk_event_sourcing::{Decider, UnixMillis};

use crate::{Correction, InvalidValue, Note, Quantity, Receipt, Rejection, ReservationId};

/// Category of stock streams.
pub const CATEGORY: &str = "stock";

/// The rules of a product's stock: received + adjusted = on hand + shipped, and 0 ≤ reserved ≤ on hand.
#[derive(Debug)]
pub struct Stock;

/// What happened to the stock of a product.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The product exists from now on; not for sale yet.
    StockOpened,
    SaleOpened,
    SaleClosed,
    StockReceived {
        quantity: Receipt,
    },
    StockAdjusted {
        delta: Correction,
        note: Note,
    },
    StockReserved(Reserved),
    /// Without a quantity it came before its reservation: a tombstone until `valid_until`.
    ReservationReleased {
        reservation: ReservationId,
        quantity: Option<Quantity>,
        valid_until: UnixMillis,
        decided: UnixMillis,
    },
    /// The units left the house.
    ReservationCommitted {
        reservation: ReservationId,
        quantity: Quantity,
        decided: UnixMillis,
    },
    ReservationExpired {
        reservation: ReservationId,
        quantity: Quantity,
        decided: UnixMillis,
    },
}

/// Units held from now on.
#[derive(Debug, Clone, PartialEq)]
pub struct Reserved {
    pub reservation: ReservationId,
    pub hold: Hold,
    pub decided: UnixMillis,
}

/// Units held for an order. The order ends the hold; `expires` is a far safety net.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    pub quantity: Quantity,
    pub valid_until: UnixMillis,
    pub expires: UnixMillis,
}

/// A reservation that ended and may still be repeated: refused until `valid_until`, after which it is too late anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstone {
    pub valid_until: UnixMillis,
    pub committed: bool,
}

/// Figures of a stock. Available is what is on hand and not reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// False until the product was created.
    pub opened: bool,
    pub for_sale: bool,
    pub on_hand: i64,
    pub received: i64,
    pub adjusted: i64,
    pub shipped: i64,
}

/// A stock as its events left it. Its size follows what is open, not what ever happened.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    figures: Figures,
    reserved: i64,
    holds: BTreeMap<ReservationId, Hold>,
    tombstones: BTreeMap<ReservationId, Tombstone>,
    /// The tombstones by their end, so that forgetting costs no search.
    ends: BTreeSet<(UnixMillis, ReservationId)>,
    forgotten_until: UnixMillis,
}

impl State {
    /// From what a snapshot holds. Of two entries on one reservation the later counts.
    pub fn restore(
        figures: Figures,
        holds: impl IntoIterator<Item = (ReservationId, Hold)>,
        tombstones: impl IntoIterator<Item = (ReservationId, Tombstone)>,
        forgotten_until: UnixMillis,
    ) -> Self {
        let mut state = Self { figures, forgotten_until, ..Self::default() };
        state.holds.extend(holds);
        state.reserved = state.holds.values().fold(0, |sum: i64, hold| sum.saturating_add(hold.quantity.get()));
        tombstones.into_iter().for_each(|(reservation, tombstone)| state.bury(reservation, tombstone));
        state
    }

    pub const fn figures(&self) -> Figures {
        self.figures
    }

    pub const fn reserved(&self) -> i64 {
        self.reserved
    }

    pub const fn available(&self) -> i64 {
        self.figures.on_hand.saturating_sub(self.reserved)
    }

    /// What is held for `reservation`.
    pub fn hold(&self, reservation: &ReservationId) -> Option<&Hold> {
        self.holds.get(reservation)
    }

    pub fn holds(&self) -> impl Iterator<Item = (&ReservationId, &Hold)> {
        self.holds.iter()
    }

    pub fn tombstones(&self) -> impl Iterator<Item = (&ReservationId, &Tombstone)> {
        self.tombstones.iter()
    }

    /// Latest `valid_until` among the tombstones that were forgotten: what would have been refused up to here still is,
    /// whatever the clock of a later owner says.
    pub const fn forgotten_until(&self) -> UnixMillis {
        self.forgotten_until
    }

    fn is_past(&self, valid_until: UnixMillis, now: UnixMillis) -> bool {
        valid_until < now || valid_until <= self.forgotten_until
    }

    fn hold_units(&mut self, reservation: ReservationId, hold: Hold) {
        self.reserved = self.reserved.saturating_add(hold.quantity.get());
        self.holds.insert(reservation, hold);
    }

    /// Ends a hold, of which a tombstone remains.
    fn end(&mut self, reservation: &ReservationId, committed: bool) {
        if let Some(hold) = self.holds.remove(reservation) {
            self.reserved = self.reserved.saturating_sub(hold.quantity.get());
            self.bury(reservation.clone(), Tombstone { valid_until: hold.valid_until, committed });
        }
    }

    fn bury(&mut self, reservation: ReservationId, tombstone: Tombstone) {
        if let Some(before) = self.tombstones.insert(reservation.clone(), tombstone) {
            self.ends.remove(&(before.valid_until, reservation.clone()));
        }
        self.ends.insert((tombstone.valid_until, reservation));
    }

    fn forget(&mut self, now: UnixMillis) {
        while self.ends.first().is_some_and(|(end, _)| *end < now) {
            if let Some((end, reservation)) = self.ends.pop_first() {
                self.tombstones.remove(&reservation);
                self.forgotten_until = self.forgotten_until.max(end);
            }
        }
    }
}

/// Longest time a reservation may stay valid: bounds how long tombstones are kept.
pub const MAX_VALID_MS: i64 = 30 * 86_400_000;
/// Longest time a hold may outlive the validity of its reservation.
pub const MAX_HOLD_MS: i64 = 365 * 86_400_000;
const DEFAULT_VALID_MS: i64 = 15 * 60_000;
const DEFAULT_HOLD_MS: i64 = 86_400_000;

/// Until when a reservation asked for at `now` is valid; 15 minutes unless asked otherwise.
///
/// # Errors
/// Over 30 days ahead. A time in the past is no error here: the stock refuses it.
pub fn valid_until(asked: Option<UnixMillis>, now: UnixMillis) -> Result<UnixMillis, InvalidValue> {
    match asked.unwrap_or(now.plus_ms(DEFAULT_VALID_MS)) {
        time if time > now.plus_ms(MAX_VALID_MS) => Err(InvalidValue("want at most 30 days from now")),
        time => Ok(time),
    }
}

/// When a hold expires; 24 hours after `valid_until` unless asked otherwise.
///
/// # Errors
/// Before `valid_until`, or over a year after it.
pub fn expires(asked: Option<UnixMillis>, valid_until: UnixMillis) -> Result<UnixMillis, InvalidValue> {
    match asked.unwrap_or(valid_until.plus_ms(DEFAULT_HOLD_MS)) {
        time if time < valid_until || time > valid_until.plus_ms(MAX_HOLD_MS) => {
            Err(InvalidValue("want a time from valid_until to a year after it"))
        }
        time => Ok(time),
    }
}

/// What can be asked of a stock.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    Open,
    OpenSale,
    CloseSale,
    Receive(Receipt),
    Adjust {
        delta: Correction,
        note: Note,
    },
    Reserve {
        reservation: ReservationId,
        hold: Hold,
        now: UnixMillis,
    },
    Release {
        reservation: ReservationId,
        valid_until: UnixMillis,
        now: UnixMillis,
    },
    Commit {
        reservation: ReservationId,
        now: UnixMillis,
    },
    /// `needed`: an open order still counts on the units.
    Expire {
        reservation: ReservationId,
        needed: bool,
        now: UnixMillis,
    },
}

impl Decider for Stock {
    type State = State;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;

    fn evolve(mut state: State, event: &Event) -> State {
        let figures = &mut state.figures;
        match event {
            Event::StockOpened => figures.opened = true,
            Event::SaleOpened => figures.for_sale = true,
            Event::SaleClosed => figures.for_sale = false,
            Event::StockReceived { quantity } => {
                figures.on_hand = figures.on_hand.saturating_add(quantity.get());
                figures.received = figures.received.saturating_add(quantity.get());
            }
            Event::StockAdjusted { delta, .. } => {
                figures.on_hand = figures.on_hand.saturating_add(delta.get());
                figures.adjusted = figures.adjusted.saturating_add(delta.get());
            }
            Event::StockReserved(Reserved { reservation, hold, decided }) => {
                state.hold_units(reservation.clone(), *hold);
                state.forget(*decided);
            }
            Event::ReservationReleased { reservation, quantity, valid_until, decided } => {
                match quantity {
                    Some(_) => state.end(reservation, false),
                    None => state.bury(reservation.clone(), Tombstone { valid_until: *valid_until, committed: false }),
                }
                state.forget(*decided);
            }
            Event::ReservationCommitted { reservation, quantity, decided } => {
                figures.on_hand = figures.on_hand.saturating_sub(quantity.get());
                figures.shipped = figures.shipped.saturating_add(quantity.get());
                state.end(reservation, true);
                state.forget(*decided);
            }
            Event::ReservationExpired { reservation, decided, .. } => {
                state.end(reservation, false);
                state.forget(*decided);
            }
        }
        state
    }

    fn decide(state: &State, command: &Command) -> Result<Vec<Event>, Rejection> {
        let figures = state.figures;
        match command {
            Command::Open => Ok(if figures.opened { vec![] } else { vec![Event::StockOpened] }),
            _ if !figures.opened => Err(Rejection::ProductNotFound { products: vec![] }),
            Command::OpenSale => Ok(if figures.for_sale { vec![] } else { vec![Event::SaleOpened] }),
            Command::CloseSale => Ok(if figures.for_sale { vec![Event::SaleClosed] } else { vec![] }),
            Command::Receive(quantity) => receive(&figures, *quantity),
            Command::Adjust { delta, note } => adjust(state, *delta, note),
            Command::Reserve { reservation, hold, now } => reserve(state, reservation, *hold, *now),
            Command::Release { reservation, valid_until, now } => Ok(release(state, reservation, *valid_until, *now)),
            Command::Commit { reservation, now } => commit(state, reservation, *now),
            Command::Expire { reservation, needed, now } => Ok(expire(state, reservation, *needed, *now)),
        }
    }
}

fn receive(figures: &Figures, quantity: Receipt) -> Result<Vec<Event>, Rejection> {
    figures.on_hand.checked_add(quantity.get()).ok_or(Rejection::StockOutOfRange)?;
    figures.received.checked_add(quantity.get()).ok_or(Rejection::StockOutOfRange)?;
    Ok(vec![Event::StockReceived { quantity }])
}

fn adjust(state: &State, delta: Correction, note: &Note) -> Result<Vec<Event>, Rejection> {
    let Figures { on_hand, adjusted, .. } = state.figures;
    let reserved = state.reserved;
    adjusted.checked_add(delta.get()).ok_or(Rejection::StockOutOfRange)?;
    match on_hand.checked_add(delta.get()) {
        None => Err(Rejection::StockOutOfRange),
        Some(left) if left < reserved => Err(Rejection::BelowReserved { on_hand, reserved }),
        Some(_) => Ok(vec![Event::StockAdjusted { delta, note: note.clone() }]),
    }
}

/// What was held or has ended is looked at first, so that a late repeat is answered as the first time.
fn reserve(state: &State, reservation: &ReservationId, hold: Hold, now: UnixMillis) -> Result<Vec<Event>, Rejection> {
    match (state.holds.get(reservation), state.tombstones.get(reservation)) {
        (Some(held), _) if held.quantity == hold.quantity => return Ok(vec![]),
        (Some(held), _) => return Err(Rejection::ReservationDiffers { held: held.quantity.get() }),
        (None, Some(Tombstone { committed: true, .. })) => return Ok(vec![]),
        (None, Some(_)) => return Err(Rejection::ReservationReleased),
        (None, None) => {}
    }
    if state.is_past(hold.valid_until, now) {
        return Err(Rejection::ReservationExpired);
    }
    if !state.figures.for_sale {
        return Err(Rejection::NotForSale);
    }
    if state.available() < hold.quantity.get() {
        return Err(Rejection::InsufficientStock { available: state.available() });
    }
    Ok(vec![Event::StockReserved(Reserved { reservation: reservation.clone(), hold, decided: now })])
}

fn release(state: &State, reservation: &ReservationId, valid_until: UnixMillis, now: UnixMillis) -> Vec<Event> {
    let (quantity, valid_until) = match state.holds.get(reservation) {
        Some(hold) => (Some(hold.quantity), hold.valid_until),
        None if state.tombstones.contains_key(reservation) || state.is_past(valid_until, now) => return vec![],
        None => (None, valid_until),
    };
    vec![Event::ReservationReleased { reservation: reservation.clone(), quantity, valid_until, decided: now }]
}

fn commit(state: &State, reservation: &ReservationId, now: UnixMillis) -> Result<Vec<Event>, Rejection> {
    match (state.holds.get(reservation), state.tombstones.get(reservation)) {
        (Some(hold), _) => {
            Ok(vec![Event::ReservationCommitted { reservation: reservation.clone(), quantity: hold.quantity, decided: now }])
        }
        (None, Some(Tombstone { committed: true, .. })) => Ok(vec![]),
        (None, _) => Err(Rejection::ReservationNotFound),
    }
}

fn expire(state: &State, reservation: &ReservationId, needed: bool, now: UnixMillis) -> Vec<Event> {
    match state.holds.get(reservation) {
        Some(hold) if !needed && hold.expires <= now => {
            vec![Event::ReservationExpired { reservation: reservation.clone(), quantity: hold.quantity, decided: now }]
        }
        _ => vec![],
    }
}

#[cfg(test)]
mod tests;
