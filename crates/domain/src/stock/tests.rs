use souk_event_sourcing::given;

use super::*;

const DEADLINE: UnixMillis = UnixMillis(1_000);
const NOW: UnixMillis = UnixMillis(100);

fn id(text: &str) -> ReservationId {
    text.parse().unwrap()
}

fn units(number: i64) -> Quantity {
    Quantity::new(number).unwrap()
}

fn hold(quantity: i64) -> Hold {
    Hold { quantity: units(quantity), valid_until: DEADLINE, expires: DEADLINE.plus_ms(5_000) }
}

fn received(quantity: i64) -> Event {
    Event::StockReceived { quantity: Receipt::new(quantity).unwrap() }
}

fn reserved(order: &str, quantity: i64) -> Event {
    Event::StockReserved(Reserved { reservation: id(order), hold: hold(quantity), decided: NOW })
}

fn released(order: &str, quantity: Option<i64>, decided: UnixMillis) -> Event {
    Event::ReservationReleased { reservation: id(order), quantity: quantity.map(units), valid_until: DEADLINE, decided }
}

fn committed(order: &str, quantity: i64, decided: UnixMillis) -> Event {
    Event::ReservationCommitted { reservation: id(order), quantity: units(quantity), decided }
}

fn expired(order: &str, quantity: i64, decided: UnixMillis) -> Event {
    Event::ReservationExpired { reservation: id(order), quantity: units(quantity), decided }
}

fn reserve(order: &str, quantity: i64, now: UnixMillis) -> Command {
    Command::Reserve { reservation: id(order), hold: hold(quantity), now }
}

fn release(order: &str, now: UnixMillis) -> Command {
    Command::Release { reservation: id(order), valid_until: DEADLINE, now }
}

fn commit(order: &str, now: UnixMillis) -> Command {
    Command::Commit { reservation: id(order), now }
}

fn expire(order: &str, needed: bool, now: UnixMillis) -> Command {
    Command::Expire { reservation: id(order), needed, now }
}

fn adjust(delta: i64) -> Command {
    Command::Adjust { delta: Correction::new(delta).unwrap(), note: Note::default() }
}

fn adjusted(delta: i64) -> Event {
    Event::StockAdjusted { delta: Correction::new(delta).unwrap(), note: Note::default() }
}

/// Ten units on sale, then `events`.
fn on_sale(events: impl IntoIterator<Item = Event>) -> souk_event_sourcing::Given<Stock> {
    given([Event::StockOpened, Event::SaleOpened, received(10)].into_iter().chain(events))
}

#[test]
fn a_stock_opens_once_and_nothing_works_before() {
    given::<Stock>([]).when(Command::Open).then([Event::StockOpened]);
    given::<Stock>([Event::StockOpened]).when(Command::Open).then_nothing();
    for command in [Command::OpenSale, Command::CloseSale, Command::Receive(Receipt::new(1).unwrap()), adjust(1), commit("o", NOW)] {
        given::<Stock>([]).when(command).then_refused(Rejection::ProductNotFound { products: vec![] });
    }
}

#[test]
fn a_sale_opens_and_closes() {
    given::<Stock>([Event::StockOpened]).when(Command::OpenSale).then([Event::SaleOpened]);
    on_sale([]).when(Command::OpenSale).then_nothing();
    on_sale([]).when(Command::CloseSale).then([Event::SaleClosed]);
    on_sale([Event::SaleClosed]).when(Command::CloseSale).then_nothing();
}

#[test]
fn receiving_never_overflows() {
    on_sale([]).when(Command::Receive(Receipt::new(5).unwrap())).then([received(5)]);
    let full = Figures { opened: true, received: i64::MAX, on_hand: 1, ..Figures::default() };
    let state = State::restore(full, [], [], UnixMillis(0));
    assert_eq!(Stock::decide(&state, &Command::Receive(Receipt::new(1).unwrap())), Err(Rejection::StockOutOfRange));
}

#[test]
fn adjusting_stops_at_what_is_reserved() {
    on_sale([reserved("o", 4)]).when(adjust(-6)).then([adjusted(-6)]);
    on_sale([reserved("o", 4)]).when(adjust(-7)).then_refused(Rejection::BelowReserved { on_hand: 10, reserved: 4 });
    let figures = Figures { opened: true, on_hand: i64::MAX, ..Figures::default() };
    let state = State::restore(figures, [], [], UnixMillis(0));
    assert_eq!(Stock::decide(&state, &adjust(1)), Err(Rejection::StockOutOfRange));
}

#[test]
fn a_reservation_is_all_or_nothing_and_names_what_is_available() {
    on_sale([]).when(reserve("o", 10, NOW)).then([reserved("o", 10)]);
    on_sale([reserved("a", 4)]).when(reserve("o", 7, NOW)).then_refused(Rejection::InsufficientStock { available: 6 });
}

#[test]
fn a_repeated_reservation_changes_nothing() {
    on_sale([reserved("o", 4)]).when(reserve("o", 4, NOW)).then_nothing();
    on_sale([reserved("o", 4)]).when(reserve("o", 4, DEADLINE.plus_ms(1))).then_nothing();
    on_sale([reserved("o", 4)]).when(reserve("o", 5, NOW)).then_refused(Rejection::ReservationDiffers { held: 4 });
    on_sale([reserved("o", 4), committed("o", 4, NOW)]).when(reserve("o", 4, NOW)).then_nothing();
}

#[test]
fn what_is_not_for_sale_is_not_reserved() {
    on_sale([Event::SaleClosed]).when(reserve("o", 1, NOW)).then_refused(Rejection::NotForSale);
    on_sale([reserved("o", 4), Event::SaleClosed]).when(commit("o", NOW)).then([committed("o", 4, NOW)]);
}

#[test]
fn a_reservation_after_its_valid_until_is_refused() {
    on_sale([])
        .when(Command::Reserve { reservation: id("o"), hold: hold(1), now: DEADLINE.plus_ms(1) })
        .then_refused(Rejection::ReservationExpired);
    on_sale([]).when(reserve("o", 1, DEADLINE)).then([Event::StockReserved(Reserved {
        reservation: id("o"),
        hold: hold(1),
        decided: DEADLINE,
    })]);
}

#[test]
fn a_release_gives_the_units_back_once() {
    on_sale([reserved("o", 4)]).when(release("o", NOW)).then([released("o", Some(4), NOW)]);
    on_sale([reserved("o", 4), released("o", Some(4), NOW)]).when(release("o", NOW)).then_nothing();
    let state = Stock::fold(&[Event::StockOpened, received(10), reserved("o", 4), released("o", Some(4), NOW)]);
    assert_eq!((state.available(), state.reserved()), (10, 0));
}

#[test]
fn a_release_that_overtakes_its_reservation_leaves_a_tombstone() {
    on_sale([]).when(release("o", NOW)).then([released("o", None, NOW)]);
    on_sale([released("o", None, NOW)]).when(reserve("o", 1, NOW)).then_refused(Rejection::ReservationReleased);
    on_sale([released("o", None, NOW)]).when(release("o", NOW)).then_nothing();
    on_sale([]).when(release("o", DEADLINE.plus_ms(1))).then_nothing();
}

#[test]
fn tombstones_are_forgotten_after_their_time_and_still_refuse() {
    let later = DEADLINE.plus_ms(1);
    let events =
        [Event::StockOpened, Event::SaleOpened, received(10), reserved("a", 4), released("a", Some(4), NOW), released("b", None, later)];
    let state = Stock::fold(&events);
    assert_eq!((state.tombstones().count(), state.forgotten_until()), (0, DEADLINE));
    // Another owner's clock is behind: the release of `a` must still hold.
    assert_eq!(Stock::decide(&state, &reserve("a", 4, NOW)), Err(Rejection::ReservationExpired));
    assert_eq!(Stock::decide(&state, &release("a", NOW)), Ok(vec![]));
}

#[test]
fn memory_follows_what_is_open() {
    let opened = Stock::fold(&[Event::StockOpened, Event::SaleOpened, received(1_000_000)]);
    let state = (0..10_000i64).fold(opened, |state, step| {
        let now = UnixMillis(step * 10);
        let order = id(&format!("o-{step}"));
        let hold = Hold { quantity: units(1), valid_until: now.plus_ms(100), expires: now.plus_ms(1_000) };
        let state = Stock::evolve(state, &Event::StockReserved(Reserved { reservation: order.clone(), hold, decided: now }));
        Stock::evolve(state, &committed(order.as_str(), 1, now.plus_ms(5)))
    });
    assert!(state.tombstones().count() <= 11 && state.holds().count() == 0);
    assert_eq!((state.figures().shipped, state.figures().on_hand), (10_000, 990_000));
}

#[test]
fn a_commit_ships_the_units_once() {
    on_sale([reserved("o", 4)]).when(commit("o", NOW)).then([committed("o", 4, NOW)]);
    on_sale([reserved("o", 4), committed("o", 4, NOW)]).when(commit("o", NOW)).then_nothing();
    on_sale([]).when(commit("o", NOW)).then_refused(Rejection::ReservationNotFound);
    on_sale([reserved("o", 4), released("o", Some(4), NOW)]).when(commit("o", NOW)).then_refused(Rejection::ReservationNotFound);
}

#[test]
fn a_hold_expires_only_late_and_unneeded() {
    let late = DEADLINE.plus_ms(5_000);
    on_sale([reserved("o", 4)]).when(expire("o", false, late)).then([expired("o", 4, late)]);
    on_sale([reserved("o", 4)]).when(expire("o", true, late)).then_nothing();
    on_sale([reserved("o", 4)]).when(expire("o", false, late.plus_ms(-1))).then_nothing();
    on_sale([reserved("o", 4), expired("o", 4, late)]).when(expire("o", false, late)).then_nothing();
}

#[test]
fn times_of_a_hold_are_bounded() {
    assert_eq!(valid_until(None, NOW), Ok(NOW.plus_ms(15 * 60_000)));
    assert_eq!(expires(None, NOW), Ok(NOW.plus_ms(86_400_000)));
    assert!(valid_until(Some(NOW.plus_ms(MAX_VALID_MS + 1)), NOW).is_err() && valid_until(Some(UnixMillis(i64::MIN)), NOW).is_ok());
    assert!(expires(Some(NOW), NOW.plus_ms(1)).is_err() && expires(Some(UnixMillis(i64::MAX)), NOW).is_err());
}

#[test]
fn a_restored_state_equals_the_folded_one() {
    let events = [
        Event::StockOpened,
        Event::SaleOpened,
        received(10),
        reserved("a", 4),
        released("b", None, NOW),
        reserved("c", 1),
        committed("c", 1, NOW),
    ];
    let state = Stock::fold(&events);
    let holds = state.holds().map(|(id, hold)| (id.clone(), *hold));
    let tombstones = state.tombstones().map(|(id, tombstone)| (id.clone(), *tombstone));
    assert_eq!(State::restore(state.figures(), holds, tombstones, state.forgotten_until()), state);
}

#[test]
fn what_stands_twice_in_a_snapshot_counts_once() {
    let tombstone = |valid_until| Tombstone { valid_until, committed: false };
    let ends = [tombstone(NOW), tombstone(DEADLINE)].map(|tombstone| (id("o-2"), tombstone));
    let holds = [hold(5), hold(2)].map(|hold| (id("o-1"), hold));
    let state = State::restore(Figures::default(), holds, ends, UnixMillis(0));
    assert_eq!((state.reserved(), state.holds().count()), (2, 1));
    let once = State::restore(Figures::default(), [(id("o-1"), hold(2))], [(id("o-2"), tombstone(DEADLINE))], UnixMillis(0));
    assert_eq!(state, once);
}
