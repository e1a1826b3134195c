use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};

use compact_str::CompactString;
use moka::Equivalent;
use souk_event_sourcing::LogId;
use souk_read_store::PointView;
use souk_views::{AVAILABILITY_VIEW, CART_VIEW, ORDER_VIEW, PRODUCT_VIEW};

/// A view with one row per entity: what the cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum View {
    Product,
    Availability,
    Cart,
    Order,
}

impl View {
    pub const ALL: [Self; 4] = [Self::Product, Self::Availability, Self::Cart, Self::Order];

    /// How the read store reads it.
    pub fn table(self) -> &'static PointView {
        match self {
            Self::Product => &PRODUCT_VIEW,
            Self::Availability => &AVAILABILITY_VIEW,
            Self::Cart => &CART_VIEW,
            Self::Order => &ORDER_VIEW,
        }
    }

    /// The view of that name in the change feed; `None` for tables that are only read as lists.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|view| view.table().name() == name)
    }
}

/// Names one row of one view.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RowKey {
    pub view: View,
    pub log: LogId,
    /// Beside the rest as long as it is short: a look-up compares it, and would have to fetch it from elsewhere.
    pub key: CompactString,
}

/// A borrowed [`RowKey`]: looking a row up allocates nothing. Hashes as the owned one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RowRef<'a> {
    pub view: View,
    pub log: LogId,
    pub key: &'a str,
}

impl RowKey {
    pub fn borrow(&self) -> RowRef<'_> {
        RowRef { view: self.view, log: self.log, key: &self.key }
    }
}

impl RowRef<'_> {
    pub fn to_key(self) -> RowKey {
        RowKey { view: self.view, log: self.log, key: self.key.into() }
    }

    /// Hash that finds the row's bucket. Not the routing hash: within a partition that one has fixed low bits, and all
    /// orders of a customer share it.
    pub fn bucket_hash(self) -> u64 {
        BuildHasherDefault::<DefaultHasher>::default().hash_one((self.view, self.key))
    }
}

impl Equivalent<RowKey> for RowRef<'_> {
    fn equivalent(&self, key: &RowKey) -> bool {
        *self == key.borrow()
    }
}
