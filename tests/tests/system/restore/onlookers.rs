use std::{collections::BTreeMap, fmt::Display, time::Duration};

use anyhow::{Context, Result, ensure};
use souk_client::{Error, Souk};
use souk_proto::{catalog::v1::ListProductsRequest, stock::v1::GetAvailabilityRequest};
use souk_tests::System;
use tokio::{sync::watch, task::JoinHandle};

/// How old an answer may be (`query.unproven_after`).
const BOUND: Duration = Duration::from_secs(3);
/// Shorter than the client waits before it asks again.
const PATIENCE: Duration = Duration::from_millis(200);

/// Readers without tokens that ask all the time, of every replica, for what exists before and after the log goes back: they are
/// answered with no less than the part that stays, or not at all.
pub struct Onlookers {
    stop: watch::Sender<bool>,
    looking: Vec<JoinHandle<Result<Looks>>>,
}

#[derive(Default)]
struct Looks {
    answered: u64,
    rebuilding: u64,
    failed: u64,
}

impl Onlookers {
    /// Begins once whatever old answer is allowed shows each product with these units received at least.
    pub async fn start(system: &System, least: &BTreeMap<String, i64>) -> Result<Self> {
        tokio::time::sleep(BOUND).await;
        let (stop, _) = watch::channel(false);
        let look = |query| {
            let souk = system.client_of(1, query)?;
            Ok(tokio::spawn(look_on(souk, least.clone(), stop.subscribe())))
        };
        let looking = [1, 2].into_iter().map(look).collect::<Result<_>>()?;
        Ok(Self { stop, looking })
    }

    pub async fn end(self) -> Result<()> {
        self.stop.send_replace(true);
        for (looking, query) in self.looking.into_iter().zip(1..) {
            let Looks { answered, rebuilding, failed } = looking.await??;
            println!("replica {query}: {answered} looks answered, {rebuilding} met views folded anew, {failed} failed otherwise");
            ensure!(answered > 0, "nobody was answered");
        }
        Ok(())
    }
}

async fn look_on(souk: Souk, least: BTreeMap<String, i64>, stop: watch::Receiver<bool>) -> Result<Looks> {
    let mut looks = Looks::default();
    while !*stop.borrow() {
        for (product_id, least) in &least {
            let session = souk.session().deadline(PATIENCE);
            let asked = GetAvailabilityRequest { product_id: product_id.clone(), ..Default::default() };
            let seen = session.query(asked).await.map(|reply| reply.availability.unwrap_or_default().received);
            looks.count(&seen, *least).with_context(|| product_id.clone())?;
        }
        let asked = ListProductsRequest { page_size: 1_000, ..Default::default() };
        let listed = souk.session().deadline(PATIENCE).query(asked).await;
        looks.count(&listed.map(|reply| reply.products.len()), least.len()).context("products listed")?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(looks)
}

impl Looks {
    fn count<T: PartialOrd + Display>(&mut self, seen: &Result<T, Error>, least: T) -> Result<()> {
        match seen {
            Ok(seen) => ensure!(*seen >= least, "{seen} shown, there are {least} at least"),
            Err(error) => ensure!(!error.reason().ends_with("_NOT_FOUND"), "{error}"),
        }
        let count = match seen {
            Ok(_) => &mut self.answered,
            Err(error) if error.reason() == "VIEW_REBUILDING" => &mut self.rebuilding,
            Err(_) => &mut self.failed,
        };
        *count += 1;
        Ok(())
    }
}
