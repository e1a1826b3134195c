//! What rows events lead to, and that nothing but the events decides it: no batching, no cache, no order of logs.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use proptest::{prelude::*, strategy::ValueTree};
use prost::Message;
use prost_types::Timestamp;
use souk_codec::KINDS;
use souk_devstack::{Postgres, PostgresOptions, TemporaryFolder};
use souk_domain::{
    Correction, Note, OrderId, ProductFacts, ProductId, ProductStatus, Quantity, Receipt, ReservationId, Stock, cart, stock,
};
use souk_event_sourcing::{
    Decider, Epoch, EventId, Hlc, LogHash, LogId, Partition, Position, RecordedEvent, Region, RequestId, StreamId, UnixMillis, Version,
};
use souk_proto::{
    cart::v1 as carts,
    catalog::v1 as catalog,
    common::v1::Money,
    orders::v1::{self as orders, OrderState},
    stock::v1 as stocks,
};
use souk_read_store::{Advance, Batch, DatabaseConfig, Installation, MemoryViews, PostgresViews, ReadStore, Row, Table, Value, ViewStore};
use souk_views::{
    AVAILABILITY, CART, Day, Folder, ORDER, ORDER_TIMELINE, PRODUCT, PoisonReason, Reference, SALES_DAY, TABLES, ViewsMigrator, comparable,
    fold_reference, revision,
};
use uuid::Uuid;

/// 2023-11-14 22:13:20 UTC
const START_MS: i64 = 1_700_000_000_000;

/// Events as they would lie in their logs; the time grows by a second with each.
#[derive(Default)]
struct Logbook {
    events: Vec<RecordedEvent>,
    ends: HashMap<LogId, (Position, LogHash)>,
    versions: HashMap<StreamId, Version>,
}

impl Logbook {
    fn record(&mut self, partition: u16, stream: &str, kind: &str, payload: Vec<u8>) -> &mut Self {
        let log = LogId { region: Region(1), partition: Partition(partition) };
        let stream: StreamId = stream.parse().unwrap();
        let (position, hash) = self.ends.get(&log).copied().unwrap_or((Position(0), LogHash::EMPTY));
        let version = self.versions.entry(stream.clone()).or_default();
        *version = version.next();
        let number = self.events.len() as u128;
        let mut event = RecordedEvent {
            log,
            position: position.next(),
            epoch: Epoch(1),
            hash,
            stream,
            version: *version,
            kind: kind.to_owned(),
            schema_version: 1,
            payload: Bytes::from(payload),
            event_id: EventId(Uuid::from_u128(number)),
            request_id: Some(RequestId(Uuid::from_u128(number + 1))),
            causation_id: None,
            correlation_id: None,
            actor: "tester".to_owned(),
            hlc: Hlc::new(UnixMillis(START_MS + 1_000 * number as i64), 0),
            traceparent: String::new(),
            home_epoch: Epoch(0),
            key_id: None,
        };
        event.hash = hash.after(&event);
        self.ends.insert(log, (event.position, event.hash));
        self.events.push(event);
        self
    }

    fn fold(&self) -> Reference {
        fold_reference(&self.events).unwrap()
    }
}

fn eur(minor_units: i64) -> Money {
    Money { currency: "EUR".to_owned(), minor_units }
}

fn at(second: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds: START_MS / 1_000 + second, nanos: 0 })
}

/// The message in the row of `table` with this key.
fn body<M: Message + Default>(reference: &Reference, table: &Table, key: &str) -> M {
    let row = reference.rows(table).into_iter().find(|row| row.key.key[0].as_text() == Some(key)).unwrap();
    M::decode(row.values[4].as_bytes().unwrap().clone()).unwrap()
}

fn placed(book: &mut Logbook, order: &str, lines: &[(&str, i64, i64)]) {
    let order_line = |(product, quantity, price): &(&str, i64, i64)| orders::OrderLine {
        product_id: (*product).to_owned(),
        quantity: *quantity,
        unit_price: Some(eur(*price)),
        product_version: 3,
    };
    let placed = orders::OrderPlaced {
        customer_id: "c-1".to_owned(),
        lines: lines.iter().map(order_line).collect(),
        total: Some(eur(lines.iter().map(|(_, quantity, price)| quantity * price).sum())),
        payment_deadline_ms: START_MS + 900_000,
    };
    book.record(2, &format!("order-{order}"), "OrderPlaced", placed.encode_to_vec());
}

fn payment(reference: &str, amount: i64, refund_due: bool) -> Vec<u8> {
    orders::PaymentRecorded { payment_reference: reference.to_owned(), amount: Some(eur(amount)), refund_due }.encode_to_vec()
}

#[test]
fn an_order_is_followed_from_placing_to_delivery() {
    let mut book = Logbook::default();
    placed(&mut book, "o1", &[("p-1", 2, 500), ("p-2", 1, 100)]);
    let shipped = orders::OrderShipped { carrier: "post".to_owned(), tracking_number: "T1".to_owned() };
    book.record(2, "order-o1", "OrderReserved", vec![])
        .record(2, "order-o1", "PaymentRecorded", payment("pay-1", 1_100, false))
        .record(2, "order-o1", "OrderShipped", shipped.encode_to_vec())
        .record(2, "order-o1", "OrderDelivered", vec![]);
    let reference = book.fold();
    let order: orders::Order = body(&reference, &ORDER, "o1");
    assert_eq!((order.order_id.as_str(), order.customer_id.as_str(), order.state()), ("o1", "c-1", OrderState::Delivered));
    assert_eq!((order.lines.len(), order.total.clone(), order.payment_reference.as_str()), (2, Some(eur(1_100)), "pay-1"));
    assert_eq!((order.carrier.as_str(), order.tracking_number.as_str(), order.refund_due), ("post", "T1", None));
    assert_eq!((order.version, order.etag.as_str(), order.create_time, order.update_time), (5, "1-5", at(0), at(4)));
    let row = &reference.rows(&ORDER)[0];
    assert_eq!((row.position, row.revision), (Position(5), 1));
    let state = OrderState::Delivered as i64;
    assert_eq!(row.values[5..], [Value::from("c-1"), Value::Int(state), Value::Int(START_MS)]);
    assert_eq!((&row.values[0], &row.values[3]), (&Value::Int(5), &Value::Int(START_MS + 4_000)));

    let timeline = reference.rows(&ORDER_TIMELINE);
    let entries: Vec<_> =
        timeline.iter().map(|row| orders::TimelineEntry::decode(row.values[0].as_bytes().unwrap().clone()).unwrap()).collect();
    let summaries: Vec<_> = entries.iter().map(|entry| entry.summary.as_str()).collect();
    assert_eq!(
        summaries,
        [
            "placed: 3 units of 2 products for 1100 minor units EUR",
            "every line is reserved, payment is awaited",
            "paid 1100 minor units EUR with pay-1",
            "shipped with post T1",
            "delivered"
        ]
    );
    let third = &entries[2];
    assert_eq!((third.r#type.as_str(), third.version, third.position, third.event_time), ("PaymentRecorded", 3, 3, at(2)));
    assert_eq!((third.actor.as_str(), third.projected_time), ("tester", None));
    assert_eq!(third.request_id, "00000000-0000-0000-0000-000000000003");
}

#[test]
fn sales_are_counted_when_an_order_is_paid_and_never_otherwise() {
    let mut book = Logbook::default();
    for order in ["paid", "paid-too", "late", "open"] {
        placed(&mut book, order, &[("p-1", 2, 500), ("p-2", 1, 100)]);
    }
    let cancelled = |refund_due| orders::OrderCancelled { cause: 1, reason: String::new(), refund_due }.encode_to_vec();
    book.record(2, "order-paid", "PaymentRecorded", payment("a", 1_100, false))
        .record(2, "order-paid-too", "PaymentRecorded", payment("b", 1_100, false))
        .record(2, "order-paid-too", "OrderCancelled", cancelled(true))
        .record(2, "order-late", "OrderCancelled", cancelled(false))
        .record(2, "order-late", "PaymentRecorded", payment("c", 1_100, true));
    let sales: Vec<_> = book.fold().rows(&SALES_DAY).into_iter().map(|row| (row.key.key, row.position.0, row.values)).collect();
    let day = Value::Int(Day::of(UnixMillis(START_MS)).0.into());
    let key = |product: &str| vec![day.clone(), Value::from(product), Value::from("EUR")];
    assert_eq!(sales, [(key("p-1"), 6, vec![4.into(), 2_000.into()]), (key("p-2"), 6, vec![2.into(), 200.into()])]);
}

#[test]
fn what_is_owed_back_stands_in_the_order() {
    let mut book = Logbook::default();
    for order in ["paid", "late", "refused"] {
        placed(&mut book, order, &[("p-1", 1, 500)]);
    }
    let cancelled = |cause: orders::CancelCause, reason: &str, refund_due| {
        orders::OrderCancelled { cause: cause.into(), reason: reason.to_owned(), refund_due }.encode_to_vec()
    };
    let refusal = orders::LineRefusal { product_id: "p-1".to_owned(), reason: "INSUFFICIENT_STOCK".to_owned(), available: 0 };
    book.record(2, "order-paid", "PaymentRecorded", payment("a", 500, false))
        .record(2, "order-paid", "OrderCancelled", cancelled(orders::CancelCause::Caller, "changed my mind", true))
        .record(2, "order-late", "OrderCancelled", cancelled(orders::CancelCause::PaymentDeadline, "", false))
        .record(2, "order-late", "PaymentRecorded", payment("b", 500, true))
        .record(2, "order-late", "PaymentRecorded", payment("c", 500, true))
        .record(2, "order-refused", "OrderRejected", orders::OrderRejected { refusals: vec![refusal.clone()] }.encode_to_vec());
    let reference = book.fold();
    let order = |id| body::<orders::Order>(&reference, &ORDER, id);
    assert_eq!((order("paid").state(), order("paid").refund_due), (OrderState::Cancelled, Some(eur(500))));
    assert_eq!((order("paid").cancel_reason.as_str(), order("paid").payment_reference.as_str()), ("changed my mind", "a"));
    assert_eq!((order("late").state(), order("late").refund_due), (OrderState::Cancelled, Some(eur(1_000))));
    assert_eq!((order("late").cancel_reason.as_str(), order("late").payment_reference.as_str()), ("payment deadline passed", "b"));
    assert_eq!((order("refused").state(), order("refused").refusals), (OrderState::Rejected, vec![refusal]));
}

#[test]
fn a_product_shows_what_was_last_said_of_it() {
    let details = catalog::ProductDetails {
        title: "Lamp".to_owned(),
        description: "Bright".to_owned(),
        category: "light".to_owned(),
        tags: vec!["new".to_owned()],
    };
    let changed = catalog::ProductDetailsChanged {
        title: Some("Big lamp".to_owned()),
        description: None,
        category: Some(String::new()),
        tags: Some(catalog::product_details_changed::Tags { values: vec![] }),
    };
    let mut book = Logbook::default();
    book.record(0, "product-p-1", "ProductCreated", catalog::ProductCreated { details: Some(details), price: None }.encode_to_vec())
        .record(0, "product-p-1", "PriceSet", catalog::PriceSet { price: Some(eur(250)) }.encode_to_vec())
        .record(0, "product-p-1", "ProductPublished", vec![]);
    let before = book.fold().rows(&PRODUCT).remove(0);
    let published = catalog::ProductState::Published as i64;
    assert_eq!(before.values[5..], [Value::Int(published), Value::from("light"), Value::Texts(vec!["new".to_owned()])]);
    book.record(0, "product-p-1", "ProductDetailsChanged", changed.encode_to_vec()).record(0, "product-p-1", "ProductDiscontinued", vec![]);
    let reference = book.fold();
    let product: catalog::Product = body(&reference, &PRODUCT, "p-1");
    let details = product.details.clone().unwrap();
    assert_eq!((details.title.as_str(), details.description.as_str(), details.category.as_str()), ("Big lamp", "Bright", ""));
    assert_eq!((product.state(), product.price.clone()), (catalog::ProductState::Discontinued, Some(eur(250))));
    assert_eq!((product.product_id.as_str(), product.version, product.create_time, product.update_time), ("p-1", 5, at(0), at(4)));
    assert_eq!(reference.rows(&PRODUCT)[0].values[6..], [Value::from(""), Value::Texts(vec![])]);
}

#[test]
fn every_stored_event_is_known_to_exactly_one_view() {
    for kind in KINDS {
        let known = ["product", "stock", "cart", "order"].iter().filter(|category| {
            let mut book = Logbook::default();
            book.record(0, &format!("{category}-x"), kind, vec![]);
            fold_reference(&book.events).is_ok()
        });
        assert_eq!(known.count(), 1, "{kind}");
    }
}

#[test]
fn an_event_that_cannot_be_applied_changes_nothing_and_says_why() {
    let mut book = Logbook::default();
    book.record(0, "stock-p-1", "StockReceived", stocks::StockReceived { quantity: 5 }.encode_to_vec());
    let good = book.events[0].clone();
    let next = RecordedEvent { version: Version(2), position: Position(2), ..good.clone() };
    let cases = [
        (RecordedEvent { kind: "StockStolen".to_owned(), ..next.clone() }, PoisonReason::UnknownKind),
        (RecordedEvent { kind: "OrderPlaced".to_owned(), ..next.clone() }, PoisonReason::UnknownKind),
        (RecordedEvent { schema_version: 2, ..next.clone() }, PoisonReason::UnknownSchema(2)),
        (RecordedEvent { key_id: Some(Uuid::nil()), ..next.clone() }, PoisonReason::Encrypted),
        (RecordedEvent { stream: "crate-p-1".parse().unwrap(), ..next.clone() }, PoisonReason::UnknownCategory),
        (RecordedEvent { version: Version(3), ..next.clone() }, PoisonReason::RowAstray { row: Version(1), event: Version(3) }),
        (good.clone(), PoisonReason::RowAstray { row: Version(1), event: Version(1) }),
    ];
    for (bad, reason) in cases {
        let mut reference = book.fold();
        let before = reference.rows(&AVAILABILITY);
        assert_eq!(reference.apply(&bad).unwrap_err().reason, reason);
        assert_eq!(reference.rows(&AVAILABILITY), before, "{reason}");
    }
    let garbled = RecordedEvent { payload: Bytes::from_static(&[0xff, 0xff]), ..next };
    let error = book.fold().apply(&garbled).unwrap_err();
    assert!(matches!(error.reason, PoisonReason::Malformed(_)));
    assert_eq!((error.position, error.kind.as_str()), (Position(2), "StockReceived"));
}

/// One random event; keys are few, so that they meet.
fn random_event() -> impl Strategy<Value = (u16, String, &'static str, Vec<u8>)> {
    let (entity, quantity, product) = (0..3u16, 1..50i64, 0..3u8);
    (entity, quantity, product, 0..12u8).prop_map(|(entity, quantity, product, choice)| {
        let product_id = format!("p-{product}");
        let (category, kind, payload) = match choice {
            0 => ("stock", "StockReceived", stocks::StockReceived { quantity }.encode_to_vec()),
            1 => ("stock", "StockReserved", stocks::StockReserved { quantity, ..Default::default() }.encode_to_vec()),
            2 => ("stock", "ReservationCommitted", stocks::ReservationCommitted { quantity, ..Default::default() }.encode_to_vec()),
            3 => ("cart", "ItemAdded", carts::ItemAdded { product_id, quantity }.encode_to_vec()),
            4 => ("cart", "ItemRemoved", carts::ItemRemoved { product_id }.encode_to_vec()),
            5 => ("product", "PriceSet", catalog::PriceSet { price: Some(eur(quantity)) }.encode_to_vec()),
            6 => ("product", "ProductPublished", vec![]),
            7 | 8 => {
                let line = orders::OrderLine { product_id, quantity, unit_price: Some(eur(7)), product_version: 1 };
                let placed = orders::OrderPlaced { customer_id: "c".to_owned(), lines: vec![line], ..Default::default() };
                ("order", "OrderPlaced", placed.encode_to_vec())
            }
            9 | 10 => ("order", "PaymentRecorded", payment("r", quantity, quantity % 5 == 0)),
            _ => ("order", "OrderDelivered", vec![]),
        };
        (entity, format!("{category}-{entity}"), kind, payload)
    })
}

fn random_book(events: Vec<(u16, String, &'static str, Vec<u8>)>) -> Logbook {
    let mut book = Logbook::default();
    for (partition, stream, kind, payload) in events {
        book.record(partition, &stream, kind, payload);
    }
    book
}

fn logs() -> Vec<LogId> {
    (0..3).map(|partition| LogId { region: Region(1), partition: Partition(partition) }).collect()
}

/// Folds `events` into a store in batches of these sizes, as a projector does, forgetting a log here and there.
async fn fold_in_batches(store: &dyn ViewStore, events: &[RecordedEvent], sizes: &[usize], cache: usize) {
    let logs = logs();
    store.claim(&logs, "test", Duration::ZERO, UnixMillis(1)).await.unwrap();
    let mut folder = Folder::new(cache);
    let (mut rest, mut sizes) = (events, sizes.iter().cycle());
    while !rest.is_empty() {
        let (batch, later) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
        rest = later;
        folder.prepare(store, batch).await.unwrap();
        batch.iter().for_each(|event| folder.apply(event).unwrap());
        let checkpoints = store.checkpoints(&logs).await.unwrap();
        let advance = |last: &RecordedEvent| {
            let from = checkpoints.iter().find(|checkpoint| checkpoint.log == last.log).unwrap();
            let (log, fence, from_epoch, from_position) = (from.log, from.fence, from.epoch, from.position);
            Advance { log, fence, from_epoch, from_position, epoch: last.epoch, position: last.position, hash: last.hash, whole: false }
        };
        let advances = logs.iter().filter_map(|log| batch.iter().rfind(|event| event.log == *log)).map(advance).collect();
        let batch = Batch { advances, rows: folder.finish(), revision: revision(), now: UnixMillis(2), ..Batch::default() };
        assert!(store.write(&batch).await.unwrap().lost.is_empty());
        if rest.len() % 3 == 0 {
            folder.forget(logs[rest.len() % 2]);
        }
    }
}

/// Compares every row of every table with the fold.
async fn assert_stored(store: &dyn ViewStore, reference: &Reference) {
    for table in TABLES.iter().copied() {
        let mut rows: Vec<Row> = Vec::new();
        for log in logs() {
            rows.extend(store.scan(table, log, None, 100_000).await.unwrap().rows.into_iter().map(|row| comparable(table, row)));
        }
        assert_eq!(rows, reference.rows(table), "{}", table.name);
    }
}

/// The tables as the migration makes them take what the projections write, and give it back.
#[tokio::test]
async fn the_tables_of_the_migration_hold_the_rows() {
    let folder = TemporaryFolder::create().unwrap();
    let postgres = Postgres::start(PostgresOptions::new(folder.path().join("postgres"))).await.unwrap();
    postgres.create_database("views").await.unwrap();
    let config = [DatabaseConfig::new("views", postgres.url("views"), 2)];
    let installation = Installation { region: Region(1), partitions: 3 };
    let store = ReadStore::install::<ViewsMigrator>(&config, installation, UnixMillis(1)).await.unwrap();
    let views = PostgresViews::new(store.databases()[0].clone(), TABLES);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let events = prop::collection::vec(random_event(), 400).new_tree(&mut runner).unwrap().current();
    let book = random_book(events);
    fold_in_batches(&views, &book.events, &[1, 50, 7, 120], 4).await;
    let reference = book.fold();
    assert!(TABLES.iter().all(|table| !reference.rows(table).is_empty()));
    assert_stored(&views, &reference).await;
    store.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_batching_and_no_cache_changes_a_row(
        events in prop::collection::vec(random_event(), 1..120),
        sizes in prop::collection::vec(1..20usize, 1..8),
        cache in 1..6usize,
    ) {
        let book = random_book(events);
        let reference = book.fold();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = MemoryViews::new(logs(), TABLES);
            fold_in_batches(&store, &book.events, &sizes, cache).await;
            assert_stored(&store, &reference).await;
        });
    }

    /// Logs are independent: whatever their events' order among each other, the rows are the same.
    #[test]
    fn the_order_of_logs_among_each_other_does_not_matter(events in prop::collection::vec(random_event(), 1..80)) {
        let book = random_book(events);
        let mut by_log = book.events.clone();
        by_log.sort_by_key(|event| (event.log, event.position));
        let (mixed, sorted) = (book.fold(), fold_reference(&by_log).unwrap());
        for table in TABLES {
            prop_assert_eq!(mixed.rows(table), sorted.rows(table));
        }
    }

    #[test]
    fn stock_figures_are_those_of_the_domain(commands in prop::collection::vec((0..9u8, 0..4u8, 1..200i64), 1..100)) {
        let mut state = stock::State::default();
        let mut book = Logbook::default();
        for (step, (choice, order, number)) in commands.into_iter().enumerate() {
            let now = UnixMillis(START_MS + step as i64 * 10);
            let reservation = ReservationId::new(&format!("o-{order}")).unwrap();
            let (valid_until, expires) = (now.plus_ms(number), now.plus_ms(2 * number));
            let hold = stock::Hold { quantity: Quantity::new(number).unwrap(), valid_until, expires };
            let command = match choice {
                0 => stock::Command::Open,
                1 => stock::Command::OpenSale,
                2 => stock::Command::Receive(Receipt::new(number).unwrap()),
                3 => stock::Command::Adjust { delta: Correction::new(-number).unwrap(), note: Note::default() },
                4 | 5 => stock::Command::Reserve { reservation, hold, now },
                6 => stock::Command::Release { reservation, valid_until, now },
                7 => stock::Command::Commit { reservation, now },
                _ => stock::Command::Expire { reservation, needed: false, now },
            };
            for event in Stock::decide(&state, &command).unwrap_or_default() {
                state = Stock::evolve(state, &event);
                let stored = souk_codec::encode(&"stock-p-1".parse().unwrap(), &souk_domain::Event::Stock(event));
                book.record(0, "stock-p-1", stored.kind, stored.payload.to_vec());
            }
        }
        prop_assume!(!book.events.is_empty());
        let view: stocks::Availability = body(&book.fold(), &AVAILABILITY, "p-1");
        let figures = state.figures();
        prop_assert_eq!((view.for_sale, view.on_hand, view.received), (figures.for_sale, figures.on_hand, figures.received));
        prop_assert_eq!((view.adjusted, view.shipped), (figures.adjusted, figures.shipped));
        prop_assert_eq!((view.reserved, view.available), (state.reserved(), state.available()));
        prop_assert_eq!(view.received + view.adjusted, view.on_hand + view.shipped);
    }

    #[test]
    fn cart_lines_are_those_of_the_domain(commands in prop::collection::vec((0..6u8, 0..4u8, 1..20i64), 1..80)) {
        let mut state = cart::State::default();
        let mut book = Logbook::default();
        let facts = ProductFacts {
            status: ProductStatus::Published,
            price: Some(souk_domain::Money::new("EUR".parse().unwrap(), 5)),
            version: Version(1),
        };
        let request = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let order = OrderId::mint(request, "shop", &"c-1".parse().unwrap(), "Checkout", Region(1));
        for (choice, product, number) in commands {
            let product: ProductId = format!("p-{product}").parse().unwrap();
            let line = cart::Line { product: product.clone(), quantity: Quantity::new(number).unwrap() };
            let command = match choice {
                0 | 1 => cart::Command::Add { line, facts: Some(facts) },
                2 => cart::Command::SetQuantity(line),
                3 => cart::Command::Remove { product },
                4 => cart::Command::CheckOut { order },
                _ => cart::Command::Clear,
            };
            for event in souk_domain::Cart::decide(&state, &command).unwrap_or_default() {
                state = souk_domain::Cart::evolve(state, &event);
                let stored = souk_codec::encode(&"cart-c-1".parse().unwrap(), &souk_domain::Event::Cart(event));
                book.record(0, "cart-c-1", stored.kind, stored.payload.to_vec());
            }
        }
        prop_assume!(!book.events.is_empty());
        let view: carts::Cart = body(&book.fold(), &CART, "c-1");
        let lines: Vec<_> = state.lines.iter().map(|line| (line.product.as_str().to_owned(), line.quantity.get())).collect();
        prop_assert_eq!(view.lines.into_iter().map(|line| (line.product_id, line.quantity)).collect::<Vec<_>>(), lines);
    }
}
