use std::time::Duration;

use anyhow::Result;
use souk_devstack::Service;
use souk_proto::catalog::v1::{GetProductRequest, query_service_client::QueryServiceClient};
use tonic::transport::Channel;

use super::{Table, filled};
use crate::{effort::Effort, pairs::median_of, record::progress, sources::product_id, stage::Stage};

/// Resident memory of a service's first replica, which has nothing to do: the median over a second.
async fn memory(stage: &Stage, service: Service) -> Result<f64> {
    let mut readings = Vec::new();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        readings.push(stage.system.memory(service)? as f64);
    }
    Ok(median_of(readings))
}

pub(super) async fn table(effort: Effort) -> Result<Table> {
    let mut table = Table::new("Memory", &["what", "how many", "bytes each"]);
    progress("memory of views, connections and partitions");
    let products = effort.of(100_000, 100_000, 300);
    let mut stage = filled(effort, 1, |_| {}).await?;
    let before = memory(&stage, Service::Query).await?;
    // The cache takes rows from the change feed, before anybody asks for them.
    stage.create(2, products - 1).await?;
    stage.caught_up().await?;
    stage.products = products;
    stage.warm_up().await?;
    let each = (memory(&stage, Service::Query).await? - before) / products as f64;
    let what = "product of 1 KB and its availability in the query service's cache";
    table.row(vec![what.to_owned(), products.to_string(), format!("{each:.0}")]);

    let before = memory(&stage, Service::Query).await?;
    let connections = effort.of(1_000, 1_000, 50);
    let mut held = Vec::new();
    for _ in 0..connections {
        held.push(idle(&stage).await?);
    }
    let each = (memory(&stage, Service::Query).await? - before) / connections as f64;
    drop(held);
    stage.audit().await?;
    table.row(vec!["idle connection to the query service".to_owned(), connections.to_string(), format!("{each:.0}")]);
    drop(stage);

    let mut sizes = Vec::new();
    let counts = effort.of([64_u16, 512], [64, 512], [8, 16]);
    for count in counts {
        let stage = filled(effort, 1, |options| options.partitions = Some(count)).await?;
        let mut of_all = Vec::new();
        for service in Service::ALONE {
            of_all.push(memory(&stage, service).await?);
        }
        sizes.push(of_all);
    }
    let more = f64::from(counts[1] - counts[0]);
    for (index, service) in Service::ALONE.into_iter().enumerate() {
        let each = (sizes[1][index] - sizes[0][index]) / more;
        table.row(vec![format!("idle partition, {} service", service.name()), more.to_string(), format!("{each:.0}")]);
    }
    Ok(table)
}

/// A connection on which something was asked once.
async fn idle(stage: &Stage) -> Result<QueryServiceClient<Channel>> {
    let mut client = QueryServiceClient::connect(stage.system.stack.urls("query")).await?;
    client.get_product(GetProductRequest { product_id: product_id(1), ..Default::default() }).await?;
    Ok(client)
}
