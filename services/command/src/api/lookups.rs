use std::{collections::BTreeMap, time::Duration};

use prost::Message;
use souk_domain::{Catalog, OrderId, ProductFacts, ProductId, ProductStatus};
use souk_event_sourcing::{LogId, Region, Version};
use souk_proto::{
    catalog::v1::{
        LookUpProductsRequest, LookUpProductsResponse, ProductFacts as WireFacts, ProductState, lookup_service_server::LookupService,
    },
    orders::v1::{LookUpOrderRequest, LookUpOrderResponse, lookup_service_server::LookupService as OrderLookupService},
};
use souk_runtime::Violations;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};

use super::{convert, failure::failure, route::is_not_owner};
use crate::{
    committer::CommandError,
    gateway::Gateway,
    ownership::{Hop, Outgoing, unreached},
};

/// Most products of one look-up: the lines of a full cart.
const MAX_LOOK_UPS: usize = 100;
const LOOK_UP_PRODUCTS: &str = "souk.catalog.v1.LookupService/LookUpProducts";
const LOOK_UP_ORDER: &str = "souk.orders.v1.LookupService/LookUpOrder";
/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait before an owner is asked again.
const PAUSE: Duration = Duration::from_millis(25);

/// Facts of products: from their owners, one question per owner; of other regions from their copies here. Their home is asked for
/// what is not copied yet, and for what the copy does not show on sale: it may have been published a moment ago.
///
/// # Errors
/// As [`CommandError`] says.
pub(super) async fn products(gateway: &Gateway, products: impl IntoIterator<Item = ProductId>) -> Result<Catalog, CommandError> {
    let until = Instant::now() + gateway.takeover_wait();
    let (mut open, mut abroad): (BTreeMap<LogId, Vec<ProductId>>, Vec<_>) = Default::default();
    for product in products {
        match gateway.log(product.key())? {
            log if log.region == gateway.region() => open.entry(log).or_default().push(product),
            log => abroad.push((log, product)),
        }
    }
    let mut catalog = products_abroad(gateway, abroad).await?;
    loop {
        // Owner → its products; the empty address is this process.
        let mut by_owner: BTreeMap<String, Vec<(LogId, ProductId)>> = BTreeMap::new();
        for (log, products) in std::mem::take(&mut open) {
            let owner = if gateway.owns(log) { None } else { gateway.home(log) };
            let address = owner.map(|home| home.addresses.internal).unwrap_or_default();
            by_owner.entry(address).or_default().extend(products.into_iter().map(|product| (log, product)));
        }
        let asked = by_owner.into_iter().map(|(owner, wanted)| async move {
            let products = wanted.iter().map(|(_, product)| product.clone()).collect();
            let found =
                if owner.is_empty() { products_here(gateway, products).await } else { products_there(gateway, &owner, products).await };
            (wanted, found)
        });
        let mut missed = None;
        for (wanted, found) in futures::future::join_all(asked).await {
            match found {
                Ok(found) => catalog.extend(found),
                Err(CommandError::NotOwner(log)) => {
                    missed = Some(log);
                    for (log, product) in wanted {
                        open.entry(log).or_default().push(product);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let Some(log) = missed else { return Ok(catalog) };
        wait(gateway, log, until).await?;
    }
}

/// Whether an order counts on its reservations, from its owner.
///
/// # Errors
/// As [`CommandError`] says.
pub(super) async fn order_needs_stock(gateway: &Gateway, order: OrderId) -> Result<bool, CommandError> {
    let until = Instant::now() + gateway.takeover_wait();
    let log = gateway.log(order.key())?;
    if log.region != gateway.region() {
        // Whether units are still needed must not be decided on what was true a moment ago.
        let reply: LookUpOrderResponse =
            ask_home(gateway, log.region, LOOK_UP_ORDER, LookUpOrderRequest { order_id: order.to_string() }).await?;
        return Ok(reply.needs_stock);
    }
    loop {
        let home = if gateway.owns(log) { None } else { gateway.home(log) };
        let found = match home {
            None => order_here(gateway, order).await,
            Some(home) => {
                let request = LookUpOrderRequest { order_id: order.to_string() };
                let reply = ask::<_, LookUpOrderResponse>(gateway, &home.addresses.internal, LOOK_UP_ORDER, request, log).await;
                reply.map(|reply| reply.needs_stock)
            }
        };
        match found {
            Err(CommandError::NotOwner(log)) => wait(gateway, log, until).await?,
            found => return found,
        }
    }
}

async fn wait(gateway: &Gateway, log: LogId, until: Instant) -> Result<(), CommandError> {
    if Instant::now() + PAUSE >= until {
        return Err(CommandError::NotOwner(log));
    }
    gateway.directory().ask();
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

async fn products_here(gateway: &Gateway, products: Vec<ProductId>) -> Result<Catalog, CommandError> {
    let mut by_log: BTreeMap<LogId, Vec<ProductId>> = BTreeMap::new();
    for product in products {
        by_log.entry(gateway.log(product.key())?).or_default().push(product);
    }
    let asked = by_log.into_iter().map(|(log, products)| async move {
        let streams = products.iter().map(ProductId::stream).collect();
        let seen = gateway.read(log, streams).await?;
        Ok::<_, CommandError>(products.into_iter().zip(seen.entities).map(|(product, (entity, version))| {
            let facts = entity.as_product().and_then(|state| state.facts(version));
            (product, facts)
        }))
    });
    let answers = futures::future::try_join_all(asked).await?;
    Ok(answers.into_iter().flatten().collect())
}

async fn products_there(gateway: &Gateway, owner: &str, products: Vec<ProductId>) -> Result<Catalog, CommandError> {
    let log = gateway.log(products[0].key())?;
    let product_ids = products.iter().map(ToString::to_string).collect();
    let reply = ask(gateway, owner, LOOK_UP_PRODUCTS, LookUpProductsRequest { product_ids }, log).await?;
    told(products, reply)
}

async fn products_abroad(gateway: &Gateway, wanted: Vec<(LogId, ProductId)>) -> Result<Catalog, CommandError> {
    let mut catalog = Catalog::new();
    let mut unknown: BTreeMap<Region, Vec<ProductId>> = BTreeMap::new();
    for (log, product) in wanted {
        let copy = gateway.read_copy(log, product.stream()).await?;
        let facts = copy.as_ref().map(|(entity, version)| entity.as_product().and_then(|state| state.facts(*version)));
        let for_sale = facts.as_ref().is_some_and(|facts| facts.as_ref().is_some_and(|facts| facts.status == ProductStatus::Published));
        if !for_sale {
            unknown.entry(log.region).or_default().push(product.clone());
        }
        if let Some(facts) = facts {
            catalog.insert(product, facts);
        }
    }
    for (region, products) in unknown {
        let product_ids = products.iter().map(ToString::to_string).collect();
        match ask_home(gateway, region, LOOK_UP_PRODUCTS, LookUpProductsRequest { product_ids }).await {
            Ok(reply) => catalog.extend(told(products, reply)?),
            Err(CommandError::HomeAway(_)) if products.iter().all(|product| catalog.contains_key(product)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(catalog)
}

fn told(products: Vec<ProductId>, reply: LookUpProductsResponse) -> Result<Catalog, CommandError> {
    let mut catalog: Catalog = products.into_iter().map(|product| (product, None)).collect();
    for found in reply.products {
        let (product, facts) = facts(&found).ok_or(CommandError::DamagedReply)?;
        catalog.insert(product, Some(facts));
    }
    Ok(catalog)
}

/// One question to another replica; one that is not the owner, or not there, is [`CommandError::NotOwner`].
async fn ask<M, R>(gateway: &Gateway, to: &str, method: &'static str, message: M, log: LogId) -> Result<R, CommandError>
where
    M: Message + 'static,
    R: Message + Default + 'static,
{
    let outgoing = Outgoing { to, hop: Hop::Owner, method, metadata: MetadataMap::new(), patience: PATIENCE };
    match gateway.peers().call(outgoing, message).await {
        Ok(response) => Ok(response.into_inner()),
        Err(status) if is_not_owner(&status) || unreached(&status) => Err(CommandError::NotOwner(log)),
        Err(status) if status.code() == Code::ResourceExhausted => Err(CommandError::Overloaded),
        Err(status) => {
            tracing::warn!(to, method, %status, "a look-up failed");
            Err(CommandError::Unavailable)
        }
    }
}

/// One question to another region, which asks the owner there. It changes nothing, so that it may be asked anew.
async fn ask_home<M, R>(gateway: &Gateway, region: Region, method: &'static str, message: M) -> Result<R, CommandError>
where
    M: Message + Clone + 'static,
    R: Message + Default + 'static,
{
    for to in &gateway.ways_to(region) {
        let outgoing = Outgoing { to, hop: Hop::Region, method, metadata: MetadataMap::new(), patience: PATIENCE };
        match gateway.peers().call(outgoing, message.clone()).await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => tracing::debug!(to, method, %status, "another region did not tell"),
        }
    }
    Err(CommandError::HomeAway(region))
}

async fn order_here(gateway: &Gateway, order: OrderId) -> Result<bool, CommandError> {
    let seen = gateway.read(gateway.log(order.key())?, vec![order.stream()]).await?;
    Ok(seen.entities[0].0.as_order().is_some_and(|order| order.status.needs_stock()))
}

/// Facts of products for other owners, which are told only what is owned here, and for other regions.
pub struct CatalogLookups(pub Gateway);

#[tonic::async_trait]
impl LookupService for CatalogLookups {
    async fn look_up_products(&self, request: Request<LookUpProductsRequest>) -> Result<Response<LookUpProductsResponse>, Status> {
        let from_abroad = Hop::of(request.metadata()) == Some(Hop::Region);
        let sent = request.into_inner().product_ids;
        let mut bad = Violations::new();
        bad.require((1..=MAX_LOOK_UPS).contains(&sent.len()), "product_ids", "want 1–100 ids");
        let products: Vec<_> = (sent.iter().take(MAX_LOOK_UPS).enumerate())
            .filter_map(|(index, id)| bad.check(format!("product_ids[{index}]"), ProductId::new(id)))
            .collect();
        bad.finish()?;
        let found = if from_abroad { self::products(&self.0, products).await } else { products_here(&self.0, products).await };
        let catalog = found.map_err(failure)?;
        let products = catalog.into_iter().filter_map(|(product, facts)| {
            let facts = facts?;
            Some(WireFacts {
                product_id: product.to_string(),
                state: product_state(facts.status).into(),
                price: facts.price.map(convert::to_money),
                version: facts.version.0,
            })
        });
        Ok(Response::new(LookUpProductsResponse { products: products.collect() }))
    }
}

/// States of orders for other owners, which are told only what is owned here, and for other regions.
pub struct OrderLookups(pub Gateway);

#[tonic::async_trait]
impl OrderLookupService for OrderLookups {
    async fn look_up_order(&self, request: Request<LookUpOrderRequest>) -> Result<Response<LookUpOrderResponse>, Status> {
        let mut bad = Violations::new();
        let order = bad.check("order_id", request.get_ref().order_id.parse::<OrderId>());
        bad.finish()?;
        let needs_stock = match order {
            Some(order) if Hop::of(request.metadata()) == Some(Hop::Region) => order_needs_stock(&self.0, order).await.map_err(failure)?,
            Some(order) => order_here(&self.0, order).await.map_err(failure)?,
            None => false,
        };
        Ok(Response::new(LookUpOrderResponse { needs_stock }))
    }
}

fn facts(sent: &WireFacts) -> Option<(ProductId, ProductFacts)> {
    let status = match sent.state() {
        ProductState::Unspecified => ProductStatus::Missing,
        ProductState::Draft => ProductStatus::Draft,
        ProductState::Published => ProductStatus::Published,
        ProductState::Discontinued => ProductStatus::Discontinued,
    };
    let price = match &sent.price {
        Some(price) => Some(convert::money("price", Some(price), &mut Violations::new())?),
        None => None,
    };
    Some((ProductId::new(&sent.product_id).ok()?, ProductFacts { status, price, version: Version(sent.version) }))
}

fn product_state(status: ProductStatus) -> ProductState {
    match status {
        ProductStatus::Missing => ProductState::Unspecified,
        ProductStatus::Draft => ProductState::Draft,
        ProductStatus::Published => ProductState::Published,
        ProductStatus::Discontinued => ProductState::Discontinued,
    }
}
