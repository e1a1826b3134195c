use anyhow::{Context, Result, ensure};
use souk_client::{Command, Query, Session};
use souk_proto::{cart::v1::*, catalog::v1::*, common::v1::Money, orders::v1::*, stock::v1::*};
use souk_tests::{Shop, System, eur};
use tonic::Code;
use uuid::Uuid;

/// Sends hostile requests and checks what they are answered.
struct Table<'a> {
    session: &'a Session,
    cases: usize,
}

impl Table<'_> {
    async fn command<C: Command>(&mut self, what: &str, command: C, code: Code, reason: &str, field: &str) -> Result<()> {
        let outcome = self.session.command(command).await.map(drop);
        self.check(what, outcome, code, reason, field)
    }

    async fn query<Q: Query>(&mut self, what: &str, query: Q, code: Code, reason: &str, field: &str) -> Result<()> {
        let outcome = self.session.query(query).await.map(drop);
        self.check(what, outcome, code, reason, field)
    }

    fn check(&mut self, what: &str, outcome: Result<(), souk_client::Error>, code: Code, reason: &str, field: &str) -> Result<()> {
        self.cases += 1;
        let error = outcome.err().with_context(|| format!("{what}: accepted"))?;
        ensure!(error.code() == code && error.reason() == reason, "{what}: want {code:?} {reason}, got {error}");
        let named = field.is_empty() || error.violations().iter().any(|violation| violation.field.starts_with(field));
        ensure!(named, "{what}: {field} is not named in {:?}", error.violations());
        Ok(())
    }
}

const FIELDS: &str = "INVALID_FIELDS";

#[tokio::test]
async fn hostile_requests_are_refused_with_a_reason_and_change_nothing() -> Result<()> {
    let system = System::start(|_| {}).await?;
    let shop = Shop(system.session()?);
    shop.sell("p-1", 100, 10).await?;
    let before = system.audit_clean().await?["checked"]["events"].clone();
    let mut table = Table { session: &shop.0, cases: 0 };
    catalog(&mut table).await?;
    stock(&mut table).await?;
    carts_and_orders(&mut table).await?;
    queries(&mut table).await?;
    ensure!(table.cases >= 40, "only {} cases", table.cases);
    println!("{} hostile requests refused", table.cases);
    ensure!(system.audit_clean().await?["checked"]["events"] == before, "a refused request left events");
    ensure!(shop.stock("p-1").await?.available == 10);
    Ok(())
}

fn product(id: &str) -> CreateProductRequest {
    CreateProductRequest { product_id: id.into(), ..Default::default() }
}

fn texts(details: ProductDetails) -> CreateProductRequest {
    CreateProductRequest { product_id: "p-9".into(), details: Some(details), ..Default::default() }
}

async fn catalog(table: &mut Table<'_>) -> Result<()> {
    use Code::{AlreadyExists, InvalidArgument as Bad, NotFound};
    table.command("empty id", product(""), Bad, FIELDS, "product_id").await?;
    table.command("space in id", product("p 1"), Bad, FIELDS, "product_id").await?;
    table.command("dot in id", product("eu.p-1"), Bad, FIELDS, "product_id").await?;
    table.command("NUL in id", product("p\0"), Bad, FIELDS, "product_id").await?;
    table.command("long id", product(&"x".repeat(65)), Bad, FIELDS, "product_id").await?;
    table.command("sql in id", product("p-1'; drop table event; --"), Bad, FIELDS, "product_id").await?;
    table.command("taken id", product("p-1"), AlreadyExists, "PRODUCT_ALREADY_EXISTS", "").await?;
    table
        .command("request id is no UUID", CreateProductRequest { request_id: "x".into(), ..product("p-9") }, Bad, FIELDS, "request_id")
        .await?;
    let nil = Uuid::nil().to_string();
    table.command("nil request id", CreateProductRequest { request_id: nil, ..product("p-9") }, Bad, FIELDS, "request_id").await?;
    let old = "01800000-0000-7000-8000-000000000000".to_owned();
    table
        .command("old request id", CreateProductRequest { request_id: old, ..product("p-9") }, Bad, "REQUEST_ID_TOO_OLD", "request_id")
        .await?;
    let far = "0fffffff-ffff-7000-8000-000000000000".to_owned();
    table
        .command(
            "request id from the future",
            CreateProductRequest { request_id: far, ..product("p-9") },
            Bad,
            "REQUEST_ID_TOO_NEW",
            "request_id",
        )
        .await?;
    table
        .command("NUL in title", texts(ProductDetails { title: "a\0b".into(), ..Default::default() }), Bad, FIELDS, "details.title")
        .await?;
    table
        .command("long title", texts(ProductDetails { title: "x".repeat(201), ..Default::default() }), Bad, FIELDS, "details.title")
        .await?;
    table
        .command(
            "long description",
            texts(ProductDetails { description: "x".repeat(10_001), ..Default::default() }),
            Bad,
            FIELDS,
            "details.description",
        )
        .await?;
    table
        .command(
            "too many tags",
            texts(ProductDetails { tags: (0..21).map(|tag| format!("t{tag}")).collect(), ..Default::default() }),
            Bad,
            FIELDS,
            "details.tags",
        )
        .await?;
    table
        .command(
            "a hundred thousand tags",
            texts(ProductDetails { tags: vec!["t".into(); 100_000], ..Default::default() }),
            Bad,
            FIELDS,
            "details.tags",
        )
        .await?;
    table
        .command("empty tag", texts(ProductDetails { tags: vec![String::new()], ..Default::default() }), Bad, FIELDS, "details.tags")
        .await?;
    let price = |money: Money| SetPriceRequest { product_id: "p-1".into(), price: Some(money), ..Default::default() };
    table.command("negative price", price(eur(-1)), Bad, FIELDS, "price").await?;
    table.command("unheard-of price", price(eur(i64::MAX)), Bad, FIELDS, "price").await?;
    table.command("no currency", price(Money { currency: String::new(), minor_units: 1 }), Bad, FIELDS, "price.currency").await?;
    table.command("lower-case currency", price(Money { currency: "eur".into(), minor_units: 1 }), Bad, FIELDS, "price.currency").await?;
    table.command("no price", SetPriceRequest { product_id: "p-1".into(), ..Default::default() }, Bad, FIELDS, "price").await?;
    table
        .command(
            "malformed etag",
            PublishProductRequest { product_id: "p-1".into(), etag: "*".into(), ..Default::default() },
            Bad,
            FIELDS,
            "etag",
        )
        .await?;
    let stale = PublishProductRequest { product_id: "p-1".into(), etag: "1-1".into(), ..Default::default() };
    table.command("stale etag", stale, Code::Aborted, "STALE_ETAG", "").await?;
    table
        .command(
            "unknown product",
            PublishProductRequest { product_id: "none".into(), ..Default::default() },
            NotFound,
            "PRODUCT_NOT_FOUND",
            "",
        )
        .await?;
    let mask = prost_types::FieldMask { paths: vec!["state".into()] };
    let update = UpdateProductRequest { product_id: "p-1".into(), update_mask: Some(mask), ..Default::default() };
    table.command("unknown path in mask", update, Bad, FIELDS, "update_mask").await
}

async fn stock(table: &mut Table<'_>) -> Result<()> {
    use Code::{FailedPrecondition as Refused, InvalidArgument as Bad, NotFound};
    let receive = |quantity| ReceiveStockRequest { product_id: "p-1".into(), quantity, ..Default::default() };
    for (what, quantity) in [("nothing received", 0), ("less than nothing received", -1), ("too much received", i64::MAX)] {
        table.command(what, receive(quantity), Bad, FIELDS, "quantity").await?;
    }
    table
        .command(
            "stock of nothing",
            ReceiveStockRequest { product_id: "none".into(), quantity: 1, ..Default::default() },
            NotFound,
            "PRODUCT_NOT_FOUND",
            "",
        )
        .await?;
    let adjust = |delta| AdjustStockRequest { product_id: "p-1".into(), delta, ..Default::default() };
    table.command("no correction", adjust(0), Bad, FIELDS, "delta").await?;
    table.command("unheard-of correction", adjust(i64::MIN), Bad, FIELDS, "delta").await?;
    table.command("below what is there", adjust(-11), Refused, "BELOW_RESERVED", "").await?;
    let reserve = |quantity| ReserveStockRequest { product_id: "p-1".into(), order_id: "o-1".into(), quantity, ..Default::default() };
    table.command("reserve nothing", reserve(0), Bad, FIELDS, "quantity").await?;
    table.command("reserve too many", reserve(1_000), Bad, FIELDS, "quantity").await?;
    table.command("reserve more than there is", reserve(11), Refused, "INSUFFICIENT_STOCK", "").await?;
    let forever = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 });
    table.command("valid for ever", ReserveStockRequest { valid_until: forever, ..reserve(1) }, Bad, FIELDS, "valid_until").await?;
    let past = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
    table
        .command("valid until the past", ReserveStockRequest { valid_until: past, ..reserve(1) }, Refused, "RESERVATION_EXPIRED", "")
        .await?;
    let commit = CommitReservationRequest { product_id: "p-1".into(), order_id: "o-1".into(), ..Default::default() };
    table.command("commit what is not held", commit, Refused, "RESERVATION_NOT_FOUND", "").await
}

async fn carts_and_orders(table: &mut Table<'_>) -> Result<()> {
    use Code::{FailedPrecondition as Refused, InvalidArgument as Bad, NotFound};
    let add =
        |product: &str, quantity| AddItemRequest { customer_id: "c-1".into(), product_id: product.into(), quantity, ..Default::default() };
    table.command("add nothing", add("p-1", 0), Bad, FIELDS, "quantity").await?;
    table.command("add a thousand", add("p-1", 1_000), Bad, FIELDS, "quantity").await?;
    table.command("add what is not there", add("none", 1), NotFound, "PRODUCT_NOT_FOUND", "").await?;
    let set = SetItemQuantityRequest { customer_id: "c-1".into(), product_id: "p-1".into(), quantity: 1, ..Default::default() };
    table.command("set what is not in the cart", set, Refused, "ITEM_NOT_IN_CART", "").await?;
    table
        .command("check out nothing", CheckoutRequest { customer_id: "c-1".into(), ..Default::default() }, Refused, "CART_EMPTY", "")
        .await?;
    let place = |lines: Vec<PlaceOrderLine>| PlaceOrderRequest { customer_id: "c-1".into(), lines, ..Default::default() };
    let line = |product: &str, quantity| PlaceOrderLine { product_id: product.into(), quantity };
    table.command("order nothing", place(vec![]), Bad, FIELDS, "lines").await?;
    table.command("order twice the same", place(vec![line("p-1", 1), line("p-1", 2)]), Bad, FIELDS, "lines").await?;
    table.command("order ten thousand lines", place(vec![line("p-1", 1); 10_000]), Bad, FIELDS, "lines").await?;
    table.command("order less than nothing", place(vec![line("p-1", -5)]), Bad, FIELDS, "lines[0].quantity").await?;
    table.command("order what is not there", place(vec![line("none", 1)]), NotFound, "PRODUCT_NOT_FOUND", "").await?;
    let other_total = PlaceOrderRequest { expected_total: Some(eur(1)), ..place(vec![line("p-1", 1)]) };
    table.command("another total", other_total, Refused, "TOTAL_CHANGED", "").await?;
    let pay = |order: &str| RecordPaymentRequest {
        order_id: order.into(),
        payment_reference: "r".into(),
        amount: Some(eur(1)),
        ..Default::default()
    };
    table.command("pay no order", pay("x"), Bad, FIELDS, "order_id").await?;
    table.command("pay an unknown order", pay(&"0".repeat(32)), NotFound, "ORDER_NOT_FOUND", "").await?;
    table.command("order id with an l", pay(&"l".repeat(32)), Bad, FIELDS, "order_id").await?;
    table
        .command(
            "cancel an unknown order",
            CancelOrderRequest { order_id: "0".repeat(32), ..Default::default() },
            NotFound,
            "ORDER_NOT_FOUND",
            "",
        )
        .await
}

async fn queries(table: &mut Table<'_>) -> Result<()> {
    use Code::{InvalidArgument as Bad, NotFound};
    table
        .query("unknown product", GetProductRequest { product_id: "none".into(), ..Default::default() }, NotFound, "PRODUCT_NOT_FOUND", "")
        .await?;
    table.query("bad product id", GetProductRequest { product_id: "a b".into(), ..Default::default() }, Bad, FIELDS, "product_id").await?;
    table.query("forged token", GetProductRequest { product_id: "p-1".into(), token: "AAAA".into() }, Bad, "INVALID_TOKEN", "").await?;
    table
        .query("forged page token", ListProductsRequest { page_token: "AAAA".into(), ..Default::default() }, Bad, "INVALID_PAGE_TOKEN", "")
        .await?;
    table.query("page of less than nothing", ListProductsRequest { page_size: -1, ..Default::default() }, Bad, FIELDS, "page_size").await?;
    table.query("page of a million", ListProductsRequest { page_size: 1_000_000, ..Default::default() }, Bad, FIELDS, "page_size").await?;
    table.query("batch of nothing", BatchGetProductsRequest::default(), Bad, FIELDS, "product_ids").await?;
    table
        .query(
            "batch of a thousand",
            BatchGetProductsRequest { product_ids: vec!["p-1".into(); 1_000], ..Default::default() },
            Bad,
            FIELDS,
            "product_ids",
        )
        .await?;
    table
        .query("unknown order", GetOrderRequest { order_id: "0".repeat(32), ..Default::default() }, NotFound, "ORDER_NOT_FOUND", "")
        .await?;
    table
        .query("no such day", GetSalesSummaryRequest { from_day: "2026-02-30".into(), ..Default::default() }, Bad, FIELDS, "from_day")
        .await
}
