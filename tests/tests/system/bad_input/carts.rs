use anyhow::Result;
use souk_proto::{
    cart::v1::{query_service_client::QueryServiceClient, *},
    common::v1::Money,
};
use souk_tests::eur;
use tonic::Code::{Aborted, FailedPrecondition as Refused, InvalidArgument as Bad, NotFound};

use super::{Scene, Table};

fn add(customer: &str, product: &str, quantity: i64) -> AddItemRequest {
    AddItemRequest { customer_id: customer.into(), product_id: product.into(), quantity, ..Default::default() }
}

fn set(customer: &str, product: &str, quantity: i64) -> SetItemQuantityRequest {
    SetItemQuantityRequest { customer_id: customer.into(), product_id: product.into(), quantity, ..Default::default() }
}

fn remove(customer: &str, product: &str) -> RemoveItemRequest {
    RemoveItemRequest { customer_id: customer.into(), product_id: product.into(), ..Default::default() }
}

fn clear(customer: &str, etag: &str) -> ClearCartRequest {
    ClearCartRequest { customer_id: customer.into(), etag: etag.into(), ..Default::default() }
}

fn check_out(customer: &str, expected_total: Option<Money>) -> CheckoutRequest {
    CheckoutRequest { customer_id: customer.into(), expected_total, ..Default::default() }
}

pub async fn commands(table: &mut Table) -> Result<()> {
    for quantity in [0, -1, 1_000, i64::MIN] {
        table.command(&format!("{quantity} units"), add("c-2", "p-1", quantity)).await?.names(&["quantity"])?;
    }
    table.command("bad ids", add("c 2", "p 1", 1)).await?.names(&["customer_id", "product_id"])?;
    table.command("unknown product", add("c-2", "none", 1)).await?.says(NotFound, "PRODUCT_NOT_FOUND")?;
    table.command("a draft", add("c-2", "p-draft", 1)).await?.says(Refused, "PRODUCT_NOT_FOR_SALE")?;
    table.command("the thousandth unit", add("c-full", "p-1", 1)).await?.says(Refused, "QUANTITY_LIMIT")?;

    table.command("nothing of it", set("c-full", "p-1", 0)).await?.names(&["quantity"])?;
    table.command("bad ids", set("", "", 1)).await?.names(&["customer_id", "product_id"])?;
    table.command("what is not in the cart", set("c-2", "p-1", 1)).await?.says(Refused, "ITEM_NOT_IN_CART")?;

    table.command("bad ids", remove("c\0", "p\0")).await?.names(&["customer_id", "product_id"])?;
    let stale = RemoveItemRequest { etag: "1-0".into(), ..remove("c-full", "p-1") };
    table.command("stale etag", stale).await?.says(Aborted, "STALE_ETAG")?;
    table.command("bad id and etag", clear("c 2", "W/\"1\"")).await?.names(&["etag", "customer_id"])?;
    table.command("etag of a later version", clear("c-full", "1-9")).await?.says(Aborted, "STALE_ETAG")?;

    table.command("an empty cart", check_out("c-2", None)).await?.says(Refused, "CART_EMPTY")?;
    table.command("bad id", check_out("-", None)).await?.names(&["customer_id"])?;
    table.command("another total", check_out("c-full", Some(eur(1)))).await?.says(Refused, "TOTAL_CHANGED")?;
    let dollars = Money { currency: "USD".into(), minor_units: 99_900 };
    table.command("another currency", check_out("c-full", Some(dollars))).await?.says(Refused, "TOTAL_CHANGED")?;
    let none = Money { currency: String::new(), minor_units: 99_900 };
    table.command("no currency", check_out("c-full", Some(none))).await?.names(&["expected_total.currency"])
}

pub async fn queries(table: &mut Table, scene: &Scene) -> Result<()> {
    let get = |id: &str, token: &str| GetCartRequest { customer_id: id.into(), token: token.into() };
    table.query("a customer without a cart", get("none", "")).await?.says(NotFound, "CART_NOT_FOUND")?;
    table.query("bad id", get("c-1 or 1=1", "")).await?.names(&["customer_id"])?;
    table.query("forged token", get("c-full", "AAAA.AAAA")).await?.tells(Bad, "INVALID_TOKEN", &["token"])?;

    let mut client = QueryServiceClient::connect(scene.system.stack.endpoint("query")).await?;
    let watch = |id: &str, token: &str| WatchCartRequest { customer_id: id.into(), token: token.into() };
    let path = "souk.cart.v1.QueryService/WatchCart";
    table.call(path, "a customer without a cart", client.watch_cart(watch("none", ""))).await?.says(NotFound, "CART_NOT_FOUND")?;
    table.call(path, "bad id", client.watch_cart(watch("c 1", ""))).await?.names(&["customer_id"])?;
    table.call(path, "forged token", client.watch_cart(watch("c-full", "AAAA"))).await?.tells(Bad, "INVALID_TOKEN", &["token"])
}
