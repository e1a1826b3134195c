use anyhow::{Context, Result};
use async_nats::jetstream;
use futures::{StreamExt, TryStreamExt, stream};
use souk_devstack::Service;

use crate::{
    record::progress,
    stage::{Stage, sum},
};

/// Streams of JetStream.
const PARTITIONS: u64 = 64;

/// Bytes by place, of all databases and streams.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    pub events: i64,
    pub event_indexes: i64,
    pub ledger: i64,
    pub heads: i64,
    pub wal: i64,
    pub views: i64,
    pub jetstream: i64,
}

impl Places {
    /// In the write databases, without their WAL.
    const fn stored(&self) -> i64 {
        self.events + self.event_indexes + self.ledger + self.heads
    }

    /// What there is now.
    ///
    /// # Errors
    /// When a server cannot be asked.
    pub async fn of(stage: &Stage) -> Result<Self> {
        let (write, read) = (stage.system.write_pools().await?, stage.system.read_pools().await?);
        let size = async |kind: &str, pattern: &str| {
            let mut total = 0;
            for pool in &write {
                let sql =
                    "select coalesce(sum(pg_relation_size(oid)), 0)::bigint from pg_class where relkind = $1::\"char\" and relname ~ $2";
                total += sqlx::query_scalar::<_, i64>(sql).bind(kind).bind(pattern).fetch_one(pool).await?;
            }
            Ok::<_, anyhow::Error>(total)
        };
        Ok(Self {
            events: size("r", "^event_r").await?,
            event_indexes: size("i", "^event_r").await?,
            ledger: size("r", "^ledger_").await? + size("i", "^ledger_").await?,
            heads: size("r", "_head$").await? + size("i", "_head_pkey$").await?,
            wal: sum(&write, "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint").await?,
            views: sum(&read, "select pg_total_relation_size('product_view')").await?,
            jetstream: in_jetstream(stage).await?,
        })
    }
}

/// Bytes that a command of 1 KB leaves, by place.
#[derive(Debug)]
pub struct EachCommand {
    /// Of its event.
    pub payload: f64,
    pub places: Vec<(&'static str, f64)>,
    /// In the write database, without its WAL.
    pub stored: f64,
}

impl EachCommand {
    /// Creates so many products, numbered from `first` on, first without any projector.
    ///
    /// # Errors
    /// When a part of the system fails.
    pub async fn measure(stage: &mut Stage, first: u64, commands: u64) -> Result<Self> {
        progress("bytes written, by place");
        stage.caught_up().await?;
        stage.relayed().await?;
        stage.until_none(Service::Saga, "souk_saga_lag_events").await?;
        for service in [Service::Saga, Service::Projector] {
            stage.system.stop(service).await?;
        }
        let before = Places::of(stage).await?;
        stage.create(first, commands).await?;
        stage.relayed().await?;
        let written = Places::of(stage).await?;
        for service in [Service::Projector, Service::Saga] {
            stage.system.start_again(service).await?;
        }
        stage.caught_up().await?;
        let projected = Places::of(stage).await?;
        let each = |bytes: i64| bytes as f64 / commands as f64;
        let places = vec![
            ("events", each(written.events - before.events)),
            ("event_indexes", each(written.event_indexes - before.event_indexes)),
            ("ledger_with_index", each(written.ledger - before.ledger)),
            ("heads_with_indexes", each(written.heads - before.heads)),
            ("wal", each(written.wal - before.wal)),
            ("jetstream", each(written.jetstream - before.jetstream)),
            ("views_with_indexes", each(projected.views - written.views)),
            ("wal_of_views", each(projected.wal - written.wal)),
        ];
        let stored = each(written.stored() - before.stored());
        Ok(Self { payload: payload_of(stage).await?, places, stored })
    }
}

async fn in_jetstream(stage: &Stage) -> Result<i64> {
    let context = jetstream::new(async_nats::connect(stage.system.stack.nats.url()).await?);
    let sizes = stream::iter(0..PARTITIONS).map(|partition| {
        let context = &context;
        async move { Ok::<_, anyhow::Error>(context.get_stream(format!("souk-1-{partition}")).await?.cached_info().state.bytes) }
    });
    sizes.buffered(8).try_fold(0, async |total, bytes| Ok(total + bytes as i64)).await
}

/// Bytes of the payload of a product's first event.
async fn payload_of(stage: &Stage) -> Result<f64> {
    let pools = stage.system.write_pools().await?;
    let sql = "select avg(octet_length(payload))::float8 from (select payload from event where type = 'ProductCreated' limit 1000) e";
    Ok(sqlx::query_scalar(sql).fetch_one(pools.first().context("no write database")?).await?)
}
