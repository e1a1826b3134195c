//! Read databases with streaming standbys: they answer what they have, and nobody is told older things than without them.

use std::time::{Duration, Instant};

use souk_devstack::Stack;
use souk_event_sourcing::{Token, UnixMillis};
use souk_proto::catalog::v1::{
    GetProductRequest, GetProductResponse, ListProductsRequest, ListProductsResponse, PriceSet, ProductCreated, ProductDetails,
    query_service_client::QueryServiceClient,
};
use souk_read_store::{DatabaseConfig, ReadStore};
use souk_runtime::Settings;
use souk_views::ViewsMigrator;
use sqlx::Executor;
use tonic::{Code, Status, transport::Channel};

use crate::world::*;

/// How old an answer may be.
const BOUND: Duration = Duration::from_secs(2);
const PRODUCTS: usize = 30;

struct World {
    stack: Stack,
    shop: Shop,
    service: Service,
    catalog: QueryServiceClient<Channel>,
}

impl World {
    /// One read database with two standbys, products in it, and the service over them.
    async fn start() -> Self {
        let stack = Stack::temporary(|options| {
            options.partitions = Some(PARTITIONS);
            options.read_replicas = Some(2);
            options.set("query.unproven_after", "2s").set("installation.token_key", "01".repeat(32));
        })
        .await
        .unwrap();
        let databases: Vec<_> =
            stack.read_databases().into_iter().map(|database| DatabaseConfig::new(database.name, database.url, 4)).collect();
        let store = ReadStore::install::<ViewsMigrator>(&databases, installation(), UnixMillis::now()).await.unwrap();
        let settings = Settings::load(Some(stack.settings_file())).unwrap();
        let mut shop = Shop::over(store, &stack.nats).await;
        for number in 0..PRODUCTS {
            let details = ProductDetails { title: "Ball".into(), ..Default::default() };
            let created = ProductCreated { details: Some(details), price: Some(eur(1)) };
            shop.record(&id(number), &format!("product-{}", id(number)), "ProductCreated", created);
        }
        shop.project_silently().await;
        stack.postgres.connect("postgres").await.unwrap().execute("checkpoint").await.unwrap();
        for standby in &stack.standbys {
            standby.catch_up_with(&stack.postgres).await.unwrap();
        }
        let service = Service::start(settings).await;
        service.ready().await;
        let catalog = QueryServiceClient::new(service.channel.clone());
        Self { stack, shop, service, catalog }
    }

    /// Sets a price, and lets the service know of it, but not of the row.
    async fn set_price(&mut self, product: &str, price: i64) -> Token {
        let token = self.shop.record(product, &format!("product-{product}"), "PriceSet", PriceSet { price: Some(eur(price)) });
        self.shop.project_silently().await;
        self.shop.heard_by(&self.service).await;
        token
    }

    async fn price(&self, product: &str, token: &Token) -> Result<i64, Status> {
        Ok(self.get(product, token).await?.product.unwrap().price.unwrap().minor_units)
    }

    async fn get(&self, product: &str, token: &Token) -> Result<GetProductResponse, Status> {
        let request = GetProductRequest { product_id: product.into(), token: text(token) };
        Ok(self.catalog.clone().get_product(within(Duration::from_secs(10), request)).await?.into_inner())
    }

    async fn listed(&self, token: &Token) -> usize {
        self.list(token).await.unwrap().products.len()
    }

    async fn list(&self, token: &Token) -> Result<ListProductsResponse, Status> {
        let request = ListProductsRequest { token: text(token), ..Default::default() };
        Ok(self.catalog.clone().list_products(within(Duration::from_secs(10), request)).await?.into_inner())
    }

    /// Reads answered by the primary, and by both standbys.
    async fn answered_by(&self) -> (u64, u64) {
        let figures = self.service.status().await.figures;
        let by = |name: &str| figures[&format!("reads_by.{name}")] as u64;
        let name = self.stack.read_databases()[0].name.clone();
        (by(&name), by(&format!("{name}-replica-1")) + by(&format!("{name}-replica-2")))
    }

    async fn stop(self) {
        self.service.stop().await;
    }
}

fn id(number: usize) -> String {
    format!("p-{number}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standbys_answer_what_they_have_and_the_primary_the_rest() {
    let mut world = World::start().await;
    world.shop.heard_by(&world.service).await;
    let announcing = world.shop.keep_announcing();
    let (primary, standbys) = world.answered_by().await;
    for number in 0..PRODUCTS {
        assert_eq!(world.price(&id(number), &Token::default()).await.unwrap(), 1);
    }
    assert_eq!(world.listed(&Token::default()).await, PRODUCTS);
    let now = world.answered_by().await;
    assert_eq!((now.0, now.1 - standbys), (primary, PRODUCTS as u64 + 1), "standbys had it all");
    announcing.abort();

    // They lag. What changed is read from the primary, whether the caller has a token or not.
    for standby in &world.stack.standbys {
        standby.pause_replay().await.unwrap();
    }
    for (price, with_token) in [(7, true), (8, false)] {
        let token = world.set_price("p-0", price).await;
        let announcing = world.shop.keep_announcing();
        let (primary, _) = world.answered_by().await;
        let token = if with_token { token } else { Token::default() };
        assert_eq!(world.price("p-0", &token).await.unwrap(), price);
        assert!(world.answered_by().await.0 > primary, "the primary answered");
        announcing.abort();
    }

    // They have caught up.
    for standby in &world.stack.standbys {
        standby.resume_replay().await.unwrap();
        standby.catch_up_with(&world.stack.postgres).await.unwrap();
    }
    let announcing = world.shop.keep_announcing();
    let mut next = 0;
    let before = world.answered_by().await.1;
    while world.answered_by().await.1 == before {
        // Rows of other logs, not cached: an unknown one each time.
        assert_eq!(world.price(&format!("q-{next}"), &Token::default()).await.unwrap_err().code(), Code::NotFound);
        next += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(next < 1000, "a standby that was behind is asked again");
    }
    announcing.abort();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_feed_standbys_answer_as_long_as_they_are_recent() {
    let mut world = World::start().await;
    world.shop.heard_by(&world.service).await;
    world.stack.nats.kill9().await.unwrap();
    // The feed proves nothing any more, what is looked at in the primary does.
    let began = Instant::now();
    let (mut by_primary, mut by_standbys, mut asked) = (0, 0, 0);
    while began.elapsed() < BOUND * 2 {
        asked += 1;
        let before = world.answered_by().await;
        assert_eq!(world.price("p-1", &Token::default()).await.unwrap(), 1);
        let after = world.answered_by().await;
        (by_primary, by_standbys) = (by_primary + after.0 - before.0, by_standbys + after.1 - before.1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // How many there are is the machine's: all others came from the cache.
    assert!(by_standbys >= 10 && by_standbys > by_primary, "of {asked} reads {by_standbys} by standbys, {by_primary} by the primary");

    for standby in &world.stack.standbys {
        standby.pause_replay().await.unwrap();
    }
    world.shop.record("p-1", "product-p-1", "PriceSet", PriceSet { price: Some(eur(9)) });
    world.shop.project_silently().await;
    let changed = Instant::now();
    while world.price("p-1", &Token::default()).await.unwrap() != 9 {
        assert!(changed.elapsed() < BOUND + Duration::from_millis(200), "a standby that lags answered for longer than the bound");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.stop().await;
}

/// Standbys that lag hold the views as they were before: they may answer for as long as an answer may be old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standbys_do_not_hide_for_longer_than_the_bound_that_views_are_folded_anew() {
    let mut world = World::start().await;
    world.shop.heard_by(&world.service).await;
    for standby in &world.stack.standbys {
        standby.pause_replay().await.unwrap();
    }
    world.stack.nats.kill9().await.unwrap();
    world.shop.empty(log_of("p-1")).await;
    let emptied = Instant::now();
    let mut refused = 0;
    while emptied.elapsed() < BOUND * 2 {
        match world.price("p-1", &Token::default()).await {
            Ok(price) => assert!(price == 1 && refused == 0 && emptied.elapsed() < BOUND + Duration::from_millis(200), "after {refused}"),
            Err(status) => {
                assert_eq!(reason(&status), (Code::Unavailable, "VIEW_REBUILDING".into()));
                refused += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(refused > 10, "{refused} reads refused");
    // They tell it too, from their own snapshots.
    for standby in &world.stack.standbys {
        standby.resume_replay().await.unwrap();
        standby.catch_up_with(&world.stack.postgres).await.unwrap();
    }
    let status = world.price("p-1", &Token::default()).await.unwrap_err();
    assert_eq!(reason(&status), (Code::Unavailable, "VIEW_REBUILDING".into()));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_primary_is_away_standbys_answer_and_say_how_old_that_is() {
    let mut world = World::start().await;
    let token = world.set_price("p-2", 5).await;
    // Projections do not wait for the disk; what is tested here is not what they lose then.
    world.stack.postgres.connect("postgres").await.unwrap().execute("checkpoint").await.unwrap();
    for standby in &world.stack.standbys {
        standby.catch_up_with(&world.stack.postgres).await.unwrap();
    }
    world.stack.postgres.kill9().await.unwrap();
    let died = UnixMillis::now();
    let until = Instant::now() + BOUND * 4;
    let mut last = UnixMillis(0);
    while Instant::now() < until {
        let reply = world.get("p-2", &token).await.unwrap();
        assert_eq!(reply.product.unwrap().price.unwrap().minor_units, 5);
        let time = reply.as_of.unwrap().time.unwrap();
        last = UnixMillis(time.seconds * 1000 + i64::from(time.nanos) / 1_000_000);
        assert_eq!(world.listed(&Token::default()).await, PRODUCTS);
    }
    assert!(last <= died, "it says how old it is: {last:?}, the primary died at {died:?}");
    assert!(world.service.health.is_ready(), "{:?}", world.service.health.reasons());

    // What they do not have is not made up.
    let beyond: Token = souk_event_sourcing::LogPosition { position: token.parts()[0].position.next(), ..token.parts()[0] }.into();
    let refused = world.price("p-2", &beyond).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::Unavailable, "STORE_UNAVAILABLE".into()));
    world.stack.standbys[0].server.kill9().await.unwrap();
    assert_eq!(world.price("p-2", &token).await.unwrap(), 5, "the other one answers");
    world.stop().await;
}

/// A standby that is far behind when the primary dies, or that has crashed itself and replays what it knew, knows nothing of
/// rows that others were shown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_not_answered_out_of_the_past_while_the_primary_is_away() {
    let mut world = World::start().await;
    world.shop.heard_by(&world.service).await;
    for standby in &world.stack.standbys {
        standby.pause_replay().await.unwrap();
    }
    let details = ProductDetails { title: "Ball".into(), ..Default::default() };
    let created = ProductCreated { details: Some(details), price: Some(eur(1)) };
    world.shop.record("p-new", "product-p-new", "ProductCreated", created);
    world.shop.project_silently().await;
    let announcing = world.shop.keep_announcing();
    let shown = Instant::now();
    while shown.elapsed() < BOUND * 2 {
        let asked = shown.elapsed();
        let listed = world.listed(&Token::default()).await;
        assert!(listed == PRODUCTS + 1 || asked < BOUND + Duration::from_millis(200), "{listed} products, asked {asked:?} after");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    announcing.abort();
    world.stack.postgres.kill9().await.unwrap();
    let died = Instant::now();
    while died.elapsed() < BOUND * 2 {
        let refused = world.list(&Token::default()).await.map(|page| page.products.len()).unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // One of them has received the log's end, and replays it now.
    world.stack.standbys[0].resume_replay().await.unwrap();
    let resumed = Instant::now();
    while world.list(&Token::default()).await.is_err() {
        assert!(resumed.elapsed() < Duration::from_secs(20), "a standby that has everything does not answer");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.listed(&Token::default()).await, PRODUCTS + 1);
    world.stop().await;
}
