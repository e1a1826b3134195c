use std::time::Duration;

use anyhow::Result;
use souk_proto::{
    cart::v1::{AddItemRequest, CheckoutRequest, GetCartRequest},
    orders::v1::{
        GetOrderTimelineRequest, GetSalesSummaryRequest, ListOrdersRequest, OrderState, RecordDeliveryRequest, RecordShipmentRequest,
    },
};
use souk_tests::{Shop, System};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn one_order_goes_from_cart_to_delivery_and_is_read_back_at_every_step() -> Result<()> {
    let system = System::start(|_| {}).await?;
    let shop = Shop(system.session()?);
    let session = &shop.0;
    shop.sell("p-1", 1_999, 10).await?;
    shop.sell("p-2", 500, 10).await?;
    assert_eq!(shop.stock("p-1").await?.available, 10);

    for (product, quantity) in [("p-1", 2), ("p-2", 1)] {
        session.command(AddItemRequest { customer_id: "c-1".into(), product_id: product.into(), quantity, ..Default::default() }).await?;
    }
    let cart = session.query(GetCartRequest { customer_id: "c-1".into(), ..Default::default() }).await?.cart.unwrap();
    assert_eq!(cart.lines.iter().map(|line| (line.product_id.as_str(), line.quantity)).collect::<Vec<_>>(), [("p-1", 2), ("p-2", 1)]);

    let order = session.command(CheckoutRequest { customer_id: "c-1".into(), ..Default::default() }).await?;
    assert_eq!(order.total.as_ref().map(|total| total.minor_units), Some(4_498));
    let id = order.order_id;
    let cart = session.query(GetCartRequest { customer_id: "c-1".into(), ..Default::default() }).await?.cart.unwrap();
    assert!(cart.lines.is_empty());

    shop.see_in(&id, OrderState::AwaitingPayment, PATIENCE).await?;
    assert_eq!((shop.stock("p-1").await?.reserved, shop.stock("p-2").await?.reserved), (2, 1));
    shop.pay(&id, 4_498).await?;
    assert_eq!(shop.see(&id).await?.state(), OrderState::Paid);
    session
        .command(RecordShipmentRequest { order_id: id.clone(), carrier: "Post".into(), tracking_number: "T1".into(), ..Default::default() })
        .await?;
    assert_eq!(shop.see(&id).await?.carrier, "Post");
    souk_tests::until("units shipped", PATIENCE, || async {
        let stock = shop.stock("p-1").await?;
        Ok((stock.shipped == 2 && stock.reserved == 0 && stock.on_hand == 8).then_some(()))
    })
    .await?;
    session.command(RecordDeliveryRequest { order_id: id.clone(), ..Default::default() }).await?;
    assert_eq!(shop.see(&id).await?.state(), OrderState::Delivered);

    let timeline = session.query(GetOrderTimelineRequest { order_id: id.clone(), ..Default::default() }).await?.entries;
    let types: Vec<_> = timeline.iter().map(|entry| entry.r#type.as_str()).collect();
    assert_eq!(types, ["OrderPlaced", "OrderReserved", "PaymentRecorded", "OrderShipped", "OrderDelivered"]);
    let listed = session.query(ListOrdersRequest { customer_id: "c-1".into(), ..Default::default() }).await?.orders;
    assert_eq!(listed.iter().map(|order| order.order_id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
    let sales = session.query(GetSalesSummaryRequest::default()).await?.rows;
    let sold: Vec<_> =
        sales.iter().map(|row| (row.product_id.as_str(), row.units, row.revenue.clone().unwrap_or_default().minor_units)).collect();
    assert_eq!(sold, [("p-1", 2, 3_998), ("p-2", 1, 500)]);

    let findings = system.audit_clean().await?;
    assert!(findings["checked"]["events"].as_u64() > Some(15) && findings["checked"]["view rows"].as_u64() > Some(8), "{findings}");
    Ok(())
}

#[tokio::test]
async fn an_order_that_is_not_paid_in_time_is_cancelled_and_gives_its_units_back() -> Result<()> {
    let system = System::start(|options| {
        options.set("command.payment_window", "2s");
    })
    .await?;
    let shop = Shop(system.session()?);
    shop.sell("p-1", 100, 5).await?;
    let unpaid = shop.order("c-1", "p-1", 3, true).await?;
    assert_eq!(unpaid.state(), OrderState::AwaitingPayment);
    let too_many = shop.order("c-2", "p-1", 3, true).await?;
    assert_eq!(too_many.state(), OrderState::Rejected);
    assert_eq!(shop.see(&too_many.order_id).await?.refusals[0].available, 2);

    let cancelled = shop.see_in(&unpaid.order_id, OrderState::Cancelled, PATIENCE).await?;
    assert!(!cancelled.cancel_reason.is_empty() && cancelled.refund_due.is_none());
    souk_tests::until("units given back", PATIENCE, || async { Ok((shop.stock("p-1").await?.available == 5).then_some(())) }).await?;
    // A payment that comes too late is recorded and owed back.
    shop.pay(&unpaid.order_id, 300).await?;
    assert_eq!(shop.see(&unpaid.order_id).await?.refund_due.map(|money| money.minor_units), Some(300));
    system.audit_clean().await?;
    Ok(())
}
