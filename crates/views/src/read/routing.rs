use std::sync::Arc;

use souk_event_sourcing::{LogId, MintedId, RoutingKey, Topology};

/// Text that names no entity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidId(String);

/// Finds the log of an entity by its id alone.
#[derive(Debug, Clone)]
pub struct Routing(Arc<Topology>);

impl Routing {
    pub fn new(topology: Arc<Topology>) -> Self {
        Self(topology)
    }

    pub fn topology(&self) -> &Topology {
        &self.0
    }

    /// The log of a product and its stock.
    ///
    /// # Errors
    /// What [`RoutingKey::chosen`] refuses, and a region that is not there.
    pub fn product(&self, id: &str) -> Result<LogId, InvalidId> {
        self.home(RoutingKey::chosen(id))
    }

    /// The log of a customer's cart and orders.
    ///
    /// # Errors
    /// As [`Self::product`].
    pub fn customer(&self, id: &str) -> Result<LogId, InvalidId> {
        self.home(RoutingKey::chosen(id))
    }

    /// The log of an order: its id carries the customer's home region and routing hash.
    ///
    /// # Errors
    /// Anything but 32 characters of lower-case base32.
    pub fn order(&self, id: &str) -> Result<LogId, InvalidId> {
        let minted = id.parse::<MintedId>().map_err(|error| format!("{error}: an order id"));
        self.home(minted.map(RoutingKey::Minted))
    }

    fn home<E: ToString>(&self, key: Result<RoutingKey<'_>, E>) -> Result<LogId, InvalidId> {
        let key = key.map_err(|error| InvalidId(error.to_string()))?;
        self.0.home(key).map_err(|error| InvalidId(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use souk_event_sourcing::Region;

    use super::*;

    fn routing() -> Routing {
        Routing::new(Arc::new(Topology::alone(Region(1), "eu", 64)))
    }

    #[test]
    fn an_order_lies_in_the_log_of_its_customer() {
        // Minted for customer c-1 of region 1, see the golden test of the id.
        let id = include_str!("../../../domain/golden/order_id.txt").trim();
        assert_eq!(routing().order(id), routing().customer("c-1"));
    }

    #[test]
    fn an_order_id_has_one_spelling() {
        let good = "0".repeat(32);
        assert_eq!(routing().order(&good).map(|log| log.region), Ok(Region(0)));
        assert_eq!(routing().order(&"z".repeat(32)).map(|log| log.region), Ok(Region(u16::MAX)));
        for bad in ["", "p-1", &good[1..], &good.replacen('0', "O", 1), &good.replacen('0', "u", 1), &"é".repeat(16)] {
            assert!(routing().order(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_id_that_is_none_or_names_an_unknown_region_has_no_log() {
        for good in ["p-1", "eu.p-1"] {
            assert_eq!(routing().product(good).map(|log| log.region), Ok(Region(1)), "{good:?}");
        }
        for bad in ["", "-a", "us.p-1", "a b"] {
            assert!(routing().product(bad).is_err() && routing().customer(bad).is_err(), "{bad:?}");
        }
    }
}
