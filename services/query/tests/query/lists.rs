use std::{collections::BTreeSet, time::Duration};

use prost_types::Timestamp;
use souk_event_sourcing::{LogId, LogPosition, Region, Token};
use souk_proto::{
    catalog::v1::{
        ListProductsRequest, ProductCreated, ProductDetails, ProductPublished, ProductState,
        query_service_client::QueryServiceClient as CatalogClient,
    },
    orders::v1::{
        GetSalesSummaryRequest, ListOrdersRequest, OrderLine, OrderPlaced, OrderReserved, OrderState, PaymentRecorded, SalesRow,
        query_service_client::QueryServiceClient as OrdersClient,
    },
};
use tonic::{Code, transport::Channel};

use crate::world::*;

async fn products(channel: &Channel, filter: &ListProductsRequest) -> Vec<String> {
    let (mut ids, mut request) = (Vec::new(), filter.clone());
    loop {
        let reply = CatalogClient::new(channel.clone()).list_products(request.clone()).await.unwrap().into_inner();
        assert!(reply.products.len() <= request.page_size as usize);
        ids.extend(reply.products.into_iter().map(|product| product.product_id));
        if reply.next_page_token.is_empty() {
            return ids;
        }
        request.page_token = reply.next_page_token;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn products_are_listed_in_one_order_over_all_databases() {
    let servers = Servers::start().await;
    let mut shop = Shop::open(&servers).await;
    let service = Service::start(servers.settings()).await;
    service.ready().await;
    let mut token = Token::default();
    for number in 0..45 {
        let id = format!("p-{number}");
        let details = ProductDetails {
            title: id.clone(),
            description: "d".repeat(if number < 40 { 10 } else { 10_000 }),
            category: if number % 2 == 0 { "toys" } else { "books" }.into(),
            tags: if number % 3 == 0 { vec!["new".into(), "red".into()] } else { vec!["red".into()] },
        };
        let stream = format!("product-{id}");
        token.extend(shop.record(&id, &stream, "ProductCreated", ProductCreated { details: Some(details), price: None }).parts().to_vec());
        if number % 5 == 0 {
            token.extend(shop.record(&id, &stream, "ProductPublished", ProductPublished {}).parts().to_vec());
        }
    }
    shop.project().await;
    let all: BTreeSet<String> = (0..45).map(|number| format!("p-{number}")).collect();
    let sorted = |keep: &dyn Fn(u32) -> bool| -> Vec<String> { all.iter().filter(|id| keep(id[2..].parse().unwrap())).cloned().collect() };
    let base = ListProductsRequest { page_size: 7, token: text(&token), ..Default::default() };
    let channel = &service.channel;
    assert_eq!(products(channel, &base).await, sorted(&|_| true));
    let published = ListProductsRequest { state: ProductState::Published.into(), page_size: 2, ..base.clone() };
    assert_eq!(products(channel, &published).await, sorted(&|number| number % 5 == 0));
    assert_eq!(products(channel, &ListProductsRequest { tag: "new".into(), ..base.clone() }).await, sorted(&|number| number % 3 == 0));
    let books = ListProductsRequest { category: "books".into(), tag: "red".into(), page_size: 1000, ..base.clone() };
    assert_eq!(products(channel, &books).await, sorted(&|number| number % 2 == 1));
    assert!(products(channel, &ListProductsRequest { tag: "' or true --".into(), ..base.clone() }).await.is_empty());

    // A page is cut where it would not fit into a message: 5 products of 10 KB each, limit 24 KiB.
    let mut settings = servers.settings();
    settings.grpc.max_message_bytes = 24 * 1024;
    let narrow = Service::start(settings).await;
    narrow.ready().await;
    assert_eq!(products(&narrow.channel, &ListProductsRequest { page_size: 1000, ..base.clone() }).await, sorted(&|_| true));
    narrow.stop().await;

    page_tokens_are_bound_to_their_filter(channel, &base).await;
    lists_wait_for_their_token(&mut shop, channel).await;
    rows_of_a_log_without_a_checkpoint_are_not_listed(&servers, channel).await;
    service.stop().await;
}

/// A standby that replays its past may be at a moment when there was none.
async fn rows_of_a_log_without_a_checkpoint_are_not_listed(servers: &Servers, channel: &Channel) {
    let mut database = servers.postgres.connect("r1").await.unwrap();
    sqlx::query("delete from read_checkpoint").execute(&mut database).await.unwrap();
    let refused = CatalogClient::new(channel.clone()).list_products(ListProductsRequest::default()).await.map(drop).unwrap_err();
    assert_eq!(reason(&refused), (Code::Unavailable, "STORE_UNAVAILABLE".into()));
}

async fn lists_wait_for_their_token(shop: &mut Shop, channel: &Channel) {
    let token = shop.record("p-45", "product-p-45", "ProductCreated", ProductCreated::default());
    let request = ListProductsRequest { page_size: 1000, token: text(&token), ..Default::default() };
    let mut catalog = CatalogClient::new(channel.clone());
    let late = catalog.list_products(within(Duration::from_millis(300), request.clone())).await.unwrap_err();
    assert_eq!(reason(&late), (Code::Unavailable, "NOT_YET_VISIBLE".into()));
    let waiting = tokio::spawn(async move { catalog.list_products(request).await });
    shop.project().await;
    let page = waiting.await.unwrap().unwrap().into_inner();
    assert!(page.products.iter().any(|product| product.product_id == "p-45"));
    // A log of a region that is not kept here would be waited for in vain.
    let stranger = LogPosition { log: LogId { region: Region(9), ..log(0) }, ..token.parts()[0] };
    let request = ListProductsRequest { token: text(&stranger.into()), ..Default::default() };
    let refused = CatalogClient::new(channel.clone()).list_products(request).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "LOG_NOT_KEPT".into()));
}

async fn page_tokens_are_bound_to_their_filter(channel: &Channel, base: &ListProductsRequest) {
    let mut catalog = CatalogClient::new(channel.clone());
    let page = catalog.list_products(base.clone()).await.unwrap().into_inner();
    assert!(page.as_of.is_some_and(|as_of| as_of.positions.len() == usize::from(PARTITIONS)));
    // The size of the page may change, the filter may not.
    let next = ListProductsRequest { page_token: page.next_page_token.clone(), page_size: 1, ..base.clone() };
    assert_eq!(catalog.list_products(next.clone()).await.unwrap().into_inner().products.len(), 1);
    for other in [
        ListProductsRequest { tag: "new".into(), ..next.clone() },
        ListProductsRequest { page_token: format!("{}A", page.next_page_token), ..next.clone() },
        ListProductsRequest { page_token: "forged".into(), ..next },
    ] {
        let refused = catalog.list_products(other).await.unwrap_err();
        assert_eq!(
            (reason(&refused), bad_fields(&refused)),
            ((Code::InvalidArgument, "INVALID_PAGE_TOKEN".into()), vec!["page_token".into()])
        );
    }
    let all_wrong = ListProductsRequest {
        state: 9,
        tag: "x".repeat(65),
        category: "a\0".into(),
        page_size: -1,
        page_token: "forged".into(),
        token: "forged".into(),
    };
    let refused = catalog.list_products(all_wrong).await.unwrap_err();
    assert_eq!(bad_fields(&refused), ["state", "tag", "category", "page_size", "page_token", "token"]);
    assert_eq!(reason(&refused), (Code::InvalidArgument, "INVALID_FIELDS".into()));
}

/// An order as it was recorded: customer, order id, placed at, paid.
type Recorded = (String, String, i64, bool);

async fn orders_of_three_customers(shop: &mut Shop) -> (Vec<Recorded>, Token) {
    let (mut orders, mut token) = (Vec::new(), Token::default());
    for number in 0..30 {
        let customer = format!("c-{}", number % 3);
        let id = order_id(&customer, number);
        let stream = format!("order-{id}");
        let line = |product: &str, quantity, price| OrderLine {
            product_id: product.into(),
            quantity,
            unit_price: Some(eur(price)),
            product_version: 1,
        };
        let lines = vec![line("p-1", 2, 500), line(&format!("p-{}", number % 4 + 2), 1, 1_000)];
        let placed = OrderPlaced { customer_id: customer.clone(), lines, total: Some(eur(2_000)), payment_deadline_ms: 1 };
        let at = shop.record(&customer, &stream, "OrderPlaced", placed);
        token.extend(at.parts().to_vec());
        let placed_ms = shop.now_ms();
        let paid = number % 2 == 0;
        if paid {
            token.extend(shop.record(&customer, &stream, "OrderReserved", OrderReserved {}).parts().to_vec());
            let payment = PaymentRecorded { payment_reference: format!("pay-{number}"), amount: Some(eur(2_000)), refund_due: false };
            token.extend(shop.record(&customer, &stream, "PaymentRecorded", payment).parts().to_vec());
        }
        orders.push((customer, id, placed_ms, paid));
    }
    shop.project().await;
    (orders, token)
}

async fn listed(channel: &Channel, filter: &ListOrdersRequest) -> Vec<String> {
    let (mut ids, mut request) = (Vec::new(), filter.clone());
    loop {
        let reply = OrdersClient::new(channel.clone()).list_orders(request.clone()).await.unwrap().into_inner();
        ids.extend(reply.orders.into_iter().map(|order| order.order_id));
        if reply.next_page_token.is_empty() {
            return ids;
        }
        request.page_token = reply.next_page_token;
    }
}

fn at(ms: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds: ms / 1_000, nanos: (ms % 1_000) as i32 * 1_000_000 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_are_listed_newest_first_and_sales_are_added_up_over_all_databases() {
    let servers = Servers::start().await;
    let mut shop = Shop::open(&servers).await;
    let service = Service::start(servers.settings()).await;
    service.ready().await;
    let (orders, token) = orders_of_three_customers(&mut shop).await;
    let newest_first = |keep: &dyn Fn(&Recorded) -> bool| -> Vec<String> {
        orders.iter().rev().filter(|order| keep(order)).map(|order| order.1.clone()).collect()
    };
    let channel = &service.channel;
    let base = ListOrdersRequest { page_size: 4, token: text(&token), ..Default::default() };
    assert_eq!(listed(channel, &base).await, newest_first(&|_| true));
    let of_one = ListOrdersRequest { customer_id: "c-1".into(), ..base.clone() };
    assert_eq!(listed(channel, &of_one).await, newest_first(&|order| order.0 == "c-1"));
    let paid = ListOrdersRequest { state: OrderState::Paid.into(), customer_id: "c-2".into(), ..base.clone() };
    assert_eq!(listed(channel, &paid).await, newest_first(&|order| order.0 == "c-2" && order.3));
    let (from, to) = (orders[7].2, orders[21].2);
    let between = ListOrdersRequest { from_time: at(from), to_time: at(to), ..base.clone() };
    assert_eq!(listed(channel, &between).await, newest_first(&|order| (from..to).contains(&order.2)));

    let mut client = OrdersClient::new(channel.clone());
    let one_log = client.list_orders(ListOrdersRequest { page_size: 1, ..of_one }).await.unwrap().into_inner();
    assert_eq!(one_log.as_of.unwrap().positions.len(), 1, "only the customer's log is involved");
    let wrong =
        ListOrdersRequest { customer_id: "a b".into(), page_size: 1001, from_time: Some(Timestamp { seconds: 0, nanos: -1 }), ..base };
    let refused = client.list_orders(wrong).await.unwrap_err();
    assert_eq!(bad_fields(&refused), ["customer_id", "from_time", "page_size"]);

    sales_are_added_up(channel, &token).await;
    service.stop().await;
}

async fn summary(channel: &Channel, filter: &GetSalesSummaryRequest) -> Vec<SalesRow> {
    let (mut rows, mut request) = (Vec::new(), filter.clone());
    loop {
        let reply = OrdersClient::new(channel.clone()).get_sales_summary(request.clone()).await.unwrap().into_inner();
        assert!(reply.rows.len() <= request.page_size as usize);
        rows.extend(reply.rows);
        if reply.next_page_token.is_empty() {
            return rows;
        }
        request.page_token = reply.next_page_token;
    }
}

async fn sales_are_added_up(channel: &Channel, token: &Token) {
    let day = "2023-11-14";
    let row = |product: &str, units, minor_units| SalesRow {
        day: day.into(),
        product_id: product.into(),
        units,
        revenue: Some(eur(minor_units)),
    };
    let filter =
        GetSalesSummaryRequest { from_day: day.into(), to_day: day.into(), page_size: 2, token: text(token), ..Default::default() };
    // 15 paid orders, each with two units of p-1 and one of p-2 (numbers 0, 4, …) or p-4 (2, 6, …).
    assert_eq!(summary(channel, &filter).await, [row("p-1", 30, 15_000), row("p-2", 8, 8_000), row("p-4", 7, 7_000)]);
    let one = GetSalesSummaryRequest { product_id: "p-2".into(), ..filter.clone() };
    assert_eq!(summary(channel, &one).await, [row("p-2", 8, 8_000)]);
    // Without days: the last thirty, in which nothing was sold.
    let recent = GetSalesSummaryRequest { from_day: String::new(), to_day: String::new(), ..filter.clone() };
    assert_eq!(summary(channel, &recent).await, []);
    let wrong = GetSalesSummaryRequest { from_day: "2023-11-15".into(), product_id: "?".into(), page_size: -5, ..filter.clone() };
    let refused = OrdersClient::new(channel.clone()).get_sales_summary(wrong).await.unwrap_err();
    assert_eq!(bad_fields(&refused), ["product_id", "from_day", "page_size"]);
}
