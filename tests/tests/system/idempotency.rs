use std::fmt::Debug;

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use souk_client::Command;
use souk_devstack::Service;
use souk_proto::{cart::v1::*, catalog::v1::*, orders::v1::*, stock::v1::*};
use souk_tests::{Shop, System, eur};
use uuid::Uuid;

const COPIES: usize = 8;

/// Sends a command under one id several times at once, keeping it and its reply for later.
struct Repeats<'a> {
    shop: &'a Shop,
    kept: Vec<Box<dyn Repeat + 'a>>,
}

#[async_trait::async_trait]
trait Repeat {
    /// The same again, and another body under the same id.
    async fn again(&mut self, shop: &Shop) -> Result<()>;
}

struct Kept<C: Command> {
    command: C,
    other: C,
    reply: C::Reply,
}

#[async_trait::async_trait]
impl<C: Command + Debug> Repeat for Kept<C>
where
    C::Reply: PartialEq + Debug,
{
    async fn again(&mut self, shop: &Shop) -> Result<()> {
        let reply = shop.0.command(self.command.clone()).await?;
        ensure!(reply == self.reply, "{:?} was answered {:?}, now {reply:?}", self.command, self.reply);
        let Err(error) = shop.0.command(self.other.clone()).await else { anyhow::bail!("{:?} was accepted under a used id", self.other) };
        ensure!(error.reason() == "REQUEST_ID_REUSED", "{:?}: {error}", self.other);
        Ok(())
    }
}

impl<'a> Repeats<'a> {
    async fn send<C>(&mut self, command: C, change: impl Fn(&mut C)) -> Result<C::Reply>
    where
        C: Command + Debug + 'a,
        C::Reply: PartialEq + Debug + Clone + 'a,
    {
        let mut command = command;
        *command.request_id() = Uuid::now_v7().to_string();
        let replies = try_join_all((0..COPIES).map(|_| self.shop.0.command(command.clone()))).await?;
        ensure!(replies.iter().all(|reply| *reply == replies[0]), "{command:?} was answered differently: {replies:?}");
        let mut other = command.clone();
        change(&mut other);
        self.kept.push(Box::new(Kept { command, other, reply: replies[0].clone() }));
        Ok(replies[0].clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_repeated_at_once_and_after_a_restart_has_one_effect_and_one_reply() -> Result<()> {
    let mut system = System::start(|_| {}).await?;
    let shop = Shop(system.session()?);
    let mut repeats = Repeats { shop: &shop, kept: Vec::new() };
    let p = || "p-1".to_owned();
    let c = || "c-1".to_owned();
    let details = ProductDetails { title: "Lamp".into(), ..Default::default() };
    repeats
        .send(CreateProductRequest { product_id: p(), details: Some(details.clone()), ..Default::default() }, |other| {
            other.price = Some(eur(5))
        })
        .await?;
    let longer = ProductDetails { description: "Bright".into(), ..Default::default() };
    repeats
        .send(UpdateProductRequest { product_id: p(), details: Some(longer), ..Default::default() }, |other| {
            other.details = Some(details.clone())
        })
        .await?;
    let price = SetPriceRequest { product_id: p(), price: Some(eur(700)), etag: "1-2".into(), ..Default::default() };
    repeats.send(price, |other| other.price = Some(eur(701))).await?;
    repeats.send(PublishProductRequest { product_id: p(), ..Default::default() }, |other| other.etag = "1-3".into()).await?;
    repeats.send(ReceiveStockRequest { product_id: p(), quantity: 50, ..Default::default() }, |other| other.quantity = 51).await?;
    repeats
        .send(AdjustStockRequest { product_id: p(), delta: -5, note: "broken".into(), ..Default::default() }, |other| other.delta = -6)
        .await?;
    let reserve = ReserveStockRequest { product_id: p(), order_id: "o-1".into(), quantity: 2, ..Default::default() };
    repeats.send(reserve, |other| other.quantity = 3).await?;
    repeats
        .send(CommitReservationRequest { product_id: p(), order_id: "o-1".into(), ..Default::default() }, |other| {
            other.order_id = "o-9".into()
        })
        .await?;
    let reserve = ReserveStockRequest { product_id: p(), order_id: "o-2".into(), quantity: 2, ..Default::default() };
    repeats.send(reserve, |other| other.quantity = 3).await?;
    repeats
        .send(ReleaseReservationRequest { product_id: p(), order_id: "o-2".into(), ..Default::default() }, |other| {
            other.order_id = "o-9".into()
        })
        .await?;
    repeats
        .send(AddItemRequest { customer_id: c(), product_id: p(), quantity: 2, ..Default::default() }, |other| other.quantity = 3)
        .await?;
    repeats
        .send(SetItemQuantityRequest { customer_id: c(), product_id: p(), quantity: 4, ..Default::default() }, |other| other.quantity = 3)
        .await?;
    repeats
        .send(RemoveItemRequest { customer_id: c(), product_id: p(), ..Default::default() }, |other| other.product_id = "p-2".into())
        .await?;
    repeats
        .send(AddItemRequest { customer_id: c(), product_id: p(), quantity: 1, ..Default::default() }, |other| other.quantity = 3)
        .await?;
    repeats.send(ClearCartRequest { customer_id: c(), ..Default::default() }, |other| other.etag = "1-1".into()).await?;
    repeats
        .send(AddItemRequest { customer_id: c(), product_id: p(), quantity: 3, ..Default::default() }, |other| other.quantity = 4)
        .await?;
    repeats.send(CheckoutRequest { customer_id: c(), ..Default::default() }, |other| other.expected_total = Some(eur(1))).await?;
    let lines = vec![PlaceOrderLine { product_id: p(), quantity: 1 }];
    let place = PlaceOrderRequest { customer_id: c(), lines, ..Default::default() };
    let order = repeats.send(place, |other| other.lines[0].quantity = 2).await?.order_id;
    shop.see_in(&order, OrderState::AwaitingPayment, std::time::Duration::from_secs(20)).await?;
    let pay = RecordPaymentRequest { order_id: order.clone(), payment_reference: "r".into(), amount: Some(eur(700)), ..Default::default() };
    repeats.send(pay, |other| other.payment_reference = "s".into()).await?;
    let ship = RecordShipmentRequest { order_id: order.clone(), carrier: "Post".into(), ..Default::default() };
    repeats.send(ship, |other| other.carrier = "Other".into()).await?;
    repeats.send(RecordDeliveryRequest { order_id: order.clone(), ..Default::default() }, |other| other.etag = "1-9".into()).await?;
    let lines = vec![PlaceOrderLine { product_id: p(), quantity: 1 }];
    let second = repeats
        .send(PlaceOrderRequest { customer_id: "c-2".into(), lines, ..Default::default() }, |other| other.lines[0].quantity = 2)
        .await?
        .order_id;
    repeats
        .send(CancelOrderRequest { order_id: second, reason: "changed my mind".into(), ..Default::default() }, |other| {
            other.reason = "no".into()
        })
        .await?;
    repeats.send(DiscontinueProductRequest { product_id: p(), ..Default::default() }, |other| other.etag = "1-5".into()).await?;

    let mut kept = repeats.kept;
    for command in &mut kept {
        command.again(&shop).await?;
    }
    system.kill_and_restart(Service::Command).await?;
    for command in &mut kept {
        command.again(&shop).await?;
    }
    let stock = shop.stock("p-1").await?;
    assert_eq!((stock.received, stock.adjusted), (50, -5));
    system.audit_clean().await?;
    Ok(())
}
