//! How Rust programs speak to Souk.
//!
//! ```no_run
//! use souk_client::{Endpoints, Souk};
//! use souk_proto::{catalog::v1::GetProductRequest, stock::v1::ReceiveStockRequest};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let souk = Souk::connect(&Endpoints::new("http://127.0.0.1:50051", "http://127.0.0.1:50052"))?;
//! let session = souk.session().caller("goods-in");
//! session.command(ReceiveStockRequest { product_id: "p-1".into(), quantity: 10, ..Default::default() }).await?;
//! // Sees at least what the command did: the session sends its token along.
//! let product = session.query(GetProductRequest { product_id: "p-1".into(), ..Default::default() }).await?;
//! # Ok(()) }
//! ```
//!
//! # Layout
//! - `endpoints`: where Souk is: [`Endpoints`], [`Souk`]
//! - `session`: [`Session`]: tokens carried from reply to query, request ids, deadlines, retries
//! - `pool`: the connections to the replicas of one service, and which of them are left alone
//! - `owners`: which replica carries a command out without forwarding it
//! - `rpc`: [`Command`] and [`Query`], implemented for every request message by one table
//! - `retry`: what is repeated, and after how long
//! - `watch`: [`Session::watch_order`], [`Session::watch_cart`], resumed after a broken connection
//! - `error`: [`Error`], with reason, figures and bad fields

mod endpoints;
mod error;
mod owners;
mod pool;
mod retry;
mod rpc;
mod session;
mod watch;

pub use endpoints::{Endpoints, InvalidEndpoint, Souk};
pub use error::{Error, Violation};
pub use rpc::{Command, Door, Query};
pub use session::Session;
