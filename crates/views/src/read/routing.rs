use souk_event_sourcing::{LogId, Region, partition_of, routing_hash};

/// Text that names no entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("want {0}")]
pub struct InvalidId(&'static str);

/// Finds the log of an entity by its id alone.
#[derive(Debug, Clone, Copy)]
pub struct Routing {
    /// Home of the entities whose ids do not name one.
    pub region: Region,
    pub partitions: u16,
}

const MAX_ID_BYTES: usize = 64;
const ORDER_ID_CHARS: usize = 32;
/// Crockford's base32 in lower case (crockford.com/base32.html).
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl Routing {
    /// The log of a product and its stock.
    ///
    /// # Errors
    /// Anything but `[A-Za-z0-9][A-Za-z0-9_-]{0,63}`.
    pub fn product(&self, id: &str) -> Result<LogId, InvalidId> {
        self.caller_id(id)
    }

    /// The log of a customer's cart and orders.
    ///
    /// # Errors
    /// As [`Self::product`].
    pub fn customer(&self, id: &str) -> Result<LogId, InvalidId> {
        self.caller_id(id)
    }

    /// The log of an order: its id carries the customer's home region and routing hash.
    ///
    /// # Errors
    /// Anything but 32 characters of lower-case base32.
    pub fn order(&self, id: &str) -> Result<LogId, InvalidId> {
        const INVALID: InvalidId = InvalidId("an order id: 32 characters of lower-case base32");
        if id.len() != ORDER_ID_CHARS {
            return Err(INVALID);
        }
        // 32 characters of 5 bits: 6 bytes of time, 2 of region, 4 of routing hash, 8 more.
        let mut bits = [0u128; 2];
        for (index, char) in id.bytes().enumerate() {
            let digit = ALPHABET.iter().position(|letter| *letter == char).ok_or(INVALID)?;
            let half = &mut bits[index / 16];
            *half = *half << 5 | digit as u128;
        }
        let [first, second] = bits;
        let region = Region((first >> 16) as u16);
        let hash = (first as u32) << 16 | (second >> 64) as u32;
        Ok(LogId { region, partition: partition_of(hash, self.partitions) })
    }

    fn caller_id(&self, id: &str) -> Result<LogId, InvalidId> {
        let begins_well = id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        let plain = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !begins_well || !plain || id.len() > MAX_ID_BYTES {
            return Err(InvalidId("1–64 letters, digits, '-' or '_', beginning with a letter or digit"));
        }
        Ok(LogId { region: self.region, partition: partition_of(routing_hash(id), self.partitions) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTING: Routing = Routing { region: Region(1), partitions: 64 };

    #[test]
    fn an_order_lies_in_the_log_of_its_customer() {
        // Minted for customer c-1 of region 1, see the golden test of the id.
        let id = include_str!("../../../domain/golden/order_id.txt").trim();
        assert_eq!(ROUTING.order(id), ROUTING.customer("c-1"));
    }

    #[test]
    fn an_order_id_has_one_spelling() {
        let good = "0".repeat(32);
        assert_eq!(ROUTING.order(&good).map(|log| log.region), Ok(Region(0)));
        assert_eq!(ROUTING.order(&"z".repeat(32)).map(|log| log.region), Ok(Region(u16::MAX)));
        for bad in ["", "p-1", &good[1..], &good.replacen('0', "O", 1), &good.replacen('0', "u", 1), &"é".repeat(16)] {
            assert!(ROUTING.order(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_of_callers_are_plain() {
        for good in ["a", "0", "p-1", "A_b-c", &"x".repeat(64)] {
            assert_eq!(ROUTING.product(good).map(|log| log.region), Ok(Region(1)), "{good:?}");
        }
        for bad in ["", "-a", "_a", "a.b", "a b", "ä", "a\0", "a/b", &"x".repeat(65)] {
            assert!(ROUTING.product(bad).is_err() && ROUTING.customer(bad).is_err(), "{bad:?}");
        }
    }
}
