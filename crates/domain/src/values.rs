//! Bounded texts and numbers. `new` checks what a caller sends; `stored` takes what an event or snapshot holds, since
//! bounds may change and what was decided once stays readable.

use std::{fmt, sync::Arc};

/// What is wrong with one field of a request, in words for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(pub &'static str);

macro_rules! bounded_text {
    ($(#[$doc:meta])* $name:ident, $min:literal..=$max:literal, $wrong:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// # Errors
            /// Too few or too many characters (Unicode scalar values), or a NUL among them: Postgres stores none.
            #[allow(clippy::manual_range_contains, unused_comparisons)]
            pub fn new(text: &str) -> Result<Self, InvalidValue> {
                if text.contains('\0') {
                    return Err(InvalidValue("must not contain NUL"));
                }
                // The length in bytes bounds the counting of hostile texts.
                let fits = text.len() <= 4 * $max && ($min..=$max).contains(&text.chars().count());
                fits.then(|| Self(text.into())).ok_or(InvalidValue($wrong))
            }

            /// A text that was accepted before.
            pub fn stored(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }

            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self("".into())
            }
        }
    };
}

bounded_text!(
    /// Title of a product; empty only before it was first set.
    Title, 0..=200, "want at most 200 characters"
);
bounded_text!(
    /// Description of a product.
    Description, 0..=10_000, "want at most 10,000 characters"
);
bounded_text!(
    /// Category of a product.
    Category, 0..=64, "want at most 64 characters"
);
bounded_text!(
    /// One tag of a product.
    Tag, 1..=32, "want 1–32 characters"
);
bounded_text!(
    /// Why stock was adjusted.
    Note, 0..=200, "want at most 200 characters"
);
bounded_text!(
    /// The payment's own id, given by whoever took the money.
    PaymentReference, 1..=128, "want 1–128 characters"
);
bounded_text!(
    /// Who carries a shipment.
    Carrier, 0..=64, "want at most 64 characters"
);
bounded_text!(
    /// The carrier's number of a shipment.
    TrackingNumber, 0..=128, "want at most 128 characters"
);
bounded_text!(
    /// Why an order was cancelled.
    CancelReason, 0..=200, "want at most 200 characters"
);

/// Tags of a product: sorted and distinct, at most 20.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tags(Vec<Tag>);

impl Tags {
    pub const MAX: usize = 20;

    /// Sorts and drops repeats.
    ///
    /// # Errors
    /// More than 20 distinct tags.
    pub fn new(tags: impl IntoIterator<Item = Tag>) -> Result<Self, InvalidValue> {
        let tags = Self::stored(tags);
        if tags.0.len() > Self::MAX { Err(InvalidValue("want at most 20 tags")) } else { Ok(tags) }
    }

    /// Tags that were accepted before.
    pub fn stored(tags: impl IntoIterator<Item = Tag>) -> Self {
        let mut tags: Vec<_> = tags.into_iter().collect();
        tags.sort();
        tags.dedup();
        Self(tags)
    }

    pub fn as_slice(&self) -> &[Tag] {
        &self.0
    }
}

macro_rules! bounded_number {
    ($(#[$doc:meta])* $name:ident, $fits:expr, $wrong:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(i64);

        impl $name {
            /// # Errors
            /// Outside the bounds.
            pub fn new(number: i64) -> Result<Self, InvalidValue> {
                let fits: fn(i64) -> bool = $fits;
                if fits(number) { Ok(Self(number)) } else { Err(InvalidValue($wrong)) }
            }

            /// A number that was accepted before.
            pub const fn stored(number: i64) -> Self {
                Self(number)
            }

            pub const fn get(self) -> i64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

bounded_number!(
    /// Units of one line of a cart, an order or a reservation: 1–999.
    Quantity, |units| (1..=999).contains(&units), "want 1–999 units"
);
bounded_number!(
    /// Units that arrived at once: 1–1,000,000,000.
    Receipt, |units| (1..=1_000_000_000).contains(&units), "want 1–1,000,000,000 units"
);
bounded_number!(
    /// A correction of the units on hand: up to 1,000,000,000 either way, not zero.
    Correction, |units| units != 0 && (-1_000_000_000..=1_000_000_000).contains(&units), "want up to 1,000,000,000 units either way, not zero"
);

impl Quantity {
    /// Both together; `None` beyond 999.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        Self::new(self.0.checked_add(other.0)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_counted_in_characters_and_hold_no_nul() {
        assert!(Title::new(&"ü".repeat(200)).is_ok() && Title::new(&"ü".repeat(201)).is_err());
        assert!(Title::new(&"😀".repeat(200)).is_ok() && Title::new("").is_ok());
        assert!(Tag::new("").is_err() && Tag::new("a").is_ok() && Tag::new(&"a".repeat(33)).is_err());
        assert_eq!(Description::new("a\0b"), Err(InvalidValue("must not contain NUL")));
        assert!(Description::new(&"a".repeat(10_000)).is_ok() && Description::new(&"a".repeat(10_001)).is_err());
    }

    #[test]
    fn tags_are_sorted_distinct_and_few() {
        let tags = |names: &[String]| Tags::new(names.iter().map(|name| Tag::new(name).unwrap()));
        let two = tags(&["b".into(), "a".into(), "b".into()]).unwrap();
        assert_eq!(two.as_slice().iter().map(Tag::as_str).collect::<Vec<_>>(), ["a", "b"]);
        assert!(tags(&(0..21).map(|n| n.to_string()).collect::<Vec<_>>()).is_err());
    }

    #[test]
    fn numbers_keep_their_bounds() {
        let full = Quantity::new(999).unwrap();
        assert_eq!(full.checked_add(Quantity::new(1).unwrap()), None);
        for bad in [i64::MIN, -1, 0, 1_000, i64::MAX] {
            assert!(Quantity::new(bad).is_err(), "{bad}");
        }
        for bad in [i64::MIN, -1, 0, 1_000_000_001, i64::MAX] {
            assert!(Receipt::new(bad).is_err(), "{bad}");
        }
        for bad in [i64::MIN, -1_000_000_001, 0, i64::MAX] {
            assert!(Correction::new(bad).is_err(), "{bad}");
        }
    }
}
