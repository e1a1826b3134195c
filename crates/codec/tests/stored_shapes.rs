//! What is stored stays readable: golden bytes of every event and snapshot, and round trips of random ones.

use std::{collections::BTreeSet, path::Path};

use data_encoding::HEXLOWER;
use proptest::prelude::*;
use souk_codec::{DecodeError, FOLD_VERSION, KINDS, decode, decode_snapshot, encode, encode_snapshot};
use souk_domain::{
    CancelReason, Carrier, Category, Correction, Description, Entity, Event, Money, Note, OrderId, PaymentReference, ProductId, Quantity,
    Receipt, Tag, Tags, Title, TrackingNumber, cart, order, product, stock,
};
use souk_event_sourcing::{StreamId, UnixMillis, Version};

fn stream_of(event: &Event) -> StreamId {
    let category = match event {
        Event::Product(_) => product::CATEGORY,
        Event::Stock(_) => stock::CATEGORY,
        Event::Cart(_) => cart::CATEGORY,
        Event::Order(_) => order::CATEGORY,
    };
    StreamId::new(category, "x")
}

const ORDER: &str = "064h4qdcjqj7e00104000000000000zz";

fn eur(minor: i64) -> Money {
    Money::new("EUR".parse().unwrap(), minor)
}

fn quantity(units: i64) -> Quantity {
    Quantity::new(units).unwrap()
}

fn order_id() -> OrderId {
    ORDER.parse().unwrap()
}

fn product_id() -> ProductId {
    "p-1".parse().unwrap()
}

fn cart_line() -> cart::Line {
    cart::Line { product: product_id(), quantity: quantity(2) }
}

fn placed() -> order::Placed {
    let line = order::Line { product: product_id(), quantity: quantity(2), unit_price: eur(617), product_version: Version(3) };
    order::Placed {
        customer: "c-1".parse().unwrap(),
        lines: vec![line],
        total: eur(1_234),
        payment_deadline: UnixMillis(1_700_000_900_000),
    }
}

fn shipment() -> order::Shipment {
    order::Shipment { carrier: Carrier::new("Post").unwrap(), tracking_number: TrackingNumber::new("T-1").unwrap() }
}

fn details() -> product::Details {
    product::Details {
        title: Title::new("Lamp").unwrap(),
        description: Description::new("Bright").unwrap(),
        category: Category::new("light").unwrap(),
        tags: Tags::new([Tag::new("new").unwrap(), Tag::new("blue").unwrap()]).unwrap(),
    }
}

/// One event of every kind, in the order of `KINDS`.
fn samples() -> Vec<Event> {
    let (reservation, decided) = (order_id().into(), UnixMillis(1_700_000_000_000));
    let hold = stock::Hold { quantity: quantity(2), valid_until: UnixMillis(1_700_000_900_000), expires: UnixMillis(1_700_087_300_000) };
    let reserved = stock::Reserved { reservation, hold, decided };
    let reservation = || order_id().into();
    let changes = product::Changes { title: Some(Title::new("Lamp 2").unwrap()), tags: Some(Tags::default()), ..Default::default() };
    let refusal = order::Refusal { product: product_id(), reason: "INSUFFICIENT_STOCK".into(), available: 1 };
    let products = [
        product::Event::ProductCreated { details: details(), price: Some(eur(617)) },
        product::Event::ProductDetailsChanged(changes),
        product::Event::PriceSet { price: eur(700) },
        product::Event::ProductPublished,
        product::Event::ProductDiscontinued,
    ];
    let stocks = [
        stock::Event::StockOpened,
        stock::Event::SaleOpened,
        stock::Event::SaleClosed,
        stock::Event::StockReceived { quantity: Receipt::new(1_000).unwrap() },
        stock::Event::StockAdjusted { delta: Correction::new(-3).unwrap(), note: Note::new("broken").unwrap() },
        stock::Event::StockReserved(reserved),
        stock::Event::ReservationReleased {
            reservation: reservation(),
            quantity: Some(quantity(2)),
            valid_until: hold.valid_until,
            decided,
        },
        stock::Event::ReservationCommitted { reservation: reservation(), quantity: quantity(2), decided },
        stock::Event::ReservationExpired { reservation: reservation(), quantity: quantity(2), decided },
    ];
    let carts = [
        cart::Event::ItemAdded(cart_line()),
        cart::Event::ItemQuantitySet(cart_line()),
        cart::Event::ItemRemoved { product: product_id() },
        cart::Event::CartCleared,
        cart::Event::CartCheckedOut { order: order_id(), lines: vec![cart_line()] },
    ];
    let reference = PaymentReference::new("pay-1").unwrap();
    let orders = [
        order::Event::OrderPlaced(placed()),
        order::Event::OrderReserved,
        order::Event::OrderRejected { refusals: vec![refusal] },
        order::Event::PaymentRecorded { reference, amount: eur(1_234), refund_due: true },
        order::Event::OrderCancelled {
            cause: order::CancelCause::PaymentDeadline,
            reason: CancelReason::new("late").unwrap(),
            refund_due: true,
        },
        order::Event::OrderShipped(shipment()),
        order::Event::OrderDelivered,
    ];
    let events = products.map(Event::Product).into_iter().chain(stocks.map(Event::Stock));
    events.chain(carts.map(Event::Cart)).chain(orders.map(Event::Order)).collect()
}

/// States in which every field of a snapshot is set.
fn entities() -> Vec<(StreamId, Entity)> {
    let hold = stock::Hold { quantity: quantity(2), valid_until: UnixMillis(5), expires: UnixMillis(6) };
    let tombstone = stock::Tombstone { valid_until: UnixMillis(7), committed: true };
    let figures = stock::Figures { opened: true, for_sale: true, on_hand: 9, received: 12, adjusted: -1, shipped: 2 };
    let stock = stock::State::restore(figures, [("o-1".parse().unwrap(), hold)], [("o-2".parse().unwrap(), tombstone)], UnixMillis(4));
    let product = product::State { status: souk_domain::ProductStatus::Published, details: details(), price: Some(eur(5)) };
    let order = order::State {
        status: souk_domain::OrderStatus::Shipped,
        placed: Some(placed()),
        payments: vec![PaymentReference::new("pay-1").unwrap()],
        shipment: Some(shipment()),
    };
    vec![
        (StreamId::new("product", "p-1"), Entity::Product(product)),
        (StreamId::new("stock", "p-1"), Entity::Stock(stock)),
        (StreamId::new("cart", "c-1"), Entity::Cart(cart::State { lines: vec![cart_line()] })),
        (StreamId::new("order", ORDER), Entity::Order(order)),
    ]
}

fn assert_golden(file: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(file);
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == actual, "stored shapes changed: {} should read\n{actual}", path.display());
}

#[test]
fn names_and_bytes_of_events_are_pinned() {
    let lines: Vec<_> = samples()
        .iter()
        .map(|event| {
            let new = encode(&stream_of(event), event);
            format!("{} {} x{}\n", new.kind, new.schema_version, HEXLOWER.encode(&new.payload))
        })
        .collect();
    assert_golden("events.txt", &lines.concat());
}

#[test]
fn golden_events_read_back_as_what_they_were() {
    let golden = include_str!("../golden/events.txt");
    assert_eq!(golden.lines().count(), samples().len());
    for (line, event) in golden.lines().zip(samples()) {
        let [kind, version, payload] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let payload = HEXLOWER.decode(payload.trim_start_matches('x').as_bytes()).unwrap();
        assert_eq!(decode(&stream_of(&event), kind, version.parse().unwrap(), &payload), Ok(event));
    }
}

#[test]
fn every_kind_has_a_sample() {
    let sampled: Vec<_> = samples().iter().map(|event| encode(&stream_of(event), event).kind).collect();
    assert_eq!(sampled, KINDS);
    assert_eq!(KINDS.iter().collect::<BTreeSet<_>>().len(), KINDS.len());
}

#[test]
fn bytes_of_snapshots_are_pinned_to_the_fold_version() {
    let line = |(stream, entity): (StreamId, Entity)| {
        let bytes = encode_snapshot(&entity);
        assert_eq!(decode_snapshot(&stream, FOLD_VERSION, &bytes), Some(entity));
        format!("{FOLD_VERSION} {stream} x{}\n", HEXLOWER.encode(&bytes))
    };
    assert_golden("snapshots.txt", &entities().into_iter().map(line).collect::<String>());
}

#[test]
fn snapshots_of_another_fold_or_with_damage_are_ignored() {
    for (stream, entity) in entities() {
        let bytes = encode_snapshot(&entity);
        assert_eq!(decode_snapshot(&stream, FOLD_VERSION + 1, &bytes), None);
        assert_eq!(decode_snapshot(&stream, FOLD_VERSION, &bytes[..bytes.len() - 1]), None);
        assert_eq!(decode_snapshot(&StreamId::new("other", "x"), FOLD_VERSION, &bytes), None);
        let unborn = Entity::of(&stream).unwrap();
        assert_eq!(decode_snapshot(&stream, FOLD_VERSION, &encode_snapshot(&unborn)), Some(unborn));
    }
}

#[test]
fn unknown_newer_and_damaged_events_are_told_apart() {
    let stream = StreamId::new("cart", "c-1");
    let unknown = |category: &str, kind: &str| Err(DecodeError::UnknownType { category: category.into(), kind: kind.into() });
    assert_eq!(decode(&stream, "ItemBlessed", 1, b""), unknown("cart", "ItemBlessed"));
    assert_eq!(decode(&stream, "OrderPlaced", 1, b""), unknown("cart", "OrderPlaced"));
    assert_eq!(decode(&StreamId::new("wish", "w"), "ItemAdded", 1, b""), unknown("wish", "ItemAdded"));
    assert_eq!(decode(&stream, "ItemAdded", 2, b""), Err(DecodeError::TooNew { kind: "ItemAdded".into(), schema_version: 2 }));
    for (kind, payload) in [("ItemAdded", b"\xff".as_slice()), ("ItemAdded", b""), ("ItemRemoved", b"\x0a\x02a.")] {
        assert_eq!(decode(&stream, kind, 1, payload), Err(DecodeError::Malformed { kind: kind.into() }));
    }
    let order = StreamId::new("order", ORDER);
    for kind in ["OrderPlaced", "PaymentRecorded", "OrderCancelled"] {
        assert_eq!(decode(&order, kind, 1, b""), Err(DecodeError::Malformed { kind: kind.into() }), "{kind}");
    }
}

fn text(max: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>().prop_filter("no NUL", |char| *char != '\0'), 1..=max).prop_map(|chars| chars.into_iter().collect())
}

prop_compose! {
    fn any_money()(currency in "[A-Z]{3}", minor in any::<i64>()) -> Money {
        Money::new(currency.parse().unwrap(), minor)
    }
}

fn any_id<T: std::str::FromStr<Err: std::fmt::Debug> + std::fmt::Debug>() -> impl Strategy<Value = T> {
    "[A-Za-z0-9][A-Za-z0-9_-]{0,63}".prop_map(|id| id.parse().unwrap())
}

fn any_order_id() -> impl Strategy<Value = OrderId> {
    "[0-9a-hjkmnp-tv-z]{32}".prop_map(|id| id.parse().unwrap())
}

fn any_quantity() -> impl Strategy<Value = Quantity> {
    (1..=999i64).prop_map(quantity)
}

fn any_time() -> impl Strategy<Value = UnixMillis> {
    any::<i64>().prop_map(UnixMillis)
}

prop_compose! {
    fn any_tags()(tags in prop::collection::vec(text(32), 0..20)) -> Tags {
        Tags::new(tags.iter().map(|tag| Tag::new(tag).unwrap())).unwrap()
    }
}

prop_compose! {
    fn any_changes()(
        title in prop::option::of(text(200)), description in prop::option::of(text(300)), category in prop::option::of(text(64)),
        tags in prop::option::of(any_tags()),
    ) -> product::Changes {
        product::Changes {
            title: title.map(Title::stored),
            description: description.map(Description::stored),
            category: category.map(Category::stored),
            tags,
        }
    }
}

fn any_details() -> impl Strategy<Value = product::Details> {
    any_changes().prop_map(|product::Changes { title, description, category, tags }| product::Details {
        title: title.unwrap_or_default(),
        description: description.unwrap_or_default(),
        category: category.unwrap_or_default(),
        tags: tags.unwrap_or_default(),
    })
}

fn any_product_event() -> impl Strategy<Value = product::Event> {
    prop_oneof![
        (any_details(), prop::option::of(any_money())).prop_map(|(details, price)| product::Event::ProductCreated { details, price }),
        any_changes().prop_map(product::Event::ProductDetailsChanged),
        any_money().prop_map(|price| product::Event::PriceSet { price }),
        Just(product::Event::ProductPublished),
        Just(product::Event::ProductDiscontinued),
    ]
}

prop_compose! {
    fn any_hold()(quantity in any_quantity(), valid_until in any_time(), expires in any_time()) -> stock::Hold {
        stock::Hold { quantity, valid_until, expires }
    }
}

fn any_stock_event() -> impl Strategy<Value = stock::Event> {
    use stock::Event::{ReservationCommitted, ReservationExpired, ReservationReleased, StockAdjusted, StockReceived, StockReserved};
    prop_oneof![
        Just(stock::Event::StockOpened),
        Just(stock::Event::SaleOpened),
        Just(stock::Event::SaleClosed),
        any::<i64>().prop_map(|units| StockReceived { quantity: Receipt::stored(units) }),
        (any::<i64>(), text(200)).prop_map(|(delta, note)| StockAdjusted { delta: Correction::stored(delta), note: Note::stored(note) }),
        (any_id(), any_hold(), any_time()).prop_map(|(reservation, hold, decided)| StockReserved(stock::Reserved {
            reservation,
            hold,
            decided
        })),
        (any_id(), prop::option::of(any_quantity()), any_time(), any_time())
            .prop_map(|(reservation, quantity, valid_until, decided)| ReservationReleased { reservation, quantity, valid_until, decided }),
        (any_id(), any_quantity(), any_time()).prop_map(|(reservation, quantity, decided)| ReservationCommitted {
            reservation,
            quantity,
            decided
        }),
        (any_id(), any_quantity(), any_time()).prop_map(|(reservation, quantity, decided)| ReservationExpired {
            reservation,
            quantity,
            decided
        }),
    ]
}

prop_compose! {
    fn any_cart_line()(product in any_id(), quantity in any_quantity()) -> cart::Line {
        cart::Line { product, quantity }
    }
}

fn any_cart_event() -> impl Strategy<Value = cart::Event> {
    prop_oneof![
        any_cart_line().prop_map(cart::Event::ItemAdded),
        any_cart_line().prop_map(cart::Event::ItemQuantitySet),
        any_id().prop_map(|product| cart::Event::ItemRemoved { product }),
        Just(cart::Event::CartCleared),
        (any_order_id(), prop::collection::vec(any_cart_line(), 0..5))
            .prop_map(|(order, lines)| cart::Event::CartCheckedOut { order, lines }),
    ]
}

prop_compose! {
    fn any_order_line()(product in any_id(), quantity in any_quantity(), unit_price in any_money(), version in any::<u64>()) -> order::Line {
        order::Line { product, quantity, unit_price, product_version: Version(version) }
    }
}

prop_compose! {
    fn any_placed()(
        customer in any_id(), lines in prop::collection::vec(any_order_line(), 0..5), total in any_money(), payment_deadline in any_time(),
    ) -> order::Placed {
        order::Placed { customer, lines, total, payment_deadline }
    }
}

prop_compose! {
    fn any_refusal()(product in any_id(), reason in text(40), available in any::<i64>()) -> order::Refusal {
        order::Refusal { product, reason, available }
    }
}

fn any_shipment() -> impl Strategy<Value = order::Shipment> {
    (text(64), text(128)).prop_map(|(carrier, number)| order::Shipment {
        carrier: Carrier::stored(carrier),
        tracking_number: TrackingNumber::stored(number),
    })
}

fn any_order_event() -> impl Strategy<Value = order::Event> {
    use order::{
        CancelCause::{Caller, PaymentDeadline},
        Event::{OrderCancelled, OrderPlaced, OrderRejected, OrderShipped, PaymentRecorded},
    };
    prop_oneof![
        any_placed().prop_map(OrderPlaced),
        Just(order::Event::OrderReserved),
        prop::collection::vec(any_refusal(), 0..5).prop_map(|refusals| OrderRejected { refusals }),
        (text(128), any_money(), any::<bool>()).prop_map(|(reference, amount, refund_due)| PaymentRecorded {
            reference: PaymentReference::stored(reference),
            amount,
            refund_due,
        }),
        (prop_oneof![Just(Caller), Just(PaymentDeadline)], text(200), any::<bool>())
            .prop_map(|(cause, reason, refund_due)| OrderCancelled { cause, reason: CancelReason::stored(reason), refund_due }),
        any_shipment().prop_map(OrderShipped),
        Just(order::Event::OrderDelivered),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any_product_event().prop_map(Event::Product),
        any_stock_event().prop_map(Event::Stock),
        any_cart_event().prop_map(Event::Cart),
        any_order_event().prop_map(Event::Order),
    ]
}

fn folded<E: Clone + std::fmt::Debug>(
    category: &'static str,
    events: impl Strategy<Value = E>,
    wrap: fn(E) -> Event,
) -> impl Strategy<Value = (StreamId, Entity)> {
    prop::collection::vec(events, 0..12).prop_map(move |events| {
        let stream = StreamId::new(category, "x");
        let mut entity = Entity::of(&stream).unwrap();
        events.into_iter().for_each(|event| entity.evolve(&wrap(event)).unwrap());
        (stream, entity)
    })
}

proptest! {
    #[test]
    fn every_event_round_trips(event in any_event()) {
        let stream = stream_of(&event);
        let new = encode(&stream, &event);
        prop_assert_eq!(decode(&stream, new.kind, new.schema_version, &new.payload), Ok(event));
    }

    #[test]
    fn every_snapshot_round_trips((stream, entity) in prop_oneof![
        folded(product::CATEGORY, any_product_event(), Event::Product),
        folded(stock::CATEGORY, any_stock_event(), Event::Stock),
        folded(cart::CATEGORY, any_cart_event(), Event::Cart),
        folded(order::CATEGORY, any_order_event(), Event::Order),
    ]) {
        prop_assert_eq!(decode_snapshot(&stream, FOLD_VERSION, &encode_snapshot(&entity)), Some(entity));
    }

    #[test]
    fn no_bytes_make_decoding_panic(kind in prop::sample::select(KINDS), payload in prop::collection::vec(any::<u8>(), 0..64)) {
        for category in ["product", "stock", "cart", "order"] {
            let stream = StreamId::new(category, "x");
            let _ = decode(&stream, kind, 1, &payload);
            let _ = decode_snapshot(&stream, FOLD_VERSION, &payload);
        }
    }
}
