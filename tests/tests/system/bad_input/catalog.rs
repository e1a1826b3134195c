use anyhow::{Result, ensure};
use souk_proto::{catalog::v1::*, common::v1::Money};
use souk_tests::eur;
use tonic::Code::{Aborted, AlreadyExists, FailedPrecondition as Refused, InvalidArgument as Bad, NotFound};

use super::{Scene, Table};

fn create(id: &str) -> CreateProductRequest {
    CreateProductRequest { product_id: id.into(), ..Default::default() }
}

fn under(request_id: &str) -> CreateProductRequest {
    CreateProductRequest { request_id: request_id.into(), ..create("p-9") }
}

fn texts(details: ProductDetails) -> CreateProductRequest {
    CreateProductRequest { details: Some(details), ..create("p-9") }
}

fn tags(tags: Vec<String>) -> CreateProductRequest {
    texts(ProductDetails { tags, ..Default::default() })
}

fn update(id: &str, details: ProductDetails, paths: &[&str]) -> UpdateProductRequest {
    let paths = paths.iter().map(|path| path.to_string()).collect();
    let update_mask = Some(prost_types::FieldMask { paths });
    UpdateProductRequest { product_id: id.into(), details: Some(details), update_mask, ..Default::default() }
}

fn price(id: &str, price: Money) -> SetPriceRequest {
    SetPriceRequest { product_id: id.into(), price: Some(price), ..Default::default() }
}

fn publish(id: &str, etag: &str) -> PublishProductRequest {
    PublishProductRequest { product_id: id.into(), etag: etag.into(), ..Default::default() }
}

fn discontinue(id: &str) -> DiscontinueProductRequest {
    DiscontinueProductRequest { product_id: id.into(), ..Default::default() }
}

pub async fn commands(table: &mut Table) -> Result<()> {
    creating(table).await?;
    let (none, lamp) = (ProductDetails::default, ProductDetails { title: "Lamp".into(), ..Default::default() });
    table.command("unknown path in mask", update("p-1", none(), &["state"])).await?.names(&["update_mask", "details"])?;
    let countless = update("p-1", none(), &["an unheard-of path of many characters"; 10_000]);
    table.command("countless unknown paths", countless).await?.names(&["update_mask"])?;
    table.command("nothing to change", update("p-1", none(), &[])).await?.names(&["details"])?;
    table.command("title cleared", update("p-1", none(), &["title"])).await?.says(Refused, "TITLE_REQUIRED")?;
    table.command("unknown product", update("none", lamp.clone(), &[])).await?.says(NotFound, "PRODUCT_NOT_FOUND")?;
    let stale = UpdateProductRequest { etag: "1-1".into(), ..update("p-1", lamp, &[]) };
    table.command("stale etag", stale).await?.says(Aborted, "STALE_ETAG")?;

    table.command("negative price", price("p-1", eur(-1))).await?.names(&["price"])?;
    table.command("unheard-of price", price("p-1", eur(i64::MAX))).await?.names(&["price"])?;
    for currency in ["", "eur", "EURO", "€€€", "E\0R"] {
        let money = Money { currency: currency.into(), minor_units: 1 };
        table.command(&format!("currency {currency:?}"), price("p-1", money)).await?.names(&["price.currency"])?;
    }
    table.command("no price", SetPriceRequest { price: None, ..price("p-1", eur(1)) }).await?.names(&["price"])?;
    table.command("unknown product", price("none", eur(1))).await?.says(NotFound, "PRODUCT_NOT_FOUND")?;
    let abroad = SetPriceRequest { etag: "2-3".into(), ..price("p-1", eur(7)) };
    table.command("etag of another region", abroad).await?.says(Aborted, "STALE_ETAG")?;

    for etag in ["*", "1", "1-", "-1", "1-2-3", "1--2", "1-99999999999999999999", "99999-1"] {
        table.command(&format!("etag {etag:?}"), publish("p-1", etag)).await?.names(&["etag"])?;
    }
    table.command("stale etag", publish("p-1", "1-1")).await?.says(Aborted, "STALE_ETAG")?;
    table.command("unknown product", publish("none", "")).await?.says(NotFound, "PRODUCT_NOT_FOUND")?;
    table.command("no title", publish("p-draft", "")).await?.says(Refused, "TITLE_REQUIRED")?;
    table.command("no price", publish("p-unpriced", "")).await?.says(Refused, "PRICE_REQUIRED")?;

    table.command("bad id", discontinue("p/1")).await?.names(&["product_id"])?;
    table.command("unknown product", discontinue("none")).await?.says(NotFound, "PRODUCT_NOT_FOUND")?;
    table.command("a draft", discontinue("p-draft")).await?.says(Refused, "NOT_PUBLISHED")
}

async fn creating(table: &mut Table) -> Result<()> {
    let long = "x".repeat(65);
    for id in ["", "p 1", "-p", "eu.p-1", "p\0", &long, "pröduct", "p-1'; drop table event; --", "../p-1", "${jndi:ldap://x}"] {
        table.command(&format!("id {id:?}"), create(id)).await?.names(&["product_id"])?;
    }
    table.command("taken id", create("p-1")).await?.says(AlreadyExists, "PRODUCT_ALREADY_EXISTS")?;
    for id in ["x", "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "01890a5dac96774bbcceb302099a8057"] {
        table.command(&format!("request id {id:?}"), under(id)).await?.names(&["request_id"])?;
    }
    let old = table.command("old request id", under("01800000-0000-7000-8000-000000000000")).await?;
    old.tells(Bad, "REQUEST_ID_TOO_OLD", &["request_id"])?;
    let far = table.command("request id from the future", under("0fffffff-ffff-7000-8000-000000000000")).await?;
    far.tells(Bad, "REQUEST_ID_TOO_NEW", &["request_id"])?;
    let text = |change: fn(&mut ProductDetails)| {
        let mut details = ProductDetails::default();
        change(&mut details);
        texts(details)
    };
    table.command("NUL in title", text(|details| details.title = "a\0b".into())).await?.names(&["details.title"])?;
    table.command("long title", text(|details| details.title = "x".repeat(201))).await?.names(&["details.title"])?;
    table.command("long description", text(|details| details.description = "x".repeat(10_001))).await?.names(&["details.description"])?;
    table.command("long category", text(|details| details.category = "x".repeat(65))).await?.names(&["details.category"])?;
    table.command("too many tags", tags((0..21).map(|tag| format!("t{tag}")).collect())).await?.names(&["details.tags"])?;
    table.command("a hundred thousand tags", tags(vec!["t".into(); 100_000])).await?.names(&["details.tags"])?;
    let both = tags(vec![String::new(), "fine".into(), "x".repeat(33)]);
    table.command("empty and long tag", both).await?.names(&["details.tags[0]", "details.tags[2]"])?;
    table.command("NUL in tag", tags(vec!["a\0".into()])).await?.names(&["details.tags[0]"])?;
    let free = CreateProductRequest { price: Some(Money { currency: "EUR".into(), minor_units: -5 }), ..create("p-9") };
    table.command("negative price", free).await?.names(&["price"])?;
    let everything = CreateProductRequest { request_id: "x".into(), product_id: " ".into(), ..text(|details| details.title = "\0".into()) };
    table.command("everything", everything).await?.names(&["request_id", "product_id", "details.title"])
}

pub async fn queries(table: &mut Table, scene: &Scene) -> Result<()> {
    let get = |id: &str, token: &str| GetProductRequest { product_id: id.into(), token: token.into() };
    table.query("unknown product", get("none", "")).await?.says(NotFound, "PRODUCT_NOT_FOUND")?;
    table.query("bad id", get("a b", "")).await?.names(&["product_id"])?;
    let token = scene.shop.0.token();
    let cut = &token[1..];
    for forged in ["AAAA", ".", "ü", cut, &"A.".repeat(100_000)] {
        let refused = table.query(&format!("token {forged:.8}"), get("p-1", forged)).await?;
        refused.tells(Bad, "INVALID_TOKEN", &["token"])?;
    }
    table.query("bad id and token", get("", "AAAA")).await?.names(&["product_id", "token"])?;

    let batch = |ids: &[&str]| BatchGetProductsRequest { product_ids: ids.iter().map(|id| id.to_string()).collect(), ..Default::default() };
    table.query("nothing", batch(&[])).await?.names(&["product_ids"])?;
    table.query("a thousand", batch(&["p-1"; 1_000])).await?.names(&["product_ids"])?;
    table.query("a bad id among good ones", batch(&["p-1", "p 1", "p-1"])).await?.names(&["product_ids[1]"])?;

    let refused = table.query("a hundred bad ids", batch(&[" "; 100])).await?;
    ensure!(refused.fields().len() > 20, "only {:?}", refused.fields());
    refused.tells_of(Bad, "INVALID_FIELDS", "product_ids[0]")?;

    let list = || ListProductsRequest { page_size: 1, ..Default::default() };
    let more = scene.shop.0.query(list()).await?.next_page_token;
    table.query("page of less than nothing", ListProductsRequest { page_size: -1, ..list() }).await?.names(&["page_size"])?;
    table.query("page of a million", ListProductsRequest { page_size: 1_000_000, ..list() }).await?.names(&["page_size"])?;
    table.query("no such state", ListProductsRequest { state: 99, ..list() }).await?.names(&["state"])?;
    table.query("long tag", ListProductsRequest { tag: "x".repeat(65), ..list() }).await?.names(&["tag"])?;
    table.query("NUL in category", ListProductsRequest { category: "\0".into(), ..list() }).await?.names(&["category"])?;
    let forged = table.query("forged page token", ListProductsRequest { page_token: "AAAA".into(), ..list() }).await?;
    forged.tells(Bad, "INVALID_PAGE_TOKEN", &["page_token"])?;
    let other = ListProductsRequest { page_token: more, tag: "lamp".into(), ..list() };
    table.query("page token of another filter", other).await?.tells(Bad, "INVALID_PAGE_TOKEN", &["page_token"])
}
