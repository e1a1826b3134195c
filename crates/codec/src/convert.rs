//! Values that payloads share with requests and replies. Towards protobuf nothing can fail; from a stored payload
//! `None` means it is damaged. Requests are parsed where they arrive, with the checking constructors of the domain.

use souk_domain::{
    Category, Description, Money, OrderStatus, ProductFacts, ProductId, ProductStatus, Quantity, Tag, Tags, Title, cart, order, product,
};
use souk_event_sourcing::Version;
use souk_proto::{cart::v1 as cart_pb, catalog::v1 as catalog_pb, common::v1 as common_pb, orders::v1 as orders_pb};

pub fn money(money: Money) -> common_pb::Money {
    common_pb::Money { currency: money.currency.as_str().to_owned(), minor_units: money.minor }
}

/// `None` when the currency is none.
pub fn stored_money(money: &common_pb::Money) -> Option<Money> {
    Some(Money::new(money.currency.parse().ok()?, money.minor_units))
}

/// An absent message is `Some(None)`, a damaged one `None`.
pub fn stored_optional_money(money: &Option<common_pb::Money>) -> Option<Option<Money>> {
    money.as_ref().map(stored_money).map_or(Some(None), |money| money.map(Some))
}

pub fn product_state(status: ProductStatus) -> catalog_pb::ProductState {
    match status {
        ProductStatus::Missing => catalog_pb::ProductState::Unspecified,
        ProductStatus::Draft => catalog_pb::ProductState::Draft,
        ProductStatus::Published => catalog_pb::ProductState::Published,
        ProductStatus::Discontinued => catalog_pb::ProductState::Discontinued,
    }
}

/// `None` for a state this build does not know.
pub fn stored_product_state(state: i32) -> Option<ProductStatus> {
    Some(match catalog_pb::ProductState::try_from(state).ok()? {
        catalog_pb::ProductState::Unspecified => ProductStatus::Missing,
        catalog_pb::ProductState::Draft => ProductStatus::Draft,
        catalog_pb::ProductState::Published => ProductStatus::Published,
        catalog_pb::ProductState::Discontinued => ProductStatus::Discontinued,
    })
}

pub fn order_state(status: OrderStatus) -> orders_pb::OrderState {
    match status {
        OrderStatus::Missing => orders_pb::OrderState::Unspecified,
        OrderStatus::Reserving => orders_pb::OrderState::Reserving,
        OrderStatus::AwaitingPayment => orders_pb::OrderState::AwaitingPayment,
        OrderStatus::Paid => orders_pb::OrderState::Paid,
        OrderStatus::Shipped => orders_pb::OrderState::Shipped,
        OrderStatus::Delivered => orders_pb::OrderState::Delivered,
        OrderStatus::Rejected => orders_pb::OrderState::Rejected,
        OrderStatus::Cancelled => orders_pb::OrderState::Cancelled,
    }
}

/// `None` for a state this build does not know.
pub fn stored_order_state(state: i32) -> Option<OrderStatus> {
    Some(match orders_pb::OrderState::try_from(state).ok()? {
        orders_pb::OrderState::Unspecified => OrderStatus::Missing,
        orders_pb::OrderState::Reserving => OrderStatus::Reserving,
        orders_pb::OrderState::AwaitingPayment => OrderStatus::AwaitingPayment,
        orders_pb::OrderState::Paid => OrderStatus::Paid,
        orders_pb::OrderState::Shipped => OrderStatus::Shipped,
        orders_pb::OrderState::Delivered => OrderStatus::Delivered,
        orders_pb::OrderState::Rejected => OrderStatus::Rejected,
        orders_pb::OrderState::Cancelled => OrderStatus::Cancelled,
    })
}

pub fn product_facts(product: &ProductId, facts: &ProductFacts) -> catalog_pb::ProductFacts {
    catalog_pb::ProductFacts {
        product_id: product.to_string(),
        state: product_state(facts.status).into(),
        price: facts.price.map(money),
        version: facts.version.0,
    }
}

/// Facts as another owner answered them; `None` when damaged.
pub fn stored_product_facts(facts: &catalog_pb::ProductFacts) -> Option<(ProductId, ProductFacts)> {
    let status = stored_product_state(facts.state)?;
    let price = stored_optional_money(&facts.price)?;
    Some((facts.product_id.parse().ok()?, ProductFacts { status, price, version: Version(facts.version) }))
}

pub fn details(details: &product::Details) -> catalog_pb::ProductDetails {
    catalog_pb::ProductDetails {
        title: details.title.to_string(),
        description: details.description.to_string(),
        category: details.category.to_string(),
        tags: details.tags.as_slice().iter().map(Tag::to_string).collect(),
    }
}

pub fn stored_details(details: catalog_pb::ProductDetails) -> product::Details {
    product::Details {
        title: Title::stored(details.title),
        description: Description::stored(details.description),
        category: Category::stored(details.category),
        tags: stored_tags(details.tags),
    }
}

pub(crate) fn stored_tags(tags: Vec<String>) -> Tags {
    Tags::stored(tags.into_iter().map(Tag::stored))
}

pub fn cart_line(line: &cart::Line) -> cart_pb::CartLine {
    cart_pb::CartLine { product_id: line.product.to_string(), quantity: line.quantity.get() }
}

pub fn stored_cart_line(line: &cart_pb::CartLine) -> Option<cart::Line> {
    Some(cart::Line { product: line.product_id.parse().ok()?, quantity: Quantity::stored(line.quantity) })
}

pub fn order_line(line: &order::Line) -> orders_pb::OrderLine {
    orders_pb::OrderLine {
        product_id: line.product.to_string(),
        quantity: line.quantity.get(),
        unit_price: Some(money(line.unit_price)),
        product_version: line.product_version.0,
    }
}

pub fn stored_order_line(line: &orders_pb::OrderLine) -> Option<order::Line> {
    Some(order::Line {
        product: line.product_id.parse().ok()?,
        quantity: Quantity::stored(line.quantity),
        unit_price: stored_money(line.unit_price.as_ref()?)?,
        product_version: Version(line.product_version),
    })
}

pub fn refusal(refusal: &order::Refusal) -> orders_pb::LineRefusal {
    orders_pb::LineRefusal { product_id: refusal.product.to_string(), reason: refusal.reason.clone(), available: refusal.available }
}

pub fn stored_refusal(refusal: &orders_pb::LineRefusal) -> Option<order::Refusal> {
    Some(order::Refusal { product: refusal.product_id.parse().ok()?, reason: refusal.reason.clone(), available: refusal.available })
}
