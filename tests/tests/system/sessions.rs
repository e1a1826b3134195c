use std::sync::Arc;

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use souk_proto::stock::v1::ReceiveStockRequest;
use souk_tests::{Shop, System};

const PRODUCTS: usize = 50;
const PAIRS: usize = 10_000;
const CALLERS: usize = 32;

/// Each caller writes to a product of its own and reads it back with the token: it must see its own write, whatever the
/// caches held before.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_writes_are_read_back_and_none_is_stale() -> Result<()> {
    let system = Arc::new(System::start(|_| {}).await?);
    let shop = Shop(system.session()?);
    for product in 0..PRODUCTS {
        shop.sell(&format!("p-{product}"), 100, 0).await?;
    }
    let souk = system.client()?;
    stream::iter(0..CALLERS)
        .map(|caller| {
            let souk = souk.clone();
            async move {
                for round in 0..PAIRS.div_ceil(CALLERS) {
                    // A fresh session: nothing but this write's own token is known to it.
                    let shop = Shop(souk.session().caller("test"));
                    let product = format!("p-{}", (caller * 7 + round) % PRODUCTS);
                    let written =
                        shop.0.command(ReceiveStockRequest { product_id: product.clone(), quantity: 1, ..Default::default() }).await?;
                    let seen = shop.stock(&product).await?;
                    ensure!(seen.version >= written.version, "{product}: wrote version {}, read {}", written.version, seen.version);
                }
                Ok(())
            }
        })
        .buffer_unordered(CALLERS)
        .try_collect::<Vec<_>>()
        .await?;
    system.audit_clean().await?;
    Ok(())
}
