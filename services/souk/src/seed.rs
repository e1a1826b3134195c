//! `souk seed`: countable products and customers, for load tests.

use std::{
    collections::{HashMap, HashSet},
    io::{IsTerminal, Write, stderr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use souk_client::{Error, Session};
use souk_proto::{
    cart::v1::{AddItemRequest, GetCartRequest},
    catalog::v1::{BatchGetProductsRequest, CreateProductRequest, GetProductRequest, ProductDetails, ProductState, PublishProductRequest},
    common::v1::Money,
    stock::v1::{BatchGetAvailabilityRequest, ReceiveStockRequest},
};
use tonic::Code;
use uuid::Uuid;

use crate::{paint, system::Target};

/// Ids looked up in one query.
const CHUNK: u64 = 100;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Products p-1, p-2, …: published, priced and stocked
    #[arg(long, value_name = "N", default_value_t = 100)]
    products: u64,
    /// Customers c-1, c-2, …: each with a cart of one line
    #[arg(long, value_name = "N", default_value_t = 100)]
    customers: u64,
    /// Units of each product on hand
    #[arg(long, value_name = "UNITS", default_value_t = 1_000_000)]
    stock: i64,
    /// Calls under way at a time
    #[arg(long, value_name = "N", default_value_t = 64)]
    concurrency: usize,
    #[command(flatten)]
    target: Target,
}

/// Creates what is not there yet; a second run changes nothing.
pub async fn run(args: Args) -> Result<()> {
    let concurrency = args.concurrency.max(1);
    let souk = args.target.connect(1 + concurrency / 128)?;
    // Each step has a session of its own: tokens of all products together would make every query wait for all of them.
    let session = || souk.session().caller("souk-seed").deadline(Duration::from_secs(30));
    let progress = Progress::new("products", args.products);
    let chunks = (1..=args.products).step_by(CHUNK as usize).map(|first| (first..=args.products).take(CHUNK as usize).collect());
    stream::iter(chunks)
        .map(|numbers| find_products(session(), numbers))
        .buffered(4)
        .map_ok(|found| stream::iter(found.into_iter().map(Ok)))
        .try_flatten()
        .try_for_each_concurrent(concurrency, |found| product(session(), found, args.stock, &progress))
        .await
        .context("products")?;
    progress.finish();
    let progress = Progress::new("customers", args.customers);
    let products = args.products.max(1);
    stream::iter((1..=args.customers).map(Ok))
        .try_for_each_concurrent(concurrency, |number| customer(session(), number, products, &progress))
        .await
        .context("customers")?;
    progress.finish();
    Ok(())
}

/// How far a product got in earlier runs.
struct Found {
    number: u64,
    state: Option<ProductState>,
    received: bool,
}

/// Looks several products up, by two queries for all of them.
async fn find_products(session: Session, numbers: Vec<u64>) -> Result<Vec<Found>, Error> {
    let product_ids: Vec<_> = numbers.iter().copied().map(product_id).collect();
    let there = session.query(BatchGetProductsRequest { product_ids: product_ids.clone(), token: String::new() }).await?;
    let stocked = session.query(BatchGetAvailabilityRequest { product_ids, token: String::new() }).await?;
    let states: HashMap<_, _> = there.products.iter().map(|product| (product.product_id.as_str(), product.state())).collect();
    let received: HashSet<_> =
        stocked.availabilities.iter().filter(|stock| stock.received > 0).map(|stock| stock.product_id.as_str()).collect();
    let found = numbers.into_iter().map(|number| {
        let id = product_id(number);
        Found { number, state: states.get(id.as_str()).copied(), received: received.contains(id.as_str()) }
    });
    Ok(found.collect())
}

/// Takes the steps that are missing.
async fn product(session: Session, found: Found, stock: i64, progress: &Progress) -> Result<(), Error> {
    let Found { number, state, received } = found;
    let mut commands = 0;
    if state.is_none() {
        let created = session.command(new_product(number)).await;
        commands += 1;
        // Another run was faster; the steps after it are checked or harmless.
        created.map(drop).or_else(|error| if error.code() == Code::AlreadyExists { Ok(()) } else { Err(error) })?;
    }
    if !received {
        let request_id = request_id(&format!("stock of p-{number}: {stock}"));
        session.command(ReceiveStockRequest { request_id, product_id: product_id(number), quantity: stock }).await?;
        commands += 1;
    }
    if state.is_none_or(|state| state == ProductState::Draft) {
        session.command(PublishProductRequest { product_id: product_id(number), ..Default::default() }).await?;
        commands += 1;
    }
    if commands > 0 {
        // Whoever loads the system next is to find it: the session's token waits for the views.
        session.query(GetProductRequest { product_id: product_id(number), token: String::new() }).await?;
    }
    progress.done(commands);
    Ok(())
}

/// A customer's cart, if there never was one.
async fn customer(session: Session, number: u64, products: u64, progress: &Progress) -> Result<(), Error> {
    let customer_id = format!("c-{number}");
    let cart = session.query(GetCartRequest { customer_id: customer_id.clone(), token: String::new() }).await;
    let missing = match cart {
        Ok(_) => false,
        Err(error) if error.code() == Code::NotFound => true,
        Err(error) => return Err(error),
    };
    if missing {
        let product_id = product_id((number - 1) % products + 1);
        let quantity = 1 + (number % 3) as i64;
        let request_id = request_id(&format!("cart of {customer_id}"));
        session
            .command(AddItemRequest { request_id, customer_id: customer_id.clone(), product_id, quantity, ..Default::default() })
            .await?;
        session.query(GetCartRequest { customer_id, token: String::new() }).await?;
    }
    progress.done(u64::from(missing));
    Ok(())
}

/// The same id in every run: what another run did a moment ago, and no read shows yet, is not done twice.
fn request_id(step: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("souk seed, {step}").as_bytes()).to_string()
}

fn product_id(number: u64) -> String {
    format!("p-{number}")
}

/// The product of a number: the same in every run.
fn new_product(number: u64) -> CreateProductRequest {
    const LOOKS: [&str; 8] = ["Brass", "Walnut", "Linen", "Copper", "Olive", "Indigo", "Glazed", "Woven"];
    const THINGS: [&str; 9] = ["Lamp", "Table", "Basket", "Teapot", "Rug", "Mirror", "Bowl", "Chair", "Lantern"];
    const CATEGORIES: [&str; 9] = ["lighting", "furniture", "storage", "kitchen", "textiles", "decor", "kitchen", "furniture", "lighting"];
    let (look, thing) = ((number % 8) as usize, (number % 9) as usize);
    let details = ProductDetails {
        title: format!("{} {} no. {number}", LOOKS[look], THINGS[thing]),
        description: format!("{} {}, made by hand.", LOOKS[look], THINGS[thing].to_lowercase()),
        category: CATEGORIES[thing].to_owned(),
        tags: vec![LOOKS[look].to_lowercase(), format!("shelf-{}", number % 20)],
    };
    let price = Money { currency: "EUR".into(), minor_units: 199 + (number * 37 % 9_800) as i64 };
    CreateProductRequest { product_id: product_id(number), details: Some(details), price: Some(price), ..Default::default() }
}

/// A line that tells how far the work is, twice a second on a terminal and rarely elsewhere.
struct Progress {
    what: &'static str,
    total: u64,
    began: Instant,
    counts: Arc<Counts>,
    shown_ms: AtomicU64,
    terminal: bool,
}

#[derive(Default)]
struct Counts {
    done: AtomicU64,
    made: AtomicU64,
    commands: AtomicU64,
}

impl Progress {
    fn new(what: &'static str, total: u64) -> Self {
        let terminal = stderr().is_terminal();
        Self { what, total, began: Instant::now(), counts: Arc::default(), shown_ms: AtomicU64::new(0), terminal }
    }

    fn done(&self, commands: u64) {
        self.counts.done.fetch_add(1, Ordering::Relaxed);
        self.counts.made.fetch_add(u64::from(commands > 0), Ordering::Relaxed);
        self.counts.commands.fetch_add(commands, Ordering::Relaxed);
        let now = self.began.elapsed().as_millis() as u64;
        let pause = if self.terminal { 500 } else { 5_000 };
        let last = self.shown_ms.load(Ordering::Relaxed);
        if now >= last + pause && self.shown_ms.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.show(if self.terminal { "\r" } else { "" }, if self.terminal { "\x1b[K" } else { "\n" });
        }
    }

    fn finish(&self) {
        if self.total > 0 {
            self.show(if self.terminal { "\r" } else { "" }, if self.terminal { "\x1b[K\n" } else { "\n" });
        }
    }

    fn show(&self, before: &str, after: &str) {
        let [done, made, commands] =
            [&self.counts.done, &self.counts.made, &self.counts.commands].map(|count| count.load(Ordering::Relaxed));
        let elapsed = self.began.elapsed();
        let rate = (commands as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
        let line = format!(
            "{} of {} {}: {} new, {} there already, {} commands in {} ({}/s)",
            paint::thousands(done),
            paint::thousands(self.total),
            self.what,
            paint::thousands(made),
            paint::thousands(done - made),
            paint::thousands(commands),
            paint::duration(elapsed),
            paint::thousands(rate),
        );
        // Nobody may be watching any more.
        let _ = write!(stderr(), "{before}{line}{after}");
    }
}
