//! Fills an installation past its services, by COPY, as they would have filled it: logs, streams and ledger, views and
//! checkpoints. The audit compares all of it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use souk_domain::{Description, Event, Money, ProductId, Title, product};
use souk_event_sourcing::{
    Epoch, EventId, HlcClock, LogHash, LogId, Partition, Position, RecordedEvent, Region, RequestId, StreamId, UnixMillis, Version,
    partition_of,
};
use souk_event_store::{Fingerprint, LedgerEntry, Retention};
use souk_proto::{
    catalog::v1::UpdateProductResponse,
    log::v1::{Accepted, StoredReply, stored_reply::Outcome},
};
use souk_tests::System;
use souk_views::{PRODUCT, Reference};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use uuid::{NoContext, Timestamp, Uuid};

use crate::{
    rows::{Rows, view_columns},
    sources::{product_id, text, update},
};

const REGION: Region = Region(1);
const PARTITIONS: u16 = 64;
const RETENTION: Retention = Retention { days: 7 };
/// How long ago the first event happened.
const SPAN_MS: i64 = 3_600_000;
/// Events sent at a time.
const PART: usize = 1_000;
/// Logs filled at the same time.
const PARALLEL: usize = 2;

/// Creates so many products with texts of `bytes`, and changes each until it has `each` events. The services must not run; the logs
/// must be empty.
///
/// # Errors
/// When a database refuses something.
pub async fn with_products(system: &System, products: u64, each: u64, bytes: usize) -> Result<Duration> {
    let began = Instant::now();
    let mut logs: BTreeMap<Partition, Vec<u64>> = BTreeMap::new();
    for number in 1..=products {
        let id = ProductId::new(&product_id(number))?;
        logs.entry(partition_of(id.key().hash(), PARTITIONS)).or_default().push(number);
    }
    let write = system.stack.write_databases().first().context("no write database")?.url.clone();
    let read = system.stack.read_databases().first().context("no read database")?.url.clone();
    stream::iter(logs)
        .map(|(partition, products)| {
            let (write, read) = (write.clone(), read.clone());
            async move { fill_log(LogId { region: REGION, partition }, &products, (each, bytes), &write, &read).await }
        })
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<()>>()
        .await?;
    // As autovacuum would have left them.
    let tables = [(&write, "event"), (&write, "ledger"), (&write, "stream_head"), (&read, "product_view")];
    for (url, statement) in
        tables.iter().map(|(url, table)| (url, format!("vacuum (analyze) {table}"))).chain([(&&write, "checkpoint".to_owned())])
    {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut PgConnection::connect(url).await?).await?;
    }
    Ok(began.elapsed())
}

/// The events of one log: every product's first, then every product's second, and so on.
async fn fill_log(log: LogId, products: &[u64], (each, bytes): (u64, usize), write: &str, read: &str) -> Result<()> {
    let (mut events, mut ledger) = (PgConnection::connect(write).await?, PgConnection::connect(write).await?);
    let epoch: i64 = sqlx::query("select epoch from partition_head where region = $1 and partition = $2 and position = 0")
        .bind(log.region.0 as i16)
        .bind(i32::from(log.partition.0))
        .fetch_one(&mut events)
        .await
        .context("the log is not empty")?
        .try_get(0)?;
    let mut maker = Maker::new(log, Epoch(epoch as u64), products.len() as u64 * each, bytes);
    let mut copied = events.copy_in_raw("copy event from stdin (format binary)").await?;
    let mut remembered = ledger.copy_in_raw("copy ledger from stdin (format binary)").await?;
    let (mut rows, mut replies) = (Rows::first(), Rows::first());
    for version in 1..=each {
        for products in products.chunks(PART) {
            for product in products {
                let (event, entry) = maker.next(*product, Version(version))?;
                rows.event(&event);
                replies.remembered(&event, &entry, RETENTION);
            }
            copied.send(std::mem::replace(&mut rows, Rows::more()).part()).await?;
            remembered.send(std::mem::replace(&mut replies, Rows::more()).part()).await?;
        }
    }
    copied.send(rows.last()).await?;
    copied.finish().await?;
    remembered.send(replies.last()).await?;
    remembered.finish().await?;
    streams(&mut events, log, products, each).await?;
    maker.head(&mut events).await?;
    maker.views(&mut PgConnection::connect(read).await?).await
}

/// Where each stream of the log ends.
async fn streams(connection: &mut PgConnection, log: LogId, products: &[u64], version: u64) -> Result<()> {
    let mut rows = Rows::first();
    for product in products {
        let stream = ProductId::new(&product_id(*product))?.stream();
        rows.row(4).small(log.region.0 as i16).int(i32::from(log.partition.0)).field(stream.as_str().as_bytes()).big(version as i64);
    }
    let mut copy = connection.copy_in_raw("copy stream_head (region, partition, stream, version) from stdin (format binary)").await?;
    copy.send(rows.last()).await?;
    copy.finish().await?;
    Ok(())
}

/// Makes the events of one log, as its owner would have.
struct Maker {
    log: LogId,
    epoch: Epoch,
    position: Position,
    hash: LogHash,
    clock: HlcClock,
    began: UnixMillis,
    /// Of the log.
    events: u64,
    /// Of a text.
    bytes: usize,
    views: Reference,
}

impl Maker {
    fn new(log: LogId, epoch: Epoch, events: u64, bytes: usize) -> Self {
        let began = UnixMillis::now().plus_ms(-SPAN_MS);
        Self {
            log,
            epoch,
            position: Position(0),
            hash: LogHash::EMPTY,
            clock: HlcClock::default(),
            began,
            events,
            bytes,
            views: Reference::default(),
        }
    }

    /// The next event, and what is remembered of its command.
    fn next(&mut self, product: u64, version: Version) -> Result<(RecordedEvent, LedgerEntry)> {
        let id = ProductId::new(&product_id(product))?;
        let text = text(product ^ version.0 << 40, self.bytes);
        let event = match version {
            Version(1) => {
                let details = product::Details {
                    title: Title::new(&format!("Product {product}"))?,
                    description: Description::new(&text)?,
                    ..product::Details::default()
                };
                product::Event::ProductCreated { details, price: Some(Money::new("EUR".parse()?, 100)) }
            }
            _ => product::Event::ProductDetailsChanged(product::Changes {
                description: Some(Description::new(&text)?),
                ..product::Changes::default()
            }),
        };
        let new = souk_codec::encode(&id.stream(), &Event::Product(event));
        self.position = self.position.next();
        let hlc = self.clock.tick(self.began.plus_ms(SPAN_MS * self.position.0 as i64 / self.events.max(1) as i64));
        let request_id = RequestId(minted(hlc.time()));
        let mut event = RecordedEvent {
            log: self.log,
            position: self.position,
            epoch: self.epoch,
            hash: LogHash::EMPTY,
            stream: new.stream.clone(),
            version,
            kind: new.kind.to_owned(),
            schema_version: new.schema_version,
            payload: new.payload,
            event_id: EventId(minted(hlc.time())),
            request_id: Some(request_id),
            causation_id: None,
            correlation_id: None,
            actor: "bench".to_owned(),
            hlc,
            traceparent: String::new(),
            home_epoch: Epoch(0),
            key_id: None,
        };
        event.hash = self.hash.after(&event);
        self.hash = event.hash;
        self.views.apply(&event)?;
        let entry = self.remembered(&event, new.stream, request_id, update(product, text).encode_to_vec().into());
        Ok((event, entry))
    }

    fn remembered(&self, event: &RecordedEvent, stream: StreamId, request_id: RequestId, command: Bytes) -> LedgerEntry {
        let response = UpdateProductResponse {
            product_id: stream.id().to_owned(),
            version: event.version.0,
            etag: format!("{}-{}", self.log.region, event.version),
            token: String::new(),
        };
        let accepted = Accepted { response: response.encode_to_vec().into(), epoch: self.epoch.0, position: event.position.0 };
        LedgerEntry {
            stream,
            request_id,
            method: "souk.catalog.v1.CommandService/UpdateProduct",
            command,
            fingerprint: Fingerprint::new(*request_id.0.as_bytes()),
            reply: Some(StoredReply { outcome: Some(Outcome::Accepted(accepted)) }.encode_to_vec().into()),
            actor: event.actor.clone(),
            recorded: event.hlc.time(),
        }
    }

    /// Where the log ends.
    async fn head(&self, connection: &mut PgConnection) -> Result<()> {
        sqlx::query("update partition_head set position = $3, hash = $4, batch = batch + 1 where region = $1 and partition = $2")
            .bind(self.log.region.0 as i16)
            .bind(i32::from(self.log.partition.0))
            .bind(self.position.0 as i64)
            .bind(self.hash.0.as_slice())
            .execute(connection)
            .await?;
        Ok(())
    }

    /// The rows that the projector would have made of the log, and how far it would be.
    async fn views(&self, connection: &mut PgConnection) -> Result<()> {
        let mut rows = Rows::first();
        for row in self.views.rows(&PRODUCT) {
            rows.view(&PRODUCT, &row);
        }
        let statement = format!("copy product_view ({}) from stdin (format binary)", view_columns(&PRODUCT));
        let mut copy = connection.copy_in_raw(&statement).await?;
        copy.send(rows.last()).await?;
        copy.finish().await?;
        sqlx::query(
            "update read_checkpoint set epoch = $3, position = $4, hash = $5, revision = $6, updated_ms = $7 where region = $1 and partition = $2",
        )
        .bind(self.log.region.0 as i16)
        .bind(i32::from(self.log.partition.0))
        .bind(self.epoch.0 as i64)
        .bind(self.position.0 as i64)
        .bind(self.hash.0.as_slice())
        .bind(souk_views::revision() as i32)
        .bind(UnixMillis::now().0)
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// A version 7 id of that time.
fn minted(time: UnixMillis) -> Uuid {
    let millis = time.0 as u64;
    Uuid::new_v7(Timestamp::from_unix(NoContext, millis / 1000, (millis % 1000) as u32 * 1_000_000))
}
