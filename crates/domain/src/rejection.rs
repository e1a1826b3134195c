use std::fmt;

use crate::{Money, OrderStatus, ProductId};

/// A rule that refuses a command, decided on the state: repeated under the same request id, it is refused the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// No such product. `products` names them when a command is about several.
    ProductNotFound {
        products: Vec<ProductId>,
    },
    ProductAlreadyExists,
    /// Publishing needs a title, and a title that was set cannot be cleared.
    TitleRequired,
    PriceRequired,
    /// A draft cannot be discontinued.
    NotPublished,

    /// The stock of a product that is not published reserves nothing.
    NotForSale,
    InsufficientStock {
        available: i64,
    },
    /// The reservation came after its own `valid_until`.
    ReservationExpired,
    /// A release overtook the reservation.
    ReservationReleased,
    /// Held for the same order already, with another quantity.
    ReservationDiffers {
        held: i64,
    },
    ReservationNotFound,
    BelowReserved {
        on_hand: i64,
        reserved: i64,
    },
    /// A figure of the stock would leave 64 bits.
    StockOutOfRange,

    CartEmpty,
    CartFull,
    /// A line would exceed 999 units.
    QuantityLimit {
        in_cart: i64,
    },
    ItemNotInCart,

    OrderNotFound,
    OrderAlreadyExists,
    ProductNotForSale {
        products: Vec<ProductId>,
    },
    CurrencyMismatch,
    TotalOutOfRange,
    /// The prices add up to another total than the caller expects.
    TotalChanged {
        total: Money,
    },
    /// The cart changed between the look-up of its products and the decision: look up again.
    LookUpIncomplete {
        products: Vec<ProductId>,
    },
    /// Stock is still being reserved.
    NotAwaitingPayment {
        status: OrderStatus,
    },
    AlreadyPaid,
    PaymentMismatch {
        total: Money,
    },
    TooManyPayments,
    NotCancellable {
        status: OrderStatus,
    },
    NotPaid {
        status: OrderStatus,
    },
    AlreadyShipped,
    NotShipped {
        status: OrderStatus,
    },
}

/// Kinds of rejection, as far as callers act differently on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// What the command is about does not exist.
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// A rule refuses; repeated it stays refused until the state changes.
    Rule,
    /// The facts the command came with do not fit the state any more. Never remembered: gather them again.
    Conflict,
}

impl Rejection {
    pub const fn class(&self) -> Class {
        match self {
            Self::ProductNotFound { .. } | Self::OrderNotFound => Class::NotFound,
            Self::ProductAlreadyExists | Self::OrderAlreadyExists => Class::AlreadyExists,
            Self::LookUpIncomplete { .. } => Class::Conflict,
            _ => Class::Rule,
        }
    }

    /// Stable reason for ErrorInfo.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::ProductNotFound { .. } => "PRODUCT_NOT_FOUND",
            Self::ProductAlreadyExists => "PRODUCT_ALREADY_EXISTS",
            Self::TitleRequired => "TITLE_REQUIRED",
            Self::PriceRequired => "PRICE_REQUIRED",
            Self::NotPublished => "NOT_PUBLISHED",
            Self::NotForSale => "NOT_FOR_SALE",
            Self::InsufficientStock { .. } => "INSUFFICIENT_STOCK",
            Self::ReservationExpired => "RESERVATION_EXPIRED",
            Self::ReservationReleased => "RESERVATION_RELEASED",
            Self::ReservationDiffers { .. } => "RESERVATION_DIFFERS",
            Self::ReservationNotFound => "RESERVATION_NOT_FOUND",
            Self::BelowReserved { .. } => "BELOW_RESERVED",
            Self::StockOutOfRange => "STOCK_OUT_OF_RANGE",
            Self::CartEmpty => "CART_EMPTY",
            Self::CartFull => "CART_FULL",
            Self::QuantityLimit { .. } => "QUANTITY_LIMIT",
            Self::ItemNotInCart => "ITEM_NOT_IN_CART",
            Self::OrderNotFound => "ORDER_NOT_FOUND",
            Self::OrderAlreadyExists => "ORDER_ALREADY_EXISTS",
            Self::ProductNotForSale { .. } => "PRODUCT_NOT_FOR_SALE",
            Self::CurrencyMismatch => "CURRENCY_MISMATCH",
            Self::TotalOutOfRange => "TOTAL_OUT_OF_RANGE",
            Self::TotalChanged { .. } => "TOTAL_CHANGED",
            Self::LookUpIncomplete { .. } => "CART_CHANGED",
            Self::NotAwaitingPayment { .. } => "NOT_AWAITING_PAYMENT",
            Self::AlreadyPaid => "ALREADY_PAID",
            Self::PaymentMismatch { .. } => "PAYMENT_MISMATCH",
            Self::TooManyPayments => "TOO_MANY_PAYMENTS",
            Self::NotCancellable { .. } => "NOT_CANCELLABLE",
            Self::NotPaid { .. } => "NOT_PAID",
            Self::AlreadyShipped => "ALREADY_SHIPPED",
            Self::NotShipped { .. } => "NOT_SHIPPED",
        }
    }

    /// One sentence for people.
    pub fn message(&self) -> String {
        match self {
            Self::ProductNotFound { products } if products.is_empty() => "no such product".into(),
            Self::ProductNotFound { products } => format!("no such product: {}", in_words(products)),
            Self::ProductAlreadyExists => "the product id is taken".into(),
            Self::TitleRequired => "the product needs a title".into(),
            Self::PriceRequired => "the product needs a price".into(),
            Self::NotPublished => "the product is not published".into(),
            Self::NotForSale => "the product is not for sale".into(),
            Self::InsufficientStock { available } => format!("only {available} units are available"),
            Self::ReservationExpired => "the reservation came after its valid_until".into(),
            Self::ReservationReleased => "the reservation was released before".into(),
            Self::ReservationDiffers { held } => format!("{held} units are held for this order already"),
            Self::ReservationNotFound => "nothing is held for this order".into(),
            Self::BelowReserved { on_hand, reserved } => format!("{reserved} of {on_hand} units on hand are reserved"),
            Self::StockOutOfRange => "the figures of this stock would leave their range".into(),
            Self::CartEmpty => "the cart is empty".into(),
            Self::CartFull => "the cart has 100 lines already".into(),
            Self::QuantityLimit { in_cart } => format!("a line holds at most 999 units, {in_cart} are in the cart"),
            Self::ItemNotInCart => "the product is not in the cart".into(),
            Self::OrderNotFound => "no such order".into(),
            Self::OrderAlreadyExists => "the order was placed before".into(),
            Self::ProductNotForSale { products } => format!("not for sale: {}", in_words(products)),
            Self::CurrencyMismatch => "the products are priced in different currencies".into(),
            Self::TotalOutOfRange => "the total is too large".into(),
            Self::TotalChanged { total } => format!("the total is now {total}"),
            Self::LookUpIncomplete { .. } => "the cart changed meanwhile, try again".into(),
            Self::NotAwaitingPayment { status } => format!("the order awaits no payment, it is {status}"),
            Self::AlreadyPaid => "the order was paid by another payment".into(),
            Self::PaymentMismatch { total } => format!("the total is {total}"),
            Self::TooManyPayments => "the order has too many payments on record".into(),
            Self::NotCancellable { status } => format!("an order that is {status} cannot be cancelled"),
            Self::NotPaid { status } => format!("the order is not paid, it is {status}"),
            Self::AlreadyShipped => "the order was shipped otherwise".into(),
            Self::NotShipped { status } => format!("the order is not shipped, it is {status}"),
        }
    }

    /// Figures and ids a program may act on.
    pub fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::ProductNotFound { products } if products.is_empty() => vec![],
            Self::ProductNotFound { products } | Self::ProductNotForSale { products } | Self::LookUpIncomplete { products } => {
                vec![("product_ids", list(products))]
            }
            Self::InsufficientStock { available } => vec![("available", available.to_string())],
            Self::ReservationDiffers { held } => vec![("held", held.to_string())],
            Self::BelowReserved { on_hand, reserved } => vec![("on_hand", on_hand.to_string()), ("reserved", reserved.to_string())],
            Self::QuantityLimit { in_cart } => vec![("in_cart", in_cart.to_string())],
            Self::TotalChanged { total } | Self::PaymentMismatch { total } => {
                vec![("total_minor_units", total.minor.to_string()), ("total_currency", total.currency.to_string())]
            }
            Self::NotAwaitingPayment { status }
            | Self::NotCancellable { status }
            | Self::NotPaid { status }
            | Self::NotShipped { status } => {
                vec![("state", status.to_string())]
            }
            _ => vec![],
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

impl std::error::Error for Rejection {}

/// Most products a rejection names: it travels in headers, of which many peers take no more than 8 KiB.
const MOST_LISTED: usize = 32;
/// Most of them in its sentence.
const MOST_IN_WORDS: usize = 3;

fn list(products: &[ProductId]) -> String {
    products.iter().take(MOST_LISTED).map(ProductId::as_str).collect::<Vec<_>>().join(", ")
}

fn in_words(products: &[ProductId]) -> String {
    let named = list(&products[..products.len().min(MOST_IN_WORDS)]);
    match products.len().saturating_sub(MOST_IN_WORDS) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_reasons_and_metadata_are_stable() {
        let total = Money::new("EUR".parse().unwrap(), 1_234);
        let changed = Rejection::TotalChanged { total };
        assert_eq!((changed.class(), changed.reason()), (Class::Rule, "TOTAL_CHANGED"));
        assert_eq!(changed.metadata(), [("total_minor_units", "1234".to_owned()), ("total_currency", "EUR".to_owned())]);
        let missing = Rejection::ProductNotFound { products: vec!["p-1".parse().unwrap(), "p-2".parse().unwrap()] };
        assert_eq!((missing.class(), missing.to_string()), (Class::NotFound, "no such product: p-1, p-2".to_owned()));
        let many = (0..100).map(|number| format!("{number:064}").parse().unwrap()).collect();
        let many = Rejection::ProductNotForSale { products: many };
        assert!(many.message().ends_with(" and 97 more") && many.message().len() + many.metadata()[0].1.len() < 2_500, "{many}");
        assert_eq!(Rejection::OrderAlreadyExists.class(), Class::AlreadyExists);
        assert_eq!(Rejection::LookUpIncomplete { products: vec![] }.class(), Class::Conflict);
        assert_eq!(Rejection::InsufficientStock { available: 3 }.metadata(), [("available", "3".to_owned())]);
    }
}
