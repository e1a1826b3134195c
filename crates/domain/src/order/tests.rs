use souk_event_sourcing::given;

use super::*;
use crate::{ProductFacts, ProductStatus};

const DEADLINE: UnixMillis = UnixMillis(1_000);

fn product(name: &str) -> ProductId {
    name.parse().unwrap()
}

fn money(currency: &str, minor: i64) -> Money {
    Money::new(currency.parse().unwrap(), minor)
}

fn eur(minor: i64) -> Money {
    money("EUR", minor)
}

fn facts(price: Money) -> ProductFacts {
    ProductFacts { status: ProductStatus::Published, price: Some(price), version: Version(3) }
}

fn wanted(name: &str, quantity: i64) -> cart::Line {
    cart::Line { product: product(name), quantity: Quantity::new(quantity).unwrap() }
}

fn catalog(entries: &[(&str, Option<ProductFacts>)]) -> Catalog {
    entries.iter().map(|(name, facts)| (product(name), *facts)).collect()
}

fn place(lines: &[(&str, i64)], catalog: Catalog, expected_total: Option<Money>) -> Command {
    let terms = Terms { customer: "c-1".parse().unwrap(), catalog, expected_total, payment_deadline: DEADLINE };
    Command::Place { lines: lines.iter().map(|(name, quantity)| wanted(name, *quantity)).collect(), terms }
}

/// Two units of `a` at 5 and one of `b` at 3.
fn placed() -> Event {
    let line = |name: &str, quantity, price| {
        let cart::Line { product, quantity } = wanted(name, quantity);
        Line { product, quantity, unit_price: eur(price), product_version: Version(3) }
    };
    let lines = vec![line("a", 2, 5), line("b", 1, 3)];
    Event::OrderPlaced(Placed { customer: "c-1".parse().unwrap(), lines, total: eur(13), payment_deadline: DEADLINE })
}

fn usual_catalog() -> Catalog {
    catalog(&[("a", Some(facts(eur(5)))), ("b", Some(facts(eur(3))))])
}

fn reference(text: &str) -> PaymentReference {
    PaymentReference::new(text).unwrap()
}

fn pay(text: &str) -> Command {
    Command::RecordPayment { reference: reference(text), amount: eur(13) }
}

fn paid(text: &str, refund_due: bool) -> Event {
    Event::PaymentRecorded { reference: reference(text), amount: eur(13), refund_due }
}

fn cancelled(refund_due: bool) -> Event {
    Event::OrderCancelled { cause: CancelCause::Caller, reason: CancelReason::default(), refund_due }
}

fn cancel() -> Command {
    Command::Cancel { reason: CancelReason::default() }
}

fn rejected() -> Event {
    Event::OrderRejected { refusals: vec![refusal()] }
}

fn refusal() -> Refusal {
    Refusal { product: product("a"), reason: "INSUFFICIENT_STOCK".into(), available: 1 }
}

fn shipment(number: &str) -> Shipment {
    Shipment { carrier: Carrier::new("Post").unwrap(), tracking_number: TrackingNumber::new(number).unwrap() }
}

fn shipped() -> Event {
    Event::OrderShipped(shipment("T-1"))
}

/// A placed order, then `events`.
fn history(events: impl IntoIterator<Item = Event>) -> souk_event_sourcing::Given<Order> {
    given([placed()].into_iter().chain(events))
}

/// Histories that end in each state after placing, with the state.
fn everywhere() -> Vec<(Vec<Event>, OrderStatus)> {
    let paid = || paid("p", false);
    vec![
        (vec![], OrderStatus::Reserving),
        (vec![Event::OrderReserved], OrderStatus::AwaitingPayment),
        (vec![Event::OrderReserved, paid()], OrderStatus::Paid),
        (vec![Event::OrderReserved, paid(), shipped()], OrderStatus::Shipped),
        (vec![Event::OrderReserved, paid(), shipped(), Event::OrderDelivered], OrderStatus::Delivered),
        (vec![rejected()], OrderStatus::Rejected),
        (vec![cancelled(false)], OrderStatus::Cancelled),
    ]
}

#[test]
fn an_order_keeps_the_prices_it_saw() {
    given::<Order>([]).when(place(&[("a", 2), ("b", 1)], usual_catalog(), None)).then([placed()]);
    given::<Order>([]).when(place(&[("a", 2), ("b", 1)], usual_catalog(), Some(eur(13)))).then([placed()]);
    history([]).when(place(&[("a", 2), ("b", 1)], usual_catalog(), None)).then_refused(Rejection::OrderAlreadyExists);
}

#[test]
fn a_total_the_caller_did_not_expect_is_refused_with_the_new_one() {
    for expected in [eur(12), money("USD", 13)] {
        let command = place(&[("a", 2), ("b", 1)], usual_catalog(), Some(expected));
        given::<Order>([]).when(command).then_refused(Rejection::TotalChanged { total: eur(13) });
    }
}

#[test]
fn unknown_missing_and_unsold_products_are_told_apart() {
    let lines = [("a", 1), ("b", 1), ("c", 1)];
    let draft = ProductFacts { status: ProductStatus::Draft, ..facts(eur(5)) };
    let with = |entries: &[(&str, Option<ProductFacts>)]| given::<Order>([]).when(place(&lines, catalog(entries), None));
    with(&[("a", Some(draft)), ("b", None)]).then_refused(Rejection::LookUpIncomplete { products: vec![product("c")] });
    let missing = Rejection::ProductNotFound { products: vec![product("b"), product("c")] };
    with(&[("a", Some(draft)), ("b", None), ("c", None)]).then_refused(missing);
    let unsold = Rejection::ProductNotForSale { products: vec![product("a")] };
    with(&[("a", Some(draft)), ("b", Some(facts(eur(1)))), ("c", Some(facts(eur(1))))]).then_refused(unsold);
}

#[test]
fn currencies_do_not_mix_in_an_order() {
    let catalog = catalog(&[("a", Some(facts(eur(5)))), ("b", Some(facts(money("USD", 3))))]);
    given::<Order>([]).when(place(&[("a", 1), ("b", 1)], catalog, None)).then_refused(Rejection::CurrencyMismatch);
}

#[test]
fn a_total_beyond_64_bits_is_refused() {
    let catalog = catalog(&[("a", Some(facts(eur(i64::MAX)))), ("b", Some(facts(eur(1))))]);
    given::<Order>([]).when(place(&[("a", 2)], catalog.clone(), None)).then_refused(Rejection::TotalOutOfRange);
    given::<Order>([]).when(place(&[("a", 1), ("b", 1)], catalog, None)).then_refused(Rejection::TotalOutOfRange);
}

#[test]
fn lines_are_few_and_distinct() {
    let many = |count: usize| (0..count).map(|number| wanted(&format!("p-{number}"), 1)).collect::<Vec<_>>();
    assert!(OrderLines::new(many(1)).is_ok() && OrderLines::new(many(100)).is_ok());
    for bad in [many(0), many(101), vec![wanted("a", 1), wanted("a", 2)]] {
        assert!(OrderLines::new(bad).is_err());
    }
}

#[test]
fn outcomes_of_all_lines_are_recorded_once() {
    let record = |refusals: &[Refusal]| Command::RecordReservation { refusals: refusals.to_vec() };
    history([]).when(record(&[])).then([Event::OrderReserved]);
    history([]).when(record(&[refusal()])).then([rejected()]);
    for (events, status) in everywhere() {
        if status != OrderStatus::Reserving {
            history(events.clone()).when(record(&[])).then_nothing();
            history(events).when(record(&[refusal()])).then_nothing();
        }
    }
    given::<Order>([]).when(record(&[])).then_refused(Rejection::OrderNotFound);
}

#[test]
fn a_payment_pays_once_whatever_repeats() {
    history([Event::OrderReserved]).when(pay("p")).then([paid("p", false)]);
    history([Event::OrderReserved, paid("p", false)]).when(pay("p")).then_nothing();
    for (events, status) in everywhere() {
        match status {
            OrderStatus::Paid | OrderStatus::Shipped | OrderStatus::Delivered => {
                history(events.clone()).when(pay("p")).then_nothing();
                history(events).when(pay("other")).then_refused(Rejection::AlreadyPaid);
            }
            OrderStatus::Reserving => history(events).when(pay("p")).then_refused(Rejection::NotAwaitingPayment { status }),
            _ => {}
        }
    }
}

#[test]
fn a_payment_is_of_the_whole_total() {
    for amount in [eur(12), eur(14), money("USD", 13), eur(-13)] {
        let command = Command::RecordPayment { reference: reference("p"), amount };
        history([Event::OrderReserved]).when(command).then_refused(Rejection::PaymentMismatch { total: eur(13) });
    }
}

#[test]
fn a_payment_after_the_end_is_recorded_and_owes_a_refund() {
    for end in [cancelled(false), rejected()] {
        history([end.clone()]).when(pay("p")).then([paid("p", true)]);
        history([end.clone(), paid("p", true)]).when(pay("p")).then_nothing();
        history([end.clone(), paid("p", true)]).when(pay("q")).then([paid("q", true)]);
        let full: Vec<_> = [end].into_iter().chain((0..100).map(|number| paid(&number.to_string(), true))).collect();
        history(full.clone()).when(pay("7")).then_nothing();
        history(full).when(pay("q")).then_refused(Rejection::TooManyPayments);
    }
    let state = Order::fold(&[placed(), cancelled(false), paid("p", true)]);
    assert_eq!(state.status, OrderStatus::Cancelled);
}

#[test]
fn an_order_is_cancelled_until_it_ships_and_a_paid_one_owes_a_refund() {
    for (events, status) in everywhere() {
        let when = history(events).when(cancel());
        match status {
            OrderStatus::Reserving | OrderStatus::AwaitingPayment => when.then([cancelled(false)]),
            OrderStatus::Paid => when.then([cancelled(true)]),
            OrderStatus::Cancelled => when.then_nothing(),
            _ => when.then_refused(Rejection::NotCancellable { status }),
        }
    }
}

#[test]
fn only_an_unpaid_order_past_its_deadline_is_cancelled_by_time() {
    let expired = Event::OrderCancelled { cause: CancelCause::PaymentDeadline, reason: CancelReason::default(), refund_due: false };
    history([Event::OrderReserved]).when(Command::ExpirePayment { now: DEADLINE }).then([expired]);
    history([Event::OrderReserved]).when(Command::ExpirePayment { now: DEADLINE.plus_ms(-1) }).then_nothing();
    for (events, status) in everywhere() {
        if status != OrderStatus::AwaitingPayment {
            history(events).when(Command::ExpirePayment { now: DEADLINE }).then_nothing();
        }
    }
}

#[test]
fn only_a_paid_order_ships_and_only_a_shipped_one_arrives() {
    for (events, status) in everywhere() {
        let ship = history(events.clone()).when(Command::RecordShipment(shipment("T-1")));
        let deliver = history(events).when(Command::RecordDelivery);
        match status {
            OrderStatus::Paid => ship.then([shipped()]),
            OrderStatus::Shipped | OrderStatus::Delivered => ship.then_nothing(),
            _ => ship.then_refused(Rejection::NotPaid { status }),
        }
        match status {
            OrderStatus::Shipped => deliver.then([Event::OrderDelivered]),
            OrderStatus::Delivered => deliver.then_nothing(),
            _ => deliver.then_refused(Rejection::NotShipped { status }),
        }
    }
    let another = Command::RecordShipment(shipment("T-2"));
    history([Event::OrderReserved, paid("p", false), shipped()]).when(another).then_refused(Rejection::AlreadyShipped);
}
