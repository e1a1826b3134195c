//! Values that several tests share.

use souk_domain::{CustomerId, Event, Money, OrderId, Quantity, order};
use souk_event_sourcing::{EventId, LogId, Partition, Position, Region, RequestId, StreamId, UnixMillis, Version};
use uuid::Uuid;

use crate::step::Origin;

pub(crate) const LOG: LogId = LogId { region: Region(1), partition: Partition(3) };

pub(crate) fn order_id(number: u128) -> OrderId {
    let customer: CustomerId = "c-1".parse().unwrap();
    OrderId::mint(
        RequestId(Uuid::from_u128(0x0189_0a5d_ac96_7000_8000_0000_0000_0000 + number)),
        "test",
        &customer,
        "PlaceOrder",
        Region(1),
    )
}

pub(crate) fn placed() -> order::Placed {
    let price = Money::new("EUR".parse().unwrap(), 5);
    let line = |product: &str, quantity| order::Line {
        product: product.parse().unwrap(),
        quantity: Quantity::new(quantity).unwrap(),
        unit_price: price,
        product_version: Version(2),
    };
    let (customer, total) = ("c-1".parse().unwrap(), Money::new(price.currency, 15));
    order::Placed { customer, lines: vec![line("p-1", 2), line("p-2", 1)], total, payment_deadline: UnixMillis(1_700_000_900_000) }
}

pub(crate) fn origin(position: u64) -> Origin {
    Origin {
        log: LOG,
        position: Position(position),
        cause: EventId(Uuid::from_u128(0x018b_cfe5_6800_7000_8000_0000_0000_0000 + u128::from(position))),
        time: UnixMillis(1_700_000_000_000),
        attempt: 1,
        traceparent: String::new(),
    }
}

/// One event of every kind there is, from the codec's golden file.
pub(crate) fn kinds_of_all_events() -> Vec<(StreamId, Event, &'static str)> {
    let golden = include_str!("../../../crates/codec/golden/events.txt");
    let streams: Vec<StreamId> =
        vec!["product-p".parse().unwrap(), "stock-p".parse().unwrap(), "cart-c".parse().unwrap(), order_id(1).stream()];
    let event = |line: &'static str| {
        let (kind, rest) = line.split_once(' ').unwrap();
        let hex = rest.split_once(" x").unwrap().1;
        let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
        let payload: Vec<u8> = (0..hex.len() / 2).map(byte).collect();
        let decoded = streams.iter().find_map(|stream| Some((stream.clone(), souk_codec::decode(stream, kind, 1, &payload).ok()?)));
        let (stream, event) = decoded.unwrap();
        (stream, event, kind)
    };
    let all: Vec<_> = golden.lines().map(event).collect();
    assert_eq!(all.len(), souk_codec::KINDS.len());
    all
}
