use anyhow::{Context, Result};
use async_nats::jetstream;
use futures::{StreamExt, TryStreamExt, stream};
use souk_devstack::{Replica, Service};
use souk_tests::until;

use super::Bench;
use crate::{
    record::{Entry, progress},
    sources::{description, update},
    stage::{PATIENCE, sum},
};

/// Products that are made to be counted are numbered from here on.
const FIRST: u64 = 900_000_000;
const PARTITIONS: u64 = 64;

/// Bytes by place.
#[derive(Debug, Clone, Copy)]
struct Places {
    events: i64,
    event_indexes: i64,
    ledger: i64,
    heads: i64,
    wal: i64,
    views: i64,
    jetstream: i64,
}

impl Bench {
    /// Of the commands that `souk-client` sends to two replicas, how many one passes on to the other.
    pub(super) async fn forwarded(&mut self) -> Result<()> {
        if !self.wants("forwarded") {
            return Ok(());
        }
        progress("commands through the client to two replicas");
        let second = self.stage.system.add_replica(Service::Command).await?;
        let replicas = [Replica::from(Service::Command), second];
        until("both replicas have logs", PATIENCE, || async {
            let of = |replica| self.stage.metric(replica, "souk_command_partitions");
            Ok((of(replicas[0]).await? + of(replicas[1]).await? == PARTITIONS as f64 && of(second).await? > 0.0).then_some(()))
        })
        .await?;
        let passed_on = async || {
            let mut total = 0.0;
            for replica in replicas {
                total += self.stage.metric(replica, "souk_forwarded_total").await?;
            }
            Ok::<_, anyhow::Error>(total)
        };
        let (before, client) = (passed_on().await?, self.client()?);
        let (commands, round) = (self.effort.of(50_000, 20_000, 500), rand::random::<u64>());
        stream::iter(0..commands)
            .map(Ok::<_, anyhow::Error>)
            .try_for_each_concurrent(64, |number| {
                let (session, product) = (client.session(), number % self.stage.products + 1);
                async move { Ok(session.command(update(product, description(number ^ round))).await.map(drop)?) }
            })
            .await?;
        let share = (passed_on().await? - before) / commands as f64;
        self.stage.system.remove_replica(second).await?;
        let entry =
            Entry::on_record("forwarded", share, "commands passed on ÷ all, two replicas, through souk-client (wanted: at most 0.01)")
                .figure("commands", commands as f64);
        self.record(entry);
        Ok(())
    }

    /// Where a command of 1 KB leaves how many bytes.
    pub(super) async fn bytes(&mut self) -> Result<()> {
        if !self.wants("bytes") {
            return Ok(());
        }
        progress("bytes written, by place");
        self.stage.caught_up().await?;
        self.stage.relayed().await?;
        self.stage.until_none(Service::Saga, "souk_saga_lag_events").await?;
        for service in [Service::Saga, Service::Projector] {
            self.stage.system.stop(service).await?;
        }
        let commands = self.effort.of(100_000, 40_000, 1_000);
        let before = self.places().await?;
        self.stage.create(FIRST, commands).await?;
        self.stage.relayed().await?;
        let written = self.places().await?;
        for service in [Service::Projector, Service::Saga] {
            self.stage.system.start_again(service).await?;
        }
        self.stage.caught_up().await?;
        let projected = self.places().await?;
        let payload = self.payload().await?;
        let each = |of: fn(&Places) -> i64, from: &Places, to: &Places| (of(to) - of(from)) as f64 / commands as f64;
        let write = |of| each(of, &before, &written);
        let stored = write(|places| places.events + places.event_indexes + places.ledger + places.heads);
        let note = "bytes a command of 1 KB leaves in the write database ÷ its event's payload (wanted: at most 4)";
        let entry = Entry::on_record("bytes", stored / payload, note)
            .figure("payload", payload)
            .figure("events", write(|places| places.events))
            .figure("event_indexes", write(|places| places.event_indexes))
            .figure("ledger_with_index", write(|places| places.ledger))
            .figure("heads_with_indexes", write(|places| places.heads))
            .figure("wal", write(|places| places.wal))
            .figure("jetstream", write(|places| places.jetstream))
            .figure("views_with_indexes", each(|places| places.views, &written, &projected))
            .figure("wal_of_views", each(|places| places.wal, &written, &projected));
        self.record(entry);
        Ok(())
    }

    async fn places(&self) -> Result<Places> {
        let (write, read) = (self.stage.system.write_pools().await?, self.stage.system.read_pools().await?);
        let size = async |kind: &str, pattern: &str| {
            let mut total = 0;
            for pool in &write {
                let sql =
                    "select coalesce(sum(pg_relation_size(oid)), 0)::bigint from pg_class where relkind = $1::\"char\" and relname ~ $2";
                total += sqlx::query_scalar::<_, i64>(sql).bind(kind).bind(pattern).fetch_one(pool).await?;
            }
            Ok::<_, anyhow::Error>(total)
        };
        Ok(Places {
            events: size("r", "^event_r").await?,
            event_indexes: size("i", "^event_r").await?,
            ledger: size("r", "^ledger_").await? + size("i", "^ledger_").await?,
            heads: size("r", "_head$").await? + size("i", "_head_pkey$").await?,
            wal: sum(&write, "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint").await?,
            views: sum(&read, "select pg_total_relation_size('product_view')").await?,
            jetstream: self.in_jetstream().await?,
        })
    }

    async fn in_jetstream(&self) -> Result<i64> {
        let context = jetstream::new(async_nats::connect(self.stage.system.stack.nats.url()).await?);
        let sizes = stream::iter(0..PARTITIONS).map(|partition| {
            let context = &context;
            async move { Ok::<_, anyhow::Error>(context.get_stream(format!("souk-1-{partition}")).await?.cached_info().state.bytes) }
        });
        sizes.buffered(8).try_fold(0, async |total, bytes| Ok(total + bytes as i64)).await
    }

    /// Bytes of the payload of an event of this kind.
    async fn payload(&self) -> Result<f64> {
        let pools = self.stage.system.write_pools().await?;
        let sql = "select avg(octet_length(payload))::float8 from (select payload from event where type = 'ProductCreated' limit 1000) e";
        Ok(sqlx::query_scalar(sql).fetch_one(pools.first().context("no write database")?).await?)
    }
}
