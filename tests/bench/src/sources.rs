//! What is sent: catalogue queries and commands of 1 KB.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use souk_load::{Request, Rpc, Source, frame};
use souk_proto::{
    catalog::v1::{CreateProductRequest, GetProductRequest, ProductDetails, UpdateProductRequest},
    common::v1::Money,
    stock::v1::ReceiveStockRequest,
};
use uuid::Uuid;

pub const GET_PRODUCT: &str = "/souk.catalog.v1.QueryService/GetProduct";
pub const CREATE_PRODUCT: &str = "/souk.catalog.v1.CommandService/CreateProduct";
pub const UPDATE_PRODUCT: &str = "/souk.catalog.v1.CommandService/UpdateProduct";
pub const RECEIVE_STOCK: &str = "/souk.stock.v1.CommandService/ReceiveStock";

/// Makes a product's event, and its view, one of 1 KB.
pub const DESCRIPTION: usize = 900;

pub fn product_id(number: u64) -> String {
    format!("p-{number}")
}

/// Text that differs from product to product and from time to time, of one length.
pub fn description(seed: u64) -> String {
    text(seed, DESCRIPTION)
}

/// A text of so many bytes.
pub fn text(seed: u64, bytes: usize) -> String {
    let word = format!("{:016x} ", seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word.repeat(bytes / word.len() + 1)[..bytes].to_owned()
}

/// Which product each call is about.
#[derive(Debug, Clone)]
pub struct Keys(Arc<Vec<u32>>);

/// How many picks are drawn beforehand; after that they repeat.
const PICKS: usize = 1 << 18;
/// As in YCSB.
const ZIPF_EXPONENT: f64 = 0.99;

impl Keys {
    /// Each of 1..=count alike.
    pub fn uniform(count: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(7);
        Self(Arc::new((0..PICKS).map(|_| random.random_range(1..=count as u32)).collect()))
    }

    /// One product alone.
    pub fn only(product: u64) -> Self {
        Self(Arc::new(vec![product as u32]))
    }

    /// Few often and many rarely: the n-th most wanted with a share of 1 / n^0.99.
    pub fn zipf(count: u64) -> Self {
        let mut sum = 0.0;
        let shares: Vec<f64> = (1..=count)
            .map(|rank| {
                sum += (rank as f64).powf(-ZIPF_EXPONENT);
                sum
            })
            .collect();
        let mut random = SmallRng::seed_from_u64(7);
        // The most wanted ones lie anywhere.
        let place = |rank: usize| (rank as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % count + 1;
        let mut pick = || place(shares.partition_point(|share| *share < random.random_range(0.0..sum))) as u32;
        Self(Arc::new((0..PICKS).map(|_| pick()).collect()))
    }

    pub fn of(&self, number: u64) -> u64 {
        u64::from(self.0[number as usize % self.0.len()])
    }
}

/// Queries of single products, encoded beforehand.
pub struct Gets {
    rpc: Arc<Rpc>,
    keys: Keys,
    messages: Vec<Bytes>,
}

impl Gets {
    pub fn new(rpc: Arc<Rpc>, keys: Keys, products: u64) -> Self {
        let get = |number| GetProductRequest { product_id: product_id(number), token: String::new() };
        Self { rpc, keys, messages: (0..=products).map(|number| frame(&get(number).encode_to_vec())).collect() }
    }
}

impl Source for Gets {
    fn next(&self, number: u64) -> Request {
        Request::new(&self.rpc, self.messages[self.keys.of(number) as usize].clone())
    }
}

/// A request id that says when it was made, as callers are advised to make them.
pub fn timed_id() -> String {
    Uuid::now_v7().to_string()
}

/// A request id that says nothing.
pub fn random_id() -> String {
    Uuid::new_v4().to_string()
}

fn message(message: &impl Message) -> Bytes {
    frame(&message.encode_to_vec())
}

/// The creation of products, from a number on.
pub fn creations(rpc: Arc<Rpc>, first: u64, request_id: fn() -> String) -> impl Source {
    move |number: u64| {
        let number = first + number;
        let product = ProductDetails { title: format!("Product {number}"), description: description(number), ..Default::default() };
        let price = Some(Money { currency: "EUR".to_owned(), minor_units: 100 + number as i64 % 900 });
        let request = CreateProductRequest { request_id: request_id(), product_id: product_id(number), details: Some(product), price };
        Request::new(&rpc, message(&request))
    }
}

/// New texts of 1 KB for products.
pub fn updates(rpc: Arc<Rpc>, keys: Keys) -> impl Source {
    let round: u64 = rand::rng().random();
    move |number: u64| {
        let text = description(number ^ round);
        Request::new(&rpc, message(&update(keys.of(number), text)))
    }
}

/// A new text for a product.
pub fn update(product: u64, description: String) -> UpdateProductRequest {
    UpdateProductRequest {
        request_id: timed_id(),
        product_id: product_id(product),
        details: Some(ProductDetails { description, ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["description".to_owned()] }),
        etag: String::new(),
    }
}

/// Goods arriving for a product.
pub fn receipts(rpc: Arc<Rpc>, product: impl Fn(u64) -> u64 + Send + Sync + 'static) -> impl Source {
    move |number: u64| {
        let request = ReceiveStockRequest { request_id: timed_id(), product_id: product_id(product(number)), quantity: 1 };
        Request::new(&rpc, message(&request))
    }
}

/// One command among ten calls; the rest are queries.
pub struct Mix {
    gets: Gets,
    update: Arc<Rpc>,
    keys: Keys,
    round: u64,
}

impl Mix {
    pub const QUERIES: usize = 0;
    pub const COMMANDS: usize = 1;

    pub fn new(get: Arc<Rpc>, update: Arc<Rpc>, keys: Keys, products: u64) -> Self {
        Self { gets: Gets::new(get, keys.clone(), products), update, keys, round: rand::rng().random() }
    }
}

impl Source for Mix {
    fn kinds(&self) -> Vec<String> {
        vec!["queries".to_owned(), "commands".to_owned()]
    }

    fn next(&self, number: u64) -> Request {
        if !number.is_multiple_of(10) {
            return self.gets.next(number);
        }
        let request = update(self.keys.of(number), description(number ^ self.round));
        Request::new(&self.update, message(&request)).kind(Self::COMMANDS)
    }
}

/// A query of each product 1..=`products` once.
pub fn each(rpc: Arc<Rpc>, products: u64) -> impl Source {
    move |number: u64| {
        let request = GetProductRequest { product_id: product_id(number % products + 1), token: String::new() };
        Request::new(&rpc, message(&request))
    }
}
