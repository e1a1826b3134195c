use std::time::Duration;

use souk_proto::catalog::v1::{GetProductRequest, PriceSet, ProductCreated, ProductDetails, query_service_client::QueryServiceClient};
use sqlx::{Connection, Executor};
use tonic::Code;

use crate::world::*;

fn created() -> ProductCreated {
    ProductCreated { details: Some(ProductDetails { title: "Ball".into(), ..Default::default() }), price: None }
}

fn get(id: &str) -> GetProductRequest {
    GetProductRequest { product_id: id.into(), token: String::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_its_tables_is_not_ready_and_says_why() {
    let servers = Servers::start().await;
    let service = Service::start(servers.settings()).await;
    let says = |text: &'static str| {
        let health = service.health.clone();
        move || {
            let reasons = health.reasons();
            async move { reasons.iter().any(|reason| reason.contains(text)) }
        }
    };
    wait("it says that there are no tables", says("no tables yet")).await;
    let mut catalog = QueryServiceClient::new(service.channel.clone());
    let refused = catalog.get_product(get("p-1")).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::Unavailable, "STARTING".into()));
    assert_eq!(service.status().await.service, "query");

    let mut shop = Shop::open(&servers).await;
    service.ready().await;
    shop.record("p-1", "product-p-1", "ProductCreated", created());
    shop.project().await;
    wait("the product is there", || async { catalog.clone().get_product(get("p-1")).await.is_ok() }).await;

    // A migration this build relies on is not there.
    let mut database = servers.postgres.connect("r1").await.unwrap();
    database.execute("delete from views_migration").await.unwrap();
    wait("it says that the schema is too old", says("m0001_views in r1")).await;
    database.execute("insert into views_migration (version, applied_at) values ('m0001_views', 0)").await.unwrap();
    database.close().await.unwrap();
    service.ready().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_answers_without_the_store_and_the_store_without_the_feed() {
    let mut servers = Servers::start().await;
    let mut shop = Shop::open(&servers).await;
    let service = Service::start(servers.settings()).await;
    service.ready().await;
    let mut catalog = QueryServiceClient::new(service.channel.clone());
    shop.record("p-1", "product-p-1", "ProductCreated", created());
    shop.record("p-2", "product-p-2", "ProductCreated", created());
    shop.project().await;
    shop.heard_by(&service).await;
    catalog.get_product(get("p-2")).await.unwrap();

    // The database is away: what is cached and proven is answered, the rest is UNAVAILABLE, and the service says so.
    let announcing = shop.keep_announcing();
    // Projections do not wait for the disk; what is tested here is not what they do then.
    servers.postgres.connect("postgres").await.unwrap().execute("checkpoint").await.unwrap();
    servers.postgres.kill9().await.unwrap();
    for _ in 0..20 {
        catalog.get_product(get("p-2")).await.unwrap();
    }
    let away = catalog.get_product(get("p-404")).await.unwrap_err();
    assert_eq!(reason(&away), (Code::Unavailable, "STORE_UNAVAILABLE".into()));
    wait("it is impaired", || async { !service.health.impairments().is_empty() }).await;
    assert!(service.health.is_ready(), "what is cached is answered");
    servers.postgres.start_again().await.unwrap();
    service.ready().await;
    let missing = catalog.get_product(get("p-404")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);

    // The feed is away: still ready, and after a while every answer comes from the store.
    announcing.abort();
    servers.nats.kill9().await.unwrap();
    let misses = service.figure("cache_misses").await;
    wait("answers come from the store", || async {
        catalog.clone().get_product(get("p-2")).await.unwrap();
        service.figure("cache_misses").await >= misses + 3.0
    })
    .await;
    let token = shop.record("p-2", "product-p-2", "PriceSet", PriceSet { price: Some(eur(5)) });
    let unheard = shop.project_silently().await;
    assert_eq!(unheard.len(), 1);
    let reply = catalog.get_product(GetProductRequest { product_id: "p-2".into(), token: text(&token) }).await.unwrap().into_inner();
    assert_eq!(reply.product.unwrap().price, Some(eur(5)));
    let reply = catalog.get_product(get("p-2")).await.unwrap().into_inner();
    assert_eq!(reply.product.unwrap().price, Some(eur(5)));
    assert!(service.health.is_ready());

    // It comes back: what was missed shows as a hole, and rows are trusted again.
    let rises = service.figure("floor_rises").await;
    servers.nats.start_again().await.unwrap();
    shop.heard_by(&service).await;
    assert!(service.figure("floor_rises").await > rises);
    catalog.get_product(get("p-2")).await.unwrap();
    let hits = service.figure("cache_hits").await;
    shop.announce().await;
    let reply = catalog.get_product(get("p-2")).await.unwrap().into_inner();
    assert_eq!((reply.product.unwrap().price, service.figure("cache_hits").await), (Some(eur(5)), hits + 1.0));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_concurrent_misses_are_one_query_of_the_database() {
    let servers = Servers::start().await;
    let mut shop = Shop::open(&servers).await;
    let service = Service::start(servers.settings()).await;
    service.ready().await;
    shop.record("p-1", "product-p-1", "ProductCreated", created());
    let messages = shop.project_silently().await;
    assert_eq!(messages.len(), 1);
    shop.heard_by(&service).await;
    let announcing = shop.keep_announcing();
    // A lock holds the query back until many have come.
    let mut lock = servers.postgres.connect(shop.database_of("p-1")).await.unwrap();
    lock.execute("begin; lock table product_view in access exclusive mode").await.unwrap();
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let mut catalog = QueryServiceClient::new(service.channel.clone());
            tokio::spawn(async move { catalog.get_product(within(Duration::from_secs(30), get("p-1"))).await })
        })
        .collect();
    let mut database = servers.postgres.connect("postgres").await.unwrap();
    let waiting = "select count(*) from pg_stat_activity where application_name = 'souk-read' and wait_event_type = 'Lock'";
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut database).await.unwrap() == 0 {}
    assert_eq!(service.figure("cache_loads").await, 1.0);
    lock.execute("commit").await.unwrap();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap().into_inner().product.unwrap().product_id, "p-1");
    }
    assert_eq!(service.figure("cache_loads").await, 1.0);
    assert_eq!(service.figure("cache_hits").await + service.figure("cache_misses").await, 1000.0);
    announcing.abort();
    service.stop().await;
}
