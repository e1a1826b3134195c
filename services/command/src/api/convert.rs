use souk_domain::{Category, Currency, Description, Money, OrderStatus, Price, Tag, Tags, Title, product};
use souk_event_sourcing::UnixMillis;
use souk_proto::{catalog::v1::ProductDetails, common::v1 as common, orders::v1::OrderState};
use souk_runtime::Violations;

/// An amount as it was sent.
pub(super) fn money(field: &str, money: Option<&common::Money>, bad: &mut Violations) -> Option<Money> {
    let Some(money) = money else {
        bad.add(field, "is missing");
        return None;
    };
    let currency = bad.check(format!("{field}.currency"), money.currency.parse::<Currency>())?;
    Some(Money::new(currency, money.minor_units))
}

/// A price; `None` with a violation when it is bad.
pub(super) fn price(field: &str, sent: Option<&common::Money>, bad: &mut Violations) -> Option<Price> {
    let money = money(field, sent, bad)?;
    bad.check(field, Price::new(money))
}

/// An amount that may be absent: outer `None` with a violation when it is bad.
pub(super) fn optional<T>(sent: Option<&common::Money>, read: impl FnOnce(&common::Money) -> Option<T>) -> Option<Option<T>> {
    match sent {
        None => Some(None),
        Some(money) => read(money).map(Some),
    }
}

pub(super) fn to_money(money: Money) -> common::Money {
    common::Money { currency: money.currency.to_string(), minor_units: money.minor }
}

/// All texts of a product; absent ones are empty.
pub(super) fn details(sent: Option<&ProductDetails>, bad: &mut Violations) -> Option<product::Details> {
    let empty = ProductDetails::default();
    let sent = sent.unwrap_or(&empty);
    let title = bad.check("details.title", Title::new(&sent.title));
    let description = bad.check("details.description", Description::new(&sent.description));
    let category = bad.check("details.category", Category::new(&sent.category));
    let tags = tags(&sent.tags, bad);
    Some(product::Details { title: title?, description: description?, category: category?, tags: tags? })
}

/// The texts named by a mask, or all that are not empty.
pub(super) fn changes(
    sent: Option<&ProductDetails>,
    mask: Option<&prost_types::FieldMask>,
    bad: &mut Violations,
) -> Option<product::Changes> {
    let all = details(sent, bad);
    let paths: Vec<&str> = mask.iter().flat_map(|mask| &mask.paths).map(String::as_str).collect();
    for path in &paths {
        bad.require(matches!(*path, "title" | "description" | "category" | "tags"), "update_mask", format!("no such field: {path:.64}"));
    }
    let all = all?;
    let named = |path: &str, empty: bool| if paths.is_empty() { !empty } else { paths.contains(&path) };
    let changes = product::Changes {
        title: named("title", all.title.is_empty()).then_some(all.title),
        description: named("description", all.description.is_empty()).then_some(all.description),
        category: named("category", all.category.is_empty()).then_some(all.category),
        tags: named("tags", all.tags.as_slice().is_empty()).then_some(all.tags),
    };
    bad.require(changes != product::Changes::default(), "details", "names no field to change");
    Some(changes)
}

/// The parsed parts of a list. Each is looked at, where collecting an `Option` would stop at the first bad one.
pub(super) fn all<T>(parsed: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    parsed.collect::<Vec<_>>().into_iter().collect()
}

fn tags(sent: &[String], bad: &mut Violations) -> Option<Tags> {
    let parsed = sent.iter().enumerate().take(Tags::MAX + 1);
    let tags = all(parsed.map(|(index, tag)| bad.check(format!("details.tags[{index}]"), Tag::new(tag))));
    if sent.len() > Tags::MAX + 1 {
        bad.add("details.tags", format!("want at most {} tags", Tags::MAX));
        return None;
    }
    bad.check("details.tags", Tags::new(tags?))
}

/// A time that may be absent.
pub(super) fn time(field: &str, sent: Option<&prost_types::Timestamp>, bad: &mut Violations) -> Option<UnixMillis> {
    let sent = sent?;
    // 0001-01-01 to 9999-12-31, as the type's own definition bounds it.
    let fine = (-62_135_596_800..=253_402_300_799).contains(&sent.seconds) && (0..=999_999_999).contains(&sent.nanos);
    bad.require(fine, field, "is no valid time");
    fine.then(|| UnixMillis(sent.seconds * 1000 + i64::from(sent.nanos) / 1_000_000))
}

pub(super) fn order_state(status: OrderStatus) -> OrderState {
    match status {
        OrderStatus::Missing => OrderState::Unspecified,
        OrderStatus::Reserving => OrderState::Reserving,
        OrderStatus::AwaitingPayment => OrderState::AwaitingPayment,
        OrderStatus::Paid => OrderState::Paid,
        OrderStatus::Shipped => OrderState::Shipped,
        OrderStatus::Delivered => OrderState::Delivered,
        OrderStatus::Rejected => OrderState::Rejected,
        OrderStatus::Cancelled => OrderState::Cancelled,
    }
}
