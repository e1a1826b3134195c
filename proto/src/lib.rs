//! Generated from the contracts beside this crate; nothing here is written by hand but this index.
//!
//! # Layout
//! One module per context (`catalog`, `stock`, `cart`, `orders`), `common` for what they share, `log` for events,
//! ledger and feed, `internal` for what only our own processes say to each other.

#![allow(clippy::all, missing_docs)]

macro_rules! package {
    ($name:ident, $package:literal) => {
        pub mod $name {
            pub mod v1 {
                tonic::include_proto!($package);
            }
        }
    };
}

package!(common, "souk.common.v1");
package!(catalog, "souk.catalog.v1");
package!(stock, "souk.stock.v1");
package!(cart, "souk.cart.v1");
package!(orders, "souk.orders.v1");
package!(log, "souk.log.v1");
package!(internal, "souk.internal.v1");

/// All contracts as an encoded `FileDescriptorSet`, for reflection and for clients in other languages.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
