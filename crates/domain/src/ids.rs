use std::{fmt, str::FromStr, sync::Arc};

use souk_event_sourcing::{InvalidMintedId, MintedId, Region, RequestId, RoutingKey, StreamId, routing_hash};

use crate::InvalidValue;

fn caller_id(text: &str) -> Result<Arc<str>, InvalidValue> {
    RoutingKey::chosen(text).map(|_| text.into()).map_err(|_| {
        InvalidValue("want 1–64 letters, digits, '-' or '_', beginning with a letter or digit; a region and a dot may stand before them")
    })
}

/// An id of the caller's choice, as [`RoutingKey::chosen`] allows it.
macro_rules! caller_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// # Errors
            /// Anything but 1–64 letters, digits, '-' or '_', beginning with a letter or digit.
            pub fn new(text: &str) -> Result<Self, InvalidValue> {
                caller_id(text).map(Self)
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidValue;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

caller_id!(
    /// A product, named by the caller who creates it.
    ProductId
);
caller_id!(
    /// A customer, named by the caller; Souk knows nothing else of people.
    CustomerId
);
caller_id!(
    /// What units are held for: an order, or whatever a caller of ReserveStock names.
    ReservationId
);

impl ProductId {
    /// Stream of the product itself.
    pub fn stream(&self) -> StreamId {
        StreamId::new(crate::product::CATEGORY, &self.0)
    }

    /// Stream of the product's stock, in the same partition.
    pub fn stock_stream(&self) -> StreamId {
        StreamId::new(crate::stock::CATEGORY, &self.0)
    }

    /// Decides the log of product and stock.
    pub fn key(&self) -> RoutingKey<'_> {
        RoutingKey::Chosen(&self.0)
    }
}

impl CustomerId {
    /// Stream of the customer's cart.
    pub fn cart_stream(&self) -> StreamId {
        StreamId::new(crate::cart::CATEGORY, &self.0)
    }

    /// Decides the log of the cart and of the customer's orders.
    pub fn key(&self) -> RoutingKey<'_> {
        RoutingKey::Chosen(&self.0)
    }
}

/// An order, minted from the command that places it: a repeated command lands on the same order, and whoever holds the id
/// can route it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(MintedId);

impl OrderId {
    /// The order that `caller` places by `rpc` for `customer` with `request_id`, at the customer's home region.
    pub fn mint(request_id: RequestId, caller: &str, customer: &CustomerId, rpc: &str, region: Region) -> Self {
        Self(MintedId::mint(request_id, &format!("order/{caller}/{customer}/{rpc}"), routing_hash(&customer.0), region))
    }

    /// Home region of the customer when the order was placed.
    pub fn region(&self) -> Region {
        self.0.region()
    }

    /// Decides the order's log, which was the customer's when it was placed.
    pub fn key(&self) -> RoutingKey<'_> {
        RoutingKey::Minted(self.0)
    }

    pub fn stream(&self) -> StreamId {
        StreamId::new(crate::order::CATEGORY, &self.to_string())
    }
}

impl From<OrderId> for ReservationId {
    fn from(order: OrderId) -> Self {
        Self(order.to_string().into())
    }
}

impl FromStr for OrderId {
    type Err = InvalidValue;

    /// Only the spelling `Display` writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|InvalidMintedId| InvalidValue("want an order id: 32 characters of lower-case base32"))
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mint(request_id: &str, caller: &str, customer: &str, rpc: &str) -> OrderId {
        OrderId::mint(request_id.parse().unwrap(), caller, &customer.parse().unwrap(), rpc, Region(1))
    }

    const REQUEST: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    #[test]
    fn an_order_id_is_pinned_and_tells_where_it_lives() {
        let id = mint(REQUEST, "shop", "c-1", "PlaceOrder");
        assert_eq!(id.to_string(), include_str!("../golden/order_id.txt").trim());
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!((id.region(), id.0.routing_hash()), (Region(1), routing_hash("c-1")));
        assert_eq!(id.stream().as_str(), format!("order-{id}"));
    }

    #[test]
    fn another_request_caller_customer_or_rpc_is_another_order() {
        let id = mint(REQUEST, "shop", "c-1", "PlaceOrder");
        assert_eq!(id, mint(REQUEST, "shop", "c-1", "PlaceOrder"));
        for other in [
            mint("01890a5d-ac96-774b-bcce-b302099a8058", "shop", "c-1", "PlaceOrder"),
            mint(REQUEST, "app", "c-1", "PlaceOrder"),
            mint(REQUEST, "shop", "c-2", "PlaceOrder"),
            mint(REQUEST, "shop", "c-1", "Checkout"),
        ] {
            assert_ne!(id, other);
        }
    }

    #[test]
    fn an_order_id_has_one_spelling() {
        let text = mint(REQUEST, "shop", "c-1", "PlaceOrder").to_string();
        for bad in ["", "x", &text.to_uppercase(), &text[1..], &format!("{text}0"), &text.replacen('0', "o", 1), &"é".repeat(16)] {
            assert!(bad.parse::<OrderId>().is_err(), "{bad:?}");
        }
        for edge in ["0".repeat(32), "z".repeat(32)] {
            assert_eq!(edge.parse::<OrderId>().unwrap().to_string(), edge);
        }
    }

    #[test]
    fn ids_of_callers_are_plain() {
        for good in ["a", "0", "p-1", "A_b-c", "eu.p-1", &"x".repeat(64)] {
            assert_eq!(ProductId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "_a", "A.b", "a b", "ä", "a\0", "a/b", &"x".repeat(65)] {
            assert!(ProductId::new(bad).is_err(), "{bad:?}");
        }
    }
}
