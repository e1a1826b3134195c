//! `souk demo`: the story of an order, told by the running system. Every step is read back with the token of the
//! command before it, in another region if that is wanted; a step that does not show is an error.

mod stage;
mod timing;

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, pin_mut};
use souk_proto::{
    cart::v1::{AddItemRequest, CheckoutRequest, CheckoutResponse, GetCartRequest, GetCartResponse, SetItemQuantityRequest},
    catalog::v1::{
        CreateProductRequest, GetProductRequest, GetProductResponse, Product, ProductDetails, ProductState, PublishProductRequest,
        SetPriceRequest,
    },
    common::v1::Money,
    orders::v1::{
        GetOrderRequest, GetOrderResponse, GetOrderTimelineRequest, Order, OrderState, PlaceOrderLine, PlaceOrderRequest,
        RecordDeliveryRequest, RecordPaymentRequest, RecordShipmentRequest,
    },
    stock::v1::{Availability, GetAvailabilityRequest, GetAvailabilityResponse, ReceiveStockRequest},
};
use uuid::Uuid;

use crate::{
    paint::{bold, dim, money, say},
    system::Target,
};
use stage::Stage;

/// How long the process manager may take for a step.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Region to send all commands to, which is home of everything in the story [default: that of --region]
    #[arg(long, value_name = "REGION")]
    write: Option<String>,
    /// Region to read in, with the tokens of the commands [default: where they were sent]
    #[arg(long, value_name = "REGION")]
    read: Option<String>,
    #[command(flatten)]
    target: Target,
}

impl Args {
    /// Whoever sends commands and whoever reads: the same, unless that is in another region.
    fn stage(&self) -> Result<Stage> {
        let session = |region: &Option<String>| match region {
            Some(region) => self.target.in_region(region).session("souk-demo"),
            None => self.target.session("souk-demo"),
        };
        let writer = session(&self.write)?;
        let reader = if self.read == self.write || self.read.is_none() { writer.clone() } else { session(&self.read)? };
        Ok(Stage::new(writer, reader))
    }
}

pub async fn run(args: Args) -> Result<()> {
    let story = Story::new(args.write.as_deref());
    let mut stage = args.stage()?;
    let place = |region: &Option<String>| region.as_ref().map(|region| format!(" in {region}")).unwrap_or_default();
    say(bold("One order, from the shelf to the door"));
    say(dim(format!(
        "The ids of this run end in {}. Beside each step: milliseconds until it was done{}, and until a read{} showed it.",
        story.run,
        place(&args.write),
        place(args.read.as_ref().map_or(&args.write, |_| &args.read)),
    )));
    story.shop(&mut stage).await?;
    story.cart(&mut stage).await?;
    let order = story.checkout(&mut stage).await?;
    let reserved = story.reservation(&mut stage, &order).await?;
    story.payment(&mut stage, &order).await?;
    story.shipment(&mut stage, &order.order_id).await?;
    story.too_many(&mut stage).await?;
    let timeline = stage.reader().query(GetOrderTimelineRequest { order_id: order.order_id.clone(), token: String::new() }).await?;
    say(format_args!("\n{}", bold(format!("Order {}, in milliseconds", order.order_id))));
    say(timing::table(&timeline.entries, &stage.moments, reserved).trim_end());
    if let (Some(write), Some(read)) = (&args.write, &args.read) {
        let later = timing::mean(&stage.moments, |moment| (moment.replied, moment.visible));
        say(format_args!("What {write} had answered was read in {read} {} ms later on average.", bold(format!("{later:.1}"))));
    }
    say(dim(format!("\nAgain, with: souk order timeline {}", order.order_id)));
    Ok(())
}

/// A product of the story.
struct Ware {
    id: String,
    title: &'static str,
    cents: i64,
    units: i64,
}

struct Story {
    run: String,
    /// Who buys, and who wants too much.
    customers: [String; 2],
    lamp: Ware,
    tea: Ware,
}

impl Story {
    /// A story whose products and customers are at home in this region.
    fn new(home: Option<&str>) -> Self {
        let run = Uuid::new_v4().simple().to_string()[..6].to_owned();
        let home = home.map(|home| format!("{home}.")).unwrap_or_default();
        let ware = |name: &str, title, cents, units| Ware { id: format!("{home}{name}-{run}"), title, cents, units };
        let (lamp, tea) = (ware("lamp", "Brass lamp", 6_900, 10), ware("tea", "Mountain tea, 100 g", 890, 250));
        Self { customers: [format!("{home}mira-{run}"), format!("{home}omar-{run}")], lamp, tea, run }
    }

    async fn shop(&self, stage: &mut Stage) -> Result<()> {
        stage.chapter("Two products, priced, published and on the shelf");
        for ware in [&self.lamp, &self.tea] {
            let Ware { id, title, cents, units } = ware;
            let details =
                ProductDetails { title: (*title).into(), category: "demo".into(), tags: vec!["demo".into()], ..Default::default() };
            let create = CreateProductRequest { product_id: id.clone(), details: Some(details), price: eur(*cents), ..Default::default() };
            stage.act(&format!("create {id}"), create, get_product(id), |read| product(read, ProductState::Draft)).await?;
            let receive = ReceiveStockRequest { product_id: id.clone(), quantity: *units, ..Default::default() };
            stage
                .act(&format!("receive {units} units"), receive, get_stock(id), |read| stock(read, |stock| stock.on_hand == *units))
                .await?;
            let publish = PublishProductRequest { product_id: id.clone(), ..Default::default() };
            stage.act(&format!("publish {id}"), publish, get_product(id), |read| product(read, ProductState::Published)).await?;
        }
        let sale = SetPriceRequest { product_id: self.lamp.id.clone(), price: eur(5_900), ..Default::default() };
        stage.act("the lamp gets cheaper", sale, get_product(&self.lamp.id), |read| product(read, ProductState::Published)).await?;
        Ok(())
    }

    async fn cart(&self, stage: &mut Stage) -> Result<()> {
        stage.chapter("The customer fills the cart");
        let add = |ware: &Ware, quantity| AddItemRequest {
            customer_id: self.customers[0].clone(),
            product_id: ware.id.clone(),
            quantity,
            ..Default::default()
        };
        stage.act("one lamp", add(&self.lamp, 1), self.get_cart(), |read| cart(read, &[1])).await?;
        stage.act("two packs of tea", add(&self.tea, 2), self.get_cart(), |read| cart(read, &[1, 2])).await?;
        let three = SetItemQuantityRequest {
            customer_id: self.customers[0].clone(),
            product_id: self.tea.id.clone(),
            quantity: 3,
            ..Default::default()
        };
        stage.act("or rather three", three, self.get_cart(), |read| cart(read, &[1, 3])).await?;
        Ok(())
    }

    async fn checkout(&self, stage: &mut Stage) -> Result<CheckoutResponse> {
        stage.chapter("Checkout: the cart is emptied and the order placed, in one transaction");
        let request_id = Uuid::now_v7().to_string();
        let checkout = CheckoutRequest {
            request_id,
            customer_id: self.customers[0].clone(),
            expected_total: eur(5_900 + 3 * 890),
            ..Default::default()
        };
        let placed = stage.act("check out", checkout.clone(), self.get_cart(), |read| cart(read, &[])).await?;
        let order = stage.see(get_order(&placed.order_id), |read| Ok(order_line(order(read)?))).await?;
        stage.note(&format!("order {}: {order}", placed.order_id));
        let again = stage.session.command(checkout).await?;
        ensure!(again.order_id == placed.order_id && again.version == placed.version, "a repeated checkout made another order: {again:?}");
        stage.note("sent again under the same request id: the same order, nothing happened twice");
        Ok(placed)
    }

    /// Gives the time at which the reservation was visible.
    async fn reservation(&self, stage: &mut Stage, placed: &CheckoutResponse) -> Result<SystemTime> {
        stage.chapter("The process manager reserves the stock, line by line");
        let orders = stage.reader().watch_order(&placed.order_id);
        pin_mut!(orders);
        let awaiting = async {
            while let Some(order) = orders.next().await {
                let order = order?;
                match order.state() {
                    OrderState::Reserving => {}
                    OrderState::AwaitingPayment => return Ok(order_line(&order)),
                    state => anyhow::bail!("the order is {}", state.as_str_name()),
                }
            }
            anyhow::bail!("the watch ended before the stock was reserved")
        };
        let order = tokio::time::timeout(PATIENCE, awaiting).await.context("the stock was not reserved in time")??;
        let visible = SystemTime::now();
        stage.note(&format!("watched: {order}"));
        for (ware, reserved) in [(&self.lamp, 1), (&self.tea, 3)] {
            // The stock's views follow another log than the order's.
            let line = stage.await_that(PATIENCE, get_stock(&ware.id), |read| stock(read, |stock| stock.reserved == reserved)).await?;
            stage.note(&format!("{}: {line}", ware.id));
        }
        Ok(visible)
    }

    async fn payment(&self, stage: &mut Stage, placed: &CheckoutResponse) -> Result<()> {
        stage.chapter("The customer pays");
        let payment = RecordPaymentRequest {
            order_id: placed.order_id.clone(),
            payment_reference: format!("card-{}", self.run),
            amount: placed.total.clone(),
            ..Default::default()
        };
        stage.act("record the payment", payment, get_order(&placed.order_id), |read| in_state(read, OrderState::Paid)).await?;
        Ok(())
    }

    async fn shipment(&self, stage: &mut Stage, order_id: &str) -> Result<()> {
        stage.chapter("The parcel leaves, and arrives");
        let shipment = RecordShipmentRequest {
            order_id: order_id.to_owned(),
            carrier: "Caravan".into(),
            tracking_number: format!("CV-{}", self.run),
            ..Default::default()
        };
        stage.act("record the shipment", shipment, get_order(order_id), |read| in_state(read, OrderState::Shipped)).await?;
        for (ware, units) in [(&self.lamp, 1), (&self.tea, 3)] {
            let line = stage
                .await_that(PATIENCE, get_stock(&ware.id), |read| stock(read, |stock| stock.shipped == units && stock.reserved == 0))
                .await?;
            stage.note(&format!("{}: {line}", ware.id));
        }
        let delivery = RecordDeliveryRequest { order_id: order_id.to_owned(), ..Default::default() };
        stage.act("record the delivery", delivery, get_order(order_id), |read| in_state(read, OrderState::Delivered)).await?;
        Ok(())
    }

    async fn too_many(&self, stage: &mut Stage) -> Result<()> {
        stage.chapter("Somebody wants more lamps than there are");
        let place = PlaceOrderRequest {
            customer_id: self.customers[1].clone(),
            lines: vec![PlaceOrderLine { product_id: self.lamp.id.clone(), quantity: 50 }],
            wait_for_outcome: true,
            ..Default::default()
        };
        let placed = stage.session.command(place).await?;
        let read = get_order(&placed.order_id);
        let line = stage.await_that(PATIENCE, read, |read| in_state(read, OrderState::Rejected)).await?;
        stage.note(&format!("order for 50 lamps: {line}"));
        let line = stage.await_that(PATIENCE, get_stock(&self.lamp.id), |read| stock(read, |stock| stock.reserved == 0)).await?;
        stage.note(&format!("nothing is held: {line}"));
        Ok(())
    }

    fn get_cart(&self) -> GetCartRequest {
        GetCartRequest { customer_id: self.customers[0].clone(), token: String::new() }
    }
}

fn eur(cents: i64) -> Option<Money> {
    Some(Money { currency: "EUR".into(), minor_units: cents })
}

fn get_product(id: &str) -> GetProductRequest {
    GetProductRequest { product_id: id.to_owned(), token: String::new() }
}

fn get_stock(id: &str) -> GetAvailabilityRequest {
    GetAvailabilityRequest { product_id: id.to_owned(), token: String::new() }
}

fn get_order(id: &str) -> GetOrderRequest {
    GetOrderRequest { order_id: id.to_owned(), token: String::new() }
}

/// Each of these reads a reply as a line, or says how it differs from what must be there.
fn product(read: &GetProductResponse, want: ProductState) -> Result<String> {
    let product: &Product = read.product.as_ref().context("a reply without a product")?;
    ensure!(product.state() == want, "the product is {}", product.state().as_str_name());
    let title = product.details.as_ref().map(|details| details.title.as_str()).unwrap_or_default();
    Ok(format!("{title}, {}, {}", name(want.as_str_name(), "PRODUCT_STATE_"), money(product.price.as_ref())))
}

fn stock(read: &GetAvailabilityResponse, want: impl Fn(&Availability) -> bool) -> Result<String> {
    let stock = read.availability.as_ref().context("a reply without stock")?;
    let line = format!("{} on hand, {} reserved, {} available, {} shipped", stock.on_hand, stock.reserved, stock.available, stock.shipped);
    ensure!(want(stock), "stock is {line}");
    Ok(line)
}

fn cart(read: &GetCartResponse, want: &[i64]) -> Result<String> {
    let cart = read.cart.as_ref().context("a reply without a cart")?;
    let quantities: Vec<_> = cart.lines.iter().map(|line| line.quantity).collect();
    ensure!(quantities == want, "the cart holds {quantities:?}");
    let lines: Vec<_> = cart.lines.iter().map(|line| format!("{} × {}", line.quantity, line.product_id)).collect();
    Ok(if lines.is_empty() { "the cart is empty".to_owned() } else { lines.join(", ") })
}

fn order(read: &GetOrderResponse) -> Result<&Order> {
    read.order.as_ref().context("a reply without an order")
}

fn in_state(read: &GetOrderResponse, want: OrderState) -> Result<String> {
    let order = order(read)?;
    ensure!(order.state() == want, "the order is {}", order_line(order));
    Ok(order_line(order))
}

fn order_line(order: &Order) -> String {
    let refusals = order.refusals.iter().map(|line| format!(", {} of {}: {} available", line.reason, line.product_id, line.available));
    let state = name(order.state().as_str_name(), "ORDER_STATE_");
    format!("{state}, {}{}", money(order.total.as_ref()), refusals.collect::<String>())
}

fn name(value: &str, prefix: &str) -> String {
    value.trim_start_matches(prefix).to_lowercase().replace('_', " ")
}
