//! The change feed as the cache hears it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use souk_bus::Feed;
use souk_event_sourcing::{Region, UnixMillis};
use souk_proto::log::v1::ChangeFeed;
use souk_read_store::ReadStore;
use souk_runtime::telemetry::set_parents;
use tracing::Instrument;

use crate::cache::{Mark, RowCache};

const RETRY: Duration = Duration::from_millis(500);

/// Feeds the cache with what the projectors of `region` announce, until it is dropped. What is missed meanwhile shows as a
/// hole in the next message.
pub(crate) async fn follow(bus: Arc<dyn Feed>, region: Region, cache: Arc<RowCache>) {
    loop {
        match bus.subscribe_changes(region).await {
            Ok(mut messages) => {
                while let Some(message) = messages.next().await {
                    hear(&cache, message).await;
                }
                tracing::warn!(%region, "the change feed ended; subscribing again");
            }
            Err(error) => tracing::warn!(%region, %error, "no change feed"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Where there are replicas: while the feed is silent about a log, looks at how far the primary's views of it are, so that
/// replicas can be told to be recent all the same. Until it is dropped.
pub(crate) async fn look(store: Arc<ReadStore>, cache: Arc<RowCache>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        for database in store.databases().iter().filter(|database| database.has_replicas()) {
            let began = Instant::now();
            let logs: Vec<_> = store.logs_of(database.name()).into_iter().filter_map(|log| cache.log(log)).collect();
            if logs.iter().all(|log| log.horizon().proven(began)) {
                continue;
            }
            // Without an answer nothing is seen; then the primary is asked for everything, and tells the readers why not.
            let Ok(Ok(checkpoints)) = tokio::time::timeout(every, store.checkpoints(database)).await else { continue };
            for checkpoint in checkpoints.iter().filter(|checkpoint| !checkpoint.rebuilding) {
                if let Some(log) = cache.log(checkpoint.log) {
                    log.seen(Mark { epoch: checkpoint.epoch, position: checkpoint.position }, began);
                }
            }
        }
    }
}

async fn hear(cache: &RowCache, message: ChangeFeed) {
    let heard = async {
        if cache.hear(&message, Instant::now(), UnixMillis::now()).await.is_none() {
            tracing::debug!(region = message.region, partition = message.partition, "changes of a log that is not kept here");
        }
    };
    if message.traceparents.is_empty() {
        return heard.await;
    }
    let span = tracing::info_span!("change feed", partition = message.partition, position = message.position, rows = message.rows.len());
    set_parents(&span, message.traceparents.iter().map(String::as_str));
    heard.instrument(span).await;
}
