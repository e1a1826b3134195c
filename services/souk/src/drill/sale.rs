use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use souk_client::{Session, Souk};
use souk_proto::{
    catalog::v1::{CreateProductRequest, ProductDetails, PublishProductRequest},
    common::v1::Money,
    orders::v1::{GetOrderRequest, ListOrdersRequest, OrderState, PlaceOrderLine, PlaceOrderRequest, RecordPaymentRequest},
    stock::v1::{GetAvailabilityRequest, ReceiveStockRequest},
};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval},
};

use super::figures::Figures;

pub(super) const UNITS: i64 = 1_000;
pub(super) const CUSTOMERS: usize = 1_350;
/// Customers who come in a second, whatever becomes of those before them.
pub(super) const PER_SECOND: u32 = 30;
/// Others who look at the lamp all the time.
const ONLOOKERS: usize = 4;
const LAMP: &str = "lamp";
const CENTS: i64 = 5_900;
/// How long a customer waits for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A sale under way.
pub(super) struct Sale {
    session: Session,
    counts: Arc<Counts>,
    customers: JoinHandle<Result<()>>,
    onlookers: JoinSet<Result<()>>,
}

#[derive(Default)]
struct Counts {
    paid: AtomicUsize,
    turned_away: AtomicUsize,
    looks: AtomicUsize,
    over: AtomicBool,
    longest: std::sync::Mutex<Duration>,
}

impl Sale {
    /// Puts the lamps on the shelf and opens the doors.
    pub async fn open(souk: Souk, figures: Figures) -> Result<Self> {
        let session = souk.session().caller("souk-drill").deadline(PATIENCE);
        let details = Some(ProductDetails { title: "Brass lamp".into(), category: "drill".into(), ..Default::default() });
        let price = Some(Money { currency: "EUR".into(), minor_units: CENTS });
        session.command(CreateProductRequest { product_id: LAMP.into(), details, price, ..Default::default() }).await?;
        session.command(ReceiveStockRequest { product_id: LAMP.into(), quantity: UNITS, ..Default::default() }).await?;
        session.command(PublishProductRequest { product_id: LAMP.into(), ..Default::default() }).await?;
        let counts = Arc::<Counts>::default();
        let mut onlookers = JoinSet::new();
        for _ in 0..ONLOOKERS {
            let (looker, counts, figures) = (souk.session().caller("souk-drill").deadline(PATIENCE), counts.clone(), figures.clone());
            looker.merge_token(&session.token());
            onlookers.spawn(async move { counts.look_on(&looker, &figures).await });
        }
        let customers = tokio::spawn(come(souk, counts.clone(), figures));
        Ok(Self { session, counts, customers, onlookers })
    }

    /// Whether there are customers left.
    pub fn goes_on(&self) -> bool {
        !self.customers.is_finished()
    }

    /// Orders paid.
    pub fn sold(&self) -> usize {
        self.counts.paid.load(Ordering::Relaxed)
    }

    /// Counts again, by the views alone.
    ///
    /// # Errors
    /// When a customer was not answered, or the views tell another story than the customers.
    pub async fn close(mut self) -> Result<String> {
        self.customers.await.context("a customer")??;
        self.counts.over.store(true, Ordering::Relaxed);
        while let Some(looked) = self.onlookers.join_next().await {
            looked.context("an onlooker")??;
        }
        let paid = self.counts.paid.load(Ordering::Relaxed);
        let turned_away = self.counts.turned_away.load(Ordering::Relaxed);
        let (shown_paid, shown_rejected) =
            (count(&self.session, OrderState::Paid).await?, count(&self.session, OrderState::Rejected).await?);
        ensure!(
            (shown_paid, shown_rejected) == (paid, turned_away),
            "the views show {shown_paid} paid and {shown_rejected} rejected orders, customers were told of {paid} and {turned_away}"
        );
        ensure!(paid as i64 == UNITS, "{paid} of {UNITS} lamps were sold");
        let stock = self.session.query(GetAvailabilityRequest { product_id: LAMP.into(), ..Default::default() }).await?;
        let stock = stock.availability.context("no stock")?;
        ensure!((stock.on_hand, stock.available) == (UNITS, 0), "the stock shows {} lamps, {} available", stock.on_hand, stock.available);
        let longest = *self.counts.longest.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let looks = self.counts.looks.load(Ordering::Relaxed);
        Ok(format!(
            "{paid} customers have paid, {turned_away} were told that it is sold out, none got an error; the longest wait was {:.1} s. \
             {} looks at the lamp, each at least as new as the one before.",
            longest.as_secs_f64(),
            crate::paint::thousands(looks as u64),
        ))
    }
}

/// Customers come at their own pace.
async fn come(souk: Souk, counts: Arc<Counts>, figures: Figures) -> Result<()> {
    let mut ticks = interval(Duration::from_secs(1) / PER_SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut inside = JoinSet::new();
    for number in 0..CUSTOMERS {
        ticks.tick().await;
        // Each with a session of its own: nobody else's tokens.
        let (session, counts, figures) = (souk.session().caller("souk-drill").deadline(PATIENCE), counts.clone(), figures.clone());
        inside.spawn(async move { counts.buy(&session, number, &figures).await.with_context(|| format!("customer {number}")) });
    }
    while let Some(left) = inside.join_next().await {
        left??;
    }
    Ok(())
}

impl Counts {
    async fn buy(&self, session: &Session, number: usize, figures: &Figures) -> Result<()> {
        let lines = vec![PlaceOrderLine { product_id: LAMP.into(), quantity: 1 }];
        let order = PlaceOrderRequest { customer_id: format!("c-{number}"), lines, wait_for_outcome: true, ..Default::default() };
        let came = Instant::now();
        let order = session.command(order).await?;
        let (told, answered) = (came.elapsed(), Instant::now());
        figures.order(told);
        self.waited(told);
        let shown = session.query(GetOrderRequest { order_id: order.order_id.clone(), ..Default::default() }).await?;
        figures.visible(answered.elapsed());
        let shown = shown.order.unwrap_or_default();
        ensure!(shown.version >= order.version, "the view shows version {} of {}", shown.version, order.version);
        match order.state() {
            OrderState::AwaitingPayment => {
                let amount = Some(Money { currency: "EUR".into(), minor_units: CENTS });
                let payment_reference = format!("payment-{number}");
                session.command(RecordPaymentRequest { order_id: order.order_id, payment_reference, amount, ..Default::default() }).await?;
                self.paid.fetch_add(1, Ordering::Relaxed);
            }
            OrderState::Rejected => drop(self.turned_away.fetch_add(1, Ordering::Relaxed)),
            other => anyhow::bail!("order {} is {other:?}", order.order_id),
        }
        Ok(())
    }

    /// Looks at the lamp again and again; it must not get older.
    async fn look_on(&self, session: &Session, figures: &Figures) -> Result<()> {
        let mut seen = 0;
        while !self.over.load(Ordering::Relaxed) {
            let began = Instant::now();
            let reply = session.query(GetAvailabilityRequest { product_id: LAMP.into(), ..Default::default() }).await?;
            figures.query(began.elapsed());
            let version = reply.availability.unwrap_or_default().version;
            ensure!(version >= seen, "the lamp went from version {seen} back to {version}");
            seen = version;
            self.looks.fetch_add(1, Ordering::Relaxed);
            // They look, they do not stare: the machine has other things to do.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    fn waited(&self, time: Duration) {
        let mut longest = self.longest.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *longest = time.max(*longest);
    }
}

/// Orders in a state, page by page.
async fn count(session: &Session, state: OrderState) -> Result<usize> {
    let (mut count, mut page_token) = (0, String::new());
    loop {
        let page = ListOrdersRequest { state: state.into(), page_size: 1_000, page_token, ..Default::default() };
        let page = session.query(page).await?;
        count += page.orders.len();
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(count);
        }
    }
}
