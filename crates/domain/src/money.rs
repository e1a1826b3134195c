use std::{fmt, str::FromStr};

use crate::{InvalidValue, Quantity};

/// ISO 4217 code: three upper-case letters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency([u8; 3]);

impl Currency {
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a currency is three ASCII letters")
    }
}

impl FromStr for Currency {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match <[u8; 3]>::try_from(text.as_bytes()) {
            Ok(letters) if letters.iter().all(u8::is_ascii_uppercase) => Ok(Self(letters)),
            _ => Err(InvalidValue("want an ISO 4217 code: three upper-case letters")),
        }
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An amount in the currency's minor unit: EUR 12.34 is 1234.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Money {
    pub currency: Currency,
    pub minor: i64,
}

impl Money {
    pub const fn new(currency: Currency, minor: i64) -> Self {
        Self { currency, minor }
    }

    /// `None` when the currencies differ or the sum does not fit.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        let minor = self.minor.checked_add(other.minor)?;
        (self.currency == other.currency).then_some(Self { minor, ..self })
    }

    /// `None` when the product does not fit.
    pub fn checked_mul(self, quantity: Quantity) -> Option<Self> {
        Some(Self { minor: self.minor.checked_mul(quantity.get())?, ..self })
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} minor units", self.currency, self.minor)
    }
}

/// What one unit of a product costs: 1 to 10^12 minor units. Zero is refused, since it is what a forgotten field looks
/// like; the upper bound keeps the total of a full order within 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Price(Money);

impl Price {
    pub const MAX_MINOR: i64 = 1_000_000_000_000;

    /// # Errors
    /// Outside 1 to [`Price::MAX_MINOR`].
    pub fn new(money: Money) -> Result<Self, InvalidValue> {
        match money.minor {
            1..=Self::MAX_MINOR => Ok(Self(money)),
            _ => Err(InvalidValue("want 1–1,000,000,000,000 minor units")),
        }
    }

    pub const fn money(self) -> Money {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eur(minor: i64) -> Money {
        Money::new("EUR".parse().unwrap(), minor)
    }

    #[test]
    fn currencies_do_not_mix_and_sums_do_not_wrap() {
        let usd = Money::new("USD".parse().unwrap(), 1);
        assert_eq!(eur(1).checked_add(eur(2)), Some(eur(3)));
        assert_eq!(eur(1).checked_add(usd), None);
        assert_eq!(eur(i64::MAX).checked_add(eur(1)), None);
        assert_eq!(eur(i64::MAX).checked_mul(Quantity::new(2).unwrap()), None);
    }

    #[test]
    fn a_price_is_positive_and_bounded() {
        assert!(Price::new(eur(1)).is_ok() && Price::new(eur(Price::MAX_MINOR)).is_ok());
        for bad in [i64::MIN, -1, 0, Price::MAX_MINOR + 1, i64::MAX] {
            assert!(Price::new(eur(bad)).is_err(), "{bad}");
        }
        for bad in ["", "eur", "EU", "EURO", "E R", "É!"] {
            assert!(bad.parse::<Currency>().is_err(), "{bad:?}");
        }
    }
}
