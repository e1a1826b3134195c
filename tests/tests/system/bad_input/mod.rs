//! Hostile requests to every RPC: each is refused with a code, a reason and the bad fields, and changes nothing.

mod carts;
mod catalog;
mod internal;
mod orders;
mod stock;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
};

use anyhow::{Result, bail, ensure};
use prost::Message;
use souk_client::{Command, Query, Session};
use souk_proto::{
    cart::v1::AddItemRequest,
    catalog::v1::{CreateProductRequest, ProductDetails},
    orders::v1::OrderState,
    stock::v1::{ReceiveStockRequest, ReserveStockRequest},
};
use souk_runtime::ERROR_DOMAIN;
use souk_tests::{Shop, System};
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

const LEAST_CASES: usize = 100;
const NO_ORDER: &str = "00000000000000000000000000000000";

/// Sends hostile requests, and counts them by the RPC they go to.
struct Table {
    session: Session,
    /// `package.Service/Method` → cases.
    cases: BTreeMap<String, usize>,
}

/// How a hostile request was refused.
#[must_use = "a case looks at its refusal"]
struct Refusal {
    what: String,
    status: Status,
}

impl Table {
    async fn command<C: Command>(&mut self, what: &str, command: C) -> Result<Refusal> {
        let outcome = self.session.command(command).await.map(drop).map_err(|error| error.status().clone());
        self.note(C::PATH, what, outcome)
    }

    async fn query<Q: Query>(&mut self, what: &str, query: Q) -> Result<Refusal> {
        let outcome = self.session.query(query).await.map(drop).map_err(|error| error.status().clone());
        self.note(Q::PATH, what, outcome)
    }

    /// A call by a generated client, of an RPC the session does not know.
    async fn call<T>(&mut self, path: &str, what: &str, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<Refusal> {
        let outcome = call.await.map(drop);
        self.note(path, what, outcome)
    }

    fn note(&mut self, path: &str, what: &str, outcome: Result<(), Status>) -> Result<Refusal> {
        let path = path.trim_start_matches('/');
        let what = format!("{path}, {what}");
        *self.cases.entry(path.to_owned()).or_default() += 1;
        match outcome {
            Err(status) => Ok(Refusal { what, status }),
            Ok(()) => bail!("{what}: accepted"),
        }
    }
}

impl Refusal {
    /// INVALID_ARGUMENT for these fields and no others.
    fn names(self, fields: &[&str]) -> Result<()> {
        self.tells(Code::InvalidArgument, "INVALID_FIELDS", fields)
    }

    /// A code and a reason, no matter of single fields.
    fn says(self, code: Code, reason: &str) -> Result<()> {
        self.tells(code, reason, &[])
    }

    fn tells(self, code: Code, reason: &str, fields: &[&str]) -> Result<()> {
        let mut named = self.fields();
        named.dedup();
        ensure!(named == fields, "{}: want {fields:?} named, got {named:?} in {:?}", self.what, self.status);
        self.is(code, reason)
    }

    /// A field, and as many of the other bad ones as fit into the answer.
    fn tells_of(self, code: Code, reason: &str, field: &str) -> Result<()> {
        let named = self.fields();
        ensure!(named.first().is_some_and(|first| first == field), "{}: want {field} named, got {named:?}", self.what);
        self.is(code, reason)
    }

    fn is(&self, code: Code, reason: &str) -> Result<()> {
        let details = self.status.get_details_error_info();
        let told = details.as_ref().map(|info| (info.domain.as_str(), info.reason.as_str()));
        let want = (code, Some((ERROR_DOMAIN, reason)));
        ensure!((self.status.code(), told) == want, "{}: want {code:?} {reason}, got {told:?} of {:?}", self.what, self.status);
        Ok(())
    }

    /// The bad fields it names.
    fn fields(&self) -> Vec<String> {
        let bad = self.status.get_details_bad_request();
        bad.into_iter().flat_map(|bad| bad.field_violations).map(|violation| violation.field).collect()
    }
}

/// What the cases are about: p-1 on sale with 10 units, of which an order and a reservation hold one each.
struct Scene {
    system: System,
    shop: Shop,
    /// An order that awaits payment of 100.
    order: String,
    /// A request id that stock of p-1 was received under.
    used: String,
}

async fn scene() -> Result<Scene> {
    let system = System::start(|_| {}).await?;
    let shop = Shop(system.session()?);
    shop.sell("p-1", 100, 9).await?;
    let used = Uuid::now_v7().to_string();
    shop.0.command(ReceiveStockRequest { request_id: used.clone(), product_id: "p-1".into(), quantity: 1 }).await?;
    shop.0.command(CreateProductRequest { product_id: "p-draft".into(), ..Default::default() }).await?;
    let details = Some(ProductDetails { title: "Unpriced".into(), ..Default::default() });
    shop.0.command(CreateProductRequest { product_id: "p-unpriced".into(), details, ..Default::default() }).await?;
    let held = ReserveStockRequest { product_id: "p-1".into(), order_id: "o-held".into(), quantity: 1, ..Default::default() };
    shop.0.command(held).await?;
    let full = AddItemRequest { customer_id: "c-full".into(), product_id: "p-1".into(), quantity: 999, ..Default::default() };
    shop.0.command(full).await?;
    let order = shop.order("c-1", "p-1", 1, true).await?;
    ensure!(order.state() == OrderState::AwaitingPayment, "{order:?}");
    Ok(Scene { system, shop, order: order.order_id, used })
}

#[tokio::test]
async fn hostile_requests_are_refused_with_a_reason_and_change_nothing() -> Result<()> {
    let scene = scene().await?;
    let before = scene.system.audit_clean().await?["checked"]["events"].clone();
    let mut table = Table { session: scene.shop.0.clone(), cases: BTreeMap::new() };
    catalog::commands(&mut table).await?;
    catalog::queries(&mut table, &scene).await?;
    stock::commands(&mut table, &scene).await?;
    stock::queries(&mut table).await?;
    carts::commands(&mut table).await?;
    carts::queries(&mut table, &scene).await?;
    orders::commands(&mut table, &scene).await?;
    orders::queries(&mut table, &scene).await?;
    internal::log_and_look_ups(&mut table, &scene).await?;
    internal::process(&mut table, &scene).await?;
    internal::parked(&mut table, &scene).await?;
    internal::topology(&mut table, &scene).await?;
    let (public, internal) = methods();
    let left_out: Vec<_> = public.iter().filter(|method| !table.cases.contains_key(*method)).collect();
    ensure!(left_out.is_empty(), "no case for {left_out:?}");
    let cases: usize = table.cases.values().sum();
    ensure!(cases >= LEAST_CASES, "only {cases} cases");
    println!("{cases} hostile requests to {} methods refused, all {} public ones among them", table.cases.len(), public.len());
    let garbled = wire::garbage(&scene, &public, &internal).await?;
    println!("{garbled} more that are no message, in no place for them, too large or with bad metadata");
    ensure!(scene.system.audit_clean().await?["checked"]["events"] == before, "a refused request left events");
    ensure!(scene.shop.stock("p-1").await?.available == 8);
    Ok(())
}

/// All methods of the contracts as `package.Service/Method`: those for callers, and those for our own processes.
fn methods() -> (BTreeSet<String>, BTreeSet<String>) {
    let set = prost_types::FileDescriptorSet::decode(souk_proto::DESCRIPTORS).expect("our own descriptors");
    let services = set.file.iter().flat_map(|file| file.service.iter().map(move |service| (file, service)));
    let methods = services.flat_map(|(file, service)| {
        service.method.iter().map(move |method| format!("{}.{}/{}", file.package(), service.name(), method.name()))
    });
    methods.partition(|method| method.contains(".CommandService/") || method.contains(".QueryService/"))
}
