//! The steps of `helm/souk/GROWING.md`, walked by `souk up` with the settings of one size after the other over the same data.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, bail, ensure};
use souk_devstack::{DatabaseUrl, Service};
use souk_proto::orders::v1::OrderState;
use souk_tests::{Shop, Site, System, Up};
use sqlx::{AssertSqlSafe, PgPool};

use crate::rendered::config_map;

/// One that `souk seed` does not know.
const PRODUCT: &str = "lamp";
const PRICE: i64 = 250;
const UNITS: i64 = 100;
const PATIENCE: Duration = Duration::from_secs(30);

/// The services of the larger sizes: two of each, behind a pooler.
const APART: [&str; 3] = ["--replicas", "command=2,query=2,projector=2,saga=2", "--pooler"];

/// What somebody knows who has shopped here: orders and the token of the last answer.
#[derive(Default)]
struct Customer {
    token: String,
    paid: Vec<String>,
    waiting: Vec<String>,
}

impl Customer {
    /// Looks at the orders of before by the token of before, pays what has been waiting since then, and places two more.
    async fn shops_at(&mut self, up: &Up) -> Result<()> {
        let session = up.session()?.deadline(Duration::from_secs(60));
        session.merge_token(&self.token);
        let shop = Shop(session);
        let sold = (self.paid.len() + self.waiting.len()) as i64;
        if sold == 0 {
            shop.sell(PRODUCT, PRICE, UNITS).await?;
        }
        // The first answer has all that the token names, so that nothing is waited for but by the query itself.
        for order in &self.waiting {
            ensure!(shop.see(order).await?.state() == OrderState::AwaitingPayment, "order {order} has changed");
        }
        let stock = shop.stock(PRODUCT).await?;
        ensure!((stock.on_hand, stock.reserved) == (UNITS, sold), "{stock:?} after {sold} orders");
        for order in std::mem::take(&mut self.waiting) {
            shop.pay(&order, PRICE).await?;
            self.paid.push(order);
        }
        for order in &self.paid {
            shop.see_in(order, OrderState::Paid, PATIENCE).await?;
        }
        for paid in [true, false] {
            let order = shop.order("c-1", PRODUCT, 1, true).await?;
            ensure!(order.state() == OrderState::AwaitingPayment, "{order:?}");
            if paid {
                shop.pay(&order.order_id, PRICE).await?;
                shop.see_in(&order.order_id, OrderState::Paid, PATIENCE).await?;
                self.paid.push(order.order_id);
            } else {
                self.waiting.push(order.order_id);
            }
        }
        // What the process manager did since then is in no answer of a command: it is looked at once more.
        shop.stock(PRODUCT).await?;
        self.token = shop.0.token();
        up.audit_clean().await
    }
}

/// What a size of the chart sets in the services, as flags of `souk up`. Not the copies of streams: one server cannot keep three.
fn settings_of(size: &str) -> Result<Vec<String>> {
    let (mut settings, mut section) = (BTreeSet::new(), String::new());
    for line in config_map(size, "souk-settings")?.values().flat_map(|text| text.lines()) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
        } else if let Some((key, value)) = line.split_once(" = ")
            && (["command", "projector", "query", "saga"].contains(&section.as_str()) || key == "stream_max_bytes")
        {
            settings.insert(format!("{section}.{key}={value}"));
        }
    }
    ensure!(!settings.is_empty(), "{size} sets nothing");
    Ok(settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]).collect())
}

async fn counted(database: &DatabaseUrl, query: &str) -> Result<i64> {
    let pool = PgPool::connect(&database.url).await?;
    Ok(sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&pool).await?)
}

async fn text(database: &DatabaseUrl, query: &str) -> Result<String> {
    let pool = PgPool::connect(&database.url).await?;
    Ok(sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&pool).await?)
}

#[tokio::test]
async fn a_shop_grows_by_settings_alone_and_keeps_its_data_and_its_tokens() -> Result<()> {
    let (site, mut customer) = (Site::new().await?, Customer::default());

    // 100 users: one process, one database of each side.
    let settings = settings_of("100")?;
    let up = site.up(&settings.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    ensure!(up.facts.services.values().all(|process| *process == up.facts.souk));
    up.souk(&["seed", "--products", "1000", "--customers", "500"]).await?;
    customer.shops_at(&up).await?;
    up.stop().await?;

    // 10 thousand: services apart, two of each, a read replica, a pooler.
    let settings = settings_of("10k")?;
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let up = site.up(&[&APART[..], &["--read-replicas", "1"], &settings].concat()).await?;
    ensure!((up.facts.services.len(), up.facts.standbys.len()) == (8, 1), "{:?}", up.facts);
    ensure!(up.facts.read_databases[0].replicas.len() == 1 && up.facts.write_databases.len() == 1);
    customer.shops_at(&up).await?;
    up.stop().await?;

    // 1 million: two write databases and, to see what becomes of them, two read databases; two replicas.
    let settings = settings_of("1m")?;
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let million = [&APART[..], &["--read-replicas", "2", "--write-shards", "2", "--read-shards", "2"], &settings].concat();
    for _ in 0..2 {
        let up = site.up(&million).await?;
        ensure!((up.facts.write_databases.len(), up.facts.read_databases.len(), up.facts.standbys.len()) == (2, 2, 2));
        customer.shops_at(&up).await?;
        holds_nothing_but_belongs(
            &up.facts.write_databases,
            "installation",
            "placement",
            &["event", "stream_head", "partition_head", "ledger"],
        )
        .await?;
        let views = ["product_view", "order_view", "read_checkpoint"];
        holds_nothing_but_belongs(&up.facts.read_databases, "read_installation", "read_placement", &views).await?;
        up.stop().await?;
    }

    // The way back takes replicas and processes, not databases.
    let refused = site.refuses(&["--write-shards", "1"]).await?;
    ensure!(refused.contains("has 2 write shards, not 1"), "{refused}");
    let up = site.up(&["--read-replicas", "0"]).await?;
    customer.shops_at(&up).await?;
    ensure!(customer.paid.len() == 9 && customer.waiting.len() == 1);
    up.stop().await
}

/// A database that was added later has the tables and the installation's id, and all partitions are where the first start placed them.
async fn holds_nothing_but_belongs(databases: &[DatabaseUrl], installation: &str, placement: &str, tables: &[&str]) -> Result<()> {
    let [first, added] = databases else { bail!("{} databases", databases.len()) };
    for table in tables {
        let count = format!("select count(*) from {table}");
        let (before, after) = (counted(first, &count).await?, counted(added, &count).await?);
        ensure!(before > 0 && after == 0, "{table}: {before} rows in {}, {after} in {}", first.name, added.name);
    }
    let id = format!("select id::text from {installation}");
    let ids = [text(first, &id).await?, text(added, &id).await?];
    ensure!(ids[0] == ids[1], "{installation}: {ids:?}");
    let here = format!("select count(*) from {placement} where database = '{}'", first.name);
    let placed = (counted(first, &here).await?, counted(first, &format!("select count(*) from {placement}")).await?);
    ensure!(placed == (64, 64), "{placement}: {placed:?}");
    Ok(())
}

#[tokio::test]
async fn a_database_that_holds_partitions_and_is_named_no_more_keeps_services_from_starting() -> Result<()> {
    let mut system = System::start(|options| (options.write_shards, options.read_shards) = (Some(2), Some(2))).await?;
    Shop(system.session()?).sell(PRODUCT, PRICE, UNITS).await?;
    let sides = [
        ("write", system.stack.write_databases(), Service::Command, "is placed in 'write-2', which is not configured"),
        ("read", system.stack.read_databases(), Service::Projector, "logs are placed in a read database 'read-2' that is not configured"),
    ];
    for (side, databases, service, why) in sides {
        system.stop(service).await?;
        system.stack.lead_to(side, databases[..1].to_vec())?;
        let refused = system.start_again(service).await.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(refused.contains(why), "{side}: {refused}");
        system.stack.lead_to(side, databases)?;
        system.start_again(service).await?;
    }
    system.audit_clean().await.map(drop)
}
