use std::{sync::Arc, time::Duration};

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use souk_proto::orders::v1::OrderState;
use souk_tests::{Shop, System};

const UNITS: i64 = 1_000;
const ORDERS: usize = 2_000;
const CALLERS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn a_flash_sale_sells_every_unit_once_and_not_one_more() -> Result<()> {
    let system = System::start(|_| {}).await?;
    let shop = Arc::new(Shop(system.session()?.deadline(Duration::from_secs(120))));
    shop.sell("flash", 4_200, UNITS).await?;
    let started = std::time::Instant::now();
    let orders: Vec<_> = stream::iter(0..ORDERS)
        .map(|number| {
            let shop = shop.clone();
            async move { shop.order(&format!("c-{number}"), "flash", 1, false).await.map(|order| order.order_id) }
        })
        .buffer_unordered(CALLERS)
        .try_collect()
        .await?;
    let outcome = |order: String| {
        let shop = shop.clone();
        async move {
            souk_tests::until(&order, Duration::from_secs(120), || async {
                let state = shop.see(&order).await?.state();
                Ok((state != OrderState::Reserving).then_some(state))
            })
            .await
        }
    };
    let states: Vec<_> = stream::iter(orders).map(outcome).buffer_unordered(CALLERS).try_collect().await?;
    let reserved = states.iter().filter(|state| **state == OrderState::AwaitingPayment).count();
    let rejected = states.iter().filter(|state| **state == OrderState::Rejected).count();
    println!("{reserved} reserved, {rejected} rejected in {:.1} s", started.elapsed().as_secs_f64());
    assert_eq!((reserved as i64, rejected), (UNITS, ORDERS - UNITS as usize));
    let stock = shop.stock("flash").await?;
    assert_eq!((stock.on_hand, stock.reserved, stock.available), (UNITS, UNITS, 0));
    system.audit_clean().await?;
    Ok(())
}
