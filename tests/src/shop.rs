use std::time::Duration;

use anyhow::{Context, Result};
use souk_client::{Error, Session};
use souk_proto::{
    catalog::v1::{CreateProductRequest, ProductDetails, PublishProductRequest},
    common::v1::Money,
    orders::v1::{
        GetOrderRequest, ListOrdersRequest, Order, OrderState, PlaceOrderLine, PlaceOrderRequest, PlaceOrderResponse, RecordPaymentRequest,
    },
    stock::v1::{Availability, GetAvailabilityRequest, ReceiveStockRequest},
};
use tokio::sync::Mutex;

use crate::until;

/// Euros in cents.
pub fn eur(minor_units: i64) -> Money {
    Money { currency: "EUR".into(), minor_units }
}

/// What a shopkeeper does, over one session.
#[derive(Debug, Clone)]
pub struct Shop(pub Session);

impl Shop {
    /// A product on sale with units in stock.
    ///
    /// # Errors
    /// As the calls.
    pub async fn sell(&self, product: &str, price: i64, units: i64) -> Result<(), Error> {
        let details = ProductDetails { title: format!("Product {product}"), category: "test".into(), ..Default::default() };
        self.0
            .command(CreateProductRequest {
                product_id: product.into(),
                details: Some(details),
                price: Some(eur(price)),
                ..Default::default()
            })
            .await?;
        self.0.command(PublishProductRequest { product_id: product.into(), ..Default::default() }).await?;
        if units > 0 {
            self.0.command(ReceiveStockRequest { product_id: product.into(), quantity: units, ..Default::default() }).await?;
        }
        Ok(())
    }

    /// Places an order of one line.
    ///
    /// # Errors
    /// As the call.
    pub async fn order(&self, customer: &str, product: &str, quantity: i64, wait: bool) -> Result<PlaceOrderResponse, Error> {
        let lines = vec![PlaceOrderLine { product_id: product.into(), quantity }];
        self.0.command(PlaceOrderRequest { customer_id: customer.into(), lines, wait_for_outcome: wait, ..Default::default() }).await
    }

    /// Pays an order.
    ///
    /// # Errors
    /// As the call.
    pub async fn pay(&self, order_id: &str, amount: i64) -> Result<(), Error> {
        let payment = RecordPaymentRequest {
            order_id: order_id.into(),
            payment_reference: format!("pay-{order_id}"),
            amount: Some(eur(amount)),
            ..Default::default()
        };
        self.0.command(payment).await.map(drop)
    }

    /// The order as the read side shows it.
    ///
    /// # Errors
    /// As the call.
    pub async fn see(&self, order_id: &str) -> Result<Order, Error> {
        let reply = self.0.query(GetOrderRequest { order_id: order_id.into(), ..Default::default() }).await?;
        Ok(reply.order.unwrap_or_default())
    }

    /// Waits until the order is shown in a state.
    ///
    /// # Errors
    /// When it does not get there in time.
    pub async fn see_in(&self, order_id: &str, state: OrderState, patience: Duration) -> Result<Order> {
        until(&format!("order {order_id} {state:?}"), patience, || async {
            let order = self.see(order_id).await?;
            Ok((order.state() == state).then_some(order))
        })
        .await
    }

    /// Waits until no order is shown in a state. What was shown before may be taken back meanwhile, and shown by nobody until it is: it is asked for again then.
    ///
    /// # Errors
    /// When some stay in it; with which.
    pub async fn see_none_in(&self, state: OrderState, patience: Duration) -> Result<()> {
        let (what, seen) = (format!("no order {state:?}"), Mutex::default());
        let none = until(&what, patience, || async {
            let orders = match self.0.query(ListOrdersRequest { state: state.into(), page_size: 10, ..Default::default() }).await {
                Ok(listed) => listed.orders,
                Err(error) if matches!(error.reason(), "LOG_RESTORED" | "VIEW_REBUILDING") => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let none = orders.is_empty().then_some(());
            *seen.lock().await = orders;
            Ok(none)
        });
        let none = none.await;
        none.with_context(|| format!("{:#?}", seen.into_inner()))
    }

    /// The stock as the read side shows it.
    ///
    /// # Errors
    /// As the call.
    pub async fn stock(&self, product: &str) -> Result<Availability, Error> {
        let reply = self.0.query(GetAvailabilityRequest { product_id: product.into(), ..Default::default() }).await?;
        Ok(reply.availability.unwrap_or_default())
    }
}
