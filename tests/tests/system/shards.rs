use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use souk_devstack::Service;
use souk_proto::{
    catalog::v1::ListProductsRequest,
    orders::v1::{GetSalesSummaryRequest, ListOrdersRequest, OrderState},
    stock::v1::ReceiveStockRequest,
};
use souk_tests::{Shop, System};
use sqlx::PgPool;

const PRODUCTS: usize = 40;

/// Keys of a table on each database.
async fn keys(pools: &[PgPool], query: &'static str) -> Result<Vec<BTreeSet<String>>> {
    let mut found = Vec::new();
    for pool in pools {
        let keys: Vec<String> = sqlx::query_scalar(query).fetch_all(pool).await?;
        found.push(keys.into_iter().collect());
    }
    Ok(found)
}

/// Both databases hold some, and none holds what the other does.
fn split(keys: &[BTreeSet<String>]) -> bool {
    keys.len() == 2 && keys.iter().all(|keys| !keys.is_empty()) && keys[0].is_disjoint(&keys[1])
}

#[tokio::test]
async fn two_write_and_two_read_databases_are_one_shop() -> Result<()> {
    let system = System::start(|options| {
        options.write_shards = Some(2);
        options.read_shards = Some(2);
    })
    .await?;
    let seeded = system.souk(&["seed", "--products", &PRODUCTS.to_string(), "--customers", "20", "--stock", "50"]).await?;
    ensure!(seeded.status.success(), "{}", String::from_utf8_lossy(&seeded.stderr));
    let shop = Shop(system.session()?);

    let mut orders = BTreeSet::new();
    for number in 1..=20 {
        let order = shop.order(&format!("c-{number}"), &format!("p-{number}"), 2, true).await?;
        ensure!(order.state() == OrderState::AwaitingPayment, "{order:?}");
        shop.pay(&order.order_id, order.total.unwrap_or_default().minor_units).await?;
        orders.insert(order.order_id);
    }

    // Lists run over both read databases, in one order and in pages.
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = shop.0.query(ListProductsRequest { page_size: 7, page_token, ..Default::default() }).await?;
        listed.extend(page.products.into_iter().map(|product| product.product_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    ensure!(listed.len() == PRODUCTS && listed.iter().collect::<BTreeSet<_>>().len() == PRODUCTS, "{listed:?}");
    let found = shop.0.query(ListOrdersRequest { page_size: 100, ..Default::default() }).await?.orders;
    ensure!(found.iter().map(|order| order.order_id.clone()).collect::<BTreeSet<_>>() == orders, "{found:?}");
    let sold: i64 = shop.0.query(GetSalesSummaryRequest::default()).await?.rows.iter().map(|row| row.units).sum();
    ensure!(sold == 40, "{sold} units sold");

    system.audit_clean().await?;
    let streams = keys(&system.write_pools().await?, "select stream from stream_head").await?;
    ensure!(split(&streams), "streams per write database: {:?}", streams.iter().map(BTreeSet::len).collect::<Vec<_>>());
    for view in ["select key from product_view", "select key from order_view", "select key from cart_view"] {
        let rows = keys(&system.read_pools().await?, view).await?;
        ensure!(split(&rows), "{view}, per read database: {:?}", rows.iter().map(BTreeSet::len).collect::<Vec<_>>());
    }
    Ok(())
}

#[tokio::test]
async fn a_long_stream_is_loaded_from_its_snapshot() -> Result<()> {
    const RECEIPTS: i64 = 400;
    let mut system = System::start(|options| {
        options.set("command.snapshot_every", 50);
    })
    .await?;
    let shop = Shop(system.session()?);
    shop.sell("p-1", 100, 0).await?;
    let receive = |_| shop.0.command(ReceiveStockRequest { product_id: "p-1".into(), quantity: 1, ..Default::default() });
    futures::future::try_join_all((0..RECEIPTS).map(receive)).await?;
    let pools = system.write_pools().await?;
    let snapshot = "select version from snapshot where stream = 'stock-p-1'";
    let version = souk_tests::until("a snapshot", std::time::Duration::from_secs(10), || async {
        Ok(sqlx::query_scalar::<_, i64>(snapshot).fetch_optional(&pools[0]).await?)
    })
    .await?;
    ensure!(version >= 50, "the snapshot is of version {version}");

    // What the snapshot says counts after a restart, so that a wrong one would show.
    system.kill_and_restart(Service::Command).await?;
    let reply = receive(0).await?;
    ensure!(reply.version > RECEIPTS as u64, "the stream went back");
    ensure!(shop.stock("p-1").await?.on_hand == RECEIPTS + 1);
    let too_many = shop.order("c-1", "p-1", RECEIPTS + 2, true).await?;
    ensure!(too_many.state() == OrderState::Rejected, "{too_many:?}");
    let all = shop.order("c-1", "p-1", RECEIPTS + 1, true).await?;
    ensure!(all.state() == OrderState::AwaitingPayment, "{all:?}");
    system.audit_clean().await?;
    Ok(())
}
