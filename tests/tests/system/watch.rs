use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::{Stream, StreamExt, future::try_join_all};
use souk_client::{Error, Session};
use souk_devstack::Service;
use souk_proto::{
    cart::v1::{AddItemRequest, Cart, GetCartRequest, SetItemQuantityRequest},
    orders::v1::{GetOrderRequest, Order, RecordDeliveryRequest, RecordShipmentRequest},
};
use souk_tests::{Shop, System, until};
use tokio::{sync::watch, task::JoinHandle};

const CARTS: usize = 30;
const ORDERS: usize = 30;
const PATIENCE: Duration = Duration::from_secs(30);
const FIRST: (Service, u16) = (Service::Query, 1);
const SECOND: (Service, u16) = (Service::Query, 2);

/// One watch, followed by a session of its own; what it was shown, in order.
struct Follower<T> {
    seen: Arc<Mutex<Vec<T>>>,
    following: JoinHandle<Result<()>>,
}

impl<T: Clone + Send + 'static> Follower<T> {
    fn of(watch: impl Stream<Item = Result<T, Error>> + Send + 'static) -> Self {
        let seen = Arc::<Mutex<Vec<T>>>::default();
        let shown = seen.clone();
        let following = tokio::spawn(async move {
            let mut watch = Box::pin(watch);
            while let Some(state) = watch.next().await {
                shown.lock().expect("no follower panics").push(state?);
            }
            Ok(())
        });
        Self { seen, following }
    }

    fn last(&self) -> Option<T> {
        self.seen.lock().expect("no follower panics").last().cloned()
    }

    /// Ends it; the versions it was shown, which must never have gone back nor come twice.
    async fn versions(self, version: impl Fn(&T) -> u64) -> Result<Vec<u64>> {
        if self.following.is_finished() {
            self.following.await??;
        } else {
            self.following.abort();
        }
        let versions: Vec<_> = self.seen.lock().expect("no follower panics").iter().map(version).collect();
        ensure!(versions.is_sorted_by(|before, after| before < after), "{versions:?}");
        Ok(versions)
    }
}

/// A session of its own that knows how far the shop has come.
fn follower(system: &System, shop: &Shop) -> Result<Session> {
    let session = system.session()?;
    session.merge_token(&shop.0.token());
    Ok(session)
}

/// Changes one cart until it is told to stop; the version it left.
async fn shop_on(session: Session, customer_id: String, stop: watch::Receiver<bool>) -> Result<u64> {
    let mut version = 0;
    for quantity in (1..=50).cycle() {
        if *stop.borrow() {
            break;
        }
        let (customer_id, product_id) = (customer_id.clone(), "p-1".to_owned());
        let set = SetItemQuantityRequest { customer_id, product_id, quantity, ..Default::default() };
        version = session.command(set).await?.version;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(version)
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_over_two_replicas_that_die_end_at_the_last_state_and_never_go_back() -> Result<()> {
    let mut system = System::start(|options| {
        options.replicas(Service::Query, 2);
    })
    .await?;
    let shop = Shop(system.session()?);
    shop.sell("p-1", 100, 1_000).await?;
    let (mut carts, mut orders, mut order_ids) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..CARTS {
        let (customer_id, product_id) = (format!("c-{number}"), "p-1".to_owned());
        shop.0.command(AddItemRequest { customer_id: customer_id.clone(), product_id, quantity: 1, ..Default::default() }).await?;
        carts.push(Follower::of(follower(&system, &shop)?.watch_cart(customer_id)));
    }
    for number in 0..ORDERS {
        let order = shop.order(&format!("c-{number}"), "p-1", 1, true).await?.order_id;
        orders.push(Follower::of(follower(&system, &shop)?.watch_order(&order)));
        order_ids.push(order);
    }
    let (stop, stopped) = watch::channel(false);
    let writers: Vec<_> = (0..CARTS)
        .map(|number| Ok(tokio::spawn(shop_on(system.session()?, format!("c-{number}"), stopped.clone()))))
        .collect::<Result<_>>()?;

    // A third of the orders moves on before, a third during and a third after each fault.
    for (round, replica) in [FIRST, SECOND].into_iter().enumerate() {
        let step = |offset: usize| order_ids.iter().skip(offset).step_by(3);
        advance(&shop, step(0), round).await?;
        system.kill(replica).await?;
        advance(&shop, step(1), round).await?;
        system.start_again(replica).await?;
        advance(&shop, step(2), round).await?;
        system.stop(replica).await?;
        progress(&carts).await.with_context(|| format!("with query-{} alone", 3 - replica.1))?;
        system.start_again(replica).await?;
    }
    stop.send(true)?;
    let finals = try_join_all(writers).await?.into_iter().collect::<Result<Vec<_>>>()?;

    // Each follower comes to the state the write side left, whatever it missed on the way.
    for (number, (cart, version)) in carts.iter().zip(&finals).enumerate() {
        until(&format!("cart {number} at {version}"), PATIENCE, || async {
            Ok(cart.last().is_some_and(|cart| cart.version == *version).then_some(()))
        })
        .await?;
        let asked = GetCartRequest { customer_id: format!("c-{number}"), ..Default::default() };
        ensure!(cart.last() == shop.0.query(asked).await?.cart);
    }
    for (order, order_id) in orders.iter().zip(&order_ids) {
        let asked = GetOrderRequest { order_id: order_id.clone(), ..Default::default() };
        let last = shop.0.query(asked).await?.order;
        until(&format!("order {order_id} delivered"), PATIENCE, || async { Ok((order.last() == last).then_some(())) }).await?;
    }
    let (mut shown, mut of) = (0, 0);
    for (cart, last) in carts.into_iter().zip(finals) {
        let versions = cart.versions(|cart: &Cart| cart.version).await?;
        ensure!(versions.last() == Some(&last));
        (shown, of) = (shown + versions.len(), of + last);
    }
    let mut order_states = 0;
    for order in orders {
        order_states += order.versions(|order: &Order| order.version).await?.len();
    }
    println!("{CARTS} carts: {shown} states shown of {of}; {ORDERS} orders: {order_states} states shown; 2 kills, 2 drains");
    Ok(())
}

/// In the first round the orders are paid and shipped, in the second delivered.
async fn advance(shop: &Shop, orders: impl Iterator<Item = &String>, round: usize) -> Result<()> {
    for order_id in orders {
        if round == 0 {
            shop.pay(order_id, 100).await?;
            let shipped = RecordShipmentRequest { order_id: order_id.clone(), carrier: "post".into(), ..Default::default() };
            shop.0.command(shipped).await?;
        } else {
            shop.0.command(RecordDeliveryRequest { order_id: order_id.clone(), ..Default::default() }).await?;
        }
    }
    Ok(())
}

/// Waits until every cart's follower has been shown something new.
async fn progress(carts: &[Follower<Cart>]) -> Result<()> {
    let before: Vec<_> = carts.iter().map(|cart| cart.last().map(|cart| cart.version)).collect();
    until("every watch goes on", PATIENCE, || async {
        let went_on = carts.iter().zip(&before).all(|(cart, before)| cart.last().map(|cart| cart.version) > *before);
        Ok(went_on.then_some(()))
    })
    .await
}
